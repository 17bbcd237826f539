"""Frechet distance between two sets of pictures, over the features of a pluggable network.

    d^2 = |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

It is called FID only with the Inception network of 2015 that the published numbers are made with. With another network
it has another name, and its values mean nothing beside published ones. It depends on the number of pictures, on how
they are resized and on their file format, so a result carries all three. With fewer pictures than features it is
biased upwards: compare only results of the same n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import inception

from maskmill.datasets.table import read_image
from maskmill.errors import UserError
from maskmill.zeroshot import ZeroShot

BATCH = 32  # pictures that go through a network at once; always filled up, so that rounding does not depend on it


@dataclass(frozen=True)
class Extractor:
    """A network that turns pictures into features.

    Attributes:
        metric: what the distance over its features is called.
        features, resize: in words, for the protocol.
        embed: BATCH pictures (H, W, 3) uint8 of any sizes -> (BATCH, d) float.
    """

    metric: str
    features: str
    resize: str
    embed: Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Moments:
    """What the distance knows of a set: n, the mean (d,), the covariance (d, d) with n - 1, and the file formats."""

    n: int
    mean: np.ndarray
    covariance: np.ndarray
    formats: tuple[str, ...] = ()


def moments(batches: Iterable[np.ndarray], formats: Sequence[str] = ()) -> Moments:
    """Moments of features that come in batches (b, d), which are not kept; in float64.

    Raises:
        UserError: fewer than two pictures, or features that are not finite.
    """
    n, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
    for batch in batches:
        x = np.asarray(batch, np.float64)
        if not np.isfinite(x).all():
            raise UserError("Frechet distance: expected finite features, got NaN or infinity")
        own = x.mean(0)
        between = own - (mean if n else 0.0)
        centred = x - own
        scatter = (scatter if n else 0.0) + centred.T @ centred + np.outer(between, between) * n * len(x) / (n + len(x))
        mean = (mean if n else 0.0) + between * len(x) / (n + len(x))
        n += len(x)
    if n < 2:
        raise UserError(f"Frechet distance: expected at least 2 pictures, got {n}")
    return Moments(n, mean, scatter / (n - 1), tuple(sorted(set(formats))))


def frechet_distance(a: Moments, b: Moments) -> float:
    """d^2, as FID is given.

    tr (C_1 C_2)^(1/2) is the sum of the roots of the eigenvalues of S C_2 S with S = C_1^(1/2). That matrix is
    symmetric, so no complex root has to be cut off, also where there are fewer pictures than features.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"Frechet distance: expected features of one width, got {a.mean.size} and {b.mean.size}")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = root @ b.covariance @ root
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0.0)).sum()
    distance = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * roots
    return max(0.0, float(distance))


def moments_of(paths: Sequence[Path], extractor: Extractor) -> Moments:
    """Read pictures and take the moments of their features.

    Raises:
        UserError: an unreadable picture, or fewer than two.
    """

    def batches() -> Iterable[np.ndarray]:
        for start in range(0, len(paths), BATCH):
            new = [read_image(path) for path in paths[start : start + BATCH]]
            yield extractor.embed(new + [new[-1]] * (BATCH - len(new)))[: len(new)]

    return moments(batches(), [Path(path).suffix.lower().lstrip(".").replace("jpeg", "jpg") for path in paths])


def compare(generated: Moments, real: Moments, extractor: Extractor) -> dict:
    """The distance under the extractor's name, with what it depends on: counts, and in ``protocol`` all in words."""
    width = generated.mean.size
    short = "; fewer pictures than features: biased upwards" if min(generated.n, real.n) <= width else ""
    return {
        extractor.metric: frechet_distance(generated, real),
        "n_generated": generated.n,
        "n_real": real.n,
        "protocol": f"Frechet distance of {extractor.features} ({width} features), {generated.n} generated "
                    f"({', '.join(generated.formats) or 'no files'}) against {real.n} real pictures "
                    f"({', '.join(real.formats) or 'no files'}), resized: {extractor.resize}{short}",
    }  # fmt: skip


