"""The configuration: what can be set, with defaults and bounds, as dataclasses.

Defaults stand here and nowhere else; files in conf/ hold what differs. Knows nothing of stages, models or torch.
"""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
    """Problems that candidates and pairs come from."""
    num_test_problems: int = bounded(400, minimum=1)
    """Problems that each M_t is measured on."""
    num_demonstrations: int = bounded(20000, minimum=1)
    """Stories that M_0 learns from; none of them is a train or test problem."""
    min_operations: int = bounded(3, minimum=1)
    """Fewest additions and subtractions of a story."""
    max_operations: int = bounded(5, minimum=1)
    """Most additions and subtractions of a story."""
    min_operand: int = bounded(2, minimum=1)
    """Smallest number that is added or taken away."""
    max_operand: int = bounded(9, minimum=1)
    """Largest number that is added or taken away."""
    terse_share: float = bounded(0.45, minimum=0.0, maximum=1.0)
    """Share of demonstrations that give the final answer alone."""
    partial_share: float = bounded(0.25, minimum=0.0, maximum=1.0)
    """Share of demonstrations that show the first step only. The rest show every step."""
    demonstrations: str = one_of("mixed", "mixed", "gold")
    """gold: instead of these, the worked solutions of the train problems, as other tasks have them."""


@dataclass(kw_only=True)
class TaskConfig:
    """Problems, prompt and grader."""

    name: str = one_of("arithmetic", "arithmetic", "gsm8k", "hendrycks_math", "arc_challenge", "jsonl")
    """Where problems come from, and how they are asked and graded."""
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
    """Width; a multiple of 2 x num_attention_heads."""
    num_layers: int = bounded(4, minimum=1)
    """Transformer layers."""
    num_attention_heads: int = bounded(4, minimum=1)
    """Query heads."""
    num_key_value_heads: int = bounded(2, minimum=1)
    """Heads of keys and values; divides num_attention_heads."""
    ffn_hidden_size: int = bounded(384, minimum=8)
    """Width inside the feed-forward blocks."""
    max_position_embeddings: int = bounded(1024, minimum=8)
    """Tokens of prompt and completion together."""
    tie_word_embeddings: bool = False
    """Use one matrix for input and output embeddings."""
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
    """Draw from the most probable tokens whose probabilities add up to this."""
    max_new_tokens: int = bounded(512, minimum=1)
    """Tokens per completion, end-of-sequence included; for evaluation as well."""


@dataclass(kw_only=True)
class EvaluationConfig:
    """How each M_t is measured on the test problems. Greedy decoding always runs."""

    num_samples: int = bounded(32, minimum=0)
    """Samples per test problem, for majority vote and pass@k; 0 leaves them out."""
    temperature: float = bounded(0.8, above=0.0)
    """Of the samples for majority vote and pass@k."""
    top_p: float = bounded(1.0, above=0.0, maximum=1.0)
    """Of the same samples."""


@dataclass(kw_only=True)
class TransformersConfig:
    """transformers only."""

    num_processes: int | None = bounded(None, minimum=1)
    """Each with a copy of the model; they share the batches. When null: one a visible GPU, or one on a CPU."""


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
    """GPUs that split each layer of one copy."""
    pipeline_parallel_size: int = bounded(1, minimum=1)
    """Groups of GPUs that hold consecutive layers of one copy."""
    nodes_per_engine: int = bounded(1, minimum=1)
    """Above 1, the sample stage must be started by trtllm-llmapi-launch; sampling/mpi_launch.py says how."""
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
    """auto: as the model says. fp8 halves the cache."""
    cuda_graphs: bool = True
    """Record decoding steps once and replay them."""
    sampler_type: str = one_of("auto", "auto", "TorchSampler", "TRTLLMSampler")
    """TRTLLMSampler draws from each completion's own seed; the others, in version 1.2, from one seed per engine."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments for the engine: any of ENGINE_OPTIONS."""
    start_timeout_seconds: float = bounded(1800.0, above=0.0)
    """How long an engine may take to load the model."""
    silence_timeout_seconds: float = bounded(600.0, above=0.0)
    """An engine that has work and answers nothing for so long is started again."""


@dataclass(kw_only=True)
class SamplerConfig:
    """The engine that draws completions."""

    name: str = one_of("transformers", "transformers", "openai_server", "tensorrt_llm")
    """transformers runs here; tensorrt_llm starts engines on GPUs; openai_server asks servers."""
    transformers: TransformersConfig = field(default_factory=TransformersConfig)
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
    pairs_path: str | None = None
    """Train iteration 0 on the pairs of this pairs.parquet, of another run with the same tokenizer, and draw none."""


