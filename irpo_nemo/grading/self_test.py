"""Golden cases: answers whose verdict is known, graded here and now before any other answer is.

A grader that stands on packages can be broken by their versions without any error: math-verify 0.9.0 with an ANTLR
runtime that its parser was not generated for silently reads no percent signs and calls right answers wrong.
"""

from irpo_nemo.errors import DataError, MachineError
from irpo_nemo.grading.fork_server import find_grader
from irpo_nemo.grading.pool import GradingPool

_SUSPECTS = {
    "latex": "most likely its packages do not fit each other: math-verify, latex2sympy2_extended, sympy and the ANTLR "
    "runtime under them. Install the versions of constraints.txt (pip install -c constraints.txt irpo-nemo)"
}
_OTHER_SUSPECT = "its code on this machine is not what was released. Install irpo-nemo again"


def check_grader(pool: GradingPool) -> int:
    """Grade the golden cases in the pool's children, and examine the grader's packages; the number of cases.

    Raises:
        MachineError: One came out otherwise than it must.
    """
    pool.examine_packages()
    cases = find_grader(pool.grader).golden_cases()
    suspect = _SUSPECTS.get(pool.grader, _OTHER_SUSPECT)
    failure = f"self-test of the {pool.grader} grader failed"
    try:
        grades = list(pool.grade((problem, text) for problem, text, _ in cases))
    except DataError as error:
        raise MachineError(f"{failure}: {error} Nothing was graded; {suspect}.") from error
    for (problem, text, wanted), found in zip(cases, grades, strict=True):
        if found.verdict != wanted:
            raise MachineError(
                f"{failure}: {text!r} with the gold answer {problem.gold_answer!r} came out {found.verdict} "
                f"(layer {found.layer}), wanted {wanted}. Nothing was graded; {suspect}."
            )
    return len(cases)
