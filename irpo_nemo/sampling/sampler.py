"""What a sampler is: prompts in, completions out. Knows no tasks, iterations or files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from irpo_nemo.records import CandidateKind, FinishReason


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """One completion to draw."""

    candidate_id: str
    problem_id: str
    kind: CandidateKind
    index: int
    prompt_token_ids: list[int]
    temperature: float
    """0 for greedy decoding."""
    top_p: float
    max_new_tokens: int
    """End-of-sequence token included."""
    seed: int
    """Of this completion alone: what else is sampled beside it does not change it."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What a sampler gives for one request."""

    token_ids: list[int]
    """With the end-of-sequence token when finish_reason is "stop"."""
    text: str
    """Without special tokens."""
    finish_reason: FinishReason
    failure: str | None = None
    """Why there is none, when finish_reason is "failed"."""

    @classmethod
    def failed(cls, reason: str) -> "Completion":
        """What stands for a completion that could not be drawn."""
        return cls(token_ids=[], text="", finish_reason="failed", failure=reason)


class Sampler(Protocol):
    """An engine that holds one model, or several, or a way to a server that does."""

    window: int
    """Completions that it draws at once over all calls of `generate`, which may then come from several threads.
    0: it wants one call at a time."""
    honours_seeds: bool
    """Whether a request drawn again gives the same completion."""

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Draw one completion for each request, in their order.

        Raises:
            ConfigError: A prompt and its completion do not fit the model's positions.
            MachineError: The device's memory does not suffice, or an engine or server is gone for good.
        """

    def close(self) -> None:
        """Free the device's memory; the sampler is of no use afterwards."""
