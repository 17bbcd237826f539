"""Fine-tune the diffusion model's U-Net on two concepts, the object and its background (concept distillation 3.2).

Inputs:   an image set and the masks folder of its preliminary masks M_pre (stage mean_attention, or any other), the
          diffusion model
Outputs:  <out>: the fine-tuned U-Net alone (config.json, safetensors); text encoder and autoencoder stay the model's.
          <metrics>/loss.csv and loss.png; <metrics>/samples.png: before, during and after the training pictures of the
          object (y_f), of backgrounds (y_b) and training pictures with the object painted over
Command:  python stages/distill_inpaint.py --images data/concepts/bird/train --masks data/distill/bird/preliminary
          LAUNCH="accelerate launch --multi_gpu" dvc repro distill_inpaint
Time:     about 0.4 s a step of 8 pictures for the miniature on two cores, which share a batch of two parts
          (distill_inpaint.accumulate); killed, it goes on at the last checkpoint, of which there is one a minute
Expect:   a loss that falls little (it is the model's own noise loss), and backgrounds that lose the object
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from maskmill import store, training, workers
from maskmill.cli import Runtime, die_with_parent, progress, runtime, stage_arguments
from maskmill.datasets.table import Item, image_size, item_rng, read_image, read_mask, read_table
from maskmill.diffusion.backbone import Backbone, Condition
from maskmill.diffusion.concepts import object_prompt
from maskmill.diffusion.inpainting import (
    Times,
    distillation_loss,
    paint_over,
    sample_concept,
    save_unet,
    trainable_unet,
)
from maskmill.diffusion.passes import check_size
from maskmill.errors import UserError, exit_cleanly
from maskmill.masks.cells import grow, to_cells
from maskmill.prompts import check_context, load_tokenizer, sample_seed
from maskmill.report.grids import Column, Row, picture_grid
from maskmill.report.training import training_curve

CODE = ("maskmill.training", "maskmill.diffusion.backbone", "maskmill.diffusion.inpainting", "maskmill.masks.cells")
MOMENTS = 4  # times during the training at which pictures are drawn, beside the one before it
PICTURES, PICTURE_STEPS = 3, 10  # of each kind; steps of DDIM
STREAM = 37  # keeps the noise of these pictures apart from that of other stages


def due(step: int, every: int, steps: int) -> bool:
    """Whether a row of the history is the first of another quarter of the training, or the last."""
    return step == steps or step * MOMENTS // steps > max(0, step - every) * MOMENTS // steps


def encode(items: list[Item], folder: Path, backbone: Backbone, size: int, batch: int) -> torch.Tensor:
    """Latents of all pictures, (n, C, h, w) float32 on the CPU."""
    with progress(None, "encode", total=len(items), unit="image") as bar:

        def latents(rows: list[int]) -> list[torch.Tensor]:
            images = np.stack([read_image(folder / items[i].image, size) for i in rows])
            bar.update(len(set(rows)))
            return list(backbone.encode_images(images).cpu())

        return torch.stack(workers.in_batches(len(items), batch, latents))


def read_cells(items: list[Item], folder: Path, masks: Path, shape: tuple[int, int]) -> np.ndarray:
    """M_pre of all pictures on the latents' grid, (n, h, w) bool.

    Raises:
        UserError: a mask is missing, unreadable, or of another size than its picture.
    """
    cells = []
    for item in items:
        path = masks / "masks" / f"{item.sample_id}.png"
        mask, wanted = read_mask(path), image_size(folder / item.image)
        if mask.shape != wanted:
            raise UserError(f"{path}: expected a mask of the picture's size {wanted}, got {mask.shape}")
        cells.append(to_cells(mask, shape))
    return np.stack(cells)


@dataclass
class Witness:
    """Draws what the model makes of the two concepts during its training, with the same noise each time.

    Attributes:
        backbone: its U-Net, which the training does not use, gets the weights of the moment.
        size: of pictures in pixels. z, masks, seeds: of the pictures that are painted over.
        folder: where the panels wait, so that a resumed training has them.
    """

    backbone: Backbone
    y_f: Condition
    y_b: Condition
    size: int
    seed: int
    z: torch.Tensor
    masks: np.ndarray
    seeds: list[int]
    folder: Path

    def look(self, step: int, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Draw the pictures of a step, if they are not there yet; without weights the model as it was."""
        path = self.folder / f"{step}.npz"
        if path.is_file():
            return
        if weights is not None:
            self.backbone.unet.load_state_dict(weights)
        drawn = [sample_seed(self.seed + STREAM, k) for k in range(PICTURES)]
        concepts = (self.backbone, self.y_f, self.y_b)
        objects, backgrounds = (sample_concept(*concepts, drawn, self.size, w=w, steps=PICTURE_STEPS) for w in (1, 0))
        painted = paint_over(self.backbone, self.z.to(self.backbone.device), self.masks, self.y_f, self.y_b, self.seeds,
                             steps=PICTURE_STEPS)  # fmt: skip
        found = {name: self.backbone.decode(z)
                 for name, z in (("object", objects), ("background", backgrounds), ("painted", painted))}  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = path.with_name("part.npz")
        np.savez(aside, **found)
        aside.replace(path)

    def grid(self, images: list[np.ndarray], word: str, path: Path) -> None:
        """All moments as rows."""
        notes = {"object": f"y_f, {word}", "background": "y_b", "painted": "painted over"}
        columns = [Column(f"{kind}{k}", {"object": "Object", "background": "Background", "painted": "Inpainted"}[kind],
                          "image", note) for kind, note in notes.items() for k in range(PICTURES)]  # fmt: skip
        rows = [Row(images[0], {f"painted{k}": image for k, image in enumerate(images)}, "the pictures themselves")]
        for file in sorted(self.folder.glob("[0-9]*.npz"), key=lambda p: int(p.stem)):
            found = np.load(file)
            panels = {f"{kind}{k}": picture for kind in notes for k, picture in enumerate(found[kind])}
            rows.append(Row(images[0], panels, f"step {file.stem}"))
        picture_grid(rows, columns, path, f"Fine-tuning on {word!r}, one noise for each column", 128)


