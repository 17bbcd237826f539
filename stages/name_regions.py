"""The control of OVDiff: label pictures by regions of colour, each named by CLIP (no prototypes, no diffusion model).

Inputs:   pictures or folders of pictures (--images; an image set keeps its ids); the CLIP model; --classes: a data set
          of maskmill/labels/things.csv, a CSV file or a list of classes; '' takes vocabulary.classes
Outputs:  a folder as stage segment writes it: labels/, overlays/, annotations.json, index.csv, classes.txt
Command:  python stages/name_regions.py --images data/world --out data/semantic/world_colournamed
Time:     about 20 seconds for 300 scenes of the miniature
Expect:   a picture's label map depends on nothing but that picture, the CLIP model and the seed
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from maskmill import store, workers
from maskmill.cli import die_with_parent, runtime, stage_arguments
from maskmill.datasets.pictures import Picture, find_pictures
from maskmill.datasets.table import item_rng, read_image
from maskmill.errors import UserError, exit_cleanly
from maskmill.report import segmentations
from maskmill.segmenters.categories import THING, load_categories
from maskmill.segmenters.named_regions import named
from maskmill.spread import each
from maskmill.zeroshot import ZeroShot

CHUNK = 16
CODE = ("maskmill.segmenters.named_regions", "maskmill.masks.baselines", "maskmill.zeroshot")


class Work:
    """One worker: CLIP, and what it does with some pictures."""

    def __init__(self, clip: str, names: list[str], queries: list[str], seed: int, device: str) -> None:
        self.clip, self.names, self.queries, self.seed, self.device = clip, names, queries, seed, device

    @cached_property
    def judge(self) -> ZeroShot:
        """Loaded by the first job, whose errors reach the user."""
        return ZeroShot(self.clip, self.queries, device=self.device)

    def __call__(self, pictures: list[Picture]) -> list[segmentations.Result]:
        out = []
        for picture in pictures:
            image = read_image(picture.path)
            start = int(item_rng(self.seed, picture.sample_id).integers(2**31))
            labels = named(image, self.judge, start)
            out.append(segmentations.result(picture, image, labels, self.names, {}))
        return out


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "model", "vocabulary"),
        {"images": "data/world", "classes": "", "out": "data/semantic/world_colournamed"},
    )  # fmt: skip
    pictures, clip, settings = find_pictures([args.images]), params.model.clip, runtime()
    if not clip:
        raise UserError("model.clip: expected a CLIP model that names regions, got ''")
    if args.classes:
        categories = load_categories(args.classes)
        things = [c for c in categories if c.kind == THING]
        names, queries = [c.name for c in things], [c.query for c in things]
    else:
        names = queries = list(params.vocabulary.classes)
    made = [store.model_stamp(clip, ""), names, queries, params.seed, store.code_hashes(*CODE)]
    stamps = {p.sample_id: store.fingerprint(made, store.hash_file(p.path)) for p in pictures}
    work = (clip, ["background", *names], queries, params.seed)
    places = workers.devices(settings.device, settings.workers)
    found = each(pictures, CHUNK, Work, work, "name regions", places)
    with store.fresh_folder(args.out) as folder:
        results = ((p, found[p.sample_id]) for p in pictures)
        segmentations.write(Path(folder), results, ["background", *names], stamps)
    print(f"{args.out}: {len(pictures)} label maps of {len(names)} classes")


if __name__ == "__main__":
    exit_cleanly(main)
