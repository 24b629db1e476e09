"""The configuration: what can be set, its defaults and bounds, and how a YAML file and overrides become one checked
value.

Defaults stand here and nowhere else; files in conf/ hold what differs. `compose` uses Hydra's compose API: a
configuration names others in its `defaults` list (groups: model, task, sampler, launcher, loss), and `key=value`
overrides follow Hydra's grammar. Every mistake is collected and reported together. Knows nothing of stages, models
or torch.
"""

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irpo_nemo.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

ROW_MULTIPLE = 8
"""Rows of a micro batch are padded to a multiple of this, so that sequence parallel can split them."""
CONFIG_GROUPS = ("model", "task", "sampler", "launcher", "loss")


def bounded(
    default: Any, *, minimum: float | None = None, above: float | None = None, maximum: float | None = None
) -> Any:
    """A field that is at least `minimum`, greater than `above`, at most `maximum`; so is each element of a list."""
    metadata = {"minimum": minimum, "above": above, "maximum": maximum}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def one_of(default: str | None, *choices: str) -> Any:
    """A field that takes one of `choices`."""
    return field(default=default, metadata={"choices": choices})


@dataclass(kw_only=True)
class ArithmeticConfig:
    """The embedded default task: generated stories of additions and subtractions. Seeded by `seed`."""

    num_train_problems: int = bounded(400, minimum=1)
    num_test_problems: int = bounded(400, minimum=1)
    num_demonstrations: int = bounded(20000, minimum=1)
    """Stories that M_0 learns from; none of them is a train or test problem."""
    min_operations: int = bounded(3, minimum=1)
    max_operations: int = bounded(5, minimum=1)
    min_operand: int = bounded(2, minimum=1)
    max_operand: int = bounded(9, minimum=1)
    terse_share: float = bounded(0.45, minimum=0.0, maximum=1.0)
    """Share of demonstrations that give the final answer alone."""
    partial_share: float = bounded(0.25, minimum=0.0, maximum=1.0)
    """Share of demonstrations that show the first step only. The rest show every step."""


@dataclass(kw_only=True)
class TaskConfig:
    """Problems, prompt and grader."""

    name: str = one_of("arithmetic", "arithmetic", "gsm8k", "hendrycks_math", "arc_challenge", "jsonl")
    train_path: str | None = None
    """File or folder of training problems, or a Hugging Face data set: openai/gsm8k, allenai/ai2_arc:ARC-Easy."""
    extra_train_paths: list[str] = field(default_factory=list)
    """More of them, such as ARC-Easy beside ARC-Challenge."""
    test_path: str | None = None
    """File or folder of test problems, or a Hugging Face data set."""
    dev_path: str | None = None
    """The data's own development set; of a Hugging Face data set, its split "validation"."""
    num_dev_problems: int = bounded(0, minimum=0)
    """Without dev_path: training problems held out for development, drawn by `seed`. They are never trained on."""
    evaluate_on: str = one_of("test", "test", "dev")
    """dev: measure each M_t on the development problems, to choose settings without looking at the test set."""
    max_train_problems: int | None = bounded(None, minimum=1)
    """Use the first so many problems; all of them when null. Counted after examples and dev problems are taken out."""
    max_test_problems: int | None = bounded(None, minimum=1)
    """Measure on the first so many problems only; all of them when null."""
    prompt_template: str | None = None
    """Text with {question}, and {shots} before it if there are examples; the task's own prompt when null."""
    num_shots: int | None = bounded(None, minimum=0)
    """Worked examples in the prompt. When null: those named below, else 4 for hendrycks_math and 0 for others."""
    shot_ids: list[str] = field(default_factory=list)
    """Ids of the training problems that are the examples. They leave the training problems."""
    shots_path: str | None = None
    """File of the examples, in the task's own format. When neither is given, fixed training problems are picked."""
    chat_template: str = one_of("none", "none", "model")
    """model: the prompt is a user's turn in the chat template of the model's tokenizer."""
    grader: str | None = one_of(None, "numeric", "latex", "choice", "text")
    """jsonl only: how answers are compared. numeric when null."""
    arithmetic: ArithmeticConfig = field(default_factory=ArithmeticConfig)


