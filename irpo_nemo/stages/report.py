"""everything so far ─► report/: results.json and the page."""

from irpo_nemo.config import IRPOConfig
from irpo_nemo.reporting.write import write_report
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.stages.frame import StageResult


def run(config: IRPOConfig, iteration: int | None) -> StageResult:  # noqa: ARG001
    """Write the report."""
    folder = RunFolder(config.run_folder)
    write_report(folder, config)
    return StageResult(counts={"summary": [str(folder.page)]}, seconds={})
