"""OVDiff's extractors on the random miniature, beside queries that are projected and resized by hand."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskmill import params
from maskmill.diffusion.noise import keyed_noise
from maskmill.errors import UserError
from maskmill.masks.attentioncut import resize
from maskmill.segmenters.extractors import Extractor, locate
from maskmill.segmenters.features_of import QueryExtractor, open_extractors
from maskmill.segmenters.prototypes import Bank, Support, build_class, feature_map

COMMITTED = params.load(Path(__file__).parents[1] / "params.yaml")
SETTINGS = replace(COMMITTED.extractors, sd=params.DiffusionQueries(t=200, size=64, side=0, draws=1))


@pytest.fixture(scope="module")
def model(tiny_model) -> params.Model:
    return params.Model(str(tiny_model), "", "float32", str(tiny_model / "clip"))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(x).resize((64, 64), Image.BICUBIC)) for x in coarse])


def opened(model: params.Model, **sd) -> QueryExtractor:
    return open_extractors(model, ["sd"], replace(SETTINGS, sd=replace(SETTINGS.sd, **sd)), "cpu")["sd"]


def queries_by_hand(extract: QueryExtractor, image: np.ndarray, noises: list) -> np.ndarray:
    """(C, 16, 16): what enters each cross-attention of the expanding path, times its query matrix."""
    backbone = extract.backbone
    z = backbone.encode_images(image[None])
    condition = backbone.encode_text([""], 64)
    total = 0
    for noise in noises:
        entered: dict[str, torch.Tensor] = {}
        handles = [block.register_forward_hook(lambda m, args, out, put=entered.__setitem__, name=name: put(name, out))
                   for name, block in backbone.unet.named_modules() if name.endswith("norm2")
                   and name.startswith("up_blocks") and "attentions" in name]  # fmt: skip
        a = float(backbone.abar[extract.t])
        x = z if noise is None else a**0.5 * z + (1 - a) ** 0.5 * noise
        with torch.inference_mode():
            backbone.noise(x, extract.t, condition)
        for handle in handles:
            handle.remove()
        maps = []
        for name, x in entered.items():
            weight = dict(backbone.unet.named_parameters())[name.replace("norm2", "attn2.to_q.weight")]
            q = (x[0] @ weight.T).numpy()  # (n, d)
            r = round(len(q) ** 0.5)
            maps.append(resize(q.T.reshape(-1, r, r), (16, 16)))
        total = total + np.concatenate(maps)
    return total / len(noises)


def noise_of(image: np.ndarray, t: int, draw: int) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:7], "big")
    return keyed_noise([seed], (4, 16, 16), t, draw)


@pytest.mark.parametrize("draws", [0, 1, 3])
def test_queries_are_those_by_hand(model, images, draws):
    extract = opened(model, draws=draws)
    assert [name for name, _ in extract.layers] == [
        f"up_blocks.{i}.attentions.{j}.transformer_blocks.0.attn2" for i in (1, 2) for j in (0, 1)
    ]
    noises = [noise_of(images[0], 200, k) for k in range(draws)] or [None]
    got = extract(images[:1])
    assert got.shape == (1, 16 * 4, 16, 16) and got.dtype == torch.float32
    assert got[0].numpy() == pytest.approx(queries_by_hand(extract, images[0], noises), abs=2e-5)
    assert got.std() > 0.01


def test_a_picture_owes_nothing_to_its_neighbours_and_may_have_any_shape(model, images):
    extract = opened(model)
    whole = extract(images)
    assert torch.equal(extract(images[::-1].copy()).flip(0), whole)
    assert extract(images[2:3])[0].numpy() == pytest.approx(whole[2].numpy(), abs=1e-4)
    wide = np.asarray(Image.fromarray(images[0]).resize((100, 40), Image.BICUBIC))
    squashed = np.asarray(Image.fromarray(wide).resize((64, 64), Image.BICUBIC))
    assert torch.equal(extract([wide, images[1]]), extract([squashed, images[1]]))
    with pytest.raises(ValueError, match="of uint8"):
        extract([images[0].astype(np.float32)])


def test_side_and_time(model, images):
    fine, coarse = opened(model)(images[:2]), opened(model, side=8)(images[:2])
    assert coarse.shape == (2, 64, 8, 8)
    assert coarse[0, -1].numpy() == pytest.approx(resize(fine[0, -1].numpy(), (8, 8)), abs=1e-5)
    assert not torch.allclose(opened(model, t=600)(images[:2]), fine, atol=1e-3)


def test_no_hook_stays_and_silence_is_an_error(model, images, monkeypatch):
    extract = opened(model)
    extract(images[:1])
    assert not any(layer.to_q._forward_hooks for _, layer in extract.layers)
    monkeypatch.setattr(extract.backbone, "noise", lambda *args: None)
    with pytest.raises(RuntimeError, match="no queries recorded from up_blocks.1"):
        extract(images[:1])


def test_clip_is_its_extractors_levels_side_by_side(model, images, tiny_model):
    found = open_extractors(model, ["clip", "sd"], SETTINGS, "cpu")
    assert list(found) == ["clip", "sd"]
    got = found["clip"](images)
    plain = Extractor(locate("clip", str(tiny_model / "clip")), "token", [0, 1, 2], 64)(images)
    wanted = np.stack([feature_map(sample) for sample in plain])
    assert got.shape == wanted.shape and got.numpy() == pytest.approx(wanted, abs=1e-3)
    assert open_extractors(model, [], replace(SETTINGS, names=("clip",)), "cpu").keys() == {"clip"}


def test_facts_tell_extractors_apart_and_a_bank_of_another_one_is_refused(model, images, tmp_path, tiny_model):
    base = opened(model)
    x = base(images).numpy()
    fg = np.zeros((16, 16), bool)
    fg[4:12, 4:12] = True
    made = build_class("dog", [Support(f"dog/{i}", {"sd": x[i]}, fg, ~fg) for i in range(4)], parts=2)
    bank = Bank(tmp_path / "bank")
    bank.write(made, "1", {"sd": base.facts})
    bank.read("dog", {"sd": json.loads(json.dumps(base.facts))})
    others = [opened(model, t=100), opened(model, draws=0), opened(model, side=8),
              opened(replace(model, dtype="bfloat16"))]  # fmt: skip
    for other, fact in zip(others, ("t 100", "draws 0", "side 8", "weights"), strict=True):
        with pytest.raises(UserError) as refusal:
            bank.read("dog", {"sd": other.facts})
        assert f"expected prototypes made with sd {fact}" in str(refusal.value) and "\n" not in str(refusal.value)
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    assert opened(replace(model, id=str(moved))).facts == base.facts  # the place of the files is no matter
    path = moved / "unet/config.json"
    path.write_text(path.read_text().replace('"act_fn": "silu"', '"act_fn":  "silu"'))
    with pytest.raises(UserError, match="made with sd weights .*; build the bank again"):
        bank.read("dog", {"sd": opened(replace(model, id=str(moved))).facts})


@pytest.mark.parametrize(
    ("names", "sd", "said"),
    [(["sd", "moco"], {}, "extractors.names: expected names among sd, clip, dino, mae, got 'moco'"),
     (["clip", "clip"], {}, "extractors.names: expected each extractor once, got clip again"),
     (["dino"], {}, "extractors.dino.id: expected a folder or hub id of a dino network, got ''"),
     (["sd"], {"size": 66}, "extractors.sd.size: expected a multiple of 4, the model's latent cell, got 66"),
     (["sd"], {"t": 1000}, "extractors.sd.t: expected a time step of 0 to 999, got 1000")],
)  # fmt: skip
def test_bad_settings_are_one_line(model, names, sd, said):
    with pytest.raises(UserError) as error:
        open_extractors(model, names, replace(SETTINGS, sd=replace(SETTINGS.sd, **sd)), "cpu")
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_of_a_hub_id_the_revision_counts(model, monkeypatch):
    from maskmill.segmenters import features_of

    made = {r: features_of._weights(replace(model, id="owner/name", revision=r)) for r in ("a", "b")}
    assert made["a"] != made["b"] and made["a"]["id"] == "owner/name"
