"""Put a table's scored rows beside the published numbers and judge every claim of the paper.

Inputs:   <table>/published.yaml; <table>/rows.yaml, which says which file of scores is which row; those files, as
          stages score and statistics write them
Outputs:  <table>/result.md to read, <table>/result.json for the ledger, <table>/rows.png and rows.csv to look at
Command:  python stages/table.py --table tables/diffusionseg-tab6
Time:     about 2 seconds
Expect:   every claim of published.yaml with a verdict
"""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmill.cli import die_with_parent
from maskmill.errors import exit_cleanly
from maskmill.report.plots import table_bars, table_curve
from maskmill.report.rows import compare_scored, read_plan
from maskmill.report.tables import counts_text, load_published, write_result


def main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, metavar="PATH", help="the table's folder")
    folder = Path(parser.parse_args().table)
    published = load_published(folder / "published.yaml")
    plan = read_plan(folder)
    result = compare_scored(published, plan)
    write_result(result, folder)
    shown = "IoU" if "IoU" in published["metrics"] else published["metrics"][-1]
    if plan.axis:
        table_curve(result, shown, plan.axis, folder / "rows.png", folder / "rows.csv", plan.log)
    else:
        table_bars(result, shown, folder / "rows.png", folder / "rows.csv")
    print(f"{folder}/result.md: {len(plan.rows)} rows; claims: {counts_text(result['claims'])}")


if __name__ == "__main__":
    exit_cleanly(main)
