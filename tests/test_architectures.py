"""Stable Diffusion 1, 2 and XL by their published sizes, and small folders of each that load and run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open

from maskmill.diffusion import architectures, passes
from maskmill.diffusion.backbone import Backbone, check_folder
from maskmill.errors import UserError

SIZE = 128


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {name: architectures.save_random(architectures.small(a), base / name)
            for name, a in architectures.ARCHITECTURES.items()}  # fmt: skip


def test_published_numbers_of_weights():
    """As the hub's files have them; nothing is allocated."""
    counts = {name: architectures.weight_counts(a) for name, a in architectures.ARCHITECTURES.items()}
    assert counts["sd1"] == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    assert counts["sd2"] == {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}
    assert counts["sdxl"] == {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480,
                              "text_encoder_2": 694_659_840}  # fmt: skip


def test_the_tokenizer_is_clips():
    ours, theirs = architectures.tokenizer(), open_clip.get_tokenizer("ViT-B-32")
    assert len(ours) == 49408 and ours.model_max_length == 77
    for text in ("a photo of a hippopotamus", "In front of the café!! 123", "it's a bird's-eye view", ""):
        assert ours(text)["input_ids"] == [int(i) for i in theirs([text])[0] if i]


@pytest.mark.parametrize(
    ("name", "known"),
    [("CompVis/stable-diffusion-v1-4", "sd1"), ("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd1"),
     ("stabilityai/stable-diffusion-2-1-base", "sd2"), ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"),
     ("nobody/my-model", None)],
)  # fmt: skip
def test_names_that_tell_the_architecture(name, known):
    found = architectures.of_name(name)
    assert (found.name if found else None) == known


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_a_folder_has_the_hubs_layout(folders, name):
    folder = folders[name]
    parts = check_folder(folder)
    assert set(parts) == {"unet", "vae", "text_encoder"} | ({"text_encoder_2"} if name == "sdxl" else set())
    assert not [p for p in folder.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt")]
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == ("StableDiffusionXLPipeline" if name == "sdxl" else "StableDiffusionPipeline")
    scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == ("v_prediction" if name == "sd2" else "epsilon")
    assert scheduler["beta_start"] == 0.00085 and scheduler["beta_schedule"] == "scaled_linear"


@pytest.mark.parametrize("name", architectures.ARCHITECTURES)
def test_it_loads_and_makes_pictures_with_records(folders, name):
    backbone = Backbone(str(folders[name]))
    assert backbone.scale == 8 and backbone.prediction == ("v_prediction" if name == "sd2" else "epsilon")
    capture = passes.open_capture(backbone, passes.RecordShape(2, 4))
    images, records, _ = passes.generate(
        backbone, capture, ["a photo of a bird"], [(5, 6)], [7], size=SIZE, steps=2, guidance=3.0, negative="", bins=2
    )
    assert images.shape == (1, SIZE, SIZE, 3) and images.std() > 5
    sides = {int(k.split("_")[1]) for k in records[0]}
    assert sides == ({8, 4} if name == "sdxl" else {16, 8, 4, 2})
    assert all(np.isfinite(v).all() for v in records[0].values())
    condition = backbone.encode_text(["a bird"], 1024)
    assert condition.embeds.shape == (1, 77, backbone.unet.config.cross_attention_dim)
    if name == "sdxl":  # two encoders side by side, the second one's pooled text, and the picture's size
        assert condition.added["time_ids"].tolist() == [[1024, 1024, 0, 0, 1024, 1024]]
        assert condition.added["text_embeds"].shape == (1, 80)


def test_half_precision_is_written_and_read_as_such(tmp_path):
    folder = architectures.save_random(architectures.small(architectures.SD1), tmp_path / "half", "float16")
    with safe_open(next((folder / "unet").glob("*.safetensors")), "pt") as file:
        assert file.get_tensor(next(iter(file.keys()))).dtype == torch.float16
    assert Backbone(str(folder), dtype="bfloat16").unet.dtype == torch.bfloat16


def test_weights_are_the_same_each_time_and_keep_activations_in_range():
    config = architectures.small(architectures.SD1).unet
    one, other = (architectures.random_unet(config) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    torch.manual_seed(0)
    with torch.inference_mode():
        out = one(torch.randn(1, 4, 16, 16), 500, encoder_hidden_states=torch.randn(1, 77, 48)).sample
    assert 0.05 < float(out.std()) < 50


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/thesis.txt").touch()
    with pytest.raises(UserError, match="expected no such folder yet"):
        architectures.save_random(architectures.small(architectures.SD1), tmp_path / "here")
