"""Scores of an image set draw by draw, on 4x4 pictures whose every number is counted by hand, and all scores against an
obvious slow implementation on random and on real maps."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import measure

from maskmill.datasets.table import Item, boxes_text, parse_boxes, save_png, table_csv
from maskmill.errors import UserError
from maskmill.scores.runs import (
    Run,
    pooled,
    postprocessing_of,
    saved_prediction,
    score_datasets,
    score_set,
    summarise_datasets,
    truth_of,
)
from stages.score import main

REAL = os.environ.get("MASKMILL_REAL", "")

TRUTH = np.zeros((4, 4), bool)
TRUTH[:2, :2] = True  # 4 of 16 pixels
TWICE = np.zeros((4, 4), bool)
TWICE[:2, :] = True  # all of it and 4 pixels more: IoU 4/8, right 12/16, box 2x4 against 2x2: IoU .5, no hit
NOTHING = np.zeros((4, 4), bool)  # IoU 0, right 12/16, no box
F_TWICE = 1.3 * 0.5 * 1 / (0.3 * 0.5 + 1)  # precision 1/2, recall 1


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in "abc":
        save_png(TRUTH, tmp_path / "truth" / f"{name}.png")
    return tmp_path


ITEMS = [
    Item("a", "bird", "-", "truth/a.png", seed="2"),
    Item("b", "dog", "-", "truth/b.png", seed="1"),
    Item("c", "bird", "-", "truth/c.png", seed="2"),
]
PREDICTIONS = {"a": (TRUTH, TRUTH), "b": (NOTHING, NOTHING), "c": (TWICE, TWICE)}


@pytest.fixture
def runs(folder) -> dict[str, Run]:
    return score_set(ITEMS, folder, lambda item: PREDICTIONS[item.sample_id])


def test_draws_are_kept_apart_in_the_order_of_their_first_image(runs):
    assert list(runs) == ["2", "1"]
    assert runs["2"].headline() == pytest.approx(
        {"iou": (1 + 0.5) / 2, "acc": (1 + 0.75) / 2, "maxf": (1 + F_TWICE) / 2, "corloc": 0.5}
    )
    assert runs["1"].headline() == pytest.approx({"iou": 0.0, "acc": 0.75, "maxf": 0.0, "corloc": 0.0})
    assert runs["1"].corloc.result()["no_prediction"] == 1


def test_pooled_is_as_if_all_images_had_been_in_one_draw(runs, folder):
    result = pooled(list(runs.values())).result()
    assert result["n"] == 3 and result["iou"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert result["maxf"] == pytest.approx((1 + F_TWICE + 0) / 3)
    assert result["iou_pooled"] == pytest.approx(8 / 16)  # tp 4 + 4 + 0, union 4 + 8 + 4
    assert {k: (v["n"], v["iou"]) for k, v in result["classes"].items()} == {"bird": (2, 0.75), "dog": (1, 0.0)}
    undivided = [Item(i.sample_id, i.cls, i.image, i.mask) for i in ITEMS]
    one = score_set(undivided, folder, lambda item: PREDICTIONS[item.sample_id])
    assert list(one) == [""]
    alone = one[""].saliency.result()
    assert {k: v for k, v in alone.items() if isinstance(v, float)} == pytest.approx(
        {k: v for k, v in result.items() if isinstance(v, float)}
    )
    assert runs["2"].headline()["iou"] == 0.75  # pooling leaves the draws as they were


def test_the_true_box_is_that_of_the_whole_mask():
    """An object that another one cuts in two has one box around both halves."""
    split = np.zeros((4, 6), bool)
    split[1:3, :2] = split[1:3, 4:] = True
    run = Run()
    run.update((split, split), split, "car", "x")  # predicted: the box of one half, 2x2 of 2x6, IoU 1/3
    assert run.corloc.result()["hits"] == 0
    whole = split.copy()
    whole[1:3, 2:4] = True
    run.update((whole, whole), split, "car", "y")
    assert run.corloc.result()["hits"] == 1


def test_an_empty_truth_has_no_box_and_counts():
    run = Run()
    run.update((NOTHING, NOTHING), NOTHING, "car", "x")
    assert run.headline() == {"iou": 1.0, "acc": 1.0, "maxf": 1.0, "corloc": 0.0}
    assert run.corloc.result()["no_truth"] == 1


def test_true_boxes_of_the_data_set_come_before_the_masks_own():
    """The box of TWICE, 4x2, has IoU .5 with that of the mask, 2x2, and 1 with the box that the data set gives."""
    run = Run()
    run.update((TWICE, TWICE), TRUTH, "bird", "x")
    assert run.headline()["corloc"] == 0.0
    run.update((TWICE, TWICE), TRUTH, "bird", "y", [(0, 0, 3, 1), (9, 9, 9, 9)])
    assert run.headline()["corloc"] == 0.5 and run.headline()["iou"] == 0.5


def test_boxes_alone_give_corloc_alone():
    run = Run()
    run.update((TWICE, TWICE), None, "", "x", [(0, 0, 3, 1)])
    run.update((NOTHING, NOTHING), None, "", "y", [(0, 0, 3, 1)])
    assert run.headline() == {"corloc": 0.5}


def test_masks_for_some_images_of_a_draw_are_refused_and_not_averaged_with_the_rest():
    run = Run()
    run.update((TRUTH, TRUTH), TRUTH, "", "x")
    run.update((TRUTH, TRUTH), None, "", "y", [(0, 0, 1, 1)])
    with pytest.raises(UserError, match="a ground-truth mask for every image of a data set or for none, got 1 for 2"):
        run.headline()


@pytest.fixture
def mixed(folder) -> list[Item]:
    """Two data sets in turns: masks in two draws, and boxes in one."""
    save_png(np.zeros((4, 4, 3), np.uint8), folder / "photographs/v.png")
    absolute = str(folder / "photographs/v.png")
    return [
        Item("A/a", "bird", "-", "truth/a.png", seed="1", dataset="A"),
        Item("V/p", "", "photographs/v.png", dataset="V", boxes="0 0 1 1"),
        Item("A/b", "dog", "-", "truth/b.png", seed="2", dataset="A"),
        Item("V/q", "", absolute, dataset="V", boxes="0 0 1 1;0 0 3 1"),
        Item("A/c", "bird", "-", "truth/c.png", seed="1", dataset="A"),
    ]


SAID = {"A/a": (TRUTH, TRUTH), "A/b": (NOTHING, NOTHING), "A/c": (TWICE, TWICE), "V/p": (TWICE, TWICE),
        "V/q": (TWICE, TWICE)}  # fmt: skip


def test_data_sets_are_scored_apart(mixed, folder):
    scored = score_datasets(mixed, folder, lambda item: SAID[item.sample_id])
    assert {name: list(runs) for name, runs in scored.items()} == {"A": ["1", "2"], "V": [""]}
    alone = score_set([i for i in mixed if i.dataset == "A"], folder, lambda item: SAID[item.sample_id])
    assert {d: run.headline() for d, run in scored["A"].items()} == {d: run.headline() for d, run in alone.items()}
    assert scored["V"][""].headline() == {"corloc": 0.5}
    summary = summarise_datasets(scored)
    assert summary["datasets"]["V"] == {"scores": {"corloc": 0.5}, "images": 2, "draws": [""]}
    masks = summary["datasets"]["A"]
    assert (masks["images"], masks["draws"]) == (3, ["1", "2"])
    # draws: IoU .75 and 0, Acc .875 and .75, CorLoc .5 and 0; the spread of two numbers is their distance / sqrt 2
    assert masks["scores"] == pytest.approx({
        "iou": 0.375, "iou_std": 0.75 / 2**0.5, "acc": 0.8125, "acc_std": 0.125 / 2**0.5, "maxf": (1 + F_TWICE) / 4,
        "maxf_std": (1 + F_TWICE) / 2 / 2**0.5, "corloc": 0.25, "corloc_std": 0.5 / 2**0.5})  # fmt: skip
    assert list(summary["protocol"]) == ["acc", "iou", "maxf", "corloc", "std"]
    one = summarise_datasets({"V": scored["V"]})
    assert list(one["protocol"]) == ["corloc"] and "the data set's own" in one["protocol"]["corloc"]


def test_a_mask_of_another_size_than_a_photograph_with_boxes_is_named(mixed, folder):
    small = np.ones((2, 2), bool)
    with pytest.raises(UserError, match=r"sample V/p: expected a mask of the image's size \(4, 4\), got \(2, 2\)"):
        score_datasets(mixed[1:2], folder, lambda item: (small, small))


def test_what_was_done_to_the_masks_is_what_their_folder_says(tmp_path):
    assert postprocessing_of(tmp_path) == "none"
    (tmp_path / "postprocess.txt").write_text("bilateral solver, holes filled\n")
    assert postprocessing_of(tmp_path) == "bilateral solver, holes filled"


def test_saved_predictions_are_the_soft_map_and_the_mask(tmp_path):
    soft = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    save_png(soft, tmp_path / "soft" / "a.png")
    save_png(TRUTH, tmp_path / "masks" / "a.png")
    found_soft, found_mask = saved_prediction(tmp_path, ITEMS[0])
    assert np.array_equal(found_soft, soft) and np.array_equal(found_mask, TRUTH) and found_mask.dtype == bool


@pytest.mark.parametrize("kind", ["soft", "masks"])
def test_a_missing_prediction_is_named(tmp_path, kind):
    for name in {"soft", "masks"} - {kind}:
        save_png(TRUTH, tmp_path / name / "a.png")
    with pytest.raises(UserError, match=rf"{tmp_path / kind / 'a.png'}: expected an image, found no such file"):
        saved_prediction(tmp_path, ITEMS[0])


def test_an_image_without_ground_truth_is_named(folder):
    with pytest.raises(UserError, match=r"index.csv: a: expected a ground-truth mask"):
        truth_of(folder, Item("a", "bird", "-"))
    with pytest.raises(UserError, match="z.png: expected an image, found no such file"):
        truth_of(folder, Item("z", "bird", "-", "truth/z.png"))


def test_a_prediction_of_another_size_is_named(folder):
    small = np.ones((2, 2), bool)
    with pytest.raises(UserError, match="sample a: expected one size"):
        score_set(ITEMS[:1], folder, lambda item: (small, small))


def test_no_image_is_an_error_when_scored(folder):
    assert score_set([], folder, lambda item: PREDICTIONS["a"]) == {}
    with pytest.raises(UserError, match="at least one image"):
        pooled([]).result()


# --- an obvious slow implementation -----------------------------------------------------------------------------------


def slow_scores(samples: list[tuple], box_of) -> dict[str, float]:
    """All scores of (soft uint8, mask, truth, true boxes or none) straight from their definitions."""
    accs, ious, fs, hits = [], [], [], []
    for soft, mask, truth, boxes in samples:
        union = (mask | truth).sum()
        accs.append((mask == truth).mean())
        ious.append((mask & truth).sum() / union if union else 1.0)
        fs.append([slow_f(soft >= k, truth) for k in range(1, 256)])
        rows, columns = np.nonzero(truth)
        whole = [(columns.min(), rows.min(), columns.max(), rows.max())] if rows.size else []
        box = box_of(mask)
        hits.append(box is not None and any(slow_box_iou(box, true) > 0.5 for true in boxes or whole))
    fs = np.array(fs)
    return {"acc": np.mean(accs), "iou": np.mean(ious), "maxf": fs.mean(0).max(), "maxf_per_image": fs.max(1).mean(),
            "corloc": np.mean(hits)}  # fmt: skip


def slow_f(mask: np.ndarray, truth: np.ndarray) -> float:
    right, claimed, real = np.count_nonzero(mask & truth), np.count_nonzero(mask), np.count_nonzero(truth)
    if not right:
        return float(claimed == real == 0)
    precision, recall = right / claimed, right / real
    return 1.3 * precision * recall / (0.3 * precision + recall)


def slow_box_iou(a: tuple, b: tuple) -> float:
    """By painting both and counting pixels."""
    side = int(max(*a, *b)) + 1
    painted = np.zeros((2, side, side), bool)
    for canvas, (x0, y0, x1, y1) in zip(painted, (a, b), strict=True):
        canvas[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
    return np.count_nonzero(painted.all(0)) / np.count_nonzero(painted.any(0))


def flooded_box(mask: np.ndarray) -> tuple | None:
    """The box of the largest component, found by flooding; of equal ones the first."""
    left, best = {(y, x) for y, x in zip(*np.nonzero(mask), strict=True)}, set()
    for start in sorted(left):
        found, edge = set(), [start] if start in left else []
        while edge:
            y, x = edge.pop()
            if (y, x) in left:
                left.remove((y, x))
                found.add((y, x))
                edge += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        best = found if len(found) > len(best) else best
    rows, columns = [y for y, _ in best], [x for _, x in best]
    return (min(columns), min(rows), max(columns), max(rows)) if best else None


def library_box(mask: np.ndarray) -> tuple | None:
    """The same by scikit-image, for large maps."""
    regions = measure.regionprops(measure.label(mask, connectivity=2))
    if not regions:
        return None
    y0, x0, y1, x1 = max(regions, key=lambda region: region.area).bbox
    return x0, y0, x1 - 1, y1 - 1


def all_scores(run: Run) -> dict[str, float]:
    result = run.saliency.result()
    return {**run.headline(), "maxf_per_image": result["maxf_per_image"]}


def test_random_maps_agree_with_the_slow_implementation(tmp_path):
    rng = np.random.default_rng(0)
    items, samples = [], {}
    for i in range(40):
        height, width = 9 + i % 5, 11 + i % 3
        y, x = np.mgrid[:height, :width]
        truth = (y - rng.uniform(2, 8)) ** 2 + (x - rng.uniform(2, 9)) ** 2 < rng.uniform(0, 16)  # sometimes empty
        soft = np.clip(150.0 * truth + rng.normal(60, 60, truth.shape), 0, 255).astype(np.uint8)
        soft[:] = 0 if i == 7 else soft
        mask = soft > rng.integers(90, 150)
        corner = rng.integers(0, 6, 2)
        x0, y0 = map(int, corner)
        boxes = [(x0, y0, x0 + 4, y0 + 5), (0, 0, 2, 2)] if i % 3 else []
        save_png(truth, tmp_path / f"truth/{i}.png")
        save_png(soft, tmp_path / f"soft/{i}.png")
        save_png(mask, tmp_path / f"masks/{i}.png")
        items.append(Item(str(i), "", "-", f"truth/{i}.png", boxes=boxes_text(boxes)))
        samples[str(i)] = (soft, mask, truth, boxes)
    run = score_datasets(items, tmp_path, lambda item: saved_prediction(tmp_path, item))[""][""]
    want = slow_scores([*samples.values()], flooded_box)
    assert 0.1 < want["corloc"] < 0.9 and any(not truth.any() for _, _, truth, _ in samples.values())
    assert all_scores(run) == pytest.approx(want, abs=1e-9)


@pytest.mark.skipif(not REAL, reason="MASKMILL_REAL not set")
def test_real_maps_agree_with_the_slow_implementation():
    """One hundred photographs, human masks, and the saliency maps that a published method made of them."""
    folder, samples, items = Path(REAL, "sod"), {}, []
    for path in sorted((folder / "predictions/Amulet").glob("*.png")):
        soft = np.asarray(Image.open(path).convert("L"))
        truth = np.asarray(Image.open(folder / "ground_truth_mask" / path.name).convert("L")) > 127
        samples[path.stem] = (soft, soft > 127, truth, [])
        items.append(Item(path.stem, "", f"images/{path.stem}.jpg", f"ground_truth_mask/{path.name}"))
    assert len(samples) == 100
    run = score_set(items, folder, lambda item: samples[item.sample_id][:2])[""]
    want = slow_scores([*samples.values()], library_box)
    assert all_scores(run) == pytest.approx(want, abs=1e-9)
    assert want["maxf_per_image"] > want["maxf"] + 0.01


@pytest.mark.skipif(not REAL, reason="MASKMILL_REAL not set")
def test_corloc_of_real_photographs_is_that_of_half_open_boxes():
    """The central rectangle as prediction, scored against VOC's boxes with edges as coordinates: x from xmin - 1 to
    xmax, as LOST and TokenCut have it."""
    from maskmill.datasets.benchmarks import read_voc

    def central(item: Item) -> tuple[np.ndarray, np.ndarray]:
        width, height = Image.open(item.image).size
        mask = np.zeros((height, width), bool)
        mask[height // 8 : height - height // 8, width // 8 : width - width // 8] = True
        return mask, mask

    items, hits = read_voc("VOC12", Path(REAL, "voc")), 0
    for item in items:
        rows, columns = np.nonzero(central(item)[1])
        px0, py0, px1, py1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        for x0, y0, x1, y1 in ((x0, y0, x1 + 1, y1 + 1) for x0, y0, x1, y1 in parse_boxes(item.boxes)):
            inside = max(0, min(px1, x1) - max(px0, x0)) * max(0, min(py1, y1) - max(py0, y0))
            union = (px1 - px0) * (py1 - py0) + (x1 - x0) * (y1 - y0) - inside
            if inside / union > 0.5:
                hits += 1
                break
    run = score_datasets(items, Path("."), central)["VOC12"][""]
    assert run.headline() == {"corloc": hits / 100} and 20 < hits < 80


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(mixed, folder, monkeypatch, capsys):
    """Run stage score in this process on the mixed set and its saved predictions; -> what it printed, and the JSON."""
    (folder / "index.csv").write_text(table_csv(mixed))
    for name, (soft, mask) in SAID.items():
        save_png(soft, folder / f"said/soft/{name}.png")
        save_png(mask, folder / f"said/masks/{name}.png")

    def call(*argv: object) -> tuple[str, dict]:
        given = ["--params", Path(__file__).parents[1] / "params.yaml", "--images", folder, "--masks", folder / "said",
                 "--metrics", folder / "row.json", *argv]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["score.py", *map(str, given)])
        main()
        return capsys.readouterr().out, json.loads((folder / "row.json").read_text())

    return call


def test_the_stage_writes_each_data_set(stage, folder):
    said, document = stage()
    assert list(document) == ["datasets", "classes", "protocol", "postprocess"]
    assert list(document["datasets"]) == ["A", "V"] and document["classes"] == []
    assert document["datasets"]["A"]["scores"]["iou"] == pytest.approx(0.375, abs=1e-6)
    assert document["datasets"]["V"] == {"scores": {"corloc": 0.5}, "images": 2, "draws": [""]}
    assert document["postprocess"] == "none" and set(document["protocol"]) == {"acc", "iou", "maxf", "corloc", "std"}
    assert said.splitlines()[1] == f"{folder / 'row.json'}: V: 2 images: corloc 0.500"


def test_the_stage_scores_the_asked_classes_alone(stage, folder):
    _, document = stage("--classes", "bird")
    assert document["classes"] == ["bird"] and list(document["datasets"]) == ["A"]
    assert document["datasets"]["A"]["images"] == 2 and document["datasets"]["A"]["draws"] == ["1"]
    assert document["datasets"]["A"]["scores"]["iou"] == pytest.approx(0.75)
    _, document = stage("--classes", "bird, dog")
    assert document["classes"] == ["bird", "dog"] and document["datasets"]["A"]["images"] == 3
    (folder / "row.json").unlink()
    with pytest.raises(UserError, match=r"--classes: expected classes of the image set \(bird, dog\), got 'cat'"):
        stage("--classes", "bird,cat")
    assert not (folder / "row.json").exists()
