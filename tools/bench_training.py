#!/usr/bin/env python
"""Training throughput and peak memory of irpo-nemo beside TRL's DPOTrainer: the same model, pairs, loss and optimizer.

    tools/bench_training.py --json training.json

Each side runs in processes of its own, in turn, `--rounds` times. A step is one optimizer step of `--batch` pairs on
one rank; the first two of a process are not counted. Reference log-probs are computed before the clock starts on both
sides. Peak memory is the whole process's: resident memory on a CPU, allocated memory on a GPU.

Pairs are random tokens whose lengths are distributed as those of GSM8K's chains of thought: `--problems` problems,
N = 30 candidates of which half are right, K = `--pairs-per-problem` pairs by the paper's rule.
"""

import argparse
import json
import platform
import random
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

WARM_UP_STEPS = 2
NUM_CANDIDATES = 30
BETA, LEARNING_RATE = 0.1, 1e-6
EOS = 1
FIRST_TOKEN = 3
SHAPES: dict[str, dict[str, Any]] = {
    "35m": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6,
            "intermediate_size": 1024, "vocab_size": 32000},
    "llama-1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
                 "intermediate_size": 8192, "vocab_size": 128256},
    "llama-8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                 "intermediate_size": 14336, "vocab_size": 128256},
}  # fmt: skip


