"""The table of things and stuff, the stuff filter beside loops, and CLIP's choice beside every subset in turn."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from maskmill import world
from maskmill.errors import UserError
from maskmill.segmenters.categories import (
    TABLE,
    Category,
    CategoryFilter,
    benchmark_names,
    first_choice,
    joined_prompt,
    load_categories,
    stuff_filter,
    subsets,
)  # fmt: skip
from maskmill.segmenters.prototypes import ClassPrototypes, Link
from maskmill.zeroshot import ZeroShot

COUNTS = {  # classes, of which things
    "voc": (20, 20), "context": (59, 37), "coco_object": (80, 80), "coco_stuff": (171, 80), "ade20k": (150, 100),
    "cityscapes": (19, 8), "world": (17, 8),
}  # fmt: skip


# --- the table --------------------------------------------------------------------------------------------------------


def test_counts_of_the_benchmarks():
    assert benchmark_names() == list(COUNTS)
    for name, (classes, things) in COUNTS.items():
        found = load_categories(name)
        assert (len(found), sum(c.kind == "thing" for c in found)) == (classes, things)
        assert len({c.query for c in found}) == classes


def test_a_query_stands_only_where_it_differs():
    with open(TABLE, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["dataset", "class", "query", "kind"]
    assert not [row for row in rows if row["query"] == row["class"]]
    assert all(row["query"].replace("CRT", "crt").islower() for row in rows if row["query"])


@pytest.mark.parametrize(
    ("dataset", "label", "name", "query", "kind"),
    [
        ("voc", 1, "aeroplane", "airplane", "thing"), ("voc", 11, "diningtable", "table", "thing"),
        ("voc", 14, "motorbike", "motorbike", "thing"), ("voc", 16, "pottedplant", "potted plant", "thing"),
        ("voc", 20, "tvmonitor", "monitor", "thing"), ("voc", 15, "person", "person", "thing"),
        ("context", 1, "aeroplane", "airplane", "thing"), ("context", 2, "bag", "bag", "thing"),
        ("context", 29, "grass", "grass", "stuff"), ("context", 40, "pottedplant", "potted plant", "thing"),
        ("context", 59, "wood", "wood", "stuff"),
        ("coco_object", 1, "person", "person", "thing"), ("coco_object", 80, "toothbrush", "toothbrush", "thing"),
        ("coco_stuff", 81, "banner", "banner", "stuff"), ("coco_stuff", 160, "wall-brick", "brick wall", "stuff"),
        ("coco_stuff", 171, "wood", "wood", "stuff"),
        ("ade20k", 1, "wall", "wall", "stuff"), ("ade20k", 9, "windowpane", "window", "thing"),
        ("ade20k", 21, "car", "car", "thing"), ("ade20k", 150, "flag", "flag", "thing"),
        ("cityscapes", 1, "road", "road", "stuff"), ("cityscapes", 7, "traffic light", "traffic light", "stuff"),
        ("cityscapes", 12, "person", "person", "thing"), ("cityscapes", 19, "bicycle", "bicycle", "thing"),
    ],
)  # fmt: skip
def test_labels_of_the_benchmarks(dataset, label, name, query, kind):
    assert load_categories(dataset)[label - 1] == Category(name, query, kind)


def test_alphabetical_where_the_data_sets_are():
    assert (names := [c.name for c in load_categories("context")]) == sorted(names)
    assert (names := [c.name for c in load_categories("voc")]) == sorted(names)
    assert {c.name for c in load_categories("voc")} - {"diningtable"} <= {c.name for c in load_categories("context")}
    stuff = [c.name for c in load_categories("coco_stuff")[80:]]
    assert stuff == sorted(stuff)
    assert load_categories("coco_stuff")[:80] == load_categories("coco_object")


def test_the_miniatures_own():
    found = load_categories("world")
    assert [c.name for c in found] == [*world.CLASSES, *world.UPPER_STUFF, *world.LOWER_STUFF]
    assert [c.kind for c in found] == ["thing"] * len(world.CLASSES) + ["stuff"] * len(world.STUFF)
    scene = world.render(3)
    names = {found[label - 1].name for label in np.unique(scene.label_map())}
    assert names == {scene.upper, scene.lower, *(thing.cls for thing in scene.things)}


def test_tables_and_lists_of_ones_own(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("class,kind,query\ngolden retriever,thing,dog\nfog,stuff,\nkite,,\n")
    assert load_categories(path) == [Category("golden retriever", "dog", "thing"), Category("fog", "fog", "stuff"),
                                     Category("kite", "kite", "thing")]  # fmt: skip
    path.write_text("# mine\n\ndog\n  grey   wolf  # a wild one\n")
    assert load_categories(str(path)) == [Category("dog", "dog", "thing"), Category("grey wolf", "grey wolf", "thing")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("class,kind\ndog,animal\n", "line 2: expected a class and thing or stuff, got 'dog' and 'animal'"),
        ("class,kind\ndog,thing\n ,thing\n", "line 3: expected a class and thing or stuff, got ''"),
        ("class,kind\ndog,thing\nDog,thing\n", "line 3: expected each class once, got 'Dog' again (first at line 2)"),
        ("class,query\na,dog\nb,dog\n", "line 3: expected each query once, got 'dog' again (first at line 2)"),
        ("dog\ncat\ndog\n", "line 3: expected each class once, got 'dog' again (first at line 1)"),
        ("name,kind\ndog,thing\n", "expected the column class, or one class per line, got name,kind"),
        ("class,kind\n", "expected at least one class, got none"),
        ("# nothing\n", "expected at least one class, got none"),
        ("", "expected a CSV table with a header, got an empty file"),
    ],
)
def test_what_is_refused(tmp_path, content, said):
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_categories(path)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_neither_a_benchmark_nor_a_file(tmp_path):
    with pytest.raises(UserError, match="pascal: expected a data set among voc, context, .*, or a file of classes"):
        load_categories(tmp_path / "pascal")


# --- the stuff filter -------------------------------------------------------------------------------------------------


def made_up(seed: int, name: str, foreground: int, background: int) -> ClassPrototypes:
    rng = np.random.default_rng(seed)
    grounds = ["foreground"] * foreground + ["background"] * background
    vectors = {key: rng.normal(size=(len(grounds), 3)).astype(np.float32) for key in ("sd", "clip")}
    links = [Link("part", ground, f"{name}{i}", {}, (0, 0), 1) for i, ground in enumerate(grounds)]
    return ClassPrototypes(name, vectors, dict.fromkeys(vectors, links), ("a",))


@pytest.mark.parametrize("similar", [0.85, 0.3, -1.0, 1.0])
def test_stuff_filter_beside_loops(similar):
    classes = [made_up(0, "dog", 4, 30), made_up(1, "sky", 3, 5), made_up(2, "grass", 2, 4), made_up(3, "car", 1, 0)]
    stuff = {"sky", "grass"}
    removed = 0
    for before, after in zip(classes, stuff_filter(classes, stuff, similar), strict=True):
        assert (before.name, before.images) == (after.name, after.images)
        for key in ("sd", "clip"):
            wanted = []
            for v, link in zip(before.vectors[key], before.links[key], strict=True):
                if link.ground == "background":
                    if before.name in stuff:
                        continue
                    others = [w for c in classes if c.name in stuff
                              for w, other in zip(c.vectors[key], c.links[key], strict=True)
                              if other.ground == "foreground"]  # fmt: skip
                    if any(v @ w / np.linalg.norm(v) / np.linalg.norm(w) > similar for w in others):
                        removed += 1
                        continue
                wanted.append((v.tolist(), link))
            found = list(zip(after.vectors[key].tolist(), after.links[key], strict=True))
            assert found == wanted
    assert removed == 0 if similar == 1 else removed > 0


def test_without_stuff_nothing_changes():
    classes = [made_up(0, "dog", 4, 3), made_up(1, "cat", 3, 5)]
    for before, after in zip(classes, stuff_filter(classes, set()), strict=True):
        assert all((before.vectors[key] == after.vectors[key]).all() for key in before.vectors)
        assert before.links == after.links


# --- which classes a picture shows ------------------------------------------------------------------------------------


def test_first_choice_by_hand():
    p = np.array([0.05, 0.4, 0.25, 0.1, 0.2])
    assert first_choice(p, 10) == [1, 2, 4]  # of 5 classes, at least 0.2
    assert first_choice(p, 2) == [1, 2]
    assert first_choice(np.full(3, 1 / 3), 10) == [0, 1, 2]
    assert first_choice(np.array([1.0]), 1) == [0]
    assert len(first_choice(np.nextafter(np.full(3, 1 / 3), 0), 5)) == 1  # never none


def test_subsets_and_their_texts():
    assert subsets(3) == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert len(subsets(10)) == len(set(subsets(10))) == 1023
    assert joined_prompt(["bird", "orange", "jeans"]) == "a bird and an orange and jeans"


@pytest.fixture(scope="module")
def clip(tiny_model) -> str:
    return str(tiny_model / "clip")


def undecided(clip: str) -> ZeroShot:
    """An untrained classifier is sure of one class, and there would be nothing to choose from."""
    zero_shot = ZeroShot(clip, world.CLASSES)
    zero_shot.scale = 1.0
    return zero_shot


def slow_choice(clip: str, image, eta: int) -> list[int]:
    """Every subset's text encoded and compared on its own."""
    z, classes = undecided(clip), world.CLASSES
    p = z.probabilities([image])[0]
    kept = sorted((i for i in range(len(classes)) if p[i] >= 1 / len(classes)), key=lambda i: -p[i])[:eta]
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip}")
    best = (-2.0, None)
    with torch.inference_mode():
        x = z.model.encode_image(z.preprocess(Image.fromarray(image))[None], normalize=True)[0].double()
        for size in range(1, len(kept) + 1):
            for group in itertools.combinations(kept, size):
                text = " and ".join(f"a {classes[i]}" for i in sorted(group))
                s = float(z.model.encode_text(tokenizer([text]), normalize=True)[0].double() @ x)
                if s > best[0] + 1e-9:
                    best = (s, sorted(group))
    return best[1]


