r"""Labels of multiple-choice options: letters or digits, whichever `choice_labels` says.

What a completion declares is looked for in layers:

    final_answer   "Final answer: (B)", "**Final Answer**" above "B"
    boxed          \boxed{B}
    answer         "the correct answer is B", "Answer: B) text", "I choose B", "B is the right choice"
    called_right   "option B is correct", said of one label only
    conclusion     "so B.", "it must be (B)" in the last line
    label_line     a line that is a label, or the only label that lines begin with: "B. Because A is not valid"
    last_line      a last line that is an option's own text

Where one of the first three has no label but an option's own text, "/text" follows its name. Of
these three the last declaration wins, wherever it stands; the others count only when there is none. Policies:

  * A declaration that names two labels ("A or B") is unparsable; one that it sets aside ("B, not A") is not named.
  * A label that the question does not have ("Final answer: F") is unparsable. Letters never stand for digits.
  * "A plant" is no A, nor "3 metres" a 3: before a plain word only B and further capitals are labels by themselves.
  * A label counts before the text beside it: "(B) iron" is B, whatever B's text is.
  * What follows an invented next question is not looked at once an answer has been declared.
  * A placeholder copied from the prompt, "(insert letter here)", declares nothing.

When the problem has no `choice_labels`, they are A to E, or 1 to 5 for a gold answer that is a digit.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from irpo_nemo.errors import DataError
from irpo_nemo.grading.grade import Grade
from irpo_nemo.records import Problem, Verdict

MAX_LENGTH = 50_000
"""Characters of a completion that are looked at: its last ones."""
MAX_PHRASE_LENGTH = 400
"""Characters of a declaration that are looked at."""

_BOX_OPENS, _BOX_CLOSES = "⟦", "⟧"
_OPENING, _CLOSING = "([{<⟦'", ")]}>⟧'"
_SPELLINGS = str.maketrans(
    {
        "\N{IDEOGRAPHIC FULL STOP}": ". ",
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "-",
        "\r": None,
    }
)
_KIND = r"(?:options?|choices?|letters?|answers?|numbers?|statements?|labels?)"
_RIGHT = r"(?:correct|right|best|true|accurate|appropriate|proper|logical|likely|reasonable|final|only|intended)"
_CHOICE = r"(?:answer|option|choice|selection|response|one|statement|explanation|conclusion|description)"
_VERB = r"(?:is|was|would\s+be|will\s+be|must\s+be|should\s+be|has\s+to\s+be|might\s+be|could\s+be|seems\s+to\s+be)"

_CUE = re.compile(
    rf"""
    (?P<final_answer>\bfinal\s+(?:answer|choice)(?:\s+{_VERB}\b|\s*[:=\-\n]|\s+(?=[(\[⟦])))
  | (?P<boxed>{_BOX_OPENS})
  | (?P<answer>
        (?<![\w-])(?:answer|ans)(?:\s+(?:choice|option|letter))?\s*(?:[:=]|-(?=\s)|\.(?=\s*[(\[]?\w[)\].\s]))
      | \banswer(?:\s+[\w',()/-]+){{0,8}}?\s+{_VERB}\b
      | \b{_RIGHT}\s+(?:\w+\s+)?{_CHOICE}(?:\s+[\w',()/-]+){{0,8}}?(?:\s+{_VERB}\b|\s*[:=])
      | \b{_RIGHT}\s+answers\s+are\b
      | \b{_RIGHT}\s+{_CHOICE},?\s+(?=\()
      | ^\s*answer\s+(?=\W?\w\W{{0,2}}$)
      | \b(?:I|we)(?:\s+(?:would|will|can|must|should|shall|therefore|'ll)|'(?:ll|d))?\s+
        (?:choose|pick|select|chose|picked|selected|go\s+with|went\s+with|answer)\b
    )
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_HYPOTHESIS = re.compile(r"\b(?:if|whether|suppose|assume|assuming|why|not)\b[^.,:;\n]{0,24}$", re.IGNORECASE)
_FILLER = re.compile(
    r"""(?:[\s:=>\-,~]|\.\s
    |\b(?:the|that|this|an?(?=\s+(?:option|choice|letter))|definitely|clearly|certainly|surely|for\s+sure|most|likely|probably|therefore|thus|hence|then
    |so|indeed|actually|obviously|of\s+course|in\s+fact|simply|just|now|either|both|is|to\s+be|be|my|our|correct|right
    |best|final|answer|I\s+think|I\s+believe|I\s+am|I'm|going\s+with|it\s+is|it's|one|labell?ed|marked|given\s+by
    |represented\s+by|only|really|still|perhaps|maybe|described\s+(?:by|in)|found\s+in|with|would|must|should)\b(?![)\].]))*""",
    re.IGNORECASE | re.VERBOSE,
)
_NEGATION = re.compile(
    r"\b(?:not|no|none|neither|nor|never|cannot|wrong|incorrect|false|eliminat\w*|exclud\w*|rul\w+\s+out|unlike|except"
    r"|rather\s+than|instead\s+of|other\s+than)\b|n't\b",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\W*(?:none|neither|cannot|can't|unknown|unclear|undetermined|n/a|not|no\b|all\b|both\b)", re.IGNORECASE
)
_AFTER_LABEL = re.compile(
    r"\s+(?:because|since|as|is|was|and|or|but|due|which|while|not|rather|instead|would|seems|given|so|therefore|by)\b",
    re.IGNORECASE,
)
_JOIN = re.compile(
    r"\s*(?:,?\s*(?:and|or|nor|and/or)\b|[,/&+]|-(?=\S))\s*(?:also\s+|possibly\s+|maybe\s+)?", re.IGNORECASE
)
_CLAUSE = re.compile(
    r"\s+(?:is|are|was|does|do|can|cannot|would|will|has|have|describes|refers|states|says)\b", re.IGNORECASE
)
_SET_ASIDE = re.compile(r"\s*[,;]?\s*(?:but|it\s+is|it's)(?:\s+rather|\s+instead)?\b", re.IGNORECASE)
_IS_THE_ANSWER = re.compile(
    rf"\s*,?\s*{_VERB}\s+(?:\w+ly\s+)?(?:the|our|my)\s+(?:answer\b|(?:\w+\s+)?{_RIGHT}\s+(?:\w+\s+)?{_CHOICE}\b)",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(
    rf"\s*,?\s*{_VERB}\s+(?:\w+ly\s+|the\s+)*(?:correct|right)\b(?!\s+(?:in|that|about|but|side|angle))", re.IGNORECASE
)
_CONCLUSION = re.compile(
    r"\b(?:so|thus|therefore|hence|it\s+is|it's|this\s+is|that\s+is|(?:it|this|that)\s+must\s+be|leav(?:es|ing)(?:\s+us\s+with)?"
    r"|match(?:es|ing)|corresponds?\s+to|corresponding\s+to|think|believe|guess|say|conclude)\b",
    re.IGNORECASE,
)
_BEFORE_BARE_LABEL = re.compile(
    r"(?:^|[.!?,:;⟧>\n]|\b(?:so|thus|hence|therefore|that|and|think|believe|conclude|then|but))\s*$", re.IGNORECASE
)
_SET_OFF = re.compile(r"\s*(?:[.:,;\-]|$)|\s+(?:[A-Z]|because\b|since\b)")
_EMPTY_DECLARATION = re.compile(r"\W*(?:final\s+)?answer\W*", re.IGNORECASE)
_NEXT_QUESTION = re.compile(
    r"^[#>\s]*(?:(?:next\s+)?question|problem|exercise|q|human|user|instruction)\s*\d*\s*[:.]|^\s*your\s+task\s+is\b|^\s*\[INST\]",
    re.IGNORECASE | re.MULTILINE,
)
_NEXT_OPTIONS = re.compile(r"^\s*\(?[A1][).:]\s.+\n\s*\(?[B2][).:]\s", re.MULTILINE)
_PLACEHOLDER = re.compile(
    r"[(\[<{]?\s*(?:please\s+)?insert\s+(?:the\s+|your\s+)?(?:\w+\s+)?(?:letter|answer|option|choice)(?:\s+here)?\s*[)\]>}]?",
    re.IGNORECASE,
)
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mathtt|operatorname|emph)\s*\{([^{}]*)\}"
)
_BOXED = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")


@dataclass(frozen=True)
class _Options:
    """The labels of a question, in its own spelling and order, and their texts in normal form where known."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def pattern(self) -> "re.Pattern[str]":
        return _label_pattern(self.labels)

    def spell(self, label: str) -> str:
        return next(own for own in self.labels if own.casefold() == label.casefold())


@dataclass(frozen=True)
class _Found:
    """What a place in the text declares."""

    labels: frozenset[str]
    """Empty when it declares something that is no label."""
    layer: str
    end: int = 0


@lru_cache(maxsize=256)
def _label_pattern(labels: tuple[str, ...]) -> "re.Pattern[str]":
    names = "|".join(sorted(map(re.escape, labels), key=len, reverse=True))
    return re.compile(
        rf"(?<![\w\\])(?P<kind>{_KIND}\s*:?\s+)?(?P<open>[{re.escape(_OPENING)}]*)(?P<label>{names})"
        rf"(?P<close>\s?[{re.escape(_CLOSING)}]+)?(?![\w+%]|[.,:]\d|-\w\w|'[a-z])",
        re.IGNORECASE,
    )


def check_gold(problem: Problem) -> None:
    """Refuse a gold answer that names no option of the question.

    Raises:
        DataError: It names none, or two; or labels and texts do not fit together.
    """
    _read_gold(problem)


def grade(problem: Problem, completion_text: str) -> Grade:
    """Judge the option that `completion_text` declares to be its answer.

    Raises:
        DataError: The gold answer names no option of the question.
    """
    options, gold = _read_gold(problem)
    found = find_choice(completion_text, options)
    if len(found.labels) != 1:
        return Grade(answer=None, verdict="unparsable", layer=found.layer)
    (answer,) = found.labels
    return Grade(answer=answer, verdict="correct" if answer == gold else "wrong", layer=found.layer)


def is_same(left: str, right: str) -> bool:
    """Whether two answers are the same label."""
    return left.casefold() == right.casefold()


def _read_gold(problem: Problem) -> tuple[_Options, str]:
    labels = tuple(problem.choice_labels) or _usual_labels(problem.gold_answer)
    if problem.choices and len(problem.choices) != len(labels):
        raise DataError(f"has {len(problem.choices)} choices for {len(labels)} labels. Give each choice one label.")
    if len({label.casefold() for label in labels}) < len(labels) or not all(labels):
        raise DataError(f"choice labels {', '.join(labels)} are not all different. Give each choice its own label.")
    options = _Options(labels, tuple(map(_normalize, problem.choices)))
    gold = _normalize_text(problem.gold_answer).strip()
    named = _read_line(gold, options) or _match_text(gold, options) or _read_opening_label(gold, options)
    if len(named) != 1:
        raise DataError(
            f"gold answer {problem.gold_answer!r} is none of the labels {', '.join(labels)}; wanted one of them."
        )
    (label,) = named
    return options, label


def _usual_labels(gold_answer: str) -> tuple[str, ...]:
    return tuple("12345") if re.match(r"\W*[1-5]\b", gold_answer) else tuple("ABCDE")


def find_choice(completion_text: str, options: _Options) -> _Found:
    """What a completion declares, and the layer that decided."""
    text = _cut_next_question(_normalize_text(completion_text[-MAX_LENGTH:]), options)
    declarations = list(_find_declarations(text, options))
    if declarations:
        readable = [found for found in declarations if found.layer != "unread"]
        return readable[-1] if readable else _Found(frozenset(), "none")
    for find in (_find_called_right, _find_conclusion, _find_label_line, _find_text_line):
        if (found := find(text, options)) is not None:
            return found
    return _Found(frozenset(), "none")


def _normalize_text(text: str) -> str:
    """Drop markdown, LaTeX and quotes, write boxes as brackets of their own, full-width signs as ASCII."""
    text = unicodedata.normalize("NFKC", text).translate(_SPELLINGS)
    text = re.sub(r"[*`$\"“”]|__|\\[()\[\]](?!\w)|\\(?=[()\[\]])|<(?:/?b|/?strong|br\s*/?)>", "", text)
    text = re.sub(r"<answer>", "answer: ", re.sub(r"</answer>", "\n", text))
    for _ in range(2):
        text = _TEXT_COMMAND.sub(r"\1", text)
    text = _BOXED.sub(rf"{_BOX_OPENS}\1{_BOX_CLOSES}", text)
    return _PLACEHOLDER.sub("", text)


def _cut_next_question(text: str, options: _Options) -> str:
    """Keep what stands before an invented question, if an answer was declared before it."""
    for pattern, needed in ((_NEXT_QUESTION, ""), (_NEXT_OPTIONS, "final answer")):
        for match in pattern.finditer(text):
            before = text[: match.start()]
            if needed in before.casefold() and find_declared(before, options):
                text = before
                break
    return text


def find_declared(text: str, options: _Options) -> bool:
    return any(found.labels for found in _find_declarations(text, options))


def _find_declarations(text: str, options: _Options) -> Iterator[_Found]:
    """All explicit declarations, in order; those within the labels of the one before are part of it."""
    found = [*_find_announced(text, options), *_find_called_the_answer(text, options)]
    end = 0
    for start, declaration in sorted(found, key=lambda item: item[0]):
        if start >= end:
            end = declaration.end
            yield declaration


def _find_announced(text: str, options: _Options) -> Iterator[tuple[int, _Found]]:
    for cue in _CUE.finditer(text):
        layer = str(cue.lastgroup)
        if layer != "boxed" and _HYPOTHESIS.search(text[max(0, cue.start() - 40) : cue.start()]):
            continue
        declaration = _read_declaration(text, cue.end(), layer, options)
        if declaration is not None:
            yield cue.start(), declaration


def _read_declaration(text: str, start: int, layer: str, options: _Options) -> _Found | None:
    """What stands behind a cue; None when that is no declaration."""
    phrase = text[start : start + MAX_PHRASE_LENGTH]
    if layer == "boxed":
        phrase = phrase.partition(_BOX_CLOSES)[0] + _BOX_CLOSES + phrase.partition(_BOX_CLOSES)[2].partition("\n")[0]
    else:
        phrase = _keep_first_line(phrase)
    labels, end = _read_labels(phrase, options)
    if labels:
        return _Found(labels, layer, start + end)
    body = phrase.partition(_BOX_CLOSES)[0] if layer == "boxed" else phrase
    if named := _match_text(body, options) or _find_marked_labels(body, options):
        return _Found(named, f"{layer}/text" if _match_text(body, options) else layer, start + len(body))
    if layer == "answer" or not re.search(r"\w", body):
        return None
    other_label = re.fullmatch(r"[^\w]*[A-Za-z0-9][^\w]*", body)
    return _Found(frozenset(), layer if other_label or _REFUSAL.match(body) else "unread", start)


def _keep_first_line(phrase: str) -> str:
    """Up to the end of the first line that says something."""
    silent = re.match(r"[^\w⟦]*\n", phrase)
    end = phrase.find("\n", silent.end() if silent else 0)
    return phrase if end < 0 else phrase[:end]


def _skip_filler(phrase: str, start: int) -> int:
    match = _FILLER.match(phrase, start)
    return match.end() if match else start


def _read_labels(phrase: str, options: _Options) -> tuple[frozenset[str], int]:
    """The labels that `phrase` begins with, joined by "and", "or" and the like, and where they end."""
    position = _skip_filler(phrase, 0)
    if negation := re.compile(r"not\s+", re.IGNORECASE).match(phrase, position):
        _, position = _read_list(phrase, negation.end(), options)
        if (contrast := _SET_ASIDE.match(phrase, position)) is None:
            return frozenset(), position
        position = _skip_filler(phrase, contrast.end())
    return _read_list(phrase, position, options)


def _read_list(phrase: str, position: int, options: _Options) -> tuple[frozenset[str], int]:
    labels: set[str] = set()
    join = None
    while match := options.pattern.match(phrase, position if join is None else join.end()):
        if not _is_label(match, phrase, options) or (join and _CLAUSE.match(phrase, match.end())):
            break
        if join and not join[0].strip().isalpha() and re.match(r"\s+(?!and\b|or\b)\w", phrase[match.end() :]):
            break
        labels.add(options.spell(match["label"]))
        position = match.end()
        join = _JOIN.match(phrase, position)
        if join is None:
            break
    return frozenset(labels), position


def _is_label(match: "re.Match[str]", text: str, options: _Options) -> bool:
    """Whether a label that stands in a text is meant as one: "(A) plant", "B plant", "A because", but not "A plant"."""
    if _is_marked(match):
        return True
    label, rest = match["label"], text[match.end() :]
    word = re.match(r"[ \t]+([\w']+)", rest)
    if word is None or _AFTER_LABEL.match(rest):
        return True
    if label.isupper() and (label not in ("A", "I") or word[1][0].isupper()):
        return True
    own_text = _own_text(label, options)
    return bool(own_text) and _normalize(rest).casefold().startswith(own_text.casefold())


def _is_marked(match: "re.Match[str]") -> bool:
    close = (match["close"] or "").strip()
    return bool(match["kind"]) or close[:1] == ")" or bool(match["open"] and close)


def _own_text(label: str, options: _Options) -> str:
    position = options.labels.index(options.spell(label))
    return options.texts[position] if options.texts else ""


def _match_text(phrase: str, options: _Options) -> frozenset[str]:
    """The option whose whole text `phrase` begins with, the longest such; empty when none or two have it."""
    body = phrase[_skip_filler(phrase, 0) :]
    for fold in (str, str.casefold):
        texts = [fold(text) for text in options.texts]
        for candidate in (fold(_normalize(phrase)), fold(_normalize(body))):
            longest = max((text for text in texts if text and _begins_with(candidate, text)), key=len, default=None)
            if longest is not None and texts.count(longest) == 1:
                return frozenset([options.labels[texts.index(longest)]])
    return frozenset()


def _begins_with(phrase: str, text: str) -> bool:
    rest = phrase[len(text) :]
    return phrase.startswith(text) and (
        not rest or bool(re.match(r"\W*[.,;:)(⟧]|\s+(?:because|since|as|which|due)\b", rest))
    )


def _find_marked_labels(phrase: str, options: _Options) -> frozenset[str]:
    """The labels in brackets or called options in the first sentence, unless it denies something."""
    sentence = re.split(r"[.!?;]\s", phrase, maxsplit=1)[0]
    if _NEGATION.search(sentence):
        return frozenset()
    return frozenset(options.spell(m["label"]) for m in options.pattern.finditer(sentence) if _is_marked(m))


def _find_called_the_answer(text: str, options: _Options) -> Iterator[tuple[int, _Found]]:
    """ "B is the correct answer" """
    for match in _find_subjects(text, options):
        if predicate := _IS_THE_ANSWER.match(text, match.end()):
            label = frozenset([options.spell(match["label"])])
            yield match.start(), _Found(label, "answer", predicate.end())


def _find_called_right(text: str, options: _Options) -> _Found | None:
    """ "B is correct", if it is said of one label only."""
    labels = {options.spell(m["label"]) for m in _find_subjects(text, options) if _IS_RIGHT.match(text, m.end())}
    return _Found(frozenset(labels), "called_right") if labels else None


def _find_subjects(text: str, options: _Options) -> Iterator["re.Match[str]"]:
    for match in options.pattern.finditer(text):
        before = text[max(0, match.start() - 40) : match.start()]
        if (_is_marked(match) or _BEFORE_BARE_LABEL.search(before)) and not _HYPOTHESIS.search(before):
            yield match


def _find_conclusion(text: str, options: _Options) -> _Found | None:
    """What the last line concludes: "so B." """
    line = _lines(text)[-1] if _lines(text) else ""
    for cue in reversed(list(_CONCLUSION.finditer(line))):
        labels, _ = _read_labels(line[cue.end() :], options)
        if labels:
            return _Found(labels, "conclusion")
    return None


def _find_label_line(text: str, options: _Options) -> _Found | None:
    """A last line that is a label; else the only label that lines begin with."""
    lines = _lines(text)
    if lines and (labels := _read_line(lines[-1], options)):
        return _Found(labels, "label_line")
    opened = [_read_opening_label(line, options) for line in lines]
    labels = frozenset().union(*opened)
    return _Found(labels, "label_line") if opened and (opened[0] or opened[-1]) else None


def _read_line(line: str, options: _Options) -> frozenset[str]:
    """The labels that a whole line consists of."""
    labels, end = _read_list(line, 0, options)
    return labels if not re.search(r"\w", line[end:]) else frozenset()


def _read_opening_label(line: str, options: _Options) -> frozenset[str]:
    """The label that a line begins with, or the labels, where it lists several."""
    line = line.lstrip(" -•#>")
    match = options.pattern.match(line)
    if match is None:
        return frozenset()
    labels, end = _read_list(line, 0, options)
    is_set_off = _is_marked(match) or _SET_OFF.match(line, end)
    return labels if is_set_off else frozenset()


def _find_text_line(text: str, options: _Options) -> _Found | None:
    """A last line that is an option's text."""
    lines = _lines(text)
    labels = _match_text(lines[-1], options) if lines else frozenset()
    return _Found(labels, "last_line") if labels else None


def _lines(text: str) -> list[str]:
    """The lines that say something."""
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line and not _EMPTY_DECLARATION.fullmatch(line)]


def _normalize(text: str) -> str:
    """Collapse white space, drop signs around and articles in front."""
    text = " ".join(unicodedata.normalize("NFKC", text).translate(_SPELLINGS).split()).strip(" .,:;*'\"`!⟦⟧")
    return re.sub(r"^(?:an?|the)\s+(?=\w)", "", text, flags=re.IGNORECASE)


def golden_cases() -> list[tuple[Problem, str, Verdict]]:
    """Problems, completions and the verdicts they must get; a self-test of this machine."""
    letters = _case("B", "ABCD", ["ice", "a plant", "iron", "3"])
    digits = _case("3", "1234", [])
    return [
        (letters, "The sun melts it.\nFinal answer: (B)", "correct"),
        (letters, "Iron rusts.\nFinal answer: C", "wrong"),
        (letters, r"Leaves are green, so $\boxed{\text{B}}$.", "correct"),
        (letters, "The answer is a plant.", "correct"),
        (letters, "The correct answer is (B) because (A) melts.", "correct"),
        (letters, "Final answer: A or B", "unparsable"),
        (letters, "Answer: (E)", "unparsable"),
        (letters, "Final answer: B\nQuestion: And then?\nFinal answer: A", "correct"),
        (digits, "Answer: 3", "correct"),
        (digits, "It is 3 metres long.", "unparsable"),
    ]


def _case(gold: str, labels: Sequence[str], choices: list[str]) -> Problem:
    return Problem(problem_id="", question="", gold_answer=gold, choice_labels=list(labels), choices=choices)
