"""Segment images with a trained decoder or end-to-end net (DiffusionSeg 3.3.2).

Inputs:   an image set, a model that stage train_decoder wrote, for a decoder the features of the images
Outputs:  <out>/masks: 8-bit PNG 0/255; <out>/soft: probability of foreground as 8-bit PNG; <out>/index.csv: area;
          <out>/postprocess.txt: what was done to the masks afterwards
Command:  python stages/decode.py --images data/world --features data/inverted/world/features
Time:     about 5 seconds for 300 scenes of the miniature
Expect:   one mask per image, which depends on nothing but that image, the weights and the post-processing
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from maskmill import store, workers
from maskmill.cli import die_with_parent, progress, runtime, stage_arguments, write_atomically
from maskmill.datasets.table import read_image, read_table, save_png
from maskmill.errors import UserError, exit_cleanly
from maskmill.masks import refine
from maskmill.segmenters.models import load_model, predict
from maskmill.segmenters.pairs import inputs_of


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("postprocess",),
        {"images": "data/world", "features": "data/inverted/world/features", "model": "data/decoder",
         "out": "data/masks/world_decoder"},
    )  # fmt: skip
    folder, device = Path(args.images), runtime().device
    workers.pin(device)
    model, config = load_model(args.model, device)
    features = None
    items = read_table(folder)
    if config["model"] == "fcn":
        features = store.Store(args.features)
        items = [item for item in items if item.sample_id in features]
        if not items:
            raise UserError(f"{args.features}: expected features of the images in {folder}/index.csv, found none")
    rows = []
    with store.fresh_folder(args.out) as out:
        for item in progress(items, "decode", unit="image"):
            image = read_image(folder / item.image)
            soft = predict(model, inputs_of(folder, item, features, config["size"]), image.shape[:2], device)
            soft, mask = refine.refine(soft, soft > 0.5, image, params.postprocess)
            save_png(mask, out / "masks" / f"{item.sample_id}.png")
            save_png(np.rint(soft * 255).astype(np.uint8), out / "soft" / f"{item.sample_id}.png")
            rows.append({"sample_id": item.sample_id, "area": round(float(mask.mean()), 6)})
        write_atomically(out / "index.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
        write_atomically(out / "postprocess.txt", refine.describe(params.postprocess) + "\n")
    print(f"{args.out}: {len(rows)} masks")


if __name__ == "__main__":
    exit_cleanly(main)
