"""F^l against sums that are kept by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from maskmill.diffusion.features import FeatureMean
from maskmill.errors import UserError


def make(blocks: tuple[str, str], layers: int = 2) -> UNet2DConditionModel:
    torch.manual_seed(0)
    down, up = blocks
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=layers, norm_num_groups=4, cross_attention_dim=6,
        attention_head_dim=2, down_block_types=(down, down), up_block_types=(up, up),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return make(("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"))


def calls(unet, count: int, batch: int = 2) -> None:
    for i in range(count):
        g = torch.Generator().manual_seed(i)
        with torch.inference_mode():
            unet(torch.randn(batch, 4, 8, 8, generator=g), 100 * i, torch.randn(batch, 5, 6, generator=g))


def kept_by_hand(unet, modules: list, count: int) -> list[torch.Tensor]:
    """The mean output of some modules, (B, C, h, w) each, from plain hooks that keep every output."""
    outputs: list[list[torch.Tensor]] = [[] for _ in modules]

    def keep(i):
        return lambda module, args, output: outputs[i].append(output[0])

    handles = [m.register_forward_hook(keep(i)) for i, m in enumerate(modules)]
    calls(unet, count)
    for handle in handles:
        handle.remove()
    return [torch.stack(o).mean(0) for o in outputs]


@pytest.mark.parametrize("path", ["up", "down"])
def test_features_are_the_mean_over_the_calls_of_the_last_two_blocks_of_each_resolution(unet, path):
    blocks = unet.up_blocks if path == "up" else unet.down_blocks
    modules = [m for block in blocks for m in block.attentions[-2:]]  # the up path has three at a resolution
    expected = kept_by_hand(unet, modules, 3)
    with FeatureMean(unet, path) as features:
        calls(unet, 3)
        samples = features.end()
    names = [f"feature_{side}_{k}" for side in ((4, 8) if path == "up" else (8, 4)) for k in (0, 1)]
    assert len(samples) == 2 and [sorted(s) for s in samples] == [sorted(names)] * 2
    for name, mean in zip(names, expected, strict=True):
        for i, sample in enumerate(samples):
            assert sample[name].dtype == np.float16 and sample[name].shape == mean[i].shape
            assert np.allclose(sample[name], mean[i].numpy(), atol=2e-3)
    assert not np.allclose(samples[0][names[0]], samples[1][names[0]], atol=1e-2)
    assert not np.allclose(samples[0][names[0]], samples[0][names[1]], atol=1e-2)


def test_a_context_entered_again_starts_from_nothing(unet):
    features = FeatureMean(unet)
    with features:
        calls(unet, 1)
        once = features.end()
    with features:
        calls(unet, 3)
        thrice = features.end()
    with features:
        calls(unet, 1)
        again = features.end()
    assert all(np.array_equal(again[0][k], v) for k, v in once[0].items())
    assert not any(np.allclose(thrice[0][k], v, atol=1e-2) for k, v in once[0].items())


def test_only_the_rows_that_are_asked_for_count_and_only_once(unet):
    features = FeatureMean(unet)
    with features:
        calls(unet, 2, batch=3)
        every = features.end()
    for rows, chosen in ((slice(1, 3), every[1:]), (slice(None), every)):
        features.rows = rows
        for expected in (chosen, every):  # the next context is of all rows again
            with features:
                calls(unet, 2, batch=3)
                found = features.end()
            assert len(found) == len(expected)
            for a, b in zip(found, expected, strict=True):
                assert all(np.array_equal(a[k], b[k]) for k in b)


def test_nothing_stays_on_the_network(unet):
    def count() -> int:
        return sum(len(m._forward_hooks) for m in unet.modules())

    before = count()
    with pytest.raises(ZeroDivisionError), FeatureMean(unet):
        assert count() == before + 5
        raise ZeroDivisionError
    assert count() == before


def test_one_block_at_a_resolution_is_enough():
    with FeatureMean(make(("CrossAttnDownBlock2D", "UpBlock2D"), layers=1), "down") as features:
        calls(features.unet, 1)
        assert sorted(features.end()[0]) == ["feature_4_0", "feature_8_0"]


def test_silence_is_an_error(unet):
    with FeatureMean(unet) as features, pytest.raises(RuntimeError, match="no features recorded from up_blocks.0"):
        features.end()


def test_a_path_without_transformer_blocks_is_refused():
    bare = make(("CrossAttnDownBlock2D", "UpBlock2D"), layers=1)
    with pytest.raises(UserError, match="expected transformer blocks on the up path, found none"):
        FeatureMean(bare, "up")
