"""Loading diffusers folders of three architectures, what is refused and how, and the numbers against diffusers' own."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines import pipeline_utils
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from maskmill.datasets.table import read_image, read_table
from maskmill.diffusion import backbone as loading
from maskmill.diffusion import passes
from maskmill.diffusion.backbone import Backbone, Condition, concatenate, download_model
from maskmill.errors import UserError

SIZE = 32


def text_encoder(kind: type, words, width: int):
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=words.model_max_length, projection_dim=6, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.eos_token_id,
    )  # fmt: skip
    return kind(config)


def vae() -> AutoencoderKL:
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=SIZE,
    )  # fmt: skip
    with torch.no_grad():
        autoencoder.decoder.conv_out.weight.mul_(2.0)  # or every picture would be grey
    return autoencoder


def unet(**changes) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), **changes,
    )  # fmt: skip


def schedule(prediction: str = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                         set_alpha_to_one=True, steps_offset=1, prediction_type=prediction)  # fmt: skip


def plain(words, prediction: str, **changes) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=text_encoder(CLIPTextModel, words, 8), tokenizer=words,
        unet=unet(cross_attention_dim=8, **changes), scheduler=schedule(prediction), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def xl(words) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=text_encoder(CLIPTextModel, words, 8),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, words, 4), tokenizer=words, tokenizer_2=words,
        unet=unet(
            cross_attention_dim=8 + 4, attention_head_dim=(2, 4), use_linear_projection=True,
            transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 6,
        ), scheduler=schedule(),
    )  # fmt: skip


ARCHITECTURES: dict[str, Callable] = {
    "sd1": lambda words: plain(words, "epsilon", attention_head_dim=2),
    "sd2": lambda words: plain(words, "v_prediction", attention_head_dim=(2, 4), use_linear_projection=True),
    "xl": xl,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, words) -> dict[str, Path]:
    made = {}
    for name, make in ARCHITECTURES.items():
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name)
        make(words).save_pretrained(made[name], safe_serialization=True)
    return made


@pytest.fixture(scope="module")
def backbones(folders) -> dict[str, Backbone]:
    return {name: Backbone(str(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def miniature(tiny_model) -> Backbone:
    return Backbone(str(tiny_model))


@pytest.fixture
def copied(tiny_model, tmp_path) -> Path:
    """A miniature of one's own to break."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


# --- what it computes -------------------------------------------------------------------------------------------------


def test_the_miniature_loads_from_its_folder(miniature, tiny_model):
    assert miniature.scale == 4 and miniature.prediction == "epsilon"
    weights = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(v, weights[k]) for k, v in miniature.unet.state_dict().items())
    assert not any(p.requires_grad for p in miniature.unet.parameters()) and not miniature.unet.training


