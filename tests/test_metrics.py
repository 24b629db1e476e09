import itertools
import json
import math
from typing import Any

import pytest

from irpo_nemo.errors import ArtifactError
from irpo_nemo.metrics import evaluate, majority_is_correct, pass_at_k, wilson_interval
from irpo_nemo.records import GradedCandidate, Problem


def make_grades(problem_id: str, greedy: str, samples: str = "", gold: str = "a") -> list[GradedCandidate]:
    """Answers by letter: "?" is unparsable, "!" an error of the grader. Capitals mean the same as small letters."""
    special: dict[str, Any] = {"?": "unparsable", "!": "error"}
    return [
        GradedCandidate(
            candidate_id=f"{problem_id}/{kind}/{index}",
            problem_id=problem_id,
            kind=kind,  # type: ignore[arg-type]
            index=index,
            gold_answer=gold,
            answer=None if letter in special else letter,
            verdict=special.get(letter) or ("correct" if letter.lower() == gold else "wrong"),
            layer="",
            answer_class=None if kind == "greedy" or letter in special else letters.lower().index(letter.lower()),
        )
        for kind, letters in (("greedy", greedy), ("sample", samples))
        for index, letter in enumerate(letters)
    ]


def test_wilson_interval_solves_its_quadratic() -> None:
    """The bounds p are where |k/n - p| = z sqrt(p (1 - p) / n)."""
    for successes, trials in ((1, 10), (5, 10), (37, 400), (399, 400)):
        for bound in wilson_interval(successes, trials):
            distance = abs(successes / trials - bound)
            assert distance == pytest.approx(1.959963984540054 * math.sqrt(bound * (1 - bound) / trials), rel=1e-9)


def test_wilson_interval_at_the_ends() -> None:
    """With no success the upper bound is z^2 / (n + z^2)."""
    z2 = 1.959963984540054**2
    assert wilson_interval(0, 50) == (0.0, pytest.approx(z2 / (50 + z2)))
    assert wilson_interval(50, 50) == (pytest.approx(50 / (50 + z2)), 1.0)


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample() -> None:
    for num_samples, num_correct, k in ((5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 0, 2), (4, 4, 2), (5, 3, 5)):
        subsets = list(itertools.combinations([True] * num_correct + [False] * (num_samples - num_correct), k))
        assert pass_at_k(num_samples, num_correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(
    ("answers", "correct"),
    [
        ("aab", True),
        ("bba", False),
        ("ab", True),
        ("ba", False),
        ("bbaa", False),
        ("?????a", True),
        ("!!!!a", True),
        ("???", False),
        ("", False),
        ("bcadea", True),
        ("bbaAc", False),
        ("bcaAb", False),
        ("bcaAA", True),
        ("baA", True),
        ("aBb", False),
    ],
)
def test_majority_takes_the_first_of_equals_and_only_read_answers_vote(answers: str, correct: bool) -> None:
    assert majority_is_correct(make_grades("p", "", answers)) is correct


def test_evaluation_as_json() -> None:
    grades = make_grades("p", "a", "abbb") + make_grades("q", "?", "aab?") + make_grades("r", "b", "????")
    value = evaluate(iter(grades)).to_json()
    assert json.loads(json.dumps(value)) == {
        "num_problems": 3,
        "accuracy": pytest.approx(1 / 3),
        "accuracy_ci95": list(wilson_interval(1, 3)),
        "majority_vote": {"k": 4, "accuracy": pytest.approx(1 / 3), "accuracy_ci95": list(wilson_interval(1, 3))},
        "pass_at_k": {"1": pytest.approx((1 / 4 + 2 / 4 + 0) / 3), "4": pytest.approx(2 / 3)},
        "unparsable_rate": pytest.approx(1 / 3),
        "error_rate": 0.0,
        "sample_accuracy": pytest.approx(3 / 12),
        "by_level": None,
        "by_subject": None,
    }


def test_accuracy_by_level_and_subject() -> None:
    def problem(name: str, level: str | None) -> Problem:
        return Problem(problem_id=name, question="", gold_answer="a", level=level, subject="Algebra")

    grades = [*make_grades("p", "a"), *make_grades("q", "b"), *make_grades("r", "a"), *make_grades("s", "!")]
    problems = [problem("p", "Level 5"), problem("q", "Level 5"), problem("r", "Level 1"), problem("s", None)]
    value = evaluate(grades, problems).to_json()
    assert json.loads(json.dumps(value["by_level"])) == {
        "Level 1": {"num_problems": 1, "accuracy": 1.0, "accuracy_ci95": list(wilson_interval(1, 1))},
        "Level 5": {"num_problems": 2, "accuracy": 0.5, "accuracy_ci95": list(wilson_interval(1, 2))},
    }
    assert list(value["by_level"]) == ["Level 1", "Level 5"]
    assert value["by_subject"]["Algebra"]["num_problems"] == 4
    assert value["error_rate"] == 0.25


def test_evaluation_without_samples() -> None:
    value = evaluate(make_grades("p", "a") + make_grades("q", "b")).to_json()
    assert (value["majority_vote"], value["pass_at_k"], value["sample_accuracy"]) == (None, {}, None)
    assert value["accuracy"] == 0.5


def test_pass_at_k_goes_up_by_fours() -> None:
    assert list(evaluate(make_grades("p", "a", "a" * 32)).pass_at_k) == [1, 4, 16]


@pytest.mark.parametrize(
    ("grades", "message"),
    [
        ([], "found nothing, but the same number for each problem is wanted."),
        (make_grades("p", "", "ab"), "problem p has 0 greedy completions, but 1 is wanted."),
        (make_grades("p", "aa"), "problem p has 2 greedy completions, but 1 is wanted."),
        (
            make_grades("p", "a", "ab") + make_grades("q", "a", "abb"),
            "found between 2 and 3 samples a problem, but the same number for each problem is wanted.",
        ),
    ],
)
def test_incomplete_grades_are_an_error(grades: list[GradedCandidate], message: str) -> None:
    with pytest.raises(ArtifactError) as error:
        evaluate(grades)
    assert str(error.value) == (
        f"graded candidates: {message} Delete the iteration's samples and graded folders and run `irpo run` again."
    )
