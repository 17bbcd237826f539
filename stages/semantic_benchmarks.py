"""Read a public data set of semantic segmentation as an image set with label maps; pictures stay where they are.

Inputs:   params.yaml: benchmarks: the folders of the data sets, in the layouts of maskmill.datasets.semantic
Outputs:  <out>/index.csv: paths of the pictures and of their label maps; <out>/classes.csv: label, class, query and
          kind; <out>/classes.txt: the queries, a vocabulary for prompts.file; <out>/labels/**.png: only where the data
          set counts its labels in another way (COCO-Stuff, Cityscapes). With --absent empty a data set whose folder
          is not named becomes an image set without images and without classes
Command:  python stages/semantic_benchmarks.py --name voc --out data/semantic_benchmarks/voc
          (voc, context, coco_object, coco_stuff, ade20k, cityscapes)
Time:     at most 15 ms a picture, Cityscapes 60 ms: every picture and label map is decoded once
Expect:   1,449 images of VOC, 5,104 of Context, 5,000 of both COCO sets, 2,000 of ADE20K, 500 of Cityscapes; any fault
          is found here and not hours later. Which of them are scored with a background: maskmill/labels/protocols.csv
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from maskmill.cli import die_with_parent, progress, stage_arguments, worker_count, write_atomically
from maskmill.datasets.benchmarks import refuse_faults
from maskmill.datasets.semantic import (
    COUNTS,
    FOLDERS,
    NAMES,
    Semantic,
    class_table,
    fault,
    label_map,
    read_semantic,
    write_classes,
)
from maskmill.datasets.table import REQUIRED, Item, save_png, table_csv
from maskmill.errors import UserError, exit_cleanly
from maskmill.store import fresh_folder


def check_files(found: Semantic) -> None:
    """Decode every picture and label map of a data set; all faults are told at once."""
    with ThreadPoolExecutor(worker_count()) as pool:  # threads do: decoding does not hold Python's lock
        checked = pool.map(lambda item: fault(item, found.lookup), found.items)
        refuse_faults(found.name, progress(checked, found.name, total=len(found.items), unit="image"))


def converted(found: Semantic, folder: Path) -> list[Item]:
    """Write the label maps in the project's convention; -> items that name them, relative to the folder."""

    def one(item: Item) -> Item:
        path = Path("labels", f"{item.sample_id.partition('/')[2]}.png")
        save_png(label_map(item, found.lookup), folder / path)
        return replace(item, labels=path.as_posix())

    with ThreadPoolExecutor(worker_count()) as pool:
        return list(progress(pool.map(one, found.items), "labels", total=len(found.items), unit="image"))


def leave_out(how: str, why: str, out: Path) -> None:
    """Write an image set without images, or refuse to."""
    if how == "refuse":
        raise UserError(f"{why}; --absent empty leaves the data set out")
    with fresh_folder(out) as folder:
        write_atomically(folder / "index.csv", f"{','.join(REQUIRED)}\n")
        write_classes([], folder)
    print(f"{out}: left out: {why}")


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("benchmarks",), {"name": "voc", "out": "data/semantic_benchmarks/voc", "absent": "refuse"}
    )  # fmt: skip
    for option, value, known in (("name", args.name, NAMES), ("absent", args.absent, ("refuse", "empty"))):
        if value not in known:
            raise UserError(f"--{option}: expected one of {', '.join(known)}, got {value!r}")
    p, out, key = params.benchmarks, Path(args.out), f"benchmarks.{FOLDERS[args.name]}"
    if not getattr(p, FOLDERS[args.name]):
        leave_out(args.absent, f"{NAMES[args.name]}: {args.params}: {key} names no folder", out)
        return
    found = read_semantic(args.name, p)
    check_files(found)
    with fresh_folder(out) as folder:
        items = found.items if found.as_it_is else converted(found, folder)
        write_atomically(folder / "index.csv", table_csv(items))
        write_classes(class_table(args.name), folder)
    published = " or ".join(f"{count:,}" for count in COUNTS[args.name])
    other = "" if len(items) in COUNTS[args.name] else f", not the published {published}"
    print(f"{out}: {found.name}: {len(items):,} images{other}{'; ' * bool(found.note)}{found.note}")


if __name__ == "__main__":
    exit_cleanly(main)
