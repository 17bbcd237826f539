"""Speed of AttentionCut: masks per second on one thread, at 64x64 and at 512x512.

    python bench/attentioncut.py

Inputs are made here: scenes of the miniature's world and attention records of the shapes of the miniature (16 and 8)
and of Stable Diffusion (64, 32, 16 and 8), with made-up attention that follows an object, so that the cut has real
work to do. The cut runs at the image's size with all terms on; reading records and writing masks are not counted.
About 10 seconds. Expect well above 40 masks/s at 64x64 and 1 mask/s at 512x512.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read once, when numpy loads
    os.environ[name] = "1"

import argparse  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from maskmill.masks.attentioncut import OFFSETS, CutParams, attention_cut, resize  # noqa: E402
from maskmill.world import render  # noqa: E402

# image side -> {attention resolution: (cross-attention layers, self-attention layers)}, and the goal in masks/s
SHAPES = {64: {16: (3, 3), 8: (3, 3)}, 512: {64: (5, 5), 32: (5, 5), 16: (5, 5), 8: (1, 1)}}
GOALS = {64: 40, 512: 1}
BINS = 4


def likeness(inside: np.ndarray, at: np.ndarray, to: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A_s-like values (n, k): points ``at`` (n, 2) attend to ``keys`` (k or n x k, 2) that are near and alike."""
    return np.exp(-((at[:, None] - keys) ** 2).sum(-1) / 0.3 - 3 * np.abs(inside[:, None] - to))


def record_of(mask: np.ndarray, resolutions: dict[int, tuple[int, int]], rng: np.random.Generator) -> dict:
    """An attention record whose A_c and A_s follow ``mask`` (S, S), with noise; float16 as in the sample store."""
    record = {}
    for r, (layers, _) in resolutions.items():
        soft = resize(mask, (r, r))  # (r, r)
        noise = rng.gamma(4, 0.25, (BINS, layers, r, r))
        record[f"cross_{r}"] = ((0.3 + 3 * soft) * noise).astype(np.float16)
        soft = np.minimum(1, 6 * soft)  # what the object touches attends to it, as seeds on a blurred outline need
        c = min(r, 32)
        cells, in_cells = np.stack(np.mgrid[0:c, 0:c], -1).reshape(-1, 2) / c, resize(soft, (c, c)).ravel()  # (c*c, ..)
        matrix = likeness(in_cells, cells, in_cells, cells)  # (c*c, c*c)
        total = matrix.mean(1)
        matrix = matrix / total[:, None]
        record[f"pairs_{r}"] = ((matrix + matrix.T) / 2)[np.triu_indices(c * c)].astype(np.float16)
        grid = np.stack(np.mgrid[0:r, 0:r], -1).reshape(-1, 2)  # (r*r, 2)
        per_point = resize(total.reshape(c, c), (r, r)).ravel()
        near = np.zeros((8, r * r), np.float32)
        for o, offset in enumerate(OFFSETS):
            q = grid + offset
            good = ((q >= 0) & (q < r)).all(1)
            p, q = grid[good], q[good]
            inside, to = soft[p[:, 0], p[:, 1]], soft[q[:, 0], q[:, 1]]
            near[o, good] = likeness(inside, p / r, to[:, None], q[:, None] / r)[:, 0] / per_point[good]
        record[f"near_{r}"] = near.reshape(8, r, r).astype(np.float16)
    return record


def measure(size: int, count: int) -> None:
    """Cut ``count`` pictures of ``size`` pixels and print the rate."""
    rng = np.random.default_rng(0)
    layers = {r: n for r, (_, n) in SHAPES[size].items()}
    inputs = []
    for seed in range(count):
        scene = render(seed, size)
        inputs.append((record_of(scene.things[0].mask, SHAPES[size], rng), scene.image))
    params = CutParams(midpoint=0)
    attention_cut(*inputs[0], params, np.random.default_rng(0), layers)  # libraries load, weights are made once
    seconds = []
    for record, image in inputs:
        start = time.perf_counter()
        attention_cut(record, image, params, np.random.default_rng(0), layers)
        seconds.append(time.perf_counter() - start)
    rate = count / sum(seconds)
    print(
        f"{size}x{size}: {rate:.1f} masks/s (goal {GOALS[size]}), median {1000 * np.median(seconds):.1f} ms, "
        f"slowest {1000 * max(seconds):.1f} ms, {count} masks"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="pictures of 64x64 (default %(default)s)")
    parser.add_argument("--large", type=int, default=10, help="pictures of 512x512 (default %(default)s)")
    args = parser.parse_args()
    if min(args.count, args.large) < 1:
        parser.error("--count and --large must be at least 1")
    measure(64, args.count)
    measure(512, args.large)


if __name__ == "__main__":
    main()
