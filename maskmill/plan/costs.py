"""What each stage of a pipeline will do, counted from its command and parameters before it runs.

A U-Net call is one sample at one time step; classifier-free guidance makes two calls of every step. Disk is counted for
outputs only: unfinished shards in scratch are linked into them, not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from maskmill.datasets import semantic
from maskmill.datasets.benchmarks import COUNTS, ROLES
from maskmill.errors import UserError
from maskmill.params import Params
from maskmill.plan import shapes
from maskmill.plan.pipeline import Command, Stage
from maskmill.plan.shapes import Shape
from maskmill.segmenters.decoder import Decoder
from maskmill.segmenters.windows import plan
from maskmill.store import read_rows

PICTURE = 1.45  # bytes of a pixel in an RGB PNG, about
LABELS = 0.08  # of a pixel in a mask or label map
SOFT = 0.40  # of a pixel in an 8-bit soft map
ROW = 70  # of a line of a table
SMALL = 200_000  # of the plots and tables of a scoring stage

# Seconds for one picture in one process, roughly, on a core of an ordinary machine.
SECONDS = {
    "world": 0.02, "concept": 0.01, "benchmarks": 0.008, "evaluate": 0.03, "score": 0.01, "draw": 0.01, "decode": 0.01,
    "rivals": 0.05, "extract_features": 0.02, "mask_statistics": 0.01, "judge": 0.02, "name_regions": 0.2,
    "semantic_benchmarks": 0.015,
}  # fmt: skip
SPLITS = {"cub": (10_788, 1_000), "dogs": (12_000, 8_580), "cars": (8_144, 8_041)}  # to learn from, to score
START = 6.0  # seconds in which a stage loads its libraries


@dataclass(frozen=True)
class Cost:
    """What a stage does.

    Attributes:
        items: pictures, prompts or pairs; None where it is not known before other stages have run.
        calls: U-Net calls.
        latent: side of their latents.
        guided: U-Net rows for one picture at once: 2 under guidance.
        vae: floating-point operations of the VAE.
        cuts: AttentionCuts, each of a picture of ``size`` pixels a side.
        steps: training steps of the segmenter that ``params`` describe.
        trained: samples that go through the U-Net and back, in training; each takes about three calls.
        seconds: of other work, in one process.
        parallel: whether that work is spread over the workers too.
        alone: whether its U-Net calls are one process's.
        disk: output path -> bytes.
        idle: whether nothing is to be done.
        note: what the table says of it.
        trouble: why it cannot end well.
    """

    items: int | None = 0
    calls: int = 0
    latent: int = 0
    guided: int = 1
    vae: float = 0.0
    cuts: int = 0
    size: int = 0
    steps: int = 0
    trained: int = 0
    seconds: float = 0.0
    parallel: bool = False
    alone: bool = False
    disk: dict[str, float] = field(default_factory=dict)
    idle: bool = False
    note: str = ""
    trouble: str = ""


@dataclass
class Ledger:
    """What is known while the stages are counted in order: the repository, the model, the pictures of each set."""

    root: Path
    text: str  # of params.yaml
    name: str  # of that file or profile, for messages
    shape: Shape
    counts: dict[str, int] = field(default_factory=dict)
    unlabelled: set[str] = field(default_factory=set)  # sets whose pictures name no class

    def images(self, folder: str) -> int | None:
        """Pictures of a set: as counted when its stage was, else as its table on disk says."""
        folder = folder.rstrip("/")
        if "," in folder:  # several sets
            parts = [self.images(part) for part in folder.split(",")]
            return None if None in parts else sum(parts)
        if folder in self.counts:
            return self.counts[folder]
        path = self.root / folder
        table = path if path.suffix == ".csv" else path / "index.csv"
        return len(read_rows(table, "a table")[1]) if table.is_file() else None


@dataclass(frozen=True)
class Job:
    """One stage with its parameters and cost, in the order of the run."""

    stage: Stage
    params: Params
    cost: Cost


def count(stages: Iterable[Stage], ledger: Ledger) -> list[Job]:
    """The cost of every stage; of a stage with several commands their sum, with the first one's parameters."""
    jobs = []
    for stage in stages:
        parts = [(p := c.parameters(ledger.text, ledger.name), _cost(c, p, ledger)) for c in stage.commands]
        if not parts:
            plain = Command("", {}).parameters(ledger.text, ledger.name)
            parts = [(plain, Cost(None, note="not one of this project's scripts: not counted"))]
        jobs.append(Job(stage, parts[0][0], _sum([cost for _, cost in parts])))
    return jobs


