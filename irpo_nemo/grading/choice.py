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

from irpo_nemo.errors import DataError
from irpo_nemo.grading.choice_labels import (
    BOX_CLOSES,
    BOX_OPENS,
    CLAUSE,
    NEGATION,
    SPELLINGS,
    Options,
    find_marked_labels,
    is_label,
    is_marked,
    is_own_text,
    match_text,
    normalize,
    read_labels,
    read_list,
)
from irpo_nemo.grading.grade import Grade
from irpo_nemo.records import Problem, Verdict

MAX_LENGTH = 20_000
"""Characters of a completion that are looked at: its last ones."""
MAX_PHRASE_LENGTH = 400
"""Characters of a declaration that are looked at."""
MAX_NEXT_QUESTIONS = 3
"""Places that look like an invented question are tried so often."""

_RIGHT = r"(?:correct|right|best|true|accurate|appropriate|proper|logical|likely|reasonable|final|only|intended)"
_CHOICE = r"(?:answer|option|choice|letter|selection|response|one|statement|explanation|conclusion|description)"
_FIRM_VERB = r"(?:is|was|will\s+be|must\s+be|should\s+be|has\s+to\s+be|seems\s+to\s+be)"
_VERB = rf"(?:{_FIRM_VERB}|would\s+be|might\s+be|could\s+be)"
_LABEL_ENDS_LINE = r"(?=\W?\w\W{0,2}$)"

