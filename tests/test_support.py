"""Support sets: classes of a command line, folders, prompts, regions by each of the three ways, things and stuff."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskmill import params
from maskmill.errors import UserError
from maskmill.masks.coco import encode
from maskmill.masks.regions import Regions, class_thresholds, maskcut, selected, thresholded, with_complement
from maskmill.segmenters import kinds, support
from maskmill.segmenters.categories import load_categories
from maskmill.segmenters.support_regions import (
    BACKGROUND,
    FOREGROUND,
    RegionFinder,
    attribution,
    draw_support,
    open_proposals,
    region_panel,
)

COMMITTED = params.load(Path(__file__).parents[1] / "params.yaml")
SUPPORT, BUILD = COMMITTED.support, COMMITTED.build_prototypes


# --- classes, folders, prompts ----------------------------------------------------------------------------------------


def test_the_classes_of_a_command_line(tmp_path):
    (tmp_path / "classes.txt").write_text("bird\n# a comment\n traffic   light \n")
    assert support.wanted(None, tmp_path / "classes.txt") == ["bird", "traffic light"]
    assert support.wanted(" red  panda", None) == ["red panda"]
    for name, file, said in ((None, None, "got neither"), ("bird", "x", "got both"), (" ", None, "--class: expected")):
        with pytest.raises(UserError, match=said):
            support.wanted(name, file)
    for text, said in (("", "got no class"), ("bird\nBird\n", "expected each class once, got 'Bird' again")):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(UserError, match=said):
            support.wanted(None, tmp_path / "classes.txt")


def test_every_class_has_a_folder_of_its_own_that_a_file_system_can_have():
    for plain in ("bird", "traffic light", "wall-other(stone)", "Käse"):
        assert support.class_folder(plain) == plain
    odd = ["a/b", "a\\b", "..", ".x", "x.", "x:y", "*", "l" * 200, "猫/犬"]
    folders = [support.class_folder(name) for name in odd]
    assert len(set(folders)) == len(odd) and all(Path(f).name == f and len(f) < 60 and f[0] != "." for f in folders)
    assert support.picture_of("s", "a/b", "00000-a-b").as_posix() == f"s/{folders[0]}/set/images/00000-a-b.png"


def test_prompts_name_the_class_and_its_seeds_are_its_own(words):
    rows = support.support_rows("bird", replace(SUPPORT, count=4), 0, words)
    assert [r.sample_id for r in rows] == [f"0000{i}-bird" for i in range(4)]
    assert {r.prompt for r in rows} == {SUPPORT.template.format("bird")} and len({r.seed for r in rows}) == 4
    span = words(rows[0].prompt)["input_ids"][rows[0].token_start : rows[0].token_end]
    assert words.decode(span).strip() == "bird"
    assert support.support_rows("bird", replace(SUPPORT, count=9), 0, words)[:4] == rows  # more leave the first alone
    others = [support.support_rows("dog", replace(SUPPORT, count=4), 0, words),
              support.support_rows("bird", replace(SUPPORT, count=4), 1, words)]  # fmt: skip
    assert not {r.seed for r in rows} & {r.seed for own in others for r in own}
    with_article = support.support_rows("bird", replace(SUPPORT, template="a photo of {a}"), 0, words)
    assert with_article[0].prompt == "a photo of a bird"
    for template in ("a photo", "a {b}", "a {} {", "{0}"):
        with pytest.raises(UserError, match="support.template: expected {} or {a}"):
            support.support_rows("bird", replace(SUPPORT, template=template), 0, words)
    with pytest.raises(UserError, match="support.template: class 'bird'.*at most 24 tokens"):
        support.support_rows("bird", replace(SUPPORT, template="bird " * 40 + "{}"), 0, words)


def test_the_papers_negative_prompt_has_a_short_name():
    assert support.negative_prompt(replace(SUPPORT, negative="ovdiff")).startswith("text, low quality, blurry, cartoon")
    assert support.negative_prompt(replace(SUPPORT, negative="ugly")) == "ugly"


# --- regions ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    """Three images: attribution maps and features that follow a rectangle, and the rectangles."""
    rng = np.random.default_rng(0)
    maps, features, truths = [], [], []
    for k in range(3):
        truth = np.zeros((16, 16), bool)
        truth[3 + k : 11 + k, 4:12] = True
        a = 0.8 * truth + 0.2 * rng.random((16, 16))
        maps.append((a - a.min()) / np.ptp(a))
        features.append({"sd": (rng.normal(size=(6, 1, 1)) * (2 * truth - 1) + 0.05 * rng.normal(size=(6, 16, 16)))})
        truths.append(truth)
    return maps, features, truths


def test_attribution_is_the_mean_over_layers_and_bins_scaled():
    rng = np.random.default_rng(1)
    record = {"cross_8": rng.random((4, 2, 8, 8)).astype(np.float16)}
    settings = replace(BUILD, size=8, t_max=1.0)
    mean = record["cross_8"].astype(np.float64).mean((0, 1))
    got = attribution(record, np.zeros((32, 32, 3), np.uint8), settings)
    assert got == pytest.approx((mean - mean.min()) / np.ptp(mean), abs=1e-5)
    early = record["cross_8"].astype(np.float64)[:2].mean((0, 1))
    got = attribution(record, np.zeros((32, 32, 3), np.uint8), replace(settings, t_max=0.5))
    assert got == pytest.approx((early - early.min()) / np.ptp(early), abs=1e-5)
    assert attribution(record, np.zeros((32, 32, 3), np.uint8), replace(settings, size=0)).shape == (32, 32)


def test_each_way_is_the_librarys_own(made, tmp_path):
    maps, features, truths = made
    otsu = RegionFinder(replace(BUILD, regions="otsu"), maps)
    assert otsu.thresholds == class_thresholds(maps)
    cut = RegionFinder(replace(BUILD, regions="maskcut"), maps)
    big = [np.kron(t, np.ones((4, 4), bool)) for t in truths]
    entries = [{"image_id": f"i{k}", "segmentation": encode(b), "score": 0.9} for k, b in enumerate(big)]
    (tmp_path / "p.json").write_text(json.dumps([*entries, {**entries[0], "score": 0.1}]))
    own = replace(BUILD, regions="proposals", proposals=str(tmp_path / "p.json"))
    drawn = RegionFinder(own, maps, open_proposals(own))
    assert cut.thresholds is drawn.thresholds is None
    m = BUILD.maskcut
    for k, (a, x, truth) in enumerate(zip(maps, features, truths, strict=True)):
        wanted = {
            otsu: thresholded(a, class_thresholds(maps)),
            cut: selected(with_complement(maskcut({"feature_16_0": x["sd"]}, (16, 16), m.count, m.tau, m.eps, m.scale,
                                                  m.corners)), a, BUILD.below, BUILD.each, BUILD.erode),
            drawn: selected(with_complement(truth[None]), a, BUILD.below, BUILD.each, BUILD.erode),
        }  # fmt: skip
        for find, regions in wanted.items():
            got = find(f"i{k}", a, x, (64, 64))
            assert (got.foreground == regions.foreground).all() and (got.background == regions.background).all()
            assert (got.foreground & truth).sum() > 0.9 * truth.sum() and not (got.background & truth).any()
    assert drawn("i0", maps[0], features[0], (64, 64)).background.any()


def test_proposals_are_asked_for_by_name():
    assert open_proposals(replace(BUILD, regions="otsu", proposals="nowhere")) is None
    with pytest.raises(UserError, match="build_prototypes.proposals: expected a COCO file or folder"):
        open_proposals(replace(BUILD, regions="proposals", proposals=""))


def test_the_picture_shows_the_regions(tmp_path):
    image = np.full((32, 32, 3), (10, 200, 30), np.uint8)
    fg, bg = np.zeros((16, 16), bool), np.zeros((16, 16), bool)
    fg[4:12, 4:12], bg[:2] = True, True
    panel = region_panel(image, Regions(fg, bg))
    assert (panel[16, 16] == (10, 200, 30)).all() and (panel[8, 16] == FOREGROUND).all()
    grey = image[0, 0] @ (0.299, 0.587, 0.114)
    assert panel[1, 1] == pytest.approx(0.55 * grey + 0.45 * np.array(BACKGROUND), abs=1)
    assert panel[30, 30] == pytest.approx([0.5 * grey + 127] * 3, abs=1)  # neither
    nothing = Regions(np.zeros((16, 16), bool), bg)
    draw_support(tmp_path / "a.png", "bird", [image] * 9, [Regions(fg, bg)] * 8 + [nothing], 9)
    draw_support(tmp_path / "b.png", "bird", [image] * 9, [Regions(fg, bg)] * 8 + [nothing], 8)
    a, b = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert len(a) > len(b) > 1000


# --- things and stuff -------------------------------------------------------------------------------------------------


def test_kinds_come_from_the_table_a_model_or_are_taken_for_things(tmp_path):
    asked = []

    def model(question: str, seed: int) -> str:
        asked.append((question, seed))
        return "It could be thing or stuff." if len(asked) == 1 else "Stuff."

    found = kinds.kinds_of(["Dog", "sky", "aeroplane", "airplane", "lava"], model, tries=3)
    assert [(k.name, k.kind, k.source) for k in found] == [
        ("Dog", "thing", "voc"), ("sky", "stuff", "context"), ("aeroplane", "thing", "voc"),
        ("airplane", "thing", "voc"), ("lava", "stuff", "llm")]  # fmt: skip
    assert len(asked) == 2 and "'lava'" in asked[0][0] and asked[0][1] == 0 and asked[1][1] > 0
    (tmp_path / "k.csv").write_text(kinds.to_csv(found[:3]))
    assert [(c.name, c.query, c.kind) for c in load_categories(tmp_path / "k.csv")] == [
        ("Dog", "Dog", "thing"), ("sky", "sky", "stuff"), ("aeroplane", "aeroplane", "thing")]  # fmt: skip
    guessed = kinds.kinds_of(["lava", "dog"])
    assert guessed[0] == kinds.Kind("lava", "thing", "unknown")
    assert kinds.counted(guessed) == "2 things, 0 stuff; unknown, taken for things: lava"


def test_a_model_that_does_not_answer_is_one_line():
    with pytest.raises(UserError, match="kinds.llm: expected thing or stuff for the class 'lava', got in 2 tries") as e:
        kinds.kinds_of(["lava"], lambda q, s: "I do not\nknow", tries=2)
    assert "\n" not in str(e.value)
