"""Stages mean_attention, distill_inpaint, refine_masks, draw_refinement as a user runs them, on a random miniature."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskmill import store
from maskmill.datasets.table import Item, item_rng, read_image, read_labels, read_mask, read_table, save_png, table_csv
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.inpainting import paint_over, repeated, use_unet
from maskmill.diffusion.mean_attention import mean_attention, phrase_weights, token_names
from maskmill.masks.cells import grow, to_cells
from maskmill.masks.mixture import contrast, difference, refined_mask, split, upsample
from stages.distill_inpaint import due
from tests.running import assert_refused, files, run_stage, small_params

SMALL = {"mean_attention.steps": 4, "mean_attention.t0": 2, "distill_inpaint.steps": 6, "distill_inpaint.batch": 2,
         "distill_inpaint.log_every": 2, "refine_masks.steps": 2, "evaluate.grid_rows": 3}  # fmt: skip
SAVED = {"training.CHECKPOINT_SECONDS": -1.0}  # a checkpoint after every step
TRAIN, PRELIMINARY, UNET, REFINED = ("data/concepts/bird/train", "data/distill/bird/preliminary",
                                     "data/distill/bird/unet", "data/distill/bird/refined")  # fmt: skip
PROMPT = "a photo of a bird"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bare(tmp_path_factory, tiny_model, world_set) -> Path:
    """A folder in which the stages run with their default paths; read only."""
    folder = tmp_path_factory.mktemp("a place")
    small_params(folder, SMALL)
    (folder / "data/concepts/bird").mkdir(parents=True)
    (folder / "data/mini").symlink_to(tiny_model)
    (folder / TRAIN).symlink_to(world_set)
    return folder


@pytest.fixture(scope="module")
def attended(bare, tmp_path_factory) -> Path:
    """``bare`` after stage mean_attention; read only."""
    folder = Path(shutil.copytree(bare, tmp_path_factory.mktemp("attended") / "place", symlinks=True))
    got = run_stage("mean_attention", cwd=folder)
    assert got.code == 0, got.err
    assert got.out.startswith(f"{PRELIMINARY}: 8 preliminary masks of 'bird', contrast ")
    return folder


@pytest.fixture(scope="module")
def tuned(attended, tmp_path_factory) -> Path:
    """``attended`` after an undisturbed run of distill_inpaint; read only."""
    folder = Path(shutil.copytree(attended, tmp_path_factory.mktemp("tuned") / "place", symlinks=True))
    got = run_stage("distill_inpaint", cwd=folder)
    assert got.code == 0, got.err
    assert got.out.startswith(f"{UNET}: 'bird' and its background from 8 pictures, 6 steps, loss ")
    return folder


@pytest.fixture(scope="module")
def done(tuned, tmp_path_factory) -> Path:
    """``tuned`` after stage refine_masks; read only."""
    folder = Path(shutil.copytree(tuned, tmp_path_factory.mktemp("done") / "place", symlinks=True))
    got = run_stage("refine_masks", cwd=folder)
    assert got.code == 0, got.err
    assert got.out.startswith(f"{REFINED}: 8 refined masks, ")
    return folder


@pytest.fixture
def model(tiny_model) -> Backbone:
    return Backbone(str(tiny_model))


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "place", symlinks=True))


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "index.csv", newline="") as file:
        return list(csv.DictReader(file))


def seed_of(item: Item) -> int:
    return int(item_rng(0, item.sample_id).integers(2**31))


def write_many(world_set: Path, folder: Path, count: int) -> list[Item]:
    """An image set of more than one shard: the same few scenes under many ids."""
    items = read_table(world_set)
    rows = [replace(items[k % 8], sample_id=f"{k:03d}", image=str(world_set / items[k % 8].image), mask="", labels="")
            for k in range(count)]  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "index.csv").write_text(table_csv(rows))
    return rows


# --- mean attention ---------------------------------------------------------------------------------------------------


def test_preliminary_masks_are_the_mixture_of_the_mean_attention(attended, model, world_set):
    items, out = read_table(world_set), attended / PRELIMINARY
    z = model.encode_images(np.stack([read_image(world_set / item.image) for item in items]))
    weights = phrase_weights(model.tokenizer, PROMPT, ["bird"])
    maps = mean_attention(model, z, repeated(model.encode_text([PROMPT], 64), 8), weights, [*map(seed_of, items)],
                          steps=4, t0=2)[:, 0]  # fmt: skip
    rows = rows_of(out)
    assert list(rows[0]) == ["sample_id", "area", "threshold", "low", "high", "contrast", "flags"]
    assert [row["sample_id"] for row in rows] == [item.sample_id for item in items] and len(files(out)) == 2 * 8 + 1
    for row, item, own in zip(rows, items, maps, strict=True):
        found, scaled = split(own), (own - own.min()) / np.ptp(own)
        mask, soft = read_mask(out / f"masks/{item.sample_id}.png"), read_labels(out / f"soft/{item.sample_id}.png")
        assert (mask == np.kron(found.mask, np.ones((4, 4), bool))).all() and 0 < mask.mean() < 1
        assert np.abs(soft / 255 - np.kron(scaled, np.ones((4, 4)))).max() <= 0.5 / 255 + 1e-6
        numbers = [found.threshold, *found.means, contrast(own, 24), mask.mean()]
        told = [float(row[key]) for key in ("threshold", "low", "high", "contrast", "area")]
        assert told == pytest.approx(numbers, rel=1e-4)


def test_the_word_and_noise_decide_and_the_sets_classes_do_not(attended, tmp_path):
    for option in ("--distill.word fish", "--seed 1", "--mean_attention.t0 3", "--mean_attention.samples 2",
                   "--distill.object", ):  # fmt: skip
        words = option.split() if option != "--distill.object" else [option, "a picture of a {}"]
        got = run_stage("mean_attention", *words, "--out", tmp_path / "out", "--metrics", tmp_path / "m", cwd=attended)
        assert got.code == 0, got.err
        a, b = (files(folder) for folder in (tmp_path / "out", attended / PRELIMINARY))
        assert a.keys() == b.keys() and a != b, option


def test_a_word_that_is_not_in_the_pictures_is_flagged_in_one_line_and_in_the_table(attended, tmp_path):
    for least, flagged in ((99.0, 8), (0.0, 0)):
        got = run_stage("mean_attention", "--mean_attention.min_contrast", least, "--out", tmp_path / "out",
                        "--metrics", tmp_path / "m.json", cwd=attended)  # fmt: skip
        assert got.code == 0
        assert sum("low_contrast" in row["flags"] for row in rows_of(tmp_path / "out")) == flagged
        told = json.loads((tmp_path / "m.json").read_text())
        assert (told["count"], told["low_contrast"], told["word_found"]) == (8, flagged, not flagged)
        if flagged:
            assert got.err.count("\n") == 1 and got.err.startswith(f"warning: {TRAIN}: 'bird' is probably not in these")
            assert "expected at least 99 (mean_attention.min_contrast)" in got.err
        else:
            assert got.err == ""
        for part in ("masks", "soft"):  # nothing is masked another way
            assert files(tmp_path / "out" / part) == files(attended / PRELIMINARY / part)
    counts = json.loads((attended / "metrics/distill/mean_attention.json").read_text())
    rows = rows_of(attended / PRELIMINARY)
    assert counts["median_contrast"] == pytest.approx(np.median([float(r["contrast"]) for r in rows]), abs=1e-4)
    assert all(counts[f] == sum(f in r["flags"].split() for r in rows) for f in ("constant", "one_mode", "empty"))


def test_every_token_of_a_prompt_has_its_map(attended, tmp_path, model):
    options = ["--distill.object", "a {} with a fish", "--mean_attention.words", "fish", "--mean_attention.token_maps"]
    got = run_stage("mean_attention", *options, "--out", tmp_path / "out", "--metrics", tmp_path / "m", cwd=attended)
    assert got.code == 0, got.err
    item = read_table(attended / TRAIN)[2]
    names = token_names(model.tokenizer, "a bird with a fish")
    with open(tmp_path / "out/tokens.csv", newline="") as file:
        told = [row for row in csv.DictReader(file) if row["sample_id"] == item.sample_id]
    assert [row["token"] for row in told] == names and len(told) == 24
    maps = [read_labels(tmp_path / f"out/tokens/{item.sample_id}/{k:02d}.png") / 255 for k in range(24)]
    values = [float(r["low"]) + m * (float(r["high"]) - float(r["low"])) for r, m in zip(told, maps, strict=True)]
    assert np.sum(values, 0) == pytest.approx(1.0, abs=2e-3)  # a pixel's attention is shared out among the tokens
    both = np.mean([values[names.index(word)] for word in ("bird", "fish")], 0)
    soft = read_labels(tmp_path / f"out/soft/{item.sample_id}.png") / 255
    assert np.abs(soft - (both - both.min()) / np.ptp(both)).max() < 3 / 255


def test_pictures_of_other_sizes_are_squashed_and_told(bare, tmp_path, world_set):
    place = copy_of(bare, tmp_path)
    items = read_table(world_set)[:3]
    for k, (item, size) in enumerate(zip(items, ((64, 64), (50, 37), (101, 90)), strict=True)):
        target = place / f"own/images/{k}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(world_set / item.image).resize(size).save(target)
    rows = [Item(f"pictures/{k}", "", f"images/{k}.png") for k in range(3)]
    (place / "own/index.csv").write_text(table_csv(rows))
    got = run_stage("mean_attention", "--images", "own", cwd=place)
    assert got.code == 0 and got.out.endswith("; 2 pictures of other sizes were squashed to 64x64\n"), got.err
    got = run_stage("distill_inpaint", "--images", "own", cwd=place)
    assert got.code == 0, got.err
    got = run_stage("refine_masks", "--images", "own", cwd=place)
    assert got.code == 0, got.err
    for k, shape in enumerate(((64, 64), (37, 50), (90, 101))):
        kinds = [f"{folder}/{kind}" for folder, kinds in ((PRELIMINARY, ("masks", "soft")),
                 (REFINED, ("masks", "soft", "difference", "backgrounds"))) for kind in kinds]  # fmt: skip
        assert {read_image(place / kind / f"pictures/{k}.png").shape[:2] for kind in kinds} == {shape}


@pytest.mark.parametrize("stage", ["mean_attention", "refine_masks"])
def test_killed_resumed_and_in_two_workers_the_files_are_the_same(tuned, tmp_path, world_set, stage):
    place = copy_of(tuned, tmp_path)
    items = write_many(world_set, place / "many", 35)
    options = ["--images", "many"]
    if stage == "refine_masks":
        for k, item in enumerate(items):
            source = sorted((place / PRELIMINARY / "masks").iterdir())[k % 8]
            (place / "made/masks").mkdir(parents=True, exist_ok=True)
            shutil.copy(source, place / f"made/masks/{item.sample_id}.png")
        options += ["--masks", "made"]
    got = run_stage(stage, *options, "--out", "whole", "--scratch", "other", cwd=place, env={"MASKMILL_WORKERS": "2"})
    assert got.code == 0, got.err
    got = run_stage(stage, *options, "--out", "out", cwd=place, kill_after="store.ShardFolder.put")
    assert got.code == -signal.SIGKILL and not (place / "out").exists()
    left = list((place / f"scratch/{stage}").rglob("*.safetensors"))
    assert len(left) == 1
    got = run_stage(stage, *options, "--out", "out", cwd=place)
    assert got.code == 0, got.err
    assert files(place / "out") == files(place / "whole") and not (place / f"scratch/{stage}").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--images", "none"], "none/index.csv: "), (["--images", "other"], "other/images/none.png: expected an image"),
     (["--images", "broken"], "broken/i.png: expected a readable image"),
     (["--distill.word", "zebra"], "distill.word 'zebra': expected a word that the model's tokenizer knows, got"),
     (["--distill.word", "鳥"], "distill.word '鳥': expected a word that the model's tokenizer knows, got"),
     (["--mean_attention.words", "wing"], "distill.word 'bird': expected the class word 'wing' in the prompt"),
     (["--distill.object", "a bird"], "distill.object: expected a text with {}"),
     (["--distill.object", "a {} " + 30 * "and a dog "], "expected a prompt of at most 24 tokens"),
     (["--mean_attention.t0", "5"], "mean attention: expected 1 to 4 of 4 steps, got 5"),
     (["--generate.size", "66"], "generate.size: expected a multiple of 4")],
)  # fmt: skip
def test_mean_attention_refuses_bad_input_with_one_line(bare, tmp_path, options, said):
    place = copy_of(bare, tmp_path)
    for name, image in (("other", "images/none.png"), ("broken", "i.png")):
        (place / name).mkdir()
        (place / name / "index.csv").write_text(f"sample_id,class,image\nx,bird,{image}\n")
    (place / "broken/i.png").write_bytes(b"no picture")
    got = run_stage("mean_attention", "--out", "deep/out", *options, cwd=place)
    assert_refused(got, said, absent=place / "deep/out")


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def weights(folder: Path) -> bytes:
    return (folder / "diffusion_pytorch_model.safetensors").read_bytes()


def test_it_writes_a_unet_curves_and_pictures_and_touches_no_other_part(tuned, tiny_model, model):
    assert sorted(files(tuned / UNET)) == ["config.json", "diffusion_pytorch_model.safetensors"]
    with open(tuned / "metrics/distill/loss.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6"] and all(0 < float(row["loss"]) < 10 for row in rows)
    pictures = Image.open(tuned / "metrics/distill/samples.png")
    assert pictures.width > 9 * 128 and pictures.height > 5 * 128  # itself, before, and after steps 2, 4 and 6
    assert (tuned / "metrics/distill/loss.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tuned / "scratch/distill_inpaint").exists()
    parts = {name: {k: v.clone() for k, v in getattr(model.pipe, name).state_dict().items()}
             for name in ("text_encoder", "vae", "unet")}  # fmt: skip
    use_unet(model, tuned / UNET)
    for name, before in parts.items():
        after = getattr(model.pipe, name).state_dict()
        same = [torch.equal(before[key], after[key]) for key in before]
        assert all(same) if name != "unet" else np.mean(same) < 0.1, name


def test_the_shipped_model_is_read_only(attended, tmp_path, tiny_model):
    """Bit for bit: what the text encoder and the autoencoder are on disk, before and after."""
    place, before = copy_of(attended, tmp_path), store.hash_tree(tiny_model)
    got = run_stage("distill_inpaint", "--distill_inpaint.steps", 1, "--distill_inpaint.log_every", 1, cwd=place)
    assert got.code == 0 and store.hash_tree(tiny_model) == before, got.err


@pytest.mark.parametrize("moment", ["training._save 3", "training._report 2", "training.fit"])
def test_fine_tuning_killed_and_resumed_writes_the_bytes_of_an_undisturbed_run(attended, tuned, tmp_path, moment):
    place = copy_of(attended, tmp_path)
    got = run_stage("distill_inpaint", cwd=place, kill_after=moment, settings=SAVED)
    assert got.code == -signal.SIGKILL and not (place / UNET).exists()
    got = run_stage("distill_inpaint", cwd=place, kill_after="training._step 6")  # ends here, were it not resumed
    assert got.code == 0, got.err
    for folder in (UNET, "metrics/distill"):
        assert files(place / folder) == files(tuned / folder)
    assert not (place / "scratch/distill_inpaint").exists()


def test_parameters_and_masks_reach_the_training(attended, tuned, tmp_path):
    place, metrics = copy_of(attended, tmp_path), ["--metrics", "m", "--out", "other"]
    seen = [weights(tuned / UNET)]
    for option in ("--distill_inpaint.grow 0", "--distill_inpaint.ema 0", "--distill_inpaint.lr 0.01", "--seed 3",
                   "--distill.background nothing", "--distill_inpaint.decay_share 0"):  # fmt: skip
        got = run_stage("distill_inpaint", *option.split(), *metrics, cwd=place)
        assert got.code == 0, got.err
        seen.append(weights(place / "other"))
    for mask in (place / PRELIMINARY / "masks").iterdir():
        save_png(np.zeros((64, 64), bool), mask)
    assert run_stage("distill_inpaint", *metrics, cwd=place).code == 0
    seen.append(weights(place / "other"))
    assert len(set(seen)) == len(seen)


def test_on_two_cores_fine_tuning_leaves_the_same_files(attended, tmp_path):
    place = copy_of(attended, tmp_path)
    halves = ["--distill_inpaint.accumulate", "2", "--distill_inpaint.steps", "3", "--distill_inpaint.log_every", "1"]
    for cores in "12":
        got = run_stage("distill_inpaint", *halves, "--out", f"unet{cores}", "--metrics", f"metrics{cores}", cwd=place,
                        env={"MASKMILL_WORKERS": cores})  # fmt: skip
        assert got.code == 0, got.err
    assert files(place / "unet1") == files(place / "unet2")
    assert files(place / "metrics1") == files(place / "metrics2")
    broken = run_stage("distill_inpaint", *halves[:4], "--distill_inpaint.lr", "1e30", "--out", "deep/out", cwd=place,
                       env={"MASKMILL_WORKERS": "2"})  # fmt: skip
    assert_refused(broken, "the loss is ", absent=place / "deep/out")


def test_pictures_are_drawn_about_every_quarter_and_at_the_end():
    assert [s for s in range(100, 2001, 100) if due(s, 100, 2000)] == [500, 1000, 1500, 2000]
    assert [s for s in (400, 800, 1000) if due(s, 400, 1000)] == [400, 800, 1000]
    assert [s for s in (3,) if due(s, 50, 3)] == [3]


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--images", "none"], "none/index.csv: "), (["--masks", "none"], "none/masks/s1-00000.png: expected a readable"),
     (["--distill_inpaint.batch", "9"], "index.csv: expected at least 9 pictures, a batch (distill_inpaint.batch)"),
     (["--distill_inpaint.accumulate", "3"], "batch 2: expected equal parts for equal processes, got 3 parts"),
     (["--distill_inpaint.t_low", "850"], "t_low: expected a value below distill_inpaint.t_high, which is 850"),
     (["--distill_inpaint.t_high", "1001"], "distill_inpaint.t_high: expected"),
     (["--distill_inpaint.lr", "1e30"], "of 6: the loss is "), (["--masks", "small"], "expected a mask of the p"),
     (["--distill.background", 30 * "no "], "expected a prompt of at most 24 tokens"),
     (["--generate.size", "66"], "generate.size: expected a multiple of 4")],
)  # fmt: skip
def test_distill_inpaint_refuses_bad_input_with_one_line(attended, tmp_path, options, said):
    place = copy_of(attended, tmp_path)
    for item in read_table(place / TRAIN):
        save_png(np.ones((8, 8), bool), place / f"small/masks/{item.sample_id}.png")
    got = run_stage("distill_inpaint", "--out", "deep/out", "--metrics", "deep/metrics", *options, cwd=place)
    assert_refused(got, said, absent=place / "deep/out")
    assert not (place / "deep/metrics").exists()


# --- refined masks ----------------------------------------------------------------------------------------------------


def test_refined_masks_are_the_product_with_the_mixture_of_the_difference(done, model, world_set):
    items, out = read_table(world_set), done / REFINED
    images = np.stack([read_image(world_set / item.image) for item in items])
    cells = [to_cells(read_mask(done / PRELIMINARY / f"masks/{i.sample_id}.png"), (16, 16)) for i in items]
    holes = np.stack([grow(mask, 1) for mask in cells])
    use_unet(model, done / UNET)
    y_f, y_b = (model.encode_text([p], 64) for p in (PROMPT, "a photo of a background"))
    z = paint_over(model, model.encode_images(images), holes, y_f, y_b, [*map(seed_of, items)], w=-1.0, steps=2)
    rows = rows_of(out)
    assert [row["sample_id"] for row in rows] == [item.sample_id for item in items] and len(files(out)) == 4 * 8 + 1
    for row, item, image, background, hole in zip(rows, items, images, model.decode(z), holes, strict=True):
        name, found = f"{item.sample_id}.png", refined_mask(image, background, hole)
        mask, painted = read_mask(out / "masks" / name), read_image(out / "backgrounds" / name)
        assert (painted == background).all() and (mask == found.mask).all()
        assert not (mask & ~upsample(hole, (64, 64))).any()
        change = difference(image, background)
        assert np.abs(read_labels(out / "difference" / name) / 255 - change).max() <= 0.5 / 255 + 1e-6
        inside = np.where(upsample(hole, (64, 64)), change, 0)
        assert np.abs(read_labels(out / "soft" / name) / 255 - inside / inside.max()).max() <= 0.5 / 255 + 1e-6
        assert float(row["area"]) == pytest.approx(mask.mean(), abs=1e-6)
        assert float(row["painted"]) == pytest.approx(hole.mean(), abs=1e-6)
        assert float(row["threshold"]) == pytest.approx(found.split.threshold, rel=1e-4)
        assert row["flags"] == " ".join(found.split.flags)


def test_options_and_the_unet_reach_the_painting(done, tmp_path):
    for option in ("--refine_masks.guidance 0", "--refine_masks.steps 3", "--refine_masks.grow 0", "--seed 2",
                   "--distill.background nothing", "--unet="):  # fmt: skip
        got = run_stage("refine_masks", *option.split(), "--out", tmp_path / "out", "--metrics", tmp_path / "m.json",
                        cwd=done)  # fmt: skip
        assert got.code == 0, got.err
        assert files(tmp_path / "out/backgrounds") != files(done / REFINED / "backgrounds"), option
    told = json.loads((tmp_path / "m.json").read_text())
    rows = rows_of(tmp_path / "out")
    assert told["count"] == 8 and told["one_mode"] == sum("one_mode" in r["flags"] for r in rows)


def test_an_empty_mask_stays_empty_and_one_that_nothing_is_left_of_stays_as_it_was(done, tmp_path, monkeypatch):
    from stages import refine_masks

    place = copy_of(done, tmp_path)
    first = sorted((place / PRELIMINARY / "masks").iterdir())[0]
    save_png(np.zeros((64, 64), bool), first)
    assert run_stage("refine_masks", cwd=place).code == 0
    assert not read_mask(place / REFINED / "masks" / first.name).any()
    assert not read_labels(place / REFINED / "soft" / first.name).any()
    assert "kept" not in rows_of(place / REFINED)[0]["flags"]
    painter = object.__new__(refine_masks.Painter)
    image, hole = np.zeros((16, 16, 3), np.uint8), np.zeros((4, 4), bool)
    hole[0, 0] = True
    elsewhere = image.copy()
    elsewhere[8:, 8:] = 99  # only what M_pre leaves has changed
    found = painter.cut(Item("x", "", ""), image, elsewhere, hole)
    assert found["flags"].tolist()[-1] and (found["mask"] == upsample(hole, (16, 16))).all()
    same = painter.cut(Item("x", "", ""), image, image, hole)
    assert same["flags"].tolist() == [True, False, True, False, True] and same["mask"].sum() == 16


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--unet", "none"], "--unet none: expected the folder of a fine-tuned U-Net, found none"),
     (["--unet", "data/concepts"], "data/concepts: expected a U-Net's config.json"),
     (["--masks", "none"], "none/masks/s1-00000.png: expected a readable"), (["--images", "none"], "none/index.csv: "),
     (["--refine_masks.steps", "0"], "--refine_masks.steps: expected an integer of at least 1")],
)  # fmt: skip
def test_refine_masks_refuses_bad_input_with_one_line(tuned, tmp_path, options, said):
    got = run_stage("refine_masks", "--out", "deep/out", *options, cwd=copy_of(tuned, tmp_path))
    assert_refused(got, said, absent=tmp_path / "place/deep/out")


# --- the picture ------------------------------------------------------------------------------------------------------


def test_the_steps_are_drawn_with_and_without_ground_truth(done, tmp_path, world_set):
    place = copy_of(done, tmp_path)
    options = ["--images", TRAIN, "--preliminary", PRELIMINARY, "--refined", REFINED]
    got = run_stage("draw_refinement", *options, cwd=place)
    assert (got.code, got.out) == (0, "metrics/grids/refinement.png: 3 pictures\n"), got.err
    whole = Image.open(place / "metrics/grids/refinement.png")
    rows = [replace(i, image=str(world_set / i.image), mask="") for i in read_table(world_set)[:1]]
    (place / "some").mkdir()
    (place / "some/index.csv").write_text(table_csv(rows))
    got = run_stage("draw_refinement", "--images", "some", *options[2:], "--out", "some.png", cwd=place)
    assert got.code == 0, got.err
    less = Image.open(place / "some.png")
    assert less.width < whole.width - 150 and less.height < whole.height - 300
    got = run_stage("draw_refinement", *options[:4], "--refined", "none", "--out", "deep/x.png", cwd=place)
    assert_refused(got, "none/soft/s1-00000.png: expected an image", absent=place / "deep/x.png")
