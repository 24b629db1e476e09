"""How fast each part was drawn and what it is made of: a small JSON file a part, for people and for `irpo status`.

The files stand beside the folder of the parts, whose digest must not depend on times. A file is written before its
part, so every part has one, whichever shard on whatever machine has drawn it. The grade stage adds what it finds.
"""

import dataclasses
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from irpo_nemo.artifacts import list_parts, read_json, write_json
from irpo_nemo.grading.pool import count_cores
from irpo_nemo.records import Candidate, GradedCandidate
from irpo_nemo.sampling.counts import SamplingCounts
from irpo_nemo.sampling.gpus import list_gpus

_RECENT_PARTS = 32

_THIS_START = uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True)
class PartStatistics:
    """Of one part; gold solutions are not counted."""

    problems: int
    completions: int
    spared: int
    """Completions that rounds have left out."""
    failed: int
    duplicates: int
    truncated_share: float
    unparsable_share: float | None = None
    """Of the completions, those without a readable answer; None until they are graded."""
    tokens: int
    seconds: float
    finished_at: float
    """Seconds since 1970, on the clock of the machine that drew it."""
    tokens_per_second: float
    problems_per_second: float
    start: str = ""
    """The process that drew it: a start of the stage, or of a shard."""
    devices: dict[str, int] = field(default_factory=dict)
    """Of the machine that drew it: processor cores and GPUs, as `cpu` and `gpu`."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of all processes at work together."""

    completions_per_second: float
    """Spared ones too: it says when the work will be done."""
    tokens_per_second: float


def write_statistics(
    folder: Path, part: Path, candidates: Sequence[Candidate], *, num_wanted: int, seconds: float
) -> None:
    """Write the statistics of `part`, which could have had `num_wanted` completions and took `seconds`."""
    counts = SamplingCounts(seconds=seconds)
    counts.add(candidates, num_wanted=num_wanted, resumed=False)
    statistics = PartStatistics(
        problems=counts.problems,
        completions=counts.completions,
        spared=counts.spared,
        failed=counts.failed,
        duplicates=counts.duplicates,
        truncated_share=round(counts.truncated_share, 4),
        tokens=counts.tokens,
        seconds=round(seconds, 3),
        finished_at=round(time.time(), 3),
        tokens_per_second=round(counts.tokens_per_second, 1),
        problems_per_second=round(counts.problems / seconds, 3),
        start=_THIS_START,
        devices={"cpu": count_cores(), "gpu": len(list_gpus())},
    )
    write_json(_path(folder, part), dataclasses.asdict(statistics))


def add_verdicts(folder: Path, part: Path, graded: Iterable[GradedCandidate]) -> None:
    """Note what grading has found in `part`."""
    path = _path(folder, part)
    if not path.exists():  # a part that was copied here by hand
        return
    verdicts = [grade.verdict for grade in graded if grade.kind != "gold"]
    share = round(verdicts.count("unparsable") / max(len(verdicts), 1), 4)
    write_json(path, read_json(path) | {"unparsable_share": share})


def read_statistics(folder: Path, parts: Path) -> list[PartStatistics]:
    """The statistics of the parts that there are in the folder `parts`, in their order."""
    paths = (_path(folder, part) for part in list_parts(parts))
    return [PartStatistics(**read_json(path)) for path in paths if path.exists()]


def measure_speed(statistics: Iterable[PartStatistics]) -> Speed | None:
    """The speed over the parts that were finished last; times at which nobody worked on them do not count."""
    recent = sorted(statistics, key=lambda part: part.finished_at)[-_RECENT_PARTS:]
    seconds = _working_seconds(recent)
    if not seconds:
        return None
    return Speed(
        completions_per_second=sum(part.completions + part.spared for part in recent) / seconds,
        tokens_per_second=sum(part.tokens for part in recent) / seconds,
    )


def time_of_others(statistics: Iterable[PartStatistics]) -> dict[str, float]:
    """Seconds in which starts other than this process drew: shards, and starts that were ended early.

    Returns:
        `wall`: while at least one of them drew. `cpu`, `gpu`: of each device that they had; empty when there were none.
    """
    others = [part for part in statistics if part.start != _THIS_START]
    if not others:
        return {}
    by_start = defaultdict(list)
    for part in others:
        by_start[part.start].append(part)
    seconds = defaultdict(float, wall=_working_seconds(others))
    for parts in by_start.values():
        for device, number in parts[0].devices.items():
            seconds[device] += number * _working_seconds(parts)
    return dict(seconds)


def _working_seconds(parts: Iterable[PartStatistics]) -> float:
    return _cover((part.finished_at - part.seconds, part.finished_at) for part in parts)


def _cover(spans: Iterable[tuple[float, float]]) -> float:
    """The time that lies in at least one of the spans."""
    covered, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        covered += max(stop, end) - max(start, end) if stop > end else 0.0
        end = max(end, stop)
    return covered


def _path(folder: Path, part: Path) -> Path:
    return folder / f"{part.stem}.json"
