"""What attention capture costs: one U-Net step as plain diffusers runs it, with capture, with materialised attention.

    python bench/capture.py                                   # SD-1.4's shape, random weights, on the CPU (minutes)
    python bench/capture.py --small                           # a toy U-Net, seconds
    python bench/capture.py --device cuda --dtype bfloat16 --batch 8 --repeats 20

Builds the U-Net from its configuration alone (no download) and prints, for each of the three, the median and the
shortest time of a step, its processor time and the peak memory above the weights, with ratios to plain. The variants
take turns, so that a busy machine slows all alike; the ratio beside a median is the median over turns of the ratio
within a turn. On a very busy CPU trust the processor time, with --threads 1 (threads that wait look busy).
On the CPU each variant's memory is the peak resident size of a forked process of its own. FLOPs are those of the plain
U-Net; the share is their rate over that of one large matrix product timed in the same run.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from maskmill.diffusion.capture import AttentionCapture, word_weights

TOKENS = 77
CELLS = 32  # longest side of the grid of cells of A_s, generate.cells
SD14 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,  # by its name in the configuration; it is the number of heads
}
SMALL = {**SD14, "sample_size": 32, "block_out_channels": (64, 64, 128, 128), "cross_attention_dim": 64}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_unet(config: dict, device: str, dtype: torch.dtype) -> UNet2DConditionModel:
    """The U-Net of `config` with random weights that keep activations in range."""
    with torch.device("meta"):  # diffusers' own initialisation of 860 million weights takes longer than the measurement
        unet = UNet2DConditionModel(**config).eval()
    torch.nn.Module.to(unet, dtype)  # diffusers' own .to warns about layers that a trained model may want in float32
    unet.to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in unet.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            torch.nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return unet.requires_grad_(False)


def make_inputs(config: dict, batch: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    side = config["sample_size"]
    return {
        "sample": torch.randn(batch, 4, side, side, device=device, dtype=dtype),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(batch, TOKENS, config["cross_attention_dim"], device=device, dtype=dtype),
    }


class MaterialisingProcessor:
    """Makes every attention matrix and keeps the head means: word columns per layer, whole A_s per resolution."""

    def __init__(self, sums: dict) -> None:
        self.sums = sums

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)))
        matrix = attn.get_attention_scores(q, k, attention_mask)  # (B * heads, N, T)
        mean = matrix.unflatten(0, (-1, attn.heads)).mean(1).float()  # (B, N, T)
        key, value = (mean.shape[1], mean) if encoder_hidden_states is None else (id(attn), mean[..., 1:3].clone())
        self.sums[key] = self.sums[key] + value if key in self.sums else value
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(matrix @ v)))


@contextmanager
def materialising(unet: UNet2DConditionModel) -> Iterator[None]:
    originals = dict(unet.attn_processors)
    unet.set_attn_processor(MaterialisingProcessor({}))
    try:
        yield
    finally:
        unet.set_attn_processor(originals)


@contextmanager
def capturing(capture: AttentionCapture, batch: int) -> Iterator[None]:
    with capture:
        capture.begin(word_weights([(1, 3)] * batch, TOKENS))
        yield
        capture.end()


def variants_of(unet: UNet2DConditionModel, batch: int) -> dict[str, Callable]:
    """Context managers in which a step of the U-Net is the variant's."""
    capture = AttentionCapture(unet, CELLS)
    return {
        "plain": nullcontext,
        "capture": lambda: capturing(capture, batch),
        "materialised": lambda: materialising(unet),
    }


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@torch.no_grad()
def measure_times(
    unet: UNet2DConditionModel, inputs: dict, repeats: int, warmups: int, threads: int
) -> dict[str, list[tuple[float, float]]]:
    """(seconds, processor seconds) of each step of each variant, taking turns."""
    torch.set_num_threads(threads)
    device = str(inputs["sample"].device)
    variants = variants_of(unet, inputs["sample"].shape[0])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for turn in range(-warmups, repeats):
        for name, context in variants.items():
            with context():
                synchronise(device)
                start, cpu_start = time.perf_counter(), time.process_time()
                unet(**inputs)
                synchronise(device)
                seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            if turn >= 0:
                times[name].append((seconds, cpu_seconds))
    return times


