"""Stages support, build_prototypes and kinds as a user runs them: class by class, killed, resumed, and refusals."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from maskmill import params
from maskmill.datasets.table import read_image, read_table
from maskmill.masks.coco import decode
from maskmill.prompts import read_csv
from maskmill.segmenters.prototypes import Bank
from maskmill.segmenters.support import picture_of
from maskmill.store import ShardWriter, Store
from tests.running import ROOT, Finished, files, run_stage, small_params

SMALL = {"support.count": 9, "support.steps": 2, "build_prototypes.parts": 3, "build_prototypes.size": 16,
         "build_prototypes.grid_rows": 9}  # fmt: skip
CLASSES = ("bird", "dog")


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.as_posix(): (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def arrange(folder: Path, model: Path) -> Path:
    folder.mkdir()
    small_params(folder, SMALL)
    (folder / "data").mkdir()
    (folder / "data/mini").symlink_to(model)
    (folder / "two.txt").write_text("bird\ndog\n")
    (folder / "three.txt").write_text("bird\nfish\ndog\n")
    return folder


def run(place: Path, name: str, *argv: object, **more) -> Finished:
    got = run_stage(name, *argv, cwd=place, **more)
    assert got.code == 0, got.err
    return got


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_model) -> Path:
    """Two classes, from the list to the bank; read only."""
    place = arrange(tmp_path_factory.mktemp("done") / "a place", tiny_model)
    assert run(place, "support", "--classes-file", "two.txt").out == (
        "data/support: support sets of 2 classes, 9 pictures each; 0 were finished already\n"
    )
    assert run(place, "build_prototypes", "--classes-file", "two.txt").out == (
        "data/prototypes: 2 classes built, 0 were finished already, 0 kept out\n"
    )
    return place


@pytest.fixture
def place(done, tmp_path) -> Path:
    """A copy of it, with the times of its files."""
    return Path(shutil.copytree(done, tmp_path / "place", symlinks=True))


def flattened(place: Path, name: str, but: int = 0) -> None:
    """Make the attention of a class's support images say nothing, but that of the first few."""
    folder = place / "data/support" / name / "records"
    records = Store(folder)
    made = {}
    for k, (id, record) in enumerate(records.items()):
        flat = {key: np.ones_like(v) if key.startswith("cross") else v for key, v in record.items()}
        made[id] = record if k < but else flat
    shutil.rmtree(folder)
    with ShardWriter(folder, list(made), "flat", records.meta, 8, place / "scratch/flat") as writer:
        for shard, ids in writer.missing():
            writer.put(shard, {id: made[id] for id in ids})
        writer.assemble()


# --- what they write --------------------------------------------------------------------------------------------------


def test_a_support_set_is_an_image_set_with_records_and_prompts(done):
    for name in CLASSES:
        folder = done / "data/support" / name
        rows, items, records = read_csv(folder / "prompts.csv"), read_table(folder / "set"), Store(folder / "records")
        assert [r.sample_id for r in rows] == [i.sample_id for i in items] == records.ids and len(rows) == 9
        assert {i.cls for i in items} == {name} and {r.prompt for r in rows} == {f"A good picture of a {name}"}
        assert read_image(folder / "set" / items[0].image).shape == (64, 64, 3)
        assert records.read(items[0].sample_id)["cross_16"].shape[0] == 4
    assert not [p for p in (done / "scratch/support").glob("*/*") if p.is_dir()]


def test_the_bank_holds_every_class_and_links_lead_to_pictures_and_regions(done):
    bank = Bank(done / "data/prototypes")
    assert bank.names() == list(CLASSES)
    for name in CLASSES:
        found = bank.read(name, bank.facts(name))
        assert set(found.vectors) == {"sd", "clip"} and found.usable and len(found.images) == 9
        rows = {r["sample_id"]: r for r in csv.DictReader(open(done / "data/prototypes" / name / "support.csv"))}
        assert tuple(rows) == found.images
        for key, links in found.links.items():
            assert len(links) == len(found.vectors[key])
            for link in links:
                assert picture_of(done / "data/support", name, link.image).is_file()
                region = decode(link.region)
                assert region[link.cell] and float(rows[link.image][link.ground]) > 0
        report = json.loads((done / f"metrics/ovdiff/support-{name}.json").read_text())
        assert report["images"] == 9 and not report["kept_out"]
        assert 0 < report["threshold_background"] < report["threshold_foreground"] < 1
        assert report["prototypes_sd"]["foreground_instance"] == 9 - report["without_foreground"]
        assert (done / f"metrics/ovdiff/support-{name}.png").stat().st_size > 1000


