"""Print how the graders agree with the labelled outputs and cases of shared/data, file by file.

    .venv/bin/python tools/grading_agreement.py [--list]

--list also names the rows that disagree.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.grading import agreement


def main() -> None:
    """Grade everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the rows that disagree")
    arguments = parser.parse_args()
    if not agreement.DATA.is_dir():
        sys.exit(f"{agreement.DATA}: is missing; the labelled files belong beside the checkout")
    agreements = [
        agreement.measure("gsm8k_outputs, published", agreement.gsm8k_outputs(lambda row: row["correct"])),
        agreement.measure(
            "gsm8k_outputs, parsed prediction", agreement.gsm8k_outputs(lambda row: row["pred_num_equal"])
        ),
        agreement.measure("gsm8k_openai_solutions, published", agreement.openai_solutions()),
        agreement.measure("math_outputs, published", agreement.math_outputs()),
        agreement.measure("grader_real_pairs, published", agreement.real_pairs(agreement.published_of_pair)),
        agreement.measure("grader_real_pairs, consensus", agreement.real_pairs(lambda row: row["consensus"])),
        agreement.measure("grader_cases, expected", agreement.grader_cases()),
    ]
    print(agreement.format_table(agreements))
    if arguments.list:
        for one in agreements:
            print(f"\n{one.name}", *(f"  false + {key}" for key in one.false_positives), sep="\n")
            print(*(f"  false - {key}" for key in one.false_negatives), sep="\n")


if __name__ == "__main__":
    main()