def recipe_of(p) -> training.Recipe:
    return training.Recipe(p.steps, p.batch, p.lr, p.decay_share, p.ema, p.precision, p.accumulate, p.log_every)


def tune(unet, count: int, loss_of: Callable, params, scratch: Path, stamp: str, engine, witness: Witness) -> list:
    """Fine-tune in place -> the history."""
    p, recipe, quiet = params.distill_inpaint, recipe_of(params.distill_inpaint), not engine.is_main_process
    if engine.is_main_process:
        witness.look(0)
    with progress(None, "distill_inpaint", total=p.steps, unit="step", disable=quiet) as bar:

        def validate(model: torch.nn.Module) -> dict[str, float]:
            step = bar.n + 1  # the bar is moved after the history's row
            if engine.is_main_process and due(step, p.log_every, p.steps):
                witness.look(step, getattr(model, "module", model).state_dict())
            return {}

        return training.fit(unet, count, loss_of, recipe, seed=params.seed, checkpoint=scratch / f"{stamp}.pt",
                            stamp=stamp, accelerator=engine, bar=bar, validate=validate)  # fmt: skip


def open_backbone(m, p, settings: Runtime, size: int) -> Backbone:
    """The model on this process's device. A CPU is asked no launcher: processes may yet be forked from this one."""
    on_cpu = settings.device == "cpu"
    device = settings.device if on_cpu else str(training.accelerator(settings.device, p.precision).device)
    backbone = Backbone(m.id, m.revision, m.dtype, device)
    check_size(backbone, size)
    return backbone


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "model", "generate", "distill", "distill_inpaint"),
        {"images": "data/concepts/bird/train", "masks": "data/distill/bird/preliminary",
         "out": "data/distill/bird/unet", "metrics": "metrics/distill", "scratch": "scratch/distill_inpaint"},
    )  # fmt: skip
    p, d, m, size, settings = params.distill_inpaint, params.distill, params.model, params.generate.size, runtime(8)
    folder, masks, scratch = Path(args.images), Path(args.masks), Path(args.scratch)
    workers.pin(settings.device)
    items, prompts = read_table(folder), (object_prompt(d.object, d.word), d.background)
    if len(items) < p.batch:
        raise UserError(f"{folder}/index.csv: expected at least {p.batch} pictures, a batch (distill_inpaint.batch), "
                        f"got {len(items)}")  # fmt: skip
    tokenizer = load_tokenizer(m.id, m.revision)
    for prompt in prompts:
        check_context(tokenizer, prompt)
    stamp = store.fingerprint(
        asdict(p), params.seed, [m.id, m.revision, m.dtype], prompts, size, [i.sample_id for i in items],
        [store.hash_file(folder / i.image) for i in items],
        [store.hash_file(masks / "masks" / f"{i.sample_id}.png") for i in items],
        store.model_stamp(m.id, m.revision), store.code_hashes(*CODE),
    )  # fmt: skip
    backbone = open_backbone(m, p, settings, size)
    cells = read_cells(items, folder, masks, (size // backbone.scale,) * 2)
    latents = encode(items, folder, backbone, size, settings.batch)
    kept = np.stack([grow(mask, p.grow) for mask in cells])
    y_f, y_b = (backbone.encode_text([prompt], size) for prompt in prompts)
    seeds = [int(item_rng(params.seed, item.sample_id).integers(2**31)) for item in items[:PICTURES]]
    witness = Witness(backbone, y_f, y_b, size, params.seed, latents[:PICTURES], kept[:PICTURES], seeds,
                      scratch / f"{stamp}-pictures")  # fmt: skip
    unet, drawn = trainable_unet(backbone), Times(p.t_share, p.t_low, p.t_high)
    loss_of = distillation_loss(latents, kept, y_f, y_b, backbone, drawn=drawn)

    def train() -> tuple:
        engine = training.accelerator(settings.device, p.precision)
        return engine, tune(unet, len(items), loss_of, params, scratch, stamp, engine, witness)

    if (processes := workers.trainers(settings, p.accumulate)) > 1:
        workers.train_together(processes, train)
    engine, history = train()
    if not engine.is_main_process:
        return
    with store.fresh_folder(args.out) as aside:
        save_unet(unet, aside)
    metrics, title = Path(args.metrics), f"Fine-tuning on {d.word!r}, {len(items)} pictures"
    training_curve(history, metrics / "loss.png", metrics / "loss.csv", title)
    witness.grid([read_image(folder / item.image, size) for item in items[:PICTURES]], d.word, metrics / "samples.png")
    shutil.rmtree(scratch, ignore_errors=True)
    print(f"{args.out}: {d.word!r} and its background from {len(items)} pictures, {p.steps} steps, loss "
          f"{history[-1]['loss']:.4f}")  # fmt: skip


if __name__ == "__main__":
    exit_cleanly(main)