def _sum(costs: list[Cost]) -> Cost:
    """One cost of a stage's several commands: what is counted adds up, the rest is the first command's."""
    first = costs[0]
    counts = ("calls", "vae", "cuts", "steps", "trained", "seconds")
    added = {name: sum(getattr(c, name) for c in costs) for name in counts}
    most = {name: max(getattr(c, name) for c in costs) for name in ("latent", "guided", "size")}
    return replace(
        first, **added, **most, disk={path: n for c in costs for path, n in c.disk.items()},
        note="; ".join(dict.fromkeys(c.note for c in costs if c.note)),
        trouble=next((c.trouble for c in costs if c.trouble), ""),
    )  # fmt: skip


def _cost(command: Command, p: Params, ledger: Ledger) -> Cost:
    handler = HANDLERS.get(command.script)
    if handler is None:
        return Cost(None, note="not counted")
    try:
        return handler(command, p, ledger)
    except UserError as error:
        return Cost(None, trouble=str(error))


# --- the stages -------------------------------------------------------------------------------------------------------


def _pretrain(c: Command, p: Params, ledger: Ledger) -> Cost:
    there = (ledger.root / "data/mini/model_index.json").is_file()
    note = "as shipped; trained only if pretrain: is changed" if there else "trains the miniature"
    return Cost(0, seconds=0.0 if there else 4200.0, disk={"data/mini": 24e6}, idle=there, note=note)


def _world(c: Command, p: Params, ledger: Ledger) -> Cost:
    out, n = c.option("out"), p.world.test_count * len(p.world.seeds)
    ledger.counts[out] = n
    disk = n * (p.world.size**2 * 1.25 + 3 * ROW + 250)
    return Cost(n, seconds=n * SECONDS["world"], parallel=True, disk={out: disk})


def _benchmarks(c: Command, p: Params, ledger: Ledger) -> Cost:
    role, out = c.option("role"), c.option("out")
    given = [name for key, name in ROLES.get(role, {}).items() if getattr(p.benchmarks, key)]
    n = sum(COUNTS[name] for name in given)  # as published
    ledger.counts[out] = n
    if given != ["CUB"]:
        ledger.unlabelled.add(out)
    if not n:
        keys = ", ".join(f"benchmarks.{key}" for key in ROLES.get(role, {}))
        return Cost(0, disk={out: 0.0}, trouble=f"no data set is named: set at least one of {keys}")
    return Cost(n, seconds=n * SECONDS["benchmarks"], parallel=True, disk={out: n * 2.0 * ROW}, note=", ".join(given))


def _semantic(c: Command, p: Params, ledger: Ledger) -> Cost:
    """A data set of semantic segmentation; one that is not named is refused, or left out where the command says so."""
    key, out = c.option("name"), c.option("out")
    if not getattr(p.benchmarks, semantic.FOLDERS[key]):
        ledger.counts[out] = 0
        what = f"benchmarks.{semantic.FOLDERS[key]}: expected the folder of {semantic.NAMES[key]}, got ''"
        return Cost(0, note="left out") if c.option("absent") == "empty" else Cost(0, trouble=what)
    n = ledger.counts[out] = semantic.COUNTS[key][0]
    return Cost(n, seconds=n * SECONDS["semantic_benchmarks"], parallel=True, disk={out: n * 2.0 * ROW})


def _join_classes(c: Command, p: Params, ledger: Ledger) -> Cost:
    """One list of the classes of those data sets that are named."""
    sets = [name for name in c.option("sets").split(",") if getattr(p.benchmarks, semantic.FOLDERS[name])]
    ledger.counts[c.option("out")] = len({row["query"] for name in sets for row in semantic.class_table(name)})
    return Cost(0) if sets else Cost(0, trouble="no data set is named: set the folder of at least one under benchmarks")


def _prompts(c: Command, p: Params, ledger: Ledger) -> Cost:
    out, n = c.option("out"), p.prompts.count
    ledger.counts[out] = n
    note = f"written by {p.prompts.llm}, whose time is not counted" if p.prompts.source == "llm" else ""
    return Cost(n, seconds=n * 2e-4, disk={out: n * ROW}, note=note)


