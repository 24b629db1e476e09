"""All that the candidates of one split depend on beside the problems."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from irpo_nemo.config import IRPOConfig
from irpo_nemo.sampling.rounds import StopRule

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """Kept beside the parts, and compared with before any is added."""

    model_hash: str
    iteration: int
    split: Split
    seed: int
    num_greedy: int
    num_samples: int
    gold_solutions: bool
    temperature: float
    top_p: float
    max_new_tokens: int
    problems_per_part: int
    chat_template: str
    stop_rule: StopRule | None
    """Where candidates are drawn in rounds."""

    @property
    def completions_per_problem(self) -> int:
        return self.num_greedy + self.num_samples

    @classmethod
    def of(cls, config: IRPOConfig, *, iteration: int, split: Split, model_hash: str) -> "SplitSettings":
        """The settings of one split of an iteration."""
        is_train = split == "train"
        return cls(
            model_hash=model_hash,
            iteration=iteration,
            split=split,
            seed=config.seed,
            num_greedy=0 if is_train else 1,
            num_samples=config.sampling.num_candidates if is_train else config.evaluation.num_samples,
            gold_solutions=is_train and config.pairing.gold_solutions,
            temperature=config.temperature_of(iteration) if is_train else config.evaluation.temperature,
            top_p=config.sampling.top_p if is_train else config.evaluation.top_p,
            max_new_tokens=config.sampling.max_new_tokens,
            problems_per_part=config.sampler.problems_per_part,
            chat_template=config.task.chat_template,
            stop_rule=_stop_rule(config) if is_train else None,
        )


def _stop_rule(config: IRPOConfig) -> StopRule | None:
    if config.sampling.round_size is None:
        return None
    return StopRule(
        round_size=config.sampling.round_size,
        enough=config.sampling.enough_per_side or config.pairing.num_pairs_per_problem,
        unparsable_loses=config.pairing.unparsable == "loser",
    )


def derive_seed(settings: SplitSettings, candidate_id: str) -> int:
    """A seed for one candidate, below 2^64: different candidates, splits and iterations get unrelated ones."""
    identity = f"{settings.seed}\0{settings.iteration}\0{settings.split}\0{candidate_id}"
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
