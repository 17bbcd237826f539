"""Mean attention against the materialised softmax of every layer, step and noise sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import AttnProcessor2_0

from maskmill.diffusion import mean_attention as module
from maskmill.diffusion.backbone import Backbone
from maskmill.diffusion.capture import AttentionCapture, word_weights
from maskmill.diffusion.mean_attention import (
    CrossMaps,
    last_steps,
    mean_attention,
    nested_means,
    phrase_weights,
    token_names,
)
from maskmill.diffusion.noise import keyed_noise
from maskmill.errors import UserError

TOKENS, WIDTH = 5, 6
PROMPTS = ["a photo of a bird", "a photo of a boat"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def backbone(tiny_model) -> Backbone:
    return Backbone(str(tiny_model))


def make_unet(**changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**{
        "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": WIDTH, "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), **changes,
    }).eval()  # fmt: skip
    with torch.no_grad():  # untrained attention is almost uniform
        for name, parameter in unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                parameter.mul_(4.0)
    return unet


class Kept:
    """The obvious slow way: a processor that keeps the whole softmax of every cross-attention layer and call."""

    def __init__(self, unet) -> None:
        self.matrices: list[torch.Tensor] = []
        for name in unet.attn_processors:
            unet.get_submodule(name.removesuffix(".processor")).set_processor(self)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        if encoder_hidden_states is not None:
            q, k = attn.to_q(hidden_states).double(), attn.to_k(encoder_hidden_states).double()
            per_head = []
            for head in range(attn.heads):
                part = slice(head * q.shape[2] // attn.heads, (head + 1) * q.shape[2] // attn.heads)
                scores = q[..., part] @ k[..., part].mT / (part.stop - part.start) ** 0.5
                if attention_mask is not None:
                    scores = scores + attention_mask
                per_head.append(scores.softmax(-1))
            self.matrices.append(torch.stack(per_head).mean(0))  # (B, N, T)
        return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def blocks(matrix: torch.Tensor, size: tuple[int, int], latent: tuple[int, int]) -> np.ndarray:
    """(B, N, T) -> (B, T, h, w), cell by cell: the nearest neighbour to the top left."""
    h_l, w_l = next(s for s in [(latent[0] // 2**i, latent[1] // 2**i) for i in range(4)]
                    if s[0] * s[1] == matrix.shape[1])  # fmt: skip
    out = np.empty((len(matrix), matrix.shape[2], *size))
    for y in range(size[0]):
        for x in range(size[1]):
            out[:, :, y, x] = matrix[:, (y * h_l // size[0]) * w_l + x * w_l // size[1]]
    return out


def call(unet, seed: int = 0, batch: int = 2, latent=(8, 8), **more):
    g = torch.Generator().manual_seed(seed)
    z, text = torch.randn(batch, 4, *latent, generator=g), torch.randn(batch, TOKENS, WIDTH, generator=g)
    with torch.inference_mode():
        return unet(z, 100, text, **more).sample


@pytest.mark.parametrize("latent, size", [((8, 8), None), ((8, 8), (16, 16)), ((8, 16), (6, 20)), ((8, 8), (4, 4))])
def test_all_tokens_come_from_one_call_and_are_the_layers_mean(latent, size):
    unet = make_unet()
    with CrossMaps(unet, torch.eye(TOKENS), size) as maps:
        call(unet, latent=latent)
        got = maps.take()
    kept = Kept(unet)
    call(unet, latent=latent)
    assert len(kept.matrices) == 7
    expected = np.mean([blocks(m, size or latent, latent) for m in kept.matrices], 0)
    assert got.numpy() == pytest.approx(expected, abs=1e-6)
    assert got.sum(1).numpy() == pytest.approx(1.0, abs=1e-5) and float(got.std()) > 0.05


@pytest.mark.parametrize("changes", [
    {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
    {"attention_head_dim": (2, 4), "use_linear_projection": True, "transformer_layers_per_block": (1, 2)},
])  # fmt: skip
def test_other_architectures_give_the_same(changes):
    unet = make_unet(**changes)
    with CrossMaps(unet, torch.eye(TOKENS)) as maps:
        call(unet)
        got = maps.take()
    kept = Kept(unet)
    call(unet)
    assert got.numpy() == pytest.approx(np.mean([blocks(m, (8, 8), (8, 8)) for m in kept.matrices], 0), abs=1e-6)


def test_a_mask_of_the_text_is_obeyed():
    unet = make_unet()
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 0]])
    with CrossMaps(unet, torch.eye(TOKENS)) as maps:
        call(unet, encoder_attention_mask=mask)
        got = maps.take()
    kept = Kept(unet)
    call(unet, encoder_attention_mask=mask)
    assert got.numpy() == pytest.approx(np.mean([blocks(m, (8, 8), (8, 8)) for m in kept.matrices], 0), abs=1e-6)
    assert float(got[0, 2].max()) == 0.0 and float(got[1, 4].max()) == 0.0 < float(got[0, 4].min())


def test_sets_of_tokens_are_weighted_sums_per_image_too():
    unet = make_unet()

    def maps_of(weights) -> torch.Tensor:
        with CrossMaps(unet, weights) as maps:
            call(unet)
            return maps.take()

    every = maps_of(torch.eye(TOKENS))
    shared = maps_of(word_weights([[3], [1, 2, 4]], TOKENS))
    assert torch.allclose(shared[:, 0], every[:, 3], atol=1e-7)
    assert torch.allclose(shared[:, 1], every[:, [1, 2, 4]].mean(1), atol=1e-6)
    own = maps_of(word_weights([[3], [1]], TOKENS)[:, None])  # (B, 1, T): another token per image
    assert torch.allclose(own[:, 0], torch.stack([every[0, 3], every[1, 1]]), atol=1e-7)


def test_the_unets_output_keeps_its_bits_and_its_processors():
    unet = make_unet()
    before, processors = call(unet), dict(unet.attn_processors)
    with CrossMaps(unet, torch.eye(TOKENS)) as maps:
        assert torch.equal(call(unet), before)
        maps.take()
    assert dict(unet.attn_processors) == processors
    assert torch.equal(call(unet), before) and not any(m._forward_pre_hooks for m in unet.modules())


def test_a_take_is_the_mean_of_the_calls_since_the_last_one():
    unet = make_unet()
    single = []
    for seed in (1, 2, 3):
        with CrossMaps(unet, torch.eye(TOKENS)) as maps:
            call(unet, seed)
            single.append(maps.take())
    with CrossMaps(unet, torch.eye(TOKENS)) as maps:
        call(unet, 1)
        call(unet, 2)
        assert torch.allclose(maps.take(), (single[0] + single[1]) / 2, atol=1e-7)
        call(unet, 3)
        assert torch.equal(maps.take(), single[2])
        with pytest.raises(RuntimeError, match="never ran"):
            maps.take()


def test_scores_in_small_pieces_are_the_same(monkeypatch):
    unet = make_unet()
    with CrossMaps(unet, torch.eye(TOKENS)) as maps:
        call(unet)
        whole = maps.take()
        monkeypatch.setattr(module, "SCORES", 1)
        call(unet)
        assert torch.allclose(maps.take(), whole, atol=1e-7)


def test_the_capture_of_a_generation_agrees():
    """Two roads to A_c of a word: the record of the fused capture, and this hook."""
    unet = make_unet()
    words = word_weights([[3], [1, 2]], TOKENS)
    capture = AttentionCapture(unet)
    with capture:
        capture.begin(words, bins=1)
        call(unet)
        records = capture.end()
    with CrossMaps(unet, words[:, None], (8, 8)) as maps:
        call(unet)
        got = maps.take()[:, 0]
    for b, record in enumerate(records):
        layers = [np.repeat(np.repeat(layer, 8 // side, 0), 8 // side, 1)
                  for side in (4, 8) for layer in record[f"cross_{side}"][0].astype(np.float64)]  # fmt: skip
        assert got[b].numpy() == pytest.approx(np.mean(layers, 0) / TOKENS, rel=2e-3)


def test_a_unet_without_text_and_a_silent_layer_are_errors():
    plain = UNet2DModel(sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
                        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                        up_block_types=("AttnUpBlock2D", "UpBlock2D"))  # fmt: skip
    with pytest.raises(UserError, match="expected a U-Net with cross-attention to text, found none"):
        CrossMaps(plain, torch.eye(TOKENS))
    unet = make_unet()
    with CrossMaps(unet, torch.eye(TOKENS)) as maps:
        maps._calls["down_blocks.0.attentions.0.transformer_blocks.0.attn2"] -= 1
        call(unet)
        with pytest.raises(RuntimeError, match=r"down_blocks.0.*attn2 recorded 0 of 1 calls"):
            maps.take()


# --- the mean over steps and samples ----------------------------------------------------------------------------------


def slow_mean(backbone, z, prompts, seeds, steps: int, t0: int, samples: int) -> np.ndarray:
    """(B, T, h, w): image by image, step by step, sample by sample, layer by layer, with the noise written out."""
    backbone.scheduler.set_timesteps(steps)
    times = [int(t) for t in backbone.scheduler.timesteps][-t0:]  # descending; the last T0
    kept = Kept(backbone.unet)
    out = []
    for image, prompt, seed in zip(z, prompts, seeds, strict=True):
        condition, summands = backbone.encode_text([prompt], 64), []
        for t in times:
            for n in range(samples):
                noise = keyed_noise([seed], image.shape, t, n)[0]
                a = float(backbone.scheduler.alphas_cumprod[t])
                backbone.noise((a**0.5 * image + (1 - a) ** 0.5 * noise)[None], t, condition)
                summands += [blocks(m, (16, 16), (16, 16))[0] for m in kept.matrices]
                kept.matrices.clear()
        out.append(np.mean(summands, 0))
    for name in backbone.unet.attn_processors:
        backbone.unet.get_submodule(name.removesuffix(".processor")).set_processor(AttnProcessor2_0())
    return np.stack(out)


@pytest.fixture(scope="module")
def latents(backbone) -> torch.Tensor:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    return backbone.encode_images(images)


@pytest.fixture(scope="module")
def every(backbone) -> torch.Tensor:
    return torch.eye(backbone.tokenizer.model_max_length)


def test_mean_attention_is_the_slow_mean(backbone, latents, every):
    condition = backbone.encode_text(PROMPTS, 64)
    got = mean_attention(backbone, latents, condition, every, [3, 4], steps=6, t0=4, samples=2)
    assert got.shape == (2, len(every), 16, 16) and got.dtype == np.float32
    assert got == pytest.approx(slow_mean(backbone, latents, PROMPTS, [3, 4], 6, 4, 2), abs=1e-6)
    assert got[:, 5].std() > 1e-3


def test_an_image_does_not_depend_on_its_batch(backbone, latents, every):
    both = mean_attention(backbone, latents, backbone.encode_text(PROMPTS, 64), every, [3, 4], steps=4, t0=2)
    alone = mean_attention(backbone, latents[1:], backbone.encode_text(PROMPTS[1:], 64), every, [4], steps=4, t0=2)
    assert alone[0] == pytest.approx(both[1], abs=1e-6)
    turned = mean_attention(backbone, latents.flip(0), backbone.encode_text(PROMPTS[::-1], 64), every, [4, 3], steps=4,
                            t0=2)  # fmt: skip
    assert turned[0] == pytest.approx(both[1], abs=1e-6)


def test_curves_over_t0_and_n_are_the_single_runs_to_the_bit(backbone, latents, every):
    condition = backbone.encode_text(PROMPTS, 64)
    weights = word_weights([[5], [1, 2]], len(every))
    calls = []
    handle = backbone.unet.register_forward_hook(lambda *a: calls.append(1))
    curves = nested_means(backbone, latents, condition, weights, [3, 4], steps=5, t0=[1, 3], samples=[2, 1])
    handle.remove()
    assert len(calls) == 3 * 2 and set(curves) == {(1, 1), (1, 2), (3, 1), (3, 2)}
    for (t0, n), maps in curves.items():
        alone = mean_attention(backbone, latents, condition, weights, [3, 4], steps=5, t0=t0, samples=n)
        assert np.array_equal(maps, alone), (t0, n)
    assert len({maps.tobytes() for maps in curves.values()}) == 4


def test_the_last_steps_are_the_least_noisy(backbone):
    assert last_steps(backbone, 50, 40)[-1] == 781 and last_steps(backbone, 50, 40)[0] == 1
    assert len(last_steps(backbone, 50, 40)) == 40 and len(last_steps(backbone, 50, 50)) == 50
    for t0 in (0, 51):
        with pytest.raises(UserError, match=f"1 to 50 of 50 steps, got {t0}"):
            last_steps(backbone, 50, t0)


def test_no_sample_is_refused(backbone, latents, every):
    with pytest.raises(UserError, match="at least 1 noise sample, got 0"):
        mean_attention(backbone, latents, backbone.encode_text(PROMPTS, 64), every, [3, 4], t0=1, samples=0)


def test_tokens_have_names(backbone):
    names = token_names(backbone.tokenizer, "a photo of a bird")
    assert names[:7] == ["<start>", "a", "photo", "of", "a", "bird", "<end>"]
    assert set(names[7:]) == {"<pad>"} and len(names) == backbone.tokenizer.model_max_length


def test_a_phrase_is_the_mean_of_its_words(backbone):
    prompt = "a photo of a bird and a boat"
    weights = phrase_weights(backbone.tokenizer, prompt, ["bird", "boat"])
    assert weights.shape == (1, backbone.tokenizer.model_max_length)
    assert weights.nonzero().tolist() == [[0, 5], [0, 8]] and weights[0, 5] == weights[0, 8] == 0.5


@pytest.mark.parametrize("asked, message", [
    (["zebra"], r"expected a word that the model's tokenizer knows, got 'zebra', which it takes to \d pieces: z"),
    (["tree"], "expected the class word 'tree' in the prompt"), ([], "expected at least one word of the prompt"),
])  # fmt: skip
def test_words_that_the_tokenizer_or_the_prompt_lacks_are_refused(backbone, asked, message):
    with pytest.raises(UserError, match=message):
        phrase_weights(backbone.tokenizer, "a photo of a zebra", asked)