def _generate(c: Command, p: Params, ledger: Ledger) -> Cost:
    out, prompts = c.option("out"), c.option("prompts")
    n, g = ledger.images(prompts), p.generate
    if n is None:
        return Cost(None, note=f"needs {prompts}")
    ledger.counts[f"{out}/set"] = n
    guided = 1 if g.guidance == 1 else 2
    latent = _latent(ledger.shape, g.size)
    call = shapes.call(ledger.shape, latent, p.invert_features.path)
    disk = {f"{out}/records": n * call.record_bytes(g.bins, g.cells),
            f"{out}/set": n * (PICTURE * g.size**2 + 2 * ROW)}  # fmt: skip
    if g.features:
        disk[f"{out}/features"] = n * call.feature_bytes
    return Cost(
        n, n * g.steps * guided, latent, guided, n * shapes.vae_flops(ledger.shape, g.size)[1], size=g.size,
        seconds=n * SECONDS["judge"] * bool(p.model.clip), disk=disk, note="before the filter" if g.filter else "",
    )  # fmt: skip


def _latent(shape: Shape, size: int) -> int:
    step = shape.cell * 2 ** (len(shape.unet["block_out_channels"]) - 1)
    if size % shape.cell:
        raise UserError(f"generate.size: expected a multiple of {shape.cell}, the model's latent cell, got {size}")
    if size < step:
        raise UserError(f"generate.size: expected at least {step} pixels for this model, got {size}")
    return size // shape.cell


def _invert(c: Command, p: Params, ledger: Ledger) -> Cost:
    images, out = c.option("images"), c.option("out")
    n, g, f = ledger.images(images), p.generate, p.invert_features
    if n is None:
        return Cost(None, note=f"needs {images}")
    n = min(n, f.limit * len(p.world.seeds)) if f.limit else n
    latent = _latent(ledger.shape, g.size)
    call = shapes.call(ledger.shape, latent, f.path)
    passes = 2 if f.features else 1  # there, and back for the features
    disk = {f"{out}/records": n * call.record_bytes(g.bins, g.cells), f"{out}/index.csv": n * ROW}
    if f.features:
        disk[f"{out}/features"] = n * call.feature_bytes
    trouble, unlabelled = "", images in ledger.unlabelled
    if unlabelled and (f.prior in ("dataset", "scene") or f.prior == "absent" and not (f.labels and p.model.clip)):
        trouble = f"invert_features.prior {f.prior}: {images} names no class of its pictures"
    judged = n * SECONDS["judge"] * (f.prior == "clip" or f.prior == "absent" and unlabelled)
    return Cost(n, n * f.steps * passes, latent, 1, n * shapes.vae_flops(ledger.shape, g.size)[0], size=g.size,
                seconds=judged, disk=disk, trouble=trouble)  # fmt: skip


def _mask_bytes(n: int, size: int) -> float:
    return n * ((LABELS + SOFT) * size**2 + ROW)


def _attentioncut(c: Command, p: Params, ledger: Ledger) -> Cost:
    n, out = ledger.images(c.option("images")), c.option("out")
    if n is None:
        return Cost(None, note=f"needs {c.option('images')}")
    size = p.generate.size
    return Cost(n, cuts=n, size=size, disk={out: _mask_bytes(n, size)})


def _masks(c: Command, p: Params, ledger: Ledger) -> Cost:
    """Stages that write masks of pictures from what is there: decode, rivals."""
    n, out = ledger.images(c.option("images")), c.option("out")
    if n is None:
        return Cost(None, note=f"needs {c.option('images')}")
    size = p.generate.size
    seconds = n * SECONDS[c.script] * max(1.0, (size / 64) ** 2 / 8)
    return Cost(n, seconds=seconds, parallel=c.script == "rivals", disk={out: _mask_bytes(n, size)})


def _train(c: Command, p: Params, ledger: Ledger) -> Cost:
    images, out, t = c.option("images"), c.option("out"), p.train_decoder
    n = ledger.images(images)
    if n is not None:
        held = round(t.validation * n)
        if t.pairs > n - held:
            trouble = f"train_decoder.pairs: {images} holds {n - held} beside its validation pairs, not {t.pairs}"
            return Cost(n, steps=t.steps, trouble=trouble)
        n = min(t.pairs or n - held, n - held)
    weights = 14e6 if t.model != "fcn" else _decoder_weights(p, ledger)
    return Cost(n, steps=t.steps, disk={out: 4.0 * weights})


def _decoder_weights(p: Params, ledger: Ledger) -> int:
    call = shapes.call(ledger.shape, _latent(ledger.shape, p.generate.size), p.invert_features.path)
    channels = {f"feature_{side}_{k}": c for k, (c, side) in enumerate(call.features)}
    import torch

    with torch.device("meta"):
        decoder = Decoder(channels, p.train_decoder.width, p.train_decoder.kernel, p.train_decoder.upsample)
    return sum(v.numel() for v in decoder.state_dict().values())


