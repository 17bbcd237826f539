"""What the miniature learns from: pictures of the world and their captions. Masks never get here."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskmill import world

CAPTIONS_PER_SCENE = 4
TRAIN_SEEDS = 10_000_000  # scenes of training start at this seed; held-out sets use seeds far below it


@dataclass(frozen=True)
class Corpus:
    """``images`` (n, S, S, 3) uint8; ``captions`` n lists of ``CAPTIONS_PER_SCENE`` strings."""

    images: np.ndarray
    captions: list[list[str]]


def _scene(index: int, size: int, two_objects: float) -> tuple[np.ndarray, list[str]]:
    scene = world.render(TRAIN_SEEDS + index, size, two_objects)
    return scene.image, [world.caption(scene, CAPTIONS_PER_SCENE * index + k) for k in range(CAPTIONS_PER_SCENE)]


def build(count: int, size: int, two_objects: float, cache: Path) -> Corpus:
    """Render ``count`` scenes with all processors, or read them from ``cache`` where an earlier run left them."""
    images_file, captions_file = cache / "images.npy", cache / "captions.json"
    if not captions_file.exists():  # written last
        cache.mkdir(parents=True, exist_ok=True)
        images, captions = np.empty((count, size, size, 3), np.uint8), []
        job = partial(_scene, size=size, two_objects=two_objects)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            rendered = pool.map(job, range(count), chunksize=250)
            for i, (image, texts) in enumerate(tqdm(rendered, total=count, desc="world", unit="scene")):
                images[i] = image
                captions.append(texts)
        np.save(images_file, images)
        aside = captions_file.with_suffix(".part")
        aside.write_text(json.dumps(captions))
        aside.rename(captions_file)
    return Corpus(np.load(images_file), json.loads(captions_file.read_text()))
