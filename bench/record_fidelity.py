"""The attention record against exact matrices: the same AttentionCut from both, picture by picture.

    python bench/record_fidelity.py                                   # 20 pictures of the miniature: 1 to 2 minutes
    python bench/record_fidelity.py --cells 4                         # how coarse a record may be: 4 x 4 cells
    python bench/record_fidelity.py --images data/world_single --size 256 --steps 4 --batch 1 \
        --set attentioncut.r_percentile=95                            # 64x64 cells: 1 minute a picture
    python bench/record_fidelity.py --model scratch/random-sd1 --profile sd14 --count 1 --steps 2 --batch 1

Makes every picture's attention twice, by generating it from the same prompt and noise or, with --images, by inverting
it. Once as the stages do, with the record that they store (float16, A_s as eight neighbours and between the cells of a
grid, A_c in bins of the time). Once with every softmax matrix made in full, in every layer and step, and averaged as
the paper writes: A_c over the steps (those below attentioncut.t_max), A_s over heads, layers of a resolution and steps
(DiffusionSeg 3.2). Both go through the same cut of the same picture; the exact A_s has a cell for every pixel.

Prints JSON with the mean and the worst IoU of the two masks; exit code 1 if the mean is below 0.98. Beside it three
controls. "same_shape": the record against exact matrices brought to its shape, 1 where all that it loses is lost to its
cells. "whole_boundary": as at first, with all of the boundary as seeds; drawn seeds change altogether where
rounding adds a single pixel to the boundary. "redrawn": two cuts from the exact matrices, with other seeds drawn: what
the cut itself leaves to chance. "values": the largest difference of A_s between neighbours, in even shares.

The third command is the miniature's trained attention on Stable Diffusion's grid of 64x64, on scenes at four times
their size. The last is SD-1.4's size (bench/make_sd_folder.py makes the folder): about 10 GB of memory, minutes on a
CPU. With random weights attention has no object and masks are specks: compare its IoU with "redrawn", not with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from maskmill import params as parameters
from maskmill import profiles
from maskmill.cli import progress, runtime
from maskmill.datasets.table import item_rng, read_image, read_table
from maskmill.diffusion import passes
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.capture import anchor_positions, pool_rows
from maskmill.errors import UserError, exit_cleanly
from maskmill.masks.attentioncut import OFFSETS, CutParams, attention_cut
from maskmill.prompts import Row, check_context, read_csv, word_span

ROOT = Path(__file__).resolve().parents[1]
LEAST = 0.98
TIME = 1000  # steps of the diffusion time


class ExactAttention:
    """Stands in for ``maskmill.diffusion.capture.AttentionCapture`` in ``maskmill.diffusion.passes``: the same begin
    and end, but every attention matrix is made. A "record" of it holds, in float32, ``cross_{r}`` (1, L_r, r, r) with
    the mean over the steps in one bin, ``near_{r}`` (8, r, r) and ``pairs_{r}`` of all pixels; and
    ``matrix_{r}`` (r * r, r * r), A_s as it is.

    Args:
        unet: with square layers and diffusers' own attention processors.
        t_max: share of the diffusion time, from 0, over which A_c is averaged; A_s always is over all of it.
    """

    def __init__(self, unet: nn.Module, t_max: float) -> None:
        self.unet, self.t_max = unet, t_max
        self.sums: dict[tuple[str, object], Tensor] = {}
        self.counts: dict[tuple[str, object], int] = {}
        self.words = torch.empty(0)
        self.rows, self.t = slice(None), 0.0

    def __enter__(self) -> ExactAttention:
        self.originals = dict(self.unet.attn_processors)
        for module in self.unet.modules():
            if isinstance(module, Attention):
                module.set_processor(self.process)
        self.hook = self.unet.register_forward_pre_hook(self._note_time, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()
        self.unet.set_attn_processor(self.originals)

    def begin(self, words: Tensor, bins: int = 4, conditional: slice | None = None) -> None:
        """``words`` (B, T) weights of the tokens, ``conditional`` the rows of a batch that count; bins are not used."""
        self.words, self.rows = words, slice(None) if conditional is None else conditional
        self.sums, self.counts = {}, {}

    def _note_time(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        self.t = float(args[1] if len(args) > 1 else kwargs["timestep"])

    def process(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, **more: object,
    ) -> Tensor:  # fmt: skip
        """softmax(Q K^T / sqrt d) V of a layer, (B, N, channels), with the softmax written out."""
        if attention_mask is not None or hidden_states.ndim != 3 or attn.group_norm is not None:
            raise RuntimeError("expected a plain layer of a transformer block")
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, N or T, d)
        out = torch.empty_like(q)
        mean = q.new_zeros(len(q), q.shape[2], k.shape[2], dtype=torch.float32)  # (B, N, T), over heads
        for i in range(len(q)):  # one matrix at a time: 4096 x 4096 of them are 67 MB
            for h in range(attn.heads):
                matrix = ((q[i, h].float() * attn.scale) @ k[i, h].float().T).softmax(-1)  # (N, T)
                out[i, h] = (matrix @ v[i, h].float()).to(v.dtype)
                mean[i] += matrix / attn.heads
        mean, side = mean[self.rows], int(mean.shape[1] ** 0.5)
        if encoder_hidden_states is None:
            self._add(("own", side), mean)
        elif self.t < self.t_max * TIME:
            self._add(("cross", (side, attn)), (mean @ self.words[:, :, None])[..., 0])  # (B, N)
        out = out.transpose(1, 2).flatten(2)  # (B, N, channels)
        return attn.to_out[1](attn.to_out[0](out))

    def _add(self, key: tuple[str, object], value: Tensor) -> None:
        self.sums[key] = self.sums[key].add_(value) if key in self.sums else value
        self.counts[key] = self.counts.get(key, 0) + 1

    def end(self) -> list[dict[str, np.ndarray]]:
        """-> one record for each sample."""
        records: list[dict[str, np.ndarray]] = [{} for _ in self.words]
        cross: dict[int, list[Tensor]] = {}
        for key, total in self.sums.items():
            mean = total / self.counts[key]
            if key[0] == "cross":
                side, _ = key[1]
                cross.setdefault(side, []).append(mean.unflatten(1, (side, side)) * self.words.shape[1])
                continue
            side = key[1]
            for record, matrix in zip(records, (mean * side * side).cpu().numpy(), strict=True):  # (N, N)
                record[f"pairs_{side}"], record[f"matrix_{side}"] = symmetric(matrix), matrix
                record[f"near_{side}"] = near(matrix, side)
        for side, maps in cross.items():
            for i, record in enumerate(records):
                record[f"cross_{side}"] = torch.stack([m[i] for m in maps])[None].cpu().numpy()
        self.sums = {}
        return records


def near(matrix: np.ndarray, side: int) -> np.ndarray:
    """(8, r, r): A(p, p + o) of a matrix (r * r, r * r); 0 where the neighbour is outside."""
    out = np.zeros((8, side, side), np.float32)
    y, x = np.mgrid[:side, :side]
    for i, (dy, dx) in enumerate(OFFSETS):
        inside = (y + dy >= 0) & (y + dy < side) & (x + dx >= 0) & (x + dx < side)
        p = (y * side + x)[inside]
        out[i][inside] = matrix[p, p + dy * side + dx]
    return out


def symmetric(matrix: np.ndarray) -> np.ndarray:
    """(n, n) -> (n (n + 1) / 2,): the upper triangle of its mean with the transposed, row by row."""
    return ((matrix + matrix.T) / 2)[np.triu_indices(len(matrix))]


def shaped(record: dict[str, np.ndarray], cells: int) -> dict[str, np.ndarray]:
    """An exact "record" with A_s between as many cells as a record of the stages has."""
    found = dict(record)
    for key in [k for k in record if k.startswith("matrix_")]:
        side = int(key.rpartition("_")[2])
        columns = torch.from_numpy(record[key])[None, :, anchor_positions(side, side, cells)]
        found[f"pairs_{side}"] = symmetric(pool_rows(columns, (side, side), cells)[0].numpy())
    return found


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two boolean masks; 1 where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def chosen(path: Path, count: int, tokenizer, negative: str) -> list[Row]:
    """Rows of a prompt table, spread over it, with the words' tokens as this model's tokenizer counts them."""
    rows = read_csv(path)
    if len(rows) < count:
        raise UserError(f"{path}: expected at least {count} prompts, got {len(rows)}")
    found = []
    check_context(tokenizer, negative)
    for row in (rows[i * len(rows) // count] for i in range(count)):
        start, end = word_span(tokenizer, row.prompt, row.cls, plural=True)
        found.append(Row(row.sample_id, row.cls, row.prompt, start, end, row.seed))
    return found


def pictures(folder: Path, count: int, tokenizer, template: str) -> list[tuple[Row, Path]]:
    """Pictures of a set, spread over it, with what their inversion is told."""
    items, found = read_table(folder), []
    if len(items) < count:
        raise UserError(f"{folder}/index.csv: expected at least {count} pictures, got {len(items)}")
    for item in (items[i * len(items) // count] for i in range(count)):
        prompt = template.format(item.cls)
        start, end = word_span(tokenizer, prompt, item.cls)
        found.append((Row(item.sample_id, item.cls, prompt, start, end, 0), folder / item.image))
    return found


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


Made = tuple[np.ndarray, list[dict[str, np.ndarray]]]


def generation(backbone: Backbone, g, steps: int) -> Callable[[Sequence[tuple[Row, Path]], object], Made]:
    """-> what makes images and records of some rows with a capture: sampling."""

    def make(part: Sequence[tuple[Row, Path]], capture: object) -> Made:
        rows = [row for row, _ in part]
        return passes.generate(
            backbone, capture, [r.prompt for r in rows], [(r.token_start, r.token_end) for r in rows],
            [r.seed for r in rows], size=g.size, steps=steps, guidance=g.guidance, negative=g.negative,
            bins=g.bins, solver=g.solver,
        )[:2]  # fmt: skip

    return make


def inversion(backbone: Backbone, g, steps: int) -> Callable[[Sequence[tuple[Row, Path]], object], Made]:
    """The same by the inversion of pictures, brought to ``g.size``."""

    def make(part: Sequence[tuple[Row, Path]], capture: object) -> Made:
        images, rows = np.stack([read_image(path, g.size) for _, path in part]), [row for row, _ in part]
        spans = [(r.token_start, r.token_end) for r in rows]
        return images, passes.invert(backbone, capture, images, [r.prompt for r in rows], spans, steps=steps,
                                     bins=g.bins, features=None)[0]  # fmt: skip

    return make


def compare(
    backbone: Backbone, samples: Sequence[tuple[Row, Path]], make: Callable, p, shape: passes.RecordShape, batch: int
) -> dict[str, object]:
    """Both ways for every sample; -> IoUs of the masks and how far the soft maps and the pictures are apart."""
    g, settings = p.generate, CutParams(**vars(p.attentioncut))
    captures = {"record": passes.open_capture(backbone, shape),
                "exact": ExactAttention(backbone.unet, p.attentioncut.t_max)}  # fmt: skip
    whole = replace(settings, seeds=g.size**2)
    names = ("iou", "same", "whole", "redrawn", "soft", "picture", "area", "values")
    found: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, float] = {}
    with progress(None, "fidelity", total=len(samples), unit="picture") as bar:
        for start in range(0, len(samples), batch):
            part, made = samples[start : start + batch], {}
            for name, capture in captures.items():
                with timed(seconds, name):
                    made[name] = make(part, capture)
            layers = captures["record"].meta["self_layers"]
            for i, (row, _) in enumerate(part):
                image = made["record"][0][i]
                record, exact = (made[name][1][i] for name in captures)

                rngs = [item_rng(p.seed + k, row.sample_id) for k in (0, 0, 0, 0, 1, 0)]
                ways = [(record, settings), (exact, settings), (record, whole), (exact, whole), (exact, settings),
                        (shaped(exact, shape.cells), settings)]  # fmt: skip
                cuts = [attention_cut(x, image, how, rng, layers) for (x, how), rng in zip(ways, rngs, strict=True)]
                for name, a, b in (("iou", 0, 1), ("same", 0, 5), ("whole", 2, 3), ("redrawn", 1, 4)):
                    found[name].append(iou(cuts[a].mask, cuts[b].mask))
                apart = [float(np.abs(record[k] - exact[k]).max()) for k in record if k.startswith("near")]
                found["values"].append(max(apart))
                found["soft"].append(float(np.abs(cuts[0].objectness - cuts[1].objectness).mean()))
                found["picture"].append(float(np.abs(image.astype(int) - made["exact"][0][i]).max()))
                found["area"].append(float(cuts[1].mask.mean()))
            bar.update(len(part))
    return {
        "iou_mean": round(float(np.mean(found["iou"])), 4), "iou_worst": round(min(found["iou"]), 4),
        "iou": [round(x, 4) for x in found["iou"]],
        "same_shape": {"mean": round(float(np.mean(found["same"])), 4), "worst": round(min(found["same"]), 4)},
        "whole_boundary": {"mean": round(float(np.mean(found["whole"])), 4), "worst": round(min(found["whole"]), 4)},
        "redrawn": {"mean": round(float(np.mean(found["redrawn"])), 4), "worst": round(min(found["redrawn"]), 4)},
        "values": round(max(found["values"]), 5),
        "soft_difference_mean": round(float(np.mean(found["soft"])), 5),
        "picture_difference_max": max(found["picture"]), "area_mean": round(float(np.mean(found["area"])), 4),
        "seconds": {name: round(s, 1) for name, s in seconds.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a model folder (default: that of params.yaml or the profile)")
    parser.add_argument("--profile", default="", help="take the values of profiles/NAME.yaml")
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts.csv"), help="(default: %(default)s)")
    parser.add_argument("--images", type=Path, help="an image set: its pictures are inverted, none are generated")
    parser.add_argument("--count", type=int, default=20, help="pictures (default: %(default)s)")
    parser.add_argument("--size", type=int, default=0, help="side in pixels (default: generate.size)")
    parser.add_argument("--steps", type=int, default=0, help="(default: generate.steps)")
    parser.add_argument("--batch", type=int, default=4, help="pictures at once (default: %(default)s)")
    parser.add_argument("--cells", type=int, default=0, help="longest side of A_s's cells (default: generate.cells)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other parameters, by their keys")
    parser.add_argument("--dtype", default="float32", help="(default: %(default)s)")
    args = parser.parse_args()
    if min(args.count, args.batch) < 1:
        raise UserError("--count, --batch: expected at least 1")
    patch = profiles.read(ROOT / "profiles" / f"{args.profile}.yaml") if args.profile else {}
    patch |= {"generate.size": args.size} if args.size else {}
    patch |= {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in args.set)}
    text = profiles.patch((ROOT / "params.yaml").read_text(encoding="utf-8"), patch)
    p, settings = parameters.loads(text, args.profile or "params.yaml"), runtime()
    if settings.device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    backbone = Backbone(args.model or p.model.id, "" if args.model else p.model.revision, args.dtype, settings.device)
    g, inverted = p.generate, p.invert_features
    steps = args.steps or (inverted.steps if args.images else g.steps)
    if args.images:
        samples = pictures(args.images, args.count, backbone.tokenizer, inverted.template)
    else:
        samples = [(row, Path()) for row in chosen(args.prompts, args.count, backbone.tokenizer, g.negative)]
    make = (inversion if args.images else generation)(backbone, g, steps)
    shape = passes.RecordShape(g.bins, args.cells or g.cells)
    report = {"model": args.model or p.model.id, "size": g.size, "steps": steps, "pictures": len(samples),
              "made": "inverted" if args.images else "generated"}  # fmt: skip
    report |= {"record": vars(shape), "set": args.set, **compare(backbone, samples, make, p, shape, args.batch)}
    print(json.dumps(report, indent=1))
    if report["iou_mean"] < LEAST:
        sys.exit(1)


if __name__ == "__main__":
    exit_cleanly(main)