def test_encode_and_decode_shapes_and_scale(miniature, world_set):
    images = np.stack([read_image(world_set / i.image) for i in read_table(world_set)[:2]])
    z = miniature.encode_images(images)
    assert z.shape == (2, 4, 16, 16) and z.dtype == torch.float32
    x = torch.tensor(images[1]).permute(2, 0, 1)[None] / 127.5 - 1  # by hand: -1..1, the posterior's mean, scaled
    with torch.inference_mode():
        mean = miniature.vae.encode(x).latent_dist.mean[0] * miniature.vae.config.scaling_factor
        pixels = miniature.vae.decode(z[1:] / miniature.vae.config.scaling_factor).sample[0]
    assert torch.allclose(z[1], mean, atol=1e-3)
    decoded = miniature.decode(z)
    assert decoded.shape == (2, 64, 64, 3) and decoded.dtype == np.uint8
    by_hand = ((pixels.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).round().numpy()
    assert np.abs(decoded[1].astype(int) - by_hand).max() <= 1 and decoded.std() > 10


def test_one_thousand_steps_of_time_ascending(miniature):
    times = miniature.timesteps(20)
    assert times == list(range(1, 1000, 50))
    assert miniature.abar.shape == (1000,) and bool((miniature.abar.diff() < 0).all())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_encoded_text_and_noise_have_the_models_shapes(backbones, name):
    backbone, width = backbones[name], {"sd1": 8, "sd2": 8, "xl": 12}[name]
    condition = backbone.encode_text(["a photo of a bird", "a dog"], SIZE)
    assert condition.embeds.shape == (2, 24, width) and len(condition) == 2
    if name == "xl":
        assert condition.added["text_embeds"].shape == (2, 6)
        assert condition.added["time_ids"].tolist() == [[SIZE, SIZE, 0, 0, SIZE, SIZE]] * 2
    else:
        assert condition.added is None
    alone = backbone.encode_text(["a dog"], SIZE)
    assert torch.allclose(condition.rows(slice(1, 2)).embeds, alone.embeds, atol=1e-5)
    both = concatenate(condition, alone)
    assert len(both) == 3 and torch.equal(both.embeds[:2], condition.embeds)
    z = backbone.start_noise([1, 2], SIZE)
    noise = backbone.noise(z, 401, condition)
    assert noise.shape == z.shape == (2, 4, 16, 16) and noise.dtype == torch.float32
    assert torch.allclose(backbone.noise(z[1:], 401, condition.rows(slice(1, 2)))[0], noise[1], atol=1e-5)


@pytest.mark.parametrize("t", [1, 401, 951])
def test_v_prediction_is_turned_into_noise(backbones, t):
    """v = sqrt(abar) eps - sqrt(1 - abar) x_0 and x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps."""
    backbone = backbones["sd2"]
    condition, z = backbone.encode_text(["a bird"], SIZE), backbone.start_noise([3], SIZE)
    with torch.inference_mode():
        v = backbone.unet(z, t, encoder_hidden_states=condition.embeds).sample
    a = float(schedule().alphas_cumprod[t])
    assert torch.allclose(backbone.noise(z, t, condition), a**0.5 * v + (1 - a) ** 0.5 * z, atol=1e-6)
    # Any x_0 and eps: what the model should answer comes back as eps.
    x_0, eps = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    x_t, v = a**0.5 * x_0 + (1 - a) ** 0.5 * eps, a**0.5 * eps - (1 - a) ** 0.5 * x_0

    class Perfect(torch.nn.Module):
        def forward(self, *args, **kwargs):
            return type("Output", (), {"sample": v})

    real, backbone.unet = backbone.unet, Perfect()
    try:
        assert torch.allclose(backbone.noise(x_t, t, Condition(condition.embeds)), eps, atol=1e-5)
    finally:
        backbone.unet = real


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generated_pictures_are_those_of_diffusers_own_pipeline(backbones, folders, name):
    backbone, prompts, steps, w = backbones[name], ["a photo of a bird", "a dog on sand"], 3, 2.5
    capture = passes.open_capture(backbone, passes.RecordShape(2, 4))
    images, records, _ = passes.generate(
        backbone, capture, prompts, [(5, 6), (2, 3)], [7, 8], size=SIZE, steps=steps, guidance=w, negative="", bins=2
    )
    pipe = DiffusionPipeline.from_pretrained(folders[name], local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        prompt=prompts, negative_prompt=[""] * 2, latents=backbone.start_noise([7, 8], SIZE), height=SIZE, width=SIZE,
        num_inference_steps=steps, guidance_scale=w, output_type="np",
    ).images  # fmt: skip
    assert images.shape == (2, SIZE, SIZE, 3) and images.std() > 5
    assert np.abs(images - theirs * 255).max() < 1.5
    sides = {int(k.split("_")[1]) for k in records[0]}
    assert len(records) == 2 and sides == {16, 8}
    layers = {"sd1": 3, "sd2": 3, "xl": 6}[name]  # of the inner resolution: down, twice up, and the middle at 8
    middle = 2 if name == "xl" else 1
    assert records[0]["cross_8"].shape == (2, layers + middle, 8, 8) and np.isfinite(records[0]["cross_8"]).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_nearly_the_same_noise_in_float32(miniature, tiny_model, dtype):
    half = Backbone(str(tiny_model), dtype=dtype)
    assert half.unet.dtype == getattr(torch, dtype)
    z = miniature.start_noise([1], SIZE)
    full = miniature.noise(z, 401, miniature.encode_text(["a bird"], SIZE))
    noise = half.noise(z, 401, half.encode_text(["a bird"], SIZE))
    assert noise.dtype == torch.float32 and half.start_noise([1], SIZE).dtype == torch.float32
    assert float((noise - full).norm() / full.norm()) < 0.05


def overflowing(folder: Path, target: Path, **vae: object) -> Path:
    """A copy whose autoencoder passes 65,504 on the way and comes back: the decoder's next layer normalises."""
    shutil.copytree(folder, target)
    path = target / "vae/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_in.weight"] *= 4e4 / weights["decoder.conv_in.weight"].abs().max()
    save_file(weights, path, metadata={"format": "pt"})
    config = json.loads((target / "vae/config.json").read_text())
    (target / "vae/config.json").write_text(json.dumps(config | vae))
    return target


