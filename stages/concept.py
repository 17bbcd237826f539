"""Collect the pictures of one word for concept distillation: every picture shows the object, and nothing else is known.

Inputs:   params.yaml: distill.word and concept: scenes of the miniature's world, a folder of pictures, or a public set
          (CUB, Stanford Dogs, Stanford Cars, Human3.6M) in the layout of maskmill.datasets.single_class
Outputs:  <out>/train: an image set to learn from; <out>/test: one to score, with masks or boxes where there are any.
          Scenes are drawn here, their masks in train are for the supervised comparison alone; pictures of other sources
          stay where they are
Command:  python stages/concept.py --out data/concepts/bird
          python stages/concept.py --distill.word cat --concept.source folder --concept.root pictures --out concepts/cat
Time:     about 5 seconds for the 580 scenes of the miniature; at most 8 ms for each other picture
Expect:   any fault of a picture, and a word that the model does not know, is found here and not hours later
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from maskmill import world
from maskmill.cli import die_with_parent, progress, stage_arguments, worker_count, write_atomically
from maskmill.datasets.benchmarks import COUNTS, fault, read_cub, refuse_faults
from maskmill.datasets.single_class import read_pictures, read_single_class
from maskmill.datasets.table import Item, image_size, save_png, table_csv
from maskmill.diffusion.concepts import object_prompt
from maskmill.diffusion.mean_attention import phrase_weights
from maskmill.errors import UserError, exit_cleanly
from maskmill.pretraining.corpus import TRAIN_SEEDS
from maskmill.prompts import check_context, load_tokenizer
from maskmill.store import fresh_folder

SEED_STRIDE = 100_000  # scenes of one draw


def check_words(word: str, template: str, background: str, tokenizer) -> None:
    """Refuse a word that the tokenizer was never taught, and prompts that the model would truncate."""
    prompt = object_prompt(template, word)
    try:
        check_context(tokenizer, background)
        check_context(tokenizer, prompt)
        phrase_weights(tokenizer, prompt, [word])
    except UserError as error:
        raise UserError(f"distill.word {word!r}: {error}") from None


# --- the miniature's world --------------------------------------------------------------------------------------------


def refuse_used_draws(p, seeds: tuple[int, ...], scenes: int) -> None:
    """Scenes to learn from and to score are apart from each other, from the held-out ones of stage world, and from
    those that the miniature was trained on."""
    draws = {p.seed: p.count, **dict.fromkeys(p.test_seeds, p.test_count)}
    for name, several in (("concept.seed", (p.seed,)), ("concept.test_seeds", p.test_seeds)):
        for seed in several:
            first = seed * SEED_STRIDE
            used = seed in seeds or (name == "concept.test_seeds" and seed == p.seed)
            if used or (first < TRAIN_SEEDS + scenes and TRAIN_SEEDS < first + draws[seed]):
                raise UserError(f"{name}: expected a draw of its own, apart from world.seeds and all training, got "
                                f"{seed}")  # fmt: skip
    if max(draws.values()) > SEED_STRIDE:
        raise UserError(f"concept: expected at most {SEED_STRIDE} scenes in a draw, got {max(draws.values())}")


def draw(word: str, seed: int, index: int, size: int, folder: Path) -> Item:
    """Render one scene with the one object, write its files."""
    scene = world.render(seed * SEED_STRIDE + index, size, 0.0, (word,))
    name = f"s{seed}-{index:05d}"
    save_png(scene.image, folder / "images" / f"{name}.png")
    save_png(scene.things[0].mask, folder / "masks" / f"{name}.png")
    return Item(name, word, f"images/{name}.png", f"masks/{name}.png",
                caption=f"a photo of {world.article(word)} on {scene.lower}", seed=str(seed))  # fmt: skip


def write_scenes(word: str, p, size: int, folder: Path) -> dict[str, list[Item]]:
    """Both sets of scenes -> their rows."""
    if word not in world.CLASSES:
        known = ", ".join(world.CLASSES)
        raise UserError(f"distill.word: expected one of {known} for concept.source world, got {word!r}")
    jobs = {"train": [(p.seed, i) for i in range(p.count)],
            "test": [(seed, i) for seed in p.test_seeds for i in range(p.test_count)]}  # fmt: skip
    with progress(None, "concept", total=sum(map(len, jobs.values())), unit="scene") as bar:

        def scene(part: str, seed: int, index: int) -> Item:
            bar.update(1)
            return draw(word, seed, index, size, folder / part)

        return {part: [scene(part, *job) for job in todo] for part, todo in jobs.items()}


# --- pictures ---------------------------------------------------------------------------------------------------------


def read_sets(word: str, p) -> dict[str, list[Item]]:
    """The pictures of a folder or of a public set: those to learn from, without any truth, and those to score."""
    root = Path(p.root).expanduser()
    if not p.root:
        raise UserError(f"concept.root: expected the folder of the pictures for concept.source {p.source}, got ''")
    if not root.is_dir():
        raise UserError(f"concept.root: {root}: expected a folder of pictures, found none")
    if p.source in ("dogs", "cars"):
        found = {part: read_single_class(p.source, root, part, word=word, partial=p.partial).items
                 for part in ("train", "test")}  # fmt: skip
    elif p.source == "cub":
        if not p.split:
            raise UserError("concept.split: expected the file of the split with 1,000 test images, got ''")
        train = read_single_class("cub", root, "train", word=word, split=p.split, partial=p.partial).items
        test, _ = read_cub(root.absolute(), Path(p.split))
        if len(test) != COUNTS["CUB"] and not p.partial:
            raise UserError(f"{root}: expected {COUNTS['CUB']:,} test images of CUB, got {len(test):,}; "
                            "concept.partial admits another number")  # fmt: skip
        found = {"train": train, "test": test}
    else:
        key = "pictures" if p.source == "folder" else p.source
        place = Path(p.test_root).expanduser() if p.test_root else root
        if not place.is_dir():
            raise UserError(f"concept.test_root: {place}: expected a folder of pictures, found none")
        test = read_pictures(place.absolute(), word, "test" if p.test_root else "pictures", truths=True)
        if not test:
            raise UserError(f"{place}: expected pictures *.jpg or *.png, found none")
        found = {"train": read_single_class(key, root, word=word).items, "test": test}
    found["train"] = [replace(item, mask="", boxes="") for item in found["train"]]
    return {part: [replace(item, cls=word) for item in items] for part, items in found.items()}


def check_pictures(name: str, items: list[Item], look: Callable[[Item], str]) -> str:
    """Decode every picture and mask once; all faults are told at once. -> a note where the sizes differ."""
    with ThreadPoolExecutor(worker_count()) as pool:  # threads do: decoding does not hold Python's lock
        refuse_faults(name, progress(pool.map(look, items), name, total=len(items), unit="image"))
    sizes = sorted({image_size(item.image) for item in items})
    if len(sizes) == 1:
        return ""
    (h, w), (height, width) = sizes[0], sizes[-1]
    return f"{len(sizes)} sizes from {w}x{h} to {width}x{height}, each is squashed to the model's square and back"


def main() -> None:
    die_with_parent()
    args, params = stage_arguments(
        __doc__, ("model", "world", "pretrain", "distill", "concept"), {"out": "data/concepts/bird"}
    )
    p, d, out = params.concept, params.distill, Path(args.out)
    word = d.word
    check_words(word, d.object, d.background, load_tokenizer(params.model.id, params.model.revision))
    notes: dict[str, str] = {}
    with fresh_folder(out) as folder:
        if p.source == "world":
            refuse_used_draws(p, params.world.seeds, params.pretrain.scenes)
            found = write_scenes(word, p, params.world.size, folder)
        else:
            found = read_sets(word, p)
            notes = {part: check_pictures(f"{p.source}, {part}", items, fault) for part, items in found.items()}
        if len(found["train"]) < p.least:
            raise UserError(f"concept: expected at least {p.least} pictures of {word!r} to learn from (concept.least), "
                            f"got {len(found['train'])}")  # fmt: skip
        for part, items in found.items():
            write_atomically(folder / part / "index.csv", table_csv(items))
    for part, items in found.items():
        note = notes.get(part, "")
        print(f"{out}/{part}: {len(items):,} pictures of {word!r}{'; ' * bool(note)}{note}")


if __name__ == "__main__":
    exit_cleanly(main)
