"""Stages of concept distillation that make, join and score sets, as a user runs them, on a random miniature."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill import world
from maskmill.datasets.table import Item, read_image, read_mask, read_table, save_png, table_csv
from maskmill.masks.coco import decode
from maskmill.scores.pooled import PooledAuroc
from maskmill.segmenters.pairs import Pairs
from tests.running import ROOT, assert_refused, files, run_stage, small_params

SMALL = {"concept.least": 2, "concept.count": 4, "concept.test_count": 2, "concept.test_seeds": [7, 8],
         "concept_set.count": 3, "concept_set.steps": 1, "refine_masks.guidance": 0.0,
         "concept_set.guidance": 3.0, "generation_quality.guidance": [0.0, 1.0, 3.0],
         "generation_quality.count": 4, "generation_quality.steps": 1, "attention_curves.steps": 4,
         "attention_curves.t0": [1, 2], "attention_curves.token_t0": 2, "attention_curves.samples": [1, 2],
         "attention_curves.repeats": 2}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model) -> Path:
    """A folder in which the stages run with their default paths, the pictures made; read only."""
    folder = tmp_path_factory.mktemp("a place")
    small = SMALL | {"model.id": str(tiny_model), "model.clip": str(tiny_model / "clip")}
    small_params(folder, small)
    assert run_stage("concept", cwd=folder).code == 0
    return folder


def pictures(folder: Path, sizes: list[tuple[int, int]], masks: bool = False) -> Path:
    """A user's folder with pictures of these (height, width)."""
    for k, (h, w) in enumerate(sizes):
        picture = np.random.default_rng(k).integers(0, 256, (h, w, 3)).astype(np.uint8)
        save_png(picture, folder / ("images" if masks else "") / f"p{k}.png")
        if masks:
            save_png(picture[..., 0] > 128, folder / "masks" / f"p{k}.png")
    return folder


# --- the pictures -----------------------------------------------------------------------------------------------------


def test_scenes_show_the_word_alone_and_test_is_apart_from_train(place):
    train, test = (read_table(place / "data/concepts/bird" / part) for part in ("train", "test"))
    assert [i.sample_id for i in train] == [f"s31-0000{k}" for k in range(4)]
    assert [(i.sample_id, i.seed) for i in test] == [(f"s{s}-0000{k}", str(s)) for s in (7, 8) for k in range(2)]
    for part, items in (("train", train), ("test", test)):
        for item in items:
            seed, index = map(int, item.sample_id[1:].split("-"))
            scene = world.render(100_000 * seed + index, 64, 0.0, ("bird",))
            folder = place / "data/concepts/bird" / part
            assert item.cls == "bird" and [t.cls for t in scene.things] == ["bird"]
            assert (read_image(folder / item.image) == scene.image).all()
            assert (read_mask(folder / item.mask) == scene.things[0].mask).all()


def test_a_folder_of_pictures_stays_where_it_is(place, tmp_path):
    mine = pictures(tmp_path / "mine", [(20, 30), (40, 30), (20, 30)])
    scored = pictures(tmp_path / "scored", [(16, 16)], masks=True)
    base = ("--distill.word", "dog", "--concept.source", "folder", "--concept.root", mine)
    got = run_stage("concept", *base, "--out", tmp_path / "a", cwd=place)
    assert got.code == 0, got.err
    assert "2 sizes from 30x20 to 30x40, each is squashed" in got.out and got.out.count("\n") == 2
    train, test = (read_table(tmp_path / "a" / part) for part in ("train", "test"))
    assert [i.image for i in train] == [i.image for i in test] == [str(mine / f"p{k}.png") for k in range(3)]
    assert {i.cls for i in train} == {"dog"} and not any(i.mask for i in train + test)
    got = run_stage("concept", *base, "--concept.test_root", scored, "--out", tmp_path / "b", cwd=place)
    assert got.code == 0, got.err
    (only,) = read_table(tmp_path / "b/test")
    assert (only.image, only.mask) == (str(scored / "images/p0.png"), str(scored / "masks/p0.png"))
    assert len(read_table(tmp_path / "b/train")) == 3


