"""Random search of AttentionCut's parameters on an unscored image set: how the miniature's values were chosen.

    python stages/world.py --world.seeds 101 102 --world.test_count 50 --out scratch/tune/world
    python stages/invert_features.py --images scratch/tune/world --out scratch/tune/inverted \
        --scratch scratch/tune/scratch --no-invert_features.features
    python bench/tune.py --images scratch/tune/world --records scratch/tune/inverted/records

Prints the best settings by mean IoU, and the mean and best IoU over all settings that share a value. All terms stay on.
About 1.5 seconds a setting for 100 scenes and one process.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from maskmill import params, store
from maskmill.datasets.table import item_rng, read_image, read_mask, read_table
from maskmill.masks.attentioncut import CutParams, attention_cut

GRID = {
    "tau": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    "beta": (0.1, 0.25, 0.5, 1.0, 2.5),
    "lambda_": (0.1, 0.3, 1.0, 2.0, 3.0),
    "sigma": (0.03, 0.06, 0.1, 0.2),
    "midpoint": (0.0, 0.3, 0.4, 0.5),
    "t_max": (0.25, 0.5, 0.75, 1.0),
    "top_k": (1, 2, 3, 4),
    "eps": (0.001, 0.01, 0.05),
}


def mean_iou(setting: dict, images: Path, records: Path, base: dict) -> float:
    """Mean IoU of one setting over all images that have a record."""
    shards, cut = store.Store(records), CutParams(**{**base, **setting})
    layers = shards.meta["self_layers"]
    scores = []
    for item in read_table(images):
        rng = item_rng(0, item.sample_id)
        mask = attention_cut(shards.read(item.sample_id), read_image(images / item.image), cut, rng, layers).mask
        truth = read_mask(images / item.mask)
        scores.append((mask & truth).sum() / max(1, (mask | truth).sum()))
    return float(np.mean(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--settings", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    base = vars(params.load("params.yaml").attentioncut)
    rng = np.random.default_rng(args.seed)
    settings = [{key: values[rng.integers(len(values))] for key, values in GRID.items()} for _ in range(args.settings)]
    job = partial(mean_iou, images=args.images, records=args.records, base=base)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        scores = list(tqdm(pool.map(job, settings), total=len(settings), unit="setting"))
    frame = pd.DataFrame(settings).assign(iou=scores).sort_values("iou", ascending=False)
    print(frame.head(10).to_string(index=False))
    for key in GRID:
        print(frame.groupby(key)["iou"].agg(["mean", "max"]).round(3).T.to_string())


if __name__ == "__main__":
    main()
