"""Figures of two sets side by side: densities that integrate to 1, byte-stable PNG, tables that hold what is drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import gaussian_kde

from maskmill.errors import UserError
from maskmill.report.distributions import POINTS, centre_scatter, density, density_curves, polygon_panels

SQUARE = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
TRIANGLE = np.array([[0.0, 0], [0, 1], [1, 1]])


def is_png(path) -> bool:
    data = path.read_bytes()
    return data[:8] == b"\x89PNG\r\n\x1a\n" and b"tEXt" not in data and b"tIME" not in data


def area(curve: np.ndarray, at: np.ndarray) -> float:
    return float(np.trapezoid(curve, at))


def test_density_of_one_value_is_a_kernel_of_the_least_width():
    at = np.linspace(-5, 5, 101)  # a hundredth of the range: 0.1
    found = density([0.0], at)
    assert found[50] == pytest.approx(1 / (0.1 * np.sqrt(2 * np.pi)))
    assert found[51] == pytest.approx(found[50] * np.exp(-0.5)) and found[49] == pytest.approx(found[51])


def test_density_equals_scipys_with_silvermans_width():
    values = np.random.default_rng(0).gamma(3, 2, 1501)  # more than a batch, and skewed
    at = np.linspace(-5, 35, 300)
    quarter, three_quarters = np.quantile(values, (0.25, 0.75))
    width = 0.9 * min(values.std(), (three_quarters - quarter) / 1.34) * 1501**-0.2
    assert width > 0.4  # wider than the least
    reference = gaussian_kde(values, bw_method=width / values.std(ddof=1))
    np.testing.assert_allclose(density(values, at), reference(at), rtol=1e-9, atol=1e-15)
    assert area(density(values, at), at) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("values", [[0.0, 0.01, 0.02, 0.05, 0.1], [1.0] * 7, [0.0, 1.0], [0.4]])
def test_a_bounded_density_integrates_to_1_within_its_bounds(values):
    at = np.linspace(0, 1, 2001)
    assert area(density(values, at, (0, 1)), at) == pytest.approx(1, abs=2e-3)
    mirrored = density([1 - v for v in values], at, (0, 1))
    np.testing.assert_allclose(mirrored, density(values, at, (0, 1))[::-1], atol=1e-9)


def test_most_values_alike_still_give_a_finite_curve():
    at = np.linspace(0, 1, 101)
    found = density([0.5] * 9 + [0.9], at)  # the interquartile range is 0
    assert np.isfinite(found).all() and found.argmax() == 50


def test_density_curves_are_byte_stable_and_end_at_the_bounds(tmp_path):
    samples = {"ours": [0.05, 0.2, 0.3], "reference": [0.5, 0.9, 0.98]}
    for name in "ab":
        density_curves(samples, tmp_path / f"{name}.png", tmp_path / f"{name}.csv", "share", "Size", (0, 1))
    assert is_png(tmp_path / "a.png") and (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    table = pd.read_csv(tmp_path / "a.csv")
    assert list(table.columns) == ["set", "value", "density"] and len(table) == 2 * POINTS
    assert (table["value"].min(), table["value"].max()) == (0, 1)
    for name, values in samples.items():
        one = table[table["set"] == name]
        np.testing.assert_allclose(one["density"], density(values, one["value"].to_numpy(), (0, 1)), atol=1e-4)
    other = {**samples, "ours": [0.05, 0.2, 0.31]}
    density_curves(other, tmp_path / "c.png", tmp_path / "c.csv", "share", "Size", (0, 1))
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def test_sets_of_one_value_can_be_drawn(tmp_path):
    table = density_curves({"a": [3.0], "b": [3.0, 3.0]}, tmp_path / "a.png", tmp_path / "a.csv", "x", "One value")
    assert np.isfinite(table["density"]).all() and is_png(tmp_path / "a.png")


def test_centres(tmp_path):
    centres = {"ours": np.array([[0.2, 0.5], [0.4, 0.5]]), "reference": np.array([[0.5, 0.5]])}
    for name in "ab":
        centre_scatter(centres, tmp_path / f"{name}.png", tmp_path / f"{name}.csv")
    assert is_png(tmp_path / "a.png") and (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    table = pd.read_csv(tmp_path / "a.csv")
    assert table.values.tolist() == [["ours", 0.2, 0.5], ["ours", 0.4, 0.5], ["reference", 0.5, 0.5]]


def test_polygons(tmp_path):
    polygons = {"ours": [SQUARE, TRIANGLE] * 4, "reference": [TRIANGLE / 2, np.zeros((1, 2))]}
    for name in "ab":
        polygon_panels(polygons, tmp_path / f"{name}.png", tmp_path / f"{name}.csv")
    assert is_png(tmp_path / "a.png") and (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    table = pd.read_csv(tmp_path / "a.csv")
    assert table.groupby(["set", "polygon"]).size().tolist() == [4, 3] * 4 + [3, 1]
    one = table[(table["set"] == "reference") & (table["polygon"] == 0)]
    assert one[["x", "y"]].values.tolist() == (TRIANGLE / 2).tolist()


def test_refusals(tmp_path):
    png, table = tmp_path / "a.png", tmp_path / "a.csv"
    with pytest.raises(UserError, match="Size: expected at least one value per set, got none of b"):
        density_curves({"a": [1.0], "b": []}, png, table, "x", "Size")
    with pytest.raises(UserError, match="Centres of the objects: expected at least one value per set, got none"):
        centre_scatter({}, png, table)
    with pytest.raises(UserError, match="Polygons: expected at least one"):
        polygon_panels({"a": []}, png, table)
    for values in ([], [1.0, np.nan]):
        with pytest.raises(UserError, match="density: expected finite values"):
            density(values, np.linspace(0, 1, 5))
    assert list(tmp_path.iterdir()) == []
