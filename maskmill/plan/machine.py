"""What this machine has and how fast it is: free memory and disk; seconds of a U-Net call, a cut, a training step.

Nothing here needs weights: time depends on shapes, so random numbers stand in. A U-Net is measured with its attention
recorded, on the device and in the precision of the run, with one thread on a CPU as the stages' workers have. Where a
whole call would take longer than the time there is, smaller latents are measured and scaled by their arithmetic.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskmill.masks.attentioncut import CutParams, attention_cut
from maskmill.plan import shapes
from maskmill.plan.shapes import BYTES, Call, Shape

LIBRARIES = 0.9e9  # bytes of a worker process before it has loaded a model, about
SECONDS = 10.0  # that the measurement of the U-Net takes, about


# --- what there is ----------------------------------------------------------------------------------------------------


def free_memory() -> float:
    """Bytes of memory that new processes can have, within the limits of a container."""
    free = [float("inf")]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(float(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        free.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    try:
        folder = Path("/sys/fs/cgroup")
        used = float(folder.joinpath("memory.current").read_text())
        free.append(float(folder.joinpath("memory.max").read_text()) - used)
    except (OSError, ValueError):
        pass  # no limit, or another kind of system
    return min(free)


def free_disk(folder: Path) -> float:
    """Bytes that are free where ``folder`` is or will be."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return float(shutil.disk_usage(folder).free)


