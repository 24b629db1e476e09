"""Labels of options in a phrase: is "A" a label or an article, what does "A or B" list, whose text is "a plant"?

Knows phrases only; where in a completion they stand is the business of `choice`.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

BOX_OPENS, BOX_CLOSES = "⟦", "⟧"
"""Brackets that stand for a LaTeX box."""

_OPENING, _CLOSING = "([{<⟦'", ")]}>⟧'"
_KIND = r"(?:options?|choices?|letters?|answers?|numbers?|statements?|labels?)"
_FILLER = re.compile(
    r"""(?:[\s:=>\-,~]
    |\b(?:the|that|this|an?(?=\s+(?:option|choice|letter))|definitely|clearly|certainly|surely|for\s+sure|most|likely
    |probably|therefore|thus|hence|then|so|indeed|actually|obviously|of\s+course|in\s+fact|simply|just|now|either|both|is
    |to\s+be|be|my|our|correct|right|best|final|answer|I\s+think|I\s+believe|I\s+am|I'm|going\s+with|it\s+is|it's|one
    |labell?ed|marked|given\s+by|represented\s+by|only|really|still|perhaps|maybe|described\s+(?:by|in)|found\s+in|with
    |would|must|should)\b(?![)\].]))*""",
    re.IGNORECASE | re.VERBOSE,
)
NEGATION = re.compile(
    r"\b(?:not|no|none|neither|nor|never|cannot|wrong|incorrect|false|eliminat\w*|exclud\w*|rul\w+\s+out|unlike|except"
    r"|rather\s+than|instead\s+of|other\s+than)\b|n't\b",
    re.IGNORECASE,
)
_AFTER_LABEL = re.compile(
    r"\s+(?:because|since|as|is|was|and|or|but|due|which|while|not|rather|instead|would|seems|given|so|therefore|by)\b",
    re.IGNORECASE,
)
_JOIN = re.compile(
    r"\s*(?:,?\s*(?:and/or|and|or|nor)\b|[,/&+]|-(?=\S))\s*(?:also\s+|possibly\s+|maybe\s+)?|[ \t]+", re.IGNORECASE
)
_JOIN_AFTER_TEXT = re.compile(r"[^.;:\n]{1,120}?,?\s(?:or|and)\s+", re.IGNORECASE)
_REASON = re.compile(r"\b(?:because|since|as|while|whereas|but|so|than)\b", re.IGNORECASE)
CLAUSE = re.compile(
    r"\s+(?:is|are|was|does|do|can|cannot|would|will|has|have|describes|refers|states|says)\b", re.IGNORECASE
)
"""What follows a label of which something is said: "A is wrong"."""
_SET_ASIDE = re.compile(r"\s*[,;]?\s*(?:but|it\s+is|it's)(?:\s+rather|\s+instead)?\b", re.IGNORECASE)
_NOT = re.compile(r"not\s+", re.IGNORECASE)
SPELLINGS = str.maketrans(
    {
        "\N{IDEOGRAPHIC FULL STOP}": ". ",
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "-",
        "\r": None,
    }
)


@dataclass(frozen=True)
class Options:
    """The labels of a question, in its own spelling and order, and their texts in normal form where known."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def pattern(self) -> "re.Pattern[str]":
        """Matches a label, with the brackets around it and the kind ("option") before it."""
        return _label_pattern(self.labels)

    def spell(self, label: str) -> str:
        """A label as the question writes it."""
        return next(own for own in self.labels if own.casefold() == label.casefold())

    def text_of(self, label: str) -> str:
        """The text of a label's option; empty when it is not known."""
        return self.texts[self.labels.index(self.spell(label))] if self.texts else ""


@lru_cache(maxsize=256)
def _label_pattern(labels: tuple[str, ...]) -> "re.Pattern[str]":
    names = "|".join(sorted(map(re.escape, labels), key=len, reverse=True))
    return re.compile(
        rf"(?<![\w\\])(?P<kind>{_KIND}\s*:?\s+)?(?P<open>[{re.escape(_OPENING)}]{{0,4}})(?P<label>{names})"
        rf"(?P<close>\s?[{re.escape(_CLOSING)}]{{1,4}})?(?![\w+%]|[.,:]\d|-\w\w|'[a-z])",
        re.IGNORECASE,
    )


def skip_filler(phrase: str, start: int) -> int:
    """Where the words that may stand before an answer end: "is clearly the option"."""
    match = _FILLER.match(phrase, start)
    return match.end() if match else start


