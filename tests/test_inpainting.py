"""The objectives of concept distillation and the inpainting, against versions written out cell by cell."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from maskmill import training
from maskmill.diffusion.backbone import Backbone, Condition
from maskmill.diffusion.inpainting import (
    RULE,
    Times,
    background_region,
    between_concepts,
    distillation_loss,
    draw,
    inpaint,
    paint_over,
    region_loss,
    repeated,
    sample_concept,
    save_unet,
    trainable_unet,
    use_unet,
)
from maskmill.diffusion.noise import keyed_noise
from maskmill.errors import UserError

ABAR = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def backbone(tiny_model) -> Backbone:
    return Backbone(str(tiny_model))


@pytest.fixture
def concepts(backbone) -> tuple[Condition, Condition]:
    return backbone.encode_text(["a photo of a bird"], 64), backbone.encode_text(["a photo of a background"], 64)


@pytest.fixture
def latents(backbone) -> torch.Tensor:
    return backbone.encode_images(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8))


def blob(side: int = 16, low: int = 4, high: int = 10) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[low:high, low:high] = True
    return mask


# --- rectangles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side, count", [(16, 150), (64, 12)])
def test_every_region_is_a_rectangle_that_keeps_the_rule_minus_the_object(side, count):
    object_ = blob(side, side // 4, side // 2)
    sizes = set()
    for seed in range(count):
        region = background_region(object_, np.random.default_rng(seed), RULE)
        assert not (region & object_).any()
        if np.array_equal(region, ~object_):
            continue
        fits = [r for r in rectangles_around(region, object_) if allowed(r, object_)]
        assert fits, seed
        sizes.add(fits[0][1] - fits[0][0])
    assert len(sizes) >= 4  # they differ


def rectangles_around(region: np.ndarray, object_: np.ndarray):
    """The tight box of a region, and the larger ones whose further cells are all object."""
    ys, xs = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    h, w = region.shape
    for y0 in range(ys[0], -1, -1):
        for y1 in range(ys[-1] + 1, h + 1):
            for x0 in range(xs[0], -1, -1):
                for x1 in range(xs[-1] + 1, w + 1):
                    box = np.zeros_like(region)
                    box[y0:y1, x0:x1] = True
                    if np.array_equal(box & ~object_, region):
                        yield y0, y1, x0, x1
                    else:
                        break


def allowed(rectangle: tuple[int, int, int, int], object_: np.ndarray) -> bool:
    """The authors' rule for 64x64, sides and areas scaled."""
    y0, y1, x0, x1 = rectangle
    cells = 64 / len(object_)  # cells of 64x64 per cell, along one side
    area = (y1 - y0) * (x1 - x0)
    free = area - object_[y0:y1, x0:x1].sum()
    return ((y1 - y0) * cells > 10 and (x1 - x0) * cells > 10 and 16**2 <= area * cells**2 <= 32**2
            and 3 * free >= 2 * area)  # fmt: skip


def test_without_an_object_the_region_is_the_whole_rectangle_and_both_ends_of_the_rule_occur():
    areas, shorter = [], []
    for seed in range(600):
        region = background_region(np.zeros((16, 16), bool), np.random.default_rng(seed), RULE)
        ys, xs = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        assert region.sum() == len(ys) * len(xs) == (ys[-1] - ys[0] + 1) * (xs[-1] - xs[0] + 1)
        areas.append(int(region.sum()))
        shorter.append(min(len(ys), len(xs)))
    assert min(areas) == 16 and max(areas) == 64 and min(shorter) == 3  # 10 of 64 cells are 2.5 of 16


class Same:
    """A generator that draws one pair of corners for ever, and counts."""

    def __init__(self, low: int, high: int) -> None:
        self.corners, self.count = np.array([high, low]), 0

    def integers(self, *args) -> np.ndarray:
        self.count += 1
        return self.corners.copy()


def test_two_thirds_of_background_are_enough_and_less_is_not():
    """A rectangle of 6x6 cells with 12 of object is just two thirds free; with 13 it is tried a hundred times."""
    object_ = np.zeros((16, 16), bool)
    object_[5:7, 5:11] = True
    rng = Same(5, 11)
    region = background_region(object_, rng, RULE)
    assert rng.count == 2 and region.sum() == 24 and region[7:11, 5:11].all()
    object_[7, 5] = True
    rng = Same(5, 11)
    assert np.array_equal(background_region(object_, rng, RULE), ~object_) and rng.count == 200


