"""Preference pairs from graded candidates (paper, section 2).

The winners of a problem are its correct candidates, the losers its wrong ones, both in sampling order. The paper
iterates over both lists at once, each restarting at its end, until there are K pairs:

    pair k = (winners[k mod W], losers[k mod L])      k = 0 .. K-1

and ignores a problem without winners or without losers. Works problem by problem; knows no files and no models.
"""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from irpo_nemo.config import PairingConfig
from irpo_nemo.errors import ArtifactError
from irpo_nemo.records import Candidate, GradedCandidate, PreferencePair

Key = TypeVar("Key")

NoPairsReason = Literal["no_winner", "no_loser", "no_candidates", "all_too_long"]
"""Why a problem gave no pair; no_candidates: all failed in the grader, are disputed, or were dropped as
unparsable."""


@dataclass(kw_only=True)
class PairingSummary:
    """What became of the problems and candidates of one iteration."""

    num_problems: int = 0
    num_problems_with_pairs: int = 0
    """Before max_pairs."""
    num_problems_without_pairs: dict[NoPairsReason, int] = field(default_factory=dict)
    """By reason."""
    num_pairs: int = 0
    """What training gets."""
    num_pairs_too_long: int = 0
    """Left out because prompt + completion of one side exceeds max_sequence_length."""
    num_pairs_subsampled_away: int = 0
    """Left out by max_pairs."""
    num_duplicates_dropped: int = 0
    """Candidates, with drop_duplicates."""
    num_unparsable_dropped: int = 0
    """Candidates, with unparsable=drop."""
    num_grader_errors: int = 0
    """Candidates that the grader failed on; they join neither side."""
    num_disputed: int = 0
    """Candidates that the grader and its auditor judge differently; they join neither side."""
    num_gold_refused: int = 0
    """Gold candidates that the grader did not find correct; they join neither side."""
    winners_per_problem: dict[int, int] = field(default_factory=dict)
    """Number of winners -> number of problems."""
    losers_per_problem: dict[int, int] = field(default_factory=dict)
    """Number of losers -> number of problems."""


@dataclass(frozen=True, kw_only=True)
class PairingResult:
    """The pairs, in the order of the problems, and what was left out."""

    pairs: list[PreferencePair]
    summary: PairingSummary


@dataclass(kw_only=True)
class _Sides:
    """The two lists of one problem."""

    winners: list[Candidate] = field(default_factory=list)
    losers: list[Candidate] = field(default_factory=list)


def make_pairs(
    candidates: Iterable[Candidate], grades: Iterable[GradedCandidate], config: PairingConfig, *, seed: int
) -> PairingResult:
    """Pair correct with wrong candidates, problem by problem.

    Samples take part, and with `gold_solutions` the gold candidates too, which join the END of the winners; greedy
    candidates do not. Over-long pairs are left out after pairing, so they use up their place among the K.

    Args:
        candidates: With the candidates of a problem next to each other.
        grades: One for each candidate, with the problems in the same order.
        seed: Of the subsample that `max_pairs` draws; which pairs stay depends on it alone, and their order is kept.

    Raises:
        ArtifactError: Candidates and grades do not belong together.
    """
    summary = PairingSummary()
    pairs: list[PreferencePair] = []
    for problem_id, graded in _join(candidates, grades):
        sides = _take_sides(graded, config, summary)
        all_pairs = _pair_up(problem_id, sides, config)
        fitting = [pair for pair in all_pairs if _length(pair) <= config.max_sequence_length]
        summary.num_pairs_too_long += len(all_pairs) - len(fitting)
        _count_problem(sides, bool(fitting), summary)
        pairs += fitting
    summary.winners_per_problem = dict(sorted(summary.winners_per_problem.items()))
    summary.losers_per_problem = dict(sorted(summary.losers_per_problem.items()))
    return _limit(pairs, summary, config, seed)


def take_pairs(pairs: Sequence[PreferencePair], config: PairingConfig, *, seed: int) -> PairingResult:
    """Pairs that were made elsewhere, within `max_sequence_length` and `max_pairs`."""
    fitting = [pair for pair in pairs if _length(pair) <= config.max_sequence_length]
    problems, with_pairs = ({pair.problem_id for pair in some} for some in (pairs, fitting))
    summary = PairingSummary(
        num_problems=len(problems),
        num_problems_with_pairs=len(with_pairs),
        num_problems_without_pairs={"all_too_long": len(problems - with_pairs)} if problems - with_pairs else {},
        num_pairs_too_long=len(pairs) - len(fitting),
    )
    return _limit(fitting, summary, config, seed)


def _limit(pairs: list[PreferencePair], summary: PairingSummary, config: PairingConfig, seed: int) -> PairingResult:
    kept = _subsample(pairs, config.max_pairs, seed)
    summary.num_pairs = len(kept)
    summary.num_pairs_subsampled_away = len(pairs) - len(kept)
    return PairingResult(pairs=kept, summary=summary)