@dataclass(kw_only=True)
class ModelConfig:
    """M_0 before supervised fine-tuning: a Hugging Face folder, or a Llama with random weights."""

    path: str | None = None
    """Hugging Face folder. When null, random weights of the shape below are drawn and sft.enabled is needed."""
    hidden_size: int = bounded(128, minimum=8)
    num_layers: int = bounded(4, minimum=1)
    num_attention_heads: int = bounded(4, minimum=1)
    num_key_value_heads: int = bounded(2, minimum=1)
    ffn_hidden_size: int = bounded(384, minimum=8)
    max_position_embeddings: int = bounded(1024, minimum=8)
    tie_word_embeddings: bool = False
    tokenizer: str = one_of("words", "words", "bpe")
    """Made from the demonstrations: one token a word and digit, or byte-level BPE."""
    tokenizer_vocab_size: int = bounded(2048, minimum=300)
    """bpe only."""
    trust_remote_code: bool = False
    """Let the folder at `path` run its own Python code while sampling."""


@dataclass(kw_only=True)
class SamplingConfig:
    """What the training candidates are."""

    num_candidates: int = bounded(30, minimum=1)
    """Completions sampled per problem (N in the paper)."""
    round_size: int | None = bounded(None, minimum=1)
    """Draw so many of them at a time, and no more for a problem that has enough winners and losers. All when null."""
    enough_per_side: int | None = bounded(None, minimum=1)
    """With round_size: distinct winners, and losers, that are enough; pairing.num_pairs_per_problem when null."""
    temperature: list[float] = bounded([0.8, 0.8, 1.3, 1.3], above=0.0)  # noqa: RUF009 - bounded makes a field
    """One value per iteration; the last repeats."""
    top_p: float = bounded(1.0, above=0.0, maximum=1.0)
    max_new_tokens: int = bounded(512, minimum=1)
    """Tokens per completion, end-of-sequence included; for evaluation as well."""


@dataclass(kw_only=True)
class EvaluationConfig:
    """How each M_t is measured on the test problems. Greedy decoding always runs."""

    num_samples: int = bounded(32, minimum=0)
    """Samples per test problem, for majority vote and pass@k; 0 leaves them out."""
    temperature: float = bounded(0.8, above=0.0)
    top_p: float = bounded(1.0, above=0.0, maximum=1.0)


@dataclass(kw_only=True)
class ServerConfig:
    """openai_server only: where /v1/completions is answered, and how patient we are."""

    base_urls: list[str] = field(default_factory=list)
    """Such as http://node1:8000/v1. Several share the work and stand in for each other."""
    command: list[str] = field(default_factory=list)
    """Instead of base_urls: starts a server of M_t on this machine; {model} and {port} are filled in."""
    model: str | None = None
    """What the server calls the model. When null, it must list one under the path of M_t's folder."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key; none is sent when it is not set."""
    retokenize: bool = False
    """Accept a server that gives text without token ids. Encoded again, it may differ from what was sampled."""
    max_attempts: int = bounded(5, minimum=1)
    """How often one completion is asked for when the server fails on it."""
    request_timeout_seconds: float = bounded(600.0, above=0.0)
    """For one answer, time in the server's queue included."""
    patience_seconds: float = bounded(600.0, above=0.0)
    """How long all servers may be away before sampling gives up; how long a started one may take."""


ENGINE_OPTIONS = (
    "allreduce_strategy",
    "attn_backend",
    "batch_wait_max_tokens_ratio",
    "batch_wait_timeout_iters",
    "batch_wait_timeout_ms",
    "checkpoint_format",
    "disable_flashinfer_sampling",
    "disable_overlap_scheduler",
    "enable_attention_dp",
    "enable_autotuner",
    "enable_min_latency",
    "env_overrides",
    "force_dynamic_quantization",
    "load_format",
    "moe_cluster_parallel_size",
    "moe_config",
    "moe_expert_parallel_size",
    "moe_tensor_parallel_size",
    "pp_partition",
    "sampler_force_async_worker",
    "scheduler_config",
    "speculative_config",
    "torch_compile_config",
)
"""Further arguments of TensorRT-LLM 1.2's LLM that change no meaning of ours."""


