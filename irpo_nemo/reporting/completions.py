"""How long the completions of a model are, how many were cut off, and how they were judged. Reads no texts."""

from typing import TYPE_CHECKING, Any

from irpo_nemo.artifacts import list_parts, read_columns
from irpo_nemo.records import Candidate, GradedCandidate
from irpo_nemo.run_folder import IterationFolder

if TYPE_CHECKING:
    import pyarrow as pa

_QUANTILES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


def measure_completions(folder: IterationFolder, split: str) -> dict[str, Any]:
    """By kind of candidate: their number, how many were cut off or failed, their tokens, and all of it by verdict."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = [_read_part(folder, split, part.name) for part in list_parts(folder.graded(split))]
    if not parts:
        return {}
    table = pa.concat_tables(parts)
    return {kind: _measure(table.filter(pc.equal(table["kind"], kind))) for kind in _distinct(table["kind"])}


def _read_part(folder: IterationFolder, split: str, name: str) -> "pa.Table":
    """Columns kind, verdict, finish_reason and tokens of one part."""
    import pyarrow as pa
    import pyarrow.compute as pc

    sampled = read_columns(folder.samples(split) / name, Candidate, ("kind", "finish_reason", "token_ids"))
    graded = read_columns(folder.graded(split) / name, GradedCandidate, ("verdict",))
    return pa.table(
        {
            "kind": sampled["kind"],
            "finish_reason": sampled["finish_reason"],
            "tokens": pc.list_value_length(sampled["token_ids"]),
            "verdict": graded["verdict"],
        }
    )


def _measure(table: "pa.Table") -> dict[str, Any]:
    import pyarrow.compute as pc

    by_verdict = {name: table.filter(pc.equal(table["verdict"], name)) for name in _distinct(table["verdict"])}
    return {
        "count": table.num_rows,
        "truncated": _count(table, "length"),
        "failed": _count(table, "failed"),
        "tokens": _measure_tokens(table),
        "by_verdict": {
            name: {"count": rows.num_rows, "truncated": _count(rows, "length"), "tokens": _measure_tokens(rows)}
            for name, rows in by_verdict.items()
        },
    }


def _measure_tokens(table: "pa.Table") -> dict[str, float]:
    import pyarrow.compute as pc

    shares = pc.quantile(table["tokens"], q=list(_QUANTILES.values()), interpolation="lower").to_pylist()
    return {"mean": pc.mean(table["tokens"]).as_py(), **dict(zip(_QUANTILES, shares, strict=True))}


def _count(table: "pa.Table", finish_reason: str) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(pc.equal(table["finish_reason"], finish_reason)).as_py())


def _distinct(column: "pa.ChunkedArray") -> list[str]:
    return sorted(column.unique().to_pylist())
