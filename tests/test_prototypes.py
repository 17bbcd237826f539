"""Prototypes beside sums written out, K-means beside Lloyd's steps, a bank whose classes do not touch each other."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.cluster import kmeans_plusplus

from maskmill.errors import UserError
from maskmill.masks.coco import decode, encode
from maskmill.segmenters.prototypes import Bank, ClassPrototypes, Support, build_class, feature_map


def support(seed: int, image: str = "", channels=(5,), sides=(4,), size=8, dtype=np.float32) -> Support:
    """Random features of extractors "0", "1", ...; a foreground rectangle and a background strip at another size."""
    rng = np.random.default_rng(seed)
    features = {str(v): rng.normal(size=(c, s, s)).astype(dtype)
                for v, (c, s) in enumerate(zip(channels, sides, strict=True))}  # fmt: skip
    foreground, background = np.zeros((2, size, size), bool)
    a = size // 4
    foreground[a : size - a * (seed % 2), a : 3 * a] = True
    background[:, 3 * a :] = True
    return Support(image or f"dog/{seed}", features, foreground, background)


def of(found: ClassPrototypes, kind: str, ground: str, extractor: str = "0"):
    """-> vectors and links of one kind and ground."""
    rows = [i for i, link in enumerate(found.links[extractor]) if (link.kind, link.ground) == (kind, ground)]
    return found.vectors[extractor][rows], [found.links[extractor][i] for i in rows]


def cells(mask: np.ndarray, side: int) -> np.ndarray:
    """(side, side) bool, cells more than half covered, by counting pixels."""
    step = len(mask) // side
    return np.array([[mask[y * step : (y + 1) * step, x * step : (x + 1) * step].mean() > 0.5 for x in range(side)]
                     for y in range(side)])  # fmt: skip


# --- class and instance -----------------------------------------------------------------------------------------------


def test_instance_and_class_prototypes_written_out():
    supports = [support(seed) for seed in range(3)]
    found = build_class("dog", supports, parts=0)
    assert found.name == "dog" and found.images == ("dog/0", "dog/1", "dog/2") and found.usable and not found.without
    for ground in ("foreground", "background"):
        instances, links = of(found, "instance", ground)
        total, count = np.zeros(5), 0
        for i, s in enumerate(supports):
            own = [s.features["0"][:, y, x] for y, x in np.argwhere(cells(getattr(s, ground), 4))]
            assert instances[i] == pytest.approx(sum(own) / len(own), abs=1e-6)
            assert links[i].image == s.image and links[i].cells == len(own)
            assert (decode(links[i].region) == cells(getattr(s, ground), 4)).all()
            total, count = total + sum(own), count + len(own)
        mean, (link,) = of(found, "class", ground)
        assert mean[0] == pytest.approx(total / count, abs=1e-6)  # weighted by size: the mean of all cells
        assert link.cells == count
    sizes = [link.cells for link in of(found, "instance", "foreground")[1]]
    assert len(set(sizes)) > 1  # otherwise a plain mean would pass
    assert found.vectors["0"].dtype == np.float32 and found.vectors["0"].shape == (8, 5)


def test_features_are_not_normalised_before_they_are_averaged():
    s = support(0)
    scaled = Support("big", {"0": s.features["0"] * 9}, s.foreground, s.background)
    found = build_class("dog", [s, scaled], parts=0)
    mean, _ = of(found, "class", "foreground")
    instances, _ = of(found, "instance", "foreground")
    assert mean[0] == pytest.approx(instances[0] * 5, rel=1e-5)  # (1 + 9) / 2


def test_links_name_the_nearest_cell_and_the_nearest_image():
    supports = [support(seed) for seed in range(4)]
    found = build_class("dog", supports, parts=0)

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    instances, links = of(found, "instance", "foreground")
    for prototype, link, s in zip(instances, links, supports, strict=True):
        region = decode(link.region)
        best = max(np.argwhere(region), key=lambda p: cosine(s.features["0"][:, p[0], p[1]], prototype))  # noqa: B023
        assert link.cell == tuple(best) and region[link.cell]
    mean, (link,) = of(found, "class", "foreground")
    nearest = max(range(4), key=lambda i: cosine(instances[i], mean[0]))
    assert link.image == supports[nearest].image


# --- parts ------------------------------------------------------------------------------------------------------------


def lloyd(x: np.ndarray, centres: np.ndarray, rounds: int = 100) -> np.ndarray:
    """K-means written out, from given centres, until nothing moves."""
    for _ in range(rounds):
        nearest = [min(range(len(centres)), key=lambda k: ((row - centres[k]) ** 2).sum()) for row in x]  # noqa: B023
        moved = np.array([np.mean([row for row, n in zip(x, nearest, strict=True) if n == k], 0)
                          if k in nearest else centres[k] for k in range(len(centres))])  # fmt: skip
        if (moved == centres).all():
            break
        centres = moved
    return centres


def test_part_prototypes_beside_lloyds_steps():
    supports = [support(seed) for seed in range(4)]
    found = build_class("dog", supports, parts=5, seed=3)
    for ground in ("foreground", "background"):
        x = np.concatenate([s.features["0"][:, cells(getattr(s, ground), 4)].T for s in supports])
        start, _ = kmeans_plusplus(x - x.mean(0), 5, random_state=3)
        slow = lloyd((x - x.mean(0)).astype(np.float64), start.astype(np.float64)) + x.mean(0)
        parts, links = of(found, "part", ground)
        assert parts == pytest.approx(slow, abs=1e-5)
        assert sum(link.cells for link in links) == len(x)


def test_part_links_point_at_the_cells_of_the_part():
    supports = {f"dog/{seed}": support(seed) for seed in range(4)}
    found = build_class("dog", supports.values(), parts=4)
    parts, links = of(found, "part", "foreground")
    everywhere = [(image, p, s.features["0"][:, p[0], p[1]]) for image, s in supports.items()
                  for p in map(tuple, np.argwhere(cells(s.foreground, 4)))]  # fmt: skip
    for k, (prototype, link) in enumerate(zip(parts, links, strict=True)):
        own = [(((f - prototype) ** 2).sum(), image, p) for image, p, f in everywhere
               if min(range(len(parts)), key=lambda j: ((f - parts[j]) ** 2).sum()) == k]  # noqa: B023 # fmt: skip
        _, image, cell = min(own)
        assert (link.image, link.cell, link.cells) == (image, cell, len(own))
        assert {tuple(p) for p in np.argwhere(decode(link.region))} == {p for _, i, p in own if i == image}


def test_parts_are_seeded_and_read_nothing_global():
    supports = [support(seed) for seed in range(4)]
    np.random.seed(0)
    first = build_class("dog", supports, parts=6, seed=1)
    np.random.seed(1)
    again, other = build_class("dog", supports, parts=6, seed=1), build_class("dog", supports, parts=6, seed=2)
    assert (first.vectors["0"] == again.vectors["0"]).all() and first.links == again.links
    assert (first.vectors["0"] != other.vectors["0"]).any()


def test_fewer_different_cells_than_parts():
    s = support(0)
    alike = Support("a", {"0": np.ones((5, 4, 4), np.float32)}, s.foreground, s.background)
    parts, links = of(build_class("dog", [alike], parts=6), "part", "foreground")
    assert parts == pytest.approx(np.ones((1, 5))) and links[0].cells == cells(s.foreground, 4).sum()
    few = build_class("dog", [s], parts=1000)
    assert len(of(few, "part", "foreground")[0]) == cells(s.foreground, 4).sum()


def test_a_sample_of_cells_for_kmeans_leaves_links_whole():
    supports = [support(seed, sides=(8,), size=16) for seed in range(3)]
    whole, sampled = (build_class("dog", supports, parts=3, sample=n) for n in (0, 5))
    count = sum(int(cells(s.background, 8).sum()) for s in supports)
    for found in (whole, sampled):
        assert sum(link.cells for link in of(found, "part", "background")[1]) == count
    assert (whole.vectors["0"] != sampled.vectors["0"]).any()
    assert (build_class("dog", supports, parts=3, sample=1000).vectors["0"] == whole.vectors["0"]).all()
    own = of(sampled, "class", "background")[0]
    assert (own == of(whole, "class", "background")[0]).all()  # means see all cells


# --- several extractors, missing regions ------------------------------------------------------------------------------


def test_extractors_stand_side_by_side_each_on_its_own_grid():
    both = [support(seed, channels=(5, 3), sides=(4, 2)) for seed in range(3)]
    alone = [Support(s.image, {"1": s.features["1"]}, s.foreground, s.background) for s in both]
    found, single = build_class("dog", both, parts=2), build_class("dog", alone, parts=2)
    assert set(found.vectors) == {"0", "1"} and found.vectors["1"].shape[1] == 3
    assert (found.vectors["1"] == single.vectors["1"]).all() and found.links["1"] == single.links["1"]
    assert decode(found.links["1"][0].region).shape == (2, 2)


def test_images_without_a_region_give_nothing():
    a, b = support(0), support(1)
    empty = np.zeros((8, 8), bool)
    found = build_class("dog", [a, replace(b, foreground=empty)], parts=2)
    assert found.without == ("dog/1",) and found.usable
    assert [link.image for link in of(found, "instance", "foreground")[1]] == ["dog/0"]
    assert len(of(found, "instance", "background")[1]) == 2
    only = build_class("dog", [replace(a, background=empty)], parts=2)
    assert only.usable and not of(only, "class", "background")[1]
    none = build_class("dog", [replace(a, foreground=empty), replace(b, foreground=empty)], parts=2)
    assert not none.usable and none.without == ("dog/0", "dog/1")
    nothing = build_class("dog", [replace(a, foreground=empty, background=empty)])
    assert nothing.vectors["0"].shape == (0, 5) and not nothing.usable


def test_half_precision_features():
    exact = build_class("dog", [support(s) for s in range(3)], parts=3)
    half = build_class("dog", [support(s, dtype=np.float16) for s in range(3)], parts=3)
    assert half.vectors["0"].dtype == np.float32 and len(half.vectors["0"]) == len(exact.vectors["0"])
    assert of(half, "class", "foreground")[0] == pytest.approx(of(exact, "class", "foreground")[0], abs=1e-3)


def test_what_is_refused():
    with pytest.raises(UserError, match="class dog: expected at least one support image, got none"):
        build_class("dog", [])
    with pytest.raises(UserError, match="class dog: expected each support image once, got dog/0 again"):
        build_class("dog", [support(0), support(0)])
    with pytest.raises(UserError, match="dog/1: expected features 0 of 5 channels, got 0 of 6 channels"):
        build_class("dog", [support(0), support(1, channels=(6,))])
    bad = support(0)
    bad.features["0"][0, 0, 0] = np.nan
    with pytest.raises(UserError, match="class dog: dog/0: 0: expected finite features"):
        build_class("dog", [bad])


def test_feature_map_joins_levels_unscaled():
    rng = np.random.default_rng(0)
    fine, coarse = rng.normal(size=(2, 4, 4)).astype(np.float16), rng.normal(size=(3, 2, 2)).astype(np.float16) * 50
    found = feature_map({"feature_2_0": coarse, "feature_4_0": fine})
    assert found.shape == (5, 4, 4) and found.dtype == np.float32
    assert (found[:2] == fine).all()
    assert (found[2:, 0, 0] == coarse[:, 0, 0]).all()  # the corner of a bilinear enlargement is the corner
    assert np.abs(found[2:]).max() > 20
    assert feature_map({"feature_2_0": coarse, "feature_4_0": fine}, 2).shape == (5, 2, 2)
    with pytest.raises(UserError, match="expected arrays feature"):
        feature_map({"x": fine})


# --- the bank ---------------------------------------------------------------------------------------------------------

FACTS = {"0": {"family": "clip", "id": "data/mini/clip", "revision": "a1", "layers": [0, 1]}}


def checksums(folder) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def named(name: str, seed: int = 0) -> ClassPrototypes:
    return build_class(name, [support(seed + i, f"{name}/{i}") for i in range(2)], parts=3)


def test_there_and_back(tmp_path):
    bank = Bank(tmp_path / "bank")
    dog = named("dog")
    bank.write(dog, "stamp", FACTS)
    found = bank.read("dog", FACTS)
    assert (found.vectors["0"] == dog.vectors["0"]).all() and found.links == dog.links
    assert (found.name, found.images, found.without) == (dog.name, dog.images, dog.without)
    assert bank.fingerprint("dog") == "stamp" and bank.fingerprint("cat") is None
    assert bank.names() == ["dog"] and bank.facts("dog") == FACTS


def test_a_class_touches_its_own_files_only(tmp_path):
    bank = Bank(tmp_path / "bank")
    for i, name in enumerate(("dog", "potted plant", "cat")):
        bank.write(named(name, i), "1", FACTS)
    before = checksums(bank.folder)
    bank.write(named("fish", 9), "1", FACTS)
    after = checksums(bank.folder)
    assert {k: v for k, v in after.items() if k in before} == before and len(after) == len(before) + 2
    bank.write(named("fish", 10), "2", FACTS)
    changed = {k for k, v in checksums(bank.folder).items() if after[k] != v}
    assert changed == {p.name for p in bank.files("fish")}
    for path in bank.files("fish"):
        path.unlink()
    assert checksums(bank.folder) == before and bank.names() == ["cat", "dog", "potted plant"]


def test_the_same_class_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        Bank(tmp_path / folder).write(named("dog"), "1", FACTS)
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b")


@pytest.mark.parametrize("pair", [("a b", "a-b"), ("Dog", "dog"), ("é", "e"), ("水", "火"), ("x" * 80, "x" * 81)])
def test_names_that_differ_have_files_of_their_own(tmp_path, pair):
    files = [Bank(tmp_path).files(name) for name in pair]
    assert len({p.name.lower() for two in files for p in two}) == 4
    assert all(p.name.isascii() and len(p.name) < 80 and "/" not in p.name for two in files for p in two)


def test_another_extractor_or_revision_is_refused(tmp_path):
    bank = Bank(tmp_path)
    bank.write(named("dog"), "1", FACTS)
    path = bank.files("dog")[1]
    with pytest.raises(UserError) as caught:
        bank.read("dog", {"0": {**FACTS["0"], "revision": "b2"}})
    assert str(caught.value) == (
        f"{path}: class 'dog': expected prototypes made with 0 revision \"b2\", got \"a1\"; build the bank again, or "
        "ask for what it was built with"
    )
    with pytest.raises(UserError, match="expected prototypes of the extractor sd, got those of 0; build the class"):
        bank.read("dog", {"sd": {}})
    with pytest.raises(UserError, match="expected prototypes made with 0 dtype"):
        bank.read("dog", {"0": {"dtype": "float16"}})
    bank.read("dog", {"0": {"layers": (0, 1)}})  # a part of the facts, and a tuple for a list


def test_damage_is_noticed(tmp_path):
    bank = Bank(tmp_path)
    with pytest.raises(UserError, match="expected prototypes of the class 'dog', found none; build it first"):
        bank.read("dog", FACTS)
    bank.write(named("dog"), "1", FACTS)
    vectors, rest = bank.files("dog")
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:-1])
    assert bank.fingerprint("dog") is None
    with pytest.raises(UserError, match="expected the vectors that .*json was written with, got other ones"):
        bank.read("dog", FACTS)
    vectors.unlink()
    with pytest.raises(UserError, match="expected the vectors of 'dog', got: No such file"):
        bank.read("dog", FACTS)
    vectors.write_bytes(whole)
    document = json.loads(rest.read_text())
    rest.write_text(json.dumps({**document, "schema": 99}))
    with pytest.raises(UserError, match="expected a class of schema 1, got 99"):
        bank.read("dog", FACTS)
    rest.write_text("{")
    with pytest.raises(UserError, match="expected JSON"):
        bank.read("dog", FACTS)


def test_a_class_without_foreground_is_not_written(tmp_path):
    s = support(0)
    none = build_class("dog", [replace(s, foreground=np.zeros((8, 8), bool))])
    with pytest.raises(ValueError, match="class dog: expected foreground"):
        Bank(tmp_path / "bank").write(none, "1", FACTS)
    assert not (tmp_path / "bank").exists()
    with pytest.raises(ValueError, match="facts of"):
        Bank(tmp_path).write(named("dog"), "1", {})


def test_regions_in_the_file_are_what_encode_makes(tmp_path):
    bank = Bank(tmp_path)
    bank.write(named("dog"), "1", FACTS)
    row = json.loads(bank.files("dog")[1].read_text())["prototypes"]["0"][1]
    assert set(row) == {"kind", "ground", "image", "region", "cell", "cells"} and row["kind"] == "instance"
    assert encode(decode(row["region"])) == row["region"] and decode(row["region"]).sum() == row["cells"]


def test_classes_in_folders_of_their_own_are_one_bank(tmp_path):
    for folder, name in (("a", "dog"), (".b.part", "cat"), ("c", "fish")):
        Bank(tmp_path / folder).write(named(name), name, FACTS)
    bank = Bank(tmp_path)
    assert bank.names() == ["dog", "fish"] and bank.fingerprint("fish") == "fish" and bank.fingerprint("cat") is None
    assert bank.read("dog", FACTS).name == "dog"
    bank.write(named("bird"), "new", FACTS)  # beside them
    bank.write(named("dog"), "again", FACTS)  # where it was
    assert bank.names() == ["bird", "dog", "fish"] and sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == (
        sorted(p.name for p in bank.files("bird"))
    )
    assert Bank(tmp_path / "a").fingerprint("dog") == "again"
