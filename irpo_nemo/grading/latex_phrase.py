r"""Which part of an announcing phrase is the answer: "the area is $5\pi$ square feet." says 5\pi."""

import re

from irpo_nemo.grading.extract import find_last_boxes
from irpo_nemo.grading.numeric import read_number

MAX_PHRASE_LENGTH = 2000
"""Characters that are looked at."""

_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:[^$\\]|\\.)+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_CONNECTIVE = re.compile(r"[\s,;]*(?:and|or)?[\s,;]*")
_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?")
_IS_NEXT = re.compile(r"\s*(?:is|are|=|equals|to be|will be|would be)\b[^$\\.;]{0,60}")
_CURRENCY = re.compile(r"(?<!\\)\$(?=\s?\d)")
_REMARK = re.compile(r"(?<=[\w)}])\s+\((?!\s*base)[^()]*[A-Za-z]{3,}[^()]*\)$")
_SENTENCE_END = re.compile(r"\.(?=\s)|\.\*{0,2}$")
_LEADING = re.compile(
    r"^(?:therefore|thus|so|hence|then)?[\s,:*]*(?:the\s+)?"
    r"(?:(?:final\s+)?answer\s+(?:is|are)|is|are|equals|it is)\b[\s:]*",
    re.IGNORECASE,
)


def pick_answer(phrase: str) -> str:
    """The answer within a phrase: its box, its formula, or what it says in plain words."""
    phrase = phrase[:MAX_PHRASE_LENGTH].strip()
    if boxes := find_last_boxes(phrase):
        return ", ".join(boxes)
    if formulas := _find_formulas(phrase):
        return _join_formulas(phrase, formulas, last=False)
    return _pick_plain(phrase)


def pick_last_formula(phrase: str) -> str | None:
    """The last formula of a phrase, with those that "," "and" or "or" join to it; None when there is none."""
    formulas = _find_formulas(phrase[:MAX_PHRASE_LENGTH])
    return _join_formulas(phrase, formulas, last=True) if formulas else None


def _find_formulas(phrase: str) -> "list[re.Match[str]]":
    formulas = list(_FORMULA.finditer(phrase))
    if len(re.findall(r"(?<!\\)\$", phrase)) % 2 or any(_is_prose(_content(formula)) for formula in formulas):
        return []
    return formulas


def _content(formula: "re.Match[str]") -> str:
    return next(group for group in formula.groups() if group is not None)


def _is_prose(content: str) -> bool:
    r"""Whether two currency signs have made a formula of the words between them."""
    words = re.findall(
        r"(?<![\\A-Za-z{])[A-Za-z]{2,}(?![A-Za-z]*\})", re.sub(r"\\text\{[^{}]*\}|\\[A-Za-z]+", " ", content)
    )
    return len(words) >= 2 or bool(re.match(r"\d[\d,.]*\s+[a-z]{2,}\s*$", content))


def _join_formulas(phrase: str, formulas: "list[re.Match[str]]", *, last: bool) -> str:
    """The first formula that is more than a name, and those that "," "and" or "or" join to it; or the last such."""
    groups: list[list[re.Match[str]]] = []
    for formula in formulas:
        if groups and _CONNECTIVE.fullmatch(phrase[groups[-1][-1].end() : formula.start()]):
            groups[-1].append(formula)
        else:
            groups.append([formula])
    while not last and _only_names(phrase, groups):
        if len(groups) == 1:
            return _pick_plain(phrase[groups[0][-1].end() :])
        groups.pop(0)
    chosen = groups[-1] if last else groups[0]
    return ", ".join(_content(formula) for formula in chosen)


def _only_names(phrase: str, groups: "list[list[re.Match[str]]]") -> bool:
    """Whether the first formula is a name, and what it "is" follows."""
    first = groups[0]
    is_name = len(first) == 1 and _NAME.fullmatch(_content(first[0]).strip()) is not None
    following = phrase[first[-1].end() : groups[1][0].start() if len(groups) > 1 else None]
    return is_name and _IS_NEXT.match(following + " ") is not None


def _pick_plain(phrase: str) -> str:
    """A sentence without formulas: what "is" or "=" says when it is prose, and its one number when there is one."""
    phrase = _CURRENCY.sub(lambda _: "\\$", phrase)
    phrase = _LEADING.sub("", _SENTENCE_END.split(phrase.strip("* "), maxsplit=1)[0]).strip("*: ")
    phrase = _REMARK.sub("", phrase)
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", re.sub(r"\\text\{[^{}]*\}|\\[A-Za-z]+", " ", phrase))
    if len(words) < 3:
        return phrase
    number = read_number(phrase)
    if number is not None and not re.search(r"\\[A-Za-z]|\^", phrase):
        return str(number)
    return phrase.rpartition(" is ")[2] if " is " in phrase else phrase