@dataclass(kw_only=True)
class TensorRTLLMConfig:
    """tensorrt_llm only: how many engines, and what each is started with."""

    num_engines: int | None = bounded(None, minimum=1)
    """Each with a copy of the model; as many as the visible GPUs allow when null."""
    tensor_parallel_size: int = bounded(1, minimum=1)
    pipeline_parallel_size: int = bounded(1, minimum=1)
    max_seq_len: int | None = bounded(None, minimum=2)
    """Tokens of prompt and completion; the model's positions when null."""
    max_num_tokens: int = bounded(8192, minimum=1)
    """Tokens that go through the model at once."""
    enable_chunked_prefill: bool = True
    """Read a prompt longer than max_num_tokens in pieces; without it such a prompt fails."""
    enable_block_reuse: bool = True
    """Keep keys and values of prompts, so that the samples of a problem share them."""
    free_gpu_memory_fraction: float = bounded(0.9, above=0.0, maximum=1.0)
    """Share for keys and values of what the weights leave free."""
    kv_cache_dtype: str = one_of("auto", "auto", "fp8")
    cuda_graphs: bool = True
    sampler_type: str = one_of("auto", "auto", "TorchSampler", "TRTLLMSampler")
    """TRTLLMSampler draws from each completion's own seed; the others, in version 1.2, from one seed per engine."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments for the engine: any of ENGINE_OPTIONS."""
    start_timeout_seconds: float = bounded(1800.0, above=0.0)
    silence_timeout_seconds: float = bounded(600.0, above=0.0)
    """An engine that has work and answers nothing for so long is started again."""


@dataclass(kw_only=True)
class SamplerConfig:
    """The engine that draws completions."""

    name: str = one_of("transformers", "transformers", "openai_server", "tensorrt_llm")
    batch_size: int = bounded(256, minimum=1)
    """Completions generated at once, by each engine or server."""
    problems_per_part: int = bounded(128, minimum=1)
    """Problems per Parquet part; what an interruption can cost."""
    dtype: str = one_of("auto", "auto", "float32", "bfloat16")
    """auto: for transformers, float32 on a CPU and bfloat16 on CUDA; for tensorrt_llm, what the model folder says."""
    max_failed_share: float = bounded(0.01, minimum=0.0, maximum=1.0)
    """Completions of a part that may fail for good. They are kept as failed: no pairs, wrong in evaluation."""
    server: ServerConfig = field(default_factory=ServerConfig)
    tensorrt_llm: TensorRTLLMConfig = field(default_factory=TensorRTLLMConfig)


@dataclass(kw_only=True)
class GradingConfig:
    """How candidates are graded: in child processes, each with a processor core and limits."""

    num_workers: int | None = bounded(None, minimum=1)
    """Child processes; one a processor core when null."""
    deadline_seconds: float = bounded(2.0, above=0.0)
    """Processor time for one answer. One that takes longer becomes an error, which joins neither winners nor losers."""
    memory_gib: float = bounded(1.0, minimum=0.25)
    """Address space of a child; an answer that needs more becomes an error."""
    audit: bool = False
    """Ask a second, independent grader; a candidate that both judge differently joins neither winners nor losers."""


@dataclass(kw_only=True)
class PairingConfig:
    """How graded candidates become pairs (paper, section 2)."""

    num_pairs_per_problem: int = bounded(10, minimum=1)
    """K in the paper."""
    cap: str = one_of("wrap_around", "wrap_around", "losers")
    """wrap_around: exactly K pairs, both lists restarting at their end (the paper's text). losers: each loser once."""
    drop_duplicates: bool = False
    """Keep the first of several completions of a problem with the same token ids."""
    gold_solutions: bool = False
    """Let the data set's worked solution join the winners (the paper does so for GSM8K, not for ARC)."""
    unparsable: str = one_of("loser", "loser", "drop")
    """What a completion without a readable answer counts as."""
    max_pairs: int | None = bounded(60000, minimum=1)
    """A seeded subsample when there are more; null for no limit."""
    max_sequence_length: int = bounded(2048, minimum=2)
    """Pairs with a longer prompt + completion are dropped and counted."""