def _looks(c: Command, p: Params, ledger: Ledger) -> Cost:
    """Stages that read pictures and masks and write a few numbers and plots."""
    n = ledger.images(c.option("images"))
    seconds = (n or 0) * SECONDS.get(c.script, 0.01) * max(1.0, (p.generate.size / 64) ** 2 / 8)
    return Cost(n, seconds=seconds)


def _features(c: Command, p: Params, ledger: Ledger) -> Cost:
    n = ledger.images(c.option("images"))
    return Cost(n, seconds=(n or 0) * SECONDS["extract_features"], parallel=True, note="disk not counted")


def _few(c: Command, p: Params, ledger: Ledger) -> Cost:
    """Stages of a few seconds whatever the size."""
    return Cost(0)


def _support(c: Command, p: Params, ledger: Ledger) -> Cost:
    """OVDiff's pictures of a class: N pictures, their attention to the word alone."""
    s = p.support
    classes, out = _classes(c, p, ledger)
    n, guided = s.count * classes, 1 if s.guidance == 1 else 2
    latent = _latent(ledger.shape, s.size)
    record = shapes.call(ledger.shape, latent).record_bytes(4, 1)
    disk = {out: n * (record + PICTURE * s.size**2 + 3 * ROW)}
    ledger.counts[out] = n
    return Cost(n, n * s.steps * guided, latent, guided, n * shapes.vae_flops(ledger.shape, s.size)[1], size=s.size,
                disk=disk)  # fmt: skip


def _classes(c: Command, p: Params, ledger: Ledger) -> tuple[int, str]:
    """How many classes a stage of OVDiff is called for, and the folder that it makes."""
    out = c.option("out")
    if c.option("class"):
        return 1, f"{out}/{c.option('class').replace(' ', '_')}"
    name = c.option("classes-file")
    table = ledger.root / name
    if name in ledger.counts:
        return ledger.counts[name], out
    if table.is_file():
        lines = table.read_text(encoding="utf-8").splitlines()
        return sum(bool(line.partition("#")[0].strip()) for line in lines), out
    return len(p.vocabulary.classes), out


def _looks_with(p: Params, ledger: Ledger, views: int) -> tuple[int, int, float]:
    """What ``views`` pictures cost OVDiff's extractors: U-Net calls, side of their latents, seconds of the others."""
    e = p.extractors
    calls = views * max(e.sd.draws, 1) if "sd" in e.names else 0
    others = [getattr(e, name).size for name in e.names if name != "sd"]
    return calls, _latent(ledger.shape, e.sd.size), views * sum(0.01 + 0.3 * (size / 448) ** 2 for size in others)


def _prototypes(c: Command, p: Params, ledger: Ledger) -> Cost:
    classes, out = _classes(c, p, ledger)
    n = classes * p.support.count
    calls, latent, seconds = _looks_with(p, ledger, n)
    width = 3 * sum(ledger.shape.unet["block_out_channels"][:3]) + 768 * (len(p.extractors.names) - 1)
    rows = 2 * classes * (1 + p.support.count + p.build_prototypes.parts)  # foreground and background
    return Cost(n, calls, latent, 1, calls * shapes.vae_flops(ledger.shape, p.extractors.sd.size)[0],
                size=p.extractors.sd.size, seconds=seconds + classes * p.build_prototypes.parts * 0.1, parallel=True,
                disk={out: rows * width * 4.0})  # fmt: skip


def _segment(c: Command, p: Params, ledger: Ledger) -> Cost:
    images, out, s = c.option("images"), c.option("out"), p.segment
    n = ledger.images(images) if images else None
    if n is None:
        return Cost(None, note=f"needs {images}" if images else "pictures of your own")
    size = p.world.size if not images.startswith("data/semantic_benchmarks") else 500
    if c.option("decoder"):
        return Cost(n, n * 2 * p.invert_features.steps, _latent(ledger.shape, p.generate.size), size=p.generate.size,
                    disk={out: n * (PICTURE + LABELS) * size**2})  # fmt: skip
    try:
        views = len(plan(size, size, s.short, s.sizes, s.stride, s.whole))
    except UserError as error:
        return Cost(n, trouble=str(error))
    calls, latent, seconds = _looks_with(p, ledger, n * views)
    return Cost(n, calls, latent, 1, calls * shapes.vae_flops(ledger.shape, p.extractors.sd.size)[0],
                size=p.extractors.sd.size, seconds=seconds, parallel=True,
                disk={out: n * ((PICTURE + LABELS) * size**2 + 4 * ROW)})  # fmt: skip


