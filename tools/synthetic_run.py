"""Make a run folder of any size without a model: real files, made-up completions. For benchmarks of the report.

    tools/synthetic_run.py runs/large                          the paper's size: 7,500 problems x 30 candidates x 4
    tools/synthetic_run.py runs/small --problems 100 --test-problems 50

The texts look like GSM8K's solutions: about 130 tokens, words with a long tail, many numbers, and now and then
something that a careless page would run or trip over.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from irpo_nemo.artifacts import (
    Manifest,
    part_path,
    read_parts,
    write_atomically,
    write_json,
    write_manifest,
    write_text,
)
from irpo_nemo.config_files import dump_config, load_config
from irpo_nemo.metrics import evaluate
from irpo_nemo.records import Candidate, GradedCandidate, PreferencePair, arrow_schema
from irpo_nemo.run_folder import IterationFolder, RunFolder

SYLLABLES = ["".join(letters) for letters in itertools.product("bdfgklmnprstvz", "aeiou")]
NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo", "Ina", "Jon", "Kim", "Leo", "Mia", "Noa"]
VERBS = ["buys", "sells", "finds", "loses", "packs", "counts", "paints", "bakes", "reads", "carries"]
ODD_ENDINGS = (
    "<script>document.title = 'broken'</script>",
    "</script><img src=x onerror=\"document.title = 'broken'\">",
    "a line\u2028separator, a paragraph\u2029separator and \u202eturned text",
    "所以答案是 \U0001f600 \\boxed{\\frac{1}{2}}",
    '"); irpo.add("train", "x',
)
VOCABULARY_SIZE = 40_000
PROBLEMS_PER_PART = 128


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is made."""

    problems: int
    candidates: int
    test_problems: int
    samples: int
    iterations: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class MadeProblem:
    """A problem, and how hard it is."""

    problem_id: str
    question: str
    gold: int
    difficulty: float


