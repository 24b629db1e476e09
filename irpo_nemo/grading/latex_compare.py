r"""Two answers in LaTeX, compared in layers; the first that can tell decides.

    string        one spelling (`latex_normal`)
    numeric       two plain numbers, as fractions
    algebra       two trees (`latex_reader`, `latex_equality`): exact arithmetic, structure, identities
    math_verify   the library, for what cannot be read here

What none of them calls equal is different. Answers too large to be computed raise `TooCostlyError`, unless they are
spelled alike.
"""

import functools
import re
from fractions import Fraction

from irpo_nemo.grading import math_verify_layer
from irpo_nemo.grading.latex_equality import is_same_answer
from irpo_nemo.grading.latex_normal import UnreadableError, normalize
from irpo_nemo.grading.latex_reader import Answer, read_answer

MAX_ANSWER_LENGTH = 1500
"""Characters; what is longer is no answer."""

_PLAIN_NUMBER = re.compile(
    r"(?P<sign>-?)(?:\\frac\{(?P<top>-?\d{1,200})\}\{(?P<bottom>\d{1,200})\}"
    r"|(?P<number>\d{1,200}(?:\.\d{0,200})?|\.\d{1,200})(?:/(?P<divisor>\d{1,200}))?)"
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")


@functools.lru_cache(maxsize=16384)
def compare(gold: str, answer: str) -> tuple[bool, str]:
    """Whether two answers mean the same, and the layer that decided.

    Raises:
        TooCostlyError: They are too large to be computed.
    """
    try:
        gold, answer = normalize(gold), normalize(answer)
    except UnreadableError:
        return gold == answer, "string"
    if not answer:
        return not gold, "string"
    if _fold_words(gold) == _fold_words(answer):
        return True, "string"
    numbers = _read_plain(gold), _read_plain(answer)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0] == numbers[1], "numeric"
    if (verdict := _compare_trees(gold, answer)) is not None:
        return verdict, "algebra"
    if not math_verify_layer.is_worth_asking(gold, answer):
        return False, "string"
    return math_verify_layer.is_equal(gold, answer), "math_verify"


def _fold_words(text: str) -> str:
    r"""Without \text, and words of two letters and more in lower case."""
    text = re.sub(r"\\text\{([^{}]*)\}", lambda m: m[1], text)
    return re.sub(r"(?<![\\A-Za-z])[A-Za-z]{2,}", lambda m: m[0].casefold(), text).replace(" ", "")


def _read_plain(text: str) -> Fraction | None:
    text = text.replace("\\$", "", 1).replace("\\degree", "")
    if _THOUSANDS.fullmatch(text.lstrip("-")):
        text = text.replace(",", "")
    match = _PLAIN_NUMBER.fullmatch(text)
    if match is None:
        return None
    top, bottom = match["top"] or match["number"], match["bottom"] or match["divisor"] or "1"
    if int(bottom) == 0:
        return None
    value = Fraction(top) / Fraction(bottom)
    return -value if match["sign"] else value


def _compare_trees(gold: str, answer: str) -> bool | None:
    verdicts = [
        is_same_answer(gold_tree, answer_tree)
        for gold_tree in read_both_ways(gold)
        for answer_tree in read_both_ways(answer)
    ]
    if True in verdicts:
        return True
    return None if None in verdicts or not verdicts else False


@functools.lru_cache(maxsize=4096)
def read_both_ways(text: str) -> tuple[Answer, ...]:
    """The trees of an answer: two where a comma may mark thousands or separate, as in 100,200; none if unreadable.

    Of "\\lim ... = 1", where only the last side can be read, it is that side.
    """
    texts = [text]
    if (joined := _join_thousands(text)) != text:
        texts.append(joined)
    trees = []
    for reading in texts:
        for part in (reading, reading.rpartition("=")[2]):
            try:
                trees.append(read_answer(part))
                break
            except UnreadableError:
                continue
    return tuple(trees)


def _join_thousands(text: str) -> str:
    """Thousands without commas, but not within brackets, where commas separate."""
    return text if re.match(r"[(\[]|\\\{", text) else _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