@dataclass(kw_only=True)
class LossConfig:
    """loss = dpo_weight * dpo + nll_weight * nll, a mean over the pairs of the global batch."""

    beta: float = bounded(0.1, above=0.0)
    dpo_weight: float = bounded(1.0, minimum=0.0)
    """0 leaves supervised fine-tuning on the chosen completions (STaR)."""
    nll_weight: float = bounded(1.0, minimum=0.0)
    """The paper's alpha. 0 is plain DPO."""


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW, clipping and the learning-rate schedule."""

    learning_rate: float = bounded(7e-7, above=0.0)
    min_learning_rate: float = bounded(0.0, minimum=0.0)
    """Where a cosine schedule ends."""
    schedule: str = one_of("constant", "constant", "cosine")
    warmup_steps: int = bounded(0, minimum=0)
    weight_decay: float = bounded(0.0, minimum=0.0)
    adam_beta1: float = bounded(0.9, minimum=0.0, maximum=0.9999)
    adam_beta2: float = bounded(0.999, minimum=0.0, maximum=0.99999)
    adam_eps: float = bounded(1e-8, above=0.0)
    clip_grad: float = bounded(1.0, minimum=0.0)
    """Global gradient norm is cut to this; 0 for no clipping."""


@dataclass(kw_only=True)
class TrainingConfig:
    """One training run. Batch sizes count pairs (demonstrations in supervised fine-tuning)."""

    global_batch_size: int = bounded(16, minimum=1)
    max_tokens_per_micro_batch: int = bounded(8192, minimum=1)
    """Tokens that go through the model at once, on one data-parallel rank. One pair always fits, however long."""
    order: str = one_of("shuffled", "shuffled", "by_problem")
    """How an epoch is ordered: the paper's shuffle of pairs, or problems shuffled, the pairs of one side by side, which
    is faster because they share their prompt and each completion is computed once."""
    share_prompts: bool = True
    """Compute a prompt once for all completions of it in a global batch, and each completion once; exact either way."""
    pack: bool = True
    """Put the sequences of a micro batch into one row without padding; exact either way."""
    num_epochs: int = bounded(1, minimum=1)
    max_steps: int | None = bounded(None, minimum=1)
    """Stop after so many optimizer steps, even within an epoch."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    use_distributed_optimizer: bool = True
    """Shard the optimizer's state over the data-parallel ranks."""
    bf16: bool = False
    """bfloat16 weights and activations, with float32 main weights and gradients."""
    recompute_activations: bool = False
    """Keep only each layer's input for backward: a third more computation, far less memory."""
    checkpoint_every_steps: int = bounded(100, minimum=1)
    keep_checkpoints: int = bounded(2, minimum=1)


@dataclass(kw_only=True)
class SFTConfig(TrainingConfig):
    """Supervised fine-tuning on the task's demonstrations, which makes M_0."""

    enabled: bool = False


@dataclass(kw_only=True)
class ParallelConfig:
    """How Megatron-core splits the model. Data parallel takes what is left of the ranks."""

    tensor_model_parallel_size: int = bounded(1, minimum=1)
    pipeline_model_parallel_size: int = bounded(1, minimum=1)
    sequence_parallel: bool = False
    """Split activations between layers, too, over the tensor-parallel ranks, along the sequence."""


@dataclass(kw_only=True)
class LauncherConfig:
    """Where stages run."""

    name: str = one_of("local", "local")
    ranks: int = bounded(1, minimum=1)
    """Training processes on this machine: one per GPU, or gloo ranks on a CPU."""
    threads_per_rank: int = bounded(1, minimum=1)
    """CPU threads of each training process."""
    grace_seconds: float = bounded(25.0, above=0.0)
    """How long a stage may take to end by itself after an interruption; training saves a checkpoint meanwhile."""


@dataclass(kw_only=True)
class IRPOConfig:
    """One run of Iterative Reasoning Preference Optimization."""

    name: str = "irpo"
    """The run folder is `run_root/name`."""
    run_root: str = "runs"
    seed: int = bounded(0, minimum=0)
    num_iterations: int = bounded(4, minimum=0)
    """IRPO rounds; the run ends with M_T, T = num_iterations. 0 only evaluates M_0."""
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    grading: GradingConfig = field(default_factory=GradingConfig)
    pairing: PairingConfig = field(default_factory=PairingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)

    @property
    def run_folder(self) -> Path:
        return Path(self.run_root) / self.name

    def temperature_of(self, iteration: int) -> float:
        """The sampling temperature of `iteration`; the last one given repeats."""
        return self.sampling.temperature[min(iteration, len(self.sampling.temperature) - 1)]


