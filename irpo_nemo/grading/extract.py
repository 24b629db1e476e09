r"""Where in a completion the answer stands. Knows nothing of what an answer means."""

import contextlib
import json
import re
from dataclasses import dataclass

# "Final answer: ...", with markdown and "is" tolerated; without a colon only right before something like a number or
# formula, because "the final answer is obtained by ..." announces nothing.
_FINAL_ANSWER = re.compile(
    r"final\s+answer\s{0,3}(?:is\s{0,3})?\*{0,3}\s{0,3}[:=]"
    r"|^[ \t#*]{1,12}final[ \t]+answer[ \t*]{0,6}$"
    r"|final\s+answer\s+is(?=\W{0,8}(?:\d|\\boxed|\\fbox|\\d?frac)|\s+[$]|\s+\\[(\[])",
    re.IGNORECASE | re.MULTILINE,
)
_FINAL_ANSWER_AGAIN = re.compile(r"\W*(?:the\s+)?final\s+answer\s+is\s*:?|\W*the\s+answer\s+is\s*:?", re.IGNORECASE)
_NEXT_QUESTION = re.compile(r"^[ \t]*Question:", re.MULTILINE)
_ANNOUNCED = re.compile(
    rf"\\f?boxed\s*\{{[^}}\s]|{_FINAL_ANSWER.pattern}|\banswer\s+is\b|^####|</answer>", re.IGNORECASE | re.MULTILINE
)
_RUN_ON = re.compile(
    r"I hope (?:it is|it's|this is) correct"
    r"|^[ \t#*]*(?:Question|Problem|Exercise|Example|Q|Human|User|Instruction|Input)[ \t]*\#?\d*[ \t]*\*{0,2}[:.]"
    r"|^[ \t]*#+[ \t]*(?:Question|Problem|Exercise|Example|Instruction|Input)\b"
    r"|\byour turn\b"
    r"|(?:^|[.!?:]\s|\bcan you )\W*(?:now )?(?:please )?solve (?:this|the (?:following|next)) (?:problem|question)",
    re.IGNORECASE | re.MULTILINE,
)
_SPECIAL_TOKEN = re.compile(r"<\|(?:im_start|im_end|eot_id|endoftext|end_of_text|start_header_id)\|>")
_BOX_OR_BRACE = re.compile(
    r"(\\(?:boxed|fbox|framebox)\s*\{)|\\[{}]|\\\\(?!f?box)|(\{)|(\})|\\(?:boxed|fbox)\s+([^\s{}$\\.,;]+)"
)
_NUM_CHARACTERS_BEFORE = 20
_MINUS_ALONE = re.compile(r"(?:[=$(\[]|\bis)\s*-\s*$")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s,;$&]|\\[()\[\],;!]|\\q?quad|\\text\{[\s,]*(?:and|or)?[\s,]*\}|and|or|\\\\|[A-Za-z](?:_\{?\w\}?)?(?:\([a-z]\))?\s*=)*"
)
_JSON_ANSWER = re.compile(r'"(?:final_?)?answer"\s*:\s*("(?:[^"\\\n]|\\.)*"|-?[\d.]+)', re.IGNORECASE)
_MAX_DISPLAY_LENGTH = 400
_DISPLAY_AT_END = re.compile(r"\\\[((?:(?!\\\[).)+)\\\][\s.]*$|\$\$((?:(?!\$\$).)+)\$\$[\s.]*$", re.DOTALL)
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z$\\])")
_ENDS = (".", "!", "?", "$", "\\]", "\\)", "*", '"', "\u3002")
_ANSWER_IS = re.compile(
    r"\banswer\b(?:\s+(?:to|for|of|in)\b[^.\n:=]{0,80}?)?\s{0,3}"
    r"(?:\*{0,3}\s?:|is\b(?!\s+(?:obtained|found|given|computed|calculated|determined|not)\b)\s?:?"
    r"|are\b|=|would be|must be)\*{0,3}"
    r"|^[ \t#*]{1,12}answer[ \t*]{0,6}$",
    re.IGNORECASE | re.MULTILINE,
)

MAX_LENGTH = 40_000
"""Characters of a completion that are read: of a longer one, as many at its start and at its end as make up this."""
MAX_TAG_LENGTH = 2000
"""Characters within <answer> tags; what is longer is no answer."""


@dataclass(frozen=True)
class Found:
    """A piece of text that announces the answer."""

    text: str
    place: str
    """The kind of announcement."""
    position: int
    """Where it ends in the completion."""


def cut_invented_question(text: str) -> str:
    """Keep what stands before the model goes on to invent another question.

    A line "Question:" opens one wherever something stands before it; other signs count only after an answer. The middle
    of a completion longer than `MAX_LENGTH` is left out.
    """
    if len(text) > MAX_LENGTH:
        text = f"{text[: MAX_LENGTH // 2]}\n{text[-MAX_LENGTH // 2 :]}"
    for match in _NEXT_QUESTION.finditer(text):
        if text[: match.start()].strip():
            text = text[: match.start()]
            break
    if special := _SPECIAL_TOKEN.search(text):
        text = text[: special.start()]
    if (announced := _ANNOUNCED.search(text)) and (run_on := _RUN_ON.search(text, announced.end())):
        return text[: run_on.start()]
    return text


