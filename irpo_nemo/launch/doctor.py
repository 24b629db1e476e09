"""`irpo doctor`: what is installed, and self-tests with known answers. Says for each finding what to do."""

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from irpo_nemo.errors import MachineError
from irpo_nemo.launch.environment import PACKAGES, describe_environment, installed_version
from irpo_nemo.launch.machine import examine_machine

_NEEDED_FOR = {
    "torch": "training and sampling: pip install 'irpo-nemo[train]'",
    "megatron-core": "training: pip install 'irpo-nemo[train]'",
    "nemo-toolkit": "training: pip install 'irpo-nemo[train]'",
    "transformers": "sampling: pip install 'irpo-nemo[train]'",
    "matplotlib": "the figures of `irpo table`: pip install 'irpo-nemo[report]'",
}

_USE_OF = {
    "tensorrt-llm": "sampler=tensorrt_llm, in a container of its own: docker build --target sampler",
    "transformer-engine": "Megatron's fused Adam on GPUs; comes with NVIDIA's PyTorch image",
    "apex": "Megatron's fused Adam on GPUs where Transformer Engine is not there",
}


def examine_environment(run_root: Path) -> None:
    """Print every finding.

    Args:
        run_root: Where runs are to stand.

    Raises:
        MachineError: A self-test failed, or the machine has something that a run would fail on.
    """
    environment = describe_environment()
    print(f"irpo-nemo {environment['irpo_nemo']} ({environment['git'] or 'installed'}), Python {environment['python']}")
    print(f"{environment['host']['platform']}, {environment['host']['cpus']} CPUs")
    for package in PACKAGES:
        print(f"  {package:<18} {_describe_package(package)}")
    failures = []
    for finding in examine_machine(run_root):
        print(f"  {finding.state:<8} {finding.about}: {finding.text}")
        failures.append(finding.state == "FAILED")
    failures += [_try(name, check) for name, check in _SELF_TESTS.items()]
    if any(failures):
        raise MachineError(f"{sum(failures)} of {len(failures)} examinations failed; see above.")


def _describe_package(package: str) -> str:
    if installed := installed_version(package):
        return installed
    need = _NEEDED_FOR.get(package)
    return f"missing; needed for {need}" if need else f"missing; optional: {_USE_OF.get(package, '')}".rstrip(": ")


def _try(name: str, check: Callable[[], str]) -> bool:
    """Run one self-test and print the outcome; whether it failed."""
    try:
        outcome = check()
    except ImportError as error:
        print(f"  skipped  {name}: {error}")
        return False
    except Exception as error:  # noqa: BLE001 - a doctor reports whatever is wrong and goes on
        print(f"  FAILED   {name}: {type(error).__name__}: {error}")
        return True
    print(f"  ok       {name}: {outcome}")
    return False


def _check_records() -> str:
    """Records survive Parquet."""
    from irpo_nemo.artifacts import read_records, write_records
    from irpo_nemo.records import Demonstration

    records = [Demonstration(demonstration_id="a", prompt_token_ids=[1, 2], token_ids=[3])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.parquet"
        write_records(path, records, Demonstration)
        assert read_records(path, Demonstration) == records
    return "one row, written and read"


def _check_graders() -> str:
    """Every grader passes its golden cases, in a child process as in a run."""
    from irpo_nemo.config import GradingConfig
    from irpo_nemo.grading import GRADERS
    from irpo_nemo.grading.pool import GradingPool
    from irpo_nemo.grading.self_test import check_grader

    counts = {}
    for grader in GRADERS:
        with GradingPool(grader, GradingConfig(num_workers=1)) as pool:
            counts[grader] = check_grader(pool)
    return f"known verdicts: {', '.join(f'{count} of {grader}' for grader, count in counts.items())}"


def _check_loss() -> str:
    """DPO's loss is ln 2 where policy and reference agree."""
    import torch

    from irpo_nemo.training.loss import pair_losses

    chosen, rejected = torch.tensor([-3.0, -5.0]), torch.tensor([-7.0, -2.0])
    lengths = torch.tensor([4, 6])
    losses = pair_losses(chosen, rejected, chosen, rejected, lengths, beta=0.1, dpo_weight=1.0, nll_weight=1.0)
    found = losses.dpo.mean().item()
    assert abs(found - math.log(2)) < 1e-6, f"{found} is not ln 2"
    device = "CUDA" if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    return f"ln 2, torch {torch.__version__} on {device}"


_SELF_TESTS: dict[str, Callable[[], str]] = {
    "records": _check_records,
    "graders": _check_graders,
    "loss": _check_loss,
}