def free_device_memory(device: str) -> float:
    """Bytes that are free on the GPU, those of the most crowded one for ``cuda``."""
    import torch

    places = [device] if ":" in device else [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    return float(min(torch.cuda.mem_get_info(place)[0] for place in places))


def bytes_on_disk(path: Path) -> int:
    """Bytes of a file or of all files in a folder; 0 where there is nothing."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def copies(cache_types: str) -> int:
    """Copies that DVC keeps of an output: 1 where ``cache.type`` asks for links first, else 2 (reflinks are seldom)."""
    first = cache_types.split(",")[0].strip()
    return 1 if first in ("hardlink", "symlink") else 2


# --- the U-Net --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """What was measured of the U-Net.

    Attributes:
        seconds: of one call on one sample at the asked side, in one worker.
        side: of the latents that were measured.
        rows: samples at once.
        activations: bytes that a call takes beside the weights, for one sample at the asked side; an estimate where
            only smaller ones were measured.
        calls: how many were timed.
    """

    seconds: float
    side: int
    rows: int
    activations: float
    calls: int


def measure_unet(
    shape: Shape, latent: int, dtype: str, device: str, rows: int, seconds: float = SECONDS
) -> Speed | str:
    """Time the recorded U-Net call on random weights, in a process of its own; why not, if it cannot be done."""
    needed = shape.weights["unet"] * BYTES[dtype]
    free = free_memory() if device == "cpu" else free_device_memory(device)
    if needed * 1.3 > free:
        return f"not measured: its U-Net alone needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    fork = device == "cpu" and sys.platform.startswith("linux")
    context = multiprocessing.get_context("fork" if fork else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    task = context.Process(target=_measure, args=(sender, shape, latent, dtype, device, rows, seconds))
    task.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        found = "not measured: the process that tried died, for lack of memory it seems"
    task.join()
    return found


def _measure(sender: Any, shape: Shape, latent: int, dtype: str, device: str, rows: int, seconds: float) -> None:
    import torch

    from maskmill.diffusion.architectures import random_unet
    from maskmill.diffusion.capture import AttentionCapture, word_weights

    try:
        place = "cuda:0" if device == "cuda" else device
        if place == "cpu":
            torch.set_num_threads(1)
        kind = getattr(torch, dtype)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        unet = random_unet(shape.unet, place, kind)
        loaded = max(before, _resident())
        capture = AttentionCapture(unet)

        def timed(side: int, count: int) -> float:
            given = shapes.inputs(shape.unet, side, shape.tokens, count, place, kind)
            words = word_weights([(1, 2)] * count, shape.tokens).to(place)
            with capture, torch.inference_mode():
                capture.begin(words)
                start = time.perf_counter()
                unet(**given)
                if place != "cpu":
                    torch.cuda.synchronize(place)
                return time.perf_counter() - start

        side, count, times, share = choose(
            timed, lambda s: shapes.call(shape, s).flops, latent, rows, seconds, 2 ** (_levels(shape) - 1)
        )
        if place != "cpu":
            extra = torch.cuda.max_memory_allocated(place) - shape.weights["unet"] * BYTES[dtype]
        else:
            extra = max(0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - loaded)
        # A smaller call's growth is mostly what libraries take once: scaled up it would be gigabytes for nothing.
        activations = extra / count if side == latent else shapes.activation_bytes(shape, latent, dtype)
        sender.send(Speed(statistics.median(times) / count * share, side, count, activations, len(times)))
    except Exception as error:  # whatever it is, a plan without hours is better than none
        sender.send(f"not measured: {' '.join(f'{type(error).__name__}: {error}'.split())[:150]}")


def _levels(shape: Shape) -> int:
    return len(shape.unet["block_out_channels"])


def _resident() -> int:
    """Bytes of memory of this process now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def choose(
    timed: Callable[[int, int], float],
    flops: Callable[[int], float],
    latent: int,
    rows: int,
    seconds: float,
    multiple: int,
) -> tuple[int, int, list[float], float]:
    """Time calls within about ``seconds``: at the asked side and number of rows if they fit, else smaller.

    Args:
        timed: (side, rows) -> seconds of one call.
        flops: side -> arithmetic of one row.
        multiple: that every side must be of.

    Returns:
        The side, the rows, the times of the calls, and by what to multiply for the asked side.
    """
    start = time.perf_counter()
    sides = sorted({s for k in (1, 2, 4, 8) if (s := latent // k) % multiple == 0 and s >= multiple} | {latent})
    side, count, took = sides[0], 1, timed(sides[0], 1)
    if took < 0.6 * seconds:  # the first call of all warms up and is slower than any other
        took = timed(side, count)
    for s, n in [(s, 1) for s in sides] + [(latent, rows)]:
        expected = took * n * flops(s) / (count * flops(side))
        if time.perf_counter() - start + 3 * expected > seconds:
            break
        side, count, took = s, n, timed(s, n)
    times = []
    while not times or time.perf_counter() - start < seconds and len(times) < 1000:
        times.append(timed(side, count))
    if len(times) > 2:
        times = times[1:]
    return side, count, times, flops(latent) / flops(side)


# --- the rest ---------------------------------------------------------------------------------------------------------


def measure_cut(call: Call, params: Any, size: int, seconds: float = 2.0) -> float:
    """Seconds of one AttentionCut on one core, on a made-up record of the model's shape and a picture with blobs."""
    rng = np.random.default_rng(0)
    g, settings = params.generate, CutParams(**vars(params.attentioncut))
    record: dict[str, np.ndarray] = {}
    for r in sorted(set(call.cross)):
        y, x = np.mgrid[:r, :r] / r
        blob = np.exp(-8 * ((y - 0.5) ** 2 + (x - 0.5) ** 2))
        noise = rng.random((g.bins, call.cross.count(r), r, r)) * 0.2
        record[f"cross_{r}"] = (blob + noise).astype(np.float16)
    for r in sorted(set(call.own)):
        n = min(r, g.cells) ** 2
        record[f"near_{r}"] = rng.random((8, r, r)).astype(np.float16)
        record[f"pairs_{r}"] = rng.random(n * (n + 1) // 2).astype(np.float16)
    y, x = np.mgrid[:size, :size] / size
    image = np.stack([128 + 100 * np.sin(7 * x + k) * np.cos(5 * y) for k in range(3)], -1).astype(np.uint8)
    layers = {str(r): call.own.count(r) for r in set(call.own)}
    times = []
    start = time.perf_counter()
    while not times or time.perf_counter() - start < seconds and len(times) < 20:
        begun = time.perf_counter()
        attention_cut(record, image, settings, np.random.default_rng(0), layers)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def measure_step(call: Call, params: Any, device: str, seconds: float = 3.0) -> float:
    """Seconds of one training step of the segmenter that ``train_decoder`` names, on all that the process has."""
    import torch

    from maskmill.segmenters.models import IMAGE, build

    p = params.train_decoder
    rows = min(p.batch, 2 if device == "cpu" else p.batch)
    place = "cuda:0" if device == "cuda" else device
    if p.model == "fcn":
        seen: dict[int, int] = {}
        channels, given = {}, {}
        for c, side in call.features:
            k = seen[side] = seen.get(side, -1) + 1
            channels[f"feature_{side}_{k}"] = c
            given[f"feature_{side}_{k}"] = torch.randn(rows, c, side, side, device=place)
        config = {"model": "fcn", "channels": channels, "width": p.width, "kernel": p.kernel, "upsample": p.upsample}
    else:
        config = {"model": p.model, "encoder": p.encoder, "encoder_weights": "", "decoder_width": p.decoder_width}
        given = {IMAGE: torch.rand(rows, 3, p.size, p.size, device=place)}
    model = build(config).to(place).train()
    times = []
    start = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - start < seconds and len(times) < 200:
        begun = time.perf_counter()
        model.zero_grad()
        with torch.autocast("cuda", getattr(torch, p.precision), enabled=place != "cpu" and p.precision != "float32"):
            logits = model(given)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), torch.zeros_like(logits).float())
        loss.backward()
        if place != "cpu":
            torch.cuda.synchronize(place)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:]) * p.batch / rows
