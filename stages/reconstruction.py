"""How much of a picture survives as noise: deterministic (DDIM) inversion beside the stochastic forward process
(DiffusionSeg 3.3.1).

Inputs:   an image set, and what stage invert_features made of it: captions, relative errors of the latents after
          inversion and reverse pass
Outputs:  <out>/ddim.json and <out>/ddpm.json: that error, and the one after the forward process, which draws noise, and
          the same reverse pass; mean and spread over the draws of the set
Command:  python stages/reconstruction.py --images data/world --inverted data/inverted/world --out rows
Time:     about a minute for 300 scenes of the miniature on two cores
Expect:   well under .2 and about 1: the noise of the forward process belongs to some other picture
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from maskmill import workers
from maskmill.cli import die_with_parent, runtime, stage_arguments, write_atomically
from maskmill.datasets.table import Item, item_rng, read_image, read_table
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.sampling import ddim_sample
from maskmill.errors import UserError, exit_cleanly
from maskmill.report.summary import to_json
from maskmill.spread import each

CHUNK = 50
METRIC = "reconstruction error"
PROTOCOL = {
    METRIC: "|z' - z| / |z| of the latent z of an image and z' after T steps to noise and T steps back under the same "
    "caption, without guidance, mean over images",
    "std": "sample standard deviation over seeds (ddof = 1)",
}


class Forward:
    """One worker: the errors of some pictures after the stochastic forward process to t_T and the reverse pass."""

    def __init__(self, folder: Path, captions: dict[str, str], params, batch: int, device: str) -> None:
        self.folder, self.captions, self.batch, self.seed = folder, captions, batch, params.seed
        self.size, self.steps = params.generate.size, params.invert_features.steps
        m = params.model
        self.backbone = Backbone(m.id, m.revision, m.dtype, device)

    def __call__(self, items: list[Item]) -> list[float]:
        backbone, size = self.backbone, self.size
        times = backbone.timesteps(self.steps)
        a = float(backbone.abar[times[-1]])

        def there_and_back(index: list[int]) -> list[float]:
            chosen = [items[i] for i in index]
            condition = backbone.encode_text([self.captions[item.sample_id] for item in chosen], size)
            z = backbone.encode_images(np.stack([read_image(self.folder / item.image, size) for item in chosen]))
            seeds = [int(item_rng(self.seed, item.sample_id).integers(2**62)) for item in chosen]
            noise = a**0.5 * z + (1 - a) ** 0.5 * backbone.start_noise(seeds, size)  # q(x_t | x_0)
            back = ddim_sample(lambda x, t: backbone.noise(x, t, condition), noise, times, backbone.abar)
            error: torch.Tensor = (back - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)  # (B,)
            return error.tolist()

        return workers.in_batches(len(items), self.batch, there_and_back)


def row(items: list[Item], errors: dict[str, float]) -> dict:
    """A row of a table: mean over the images of each draw, then mean and spread over the draws."""
    draws = list(dict.fromkeys(item.seed for item in items))
    means = [float(np.mean([errors[item.sample_id] for item in items if item.seed == draw])) for draw in draws]
    scores = {METRIC: float(np.mean(means))}
    if len(means) > 1:
        scores[f"{METRIC}_std"] = float(np.std(means, ddof=1))
    return {"datasets": {"": {"scores": scores, "images": len(items), "draws": draws}}, "protocol": PROTOCOL}


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "model", "generate", "invert_features"),
        {"images": "data/world", "inverted": "data/inverted/world", "out": "tables/diffusionseg-prose/rows"},
    )  # fmt: skip
    folder, settings = Path(args.images), runtime(batch=8)
    index = Path(args.inverted) / "index.csv"
    if not index.is_file():
        raise UserError(f"{index}: expected what stage invert_features wrote, found no such file")
    known = pd.read_csv(index, dtype={"sample_id": str}, keep_default_na=False).set_index("sample_id")
    items = [item for item in read_table(folder) if item.sample_id in known.index]
    inverted = pd.to_numeric(known["latent_error"], errors="coerce")
    if not items or inverted.isna().any():
        raise UserError(f"{index}: expected the latent error of each image in {folder}/index.csv; make it with "
                        "invert_features.features on")  # fmt: skip
    places = workers.devices(settings.device, settings.workers)
    work = (folder, dict(known["caption"]), params, settings.batch)
    errors = each(items, CHUNK, Forward, work, "reconstruct", places)
    rows = {"ddim": row(items, dict(inverted)), "ddpm": row(items, errors)}
    for name, scored in rows.items():
        write_atomically(Path(args.out) / f"{name}.json", to_json(scored))
        print(f"{name}: {METRIC} {scored['datasets']['']['scores'][METRIC]:.3f} on {len(items)} images")


if __name__ == "__main__":
    exit_cleanly(main)
