"""Picture grids: sizes, crisp pixels, panels by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskmill.errors import UserError
from maskmill.report.grids import ATTENTIONCUT_COLUMNS, MASK_TINT, Column, Row, heat_panel, mask_panel, picture_grid
from maskmill.world import render


def rows() -> list[Row]:
    out = []
    for seed in (1, 2):
        scene = render(seed)
        mask = scene.things[0].mask
        coarse = mask.reshape(16, 4, 16, 4).mean((1, 3))
        panels = {"ac": coarse, "r": coarse, "objectness": mask * 0.9, "cut": mask, "truth": mask}
        word = scene.things[0].cls
        out.append(Row(scene.image, panels, f"a photo of a {word}", word, {"cut": "IoU 1.00"}))
    return out


def test_a_grid_is_byte_stable_and_small(tmp_path):
    for name in "ab":
        picture = picture_grid(rows(), path=tmp_path / f"{name}.png", title="Two scenes", panel=128)
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes() and len(data) < 300_000
    assert b"tEXt" not in data
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.size == picture.size and opened.mode == "RGB" and opened.width > 6 * 128


def test_pixels_grow_to_crisp_squares():
    scene = render(3)
    picture = np.asarray(picture_grid([Row(scene.image, {})], (Column("image", "Picture", "image"),), panel=192))
    block = np.repeat(np.repeat(scene.image, 3, 0), 3, 1)
    margin = (picture.shape[1] - 192) // 2
    found = [y for y in range(picture.shape[0] - 191)
             if (picture[y : y + 192, margin : margin + 192] == block).all()]  # fmt: skip
    assert len(found) == 1


def test_heat_goes_from_dark_to_bright_and_stands_flat_and_nan_maps():
    grey = np.full((4, 4, 3), 100, np.float32)
    heat = np.array([[0.0, 1.0], [0.5, np.nan]])
    panel = heat_panel(grey, heat)
    light = panel.mean(-1)
    assert light[0, 0] < light[3, 0] < light[0, 3] and light[0, 0] == light[3, 3]
    assert (panel[0, 0] == panel[1, 1]).all()  # nearest: one coarse cell is 2 x 2 pixels
    assert np.isfinite(heat_panel(grey, np.zeros((2, 2)))).all()
    half, whole = heat_panel(grey, heat, (0, 2)), heat_panel(grey, heat, (0, 1))
    assert half[0, 3].mean() < whole[0, 3].mean()


def test_mask_panel_tints_inside_and_outlines():
    picture = np.zeros((9, 9, 3), np.float32)
    picture[..., 2] = 200  # blue
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    panel = mask_panel(picture, mask, line=1)
    tint = np.array(MASK_TINT, np.float32)
    assert (panel[2, 2:7] == tint).all() and (panel[2:7, 6] == tint).all()
    assert panel[4, 4] == pytest.approx(picture[4, 4] * 0.7 + tint * 0.3)
    assert np.ptp(panel[0, 0]) < 1e-3  # grey outside
    whole = mask_panel(picture, np.ones((9, 9), bool), line=1)
    assert not (whole == tint).all(-1).any()  # the picture's frame is no outline


def test_pictures_of_another_shape_and_absent_panels():
    image = np.zeros((30, 60, 3), np.uint8)
    tall = np.zeros((400, 300, 3), np.uint8)
    grid = picture_grid([Row(image, {}), Row(tall, {"cut": np.ones((400, 300), bool)}, "x" * 500, "x")], panel=64)
    assert grid.height > 32 + 85
    assert len(ATTENTIONCUT_COLUMNS) == 6


@pytest.mark.parametrize(
    ("bad_rows", "columns", "message"),
    [
        ([], ATTENTIONCUT_COLUMNS, "at least one row"),
        ([Row(np.zeros((4, 4, 3), np.uint8), {})], (Column("a", "A", "thing"),), "thing"),
        ([Row(np.zeros((4, 4, 3), np.uint8), {"a": np.zeros((2, 2, 2))})], (Column("a", "A", "heat"),), "panel 'a'"),
    ],
)
def test_refusals(tmp_path, bad_rows, columns, message):
    with pytest.raises(UserError, match=message):
        picture_grid(bad_rows, columns, tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []
