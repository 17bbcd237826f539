"""Stages evaluate_semantic and draw_semantic as a user runs them, and label maps as files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskmill.datasets.table import read_image, read_labels, read_table, save_png
from maskmill.errors import UserError
from maskmill.report.labelmaps import labels_png, overlay, palette, read_label_map, tinted, voc_palette
from maskmill.world import CLASSES
from tests.running import ROOT, assert_refused, run_stage

NAMES = [*reversed(CLASSES), "sky"]  # another order than the truth's, and a stuff class


def world_as(names: list[str], truth: np.ndarray) -> np.ndarray:
    """True labels of the world in the numbers of ``names``, stuff as background."""
    out = np.zeros_like(truth)
    for k, name in enumerate(names, 1):
        if name in CLASSES:
            out[truth == 1 + CLASSES.index(name)] = k
    return out


@pytest.fixture
def place(tmp_path, world_set) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/world").symlink_to(world_set)
    for name in ("right", "wrong"):
        (tmp_path / name / "labels").mkdir(parents=True)
        (tmp_path / name / "classes.txt").write_text("".join(f"{n}\n" for n in NAMES))
    for item in read_table(world_set):
        truth = read_labels(world_set / item.labels)
        right = world_as(NAMES, truth)
        right[truth == 9] = 9  # sky: stuff is background in this protocol
        wrong = right.copy()
        wrong[:, :20] = 0
        for name, labels in (("right", right), ("wrong", wrong)):
            (tmp_path / name / "labels" / f"{item.sample_id}.png").write_bytes(labels_png(labels))
    return tmp_path


def evaluate(place: Path, *argv, methods="ovdiff=right,nobg=wrong"):
    return run_stage("evaluate_semantic", "--images", "data/world", "--methods", methods, "--metrics", "m/o", *argv,
                     cwd=place)  # fmt: skip


def test_scores_are_those_of_a_plain_count(place, world_set):
    got = evaluate(place)
    assert got.code == 0, got.err
    found = json.loads((place / "m/o.json").read_text())
    assert found["world.ovdiff.miou"] == 1 and found["world.ovdiff.miou_std"] == 0
    expected, pixels = [], {}
    for seed in ("1", "2"):
        pairs = []
        for item in (i for i in read_table(world_set) if i.seed == seed):
            truth = read_labels(world_set / item.labels)
            t = np.where(truth <= 8, truth, 0)
            p = t.copy()
            p[:, :20] = 0
            pairs.append((p, t))
        ious = {}
        for k in range(9):
            both = sum(((p == k) & (t == k)).sum() for p, t in pairs)
            either = sum(((p == k) | (t == k)).sum() for p, t in pairs)
            pixels[k] = pixels.get(k, 0) + sum((t == k).sum() for _, t in pairs)
            if either:
                ious[k] = both / either
        expected.append(np.mean(list(ious.values())))
    assert found["world.nobg.miou"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert found["world.nobg.miou_std"] == pytest.approx(np.std(expected, ddof=1), abs=1e-6)
    rows = list(csv.DictReader(open(place / "m/o_classes.csv")))
    assert [r["class"] for r in rows if r["method"] == "nobg"] == ["background", *CLASSES]
    assert [int(r["truth"]) for r in rows if r["method"] == "nobg"] == [pixels[k] for k in range(9)]
    for name in ("o_classes.png", "o_confusion.png"):
        assert read_image(place / "m" / name).std() > 10


def test_draws_of_several_sets_are_joined_and_stuff_can_be_scored(place, world_set):
    methods = "a=right+right"
    got = evaluate(place, "--images", "data/world,data/world", "--stuff", "class", methods=methods)
    assert got.code == 0, got.err
    found = json.loads((place / "m/o.json").read_text())
    assert 0 < found["world.a.miou"] < 1 and "world.a.miou_std" in found  # stuff that was not asked for is missed
    got = evaluate(place, "--background", "void", methods="a=wrong")
    assert got.code == 0 and json.loads((place / "m/o.json").read_text())["world.a.accuracy"] < 1


def test_void_pixels_are_not_scored(place, world_set):
    target = place / "voided"
    shutil.copytree(world_set, target)
    for item in read_table(world_set):
        labels = read_labels(world_set / item.labels)
        labels[:, :20] = 255
        save_png(labels, target / item.labels)
    got = evaluate(place, "--images", "voided")
    assert got.code == 0, got.err
    found = json.loads((place / "m/o.json").read_text())
    assert found["world.nobg.miou"] == found["world.ovdiff.miou"] == 1


def test_bad_label_maps_are_one_line(place, world_set):
    item = read_table(world_set)[0]
    path = place / "right/labels" / f"{item.sample_id}.png"
    labels, name = read_labels(path), f"right/labels/{item.sample_id}.png"

    def refused(*said, **more):
        assert_refused(evaluate(place, **more), *said, absent=place / "m/o.json")

    path.write_bytes(labels_png(labels[:32]))
    refused(f"{name}: expected a label map of 64x64 pixels as the truth, got 64x32")
    image = Image.fromarray(labels, "L")
    image.putpalette(palette()[::-1].tobytes())
    image.save(path)
    refused(f"{name}: expected the palette of this project's or of VOC's")
    save_png(np.where(labels > 0, 40, 0).astype(np.uint8), path)
    refused(f"{name}: expected labels 0 to 9, one per class, or 255, got 40")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    refused(f"{name}: expected a label map of one channel")
    path.unlink()
    refused(f"{name}: expected an image, found no such file")
    refused("--methods: expected NAME=DIR with a new name, got 'right'", methods="right")
    refused("none/classes.txt: expected the names of labels", methods="a=none")
    (place / "wrong/classes.txt").write_text("bird\nbird\n")
    refused("wrong/classes.txt: expected at least one name and each once, got 'bird' again", methods="a=wrong")


def test_label_maps_of_other_tools_are_read(tmp_path):
    labels = np.arange(64, dtype=np.uint8).reshape(8, 8) % 7
    labels[0] = 255
    plain, voc = tmp_path / "plain.png", tmp_path / "voc.png"
    save_png(labels, plain)
    image = Image.fromarray(labels, "L")
    image.putpalette(voc_palette().tobytes())
    image.save(voc)
    assert tuple(voc_palette()[15]) == (192, 128, 128) and tuple(voc_palette()[255]) == (224, 224, 192)
    for path in (plain, voc):
        assert (read_label_map(path, 6) == labels).all()
    with pytest.raises(UserError, match="expected labels 0 to 5"):
        read_label_map(voc, 5)


def test_overlays_show_what_was_found():
    assert len({tuple(c) for c in palette()[:60]}) == 60
    image = np.full((32, 48, 3), 200, np.uint8)
    labels = np.zeros((32, 48), np.uint8)
    labels[8:24, 8:24] = 2
    drawn = tinted(image, labels, (64, 96), 2)
    assert (drawn[16, 20] == palette()[2]).all() and drawn[30, 30].std() > 5 and drawn[2, 2].std() < 1
    both = overlay(image, labels, ["background", "a", "b"]), overlay(image, 0 * labels, ["background", "a", "b"])
    assert both[0].shape[1] == 48 * 8 and (both[0][:256] != both[1][:256]).any()
    assert (both[0][256:] == palette()[2]).all(-1).any() and not (both[1][256:] == palette()[2]).all(-1).any()


def test_the_grid_is_drawn(place):
    got = run_stage("draw_semantic", "--methods", "OVDiff=right,Other=wrong", "--out", "g.png",
                    "--evaluate.grid_rows", "2", cwd=place)  # fmt: skip
    assert got.code == 0, got.err
    grid = read_image(place / "g.png")
    assert got.out == "g.png: 2 pictures\n" and grid.shape[1] > 4 * 192
