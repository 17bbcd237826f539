"""The plan as a table, and why a run cannot end well."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from maskmill import workers
from maskmill.cli import Runtime
from maskmill.params import Params
from maskmill.plan import machine, shapes
from maskmill.plan.costs import START, Job, flops, total_calls
from maskmill.plan.machine import Speed
from maskmill.plan.needs import Need
from maskmill.plan.shapes import Shape

ALONE = 4  # stages of one family that each have a line of their own


@dataclass(frozen=True)
class Rates:
    """What was measured.

    Attributes:
        unet: the U-Net's speed at the main latents, or why there is none.
        cut: seconds of an AttentionCut on one core.
        steps: stage -> seconds of a training step.
    """

    unet: Speed | str
    cut: float
    steps: dict[str, float]


@dataclass(frozen=True)
class Machine:
    """This machine: settings of the run, free bytes of memory, disk and GPU (None without), copies that DVC keeps."""

    settings: Runtime
    memory: float
    disk: float
    device: float | None
    copies: int


@dataclass(frozen=True)
class Plan:
    name: str
    params: Params
    shape: Shape
    jobs: list[Job]
    needs: list[Need]
    rates: Rates | None
    machine: Machine
    root: Path


def measure(jobs: list[Job], shape: Shape, settings: Runtime, seconds: float) -> Rates:
    """Time the U-Net, an AttentionCut and the training steps, as far as the stages have any."""
    unet: Speed | str = "no stage calls it"
    if any(j.cost.calls or j.cost.trained for j in jobs):
        main = calling(jobs)
        unet = machine.measure_unet(shape, main.cost.latent, main.params.model.dtype, settings.device,
                                    settings.batch * main.cost.guided, seconds)  # fmt: skip
    cutting = next((j for j in jobs if j.cost.cuts), None)
    cut = 0.0
    if cutting is not None:
        call = shapes.call(shape, shape.latent(cutting.params.generate.size))
        cut = machine.measure_cut(call, cutting.params, cutting.params.generate.size, seconds / 5)
    steps: dict[str, float] = {}
    known: dict[tuple, float] = {}
    for job in (j for j in jobs if j.cost.steps):
        t, p = job.params.train_decoder, job.params
        key = (t.model, t.encoder, t.size, t.batch, t.width, t.upsample)
        if key not in known:
            call = shapes.call(shape, shape.latent(p.generate.size), p.invert_features.path)
            known[key] = machine.measure_step(call, p, settings.device, seconds / 4)
        steps[job.stage.name] = known[key]
    return Rates(unet, cut, steps)


def calling(jobs: list[Job]) -> Job:
    """The job with the most arithmetic of the U-Net: what is measured is its call."""
    return max(jobs, key=lambda j: (j.cost.calls + 3 * j.cost.trained) * j.cost.latent**2)


def places(settings: Runtime) -> int:
    """Workers that inference is spread over."""
    return len(workers.devices(settings.device, settings.workers))


def seconds(job: Job, plan: Plan) -> float | None:
    """Seconds that a stage takes from nothing; None where it cannot be said."""
    c, r = job.cost, plan.rates
    if c.idle:
        return 0.0
    if r is None or c.items is None or c.trouble:
        return None
    spread = 1 if c.alone else places(plan.machine.settings)
    total = START + c.seconds / (plan.machine.settings.workers if c.parallel else 1)
    total += c.cuts * r.cut / plan.machine.settings.workers
    total += c.steps * r.steps.get(job.stage.name, 0.0)
    if c.calls or c.trained:
        if isinstance(r.unet, str):
            return None
        per_flop = r.unet.seconds / shapes.call(plan.shape, calling(plan.jobs).cost.latent).flops
        total += flops(job, plan.shape) * per_flop / spread
        total += 3 * c.trained * shapes.call(plan.shape, c.latent).flops * per_flop  # there, and twice that back
    return total


def memory(job: Job, plan: Plan) -> tuple[float, float]:
    """Bytes of (main memory, one GPU's memory) that a stage takes, about."""
    s, p, shape = plan.machine.settings, job.params, plan.shape
    if not job.cost.calls and not job.cost.trained:
        return machine.LIBRARIES * (s.workers if job.cost.cuts else 1), 0.0
    if job.cost.trained:  # weights, gradients, two moments and a moving average, in float32
        state = 5 * 4.0 * shape.weights["unet"] + 4.0 * (sum(shape.weights.values()) - shape.weights["unet"])
        return (machine.LIBRARIES + state, 0.0) if s.device == "cpu" else (2 * machine.LIBRARIES, state)
    weights = shape.weight_bytes(p.model.dtype)
    rows = s.batch * job.cost.guided
    size = job.cost.size or p.generate.size
    speed = plan.rates.unet if plan.rates else ""
    unet = 0.0 if isinstance(speed, str) else speed.activations * rows
    work = max(unet, s.batch * shapes.vae_bytes(shape, size, p.model.dtype))
    if s.device == "cpu":
        return places(s) * (machine.LIBRARIES + weights + work), 0.0
    return places(s) * (2 * machine.LIBRARIES + weights), weights + work


def disk(plan: Plan) -> tuple[float, float]:
    """Bytes that all outputs will take with DVC's copies, and those of them that are there already."""
    needed = there = 0.0
    for job in plan.jobs:
        for path, size in job.cost.disk.items():
            cached = any(kept and (path == out or path.startswith(out + "/")) for out, kept in job.stage.outs.items())
            copies = plan.machine.copies if cached else 1
            needed += size * copies
            there += min(size, machine.bytes_on_disk(plan.root / path)) * copies
    return needed, there


def problems(plan: Plan) -> list[str]:
    """Why the run cannot end well, one line each; empty if nothing speaks against it."""
    found = [f"{job.stage.name}: {job.cost.trouble}" for job in plan.jobs if job.cost.trouble]
    found += [f"{need.what}: MISSING, see needs" for need in plan.needs if not need.found and not need.optional]
    needed, there = disk(plan)
    if needed - there > plan.machine.disk:
        found.append(f"disk: {size_text(needed - there)} are needed beyond what is there, "
                     f"{size_text(plan.machine.disk)} are free{_less(plan)}")  # fmt: skip
    for job in plan.jobs:
        main, device = memory(job, plan)
        if main > plan.machine.memory:
            spread = plan.machine.settings.device == "cpu" and not job.cost.trained
            whose = f" for {places(plan.machine.settings)} workers" if spread else ""
            hint = "; MASKMILL_WORKERS and MASKMILL_BATCH ask for less" if spread else ""
            found.append(f"{job.stage.name}: about {size_text(main)} of memory{whose}, "
                         f"{size_text(plan.machine.memory)} are free{hint}")  # fmt: skip
        if plan.machine.device is not None and device > plan.machine.device:
            smallest = device if job.cost.trained else alone(plan, job)
            if smallest > plan.machine.device:  # a smaller batch is found by itself, a smaller model is not
                found.append(f"{job.stage.name}: about {size_text(smallest)} of GPU memory for one picture at a time, "
                             f"{size_text(plan.machine.device)} are free")  # fmt: skip
    return found


def alone(plan: Plan, job: Job) -> float:
    """Bytes of GPU memory for one picture at a time."""
    weights = plan.shape.weight_bytes(job.params.model.dtype)
    speed = plan.rates.unet if plan.rates else ""
    unet = 0.0 if isinstance(speed, str) else speed.activations * job.cost.guided
    size = job.cost.size or job.params.generate.size
    return weights + max(unet, shapes.vae_bytes(plan.shape, size, job.params.model.dtype))


def _less(plan: Plan) -> str:
    """What makes the outputs smaller."""
    hints = []
    if plan.machine.copies > 1:
        hints.append("`dvc config cache.type hardlink,symlink` halves it")
    features = sum(size for job in plan.jobs for path, size in job.cost.disk.items() if path.endswith("/features"))
    if features > 0.3 * sum(size for job in plan.jobs for size in job.cost.disk.values()):
        hints.append(f"{size_text(features)} of the outputs are features F^l")
    return f" ({'; '.join(hints)})" if hints else ""


# --- words ------------------------------------------------------------------------------------------------------------


def size_text(n: float) -> str:
    """1.5 GB"""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            shown = n / scale
            return f"{shown:.0f} {unit}" if shown >= 99.5 else f"{shown:.1f} {unit}"
    return f"{n:.0f} B"


def time_text(s: float | None) -> str:
    """45 s, 12 min, 3.4 h, 12 d"""
    if s is None:
        return "?"
    if s < 90:
        return f"{s:.0f} s"
    if s < 5400:
        return f"{s / 60:.0f} min"
    return f"{s / 3600:.1f} h" if s < 48 * 3600 else f"{s / 86400:.0f} d"


def table(plan: Plan) -> str:
    """The whole plan in words and columns."""
    m, s = plan.machine, plan.machine.settings
    n = places(s)
    where = f"{n} worker{'s' * (n > 1)} on the CPU" if s.device == "cpu" else f"{n} x {s.device}"
    lines = [f"{plan.name} on this machine: {where}, batch {s.batch}; free: {size_text(m.memory)} of memory, "
             + (f"{size_text(m.device)} of GPU memory, " if m.device is not None else "")
             + f"{size_text(m.disk)} of disk"]  # fmt: skip
    unet = plan.shape.weights["unet"]
    dtype = plan.params.model.dtype
    lines.append(f"model {plan.params.model.id}: {unet / 1e6:,.1f} million weights in the U-Net, "
                 f"{size_text(plan.shape.weight_bytes(dtype))} in all in {dtype}")  # fmt: skip
    lines += [_measured(plan), ""]
    rows = [("stage", "pictures", "U-Net calls", "time", "disk", "there", "memory", "")]
    took = {job.stage.name: seconds(job, plan) for job in plan.jobs}
    rows += [_row(name, jobs, took, plan) for name, jobs in grouped(plan.jobs)]
    total, unknown = sum(s or 0.0 for s in took.values()), any(s is None for s in took.values())
    needed, there = disk(plan)
    summed = ("at least " if unknown and plan.rates else "") + (time_text(total) if plan.rates else "?")
    rows.append(("all", "", f"{total_calls(plan.jobs):,}", summed, size_text(needed), "", "", "with DVC's cache"
                 if m.copies > 1 else "DVC's cache links to it"))  # fmt: skip
    lines += columns(rows)
    if plan.needs:
        lines += ["", "needs"]
        for need in plan.needs:
            state = "found" if need.found else "not used" if need.optional else "MISSING"
            lines.append(f"  {state:<9}{need.what}{': ' * bool(need.line)}{need.line}")
    return "\n".join(lines)


def grouped(jobs: list[Job]) -> list[tuple[str, list[Job]]]:
    """Jobs by line of the table: more than four stages that are one of dvc.yaml's for several items share a line."""
    families: dict[str, list[Job]] = {}
    for job in jobs:
        families.setdefault(job.stage.name.partition("@")[0], []).append(job)
    lines: list[tuple[str, list[Job]]] = []
    for job in jobs:
        family = job.stage.name.partition("@")[0]
        if len(families[family]) <= ALONE:
            lines.append((job.stage.name, [job]))
        elif job is families[family][0]:
            lines.append((f"{family}, {len(families[family])} of them", families[family]))
    return lines


def _row(name: str, jobs: list[Job], took: dict[str, float | None], plan: Plan) -> tuple[str, ...]:
    known = [took[j.stage.name] for j in jobs]
    items = [j.cost.items for j in jobs]
    calls = sum(j.cost.calls for j in jobs)
    sized = sum(sum(j.cost.disk.values()) for j in jobs)
    there = sum(min(n, machine.bytes_on_disk(plan.root / path)) for j in jobs for path, n in j.cost.disk.items())
    most = max((device or main) for main, device in (memory(j, plan) for j in jobs))
    return (
        name, "?" if None in items else f"{sum(items):,}" if sum(items) else "", f"{calls:,}" if calls else "",
        time_text(None if None in known else sum(known)), size_text(sized) if sized else "",
        f"{100 * there / sized:.0f}%" if sized else "", size_text(most), jobs[0].cost.note,
    )  # fmt: skip


def _measured(plan: Plan) -> str:
    if plan.rates is None:
        return "not measured (--quick)"
    speed = plan.rates.unet
    if isinstance(speed, str):
        return f"U-Net: {speed}"
    main = calling(plan.jobs)
    scaled = "" if speed.side == main.cost.latent else f", scaled from latents of {speed.side} by arithmetic"
    per = f"{speed.seconds * 1000:.1f} ms" if speed.seconds < 1 else f"{speed.seconds:.1f} s"
    return (f"a U-Net call with its attention record: {per} in a worker (median of {speed.calls}, {speed.rows} at once"
            f"{scaled}); a cut: {plan.rates.cut * 1000:.0f} ms")  # fmt: skip


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of text as aligned lines: the first and the last column to the left, all others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for k, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
        lines.append("  ".join(cells).rstrip())
        if k in (0, len(rows) - 2):
            lines.append("-" * (sum(widths[:-1]) + 2 * (len(widths) - 2)))
    return lines
