r"""Numbers, compared exactly.

An answer is looked for in layers, and the first layer that applies decides:

    json           the value of the last "answer" key
    tag            <answer>...</answer>
    final_answer   the line of the last "Final answer:"; when it says nothing, the next layers look below it
    hash           the last line "#### n", as GSM8K writes it
    boxed          the last \boxed{...} that is not empty
    answer_is      the sentence after the last "the answer is"
    last_number    the last number of the text

All but the last announce an answer, so when what they announce is not one number the completion is unparsable; "5 or 6"
is not one number. What follows the answer, such as another question that the model invented, is cut off first.
Thousands separators, currency, percent signs, units, a trailing period and a remark in parentheses are ignored: 50%
equals 50. Decimals and fractions are compared as fractions, without tolerance: 0.5 equals 1/2, and 0.33 differs from
1/3.
"""

import re
from fractions import Fraction

from irpo_nemo.errors import DataError
from irpo_nemo.grading.extract import (
    cut_invented_question,
    find_final_answer,
    find_json_answer,
    find_last_boxed,
    find_stated_answer,
    find_tagged_answer,
)
from irpo_nemo.grading.grade import Grade
from irpo_nemo.records import Problem, Verdict

MAX_DIGITS = 100
"""Longer numbers are not read, so that no completion costs time or memory."""
MAX_PHRASE_LENGTH = 1000
"""Characters of an announced answer that are looked at."""