def test_masks_of_the_pictures_to_learn_from_are_left_out(place, tmp_path):
    mine = pictures(tmp_path / "mine", [(20, 30)] * 2, masks=True)
    got = run_stage("concept", "--concept.source", "human36m", "--concept.root", mine, "--out", tmp_path / "a",
                    cwd=place)  # fmt: skip
    assert got.code == 0, got.err
    assert [bool(i.mask) for i in read_table(tmp_path / "a/train")] == [False, False]
    assert [bool(i.mask) for i in read_table(tmp_path / "a/test")] == [True, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [("--distill.word xylophonist", "expected a word that the model's tokenizer knows, got 'xylophonist'"),
     ("--distill.word sand", "distill.word: expected one of bird, dog"),
     ("--distill.object photo", "distill.object: expected a text with {}"),
     ("--concept.least 5", "expected at least 5 pictures of 'bird' to learn from (concept.least), got 4"),
     ("--concept.seed 1", "concept.seed: expected a draw of its own"),
     ("--concept.seed 100", "concept.seed: expected a draw of its own"),
     ("--concept.test_seeds 31", "concept.test_seeds: expected a draw of its own"),
     ("--concept.source folder", "concept.root: expected the folder of the pictures"),
     ("--concept.source folder --concept.root none", "concept.root: none: expected a folder of pictures, found none"),
     ("--concept.source folder --concept.root data --concept.test_root no", "concept.test_root: no: expected a folder"),
     ("--concept.source cub --concept.root data", "concept.split: expected the file of the split"),
     ("--concept.source dogs --concept.root data", "of Dogs, found none")],
)  # fmt: skip
def test_bad_input_of_concept_is_one_line(place, tmp_path, options, said):
    out = tmp_path / "deep/out"
    assert_refused(run_stage("concept", "--out", out, *options.split(), cwd=place), said, absent=out)


def test_an_unreadable_picture_and_a_mask_of_another_size_are_named(place, tmp_path):
    mine = pictures(tmp_path / "mine", [(16, 16)] * 3)
    (mine / "p1.png").write_bytes(b"no picture")
    base = ("--concept.source", "folder", "--concept.root", mine, "--out", tmp_path / "deep/out")
    assert_refused(run_stage("concept", *base, cwd=place), "p1.png", "expected a readable image",
                   absent=tmp_path / "deep/out")  # fmt: skip
    pictures(mine, [(16, 16)] * 3)
    scored = pictures(tmp_path / "scored", [(16, 16)], masks=True)
    save_png(np.ones((8, 8), bool), scored / "masks/p0.png")
    got = run_stage("concept", *base, "--concept.test_root", scored, cwd=place)
    assert_refused(got, "masks/p0.png: expected 16x16 pixels", absent=tmp_path / "deep/out")


# --- the synthetic set ------------------------------------------------------------------------------------------------


def test_sampled_pictures_are_the_same_killed_and_resumed_and_with_more_workers(place, tmp_path, tiny_model):
    argv = ("--unet", tiny_model / "unet", "--concept_set.count", "34")  # two shards
    seen = []
    for name, env in (("one", {}), ("two", {"MASKMILL_WORKERS": "2"})):
        got = run_stage("concept_set", *argv, "--out", tmp_path / name, "--scratch", tmp_path / f"s-{name}", cwd=place,
                        env=env)  # fmt: skip
        assert got.code == 0, got.err
        assert not (tmp_path / f"s-{name}").exists()
        seen.append(files(tmp_path / name))
    killed = ("concept_set", *argv, "--out", tmp_path / "k", "--scratch", tmp_path / "s-k")
    assert run_stage(*killed, cwd=place, kill_after="store.ShardFolder.put").code == -9
    assert not (tmp_path / "k").exists() and len(list((tmp_path / "s-k").rglob("*.safetensors"))) == 1
    assert run_stage(*killed, cwd=place).code == 0
    assert seen[0] == seen[1] == files(tmp_path / "k") and len(seen[0]) == 35
    items = read_table(tmp_path / "k")
    assert {(i.cls, i.caption) for i in items} == {("bird", "a photo of a bird")}
    assert len({seen[0][i.image] for i in items}) == 34  # no two are the same picture


def test_a_folder_without_a_fine_tuned_model_is_one_line(place, tmp_path):
    (tmp_path / "unet").mkdir()
    for name in ("concept_set", "generation_quality"):
        got = run_stage(name, "--unet", tmp_path / "unet", "--out", tmp_path / "deep/out", "--scratch", tmp_path / "s",
                        cwd=place)  # fmt: skip
        assert_refused(got, "expected a U-Net's config.json and weights", absent=tmp_path / "deep/out")


