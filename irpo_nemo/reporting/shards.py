"""report/data/: what the browser of problems reads, in files that a page opened from disk may load.

A page under file:// may not fetch, but it may run scripts. So each file is a script of one call,
`irpo.add("<name>", "<base64 of deflated JSON>")`, whose alphabet leaves nothing to escape, and the page asks for the
few that it needs:

    <split>.js               for lists and filters: ids, beginnings of questions, counts of verdicts by model
    <split>-0000.js ...      for a problem: question, every candidate with its text and verdict, pairs
    <split>-words-0000.js .. for the search: see `words`

Written problem by problem; what is held is one part of each iteration, the search index, and the counts.
"""

import base64
import itertools
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from irpo_nemo.artifacts import TEMPORARY_SUFFIX, explain_os_errors, publish_folder
from irpo_nemo.config import IRPOConfig
from irpo_nemo.records import Problem, Verdict
from irpo_nemo.reporting.candidates import JudgedProblem, Pair, read_pairs, read_problems
from irpo_nemo.reporting.questions import Questions
from irpo_nemo.reporting.results import SPLITS
from irpo_nemo.reporting.words import QUESTION, WordIndex, bit_of
from irpo_nemo.run_folder import IterationFolder, RunFolder

VERDICTS: tuple[str, ...] = get_args(Verdict)

_SHARD_CHARACTERS = 1_000_000
"""Of completions in one file of problems."""
_SHARD_NUMBERS = 200_000
"""Of postings in one file of words."""
_HEAD_CHARACTERS = 110
"""Of a question in the list."""
_COMPRESSION = 4


@dataclass(kw_only=True)
class _Index:
    """What the page needs of every problem at once; lists of one value per problem, in their order."""

    models: list[int]
    ids: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    greedy: list[list[int]] = field(default_factory=list)
    """By model: place of the greedy completion's verdict in VERDICTS, -1 without one."""
    counts: list[list[list[int]]] = field(default_factory=list)
    """By model and verdict: number of samples with it."""
    pairs: list[list[int]] = field(default_factory=list)
    """By model: number of pairs made."""
    shards: list[int] = field(default_factory=list)
    """Place of each shard's first problem."""
    word_shards: list[str] = field(default_factory=list)
    """First word of each shard of words."""

    @classmethod
    def of(cls, models: list[int]) -> "_Index":
        return cls(
            models=models,
            greedy=[[] for _ in models],
            counts=[[[] for _ in VERDICTS] for _ in models],
            pairs=[[] for _ in models],
        )


