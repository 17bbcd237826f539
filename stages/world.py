"""Draw the held-out scenes of the miniature's world, with exact masks (no part of the training ever sees these).

Inputs:   params.yaml: world; pretrain.scenes, to keep apart from them
Output:   data/world: images/, masks/ (of the object that the row's class names), labels/, index.csv
Command:  python stages/world.py --out data/world
Time:     about 3 seconds for 600 scenes
Expect:   test_count scenes for each seed, every class about equally often
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskmill import world
from maskmill.cli import die_with_parent, progress, stage_arguments, write_atomically
from maskmill.datasets.table import Item, save_png, table_csv
from maskmill.errors import UserError, exit_cleanly
from maskmill.pretraining.corpus import TRAIN_SEEDS
from maskmill.store import fresh_folder

SEED_STRIDE = 100_000  # scenes of one draw


def draw(seed: int, index: int, size: int, two_objects: float, folder: Path) -> Item:
    """Render one scene, choose the object that is asked for, write its files."""
    scene = world.render(seed * SEED_STRIDE + index, size, two_objects)
    rng = np.random.default_rng([13, seed, index])
    thing = scene.things[rng.integers(len(scene.things))]
    absent = [c for c in world.CLASSES if c not in {t.cls for t in scene.things}]
    name = f"s{seed}-{index:05d}"
    save_png(scene.image, folder / "images" / f"{name}.png")
    save_png(thing.mask, folder / "masks" / f"{name}.png")
    save_png(scene.label_map(), folder / "labels" / f"{name}.png")
    nouns = " and ".join(world.article(t.cls) for t in scene.things)
    return Item(
        name, thing.cls, f"images/{name}.png", f"masks/{name}.png", f"labels/{name}.png",
        f"a photo of {nouns} on {scene.lower}", str(rng.choice(absent)), str(seed),
    )  # fmt: skip


def refuse_training_scenes(seeds: tuple[int, ...], count: int, training: int) -> None:
    """Held-out scenes are scenes that neither the training nor another draw holds."""
    for seed in seeds:
        first = seed * SEED_STRIDE
        if first < TRAIN_SEEDS + training and TRAIN_SEEDS < first + count:
            raise UserError(f"world.seeds: expected a draw apart from the training scenes, got {seed}")
    if count > SEED_STRIDE:
        raise UserError(f"world.test_count: expected at most {SEED_STRIDE}, got {count}")


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(__doc__, ("world", "pretrain"), {"out": "data/world"})
    p, out = params.world, Path(args.out)
    refuse_training_scenes(p.seeds, p.test_count, params.pretrain.scenes)
    jobs = [(seed, i) for seed in p.seeds for i in range(p.test_count)]
    with fresh_folder(out) as folder:
        items = [draw(s, i, p.size, p.test_two_objects, folder) for s, i in progress(jobs, "world", unit="scene")]
        write_atomically(folder / "index.csv", table_csv(items))
    print(f"{out}: {len(items)} held-out scenes")


if __name__ == "__main__":
    exit_cleanly(main)