def test_an_autoencoder_of_xl_that_overflows_in_half_precision_computes_in_float32(folders, tmp_path):
    full = Backbone(str(overflowing(folders["xl"], tmp_path / "xl")))
    half = Backbone(str(tmp_path / "xl"), dtype="float16")
    assert half.vae.dtype == torch.float32 and half.unet.dtype == half.dtype == torch.float16
    z = full.start_noise([3], SIZE) * 3
    assert (pictures := full.decode(z)).std() > 5
    assert np.abs(half.decode(z).astype(int) - pictures).max() <= 3  # weights rounded to float16, sums not
    assert torch.allclose(half.encode_images(pictures), full.encode_images(pictures), atol=0.05)
    assert Backbone(str(tmp_path / "xl"), dtype="bfloat16").vae.dtype == torch.bfloat16  # the range of float32
    fixed = overflowing(folders["xl"], tmp_path / "fixed", force_upcast=False)  # as those that are trained for it say
    raw = Backbone(str(fixed), dtype="float16").vae
    assert raw.dtype == torch.float16
    with torch.inference_mode():
        assert not raw.decode(z.half() / raw.config.scaling_factor).sample.isfinite().all()  # the reason for all this
    assert Backbone(str(folders["sd1"]), dtype="float16").vae.dtype == torch.float16


# --- which files ------------------------------------------------------------------------------------------------------


def with_halves(folder: Path, target: Path, both: bool) -> Path:
    """A copy with files of half precision as the hub marks them, beside the full ones or in their place."""
    shutil.copytree(folder, target)
    for path in sorted(target.glob("*/*.safetensors")):
        half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
        save_file(half, path.with_name(f"{path.stem}.fp16.safetensors"), metadata={"format": "pt"})
        if not both:
            path.unlink()
    return target


