"""From a configuration to an estimate of its run: what each part takes on the cluster that it names.

A model is known by its config.json alone; where that is not there, by the shape that the configuration gives (a file of
conf/model). Lengths, and how many pairs the sampling will give, are not known before a run: lengths come from the
`cluster` section, and pairs are counted as if every problem gave num_pairs_per_problem. So this is the most that an
iteration trains on, and an iteration with early stopping or fewer mixed problems takes less.
"""

from dataclasses import dataclass
from pathlib import Path

from irpo_nemo.config import IRPOConfig, ModelConfig
from irpo_nemo.model_shape import ModelShape, read_hf_config
from irpo_nemo.planning.decoder import Decoder
from irpo_nemo.planning.figures import FAILURE_HOURS_PER_GPU, GPUS, PROBLEMS
from irpo_nemo.planning.goodput import Failures, best_interval, expected_goodput, simulate_chain
from irpo_nemo.planning.layouts import Candidate, Demand, examine, find_layout, find_smallest
from irpo_nemo.planning.memory import GIB, Layout, SamplingMemory, sampling_memory
from irpo_nemo.planning.speed import Batch, Machine, reference_seconds, sampling_tokens_per_second

HOUR = 3600.0

SIMULATED_RUNS = 200
LEAST_GOODPUT = 0.05


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What an iteration does, in tokens."""

    pairs: int
    steps: int
    batch: Batch
    """Of a step."""
    reference_tokens: float
    training_samples: float
    """Generated for pairs."""
    evaluation_samples: float
    """Generated to measure M_t; once more after the last iteration."""


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """How training gets on when GPUs fail."""

    ranks: int
    failure_seconds: float
    """Between two failures of the job."""
    expected: float
    """Share of the time that is progress, saving as configured."""
    best_steps: int
    """Steps between checkpoints that lose least."""
    best: float
    """Goodput then."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """All that is printed."""

    model: Decoder
    machine: Machine
    memory_bytes: float
    """Of one GPU."""
    workload: Workload
    chosen: Candidate
    """The layout that the configuration asks for."""
    better: Candidate | None
    """A layout that fits and is faster, or fits where the configuration's does not, on as many GPUs."""
    smallest: Candidate | None
    """Where none fits: on how many it would."""
    sampling_memory: SamplingMemory | None
    """None where the sampler's engine is not known."""
    sampling_gpus: int
    """Of one engine."""
    sampling_rate: float | None
    """Generated tokens a second of one GPU; None where nothing is known of the sampler's speed."""
    reference_seconds: float
    goodput: tuple[Goodput, ...]
    """Of this run, and of larger ones."""
    chain_seconds: tuple[float, float] | None
    """Training of all iterations with failures drawn: the mean, and what 95 of 100 runs stay under; None where failures
    leave next to no progress."""
    iterations: int

    @property
    def fits(self) -> bool:
        return self.chosen.memory.total <= self.memory_bytes

    @property
    def training_seconds(self) -> float:
        """Of an iteration, without failures."""
        return self.workload.steps * self.chosen.seconds

    @property
    def sampling_seconds(self) -> float | None:
        """Of an iteration."""
        return self._seconds_of(self.workload.training_samples + self.workload.evaluation_samples)

    @property
    def iteration_seconds(self) -> float:
        return (self.sampling_seconds or 0.0) + self.reference_seconds + self.training_seconds

    @property
    def run_seconds(self) -> float:
        last = self._seconds_of(self.workload.evaluation_samples) or 0.0
        return self.iterations * self.iteration_seconds + last

    def _seconds_of(self, tokens: float) -> float | None:
        ranks = self.chosen.layout.ranks
        return None if self.sampling_rate is None else tokens / (self.sampling_rate * ranks)


