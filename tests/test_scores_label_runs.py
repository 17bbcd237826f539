"""Label maps of a segmenter against those of image sets, by hand, and the stage that writes a table's row."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from maskmill.datasets.semantic import class_table
from maskmill.datasets.table import Item, save_png, table_csv
from maskmill.errors import UserError
from maskmill.scores.label_runs import joined, of_truth, of_vocabulary, score_draws, scored_classes, summarise
from maskmill.scores.semantic import PROTOCOL, SemanticScores
from stages.score_semantic import main

TABLE = [
    {"class": "aeroplane", "query": "airplane", "kind": "thing"},
    {"class": "sky", "query": "sky", "kind": "stuff"},
    {"class": "cow", "query": "cow", "kind": "thing"},
]


def test_only_the_classes_of_one_kind_are_scored():
    assert [row["class"] for row in scored_classes(TABLE, "thing")] == ["aeroplane", "cow"]
    assert scored_classes(TABLE, "all") == TABLE
    with pytest.raises(UserError, match="--kinds: expected all, thing or stuff, got 'things'"):
        scored_classes(TABLE, "things")
    with pytest.raises(UserError, match="--kinds: expected a class of kind stuff, got none among 1"):
        scored_classes(TABLE[:1], "stuff")


def test_both_numberings_are_brought_to_the_scored_one():
    things = scored_classes(TABLE, "thing")
    assert of_truth(TABLE, things)[[0, 1, 2, 3, 255, 4]].tolist() == [0, 1, 0, 2, 255, -1]  # sky is background
    assert of_truth(TABLE, TABLE)[:4].tolist() == [0, 1, 2, 3]
    found = of_vocabulary(["cow", "sky", "airplane", "unicorn"], things)  # by name or by query, in any order
    assert found[[0, 1, 2, 3, 4, 255, 5]].tolist() == [0, 2, 0, 1, 0, 255, -1]
    assert of_vocabulary(["aeroplane"], things)[1] == 1
    with pytest.raises(UserError, match="expected a vocabulary with some of aeroplane, airplane, cow, got unicorn"):
        of_vocabulary(["unicorn"], things)


def test_scores_by_hand():
    """Truth: 2 pixels of background, 1 of sky, 1 void, 2 of aeroplane, 2 of cow; one cow is called an aeroplane."""
    truth = np.array([[0, 0, 2, 255], [1, 1, 3, 3]], np.uint8)
    prediction = np.array([[0, 0, 2, 1], [3, 3, 3, 1]], np.uint8)  # vocabulary: cow, sky, aeroplane
    things = scored_classes(TABLE, "thing")
    maps = of_vocabulary(["cow", "sky", "aeroplane"], things), of_truth(TABLE, things)
    items = [Item("a", "", "a.png", seed="1")]
    found = score_draws(items, lambda i, size: prediction, lambda i: truth, things, "class", maps)
    assert list(found) == [("", "1")]
    scores = summarise({"1": found["", "1"]})
    assert scores["classes"] == {"background": 1.0, "aeroplane": pytest.approx(2 / 3), "cow": 0.5}
    assert scores["scores"]["miou"] == pytest.approx((1 + 2 / 3 + 1 / 2) / 3) and scores["images"] == 1
    assert "miou_std" not in scores["scores"] and scores["draws"] == ["1"]
    with pytest.raises(UserError, match="^a: prediction: expected labels 0 to 3 or 255, got 4"):
        score_draws(items, lambda i, size: prediction + (prediction == 3), lambda i: truth, things, "class", maps)
    with pytest.raises(UserError, match="^a: expected a label map of the size of the truth"):
        score_draws(items, lambda i, size: prediction[:1], lambda i: truth, things, "class", maps)


def draw(correct: int, wrong: int) -> SemanticScores:
    scores = SemanticScores(["a"])
    scores.update(np.array([[1] * (correct + wrong)]), np.array([[1] * correct + [0] * wrong]))
    return scores


def test_draws_of_several_sets_are_joined_in_their_order():
    one = {("", "1"): draw(1, 1), ("", "2"): draw(2, 0), ("VOC", ""): draw(1, 3)}
    two = {("", "4"): draw(3, 1), ("", "5"): draw(1, 1)}
    found = joined([one, two])
    assert list(found) == ["", "VOC"] and list(found[""]) == ["1+4", "2+5"] and list(found["VOC"]) == [""]
    assert found[""]["1+4"].matrix.tolist() == [[0, 2, 0], [0, 4, 0]]  # four right, two of background called a
    scores = summarise(found[""])
    iou = [4 / 6, 3 / 4]
    assert scores["classes"]["a"] == pytest.approx(np.mean(iou)) and scores["images"] == 4
    assert scores["scores"]["miou_classes_std"] == pytest.approx(np.std(iou, ddof=1))
    assert one["", "1"].matrix.sum() == 2  # what went in is as it was
    with pytest.raises(UserError, match="expected image sets of the same number of draws, got 1 and 2"):
        joined([one, {("", "4"): draw(1, 0)}])


@pytest.fixture
def run(run_main):
    return partial(run_main, main)


def image_set(folder: Path, seeds: str, labels: np.ndarray) -> Path:
    items = []
    for seed in seeds:
        save_png(labels, folder / "labels" / f"s{seed}.png")
        items.append(Item(f"s{seed}", "", f"images/s{seed}.png", labels=f"labels/s{seed}.png", seed=seed))
    (folder / "index.csv").write_text(table_csv(items))
    return folder


def predictions(folder: Path, seeds: str, labels: np.ndarray, classes: str) -> Path:
    folder.mkdir()
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes.split(",")))
    for seed in seeds:
        save_png(labels, folder / "labels" / f"s{seed}.png")
    return folder


def test_the_stage_writes_a_row_that_tables_read(tmp_path, run):
    names = [row["class"] for row in class_table("world")]
    bird, grass = names.index("bird") + 1, names.index("grass") + 1
    truth = np.array([[bird, bird, grass, grass]], np.uint8)
    sets = [image_set(tmp_path / name, seeds, truth) for name, seeds in (("two", "12"), ("one", "45"))]
    folders = [predictions(tmp_path / f"{k}", seeds, np.array([[2, 0, 0, 1]], np.uint8), "grass,bird")
               for k, seeds in enumerate(("12", "45"))]  # fmt: skip
    given = ["--images", f"{sets[0]},{sets[1]}", "--labels", f"{folders[0]},{folders[1]}", "--metrics",
             tmp_path / "row.json", "--truth", "world"]  # fmt: skip
    said = run(*given, "--kinds", "thing")
    found = json.loads((tmp_path / "row.json").read_text())
    own = found["datasets"][""]
    assert (own["images"], own["draws"]) == (4, ["1+4", "2+5"])
    assert own["scores"]["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2, abs=1e-6) and own["scores"]["miou_std"] == 0
    assert "4 images: miou 0.583 ± 0.000" in said and "8 classes of kind thing" in found["protocol"]["miou"]
    run(*given, "--kinds", "all", "--background", "void")
    own = json.loads((tmp_path / "row.json").read_text())["datasets"][""]
    assert own["classes"]["bird"] == own["classes"]["grass"] == 0.5 and own["classes"]["dog"] is None
    assert own["scores"]["miou"] == 0.5  # a prediction of background is a miss


def test_errors_are_one_line_that_says_what_to_do(tmp_path, run):
    truth = image_set(tmp_path / "set", "1", np.array([[1, 2]], np.uint8))
    given = ["--images", truth, "--labels", tmp_path / "no", "--metrics", tmp_path / "row.json"]
    with pytest.raises(UserError, match="no/classes.txt: expected the names of labels 1, 2, .*, got: No such file"):
        run(*given)
    with pytest.raises(UserError, match="--labels: expected one folder for each image set, got 2 for 1"):
        run(*given, "--labels", "a,b")
    with pytest.raises(UserError, match="--truth: expected a data set of .*things.csv, got 'pets'"):
        run(*given, "--truth", "pets")
    with pytest.raises(UserError, match="--background: expected class or void, got 'both'"):
        run(*given, "--background", "both")
    (truth / "index.csv").write_text("sample_id,class,image\ns1,,images/s1.png\n")
    folder = predictions(tmp_path / "p", "1", np.array([[1, 0]], np.uint8), "bird")
    with pytest.raises(UserError, match="set/index.csv: s1: expected a label map in the column 'labels', got none"):
        run(*given, "--labels", folder)
    assert not (tmp_path / "row.json").exists()


def test_public_data_sets_are_scored_each_in_its_own_way(tmp_path, run):
    table = {key: [row["class"] for row in class_table(key)] for key in ("voc", "ade20k")}
    dog, sky = table["voc"].index("dog") + 1, table["ade20k"].index("sky") + 1
    for key, label in (("voc", dog), ("ade20k", sky), ("context", 0)):
        truth = image_set(tmp_path / "sets" / key, "1", np.array([[label, label, 0, 255]], np.uint8))
        words = "" if key == "context" else "".join(f"{row['query']}\n" for row in class_table(key))
        (truth / "classes.txt").write_text(words)  # Context is not at hand
    right, half = np.array([[1, 1, 1, 1]], np.uint8), np.array([[1, 0, 0, 0]], np.uint8)
    (tmp_path / "maps").mkdir()
    predictions(tmp_path / "maps/voc", "1", half, "dog,cat")
    predictions(tmp_path / "maps/ade20k", "1", right, "sky")
    given = ("--images", tmp_path / "sets/{dataset}", "--labels", tmp_path / "maps/{protocol}", "--metrics",
             tmp_path / "row.json")  # fmt: skip
    said = run(*given, "--protocols", "voc, context,voc_nobg,ade20k,context_nobg")
    found = json.loads((tmp_path / "row.json").read_text())
    scores = {name: own["scores"] for name, own in found["datasets"].items()}
    assert scores["VOC"]["miou"] == pytest.approx((1 / 2 + 1 / 2) / 2) and scores["ADE20K"]["miou"] == 1
    assert scores["VOC-20"] == {} and list(scores) == ["VOC", "VOC-20", "ADE20K"]
    assert {(own["images"], *own["draws"]) for own in found["datasets"].values()} == {(1, "1")}
    assert f"VOC: {PROTOCOL['class']}; VOC-20, ADE20K: {PROTOCOL['void']}" == found["protocol"]["miou"]
    assert f"{tmp_path}/row.json: Context, Context-59: not at hand\n" in said and "ADE20K: 1 images: miou 1.000" in said
    with pytest.raises(UserError, match="--protocols: expected some of voc, voc_nobg, .*, got 'pets'"):
        run(*given, "--protocols", "voc,pets")
    with pytest.raises(UserError, match="expected the classes of a data set, found none; run stages/semantic_bench"):
        run(*given, "--protocols", "cityscapes")
    predictions(tmp_path / "maps/voc_nobg", "1", half, "unicorn")
    with pytest.raises(UserError, match="voc_nobg/classes.txt: expected a vocabulary with some of aeroplane, "):
        run(*given, "--protocols", "voc_nobg")
