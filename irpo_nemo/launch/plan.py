"""`irpo plan` on the terminal: what a run will take, if the configuration names a GPU, and its steps."""

from irpo_nemo.artifacts import read_manifest
from irpo_nemo.config import IRPOConfig
from irpo_nemo.launch.display import print_table, summarize
from irpo_nemo.pipeline import Step
from irpo_nemo.planning.estimate import HOUR, Estimate, Goodput, count_problems, estimate_run
from irpo_nemo.planning.figures import FAILURE_SOURCE, SAMPLING_SOURCE, TRAINING_MFU_SOURCE
from irpo_nemo.planning.layouts import Candidate
from irpo_nemo.planning.memory import GIB, OVERHEAD_BYTES, OVERHEAD_SHARE, Layout, SamplingMemory


def print_plan(config: IRPOConfig, steps: list[Step]) -> None:
    """The steps of a run, what each takes, and its state."""
    rows = [
        (step.title, str(step.ranks), step.state, step.reason if step.state != "done" else describe_done(step))
        for step in steps
    ]
    print_table(("step", "processes", "state", ""), rows, title=f"{config.run_folder}: {count_done(steps)}")


def describe_done(step: Step) -> str:
    """What a finished step counted."""
    manifest = read_manifest(step.manifest)
    return summarize(manifest) if manifest else ""


def count_done(steps: list[Step]) -> str:
    """How many steps are done, in words."""
    done = sum(step.state == "done" for step in steps)
    return f"{done} of {len(steps)} steps are done" if done < len(steps) else f"all {done} steps are done"


def print_estimate(config: IRPOConfig) -> None:
    """Memory, time and goodput of the run, with what they rest on; nothing where the configuration names no GPU."""
    if config.cluster.gpu is None:
        return
    problems = count_problems(config) or _count_files(config)
    estimate = estimate_run(config, num_problems=problems)
    if estimate is None:
        print(f"no estimate: {config.model.path} has no config.json, and the configuration gives no shape (model=...)")
        return
    _print_memory(config, estimate)
    _print_time(estimate)
    _print_goodput(config, estimate)
    _print_assumptions(config, estimate, problems)


def _count_files(config: IRPOConfig) -> tuple[int, int]:
    from irpo_nemo.tasks import load_task

    task = load_task(config)
    return len(task.train_problems()), len(task.test_problems())


def _print_memory(config: IRPOConfig, estimate: Estimate) -> None:
    memory, room = estimate.chosen.memory, estimate.memory_bytes
    verdict = "fits" if estimate.fits else "does NOT fit"
    rows = [
        ("weights", _gib(memory.weights), "bfloat16" if config.training.bf16 else "float32"),
        ("gradients", _gib(memory.gradients), "float32"),
        (
            "optimizer",
            _gib(memory.optimizer),
            "main weights and two moments" if config.training.bf16 else "two moments",
        ),
        ("activations", _gib(memory.activations), "the longest pair, micro batches in flight"),
        ("logits", _gib(memory.logits), "a chunk at a time, and the output layer's gradient"),
        ("overhead", _gib(memory.overhead), f"{OVERHEAD_BYTES / GIB:.0f} GiB and {OVERHEAD_SHARE:.0%}, a guess"),
        ("training", _gib(memory.total), f"of {_gib(room)}: {verdict}"),
        ("reference pass", _gib(memory.reference), "before gradients and optimizer exist"),
    ]
    if (engine := estimate.sampling_memory) is not None:
        on = f"an engine on {estimate.sampling_gpus} GPU{'s' * (estimate.sampling_gpus > 1)}"
        rows.append(("sampling", _gib(engine.weights), f"weights, {on}"))
        rows.append(("KV cache", _gib(engine.room), f"room for {engine.sequences} sequences at once{_too_few(engine)}"))
    number = estimate.model.num_parameters / 1e9
    title = f"memory of one GPU: {number:.2f}B parameters, {_describe(estimate.chosen.layout)}"
    print_table(("part", "memory", ""), rows, title=title)
    _print_advice(config, estimate)


def _too_few(engine: SamplingMemory) -> str:
    return "" if engine.sequences else ": does NOT fit, raise sampler.tensorrt_llm.tensor_parallel_size"


def _print_advice(config: IRPOConfig, estimate: Estimate) -> None:
    ranks = config.launcher.ranks
    if estimate.better is not None:
        reason = "faster by these figures" if estimate.fits else "fits"
        print(f"{reason}: {_describe_change(estimate.better)}")
    elif estimate.smallest is not None:
        more = f"launcher.ranks={estimate.smallest.layout.ranks}"
        print(f"no layout fits {ranks} GPUs; {_describe_change(estimate.smallest)} {more}")
    elif not estimate.fits:
        print("no layout fits, on any number of GPUs up to 8192")
    print()


def _describe(layout: Layout) -> str:
    parts = [
        f"TP {layout.tp}",
        f"PP {layout.pp}" + (f" of {layout.vp} virtual stages" if layout.vp > 1 else ""),
        *([f"CP {layout.cp}"] if layout.cp > 1 else []),
        f"DP {layout.dp}",
        f"{layout.micro_batch_tokens} tokens a micro batch",
    ]
    parts += ["sequence parallel"] if layout.sequence_parallel else []
    parts += ["recomputation"] if layout.recompute else []
    return ", ".join(parts)