def read_labels(phrase: str, options: Options) -> tuple[frozenset[str], int]:
    """The labels that `phrase` gives as its answer ("A or B": both, "not A but B": B), and where they end."""
    position = skip_filler(phrase, 0)
    if negation := _NOT.match(phrase, position):
        _, position = read_list(phrase, negation.end(), options)
        if (contrast := _SET_ASIDE.match(phrase, position)) is None:
            return frozenset(), position
        position = skip_filler(phrase, contrast.end())
    return read_list(phrase, position, options)


def read_list(phrase: str, position: int, options: Options) -> tuple[frozenset[str], int]:
    """The labels that stand at `position`, joined by "and", "or" and the like, and where they end."""
    labels: set[str] = set()
    start: int | None = position
    while start is not None and (match := options.pattern.match(phrase, start)):
        if not is_label(match, phrase, options) or (labels and not _is_listed(match, phrase, position)):
            break
        labels.add(options.spell(match["label"]))
        position = match.end()
        start = _next_in_list(phrase, match, options)
    return frozenset(labels), position


def _next_in_list(phrase: str, match: "re.Match[str]", options: Options) -> int | None:
    """Where a further label of the list could stand."""
    join = None if is_own_text(phrase, match, options) else _JOIN.match(phrase, match.end())
    if join and options.pattern.match(phrase, join.end()):
        return join.end()
    text = _JOIN_AFTER_TEXT.match(phrase, match.end()) if is_marked(match) else None
    if text is None or NEGATION.search(text[0]) or _REASON.search(text[0]):
        return None
    further = options.pattern.match(phrase, text.end())
    return text.end() if further and further["open"] and is_marked(further) else None


def _is_listed(match: "re.Match[str]", phrase: str, end_of_last: int) -> bool:
    """Whether a label belongs to the list before it: not the B of "A, B is wrong"."""
    between, rest = phrase[end_of_last : match.start()], phrase[match.end() :]
    if CLAUSE.match(rest):
        return False
    if re.search(r"\w", between):
        return True
    if not between.strip():
        return bool(match["open"] and match["close"]) or not rest.strip(" .")
    return re.match(r"\s+(?!and\b|or\b)\w", rest) is None


def is_label(match: "re.Match[str]", text: str, options: Options) -> bool:
    """Whether a label that stands in a text is meant as one: "(A) plant", "B plant", "A because", but not "A plant"."""
    if is_marked(match):
        return True
    label, rest = match["label"], text[match.end() : match.end() + 200]
    word = re.match(r"[ \t]+([\w']+)", rest)
    if word is None or _AFTER_LABEL.match(rest):
        return True
    if label.isupper() and (label not in ("A", "I") or word[1][0].isupper()):
        return True
    return is_own_text(text, match, options)


def is_own_text(phrase: str, match: "re.Match[str]", options: Options) -> bool:
    """Whether the text of a label's option follows it."""
    own_text = options.text_of(match["label"]).casefold()
    rest = normalize(phrase[match.end() : match.end() + 200]).casefold()
    return bool(own_text) and rest.startswith(own_text[:100])


def is_marked(match: "re.Match[str]") -> bool:
    """Whether brackets or a word such as "option" make a label one beyond doubt."""
    close = (match["close"] or "").strip()
    return bool(match["kind"]) or close[:1] == ")" or bool(match["open"] and close)


def find_marked_labels(phrase: str, options: Options) -> frozenset[str]:
    """The labels beyond doubt in a phrase, unless it denies something."""
    if NEGATION.search(phrase):
        return frozenset()
    return frozenset(options.spell(m["label"]) for m in options.pattern.finditer(phrase) if is_marked(m))


def match_text(phrase: str, options: Options) -> frozenset[str]:
    """The option whose whole text `phrase` begins with, the longest such; empty when none or two have it."""
    body = phrase[skip_filler(phrase, 0) :]
    for fold in (str, str.casefold):
        texts = [fold(text) for text in options.texts]
        for candidate in (fold(normalize(phrase)), fold(normalize(body))):
            longest = max((text for text in texts if text and _begins_with(candidate, text)), key=len, default=None)
            if longest is not None and texts.count(longest) == 1:
                return frozenset([options.labels[texts.index(longest)]])
    return frozenset()


def _begins_with(phrase: str, text: str) -> bool:
    rest = phrase[len(text) :]
    return phrase.startswith(text) and (
        not rest or bool(re.match(r"\W*[.,;:)(⟧]|\s+(?:because|since|as|which|due)\b", rest))
    )


def normalize(text: str) -> str:
    """Collapse white space, drop signs around and articles in front."""
    text = " ".join(unicodedata.normalize("NFKC", text).translate(SPELLINGS).split()).strip(" .,:;*'\"`!⟦⟧")
    return re.sub(r"^(?:an?|the)\s+(?=\w)", "", text, flags=re.IGNORECASE)
