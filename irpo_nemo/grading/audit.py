r"""A second opinion of another make: where an auditor and the grader disagree, a candidate joins neither side.

An auditor finds and compares answers by other means than the grader it audits, shares no code with it, and is simpler
and less patient: its disagreement is a reason to look, not a verdict.

    numeric   the first number after the last sign of an answer, else the last number; compared as Decimal
    latex     the last box, else what follows the last sign of an answer; compared as stripped strings, else by
              math-verify with its own defaults
    choice    the first label that stands alone after the last sign of an answer
    text      the letters and digits of the line after the last sign of an answer, else of the last line
"""

import functools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from irpo_nemo.grading.grade import Grade, Grader
from irpo_nemo.records import Problem, Verdict

MAX_LENGTH = 300
"""Characters of an answer that are looked at."""

_SIGNS = ("final answer:", "final answer is", "answer is", "answer:", '"answer":', "####", "<answer>")
_NUMBER = re.compile(r"[-\u2212]?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_COSTLY_FOR_MATH_VERIFY = re.compile(r"!|\^\s*\{?[^{}]*\^|\d{16,}|\^\s*\{?-?\d{3,}|\\binom|\\prod|\\sum|\\int")
_NOISE = (
    *("\\left", "\\right", "\\displaystyle", "\\!", "\\,", "\\;", "\\$", "$", "\\%", "%", "^\\circ", "^{\\circ}"),
    *("\\(", "\\)", "\\[", "\\]", "{,}", " ", "\n", "\\quad", "**"),
)


@dataclass(frozen=True)
class Auditor:
    """A grader that only grades: gold answers were checked, and nobody votes with it."""

    judge: Callable[[Problem, str], Grade]

    def check_gold(self, problem: Problem) -> None:
        """Accept every gold answer."""

    def grade(self, problem: Problem, completion_text: str) -> Grade:
        """Judge one completion."""
        return self.judge(problem, completion_text)

    def is_same(self, left: str, right: str) -> bool:
        """Whether two answers are spelled alike."""
        return left == right

    def golden_cases(self) -> list[tuple[Problem, str, Verdict]]:
        """None: the grader's own cases are tried."""
        return []


def _judge_number(problem: Problem, completion_text: str) -> Grade:
    gold = _to_decimal(problem.gold_answer)
    number = _first_number(_after_last_sign(completion_text))
    if number is None:
        numbers = _NUMBER.findall(completion_text)
        number = _to_decimal(numbers[-1]) if numbers else None
    if number is None:
        return Grade(answer=None, verdict="unparsable", layer="audit")
    return Grade(answer=f"{number:f}", verdict="correct" if number == gold else "wrong", layer="audit")


def _first_number(text: str) -> Decimal | None:
    """The number after the last "=" of the first line with one, else its first number."""
    line = next((line for line in text.split("\n") if _NUMBER.search(line)), "")[:MAX_LENGTH]
    line = line.replace("\\!", "").replace("{,}", ",").replace("\\$", "$")
    match = re.search(r"\\d?frac\{(-?\d+)\}\{(\d+)\}", line)
    if match:
        return _to_decimal(f"{match[1]}/{match[2]}")
    right = _NUMBER.findall(line.rpartition("=")[2]) or _NUMBER.findall(line)
    return _to_decimal(right[0]) if right else None


def _to_decimal(text: str) -> Decimal | None:
    top, _, bottom = re.sub(r"[$,%\s]", "", text.replace("\N{MINUS SIGN}", "-")).partition("/")
    try:
        return (Decimal(top[:MAX_LENGTH]) / Decimal(bottom or 1)).normalize()
    except (InvalidOperation, ZeroDivisionError):
        return None


def _after_last_sign(text: str) -> str:
    """What follows the last sign that an answer comes; "" when there is none."""
    lowered = text.lower()
    ends = [lowered.rfind(sign) + len(sign) for sign in _SIGNS if sign in lowered]
    box = text.rfind("\\boxed")
    return text[max([*ends, box + len("\\boxed")]) :] if ends or box >= 0 else ""


def _judge_latex(problem: Problem, completion_text: str) -> Grade:
    answer = _cut_answer(completion_text)
    if not answer:
        return Grade(answer=None, verdict="unparsable", layer="audit")
    gold, stripped = _strip(problem.gold_answer), _strip(answer)
    is_equal = gold == stripped or _is_equal_for_math_verify(gold, stripped)
    return Grade(answer=stripped, verdict="correct" if is_equal else "wrong", layer="audit")


def _cut_answer(text: str) -> str:
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth = 0
        for position in range(start + len("\\boxed"), min(len(text), start + MAX_LENGTH)):
            depth += (text[position] == "{") - (text[position] == "}")
            if depth == 0:
                return text[start + len("\\boxed{") : position]
    line = _after_last_sign(text).strip().split("\n")[0][:MAX_LENGTH]
    formulas = re.findall(r"\$([^$]+)\$", line or text.strip().split("\n")[-1][-MAX_LENGTH:])
    if formulas:
        return str(formulas[0] if line else formulas[-1])
    return line.partition(". ")[0].strip(' ."*')


def _strip(answer: str) -> str:
    answer = re.sub(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{\s*([^{}]*)\}", r"\1", answer[:MAX_LENGTH])
    answer = answer.replace("dfrac", "frac").replace("tfrac", "frac")
    for noise in _NOISE:
        answer = answer.replace(noise, "")
    answer = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", answer)
    answer = re.sub(
        r"(?<=\d)(?:cm|m|km|inches|feet|units|squareunits|degrees|dollars|cents)(?:\^\{?[23]\}?)?$", "", answer
    )
    answer = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", answer)
    answer = re.sub(r"^[a-zA-Z](?:\([a-z]\))?=", "", answer)
    return re.sub(r"\\sqrt(\d)", r"\\sqrt{\1}", answer).rstrip(".")


def _is_equal_for_math_verify(gold: str, answer: str) -> bool:
    if not re.search(r"[\d\\]", answer) or any(_COSTLY_FOR_MATH_VERIFY.search(text) for text in (gold, answer)):
        return False
    parse, verify = _load_math_verify()
    gold_tree, answer_tree = (parse(f"${text}$", parsing_timeout=None) for text in (gold, answer))
    return bool(verify(gold_tree, answer_tree, timeout_seconds=None))


@functools.cache
def _load_math_verify() -> tuple[Any, Any]:
    from math_verify import parse, verify

    for name in ("math_verify.grader", "math_verify.parser"):
        # Deadlines are the pool's: math-verify's own alarm signals would collide with them, and it warns without them.
        logging.getLogger(name).setLevel(logging.ERROR)
    return parse, verify


def _judge_choice(problem: Problem, completion_text: str) -> Grade:
    labels = "|".join(map(re.escape, problem.choice_labels or list("ABCDE12345")))
    region = _after_last_sign(completion_text)[:MAX_LENGTH] or completion_text[-MAX_LENGTH:]
    found = re.findall(rf"(?<![A-Za-z0-9])({labels})(?![A-Za-z0-9'])", region)
    if not found:
        return Grade(answer=None, verdict="unparsable", layer="audit")
    is_equal = found[0] == problem.gold_answer.strip(" ()")
    return Grade(answer=found[0], verdict="correct" if is_equal else "wrong", layer="audit")


def _judge_text(problem: Problem, completion_text: str) -> Grade:
    announced = _after_last_sign(completion_text).strip().split("\n")[0]
    line = announced or completion_text.strip().split("\n")[-1]
    answer, gold = ("".join(filter(str.isalnum, text.lower())) for text in (line, problem.gold_answer))
    if not answer:
        return Grade(answer=None, verdict="unparsable", layer="audit")
    return Grade(answer=answer, verdict="correct" if answer == gold else "wrong", layer="audit")


AUDITORS: dict[str, Grader] = {
    "choice": Auditor(_judge_choice),
    "latex": Auditor(_judge_latex),
    "numeric": Auditor(_judge_number),
    "text": Auditor(_judge_text),
}
"""By the name of the grader that they audit."""