def test_an_object_everywhere_leaves_all_background_which_may_be_nothing():
    mask = np.ones((16, 16), bool)
    assert not background_region(mask, np.random.default_rng(0), RULE).any()
    mask[0, 3] = False
    assert np.array_equal(background_region(mask, np.random.default_rng(0), RULE), ~mask)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_the_cells_that_count():
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 3, 3, 4, 5))  # (B, C, h, w) each
    region = rng.random((3, 4, 5)) < 0.4
    region[1] = True
    region[2] = False
    slow = []
    for b in range(3):
        errors = [(prediction[b, c, y, x] - target[b, c, y, x]) ** 2
                  for c in range(3) for y in range(4) for x in range(5) if region[b, y, x]]  # fmt: skip
        slow.append(sum(errors) / len(errors) if errors else 0.0)
    got = region_loss(*(torch.from_numpy(v) for v in (prediction, target, region)))
    assert float(got) == pytest.approx(sum(slow) / 3, rel=1e-12)


def test_outside_the_region_value_and_gradient_are_exactly_zero():
    g = torch.Generator().manual_seed(0)
    prediction = torch.randn(2, 4, 8, 8, generator=g, requires_grad=True)
    target = torch.randn(2, 4, 8, 8, generator=g)
    region = torch.zeros(2, 8, 8, dtype=torch.bool)
    region[0, 2:5, 1:7] = True
    loss = region_loss(prediction, target, region)
    loss.backward()
    outside = ~region[:, None].expand_as(prediction)
    assert (prediction.grad[outside] == 0).all() and (prediction.grad[0, :, 2:5, 1:7] != 0).all()
    spoilt = torch.where(outside, torch.full_like(target, 1e30), prediction.detach())
    spoilt[1, 0, 0, 0] = torch.nan
    assert torch.equal(region_loss(spoilt, target, region), loss.detach())
    assert torch.equal(region_loss(target, target, region), torch.tensor(0.0))


class Told(torch.nn.Module):
    """A U-Net that keeps what it is given and says what it is told."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.dummy = torch.nn.Parameter(torch.zeros(1))
        self.answer, self.given = answer, []

    def forward(self, x, t, encoder_hidden_states, added_cond_kwargs=None):
        self.given.append(SimpleNamespace(x=x, t=t, text=encoder_hidden_states, added=added_cond_kwargs))
        return SimpleNamespace(sample=self.answer(x, t) + 0 * self.dummy)


def fake_backbone(prediction: str = "epsilon") -> SimpleNamespace:
    return SimpleNamespace(abar=ABAR, prediction=prediction)


def seeds_of(number: int, count: int) -> list[int]:
    """The rows' seeds, as the loss takes them from the generator."""
    return torch.randint(2**62, (count,), generator=torch.Generator().manual_seed(number)).tolist()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_batch_is_the_two_objectives_written_out(prediction):
    g = torch.Generator().manual_seed(1)
    z = torch.randn(6, 4, 16, 16, generator=g)
    masks = np.stack([blob(16, 2 + i, 8 + i) for i in range(6)])
    y_f, y_b = (Condition(torch.randn(1, 5, 7, generator=g)) for _ in range(2))
    answer = torch.randn(8, 4, 16, 16, generator=g)
    unet = Told(lambda x, t: answer)
    loss_of = distillation_loss(z, masks, y_f, y_b, fake_backbone(prediction))
    rows = np.array([5, 0, 1, 3, 2, 4, 5, 1])
    loss = loss_of(unet, rows, torch.Generator().manual_seed(2))
    (given,) = unet.given
    slow, kinds = [], []
    for b, (row, seed) in enumerate(zip(rows, seeds_of(2, 8), strict=True)):
        d = draw(masks[row], 4, 1000, seed, RULE)
        a, noise = float(ABAR[d.t]), torch.from_numpy(d.noise)
        assert int(given.t[b]) == d.t and 0 <= d.t < 1000
        assert torch.allclose(given.x[b], a**0.5 * z[row] + (1 - a) ** 0.5 * noise, atol=1e-5)
        assert torch.equal(given.text[b], (y_f if d.is_object else y_b).embeds[0])
        assert d.region.all() if d.is_object else not (d.region & masks[row]).any()
        target = noise if prediction == "epsilon" else a**0.5 * noise - (1 - a) ** 0.5 * z[row]
        slow.append(float(((answer[b] - target) ** 2)[:, torch.from_numpy(d.region)].mean()))
        kinds.append(d.is_object)
    assert float(loss.detach()) == pytest.approx(np.mean(slow), rel=1e-5) and len(set(kinds)) == 2


