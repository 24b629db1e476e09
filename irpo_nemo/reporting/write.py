"""Write report/: results.json and index.html."""

import importlib.util

from irpo_nemo.artifacts import write_json, write_text
from irpo_nemo.errors import MachineError
from irpo_nemo.reporting.page import make_page
from irpo_nemo.reporting.results import collect_results
from irpo_nemo.run_folder import RunFolder


def write_report(folder: RunFolder) -> None:
    """Write both files from what is done so far.

    Raises:
        MachineError: matplotlib is missing; results.json is written all the same.
    """
    results = collect_results(folder)
    write_json(folder.results, results)
    if importlib.util.find_spec("matplotlib") is None:
        raise MachineError(
            f"{folder.page}: the plots need matplotlib. Install it with pip install 'irpo-nemo[report]' and run again."
        )
    write_text(folder.page, make_page(folder, results))
