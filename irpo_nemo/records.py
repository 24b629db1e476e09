"""What passes between stages: frozen dataclasses, one Parquet row each.

A record knows nothing of files, models or tasks. Its Parquet schema follows from its type hints (`arrow_schema`),
so a field is declared once. Token ids are those the sampler emitted; text is for graders and people.
"""

import dataclasses
import types
import typing
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Verdict = Literal["correct", "wrong", "unparsable", "error"]
"""`unparsable`: no answer could be read; `error`: the grader failed on it, so it joins neither winners nor losers."""

FinishReason = Literal["stop", "length", "failed"]
"""`stop`: the end-of-sequence token was sampled (and is the last id); `length`: the token budget ran out; `failed`: the
sampler could not draw it, and there are no tokens."""

CandidateKind = Literal["sample", "greedy", "gold"]
"""`gold`: the data set's own worked solution, in the model's tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One row of a task's problem set."""

    problem_id: str
    """Unique within the task; stable over runs."""
    question: str
    gold_answer: str
    """The answer that graders compare with."""
    solution: str | None = None
    """A worked solution that ends in the task's answer format, as a completion would; None when the data has none."""
    choice_labels: list[str] = dataclasses.field(default_factory=list)
    """Of a multiple-choice question: "A", "B", ... or "1", "2", ...; else empty."""
    choices: list[str] = dataclasses.field(default_factory=list)
    """The options' own texts, one a label; empty too when only the labels are known."""
    level: str | None = None
    """The data set's own grade of difficulty, such as "Level 3"."""
    subject: str | None = None
    """The data set's own field, such as "Algebra"."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demonstration:
    """One prompt and the completion that supervised fine-tuning should teach, as token ids."""

    demonstration_id: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    """The completion, with the end-of-sequence token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One completion of one problem."""

    candidate_id: str
    """`<problem_id>/<kind>/<index>`."""
    problem_id: str
    kind: CandidateKind
    index: int
    """0 .. number of candidates of this kind - 1."""
    prompt_token_ids: list[int]
    token_ids: list[int]
    """The completion as sampled, with the end-of-sequence token when finish_reason is "stop"."""
    text: str
    """`token_ids` decoded, without special tokens."""
    finish_reason: FinishReason
    model_hash: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradedCandidate:
    """A candidate's verdict; joined with its `Candidate` by id."""

    candidate_id: str
    problem_id: str
    kind: CandidateKind
    index: int
    gold_answer: str
    answer: str | None
    """The extracted answer; None when there is none."""
    verdict: Verdict
    layer: str
    """Which rule of the grader decided."""
    answer_class: int | None = None
    """Of an evaluation sample that votes: the index of the problem's first sample whose answer means the same."""
    audit_answer: str | None = None
    """What the second grader read; None without one, or when it read nothing."""
    audit_verdict: Verdict | None = None
    """None without a second grader."""

    @property
    def is_disputed(self) -> bool:
        """Whether one grader says correct and the other wrong; then it joins neither winners nor losers."""
        return {self.verdict, self.audit_verdict} == {"correct", "wrong"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """A correct and a wrong completion of the same problem."""

    pair_id: str
    problem_id: str
    prompt_token_ids: list[int]
    chosen_id: str
    chosen_token_ids: list[int]
    rejected_id: str
    rejected_token_ids: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceLogprob:
    """The frozen reference's log-probability of one completion given its prompt."""

    candidate_id: str
    model_hash: str
    """Of the reference."""
    logprob: float
    """Summed over the completion's tokens, natural log."""
    num_tokens: int


def arrow_schema(record_type: type) -> "pa.Schema":
    """Derive the Parquet schema of a record dataclass from its type hints.

    Raises:
        TypeError: A field has a type that no Parquet column stands for.
    """
    import pyarrow as pa

    hints = typing.get_type_hints(record_type)
    return pa.schema([_arrow_field(field.name, hints[field.name]) for field in dataclasses.fields(record_type)])


def _arrow_field(name: str, hint: object) -> "pa.Field":
    import pyarrow as pa

    nullable = False
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        nullable = True
        (hint,) = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    if typing.get_origin(hint) is Literal:
        hint = str
    columns = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    lists = {(int,): pa.int32(), (str,): pa.string()}
    if typing.get_origin(hint) is list and typing.get_args(hint) in lists:
        return pa.field(name, pa.list_(lists[typing.get_args(hint)]), nullable=nullable)
    if hint not in columns:
        raise TypeError(f"{name}: no Parquet column type for {hint}")
    return pa.field(name, columns[hint], nullable=nullable)