@pytest.fixture
def masked(tmp_path) -> Path:
    """A set of three pictures with a masks folder that has backgrounds beside; the last mask is empty."""
    items = []
    for k in range(3):
        picture = np.random.default_rng(k).integers(0, 256, (16, 20, 3)).astype(np.uint8)
        mask = np.zeros((16, 20), bool)
        mask[4 : 8 + k, 5:9] = k < 2
        save_png(picture, tmp_path / f"set/images/x{k}.png")
        save_png(mask, tmp_path / f"found/masks/x{k}.png")
        save_png(255 - picture, tmp_path / f"found/backgrounds/x{k}.png")
        items.append(Item(f"x{k}", "bird", f"images/x{k}.png"))
    (tmp_path / "set/index.csv").write_text(table_csv(items))
    return tmp_path


def test_export_writes_what_other_tools_read(place, masked):
    argv = ("--images", masked / "set", "--masks", masked / "found", "--out", masked / "out")
    got = run_stage("export_set", *argv, cwd=place)
    assert got.code == 0, got.err
    told = json.loads((masked / "out/annotations.json").read_text())
    assert [i["file_name"] for i in told["images"]] == ["x0.png", "x1.png", "x2.png"]
    assert [a["image_id"] for a in told["annotations"]] == [1, 2]  # the empty mask has none
    for found in told["annotations"]:
        truth = read_mask(masked / f"found/masks/x{found['image_id'] - 1}.png")
        assert (decode(found["segmentation"]) == truth).all() and found["area"] == truth.sum()
    cut = np.asarray(Image.open(masked / "out/foregrounds/x0.png"))
    truth, picture = read_mask(masked / "found/masks/x0.png"), read_image(masked / "set/images/x0.png")
    assert (cut[..., 3] == 255 * truth).all() and (cut[truth][:, :3] == picture[truth]).all()
    assert (read_image(masked / "out/backgrounds/x0.png") == 255 - picture).all()
    assert [i.mask for i in read_table(masked / "out")] == [f"masks/x{k}.png" for k in range(3)]


def test_export_refuses_other_words_and_missing_backgrounds(place, masked):
    argv = ("--images", masked / "set", "--masks", masked / "found", "--out", masked / "deep/out")
    got = run_stage("export_set", *argv, "--distill.word", "dog", cwd=place)
    assert_refused(got, "expected the one class 'dog' (distill.word), got 'bird'", absent=masked / "deep/out")
    (masked / "found/backgrounds/x1.png").unlink()
    assert_refused(run_stage("export_set", *argv, cwd=place), "backgrounds/x1.png: expected an image",
                   absent=masked / "deep/out")  # fmt: skip


# --- joining ----------------------------------------------------------------------------------------------------------


def test_joined_sets_are_the_pairs_of_both(place, masked):
    own = masked / "own"
    shutil.copytree(place / "data/concepts/bird/train", own)
    argv = ("--images", "set", "own", "--masks", "found", "own", "--out", "deep/joined")
    got = run_stage("join_sets", *argv, cwd=masked)
    assert got.code == 0, got.err
    items = read_table(masked / "deep/joined")
    assert [i.sample_id for i in items] == ["x0", "x1", "x2", *(f"s31-0000{k}" for k in range(4))]
    assert [items[0].image, items[0].mask, items[3].mask] == ["../../set/images/x0.png", "../../found/masks/x0.png",
                                                             "../../own/masks/s31-00000.png"]  # fmt: skip
    assert {i.seed for i in items} == {""}
    pairs = Pairs(items, masked / "deep/joined", "own", None, 64)
    apart = [Pairs(read_table(masked / name), masked / name, masks, None, 64)
             for name, masks in (("set", str(masked / "found")), ("own", "own"))]  # fmt: skip
    expected = [part[k] for part in apart for k in range(len(part))]
    for k, (inputs, target) in enumerate(expected):
        assert (pairs[k][0]["image"] == inputs["image"]).all() and (pairs[k][1] == target).all()


def test_absolute_paths_stay_absolute(masked):
    item = Item("far", "bird", str(masked / "set/images/x0.png"), str(masked / "found/masks/x0.png"))
    (masked / "far").mkdir()
    (masked / "far/index.csv").write_text(table_csv([item]))
    assert run_stage("join_sets", "--images", "far", "--masks", "own", "--out", "j", cwd=masked).code == 0
    (found,) = read_table(masked / "j")
    assert (found.image, found.mask) == (item.image, item.mask)


