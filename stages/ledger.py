"""Write the ledger: what every table of every paper claims, and what holds here.

Inputs:   <tables>/*/published.yaml, and <tables>/*/result.json of the tables that were run
Output:   <tables>/README.md: all claims with published direction, our numbers, verdict and data; counts at the top
Command:  python stages/ledger.py
Time:     about 2 seconds
Expect:   every claim of every table once; those of tables that were not run stand as not run
"""

from __future__ import annotations

import argparse
from pathlib import Path

from maskmill.cli import die_with_parent, write_atomically
from maskmill.errors import exit_cleanly
from maskmill.report.ledger import collect, ledger


def main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="tables", metavar="PATH", help="the folder of all tables (default: tables)")
    folder = Path(parser.parse_args().tables)
    entries = collect(folder)
    write_atomically(folder / "README.md", ledger(entries, folder))
    print(f"{folder}/README.md: {sum(e.done for e in entries)} of {len(entries)} tables were run")


if __name__ == "__main__":
    exit_cleanly(main)
