"""How well DDIM inversion and the reverse pass reproduce a latent, against the number of steps T.

    python bench/inversion.py                                       # the miniature, 16 scenes that it has not seen
    python bench/inversion.py --model models/sd14 --size 512 --images 4 --device cuda --dtype float16

Encodes scenes of the miniature's world, inverts each latent z_0 to noise and samples back to z_0' under the same
caption, without guidance, as stage invert_features does, and prints |z_0' - z_0| / |z_0| for each T: mean, median and
largest over the scenes. A pixel column gives the mean change of the decoded picture in 8-bit levels, for scale.
About a minute for the defaults on 2 cores. Expect the error to fall with every T.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from maskmill import world
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.sampling import ddim_invert, ddim_sample
from maskmill.errors import UserError, exit_cleanly

FIRST_SEED = 6_000_000  # scenes that no training, held-out set or check uses
STEPS = [5, 10, 20, 40, 80]


def there_and_back(backbone: Backbone, z: torch.Tensor, captions: list[str], size: int, steps: int) -> torch.Tensor:
    """z_0 (B, C, h, w) -> z_0' after T = ``steps`` steps of inversion and T of the reverse pass."""
    condition, times = backbone.encode_text(captions, size), backbone.timesteps(steps)

    def eps(x: torch.Tensor, t: int) -> torch.Tensor:
        return backbone.noise(x, t, condition)

    return ddim_sample(eps, ddim_invert(eps, z, times, backbone.abar), times, backbone.abar)


def measure(
    backbone: Backbone, images: np.ndarray, captions: list[str], steps: int, batch: int
) -> tuple[np.ndarray, float]:
    """Relative latent error of each image (n,), and the mean absolute change of a decoded value in 8-bit levels."""
    errors, changes = [], []
    for i in range(0, len(images), batch):
        z = backbone.encode_images(images[i : i + batch])  # (B, C, h, w)
        back = there_and_back(backbone, z, captions[i : i + batch], images.shape[1], steps)
        errors.append(((back - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)).cpu().numpy())
        changes.append(np.abs(backbone.decode(back).astype(int) - backbone.decode(z)).mean((1, 2, 3)))
    return np.concatenate(errors), float(np.concatenate(changes).mean())


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/mini", help="diffusers folder or hub id (default: %(default)s)")
    parser.add_argument("--images", type=int, default=16, help="number of scenes (default: %(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="values of T (default: %(default)s)")
    parser.add_argument("--caption", default="a photo of a {}", help="{} is a class of the scene; may be empty")
    parser.add_argument("--size", type=int, default=64, help="side of a scene in pixels (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images at once (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    args = parser.parse_args()
    if min(args.images, args.batch, *args.steps) < 1 or max(args.steps) > 1000:
        parser.error("--images, --batch and --steps must be at least 1, --steps at most 1000")
    return args


def main() -> None:
    args = parse_arguments()
    backbone = Backbone(args.model, "", args.dtype, args.device)
    if args.size % backbone.scale:
        raise UserError(f"--size: expected a multiple of {backbone.scale}, the model's latent cell, got {args.size}")
    scenes = [world.render(FIRST_SEED + i, args.size, 1.0) for i in range(args.images)]
    images = np.stack([scene.image for scene in scenes])
    captions = [args.caption.replace("{}", scene.things[0].cls) for scene in scenes]
    print(f"{args.model}, {len(images)} scenes of {args.size}x{args.size}, {args.dtype}; relative error of the latent")
    print(f"{'T':>5}{'mean':>9}{'median':>9}{'largest':>9}{'levels':>9}{'s/image':>9}")
    for steps in args.steps:
        start = time.perf_counter()
        errors, change = measure(backbone, images, captions, steps, args.batch)
        seconds = (time.perf_counter() - start) / len(images)
        print(f"{steps:5d}{errors.mean():9.4f}{np.median(errors):9.4f}{errors.max():9.4f}{change:9.2f}{seconds:9.3f}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    exit_cleanly(main)