def main() -> None:
    options = parse_arguments()
    if options.side:
        print(json.dumps(measure_side(options)))
        return
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        make_model(options, Path(folder))
        for number in range(options.rounds):
            sides = {side: run_side(side, Path(folder)) for side in ("ours", "theirs")}
            rounds.append(sides)
            print(f"round {number + 1}: " + "; ".join(f"{side} {describe(sides[side])}" for side in sides))
    report(rounds, options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="35m")
    parser.add_argument("--layers", type=int, help="instead of the shape's own")
    parser.add_argument("--order", choices=("shuffled", "by_problem"), default="shuffled", help="of our batches")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--pairs-per-problem", type=int, default=10)
    parser.add_argument("--prompt-tokens", type=int, default=115, help="mean")
    parser.add_argument("--completion-tokens", type=int, default=95, help="mean")
    parser.add_argument("--batch", type=int, default=16, help="pairs a step")
    parser.add_argument("--theirs-micro-batch", type=int, default=8, help="pairs that TRL computes at once")
    parser.add_argument("--max-tokens", type=int, default=2048, help="tokens that we compute at once")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run_side(side: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def describe(side: dict[str, float]) -> str:
    return f"{side['pairs_per_second']:.2f} pairs/s, {side['peak_memory_gib']:.2f} GiB"


def report(rounds: list[dict[str, dict[str, float]]], options: argparse.Namespace) -> None:
    def median_of(side: str, key: str) -> float:
        return statistics.median(sides[side][key] for sides in rounds)

    def ratio(key: str) -> float:
        return statistics.median(sides["ours"][key] / sides["theirs"][key] for sides in rounds)

    keys = list(rounds[0]["ours"])
    result = {
        **{side: {key: median_of(side, key) for key in keys} for side in ("ours", "theirs")},
        "ratio": {"pairs_per_second": ratio("pairs_per_second"), "peak_memory": ratio("peak_memory_gib")},
        "rounds": rounds,
        "versions": {name: version(name) for name in ("torch", "megatron-core", "trl", "transformers")},
        "machine": f"{platform.machine()}, {options.threads} threads",
        "command": shlex.join(sys.argv),
    }
    print(f"\n{'':24}{'ours':>12}{'TRL':>12}{'ratio':>10}")
    for key in keys:
        ours, theirs = median_of("ours", key), median_of("theirs", key)
        print(f"{key:24}{ours:12.2f}{theirs:12.2f}{ratio(key):10.2f}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


def make_model(options: argparse.Namespace, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = dict(SHAPES[options.model])
    shape["num_hidden_layers"] = options.layers or shape["num_hidden_layers"]
    torch.manual_seed(0)
    config = LlamaConfig(**shape, max_position_embeddings=4096, eos_token_id=EOS, tie_word_embeddings=False)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)


def make_pairs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of problem, prompt, chosen and rejected token ids, and the indices of the candidates."""
    rng = random.Random(0)
    vocab_size = SHAPES[options.model]["vocab_size"]

    def tokens(mean: int) -> list[int]:
        length = max(4, round(rng.lognormvariate(0, 0.4) * mean / 1.083))
        return [rng.randrange(FIRST_TOKEN, vocab_size) for _ in range(length)]

    pairs = []
    for problem in range(options.problems):
        prompt = tokens(options.prompt_tokens)
        candidates = [[*tokens(options.completion_tokens)[:-1], EOS] for _ in range(NUM_CANDIDATES)]
        half = NUM_CANDIDATES // 2
        for k in range(options.pairs_per_problem):
            pairs.append(
                {
                    "problem": problem,
                    "prompt": prompt,
                    "chosen_index": k % half,
                    "chosen": candidates[k % half],
                    "rejected_index": half + k % half,
                    "rejected": candidates[half + k % half],
                }
            )
    return pairs


def measure_side(options: argparse.Namespace) -> dict[str, float]:
    import torch

    torch.set_num_threads(options.threads)
    measure = {"ours": measure_ours, "theirs": measure_theirs}[options.side]
    seconds, num_tokens = measure(options)
    counted = seconds[WARM_UP_STEPS:]
    per_step = statistics.median(counted)
    return {
        "pairs_per_second": options.batch / per_step,
        "tokens_per_second": num_tokens / per_step,
        "seconds_per_step": per_step,
        "peak_memory_gib": peak_gib(),
    }


def measure_ours(options: argparse.Namespace) -> tuple[list[float], float]:
    """Seconds of each step, and tokens of a step as its pairs' rows have them, prompts counted twice."""
    import torch
    import torch.distributed as dist

    from irpo_nemo.config import IRPOConfig, OptimizerConfig, TrainingConfig

    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo", store=dist.HashStore(), rank=0, world_size=1
    )
    rows = make_pairs(options)[: options.batch * (options.steps + WARM_UP_STEPS)]
    if options.order == "shuffled":
        random.Random(1).shuffle(rows)
    config = IRPOConfig(
        training=TrainingConfig(
            global_batch_size=options.batch,
            max_tokens_per_micro_batch=options.max_tokens,
            order=options.order,
            optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
            bf16=torch.cuda.is_available(),
        )
    )
    seconds, _ = time_our_steps(config, rows, options)
    return seconds, mean_tokens(rows, options)


def time_our_steps(
    config: Any, rows: list[dict[str, Any]], options: argparse.Namespace
) -> tuple[list[float], float | None]:
    """Train a step on each batch of `rows`, on every rank: its seconds, and the loss of the last one."""
    import torch.distributed as dist

    from irpo_nemo.training.batches import GlobalBatches, batch_options, examples_of_pairs
    from irpo_nemo.training.parallel import data_parallel_rank, data_parallel_size
    from irpo_nemo.training.reference import reference_logprobs
    from irpo_nemo.training.session import load_policy

    pairs = [to_pair(number, row) for number, row in enumerate(rows)]
    policy = load_policy(config, config.training, options.folder, num_examples=len(pairs))
    references = reference_logprobs(policy, pairs, options.folder / "reference.parquet", model_hash="same")
    policy.prepare_for_training()
    batches = GlobalBatches(
        examples_of_pairs(pairs, references),
        global_batch_size=options.batch,
        options=batch_options(config.training, config.parallel),
        num_steps=options.steps + WARM_UP_STEPS,
        seed=0,
        rank=data_parallel_rank(),
        ranks=data_parallel_size(),
        order=config.training.order,
    )
    seconds = []
    for step in range(options.steps + WARM_UP_STEPS):
        dist.barrier()
        started = time.perf_counter()
        policy.training_step(batches[step], step)
        synchronize()
        dist.barrier()
        seconds.append(time.perf_counter() - started)
    return seconds, policy.last_metrics["loss/total"]


def to_pair(number: int, row: dict[str, Any]) -> Any:
    from irpo_nemo.records import PreferencePair

    return PreferencePair(
        pair_id=str(number),
        problem_id=str(row["problem"]),
        prompt_token_ids=row["prompt"],
        chosen_id=f"{row['problem']}/{row['chosen_index']}",
        chosen_token_ids=row["chosen"],
        rejected_id=f"{row['problem']}/{row['rejected_index']}",
        rejected_token_ids=row["rejected"],
    )


def peak_gib() -> float:
    """Most memory so far: allocated on a GPU, resident on a CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_theirs(options: argparse.Namespace) -> tuple[list[float], float]:
    import torch
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

    vocab_size = SHAPES[options.model]["vocab_size"]
    words = {"[PAD]": 0, "[EOS]": EOS, "[UNK]": 2} | {f"w{i}": i for i in range(FIRST_TOKEN, vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]", pad_token="[PAD]")
    rows = make_pairs(options)[: options.batch * (options.steps + WARM_UP_STEPS)]

    def text(tokens: list[int]) -> str:
        return "".join(f" w{token}" for token in tokens if token != EOS)

    data = Dataset.from_list([{key: text(row[key]) for key in ("prompt", "chosen", "rejected")} for row in rows])
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronize()
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize()
            seconds.append(time.perf_counter() - self.started)

    has_cuda = torch.cuda.is_available()
    arguments = trl.DPOConfig(
        output_dir=str(options.folder / "trl"),
        beta=BETA,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, 1.0],
        per_device_train_batch_size=options.theirs_micro_batch,
        gradient_accumulation_steps=options.batch // options.theirs_micro_batch,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        learning_rate=LEARNING_RATE,
        max_length=None,
        max_steps=options.steps + WARM_UP_STEPS,
        bf16=has_cuda,
        use_cpu=not has_cuda,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=10**6,
        dataloader_num_workers=0,
    )
    trainer = trl.DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.folder),
        args=arguments,
        train_dataset=data,
        processing_class=fast,
        callbacks=[Clock()],
    )
    trainer.train()
    return seconds, mean_tokens(rows, options)


def mean_tokens(rows: list[dict[str, Any]], options: argparse.Namespace) -> float:
    total = sum(2 * len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"]) for row in rows)
    return total / len(rows) * options.batch


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
