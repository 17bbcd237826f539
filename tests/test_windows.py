"""Windows beside one view at a time: cut with slices, enlarged on its own, added where it lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from maskmill.errors import UserError
from maskmill.segmenters.matching import Vocabulary, match
from maskmill.segmenters.prototypes import ClassPrototypes, Link
from maskmill.segmenters.windows import cells_at, cut, enlarge, label_map, merge, plan


def slow_merge(per_lattice, views) -> torch.Tensor:
    h, w = views.shape
    k = per_lattice[0].shape[1]
    total, count = torch.zeros(k, h, w, dtype=torch.float64), torch.zeros(h, w)
    boxes = iter(views.boxes())
    for s in per_lattice:
        for one in s:
            top, left, height, width = next(boxes)
            large = F.interpolate(one[None].double(), (height, width), mode="bilinear", align_corners=False,
                                  antialias=True)[0]  # fmt: skip
            total[:, top : top + height, left : left + width] += large
            count[top : top + height, left : left + width] += 1
    assert (count >= 1).all() and next(boxes, None) is None
    return (total / count).float()


SMALL = {"short": 28, "sizes": (28, 21), "stride": 14}  # OVDiff's, a sixteenth
PLANS = [
    (28, 28, SMALL), (31, 23, SMALL), (19, 57, SMALL),
    (64, 64, {"short": 64, "sizes": (48, 32), "stride": 16}),
    (20, 31, {"short": 0, "sizes": (13, 7), "stride": 5}),
    (20, 31, {"short": 0, "sizes": (13,), "stride": 6, "whole": False}),
    (20, 31, {"short": 40, "sizes": ()}),
]  # fmt: skip


# --- where windows lie ------------------------------------------------------------------------------------------------


def test_ovdiffs_windows_by_hand():
    views = plan(480, 640)  # short side 448, so 448x597
    assert views.shape == (448, 597)
    assert views.boxes() == [
        (0, 0, 448, 597),
        (0, 0, 448, 448), (0, 149, 448, 448),
        (0, 0, 336, 336), (0, 224, 336, 336), (0, 261, 336, 336),
        (112, 0, 336, 336), (112, 224, 336, 336), (112, 261, 336, 336),
    ]  # fmt: skip
    assert len(views) == 9
    assert plan(448, 448).boxes()[:2] == [(0, 0, 448, 448), (0, 0, 336, 336)]  # the window of all is not repeated
    assert plan(448, 448, whole=False).boxes()[0] == (0, 0, 448, 448)


@pytest.mark.parametrize(("height", "width", "more"), [*PLANS, (448, 448, {}), (500, 375, {}), (300, 900, {})])
def test_windows_cover_the_picture_and_stay_in_it(height, width, more):
    views = plan(height, width, **more)
    seen = np.zeros(views.shape, int)
    for top, left, h, w in views.boxes():
        assert top >= 0 and left >= 0 and top + h <= views.shape[0] and left + w <= views.shape[1]
        seen[top : top + h, left : left + w] += 1
    assert (seen > 0).all() and len(set(views.boxes())) == len(views)
    if short := more.get("short", 448):
        assert min(views.shape) == short
        assert views.shape[1] / views.shape[0] == pytest.approx(width / height, rel=0.04)
    else:
        assert views.shape == (height, width)


def test_a_stride_that_does_not_fit_ends_where_the_picture_ends():
    views = plan(10, 10, short=0, sizes=(4,), stride=4, whole=False)
    assert views.lattices[0].tops == (0, 4, 6)
    assert plan(12, 10, short=0, sizes=(4,), stride=4, whole=False).lattices[0].tops == (0, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((20, 30, 0, (21,), 4), "expected a picture of at least 21x21 pixels for windows of that size, got 30x20"),
        ((20, 30, 16, (17,), 4), "expected a picture of at least 17x17 pixels for windows of that size, got 24x16"),
        ((20, 30, 0, (0,), 4), "expected sizes and a stride of at least 1, got"),
        ((20, 30, 0, (4,), 0), "expected sizes and a stride of at least 1, got"),
        ((20, 30, 0, (), 4, False), "expected a window size, or the whole picture as a view, got neither"),
    ],
)
def test_what_is_refused(arguments, said):
    with pytest.raises(UserError, match=said):
        plan(*arguments)


# --- cutting and merging ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "more"), PLANS)
def test_cutting_beside_slices(height, width, more):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    views = plan(height, width, **more)
    h, w = views.shape
    scaled = np.asarray(Image.fromarray(image).resize((w, h), Image.BICUBIC))
    cuts = [view for lattice in cut(image, views) for view in lattice]
    assert len(cuts) == len(views)
    for view, (top, left, a, b) in zip(cuts, views.boxes(), strict=True):
        assert view.dtype == np.uint8 and (view == scaled[top : top + a, left : left + b]).all()


@pytest.mark.parametrize(("height", "width", "more"), PLANS)
@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (60, 60)])
def test_merging_beside_one_view_at_a_time(height, width, more, grid):
    views = plan(height, width, **more)
    generator = torch.Generator().manual_seed(1)
    per_lattice = [torch.randn(len(lattice), 3, *grid, generator=generator) for lattice in views.lattices]
    merged = merge(per_lattice, views)
    assert merged.shape == (3, *views.shape) and merged.dtype == torch.float32
    assert merged.numpy() == pytest.approx(slow_merge(per_lattice, views).numpy(), abs=2e-5)
    assert (merge(torch.cat(per_lattice), views) == merged).all()


def test_lattices_may_have_grids_of_their_own():
    views = plan(20, 30, short=0, sizes=(10,), stride=10)
    per_lattice = [torch.randn(1, 2, 4, 6), torch.randn(6, 2, 5, 5)]
    assert merge(per_lattice, views).numpy() == pytest.approx(slow_merge(per_lattice, views).numpy(), abs=1e-5)
    with pytest.raises(ValueError, match="expected 6 views of 10x10 pixels, got 5"):
        merge([per_lattice[0], per_lattice[1][:5]], views)


def test_a_constant_stays_and_each_view_counts_the_same():
    views = plan(8, 8, short=0, sizes=(4,), stride=4)
    assert (merge(torch.full((5, 1, 2, 2), 0.25), views) - 0.25).abs().max() < 1e-6
    values = torch.tensor([0.0, 1, 2, 3, 4]).view(5, 1, 1, 1)  # the whole, then four quarters
    wanted = torch.tensor([[0.5, 1.0], [1.5, 2.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert merge(values, views)[0].numpy() == pytest.approx(wanted.numpy(), abs=1e-6)


def test_cells_at_a_place():
    views = plan(8, 8, short=0, sizes=(4,), stride=2)  # the whole, and 3x3 windows
    assert cells_at(views, 0.05, 0.95, (2, 2)) == [(0, 0, 1), (3, 0, 1)]
    assert cells_at(views, 0.45, 0.45, (4, 4)) == [(0, 1, 1), (1, 3, 3), (2, 3, 1), (4, 1, 3), (5, 1, 1)]
    numbers = {number for number, _, _ in cells_at(views, 0.3, 0.7, (4, 4))}
    held = {i for i, (top, left, h, w) in enumerate(views.boxes()) if top <= 2.4 <= top + h and left <= 5.6 <= left + w}
    assert numbers == held
    assert cells_at(views, 1.0, 1.0, (3, 3)) == [(0, 2, 2), (9, 2, 2)]


def test_a_picture_through_all_its_windows():
    """Views cut, each matched on a grid of its own mean colours, merged, and labelled at the picture's size."""
    colours = {"dog": (200, 30, 30), "bird": (40, 60, 220), "ground": (90, 160, 60)}
    image = np.full((60, 90, 3), colours["ground"], np.uint8)
    image[20:45, 10:35], image[10:40, 55:80] = colours["dog"], colours["bird"]
    wanted = np.zeros((60, 90), np.uint8)
    wanted[20:45, 10:35], wanted[10:40, 55:80] = 2, 1

    def features(pictures: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
        return F.interpolate(x, (20, 20), mode="area")

    def prototypes(name: str) -> ClassPrototypes:
        links = [Link("class", ground, name, {}, (0, 0), 1) for ground in ("foreground", "background")]
        return ClassPrototypes(name, {"c": np.array([colours[name], colours["ground"]], np.float32)}, {"c": links})

    vocabulary = Vocabulary([prototypes("bird"), prototypes("dog")])
    views = plan(60, 90, short=40, sizes=(40, 30), stride=10)
    found = [match({"c": features(pictures)}, vocabulary).similarity for pictures in cut(image, views)]
    labels = label_map(merge(found, views), (60, 90))
    assert labels.shape == (60, 90) and (labels == wanted).mean() > 0.96
    assert (labels[25:40, 15:30] == 2).all() and (labels[15:35, 60:75] == 1).all() and (labels[50:] == 0).all()


# --- the picture's own size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 9), (20, 31), (5, 4), (7, 20)])
def test_labels_at_the_pictures_size(size):
    similarity = torch.randn(4, 7, 9, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(similarity[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    assert enlarge(similarity, size).numpy() == pytest.approx(large.numpy(), abs=1e-5)
    wanted = large.argmax(0).numpy()
    for budget in (1, 4 * 4 * size[1] * 3, 2**20):
        found = label_map(similarity, size, budget)
        assert found.dtype == np.uint8 and (found == wanted).all()


def test_a_label_map_holds_256_labels():
    label_map(torch.zeros(256, 1, 1), (1, 1))
    with pytest.raises(UserError, match="expected at most 256 labels with the background, got 257"):
        label_map(torch.zeros(257, 1, 1), (1, 1))
