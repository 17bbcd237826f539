"""Frozen networks of every layout, tiny and random, against a vision transformer that is written out by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from maskmill.errors import UserError
from maskmill.segmenters import extractors
from maskmill.segmenters.extractors import Extractor, convert, locate

SIDE, PATCH, WIDTH, DEPTH, HEADS = 32, 8, 16, 3, 4
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
FACETS = ("token", "key", "query", "value")
VITS = ("vit", "mae", "clip_vision", "timm_vit", "open_clip_vit")
FAMILY = {"mae": "mae", "clip_vision": "clip", "clip_whole": "clip", "timm_resnet": "moco", "open_clip_vit": "clip",
          "open_clip_resnet": "clip"}  # fmt: skip


def lively(model: torch.nn.Module) -> torch.nn.Module:
    """Weights so large, and batch norms that amplify so much, that no layer is flat."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g) * (0.25 if p.ndim < 4 else 0.12))
        for name, b in model.named_buffers():
            if name.endswith("running_var"):
                b.fill_(0.2)
    return model.eval()


def save_transformers(model, folder: Path) -> None:
    lively(model).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))


def save_open_clip(vision: dict, folder: Path, **more) -> None:
    text = {"context_length": 8, "vocab_size": 30, "width": 8, "heads": 2, "layers": 1}
    model = lively(CLIP(8, vision, text, **more))
    folder.mkdir()
    document = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text, **more},
                "preprocess_cfg": {"mean": MEAN, "std": STD}}  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")


VISION = {"image_size": SIDE, "patch_size": PATCH, "width": WIDTH, "head_width": WIDTH // HEADS, "layers": DEPTH}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with one folder per layout, as the hub has them."""
    root = tmp_path_factory.mktemp("some models")  # a path with a space
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 24,
             "image_size": SIDE, "patch_size": PATCH}  # fmt: skip
    t = transformers
    save_transformers(t.ViTModel(t.ViTConfig(**shape)), root / "vit")
    small = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
             "decoder_intermediate_size": 8}  # fmt: skip
    save_transformers(t.ViTMAEForPreTraining(t.ViTMAEConfig(**shape, **small)), root / "mae")
    save_transformers(t.CLIPVisionModel(t.CLIPVisionConfig(**shape, hidden_act="quick_gelu")), root / "clip_vision")
    words = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
             "vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    save_transformers(t.CLIPModel(t.CLIPConfig(text_config=words, vision_config=shape)), root / "clip_whole")
    dino = {k: v for k, v in shape.items() if k != "intermediate_size"}
    save_transformers(t.Dinov2Model(t.Dinov2Config(**dino)), root / "dinov2")
    save_transformers(t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**dino, num_register_tokens=3)),
                      root / "dinov2_registers")  # fmt: skip
    save_transformers(t.DINOv3ViTModel(t.DINOv3ViTConfig(**shape, num_register_tokens=3)), root / "dinov3")
    vit = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH,
                            num_heads=HEADS, reg_tokens=2, num_classes=5)  # fmt: skip
    statistics = {"mean": MEAN, "std": STD}
    save_for_hf(lively(vit), str(root / "timm_vit"), safe_serialization=True, data_config=statistics)
    resnet = timm.create_model("resnet50", layers=[1, 1, 2, 1], channels=[4, 6, 8, 10], stem_width=8, num_classes=0)
    save_for_hf(lively(resnet), str(root / "timm_resnet"), safe_serialization=True, data_config=statistics)
    save_open_clip(VISION, root / "open_clip_vit")
    save_open_clip({"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}, root / "open_clip_resnet")
    return root


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Smooth noise, so that bicubic resizing leaves something; (3, 32, 32, 3) uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((SIDE, SIDE), Image.BICUBIC)) for c in coarse])


@pytest.fixture
def copied(models, tmp_path):
    """Name -> a folder of one's own to damage."""
    return lambda name: Path(shutil.copytree(models / name, tmp_path / name))