def _mean_attention(c: Command, p: Params, ledger: Ledger) -> Cost:
    """The last T0 steps of every picture, each with N samples of noise."""
    n, out, m, size = ledger.images(c.option("images")), c.option("out"), p.mean_attention, p.generate.size
    if n is None:
        return Cost(None, note=f"needs {c.option('images')}")
    return Cost(n, n * m.t0 * m.samples, _latent(ledger.shape, size), 1, n * shapes.vae_flops(ledger.shape, size)[0],
                size=size, disk={out: _mask_bytes(n, size)})  # fmt: skip


def _finetune(c: Command, p: Params, ledger: Ledger) -> Cost:
    d, out, size = p.distill_inpaint, c.option("out"), p.generate.size
    n = ledger.images(c.option("images"))
    return Cost(n, 0, _latent(ledger.shape, size), size=size, trained=d.steps * d.batch,
                disk={out: 4.0 * ledger.shape.weights["unet"]},
                note=f"{d.steps * d.batch:,} there and back, on one GPU; LAUNCH spreads it")  # fmt: skip


def _refine(c: Command, p: Params, ledger: Ledger) -> Cost:
    """The object of every picture painted over."""
    n, out, r, size = ledger.images(c.option("images")), c.option("out"), p.refine_masks, p.generate.size
    if n is None:
        return Cost(None, note=f"needs {c.option('images')}")
    guided = 1 if r.guidance in (0.0, 1.0) else 2
    disk = {out: n * ((LABELS + 2 * SOFT + PICTURE) * size**2 + ROW)}
    return Cost(n, n * r.steps * guided, _latent(ledger.shape, size), guided,
                n * sum(shapes.vae_flops(ledger.shape, size)), size=size, disk=disk)  # fmt: skip


def _exported(c: Command, p: Params, ledger: Ledger) -> Cost:
    """Pictures, masks, cut-out objects and backgrounds of a set."""
    images, out, size = c.option("images"), c.option("out"), p.generate.size
    n = ledger.images(images)
    if n is None:
        return Cost(None, note=f"needs {images}")
    ledger.counts[out] = n
    return Cost(n, seconds=0.02 * n, disk={out: n * (2.5 * PICTURE * size**2 + 3 * ROW)})


def _quality(c: Command, p: Params, ledger: Ledger) -> Cost:
    """Pictures of the fine-tuned model for each w between its concepts, where one of the two prompts is enough at 0 and
    at 1, and for each concept alone."""
    q, size, scale = p.generation_quality, p.generate.size, p.generate.guidance
    n = q.count * (len(q.guidance) + 2)
    prompts = sum(1 if w in (0.0, 1.0) else 2 for w in q.guidance) + 2 * (1 if scale == 1 else 2)
    calls = q.count * q.steps * prompts
    return Cost(n, calls, _latent(ledger.shape, size), 2, n * shapes.vae_flops(ledger.shape, size)[1], size=size,
                seconds=n * SECONDS["judge"])  # fmt: skip


def _curves(c: Command, p: Params, ledger: Ledger) -> Cost:
    """The mean attention of every picture: once through the steps, then the last of them with many samples of noise."""
    n, a, size = ledger.images(c.option("images")), p.attention_curves, p.generate.size
    if n is None:
        return Cost(None, note=f"needs {c.option('images')}")
    calls = n * (max(*a.t0, a.token_t0) + a.repeats * max(a.samples))
    return Cost(n, calls, _latent(ledger.shape, size), 1, n * shapes.vae_flops(ledger.shape, size)[0], size=size)


def _reconstruction(c: Command, p: Params, ledger: Ledger) -> Cost:
    """From noise back to every picture."""
    n, size = ledger.images(c.option("images")), p.generate.size
    if n is None:
        return Cost(None, note=f"needs {c.option('images')}")
    calls = n * p.invert_features.steps
    return Cost(n, calls, _latent(ledger.shape, size), 1, n * shapes.vae_flops(ledger.shape, size)[0], size=size)


