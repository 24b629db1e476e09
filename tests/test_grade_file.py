"""`irpo grade` on files as people have them."""

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from irpo_nemo.config import GradingConfig
from irpo_nemo.errors import ArtifactError, ConfigError, DataError
from irpo_nemo.grade_file import Tally, describe
from irpo_nemo.grade_file import grade_file as grade_file_with
from irpo_nemo.metrics import wilson_interval
from tests.test_cli import heavy_modules_of, irpo

ONE_WORKER = GradingConfig(num_workers=1)
ROW = {"id": 7, "response": "12 + 60 = 72.\nFinal answer: 72", "gold": "72", "note": {"a": [1, 2.5, None]}}


def grade_file(task: str, source: Path, output: Path, config: GradingConfig = ONE_WORKER) -> Tally:
    return grade_file_with(task, source, output, config)


def write_rows(path: Path, *rows: Any) -> Path:
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
        file.write(text)
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in file]


def verdicts_of(tmp_path: Path, task: str, *rows: dict[str, Any]) -> list[str]:
    grade_file(task, write_rows(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl")
    return [row["verdict"] for row in read_rows(tmp_path / "out.jsonl")]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_rows_keep_their_fields_and_get_answer_verdict_and_layer(tmp_path: Path, suffix: str) -> None:
    rows = [
        ROW,
        {"gold": 5, "response": "I do not know. \u2028 \U0001f600 \ud800", "n": 1e300},
        {"gold": "1", "response": ""},
    ]
    source, output = write_rows(tmp_path / f"in.jsonl{suffix}", *rows), tmp_path / "new" / f"out.jsonl{suffix}"
    result = grade_file("gsm8k", source, output)
    graded = read_rows(output)
    assert graded[0] == {**ROW, "answer": "72", "verdict": "correct", "layer": "final_answer"}
    assert [row["verdict"] for row in graded] == ["correct", "unparsable", "unparsable"]
    assert [{name: row[name] for name in given} for row, given in zip(graded, rows, strict=True)] == rows
    assert result.verdicts == {"correct": 1, "unparsable": 2}
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_gold_answers_of_gsm8k_may_be_numbers_or_whole_solutions(tmp_path: Path) -> None:
    golds = ["72", 72, 72.0, "#### 72", "48/2 = <<48/2=24>>24\n#### 72", "$72", " 72\n"]
    assert verdicts_of(tmp_path, "gsm8k", *[{**ROW, "gold": gold} for gold in golds]) == ["correct"] * len(golds)


def test_gold_answers_of_math_may_be_answers_or_whole_solutions(tmp_path: Path) -> None:
    golds = [r"\frac{1}{2}", r"So it is $\boxed{\frac{1}{2}}$.", r"\boxed{\frac12}", 0.5, "1/2"]
    rows = [{"gold": gold, "response": r"Final answer: $\boxed{\dfrac{1}{2}}$"} for gold in golds]
    assert verdicts_of(tmp_path, "hendrycks_math", *rows) == ["correct"] * len(golds)


def test_arc_rows_say_their_labels_and_choices_in_any_natural_way(tmp_path: Path) -> None:
    texts = ["ice", "steam", "iron"]
    options: list[dict[str, Any]] = [
        {},
        {"labels": ["A", "B", "C"]},
        {"labels": "ABC"},
        {"labels": "A, B, C", "choices": texts},
        {"choices": texts},
        {"choices": {"label": ["A", "B", "C"], "text": texts}},
        {"choices": [{"label": label, "text": text} for label, text in zip("ABC", texts, strict=True)]},
    ]
    rows = [{"response": "Final answer: (B)", "gold": "B", **option} for option in options]
    rows += [
        {"response": "The answer is steam.", "gold": "B", "labels": ["A", "B", "C"], "choices": texts},
        {"response": "Final answer: B", "gold": "steam", "choices": texts},
        {"response": "Final answer: 2", "gold": "2", "labels": ["1", "2", "3"]},
        {"response": "Final answer: 2", "gold": 2, "labels": [1, 2, 3], "choices": [1, 2.5, "x"]},
        {"response": "Final answer: C", "gold": "B", "labels": ["A", "B", "C"]},
    ]
    assert verdicts_of(tmp_path, "arc_challenge", *rows) == ["correct"] * 11 + ["wrong"]


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("gsm8k", '{"gold": "1"}', "has no 'response'; found 'gold'. Add it, or rename that key."),
        ("gsm8k", '{"response": "1"}', "has no 'gold'; found 'response'. Add it, or rename that key."),
        ("gsm8k", '{"gold": "1", "response": null}', "'response' is null, but text is wanted."),
        ("gsm8k", '{"gold": ["1"], "response": ""}', "'gold' is [\"1\"], but text or a number is wanted."),
        ("gsm8k", "[1]", 'is [1], but {"response": ..., "gold": ...} is wanted.'),
        ("gsm8k", '{"gold": "1", "resp', "is not JSON (Unterminated string"),
        ("gsm8k", '{"gold": "many", "response": ""}', "gold answer 'many' is not one number"),
        ("hendrycks_math", '{"gold": "{", "response": "1"}', "gold answer"),
        ("arc_challenge", '{"gold": "A", "response": "", "labels": 3}', "'labels' is 3, but a list is wanted"),
        (
            "arc_challenge",
            '{"gold": "A", "response": "", "labels": ["A"], "choices": ["x", "y"]}',
            "has 1 'labels', but 2 'choices'. Mend one of them.",
        ),
        ("arc_challenge", '{"gold": "E", "response": "", "labels": ["A", "B"]}', "gold answer 'E'"),
    ],
)
def test_a_bad_row_is_named_and_what_came_before_is_kept(tmp_path: Path, task: str, line: str, message: str) -> None:
    good = {"arc_challenge": {"gold": "A", "response": "A"}}.get(task, ROW)
    source = write_rows(tmp_path / "in.jsonl", good, good)
    output = tmp_path / "out.jsonl"
    whole = source.read_text()
    source.write_text(f"{whole}\n{line}\n")
    with pytest.raises(DataError) as caught:
        grade_file(task, source, output)
    assert str(caught.value).startswith(f"{source}:4: {message}")
    assert not output.exists()
    source.write_text(whole)
    result = grade_file(task, source, output)
    assert (result.num_rows, result.num_graded_now) == (2, 0)
    assert len(read_rows(output)) == 2


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"response": "1", "gold": "1"}\n\xff\xfe\n')
    with pytest.raises(DataError, match=r"in\.jsonl:2: is not UTF-8\. Save the file as UTF-8\.$"):
        grade_file("gsm8k", source, tmp_path / "out.jsonl")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(ROW).encode() * 1000)[:-20])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: cannot be read after line 0"):
        grade_file("gsm8k", cut, tmp_path / "out.jsonl")
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file\.$"):
        grade_file("gsm8k", tmp_path / "absent.jsonl", tmp_path / "out.jsonl")