@pytest.mark.parametrize("name", ["sd1", "xl"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_folder_of_halves_alone_loads_in_any_precision(folders, tmp_path, name, dtype):
    loaded = Backbone(str(with_halves(folders[name], tmp_path / name, both=False)), dtype=dtype)
    kind, full = getattr(torch, dtype), load_file(folders[name] / "unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(v, full[k].half().to(kind)) for k, v in loaded.unet.state_dict().items())


def test_of_both_kinds_of_file_the_smaller_one_is_read_in_float16_alone(folders, tmp_path):
    folder = with_halves(folders["sd1"], tmp_path / "both", both=True)
    (folder / "unet/diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"never looked at")
    path = folder / "unet/diffusion_pytorch_model.fp16.safetensors"
    save_file({k: v * 2 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})  # to tell them apart
    full = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    for dtype, factor in (("float16", 2), ("float32", 1), ("bfloat16", 1)):
        found = Backbone(str(folder), dtype=dtype).unet.state_dict()["conv_in.weight"]
        expected = full["conv_in.weight"].half() * 2 if factor == 2 else full["conv_in.weight"].to(found.dtype)
        assert torch.equal(found, expected)
    # A part without halves is read from what it has; one whose halves lack a tensor is named, the other file or not.
    (folder / "vae/diffusion_pytorch_model.fp16.safetensors").unlink()
    assert Backbone(str(folder), dtype="float16").vae.dtype == torch.float16
    weights = load_file(path)
    weights.popitem()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"unet: expected weights of {len(full)} tensors, found {len(full) - 1}"):
        Backbone(str(folder), dtype="float16")
    assert Backbone(str(folder)).unet.dtype == torch.float32


@pytest.mark.parametrize("there", [True, False])
def test_the_safety_checker_is_not_loaded_and_need_not_be_there(copied, there):
    index = json.loads((copied / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
              "feature_extractor": ["transformers", "CLIPImageProcessor"], "requires_safety_checker": True}  # fmt: skip
    (copied / "model_index.json").write_text(json.dumps(index))
    if there:
        (copied / "safety_checker").mkdir()
        (copied / "safety_checker/pytorch_model.bin").write_bytes(b"a pickle that nobody opens")
    pipe = Backbone(str(copied)).pipe
    assert pipe.safety_checker is None and pipe.feature_extractor is None


HUB = [f"{part}/{name}{kind}.{end}"  # what stable-diffusion-v1-5 has, and some
       for part, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"),
                          ("text_encoder", "model"), ("safety_checker", "model"))
       for kind in ("", ".fp16", ".non_ema") for end in ("safetensors", "bin")]  # fmt: skip
HUB += [f"{part}/config.json" for part in ("unet", "vae", "text_encoder", "safety_checker")]
NEEDED = {"model_index.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "scheduler/scheduler_config.json",
          "unet/config.json", "vae/config.json", "text_encoder/config.json"}  # fmt: skip
HUB += sorted(NEEDED - set(HUB)) + ["feature_extractor/preprocessor_config.json", "v1-5-pruned.safetensors",
                                    "v1-5-pruned.ckpt", "README.md"]  # fmt: skip
WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")


def test_the_line_for_missing_weights_names_just_the_files_that_are_needed():
    line = download_model("owner/name", "abc")
    assert line.startswith("hf download owner/name --revision abc --include '*.json' --include '*.txt' --include ")
    assert line.endswith(" --local-dir models/name, then set model.id to models/name")
    words = line.split()
    include, exclude = ([words[i + 1].strip("'") for i, w in enumerate(words) if w == f"--{kind}"]
                        for kind in ("include", "exclude"))  # fmt: skip
    chosen = set(filter_repo_objects(HUB, allow_patterns=include, ignore_patterns=exclude))
    assert chosen == NEEDED | {f"{name}.safetensors" for name in WEIGHTS}
    assert " --revision" not in download_model("owner/name", "")


@pytest.mark.parametrize(("dtype", "ending"), [("float32", ""), ("bfloat16", ""), ("float16", ".fp16")])
def test_a_hub_id_downloads_what_is_needed_and_no_safety_checker(tmp_path, monkeypatch, dtype, ending):
    """diffusers' own choice of files, with the hub's answers made here."""
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0",
             "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
             "feature_extractor": ["transformers", "CLIPImageProcessor"], "scheduler": ["diffusers", "PNDMScheduler"],
             "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
             "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    asked = []

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns, **options):
        asked.append((name, revision, {f for f in HUB if any(fnmatch.fnmatch(f, p) for p in allow_patterns)
                                       and not any(fnmatch.fnmatch(f, p) for p in ignore_patterns)}))  # fmt: skip
        raise OSError("enough")

    siblings = [SimpleNamespace(rfilename=name) for name in HUB]
    monkeypatch.setattr(pipeline_utils, "_resolve_revision", lambda *a, revision, **k: revision)
    monkeypatch.setattr(pipeline_utils, "model_info", lambda *a, **k: SimpleNamespace(siblings=siblings))
    monkeypatch.setattr(pipeline_utils, "hf_hub_download", lambda *a, **k: str(tmp_path / "model_index.json"))
    monkeypatch.setattr(pipeline_utils, "snapshot_download", snapshot_download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(UserError, match="enough"):
        Backbone("owner/name", "v1", dtype)
    name, revision, files = asked[0]
    assert (name, revision) == ("owner/name", "v1")
    assert files == NEEDED | {f"{weights}{ending}.safetensors" for weights in WEIGHTS}


def test_start_noise_of_a_sample_does_not_depend_on_its_neighbours(miniature):
    together = miniature.start_noise([5, 6, 2**40], SIZE)
    assert together.shape == (3, 4, 8, 8)
    assert torch.equal(miniature.start_noise([6], SIZE)[0], together[1])
    assert torch.equal(miniature.start_noise([2**40, 5], SIZE), together[[2, 0]])
    torch.manual_seed(9)  # nor on the global generator
    assert torch.equal(miniature.start_noise([5], SIZE)[0], together[0])
    many = miniature.start_noise(list(range(200)), SIZE)
    assert abs(float(many.mean())) < 0.02 and abs(float(many.std()) - 1) < 0.02


# --- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(copied, part):
    shutil.rmtree(copied / part)
    with pytest.raises(UserError, match=rf"{copied}: expected the part '{part}'"):
        Backbone(str(copied))


def test_a_part_that_the_index_leaves_empty_is_missing(copied):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "unet": [None, None]}))
    with pytest.raises(UserError, match="expected the part 'unet'"):
        Backbone(str(copied))


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.BIN", "vae/x.ckpt"])
def test_a_pickle_is_named_even_beside_safetensors(copied, name):
    (copied / name).write_bytes(b"anything")
    with pytest.raises(UserError, match=rf"{copied / name}: a pickle"):
        Backbone(str(copied))