@dataclass(kw_only=True)
class LossConfig:
    """loss = dpo_weight * dpo + nll_weight * nll, a mean over the pairs of the global batch."""

    beta: float = bounded(0.1, above=0.0)
    """Strength of DPO's pull to the reference."""
    dpo_weight: float = bounded(1.0, minimum=0.0)
    """0 leaves supervised fine-tuning on the chosen completions (STaR)."""
    nll_weight: float = bounded(1.0, minimum=0.0)
    """The paper's alpha. 0 is plain DPO."""


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW, clipping and the learning-rate schedule."""

    learning_rate: float = bounded(7e-7, above=0.0)
    """Highest rate; constant, or where a cosine schedule starts after warm-up."""
    min_learning_rate: float = bounded(0.0, minimum=0.0)
    """Where a cosine schedule ends."""
    schedule: str = one_of("constant", "constant", "cosine")
    """How the rate changes after warm-up."""
    warmup_steps: int = bounded(0, minimum=0)
    """Steps over which the rate rises from 0."""
    weight_decay: float = bounded(0.0, minimum=0.0)
    """AdamW's, decoupled from the gradient."""
    adam_beta1: float = bounded(0.9, minimum=0.0, maximum=0.9999)
    """Decay of the mean of gradients."""
    adam_beta2: float = bounded(0.999, minimum=0.0, maximum=0.99999)
    """Decay of the mean of squared gradients."""
    adam_eps: float = bounded(1e-8, above=0.0)
    """Added to the root of the latter."""
    clip_grad: float = bounded(1.0, minimum=0.0)
    """Global gradient norm is cut to this; 0 for no clipping."""


@dataclass(kw_only=True)
class TrainingConfig:
    """One training run. Batch sizes count pairs (demonstrations in supervised fine-tuning)."""

    global_batch_size: int = bounded(16, minimum=1)
    """Pairs, or demonstrations, of one optimizer step, over all ranks."""
    max_tokens_per_micro_batch: int = bounded(8192, minimum=1)
    """Tokens that go through the model at once, on one data-parallel rank. One pair always fits, however long."""
    order: str = one_of("shuffled", "shuffled", "by_problem")
    """How an epoch is ordered: the paper's shuffle of pairs, or problems shuffled, the pairs of one side by side, which
    is faster because they share their prompt and each completion is computed once."""
    share_prompts: bool = True
    """Compute a prompt once for all completions of it in a global batch, and each completion once; exact either way."""
    attention: str = one_of("groups", "groups", "transformer_engine")
    """`groups` is ours, by torch; `transformer_engine` is for GPUs where it is installed, and share_prompts=false."""
    pack: bool = True
    """Put the sequences of a micro batch into one row without padding; exact either way."""
    num_epochs: int = bounded(1, minimum=1)
    """Passes over the pairs."""
    max_steps: int | None = bounded(None, minimum=1)
    """Stop after so many optimizer steps, even within an epoch."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    use_distributed_optimizer: bool = True
    """Shard the optimizer's state over the data-parallel ranks."""
    bf16: bool = False
    """bfloat16 weights and activations, with float32 main weights and gradients."""
    fp8: str | None = one_of(None, "hybrid", "e4m3")
    """In which format Transformer Engine's linear layers multiply, on GPUs where it is installed; hybrid is e4m3
    forward and e5m2 backward."""
    recompute_activations: bool = False
    """Keep only each layer's input for backward: a third more computation, far less memory."""
    checkpoint_every_steps: int = bounded(100, minimum=1)
    """Steps between checkpoints; what a kill can cost."""
    keep_checkpoints: int = bounded(2, minimum=1)
    """The newest so many; where a validation loss is measured, the best one as well."""
    async_checkpoints: bool = True
    """Write a checkpoint while training goes on, from a copy in host memory."""

    @property
    def uses_transformer_engine(self) -> bool:
        """Whether training needs that package."""
        return self.attention == "transformer_engine" or self.fp8 is not None


@dataclass(kw_only=True)
class SelectionConfig:
    """How many steps an iteration trains for, chosen as the paper does for GSM8K.

    A first training, the trial, leaves some training problems out. Its model is kept every so many steps, and the one
    that solves most of them by greedy decoding says for how many steps M_t is then trained on all pairs.
    """

    enabled: bool = False
    """Choose the number of steps this way; otherwise training.num_epochs and training.max_steps say it."""
    num_problems: int = bounded(1000, minimum=1)
    """Training problems that the trial leaves out."""
    every_steps: int = bounded(500, minimum=1)
    """How often the trial's model is kept; its last one is too."""


@dataclass(kw_only=True)
class SFTConfig(TrainingConfig):
    """Supervised fine-tuning on the task's demonstrations, which makes M_0."""

    enabled: bool = False
    """Make M_0 by fine-tuning; otherwise M_0 is the folder at model.path."""
    watched_pairs_path: str | None = None
    """Log after each step how likely both sides of the pairs in this pairs.parquet are, of another run with the same
    tokenizer. Nothing is learnt from them."""
    num_watched_pairs: int = bounded(100, minimum=1)
    """So many of those pairs, evenly spread over the file."""