def _describe_change(candidate: Candidate) -> str:
    """The overrides that give a layout."""
    layout = candidate.layout
    flags = {True: "true", False: "false"}
    return (
        f"{candidate.seconds:.2f} s a step, {_gib(candidate.memory.total)} with "
        f"parallel.tensor_model_parallel_size={layout.tp} parallel.pipeline_model_parallel_size={layout.pp} "
        f"parallel.sequence_parallel={flags[layout.sequence_parallel]} "
        f"training.max_tokens_per_micro_batch={layout.micro_batch_tokens} "
        f"training.recompute_activations={flags[layout.recompute]}"
    )


def _print_time(estimate: Estimate) -> None:
    work, ranks = estimate.workload, estimate.chosen.layout.ranks
    sampled = work.training_samples + work.evaluation_samples
    unknown = "not known for this sampler: set cluster.sampler_tokens_per_second"
    rate = estimate.sampling_rate
    rows = [
        (
            "sampling",
            unknown if estimate.sampling_seconds is None else _hours(estimate.sampling_seconds),
            f"{sampled / 1e6:.0f}M tokens" + ("" if rate is None else f" at {rate:.0f}/s and GPU"),
        ),
        ("reference", _hours(estimate.reference_seconds), f"{work.reference_tokens / 1e6:.0f}M tokens"),
        (
            "training",
            _hours(estimate.training_seconds),
            f"{work.steps} steps of {estimate.chosen.seconds:.2f} s, {work.batch.tokens:.0f} tokens, "
            f"{work.pairs} pairs",
        ),
        ("iteration", _hours(estimate.iteration_seconds), ""),
        ("run", _hours(estimate.run_seconds), f"{estimate.iterations} iterations and the last evaluation"),
        ("", f"{estimate.run_seconds * ranks / HOUR:.0f} GPU-hours", f"{ranks} GPUs"),
    ]
    known = "" if estimate.sampling_rate is not None else ", without sampling"
    print_table(("part", "time", ""), rows, title=f"time, without starts, grading, export and queues{known}")
    print()


def _print_goodput(config: IRPOConfig, estimate: Estimate) -> None:
    every = config.training.checkpoint_every_steps
    rows = [_describe_goodput(goodput, every) for goodput in estimate.goodput]
    print_table(("", "a failure", "goodput", "best"), rows, title="training when GPUs fail")
    if estimate.chain_seconds is not None:
        mean, most = estimate.chain_seconds
        print(f"all iterations' training, failures drawn: {_hours(mean)}, under {_hours(most)} in 95 of 100 runs")
    print()


def _describe_goodput(goodput: Goodput, every: int) -> tuple[str, str, str, str]:
    return (
        f"{goodput.ranks} GPUs",
        f"a failure every {goodput.failure_seconds / HOUR:.1f} h",
        f"goodput {goodput.expected:.1%} with a checkpoint every {every} steps",
        f"at best {goodput.best:.1%}, every {goodput.best_steps}",
    )


def _print_assumptions(config: IRPOConfig, estimate: Estimate, problems: tuple[int, int]) -> None:
    cluster, machine = config.cluster, estimate.machine
    measured = "measured (cluster.{})".format
    print("assumed; each has a key in the cluster section:")
    print(
        f"  {cluster.gpu}: {machine.gpu.peak_flops / 1e12:.0f} TFLOP/s dense bfloat16, "
        f"{_gib(estimate.memory_bytes)}, {machine.network_bandwidth / 1e9:.0f} GB/s a GPU between nodes"
    )
    source = f"{TRAINING_MFU_SOURCE}; recomputation, bubble and exchanges on top"
    print(f"  MFU {machine.mfu:.1%}: {measured('mfu') if cluster.mfu else source}")
    if estimate.sampling_rate is not None:
        source = f"{SAMPLING_SOURCE}; by bytes of the weights and memory bandwidth"
        given = measured("sampler_tokens_per_second") if cluster.sampler_tokens_per_second else source
        print(f"  sampling {estimate.sampling_rate:.0f} tokens/s and GPU: {given}")
    print(
        f"  {problems[0]} training problems, {problems[1]} to measure on; {cluster.prompt_tokens} tokens a prompt, "
        f"{cluster.completion_tokens} a completion; num_pairs_per_problem pairs from each"
    )
    if config.selection.enabled:
        print("  not counted: selection, whose trial takes about as long as training")
    hours = "cluster.failure_hours_per_gpu" if cluster.failure_hours_per_gpu else FAILURE_SOURCE
    print(
        f"  failures: {hours}; checkpoint {cluster.checkpoint_seconds:.0f} s, restart {cluster.restart_seconds:.0f} s"
    )
    print()


def _gib(number: float) -> str:
    return f"{number / GIB:.1f} GiB"


def _hours(seconds: float) -> str:
    return f"{seconds / HOUR:.2f} h"