def test_a_pickle_in_a_part_that_only_xl_has_is_named(folders, tmp_path):
    folder = Path(shutil.copytree(folders["xl"], tmp_path / "xl"))
    (folder / "text_encoder_2" / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(UserError, match="text_encoder_2/pytorch_model.bin: a pickle"):
        Backbone(str(folder))


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", "cut"])
def test_broken_weights_are_named(copied, part, content):
    path = next((copied / part).glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100] if content == "cut" else content)
    with pytest.raises(UserError, match=rf"{path}: expected weights in the safetensors format"):
        Backbone(str(copied))


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_absent_weights_are_named(copied, part):
    next((copied / part).glob("*.safetensors")).unlink()
    stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    with pytest.raises(UserError, match=rf"{copied / part}: expected weights as {stem}.safetensors or {stem}.fp16.saf"):
        Backbone(str(copied))


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_weights_without_one_of_their_tensors_are_named(copied, part):
    """transformers would fill the gap with random numbers, other ones in each process."""
    path = next((copied / part).glob("*.safetensors"))
    weights = load_file(path)
    weights.popitem()
    save_file(weights, path, metadata={"format": "pt"})
    n = len(weights)
    with pytest.raises(UserError, match=rf"{copied / part}: expected weights of {n + 1} tensors, found {n}"):
        Backbone(str(copied))


@pytest.mark.parametrize("name", ["unet/config.json", "text_encoder/config.json", "tokenizer/tokenizer.json",
                                  "scheduler/scheduler_config.json", "model_index.json"])  # fmt: skip
def test_an_absent_or_broken_description_is_one_line(copied, name):
    for break_it in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        break_it(copied / name)
        with pytest.raises(UserError) as caught:
            Backbone(str(copied))
        assert str(copied) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"_class_name": "NoSuchPipeline"}, {"_class_name": None},
                                    {"unet": ["diffusers", "NoSuchModel"]}])  # fmt: skip
def test_an_index_of_unknown_classes_is_refused(copied, change):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, **change}))
    with pytest.raises(UserError, match=str(copied)):
        Backbone(str(copied))


