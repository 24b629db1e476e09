"""The end of a test report shows how verdicts agree with the labels of real outputs."""

from typing import Any

from tests.grading.agreement import MEASURED, format_table


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print a line for each labelled file that was graded."""
    if MEASURED:
        terminalreporter.section("verdicts beside labels")
        terminalreporter.write_line(format_table(MEASURED))
