"""Read the public data sets that params.yaml names as one image set; nothing is copied, the images stay where they are.

Inputs:   params.yaml: benchmarks: the folders of the data sets, in the layouts of maskmill.datasets.benchmarks
Output:   <out>/index.csv: paths of images and masks, true boxes, and the data set that each belongs to. --role test:
          ECSSD, DUTS-TE, DUT-OMRON, CUB, VOC07, VOC12, COCO20K; --role train: DUTS-TR, apart from them
Command:  python stages/benchmarks.py --role test --out data/benchmarks
          python stages/benchmarks.py --role train --out data/benchmarks_train
Time:     at most 8 ms for each picture, as every one is decoded once: about 6 minutes for all seven test sets
Expect:   the published number of images of each data set; any fault is found here and not hours later
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from maskmill.cli import die_with_parent, progress, stage_arguments, worker_count, write_atomically
from maskmill.datasets.benchmarks import COUNTS, ROLES, Benchmark, fault, read_benchmark, refuse_faults
from maskmill.datasets.table import table_csv
from maskmill.errors import UserError, exit_cleanly
from maskmill.store import fresh_folder


def check_files(found: Benchmark) -> None:
    """Decode every picture and mask of a data set; all faults are told at once."""
    with ThreadPoolExecutor(worker_count()) as pool:  # threads do: decoding does not hold Python's lock
        checked = pool.map(fault, found.items)
        refuse_faults(found.name, progress(checked, found.name, total=len(found.items), unit="image"))


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(__doc__, ("benchmarks",), {"role": "test", "out": "data/benchmarks"})
    p, out = params.benchmarks, Path(args.out)
    if args.role not in ROLES:
        raise UserError(f"--role: expected one of {', '.join(ROLES)}, got {args.role!r}")
    given = [key for key in ROLES[args.role] if getattr(p, key)]
    if not given:
        keys = ", ".join(f"benchmarks.{key}" for key in ROLES[args.role])
        raise UserError(f"{args.params}: expected the folder of a data set in at least one of {keys}; all are empty")
    sets = [read_benchmark(key, p) for key in given]
    for found in sets:
        check_files(found)
    with fresh_folder(out) as folder:
        write_atomically(folder / "index.csv", table_csv([item for found in sets for item in found.items]))
    for found in sets:
        other = f", not the published {COUNTS[found.name]:,}" if len(found.items) != COUNTS[found.name] else ""
        print(f"{out}: {found.name}: {len(found.items):,} images{other}{'; ' * bool(found.note)}{found.note}")


if __name__ == "__main__":
    exit_cleanly(main)