def test_one_class_more_touches_no_file_of_the_others_and_is_the_same_alone(done, place):
    parts = ("data/support", "data/prototypes", "metrics/ovdiff")
    before = {part: stamps(place / part) for part in parts}
    assert "2 were finished already" in run(place, "support", "--classes-file", "three.txt").out
    got = run(place, "build_prototypes", "--classes-file", "three.txt")
    assert "1 classes built, 2 were finished already" in got.out
    for part in parts:
        after = stamps(place / part)
        assert before[part].items() <= after.items() and len(after) > len(before[part]), part
        assert files(done / part).items() <= files(place / part).items(), part
        assert {path for path in after.keys() - before[part].keys() if "fish" not in path} == set(), part
    alone = ["--support", "alone", "--out", "bank", "--metrics", "m"]
    run(place, "support", "--class", "fish", "--out", "alone", "--scratch", "s2")
    run(place, "build_prototypes", "--class", "fish", *alone)
    assert files(place / "alone") == {k: v for k, v in files(place / "data/support").items() if k.startswith("fish/")}
    assert files(place / "bank") == {k: v for k, v in files(place / "data/prototypes").items() if k.startswith("fish/")}


def test_files_do_not_depend_on_the_number_of_workers(done, place):
    env = {"MASKMILL_WORKERS": "2"}
    for folder in ("data/support", "data/prototypes", "metrics"):
        shutil.rmtree(place / folder)
    run(place, "support", "--classes-file", "two.txt", env=env)
    run(place, "build_prototypes", "--classes-file", "two.txt", env=env)
    for part in ("data/support", "data/prototypes", "metrics/ovdiff"):
        assert files(place / part) == files(done / part), part


# --- killed -----------------------------------------------------------------------------------------------------------


def test_support_killed_after_a_shard_goes_on_there(done, place):
    shutil.rmtree(place / "data/support")
    killed = run_stage("support", "--classes-file", "two.txt", cwd=place, kill_after="store.ShardFolder.put 3")
    assert killed.code == -signal.SIGKILL
    assert [p.name for p in (place / "data/support").iterdir()] == ["bird"]  # its two shards were done
    (kept,) = (place / "scratch/support/dog").glob("*/00000.safetensors")
    node, finished = kept.stat().st_ino, stamps(place / "data/support/bird")
    run(place, "support", "--classes-file", "two.txt")
    assert (place / "data/support/dog/records/00000.safetensors").stat().st_ino == node
    assert stamps(place / "data/support/bird") == finished
    assert files(place / "data/support") == files(done / "data/support")


@pytest.mark.parametrize("moment", ["store.write_atomically", "store.write_atomically 2", "store.write_atomically 3"])
def test_build_prototypes_killed_leaves_no_half_class(done, place, moment):
    shutil.rmtree(place / "data/prototypes")
    killed = run_stage("build_prototypes", "--classes-file", "two.txt", cwd=place, kill_after=moment)
    assert killed.code == -signal.SIGKILL
    assert Bank(place / "data/prototypes").names() in ([], ["bird"])
    run(place, "build_prototypes", "--classes-file", "two.txt")
    assert files(place / "data/prototypes") == files(done / "data/prototypes")


# --- parameters and regions -------------------------------------------------------------------------------------------


def test_another_parameter_makes_a_class_anew(place):
    before = Bank(place / "data/prototypes").fingerprint("bird")
    got = run(place, "build_prototypes", "--class", "bird", "--build_prototypes.parts", "2")
    assert "1 classes built" in got.out and Bank(place / "data/prototypes").fingerprint("bird") != before
    report = json.loads((place / "metrics/ovdiff/support-bird.json").read_text())
    assert report["prototypes_sd"]["foreground_part"] == 2
    got = run(place, "support", "--class", "bird", "--support.guidance", "2")
    assert "0 were finished" in got.out
    assert "1 classes built" in run(place, "build_prototypes", "--class", "bird", "--build_prototypes.parts", "2").out


def test_maskcut_and_proposals(place):
    ids = [f"0000{i}-bird" for i in range(9)]
    square = {"size": [64, 64], "counts": [64 * 16, *[24, 40] * 31, 24, 40 + 64 * 16]}
    (place / "p.json").write_text(json.dumps([{"image_id": i, "segmentation": square, "score": 1} for i in ids]))
    more = ["--build_prototypes.below", "1"]
    run(place, "build_prototypes", "--class", "bird", "--build_prototypes.regions", "maskcut", *more, "--out", "cut")
    run(place, "build_prototypes", "--class", "bird", "--build_prototypes.regions", "proposals",
        "--build_prototypes.proposals", "p.json", *more, "--out", "drawn")  # fmt: skip
    rows = list(csv.DictReader(open(place / "drawn/bird/support.csv")))
    shares = {float(r["foreground"]) for r in rows}
    assert len(shares) <= 2 and any(abs(s - 0.1875) < 0.02 for s in shares)  # the square, or all the rest
    assert files(place / "cut") != files(place / "drawn")


