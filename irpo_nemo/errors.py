"""The exception tree. The command line prints an `IRPOError` as one line and exits with 2.

    IRPOError
    ├── ConfigError         a value of the configuration, or a command-line argument
    ├── DataError           a problem file, or a row of it
    ├── ModelError          a Hugging Face folder, its configuration or weights
    ├── ArtifactError       a file of the run folder: missing, damaged, of another run, not writable
    └── MachineError        this machine: a package, a device, a process that failed to start

A message says what, where, found, wanted, and what to do. Anything that is not an `IRPOError` is a bug of ours.
"""


class IRPOError(Exception):
    """Base of every error that the user can mend."""


class ConfigError(IRPOError):
    """A mistake in the configuration. The message lists every mistake found, one a line."""


class DataError(IRPOError):
    """A problem file that cannot be read, or a row of it that makes no sense."""


class ModelError(IRPOError):
    """A model folder that cannot be loaded, or a shape that is not supported."""


class ArtifactError(IRPOError):
    """A file of the run folder that is missing, damaged, from another run, or cannot be written."""


class MachineError(IRPOError):
    """Something this machine lacks, or a process that could not do its work here."""
