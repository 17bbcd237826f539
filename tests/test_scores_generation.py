"""The Frechet distance against matrix square roots and by hand; the networks against what they stand for."""

from __future__ import annotations

import math

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from maskmill.datasets.table import save_png
from maskmill.errors import UserError
from maskmill.scores import generation
from maskmill.scores.generation import (
    Moments,
    clip_extractor,
    compare,
    extractor_of,
    fid_inception,
    frechet_distance,
    inception_extractor,
    inception_input,
    moments,
    moments_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def features(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def slow_distance(x: np.ndarray, y: np.ndarray) -> float:
    """By its definition: the square root of the product of the covariances."""
    c_x, c_y = np.cov(x.T), np.cov(y.T)
    root = sqrtm(c_x @ c_y)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c_x + c_y - 2 * np.real(root)))


@pytest.mark.parametrize("seed", range(3))
def test_the_distance_is_that_of_the_matrix_square_root(seed):
    x, y = features(60, 7, seed), features(45, 7, seed + 10)
    assert frechet_distance(moments([x]), moments([y])) == pytest.approx(slow_distance(x, y), rel=1e-8)


def test_with_fewer_pictures_than_features_it_is_the_nuclear_norm_form():
    """tr (C_1 C_2)^(1/2) is the sum of the singular values of A B^T, with C_1 = A^T A and C_2 = B^T B."""
    x, y = features(9, 30, 0), features(12, 30, 1)
    a, b = (v - v.mean(0) for v in (x, y))
    nuclear = np.linalg.svd(a @ b.T / math.sqrt(8 * 11), compute_uv=False).sum()
    slow = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() / 8 + (b**2).sum() / 11 - 2 * nuclear
    assert frechet_distance(moments([x]), moments([y])) == pytest.approx(slow, rel=1e-6)


def test_hand_computed_distances():
    one = Moments(5, np.array([0.0, 0.0]), np.diag([4.0, 9.0]))
    two = Moments(5, np.array([3.0, 4.0]), np.diag([1.0, 1.0]))
    assert frechet_distance(one, two) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 1) ** 2)
    assert frechet_distance(two, one) == pytest.approx(30)
    x = moments([features(50, 4, 0)])
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9) and frechet_distance(x, x) >= 0


def test_moments_in_batches_are_those_of_numpy():
    x = features(31, 5, 0) + 1000
    for cuts in ([31], [1, 30], [10, 10, 11], [1] * 31):
        parts = np.split(x, np.cumsum(cuts)[:-1])
        got = moments(iter(parts))
        assert got.n == 31 and got.mean == pytest.approx(x.mean(0)) and got.covariance == pytest.approx(np.cov(x.T))


def test_bad_features_are_refused():
    for batches, message in (([], "at least 2 pictures, got 0"), ([np.zeros((1, 3))], "at least 2 pictures, got 1"),
                             ([np.full((3, 2), np.nan)], "finite")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            moments(batches)
    with pytest.raises(UserError, match="one width, got 2 and 3"):
        frechet_distance(moments([features(4, 2, 0)]), moments([features(4, 3, 0)]))


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i in range(40):
        paths.append(tmp_path / f"{i}.png")
        save_png((rng.integers(0, 200, 3) + rng.integers(0, 56, (20 + i, 30, 3))).astype(np.uint8), paths[-1])
    return paths


def test_clips_features_are_its_embedding_under_another_name(tiny_model, pictures):
    extractor = clip_extractor(str(tiny_model / "clip"))
    assert extractor.metric == "frechet_clip"
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_model / 'clip'}")
    with torch.inference_mode():
        slow = np.stack([model.eval().encode_image(preprocess(Image.open(p).convert("RGB"))[None])[0].numpy()
                         for p in pictures])  # fmt: skip
    got = moments_of(pictures, extractor)
    assert got.n == 40 and got.formats == ("png",)
    assert got.mean == pytest.approx(slow.mean(0), abs=1e-5)
    assert got.covariance == pytest.approx(np.cov(slow.T), rel=1e-3, abs=1e-3 * np.cov(slow.T).max())
    assert np.trace(got.covariance) > 1e-6  # far above rounding


