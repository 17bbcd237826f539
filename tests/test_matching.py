"""Matching beside loops over cells and prototypes, and explanations that recompute to what was said."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskmill.errors import UserError
from maskmill.segmenters.matching import BACKGROUND, Vocabulary, explain, match
from maskmill.segmenters.prototypes import ClassPrototypes, Link, Support, build_class


def made_up(seed: int, name: str, widths: dict[str, int], grounds: dict[str, int]) -> ClassPrototypes:
    """Random prototypes: one of the class, one instance, the rest parts; ``grounds``: how many of each."""
    rng = np.random.default_rng(seed)
    kinds = ["class", "instance", *["part"] * 99]
    vectors, links = {}, {}
    for extractor, width in widths.items():
        region = {"size": [1, 1], "counts": "01"}
        links[extractor] = [Link(kinds[i], ground, f"{name}/{extractor}/{i}", region, (0, 0), 1)
                            for ground, count in grounds.items() for i in range(count)]  # fmt: skip
        vectors[extractor] = rng.normal(size=(len(links[extractor]), width)).astype(np.float32)
    return ClassPrototypes(name, vectors, links)


WIDTHS = {"sd": 6, "clip": 4}


@pytest.fixture
def classes() -> list[ClassPrototypes]:
    return [made_up(1, "bird", WIDTHS, {"foreground": 5, "background": 3}),
            made_up(2, "dog", WIDTHS, {"foreground": 2, "background": 7}),
            made_up(3, "sky", WIDTHS, {"foreground": 4})]  # fmt: skip


@pytest.fixture
def features() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"sd": torch.randn(2, 6, 5, 7, generator=generator) * 30,
            "clip": torch.randn(2, 4, 3, 4, generator=generator)}  # fmt: skip


def on_grid(x: torch.Tensor, shape) -> np.ndarray:
    return F.interpolate(x, shape, mode="bilinear", align_corners=False, antialias=True).double().numpy()


def cosine(a, b) -> float:
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def slow(classes, features, extractors, kinds=("class", "instance", "part"), background=True, shape=None):
    """-> per view, row and column: similarity of each label, and per extractor the best prototype of each label."""
    grids = [features[e].shape[-2:] for e in extractors]
    shape = shape or (max(g[0] for g in grids), max(g[1] for g in grids))
    resized = {e: on_grid(features[e], shape) for e in extractors}
    views = len(features[extractors[0]])
    similarity = np.zeros((views, len(classes) + 1, *shape))
    best = {}
    for b, y, x, (v, e) in itertools.product(range(views), range(shape[0]), range(shape[1]), enumerate(extractors)):
        largest = [(-1.0, None)] * (len(classes) + 1)
        for c, own in enumerate(classes, 1):
            for i, link in enumerate(own.links[e]):
                if link.kind not in kinds or (link.ground == "background" and background is not True):
                    continue
                label = c if link.ground == "foreground" else 0
                s = cosine(own.vectors[e][i].astype(np.float64), resized[e][b, :, y, x])
                if s > largest[label][0]:
                    largest[label] = (s, (own.name, e, i))
        for label, (s, which) in enumerate(largest):
            similarity[b, label, y, x] += s / len(extractors)
            best[b, y, x, v, label] = (s, which)
    if background is not True and background is not False:
        similarity[:, 0] = background
    return similarity, best


def check(found, vocabulary, similarity, best):
    assert found.similarity.numpy() == pytest.approx(similarity, abs=1e-5)
    labels = similarity.argmax(1)
    assert (found.labels.numpy() == labels).all()
    numbers = {i: (name, e, vocabulary.numbers[i]) for i, (name, e, _) in enumerate(vocabulary.links)}
    for b, y, x in np.ndindex(labels.shape):
        order = np.argsort(-similarity[b, :, y, x], kind="stable")
        assert found.second[b, y, x] == order[1]
        for v in range(len(vocabulary.extractors)):
            for label, number, value in ((order[0], found.winner, found.winner_cosine),
                                         (order[1], found.runner_up, found.runner_up_cosine)):  # fmt: skip
                s, which = best[b, y, x, v, label]
                n = int(number[v, b, y, x])
                assert (None if n < 0 else numbers[n]) == which
                assert float(value[v, b, y, x]) == pytest.approx(s, abs=1e-5)


@pytest.mark.parametrize("extractors", [["sd"], ["clip"], ["sd", "clip"]])
@pytest.mark.parametrize("kinds", [("class", "instance", "part"), ("class",), ("part", "class")])
def test_matching_beside_loops(classes, features, extractors, kinds):
    classes = classes[:2] if kinds == ("class",) else classes
    vocabulary = Vocabulary(classes, extractors, kinds)
    assert vocabulary.names == (BACKGROUND, *(c.name for c in classes))
    check(match(features, vocabulary), vocabulary, *slow(classes, features, extractors, kinds))


@pytest.mark.parametrize("background", [False, 0.6, 0.72])
def test_without_background_prototypes(classes, features, background):
    vocabulary = Vocabulary(classes, background=background)
    similarity, best = slow(classes, features, ["sd", "clip"], background=background)
    found = match(features, vocabulary)
    check(found, vocabulary, similarity, best)
    assert ((found.labels == 0).any()) == (background is not False)
    assert (found.winner[:, found.labels == 0] == -1).all()


def test_a_grid_of_ones_own(classes, features):
    vocabulary = Vocabulary(classes)
    check(match(features, vocabulary, (2, 2)), vocabulary, *slow(classes, features, ["sd", "clip"], shape=(2, 2)))


@pytest.mark.parametrize("budget", [1, 4 * 21 * 2 * 16, 4 * 21 * 2 * 33, 2**30])
def test_the_budget_changes_nothing_but_rounding(classes, features, budget):
    vocabulary = Vocabulary(classes)
    one, other = match(features, vocabulary), match(features, vocabulary, budget=budget)
    assert (one.labels == other.labels).all() and (one.winner == other.winner).all()
    assert one.similarity.numpy() == pytest.approx(other.similarity.numpy(), abs=1e-6)


def test_views_do_not_depend_on_each_other(classes, features):
    vocabulary = Vocabulary(classes)
    together = match(features, vocabulary)
    for b in range(2):
        alone = match({key: x[b : b + 1] for key, x in features.items()}, vocabulary)
        assert (alone.labels[0] == together.labels[b]).all()
        assert alone.similarity[0].numpy() == pytest.approx(together.similarity[b].numpy(), abs=1e-6)
        assert (alone.winner[:, 0] == together.winner[:, b]).all()


def test_cosines_do_not_see_length(classes, features):
    vocabulary = Vocabulary(classes)
    one = match(features, vocabulary, (5, 7))
    longer = [ClassPrototypes(c.name, {k: v * 7 for k, v in c.vectors.items()}, c.links) for c in classes]
    other = match({"sd": features["sd"] * 1000, "clip": features["clip"].half()}, Vocabulary(longer), (5, 7))
    assert one.similarity.numpy() == pytest.approx(other.similarity.numpy(), abs=2e-3)  # half precision
    zero = match({"sd": torch.zeros(1, 6, 2, 2), "clip": torch.zeros(1, 4, 2, 2)}, vocabulary)
    assert (zero.similarity == 0).all() and (zero.labels == 0).all()


def test_a_selection_is_the_vocabulary_of_those_classes(classes, features):
    whole = Vocabulary(classes)
    picked = whole.select(["sky", "bird"])
    check(match(features, picked), picked, *slow([classes[2], classes[0]], features, ["sd", "clip"]))
    assert picked.labels_of(picked).tolist() == [0, 1, 2] and whole.labels_of(picked).tolist() == [0, 3, 1]
    again = picked.select(["bird"])
    check(match(features, again), again, *slow([classes[0]], features, ["sd", "clip"]))
    assert (match(features, whole.select(["bird", "dog", "sky"])).labels == match(features, whole).labels).all()


def test_one_class_without_background_has_no_second(classes, features):
    found = match(features, Vocabulary(classes[:1], background=False))
    assert (found.labels == 1).all() and (found.second == -1).all() and (found.runner_up == -1).all()
    assert explain(found, Vocabulary(classes[:1], background=False), np.ones((5, 7)))["runner_up"] is None


def test_what_is_refused(classes, features):
    for wrong, said in (
        ([], "expected at least one class"),
        ([classes[0], classes[0]], "expected each class once, got 'bird' again"),
        ([made_up(0, "fog", WIDTHS, {"background": 2})], "class 'fog': expected foreground prototypes of sd, got none"),
        ([classes[0], made_up(0, "fog", {"sd": 6}, {"foreground": 2})], "class 'fog': expected prototypes of the extr"),
    ):
        with pytest.raises(UserError, match=said):
            Vocabulary(wrong)
    with pytest.raises(UserError, match="expected kinds of prototypes among class, instance, part, got 'whole'"):
        Vocabulary(classes, kinds=["whole"])
    vocabulary = Vocabulary(classes)
    for names in ([], ["bird", "bird"], ["cat"], ["background"]):
        with pytest.raises(UserError, match="expected distinct classes among bird, dog, sky, got"):
            vocabulary.select(names)
    with pytest.raises(UserError, match="matching: expected features of clip, got those of sd"):
        match({"sd": features["sd"]}, vocabulary)
    with pytest.raises(UserError, match=r"clip: expected features \(B, 4, h, w\) as its prototypes have"):
        match({**features, "clip": torch.zeros(1, 5, 2, 2)}, vocabulary)


# --- explanations -----------------------------------------------------------------------------------------------------


def recomputed(said, classes, features, shape, b, region) -> float:
    """The mean over extractors of the cosines that the named prototypes have with the region's features."""
    by_name = {c.name: c for c in classes}
    total = {}
    for p in said["prototypes"]:
        x = on_grid(features[p["extractor"]], shape)[b]
        own = by_name[p["class"]].vectors[p["extractor"]][p["number"]].astype(np.float64)
        values = [cosine(own, x[:, y, c]) for y, c in np.argwhere(region)]
        total[p["extractor"]] = float(np.mean(values))
        assert p["cosine"] == pytest.approx(total[p["extractor"]], abs=1e-5)
    return float(np.mean(list(total.values())))