def estimate_run(config: IRPOConfig, *, num_problems: tuple[int, int]) -> Estimate | None:
    """Estimate a run; None where the configuration names no GPU or the model's shape is not known.

    Args:
        config: The run's.
        num_problems: Training problems, and problems to measure on.
    """
    model = read_decoder(config)
    if config.cluster.gpu is None or model is None:
        return None
    machine, work = read_machine(config), plan_work(config, *num_problems)
    layout = read_layout(config)
    memory_bytes = (config.cluster.gpu_memory_gib or machine.gpu.memory_gib) * GIB
    demand = Demand(
        batch=work.batch,
        longest_micro_batch=2 * config.pairing.max_sequence_length,
        memory_bytes=memory_bytes,
    )
    chosen = examine(model, layout, machine, demand)
    found = find_layout(model, like=layout, machine=machine, demand=demand)
    gpus, engine = _sampling_engine(config, model, memory_bytes)
    rate = sampling_tokens_per_second(model, machine)
    is_known = config.cluster.sampler_tokens_per_second is not None or config.sampler.name != "transformers"
    return Estimate(
        model=model,
        machine=machine,
        memory_bytes=memory_bytes,
        workload=work,
        chosen=chosen,
        better=_pick_better(chosen, found, memory_bytes),
        smallest=None if found else find_smallest(model, like=layout, machine=machine, demand=demand),
        sampling_memory=engine,
        sampling_gpus=gpus,
        sampling_rate=rate if is_known else None,
        reference_seconds=reference_seconds(model, layout, machine, tokens=work.reference_tokens),
        goodput=tuple(
            estimate_goodput(config, chosen.seconds, ranks=ranks)
            for ranks in dict.fromkeys((layout.ranks, *(ranks for ranks in (1024, 4096) if ranks > layout.ranks)))
        ),
        chain_seconds=_simulate(config, chosen.seconds, work.steps),
        iterations=config.num_iterations,
    )


def read_decoder(config: IRPOConfig) -> Decoder | None:
    """The model's shape: from its folder, else as the configuration gives it; None where neither is known."""
    path = config.model.path
    if path is not None and (Path(path) / "config.json").is_file():
        return Decoder.from_shape(ModelShape.from_hf_config(read_hf_config(path)))
    gives_shape = config.model.hidden_size != ModelConfig().hidden_size
    return Decoder.from_config(config.model) if path is None or gives_shape else None


def read_machine(config: IRPOConfig) -> Machine:
    """The cluster section, with figures where nothing was measured."""
    cluster = config.cluster
    assert cluster.gpu is not None
    return Machine(
        gpu=GPUS[cluster.gpu],
        gpus_per_node=cluster.gpus_per_node,
        network_bandwidth=cluster.network_gigabytes_per_second * 1e9,
        measured_mfu=cluster.mfu,
        measured_sampling=cluster.sampler_tokens_per_second,
    )


def read_layout(config: IRPOConfig) -> Layout:
    """How the configuration trains."""
    return Layout(
        ranks=config.launcher.ranks,
        tp=config.parallel.tensor_model_parallel_size,
        pp=config.parallel.pipeline_model_parallel_size,
        cp=config.parallel.context_parallel_size,
        vp=config.parallel.virtual_pipeline_model_parallel_size,
        sequence_parallel=config.parallel.sequence_parallel,
        micro_batch_tokens=config.training.max_tokens_per_micro_batch,
        recompute=config.training.recompute_activations,
        bf16=config.training.bf16,
        distributed_optimizer=config.training.use_distributed_optimizer,
    )