@pytest.mark.parametrize("eta", [1, 3, 5])
def test_the_choice_beside_every_subset_in_turn(clip, eta):
    left_out = 0
    keep = CategoryFilter(undecided(clip), clip, eta)
    first = CategoryFilter(undecided(clip), clip, eta, subsets=False)
    for seed in range(3):
        image = world.render(seed).image
        p = undecided(clip).probabilities([image])[0]
        assert first(image) == sorted(first_choice(p, eta))
        assert keep(image) == slow_choice(clip, image, eta)
        left_out += len(first(image)) - len(keep(image))
    assert (left_out > 0) == (eta > 1)  # the second step had something to do


def test_texts_are_encoded_once(clip, monkeypatch):
    keep = CategoryFilter(undecided(clip), clip, 4)
    image = world.render(1).image
    found = keep(image)
    order = [[world.CLASSES.index(part.split()[-1]) for part in text.split(" and ")] for text in keep._texts]
    assert len(order) > 1 and all(places == sorted(places) for places in order)  # as the vocabulary has them
    monkeypatch.setattr(keep.zero_shot.model, "encode_text", None)
    assert keep(image) == found


def test_eta_is_checked(clip):
    with pytest.raises(UserError, match="eta: expected a number of at least 1, got 0"):
        CategoryFilter(ZeroShot(clip, ["dog"]), clip, 0)
