"""Pictures per second with the attention record and without, and what painting over three pictures takes.

    python bench/generation.py                                      # the miniature on this machine: about a minute
    python bench/generation.py --model models/random-sd1 --profile sd14 --dtype bfloat16 --steps 40   # on a GPU
    python stages/ovdiff_cost.py --classes bird,dog,car --out rows  # beside it: the seconds of an OVDiff class

The weights may be random (bench/make_sd_folder.py): time and memory are the same. Prints JSON: for every batch the
pictures per second of both ways, which take turns, their ratio within a turn, and the share of the machine's rate
of one large matrix product, timed in the same run, that the U-Net's operations reach (on a CPU the rate is float32's).
"refine" are the seconds of a batch of three, as the paper has them: fifty steps under y_b, autoencoder included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from capture import DTYPES, matrix_rate, synchronise
from torch.utils.flop_counter import FlopCounterMode

from maskmill import params as parameters
from maskmill import profiles
from maskmill.cli import progress, runtime
from maskmill.diffusion import passes
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.inpainting import paint_over
from maskmill.errors import UserError, exit_cleanly
from maskmill.prompts import word_span

ROOT = Path(__file__).resolve().parents[1]
WORD, OBJECT, BACKGROUND = "bird", "a photo of a bird", "a photo of a background"
PAINTED, PAINT_STEPS = 3, 50  # the paper's batch and steps


class NoRecord:
    """Stands in for the capture where nothing is recorded."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    def begin(self, *args: object, **more: object) -> None: ...

    def end(self) -> list:
        return []


def seconds(work: Callable[[], object], device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def generation(backbone: Backbone, g, capture: object, batch: int, steps: int) -> Callable[[], object]:
    """-> what samples one batch."""
    span = word_span(backbone.tokenizer, OBJECT, WORD)
    return lambda: passes.generate(
        backbone, capture, [OBJECT] * batch, [span] * batch, list(range(batch)), size=g.size, steps=steps,
        guidance=g.guidance, negative=g.negative, bins=g.bins, solver=g.solver,
    )  # fmt: skip


def unet_flops(backbone: Backbone, size: int) -> int:
    """Operations of one U-Net call for one picture."""
    condition, x = backbone.encode_text([OBJECT], size), backbone.start_noise([0], size)
    with FlopCounterMode(display=False) as counter:
        backbone.noise(x, 500, condition)
    return counter.get_total_flops()


def refinement(backbone: Backbone, size: int) -> Callable[[], object]:
    """-> what paints three pictures over: encode, fill a square of half the side, decode."""
    images = np.random.default_rng(0).integers(0, 256, (PAINTED, size, size, 3), dtype=np.uint8)
    side = size // backbone.scale
    holes = np.zeros((PAINTED, side, side), bool)
    holes[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = True
    y_f, y_b = (backbone.encode_text([prompt], size) for prompt in (OBJECT, BACKGROUND))
    seeds = list(range(PAINTED))
    return lambda: backbone.decode(
        paint_over(backbone, backbone.encode_images(images), holes, y_f, y_b, seeds, steps=PAINT_STEPS)
    )


def rates(backbone: Backbone, g, batch: int, steps: int, repeats: int, matrix: float) -> dict[str, float]:
    """Both ways at one batch size."""
    shape = passes.RecordShape(g.bins, g.cells)
    ways = {"with": generation(backbone, g, passes.open_capture(backbone, shape), batch, steps),
            "without": generation(backbone, g, NoRecord(), batch, steps)}  # fmt: skip
    took: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, repeats):
        for name, way in ways.items():
            spent = seconds(way, str(backbone.device))
            if turn >= 0:
                took[name].append(spent)
    calls = steps * (1 if g.guidance == 1.0 else 2) * batch
    middle = {name: statistics.median(spent) for name, spent in took.items()}
    return {
        **{f"pictures a second {name}": round(batch / s, 4) for name, s in middle.items()},
        "time with / without": round(statistics.median(a / b for a, b in zip(*took.values(), strict=True)), 3),
        "share of matrix rate with": round(unet_flops(backbone, g.size) * calls / middle["with"] / matrix, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a model folder (default: that of params.yaml or the profile)")
    parser.add_argument("--profile", default="", help="take the values of profiles/NAME.yaml")
    parser.add_argument("--dtype", default="", choices=["", *DTYPES], help="(default: model.dtype)")
    parser.add_argument("--steps", type=int, default=0, help="(default: generate.steps)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8], help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed turns (default: %(default)s)")
    args = parser.parse_args()
    if min(*args.batches, args.repeats) < 1:
        raise UserError("--batches, --repeats: expected at least 1")
    patch = profiles.read(ROOT / "profiles" / f"{args.profile}.yaml") if args.profile else {}
    text = profiles.patch((ROOT / "params.yaml").read_text(encoding="utf-8"), patch)
    p, device = parameters.loads(text, args.profile or "params.yaml"), runtime().device
    dtype, g = args.dtype or p.model.dtype, p.generate
    if device == "cpu":
        torch.set_num_threads(1)
    backbone = Backbone(args.model or p.model.id, "" if args.model else p.model.revision, dtype, device)
    matrix = matrix_rate(device, DTYPES[dtype], 1)
    report = {"model": args.model or p.model.id, "device": device if device == "cpu" else torch.cuda.get_device_name(),
              "dtype": dtype, "size": g.size, "steps": args.steps or g.steps, "guidance": g.guidance,
              "matrix TFLOP/s": round(matrix / 1e12, 4)}  # fmt: skip
    for batch in progress(args.batches, "batches", unit="size"):
        report[f"batch {batch}"] = rates(backbone, g, batch, report["steps"], args.repeats, matrix)
    work = refinement(backbone, g.size)
    work()
    report["refine, seconds for three"] = round(seconds(work, device), 3)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    exit_cleanly(main)
