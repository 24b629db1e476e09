r"""The last layer of the LaTeX grader: math-verify, for what our own reader cannot read.

It is asked only about short answers without percent signs, units, thousands marks and huge numbers, which it would
misread (its runtime does, silently, under the ANTLR that OmegaConf pins), and its "yes" counts only when its tolerances
cannot have made it: both sides must use the same letters in the same case, and its rounding is set beyond any answer's
digits. math-verify and sympy are imported when first needed.
"""

import functools
import logging
import re
from typing import Any

from irpo_nemo.errors import MachineError
from irpo_nemo.grading.latex_value import TooCostlyError

MAX_LENGTH = 200
"""Characters of an answer that math-verify is asked about."""
_ROUNDING = 40
_PRECISION = 60

_COSTLY = re.compile(r"!|\d{13,}|\^\{[^{}]*\^|\}\^|\^\{-?\d{3,}|\d\d\^\{-?\d{2,}|\\binom")
_BEYOND = re.compile(
    r"\\(?:i*nt|sum|prod|lim|gcd|lcm|operatorname|det|b?mod|pmod|[lc]?dots)(?![A-Za-z])|\.\.\.|\\[$%]|\d_"
)


def is_worth_asking(gold: str, answer: str) -> bool:
    """Whether both look like formulas at all; two plain words differ without any library."""
    return all(re.search(r"\d|\\[A-Za-z]", text) is not None for text in (gold, answer))


def is_equal(gold: str, answer: str) -> bool:
    """Whether math-verify calls two normalized answers equal, its known false positives excepted.

    Raises:
        TooCostlyError: It could be busy with them for long.
    """
    if max(len(gold), len(answer)) > MAX_LENGTH or _letters(gold) != _letters(answer):
        return False
    if any(_BEYOND.search(text) for text in (gold, answer)):
        return False
    if any(_COSTLY.search(text) for text in (gold, answer)):
        raise TooCostlyError("math-verify could be busy with this for long")
    parse, verify = _load()
    trees = [_parse(parse, text) for text in (gold, answer)]
    if not all(trees):
        return False
    return bool(
        verify(
            trees[0],
            trees[1],
            float_rounding=_ROUNDING,
            numeric_precision=_PRECISION,
            strict=True,
            timeout_seconds=None,
        )
    )


def _letters(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)))


def _parse(parse: Any, text: str) -> Any:
    text = (
        text.replace("\\degree", "").replace("\\pmatrix", "\\begin{pmatrix}").replace("\\endpmatrix", "\\end{pmatrix}")
    )
    return parse(f"${text.replace(chr(92) + 'cr', chr(92) * 2)}$", fallback_mode="no_fallback", parsing_timeout=None)


@functools.cache
def _load() -> tuple[Any, Any]:
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    for name in ("math_verify.grader", "math_verify.parser"):
        # Deadlines are the pool's: math-verify's own alarm signals would collide with them, and it warns without them.
        logging.getLogger(name).setLevel(logging.ERROR)
    return functools.partial(parse, extraction_config=[LatexExtractionConfig()]), verify


def self_test() -> None:
    """Ask math-verify about pairs whose answer is known.

    Raises:
        MachineError: It does not answer as it should.
    """
    for gold, answer, wanted in _KNOWN:
        if is_equal(gold, answer) != wanted:
            raise MachineError(
                f"math-verify says that {gold} and {answer} are {'different' if wanted else 'equal'}; the installed "
                "math-verify, latex2sympy2_extended and antlr4-python3-runtime do not fit. Reinstall irpo-nemo."
            )


_KNOWN = (
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{1}{3}", "0.333333333", False),
    (r"x^{2}+2x+1", "(x+1)^{2}", True),
    (r"3R^{2}", "3r^{2}", False),
    (r"\pmatrix1&2\cr3&4\endpmatrix", r"\pmatrix1&2\cr3&\frac{8}{2}\endpmatrix", True),
    (r"\{1,2\}", r"\{2,1\}", True),
    (r"(1,2)", r"[1,2]", False),
)