def _join(
    candidates: Iterable[Candidate], grades: Iterable[GradedCandidate]
) -> Iterator[tuple[str, list[tuple[Candidate, GradedCandidate]]]]:
    """Yield each problem with its candidates, each beside its grade."""
    by_problem = itertools.groupby(candidates, key=lambda candidate: candidate.problem_id)
    grades_by_problem = itertools.groupby(grades, key=lambda grade: grade.problem_id)
    seen: set[str] = set()
    for sampled, graded in itertools.zip_longest(by_problem, grades_by_problem):
        problem_id, members = (sampled[0], list(sampled[1])) if sampled else ("nothing", [])
        graded_id, grade_of = (
            (graded[0], {grade.candidate_id: grade for grade in graded[1]}) if graded else ("nothing", {})
        )
        if problem_id != graded_id:
            raise ArtifactError(
                f"graded candidates: found problem {graded_id} where {problem_id} is wanted; they are not of these "
                "samples. Delete the iteration's graded folder and run `irpo run` again."
            )
        if problem_id in seen:
            raise ArtifactError(
                f"candidates: those of problem {problem_id} are not next to each other. "
                "Delete the iteration's samples folder and run `irpo run` again."
            )
        seen.add(problem_id)
        missing = [member.candidate_id for member in members if member.candidate_id not in grade_of]
        if missing:
            raise ArtifactError(
                f"graded candidates: none for {missing[0]}; the stage that grades did not finish. "
                "Delete the iteration's graded folder and run `irpo run` again."
            )
        yield problem_id, [(member, grade_of[member.candidate_id]) for member in members]


def _take_sides(
    graded: Sequence[tuple[Candidate, GradedCandidate]], config: PairingConfig, summary: PairingSummary
) -> _Sides:
    """Sort the candidates of a problem into winners and losers; count those that are neither."""
    sides = _Sides()
    kinds = ("sample", "gold") if config.gold_solutions else ("sample",)
    for kind, candidate, grade in [
        (kind, candidate, grade) for kind in kinds for candidate, grade in graded if candidate.kind == kind
    ]:
        if grade.is_disputed:
            summary.num_disputed += 1
        elif grade.verdict == "correct":
            sides.winners.append(candidate)
        elif kind == "gold":
            summary.num_gold_refused += 1
        elif grade.verdict == "error":
            summary.num_grader_errors += 1
        elif grade.verdict == "unparsable" and config.unparsable == "drop":
            summary.num_unparsable_dropped += 1
        else:
            sides.losers.append(candidate)
    if not config.drop_duplicates:
        return sides
    distinct = _Sides(winners=_drop_duplicates(sides.winners), losers=_drop_duplicates(sides.losers))
    for before, after in ((sides.winners, distinct.winners), (sides.losers, distinct.losers)):
        summary.num_duplicates_dropped += len(before) - len(after)
    return distinct


def _drop_duplicates(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The first candidate with each sequence of token ids."""
    first: dict[tuple[int, ...], Candidate] = {}
    for candidate in candidates:
        first.setdefault(tuple(candidate.token_ids), candidate)
    return list(first.values())


def _pair_up(problem_id: str, sides: _Sides, config: PairingConfig) -> list[PreferencePair]:
    if not sides.winners or not sides.losers:
        return []
    count = config.num_pairs_per_problem
    if config.cap == "losers":
        count = min(count, len(sides.losers))
    chosen_and_rejected = zip(itertools.cycle(sides.winners), itertools.cycle(sides.losers), strict=False)
    return [
        PreferencePair(
            pair_id=f"{problem_id}/{number}",
            problem_id=problem_id,
            prompt_token_ids=chosen.prompt_token_ids,
            chosen_id=chosen.candidate_id,
            chosen_token_ids=chosen.token_ids,
            rejected_id=rejected.candidate_id,
            rejected_token_ids=rejected.token_ids,
        )
        for number, (chosen, rejected) in enumerate(itertools.islice(chosen_and_rejected, count))
    ]


def _length(pair: PreferencePair) -> int:
    """Tokens of the longer of the two sequences."""
    return len(pair.prompt_token_ids) + max(len(pair.chosen_token_ids), len(pair.rejected_token_ids))


def _count_problem(sides: _Sides, has_pairs: bool, summary: PairingSummary) -> None:
    summary.num_problems += 1
    _count(summary.winners_per_problem, len(sides.winners))
    _count(summary.losers_per_problem, len(sides.losers))
    if has_pairs:
        summary.num_problems_with_pairs += 1
    else:
        _count(summary.num_problems_without_pairs, _reason(sides))


def _count(table: dict[Key, int], key: Key) -> None:
    table[key] = table.get(key, 0) + 1


def _reason(sides: _Sides) -> NoPairsReason:
    if sides.winners and sides.losers:
        return "all_too_long"
    if sides.losers:
        return "no_winner"
    return "no_loser" if sides.winners else "no_candidates"


def _subsample(pairs: list[PreferencePair], max_pairs: int | None, seed: int) -> list[PreferencePair]:
    """A random choice of `max_pairs` pairs, in their order."""
    if max_pairs is None or len(pairs) <= max_pairs:
        return pairs
    chosen = random.Random(f"{seed}/pairs").sample(range(len(pairs)), max_pairs)
    return [pairs[index] for index in sorted(chosen)]
