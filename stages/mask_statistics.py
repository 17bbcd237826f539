"""Compare what the masks of two image sets look like (DiffusionSeg Table 2 and Figures 3 to 5).

Inputs:   two image sets (folders with index.csv) and the masks of each: a folder as stage attentioncut writes it, or
          "own" for those that the set itself names
Outputs:  --metrics: SC, PL, SD, contrast, size and centres of both sets, their distances, the protocol;
          <out>: contrast, size, centres and polygons as PNG and CSV
Command:  python stages/mask_statistics.py --images data/generated/set --masks data/masks/generated
          --reference data/world --reference-masks own --out statistics --metrics statistics.json
Time:     about 5 seconds for two sets of 300 pictures of 64x64; a mask of 512x512 takes 20 ms and its reading
Expect:   SC and SD compare only between sets of one resolution, see maskmill/scores/geometry.py
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from maskmill.cli import die_with_parent, progress, stage_arguments, worker_count, write_atomically
from maskmill.datasets.table import Item, item_rng, read_image, read_mask, read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.distributions import centre_scatter, density_curves, polygon_panels
from maskmill.report.summary import to_json
from maskmill.scores.geometry import PROTOCOL, Geometry, distances, measure, summarise
from maskmill.scores.runs import truth_of
from maskmill.store import fresh_folder

CHUNK = 50
CONTRAST, SIZE = (0, 127.5), (0, 1)  # what values of each there can be


def measure_item(folder: Path, masks: Path | None, tolerance: float, item: Item) -> Geometry | None:
    """Measure one mask of an image set; None takes the set's own masks."""
    mask = truth_of(folder, item) if masks is None else read_mask(masks / "masks" / f"{item.sample_id}.png")
    image = read_image(folder / item.image)
    if image.shape[:2] != mask.shape:
        raise UserError(f"{folder}: {item.sample_id}: expected a mask of the image's size, got {mask.shape} and "
                        f"{image.shape[:2]}")  # fmt: skip
    return measure(mask, image, tolerance)


def measure_set(folder: Path, masks: str, tolerance: float) -> list[Geometry]:
    """Measure all masks of an image set in the order of its table; empty ones are None."""
    job = partial(measure_item, folder, None if masks == "own" else Path(masks), tolerance)
    items = read_table(folder)
    with ProcessPoolExecutor(worker_count(), initializer=die_with_parent, initargs=(True,)) as pool:
        found = pool.map(job, items, chunksize=CHUNK)
        measured = list(progress(found, f"measure {folder}", total=len(items), unit="mask"))
    if not any(measured):
        raise UserError(f"{folder}: expected at least one mask that is not empty, got {len(items)} empty ones")
    return measured


def spread(count: int, shown: int) -> list[int]:
    """At most ``shown`` of the indices 0..count - 1, evenly spaced."""
    return sorted({round(k) for k in np.linspace(0, count - 1, shown)})


def draw(sets: dict[str, list[Geometry]], shown: int, out: Path) -> None:
    """All figures with their tables; ``sets`` without empty masks, ``shown`` polygons of each."""
    contrasts = {name: [g.contrast for g in found] for name, found in sets.items()}
    density_curves(contrasts, out / "contrast.png", out / "contrast.csv", "standard deviation of the levels 0..255",
                   "Colour contrast of the pictures", CONTRAST)  # fmt: skip
    sizes = {name: [g.size for g in found] for name, found in sets.items()}
    density_curves(sizes, out / "size.png", out / "size.csv", "share of the picture", "Size of the objects", SIZE)
    centres = {name: np.array([g.centre for g in found]) for name, found in sets.items()}
    centre_scatter(centres, out / "centres.png", out / "centres.csv")
    polygons = {name: [found[k].polygon for k in spread(len(found), shown)] for name, found in sets.items()}
    polygon_panels(polygons, out / "polygons.png", out / "polygons.csv", "Polygons and their numbers of vertices")


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "statistics"),
        {"images": "data/generated/set", "masks": "data/masks/generated", "reference": "data/world_train",
         "reference-masks": "own", "out": "metrics/statistics", "metrics": "metrics/statistics.json"},
    )  # fmt: skip
    p = params.statistics
    places = {"ours": (args.images, args.masks), "reference": (args.reference, args.reference_masks)}
    measured = {name: measure_set(Path(images), masks, p.tolerance) for name, (images, masks) in places.items()}
    document = {name: summarise(found, p.pairs, item_rng(params.seed, name)) for name, found in measured.items()}
    document["distance"] = distances(measured["ours"], measured["reference"])
    document["protocol"] = {
        "ours": f"{args.images}, masks {args.masks}", "reference": f"{args.reference}, masks {args.reference_masks}",
        "tolerance": p.tolerance, "seed": params.seed, **PROTOCOL,
    }  # fmt: skip
    document["dataset"] = ", ".join(sorted({item.dataset for item in read_table(args.reference)} - {""}))
    with fresh_folder(args.out) as folder:
        draw({name: [g for g in found if g is not None] for name, found in measured.items()}, p.polygons, folder)
    write_atomically(args.metrics, to_json(document))
    for name in places:
        print(f"{name}: " + "  ".join(f"{key} {document[name][key]:.3g}" for key in ("n", "SC", "PL", "SD", "size")))


if __name__ == "__main__":
    exit_cleanly(main)
