"""Quality of the fine-tuned model's pictures against w, the guidance between y_b and y_f (concept distillation 4.6).

Inputs:   the diffusion model, the fine-tuned U-Net, the real pictures; generation_quality.inception or else model.clip
Outputs:  <out>/quality.json: for each w the Frechet distance to the real pictures and its protocol (fid with the
          Inception weights of 2015; with a CLIP frechet_clip, which means nothing beside published values), and the
          share of pictures in which CLIP finds the object: the word is the first of the world's 8 classes and 9 stuffs;
          <out>/summary.json: flat numbers <name>.distill.{found_f, found_b, the distance at w = 1} of the prompts
          without guidance; found_f_guided, found_b_guided for w of concept_set and refine_masks, where the pictures are
          used; found_f_cfg, found_b_cfg of each prompt by itself with the guidance of all other pictures,
          generate.guidance away from generate.negative;
          <out>/rows/<w>.json: the same as rows of a table; <out>/quality.csv and quality.png: the same over w;
          <out>/strip.png: the pictures of a few seeds across w, and of each prompt by itself
Command:  python stages/generation_quality.py --unet data/distill/bird/unet --real data/concepts/bird/train
Time:     about 2 minutes for 9 x 100 pictures of the miniature on 2 cores; killed, it goes on at the last shard
Expect:   the object in most pictures under y_f, in few under y_b; on the miniature without guidance in half and in few
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from maskmill import store, workers, world
from maskmill.cli import Runtime, die_with_parent, runtime, stage_arguments, write_atomically
from maskmill.datasets.table import read_image, read_table, save_png
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.concepts import ConceptSampler, object_prompt
from maskmill.errors import UserError, exit_cleanly
from maskmill.prompts import sample_seed
from maskmill.report.grids import Column, Row, picture_grid
from maskmill.report.plots import guidance_curves
from maskmill.report.summary import to_json
from maskmill.scores.generation import compare, extractor_of, moments_of
from maskmill.spread import fill
from maskmill.zeroshot import ZeroShot

Way = tuple[str, float]  # "between" y_b and y_f with w, or "y_f" or "y_b" alone with the guidance of other pictures

SHARD = 25
CODE = ("maskmill.diffusion.backbone", "maskmill.diffusion.concepts", "maskmill.diffusion.inpainting",
        "maskmill.diffusion.sampling")  # fmt: skip
STREAM = 31  # keeps the noise of these pictures apart from that of other stages
STRIP = 3  # seeds in the strip


class Artist:
    """One worker: the model, and what it does with a shard, whose pictures may be guided in different ways."""

    def __init__(self, shards: store.ShardFolder, unet: Path, params, batch: int, device: str) -> None:
        m, d = params.model, params.distill
        self.shards, self.batch = shards, batch
        prompts = (object_prompt(d.object, d.word), d.background)
        self.sampler = ConceptSampler(Backbone(m.id, m.revision, m.dtype, device), unet, prompts, params.generate.size,
                                      params.generation_quality.steps, params.generate.negative)  # fmt: skip

    def __call__(self, job: tuple[int, list[tuple[str, int, Way]]]) -> None:
        shard, todo = job
        done: dict[str, dict] = {}
        for way in dict.fromkeys(way for _, _, way in todo):
            seeds = {name: seed for name, seed, own in todo if own == way}
            paint = partial(self.paint, list(seeds.values()), way)
            pictures = workers.in_batches(len(seeds), self.batch, paint)
            done |= {name: {"image": picture} for name, picture in zip(seeds, pictures, strict=True)}
        self.shards.put(shard, [name for name, _, _ in todo], done)

    def paint(self, seeds: list[int], way: Way, rows: list[int]) -> list[np.ndarray]:
        (kind, w), chosen = way, [seeds[i] for i in rows]
        return list(self.sampler(chosen, w) if kind == "between" else self.sampler.alone(chosen, kind, w))


def paint(params, unet: Path, scratch: Path, settings: Runtime) -> dict[Way, Path]:
    """Sample all pictures as PNG files, as a data set has them -> the folder of each way to guide them."""
    p, d, m, g = params.generation_quality, params.distill, params.model, params.generate
    seeds = [sample_seed(params.seed + STREAM, i) for i in range(p.count)]
    ways = {f"w{k}": ("between", w) for k, w in enumerate(p.guidance)}
    ways |= {concept: (concept, g.guidance) for concept in ("y_f", "y_b")}
    jobs = {f"{label}-{i:05d}": (seed, way) for label, way in ways.items() for i, seed in enumerate(seeds)}
    stamp = store.fingerprint(asdict(p), [d.word, d.object, d.background], asdict(m), g.size, g.negative, jobs,
                              store.model_stamp(m.id, m.revision), store.hash_tree(unet),
                              store.code_hashes(*CODE))  # fmt: skip
    with store.ShardWriter(scratch / "pictures", list(jobs), stamp, {}, SHARD, scratch / "shards") as writer:
        work = (writer.shard_folder, unet, params, settings.batch)
        fill([writer], {name: (name, *job) for name, job in jobs.items()}, Artist, work, "generation_quality", settings)
        writer.assemble()
    folders = {way: scratch / "png" / label for label, way in ways.items()}
    for name, sample in store.Store(scratch / "pictures").items():
        save_png(np.asarray(sample["image"]), folders[jobs[name][1]] / f"{name}.png")
    return folders


def found_share(paths: list[Path], judge: ZeroShot, word: str) -> float:
    """The share of pictures whose best word is ``word``."""
    best = judge.probabilities(read_image(path) for path in paths).argmax(1)
    return float((best == judge.classes.index(word)).mean())


def headlines(
    result: dict[str, dict], alone: dict[str, float], metric: str, guided_f: float, guided_b: float, name: str
) -> dict[str, float]:
    """The numbers of a summary, sorted by name. Arguments: the scores at ``scale <w>``; the shares under each concept
    alone; w of the used pictures."""
    found = {"found_f": 1.0, "found_b": 0.0, "found_f_guided": guided_f, "found_b_guided": guided_b}
    numbers = {key: result[f"scale {w:g}"]["found"] for key, w in found.items()}
    numbers |= {"found_f_cfg": alone["y_f"], "found_b_cfg": alone["y_b"], metric: result["scale 1"][metric]}
    return {f"{name}.distill.{key}": value for key, value in sorted(numbers.items())}


def draw_strip(folders: dict[Way, Path], word: str, path: Path) -> None:
    """A row for each of a few seeds; a column for each w between the concepts, then one for each concept alone."""
    notes = {("between", 0.0): "background", ("between", 1.0): "object"}
    columns, files = [], {}
    for k, ((kind, w), folder) in enumerate(folders.items()):
        title, note = f"w = {w:g}", notes.get((kind, w), "")
        if kind != "between":
            title, note = ("object alone" if kind == "y_f" else "background alone"), f"guidance {w:g}"
        columns.append(Column(str(k), title, "image", note))
        files[str(k)] = sorted(folder.glob("*.png"))[:STRIP]
    rows = []
    for k in range(len(files["0"])):
        panels = {key: read_image(paths[k]) for key, paths in files.items()}
        rows.append(Row(panels["0"], panels, f"noise {k + 1}"))
    picture_grid(rows, columns, path, f"One noise each row, guided from the background to the {word}", 128)


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "model", "generate", "distill", "generation_quality", "refine_masks", "concept_set"),
        {"unet": "data/distill/bird/unet", "real": "data/concepts/bird/train", "out": "metrics/distill/quality",
         "name": "world", "scratch": "scratch/generation_quality"},
    )  # fmt: skip
    p, d, settings, scratch = params.generation_quality, params.distill, runtime(batch=8), Path(args.scratch)
    guided_f, guided_b = params.concept_set.guidance, params.refine_masks.guidance
    used = {0.0, 1.0, guided_f, guided_b}
    if not used <= set(p.guidance) or len(set(p.guidance)) < len(p.guidance):
        raise UserError("generation_quality.guidance: expected different values, among them 0, 1 and those of "
                        f"refine_masks and concept_set ({', '.join(f'{w:g}' for w in sorted(used))}), got "
                        f"{', '.join(f'{w:g}' for w in p.guidance)}")  # fmt: skip
    if not params.model.clip:
        raise UserError("model.clip: expected a CLIP model, which looks for the object, got ''")
    extractor = extractor_of(p.inception, params.model.clip, settings.device)
    words = list(dict.fromkeys([*world.CLASSES, d.word, *world.STUFF]))
    judge = ZeroShot(params.model.clip, words, device=settings.device)
    real = moments_of([Path(args.real) / item.image for item in read_table(args.real)], extractor)
    folders, result, rows = paint(params, Path(args.unet), scratch, settings), {}, []
    alone = {concept: found_share(sorted(folder.glob("*.png")), judge, d.word)
             for (concept, _), folder in folders.items() if concept != "between"}  # fmt: skip
    between = {w: folder for (kind, w), folder in folders.items() if kind == "between"}
    for w, folder in between.items():
        paths = sorted(folder.glob("*.png"))
        scored = compare(moments_of(paths, extractor), real, extractor)
        result[f"scale {w:g}"] = {"n": len(paths), extractor.metric: scored[extractor.metric],
                                  "found": found_share(paths, judge, d.word)}  # fmt: skip
        rows.append({"w": w, extractor.metric: scored[extractor.metric], "found": result[f"scale {w:g}"]["found"]})
    told = {extractor.metric: scored["protocol"],
            "found": f"share of pictures for which CLIP {params.model.clip} gives {d.word!r} the highest probability "
                     f"of the {len(words)} words {', '.join(words)}"}  # fmt: skip
    with store.fresh_folder(args.out) as out:
        for row in rows:
            scores = {key: value for key, value in row.items() if key != "w"}
            scored = {"datasets": {"": {"scores": scores, "images": p.count, "draws": []}}, "protocol": told}
            write_atomically(out / "rows" / f"{row['w']:g}.json", to_json(scored))
        about = {"metric": extractor.metric, "word": d.word, "guided_f": guided_f, "guided_b": guided_b}
        about["alone"] = {"guidance": params.generate.guidance, "negative": params.generate.negative, "n": p.count,
                          **alone}  # fmt: skip
        write_atomically(out / "quality.json", to_json({**about, **result, "protocol": told}))
        numbers = headlines(result, alone, extractor.metric, guided_f, guided_b, args.name)
        write_atomically(out / "summary.json", to_json(numbers))
        guidance_curves(pd.DataFrame(rows), d.word, out / "quality.png", out / "quality.csv")
        draw_strip(folders, d.word, out / "strip.png")
    shutil.rmtree(scratch, ignore_errors=True)
    print(f"{args.out}: {extractor.metric} {result['scale 1'][extractor.metric]:.3f} at w = 1; {d.word} found in "
          f"{alone['y_f']:.0%} of the pictures under y_f, {alone['y_b']:.0%} under y_b")  # fmt: skip


if __name__ == "__main__":
    exit_cleanly(main)