def _ovdiff_cost(c: Command, p: Params, ledger: Ledger) -> Cost:
    """One class after the other in one process, the first of them twice; segmenting a few pictures is not counted."""
    s = p.support
    n = s.count * (1 + len(c.option("classes").split(",")))
    looks, _, seconds = _looks_with(p, ledger, n)
    guided = 1 if s.guidance == 1 else 2
    return Cost(n, n * s.steps * guided + looks, _latent(ledger.shape, s.size), guided,
                n * shapes.vae_flops(ledger.shape, s.size)[1], size=s.size, seconds=seconds, alone=True)  # fmt: skip


def _named(c: Command, p: Params, ledger: Ledger) -> Cost:
    """Label maps of a set by regions of colour."""
    images, out, size = c.option("images"), c.option("out"), p.world.size
    n = ledger.images(images)
    if n is None:
        return Cost(None, note=f"needs {images}")
    return Cost(n, seconds=n * SECONDS["name_regions"], parallel=True,
                disk={out: n * ((PICTURE + LABELS) * size**2 + 4 * ROW)})  # fmt: skip


def _joined(c: Command, p: Params, ledger: Ledger) -> Cost:
    """Several sets as one; its pictures stay where they are."""
    counts = [ledger.images(images) for images in c.options.get("images", [])]
    if not counts or None in counts:
        return Cost(None, note="needs the sets that it joins")
    n = ledger.counts[c.option("out")] = sum(counts)
    return Cost(n, seconds=0.001 * n, disk={c.option("out"): n * 2.0 * ROW})


def _concept(c: Command, p: Params, ledger: Ledger) -> Cost:
    k, out = p.concept, c.option("out")
    sizes = SPLITS.get(k.source, (k.count, k.test_count * len(k.test_seeds)))
    trouble = "" if k.source == "world" or k.root else f"concept.root: expected the folder of {k.source}, got ''"
    if k.source in ("folder", "human36m"):
        return Cost(None, note=f"pictures of {k.source}", trouble=trouble)
    for part, n in zip(("train", "test"), sizes, strict=True):
        ledger.counts[f"{out}/{part}"] = n
    n = sum(sizes)
    if k.source != "world":
        return Cost(n, seconds=n * SECONDS["benchmarks"], disk={out: n * 2.0 * ROW}, note=k.source, trouble=trouble)
    return Cost(n, seconds=n * SECONDS["concept"], disk={out: n * (p.world.size**2 * 1.25 + 3 * ROW)})


def _concept_set(c: Command, p: Params, ledger: Ledger) -> Cost:
    k, out, size = p.concept_set, c.option("out"), p.generate.size
    ledger.counts[out] = k.count
    guided = 1 if k.guidance == 1 else 2
    return Cost(k.count, k.count * k.steps * guided, _latent(ledger.shape, size), guided,
                k.count * shapes.vae_flops(ledger.shape, size)[1], size=size,
                disk={out: k.count * (PICTURE * size**2 + ROW)})  # fmt: skip


HANDLERS: dict[str, Callable[[Command, Params, Ledger], Cost]] = {
    "pretrain": _pretrain, "world": _world, "benchmarks": _benchmarks, "prompts": _prompts, "generate": _generate,
    "invert_features": _invert, "attentioncut": _attentioncut, "train_decoder": _train, "decode": _masks,
    "rivals": _masks, "evaluate": _looks, "score": _looks, "draw": _looks, "mask_statistics": _looks,
    "extract_features": _features, "check_model": _few, "summary": _few, "table": _few, "ledger": _few,
    "support": _support, "build_prototypes": _prototypes, "segment": _segment, "score_semantic": _looks,
    "mean_attention": _mean_attention, "distill_inpaint": _finetune, "refine_masks": _refine, "export_set": _exported,
    "evaluate_semantic": _few, "evaluate_distillation": _looks, "kinds": _few, "concept": _concept,
    "concept_set": _concept_set, "generation_quality": _quality, "attention_curves": _curves,
    "reconstruction": _reconstruction, "ovdiff_cost": _ovdiff_cost, "name_regions": _named, "join_sets": _joined,
    "semantic_benchmarks": _semantic, "draw_refinement": _few, "draw_semantic": _few, "explain": _few,
    "absent": _few, "join_classes": _join_classes,
    "export": _exported,
}  # fmt: skip


def total_calls(jobs: Iterable[Job]) -> int:
    return sum(job.cost.calls for job in jobs)


def flops(job: Job, shape: Shape) -> float:
    """Arithmetic of a stage's U-Net calls and of the VAE."""
    if not job.cost.calls:
        return job.cost.vae
    return job.cost.calls * shapes.call(shape, job.cost.latent).flops + job.cost.vae

