"""AUROC of the mean attention against T0, against N, and token by token (concept distillation, Figures 3, 11, 12).

Inputs:   a test set with masks, the diffusion model
Outputs:  <out>/t0, <out>/samples, <out>/tokens: scores for each T0, N (largest.json: the largest N) and kind of token
          (word, start, after, mixed), rows of the tables; <out>/tokens.csv: AUROC of every token of the padded prompt
Command:  python stages/attention_curves.py --images data/concepts/bird/test --out metrics/distill/attention
Time:     about 2 minutes for 180 scenes of the miniature on 2 cores; killed, it goes on at the last finished shard
Expect:   the object's word above the start token; one noise sample about as good as many
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from maskmill import store, workers
from maskmill.cli import Runtime, die_with_parent, progress, runtime, stage_arguments, write_atomically
from maskmill.datasets.table import Item, item_rng, read_image, read_table
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.concepts import object_prompt
from maskmill.diffusion.inpainting import repeated
from maskmill.diffusion.mean_attention import nested_means, token_names
from maskmill.errors import UserError, exit_cleanly
from maskmill.masks.mixture import upsample
from maskmill.prompts import load_tokenizer, word_span
from maskmill.report.figures import save_table
from maskmill.report.summary import to_json
from maskmill.scores.controls import summarise_seeds
from maskmill.scores.pooled import PROTOCOL, PooledAuroc
from maskmill.scores.runs import truth_of
from maskmill.spread import computed

SHARD = 30
CODE = ("maskmill.diffusion.backbone", "maskmill.diffusion.mean_attention", "maskmill.diffusion.noise")


class Observer:
    """One worker: the model, and what it does with a shard of pictures: their maps for all T0, N and tokens."""

    def __init__(self, shards: store.ShardFolder, folder: Path, params, batch: int, device: str) -> None:
        m, d = params.model, params.distill
        self.shards, self.folder, self.params, self.batch = shards, folder, params, batch
        self.backbone = Backbone(m.id, m.revision, m.dtype, device)
        self.prompt = object_prompt(d.object, d.word)
        self.y_f = self.backbone.encode_text([self.prompt], params.generate.size)
        self.span = word_span(self.backbone.tokenizer, self.prompt, d.word)

    def __call__(self, job: tuple[int, list[Item]]) -> None:
        shard, items = job
        ids = [item.sample_id for item in items]
        found = workers.in_batches(len(items), self.batch, lambda rows: self.look([items[i] for i in rows]))
        self.shards.put(shard, ids, dict(zip(ids, found, strict=True)))

    def look(self, items: list[Item]) -> list[dict[str, np.ndarray]]:
        """-> float32 maps of each picture: ``t0`` (len(T0), h, w) of the word, ``tokens`` (T, h, w), and ``samples``
        (repeats, number of N, h, w) of the word at T0 = 1."""
        p = self.params.attention_curves
        size = self.params.generate.size
        z = self.backbone.encode_images(np.stack([read_image(self.folder / item.image, size) for item in items]))
        condition, every = repeated(self.y_f, len(items)), torch.eye(self.y_f.embeds.shape[1])  # (T, T)
        start, end = self.span

        def means(repeat: int, t0: tuple[int, ...], samples: tuple[int, ...]) -> dict[tuple[int, int], np.ndarray]:
            seeds = [int(item_rng(self.params.seed + repeat, item.sample_id).integers(2**31)) for item in items]
            return nested_means(self.backbone, z, condition, every, seeds, steps=p.steps, t0=t0, samples=samples)

        by_t0 = means(0, tuple({*p.t0, p.token_t0}), (1,))
        word = np.stack([by_t0[t, 1][:, start:end].mean(1) for t in p.t0], 1)  # (B, len(T0), h, w)
        rounds = [means(r, (1,), p.samples) for r in range(p.repeats)]
        noise = np.stack([np.stack([r[1, n][:, start:end].mean(1) for n in p.samples], 1) for r in rounds], 1)
        return [{"t0": word[k], "tokens": by_t0[p.token_t0, 1][k], "samples": noise[k]} for k in range(len(items))]


def observe(items: list[Item], folder: Path, params, scratch: Path, settings: Runtime) -> store.Store:
    """The maps of all pictures."""
    m, d = params.model, params.distill
    stamp = store.fingerprint(
        asdict(params.attention_curves), params.seed, [d.word, d.object], asdict(m), params.generate.size,
        [i.sample_id for i in items], [store.hash_file(folder / i.image) for i in items],
        store.model_stamp(m.id, m.revision), store.code_hashes(*CODE),
    )  # fmt: skip
    by_id, work = {item.sample_id: item for item in items}, (folder, params, settings.batch)
    return computed(scratch, by_id, stamp, SHARD, Observer, work, "attention_curves", settings)


Maps = dict[str, dict[str, np.ndarray]]  # sample -> what ``Observer.look`` gave


def auroc(items: list[Item], truths: dict[str, np.ndarray], pick: Callable[[str], np.ndarray]) -> float:
    """Pooled AUROC of one map of each picture, brought to the picture's size."""
    curve = PooledAuroc()
    for item in items:
        truth = truths[item.sample_id]
        curve.update(upsample(pick(item.sample_id), truth.shape), truth)
    return curve.result()["auroc_pooled"]