# --- what they refuse -------------------------------------------------------------------------------------------------


def test_a_class_without_foreground_is_reported_kept_out_and_counted(place):
    flattened(place, "dog")
    got = run(place, "build_prototypes", "--classes-file", "two.txt")
    assert got.out == "data/prototypes: 0 classes built, 1 were finished already, 1 kept out\n"
    assert got.err == "class 'dog': kept out, none of its support images has a foreground; see metrics/ovdiff\n"
    assert Bank(place / "data/prototypes").names() == ["bird"]
    report = json.loads((place / "metrics/ovdiff/support-dog.json").read_text())
    assert report["kept_out"] and report["without_foreground"] == 9 and report["fallback"]
    rows = list(csv.DictReader(open(place / "data/prototypes/dog/support.csv")))
    assert {r["flags"] for r in rows} == {"no_foreground"}
    (place / "dog.txt").write_text("dog\n")
    got = run_stage("build_prototypes", "--classes-file", "dog.txt", cwd=place)
    assert got.code == 2 and got.err.splitlines()[-1] == (
        "error: dog.txt: expected a class whose support images have a foreground, found none"
    )


def test_single_images_without_foreground_are_counted(place):
    flattened(place, "dog", but=5)
    run(place, "build_prototypes", "--class", "dog")
    report = json.loads((place / "metrics/ovdiff/support-dog.json").read_text())
    assert not report["kept_out"] and report["without_foreground"] >= 4
    assert report["prototypes_sd"]["foreground_instance"] == 9 - report["without_foreground"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [("support", ["--classes-file", "empty.txt"], "empty.txt: expected one class per line, got no class"),
     ("support", ["--classes-file", "twice.txt"], "twice.txt: line 3: expected each class once, got 'BIRD' again"),
     ("support", ["--classes-file", "none.txt"], "none.txt: expected a readable class file"),
     ("support", [], "expected either --class NAME or --classes-file FILE, got neither"),
     ("support", ["--class", "bird", "--support.template", "a bird"], "support.template: expected {} or {a}"),
     ("support", ["--class", "bird", "--support.negative", "bad " * 40], "support.negative: expected a prompt of at"),
     ("support", ["--class", "bird", "--support.size", "66"], "expected a multiple of 4"),
     ("build_prototypes", ["--classes-file", "empty.txt"], "empty.txt: expected one class per line"),
     ("build_prototypes", ["--classes-file", "twice.txt"], "expected each class once"),
     ("build_prototypes", ["--class", "cat"], "data/support/cat: expected the support set of the class 'cat'"),
     ("build_prototypes", ["--class", "dog", "--extractors.names", "dino"], "extractors.dino.id: expected a folder"),
     ("build_prototypes", ["--class", "dog", "--build_prototypes.regions", "proposals"], "build_prototypes.proposals"),
     ("build_prototypes", ["--class", "dog", "--build_prototypes.regions", "maskcut", "--extractors.names", "clip"],
      "build_prototypes.maskcut.extractor: expected one of extractors.names (clip), got 'sd'"),
     ("kinds", ["--classes-file", "twice.txt"], "expected each class once"),
     ("kinds", [], "--classes-file: expected a text file"),
     ("kinds", ["--classes-file", "two.txt", "--kinds.source", "llm"], "kinds.llm: expected a language model")],
)  # fmt: skip
def test_bad_input_is_one_line(done, name, options, said, tmp_path):
    for file, text in (("empty.txt", "# nothing\n\n"), ("twice.txt", "bird\ndog\nBIRD\n")):
        (done / file).write_text(text)
    got = run_stage(name, *options, "--out", tmp_path / "deep/out", cwd=done)
    assert (got.code, got.err.count("\n"), got.err[:7]) == (2, 1, "error: "), got.err
    assert said in got.err
    assert not (tmp_path / "deep/out").exists() and not list(tmp_path.glob("deep/.*.part"))


def test_kinds_of_a_list(place):
    (place / "list.txt").write_text("dog\nsky\ngizmo\n")
    got = run(place, "kinds", "--classes-file", "list.txt")
    assert got.out == "kinds.csv: 2 things, 1 stuff; unknown, taken for things: gizmo\n"
    assert (place / "kinds.csv").read_text() == (
        "class,query,kind,source\ndog,dog,thing,voc\nsky,sky,stuff,context\ngizmo,gizmo,thing,unknown\n"
    )


def test_the_pipelines_classes_are_the_worlds():
    from maskmill import world

    committed = params.load(ROOT / "params.yaml")
    assert sorted(committed.vocabulary.classes) == sorted(world.CLASSES)
