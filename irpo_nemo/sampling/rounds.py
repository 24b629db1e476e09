"""Draw training candidates in rounds, and stop for a problem that has enough distinct winners and losers.

A candidate's seed does not depend on rounds, so what is drawn is what would have been drawn first without them. The
rule looks at verdicts, so problems that the model finds half easy get fewer candidates than others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from irpo_nemo.records import Candidate, Problem, Verdict
from irpo_nemo.sampling.sampler import Completion, SamplingRequest

Judge = Callable[[Sequence[tuple[Problem, str]]], Sequence[Verdict]]
"""Gives the verdict on each completion's text; called from several threads."""

TokenIds = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class StopRule:
    """When a problem has enough."""

    round_size: int
    """Candidates of each problem that are drawn before the rule is asked again."""
    enough: int
    """Distinct winners, and distinct losers, at which it stops."""
    unparsable_loses: bool


@dataclass
class _Sides:
    winners: set[TokenIds] = field(default_factory=set)
    losers: set[TokenIds] = field(default_factory=set)

    def add(self, completion: Completion, verdict: Verdict, rule: StopRule) -> None:
        if completion.finish_reason == "failed" or verdict == "error":
            return
        if verdict == "correct":
            self.winners.add(tuple(completion.token_ids))
        elif verdict == "wrong" or rule.unparsable_loses:
            self.losers.add(tuple(completion.token_ids))

    def are_full(self, rule: StopRule) -> bool:
        return min(len(self.winners), len(self.losers)) >= rule.enough


def draw_in_rounds(
    generate: Callable[[Sequence[SamplingRequest]], list[Completion]],
    requests: Sequence[SamplingRequest],
    problems: Mapping[str, Problem],
    *,
    rule: StopRule,
    judge: Judge,
    golds: Mapping[str, Candidate],
) -> dict[str, Completion]:
    """Draw the requests of each problem in their order until it has enough; return completions by candidate id.

    Args:
        generate: Of a sampler.
        requests: All that may be drawn.
        problems: By id.
        rule: When to stop.
        judge: Of completions.
        golds: Worked solutions that join the winners, by problem.
    """
    sides = {problem_id: _Sides() for problem_id in problems}
    for problem_id, gold in golds.items():
        sides[problem_id].winners.add(tuple(gold.token_ids))
    completions: dict[str, Completion] = {}
    for round_requests in _rounds(requests, rule.round_size):
        wanted = [request for request in round_requests if not sides[request.problem_id].are_full(rule)]
        if not wanted:
            break
        drawn = generate(wanted)
        items = [(problems[request.problem_id], made.text) for request, made in zip(wanted, drawn, strict=True)]
        for request, completion, verdict in zip(wanted, drawn, judge(items), strict=True):
            completions[request.candidate_id] = completion
            sides[request.problem_id].add(completion, verdict, rule)
    return completions


def _rounds(requests: Sequence[SamplingRequest], round_size: int) -> Iterator[list[SamplingRequest]]:
    last = max(request.index for request in requests)
    for start in range(0, last + 1, round_size):
        yield [request for request in requests if start <= request.index < start + round_size]


def could_have_stopped(requests: Sequence[SamplingRequest], found: Mapping[str, object], *, round_size: int) -> bool:
    """Whether the candidates `found`, by id, may be what rounds have left: of each problem the first, up to a round's
    end."""
    missing = [request for request in requests if request.candidate_id not in found]
    first_missing: dict[str, int] = {}
    for request in missing:
        first_missing.setdefault(request.problem_id, request.index)
    return all(first > 0 and first % round_size == 0 for first in first_missing.values()) and all(
        request.candidate_id not in found
        for request in requests
        if request.index >= first_missing.get(request.problem_id, request.index + 1)
    )