def test_another_prediction_type_is_named(copied):
    path = copied / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "sample"}))
    with pytest.raises(UserError, match="expected prediction_type epsilon or v_prediction, got 'sample'"):
        Backbone(str(copied))


def rescheduled(folder: Path, **changes: object) -> Path:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    "changes", [{"beta_schedule": "squaredcos_cap_v2"}, {"beta_schedule": "linear", "beta_end": 0.02},
                {"trained_betas": np.linspace(1e-4, 0.01, 1000).tolist()}]
)  # fmt: skip
def test_another_noise_schedule_is_obeyed(copied, changes):
    theirs = DDIMScheduler.from_pretrained(rescheduled(copied, **changes), subfolder="scheduler").alphas_cumprod
    found = Backbone(str(copied)).abar
    assert torch.equal(found, theirs.double())
    assert not torch.allclose(found, schedule().alphas_cumprod.double(), atol=0.01)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"beta_schedule": "sigmoid"}, "cannot be loaded .NotImplementedError: sigmoid"),
     ({"num_train_timesteps": 500}, "expected num_train_timesteps 1000, got 500"),
     ({"rescale_betas_zero_snr": True}, "leaves some signal at its last step, got rescale_betas_zero_snr true"),
     ({"prediction_type": "flow_prediction"}, "expected prediction_type epsilon or v_prediction")],
)  # fmt: skip
def test_a_schedule_that_cannot_be_followed_is_refused(copied, changes, said):
    with pytest.raises(UserError, match=said) as caught:
        Backbone(str(rescheduled(copied, **changes)))
    assert str(copied) in str(caught.value) and "\n" not in str(caught.value)


def test_a_scheduler_without_a_noise_schedule_or_with_one_of_its_own_is_refused(copied):
    """DDIM would take its own default schedule and make noise of everything."""
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler: expected a noise schedule"):
        loading.ddim_of(FlowMatchEulerDiscreteScheduler(), str(copied))
    with pytest.raises(UserError, match="DDPMScheduler: expected a schedule that DDIM knows, got: sigmoid is not"):
        loading.ddim_of(DDPMScheduler(beta_schedule="sigmoid"), str(copied))


def test_a_pipeline_of_another_kind_on_the_hub_is_refused(monkeypatch):
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *a, **k: SimpleNamespace(vae=1, transformer=1))
    with pytest.raises(UserError, match="model.id owner/name: expected the part 'unet' of a text-to-image pipeline"):
        Backbone("owner/name")


@pytest.mark.parametrize("name", ["data/nowhere", "models/nowhere", "nowhere", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_missing_folder_is_named_and_never_asked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=f"{name}: expected a model folder, found none"):
        Backbone(name)


@pytest.mark.parametrize("revision", ["", "v1.0"])
def test_a_hub_id_that_is_not_at_hand_offline_says_what_to_do(monkeypatch, revision):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"model.id nobody/no-such-model: cannot be loaded") as caught:
        Backbone("nobody/no-such-model", revision)
    assert download_model("nobody/no-such-model", revision) in str(caught.value) and "\n" not in str(caught.value)


def test_halves_are_asked_for_first_in_float16_alone(monkeypatch):
    asked = []

    def from_pretrained(name, **options):
        asked.append(options["variant"])
        raise ValueError("no such modeling files are available")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    for dtype in ("float16", "bfloat16"):
        with pytest.raises(UserError, match="no such modeling files"):
            Backbone("owner/name", dtype=dtype)
    assert asked == ["fp16", None, None]


@pytest.mark.parametrize(("value", "local_only"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_the_offline_switch_is_read_as_the_hub_reads_it(monkeypatch, value, local_only):
    asked = {}

    def from_pretrained(name, **options):
        asked.update(options)
        raise OSError("not here")

    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    with pytest.raises(UserError, match="not here"):
        Backbone("nobody/no-such-model", "main")
    assert asked["local_files_only"] is local_only and asked["revision"] == "main" and asked["use_safetensors"] is True