def config_root() -> Path:
    """The folder conf/: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def load_config(
    config: str,
    overrides: Sequence[str] = (),
    *,
    also_check: Callable[[IRPOConfig], Iterable[str]] | None = None,
) -> IRPOConfig:
    """Compose and check the configuration that `irpo` commands name.

    Args:
        config: A name in conf/, or the path of a YAML file.
        overrides: `key=value` in Hydra's grammar; `group=name` picks a file of a group.
        also_check: Yields mistakes that show only in files, to be reported with the others.

    Raises:
        ConfigError: With every mistake found, one a line.
    """
    composed = compose(config, overrides)
    mistakes: list[str] = []
    value: IRPOConfig = _read_section(composed, IRPOConfig, "", mistakes)
    mistakes += _check_bounds(value)
    if not mistakes:
        mistakes += check_relations(value)
        mistakes += also_check(value) if also_check is not None else ()
    if mistakes:
        raise ConfigError("\n".join(f"{config}: {mistake}" for mistake in mistakes))
    return value


def compose(config: str, overrides: Sequence[str] = ()) -> "DictConfig":
    """Merge the YAML file, the group files it names, and the overrides, without checking keys or values.

    Raises:
        ConfigError: A file is missing, is not YAML, or an override does not parse.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = _find_config(config)
    arguments = [f"hydra.searchpath=[file://{config_root()}]", *map(_as_addition, overrides)]
    try:
        with initialize_config_dir(config_dir=str(path.parent.resolve()), version_base="1.3"):
            composed: DictConfig = hydra_compose(path.stem, overrides=arguments)
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{config}: {reason}") from error
    return composed


