"""Put a masked image set into a form that other tools read: D'_s of concept distillation, or any other set.

Inputs:   an image set; its masks folder; a folder of pictures with the object painted over, by sample id (what stage
          refine_masks leaves)
Output:   <out>: images/, masks/, foregrounds/ (RGBA), backgrounds/, annotations.json (COCO, run-length encoded),
          index.csv: an image set with masks of its own
Command:  python stages/export_set.py --images data/distill/bird/sampled --masks data/distill/bird/refined_sampled
          --backgrounds data/distill/bird/refined_sampled/backgrounds --out data/distill/bird/set
Time:     about 2 seconds for 200 pictures of 64x64
Expect:   masks that other tools read back bit for bit
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from maskmill.cli import die_with_parent, progress, stage_arguments
from maskmill.datasets.table import Item, read_image, read_mask, read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.sets import Sample, write_set
from maskmill.store import fresh_folder


def samples(items: list[Item], images: Path, masks: Path, backgrounds: Path) -> Iterator[Sample]:
    """The pictures of a set with what was found of them, one at a time."""
    for item in progress(items, "export_set", unit="image"):
        name = f"{item.sample_id}.png"
        yield Sample(item.sample_id, read_image(images / item.image), read_mask(masks / "masks" / name),
                     read_image(backgrounds / name))  # fmt: skip


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("distill",),
        {"images": "data/distill/bird/sampled", "masks": "data/distill/bird/refined_sampled", "backgrounds": "",
         "out": "data/distill/bird/set"},
    )  # fmt: skip
    word, images, masks = params.distill.word, Path(args.images), Path(args.masks)
    items = read_table(images)
    others = sorted({item.cls for item in items} - {word})
    if others:
        raise UserError(f"{images}/index.csv: expected the one class {word!r} (distill.word), got {others[0]!r}")
    with fresh_folder(args.out) as folder:
        told = f"Pictures of {word!r}, masks and backgrounds made by concept distillation"
        found = samples(items, images, masks, Path(args.backgrounds or masks / "backgrounds"))
        rows = write_set(folder, found, word, told)
    print(f"{args.out}: {len(rows)} pictures with mask, foreground and background")


if __name__ == "__main__":
    exit_cleanly(main)
