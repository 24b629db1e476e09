"""The text of a chain's job scripts, from slurm/job.sbatch. Every value is quoted; nothing is run here."""

import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from irpo_nemo.config import IRPOConfig, SlurmJobConfig
from irpo_nemo.launch.slurm.chain import Job, nodes_of, options_of
from irpo_nemo.run_folder import RunFolder

TRAINING_ENVIRONMENT = {
    # Megatron-LM's README: order of tensor-parallel communication and computation on GPUs before Blackwell.
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    # NVIDIA's NeMo performance guide: less memory held by streams, and none for NVLink SHARP.
    "TORCH_NCCL_AVOID_RECORD_STREAMS": "1",
    "NCCL_NVLS_ENABLE": "0",
    # A failed collective ends its rank instead of hanging; NCCL says which one it was.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "NCCL_DEBUG": "WARN",
}
"""For training with GPUs; launcher.slurm.environment overrides them."""


def template_root() -> Path:
    """The folder slurm/: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parents[2]
    return package / "slurm" if (package / "slurm").is_dir() else package.parent / "slurm"


def render_script(config: IRPOConfig, job: Job, *, working_directory: Path) -> str:
    """The script of one job.

    Args:
        config: Of the run.
        job: Which one.
        working_directory: What relative paths of the configuration start from.
    """
    folder = RunFolder(config.run_folder.absolute())
    fields = {
        "directives": "\n".join(f"#SBATCH {line}" for line in _directives(config, job, folder)),
        "title": " ".join(job.title.split()),
        "script": shlex.quote(str(folder.slurm.script(job.name))),
        "prologue": "\n".join(config.launcher.slurm.prologue),
        "variables": "\n".join(_variables(config, job, folder, working_directory)),
        "stages": "\n".join(_stages(job, folder, config.launcher.slurm.shards)),
    }
    template = (template_root() / "job.sbatch").read_text(encoding="utf-8")
    text = re.sub(r"@(\w+)@", lambda found: fields[found[1]], template)
    return re.sub(r"\n{3,}", "\n\n", text)


def _directives(config: IRPOConfig, job: Job, folder: RunFolder) -> Iterable[str]:
    slurm, options, nodes = config.launcher.slurm, options_of(config, job.kind), nodes_of(config, job.kind)
    yield _option("job-name", f"irpo-{re.sub(r'[^A-Za-z0-9._-]', '_', config.name)}-{job.name}")
    yield _option("chdir", folder.root)
    yield _option("output", f"slurm/logs/{job.name}.{'%A_%a' if job.shards else '%j'}.log")
    yield from ("--open-mode=append", "--requeue")
    if options.notice_seconds:
        yield f"--signal=B:USR1@{options.notice_seconds}"
    if job.shards:
        limit = f"%{slurm.max_running_shards}" if slurm.max_running_shards else ""
        yield f"--array={_ranges(job.shards)}{limit}"
    yield f"--nodes={nodes}"
    yield f"--ntasks-per-node={_tasks_per_node(config, job)}"
    wanted = {
        "cpus-per-task": options.cpus_per_task,
        "mem": options.memory,
        "time": options.time,
        "account": slurm.account,
        "partition": options.partition,
        "qos": options.qos,
        "reservation": slurm.reservation,
        "constraint": options.constraint,
        "gres": f"gpu:{options.gpus_per_node}" if _asks_for_gpus(config, options, "gres") else None,
        "gpus-per-node": options.gpus_per_node if _asks_for_gpus(config, options, "gpus_per_node") else None,
    }
    yield from (_option(name, value) for name, value in wanted.items() if value is not None)
    if options.exclusive:
        yield "--exclusive"
    yield from options.sbatch_lines


def _asks_for_gpus(config: IRPOConfig, options: SlurmJobConfig, how: str) -> bool:
    return options.gpus_per_node > 0 and config.launcher.slurm.gpu_request == how


def _option(name: str, value: object) -> str:
    """An option as sbatch reads it in a script: within double quotes, a backslash takes away meaning."""
    text = str(value)
    if re.fullmatch(r"[A-Za-z0-9_./:%@,+=-]+", text):
        return f"--{name}={text}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'--{name}="{escaped}"'


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 as 1-3,7."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _tasks_per_node(config: IRPOConfig, job: Job) -> int:
    is_one_a_rank = job.kind == "trainer" and config.launcher.slurm.launch == "task_per_rank"
    return _ranks_per_node(config) if is_one_a_rank else 1


def _ranks_per_node(config: IRPOConfig) -> int:
    return config.launcher.ranks // config.launcher.slurm.trainer.nodes


def _variables(config: IRPOConfig, job: Job, folder: RunFolder, working_directory: Path) -> Iterable[str]:
    slurm, options = config.launcher.slurm, options_of(config, job.kind)
    watched = job.steps[0].manifest.parent.relative_to(config.run_folder)
    environment = _environment(config, job)
    yield f"IRPO_RUN={shlex.quote(str(folder.root))}"
    shards = slurm.shards if job.shards else 1
    yield f"IRPO_JOB={job.name} WATCHED={shlex.quote(str(folder.root / watched))} SHARDS={shards}"
    yield f"MAX_ATTEMPTS={slurm.max_attempts} MAX_INTERRUPTIONS={slurm.max_interruptions}"
    yield f"NOTICE_SECONDS={options.notice_seconds}"
    if job.kind == "trainer":
        yield f"NODES={slurm.trainer.nodes} RANKS_PER_NODE={_ranks_per_node(config)} LAUNCH={slurm.launch}"
        yield f"HANG_MINUTES={slurm.hang_minutes:g}"
    yield from (f"export {name}={shlex.quote(value)}" for name, value in environment.items())
    yield f"cd {shlex.quote(str(working_directory))} || exit 1"
    yield f"STEP=({shlex.join(_srun(config, job, folder, working_directory, list(environment)))})"
    yield f"PYTHON=({shlex.join(_python(config, options, folder, working_directory))})"


def _environment(config: IRPOConfig, job: Job) -> dict[str, str]:
    """What stages get: ours, then the user's; a value of null takes one away."""
    slurm = config.launcher.slurm
    environment: dict[str, object] = {"PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    if job.kind == "trainer":
        environment["OMP_NUM_THREADS"] = config.launcher.threads_per_rank
        environment["IRPO_HANG_SECONDS"] = f"{slurm.hang_minutes * 60:g}"
        environment |= TRAINING_ENVIRONMENT if slurm.trainer.gpus_per_node else {}
    environment |= slurm.environment
    return {name: str(value) for name, value in environment.items() if value is not None}


_SUPERVISION = ("IRPO_LEASE", "IRPO_LEASE_OWNER", "IRPO_RANK_LOGS", "MASTER_ADDR", "MASTER_PORT", "IRPO_CODE")
_RANKS = ("WORLD_SIZE", "LOCAL_WORLD_SIZE")


def _srun(
    config: IRPOConfig, job: Job, folder: RunFolder, working_directory: Path, environment: Sequence[str]
) -> list[str]:
    """One failed task ends the step at once; one that ends well leaves the others all the time they need."""
    slurm, options, nodes = config.launcher.slurm, options_of(config, job.kind), nodes_of(config, job.kind)
    tasks = _tasks_per_node(config, job)
    command = ["srun", f"--nodes={nodes}", f"--ntasks={nodes * tasks}", f"--ntasks-per-node={tasks}"]
    command += ["--kill-on-bad-exit=1", "--wait=0"]
    if options.cpus_per_task is not None:
        command.append(f"--cpus-per-task={options.cpus_per_task}")  # since Slurm 22.05 not taken over from the job
    if options.mpi is not None:
        command.append(f"--mpi={options.mpi}")
    if slurm.container == "pyxis":
        command += [
            f"--container-image={options.image}",
            f"--container-mounts={','.join(_mounts(config, folder, working_directory))}",
            f"--container-workdir={working_directory}",
            "--no-container-mount-home",
            # Without this, a variable that the image sets wins.
            f"--container-env={','.join([*_SUPERVISION, *_RANKS, *environment])}",
        ]
    return command


def _python(config: IRPOConfig, options: SlurmJobConfig, folder: RunFolder, working_directory: Path) -> list[str]:
    slurm = config.launcher.slurm
    if slurm.container == "none":
        return [slurm.python or sys.executable]
    python = slurm.python or "python"
    if slurm.container == "pyxis":
        return [python]
    binds = [argument for mount in _mounts(config, folder, working_directory) for argument in ("--bind", mount)]
    gpus = ["--nv"] if options.gpus_per_node else []
    return ["apptainer", "exec", *gpus, *binds, "--pwd", str(working_directory), str(options.image), python]


def _mounts(config: IRPOConfig, folder: RunFolder, working_directory: Path) -> list[str]:
    mounts = [mount if ":" in mount else f"{mount}:{mount}" for mount in config.launcher.slurm.mounts]
    return [*mounts, *(f"{path}:{path}" for path in (working_directory, folder.root))]


def _stages(job: Job, folder: RunFolder, shards: int) -> Iterable[str]:
    for step in job.steps:
        call = "all_ranks" if job.kind == "trainer" else "one_task"
        words = [call, step.stage, shlex.quote(str(folder.config))]
        if step.iteration is not None:
            words.append(f"iteration={step.iteration}")
        if job.shards:
            words.append(f'shard="$SLURM_ARRAY_TASK_ID/{shards}"')
        yield " ".join(words)
