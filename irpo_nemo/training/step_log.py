"""metrics.jsonl and TensorBoard of a training run, and a line of progress, written by rank 0 after every step."""

import json
import logging
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from irpo_nemo.artifacts import explain_os_errors
from irpo_nemo.errors import ArtifactError
from irpo_nemo.run_folder import TrainFolder
from irpo_nemo.training.batches import MicroBatch
from irpo_nemo.training.model import IRPOModel
from irpo_nemo.training.parallel import count_weight_copies, data_parallel_size

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
"""Time between two lines of progress."""

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""Dense bfloat16 peak of one GPU, FLOP/s, from NVIDIA's data sheets; MFU is relative to it."""


class StepLog:
    """The files of one training run. Lines of a killed run from `first_step` on are dropped."""

    def __init__(self, folder: TrainFolder, *, first_step: int, num_steps: int, title: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.num_steps = num_steps
        self.title = title
        with explain_os_errors(folder.metrics):
            folder.root.mkdir(parents=True, exist_ok=True)
            _keep_lines_before(folder.metrics, first_step)
            self._file = folder.metrics.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder.tensorboard), purge_step=first_step)
        self._last_progress = time.monotonic()

    def write(self, metrics: dict[str, Any]) -> None:
        """Append one step's metrics to both files, and say how far the run is now and then."""
        with explain_os_errors(Path(self._file.name)):
            self._file.write(json.dumps(metrics) + "\n")
            self._file.flush()
        for name, value in metrics.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, metrics["step"])
        self._report_progress(metrics)

    def _report_progress(self, metrics: dict[str, Any]) -> None:
        now, is_last = time.monotonic(), metrics["step"] + 1 == self.num_steps
        if now - self._last_progress < PROGRESS_SECONDS and not is_last:
            return
        self._last_progress = now
        dpo = f" (dpo {metrics['loss/dpo']:.3f}, nll {metrics['loss/nll']:.3f})" if metrics["loss/dpo"] else ""
        logger.info(
            "%s  step %d of %d  loss %.3f%s  %.1f pairs/s",
            self.title,
            metrics["step"] + 1,
            self.num_steps,
            metrics["loss/total"],
            dpo,
            metrics["pairs_per_second"],
        )

    def close(self) -> None:
        """Flush both files to disk."""
        with explain_os_errors(Path(self._file.name)):
            os.fsync(self._file.fileno())
            self._file.close()
        self._board.close()


def _keep_lines_before(path: Path, first_step: int) -> None:
    """Drop the lines that the steps to come will write again, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] >= first_step:
            break
        kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


class StepClock:
    """Throughput, memory and padding of a step."""

    def __init__(self, num_parameters: int) -> None:
        self.num_parameters = num_parameters
        self._started = time.monotonic()

    def start(self) -> None:
        """Begin a step."""
        self._started = time.monotonic()

    def measure(self, batch: Sequence[MicroBatch], metrics: dict[str, float]) -> dict[str, float | None]:
        """Finish a step: seconds-based metrics of the whole job from this rank's share of the global batch."""
        seconds = time.monotonic() - self._started
        slots = sum(micro.tokens.numel() for micro in batch)
        tokens = sum(micro.num_tokens for micro in batch)
        tokens_per_second = tokens * data_parallel_size() / seconds
        return {
            "tokens_per_second": tokens_per_second,
            "pairs_per_second": metrics["num_pairs"] / seconds,
            "mfu": _mfu(tokens_per_second, self.num_parameters),
            "padding_fraction": 1 - tokens / slots,
            "memory_gib": _memory_gib(),
        }


def _mfu(tokens_per_second: float, num_parameters: int) -> float | None:
    """Model FLOP/s utilisation, 6 FLOP per parameter and token; None where the device's peak is not known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    peaks = [peak for key, peak in PEAK_FLOPS.items() if key in name]
    world_size = torch.distributed.get_world_size()
    return 6 * num_parameters * tokens_per_second / (peaks[0] * world_size) if peaks else None


def _memory_gib() -> float:
    """Peak memory of this rank: on the GPU, or, without one, of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class LogSteps(Callback):
    """Writes each step's metrics on rank 0, and checks that training starts where the reference stands.

    Args:
        log: Rank 0's.
        check_first_step: Whether the first step's DPO loss must be ln 2.
        watch: What else to measure after a step, on every rank; a step's time does not count it.
    """

    def __init__(
        self,
        log: StepLog | None,
        *,
        check_first_step: bool,
        watch: Callable[[IRPOModel], Mapping[str, float]] | None = None,
    ) -> None:
        self.step_log = log
        self.check_first_step = check_first_step
        self.watch = watch
        self._clock: StepClock | None = None

    def on_train_batch_start(self, trainer: Trainer, module: IRPOModel, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self._clock = self._clock or StepClock(_count_parameters(module))
        self._clock.start()

    def on_train_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        module: IRPOModel,
        outputs: Any,  # noqa: ARG002
        batch: list[MicroBatch],
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        metrics = module.last_metrics
        if self.check_first_step and module.step == 1:
            require_ln_2(metrics["loss/dpo"], bf16=module.options.training.bf16)
        assert self._clock is not None
        measured = self._clock.measure(batch, metrics)
        watched = self.watch(module) if self.watch else {}
        if self.step_log is not None:
            self.step_log.write({"step": module.step - 1, **step_metrics(metrics), **measured, **watched})


def step_metrics(metrics: dict[str, float]) -> dict[str, float | None]:
    """The metrics of a step under their published names."""
    shown: dict[str, float | None] = {
        name: value for name, value in metrics.items() if not name.startswith("tokens/") and name != "num_pairs"
    }
    for side in ("chosen", "rejected"):
        tokens = metrics[f"tokens/{side}"]
        shown[f"logprob_per_token/{side}"] = metrics[f"logprob/{side}"] / tokens if tokens else None
    return shown


def require_ln_2(dpo: float, *, bf16: bool) -> None:
    """Check that the first step's DPO loss is ln 2, as it is when the policy equals the reference.

    Raises:
        ArtifactError: It is not: the stored reference log-probs belong to other weights.
    """
    ln_2, tolerance = 0.6931471805599453, 1e-2 if bf16 else 1e-4
    if abs(dpo - ln_2) > tolerance:
        raise ArtifactError(
            f"step 0: loss/dpo is {dpo:.6f}, but must be ln 2 = {ln_2:.6f} because the policy still equals the "
            "reference. The reference log-probs belong to other weights; delete reference.parquet and run again."
        )


def _count_parameters(module: IRPOModel) -> int:
    """Parameters of the whole model, over its tensor and pipeline ranks."""
    local = torch.tensor(
        sum(p.numel() for p in module.chunks.parameters()) / count_weight_copies(),
        dtype=torch.float64,
        device=module.device,
    )
    torch.distributed.all_reduce(local)
    return int(local.item())
