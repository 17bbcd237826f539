"""Generate the support sets of classes: the pictures that OVDiff's prototypes are made from (OVDiff 3.2).

Inputs:   one class (--class), or a text file with a class per line (--classes-file); the diffusion model
Outputs:  <out>/<class>/prompts.csv, <out>/<class>/set (images/, index.csv), <out>/<class>/records (attention)
Command:  python stages/support.py --classes-file classes.txt --out data/support
Time:     about 8 seconds a class of the miniature (32 pictures) on 2 cores, 5 of them for loading libraries, once
Expect:   pictures that show their class; a class's files are the same whatever other classes there are. Classes that
          are finished stay as they are, and a killed run goes on at the last finished shard
"""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from maskmill import prompts, store, workers
from maskmill.cli import die_with_parent, progress, runtime, stage_arguments
from maskmill.diffusion import passes
from maskmill.errors import UserError, exit_cleanly
from maskmill.params import Model, SupportSets
from maskmill.prompts import Row
from maskmill.segmenters.support import class_folder, negative_prompt, support_rows, wanted
from maskmill.synthesis import Synthesiser, save_pictures, set_table

SHARD = 8
SHAPE = passes.RecordShape(bins=4, cells=1)  # nothing but attention to the word is read later
CODE = ("maskmill.diffusion.passes", "maskmill.diffusion.capture", "maskmill.diffusion.sampling",
        "maskmill.diffusion.backbone", "maskmill.segmenters.support")  # fmt: skip


class Work:
    """One worker: the model, and what it does with a shard. Images are there before the shard that vouches for them."""

    def __init__(self, model: Model, settings: SupportSets, batch: int, device: str) -> None:
        self.synthesise = Synthesiser(model, settings, negative_prompt(settings), SHAPE, batch, device)

    def __call__(self, job: tuple[str, store.ShardFolder, int, list[Row]]) -> None:
        _, folder, shard, rows = job
        made = self.synthesise(rows)
        save_pictures(made, folder.folder / "images")
        folder.describe(self.synthesise.meta)
        folder.put(shard, list(made), {name: own.record for name, own in made.items()})


def finished(out: Path, stamp: str) -> bool:
    """Whether a class's folder holds this very result."""
    try:
        return store.Store(out / "records").fingerprint == stamp and (out / "set/index.csv").is_file()
    except UserError:
        return False


def assemble(out: Path, rows: list[Row], writer: store.ShardWriter) -> None:
    """Make a class's folder of its finished shards; the records come last and vouch for the rest."""
    shutil.rmtree(out, ignore_errors=True)
    with store.fresh_folder(out / "set") as aside:
        shutil.copytree(writer.folder / "images", aside / "images")
        store.write_atomically(aside / "index.csv", set_table(rows).to_csv(index=False, lineterminator="\n"))
    store.write_atomically(out / "prompts.csv", prompts.to_csv(rows))
    writer.assemble()


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("seed", "model", "support"),
        {"class": None, "classes-file": None, "out": "data/support", "scratch": "scratch/support"},
    )  # fmt: skip
    classes = wanted(vars(args)["class"], args.classes_file)
    model, settings, run = params.model, params.support, runtime(batch=8)
    tokenizer = prompts.load_tokenizer(model.id, model.revision)
    try:
        prompts.check_context(tokenizer, negative_prompt(settings))
    except UserError as error:
        raise UserError(f"support.negative: {error}") from None
    rows = {name: support_rows(name, settings, params.seed, tokenizer) for name in classes}
    made_from = (asdict(settings), asdict(model), store.model_stamp(model.id, model.revision), asdict(SHAPE),
                 store.code_hashes(*CODE))  # fmt: skip
    stamps = {name: store.fingerprint(*made_from, [asdict(r) for r in own]) for name, own in rows.items()}
    outs = {name: Path(args.out) / class_folder(name) for name in classes}
    todo = [name for name in classes if not finished(outs[name], stamps[name])]
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(store.ShardWriter(
                outs[name] / "records", [r.sample_id for r in rows[name]], stamps[name], {"class": name}, SHARD,
                Path(args.scratch) / class_folder(name),
            )) for name in todo
        }  # fmt: skip
        todo = [name for name in todo if not finished(outs[name], stamps[name])]  # another process may have been here
        jobs = []
        for name in todo:
            by_id = {r.sample_id: r for r in rows[name]}
            jobs += [(name, writers[name].shard_folder, shard, [by_id[i] for i in ids])
                     for shard, ids in writers[name].missing()]  # fmt: skip
        left = Counter(job[0] for job in jobs)
        for name in todo:
            if not left[name]:
                assemble(outs[name], rows[name], writers[name])
        with progress(None, "support", total=sum(len(job[3]) for job in jobs), unit="image") as bar:

            def done(job: tuple, _: None) -> None:
                name = job[0]
                bar.update(len(job[3]))
                left[name] -= 1
                if not left[name]:
                    assemble(outs[name], rows[name], writers[name])

            workers.run(Work, (model, settings, run.batch), jobs, workers.devices(run.device, run.workers), done)
    print(f"{args.out}: support sets of {len(classes)} classes, {settings.count} pictures each; "
          f"{len(classes) - len(todo)} were finished already")  # fmt: skip


if __name__ == "__main__":
    exit_cleanly(main)