def _find_config(config: str) -> Path:
    if config.endswith((".yaml", ".yml")):
        if not Path(config).is_file():
            raise ConfigError(f"{config}: no such file. Give a path, or one of: {', '.join(config_names())}.")
        return Path(config)
    if config not in config_names():
        near = difflib.get_close_matches(config, config_names(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{config}: no such configuration.{hint} Known: {', '.join(config_names())}.")
    return config_root() / f"{config}.yaml"


def config_names() -> list[str]:
    """The runs that conf/ holds."""
    return sorted(path.stem for path in config_root().glob("*.yaml"))


def _as_addition(override: str) -> str:
    """Let Hydra accept any `a.b=value`, so that unknown keys are reported by us, together with all other mistakes."""
    key = override.split("=", 1)[0]
    is_group_choice = key in CONFIG_GROUPS
    has_prefix = key.startswith(("+", "~"))
    if "=" not in override and not has_prefix:
        raise ConfigError(f"{override}: is not an override; wanted key=value, for example seed=1.")
    return override if is_group_choice or has_prefix else f"++{override}"


def _read_section(section: Any, schema: type, prefix: str, mistakes: list[str]) -> Any:
    """Read a mapping into the dataclass `schema`; append what is wrong to `mistakes`, each with its dotted path."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    hints = typing.get_type_hints(schema)
    values: dict[str, Any] = {}
    if not isinstance(section, DictConfig):
        mistakes.append(f"{prefix.rstrip('.')}: is {section!r}, but a section with keys is wanted")
        return schema()
    for key in section:
        path = f"{prefix}{key!s}"
        if key not in hints:
            mistakes.append(_unknown_key(path, str(key)))
        elif dataclasses.is_dataclass(hints[str(key)]):
            values[str(key)] = _read_section(section[key], typing.cast(type, hints[str(key)]), f"{path}.", mistakes)
        else:
            node = OmegaConf.structured(schema)
            try:
                node[key] = section[key]
                values[str(key)] = OmegaConf.to_container(node[key]) if OmegaConf.is_config(node[key]) else node[key]
            except OmegaConfBaseException:
                mistakes.append(f"{path}: is {section[key]!r}, but {_type_name(hints[str(key)])} is wanted")
    return schema(**values)


def _type_name(hint: Any) -> str:
    return (
        hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("NoneType", "null")
    )


def _unknown_key(path: str, key: str) -> str:
    leaves = [name for name, _, _ in walk_fields(IRPOConfig)]
    known = sorted({*leaves, *(name.rsplit(".", 1)[0] for name in leaves if "." in name)})
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.7) or [
        name for name in known if name.rsplit(".", 1)[-1] in difflib.get_close_matches(key, [name.rsplit(".", 1)[-1]])
    ]
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{path}: no such key.{hint}"


def walk_fields(schema: type, prefix: str = "") -> Iterator[tuple[str, "dataclasses.Field[Any]", type]]:
    """Yield every leaf of the schema: its dotted key, its field, and the dataclass it stands in."""
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from walk_fields(typing.cast(type, hints[item.name]), f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", item, schema


def value_at(config: Any, key: str) -> Any:
    """The value at a dotted key: a leaf, or a section as a plain dictionary."""
    for name in key.split("."):
        config = getattr(config, name)
    return dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config  # type: ignore[arg-type]


def _check_bounds(config: IRPOConfig) -> list[str]:
    mistakes = []
    for key, item, _ in walk_fields(IRPOConfig):
        value = value_at(config, key)
        for element in value if isinstance(value, list) else [value]:
            if element is not None:
                mistakes += _check_bound(key, element, item.metadata)
    return mistakes


def _check_bound(key: str, value: Any, bounds: typing.Mapping[str, Any]) -> list[str]:
    if (choices := bounds.get("choices")) and value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return [f"{key}: is {value}, but must be one of {', '.join(choices)}.{hint}"]
    if (minimum := bounds.get("minimum")) is not None and not value >= minimum:
        return [f"{key}: is {value}, but must be at least {minimum}"]
    if (above := bounds.get("above")) is not None and not value > above:
        return [f"{key}: is {value}, but must be greater than {above}"]
    if (maximum := bounds.get("maximum")) is not None and not value <= maximum:
        return [f"{key}: is {value}, but must be at most {maximum}"]
    return []


def check_relations(config: IRPOConfig) -> list[str]:
    """Mistakes that show only between values."""
    return [mistake for check in _RELATIONS for mistake in check(config)]


def _check_name(config: IRPOConfig) -> Iterator[str]:
    if not config.name or config.name in (".", "..") or "/" in config.name or "\0" in config.name:
        yield f"name: is {config.name!r}, but must be a folder name without /"


def _check_temperatures(config: IRPOConfig) -> Iterator[str]:
    if not config.sampling.temperature:
        yield "sampling.temperature: is empty, but needs one value at least"


def _check_layout(config: IRPOConfig) -> Iterator[str]:
    parallel, ranks = config.parallel, config.launcher.ranks
    model_parallel = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
    if ranks % model_parallel:
        yield (
            f"launcher.ranks: is {ranks}, but must be a multiple of tensor_model_parallel_size x "
            f"pipeline_model_parallel_size = {model_parallel}"
        )
    if parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1:
        yield (
            "parallel.sequence_parallel: is true, but needs tensor_model_parallel_size of at least 2; "
            "raise that, or set it to false"
        )
    if parallel.sequence_parallel and ROW_MULTIPLE % parallel.tensor_model_parallel_size:
        yield (
            f"parallel.sequence_parallel: is true, but rows come in multiples of {ROW_MULTIPLE}, which "
            f"tensor_model_parallel_size = {parallel.tensor_model_parallel_size} must divide; lower that, or set it to "
            "false"
        )


def _check_schedules(config: IRPOConfig) -> Iterator[str]:
    for section, training in (("sft", config.sft), ("training", config.training)):
        optimizer = training.optimizer
        if optimizer.min_learning_rate > optimizer.learning_rate:
            yield (
                f"{section}.optimizer.min_learning_rate: is {optimizer.min_learning_rate}, but must be at most "
                f"learning_rate = {optimizer.learning_rate}"
            )
        if training.max_steps is not None and optimizer.warmup_steps >= training.max_steps:
            yield (
                f"{section}.optimizer.warmup_steps: is {optimizer.warmup_steps}, but must be less than "
                f"max_steps = {training.max_steps}"
            )


def _check_loss(config: IRPOConfig) -> Iterator[str]:
    if config.loss.dpo_weight == 0 and config.loss.nll_weight == 0:
        yield "loss.dpo_weight: is 0 and so is loss.nll_weight; set one of them above 0"


def _check_model_source(config: IRPOConfig) -> Iterator[str]:
    if config.model.path is None and not config.sft.enabled:
        yield "model.path: is null; name a Hugging Face folder, or set sft.enabled=true to train random weights"


def _check_lengths(config: IRPOConfig) -> Iterator[str]:
    room = config.model.max_position_embeddings
    if config.model.path is None and config.sampling.max_new_tokens >= room:
        yield (
            f"sampling.max_new_tokens: is {config.sampling.max_new_tokens}, but prompt and completion share "
            f"model.max_position_embeddings = {room}"
        )


def _check_arithmetic(config: IRPOConfig) -> Iterator[str]:
    options = config.task.arithmetic
    for low, high in (("min_operations", "max_operations"), ("min_operand", "max_operand")):
        if getattr(options, low) > getattr(options, high):
            yield (
                f"task.arithmetic.{low}: is {getattr(options, low)}, but must be at most "
                f"{high} = {getattr(options, high)}"
            )
    if options.terse_share + options.partial_share > 1:
        yield (
            f"task.arithmetic.terse_share: terse_share + partial_share = "
            f"{options.terse_share + options.partial_share:g}, but must be at most 1"
        )


def _check_task_files(config: IRPOConfig) -> Iterator[str]:
    task = config.task
    if task.prompt_template is not None and "{question}" not in task.prompt_template:
        yield f"task.prompt_template: is {task.prompt_template!r}, but must hold {{question}}"
    if task.name != "arithmetic":
        for key in ("train_path", "test_path"):
            is_read = key == "train_path" or task.evaluate_on == "test"
            if is_read and getattr(task, key) is None:
                yield f"task.{key}: is null, but task {task.name} needs a file or a Hugging Face data set name"
    else:
        for key in ("num_shots", "shot_ids", "shots_path", "extra_train_paths", "dev_path"):
            if getattr(task, key):
                yield f"task.{key}: is {getattr(task, key)}, but task arithmetic makes its own problems; leave it out"
    if task.name != "jsonl" and task.grader is not None:
        yield f"task.grader: is {task.grader}, but task {task.name} brings its own; leave it out"


def _check_development(config: IRPOConfig) -> Iterator[str]:
    task = config.task
    if task.dev_path is not None and task.num_dev_problems:
        yield f"task.num_dev_problems: is {task.num_dev_problems}, but task.dev_path names a set; leave one out"
    if task.evaluate_on == "dev" and task.dev_path is None and not task.num_dev_problems:
        yield "task.evaluate_on: is dev, but there is no development set; set task.num_dev_problems or task.dev_path"


def _check_prompt(config: IRPOConfig) -> Iterator[str]:
    task = config.task
    if task.shot_ids and task.shots_path is not None:
        yield f"task.shot_ids: is {task.shot_ids}, but task.shots_path names the examples; leave one out"
    if task.prompt_template is not None and (task.num_shots or task.shot_ids or task.shots_path):
        head, mark, _ = task.prompt_template.partition("{shots}")
        if not mark or "{question}" in head:
            yield "task.prompt_template: has no {shots} before {question} for examples; add it, or set task.num_shots=0"
    if task.chat_template == "model" and config.model.path is None:
        yield "task.chat_template: is model, but a model of random weights has none; set none, or name model.path"


def _check_sampler(config: IRPOConfig) -> Iterator[str]:
    if config.sampling.enough_per_side is not None and config.sampling.round_size is None:
        yield "sampling.enough_per_side: is set, but only sampling in rounds stops early; set sampling.round_size too"
    for option in config.sampler.tensorrt_llm.options:
        if option not in ENGINE_OPTIONS:
            near = difflib.get_close_matches(option, ENGINE_OPTIONS, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(ENGINE_OPTIONS)}."
            yield f"sampler.tensorrt_llm.options.{option}: no such option, or one with a key of its own.{hint}"
    if config.sampler.name == "openai_server":
        yield from _check_server(config)


def _check_server(config: IRPOConfig) -> Iterator[str]:
    server = config.sampler.server
    if not server.base_urls and not server.command:
        yield "sampler.server.base_urls: is empty; name servers (http://host:8000/v1), or set sampler.server.command"
    if server.base_urls and server.command:
        yield "sampler.server.command: is set and so is base_urls; a started server has its own address, leave one out"
    if server.command and not all(any(part in word for word in server.command) for part in ("{model}", "{port}")):
        yield f"sampler.server.command: is {' '.join(server.command)}, but must hold {{model}} and {{port}}"
    if server.base_urls and server.model is not None and config.num_iterations:
        yield (
            f"sampler.server.model: is {server.model}, but each iteration samples from another model; "
            f"leave it null, or set num_iterations=0 to evaluate this one"
        )


_RELATIONS = (
    _check_name,
    _check_temperatures,
    _check_layout,
    _check_schedules,
    _check_loss,
    _check_model_source,
    _check_lengths,
    _check_arithmetic,
    _check_task_files,
    _check_development,
    _check_prompt,
    _check_sampler,
)


def dump_config(config: IRPOConfig) -> str:
    """The resolved configuration as YAML; `load_config` reads it back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))
