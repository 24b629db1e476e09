"""A grader that misbehaves as its completions say; children load it by its module path."""

import os
import signal
import time

from irpo_nemo.errors import DataError
from irpo_nemo.grading.grade import Grade
from irpo_nemo.records import Problem, Verdict


def check_gold(problem: Problem) -> None:
    if problem.gold_answer == "malformed":
        raise DataError("gold answer 'malformed' is malformed.")


def grade(problem: Problem, completion_text: str) -> Grade:
    check_gold(problem)
    word, _, rest = completion_text.partition(" ")
    if word == "sleep":
        time.sleep(3600)
    elif word == "burn":
        burn_forever()
    elif word == "multiply":
        return Grade(answer=str((3 ** (10**9)) % 10), verdict="wrong", layer="")
    elif word == "eat":
        eat_memory()
    elif word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "die_once":
        die_once(rest)
    elif word == "raise":
        raise ZeroDivisionError("division by zero")
    elif word == "recurse":
        grade(problem, completion_text)
    elif word == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif word == "pid":
        return Grade(answer=str(os.getpid()), verdict="wrong", layer="")
    verdict: Verdict = "correct" if completion_text == problem.gold_answer else "wrong"
    return Grade(answer=completion_text, verdict=verdict, layer="whole")


def burn_forever() -> None:
    while True:
        try:
            while True:
                pass
        except BaseException:  # noqa: BLE001 - as careless code does
            continue


def eat_memory() -> None:
    eaten = []
    while True:
        eaten.append(bytearray(1 << 24))


def die_once(marker: str) -> None:
    if not os.path.exists(marker):  # noqa: PTH110
        with open(marker, "w"):  # noqa: PTH123
            os.kill(os.getpid(), signal.SIGKILL)


def is_same(left: str, right: str) -> bool:
    if "burn" in (left, right):
        burn_forever()
    return left.casefold() == right.casefold()


def golden_cases() -> list[tuple[Problem, str, Verdict]]:
    return [(Problem(problem_id="", question="", gold_answer="a"), "a", "correct")]
