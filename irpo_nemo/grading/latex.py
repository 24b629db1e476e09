r"""Answers in LaTeX, as in MATH.

An answer is looked for in places; of the first four, which announce an answer, the last in the text counts:

    json           the value of the last "answer" key
    tag            <answer>...</answer>
    final_answer   the line of the last "Final answer:"; when it says nothing, the places below it
    boxed          the last \boxed{...} or \fbox{...} that is not empty
    answer_is      the sentence after the last "the answer is"
    whole          the whole text, when it is nothing but an answer
    last_formula   the last formula of the last sentence, unless the text breaks off
    last_number    the last number of that sentence

Several boxes side by side ("\boxed{-2} and \boxed{1}") are one list when the gold answer is a list; else the last box
is the answer. What follows the answer, such as another question that the model invented, is cut off first.

`layer` is "<place>/<comparison>", for example "boxed/numeric"; the comparisons are those of `latex_compare`. No answer
is "none", an answer too long to be one "<place>/none", both unparsable. An answer too large to be computed is an error.
"""

import re

from irpo_nemo.errors import DataError
from irpo_nemo.grading import extract, math_verify_layer
from irpo_nemo.grading.grade import Grade
from irpo_nemo.grading.latex_compare import MAX_ANSWER_LENGTH, compare, read_both_ways
from irpo_nemo.grading.latex_equality import is_list
from irpo_nemo.grading.latex_normal import UnreadableError, normalize
from irpo_nemo.grading.latex_phrase import pick_answer, pick_last_formula
from irpo_nemo.grading.latex_value import TooCostlyError
from irpo_nemo.grading.numeric import find_last_number
from irpo_nemo.records import Problem, Verdict

MAX_BARE_LENGTH = 200
"""Characters of a text that may be nothing but an answer."""
_NUM_WORDS_OF_PROSE = 3
_NOT_PROSE = re.compile(r"[_{}<>\[\]|\\]")


def check_gold(problem: Problem) -> None:
    """Refuse a gold answer that says nothing.

    Raises:
        DataError: It is empty, or its braces do not match.
    """
    _read_gold(problem.gold_answer)


def grade(problem: Problem, completion_text: str) -> Grade:
    """Judge the answer that `completion_text` gives.

    Raises:
        DataError: The gold answer says nothing.
    """
    gold = _read_gold(problem.gold_answer)
    answers, place = find_answers(completion_text, wants_list=_is_list(gold))
    if not answers:
        return Grade(answer=None, verdict="unparsable", layer="none")
    if max(map(len, answers)) > MAX_ANSWER_LENGTH:
        return Grade(answer=None, verdict="unparsable", layer=f"{place}/none")
    judged = [(answer, *_judge(gold, answer)) for answer in answers]
    answer, verdict, comparison = next((one for one in judged if one[1] == "correct"), judged[0])
    return Grade(answer=_spell(answer), verdict=verdict, layer=f"{place}/{comparison}")


def is_same(left: str, right: str) -> bool:
    """Whether two answers mean the same; answers too large to be computed only when they are spelled alike."""
    try:
        return compare(left, right)[0] or compare(right, left)[0]
    except TooCostlyError:
        return False


def golden_cases() -> list[tuple[Problem, str, Verdict]]:
    """Problems, completions and verdicts that hold on every sound installation."""
    return [
        (Problem(problem_id=f"golden-{number}", question="", gold_answer=gold), text, verdict)
        for number, (gold, text, verdict) in enumerate(_GOLDEN)
    ]


def self_test() -> None:
    """Ask math-verify about pairs that a wrong runtime misreads.

    Raises:
        MachineError: It does not answer as it should.
    """
    math_verify_layer.self_test()