def write_row(path: Path, scores: dict, items: list[Item], draws: list[str], more: str) -> None:
    """One row of a paper's table, see ``maskmill.report.rows``."""
    row = {"datasets": {"": {"scores": scores, "images": len(items), "draws": draws}},
           "protocol": {"aucroc": f"{PROTOCOL['auroc_pooled']}; maps are brought to 0..1 first; {more}"}}  # fmt: skip
    write_atomically(path, to_json(row))


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "model", "generate", "distill", "attention_curves"),
        {"images": "data/concepts/bird/test", "out": "metrics/distill/attention",
         "scratch": "scratch/attention_curves"},
    )  # fmt: skip
    p, word, folder = params.attention_curves, params.distill.word, Path(args.images)
    most = max(*p.t0, p.token_t0)
    if most > p.steps:
        raise UserError(f"attention_curves.t0: expected at most {p.steps}, the steps of the schedule, got {most}")
    items = read_table(folder)
    draws = list(dict.fromkeys(item.seed for item in items))
    truths = {item.sample_id: truth_of(folder, item) for item in items}
    maps: Maps = dict(observe(items, folder, params, Path(args.scratch), runtime(batch=8)).items())
    tokenizer = load_tokenizer(params.model.id, params.model.revision)
    prompt = object_prompt(params.distill.object, word)
    names, (start, end) = token_names(tokenizer, prompt), word_span(tokenizer, prompt, word)
    told = f"prompt {prompt!r}, {p.steps} steps"
    curves = len(p.t0) + len(names) + 2 + len(p.samples) * p.repeats
    done = progress(None, "auroc", total=curves, unit="curve")

    def by_draw(pick: Callable[[str], np.ndarray]) -> list[float]:
        done.update(1)
        return [auroc([i for i in items if i.seed == draw], truths, pick) for draw in draws]

    def spread(values: list[float]) -> dict[str, float]:
        return summarise_seeds([{"aucroc": value} for value in values], "")

    with store.fresh_folder(args.out) as out, done:
        for k, t0 in enumerate(p.t0):
            scores = spread(by_draw(lambda id, k=k: maps[id]["t0"][k]))
            write_row(out / "t0" / f"{t0}.json", scores, items, draws, f"{told}, N = 1")
        tokens = [by_draw(lambda id, k=k: maps[id]["tokens"][k]) for k in range(len(names))]
        mixed = by_draw(lambda id: maps[id]["tokens"][1 : names.index("<end>")].mean(0))
        after = np.mean(tokens[end:], axis=0).tolist()
        own = spread(by_draw(lambda id: maps[id]["tokens"][start:end].mean(0)))
        kinds = {"word": own, "start": spread(tokens[0]), "after": spread(after), "mixed": spread(mixed)}
        for kind, scores in kinds.items():
            write_row(out / "tokens" / f"{kind}.json", scores, items, draws, f"{told}, T_0 = {p.token_t0}, N = 1; "
                      "tokens after: mean of their AUROC; mixed: the mean map of all words of the prompt")  # fmt: skip
        frame = pd.DataFrame({"position": range(len(names)), "token": names, "auroc": np.mean(tokens, axis=1)})
        save_table(frame, out / "tokens.csv")
        for k, n in enumerate(p.samples):
            rounds = [float(np.mean(by_draw(lambda id, k=k, r=r: maps[id]["samples"][r, k])))
                      for r in range(p.repeats)]  # fmt: skip
            scores = spread(rounds)
            if len(rounds) > 1:
                scores["variance of AUCROC"] = 1e4 * float(np.var(rounds, ddof=1))
            for name in (str(n), *(["largest"] if n == max(p.samples) else [])):
                write_row(out / "samples" / f"{name}.json", scores, items, draws,
                          f"{told}, T_0 = 1; mean, spread and variance (percent squared) over {p.repeats} repeats with "
                          "other noise")  # fmt: skip
    shutil.rmtree(args.scratch, ignore_errors=True)
    print(f"{args.out}: {len(items)} pictures; AUROC of {word!r} {own['aucroc']:.3f}, of the start token "
          f"{np.mean(tokens[0]):.3f}")  # fmt: skip


if __name__ == "__main__":
    exit_cleanly(main)