_CUE = re.compile(
    rf"""
    (?P<boxed>{BOX_OPENS})
  | (?<!\w)(?:
    (?P<final_answer>final[\s_]+(?:answer|choice)(?:\s+{_VERB}\b|'?\s*[:=\-\n]|\s+(?=[(\[⟦])))
  | (?P<answer>
        (?<!-)(?:answer|ans)(?:\s+(?:choice|option|letter))?'?\s*(?:[:=]|-(?=\s)|\.(?=\s*[(\[]?\w[)\].\s]))
      | answer,?(?:\s+[\w',()/-]+){{0,8}}?\s+{_VERB}\b
      | {_RIGHT}\s+(?:\w+\s+)?{_CHOICE}(?:\s+[\w',()/-]+){{0,8}}?(?:\s+{_VERB}\b|\s*[:=])
      | the\s+(?:most\s+\w+|{_RIGHT}|one)\s+(?:\w+\s+){{1,4}}is\b(?=\s+(?:option\s+|choice\s+)?\(\w\))
      | solution\s+{_FIRM_VERB}\b(?=\s+(?:option\s+|choice\s+)?\W?\w\W{{0,3}}$)
      | {_RIGHT}\s+answers\s+are\b
      | {_RIGHT}\s+{_CHOICE},?\s+(?=\()
      | ^\s*answer\s+(?:choice\s+|option\s+)?{_LABEL_ENDS_LINE}
      | ^\W*(?:(?:selected|chosen|correct|my|best)\s+)*
        (?:option|choice|letter|solution|selection|correct|response|conclusion)\s*:\s*{_LABEL_ENDS_LINE}
      | (?:I|we)(?:\s+(?:would|will|can|must|should|shall|therefore|'ll)|'(?:ll|d))?\s+
        (?:choose|pick|select|chose|picked|selected|go\s+with|went\s+with|answer)\b
    ))
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_SUPPOSED = re.compile(r"\b(?:if|whether|suppose|assume|assuming|why|not)\b[^.,:;\n]{0,24}$", re.IGNORECASE)
_CONDITION = re.compile(r"\b(?:if|unless)\b[^.:;?!\n]*$", re.IGNORECASE)
_TENTATIVE = re.compile(r"\b(?:would|could|might)\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\W*(?:none|neither|cannot|can't|unknown|unclear|undetermined|n/a|not|no\b|all\b|both\b)", re.IGNORECASE
)
_IS_THE_ANSWER = re.compile(
    rf"\s*,?\s*{_VERB}\s+(?:\w+ly\s+)?(?:the|our|my)\s+(?:answer\b|(?:\w+\s+)?{_RIGHT}\s+(?:\w+\s+)?{_CHOICE}\b)",
    re.IGNORECASE,
)
_TEXT_IS_THE_ANSWER = re.compile(rf"\s[^.;:!?()\n]{{1,120}}?{_IS_THE_ANSWER.pattern}", re.IGNORECASE)
_IS_RIGHT = re.compile(
    rf"\s*,?\s*{_VERB}\s+(?:\w+ly\s+|the\s+)*(?:correct|right)\b(?!\s+(?:in|that|about|but|side|angle))", re.IGNORECASE
)
_CONCLUSION = re.compile(
    r"\b(?:so|thus|therefore|hence|it\s+is|it's|this\s+is|that\s+is|(?:it|this|that)\s+must\s+be|leav(?:es|ing)(?:\s+us\s+with)?"
    r"|left\s+with|match(?:es|ing)|corresponds?\s+to|corresponding\s+to|I(?:'d|\s+would)?\s+(?:think|believe|guess|say|conclude))\b",
    re.IGNORECASE,
)
_BEFORE_BARE_LABEL = re.compile(
    r"(?:^|[.!?,:;⟧>\n]|\b(?:so|thus|hence|therefore|that|and|think|believe|conclude|then|but|only))\s*$", re.IGNORECASE
)
_SET_OFF = re.compile(r"\s*(?:[.:,;\-]|$)|\s+(?:[A-Z]|because\b|since\b)")
_DENIAL = re.compile(
    r"(?:,?\s+(?:(?:and|or)\s+)?\(?\w\)?(?=[\s,])){0,4}\W*(?:no\W*$|(?:(?:is|are|was|would\s+be|can\s+be)\s+)?(?:not\s+(?:likely|correct|right|true|it)|wrong|incorrect|false"
    r"|unlikely|eliminated|ruled\s+out)\b)",
    re.IGNORECASE,
)
_EMPTY_DECLARATION = re.compile(r"\W*(?:final\s+)?answer\W*", re.IGNORECASE)
_NEXT_QUESTION = re.compile(
    r"^[#>\s-]*(?:(?:next\s+)?question|problem|exercise|example|q|human|user|instruction)\s*\d*\s*(?:[:.]|$)"
    r"|\bquestion:|^\s*your\s+task\s+is\b|^\s*\[INST\]",
    re.IGNORECASE | re.MULTILINE,
)
_NEXT_OPTIONS = re.compile(r"^\s*\(?[A1][).:]\s.+\n\s*\(?[B2][).:]\s", re.MULTILINE)
_PLACEHOLDER = re.compile(
    r"[(\[<{]?\s*(?:please\s+)?insert\s+(?:the\s+|your\s+)?(?:\w+\s+)?(?:letter|answer|option|choice)(?:\s+here)?\s*[)\]>}]?",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"[*`$\"“”]|_{2,}|\\[()\[\]](?!\w)|\\(?=[()\[\]])|<(?:/?b|/?strong|br\s*/?|/?s|\|[\w ]{1,20}\|)>")
_ANSWER_TAG = re.compile(r"<(/?)(?:final_)?(?:answer|ans)>", re.IGNORECASE)
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mathtt|operatorname|emph)\s*\{([^{}]{0,300})\}"
)
_BOXED = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{((?:[^{}]|\{[^{}]{0,100}\}){0,300})\}")


@dataclass(frozen=True, kw_only=True)
class _Declaration:
    """What a place in the text declares."""

    labels: frozenset[str]
    """Empty when it declares something that is no label."""
    layer: str
    start: int = 0
    end: int = 0
    is_firm: bool = True
    """False for "it could be A": it counts where nothing firm is said."""
    is_read: bool = True
    """False for words that we cannot make an option of; then an earlier declaration may tell."""


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


def _read_gold(problem: Problem) -> tuple[Options, str]:
    labels = tuple(problem.choice_labels) or _usual_labels(problem.gold_answer)
    if problem.choices and len(problem.choices) != len(labels):
        raise DataError(f"has {len(problem.choices)} choices for {len(labels)} labels. Give each choice one label.")
    if len({label.casefold() for label in labels}) < len(labels) or not all(labels):
        raise DataError(f"choice labels {', '.join(labels)} are not all different. Give each choice its own label.")
    options = Options(labels, tuple(map(normalize, problem.choices)))
    gold = _clean(problem.gold_answer).strip()
    named = _read_line(gold, options) or match_text(gold, options) or _read_opening_label(gold, options)
    if len(named) != 1:
        raise DataError(
            f"gold answer {problem.gold_answer!r} is none of the labels {', '.join(labels)}; wanted one of them."
        )
    (label,) = named
    return options, label


def _usual_labels(gold_answer: str) -> tuple[str, ...]:
    return tuple("12345") if re.match(r"\W*[1-5]\b", gold_answer) else tuple("ABCDE")


def find_choice(completion_text: str, options: Options) -> _Declaration:
    """What a completion declares, and the layer that decided."""
    text = _clean(completion_text[-MAX_LENGTH:])
    declarations = _find_declarations(text, options)
    end = _find_next_question(text, declarations, options)
    return _decide(text[:end], [found for found in declarations if found.start < end], options)


def _decide(text: str, declarations: Sequence[_Declaration], options: Options) -> _Declaration:
    nothing = _Declaration(labels=frozenset(), layer="none")
    if declarations:
        readable = [found for found in declarations if found.is_read]
        return ([found for found in readable if found.is_firm] or readable or [nothing])[-1]
    for find in (_find_called_right, _find_conclusion, _find_label_line, _find_text_line):
        if (found := find(text, options)) is not None:
            return found
    return nothing


def _clean(text: str) -> str:
    """Drop markdown, LaTeX and quotes, write boxes as brackets of their own, and full-width signs as ASCII."""
    text = unicodedata.normalize("NFKC", text)[-MAX_LENGTH:].translate(SPELLINGS)
    text = re.sub(r"[ \t]{2,}", " ", re.sub(r"\n[ \t]*(?:\n[ \t]*)+", "\n\n", text))
    text = _ANSWER_TAG.sub(lambda match: "\n" if match[1] else "answer: ", text)
    text = _MARKUP.sub("", text)
    for _ in range(2):
        text = _TEXT_COMMAND.sub(r"\1", text)
    return _PLACEHOLDER.sub("", _BOXED.sub(rf"{BOX_OPENS}\1{BOX_CLOSES}", text))


def _find_next_question(text: str, declarations: Sequence[_Declaration], options: Options) -> int:
    """Where a question begins that stands behind an answer; else the end of the text."""
    answered = min((found.start for found in declarations if found.labels), default=len(text))
    finally_answered = min(
        (found.start for found in declarations if found.labels and found.layer.startswith("final_answer")),
        default=len(text),
    )
    for count, match in enumerate(_NEXT_QUESTION.finditer(text)):
        is_tried = count < MAX_NEXT_QUESTIONS and answered > match.start()
        if match.start() > answered or (is_tried and _decide(text[: match.start()], [], options).labels):
            return match.start()
    options_again = _NEXT_OPTIONS.search(text, finally_answered)
    return options_again.start() if options_again else len(text)


def _find_declarations(text: str, options: Options) -> list[_Declaration]:
    """All explicit declarations, in order; those within the labels of the one before are part of it."""
    found = [*_find_announced(text, options), *_find_called_the_answer(text, options)]
    declarations: list[_Declaration] = []
    for declaration in sorted(found, key=lambda declaration: declaration.start):
        if not declarations or declaration.start >= declarations[-1].end:
            declarations.append(declaration)
    return declarations


def _find_announced(text: str, options: Options) -> Iterator[_Declaration]:
    for cue in _CUE.finditer(text):
        layer = str(cue.lastgroup)
        if layer == "boxed" or not _SUPPOSED.search(text[max(0, cue.start() - 40) : cue.start()]):
            declaration = _read_declaration(text, cue, layer, options)
            if declaration is not None:
                yield declaration


def _read_declaration(text: str, cue: "re.Match[str]", layer: str, options: Options) -> _Declaration | None:
    """What stands behind a cue; None when that is no declaration."""
    phrase = _take_phrase(text, cue.end(), is_box=layer == "boxed")
    is_firm = layer != "answer" or not (
        _TENTATIVE.search(cue[0]) or _CONDITION.search(text[max(0, cue.start() - 100) : cue.start()])
    )
    labels, end = read_labels(phrase, options)
    if labels:
        end += cue.end()
        return _Declaration(labels=labels, layer=layer, start=cue.start(), end=end, is_firm=is_firm)
    body = phrase.partition(BOX_CLOSES)[0] if layer == "boxed" else phrase
    if labels := match_text(body, options):
        return _Declaration(labels=labels, layer=f"{layer}/text", start=cue.start(), end=cue.end() + len(body))
    sentence = re.split(r"[.!?;]\s", body, maxsplit=1)[0] if layer == "answer" else body
    if labels := find_marked_labels(sentence, options):
        return _Declaration(labels=labels, layer=layer, start=cue.start(), end=cue.end() + len(body), is_firm=is_firm)
    if layer == "answer" or not re.search(r"\w", body):
        return None
    is_other_label = re.fullmatch(r"[^\w]*[A-Za-z0-9][^\w]*", body) is not None
    is_read = is_other_label or _REFUSAL.match(body) is not None
    return _Declaration(labels=frozenset(), layer=layer, start=cue.start(), end=cue.end(), is_read=is_read)


def _take_phrase(text: str, start: int, *, is_box: bool) -> str:
    """A box and the rest of its line; else what stands up to the end of the first line that says something."""
    phrase = text[start : start + MAX_PHRASE_LENGTH]
    silent = None if is_box else re.match(r"[^\w⟦]*\n", phrase)
    begin = phrase.find(BOX_CLOSES) if is_box else silent.end() if silent else 0
    end = phrase.find("\n", max(begin, 0))
    return phrase if end < 0 else phrase[:end]


def _find_called_the_answer(text: str, options: Options) -> Iterator[_Declaration]:
    """Find "B is the correct answer" and "(B) It will stop is the correct answer"."""
    for match in _find_subjects(text, options):
        predicate = _IS_THE_ANSWER.match(text, match.end())
        if predicate is None and is_marked(match):
            predicate = _TEXT_IS_THE_ANSWER.match(text, match.end())
        if predicate is not None and not NEGATION.search(predicate[0]):
            labels = frozenset([options.spell(match["label"])])
            yield _Declaration(labels=labels, layer="answer", start=match.start(), end=predicate.end())


def _find_called_right(text: str, options: Options) -> _Declaration | None:
    """Find "B is correct", if it is said of one label only."""
    labels = {options.spell(m["label"]) for m in _find_subjects(text, options) if _IS_RIGHT.match(text, m.end())}
    return _Declaration(labels=frozenset(labels), layer="called_right") if labels else None


def _find_subjects(text: str, options: Options) -> Iterator["re.Match[str]"]:
    for match in options.pattern.finditer(text):
        before = text[max(0, match.start() - 40) : match.start()]
        if (is_marked(match) or _BEFORE_BARE_LABEL.search(before)) and not _SUPPOSED.search(before):
            yield match


def _find_conclusion(text: str, options: Options) -> _Declaration | None:
    """Find what the last line concludes: "so B."."""
    line = "".join(_lines(text)[-1:])[-MAX_PHRASE_LENGTH:]
    for cue in reversed(list(_CONCLUSION.finditer(line))):
        phrase = line[cue.end() :]
        labels, end = read_labels(phrase, options)
        if labels and not CLAUSE.match(phrase, end):
            return _Declaration(labels=labels, layer="conclusion")
    return None


def _find_label_line(text: str, options: Options) -> _Declaration | None:
    """Find a last line that is a label; else the only label that lines begin with."""
    lines = _lines(text)
    if lines and (labels := _read_line(lines[-1], options)):
        return _Declaration(labels=labels, layer="label_line")
    opened = [_read_opening_label(line, options) for line in lines]
    if opened and (opened[0] or (opened[-1] and _is_whole(lines[-1], options))):
        return _Declaration(labels=frozenset().union(*opened), layer="label_line")
    return None


def _is_whole(line: str, options: Options) -> bool:
    """Whether a line that begins with a label goes on to its end: a completion may be cut off within an option."""
    return bool(re.search(r"[.!)]\W*$", line) or match_text(re.sub(r"^\W*\w+\W*", "", line), options))


def _read_line(line: str, options: Options) -> frozenset[str]:
    """The labels that a whole line consists of."""
    labels, end = read_list(line, 0, options)
    return labels if not re.search(r"\w", line[end:]) else frozenset()


def _read_opening_label(line: str, options: Options) -> frozenset[str]:
    """The label that a line begins with, or the labels, where it lists several."""
    line = line.lstrip(" -•#>")
    match = options.pattern.match(line)
    if match is None or not is_label(match, line, options):
        return frozenset()
    labels, end = read_list(line, 0, options)
    if _DENIAL.match(line, end) and not is_own_text(line, match, options):
        return frozenset()
    return labels if is_marked(match) or _SET_OFF.match(line, end) else frozenset()


def _find_text_line(text: str, options: Options) -> _Declaration | None:
    """Find a last line that is an option's text."""
    lines = _lines(text)
    labels = match_text(lines[-1], options) if lines else frozenset()
    return _Declaration(labels=labels, layer="last_line") if labels else None


def _lines(text: str) -> list[str]:
    """The lines that say something."""
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line and not _EMPTY_DECLARATION.fullmatch(line)]


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
