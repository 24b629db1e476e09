"""What sampling came to, in numbers for the manifest."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from irpo_nemo.records import Candidate


@dataclass(kw_only=True)
class SamplingCounts:
    """What one split came to, finished parts of an earlier start included."""

    problems: int = 0
    completions: int = 0
    """Sampled and greedy; gold solutions are not counted."""
    tokens: int = 0
    truncated: int = 0
    """Completions that ran out of tokens."""
    duplicates: int = 0
    """Samples with the token ids of an earlier one of their problem."""
    failed: int = 0
    """Completions that the sampler could not draw."""
    spared: int = 0
    """Completions that were not drawn, because their problem had enough winners and losers."""
    completions_resumed: int = 0
    """Completions of parts that were there already."""
    tokens_resumed: int = 0
    seconds: float = 0.0
    """Spent on the parts that were not there already."""

    @property
    def truncated_share(self) -> float:
        return self.truncated / self.completions if self.completions else 0.0

    @property
    def tokens_per_second(self) -> float:
        return (self.tokens - self.tokens_resumed) / self.seconds if self.seconds else 0.0

    def add(self, candidates: Sequence[Candidate], *, num_wanted: int, resumed: bool) -> None:
        """Count one part, which could have had `num_wanted` completions."""
        drawn = [candidate for candidate in candidates if candidate.kind != "gold"]
        tokens = sum(len(candidate.token_ids) for candidate in drawn)
        self.problems += len({candidate.problem_id for candidate in candidates})
        self.completions += len(drawn)
        self.spared += num_wanted - len(drawn)
        self.tokens += tokens
        self.truncated += sum(candidate.finish_reason == "length" for candidate in drawn)
        self.failed += sum(candidate.finish_reason == "failed" for candidate in drawn)
        self.duplicates += count_duplicates(candidates)
        if resumed:
            self.completions_resumed += len(drawn)
            self.tokens_resumed += tokens


def count_duplicates(candidates: Iterable[Candidate]) -> int:
    """Samples whose token ids another sample of the same problem had first."""
    samples = [candidate for candidate in candidates if candidate.kind == "sample" and candidate.token_ids]
    return len(samples) - len({(candidate.problem_id, tuple(candidate.token_ids)) for candidate in samples})