# --- networks ---------------------------------------------------------------------------------------------------------


def clip_extractor(model: str, device: str = "cpu") -> Extractor:
    """The image embedding of a CLIP that open_clip reads, not normalised; the metric is ``frechet_clip``.

    Args:
        model: a folder or ``name/tag``, as ``maskmill.zeroshot.ZeroShot`` takes it.
    """
    judge = ZeroShot(model, ("object",), ("{}",), device)
    size = judge.model.visual.image_size
    side = size[0] if isinstance(size, (tuple, list)) else size

    @torch.inference_mode()
    def embed(pictures: Sequence[np.ndarray]) -> np.ndarray:
        x = torch.stack([judge.preprocess(Image.fromarray(p)) for p in pictures]).to(device)  # (B, 3, side, side)
        return judge.model.encode_image(x).double().cpu().numpy()

    resize = f"{side}x{side} by the CLIP's own transform"
    return Extractor("frechet_clip", f"CLIP {model}, image embedding", resize, embed)


def inception_extractor(weights: str, device: str = "cpu") -> Extractor:
    """The pooled features of the Inception network of the published FID, 2,048 of them; the metric is ``fid``.

    Args:
        weights: a file with that network's weights in PyTorch's names (``pt_inception-2015-12-05``), safetensors or a
            pickle that ``torch.load(weights_only=True)`` takes; or ``owner/repository/file`` on the hub.

    Raises:
        UserError: no such file, or the weights of another network.
    """
    path = _weights_file(weights)
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        network = fid_inception()
        network.load_state_dict(state)
    except Exception as error:  # a wrong file makes torch raise errors of any kind
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"{path}: expected the weights of FID's Inception network, got: {reason}") from None
    network.fc = torch.nn.Identity()
    network.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def embed(pictures: Sequence[np.ndarray]) -> np.ndarray:
        return network(torch.cat([inception_input(p) for p in pictures]).to(device)).double().cpu().numpy()

    return Extractor("fid", f"FID's Inception network of 2015 ({path.name}), last pooling layer",
                     "299x299, bilinear without antialiasing", embed)  # fmt: skip


def inception_input(picture: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 -> (1, 3, 299, 299) float32 in -1..1."""
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    return 2 * F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1


def fid_inception() -> torch.nn.Module:
    """torchvision's Inception v3, random weights, with what differs in FID's: 1,008 classes, average pooling in the
    mixed blocks that does not count the padding, and in the last block maximum pooling."""

    def pooling(block: type, pool: Callable[[torch.Tensor], torch.Tensor]) -> type:
        class Block(block):
            def _forward(self, x: torch.Tensor) -> list[torch.Tensor]:
                return [*super()._forward(x)[:-1], self.branch_pool(pool(x))]  # the last branch is the pooled one

        return Block

    def average(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def maximum(x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, 3, 1, 1)

    blocks = [inception.BasicConv2d, pooling(inception.InceptionA, average), inception.InceptionB,
              pooling(inception.InceptionC, average), inception.InceptionD, pooling(inception.InceptionE, average),
              inception.InceptionAux]  # fmt: skip
    network = inception.Inception3(num_classes=1008, aux_logits=False, init_weights=False, inception_blocks=blocks)
    network.Mixed_7c = pooling(inception.InceptionE, maximum)(2048)
    return network


def _weights_file(weights: str) -> Path:
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    parts = weights.split("/")
    if len(parts) < 3 or weights.startswith((".", "/", "~")):
        raise UserError(f"{weights}: expected a file with the weights of FID's Inception network, found none")
    try:
        return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
    except Exception as error:  # no network, no such repository or file: each an error of its own kind
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"{weights}: found no such file, and none on the hub ({reason})") from None


def extractor_of(weights: str, clip: str, device: str = "cpu") -> Extractor:
    """FID's network where its weights are given, else the CLIP."""
    return inception_extractor(weights, device) if weights else clip_extractor(clip, device)

