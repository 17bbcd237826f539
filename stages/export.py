"""Export pictures with masks or label maps for other tools: COCO, Hugging Face image folder, indexed PNG.

Inputs:   --images: an image set, with --labels also a plain folder of pictures; --masks: a masks folder as stage
          attentioncut writes them, '' for the set's own masks; or --labels: label maps as stage segment writes them
Outputs:  --format coco: <out>/images, <out>/annotations.json (run-length masks, one per class and picture);
          imagefolder: <out>/train with images, masks and metadata.jsonl, <out>/README.md;
          indexed: <out>/images, <out>/labels (a pixel's value is its class), <out>/classes.txt
Command:  python stages/export.py --images data/generated/set --masks data/masks/generated --format coco --out export
          python stages/export.py --images data/world --labels data/semantic/world --format imagefolder --out export
Time:     about 2 seconds for 960 pictures of 64x64
Expect:   pictures without a mask are left out; those with an empty one stay, without an object
"""

from __future__ import annotations

from pathlib import Path

from maskmill.cli import die_with_parent, progress, stage_arguments
from maskmill.datasets.table import read_table
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.exports import FORMATS, class_names, labelled, masked
from maskmill.report.segmentations import names_of
from maskmill.store import fresh_folder


def main() -> None:
    die_with_parent()
    args, _ = stage_arguments(
        __doc__, (),
        {"images": "data/generated/set", "masks": "", "labels": "", "format": "coco", "out": "export"},
    )  # fmt: skip
    images = Path(args.images)
    if args.format not in FORMATS:
        raise UserError(f"--format: expected {', '.join(FORMATS)}, got {args.format!r}")
    if args.masks and args.labels:
        raise UserError("--masks and --labels: expected one of them, got both")
    if args.labels:
        names, examples = names_of(args.labels), labelled(images, Path(args.labels))
    else:
        items = read_table(images)
        names = class_names(items)
        examples = masked(items, images, Path(args.masks) if args.masks else None, names)
    source = args.labels or args.masks or args.images
    with fresh_folder(args.out) as folder:
        found = progress(examples, "export", unit="image")
        count = FORMATS[args.format](folder, found, names, f"Pictures of {args.images}, masks of {source}")
    print(f"{args.out}: {count} pictures with masks of {len(names)} classes, {args.format}")


if __name__ == "__main__":
    exit_cleanly(main)
