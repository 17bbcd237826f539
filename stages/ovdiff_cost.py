"""What the prototypes of one class cost, in seconds and floating point operations, part by part (OVDiff, cost).

Inputs:   the diffusion model and the feature extractors; parameters: support, extractors, build_prototypes, segment
Outputs:  <out>/{one-class,support,features,prototypes,picture}.json: seconds (mean over the classes, with spread) and
          TFLOP/s-hours, in the form that tables read; nothing of what was computed is kept
Command:  python stages/ovdiff_cost.py --classes bird,dog,car --out tables/ovdiff-cost/rows
Time:     about 40 seconds on one core, where it runs, so that seconds can be set against each other
Expect:   nearly all of a class is the sampling of its pictures. Operations are those of torch's products,
          convolutions and attention, counted once and the same for every class; K-means runs outside torch and is only
          in the seconds. A TFLOP/s-hour is 3,600 TFLOP, done at the peak: the paper's is time by peak, busy or not
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from maskmill import prompts
from maskmill.cli import die_with_parent, progress, runtime, stage_arguments, write_atomically
from maskmill.diffusion import passes
from maskmill.diffusion.backbone import Backbone
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.summary import to_json
from maskmill.segmenters.categories import THING, Category
from maskmill.segmenters.features_of import open_extractors
from maskmill.segmenters.openvocab import Segmenter
from maskmill.segmenters.prototypes import Support, build_class
from maskmill.segmenters.support import support_rows
from maskmill.segmenters.support_regions import RegionFinder, attribution
from maskmill.store import fresh_folder

SHAPE = passes.RecordShape(bins=4, cells=1)  # as stage support records
PARTS = ("support", "features", "prototypes", "picture")
OF_CLASS = PARTS[:3]
PICTURES = 4  # segmented, to tell what one costs


class Meter:
    """Seconds of each part, and its operations where they are counted: counting slows the parts down.

    On a CPU the seconds are those of the one core that works, which other programs do not lengthen.
    """

    def __init__(self, counting: bool, device: str) -> None:
        self.counting = counting
        self.clock = process_time if device == "cpu" else perf_counter
        self.seconds: dict[str, float] = {}
        self.flops: dict[str, int] = {}

    def __call__(self, part: str, work: Callable[[], Any], count: int = 1) -> Any:
        """Do some work, of which a ``count``-th is booked."""
        counter = FlopCounterMode(display=False) if self.counting else None
        start = self.clock()
        with counter or nullcontext():
            out = work()
        self.seconds[part] = (self.clock() - start) / count
        if counter is not None:
            self.flops[part] = counter.get_total_flops() // count
        return out


def one_class(name: str, params, backbone: Backbone, extractors: dict, batch: int, device: str, meter: Meter) -> None:
    """Everything for one class, from its prompts to a segmented picture."""
    s, b = params.support, params.build_prototypes
    rows = support_rows(name, s, params.seed, prompts.load_tokenizer(params.model.id, params.model.revision))
    capture = passes.open_capture(backbone, SHAPE)

    def sample() -> list[tuple[np.ndarray, dict]]:
        out = []
        for a in range(0, len(rows), batch):
            part = rows[a : a + batch]
            images, records, _ = passes.generate(
                backbone, capture, [r.prompt for r in part], [(r.token_start, r.token_end) for r in part],
                [r.seed for r in part], size=s.size, steps=s.steps, guidance=s.guidance, negative=s.negative,
                bins=SHAPE.bins, solver=s.solver,
            )  # fmt: skip
            out += zip(images, records, strict=True)
        return out

    def extract() -> list[dict[str, np.ndarray]]:
        out = []
        for a in range(0, len(images), batch):
            maps = {key: of(images[a : a + batch]).cpu().numpy() for key, of in extractors.items()}
            out += [{key: x[k] for key, x in maps.items()} for k in range(len(images[a : a + batch]))]
        return out

    def build() -> Any:
        maps = [attribution(record, image, b) for image, record in made]
        find = RegionFinder(b, maps)
        regions = [find(r.sample_id, a, x, image.shape[:2])
                   for r, a, x, image in zip(rows, maps, features, images, strict=True)]  # fmt: skip
        return build_class(name, [Support(r.sample_id, x, own.foreground, own.background)
                                  for r, x, own in zip(rows, features, regions, strict=True)],
                           b.parts, params.seed, b.sample)  # fmt: skip

    made = meter("support", sample)
    images = [image for image, _ in made]
    features = meter("features", extract)
    found = meter("prototypes", build)
    if not found.usable:
        raise UserError(f"class {name!r}: expected a foreground in one of its support images, found none")
    segmenter = Segmenter([found], [Category(name, name, THING)], extractors, params.segment, "", device)
    pictures = images[:PICTURES]
    meter("picture", lambda: segmenter(pictures), len(pictures))


def row(timed: list[Meter], counted: Meter, parts: tuple[str, ...], classes: list[str], what: str) -> dict:
    """A row of scores in the form that tables read; shares are of what a class costs."""

    def seconds(of: tuple[str, ...]) -> list[float]:
        return [sum(meter.seconds[part] for part in of) for meter in timed]

    def flops(of: tuple[str, ...]) -> int:
        return sum(counted.flops[part] for part in of)

    shares = [own / whole for own, whole in zip(seconds(parts), seconds(OF_CLASS), strict=True)]
    scores = {"TFLOP/s-hours": flops(parts) / 3.6e15, "seconds": mean(seconds(parts)), "share of seconds": mean(shares),
              "share of operations": flops(parts) / flops(OF_CLASS)}  # fmt: skip
    if len(timed) > 1:
        scores |= {"seconds_std": stdev(seconds(parts)), "share of seconds_std": stdev(shares)}
    return {"datasets": {"": {"scores": scores, "images": len(timed), "draws": classes}},
            "protocol": {"seconds": f"{what}, mean over the classes", "TFLOP/s-hours": "counted operations / 3.6e15",
                         "share of seconds": "of what a class costs"}}  # fmt: skip


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "model", "support", "extractors", "build_prototypes", "segment"),
        {"classes": "bird,dog,car", "out": "tables/ovdiff-cost/rows"},
    )  # fmt: skip
    classes, run = [name.strip() for name in args.classes.split(",") if name.strip()], runtime(batch=8)
    if not classes:
        raise UserError("--classes: expected at least one class, got ''")
    if params.build_prototypes.regions == "proposals":
        raise UserError("build_prototypes.regions: expected otsu or maskcut, whose cost is known, got proposals")
    if run.device == "cpu":
        torch.set_num_threads(1)
    backbone = Backbone(params.model.id, params.model.revision, params.model.dtype, run.device)
    extractors = open_extractors(params.model, (), params.extractors, run.device)
    counted, timed = Meter(True, run.device), []
    one_class(classes[0], params, backbone, extractors, run.batch, run.device, counted)  # which warms up, too
    for name in progress(classes, "cost", unit="class"):
        timed.append(Meter(False, run.device))
        one_class(name, params, backbone, extractors, run.batch, run.device, timed[-1])
    what = "seconds of one core" if run.device == "cpu" else f"wall clock on {run.device}"
    rows = {part: row(timed, counted, (part,), classes, what) for part in PARTS}
    rows["one-class"] = row(timed, counted, OF_CLASS, classes, what)
    with fresh_folder(Path(args.out)) as folder:
        for key, found in rows.items():
            write_atomically(folder / f"{key}.json", to_json(found))
    for part in OF_CLASS:
        own = rows[part]["datasets"][""]["scores"]
        print(f"{args.out}: {part}: {own['share of seconds']:.0%} of the seconds of a class, "
              f"{own['share of operations']:.0%} of its operations")  # fmt: skip
    whole = rows["one-class"]["datasets"][""]["scores"]
    print(f"{args.out}: one class: {whole['seconds']:.1f} s, {whole['TFLOP/s-hours'] * 3.6e6:.1f} GFLOP")


if __name__ == "__main__":
    exit_cleanly(main)