def weights_of(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def source(models: Path, name: str):
    return locate(FAMILY.get(name, "dino"), str(models / name))


def normalised(image: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return (torch.tensor(image).permute(2, 0, 1) / 255 - mean) / std  # (3, S, S)


# --- a vision transformer by hand -------------------------------------------------------------------------------------


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def norm(x: torch.Tensor, w: dict, name: str, eps: float) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def resized(pos: torch.Tensor, side: int, antialias: bool) -> torch.Tensor:
    """Positions of patches, (n, C) -> (side side, C)"""
    old = math.isqrt(len(pos))
    if old == side:
        return pos
    grid = pos.T.reshape(1, -1, old, old)
    return F.interpolate(grid, size=(side, side), mode="bicubic", antialias=antialias)[0].flatten(1).T


def by_hand(x: torch.Tensor, w: dict, names: dict, eps: float, act, antialias: bool) -> list[dict[str, torch.Tensor]]:
    """(3, S, S) -> of each block its four facets, (C, h, w): tokens one after another, softmax written out."""
    side = x.shape[-1] // PATCH
    patches = [x[:, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH].flatten()
               for r in range(side) for c in range(side)]  # fmt: skip
    h = torch.stack(patches) @ w[f"{names['patch']}.weight"].flatten(1).T + w.get(f"{names['patch']}.bias", 0)
    first = torch.cat([w[n].reshape(-1, WIDTH) for n in names["prefix"]])
    pos = w[names["pos"]].reshape(-1, WIDTH)
    pos = torch.cat([pos[: len(first)], resized(pos[len(first) :], side, antialias)])
    h = torch.cat([first, h]) + pos
    if "pre" in names:
        h = norm(h, w, names["pre"], eps)
    found = []
    for i in range(DEPTH):
        at = f"{names['block']}.{i}."
        u = norm(h, w, at + names["norm1"], eps)
        if names["joint"]:
            weight, bias = (w[at + n].chunk(3) for n in names["joint"])
            q, k, v = (u @ a.T + b for a, b in zip(weight, bias, strict=True))
        else:
            q, k, v = (u @ w[f"{at}{names['attn']}.{n}_proj.weight"].T + w[f"{at}{names['attn']}.{n}_proj.bias"]
                       for n in "qkv")  # fmt: skip
        heads = []
        for j in range(HEADS):
            d = slice(j * WIDTH // HEADS, (j + 1) * WIDTH // HEADS)
            heads.append((q[:, d] @ k[:, d].T / math.sqrt(WIDTH // HEADS)).softmax(-1) @ v[:, d])
        h = h + torch.cat(heads, 1) @ w[at + names["out"] + ".weight"].T + w[at + names["out"] + ".bias"]
        u = norm(h, w, at + names["norm2"], eps)
        u = act(u @ w[at + names["fc1"] + ".weight"].T + w[at + names["fc1"] + ".bias"])
        h = h + u @ w[at + names["fc2"] + ".weight"].T + w[at + names["fc2"] + ".bias"]
        maps = {"token": h, "key": k, "query": q, "value": v}
        found.append({f: m[len(first) :].T.reshape(-1, side, side) for f, m in maps.items()})
    return found


TRANSFORMERS = {"patch": "embeddings.patch_embeddings.projection", "prefix": ["embeddings.cls_token"],
                "pos": "embeddings.position_embeddings", "block": "layers", "norm1": "layernorm_before", "joint": None,
                "attn": "attention", "out": "attention.o_proj", "norm2": "layernorm_after", "fc1": "mlp.fc1",
                "fc2": "mlp.fc2"}  # fmt: skip
OPEN_CLIP = {"patch": "conv1", "prefix": ["class_embedding"], "pos": "positional_embedding", "pre": "ln_pre",
             "block": "transformer.resblocks", "norm1": "ln_1", "joint": ["attn.in_proj_weight", "attn.in_proj_bias"],
             "out": "attn.out_proj", "norm2": "ln_2", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}  # fmt: skip


def expected(models: Path, name: str, x: torch.Tensor, act=None) -> list[dict[str, torch.Tensor]]:
    """``by_hand`` with the weights of one of the folders."""
    folder, t = models / name, transformers
    if name in ("vit", "mae"):
        model = (t.ViTModel if name == "vit" else t.ViTMAEModel).from_pretrained(folder)
        return by_hand(x, model.state_dict(), TRANSFORMERS, model.config.layer_norm_eps, F.gelu, False)
    if name == "clip_vision":
        model = t.CLIPVisionModel.from_pretrained(folder)
        names = {**TRANSFORMERS, "patch": "embeddings.patch_embedding", "prefix": ["embeddings.class_embedding"],
                 "pos": "embeddings.position_embedding.weight", "pre": "pre_layrnorm", "block": "encoder.layers",
                 "norm1": "layer_norm1", "attn": "self_attn", "out": "self_attn.out_proj",
                 "norm2": "layer_norm2"}  # fmt: skip
        return by_hand(x, model.state_dict(), names, model.config.layer_norm_eps, quick_gelu, False)
    if name == "timm_vit":
        names = {"patch": "patch_embed.proj", "prefix": ["cls_token", "reg_token"], "pos": "pos_embed",
                 "block": "blocks", "norm1": "norm1", "joint": ["attn.qkv.weight", "attn.qkv.bias"],
                 "out": "attn.proj", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}  # fmt: skip
        return by_hand(x, load_file(folder / "model.safetensors"), names, 1e-6, F.gelu, True)
    weights = load_file(folder / "open_clip_model.safetensors")
    weights = {k.removeprefix("visual."): v for k, v in weights.items() if k.startswith("visual.")}
    return by_hand(x, weights, OPEN_CLIP, 1e-5, act or F.gelu, True)


def assert_close(got: np.ndarray, wanted: torch.Tensor) -> None:
    """Equal to half precision, and neither flat nor the same in every place."""
    assert got.dtype == np.float16 and got.shape == tuple(wanted.shape)
    wanted = wanted.detach().numpy()
    assert wanted.std((1, 2)).mean() > 0.05
    np.testing.assert_allclose(got.astype(np.float32), wanted, rtol=2**-10, atol=3e-3)


@pytest.mark.parametrize("size", [SIDE, 48])
@pytest.mark.parametrize("name", VITS)
def test_facets_of_every_layer_are_those_by_hand_also_at_another_input_side(models, images, name, size):
    squares = [np.asarray(Image.fromarray(i).resize((size, size), Image.BICUBIC)) for i in images[:2]]
    wanted = [expected(models, name, normalised(s)) for s in squares]
    for facet in FACETS:
        extract = Extractor(source(models, name), facet, [0, -2, -1], size)
        found = extract(images[:2])
        assert [sorted(f) for f in found] == [[f"feature_{size // PATCH}_{k}" for k in range(DEPTH)]] * 2
        for sample, blocks in zip(found, wanted, strict=True):
            for k in range(DEPTH):
                assert_close(sample[f"feature_{size // PATCH}_{k}"], blocks[k][facet])


@pytest.mark.parametrize("name", ["dinov2", "dinov2_registers", "dinov3"])
def test_keys_and_tokens_of_dino_are_the_projection_of_what_the_library_reports(models, images, name):
    """Keys by hand from the hidden states; class and register tokens come first and are gone."""
    model = transformers.AutoModel.from_pretrained(models / name).eval()
    with torch.inference_mode():
        hidden = model(normalised(images[0])[None], output_hidden_states=True).hidden_states
        block = [m for n, m in model.named_modules() if n.endswith("layer.1")][0]
        key = block.attention.k_proj(block.norm1(hidden[1]))[0]
    prefix = 1 if name == "dinov2" else 4
    assert len(key) == prefix + 16
    for facet, wanted in (("key", key), ("token", hidden[2][0])):
        got = Extractor(source(models, name), facet, [1], SIDE)(images[:1])[0]
        assert_close(got["feature_4_0"], wanted[prefix:].T.reshape(WIDTH, 4, 4))


def test_of_a_whole_clip_the_image_part_is_taken(models, images):
    model = transformers.CLIPModel.from_pretrained(models / "clip_whole").vision_model.eval()
    with torch.inference_mode():
        hidden = model(normalised(images[0])[None], output_hidden_states=True).hidden_states[2][0]
    got = Extractor(source(models, "clip_whole"), "token", [-2], SIDE)(images[:1])[0]
    assert_close(got["feature_4_0"], hidden[1:].T.reshape(WIDTH, 4, 4))


def test_stages_of_resnets(models, images):
    """The outputs one after another; 64 pixels, where the attention pooling of a 32-pixel CLIP would refuse to run."""
    big = [np.asarray(Image.fromarray(i).resize((64, 64), Image.BICUBIC)) for i in images[:2]]
    x = torch.stack([normalised(i) for i in big])
    clip = open_clip.create_model(f"local-dir:{models / 'open_clip_resnet'}").eval().visual
    moco = timm.create_model(f"local-dir:{models / 'timm_resnet'}", pretrained=True).eval()
    stems = {"open_clip_resnet": (clip, clip.stem),
             "timm_resnet": (moco, lambda x: moco.maxpool(moco.act1(moco.bn1(moco.conv1(x)))))}  # fmt: skip
    for name, (model, stem) in stems.items():
        with torch.inference_mode():
            h = stem(x)
            wanted = [h := getattr(model, f"layer{i}")(h) for i in (1, 2, 3, 4)]
        extract = Extractor(source(models, name), "token", [-3, -2, -1, 0], 64)
        found = extract(big)
        assert extract.recorded == {f"feature_{s}_0": f"layer{i}" for i, s in ((1, 16), (2, 8), (3, 4), (4, 2))}
        for i, stage in enumerate(wanted):
            for sample, value in zip(found, stage, strict=True):
                assert_close(sample[f"feature_{16 // 2**i}_0"], value)


# --- what must not matter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*VITS, "open_clip_resnet", "timm_resnet"])
def test_a_picture_owes_nothing_to_its_neighbours(models, images, name):
    extract = Extractor(source(models, name), "token", [-2, -1], SIDE)
    together = extract(images)
    for i, sample in enumerate(extract(images[[2, 0, 1]])):  # the same number in a batch: the same bits
        assert all(np.array_equal(v, together[[2, 0, 1][i]][k]) for k, v in sample.items())
    alone = extract(list(images[:1]))[0]
    for k, v in alone.items():
        np.testing.assert_allclose(v.astype(float), together[0][k].astype(float), rtol=2**-8, atol=1e-3)
        assert not np.allclose(v, together[1][k], atol=0.05)


def test_a_picture_of_any_shape_is_squashed_to_the_square(models, images):
    wide = np.asarray(Image.fromarray(images[0]).resize((50, 20), Image.BICUBIC))
    square = np.asarray(Image.fromarray(wide).resize((SIDE, SIDE), Image.BICUBIC))
    extract = Extractor(source(models, "vit"), "key", [-1], SIDE)
    got, wanted = extract([wide, square]), extract(np.stack([square, square]))
    assert all(np.array_equal(got[i]["feature_4_0"], wanted[i]["feature_4_0"]) for i in (0, 1))


@pytest.mark.parametrize("wrong", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)])
def test_what_is_no_picture_is_refused(models, wrong):
    with pytest.raises(ValueError, match="expected images"):
        Extractor(source(models, "vit"), "token", [-1], SIDE)([wrong])


def test_what_was_recorded_can_be_read(models, images):
    extract = Extractor(source(models, "timm_vit"), "key", [-1, 0], SIDE)
    assert extract.names == ["blocks.0", "blocks.2"] and extract.recorded == {}
    extract(images[:1])
    assert json.loads(json.dumps(extract.meta)) == {
        "family": "dino", "id": str(models / "timm_vit"), "library": "timm", "facet": "key", "size": SIDE,
        "patch": PATCH, "mean": MEAN, "std": STD, "features": {"feature_4_0": "blocks.0", "feature_4_1": "blocks.2"},
    }  # fmt: skip


def test_silence_is_an_error_and_no_hook_stays(models, images, monkeypatch):
    extract = Extractor(source(models, "vit"), "key", [-1], SIDE)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in extract.tower.module.modules())

    before = hooks()
    extract(images[:1])
    assert hooks() == before
    seen = []
    idle = dataclasses.replace(extract.tower, run=lambda x: seen.append(hooks()))
    monkeypatch.setattr(extract, "tower", idle)
    with pytest.raises(RuntimeError, match="no key recorded from layers.2"):
        extract(images[:1])
    assert seen == [before + 1] and hooks() == before


def test_values_that_float16_cannot_hold_are_refused(copied, images):
    path = weights_of(copied("vit"))
    state = {k: v * (1e6 if k.endswith("output.dense.bias") else 1) for k, v in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="expected values that float16 can hold"):
        Extractor(locate("dino", str(path.parent)), "token", [-1], SIDE)(images[:1])


# --- names and files --------------------------------------------------------------------------------------------------


def test_the_stamp_follows_configuration_and_weights(models, copied):
    for name in ("vit", "timm_vit", "open_clip_vit"):
        folder = copied(name)
        first = locate(FAMILY.get(name, "dino"), str(folder)).stamp()
        assert first == source(models, name).stamp()
        for path in folder.iterdir():
            before = path.read_bytes()
            path.write_bytes(before + b" ")
            assert locate(FAMILY.get(name, "dino"), str(folder)).stamp() != first, path.name
            path.write_bytes(before)


def test_weights_under_the_hubs_names_and_without_the_pooler_that_dino_lacks(models, images, copied):
    folder = copied("vit")
    state = load_file(weights_of(folder))
    kept = {k: v for k, v in state.items() if not k.startswith("pooler.")}
    assert "encoder.layer.2.attention.attention.key.bias" in kept and len(kept) == len(state) - 2
    save_file(kept, weights_of(folder), metadata={"format": "pt"})
    got, wanted = (Extractor(locate("dino", str(f)), "key", [-1], SIDE)(images) for f in (folder, models / "vit"))
    assert all(np.array_equal(g["feature_4_0"], w["feature_4_0"]) for g, w in zip(got, wanted, strict=True))


def test_an_open_clip_tag_brings_its_own_activation(models, images, monkeypatch):
    """ViT-B-16/openai and its like: open_clip only warns, and would compute with another activation than trained."""
    weights = models / "open_clip_vit" / "open_clip_model.safetensors"
    config = json.loads((models / "open_clip_vit" / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    tag = open_clip.pretrained._pcfg(hf_hub="owner/name/", quick_gelu=True, mean=MEAN, std=STD)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"own": tag})
    for module in (open_clip, open_clip.factory):
        monkeypatch.setattr(module, "download_pretrained", lambda *args, **kwargs: str(weights))
    found = locate("clip", "tiny/own")
    assert found.files == (weights,) and found.folder is None
    got = Extractor(found, "key", [-1], SIDE)(images[:1])[0]["feature_4_0"]
    x = normalised(images[0])
    assert_close(got, expected(models, "open_clip_vit", x, quick_gelu)[-1]["key"])
    other = expected(models, "open_clip_vit", x)[-1]["key"].detach().numpy()
    assert np.abs(got - other).max() > 0.02  # and 0.003 is the tolerance above
    assert "expected one of the tags of tiny (own), got 'other'" in refusal("clip", "tiny/other")
    assert "expected no revision" in refusal("clip", "tiny/own", "main")
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *args: "/some/open_clip_pytorch_model.bin")
    assert "expected safetensors weights, open_clip has a pickle" in refusal("clip", "tiny/own")


def hub(models: Path, name: str, cache: Path, monkeypatch) -> None:
    """Lay ``models/name`` into a hub cache as owner/name, and be offline."""
    folder = cache / f"models--owner--{name}"
    shutil.copytree(models / name, folder / "snapshots" / ("a" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_hub_id_is_read_from_the_cache_when_offline(models, images, tmp_path, monkeypatch):
    hub(models, "timm_vit", tmp_path, monkeypatch)
    found = locate("dino", "owner/timm_vit")
    assert found.folder.is_relative_to(tmp_path) and found.stamp() == source(models, "timm_vit").stamp()
    got, wanted = (Extractor(s, "key", [-1], SIDE)(images[:1]) for s in (found, source(models, "timm_vit")))
    assert np.array_equal(got[0]["feature_4_0"], wanted[0]["feature_4_0"])
    said = refusal("dino", "owner/another", "v1")
    line = "hf download owner/another --revision v1 --include '*.json' --include '*.safetensors' --local-dir models/"
    assert line in said


def test_no_pickle_is_asked_of_the_hub(models, monkeypatch):
    asked = []

    def fetch(id, revision=None, allow_patterns=()):
        asked.append((id, revision, list(allow_patterns)))
        return str(models / "vit")

    monkeypatch.setattr(extractors, "snapshot_download", fetch)
    assert locate("dino", "owner/name", "abc").library == "transformers"
    assert {(a[0], a[1]) for a in asked} == {("owner/name", "abc")}
    assert all(p.endswith((".json", ".safetensors")) for a in asked for p in a[2]) and asked[0][2] == ["*.json"]


# --- what it refuses --------------------------------------------------------------------------------------------------


def refusal(family: str, id: str | Path, revision: str = "", facet="token", layers=(-1,), size: int = SIDE) -> str:
    with pytest.raises(UserError) as caught:
        Extractor(locate(family, str(id), revision), facet, layers, size)
    assert "\n" not in str(caught.value) and str(id) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("id", ["data/none", "./none", "/none/at/all", "none", "a/b/c"])
def test_a_folder_that_is_not_there(id):
    for family in ("clip", "moco"):
        said = refusal(family, id)
        assert "expected a folder with config.json and *.safetensors, found none; put them there" in said
        assert ("name/tag as open_clip lists them" in said) == (family == "clip")


def test_names_that_do_not_fit(models):
    assert "expected a family among clip, dino, mae, moco" in refusal("sam", models / "vit")
    assert "expected no revision with a folder" in refusal("dino", models / "vit", "main")
    assert "for clip a model_type of clip, clip_vision_model, got 'vit'" in refusal("clip", models / "vit")
    assert "for dino a model_type of vit, dinov2" in refusal("dino", models / "mae")
    said = refusal("mae", models / "open_clip_vit")
    assert "expected config.json of a mae network, found none; of a checkpoint, maskmill.segmenters" in said
    said = refusal("moco", models / "timm_vit" / "model.safetensors")
    assert "expected a folder, got a file; of a checkpoint, maskmill.segmenters.extractors.convert makes" in said


@pytest.mark.parametrize("name", ["vit", "timm_vit", "open_clip_vit", "timm_resnet", "open_clip_resnet"])
def test_layers_sides_and_facets_that_do_not_fit(models, name):
    family, folder = FAMILY.get(name, "dino"), models / name
    resnet = name.endswith("resnet")
    count, step = (4, 32) if resnet else (DEPTH, PATCH)
    for wrong in (count, -count - 1):
        said = refusal(family, folder, layers=[0, wrong])
        assert f"expected layers from -{count} to {count - 1}, got {wrong}" in said
    for layers in ([0, 0], [-1, count - 1], []):
        assert "expected at least one layer and each" in refusal(family, folder, layers=layers)
    near = "32 or 64" if resnet else "40 or 48"
    said = refusal(family, folder, size=45)
    assert f"expected a size that is a multiple of {step}, got 45; the nearest is {near}" in said
    assert f"the nearest is {step}" in refusal(family, folder, size=3)
    if resnet:
        assert "expected the facet token with a ResNet" in refusal(family, folder, facet="key")


@pytest.mark.parametrize(
    ("name", "part"),
    [("vit", "1.attention"), ("mae", "position_embeddings"), ("dinov2", "1.layer_scale1"), ("clip_vision", "patch_emb"),
     ("timm_vit", "blocks.1.norm1"), ("timm_vit", "pos_embed"), ("timm_resnet", "layer2.0.conv1"),
     ("open_clip_vit", "visual.conv1"), ("open_clip_resnet", "visual.layer1.0.bn1.running_mean")],
)  # fmt: skip
def test_random_numbers_never_stand_in_for_missing_weights(copied, name, part):
    folder = copied(name)
    path = weights_of(folder)
    state = load_file(path)
    kept = {k: v for k, v in state.items() if part not in k}
    assert len(kept) < len(state)
    save_file(kept, path, metadata={"format": "pt"})
    refusal(FAMILY.get(name, "dino"), folder)


def test_an_adapted_head_hides_no_gap(copied):
    """timm loads what it finds where the number of classes is not that of the weights."""
    folder = copied("timm_vit")
    config = json.loads((folder / "config.json").read_text())
    config["num_classes"] = config["model_args"]["num_classes"] = config["pretrained_cfg"]["num_classes"] = 0
    config["pretrained_cfg"]["num_classes"] = 7
    config.pop("num_classes")
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(weights_of(folder))
    save_file({k: v for k, v in state.items() if not k.startswith(("blocks.1.", "head"))}, weights_of(folder))
    assert "found" in refusal("dino", folder)


@pytest.mark.parametrize("name", ["vit", "timm_vit", "open_clip_vit"])
def test_weights_that_are_missing_pickled_or_broken(copied, name):
    family, folder = FAMILY.get(name, "dino"), copied(name)
    path = weights_of(folder)
    whole = path.read_bytes()
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", whole[:-100]):
        path.write_bytes(content)
        assert "cannot be loaded" in refusal(family, folder)
    path.unlink()
    assert f"expected weights as {path.name}, found none" in refusal(family, folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "found the pickle pytorch_model.bin; convert it to safetensors" in refusal(family, folder)


def test_configurations_that_are_missing_or_broken(copied):
    folder = copied("vit")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    assert "expected image_mean and image_std of three channels" in refusal("dino", folder)
    (folder / "preprocessor_config.json").unlink()
    assert "expected preprocessor_config.json with image_mean and image_std, found none" in refusal("dino", folder)
    (folder / "config.json").write_text("{")
    assert "expected JSON" in refusal("dino", folder)
    (folder / "config.json").write_text("[]")
    assert "expected a JSON object" in refusal("dino", folder)
    (folder / "config.json").write_text("{}")
    assert "for dino a model_type of" in refusal("dino", folder)
    (folder / "config.json").unlink()
    assert "expected config.json of a dino network" in refusal("dino", folder)
    folder = copied("open_clip_vit")
    (folder / "open_clip_config.json").write_text('{"model_cfg": {}}')
    assert "cannot be loaded" in refusal("clip", folder)


def test_networks_that_are_neither_a_vit_nor_a_resnet(tmp_path, models):
    other = timm.create_model("convnext_atto", depths=[1, 1, 1, 1], dims=[8, 8, 8, 8], num_classes=0)
    save_for_hf(other, str(tmp_path / "convnext"), safe_serialization=True)
    assert "expected a vision transformer or a ResNet, got timm's ConvNeXt" in refusal("dino", tmp_path / "convnext")
    folder = Path(shutil.copytree(models / "open_clip_vit", tmp_path / "siglip"))
    document = json.loads((folder / "open_clip_config.json").read_text())
    document["model_cfg"]["vision_cfg"] = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 32}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    assert "expected open_clip's own ViT or ResNet, got timm's vit_tiny_patch16_224" in refusal("clip", folder)


# --- converting -------------------------------------------------------------------------------------------------------

TINY = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}


@pytest.fixture(scope="module")
def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return lively(timm.create_model("vit_small_patch16_224", num_classes=0, **TINY))


def moco(encoder) -> dict:
    """The layout of MoCo v3's checkpoints: two encoders, the first with its heads, and the optimiser."""
    query = {f"module.base_encoder.{k}": v for k, v in encoder.state_dict().items()}
    key = {f"module.momentum_encoder.{k}": torch.zeros_like(v) for k, v in encoder.state_dict().items()}
    heads = {"module.base_encoder.head.0.weight": torch.zeros(2), "module.predictor.0.weight": torch.zeros(2)}
    return {"epoch": 300, "arch": "vit_small", "state_dict": {**key, **query, **heads}, "optimizer": {"state": {}}}


@pytest.mark.parametrize("kind", ["moco", "mae", "dino", "safetensors"])
def test_a_published_checkpoint_becomes_a_folder(encoder, images, tmp_path, kind):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "checkpoint.pth.tar")
    state = encoder.state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        decoder = {"mask_token": torch.zeros(2), "decoder_embed.bias": torch.zeros(2)}
        kinds = {"moco": moco(encoder), "dino": state, "mae": {"model": {**state, **decoder}}}
        torch.save(kinds[kind], path)
    convert(path, "vit_small_patch16_224", tmp_path / "out", **TINY)
    extract = Extractor(locate("moco", str(tmp_path / "out")), "token", [-1], SIDE)
    assert extract.meta["mean"] == [0.485, 0.456, 0.406] and extract.meta["std"] == [0.229, 0.224, 0.225]
    with torch.inference_mode():
        wanted = encoder.forward_intermediates(extract.pixels(images), indices=[DEPTH - 1], intermediates_only=True)[0]
    for sample, value in zip(extract(images), wanted, strict=True):
        assert_close(sample["feature_4_0"], value)


def test_a_resnet_of_moco_v2_becomes_a_folder(models, tmp_path, images):
    state = load_file(models / "timm_resnet" / "model.safetensors")
    torch.save({"state_dict": {**{f"module.encoder_q.{k}": v for k, v in state.items()},
                               "module.encoder_q.fc.0.bias": torch.zeros(2), "module.queue": torch.zeros(2)}},
               tmp_path / "moco.pth.tar")  # fmt: skip
    convert(tmp_path / "moco.pth.tar", "resnet50", tmp_path / "out", layers=[1, 1, 2, 1], channels=[4, 6, 8, 10],
            stem_width=8)  # fmt: skip
    got = Extractor(locate("moco", str(tmp_path / "out")), "token", [-1], SIDE)
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert set(ours) == set(state) and all(torch.equal(v, state[k]) for k, v in ours.items())
    assert got(images)[0]["feature_1_0"].shape == (40, 1, 1)


def test_a_checkpoint_of_another_network_is_refused_and_leaves_nothing(encoder, tmp_path):
    cases = {
        "short": ({k: v for k, v in encoder.state_dict().items() if "blocks.2" not in k}, "expected the weights of"),
        "long": ({**encoder.state_dict(), "blocks.3.norm1.bias": torch.zeros(2)}, "expected the weights of"),
        "code": ({"model": encoder.state_dict(), "thing": Path("x")}, "expected a checkpoint of tensors"),
    }
    for name, (state, said) in cases.items():
        torch.save(state, tmp_path / name)
        with pytest.raises(UserError, match=said) as caught:
            convert(tmp_path / name, "vit_small_patch16_224", tmp_path / "out", **TINY)
        assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)
    with pytest.raises(UserError, match="none.pth: expected a checkpoint of tensors"):
        convert(tmp_path / "none.pth", "vit_small_patch16_224", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(cases)
