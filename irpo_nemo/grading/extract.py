"""Where in a completion the answer stands. Knows nothing of what an answer means."""

import re

# "Final answer: ...", with markdown and "is" tolerated; without a colon only right before something like a number,
# because "the final answer is obtained by ..." announces nothing.
_FINAL_ANSWER = re.compile(
    r"final\s+answer\s{0,3}(?:is\s{0,3})?\*{0,3}\s{0,3}[:=]|final\s+answer\s+is(?=\W{0,8}(?:\d|\\boxed|\\d?frac))",
    re.IGNORECASE,
)
_NEXT_QUESTION = re.compile(r"^[ \t]*Question:", re.MULTILINE)


def cut_invented_question(text: str) -> str:
    """Keep what stands before a line that opens another "Question:"; a base model goes on to invent some."""
    for match in _NEXT_QUESTION.finditer(text):
        if text[: match.start()].strip():
            return text[: match.start()]
    return text


def find_final_answer(text: str) -> tuple[str, str] | None:
    """What the last "Final answer:" announces.

    Returns:
        The rest of its line, and the lines below; None when there is no such phrase. The rest of the line is "" when it
        holds neither letter nor digit: then the answer is to be looked for below.
    """
    ends = [match.end() for match in _FINAL_ANSWER.finditer(text)]
    if not ends:
        return None
    line, _, below = text[ends[-1] :].partition("\n")
    return line.strip() if any(map(str.isalnum, line)) else "", below


def find_last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...}, braces matched; None when there is none or it never closes."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position]
    return None