def test_sets_that_do_not_fit_are_refused(masked):
    base = ("--images", "set", "--out", "deep/joined")
    absent = masked / "deep/joined"
    assert_refused(run_stage("join_sets", *base, "--masks", "found", "own", cwd=masked),
                   "--masks: expected one for each of the 1 image sets, got 2", absent=absent)  # fmt: skip
    assert_refused(run_stage("join_sets", "--images", "set", "set", "--masks", "found", "found", "--out", "deep/joined",
                             cwd=masked), "x0: expected an id that no other set has", absent=absent)  # fmt: skip
    assert_refused(run_stage("join_sets", *base, "--masks", "own", cwd=masked), "x0: expected a mask of the set's own",
                   absent=absent)  # fmt: skip
    save_png(np.ones((16, 16), bool), masked / "found/masks/x1.png")
    assert_refused(run_stage("join_sets", *base, "--masks", "found", cwd=masked),
                   "x1.png: expected the picture's 20x16 pixels, got 16x16", absent=absent)  # fmt: skip
    (masked / "found/masks/x1.png").unlink()
    assert_refused(run_stage("join_sets", *base, "--masks", "found", cwd=masked), "x1.png: expected an image",
                   absent=absent)  # fmt: skip


# --- scores -----------------------------------------------------------------------------------------------------------


def write_steps(folder: Path, items: list[Item], table: Path) -> dict[str, list[np.ndarray]]:
    """Masks folders of the five steps: the truth with ever less of it left out; soft maps that rank perfectly."""
    steps = ("preliminary_test", "masks_unet_pre", "refined_test", "masks_unet", "masks_unet_syn")
    made: dict[str, list[np.ndarray]] = {}
    for k, step in enumerate(steps):
        for item in items:
            truth = read_mask(table / item.mask)
            mask = truth & (np.arange(64)[:, None] % 6 <= k)
            save_png(mask, folder / step / "masks" / f"{item.sample_id}.png")
            save_png((100 + 100 * truth).astype(np.uint8), folder / step / "soft" / f"{item.sample_id}.png")
            made.setdefault(step, []).append(mask)
    return made


def test_steps_are_scored_by_pooled_pixels_of_each_draw(place, tmp_path):
    table = place / "data/concepts/bird/test"
    items = read_table(table)
    made = write_steps(tmp_path / "steps", items, table)
    got = run_stage("evaluate_distillation", "--masks", tmp_path / "steps", "--metrics", tmp_path / "m.json",
                    "--plots", tmp_path / "bars", "--rows", tmp_path / "rows", cwd=place)  # fmt: skip
    assert got.code == 0, got.err
    numbers = json.loads((tmp_path / "m.json").read_text())
    truths = [read_mask(table / i.mask) for i in items]
    for step, key in (("preliminary_test", "pre"), ("masks_unet_pre", "unet_pre"), ("masks_unet_syn", "unet_syn")):
        per_draw = []
        for draw in (slice(0, 2), slice(2, 4)):
            m, t = np.stack(made[step][draw]), np.stack(truths[draw])
            fg, bg = (m & t).sum() / (m | t).sum(), (~m & ~t).sum() / (~m | ~t).sum()
            per_draw.append([fg, (m == t).mean(), (fg + bg) / 2])
        for name, mean, std in zip(("iou", "acc", "miou"), np.mean(per_draw, 0), np.std(per_draw, 0, ddof=1),
                                   strict=True):  # fmt: skip
            assert numbers[f"world.distill_{key}.{name}"] == pytest.approx(mean, abs=1e-6)
            assert numbers[f"world.distill_{key}.{name}_std"] == pytest.approx(std, abs=1e-6)
    assert numbers["world.distill.auroc"] == 1 and "world.distill_supervised.iou" not in numbers
    rows = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "rows").glob("*.json")}
    assert rows.keys() == {"pre", "unet_pre", "refined", "unet", "unet_syn"}
    assert rows["unet"]["datasets"][""]["scores"]["iou"] == numbers["world.distill_unet.iou"]
    assert (rows["pre"]["datasets"][""]["images"], rows["pre"]["datasets"][""]["draws"]) == (4, ["7", "8"])
    with open(tmp_path / "bars.csv") as file:
        bars = {row["row"]: float(row["value"]) for row in csv.DictReader(file)}
    assert bars["Refined masks M"] == pytest.approx(numbers["world.distill_refined.iou"], abs=1e-6) and len(bars) == 5