def find_final_answer(text: str) -> tuple[str, str] | None:
    """What the last "Final answer:" announces.

    Returns:
        The rest of its line, and the lines below; None when there is no such phrase. The rest of the line is "" when it
        holds neither letter nor digit: then the answer is to be looked for below.
    """
    found = _last_match(_FINAL_ANSWER, text)
    if found is None:
        return None
    end = found.end()
    if again := _FINAL_ANSWER_AGAIN.match(text, end):
        end = again.end()
    line, _, below = text[end:].partition("\n")
    return line.strip() if any(map(str.isalnum, line)) else "", below


def find_final_answer_line(text: str) -> Found | None:
    """The line of the last "Final answer:"; its text is empty when it holds neither letter nor digit."""
    announced = find_final_answer(text)
    if announced is None:
        return None
    line, below = announced
    return Found(line, "final_answer", len(text) - len(below) - (0 if line else 1))


def _last_match(pattern: "re.Pattern[str]", text: str) -> "re.Match[str] | None":
    last = None
    for match in pattern.finditer(text):
        last = match
    return last


def find_boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Every \boxed{...} and \fbox{...} that closes and is not empty, braces matched: begin, end, content.

    A box within a box is part of it. "\boxed 5" counts too.
    """
    boxes: list[tuple[int, int, str]] = []
    opened: list[tuple[int, int] | None] = []
    for match in _BOX_OR_BRACE.finditer(text):
        if match[1]:
            opened.append(match.span())
        elif match[2]:
            opened.append(None)
        elif match[3] and opened:
            span = opened.pop()
            if span is not None and not any(opened) and text[span[1] : match.start()].strip():
                boxes.append((span[0], match.end(), _sign_before(text, span[0], text[span[1] : match.start()])))
        elif match[4] and not any(opened):
            boxes.append((match.start(), match.end(), match[4]))
    return boxes


def _sign_before(text: str, start: int, content: str) -> str:
    r"""The content of a box with the sign that stands alone before it, as in "= -\boxed{256}"."""
    if not _MINUS_ALONE.search(text[max(0, start - _NUM_CHARACTERS_BEFORE) : start]):
        return content
    return f"-({content})" if re.search(r"[-+=,]", content) else f"-{content}"


def find_last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}; None when there is none, or none that closes and holds something."""
    boxes = find_boxes(text)
    return boxes[-1][2] if boxes else None


def find_last_boxes(text: str) -> list[str]:
    r"""The contents of the last boxes that only commas, "and", "or" or names keep apart: \boxed{-2} and \boxed{1}."""
    boxes = find_boxes(text)
    contents: list[str] = []
    following = None
    for begin, end, content in reversed(boxes):
        if following is not None and not _BETWEEN_BOXES.fullmatch(text[end:following][:200]):
            break
        contents.insert(0, content)
        following = begin
    return contents


def find_boxed_answer(text: str) -> Found | None:
    r"""The text up to the end of the last box that holds something."""
    boxes = find_boxes(text)
    return Found(text[: boxes[-1][1]], "boxed", boxes[-1][1]) if boxes else None


def find_json_answer(text: str) -> Found | None:
    """The value of the last "answer" key of a JSON object; LaTeX in it may be escaped or not."""
    match = _last_match(_JSON_ANSWER, text)
    if match is None:
        return None
    return Found(_unescape(match[1]) if match[1].startswith('"') else match[1], "json", match.end())


def _unescape(quoted: str) -> str:
    if "\\\\" in quoted:
        with contextlib.suppress(ValueError):
            return str(json.loads(quoted))
    return quoted[1:-1].replace('\\"', '"')


def find_tagged_answer(text: str) -> Found | None:
    """What the last <answer>...</answer> holds."""
    lowered = text.lower()
    end = lowered.rfind("</answer>")
    start = lowered.rfind("<answer>", 0, max(end, 0))
    content = text[start + len("<answer>") : end]
    if min(start, end) < 0 or not content.strip() or len(content) > MAX_TAG_LENGTH:
        return None
    return Found(content, "tag", end)


def find_stated_answer(text: str) -> str | None:
    """The rest of the sentence after the last "the answer is", "Answer:" and the like."""
    match = _last_match(_ANSWER_IS, text)
    if match is None:
        return None
    line, _, below = text[match.end() :].partition("\n")
    if not any(map(str.isalnum, line)):
        line = next((line for line in below.split("\n") if any(map(str.isalnum, line))), "")
    return line.strip() or None


def first_paragraph(text: str) -> str:
    """The text up to its first empty line."""
    return re.split(r"\n[ \t]*\n", text.strip(), maxsplit=1)[0]


def find_last_sentence(text: str) -> str:
    """The last sentence with a digit or formula of a text that does not break off; else "".

    A display formula at the end counts as a sentence.
    """
    text = text.strip()
    if match := _DISPLAY_AT_END.search(text[-_MAX_DISPLAY_LENGTH:]):
        return f"${(match[1] or match[2]).strip()}$"
    if not text.endswith(_ENDS) and (len(text) > _MAX_DISPLAY_LENGTH or "\n" in text):
        return ""
    line = next((line for line in reversed(text.split("\n")) if any(map(str.isalnum, line))), "")
    sentences = _SENTENCES.split(line)
    return next((sentence for sentence in reversed(sentences) if re.search(r"[\d$]|\\[(\[]", sentence)), "").strip()
