"""Join image sets and their masks into one image set with masks of its own: D_s and D'_s, to train one net on both.

Inputs:   --images: image sets; --masks: as many places of masks in the same order: a masks folder, or "own" for those
          that the set names
Output:   <out>/index.csv: the rows of all sets; pictures and masks stay where they are (paths relative to <out>)
Command:  python stages/join_sets.py --images data/concepts/bird/train data/distill/bird/set
          --masks data/distill/bird/refined own --out data/distill/bird/joined
Time:     about 2 seconds
Expect:   as many rows as the sets have together
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from maskmill.cli import die_with_parent, write_atomically
from maskmill.datasets.table import Item, image_size, read_table, table_csv
from maskmill.errors import UserError, exit_cleanly
from maskmill.segmenters.pairs import mask_path
from maskmill.store import fresh_folder


def moved(path: Path, out: Path) -> str:
    """A file's path as a set in ``out`` names it; absolute where the file's own set has it so."""
    return str(path) if path.is_absolute() else Path(os.path.relpath(path, out)).as_posix()


def joined(folder: Path, masks: str, out: Path) -> list[Item]:
    """The rows of one set with its masks, as ``out`` names them; truth and draw of the set are not carried over.

    Raises:
        UserError: a mask is missing, or of another size than its picture.
    """
    items = []
    for item in read_table(folder):
        image, mask = folder / item.image, mask_path(folder, item, masks)
        if image_size(mask) != (size := image_size(image)):
            h, w = image_size(mask)
            raise UserError(f"{mask}: expected the picture's {size[1]}x{size[0]} pixels, got {w}x{h}")
        items.append(replace(item, image=moved(image, out), mask=moved(mask, out), labels="", seed="", boxes=""))
    return items


def main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", required=True, metavar="PATH", help="image sets")
    parser.add_argument("--masks", nargs="+", required=True, metavar="PATH", help="a masks folder, or own, for each")
    parser.add_argument("--out", required=True, metavar="PATH", help="the joined set")
    args = parser.parse_args()
    if len(args.images) != len(args.masks):
        raise UserError(f"--masks: expected one for each of the {len(args.images)} image sets, got {len(args.masks)}")
    out, every = Path(args.out), {}
    for folder, masks in zip(map(Path, args.images), args.masks, strict=True):
        for item in joined(folder, masks, out):
            if item.sample_id in every:
                raise UserError(f"{folder}/index.csv: {item.sample_id}: expected an id that no other set has")
            every[item.sample_id] = item
    with fresh_folder(out) as aside:
        write_atomically(aside / "index.csv", table_csv(list(every.values())))
    print(f"{out}: {len(every)} pictures of {len(args.images)} sets")


if __name__ == "__main__":
    exit_cleanly(main)