@torch.no_grad()
def measure_memory_cuda(unet: UNet2DConditionModel, inputs: dict, variant: str) -> int:
    """Peak allocated bytes of a step above the weights and inputs."""
    with variants_of(unet, inputs["sample"].shape[0])[variant]():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        unet(**inputs)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def peak_resident() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident() -> int:
    """Resident size of this process now, in bytes; where the system does not tell, the largest so far."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_resident()


@torch.no_grad()
def measure_memory_cpu(unet: UNet2DConditionModel, inputs: dict, variant: str, threads: int) -> int:
    """Peak resident bytes of a step above the level before it; run it in a process whose whole life is this step."""
    torch.set_num_threads(threads)
    before = resident()
    with variants_of(unet, inputs["sample"].shape[0])[variant]():
        unet(**inputs)
    return peak_resident() - before


def in_fork(function: Callable, *args: object) -> object:
    """function(*args) in a forked process, which shares the weights and has no memory of earlier measurements."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*args)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"a measuring process ended without a result (exit code {process.exitcode})") from None
    finally:
        process.join()


def count_flops(config: dict, batch: int) -> int:
    """FLOPs of one plain step, counted on tensors without data."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(**make_inputs(config, batch, "meta", torch.float32))
    return counter.get_total_flops()


def matrix_rate(device: str, dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of a large square matrix product, the best of several."""
    torch.set_num_threads(threads)
    n = 8192 if device.startswith("cuda") else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        synchronise(device)
        start = time.perf_counter()
        a @ b
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def median_ratio(values: Sequence[float], plain: Sequence[float]) -> float:
    return statistics.median(value / reference for value, reference in zip(values, plain, strict=False))


def report(times: dict[str, list[tuple[float, float]]], memory: dict[str, int], flops: int, rate: float) -> None:
    print(f"plain step {flops / 1e12:.3f} TFLOP; matrix rate {rate / 1e12:.3f} TFLOP/s")
    heads = ("", "median s", "x plain", "min s", "x plain", "cpu s", "x plain", "GB + weights", "x plain", "of rate")
    print("".join(f"{head:>{width}}" for head, width in zip(heads, (13, 10, 9, 9, 9, 9, 9, 14, 9, 9), strict=False)))
    plain_wall, plain_cpu = zip(*times["plain"], strict=False)
    for name, pairs in times.items():
        wall, cpu = zip(*pairs, strict=False)
        median, best = statistics.median(wall), min(wall)
        print(
            f"{name:>13}{median:10.4f}{median_ratio(wall, plain_wall):9.3f}{best:9.4f}{best / min(plain_wall):9.3f}"
            f"{statistics.median(cpu):9.3f}{median_ratio(cpu, plain_cpu):9.3f}"
            f"{memory[name] / 1e9:14.3f}{memory[name] / memory['plain']:9.2f}{flops / median / rate:9.1%}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--batch", type=int, default=1, help="rows of the U-Net batch, all recorded")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--small", action="store_true", help="a toy U-Net instead of SD 1.4's shape")
    arguments = parser.parse_args()
    if min(arguments.batch, arguments.repeats, arguments.threads) < 1:
        parser.error("--batch, --repeats and --threads must be at least 1")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no usable CUDA device")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    device, dtype, threads = arguments.device, DTYPES[arguments.dtype], arguments.threads
    config = SMALL if arguments.small else SD14
    on_cuda = device.startswith("cuda")
    if not on_cuda:
        torch.set_num_threads(1)  # a process that has started OpenMP's threads must not fork; the forks use `threads`
    flops = count_flops(config, arguments.batch)
    unet = build_unet(config, device, dtype)
    inputs = make_inputs(config, arguments.batch, device, dtype)
    weights = sum(p.numel() * p.element_size() for p in unet.parameters())
    where = torch.cuda.get_device_name() if on_cuda else f"CPU, {threads} threads"
    count = sum(p.numel() for p in unet.parameters()) / 1e6
    size = f"{count:.0f} M weights ({weights / 1e9:.2f} GB, {arguments.dtype})"
    print(f"U-Net of {size}, batch {arguments.batch}, {where}", flush=True)
    names = list(variants_of(unet, 1))
    if on_cuda:
        times = measure_times(unet, inputs, arguments.repeats, 3, threads)
        memory = {name: measure_memory_cuda(unet, inputs, name) for name in names}
        rate = matrix_rate(device, dtype, threads)
    else:
        memory = {name: in_fork(measure_memory_cpu, unet, inputs, name, threads) for name in names}
        times = in_fork(measure_times, unet, inputs, arguments.repeats, 1, threads)
        rate = in_fork(matrix_rate, device, dtype, threads)
    report(times, memory, flops, rate)


if __name__ == "__main__":
    main()
