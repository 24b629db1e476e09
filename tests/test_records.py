import dataclasses

import pyarrow as pa
import pytest

from irpo_nemo import records
from irpo_nemo.records import GradedCandidate, Problem, arrow_schema

RECORDS = [value for value in vars(records).values() if dataclasses.is_dataclass(value)]


@pytest.mark.parametrize("record_type", RECORDS)
def test_every_record_has_a_schema_with_its_fields_in_order(record_type: type) -> None:
    assert arrow_schema(record_type).names == [field.name for field in dataclasses.fields(record_type)]


@pytest.mark.parametrize("record_type", RECORDS)
def test_records_are_frozen(record_type: type) -> None:
    assert record_type.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_optional_fields_are_nullable_and_the_others_are_not() -> None:
    schema = arrow_schema(Problem)
    assert schema.field("solution").nullable
    assert not schema.field("gold_answer").nullable


def test_literals_are_text_and_token_ids_are_32_bit() -> None:
    assert arrow_schema(GradedCandidate).field("verdict").type == pa.string()
    assert arrow_schema(records.Candidate).field("token_ids").type == pa.list_(pa.int32())


def test_a_field_without_a_column_type_is_refused() -> None:
    @dataclasses.dataclass
    class Odd:
        when: dict[str, int]

    with pytest.raises(TypeError, match=r"^when: no Parquet column type for dict\[str, int\]$"):
        arrow_schema(Odd)