def test_a_result_says_what_it_depends_on(tiny_model, pictures, tmp_path):
    extractor = extractor_of("", str(tiny_model / "clip"))
    jpeg = tmp_path / "x.JPEG"
    Image.open(pictures[0]).save(jpeg)
    generated, real = moments_of(pictures[:30], extractor), moments_of([*pictures[5:], jpeg], extractor)
    result = compare(generated, real, extractor)
    assert result["frechet_clip"] == frechet_distance(generated, real) > 0 and "fid" not in result
    assert (result["n_generated"], result["n_real"]) == (30, 36)
    for words in ("30 generated (png)", "36 real pictures (jpg, png)", "64x64 by the CLIP's own transform", "features"):
        assert words in result["protocol"], result["protocol"]
    width = generated.mean.size
    assert ("biased" in result["protocol"]) == (30 <= width)
    enough = Moments(width + 1, generated.mean, generated.covariance)
    assert "biased" not in compare(enough, enough, extractor)["protocol"]
    assert "biased" in compare(Moments(width, generated.mean, generated.covariance), enough, extractor)["protocol"]


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """FID's architecture with random weights, as a file in its names."""
    torch.manual_seed(0)
    network = fid_inception().eval()
    for name, p in network.named_buffers():
        if name.endswith("running_var"):
            p.fill_(0.05)
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save({k: v for k, v in network.state_dict().items() if "num_batches" not in k}, path)
    return path, network


def slow_pool(x: np.ndarray, kind: str) -> np.ndarray:
    """3x3 pooling, stride 1, of what lies within the map: (C, h, w)."""
    out = np.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            window = x[:, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
            out[:, i, j] = window.mean((1, 2)) if kind == "average" else window.max((1, 2))
    return out


@pytest.mark.parametrize("name, kind", [("Mixed_5b", "average"), ("Mixed_6c", "average"), ("Mixed_7b", "average"),
                                        ("Mixed_7c", "maximum")])  # fmt: skip
def test_the_pooled_branch_leaves_the_padding_out(inception, name, kind):
    block = getattr(inception[1], name)
    width = block.branch_pool.conv.in_channels
    x = torch.rand(1, width, 4, 5, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got = block(x)[:, -block.branch_pool.conv.out_channels :]
        expected = block.branch_pool(torch.from_numpy(slow_pool(x[0].numpy(), kind))[None])
    assert torch.allclose(got, expected, atol=1e-5) and float(got.std()) > 0


def test_fids_network_is_called_fid_and_gives_2048_features(inception, pictures, monkeypatch):
    monkeypatch.setattr(generation, "BATCH", 2)
    path, network = inception
    extractor = inception_extractor(str(path))
    assert extractor.metric == "fid" and "299x299" in extractor.resize
    got = extractor.embed([np.asarray(Image.open(p)) for p in pictures[:2]])
    assert got.shape == (2, 2048) and got.std() > 0
    kept = []
    handle = network.avgpool.register_forward_hook(lambda m, args, out: kept.append(out.flatten(1)))
    with torch.inference_mode():
        network(inception_input(np.asarray(Image.open(pictures[1]))))
    handle.remove()
    assert got[1] == pytest.approx(kept[0][0].numpy(), abs=1e-4)


def test_what_goes_into_it_is_stretched_to_299_and_within_one():
    x = inception_input(np.stack([np.full((10, 20), v, np.uint8) for v in (0, 255, 51)], -1))
    assert x.shape == (1, 3, 299, 299)
    assert [float(c.mean()) for c in x[0]] == pytest.approx([-1, 1, -0.6], abs=1e-5)


def test_wrong_weights_are_one_line(inception, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="none.pth: expected a file with the weights of FID's Inception network"):
        inception_extractor(str(tmp_path / "none.pth"))
    path = tmp_path / "broken.pth"
    path.write_bytes(inception[0].read_bytes()[:1000])
    with pytest.raises(UserError, match="broken.pth: expected the weights of FID's Inception network, got"):
        inception_extractor(str(path))
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, path)
    with pytest.raises(UserError, match="expected the weights of FID's Inception network"):
        extractor_of(str(path), "")
