"""Label maps of a vocabulary against an obvious slow version, and explanations recomputed from their prototypes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maskmill import params
from maskmill.errors import UserError
from maskmill.masks.coco import decode
from maskmill.report.explained import explained
from maskmill.segmenters.categories import STUFF, THING, Category
from maskmill.segmenters.openvocab import Segmenter, chosen_classes, decisive
from maskmill.segmenters.prototypes import Bank, Support, build_class
from maskmill.segmenters.windows import cut, label_map, merge, plan
from tests.running import ROOT

COLOURS = {"red": (220, 30, 40), "green": (40, 200, 60), "blue": (30, 60, 230)}
GREY = 120
BASE = params.load(ROOT / "params.yaml").segment
P = replace(BASE, short=32, sizes=(24,), stride=8, filter=False, stuff=False, background="prototypes", pamr=False,
            memory=64, kinds=("class", "instance", "part"))  # fmt: skip


def scene(*boxes: tuple[str, int, int, int, int], size=(32, 32)) -> np.ndarray:
    """Coloured boxes (name, y0, x0, y1, x1) on grey noise."""
    image = np.random.default_rng(len(boxes)).integers(GREY - 8, GREY + 8, (*size, 3)).astype(np.uint8)
    for name, y0, x0, y1, x1 in boxes:
        image[y0:y1, x0:x1] = COLOURS[name]
    return image


def pooled(views, side: int, power: float = 1.0) -> torch.Tensor:
    """Mean colour, and a constant, of side x side cells of each view: an extractor without weights."""
    out = []
    for view in views:
        x = torch.from_numpy(view.astype(np.float32) / 255).permute(2, 0, 1)[None]
        x = torch.nn.functional.interpolate(x, (side, side), mode="area")[0] ** power
        out.append(torch.cat([x, torch.full((1, side, side), 0.2)]))
    return torch.stack(out)


EXTRACTORS = {"fine": lambda views: pooled(views, 8), "coarse": lambda views: pooled(views, 4, 2.0)}


def prototypes_of(name: str):
    supports = []
    for k in range(3):
        image = scene((name, 4 + k, 4, 20, 20 + k))
        mask = (image == COLOURS[name]).all(-1)
        features = {key: extract([image])[0].numpy() for key, extract in EXTRACTORS.items()}
        supports.append(Support(f"{name}-{k}", features, mask, ~mask))
    return build_class(name, supports, parts=3)


@pytest.fixture(scope="module")
def prototypes():
    return [prototypes_of(name) for name in COLOURS]


def segmenter(prototypes, **changes) -> Segmenter:
    categories = [Category(p.name, p.name, THING) for p in prototypes]
    return Segmenter(prototypes, categories, EXTRACTORS, replace(P, **changes), "")


SCENE = scene(("red", 2, 2, 14, 14), ("blue", 16, 18, 30, 30))


def cosine(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def slow_labels(prototypes, image) -> np.ndarray:
    """Every cell of every view against every prototype, one at a time; merged and enlarged as ``windows`` does."""
    views = plan(*image.shape[:2], P.short, P.sizes, P.stride, P.whole)
    parts = []
    for view in (v for lattice in cut(image, views) for v in lattice):
        s = np.zeros((1 + len(prototypes), 8, 8))
        for key, extract in EXTRACTORS.items():
            x = torch.nn.functional.interpolate(extract([view]), (8, 8), mode="bilinear", antialias=True)[0].numpy()
            for y in range(8):
                for c in range(8):
                    best = np.full(1 + len(prototypes), -1.0)
                    for k, own in enumerate(prototypes, 1):
                        for vector, link in zip(own.vectors[key], own.links[key], strict=True):
                            label = k if link.ground == "foreground" else 0
                            best[label] = max(best[label], cosine(vector, x[:, y, c]))
                    s[:, y, c] += best / len(EXTRACTORS)
        parts.append(s)
    return label_map(merge(torch.from_numpy(np.stack(parts)).float(), views), image.shape[:2])


def test_label_maps_are_those_of_the_slow_version(prototypes):
    found = segmenter(prototypes)([SCENE])[0]
    assert (found.labels == slow_labels(prototypes, SCENE)).mean() > 0.999  # ties may fall either way
    assert set(np.unique(found.labels)) == {0, 1, 3} and found.labels[8, 8] == 1 and found.labels[24, 24] == 3
    assert found.searched == tuple(COLOURS) and found.views == 5 and found.similarity.shape == (32, 32)


def test_a_picture_depends_on_nothing_beside_it_and_not_on_the_memory(prototypes):
    wide = scene(("green", 4, 30, 28, 60), size=(40, 80))
    together = segmenter(prototypes)([SCENE, wide, SCENE])
    assert together[1].labels.shape == (40, 80) and (together[1].labels == 2).any()
    small = segmenter(prototypes, memory=1)
    small._bytes = 2**19  # as if the features of a view took half of a megabyte: one view at a time
    assert small._room(SCENE) == 1
    for one, alone, bounded in zip(together, [segmenter(prototypes)([i])[0] for i in (SCENE, wide, SCENE)],
                                   small([SCENE, wide, SCENE]), strict=True):  # fmt: skip
        assert (one.labels == alone.labels).all() and (one.labels == bounded.labels).all()


def test_settings_reach_the_vocabulary(prototypes):
    assert 0 not in segmenter(prototypes, background="none")([SCENE])[0].labels
    strict = segmenter(prototypes, background="threshold", threshold=1.0)([SCENE])[0]
    assert (strict.labels == 0).all()
    loose = segmenter(prototypes, background="threshold", threshold=0.0)([SCENE])[0]
    assert (loose.labels > 0).all()
    with pytest.raises(UserError, match="kinds of prototypes among class, instance, part"):
        segmenter(prototypes, kinds=("class", "whole"))
    with pytest.raises(UserError, match="model.clip: expected a CLIP model for the category filter"):
        segmenter(prototypes, filter=True)
    with pytest.raises(UserError, match="at least 64x64 pixels for windows of that size, got 32x32"):
        segmenter(prototypes, sizes=(64,))([SCENE])
    assert (segmenter(prototypes, pamr=True)([SCENE])[0].labels != segmenter(prototypes)([SCENE])[0].labels).any()


def test_the_classes_of_a_list_that_a_bank_has(tmp_path, prototypes):
    bank = Bank(tmp_path / "bank")
    with pytest.raises(UserError, match="expected prototypes of at least one class, found none"):
        chosen_classes(bank, [])
    for own in prototypes[:2]:
        bank.write(own, "x", {key: {"size": 1} for key in EXTRACTORS})
    assert [c.name for c in chosen_classes(bank, [])[0]] == ["green", "red"]
    asked = [Category("blue", "blue", THING), Category("rot", "red", STUFF), Category("green", "green", THING)]
    found, missing = chosen_classes(bank, asked)
    assert [(c.name, c.kind) for c in found] == [("red", STUFF), ("green", THING)] and missing == ["blue"]
    with pytest.raises(UserError, match="expected prototypes of cat, found those of green, red"):
        chosen_classes(bank, [Category("cat", "cat", THING)])


# --- explanation ------------------------------------------------------------------------------------------------------


def recomputed(prototypes, image, found, prototype) -> list[float]:
    """The cosines of a named prototype with the features of the cells that were looked at."""
    own = next(p for p in prototypes if p.name == prototype["class"])
    top, left, height, width = found["view"]["box"]
    h, w = found["view"]["of"]
    assert (h, w) == image.shape[:2]  # these pictures are not scaled
    view = image[top : top + height, left : left + width]
    x = EXTRACTORS[prototype["extractor"]]([view])
    x = torch.nn.functional.interpolate(x, tuple(found["view"]["grid"]), mode="bilinear", antialias=True)[0].numpy()
    vector = own.vectors[prototype["extractor"]][prototype["number"]]
    return [cosine(vector, x[:, r, c]) for r, c in found["view"]["cells"]]


@pytest.mark.parametrize("place", [(8, 8), (24, 24), (28, 4), (13, 13), (0, 31)])
@pytest.mark.parametrize("stuff", [False, True])
def test_the_named_prototypes_cosine_is_the_winning_score(prototypes, place, stuff):
    categories = [Category(p.name, p.name, STUFF if p.name == "green" else THING) for p in prototypes]
    judge = Segmenter(prototypes, categories, EXTRACTORS, replace(P, stuff=stuff, similar=0.9), "")
    region = np.zeros((32, 32), bool)
    region[place] = True
    found = judge.explain(SCENE, region)
    labels = judge([SCENE])[0].labels
    assert found["label"]["class"] == judge.names[labels[place]] and found["pixels"] == 1
    assert len(found["view"]["cells"]) == 1 and (decode(found["region"]) == region).all()
    for side in (found["label"], found["runner_up"]):
        assert {p["extractor"] for p in side["prototypes"]} == set(EXTRACTORS)
        for p in side["prototypes"]:
            assert recomputed(prototypes, SCENE, found, p)[0] == pytest.approx(p["cosine"], abs=1e-5)
            own = next(o for o in prototypes if o.name == p["class"])
            link = own.links[p["extractor"]][p["number"]]
            assert (link.image, link.region, list(link.cell)) == (p["image"], p["region"], p["cell"])
            assert (p["ground"] == "background") == (side["class"] == "background")
        assert side["view_similarity"] == pytest.approx(np.mean([p["cosine"] for p in side["prototypes"]]), abs=1e-6)
    assert found["label"]["similarity"] >= found["runner_up"]["similarity"]


def test_no_other_prototype_of_the_label_is_nearer(prototypes):
    judge = segmenter(prototypes)
    x = judge.features([SCENE])
    cells = {key: v[:1, :, 2:3] for key, v in x.items()}  # a row of cells
    for label in range(4):
        number, values = decisive(cells, judge.vocabulary, label, 2**20)
        for v, key in enumerate(EXTRACTORS):
            best = [max(cosine(vector, cells[key][0, :, 0, n]) for k, own in enumerate(prototypes, 1)
                        for vector, link in zip(own.vectors[key], own.links[key], strict=True)
                        if (k if link.ground == "foreground" else 0) == label) for n in range(8)]  # fmt: skip
            assert values[v] == pytest.approx(best, abs=1e-5) and (number[v] >= 0).all()


def test_a_region_names_the_prototypes_of_its_cells(prototypes):
    judge = segmenter(prototypes)
    region = judge([SCENE])[0].labels == 3
    found = judge.explain(SCENE, region, most=100)
    assert found["label"]["class"] == "blue" and found["pixels"] == region.sum()
    cells = len(found["view"]["cells"])
    for key in EXTRACTORS:
        own = [p for p in found["label"]["prototypes"] if p["extractor"] == key]
        assert sum(p["cells"] for p in own) == cells
        total = sum(p["cells"] * p["cosine"] for p in own)
        best = np.max([recomputed(prototypes, SCENE, found, p) for p in own], axis=0)
        assert total == pytest.approx(best.sum(), abs=1e-4)
    with pytest.raises(UserError, match="at least one pixel"):
        judge.explain(SCENE, np.zeros((32, 32), bool))
    with pytest.raises(UserError, match="of a picture"):
        judge.explain(SCENE, np.ones((16, 16), bool))


def test_a_threshold_has_no_prototypes_and_is_drawn(prototypes):
    judge = segmenter(prototypes, background="threshold", threshold=0.999)
    region = np.zeros((32, 32), bool)
    region[30, 2] = True
    found = judge.explain(SCENE, region)
    assert found["label"] == {"class": "background", "similarity": pytest.approx(0.999), "view_similarity": 0.999,
                              "prototypes": []}  # fmt: skip
    support = {("red", "red-0"): scene(("red", 4, 4, 20, 20))}
    drawn = explained(SCENE, judge([SCENE])[0].labels, judge.names, found, support)
    assert drawn.width > 3 * 288 and np.asarray(drawn).std() > 10
