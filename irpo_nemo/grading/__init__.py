"""Graders: is the answer of a completion equal to the gold answer?

A grader is a module with `check_gold` and `grade`; a new one is a file here and its line in `GRADERS`. Nothing of a
completion is ever evaluated. Stands below `tasks`, which name their grader.
"""

from irpo_nemo.grading import choice, latex, numeric, text
from irpo_nemo.grading.grade import Grade, Grader

__all__ = ["GRADERS", "Grade", "Grader"]

GRADERS: dict[str, Grader] = {"choice": choice, "latex": latex, "numeric": numeric, "text": text}
