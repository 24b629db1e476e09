"""`irpo grade`: verdicts for a file of model outputs that exist already.

INPUT is JSON lines: `response` and `gold`, for ARC also `labels` and, if known, `choices`. OUTPUT has the same rows
with `answer`, `verdict` and `layer` (with an audit also `audit_answer` and `audit_verdict`). Names that end in .gz are
compressed. Knows no models and no run folder.
"""

from irpo_nemo.grade_file.grade import grade_file
from irpo_nemo.grade_file.tally import Tally, describe

__all__ = ["Tally", "describe", "grade_file"]
