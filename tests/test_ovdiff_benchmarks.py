"""OVDiff's tables on the public data sets, run by dvc from the folders of two tiny ones to the result: VOC's layout and
Cityscapes' filled with scenes of the world, which share some of their classes' names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from maskmill import profiles, world
from maskmill.datasets.semantic import CITYSCAPES_IDS, class_table, protocols
from maskmill.datasets.table import read_image, read_labels, read_table, save_png
from maskmill.report.rows import read_plan
from maskmill.report.tables import load_published
from tests.running import assert_refused, run_stage
from tests.test_pipeline import ROOT, Clone, ran, read_pipeline

TABLE1, TABLE2 = "tables/ovdiff-benchmarks/dvc.yaml", "tables/ovdiff-benchmarks/tab2/dvc.yaml"
SMALL = {"benchmarks.partial": True, "support.count": 2, "support.steps": 1, "build_prototypes.parts": 2,
         "build_prototypes.grid_rows": 1, "segment.subsets": False}  # fmt: skip
FILES = ["classes.csv", "classes.txt", "index.csv"]


def queries(key: str) -> list[str]:
    return [row["query"] for row in class_table(key)]


def stage(name: str, *argv, cwd: Path):
    return run_stage(name, "--params", ROOT / "params.yaml", *argv, cwd=cwd)


def renumbered(key: str, truth: np.ndarray, values: list[int], rest: int) -> np.ndarray:
    """True labels of the world in the numbers of another data set, whose class i has the value ``values[i]``."""
    out = np.full_like(truth, rest)
    for label, name in enumerate(world.CLASSES, 1):
        if name in queries(key):
            out[truth == label] = values[queries(key).index(name)]
    return out


def voc(root: Path, scenes: Path) -> Path:
    base, items = root / "VOCdevkit/VOC2012", read_table(scenes)[:2]
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    (base / "ImageSets/Segmentation/val.txt").write_text("".join(f"2007_{k:06}\n" for k in range(len(items))))
    for k, item in enumerate(items):
        save_png(read_image(scenes / item.image), base / f"JPEGImages/2007_{k:06}.jpg")
        labels = renumbered("voc", read_labels(scenes / item.labels), list(range(1, 21)), 0)
        save_png(labels, base / f"SegmentationClass/2007_{k:06}.png")
    return root


def cityscapes(root: Path, scenes: Path) -> Path:
    item = next(i for i in read_table(scenes) if {"car", "person"} & set(i.caption.split()))
    save_png(read_image(scenes / item.image), root / "leftImg8bit/val/bonn/bonn_1_leftImg8bit.png")
    labels = renumbered("cityscapes", read_labels(scenes / item.labels), list(CITYSCAPES_IDS), 0)
    save_png(labels, root / "gtFine/val/bonn/bonn_1_gtFine_labelIds.png")
    return root


def scores(clone: Clone, table: str, row: str) -> dict:
    return json.loads((clone.folder / f"tables/ovdiff-benchmarks/{table}/rows/{row}.json").read_text())["datasets"]


def name_folders(clone: Clone, **folders: Path) -> None:
    path = clone.folder / "params.yaml"
    values = SMALL | {f"benchmarks.{key}": str(folder) for key, folder in folders.items()}
    path.write_text(profiles.patch(path.read_text(encoding="utf-8"), values), encoding="utf-8")


def test_both_tables_from_the_folders_of_data_sets_to_the_result(tmp_path, tiny_model, world_set):
    clone = Clone(tmp_path / "a path", tiny_model)
    name_folders(clone, voc12=voc(tmp_path / "voc", world_set))
    with clone.with_warm_stages():
        said = clone.dvc("repro", TABLE1, TABLE2)
        name_folders(clone, cityscapes=cityscapes(tmp_path / "streets", world_set))
        again = clone.dvc("repro", f"{TABLE1}:labels@cityscapes", f"{TABLE1}:labels@voc")
        assert ran(clone.dvc("repro", f"{TABLE1}:labels@cityscapes", f"{TABLE1}:labels@voc")) == []

    # Data sets and networks that are not at hand are one line each and stop nothing.
    assert "semantic_benchmarks/context: left out: Context: params.yaml: benchmarks.context names no folder" in said
    assert "labels/ade20k: not measured: the data set ade20k is not at hand" in said
    assert "tab2/dino: not measured: extractors names no network for the row dino" in said
    table1 = {row: scores(clone, "tab1", row) for row in ("no-cutler", "no-cutler-pamr", "cutler", "cutler-pamr")}
    for row, found in table1.items():
        assert list(found) == ["VOC", "VOC-20"] and all(own["images"] == 2 for own in found.values())
        assert all(bool(own["scores"]) == ("no-cutler" in row) for own in found.values())
    sd = scores(clone, "tab2", "sd")["VOC"]["scores"]
    assert 0 < sd["miou"] < 1 and not scores(clone, "tab2", "dino")["VOC"]["scores"]
    folder = clone.folder / "tables/ovdiff-benchmarks/tab1"
    result = json.loads((folder / "result.json").read_text())
    ours = next(row for row in result["rows"] if row["row"] == "OVDiff (-CutLER)")
    mine = table1["no-cutler"]["VOC"]["scores"]["miou"]
    assert ours["ours"]["VOC"]["mIoU"]["mean"] == pytest.approx(100 * mine) and result["stand_in"] is None
    assert ours["published"]["VOC"]["mIoU"] == 62.8 and "Data: VOC (2 images)" in (folder / "result.md").read_text()
    labels = clone.folder / "data/ovdiff_benchmarks/labels"
    maps = [read_labels(path) for path in sorted((labels / "voc_nobg/no-cutler/labels").rglob("*.png"))]
    assert len(maps) == 2 and all(m.min() > 0 for m in maps)  # no background is searched for

    # The class is what is kept: a data set that is named later adds its own and leaves what is there.
    both = set(queries("voc")) | set(queries("cityscapes"))
    words = (clone.folder / "data/ovdiff_benchmarks/classes.txt").read_text().splitlines()
    assert set(words) == both and len(words) == len(both) < 20 + 19
    assert f"support sets of {len(both)} classes, 2 pictures each; 20 were finished already" in again
    assert f"{len(both) - 20} classes built, 20 were finished already, 0 kept out" in again
    assert "labels/voc/no-cutler: 2 label maps of 20 classes, 2 of them kept from before" in again
    assert (labels / "cityscapes/no-cutler/labels/Cityscapes/bonn/bonn_1.png").is_file()


def test_without_any_data_set_the_first_stage_says_what_to_name(tmp_path):
    for name in ("voc", "ade20k"):
        out = tmp_path / "sets" / name
        got = stage("semantic_benchmarks", "--name", name, "--out", out, "--absent", "empty", cwd=tmp_path)
        assert got.code == 0 and "names no folder" in got.out and sorted(p.name for p in out.iterdir()) == FILES
    given = ("--folder", "sets", "--sets", "voc,ade20k")
    assert_refused(stage("join_classes", *given, cwd=tmp_path), "expected at least one data set at hand among voc, "
                   "ade20k, got none; name its folder under benchmarks", absent=tmp_path / "classes.txt")  # fmt: skip
    assert_refused(stage("score_semantic", "--images", "sets/{dataset}", "--labels", "maps", "--protocols",
                         "voc,voc_nobg,ade20k", "--metrics", "row.json", cwd=tmp_path),
                   "expected at least one data set at hand, got none", absent=tmp_path / "row.json")  # fmt: skip
    assert_refused(stage("semantic_benchmarks", "--name", "voc", "--out", "other", cwd=tmp_path),
                   "benchmarks.voc12 names no folder; --absent empty", absent=tmp_path / "other")  # fmt: skip
    assert_refused(stage("semantic_benchmarks", "--absent", "maybe", "--out", "other", cwd=tmp_path),
                   "--absent: expected one of refuse, empty, got 'maybe'", absent=tmp_path / "other")  # fmt: skip


def test_an_absent_row_has_the_images_of_another_and_no_scores(tmp_path):
    one = {"scores": {"iou": 0.5}, "images": 3, "draws": ["1", "2"], "classes": {"bird": 0.5}}
    (tmp_path / "a.json").write_text(json.dumps({"datasets": {"": one}, "protocol": {"iou": "x"}}))
    (tmp_path / "old").mkdir()
    (tmp_path / "old/file").write_text("of a run before")
    why = ("--why", "nothing is named")
    got = stage("absent", *why, "--folders", "old,new", "--like", "a.json", "--metrics", "b.json", cwd=tmp_path)
    assert got.code == 0 and got.out == "old, new, b.json: not measured: nothing is named\n"
    assert [list((tmp_path / name).iterdir()) for name in ("old", "new")] == [[], []]
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["datasets"] == {"": {"scores": {}, "images": 3, "draws": ["1", "2"]}} and found["absent"] == why[1]
    assert_refused(stage("absent", *why, "--folders", "c", "--metrics", "c.json", "--like", "none.json", cwd=tmp_path),
                   "--like none.json: expected the scores of a row", absent=tmp_path / "c")  # fmt: skip
    assert_refused(stage("absent", *why, cwd=tmp_path), "and --folders or --metrics, got neither of them",
                   absent=tmp_path / "c")  # fmt: skip
    assert_refused(stage("absent", "--folders", "c", cwd=tmp_path), "expected --why, ", absent=tmp_path / "c")


def test_the_facts_are_those_of_the_tables_on_the_miniature():
    tables = ROOT / "tables"
    for name in ("tab1", "tab2"):
        ours, first = (load_published(tables / f"{place}/published.yaml")
                       for place in (f"ovdiff-benchmarks/{name}", f"ovdiff-{name}"))  # fmt: skip
        differ = {key for key in ours if ours[key] != first[key]}
        assert differ <= {"table", "datasets"} and ours["datasets"][: len(first["datasets"])] == first["datasets"]
        names = {row["method"] for row in ours["rows"]}
        assert {row.name for row in read_plan(tables / f"ovdiff-benchmarks/{name}").rows if not row.control} <= names
    titles = [p.title for p in protocols().values()]
    assert set(load_published(tables / "ovdiff-benchmarks/tab1/published.yaml")["datasets"]) == set(titles)
    stages = read_pipeline(TABLE1)
    made = {name.partition("@")[2]: stage["cmd"][1] for name, stage in stages.items() if name.startswith("labels@")}
    assert made.keys() == protocols().keys()
    for name, command in made.items():
        background = {"class": "prototypes", "void": "none"}[protocols()[name].background]
        assert f"--segment.background {background} " in command, name
        assert f"--images data/semantic_benchmarks/{protocols()[name].dataset} " in command, name
