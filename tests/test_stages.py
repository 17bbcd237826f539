"""Stages as a user runs them: killed and resumed, other batch sizes, and every kind of bad input."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from maskmill.datasets.table import read_image, read_table, table_csv
from maskmill.prompts import COLUMNS, read_csv
from maskmill.store import Store
from maskmill.zeroshot import PRIOR_TEMPLATES, ZeroShot
from tests.running import ROOT, assert_refused, files, run_stage, small_params

SMALL = {"prompts.count": 34, "generate.steps": 1, "generate.features": True, "invert_features.steps": 1,
         "attentioncut.size": 16}  # 34: two shards, of generate three
STAGES_WITH_PARAMETERS = ("prompts", "world", "generate", "invert_features", "attentioncut", "train_decoder", "decode",
                          "evaluate", "check_model", "pretrain")  # fmt: skip
FILLED = {"generate": "records", "generate-features": "features"}  # scratch folder -> output


def arrange(folder: Path, model: Path, scenes: Path) -> Path:
    """A folder in which stages run with their default paths: small params.yaml, data/mini and data/world."""
    (folder / "data").mkdir(parents=True)
    small_params(folder, SMALL)
    (folder / "data/mini").symlink_to(model)
    (folder / "data/world").symlink_to(scenes)
    return folder


@pytest.fixture
def place(tmp_path, tiny_model, world_set) -> Path:
    return arrange(tmp_path / "a place", tiny_model, world_set)


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_model, world_set) -> Path:
    """The place after an undisturbed run of prompts, generate and invert_features; read only."""
    folder = arrange(tmp_path_factory.mktemp("done"), tiny_model, world_set)
    for name in ("prompts", "generate", "invert_features"):
        got = run_stage(name, cwd=folder)
        assert got.code == 0, got.err
    return folder


# --- killed, resumed, batched -----------------------------------------------------------------------------------------


def test_generate_killed_after_a_shard_goes_on_there_and_equals_an_undisturbed_run(place, done):
    shutil.copy(done / "data/prompts.csv", place / "data/prompts.csv")
    # A shard of features is followed by one of records: the second ends a shard.
    assert run_stage("generate", cwd=place, kill_after="store.ShardFolder.put 2").code == -signal.SIGKILL
    assert not (place / "data/generated").exists()
    shards = {kind: list((place / "scratch" / kind).glob("*/*.safetensors")) for kind in FILLED}
    assert [p.name for paths in shards.values() for p in paths] == ["00000.safetensors"] * 2
    kept = {kind: paths[0].stat().st_ino for kind, paths in shards.items()}
    assert run_stage("generate", cwd=place).code == 0
    for kind, folder in FILLED.items():
        assert (place / "data/generated" / folder / "00000.safetensors").stat().st_ino == kept[kind]
        assert not [p for p in (place / "scratch" / kind).iterdir() if p.is_dir()]
    assert files(place / "data/generated") == files(done / "data/generated")


def test_what_another_clip_said_before_a_kill_is_not_kept(place, done, tiny_model):
    shutil.copy(done / "data/prompts.csv", place / "data/prompts.csv")
    assert run_stage("generate", cwd=place, kill_after="store.ShardFolder.put 2").code == -signal.SIGKILL
    (place / "data/mini").unlink()
    shutil.copytree(tiny_model, place / "data/mini")
    path = place / "data/mini/clip/open_clip_model.safetensors"
    save_file({k: v.flip(0) if k.endswith("attnpool.c_proj.weight") else v for k, v in load_file(path).items()}, path)
    got = run_stage("generate", "--generate.filter", "0", cwd=place)
    assert got.code == 0, got.err
    made = place / "data/generated/set"
    rows = list(csv.DictReader(open(made / "index.csv")))
    classes = sorted({row["class"] for row in rows})
    p = ZeroShot(str(place / "data/mini/clip"), classes).probabilities(read_image(made / r["image"]) for r in rows)
    assert [row["clip_best"] for row in rows] == [classes[k] for k in p.argmax(1)]
    own = [one[classes.index(row["class"])] for one, row in zip(p, rows, strict=True)]
    np.testing.assert_allclose([float(row["clip_own"]) for row in rows], own, atol=1e-5)  # the threads differ
    before = {row["sample_id"]: row["clip_own"] for row in csv.DictReader(open(done / "data/generated/set/index.csv"))}
    assert any(row["clip_own"] != before[row["sample_id"]] for row in rows if row["sample_id"] in before)


@pytest.mark.parametrize("moment", ["store.ShardFolder.put", "store.ShardWriter.assemble"])
def test_generate_killed_between_its_two_stores_equals_an_undisturbed_run(place, done, moment):
    shutil.copy(done / "data/prompts.csv", place / "data/prompts.csv")
    assert run_stage("generate", cwd=place, kill_after=moment).code == -signal.SIGKILL
    assert not (place / "data/generated/records").exists()
    got = run_stage("generate", cwd=place)
    assert got.code == 0, got.err
    assert files(place / "data/generated") == files(done / "data/generated")


def test_generate_keeps_features_of_every_image_only_where_asked(place, done):
    records, features = (Store(done / "data/generated" / kind) for kind in ("records", "features"))
    assert records.ids == features.ids == [r.sample_id for r in read_csv(done / "data/prompts.csv")]
    for id, sample in features.items():
        sides = {16: 2, 8: 2}
        assert sorted(sample) == sorted(f"feature_{side}_{k}" for side, n in sides.items() for k in range(n)), id
        assert all(v.dtype == np.float16 and v.shape[1:] == (int(n.split("_")[1]),) * 2 for n, v in sample.items())
    shutil.copy(done / "data/prompts.csv", place / "data/prompts.csv")
    got = run_stage("generate", "--no-generate.features", cwd=place)
    assert got.code == 0, got.err
    assert not (place / "data/generated/features").exists() and not (place / "scratch/generate-features").exists()
    for id, record in Store(place / "data/generated/records").items():  # which its features do not change
        assert all(np.array_equal(v, records.read(id)[k]) for k, v in record.items())


@pytest.mark.parametrize("moment", ["store.ShardFolder.put", "store.ShardWriter.assemble"])
def test_invert_features_killed_between_its_two_stores_equals_an_undisturbed_run(place, done, moment):
    assert run_stage("invert_features", cwd=place, kill_after=moment).code == -signal.SIGKILL
    assert not (place / "data/inverted/world/records").exists()
    got = run_stage("invert_features", cwd=place)
    assert got.code == 0, got.err
    assert files(place / "data/inverted") == files(done / "data/inverted")


@pytest.mark.parametrize("prior", ["dataset", "none", "absent", "scene", "clip"])
def test_the_words_that_images_are_inverted_with(place, done, tiny_model, world_set, prior):
    (place / "labels.txt").write_text("red bird,bird\nblue bird,bird\nhouse\n")
    labels = ["--invert_features.labels", "labels.txt"] if prior == "clip" else []
    got = run_stage("invert_features", "--invert_features.prior", prior, *labels, "--no-invert_features.features",
                    "--out", "out", cwd=place)  # fmt: skip
    assert got.code == 0 and got.out.strip() == "out: 8 images", got.out + got.err
    rows = list(csv.DictReader(open(place / "out/index.csv")))
    items = read_table(world_set)
    assert [row["sample_id"] for row in rows] == [i.sample_id for i in items]
    assert not (place / "out/features").exists() and {row["latent_error"] for row in rows} == {""}
    expected = {"dataset": [i.cls for i in items], "none": [""] * 8, "absent": [i.absent for i in items],
                "scene": [i.cls for i in items]}  # fmt: skip
    if prior == "clip":
        judge = ZeroShot(str(tiny_model / "clip"), ("red bird", "blue bird", "house"), PRIOR_TEMPLATES)
        p = judge.probabilities([read_image(world_set / i.image) for i in items])
        expected["clip"] = ["bird" if row[0] + row[1] > row[2] else "house" for row in p]
    words = [row["word"] for row in rows]
    assert words == expected[prior]
    captions = [i.caption for i in items] if prior == "scene" else [w and f"a photo of a {w}" for w in words]
    assert [row["caption"] for row in rows] == captions
    usual = Store(done / "data/inverted/world/records")
    same = [all(np.array_equal(v, usual.read(id)[k]) for k, v in record.items() if k != "latent_error")
            for id, record in Store(place / "out/records").items()]  # fmt: skip
    assert same == [captions[k] == f"a photo of a {i.cls}" for k, i in enumerate(items)]


def test_without_a_word_of_the_set_the_absent_one_is_what_clip_sees_least(place, tiny_model, world_set):
    items = [replace(item, image=str(world_set / item.image), mask="", labels="", absent="") for item in
             read_table(world_set)]  # fmt: skip
    (place / "sets").mkdir()
    (place / "sets/index.csv").write_text(table_csv(items))
    got = run_stage("invert_features", "--images", "sets", "--invert_features.prior", "absent",
                    "--no-invert_features.features", "--out", "out", cwd=place)  # fmt: skip
    assert got.code == 0, got.err
    classes = sorted({item.cls for item in items})
    p = ZeroShot(str(tiny_model / "clip"), classes, PRIOR_TEMPLATES).probabilities([read_image(i.image) for i in items])
    words = [row["word"] for row in csv.DictReader(open(place / "out/index.csv"))]
    assert words == [classes[k] for k in p.argmin(1)] and words != [classes[k] for k in p.argmax(1)]


def write_prompts(path: Path, rows: list[list[object]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def test_a_sample_depends_on_neither_its_neighbours_nor_the_batch_size(place, done):
    rows = read_csv(done / "data/prompts.csv")[5:1:-2]
    fields = [[r.sample_id, r.cls, r.prompt, r.token_start, r.token_end, r.seed] for r in rows]
    write_prompts(place / "data/prompts.csv", fields)
    whole = Store(done / "data/generated/records")
    for batch in ("8", "1"):
        out = place / batch
        got = run_stage("generate", "--out", out, "--generate.filter", "0", cwd=place, env={"MASKMILL_BATCH": batch})
        assert got.code == 0, got.err
        for id, record in Store(out / "records").items():
            picture = f"set/images/{id}.png"
            if batch == "8":  # the same number of rows in a batch: the same bits
                assert all(np.array_equal(record[k], v) for k, v in whole.read(id).items())
                assert (out / picture).read_bytes() == (done / "data/generated" / picture).read_bytes()
                continue
            # Kernels add in another order for another batch size: a unit in the last place of half precision, and a
            # pixel on the other side of a rounding boundary.
            for name, values in whole.read(id).items():
                np.testing.assert_allclose(record[name].astype(float), values.astype(float), rtol=2**-9, atol=1e-4)
            pixels = [read_image(p / picture).astype(int) for p in (out, done / "data/generated")]
            assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_pictures_records_and_features_do_not_depend_on_the_number_of_workers(place, done):
    """Nor on the threads of the process that starts them, in which CLIP picks the words."""
    env = {"MASKMILL_WORKERS": "2", "OMP_NUM_THREADS": "2"}
    shutil.copy(done / "data/prompts.csv", place / "data/prompts.csv")
    got = run_stage("generate", cwd=place, env=env)
    assert got.code == 0, got.err
    assert files(place / "data/generated") == files(done / "data/generated")
    (place / "data/world").unlink()
    (place / "data/world").symlink_to(done / "data/generated/set")  # 34 pictures: two shards
    seen = []
    for workers in ("1", "2"):
        got = run_stage("invert_features", "--invert_features.prior", "clip", "--out", workers, cwd=place,
                        env={**env, "MASKMILL_WORKERS": workers})  # fmt: skip
        assert got.code == 0, got.err
        seen.append(files(place / workers))
    assert len(seen[0]) == 2 * 3 + 1 and seen[0] == seen[1]


def test_an_error_in_one_of_several_workers_is_one_line(place, done):
    shutil.copytree(done / "data/generated/set", place / "set")
    broken = sorted((place / "set/images").iterdir())[33]
    broken.write_bytes(b"")
    got = run_stage("invert_features", "--images", "set", "--out", "out", cwd=place, env={"MASKMILL_WORKERS": "2"})
    assert_refused(got, f"set/images/{broken.name}: expected an image, got an empty file", absent=place / "out")


def test_masks_do_not_depend_on_the_number_of_workers(done, tmp_path):
    seen = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        got = run_stage("attentioncut", "--images", "data/generated/set", "--records", "data/generated/records",
                        "--out", out, "--metrics", tmp_path / "m.json", cwd=done,
                        env={"MASKMILL_WORKERS": workers})  # fmt: skip
        assert got.code == 0, got.err
        seen.append(files(out))
    assert len(seen[0]) == 2 * 34 + 2 and seen[0] == seen[1]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES_WITH_PARAMETERS)
@pytest.mark.parametrize(
    ("key", "wrong", "said"),
    [("seed: 0", "seed: zero", "seed: expected an integer"), ("seed: 0", "sead: 0", "sead: unknown key"),
     ("tau: ", "tau: [1]  # ", "attentioncut.tau: expected a number")],
)  # fmt: skip
def test_a_wrong_parameter_file_stops_every_stage(place, stage, key, wrong, said):
    path = place / "params.yaml"
    path.write_text(path.read_text().replace(key, wrong, 1))
    before = files(place)
    assert_refused(run_stage(stage, cwd=place), "params.yaml: ", said, absent=place / "scratch")
    assert files(place) == before


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"# none\n\n", "classes.txt: expected one class per line"), (b"bird\ndog\nBird\n", "classes.txt: line 3: "),
     (b"bird\nv\xf6gel\n", "classes.txt: line 2: expected UTF-8"), (None, "classes.txt: expected a readable")],
)  # fmt: skip
def test_prompts_refuses_a_bad_class_file(place, data, said):
    if data is not None:
        (place / "classes.txt").write_bytes(data)
    got = run_stage("prompts", "--prompts.file", "classes.txt", cwd=place)
    assert_refused(got, said, absent=place / "data/prompts.csv")


def test_prompts_names_the_row_that_the_context_cannot_hold(place):
    (place / "classes.txt").write_text("bird\n" + "very " * 30 + "long dog\n")
    got = run_stage("prompts", "--prompts.file", "classes.txt", cwd=place)
    assert_refused(got, "row 00001-very-", "at most 24 tokens", absent=place / "data/prompts.csv")


LONG = "a photo of a bird" + " and a dog" * 10


@pytest.mark.parametrize(
    ("rows", "said"),
    [([["a", "bird", LONG, 5, 6, 1]], "row a: expected a prompt of at most 24 tokens"),
     ([["a", "bird", "a bird", 2, 3, 1], ["b", "bird", "a bird", 7, 8, 1]], "row b: expected token_end of at most 3"),
     ([["a", "bird", "a bird", 2, 3, 1], ["a", "bird", "a bird", 2, 3, 1]], "line 3 (a): expected a distinct"),
     ([["a", "bird", "a bird", 2, 3]], "line 2 (a): expected 6 fields, got 5"),
     ([["a", "bird", "a bird", 2, 3, -1]], "line 2 (a): expected integers"), ([], "expected at least one row")],
)  # fmt: skip
def test_generate_refuses_bad_prompts(place, rows, said):
    write_prompts(place / "data/prompts.csv", rows)
    got = run_stage("generate", cwd=place)
    assert_refused(got, "data/prompts.csv: ", said, absent=place / "data/generated")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("generate.negative", LONG, "generate.negative: expected a prompt of at most 24"),
     ("generate.filter", "1", "generate.filter 1.0: expected some images to pass"),
     ("model.clip", "", "generate.filter: expected 0 without a CLIP model"),
     ("generate.size", "62", "generate.size: expected a multiple of 4"),
     ("model.clip", "none/such", "model.clip none/such: "), ("model.id", "data/none", "data/none: ")],
)  # fmt: skip
def test_generate_refuses_bad_settings(place, option, value, said):
    write_prompts(place / "data/prompts.csv", [["a", "bird", "a bird", 2, 3, 1], ["b", "dog", "a dog", 2, 3, 2]])
    got = run_stage("generate", "--generate.filter", "0.001", f"--{option}", value, cwd=place)
    assert_refused(got, said, absent=place / "data/generated")


def test_generate_refuses_to_filter_a_single_class(place):
    write_prompts(place / "data/prompts.csv", [["a", "bird", "a bird", 2, 3, 1]])
    got = run_stage("generate", "--generate.filter", "0.1", cwd=place)
    assert_refused(got, "generate.filter: expected 0, or at least two classes", absent=place / "data/generated")


def damage(model: Path, how: str) -> None:
    if how.startswith("without "):
        part = model / how.removeprefix("without ")
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    elif how == "pickle":
        (model / "unet/diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    elif how == "no index":
        (model / "model_index.json").write_text("{")
    else:
        weights = model / "unet/diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize("stage", ["generate", "invert_features"])
@pytest.mark.parametrize(
    ("how", "said"),
    [("without vae", "'vae'"), ("without tokenizer", "tokenizer"), ("without model_index.json", "model_index.json"),
     ("without unet/diffusion_pytorch_model.safetensors", "unet: expected weights"), ("no index", "expected JSON"),
     ("pickle", "diffusion_pytorch_model.bin: a pickle"), ("cut", "unet"),
     ("without tokenizer/tokenizer.json", "tokenizer")],
)  # fmt: skip
def test_an_incomplete_or_pickled_model_is_refused(place, tiny_model, stage, how, said):
    shutil.copytree(tiny_model, place / "other")
    damage(place / "other", how)
    write_prompts(place / "data/prompts.csv", [["a", "bird", "a bird", 2, 3, 1]])
    got = run_stage(stage, "--model.id", "other", "--out", "out", cwd=place)
    assert_refused(got, "other", said, absent=place / "out")


@pytest.mark.parametrize("data", [b"", b"no picture", None])
@pytest.mark.parametrize("stage", ["invert_features", "attentioncut"])
def test_an_unreadable_image_is_named(place, done, world_set, stage, data):
    (place / "data/world").unlink()
    shutil.copytree(world_set, place / "data/world")
    image = place / "data/world/images/s2-00003.png"
    image.unlink() if data is None else image.write_bytes(data)
    records = ["--records", done / "data/inverted/world/records"] if stage == "attentioncut" else []
    got = run_stage(stage, "--out", "deep/out", *records, cwd=place)
    assert_refused(got, "data/world/images/s2-00003.png: expected", absent=place / "deep/out")


ONE = "sample_id,class,image\na,bird,i.png\n"


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [("sample_id,class\na,bird\n", [], "expected the columns sample_id, class, image"),
     ("sample_id,class,image\na,bird,i.png\na,dog,i.png\n", [], "line 3: expected a distinct sample_id"),
     ("sample_id,class,image\n../a,bird,i.png\n", [], "line 2: expected a distinct sample_id"),
     ("sample_id,class,image\na,bird,i.png,x\n", [], "line 2 (a): expected 3 fields, got 4"),
     ("sample_id,class,image\na,,i.png\n", [], "a: expected a value in the column 'class'"),
     (ONE, ["prior", "absent"], "set/index.csv: a: expected a value in the column 'absent'"),
     (ONE, ["prior", "scene"], "set/index.csv: a: expected a value in the column 'caption'"),
     (ONE + "b,,i.png\n", ["prior", "clip"], "invert_features.labels: expected imagenet or a label file, as set/index"),
     (ONE, ["prior", "clip", "labels", "none.txt"], "none.txt: expected imagenet or a text file with a label per line"),
     (ONE, ["prior", "caption"], "invert_features.prior: expected one of dataset, clip, none, scene, absent"),
     (ONE, ["template", LONG + " {}"], "at most 24 tokens"), (ONE, ["template", "a {b}"], "invert_features.templat")],
)  # fmt: skip
def test_invert_features_refuses_a_bad_table_word_or_caption(place, text, options, said):
    (place / "set").mkdir()
    (place / "set/index.csv").write_text(text)
    argv = [part for key, value in zip(options[::2], options[1::2], strict=True)
            for part in (f"--invert_features.{key}", value)]  # fmt: skip
    got = run_stage("invert_features", "--images", "set", "--out", "out", *argv, cwd=place)
    assert_refused(got, said, absent=place / "out")


def test_the_prior_that_asks_clip_needs_one(place):
    got = run_stage("invert_features", "--invert_features.prior", "clip", "--model.clip", "", "--out", "out", cwd=place)
    assert_refused(got, "model.clip: expected a CLIP model for invert_features.prior clip", absent=place / "out")


def test_stages_name_what_the_stage_before_has_not_made(place):
    for stage, said in [("generate", "data/prompts.csv: "), ("attentioncut", "inverted/world/records/manifest.json"),
                        ("train_decoder", "inverted/generated/features/manifest"), ("decode", "data/decoder: "),
                        ("evaluate", "inverted/world/records/manifest.json"), ("score", "soft/s1-00000.png"),
                        ("check_model", "data/generated/set/index.csv")]:  # fmt: skip
        assert_refused(run_stage(stage, cwd=place), said, absent=place / "metrics")


# --- from masks to scores ---------------------------------------------------------------------------------------------


def test_tau_without_a_boundary_falls_back_and_is_counted(place, done):
    records = done / "data/inverted/world/records"
    for tau, expected in (("1", 8), ("0.3", 0)):
        got = run_stage("attentioncut", "--records", records, "--attentioncut.tau", tau, cwd=place)
        assert got.code == 0, got.err
        counted = json.loads((place / "metrics/attentioncut-world.json").read_text())
        assert (counted["count"], counted["no_boundary"]) == (8, expected)
        flags = [row["flags"].split() for row in csv.DictReader(open(place / "data/masks/world/index.csv"))]
        assert sum("no_boundary" in f for f in flags) == expected


def test_each_data_set_is_scored_apart_and_one_of_boxes_by_corloc_alone(place, done, world_set):
    """The curves and the numbers of an earlier run go."""
    records = done / "data/inverted/world/records"
    assert run_stage("attentioncut", "--records", records, cwd=place).code == 0
    shutil.copytree(place / "data/masks/world", place / "data/masks/world_other")
    (place / "data/masks/world_other/postprocess.txt").write_text("holes filled\n")
    argv = ["--records", records, "--wrong", records, "--methods", "other"]
    got = run_stage("evaluate", *argv, cwd=place)
    assert got.code == 0, got.err
    alone = json.loads((place / "metrics/diffusionseg.json").read_text())
    assert {key.split(".")[0] for key in alone} == {"world"}
    assert alone["world.wrong_word.auroc"] == alone["world.ac.auroc"]  # here of the same records
    assert alone["world.other.iou"] == alone["world.attentioncut.iou"] and alone["world.other.iou_std"] >= 0
    items = [replace(item, image=str(world_set / item.image), mask=str(world_set / item.mask), seed="", labels="",
                     dataset="masks") for item in read_table(world_set)]  # fmt: skip
    items[4:] = [replace(item, mask="", boxes="0 0 63 63", dataset="boxes") for item in items[4:]]
    (place / "sets").mkdir()
    (place / "sets/index.csv").write_text(table_csv(items))
    got = run_stage("evaluate", *argv, "--images", "sets", cwd=place)
    assert got.code == 0, got.err
    summary = json.loads((place / "metrics/diffusionseg.json").read_text())
    assert {key.split(".")[0] for key in summary} == {"masks", "boxes"}
    assert {"masks.attentioncut.iou", "masks.ac.auroc", "masks.other.corloc", "boxes.other.corloc"} <= set(summary)
    assert {key.split(".")[2] for key in summary if key.startswith("boxes.")} == {"corloc"}
    assert not [key for key in summary if key.startswith(("masks.", "boxes.")) and key.endswith("_std")]
    details = json.loads((place / "metrics/evaluate.json").read_text())
    assert details["postprocess"] == {"attentioncut": "none", "other": "holes filled"}
    assert {name: d["images"] for name, d in details["datasets"].items()} == {"masks": 4, "boxes": 4}
    assert sorted(p.name for p in (place / "metrics/plots").iterdir()) == [
        "iou_masks.csv", "iou_masks.png", "pr_masks.csv", "pr_masks.png"
    ]  # fmt: skip
    got = run_stage("evaluate", *argv[:-1], "none", "--metrics", "else", cwd=place)
    assert_refused(got, "data/masks/world_none/soft/s1-00000.png: expected", absent=place / "else")


def test_the_numbers_of_all_methods_come_together_sorted(place):
    (place / "a.json").write_text('{"world.x.iou": 0.5, "world.a.iou": 1}')
    (place / "b.json").write_text('{"world.m.iou": 0.25}')
    assert run_stage("summary", "--parts", "a.json,b.json", "--out", "all.json", cwd=place).code == 0
    assert list(json.loads((place / "all.json").read_text()).items()) == [
        ("world.a.iou", 1), ("world.m.iou", 0.25), ("world.x.iou", 0.5)
    ]  # fmt: skip
    (place / "b.json").write_text('{"world.a.iou": 0.25}')
    got = run_stage("summary", "--parts", "a.json,b.json", "--out", "new.json", cwd=place)
    said = "b.json: key 'world.a.iou': expected a number of its own, a.json has it"
    assert_refused(got, said, absent=place / "new.json")
    got = run_stage("summary", "--parts", "a.json,c.json", "--out", "new.json", cwd=place)
    assert_refused(got, "c.json: expected the numbers of an evaluating stage", absent=place / "new.json")


def test_noise_of_the_forward_process_belongs_to_another_picture(place, done, world_set):
    got = run_stage("reconstruction", "--inverted", done / "data/inverted/world", "--out", "rows", cwd=place)
    assert got.code == 0, got.err
    rows = {name: json.loads((place / f"rows/{name}.json").read_text())["datasets"][""] for name in ("ddim", "ddpm")}
    index = {row["sample_id"]: float(row["latent_error"])
             for row in csv.DictReader(open(done / "data/inverted/world/index.csv"))}  # fmt: skip
    items = read_table(world_set)
    means = [np.mean([index[i.sample_id] for i in items if i.seed == seed]) for seed in ("1", "2")]
    scores = rows["ddim"]["scores"]
    assert scores["reconstruction error"] == pytest.approx(np.mean(means), abs=1e-5)
    assert scores["reconstruction error_std"] == pytest.approx(np.std(means, ddof=1), abs=1e-5)
    assert rows["ddpm"]["scores"]["reconstruction error"] > 2 * scores["reconstruction error"]
    assert rows["ddpm"]["images"] == rows["ddim"]["images"] == len(items) == 8
    before = files(place / "rows")
    again = run_stage("reconstruction", "--inverted", done / "data/inverted/world", "--out", "rows", cwd=place,
                      env={"MASKMILL_WORKERS": "1"})  # fmt: skip
    assert again.code == 0 and files(place / "rows") == before
    got = run_stage("reconstruction", "--inverted", "nowhere", "--out", "new", cwd=place)
    assert_refused(got, "nowhere/index.csv: expected what stage invert_features wrote", absent=place / "new")


def test_a_table_is_made_of_rows_that_share_one_image_set(place, done):
    (place / "table").mkdir()
    shutil.copy(ROOT / "tables/diffusionseg-tab6/published.yaml", place / "table")
    for row, flag in (("1", "--no-attentioncut.use_refined"), ("6", "--attentioncut.use_refined")):
        steps = [("attentioncut", "--records", done / "data/inverted/world/records", "--out", f"masks/{row}", flag),
                 ("score", "--masks", f"masks/{row}", "--metrics", f"table/rows/{row}.json")]  # fmt: skip
        for name, *argv in steps:
            got = run_stage(name, *argv, cwd=place)
            assert got.code == 0, got.err
    assert files(place / "masks/1") != files(place / "masks/6")
    assert run_stage("table", "--table", "table", cwd=place).code == 0
    result = json.loads((place / "table/result.json").read_text())
    assert result["n"] == 8 and result["seeds"] == [1, 2]
    (place / "empty").mkdir()
    shutil.copy(place / "table/published.yaml", place / "empty")
    assert_refused(run_stage("table", "--table", "empty", cwd=place), "empty/rows: ", absent=place / "empty/result.md")
