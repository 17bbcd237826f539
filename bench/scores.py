"""Speed of scoring: images per second on one core, at the size of the saliency benchmarks.

    python bench/scores.py

Inputs are made here: soft maps of 400x300 pixels around one blob each, their masks and true masks, with the noise of a
real map. ``from memory`` is Acc, IoU, both maxF with the 255-threshold curves, and CorLoc (largest component and boxes)
of maps that are at hand; ``from files`` is what stage score does: it also reads the three PNGs of each image. DUTS-TE
has 5,019 images, which shall take at most 60 seconds.
About 15 seconds. Expect well above 84 images/s, which is that goal, in both lines.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read once, when numpy loads
    os.environ[name] = "1"

import argparse  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
from scipy.ndimage import gaussian_filter  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from maskmill.datasets.table import Item, save_png  # noqa: E402
from maskmill.scores.runs import Prediction, Run, saved_prediction, score_set  # noqa: E402

SET, GOAL = 5019, 60  # images of DUTS-TE, and the seconds they may take


def made_up(seed: int, height: int, width: int) -> tuple[Prediction, np.ndarray]:
    """A smooth soft map (H, W) uint8 with its mask, and a true mask that it partly meets."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centre, reach = rng.uniform(0.3, 0.7, 2) * (height, width), rng.uniform(0.1, 0.3, 2) * (height, width)
    bumps = gaussian_filter(rng.normal(size=(height, width)), 6) * 6
    distance = ((y - centre[0]) / reach[0]) ** 2 + ((x - centre[1]) / reach[1]) ** 2 + bumps
    grain = rng.normal(0, 2, (height, width))
    soft = np.clip(255 / (1 + np.exp(3 * (distance - 1 + rng.normal(0, 0.3)))) + grain, 0, 255).astype(np.uint8)
    return (soft, soft > 127), distance < 1


def report(what: str, seconds: float, count: int) -> None:
    rate = count / seconds
    print(f"{what}: {rate:.0f} images/s (goal {SET / GOAL:.0f}), {SET:,} images in {SET / rate:.1f} s (goal {GOAL}), "
          f"{count} images")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="images (default %(default)s)")
    parser.add_argument("--width", type=int, default=400, help="of an image in pixels (default %(default)s)")
    parser.add_argument("--height", type=int, default=300, help="of an image in pixels (default %(default)s)")
    args = parser.parse_args()
    if min(args.count, args.width, args.height) < 1:
        parser.error("--count, --width and --height must be at least 1")
    samples = [made_up(seed, args.height, args.width) for seed in range(args.count)]
    start, run = time.perf_counter(), Run()
    for i, (prediction, truth) in enumerate(samples):
        run.update(prediction, truth, "", str(i))
    in_memory = {**run.headline(), "f": run.saliency.result()["maxf_per_image"]}
    report("from memory", time.perf_counter() - start, args.count)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        items = [Item(str(i), "", "-", f"truth/{i}.png") for i in range(args.count)]
        for item, ((soft, mask), truth) in zip(items, samples, strict=True):
            for part, array in (("soft", soft), ("masks", mask), ("truth", truth)):
                save_png(array, folder / part / f"{item.sample_id}.png")
        start = time.perf_counter()
        scored = score_set(items, folder, lambda item: saved_prediction(folder, item))[""]
        on_disk = {**scored.headline(), "f": scored.saliency.result()["maxf_per_image"]}
        report("from files", time.perf_counter() - start, args.count)
    if in_memory != on_disk:
        raise SystemExit(f"the two ways differ: {in_memory} against {on_disk}")
    print("scores, the same in both: " + "  ".join(f"{k} {v:.3f}" for k, v in in_memory.items()))


if __name__ == "__main__":
    main()