@dataclass(kw_only=True)
class ParallelConfig:
    """How Megatron-core splits the model. Data parallel takes what is left of the ranks."""

    tensor_model_parallel_size: int = bounded(1, minimum=1)
    """Ranks that split each layer; divides the attention heads."""
    pipeline_model_parallel_size: int = bounded(1, minimum=1)
    """Ranks that hold consecutive layers; divides the layers."""
    virtual_pipeline_model_parallel_size: int = bounded(1, minimum=1)
    """Pieces of the model on each pipeline stage: more of them leave stages idle for less time, for more messages."""
    context_parallel_size: int = bounded(1, minimum=1)
    """Split each row of a micro batch over so many ranks, which share the memory that long sequences take."""
    sequence_parallel: bool = False
    """Split activations between layers, too, over the tensor-parallel ranks, along the sequence."""
    overlap_data_parallel: bool | None = None
    """Sum gradients and, with the distributed optimizer, gather weights over the data-parallel ranks while computing.
    Null is true on GPUs."""

    @property
    def ranks_per_replica(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size


@dataclass(kw_only=True)
class SlurmJobConfig:
    """slurm only: what one kind of job asks for. null leaves it to the cluster."""

    partition: str | None = None
    """Partition, or several with commas."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    time: str | None = None
    """Limit, as sbatch takes it: 90, 04:00:00, 1-12:00:00. A stage that takes longer goes on in its next start."""
    gpus_per_node: int = bounded(0, minimum=0)
    """GPUs of each node; 0 for none."""
    cpus_per_task: int | None = bounded(None, minimum=1)
    """Processor cores of each task."""
    memory: str | None = None
    """Per node, as sbatch takes it: 200G; 0 for all of it."""
    exclusive: bool = False
    """Share the nodes with no other job."""
    notice_seconds: int = bounded(60, minimum=0)
    """How long before the time limit the stage is told to end. Slurm may tell it up to 60 seconds earlier."""
    image: str | None = None
    """Container image, as launcher.slurm.container wants it."""
    mpi: str | None = None
    """For srun --mpi: none, pmix, ..."""
    sbatch_lines: list[str] = field(default_factory=list)
    """Further options, such as --licenses=scratch or --comment=irpo."""


@dataclass(kw_only=True)
class SlurmTrainerConfig(SlurmJobConfig):
    """slurm only: what training asks for."""

    nodes: int = bounded(1, minimum=1)
    """launcher.ranks are spread over them evenly."""
    notice_seconds: int = bounded(300, minimum=0)
    """A step and a checkpoint must fit in. Slurm may tell the stage up to 60 seconds earlier."""


@dataclass(kw_only=True)
class SlurmConfig:
    """slurm only: where jobs go and how they start. Three kinds of job: sampler, trainer, and cpu for all else."""

    account: str | None = None
    """Account that the jobs are charged to."""
    reservation: str | None = None
    """Reservation that the jobs run in."""
    shards: int = bounded(8, minimum=1, maximum=100000)
    """Tasks of the array that draws an iteration's candidates; 1 for no array."""
    max_running_shards: int | None = bounded(None, minimum=1)
    """Tasks of the array that may run at once; no limit when null."""
    gpu_request: str = one_of("gpus_per_node", "gpus_per_node", "gres", "none")
    """How GPUs are asked for; none on clusters that give whole nodes and refuse to be asked."""
    launch: str = one_of("torchrun", "torchrun", "task_per_rank")
    """Training starts one torchrun a node, or one Slurm task a rank."""
    container: str = one_of("none", "none", "pyxis", "apptainer")
    """What starts containers: the plug-in pyxis of srun, or apptainer."""
    mounts: list[str] = field(default_factory=list)
    """Folders that containers see, as FOLDER or FROM:TO. The run folder and the working directory are added."""
    prologue: list[str] = field(default_factory=list)
    """Shell lines that each job starts with, outside of containers: module load cuda."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Environment variables of all stages, also in containers; null takes one of our own away."""
    python: str | None = None
    """The interpreter that starts stages; when null, the one that submits or, in a container, python."""
    max_attempts: int = bounded(3, minimum=1)
    """Starts of a job that may fail, one after the other, without a new part or checkpoint."""
    max_interruptions: int = bounded(20, minimum=1)
    """Starts that may be preempted, reach the limit or lose their node, without a new part or checkpoint."""
    hang_minutes: float = bounded(30.0, above=0.0)
    """Training that shows no step for so long prints the stack of every rank, ends, and is started again."""
    sampler: SlurmJobConfig = field(default_factory=SlurmJobConfig)
    trainer: SlurmTrainerConfig = field(default_factory=SlurmTrainerConfig)
    cpu: SlurmJobConfig = field(default_factory=SlurmJobConfig)


@dataclass(kw_only=True)
class LauncherConfig:
    """Where stages run."""

    name: str = one_of("local", "local", "slurm")
    """local: on this machine, one step after the other. slurm: as a chain of jobs."""
    ranks: int = bounded(1, minimum=1)
    """Training processes, on all nodes together: one per GPU, or gloo ranks on a CPU."""
    threads_per_rank: int = bounded(1, minimum=1)
    """CPU threads of each training process."""
    grace_seconds: float = bounded(25.0, above=0.0)
    """local only: how long a stage may take to end after an interruption; training saves a checkpoint meanwhile."""
    dry_run: bool = False
    """slurm only: show scripts and dependencies, and submit nothing."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass(kw_only=True)
class ClusterConfig:
    """What `irpo plan` estimates from: the GPUs, what was measured on them, what is expected. Changes no result."""

    gpu: str | None = one_of(None, "A100", "H100", "H200", "B200")
    """Type of the GPUs; no estimates when null."""
    gpu_memory_gib: float | None = bounded(None, above=0.0)
    """What a process can allocate; the type's own when null."""
    gpus_per_node: int = bounded(8, minimum=1)
    """GPUs of a machine, which talk to each other faster than to those of others."""
    network_gigabytes_per_second: float = bounded(50.0, above=0.0)
    """Of one GPU to other nodes, one direction; 50 is 400 Gb/s InfiniBand."""
    mfu: float | None = bounded(None, above=0.0, maximum=1.0)
    """Measured share of the peak that a training step reaches (mfu in metrics.jsonl); a public figure when null."""
    sampler_tokens_per_second: float | None = bounded(None, above=0.0)
    """Measured: tokens that one GPU generates; a public figure when null."""
    prompt_tokens: int = bounded(200, minimum=1)
    """Expected mean length of a prompt."""
    completion_tokens: int = bounded(250, minimum=1)
    """Expected mean length of a completion."""
    failure_hours_per_gpu: float | None = bounded(None, above=0.0)
    """Hours of one GPU between failures that stop the job; a public figure when null."""
    checkpoint_seconds: float = bounded(10.0, above=0.0)
    """Training stands still so long for a checkpoint: a copy to host memory, or all of it without async_checkpoints."""
    restart_seconds: float = bounded(600.0, above=0.0)
    """From a failure to the first new step: queue, start-up, loading."""


@dataclass(kw_only=True)
class WandbConfig:
    """Weights & Biases, through its own library: pip install 'irpo-nemo[wandb]'. Its key is read where W&B keeps it."""

    enabled: bool = False
    """Send the run's curves, configuration and references to its artifacts."""
    project: str = "irpo"
    """Project that the run stands in."""
    entity: str | None = None
    """User or team; the key's own when null."""
    mode: str | None = one_of(None, "online", "offline")
    """offline: a folder below the run's, for `wandb sync`. When null: as WANDB_MODE says, else online."""


@dataclass(kw_only=True)
class MLflowConfig:
    """MLflow, through its own library: pip install 'irpo-nemo[mlflow]'."""

    enabled: bool = False
    """Send the run's curves, configuration and references to its artifacts."""
    uri: str | None = None
    """A server, or a folder. When null: as MLFLOW_TRACKING_URI says, else a folder below the run's."""
    experiment: str = "irpo"
    """Experiment that the run stands in; made when it is missing."""


@dataclass(kw_only=True)
class TrackingConfig:
    """Trackers beside TensorBoard, which is always written. They change no result and stop no run."""

    wandb: WandbConfig = field(default_factory=WandbConfig)
    mlflow: MLflowConfig = field(default_factory=MLflowConfig)
    every_seconds: float = bounded(30.0, above=0.0)
    """Time between two looks at what is new. A step is sent once a checkpoint covers it."""


@dataclass(kw_only=True)
class IRPOConfig:
    """One run of Iterative Reasoning Preference Optimization."""

    name: str = "irpo"
    """The run folder is `run_root/name`."""
    run_root: str = "runs"
    """The folder that holds run folders."""
    reuse_from: list[str] = field(default_factory=list)
    """Run folders, or folders of runs: a step that one of them finished with the same code, settings and inputs is
    taken over, not done again."""
    seed: int = bounded(0, minimum=0)
    """Of everything drawn: problems, weights, candidates, the order of pairs."""
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
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def run_folder(self) -> Path:
        return Path(self.run_root) / self.name

    def temperature_of(self, iteration: int) -> float:
        """The sampling temperature of `iteration`; the last one given repeats."""
        return self.sampling.temperature[min(iteration, len(self.sampling.temperature) - 1)]


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
