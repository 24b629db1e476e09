"""Measure the report of a large run: writing it, the first paint, and how long a filter, a search or a problem takes.

    tools/synthetic_run.py /tmp/large && tools/bench_report.py /tmp/large --json bench.json

Times in the browser are from the event to the frame that shows its result, in a headless Chromium, the page opened
from disk. A search is measured twice: with its part of the index still on disk, and with it in memory.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from irpo_nemo.artifacts import read_json
from irpo_nemo.run_folder import RunFolder
from tests.reporting.chromium import open_chromium, open_page

SEARCHES = ("friend", "a", "pu", "step", "there are 77 of them", "final answer 128", "train-4", "nosuchword")
FILTERS = (
    ("verdict", "greedy wrong"),
    ("model", "1"),
    ("change", "better"),
    ("sort", "gained"),
    ("verdict", "some"),
    ("model", "any"),
)

ACT = """
const [id, value, name, done] = arguments;
const element = document.getElementById(id);
const start = performance.now();
element.value = value;
element.dispatchEvent(new Event(name, { bubbles: true }));
const wait = () => document.getElementById("list").getAttribute("aria-busy") === "true"
  ? setTimeout(wait, 1) : requestAnimationFrame(() => setTimeout(() => done(
      [performance.now() - start, document.getElementById("found").textContent])));
setTimeout(wait);
"""
OPEN = """
const [place, done] = arguments;
const button = document.querySelectorAll("#items button")[place];
const id = button.querySelector(".id").textContent;
const start = performance.now();
button.click();
const wait = () => document.getElementById("problem-title")?.textContent !== id
  ? setTimeout(wait, 1) : requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
setTimeout(wait);
"""
PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
READY = "return performance.getEntriesByName('browser-ready')[0]?.startTime"


def write_report(run: Path) -> dict[str, float]:
    """Write the report in a process of its own."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "irpo_nemo", "report", str(run)], check=True, stdout=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    files = [path for path in RunFolder(run).report.rglob("*") if path.is_file()]
    return {
        "wall_seconds": time.perf_counter() - started,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_memory_mib": used.ru_maxrss / 1024,
        "files": len(files),
        "size_mib": sum(path.stat().st_size for path in files) / 2**20,
    }


def measure_page(page: Path, *, rounds: int) -> dict[str, Any]:
    """Milliseconds of everything that a reader does."""
    times: dict[str, list[float]] = {}
    found: dict[str, str] = {}

    def act(label: str, name: str, value: str, event: str) -> None:
        took, found[label] = driver.execute_async_script(ACT, name, value, event)
        times.setdefault(label, []).append(took)

    for _ in range(rounds):
        with open_chromium() as driver:
            driver.set_script_timeout(60)
            open_page(driver, page)
            times.setdefault("first paint", []).append(driver.execute_script(PAINT))
            times.setdefault("list of problems shown", []).append(driver.execute_script(READY))
            act("training problems", "split", "train", "change")
            for query in SEARCHES:
                act(f"search {query!r}, first", "query", query, "input")
                act("search emptied", "query", "", "input")
                act(f"search {query!r}, again", "query", query, "input")
            act("search emptied", "query", "", "input")
            act("test problems", "split", "test", "change")
            for name, value in FILTERS:
                act(f"filter {name}={value}", name, value, "change")
            act("training problems", "split", "train", "change")
            for place in (0, 7, 24):
                times.setdefault("problem opened", []).append(driver.execute_async_script(OPEN, place))
    return {
        label: {
            "median_ms": round(statistics.median(values), 1),
            "max_ms": round(max(values), 1),
            **({"found": found[label]} if label in found else {}),
        }
        for label, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="browsers started, one after the other")
    parser.add_argument("--keep", action="store_true", help="measure the report that is there; write none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    parsed = parser.parse_args()
    folder = RunFolder(parsed.run_folder)
    numbers: dict[str, Any] = {} if parsed.keep else {"write": write_report(parsed.run_folder)}
    counts = [of for entry in read_json(folder.results)["iterations"] for of in entry["completions"].values()]
    numbers["completions"] = sum(kind["count"] for of in counts for kind in of.values())
    numbers["page"] = measure_page(folder.page, rounds=parsed.rounds)
    print_numbers(numbers)
    if parsed.json is not None:
        parsed.json.write_text(json.dumps(numbers, indent=2) + "\n")


def print_numbers(numbers: dict[str, Any]) -> None:
    print(f"{numbers['completions']} completions")
    for name, value in numbers.get("write", {}).items():
        print(f"write  {name:<20} {value:10.1f}")
    for label, of in numbers["page"].items():
        print(f"{label:<44} median {of['median_ms']:8.1f} ms   max {of['max_ms']:8.1f} ms   {of.get('found', '')}")


if __name__ == "__main__":
    main()
