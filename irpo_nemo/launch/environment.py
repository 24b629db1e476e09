"""What this run is made with: versions, commit and host, for environment.json and `irpo doctor`. Imports none of what
it names.
"""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import irpo_nemo

PACKAGES = (
    "torch",
    "megatron-core",
    "nemo-toolkit",
    "lightning",
    "transformers",
    "tensorrt-llm",
    "transformer-engine",
    "apex",
    "pyarrow",
    "hydra-core",
    "matplotlib",
)


def describe_environment() -> dict[str, Any]:
    """Versions, git state of the checkout, and host."""
    return {
        "irpo_nemo": irpo_nemo.__version__,
        "git": _describe_checkout(Path(irpo_nemo.__file__).resolve().parent),
        "python": sys.version.split()[0],
        "packages": {name: installed_version(name) for name in PACKAGES},
        "host": {"name": platform.node(), "platform": platform.platform(), "cpus": os.cpu_count()},
    }


def installed_version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe_checkout(folder: Path) -> str | None:
    """`git describe` of the checkout that the package stands in; None for an installed wheel."""
    if not (folder.parent / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