def test_both_objectives_have_equal_odds_and_times_are_even():
    draws = [draw(blob(), 4, 1000, seed, RULE) for seed in range(2000)]
    assert np.mean([d.is_object for d in draws]) == pytest.approx(0.5, abs=0.035)  # three standard deviations
    assert np.mean([d.t for d in draws]) == pytest.approx(499.5, abs=20) and max(d.t for d in draws) > 990
    assert np.std([d.noise for d in draws[:50]]) == pytest.approx(1, abs=0.01)


def test_what_the_model_says_outside_the_rectangle_is_nothing():
    """Through the whole loss: the gradient at the U-Net's output is zero wherever no cell counts."""
    z, masks = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)), blob()[None]
    concept = Condition(torch.zeros(1, 5, 7))
    said = torch.zeros(1, 4, 16, 16, requires_grad=True)
    loss_of = distillation_loss(z, masks, concept, concept, fake_backbone())
    number = next(n for n in range(99) if not draw(masks[0], 4, 1000, seeds_of(n, 1)[0], RULE).is_object)
    region = draw(masks[0], 4, 1000, seeds_of(number, 1)[0], RULE).region
    assert 0 < region.sum() <= 64
    loss_of(Told(lambda x, t: said), np.array([0]), torch.Generator().manual_seed(number)).backward()
    assert (said.grad[0][:, ~region] == 0).all() and (said.grad[0][:, region] != 0).all()


def test_an_xl_models_further_conditions_follow_their_prompt():
    y_f, y_b = (Condition(torch.full((1, 2, 3), v), {"text_embeds": torch.full((1, 4), v)}) for v in (1.0, 2.0))
    unet = Told(lambda x, t: x)
    loss_of = distillation_loss(torch.zeros(8, 4, 16, 16), np.stack([blob()] * 8), y_f, y_b, fake_backbone())
    loss_of(unet, np.arange(8), torch.Generator().manual_seed(0))
    given = unet.given[0]
    assert torch.equal(given.added["text_embeds"][:, 0], given.text[:, 0, 0])
    assert given.text.unique().tolist() == [1.0, 2.0]


def test_masks_that_do_not_fit_are_refused():
    concept = Condition(torch.zeros(1, 5, 7))
    for masks in (np.zeros((2, 8, 8), bool), np.zeros((3, 16, 16), bool), np.zeros((2, 16, 16))):
        with pytest.raises(UserError, match=r"preliminary masks: expected bool of \(2, 16, 16\)"):
            distillation_loss(torch.zeros(2, 4, 16, 16), masks, concept, concept, fake_backbone())


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def fitted(tiny_model, folder, steps: int, accumulate: int = 1, recipe_steps: int = 4):
    """A fine-tuned U-Net of four random pictures, and the backbone; stops after ``steps`` as a kill would."""
    backbone = Backbone(str(tiny_model))
    z = backbone.encode_images(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8))
    y_f, y_b = backbone.encode_text(["a photo of a bird"], 64), backbone.encode_text(["a photo of a background"], 64)
    unet = trainable_unet(backbone)
    loss_of = distillation_loss(z, np.stack([blob()] * 4), y_f, y_b, backbone)
    seen = []

    def until(model, rows, generator):
        if len(seen) == steps * accumulate:
            raise KeyboardInterrupt
        seen.append(rows)
        return loss_of(model, rows, generator)

    recipe = training.Recipe(recipe_steps, 2, 1e-3, ema=0.5, accumulate=accumulate)
    try:
        training.fit(unet, 4, until, recipe, seed=0, checkpoint=folder / "checkpoint.pt", stamp="s",
                     accelerator=training.accelerator("cpu", "float32"))  # fmt: skip
    except KeyboardInterrupt:
        assert steps < recipe_steps
    return unet, backbone