def test_an_interrupted_output_is_gone_on_with(tmp_path: Path) -> None:
    rows = [{"n": number, "x": math.nan, "response": f"It is {number}.", "gold": number % 7} for number in range(300)]
    source = write_rows(tmp_path / "in.jsonl", *rows)
    grade_file("gsm8k", source, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    cut = whole[: len(whole) // 3]
    (tmp_path / "out.jsonl.gsm8k.partial").write_bytes(cut)
    result = grade_file("gsm8k", source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert result.num_graded_now == 300 - cut.count(b"\n")


def test_a_finished_output_is_left_alone(tmp_path: Path) -> None:
    source, output = write_rows(tmp_path / "in.jsonl", ROW, ROW), tmp_path / "out.jsonl"
    first = grade_file("gsm8k", source, output)
    written = output.stat().st_mtime_ns
    again = grade_file("gsm8k", source, output)
    assert (again.verdicts, again.num_graded_now) == (first.verdicts, 0)
    assert output.stat().st_mtime_ns == written


@pytest.mark.parametrize(("kept", "place"), [([ROW, {**ROW, "id": 8}], r":2: is not .*in\.jsonl:2 with its verdict")])
def test_an_output_of_another_input_is_refused(tmp_path: Path, kept: list[dict[str, Any]], place: str) -> None:
    source = write_rows(tmp_path / "in.jsonl", ROW, ROW, ROW)
    graded = [{**row, "answer": "72", "verdict": "correct", "layer": ""} for row in kept]
    for name in ("out.jsonl", "new.jsonl.gsm8k.partial"):
        write_rows(tmp_path / name, *graded)
    with pytest.raises(ArtifactError, match=place):
        grade_file("gsm8k", source, tmp_path / "out.jsonl")
    with pytest.raises(ArtifactError, match=place):
        grade_file("gsm8k", source, tmp_path / "new.jsonl")
    write_rows(tmp_path / "out.jsonl", graded[0])
    with pytest.raises(
        ArtifactError, match=r"out\.jsonl: ends before .*in\.jsonl:2, so it was made from another file\."
    ):
        grade_file("gsm8k", source, tmp_path / "out.jsonl")
    write_rows(tmp_path / "out.jsonl", *[graded[0]] * 4)
    with pytest.raises(ArtifactError, match=r"out\.jsonl:4: is not the end of the input with its verdict"):
        grade_file("gsm8k", source, tmp_path / "out.jsonl")


def test_an_audit_adds_the_second_verdict(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ROW, {"response": "Final answer: 3 2/2", "gold": 4})
    result = grade_file("gsm8k", source, tmp_path / "out.jsonl", GradingConfig(num_workers=1, audit=True))
    first, second = read_rows(tmp_path / "out.jsonl")
    assert (first["verdict"], first["audit_verdict"], first["audit_answer"]) == ("correct", "correct", "72")
    assert (second["verdict"], second["audit_verdict"], second["audit_answer"]) == ("correct", "wrong", "3")
    assert result.num_disputed == 1


def test_input_is_never_overwritten(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ROW)
    with pytest.raises(ConfigError, match=r"in\.jsonl: is INPUT and OUTPUT at once"):
        grade_file("gsm8k", source, source)


def test_an_answer_of_the_row_is_replaced_and_counted(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", {**ROW, "answer": "as published"}, ROW)
    result = grade_file("gsm8k", source, tmp_path / "out.jsonl")
    assert [row["answer"] for row in read_rows(tmp_path / "out.jsonl")] == ["72", "72"]
    assert result.num_replaced == 1


def test_the_summary_is_what_a_person_wants_to_know() -> None:
    result = Tally(num_graded_now=3, seconds=1.5)
    for verdict in ("correct", "correct", "unparsable", "wrong"):
        result.count({"verdict": verdict, "audit_verdict": "wrong"})
    low, high = wilson_interval(2, 4)
    assert describe(result) == [
        "4 rows: 2 correct, 1 wrong, 1 unparsable, 0 error",
        f"accuracy 50.00% (95% interval {low:.2%} to {high:.2%}), unparsable 25.00%",
        "2 rows that the second grader judges differently",
        "3 rows graded in 1.5 s, 2 rows/s",
    ]
    assert describe(Tally()) == ["0 rows"]


def test_the_command_is_light_and_ends_with_its_exit_code(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", ROW)
    output = tmp_path / "out.jsonl"
    assert heavy_modules_of("grade", "--task", "hendrycks_math", str(source), str(output), "--workers", "1") == []
    again = irpo("grade", "--task", "hendrycks_math", str(source), str(output))
    assert again.returncode == 0
    assert again.stdout.startswith(f"{output}: is graded already; delete it to grade again\n1 rows: 1 correct")
    bad = irpo("grade", "--task", "gsm8k", str(tmp_path / "absent"), str(output))
    assert (bad.returncode, bad.stderr) == (2, f"{tmp_path}/absent: no such file.\n")
    unknown = irpo("grade", "--task", "gsm9k", str(source), str(output))
    assert (unknown.returncode, unknown.stderr) == (
        2,
        "--task: is gsm9k, but must be one of arc_challenge, gsm8k, hendrycks_math\n",
    )


def test_a_command_that_is_interrupted_goes_on(tmp_path: Path) -> None:
    rows = [{"n": number, "response": f"It is {number}.", "gold": number} for number in range(200_000)]
    source, output = write_rows(tmp_path / "in.jsonl", *rows), tmp_path / "out.jsonl"
    command = [
        sys.executable,
        "-m",
        "irpo_nemo",
        "grade",
        "--task",
        "gsm8k",
        str(source),
        str(output),
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    partial = tmp_path / "out.jsonl.gsm8k.partial"
    while not partial.exists() or not partial.stat().st_size:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "interrupted; the same command goes on from here\n")
    done = partial.read_bytes().count(b"\n")
    assert 0 < done < len(rows)
    source.write_text("".join(source.read_text().splitlines(keepends=True)[: done + 10]))
    assert grade_file("gsm8k", source, output).num_graded_now == 10