_MAGNITUDE = r"(?:(?:\d{1,3}(?:(?:,\d{3})+|(?:\ \d{3})+)(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"""
    (?<![A-Za-z_^\d√])(?<!sqrt[{{(])            # not the 2 of m^2, H2O or a root
    (?P<sign>-(?=[\d.$€£¥]))?[$€£¥]?\s?(?P<inner_sign>-(?=[\d.]))?
    (?:(?P<whole>\d+)\s+(?=\d+\s?/\s?\d))?      # 1 1/2
    (?P<numerator>{_MAGNITUDE})
    (?P<exponent>[eE][+-]?\d+)?
    (?:\s?/\s?(?P<denominator>{_MAGNITUDE}))?
    (?P<operation>\s?(?:\^|\*\*\s?\d|π|√|\\pi|\\sqrt))?
    """,
    re.VERBOSE,
)
_HASH_LINE = re.compile(
    r"^####[ \t]{0,9}(?P<answer>[-$€£¥ \d.,/]{0,99}\d(?!\d*[.)][ \t])(?:[ %][^\n]{0,40}|[.]?))$", re.MULTILINE
)
_FRACTION = re.compile(r"(?P<digit>\d?)\s?\\[dt]?frac\s*\{\s*(?P<top>\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}")
_SPELLINGS = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{NO-BREAK SPACE}": " ",
        "\N{NARROW NO-BREAK SPACE}": " ",
        "\N{THIN SPACE}": " ",
    }
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9}
_SCALED = re.compile(rf"(?P<number>\d)[ ]?(?P<word>{'|'.join(_SCALES)})\b(?!-)", re.IGNORECASE)
_GROUPING = str.maketrans("", "", ", ")
_LATEX = re.compile(r"\\[,!;()\[\]]|\\(?=[$%])|\{(?=,\})|(?<=\{,)\}")


def check_gold(problem: Problem) -> None:
    """Refuse a gold answer that is not one number.

    Raises:
        DataError: It is not.
    """
    _read_gold(problem.gold_answer)


def grade(problem: Problem, completion_text: str) -> Grade:
    """Judge the number that `completion_text` gives as its answer.

    Raises:
        DataError: The gold answer is not one number.
    """
    gold = _read_gold(problem.gold_answer)
    value, layer = extract_number(completion_text)
    if value is None:
        return Grade(answer=None, verdict="unparsable", layer=layer)
    if value != gold and _SCALED.search(completion_text):  # the question may count in thousands
        as_counted, _ = extract_number(_SCALED.sub(r"\g<number>", completion_text))
        value = gold if as_counted == gold else value
    return Grade(answer=str(value), verdict="correct" if value == gold else "wrong", layer=layer)


def is_same(left: str, right: str) -> bool:
    """Whether two answers are the same number; their normal forms are unique."""
    return left == right


def golden_cases() -> list[tuple[Problem, str, Verdict]]:
    """Problems, completions and verdicts that hold on every sound installation."""
    return [
        (Problem(problem_id=f"golden-{number}", question="", gold_answer=gold), text, verdict)
        for number, (gold, text, verdict) in enumerate(_GOLDEN)
    ]


_GOLDEN: tuple[tuple[str, str, Verdict], ...] = (
    ("42", "6*7=42\nFinal answer: 42", "correct"),
    ("1,200", "#### $1200.00", "correct"),
    ("3/4", "\\boxed{\\frac{3}{4}}", "correct"),
    ("50", "Final answer: 50%", "correct"),
    ("0.1", "Final answer: 0.10000000000000001", "wrong"),
    ("5", "Final answer: 5 or 6", "unparsable"),
    ("5", "Final answer: 9**9**9", "unparsable"),
    ("5", "I do not know.", "unparsable"),
)


def _read_gold(gold_answer: str) -> Fraction:
    value = read_number(gold_answer)
    if value is None:
        raise DataError(f"gold answer {gold_answer!r} is not one number; wanted for example 42, -3.5, 1,200 or 3/4.")
    return value


def extract_number(completion_text: str) -> tuple[Fraction | None, str]:
    """The answer of a completion, or None when it cannot be read, and the layer that decided."""
    text = cut_invented_question(completion_text)
    for found in (find_json_answer(text), find_tagged_answer(text)):
        if found is not None:
            return read_number(found.text), found.place
    if (announced := find_final_answer(text)) is not None:
        line, text = announced
        if line:
            return read_number(line), "final_answer"
    if hashes := _HASH_LINE.findall(text):
        return read_number(hashes[-1]), "hash"
    if (content := find_last_boxed(text)) is not None:
        return read_number(content), "boxed"
    if (stated := find_stated_answer(text)) is not None and re.search(r"\d", stated):
        return read_number(stated), "answer_is"
    value = find_last_number(text)
    return value, "none" if value is None else "last_number"


def find_last_number(text: str) -> Fraction | None:
    """The last number of `text` that is not part of a power or a root; None when there is none."""
    for match in reversed(list(_NUMBER.finditer(_simplify(text)))):
        if (value := _value_of(match)) is not None:
            return value
    return None


def read_number(phrase: str) -> Fraction | None:
    """The one number that `phrase` states, or None when it states none, several, or an expression."""
    phrase = _simplify(phrase[:MAX_PHRASE_LENGTH])
    phrase = re.split(r"\.\s", phrase, maxsplit=1)[0]
    for shorten in (_drop_parentheses, _keep_right_side):
        if re.search(r"\d", shorten(phrase)):
            phrase = shorten(phrase)
    phrase = re.sub(r"^\W*?-\s+(?=[\d.$])", "-", phrase)
    values = {_value_of(match) for match in _NUMBER.finditer(phrase)}
    return values.pop() if len(values) == 1 else None


def _drop_parentheses(phrase: str) -> str:
    return re.sub(r"\([^()]*\)", "", phrase)


def _keep_right_side(phrase: str) -> str:
    return phrase.rpartition("=")[2]


def _simplify(text: str) -> str:
    """Drop LaTeX spacing and escapes, write one kind of minus, fractions as a/b, and thousands in words as e3."""
    text = _LATEX.sub("", text.translate(_SPELLINGS))
    text = _SCALED.sub(lambda m: f"{m['number']}e{_SCALES[m['word'].casefold()]}", text)
    return _FRACTION.sub(lambda m: f"{m['digit']}{' ' if m['digit'] else ''}{m['top']}/{m['bottom']}", text)


def _value_of(match: "re.Match[str]") -> Fraction | None:
    """The value of a `_NUMBER`; None when it is part of a power or a root, too long, or divides by zero."""
    exponent = match["exponent"] or ""
    if match["operation"] or len(match[0]) > MAX_DIGITS or len(exponent) > len("e+99"):
        return None
    denominator = Fraction((match["denominator"] or "1").translate(_GROUPING))
    if denominator == 0:
        return None
    magnitude = Fraction(match["numerator"].translate(_GROUPING) + exponent) / denominator + int(match["whole"] or 0)
    return -magnitude if match["sign"] or match["inner_sign"] else magnitude