def plan_work(config: IRPOConfig, num_train: int, num_test: int) -> Workload:
    """Count an iteration's tokens from the cluster section's lengths."""
    prompt, completion = config.cluster.prompt_tokens, config.cluster.completion_tokens
    training, pairing = config.training, config.pairing
    candidates = config.sampling.num_candidates
    pairs = min(num_train * pairing.num_pairs_per_problem, pairing.max_pairs or num_train * 10**6)
    steps = -(-pairs // training.global_batch_size) * training.num_epochs
    scored = min(2 * pairs, num_train * (candidates + pairing.gold_solutions))
    scored_prompts = num_train if training.share_prompts else scored
    pair = prompt + 2 * completion if training.share_prompts else 2 * (prompt + completion)
    return Workload(
        pairs=pairs,
        steps=steps if training.max_steps is None else min(steps, training.max_steps),
        batch=Batch(tokens=training.global_batch_size * pair, units=training.global_batch_size),
        reference_tokens=scored_prompts * prompt + scored * completion,
        training_samples=num_train * candidates * completion,
        evaluation_samples=num_test * (1 + config.evaluation.num_samples) * completion,
    )


def count_problems(config: IRPOConfig) -> tuple[int, int] | None:
    """Problems of a public data set, as the configuration cuts it; None for a task whose size only its files tell."""
    task = config.task
    if task.name == "arithmetic":
        sizes: tuple[int, int] | None = (task.arithmetic.num_train_problems, task.arithmetic.num_test_problems)
    else:
        sizes = PROBLEMS.get(task.name)
    if sizes is None:
        return None
    limits = (task.max_train_problems, task.max_test_problems)
    train, test = (size if limit is None else min(size, limit) for size, limit in zip(sizes, limits, strict=True))
    return train - task.num_dev_problems, task.num_dev_problems or test if task.evaluate_on == "dev" else test


def _pick_better(chosen: Candidate, found: Candidate | None, memory_bytes: float) -> Candidate | None:
    if found is None:
        return None
    is_faster = found.seconds < 0.95 * chosen.seconds
    return found if is_faster or chosen.memory.total > memory_bytes else None


def _sampling_engine(config: IRPOConfig, model: Decoder, memory_bytes: float) -> tuple[int, SamplingMemory | None]:
    """GPUs of one engine, and its memory; a server of the user's own is not known."""
    options = config.sampler.tensorrt_llm
    if config.sampler.name == "openai_server":
        return 1, None
    is_ours = config.sampler.name == "transformers"
    gpus = 1 if is_ours else options.tensor_parallel_size * options.pipeline_parallel_size
    memory = sampling_memory(
        model,
        gpus=gpus,
        gpu_bytes=memory_bytes,
        free_share=1.0 if is_ours else options.free_gpu_memory_fraction,
        tokens=config.cluster.prompt_tokens + config.sampling.max_new_tokens,
        cache_value_bytes=1 if not is_ours and options.kv_cache_dtype == "fp8" else 2,
    )
    return gpus, memory


def read_failures(config: IRPOConfig, *, ranks: int) -> Failures:
    """Failures of a job of `ranks` GPUs."""
    hours = config.cluster.failure_hours_per_gpu or FAILURE_HOURS_PER_GPU
    return Failures(
        mean=hours * HOUR / ranks,
        checkpoint=config.cluster.checkpoint_seconds,
        restart=config.cluster.restart_seconds,
    )


def estimate_goodput(config: IRPOConfig, step_seconds: float, *, ranks: int) -> Goodput:
    """Goodput of training on `ranks` GPUs with steps as long as here."""
    failures = read_failures(config, ranks=ranks)
    steps = max(round(best_interval(failures) / step_seconds), 1)
    interval = config.training.checkpoint_every_steps * step_seconds
    return Goodput(
        ranks=ranks,
        failure_seconds=failures.mean,
        expected=expected_goodput(failures, interval=interval),
        best_steps=steps,
        best=expected_goodput(failures, interval=steps * step_seconds),
    )


def _simulate(config: IRPOConfig, step_seconds: float, steps: int) -> tuple[float, float] | None:
    failures = read_failures(config, ranks=config.launcher.ranks)
    interval = config.training.checkpoint_every_steps * step_seconds
    if expected_goodput(failures, interval=interval) < LEAST_GOODPUT:
        return None
    stages = [steps * step_seconds] * config.num_iterations
    return simulate_chain(stages, failures, interval=interval, seed=config.seed, runs=SIMULATED_RUNS)