def write_shards(folder: RunFolder, config: IRPOConfig, iterations: Sequence[int]) -> list[str]:
    """Write report/data anew from the iterations that are graded; the splits that have problems."""
    temporary = folder.page_data.with_name(f".{folder.page_data.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with explain_os_errors(folder.page_data):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        splits = [split for split in SPLITS if _write_split(temporary, folder, config, iterations, split)]
        publish_folder(temporary, folder.page_data)
    return splits


def _write_split(target: Path, folder: RunFolder, config: IRPOConfig, iterations: Sequence[int], split: str) -> bool:
    """Write one split's files; False when no model has graded problems of it."""
    folders = {t: folder.iteration(t) for t in iterations if any(folder.iteration(t).graded(split).glob("part-*"))}
    if not folders:
        return False
    questions = Questions(config, split)
    pairs = {t: read_pairs(iteration) if split == "train" else {} for t, iteration in folders.items()}
    index = _Index.of(list(folders))
    words = WordIndex()
    shard: list[dict[str, Any]] = []
    size = 0
    for problem_id, judged in _merge(folders, split):
        if size >= _SHARD_CHARACTERS:
            _write_problems(target, split, index, shard)
            shard, size = [], 0
        made = {t: pairs[t].get(problem_id, []) for t in judged}
        words.add(len(index.ids), _find_texts(questions, problem_id, judged))
        _add_to_index(index, problem_id, questions.problems.get(problem_id), judged, made)
        shard.append(_describe_problem(problem_id, questions, judged, made))
        size += sum(len(candidate.text) for problem in judged.values() for candidate in problem.candidates)
    _write_problems(target, split, index, shard)
    for number, (found, postings) in enumerate(words.pop_shards(_SHARD_NUMBERS)):
        index.word_shards.append(found[0])
        _write_script(target, f"{split}-words-{number:04d}", [found, postings])
    _write_script(
        target,
        split,
        {**vars(index), "verdicts": VERDICTS, "prompt_before": questions.before, "prompt_after": questions.after},
    )
    return True


def _write_problems(target: Path, split: str, index: _Index, shard: list[dict[str, Any]]) -> None:
    number = len(index.shards)
    index.shards.append(len(index.ids) - len(shard))
    _write_script(target, f"{split}-{number:04d}", shard)


def _write_script(target: Path, name: str, value: Any) -> None:
    data = zlib.compress(json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode(), _COMPRESSION)
    (target / f"{name}.js").write_text(f'irpo.add("{name}","{base64.b64encode(data).decode()}")\n', encoding="ascii")


def _find_texts(
    questions: Questions, problem_id: str, judged: Mapping[int, JudgedProblem]
) -> Iterator[tuple[int, str]]:
    """What the search finds a problem by, each text with its bit."""
    if (problem := questions.problems.get(problem_id)) is not None:
        prompt = questions.own_prompt(problem_id) or ""
        yield QUESTION, "\n".join((problem.question, prompt, problem.solution or "", problem.gold_answer))
    for t, of_model in judged.items():
        yield bit_of(t), "\n".join(candidate.text for candidate in of_model.candidates)


def _merge(folders: Mapping[int, IterationFolder], split: str) -> Iterator[tuple[str, dict[int, JudgedProblem]]]:
    """Yield each problem with what each model made of it, in the order of the first model that has it.

    The models have the same problems in the same order, so nothing waits; where one has more or others, they wait
    until their turn.
    """
    streams = {t: read_problems(folder, split) for t, folder in folders.items()}
    waiting: dict[int, dict[str, JudgedProblem]] = {t: {} for t in folders}
    for first, stream in streams.items():
        for problem in itertools.chain(list(waiting[first].values()), stream):
            waiting[first].pop(problem.problem_id, None)
            others = {t: _take(streams[t], waiting[t], problem.problem_id) for t in folders if t > first}
            found = {first: problem, **{t: other for t, other in others.items() if other is not None}}
            yield problem.problem_id, found


def _take(stream: Iterator[JudgedProblem], waiting: dict[str, JudgedProblem], problem_id: str) -> JudgedProblem | None:
    if problem_id in waiting:
        return waiting.pop(problem_id)
    for problem in stream:
        if problem.problem_id == problem_id:
            return problem
        waiting[problem.problem_id] = problem
    return None


def _add_to_index(
    index: _Index,
    problem_id: str,
    problem: Problem | None,
    judged: Mapping[int, JudgedProblem],
    pairs: Mapping[int, Sequence[Pair]],
) -> None:
    index.ids.append(problem_id)
    index.heads.append(_begin(problem.question) if problem else "")
    for place, t in enumerate(index.models):
        candidates = judged[t].candidates if t in judged else []
        greedy = [VERDICTS.index(candidate.verdict) for candidate in candidates if candidate.kind == "greedy"]
        sampled = Counter(candidate.verdict for candidate in candidates if candidate.kind == "sample")
        index.greedy[place].append(greedy[0] if greedy else -1)
        index.pairs[place].append(len(pairs.get(t, ())))
        for column, verdict in zip(index.counts[place], VERDICTS, strict=True):
            column.append(sampled[verdict])  # type: ignore[index]


def _begin(question: str) -> str:
    """The question on one line, as far as the list shows it."""
    text = " ".join(question[: 4 * _HEAD_CHARACTERS].split())
    return text if len(text) <= _HEAD_CHARACTERS else f"{text[: _HEAD_CHARACTERS - 1].rstrip()}…"


def _describe_problem(
    problem_id: str,
    questions: Questions,
    judged: Mapping[int, JudgedProblem],
    pairs: Mapping[int, Sequence[Pair]],
) -> dict[str, Any]:
    problem = questions.problems.get(problem_id)
    return {
        "id": problem_id,
        "question": problem.question if problem else None,
        "solution": problem.solution if problem else None,
        "prompt": questions.own_prompt(problem_id),
        "gold": next(iter(judged.values())).gold_answer,
        "models": {
            str(t): {"candidates": _describe_candidates(of_model), "pairs": pairs.get(t, [])}
            for t, of_model in judged.items()
        },
    }


def _describe_candidates(problem: JudgedProblem) -> list[list[Any]]:
    return [
        [
            candidate.kind,
            candidate.index,
            candidate.verdict,
            candidate.layer,
            candidate.answer,
            candidate.audit_verdict,
            candidate.finish_reason,
            candidate.num_tokens,
            candidate.text,
        ]
        for candidate in problem.candidates
    ]