class Writer:
    """Makes up texts and verdicts, always the same ones."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.rng = np.random.default_rng(0)
        lengths = self.rng.integers(2, 5, VOCABULARY_SIZE)
        picks = self.rng.integers(0, len(SYLLABLES), (VOCABULARY_SIZE, 4))
        self.words = [
            "".join(SYLLABLES[pick] for pick in row[:n]) for row, n in zip(picks.tolist(), lengths, strict=True)
        ]

    def make_problems(self, prefix: str, count: int) -> list[MadeProblem]:
        numbers = self.rng.integers(2, 60, (count, 3)).tolist()
        difficulties = self.rng.normal(0, 1.6, count).tolist()
        return [
            MadeProblem(
                problem_id=f"{prefix}-{place}",
                question=self._make_question(place, a, b, c),
                gold=a * b - c,
                difficulty=difficulty,
            )
            for place, ((a, b, c), difficulty) in enumerate(zip(numbers, difficulties, strict=True))
        ]

    def _make_question(self, place: int, a: int, b: int, c: int) -> str:
        return (
            f"{NAMES[place % len(NAMES)]} {VERBS[place // 20 % 10]} {a} {self._word()} and {b} {self._word()} a day, "
            f"and gives {c} of them to a friend named {self._word().title()}. How many {self._word()} are left?"
        )

    def _word(self) -> str:
        """Words of low rank are frequent, as in a language."""
        return self.words[int(VOCABULARY_SIZE ** self.rng.random()) - 1]

    def write_split(self, folder: IterationFolder, split: str, problems: list[MadeProblem], skill: float) -> None:
        """Write the parts of samples and grades of one split."""
        count = self.sizes.candidates if split == "train" else self.sizes.samples
        kinds = [("sample", index) for index in range(count)]
        if split == "test":
            kinds.insert(0, ("greedy", 0))
        for number, start in enumerate(range(0, len(problems), PROBLEMS_PER_PART)):
            group = problems[start : start + PROBLEMS_PER_PART]
            rows = [row for problem in group for row in self._judge(problem, kinds, skill)]
            write_table(part_path(folder.samples(split), number), Candidate, self._sample_columns(rows, skill))
            names = [name for name in arrow_schema(GradedCandidate).names if not name.startswith("audit")]
            grades = {name: [row[name] for row in rows] for name in names}
            nothing = [None] * len(rows)
            write_table(
                part_path(folder.graded(split), number),
                GradedCandidate,
                {**grades, "audit_answer": nothing, "audit_verdict": nothing},
            )

    def _judge(self, problem: MadeProblem, kinds: list[tuple[str, int]], skill: float) -> Iterator[dict[str, Any]]:
        chance = 1 / (1 + math.exp(problem.difficulty - skill))
        draws = self.rng.random(len(kinds)).tolist()
        slips = self.rng.integers(1, 9, len(kinds)).tolist()
        first: dict[str | None, int] = {}
        for (kind, index), draw, slip in zip(kinds, draws, slips, strict=True):
            verdict = "correct" if draw < chance else "unparsable" if draw > 0.985 else "wrong"
            answer = {"correct": str(problem.gold), "unparsable": None, "wrong": str(problem.gold + slip)}[verdict]
            votes = kind == "sample" and answer is not None
            yield {
                "candidate_id": f"{problem.problem_id}/{kind}/{index}",
                "problem_id": problem.problem_id,
                "kind": kind,
                "index": index,
                "gold_answer": str(problem.gold),
                "answer": answer,
                "verdict": verdict,
                "layer": "final_answer" if answer is not None else "no_answer",
                "answer_class": first.setdefault(answer, index) if votes else None,
            }

    def _sample_columns(self, rows: list[dict[str, Any]], skill: float) -> dict[str, Any]:
        texts = self._make_texts(rows)
        sizes = np.array([len(text) // 4 + 1 for text in texts])
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        tokens = self.rng.integers(3, 32000, offsets[-1], dtype=np.int32)
        finish = ["length" if row["answer"] is None else "stop" for row in rows]
        return {
            **{name: [row[name] for row in rows] for name in ("candidate_id", "problem_id", "kind", "index")},
            "prompt_token_ids": [[1, 2, 3]] * len(rows),
            "token_ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens)),
            "text": texts,
            "finish_reason": finish,
            "model_hash": [f"made-{skill}"] * len(rows),
        }

    def _make_texts(self, rows: list[dict[str, Any]]) -> list[str]:
        steps = self.rng.integers(3, 8, len(rows)).tolist()
        total = sum(steps)
        ranks = (VOCABULARY_SIZE ** self.rng.random((total, 3))).astype(int).tolist()
        numbers = self.rng.integers(2, 400, (total, 2)).tolist()
        odd = (self.rng.random(len(rows)) < 0.01).tolist()
        texts, at = [], 0
        for place, (row, count) in enumerate(zip(rows, steps, strict=True)):
            lines = []
            for step in range(count):
                (x, y, z), (a, b) = ranks[at], numbers[at]
                at += 1
                w = self.words
                lines.append(
                    f"Step {step + 1}: {NAMES[a % len(NAMES)]} {VERBS[b % 10]} {a} {w[x - 1]} and {b} {w[y - 1]} of "
                    f"the {w[z - 1]}, so there are {a} + {b} = {a + b} of them."
                )
            if odd[place]:
                lines.append(ODD_ENDINGS[place % len(ODD_ENDINGS)])
            lines.append(f"Final answer: {row['answer']}" if row["answer"] is not None else "And so on and so")
            texts.append("\n".join(lines))
        return texts


def write_table(path: Path, record_type: type, columns: dict[str, Any]) -> None:
    schema = arrow_schema(record_type)
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def write_pairs(folder: IterationFolder, max_per_problem: int) -> dict[str, Any]:
    """Pair winners with losers as the paper does; token ids are left out."""
    sides: dict[str, tuple[list[str], list[str]]] = {}
    for path in sorted(folder.graded("train").glob("part-*")):
        table = pq.read_table(path, columns=["problem_id", "candidate_id", "verdict"])
        for problem_id, candidate_id, verdict in zip(*(c.to_pylist() for c in table.columns), strict=True):
            sides.setdefault(problem_id, ([], []))[verdict != "correct"].append(candidate_id)
    rows = [
        (problem_id, winners[k % len(winners)], losers[k % len(losers)])
        for problem_id, (winners, losers) in sides.items()
        for k in range(max_per_problem * bool(winners and losers))
    ]
    empty: list[list[int]] = [[]] * len(rows)
    columns = {
        "pair_id": [f"{row[0]}/{place}" for place, row in enumerate(rows)],
        "problem_id": [row[0] for row in rows],
        "chosen_id": [row[1] for row in rows],
        "rejected_id": [row[2] for row in rows],
        "prompt_token_ids": empty,
        "chosen_token_ids": empty,
        "rejected_token_ids": empty,
    }
    write_table(folder.pairs, PreferencePair, columns)
    without = {
        "no_winner": sum(not winners for winners, _ in sides.values()),
        "no_loser": sum(not losers for _, losers in sides.values()),
    }
    return {
        "num_problems": len(sides),
        "num_problems_with_pairs": len(sides) - sum(without.values()),
        "num_problems_without_pairs": without,
        "num_pairs": len(rows),
        "winners_per_problem": count_sizes([len(winners) for winners, _ in sides.values()]),
        "losers_per_problem": count_sizes([len(losers) for _, losers in sides.values()]),
    }


def count_sizes(sizes: list[int]) -> dict[str, int]:
    return {str(size): sizes.count(size) for size in sorted(set(sizes))}


def write_metrics(path: Path, steps: int, rng: np.random.Generator) -> None:
    """Curves in the shape of the paper's: chosen rises a little, rejected falls."""
    lines = []
    for step in range(steps):
        gone, noise = step / steps, rng.normal(0, 1, 4).tolist()
        margin = 3 * (1 - math.exp(-4 * gone)) + 0.3 * noise[0] * (step > 0)
        chosen, rejected = -52 + 9 * gone + 3 * noise[1], -58 - 60 * gone + 4 * noise[2]
        dpo = math.log1p(math.exp(-margin))
        lines.append(
            {
                "step": step,
                "loss/total": dpo - chosen / 130,
                "loss/dpo": dpo,
                "loss/nll": -chosen / 130,
                "reward/margin": margin,
                "reward/accuracy": min(1.0, 0.5 * (step > 0) + 0.45 * (1 - math.exp(-5 * gone))),
                "logprob/chosen": chosen,
                "logprob/rejected": rejected,
                "logprob_per_token/chosen": chosen / 130,
                "logprob_per_token/rejected": rejected / 130,
                "grad_norm": 4 + abs(noise[3]),
                "learning_rate": 7e-7,
                "tokens_per_second": 52_000 + 900 * noise[3],
                "pairs_per_second": 110.0,
            }
        )
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def write_stage(folder: IterationFolder, stage: str, counts: dict[str, Any], seconds: dict[str, float]) -> None:
    manifest = Manifest(
        stage=stage,
        iteration=0,
        settings={},
        inputs={},
        outputs={},
        counts={**counts, "devices": {"cpu": 96, "gpu": 8}},
        seconds=seconds,
    )
    write_manifest(folder.manifest(stage), manifest)


