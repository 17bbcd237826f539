"""Attention capture against the materialised softmax, on tiny random U-Nets of three architectures."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import AttnAddedKVProcessor, AttnProcessor2_0

from maskmill.diffusion import capture as module
from maskmill.diffusion.capture import AttentionCapture, attend, log_sum_exp, pool_rows, word_weights
from maskmill.errors import UserError

TOKENS, TEXT_DIM, LATENT = 7, 12, 8
NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]  # row by row
ARCHITECTURES = {
    "sd1": {"attention_head_dim": 2},
    "sd2": {"attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
    "xl": {
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 5,
    },
}


pytestmark = pytest.mark.usefixtures("one_thread")


def make_unet(architecture: str, **changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    config = {
        "sample_size": LATENT,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": TEXT_DIM,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        **ARCHITECTURES[architecture],
        **changes,
    }
    unet = UNet2DConditionModel(**config).eval()
    with torch.no_grad():  # untrained attention is almost uniform: sharpen it, or nothing here could go wrong
        for name, parameter in unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                parameter.mul_(3.0)
    return unet


def make_inputs(unet: UNet2DConditionModel, batch: int, seed: int = 1, latent=(LATENT, LATENT)) -> dict:
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "sample": torch.randn(batch, 4, *latent, generator=generator),
        "encoder_hidden_states": torch.randn(batch, TOKENS, TEXT_DIM, generator=generator),
    }
    if unet.config.addition_embed_type == "text_time":
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, 5, generator=generator),
            "time_ids": torch.rand(batch, 6, generator=generator),
        }
    return inputs


def take(inputs: dict, rows) -> dict:
    return {key: take(value, rows) if isinstance(value, dict) else value[rows] for key, value in inputs.items()}


class Materialised:
    """The obvious slow processor: keeps softmax(Q K^T / sqrt d) of every layer and call in `calls[name]`."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.calls: dict[str, list[torch.Tensor]] = {}
        for key in unet.attn_processors:
            name = key.removesuffix(".processor")
            unet.get_submodule(name).set_processor(self.processor(self.calls.setdefault(name, [])))

    @staticmethod
    def processor(calls: list[torch.Tensor]) -> Callable:
        def forward(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
            text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (
                x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for x in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
            )
            scores = q.double() @ k.double().mT / q.shape[-1] ** 0.5
            if attention_mask is not None:
                scores = scores + attention_mask[:, None]
            matrix = scores.softmax(-1)
            calls.append(matrix)
            return attn.to_out[0]((matrix.to(v.dtype) @ v).transpose(1, 2).flatten(2))

        class Processor:
            def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
                return forward(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

        return Processor()


def slow_near(matrix: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """(B, heads, N, N) -> (B, 8, h, w), pixel by pixel."""
    near = torch.zeros(matrix.shape[0], 8, h, w, dtype=torch.double)
    for i, (dy, dx) in enumerate(NEIGHBOURS):
        for y in range(h):
            for x in range(w):
                if 0 <= y + dy < h and 0 <= x + dx < w:
                    near[:, i, y, x] = matrix[:, :, y * w + x, (y + dy) * w + x + dx].mean(1)
    return near


def slow_columns(matrix: torch.Tensor, r: int, m: int, g: int) -> torch.Tensor:
    """(B, heads, r * r, r * r) -> (B, m * m, g * g), anchor by anchor and block by block."""
    columns = torch.zeros(matrix.shape[0], m * m, g * g, dtype=torch.double)
    f = r // m
    for i in range(g):
        for j in range(g):
            column = matrix[..., ((2 * i + 1) * r // (2 * g)) * r + (2 * j + 1) * r // (2 * g)].mean(1)  # (B, r * r)
            image = column.view(-1, r, r)
            for y in range(m):
                for x in range(m):
                    block = image[:, y * f : (y + 1) * f, x * f : (x + 1) * f]
                    columns[:, y * m + x, i * g + j] = block.mean((1, 2))
    return columns


def slow_pairs(columns: torch.Tensor) -> torch.Tensor:
    """(B, n, n) -> (B, n (n + 1) / 2), pair by pair."""
    n = columns.shape[-1]
    pairs = [(columns[:, a, b] + columns[:, b, a]) / 2 for a in range(n) for b in range(a, n)]
    return torch.stack(pairs, 1)


def slow_record(calls, times, rows, words, bins, cells=32) -> list[dict[str, np.ndarray]]:
    """The record by its definition, from the matrices of every layer and step."""
    words = words.double()
    bin_of = [min(int(t * bins / 1000), bins - 1) for t in times]
    cross, near, columns = {}, {}, {}
    for name in sorted(calls, key=lambda n: ("down mid up".split().index(n.split("_")[0]), n)):
        matrices = [matrix[rows] for matrix in calls[name]]
        assert len(matrices) == len(times)
        r = int(matrices[0].shape[2] ** 0.5)
        if "attn2" in name:
            maps = [torch.einsum("bhnt,bt->bn", x, words) / x.shape[1] * words.shape[1] for x in matrices]
            zero = torch.zeros_like(maps[0])
            per_bin = [[x for x, b in zip(maps, bin_of, strict=False) if b == i] for i in range(bins)]
            mean = torch.stack([torch.stack(x).mean(0) if x else zero for x in per_bin], 1)  # (B, bins, N)
            cross.setdefault(r, []).append(mean.unflatten(2, (r, r)))
        else:
            near.setdefault(r, []).extend(slow_near(x, r, r) * r * r for x in matrices)
            columns.setdefault(r, []).extend(slow_columns(x, r, min(r, cells), min(r, cells)) * r * r for x in matrices)
    arrays = {f"cross_{r}": torch.stack(x, 2) for r, x in cross.items()}
    arrays |= {f"near_{r}": torch.stack(x).mean(0) for r, x in near.items()}
    arrays |= {f"pairs_{r}": slow_pairs(torch.stack(x).mean(0)) for r, x in columns.items()}
    return [{key: value[i].numpy() for key, value in arrays.items()} for i in range(words.shape[0])]


def run(unet, inputs: dict, times, words, capture: AttentionCapture | None = None, **options) -> list[dict]:
    capture = AttentionCapture(unet) if capture is None else capture
    with torch.no_grad(), capture:
        capture.begin(words, **options)
        for t in times:
            unet(timestep=t, **inputs)
        return capture.end()


def assert_same(records, expected, rtol=1e-3, atol=1e-3) -> None:
    assert len(records) == len(expected)
    for record, reference in zip(records, expected, strict=False):
        assert set(record) == set(reference)
        for key in reference:
            assert record[key].shape == reference[key].shape, key
            np.testing.assert_allclose(record[key].astype(float), reference[key].astype(float), rtol, atol, err_msg=key)


WORDS = word_weights([(1, 2), [2, 5, 6]], TOKENS)


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layer_equals_materialised_softmax(architecture, guidance, monkeypatch):
    unet = make_unet(architecture)
    inputs = make_inputs(unet, 4 if guidance else 2)
    rows = slice(2, 4) if guidance else slice(None)
    seen = []  # (near, columns) or a word map, per layer in call order

    def keep(function):
        def kept(*args, **kwargs):
            seen.append(function(*args, **kwargs))
            return seen[-1]

        return kept

    monkeypatch.setattr(module, "neighbours_and_columns", keep(module.neighbours_and_columns))
    monkeypatch.setattr(module, "word_map", keep(module.word_map))
    capture = AttentionCapture(unet)
    run(unet, inputs, [500], WORDS, capture, conditional=rows if guidance else None)

    reference = Materialised(unet)
    with torch.no_grad():
        unet(timestep=500, **inputs)
    assert {name for name, _ in capture.layers} == set(reference.calls)
    sharpest = 0.0
    assert len(seen) == len(capture.layers)
    for (name, _), values in zip(capture.layers, seen, strict=False):
        matrix = reference.calls[name][0][rows]  # (B, heads, N, T) float64
        sharpest = max(sharpest, float(matrix.max() * matrix.shape[-1]))
        if "attn2" in name:
            expected = torch.einsum("bhnt,bt->bn", matrix, WORDS.double()) / matrix.shape[1]
            torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-5)
        else:
            r = int(matrix.shape[2] ** 0.5)
            near, columns = values
            torch.testing.assert_close(near.double().unflatten(2, (r, r)), slow_near(matrix, r, r), rtol=0, atol=1e-5)
            g = min(r, 16)
            torch.testing.assert_close(columns.double(), slow_columns(matrix, r, r, g), rtol=0, atol=1e-5)
    assert sharpest > 3  # the attention is far from uniform


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_record_is_the_mean_over_steps_and_bins_by_t(architecture, guidance):
    unet = make_unet(architecture)
    inputs = make_inputs(unet, 4 if guidance else 2)
    times, rows = [999, 700, 600, 250, 0], [3, 0] if guidance else [0, 1]
    capture = AttentionCapture(unet, cells=2)
    records = run(unet, inputs, times, WORDS, capture, conditional=rows if guidance else None)

    reference = Materialised(unet)
    with torch.no_grad():
        for t in times:
            unet(timestep=t, **inputs)
    assert_same(records, slow_record(reference.calls, times, rows, WORDS, 4, cells=2))
    assert all(array.dtype == np.float16 for array in records[0].values())
    assert capture.meta["steps_per_bin"] == [1, 1, 2, 1] and capture.meta["steps"] == 5 and capture.meta["bins"] == 4
    assert capture.meta["tokens"] == TOKENS
    cross = capture.meta["cross_layers"]
    assert sum(map(len, cross.values())) == sum(capture.meta["self_layers"].values()) == len(capture.layers) // 2
    assert records[0]["cross_8"].shape == (4, len(cross["8"]), 8, 8)
    assert [name.split("_")[0] for name in cross["4"]] == sorted(name.split("_")[0] for name in cross["4"])


def test_layers_are_listed_in_call_order():
    unet, called = make_unet("xl"), []
    for name, layer in AttentionCapture(unet).layers:
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.no_grad():
        unet(timestep=1, **make_inputs(unet, 1))
    assert called == [name for name, _ in AttentionCapture(unet).layers]


def test_empty_bin_is_zero_and_timestep_may_be_positional_tensor():
    unet = make_unet("sd1")
    inputs = make_inputs(unet, 2)
    capture = AttentionCapture(unet)
    with torch.no_grad(), capture:
        capture.begin(WORDS, bins=2)
        unet(inputs["sample"], torch.tensor([900, 900]), inputs["encoder_hidden_states"])
        records = capture.end()
    assert capture.meta["steps_per_bin"] == [0, 1]
    assert not records[0]["cross_8"][0].any() and records[0]["cross_8"][1].all()


def test_prompts_together_equal_one_at_a_time():
    unet = make_unet("sd1")
    inputs = make_inputs(unet, 3)
    words = word_weights([(0, 1), [2, 3], range(1, 6)], TOKENS)
    together = run(unet, inputs, [800, 100], words)
    alone = [run(unet, take(inputs, [i]), [800, 100], words[i : i + 1])[0] for i in range(3)]
    assert_same(together, alone)


def test_output_is_unchanged_and_processors_restored():
    down, up = ("AttnDownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "AttnUpBlock2D")
    image_attention = make_unet("sd1", down_block_types=down, up_block_types=up)  # attention straight on (B, c, h, w)
    for unet in [make_unet(architecture) for architecture in ARCHITECTURES] + [image_attention]:
        inputs = make_inputs(unet, 2)
        before = unet.attn_processors
        capture = AttentionCapture(unet)
        with torch.no_grad(), capture:
            plain = unet(timestep=300, **inputs).sample  # entered, but nothing begun
            assert plain.equal(copy.deepcopy(unet)(timestep=300, **inputs).sample)
            capture.begin(WORDS)
            captured = unet(timestep=300, **inputs).sample
            capture.end()
        with torch.no_grad():
            torch.testing.assert_close(captured, unet(timestep=300, **inputs).sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(captured, plain, rtol=1e-5, atol=1e-5)
        after = unet.attn_processors
        assert before.keys() == after.keys() and all(before[key] is after[key] for key in before)
        assert not unet._forward_pre_hooks and not unet._forward_hooks


def test_processors_restored_after_an_exception():
    unet = make_unet("sd1")
    before, capture = unet.attn_processors, AttentionCapture(unet)
    with pytest.raises(ZeroDivisionError), capture:
        capture.begin(WORDS)
        assert not any(isinstance(x, AttnProcessor2_0) for x in unet.attn_processors.values())
        raise ZeroDivisionError
    assert all(before[key] is value for key, value in unet.attn_processors.items())
    assert not unet._forward_pre_hooks and not unet._forward_hooks
    with pytest.raises(RuntimeError, match="begin"):
        capture.end()
    run(unet, make_inputs(unet, 2), [10], WORDS, capture)  # and it can be used again


def test_silent_layer_fails_by_name():
    unet = make_unet("sd1")
    capture = AttentionCapture(unet)
    name, layer = capture.layers[3]
    with torch.no_grad(), capture:
        capture.begin(WORDS)
        unet(timestep=5, **make_inputs(unet, 2))
        layer.set_processor(AttnProcessor2_0())
        unet(timestep=5, **make_inputs(unet, 2))
        with pytest.raises(RuntimeError, match=f"{name} recorded 1 of 2 steps"):
            capture.end()


def test_no_step_and_paused_steps():
    unet = make_unet("sd1")
    inputs = make_inputs(unet, 2)
    once = run(unet, inputs, [400], WORDS)
    capture = AttentionCapture(unet)
    with torch.no_grad(), capture:
        capture.begin(WORDS)
        with capture.paused():
            unet(timestep=5, **make_inputs(unet, 1, seed=9))
        with pytest.raises(RuntimeError, match="no step"):
            capture.end()
        unet(timestep=400, **inputs)
        with capture.paused():
            unet(timestep=5, **make_inputs(unet, 2, seed=9))
        assert_same(capture.end(), once, rtol=0, atol=0)


def test_conditional_rows_may_be_a_boolean_mask():
    unet = make_unet("sd1")
    inputs = make_inputs(unet, 4)
    masked = run(unet, inputs, [400], WORDS, conditional=[True, False, False, True])
    assert_same(masked, run(unet, inputs, [400], WORDS, conditional=[0, 3]), rtol=0, atol=0)


def test_second_record_forgets_the_first():
    unet = make_unet("sd1")
    inputs, capture = make_inputs(unet, 2), AttentionCapture(unet)
    with torch.no_grad(), capture:
        capture.begin(WORDS)
        unet(timestep=900, **make_inputs(unet, 2, seed=5))
        capture.end()
        capture.begin(WORDS)
        unet(timestep=400, **inputs)
        second = capture.end()
    assert_same(second, run(unet, inputs, [400], WORDS), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype):
    unet = make_unet("xl")
    inputs = make_inputs(unet, 2)
    exact = run(unet, inputs, [500], WORDS)
    half = {key: value.to(dtype) for key, value in inputs.items() if torch.is_tensor(value)}
    half["added_cond_kwargs"] = {key: value.to(dtype) for key, value in inputs["added_cond_kwargs"].items()}
    rough = run(unet.to(dtype), half, [500], WORDS)
    tolerance = 0.15 if dtype == torch.bfloat16 else 0.03
    assert_same(rough, exact, rtol=tolerance, atol=tolerance)


def test_text_mask_is_honoured():
    unet = make_unet("sd1")
    inputs = make_inputs(unet, 2)
    mask = torch.ones(2, TOKENS)
    mask[0, 4:] = 0
    mask[1, 2] = 0
    with torch.no_grad():
        plain = unet(timestep=300, encoder_attention_mask=mask, **inputs).sample
    capture = AttentionCapture(unet)
    with torch.no_grad(), capture:
        capture.begin(WORDS)
        captured = unet(timestep=300, encoder_attention_mask=mask, **inputs).sample
        records = capture.end()
    torch.testing.assert_close(captured, plain, rtol=1e-5, atol=1e-5)
    reference = Materialised(unet)
    with torch.no_grad():
        unet(timestep=300, encoder_attention_mask=mask, **inputs)
    assert_same(records, slow_record(reference.calls, [300], [0, 1], WORDS, 4))


def test_oblong_latents():
    unet = make_unet("sd1")
    capture = AttentionCapture(unet)
    records = run(unet, make_inputs(unet, 2, latent=(6, 10)), [300], WORDS, capture)
    assert {"cross_6x10", "near_3x5", "pairs_3x5"} <= set(records[0])
    assert records[0]["near_6x10"].shape == (8, 6, 10) and records[0]["pairs_6x10"].shape == (60 * 61 // 2,)
    reference = Materialised(unet)
    with torch.no_grad():
        unet(timestep=300, **make_inputs(unet, 2, latent=(6, 10)))
    small = [matrix for name, (matrix,) in reference.calls.items() if "attn1" in name and matrix.shape[2] == 15]
    expected = torch.stack([slow_near(matrix, 3, 5) for matrix in small]).mean(0)[0] * 15
    np.testing.assert_allclose(records[0]["near_3x5"], expected, 1e-3, 1e-3)


def test_uniform_attention_is_one():
    unet = make_unet("sd1")
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith("to_q.weight"):
                parameter.zero_()
    record = run(unet, make_inputs(unet, 2), [300], WORDS, bins=1)[1]
    for key, array in record.items():
        inside = array[:, 1:-1, 1:-1] if key.startswith("near") else array
        np.testing.assert_allclose(inside, 1.0, atol=1e-3, err_msg=key)
    assert record["near_4"][0].sum() == pytest.approx(9, abs=1e-2)  # up-left exists for 3 x 3 of 4 x 4 pixels


def test_refusals():
    blocks = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}
    with pytest.raises(UserError, match="cross-attention"):
        AttentionCapture(UNet2DModel(4, block_out_channels=(8,), norm_num_groups=4, **blocks))
    unet = make_unet("sd1")
    capture = AttentionCapture(unet)
    with pytest.raises(RuntimeError, match="with capture"):
        capture.begin(WORDS)
    with torch.no_grad(), capture:
        with pytest.raises(RuntimeError, match="already"):
            capture.__enter__()
        with pytest.raises(ValueError, match="summing to 1"):
            capture.begin(WORDS * 2)
        with pytest.raises(ValueError, match="summing to 1"):
            capture.begin(WORDS / 0)
        capture.begin(WORDS, conditional=[0, 4])
        with pytest.raises(ValueError, match="batch of 4 rows"):
            unet(timestep=5, **make_inputs(unet, 4))
        capture.begin(WORDS)
        with pytest.raises(ValueError, match="conditional"):
            unet(timestep=5, **make_inputs(unet, 4))
        with pytest.raises(ValueError, match="timestep"):
            unet(timestep=1001, **make_inputs(unet, 2))
        capture.begin(F.pad(WORDS, (0, 1)))
        with pytest.raises(RuntimeError, match="7 text tokens"):
            unet(timestep=5, **make_inputs(unet, 2))
    name, layer = capture.layers[0]
    layer.set_processor(AttnAddedKVProcessor())
    with pytest.raises(UserError, match=name):
        AttentionCapture(unet)


def test_word_weights():
    expected = torch.tensor([[0, 0.5, 0.5, 0], [0, 0, 0, 1], [0.5, 0, 0.5, 0]])
    assert word_weights([(1, 3), [3], [2, 0]], 4).equal(expected)
    for bad in ([[(2, 2)], [[4]], [[-1]], [[]], [(1, 2, 3)]]):
        with pytest.raises(UserError, match="row 0"):
            word_weights(bad if isinstance(bad[0], (list, tuple)) else [bad], 4)


def test_pooled_rows_by_hand():
    columns = torch.arange(16.0).view(1, 16, 1)
    assert pool_rows(columns, (4, 4), 2).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pool_rows(columns, (4, 4), 4) is columns
    odd = pool_rows(torch.arange(9.0).view(1, 9, 1), (3, 3), 2)
    assert odd.flatten().tolist() == [2.0, 3.0, 5.0, 6.0]  # windows of 2 x 2 that overlap in the middle


def test_attend_falls_back_when_the_operator_lies_or_refuses(monkeypatch):
    torch.manual_seed(3)
    q, k, v = (torch.randn(2, 3, n, 5) for n in (11, 13, 13))
    matrix = (q @ k.mT * 0.4).softmax(-1)
    lse = (q @ k.mT * 0.4).logsumexp(-1)
    right = module._call_operator

    def refuse(*_):
        raise RuntimeError("no kernel for this input")

    def base_two(*args):
        out, value = right(*args)
        return out, value / np.log(2)

    for operator in (right, refuse, base_two):
        monkeypatch.setattr(module, "_call_operator", operator)
        verdicts = {}
        for _ in range(2):
            out, got = attend(q, k, v, 0.4, verdicts=verdicts)
            torch.testing.assert_close(out, matrix @ v, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(got, lse, rtol=1e-5, atol=1e-5)
        assert list(verdicts.values()) == [operator is right]


def test_chunked_log_sum_exp_with_a_mask():
    torch.manual_seed(4)
    q, k, mask = torch.randn(2, 3, 10, 5), torch.randn(2, 3, 7, 5), torch.randn(2, 1, 1, 7)
    expected = (q @ k.mT * 0.3 + mask).logsumexp(-1)
    for budget in (1, 100, 1 << 20):
        torch.testing.assert_close(log_sum_exp(q, k, 0.3, mask, budget), expected, rtol=1e-5, atol=1e-5)


def test_head_groups_and_self_mask_do_not_change_the_entries():
    torch.manual_seed(5)
    q, k = torch.randn(2, 4, 24, 5), torch.randn(2, 4, 24, 5)  # a 4 x 6 layer
    anchors = module.anchor_positions(4, 6, 2)
    assert anchors.tolist() == [1 * 6 + 1, 1 * 6 + 4, 3 * 6 + 1, 3 * 6 + 4]
    for mask in (None, torch.randn(2, 1, 1, 24)):
        matrix = (q @ k.mT * 0.5 + (0 if mask is None else mask)).softmax(-1)
        lse = log_sum_exp(q, k, 0.5, mask)
        for budget in (1, 2 * 2 * 24 * 5, 1 << 20):
            near, columns = module.neighbours_and_columns(q, k, lse, (4, 6), anchors, 0.5, mask, budget)
            torch.testing.assert_close(near.double().unflatten(2, (4, 6)), slow_near(matrix, 4, 6), rtol=0, atol=1e-6)
            torch.testing.assert_close(columns, matrix.mean(1)[..., anchors], rtol=0, atol=1e-6)


def test_gradients_still_flow():
    unet = make_unet("sd1")
    inputs, capture = make_inputs(unet, 2), AttentionCapture(unet)
    layer = capture.layers[0][1]
    unet(timestep=300, **inputs).sample.sum().backward()
    expected = layer.to_q.weight.grad.clone()
    unet.zero_grad()
    with capture:
        capture.begin(WORDS)
        unet(timestep=300, **inputs).sample.sum().backward()
        capture.end()
    torch.testing.assert_close(layer.to_q.weight.grad, expected, rtol=1e-3, atol=1e-6)
