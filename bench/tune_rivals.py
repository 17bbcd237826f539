"""Random search of the rivals' parameters on unscored scenes: how the miniature's values in params.yaml were chosen.

    python bench/tune_rivals.py

Draws scenes of seeds 101 and 102 (those of AttentionCut's search, bench/tune.py; never the scored 1, 2 and 3), inverts
them, tries random settings of each method on a quarter of them and the best on all of them, improves the two best one
value at a time and tries the best at other sizes of the working grid. All that twice: with features alone (colour 0,
which is what params.yaml holds) and with colours beside them. Prints what was found by mean IoU, and the mean and best
IoU over all settings that share a value. Masks choose here, as they chose AttentionCut's values. About 1 minute for the
inversion and 12 for the search on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from maskmill import params, store
from maskmill.cli import worker_count
from maskmill.datasets.table import item_rng, read_image, read_mask, read_table
from maskmill.masks import rivals
from maskmill.masks.attentioncut import cross_map

SHARED = {
    "scale": ("l2", "centred", "standard"),
    "colour": (0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0),  # half of all settings have features alone
}
PLACED = {"position": (0.0, 0.5, 1.0, 2.0, 4.0), "attention": (0.0, 0.5, 1.0, 2.0, 4.0)}
PARTS = {"keep": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}
GRID = {
    "kmeans": SHARED | PLACED | PARTS | {"clusters": (2, 3, 4, 5, 6, 8, 10, 12, 16), "components": (0, 4, 8, 16, 32)},
    "ncut": SHARED | PLACED | PARTS | {
        "tau": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), "eps": (1e-5, 1e-3, 1e-2), "segments": (2, 3, 4, 5, 6, 8, 10, 12),
    },
    "crf": SHARED | {
        "components": (4, 8, 16, 32), "sigma_xy": (0.05, 0.1, 0.2, 0.4), "sigma_features": (0.1, 0.2, 0.3, 0.5, 0.8),
        "sigma_smooth": (0.02, 0.05, 0.1, 0.2), "weight_features": (1.0, 3.0, 10.0, 30.0),
        "weight_smooth": (0.0, 0.3, 1.0, 3.0), "midpoint": (0.0, 0.2, 0.3, 0.4, 0.5), "eps": (0.001, 0.01, 0.05),
        "iterations": (10,),
    },
}  # fmt: skip
SEARCH_SIZE = {"kmeans": 32, "ncut": 16, "crf": 32}
FINAL_SIZES = {"kmeans": (16, 32, 64), "ncut": (16, 32), "crf": (32, 64)}
EVERY = 4  # one scene of so many in the search
STARTS = 2  # settings that are improved one value at a time


@cache
def samples(folder: Path, every: int) -> list[tuple]:
    """(features, record, image, ground truth, start of K-means) of some scenes."""
    features, records = (store.Store(folder / "inverted" / kind) for kind in ("features", "records"))
    world, found = folder / "world", []
    for item in read_table(world)[::every]:
        image, truth = read_image(world / item.image), read_mask(world / item.mask)
        start = int(item_rng(0, item.sample_id).integers(2**31))  # as stages/rivals.py draws it
        found.append((features.read(item.sample_id), records.read(item.sample_id), image, truth, start))
    return found


def mean_iou(setting: dict, method: str, base: params.Params, folder: Path, every: int) -> float:
    """Mean IoU of one setting of one method."""
    chosen = dataclasses.replace(getattr(base.rivals, method), **setting)
    cut, scores = base.attentioncut, []
    for features, record, image, truth, start in samples(folder, every):
        side = rivals.working_side(features, chosen.size)
        cross = cross_map(record, (side, side), cut.top_k, cut.t_max)
        mask = rivals.METHODS[method](features, cross, image, chosen, start).mask
        scores.append((mask & truth).sum() / max(1, (mask | truth).sum()))
    return float(np.mean(scores))


def best(frame: pd.DataFrame, count: int) -> list[dict]:
    ranked = frame.sort_values("iou", ascending=False, kind="stable")
    return ranked.head(count).drop(columns="iou").to_dict("records")


def improved(setting: dict, grid: dict, fixed: tuple[str, ...], scored) -> pd.DataFrame:
    """Each value in turn moved to its neighbours in the grid, where that is better; twice. -> all settings tried"""
    tried = scored([setting])
    for key in 2 * [key for key in grid if key not in fixed]:
        setting = best(tried, 1)[0]
        values = sorted(set(grid[key]))
        i = values.index(setting[key])
        around = [{**setting, key: v} for v in values[max(0, i - 1) : i + 2] if v != setting[key]]
        known = tried.drop(columns="iou").to_dict("records")
        new = [s for s in around if s not in known]
        if new:
            tried = pd.concat([tried, scored(new)])
    return tried


def search(method: str, count: int, finalists: int, rng: np.random.Generator, pool, job) -> None:
    """Search one method and print what was found."""

    def scored(settings: list[dict], every: int = 1) -> pd.DataFrame:
        work = pool.map(partial(job, method=method, every=every), settings)
        shown = tqdm(work, method, len(settings), unit="setting", disable=len(settings) < 20)
        return pd.DataFrame(settings).assign(iou=list(shown))

    grid, size = GRID[method], SEARCH_SIZE[method]
    drawn = [{k: v[rng.integers(len(v))] for k, v in grid.items()} | {"size": size} for _ in range(count)]
    part = scored(drawn, EVERY)
    print(f"\n{method}: {count} settings on a part of the scenes")
    for key, values in grid.items():
        if len(set(values)) > 1:
            print(part.groupby(key)["iou"].agg(["mean", "max"]).round(3).T.to_string())
    for title, group, fixed in (("colour 0", part[part["colour"] == 0], ("colour",)), ("with colours", part, ())):
        found = scored(best(group, finalists))
        found = pd.concat([found, *(improved(s, grid, fixed, scored) for s in best(found, STARTS))])
        others = [{**s, "size": n} for s in best(found, 2) for n in FINAL_SIZES[method] if n != size]
        found = pd.concat([found, scored(others)]).drop_duplicates().sort_values("iou", ascending=False, kind="stable")
        print(f"{method}, {title}: the best on all scenes\n{found.head(8).to_string(index=False)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("scratch/tune_rivals"), help="scenes and their inversion")
    parser.add_argument("--methods", nargs="+", choices=list(GRID), default=list(GRID))
    parser.add_argument("--settings", type=int, default=300, help="random settings per method")
    parser.add_argument("--finalists", type=int, default=8, help="settings that all scenes try")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    world, inverted = args.folder / "world", args.folder / "inverted"
    if not (inverted / "records/manifest.json").exists():
        for command in (
            ["stages/world.py", "--world.seeds", "101", "102", "--world.test_count", "50", "--out", world],
            ["stages/invert_features.py", "--images", world, "--out", inverted, "--scratch", args.folder / "scratch"],
        ):
            subprocess.run([sys.executable, *map(str, command)], check=True)
    job = partial(mean_iou, base=params.load("params.yaml"), folder=args.folder)
    with ProcessPoolExecutor(worker_count()) as pool:
        for method in args.methods:
            search(method, args.settings, args.finalists, np.random.default_rng(args.seed), pool, job)


if __name__ == "__main__":
    main()