def state(module_) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module_.state_dict().items()}


def test_only_the_copy_of_the_unet_changes(tiny_model, tmp_path):
    before = Backbone(str(tiny_model))
    unet, backbone = fitted(tiny_model, tmp_path, 4)
    for part in ("unet", "vae", "text_encoder"):
        old, new = state(getattr(before.pipe, part)), state(getattr(backbone.pipe, part))
        assert all(torch.equal(old[key], new[key]) for key in old), part
    assert not any(p.requires_grad for p in backbone.unet.parameters())
    moved = [key for key, value in state(unet).items() if not torch.equal(value, before.unet.state_dict()[key])]
    assert len(moved) > 0.9 * len(before.unet.state_dict())


def test_killed_and_resumed_it_ends_with_the_same_weights(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    whole, _ = fitted(tiny_model, tmp_path / "a", 4)
    fitted(tiny_model, tmp_path / "b", 2)
    resumed, _ = fitted(tiny_model, tmp_path / "b", 4)
    a, b = state(whole), state(resumed)
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_times_are_drawn_from_the_middle_with_their_share_and_else_from_all():
    rng = np.random.default_rng(0)
    t = np.array([Times(0.75, 380, 850).draw(rng, 1000) for _ in range(4000)])
    assert t.min() < 40 and t.max() > 960
    assert np.mean((t >= 380) & (t < 850)) == pytest.approx(0.75 + 0.25 * 0.47, abs=0.02)
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    assert [Times().draw(one, 1000) for _ in range(9)] == [int(other.integers(1000)) for _ in range(9)]


def test_a_batch_in_parts_draws_what_it_would_as_a_whole():
    z, masks = torch.randn(4, 4, 16, 16), np.stack([blob()] * 4)
    concept = Condition(torch.zeros(1, 5, 7))
    loss_of = distillation_loss(z, masks, concept, concept, fake_backbone())
    whole, parts = Told(lambda x, t: x), Told(lambda x, t: x)
    total = loss_of(whole, np.arange(4), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    halves = [loss_of(parts, part, generator) for part in (np.array([0, 1]), np.array([2, 3]))]
    assert torch.equal(torch.cat([g.x for g in parts.given]), whole.given[0].x)
    assert float(sum(halves).detach() / 2) == pytest.approx(float(total.detach()), rel=1e-6)


def test_training_lowers_the_loss(backbone, latents, concepts):
    unet = trainable_unet(backbone)
    loss_of = distillation_loss(latents, np.stack([blob()] * 4), *concepts, backbone)
    rows = np.arange(4)
    optimiser = torch.optim.Adam(unet.parameters(), 1e-3)
    losses = []
    for _ in range(12):
        loss = loss_of(unet, rows, torch.Generator().manual_seed(0))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


# --- keeping the weights ----------------------------------------------------------------------------------------------


def test_a_saved_unet_takes_the_frozen_ones_place(backbone, concepts, latents, tmp_path):
    unet = trainable_unet(backbone)
    with torch.no_grad():
        for p in unet.parameters():
            p.mul_(1.1)
    save_unet(unet, tmp_path / "unet")
    before = backbone.noise(latents, 500, repeated(concepts[0], 4))
    use_unet(backbone, tmp_path / "unet")
    with torch.no_grad():
        expected = unet.eval()(latents.clone(), 500, repeated(concepts[0], 4).embeds.clone()).sample
    after = backbone.noise(latents, 500, repeated(concepts[0], 4))
    assert torch.equal(after, expected) and not torch.equal(after, before)
    assert backbone.pipe.unet is backbone.unet and not backbone.unet.training
    save_unet(unet, tmp_path / "again")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "unet" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_what_is_no_unet_of_this_model_is_refused(backbone, tmp_path):
    with pytest.raises(UserError, match="expected a U-Net's config.json and weights"):
        use_unet(backbone, tmp_path)
    other = UNet2DConditionModel(sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
                                 cross_attention_dim=6, attention_head_dim=2,
                                 down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                 up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))  # fmt: skip
    save_unet(other, tmp_path / "other")
    with pytest.raises(UserError, match="expected a U-Net of the model's cross_attention_dim, 16, got 6"):
        use_unet(backbone, tmp_path / "other")
    weights = tmp_path / "broken" / "diffusion_pytorch_model.safetensors"
    save_unet(backbone.unet, weights.parent)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="broken"):
        use_unet(backbone, weights.parent)


