"""Speed and memory of matching a picture's features with a large vocabulary, beside the bare matrix product.

    python bench/matching.py

150 classes of 65 prototypes (1 class, 32 instance, 32 part) for each of 3 extractors of 768 channels, against the 64x64
cells of one picture, on one thread. ``bare`` is the product of the matrices of that size alone, one extractor after the
other. ``match`` normalises, takes the maximum per class, averages the extractors, and finds the deciding and the second
prototype of each cell. ``with background`` has as many background prototypes again, beside a product of that size. The
memory line (Linux) is the peak of a process that matches, above what it held before, for several budgets.
About 70 seconds on a free core. Expect ratios well below 1.5, and memory that follows the budget.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read once, when the libraries load
    os.environ[name] = "1"

import argparse  # noqa: E402
import multiprocessing  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from maskmill.segmenters.matching import BUDGET, Vocabulary, match  # noqa: E402
from maskmill.segmenters.prototypes import ClassPrototypes, Link  # noqa: E402

GOAL = 1.5
MIB = 2**20


def made_up(classes: int, prototypes: int, channels: int, extractors: int) -> list[ClassPrototypes]:
    """Random prototypes, as many of the background as of the foreground."""
    rng = np.random.default_rng(0)
    links = [Link("part", ground, "", {}, (0, 0), 1) for ground in ("foreground", "background")
             for _ in range(prototypes)]  # fmt: skip
    return [
        ClassPrototypes(
            f"class {c}",
            {str(v): rng.standard_normal((2 * prototypes, channels), np.float32) for v in range(extractors)},
            {str(v): links for v in range(extractors)},
        )
        for c in range(classes)
    ]


def seconds(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def resident(which: str) -> float:
    """MiB of this process that are in memory (VmRSS), or the most that were (VmHWM)."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(which))
    return int(line.split()[1]) / 1024


def peak(work, pipe) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    work()
    pipe.send(resident("VmHWM") - before)


def memory(work) -> float:
    """MiB that a fork of this process needs for ``work`` above what it starts with."""
    mine, its = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=peak, args=(work, its))
    child.start()
    found = mine.recv()
    child.join()
    return found


def compare(what: str, vocabulary: Vocabulary, features: dict[str, torch.Tensor], rounds: int) -> None:
    """Time and memory of matching, beside the bare products of the same matrices."""
    tables = [vocabulary.vectors(key) for key in vocabulary.extractors]
    columns = [x[0].flatten(1) for x in features.values()]
    rows, cells = sum(len(t) for t in tables), columns[0].shape[1]
    budgets = (16 * MIB, BUDGET, 256 * MIB)
    used = [(b, memory(partial(match, features, vocabulary, budget=b))) for b in budgets]
    times: dict[str, list[float]] = {"bare": [], "match": []}
    for _ in range(rounds + 1):
        times["bare"].append(seconds(lambda: [t @ x for t, x in zip(tables, columns, strict=True)]))
        times["match"].append(seconds(lambda: match(features, vocabulary)))
    bare, ours = (statistics.median(times[key][1:]) for key in ("bare", "match"))  # without the first, to warm up
    print(f"{what}: {rows:,} prototypes x {cells:,} cells: bare {bare:.2f} s, match {ours:.2f} s, ratio "
          f"{ours / bare:.2f} (goal {GOAL})")  # fmt: skip
    print(f"  memory: all similarities at once would be {4 * rows * cells / MIB:.0f} MiB; "
          + ", ".join(f"budget {b // MIB} MiB: {m:.0f} MiB" for b, m in used))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--prototypes", type=int, default=65, help="foreground prototypes per class")
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--extractors", type=int, default=3)
    parser.add_argument("--side", type=int, default=64, help="of the grid of cells")
    parser.add_argument("--rounds", type=int, default=2, help="timings of each, taken in turns")
    args = parser.parse_args()
    torch.set_num_threads(1)
    made = made_up(args.classes, args.prototypes, args.channels, args.extractors)
    rng = np.random.default_rng(1)
    features = {str(v): torch.from_numpy(rng.standard_normal((1, args.channels, args.side, args.side), np.float32))
                for v in range(args.extractors)}  # fmt: skip
    for what, background in (("match", False), ("with background", True)):
        compare(what, Vocabulary(made, background=background), features, args.rounds)


if __name__ == "__main__":
    main()