def test_a_set_with_boxes_alone_is_scored_by_boxes(place, tmp_path):
    save_png(np.zeros((10, 10, 3), np.uint8), tmp_path / "set/images/a.png")
    (tmp_path / "set/index.csv").write_text(table_csv([Item("a", "bird", "images/a.png", boxes="0 0 3 9")]))
    mask = np.zeros((10, 10), bool)
    mask[:, :8] = True  # half of it is the box
    save_png(mask, tmp_path / "steps/masks_unet/masks/a.png")
    none = [part for step in ("pre", "unet_pre", "refined", "unet_syn") for part in (f"--{step}", "")]
    argv = ("--images", tmp_path / "set", "--masks", tmp_path / "steps", *none, "--metrics", tmp_path / "m.json",
            "--plots", tmp_path / "bars")  # fmt: skip
    got = run_stage("evaluate_distillation", *argv, cwd=place)
    assert got.code == 0, got.err
    assert json.loads((tmp_path / "m.json").read_text()) == {"world.distill_unet.box_iou": 0.5}
    save_png(mask[:5], tmp_path / "steps/masks_unet/masks/a.png")
    got = run_stage("evaluate_distillation", *argv[:-4], "--metrics", tmp_path / "deep/m.json", *argv[-2:], cwd=place)
    assert_refused(got, "sample a: expected a mask of the image's size (10, 10)", absent=tmp_path / "deep/m.json")


def test_pictures_without_truth_are_one_line(place, tmp_path):
    save_png(np.zeros((8, 8, 3), np.uint8), tmp_path / "set/a.png")
    (tmp_path / "set/index.csv").write_text(table_csv([Item("a", "bird", "a.png")]))
    out = tmp_path / "deep/m.json"
    got = run_stage("evaluate_distillation", "--images", tmp_path / "set", "--metrics", out, cwd=place)
    assert_refused(got, "expected a mask for every picture, or boxes for every one, got 0 with a mask", absent=out)


def test_quality_against_guidance(place, tmp_path, tiny_model):
    argv = ("--unet", tiny_model / "unet", "--out", tmp_path / "q", "--scratch", tmp_path / "s")
    got = run_stage("generation_quality", *argv, cwd=place)
    assert got.code == 0, got.err
    assert not (tmp_path / "s").exists()
    told = json.loads((tmp_path / "q/quality.json").read_text())
    assert (told["metric"], told["word"]) == ("frechet_clip", "bird")
    assert (told["guided_f"], told["guided_b"]) == (3, 0)
    assert {key for key in told if key.startswith("scale")} == {"scale 0", "scale 1", "scale 3"}
    assert all(told[f"scale {w}"]["frechet_clip"] > 0 and 0 <= told[f"scale {w}"]["found"] <= 1 for w in (0, 1, 3))
    assert "4 generated (png) against 4 real pictures (png)" in told["protocol"]["frechet_clip"]
    assert "17 words bird, dog," in told["protocol"]["found"] and "road" in told["protocol"]["found"]
    numbers, scale = json.loads((tmp_path / "q/summary.json").read_text()), {w: told[f"scale {w}"] for w in (0, 1, 3)}
    alone = told["alone"]
    assert (alone["guidance"], alone["negative"], alone["n"]) == (3.0, "", 4)
    wanted = {"found_f": scale[1]["found"], "found_b": scale[0]["found"], "found_f_guided": scale[3]["found"],
              "found_b_guided": scale[0]["found"], "found_f_cfg": alone["y_f"], "found_b_cfg": alone["y_b"],
              "frechet_clip": scale[1]["frechet_clip"]}  # fmt: skip
    assert numbers == {f"world.distill.{key}": value for key, value in wanted.items()}
    with open(tmp_path / "q/quality.csv") as file:
        table = {row["w"]: row for row in csv.DictReader(file)}
    for w in (0, 1, 3):
        row = json.loads((tmp_path / f"q/rows/{w}.json").read_text())["datasets"][""]
        assert row["scores"]["found"] == told[f"scale {w}"]["found"] and row["images"] == 4
        assert float(table[f"{w}.000000"]["frechet_clip"]) == pytest.approx(row["scores"]["frechet_clip"], abs=1e-6)
    assert read_image(tmp_path / "q/strip.png").shape[1] > 5 * 128  # three w, two concepts alone
    again = run_stage("generation_quality", *argv[:2], "--out", tmp_path / "q2", "--scratch", tmp_path / "s2",
                      cwd=place, env={"MASKMILL_WORKERS": "2"})  # fmt: skip
    assert again.code == 0 and files(tmp_path / "q") == files(tmp_path / "q2")