def test_a_unet_with_missing_weights_is_refused(backbone, tmp_path):
    from safetensors.torch import load_file, save_file

    save_unet(backbone.unet, tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.bias"]
    save_file(weights, path)
    with pytest.raises(UserError, match=r"expected weights of \d+ tensors, found \d+|conv_in"):
        use_unet(backbone, tmp_path)


# --- guidance ---------------------------------------------------------------------------------------------------------


def test_guidance_is_equation_10(backbone, concepts, latents):
    y_f, y_b = (repeated(c, 4) for c in concepts)
    e_f, e_b = backbone.noise(latents, 400, y_f), backbone.noise(latents, 400, y_b)
    assert float((e_f - e_b).abs().max()) > 1e-3
    for w in (-2.0, -1.0, 0.5, 3.0, 7.5):
        got = between_concepts(backbone, y_f, y_b, w)(latents, 400)
        assert torch.allclose(got, w * e_f - (w - 1) * e_b, atol=1e-4), w
    swapped = between_concepts(backbone, y_b, y_f, 2.0)(latents, 400)
    assert torch.allclose(between_concepts(backbone, y_f, y_b, -1.0)(latents, 400), swapped, atol=1e-4)


@pytest.mark.parametrize("w, which", [(1.0, 0), (0.0, 1)])
def test_at_w_1_and_0_one_concept_is_alone_to_the_bit_and_at_half_the_cost(backbone, concepts, latents, w, which):
    y_f, y_b = (repeated(c, 4) for c in concepts)
    sizes = []
    handle = backbone.unet.register_forward_pre_hook(lambda m, args: sizes.append(len(args[0])))
    got = between_concepts(backbone, y_f, y_b, w)(latents, 400)
    handle.remove()
    assert sizes == [4] and torch.equal(got, backbone.noise(latents, 400, (y_f, y_b)[which]))


def test_pictures_of_one_seed_start_alike_at_any_guidance(backbone, concepts):
    starts = []
    handle = backbone.unet.register_forward_pre_hook(lambda m, args: starts.append(args[0][:2].clone()))
    z = {w: sample_concept(backbone, *concepts, [3, 4], 64, w=w, steps=2) for w in (-1.0, 1.0, 3.0)}
    handle.remove()
    assert all(torch.equal(s, backbone.start_noise([3, 4], 64)) for s in starts[::2])
    assert z[1.0].shape == (2, 4, 16, 16) and not torch.allclose(z[1.0], z[3.0], atol=1e-3)
    alone = sample_concept(backbone, *concepts, [4], 64, w=3.0, steps=2)
    assert torch.allclose(alone[0], z[3.0][1], atol=1e-4)


# --- inpainting -------------------------------------------------------------------------------------------------------


def toy(x: torch.Tensor, t: int) -> torch.Tensor:
    """A noise predictor in which every cell sees its neighbours, as a U-Net's do."""
    return 0.3 * x + 0.2 * x.roll(1, -1) - 0.1 * x.roll(1, -2) + 0.01 * t / 1000


def slow_inpaint(z0, holes, start, noise_at, times, abar) -> torch.Tensor:
    """The algorithm as the paper has it: blend, predict, step; on the whole latent, sample by sample."""
    out = []
    for b in range(len(z0)):
        m = holes[b].double()[None]
        x = start[b]
        for i in reversed(range(len(times))):
            t = times[i]
            a, a_to = float(abar[t]), float(abar[times[i - 1]]) if i else 1.0
            known = a**0.5 * z0[b] + (1 - a) ** 0.5 * noise_at(t)[b]
            x = known * (1 - m) + x * m
            e = toy(x[None], t)[0]
            f = (x - (1 - a) ** 0.5 * e) / a**0.5
            x = a_to**0.5 * f + (1 - a_to) ** 0.5 * e
        out.append(z0[b] * (1 - m) + x * m)
    return torch.stack(out)


def test_inpainting_is_the_slow_blend_at_every_step():
    g = torch.Generator().manual_seed(0)
    z0, start = (torch.randn(2, 3, 6, 7, generator=g, dtype=torch.float64) for _ in range(2))
    holes = torch.rand(2, 6, 7, generator=g) < 0.4
    times = [1, 201, 401, 601, 801]

    def noise_at(t: int) -> torch.Tensor:
        return keyed_noise([8, 9], (3, 6, 7), t).double()

    got = inpaint(toy, z0, holes, start, noise_at, times, ABAR)
    assert torch.allclose(got, slow_inpaint(z0, holes, start, noise_at, times, ABAR), atol=1e-10)
    outside = ~holes[:, None].expand_as(z0)
    assert torch.equal(got[outside], z0[outside]) and not torch.allclose(got, z0)


def test_every_prediction_sees_the_known_cells_at_its_own_level():
    z0, holes = torch.full((1, 2, 4, 4), 5.0), torch.zeros(1, 4, 4, dtype=torch.bool)
    holes[0, :2] = True
    noise = {t: torch.full((1, 2, 4, 4), float(t)) for t in (10, 500, 900)}
    seen = {}

    def eps(x, t):
        seen[t] = x.clone()
        return torch.zeros_like(x)

    inpaint(eps, z0, holes, torch.full_like(z0, -7.0), noise.__getitem__, [10, 500, 900], ABAR)
    assert list(seen) == [900, 500, 10] and (seen[900][0, :, :2] == -7).all()
    for t, x in seen.items():
        a = float(ABAR[t])
        assert x[0, :, 2:].numpy() == pytest.approx(a**0.5 * 5 + (1 - a) ** 0.5 * t, rel=1e-5)


def test_the_object_never_reaches_the_inpainted_background(backbone, concepts, latents):
    masks = np.stack([blob()] * 4)
    other = latents.clone()
    other[:, :, 4:10, 4:10] += 3.0  # another object in the same place
    a, b = (paint_over(backbone, z, masks, *concepts, [1, 2, 3, 4], steps=3) for z in (latents, other))
    assert torch.equal(a, b)
    outside = torch.from_numpy(~masks)[:, None].expand_as(a)
    assert torch.equal(a[outside], latents[outside]) and not torch.allclose(a, latents, atol=0.1)


def test_painting_over_does_not_depend_on_the_batch_and_leaves_an_empty_mask_alone(backbone, concepts, latents):
    masks = np.stack([blob(), np.zeros((16, 16), bool), blob(16, 1, 5), blob()])
    every = paint_over(backbone, latents, masks, *concepts, [1, 2, 3, 4], steps=3)
    assert torch.equal(every[1], latents[1])
    alone = paint_over(backbone, latents[2:3], masks[2:3], *concepts, [3], steps=3)
    assert torch.allclose(alone[0], every[2], atol=1e-4)
    turned = paint_over(backbone, latents.flip(0), masks[::-1].copy(), *concepts, [4, 3, 2, 1], steps=3)
    assert torch.allclose(turned.flip(0), every, atol=1e-4)
    again = paint_over(backbone, latents, masks, *concepts, [5, 2, 3, 4], steps=3)
    assert not torch.allclose(again[0], every[0], atol=0.05) and torch.allclose(again[2], every[2], atol=1e-4)


def test_guided_painting_follows_the_formula_and_bad_masks_are_refused(backbone, concepts, latents):
    masks = np.stack([blob()] * 4)
    plain = paint_over(backbone, latents, masks, *concepts, [1, 2, 3, 4], steps=2)
    assert torch.equal(plain, paint_over(backbone, latents, masks, *concepts, [1, 2, 3, 4], w=0.0, steps=2))
    away = paint_over(backbone, latents, masks, *concepts, [1, 2, 3, 4], w=-1.0, steps=2)
    assert not torch.allclose(plain, away, atol=1e-2)
    with pytest.raises(UserError, match=r"expected bool of \(4, 16, 16\), as the latents are, got bool of \(4, 8, 8\)"):
        paint_over(backbone, latents, np.zeros((4, 8, 8), bool), *concepts, [1, 2, 3, 4])