_GOLDEN: tuple[tuple[str, str, Verdict], ...] = (
    (r"\frac{3}{4}", r"so it is $\boxed{\dfrac34}$.", "correct"),
    (r"\frac{3}{4}", r"Final answer: 0.75", "correct"),
    (r"\frac{3}{4}", r"Final answer: 0.751", "wrong"),
    (r"25\%", r"\boxed{25}", "correct"),
    (r"25\%", r"\boxed{25\%}", "correct"),
    (r"50", r"\boxed{50\%}", "correct"),
    (r"25\%", r"\boxed{26\%}", "wrong"),
    (r"\$32,\!348", r"\boxed{32348}", "correct"),
    (r"3\sqrt{13}", r"\boxed{\sqrt{117}}", "correct"),
    (r"(-\infty,3]", r"\boxed{x \le 3}", "correct"),
    (r"[1,2)", r"\boxed{(1,2)}", "wrong"),
    (r"\frac{1}{2004!}", r"\boxed{\frac{1}{2006!}}", "wrong"),
    (r"3R^2", r"\boxed{3r^2}", "wrong"),
    (r"(x+1)^2", r"\boxed{x^2+2x+1}", "correct"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\frac12 \begin{pmatrix} 2 \\ 4 \end{pmatrix}}", "correct"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\frac12 \begin{pmatrix} 2 \\ 5 \end{pmatrix}}", "wrong"),
    (r"5", r"\boxed{9^{9^{9^{9}}}}", "error"),
    (r"5", "I do not know.", "unparsable"),
)


def _read_gold(gold_answer: str) -> str:
    gold = ", ".join(extract.find_last_boxes(gold_answer)) or gold_answer
    try:
        is_empty = not normalize(gold)
    except UnreadableError:
        is_empty = True
    if is_empty:
        raise DataError(f"gold answer {gold_answer!r} says nothing; wanted for example \\frac{{3}}{{4}} or x^2 + 1.")
    return gold


def _is_list(gold: str) -> bool:
    return any(is_list(answer.body) for answer in read_both_ways(normalize(gold)))


def _judge(gold: str, answer: str) -> tuple[Verdict, str]:
    try:
        is_equal, comparison = compare(gold, answer)
    except TooCostlyError:
        return "error", "algebra"
    return "correct" if is_equal else "wrong", comparison


def _spell(answer: str) -> str:
    try:
        return normalize(answer)
    except UnreadableError:
        return " ".join(answer.split())


def find_answers(completion_text: str, *, wants_list: bool) -> tuple[list[str], str]:
    """The answers to try in turn, and the place they come from; none when the text gives none."""
    text = extract.cut_invented_question(completion_text)
    phrase, place = _find_announced(text) or _find_unannounced(text)
    boxes = extract.find_last_boxes(phrase)
    if wants_list and len(boxes) > 1:
        answers = [", ".join(boxes), boxes[-1]]
    else:
        answers = [boxes[-1] if boxes else pick_answer(phrase)]
    if place == "whole":
        answers.append(phrase)
    answers = [answer for answer in answers if re.search(r"\w|\\", answer)]
    return answers, place if answers else "none"


def _find_announced(text: str) -> tuple[str, str] | None:
    """The phrase that announces an answer, and its place."""
    announcements = [
        extract.find_json_answer(text),
        extract.find_tagged_answer(text),
        extract.find_final_answer_line(text),
        extract.find_boxed_answer(text),
    ]
    found = max(filter(None, announcements), key=lambda found: found.position, default=None)
    if found is None:
        stated = extract.find_stated_answer(text)
        return (stated, "answer_is") if stated else None
    if found.place == "final_answer" and not found.text:
        return extract.find_last_sentence(extract.first_paragraph(text[found.position :])), found.place
    return found.text, found.place


def _find_unannounced(text: str) -> tuple[str, str]:
    bare = text.strip()
    if len(bare) <= MAX_BARE_LENGTH and "\n" not in bare and _is_readable(bare):
        return bare, "whole"
    sentence = extract.find_last_sentence(text)
    formula = pick_last_formula(sentence)
    if formula is not None:
        return formula, "last_formula"
    number = None if _NOT_PROSE.search(sentence) else find_last_number(sentence)
    return ("", "none") if number is None else (str(number), "last_number")


def _is_readable(text: str) -> bool:
    if len(re.findall(r"[A-Za-z]{2,}", re.sub(r"\\text\{[^{}]*\}|\\[A-Za-z]+", "", text))) >= _NUM_WORDS_OF_PROSE:
        return False
    try:
        return bool(read_both_ways(normalize(pick_answer(text))))
    except UnreadableError:
        return False