@pytest.mark.parametrize("names", [None, ["dog", "sky"]])
def test_the_explanation_of_every_cell_is_true(classes, features, names):
    vocabulary = Vocabulary(classes) if names is None else Vocabulary(classes).select(names)
    found = match(features, vocabulary)
    for b, y, x in np.ndindex(2, 5, 7):
        region = np.zeros((5, 7), bool)
        region[y, x] = True
        said = explain(found, vocabulary, region, b)
        label, second = int(found.labels[b, y, x]), int(found.second[b, y, x])
        for part, which in (("label", label), ("runner_up", second)):
            assert said[part]["class"] == vocabulary.names[which]
            assert said[part]["similarity"] == pytest.approx(float(found.similarity[b, which, y, x]), abs=1e-6)
            again = recomputed(said[part], classes, features, (5, 7), b, region)
            assert again == pytest.approx(said[part]["similarity"], abs=1e-5)
        assert all((p["ground"] == "background") == (label == 0) for p in said["label"]["prototypes"])


def test_the_explanation_of_a_region(classes, features):
    vocabulary = Vocabulary(classes, ["sd"])
    found = match(features, vocabulary)
    region = np.ones((5, 7), bool)
    said = explain(found, vocabulary, region, 1, most=100)
    labels = found.labels[1].numpy()
    most = np.bincount(labels.ravel()).argmax()
    assert said["cells"] == 35 and said["label"]["class"] == vocabulary.names[most]
    assert said["label"]["cells"] == (labels == most).sum() == sum(p["cells"] for p in said["label"]["prototypes"])
    counts = [p["cells"] for p in said["label"]["prototypes"]]
    assert counts == sorted(counts, reverse=True)
    assert len(explain(found, vocabulary, region, 1, most=1)["label"]["prototypes"]) == 1
    seconds = found.second[1].numpy()[labels == most]
    second = np.bincount(seconds).argmax()
    assert said["runner_up"]["class"] == vocabulary.names[second]
    assert said["runner_up"]["cells"] == (seconds == second).sum() < len(seconds)
    assert sum(p["cells"] for p in said["runner_up"]["prototypes"]) == said["runner_up"]["cells"]
    first = said["label"]["prototypes"][0]
    link = vocabulary.links[next(i for i, (name, _, _) in enumerate(vocabulary.links)
                                 if (name, vocabulary.numbers[i]) == (first["class"], first["number"]))][2]  # fmt: skip
    assert (first["image"], first["kind"], first["region"]) == (link.image, link.kind, link.region)
    for wrong in (np.zeros((5, 7), bool), np.ones((4, 4), bool)):
        with pytest.raises(UserError, match=r"expected a region with at least one cell of a grid \(5, 7\)"):
            explain(found, vocabulary, wrong)


