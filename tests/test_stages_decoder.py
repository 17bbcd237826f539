"""Stages train_decoder and decode as a user runs them, on made-up features of a few scenes."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskmill.datasets.table import Item, read_image, read_labels, read_table, save_png, table_csv
from maskmill.errors import UserError
from maskmill.store import Store
from stages.train_decoder import alone, split
from tests.running import assert_refused, files, run_stage, small_params
from tests.test_stages_rivals import sample, write_store

SMALL = {"train_decoder.steps": 12, "train_decoder.log_every": 5, "train_decoder.width": 4, "train_decoder.batch": 4,
         "train_decoder.size": 32, "train_decoder.upsample": 2}  # fmt: skip
NET = ["--train_decoder.model", "unet", "--train_decoder.steps", "2", "--train_decoder.batch", "2", "--features", ""]
SAVED = {"training.CHECKPOINT_SECONDS": -1.0}  # a checkpoint after every step


@pytest.fixture(scope="module")
def made(tmp_path_factory, world_set) -> Path:
    """A folder in which both stages run with their default paths: the held-out scenes stand for generated ones."""
    folder = tmp_path_factory.mktemp("a place")
    small_params(folder, SMALL)
    features = {i.sample_id: sample(world_set, i.mask, False)[1] for i in read_table(world_set)}
    for place in ("data/inverted/generated", "data/inverted/world"):
        write_store(folder / place / "features", features)
    (folder / "data/generated").mkdir()
    for place in ("data/world", "data/generated/set"):
        (folder / place).symlink_to(world_set)
    for item in read_table(world_set):
        target = folder / f"data/masks/generated/masks/{item.sample_id}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world_set / item.mask, target)
    return folder


@pytest.fixture(scope="module")
def done(made, tmp_path_factory) -> Path:
    """``made`` after an undisturbed run of train_decoder; read only."""
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("done") / "place", symlinks=True))
    got = run_stage("train_decoder", cwd=folder)
    assert got.code == 0, got.err
    assert got.out.startswith("data/decoder: fcn, 7 pairs, lr 0.000  loss 0.") and "val_iou" in got.out
    return folder


@pytest.fixture
def place(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place", symlinks=True))


def weights(folder: Path, model: str = "data/decoder") -> bytes:
    return (folder / model / "model.safetensors").read_bytes()


# --- training ---------------------------------------------------------------------------------------------------------


def test_it_writes_a_model_its_curves_and_nothing_else(done):
    assert sorted(files(done / "data/decoder")) == ["config.json", "model.safetensors"]
    config = json.loads((done / "data/decoder/config.json").read_text())
    levels = {f"feature_{side}_{k}": 12 for side in (16, 8) for k in (0, 1)}
    assert config == {"model": "fcn", "channels": levels, "width": 4, "kernel": 3, "upsample": 2, "size": 32}
    rows = list(csv.DictReader(open(done / "metrics/training/decoder.csv")))
    assert list(rows[0]) == ["step", "lr", "loss", "val_loss", "val_iou"]
    assert [row["step"] for row in rows] == ["5", "10", "12"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.001, 0.001 * 3 / 3.6, 0.001 / 3.6], abs=1e-6)
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert (done / "metrics/training/decoder.png").read_bytes()[:4] == b"\x89PNG"
    assert not (done / "scratch/train_decoder").exists()


@pytest.mark.parametrize("moment", ["training._save 7", "training.fit", "segmenters.models.save_model"])
def test_killed_and_resumed_it_writes_the_bytes_of_an_undisturbed_run(place, done, moment):
    got = run_stage("train_decoder", cwd=place, kill_after=moment, settings=SAVED)
    assert got.code == -signal.SIGKILL and not (place / "data/decoder").exists()
    assert len(list((place / "scratch/train_decoder").glob("*.pt"))) == 1
    got = run_stage("train_decoder", cwd=place, kill_after="training._step 6")  # it would end here, were it not resumed
    assert got.code == 0, got.err
    for folder in ("data/decoder", "metrics/training"):
        assert files(place / folder) == files(done / folder)
    assert not (place / "scratch/train_decoder").exists()
    assert not [p.name for p in (place / "data").iterdir() if p.name.endswith(".part")]


def test_a_checkpoint_is_of_its_parameters_pairs_and_masks(place):
    def start(*options: str) -> str:
        """-> the checkpoint that the killed run left."""
        shutil.rmtree(place / "scratch", ignore_errors=True)
        got = run_stage("train_decoder", *options, cwd=place, kill_after="training._save", settings=SAVED)
        assert got.code == -signal.SIGKILL
        return next((place / "scratch/train_decoder").iterdir()).name

    first = start()
    other = [start("--train_decoder.lr", "0.002"), start("--seed", "1"), start("--train_decoder.pairs", "5")]
    mask = sorted((place / "data/masks/generated/masks").iterdir())[2]
    kept = mask.read_bytes()
    save_png(np.ones((64, 64), bool), mask)
    other.append(start())
    mask.write_bytes(kept)
    assert len({first, *other}) == 5 and start() == first


def test_the_sets_own_masks_are_taken_where_asked(place, done):
    shutil.rmtree(place / "data/masks")
    got = run_stage("train_decoder", "--masks", "own", cwd=place)
    assert got.code == 0, got.err
    assert weights(place) == weights(done)


def test_options_reach_the_model_the_loop_and_the_pairs(place, done):
    options = ("--train_decoder.noise 0", "--no-train_decoder.flip", "--train_decoder.ema 0.5", "--seed 7",
               "--train_decoder.validation 0", "--train_decoder.accumulate 2")  # fmt: skip
    for option in options:
        got = run_stage("train_decoder", *option.split(), "--out", "other", cwd=place)
        assert got.code == 0, got.err
        assert weights(place, "other") != weights(done), option
        if "validation" in option:
            assert "8 pairs" in got.out and "val_iou" not in got.out


def test_fewer_pairs_are_part_of_more_and_leave_the_same_ones_out():
    items = [Item(str(k), "bird", "i.png") for k in range(40)]
    every, held = split(items, 0, 0.1, 3)
    assert len(held) == 4 and sorted(map(int, (i.sample_id for i in every + held))) == list(range(40))
    assert every == [i for i in items if i not in held]
    before: set[str] = set()
    for count in (5, 20, 36):
        some, same = split(items, count, 0.1, 3)
        assert same == held and len(some) == count and before <= {i.sample_id for i in some}
        before = {i.sample_id for i in some}
    assert split(items, 5, 0.1, 4)[0] != split(items, 5, 0.1, 3)[0]
    assert split(items, 0, 0.0, 3) == (items, [])
    with pytest.raises(UserError, match="pairs 37: expected at most 36, what the set holds without its 4 validation"):
        split(items, 37, 0.1, 3)


def test_pairs_of_prompts_that_name_one_class_only(place, world_set):
    captions = ["a bird", "a red bird and a dog", "a dog", "a carpet and a bird", "a car", ""]
    classes = ["bird", "bird", "dog", "bird", "car", ""]
    items = [Item(str(k), c, "i.png", caption=t) for k, (c, t) in enumerate(zip(classes, captions, strict=True))]
    assert [i.sample_id for i in alone(items)] == ["0", "2", "3", "4", "5"]
    (place / "some").mkdir()
    for single in (3, 0):  # so many of the eight prompts name one class
        rows = [replace(item, image=str(world_set / item.image), cls=("dog", "bird")[k % 2],
                        caption=("a dog", "a bird")[k % 2] if k < single else "a dog and a bird")
                for k, item in enumerate(read_table(world_set))]  # fmt: skip
        (place / "some/index.csv").write_text(table_csv(rows))
        got = run_stage("train_decoder", "--train_decoder.alone", "--train_decoder.validation", "0", "--images", "some",
                        "--out", f"out-{single}", cwd=place)  # fmt: skip
        if single:
            assert got.code == 0 and f"fcn, {single} pairs" in got.out, got.err
    assert_refused(got, "some: expected at least one pair to train on, got none", absent=place / "out-0")


def test_a_loss_that_is_not_finite_stops_with_its_step_and_the_rate(place):
    got = run_stage("train_decoder", "--train_decoder.lr", "1e30", cwd=place)
    assert_refused(got, "of 12: the loss is ", "at learning rate 1e+30", absent=place / "data/decoder")
    assert not (place / "metrics").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--features", "none"], "none/manifest.json: expected the manifest"),
     (["--features", ""], "--features: expected a store of features for train_decoder.model fcn"),
     (["--masks", "none"], "none/masks/s1-0000"), (["--images", "none"], "none/index.csv: "),
     (["--train_decoder.pairs", "8"], "train_decoder.pairs 8: expected at most 7, what the set holds without"),
     (["--images", "other"], "other: expected at least one pair to train on, got none"),
     (["--images", "other", *NET], "other/images/none.png: expected an image"),
     (["--images", "other", "--masks", "own", *NET], "other/index.csv: x: expected a mask of the set's own, got none"),
     (["--train_decoder.accumulate", "3"], "batch 4: expected equal parts for equal processes, got 3 parts"),
     (["--train_decoder.kernel", "2"], "--train_decoder.kernel: expected one of 1, 3"),
     ([*NET, "--train_decoder.encoder", "resnet0"], "encoder 'resnet0' of unet: cannot be built"),
     ([*NET, "--train_decoder.model", "deeplabv3", "--train_decoder.size", "20"], "train_decoder.size: expected a")],
)  # fmt: skip
def test_train_decoder_refuses_bad_input_with_one_line(place, options, said):
    (place / "other").mkdir()
    (place / "other/index.csv").write_text("sample_id,class,image\nx,bird,images/none.png\n")
    save_png(np.ones((8, 8), bool), place / "data/masks/generated/masks/x.png")
    got = run_stage("train_decoder", "--out", "deep/out", *options, cwd=place)
    assert_refused(got, said, absent=place / "deep/out")


def test_a_missing_or_broken_mask_or_sample_is_named(place):
    mask = sorted((place / "data/masks/generated/masks").iterdir())[4]
    mask.write_bytes(b"")
    got = run_stage("train_decoder", cwd=place)
    assert_refused(got, f"masks/{mask.name}: expected an image, got an empty file", absent=place / "data/decoder")
    mask.unlink()
    assert_refused(run_stage("train_decoder", cwd=place), f"masks/{mask.name}: ", absent=place / "data/decoder")


# --- segmenting -------------------------------------------------------------------------------------------------------


def test_a_decoder_learns_and_its_masks_can_be_scored(place, world_set):
    got = run_stage("train_decoder", "--train_decoder.steps", "150", "--train_decoder.lr", "0.01", cwd=place)
    assert got.code == 0, got.err
    got = run_stage("decode", cwd=place)
    assert got.code == 0 and got.out == "data/masks/world_decoder: 8 masks\n", got.err
    out = place / "data/masks/world_decoder"
    items = read_table(world_set)
    rows = list(csv.DictReader(open(out / "index.csv")))
    assert [row["sample_id"] for row in rows] == [i.sample_id for i in items] and len(files(out)) == 2 * 8 + 2
    assert (out / "postprocess.txt").read_text() == "none\n"
    for row, item in zip(rows, items, strict=True):
        mask, soft = (read_labels(out / kind / f"{item.sample_id}.png") for kind in ("masks", "soft"))
        assert mask.shape == soft.shape == (64, 64) and set(np.unique(mask)) <= {0, 255}
        assert ((mask > 0) == (soft > 127)).mean() > 0.99  # cut at one half before rounding to 8 bits
        assert float(row["area"]) == pytest.approx((mask > 0).mean(), abs=1e-6)
    scored = run_stage("score", "--masks", out, "--metrics", "m.json", cwd=place)
    assert scored.code == 0, scored.err
    assert json.loads((place / "m.json").read_text())["datasets"][""]["scores"]["iou"] > 0.6


def test_a_mask_depends_on_its_image_alone(done, tmp_path, world_set):
    """Other pictures beside it, another order, pictures of other sizes, and more threads."""
    shutil.copytree(world_set / "images", tmp_path / "some/images")
    items = read_table(world_set)[5:1:-1]
    save_png(read_image(world_set / items[1].image)[:20, :50], tmp_path / "some" / items[1].image)
    (tmp_path / "some/index.csv").write_text(table_csv([*items, Item("s9-00000", "bird", "images/none.png")]))
    got = [run_stage("decode", "--out", tmp_path / "whole", cwd=done),
           run_stage("decode", "--out", tmp_path / "part", "--images", tmp_path / "some", cwd=done,
                     env={"OMP_NUM_THREADS": "2"})]  # fmt: skip
    assert [g.code for g in got] == [0, 0], [g.err for g in got]
    whole, part = files(tmp_path / "whole"), files(tmp_path / "part")
    assert len(part) == 2 * 4 + 2  # the fifth has no features
    for k, item in enumerate(items):
        for kind in ("masks", "soft"):
            name = f"{kind}/{item.sample_id}.png"
            assert (whole[name] == part[name]) == (k != 1)
    assert read_labels(tmp_path / f"part/masks/{items[1].sample_id}.png").shape == (20, 50)


def test_post_processing_comes_last(done, tmp_path):
    for name, more in (("off", []), ("on", ["--postprocess.largest", "--postprocess.fill"])):
        assert run_stage("decode", "--out", tmp_path / name, *more, cwd=done).code == 0
    assert (tmp_path / "on/postprocess.txt").read_text() == "largest component, holes filled\n"
    before, after = files(tmp_path / "off"), files(tmp_path / "on")
    assert all(before[n] == after[n] for n in before if n.startswith("soft/"))
    assert any(before[n] != after[n] for n in before if n.startswith("masks/"))


def test_an_end_to_end_net_sees_pictures_and_needs_no_features(place, world_set):
    got = run_stage("train_decoder", *NET, "--out", "net", cwd=place)
    assert got.code == 0, got.err
    shutil.rmtree(place / "data/inverted")
    got = run_stage("decode", "--model", "net", "--out", "masks", cwd=place)
    assert got.code == 0, got.err
    soft = [read_labels(place / f"masks/soft/{i.sample_id}.png").astype(int) for i in read_table(world_set)]
    assert len(soft) == 8 and max(np.abs(s - soft[0]).max() for s in soft) > 3


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--model", "none"], "none: expected a trained model (config.json, model.safetensors)"),
     (["--features", "none"], "none/manifest.json: expected"), (["--images", "none"], "none/index.csv: "),
     (["--images", "other"], "data/inverted/world/features: expected features of the images in other/index.csv, found"),
     (["--features", "clip"], "features: expected feature_16_0 of 12 channels, as in the decoder's training, got")],
)  # fmt: skip
def test_decode_refuses_bad_input_with_one_line(done, tmp_path, options, said):
    place = Path(shutil.copytree(done, tmp_path / "place", symlinks=True))
    (place / "other").mkdir()
    (place / "other/index.csv").write_text("sample_id,class,image\nx,bird,images/none.png\n")
    write_store(place / "clip", {id: {"feature_8_0": f["feature_8_0"]} for id, f in
                                 Store(place / "data/inverted/world/features").items()})  # fmt: skip
    got = run_stage("decode", "--out", "deep/out", *options, cwd=place)
    assert_refused(got, said, absent=place / "deep/out")