def make_run(root: Path, sizes: Sizes) -> None:
    """Write the whole run folder."""
    writer = Writer(sizes)
    problems = {
        "train": writer.make_problems("train", sizes.problems),
        "test": writer.make_problems("test", sizes.test_problems),
    }
    settings = [f"run_root={root.parent.resolve()}", f"name={root.name}", "model.path=/models/made-up"]
    settings += [f"num_iterations={sizes.iterations}", f"sampling.num_candidates={sizes.candidates}"]
    settings += [f"task.{split}_path={root.resolve()}/{split}.jsonl" for split in problems]
    folder = RunFolder(root)
    for split, made in problems.items():
        rows = [{"id": p.problem_id, "question": p.question, "answer": str(p.gold)} for p in made]
        write_text(root / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_text(folder.config, dump_config(load_config("jsonl", [*settings, "task.grader=numeric"])))
    for t in range(sizes.iterations + 1):
        make_iteration(
            writer, folder.iteration(t), problems, skill=0.3 + 1.5 * (1 - 0.55**t), is_last=t == sizes.iterations
        )
        print(f"iteration {t} is made", flush=True)


def make_iteration(
    writer: Writer, folder: IterationFolder, problems: dict[str, list[MadeProblem]], *, skill: float, is_last: bool
) -> None:
    splits = ("test",) if is_last else ("train", "test")
    for split in splits:
        writer.write_split(folder, split, problems[split], skill)
    write_json(folder.evaluation, evaluate(read_parts(folder.graded("test"), GradedCandidate)).to_json())
    num_completions = sum(len(problems[split]) for split in splits) * writer.sizes.candidates
    counts = {split: {"completions": len(problems[split]) * writer.sizes.candidates, "spared": 0} for split in splits}
    write_stage(folder, "sample", {"tokens": 130 * num_completions, "splits": counts}, {"total": 2400.0})
    write_stage(folder, "grade", {"verdicts": {}}, {"total": 95.0})
    if is_last:
        return
    pairs = write_pairs(folder, 10)
    write_json(folder.pairs_summary, pairs)
    write_stage(folder, "pair", pairs, {"total": 20.0})
    write_metrics(folder.train.metrics, writer.sizes.steps, writer.rng)
    seconds = {"reference": 180.0, "train": 7200.0, "export": 60.0, "total": 7500.0}
    write_stage(folder, "train", {"steps": writer.sizes.steps}, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--problems", type=int, default=7500)
    parser.add_argument("--candidates", type=int, default=30)
    parser.add_argument("--test-problems", type=int, default=1319)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5000)
    parsed = vars(parser.parse_args())
    make_run(parsed.pop("run_folder"), Sizes(**parsed))


if __name__ == "__main__":
    main()
