"""Every path of a run, computed here only. Knows names, never contents.

runs/<name>/
  config.yaml  environment.json
  m0/                        how M_0 came to be, when this run makes it
    initial/                 Hugging Face folder: random weights and a tokenizer
    demonstrations.parquet   what supervised fine-tuning learns from
    train/  hf/              the fine-tuning run; M_0
  iteration_00/
    samples/train  samples/test  graded/train  graded/test
    evaluation.json  disagreements.jsonl  pairs.parquet  pairs.json  reference.parquet
    trial/  selection.json   with selection: a training without some problems, and how many steps were best
    train/                   checkpoints/, metrics.jsonl, TensorBoard events
    hf/                      M_1
    <stage>.manifest.json
  logs/  report/  tracking/
  slurm/                     the jobs of a chain: scripts, the code they run, logs, state
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainFolder:
    """One training run: of an iteration, or of M_0's supervised fine-tuning."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"


@dataclass(frozen=True)
class TrialFolder:
    """The training that finds out how many steps are best."""

    root: Path

    @property
    def train(self) -> TrainFolder:
        return TrainFolder(self.root / "train")

    @property
    def models(self) -> Path:
        """A Hugging Face folder for each step at which the model was kept."""
        return self.root / "models"

    @property
    def steps(self) -> Path:
        """Those steps, each with its validation loss."""
        return self.root / "steps.json"

    def model(self, step: int) -> Path:
        return self.models / f"step_{step:08d}"

    def samples(self, step: int) -> Path:
        """Parquet parts: how the model of `step` solves the held-out problems."""
        return self.root / "samples" / f"step_{step:08d}"

    def graded(self, step: int) -> Path:
        """A Parquet part for each of `samples(step)`."""
        return self.root / "graded" / f"step_{step:08d}"


@dataclass(frozen=True)
class ModelZeroFolder:
    """Where this run makes its own M_0."""

    root: Path

    @property
    def initial(self) -> Path:
        return self.root / "initial"

    @property
    def demonstrations(self) -> Path:
        return self.root / "demonstrations.parquet"

    @property
    def train(self) -> TrainFolder:
        return TrainFolder(self.root / "train")

    @property
    def hf(self) -> Path:
        return self.root / "hf"

    def manifest(self, stage: str) -> Path:
        return self.root / f"{stage}.manifest.json"


@dataclass(frozen=True)
class IterationFolder:
    """Everything that starts from M_t."""

    root: Path

    def samples(self, split: str) -> Path:
        """The folder of Parquet parts for `split`: "train" or an evaluation set's name."""
        return self.root / "samples" / split

    def sampling_statistics(self, split: str) -> Path:
        """A JSON file for each part drawn; beside the parts, whose digest must not depend on times."""
        return self.root / "samples" / f"{split}.statistics"

    def graded(self, split: str) -> Path:
        """The folder of Parquet parts, one for each part of `samples(split)`."""
        return self.root / "graded" / split

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def disagreements(self) -> Path:
        """With an audit: a line of JSON for each candidate that one grader calls correct and the other wrong."""
        return self.root / "disagreements.jsonl"

    @property
    def pairs(self) -> Path:
        return self.root / "pairs.parquet"

    @property
    def pairs_summary(self) -> Path:
        return self.root / "pairs.json"

    @property
    def reference(self) -> Path:
        return self.root / "reference.parquet"

    @property
    def train(self) -> TrainFolder:
        return TrainFolder(self.root / "train")

    @property
    def trial(self) -> TrialFolder:
        return TrialFolder(self.root / "trial")

    @property
    def selection(self) -> Path:
        """How each kept model of the trial did, and the step that was chosen."""
        return self.root / "selection.json"

    @property
    def hf(self) -> Path:
        """M_t+1, exported."""
        return self.root / "hf"

    def manifest(self, stage: str) -> Path:
        return self.root / f"{stage}.manifest.json"


@dataclass(frozen=True)
class SlurmFolder:
    """What launching on a cluster keeps in a run."""

    root: Path

    @property
    def chain(self) -> Path:
        """The jobs of the last submission."""
        return self.root / "chain.json"

    @property
    def code(self) -> Path:
        """The package as it was when the chain was submitted."""
        return self.root / "code"

    @property
    def logs(self) -> Path:
        """NAME.JOB.log for people; NAME.JOB.START/ with a file for each rank and node."""
        return self.root / "logs"

    def script(self, job: str) -> Path:
        return self.root / f"{job}.sbatch"

    def state(self, job: str) -> Path:
        """What supervise.sh knows of a job; NAME.TASK for a task of an array."""
        return self.root / "state" / job


@dataclass(frozen=True)
class RunFolder:
    """The root of one run."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def lock(self) -> Path:
        return self.root / "run.lock"

    @property
    def model_zero(self) -> ModelZeroFolder:
        return ModelZeroFolder(self.root / "m0")

    @property
    def tracking(self) -> Path:
        """What trackers write on this machine."""
        return self.root / "tracking"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def results(self) -> Path:
        return self.report / "results.json"

    @property
    def page(self) -> Path:
        return self.report / "index.html"

    @property
    def slurm(self) -> SlurmFolder:
        return SlurmFolder(self.root / "slurm")

    @property
    def page_data(self) -> Path:
        """What the page loads when somebody looks at problems."""
        return self.report / "data"

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def iteration(self, index: int) -> IterationFolder:
        return IterationFolder(self.root / f"iteration_{index:02d}")

    def manifest(self, stage: str) -> Path:
        return self.root / f"{stage}.manifest.json"
