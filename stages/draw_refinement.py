"""Draw the steps of concept distillation's refinement: picture, M_hat, M_pre, background, difference, M, and ground
truth where there is any.

Inputs:   an image set, the masks folders that stages mean_attention (--preliminary) and refine_masks (--refined) wrote
Output:   one PNG
Command:  python stages/draw_refinement.py --images data/concepts/bird/test --preliminary
          data/distill/bird/preliminary_test --refined data/distill/bird/refined_test --out metrics/grids/refinement.png
Time:     about 3 seconds
Expect:   the first pictures of the set: neither the best nor the worst are chosen
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskmill.cli import die_with_parent, stage_arguments
from maskmill.datasets.table import Item, read_image, read_labels, read_table
from maskmill.errors import exit_cleanly
from maskmill.report.grids import Column, Row, picture_grid
from maskmill.scores.runs import saved_prediction, truth_of

COLUMNS = (
    Column("image", "Picture", "image"),
    Column("attention", "Mean attention", "heat", "to the word"),
    Column("pre", "Preliminary", "mask", "mixture of two"),
    Column("background", "Background", "image", "object painted over"),
    Column("difference", "Difference", "heat", "of the two pictures"),
    Column("refined", "Refined", "mask", "mixture, within it"),
)
TRUTH = Column("truth", "Ground truth", "truth")


def overlap(mask: np.ndarray, truth: np.ndarray) -> str:
    """``IoU 0.71``, for the corner of a panel."""
    return f"IoU {(mask & truth).sum() / max(1, (mask | truth).sum()):.2f}"


def row_of(item: Item, folder: Path, preliminary: Path, refined: Path, prompt: str, word: str) -> Row:
    """One picture's panels, all of them as they are on disk."""
    (attention, pre), (_, mask) = saved_prediction(preliminary, item), saved_prediction(refined, item)
    panels = {"attention": attention / 255, "pre": pre, "refined": mask,
              "background": read_image(refined / "backgrounds" / f"{item.sample_id}.png"),
              "difference": read_labels(refined / "difference" / f"{item.sample_id}.png") / 255}  # fmt: skip
    texts = {}
    if item.mask:
        panels["truth"] = truth_of(folder, item)
        texts = {key: overlap(panels[key], panels["truth"]) for key in ("pre", "refined")}
    return Row(read_image(folder / item.image), panels, prompt, word, texts)


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("distill", "evaluate"),
        {"images": "data/concepts/bird/test", "preliminary": "data/distill/bird/preliminary_test",
         "refined": "data/distill/bird/refined_test", "out": "metrics/grids/refinement.png"},
    )  # fmt: skip
    d, folder = params.distill, Path(args.images)
    items, prompt = read_table(folder)[: params.evaluate.grid_rows], d.object.replace("{}", d.word)
    rows = [row_of(item, folder, Path(args.preliminary), Path(args.refined), prompt, d.word) for item in items]
    columns = [*COLUMNS, *([TRUTH] if any(item.mask for item in items) else [])]
    title = f"From the word {d.word!r} to masks: no mask was seen in any training"
    picture_grid(rows, columns, path=args.out, title=title)
    print(f"{args.out}: {len(rows)} pictures")


if __name__ == "__main__":
    exit_cleanly(main)
