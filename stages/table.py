"""Put a table's scored rows beside the published numbers and judge every claim of the paper.

Inputs:   <table>/published.yaml, <table>/rows/<row>.json as stage score writes them
Outputs:  <table>/result.md to read, <table>/result.json for the ledger, <table>/rows.png to look at
Command:  python stages/table.py --table tables/diffusionseg-tab6
Time:     about 2 seconds
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from maskmill.cli import die_with_parent
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.plots import table_bars
from maskmill.report.tables import compare, load_published, write_result


def main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, metavar="PATH", help="the table's folder")
    parser.add_argument("--data", default="scenes of the procedural world, two objects each", help="what was scored")
    parser.add_argument("--note", action="append", default=[], help="a remark below the table; may be repeated")
    args = parser.parse_args()
    folder = Path(args.table)
    published = load_published(folder / "published.yaml")
    files = {p.stem: p for p in sorted((folder / "rows").glob("*.json"))}
    if not files:
        raise UserError(f"{folder}/rows: expected scored rows *.json, found none; run dvc repro {folder}/dvc.yaml")
    rows = {name: json.loads(path.read_text()) for name, path in files.items()}
    one = next(iter(rows.values()))
    result = compare(
        published, {name: row["scores"] for name, row in rows.items()}, data=args.data, n=one["images"],
        seeds=[int(draw or 0) for draw in one["draws"]],
        protocol="; ".join(f"{k}: {v}" for k, v in one["protocol"].items()), notes=args.note,
    )  # fmt: skip
    write_result(result, folder)
    table_bars(result, published["metrics"][-1], folder / "rows.png", folder / "rows.csv")
    print(f"{folder}/result.md: {len(rows)} rows, claims {result['counts']}")


if __name__ == "__main__":
    exit_cleanly(main)
