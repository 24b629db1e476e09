"""What a whole configuration must fulfil: the bounds of each value, and how values fit together."""

import difflib
import importlib.util
import re
import typing
from collections.abc import Iterator
from typing import Any

from irpo_nemo.config import ENGINE_OPTIONS, IRPOConfig, SlurmJobConfig, TrainingConfig, value_at, walk_fields


def check_bounds(config: IRPOConfig) -> list[str]:
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
    if ranks % parallel.ranks_per_replica:
        yield (
            f"launcher.ranks: is {ranks}, but must be a multiple of tensor_model_parallel_size x "
            f"pipeline_model_parallel_size x context_parallel_size = {parallel.ranks_per_replica}"
        )
    if parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1:
        yield (
            "parallel.sequence_parallel: is true, but needs tensor_model_parallel_size of at least 2; "
            "raise that, or set it to false"
        )
    if parallel.virtual_pipeline_model_parallel_size > 1 and parallel.pipeline_model_parallel_size == 1:
        yield (
            f"parallel.virtual_pipeline_model_parallel_size: is {parallel.virtual_pipeline_model_parallel_size}, but "
            "needs pipeline_model_parallel_size of at least 2; raise that, or set it to 1"
        )


def _check_kernels(config: IRPOConfig) -> Iterator[str]:
    for section, training in (("sft", config.sft), ("training", config.training)):
        if training.attention == "transformer_engine" and training.share_prompts:
            yield (
                f"{section}.attention: is transformer_engine, which knows no shared prompts; set "
                f"{section}.share_prompts=false, or {section}.attention=groups"
            )
        if training.attention == "transformer_engine" and training.pack and config.parallel.context_parallel_size > 1:
            yield (
                f"{section}.attention: is transformer_engine, which context parallel splits only where each sequence "
                f"has its own row; set {section}.pack=false, or {section}.attention=groups"
            )
        if training.fp8 is not None and not training.bf16:
            yield f"{section}.fp8: is {training.fp8}, but needs {section}.bf16=true beside it; set that, or fp8=null"


def find_missing_packages(training: TrainingConfig, *, section: str) -> Iterator[str]:
    """Yield what this machine lacks for training so; `section` is where its options stand."""
    if training.uses_transformer_engine and importlib.util.find_spec("transformer_engine") is None:
        yield (
            f"{section}.attention, {section}.fp8: are {training.attention} and {training.fp8}, but Transformer Engine "
            f"is not installed here; install transformer-engine[pytorch], or set attention=groups and fp8=null"
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


def _check_given_pairs(config: IRPOConfig) -> Iterator[str]:
    if config.pairing.pairs_path is not None and config.num_iterations == 0:
        yield "pairing.pairs_path: is set, but num_iterations=0 trains nothing; leave it out or raise num_iterations"
    if config.sft.watched_pairs_path is not None and not config.sft.enabled:
        yield "sft.watched_pairs_path: is set, but sft.enabled=false; leave it out or set sft.enabled=true"


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
    yield from _check_engine_size(config)
    if config.sampler.name == "openai_server":
        yield from _check_server(config)


def _check_engine_size(config: IRPOConfig) -> Iterator[str]:
    options = config.sampler.tensorrt_llm
    size = options.tensor_parallel_size * options.pipeline_parallel_size
    if size % options.nodes_per_engine:
        yield (
            f"sampler.tensorrt_llm.nodes_per_engine: is {options.nodes_per_engine}, but must divide "
            f"tensor_parallel_size x pipeline_parallel_size = {size}"
        )
    if options.nodes_per_engine > 1 and options.num_engines not in (None, 1):
        yield (
            f"sampler.tensorrt_llm.num_engines: is {options.num_engines}, but a stage has one engine of several nodes; "
            f"leave it null, and give each engine a shard of its own (shard=I/N)"
        )


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


def _check_slurm(config: IRPOConfig) -> Iterator[str]:
    if config.launcher.name != "slurm":
        if config.launcher.dry_run:
            yield "launcher.dry_run: is true, but launcher.name is local; `irpo plan` shows its steps"
        return
    slurm, ranks = config.launcher.slurm, config.launcher.ranks
    key, nodes = "launcher.slurm.trainer", slurm.trainer.nodes
    if ranks % nodes:
        yield f"launcher.ranks: is {ranks}, but must be a multiple of {key}.nodes = {nodes}"
    elif slurm.trainer.gpus_per_node and ranks != nodes * slurm.trainer.gpus_per_node:
        yield (
            f"launcher.ranks: is {ranks}, but {key}.nodes x gpus_per_node = {nodes * slurm.trainer.gpus_per_node}, "
            "and training takes one rank a GPU"
        )
    for kind in ("sampler", "trainer", "cpu"):
        job: SlurmJobConfig = getattr(slurm, kind)
        if slurm.container != "none" and job.image is None:
            yield f"launcher.slurm.{kind}.image: is null, but launcher.slurm.container is {slurm.container}"
        if slurm.container == "none" and job.image is not None:
            yield f"launcher.slurm.{kind}.image: is {job.image}, but launcher.slurm.container is none; set pyxis"
        for line in job.sbatch_lines:
            if not line.startswith("-"):
                yield f"launcher.slurm.{kind}.sbatch_lines: is {line!r}, but an option is wanted, such as --licenses=x"
    if config.sampler.name == "tensorrt_llm" and config.sampler.tensorrt_llm.nodes_per_engine > 1:
        yield (
            f"sampler.tensorrt_llm.nodes_per_engine: is {config.sampler.tensorrt_llm.nodes_per_engine}, but "
            "launcher=slurm starts engines that fit on one node; set it to 1, or start stage sample by hand"
        )
    for name in slurm.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"launcher.slurm.environment: {name!r} is no name of an environment variable"
    yield from _check_characters(config)


def _check_characters(config: IRPOConfig) -> Iterator[str]:
    """What no quoting carries into an #SBATCH line or a container's list of mounts."""
    texts = {"name": [config.name], "run_root": [config.run_root]}
    for key, _, _ in walk_fields(IRPOConfig):
        value = value_at(config, key)
        values = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if key.startswith("launcher.slurm.") and key != "launcher.slurm.prologue":
            texts[key] = [item for item in values if isinstance(item, str)]
    for key, values in texts.items():
        for value in values:
            if not value.isprintable():
                yield f"{key}: is {value!r}, but must hold printable characters only"
    if set(str(config.run_folder.absolute())) & {"%", "\\"}:
        yield f"name: run_root/name is {config.run_folder}, but Slurm reads % and \\ in the paths of logs"
    if config.launcher.slurm.container != "none" and set(config.name + config.run_root) & {",", ":"}:
        yield f"name: run_root/name is {config.run_folder}, but a container's mounts take no , and no :"


_RELATIONS = (
    _check_name,
    _check_temperatures,
    _check_layout,
    _check_kernels,
    _check_schedules,
    _check_loss,
    _check_given_pairs,
    _check_model_source,
    _check_lengths,
    _check_arithmetic,
    _check_task_files,
    _check_development,
    _check_prompt,
    _check_sampler,
    _check_slurm,
)