def test_guidance_needs_both_concepts(place, tmp_path, tiny_model):
    for values in ("0 3", "0 1 3 3", "0 1 2"):
        got = run_stage("generation_quality", "--unet", tiny_model / "unet", "--out", tmp_path / "deep/q",
                        "--generation_quality.guidance", *values.split(), cwd=place)  # fmt: skip
        said = "expected different values, among them 0, 1 and those of refine_masks and concept_set (0, 1, 3)"
        assert_refused(got, said, absent=tmp_path / "deep/q")


def test_attention_curves_are_the_scores_of_the_mean_attention(place, tmp_path, tiny_model):
    from maskmill.datasets.table import item_rng
    from maskmill.diffusion.backbone import Backbone
    from maskmill.diffusion.inpainting import repeated
    from maskmill.diffusion.mean_attention import mean_attention, phrase_weights, token_names
    from maskmill.masks.mixture import upsample

    got = run_stage("attention_curves", "--out", tmp_path / "c", "--scratch", tmp_path / "s", cwd=place)
    assert got.code == 0, got.err
    scores = {p.relative_to(tmp_path / "c").as_posix(): json.loads(p.read_text())["datasets"][""]
              for p in (tmp_path / "c").rglob("*.json")}  # fmt: skip
    names = ["t0/1", "t0/2", "samples/1", "samples/2", "samples/largest", "tokens/word", "tokens/start", "tokens/after",
             "tokens/mixed"]  # fmt: skip
    assert scores.keys() == {f"{name}.json" for name in names}
    table = place / "data/concepts/bird/test"
    items, backbone, prompt = read_table(table), Backbone(str(tiny_model)), "a photo of a bird"
    z = backbone.encode_images(np.stack([read_image(table / i.image) for i in items]))
    seeds = [int(item_rng(0, i.sample_id).integers(2**31)) for i in items]
    maps = mean_attention(backbone, z, repeated(backbone.encode_text([prompt], 64), 4),
                          phrase_weights(backbone.tokenizer, prompt, ["bird"]), seeds, steps=4, t0=2)  # fmt: skip
    per_draw = []
    for draw in ("7", "8"):
        curve = PooledAuroc()
        for item, own in zip(items, maps[:, 0], strict=True):
            if item.seed == draw:
                curve.update(upsample(own, (64, 64)), read_mask(table / item.mask))
        per_draw.append(curve.result()["auroc_pooled"])
    assert scores["t0/2.json"]["scores"]["aucroc"] == pytest.approx(np.mean(per_draw), abs=1e-3)
    assert scores["tokens/word.json"]["scores"] == scores["t0/2.json"]["scores"]
    assert scores["samples/largest.json"] == scores["samples/2.json"]
    assert {"aucroc", "aucroc_std", "variance of AUCROC"} == set(scores["samples/1.json"]["scores"])
    with open(tmp_path / "c/tokens.csv") as file:
        tokens = list(csv.DictReader(file))
    assert [row["token"] for row in tokens] == token_names(backbone.tokenizer, prompt)
    word = next(row for row in tokens if row["token"] == "bird")
    assert float(word["auroc"]) == pytest.approx(scores["tokens/word.json"]["scores"]["aucroc"], abs=1e-6)


def test_more_steps_than_the_schedule_has_are_refused(place, tmp_path):
    got = run_stage("attention_curves", "--attention_curves.t0", "1", "5", "--out", tmp_path / "deep/c", cwd=place)
    assert_refused(got, "attention_curves.t0: expected at most 4", absent=tmp_path / "deep/c")


def test_the_steps_have_the_names_of_the_papers_table():
    text = (ROOT / "tables/distillation-tab2/published.yaml").read_text(encoding="utf-8")
    names = re.findall(r'method: "(.*)"', text)
    script = (ROOT / "stages/evaluate_distillation.py").read_text(encoding="utf-8")
    assert len(names) == 5 and all(f'"{name}"' in script for name in names)
