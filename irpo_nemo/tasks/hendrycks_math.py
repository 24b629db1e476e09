r"""MATH: competition mathematics (Hendrycks et al. 2021, arXiv 2103.03874).

The problems stand in a folder of JSON files, MATH's own layout (MATH/train/algebra/1.json), in a file of JSON lines, or
in a data set, with "problem", "solution", "level" and "type" (or "subject"). The prompt is the IRPO paper's, appendix
B.1, with 4 worked examples; the paper does not say which.

The gold answer is what the solution's last \boxed holds, but for solutions that box several different things:

  * where the problem asks for a list ("... separated by commas", "all possible values"), all of them, joined by commas;
    so eight problems of the test set: algebra/1878, intermediate_algebra/225, /1020, /1855 and /2089,
    precalculus/679, /1227 and /1233;
  * where the solution says that one of them is enough ("either point", "also accepted"), the first, and the others are
    graded wrong; so four: algebra/1730, intermediate_algebra/25, /702 and /747.

Two published solutions box nothing (train/number_theory/7115 and /7117); their boxes are filled in.
"""

import re

from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import DataError
from irpo_nemo.records import Problem
from irpo_nemo.tasks.file_task import FileTask, make_paper_prompt
from irpo_nemo.tasks.rows import Row, take_optional_text, take_text

PROMPT_TEMPLATE = make_paper_prompt(
    r'please wrap your answer in \boxed, and conclude using the format "Final answer: ..."'
)
NUM_SHOTS = 4

_ERRATA = {
    r"there are $\boxed{}$ primes in that range": r"there are $\boxed{0}$ primes in that range",
    r"$P+n$ is not prime for any $n$, so the answer is $\boxed{}$": (
        r"$P+n$ is not prime for any $n$, so the answer is $\boxed{0}$"
    ),
}
"""Published text and what it should say."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:(?P<brace>\{)|(?P<token>[^\s${}]+))")
_ASKS_FOR_A_LIST = re.compile(r"separated by (?:a )?comma|\b(?:list|find|enter) all\b|\ball possible\b", re.IGNORECASE)
_ONE_IS_ENOUGH = re.compile(r"\baccept(?:ed|able)\b|\beither point\b", re.IGNORECASE)


def make_hendrycks_math_task(config: IRPOConfig) -> FileTask:
    """MATH from the folders, files or data set that the configuration names."""
    return FileTask(
        config=config,
        prompt_template=PROMPT_TEMPLATE,
        grader="latex",
        read_problem=read_problem,
        num_shots=NUM_SHOTS,
    )


def read_problem(row: Row) -> Problem:
    r"""Turn a published row into a problem.

    Raises:
        DataError: A key is missing or empty, or the solution has no \boxed answer.
    """
    question, solution = take_text(row, "problem"), take_text(row, "solution")
    for published, mended in _ERRATA.items():
        solution = solution.replace(published, mended)
    level = take_optional_text(row, "level")
    gold = read_gold_answer(question, solution)
    return Problem(
        problem_id=take_optional_text(row, "id") or take_optional_text(row, "unique_id") or "",
        question=question,
        gold_answer=gold,
        solution=f"{solution}\nFinal answer: ${gold}$",
        level=f"Level {level}" if level is not None and level.isdigit() else level,
        subject=take_optional_text(row, "type") or take_optional_text(row, "subject"),
    )


def read_gold_answer(question: str, solution: str) -> str:
    r"""What the \boxed of a worked solution hold.

    Raises:
        DataError: There is none.
    """
    boxes = list(dict.fromkeys(find_boxes(solution)))
    if not boxes:
        raise DataError(r"'solution' has no \boxed{...}, as MATH's solutions do. Use task=jsonl for other formats.")
    if _ASKS_FOR_A_LIST.search(question):
        return ", ".join(boxes)
    return boxes[0] if _ONE_IS_ENOUGH.search(solution) else find_boxes(solution)[-1]


def find_boxes(text: str) -> list[str]:
    r"""The contents of all \boxed{...} and \boxed x, in order, those that are empty or never close left out."""
    boxes = []
    for match in _BOX.finditer(text):
        content = _take_braces(text, match.end("brace")) if match["brace"] else match["token"]
        if content and content.strip():
            boxes.append(" ".join(content.split()))
    return boxes


def _take_braces(text: str, start: int) -> str | None:
    """What stands from `start` to the brace that closes the one before it."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return None