def test_from_support_images_to_labels():
    """A class's own support image is labelled as its regions say, through building, matching and explaining."""
    rng = np.random.default_rng(0)
    directions = {"bird": [0, 1, 0, 0], "dog": [0, 0, 1, 0]}
    made, pictures = [], {}
    for name, direction in directions.items():
        supports = []
        for i in range(3):
            mask = np.zeros((8, 8), bool)
            mask[1 + i : 5 + i, 2:6] = True
            x = np.zeros((4, 8, 8))
            x[0], x[:, mask] = 1, np.array(direction)[:, None]
            x = (x + rng.normal(0, 0.05, x.shape)).astype(np.float32)
            supports.append(Support(f"{name}/{i}", {"sd": x}, mask, ~mask))
            pictures[name] = x, mask
        made.append(build_class(name, supports, parts=2))
    vocabulary = Vocabulary(made)
    for label, (name, (x, mask)) in enumerate(pictures.items(), 1):
        found = match({"sd": x[None]}, vocabulary)
        assert (found.labels[0].numpy() == np.where(mask, label, 0)).all()
        said = explain(found, vocabulary, mask)
        assert said["label"]["class"] == name and said["runner_up"]["class"] != name
        assert all(p["image"].startswith(name) for p in said["label"]["prototypes"])
