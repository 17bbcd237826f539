"""The decoder against a slow reference, trained models on disk, and the pairs that they learn from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch
import torch
from torch.nn import functional

from maskmill.datasets.table import Item, save_png
from maskmill.errors import UserError
from maskmill.segmenters import models, pairs
from maskmill.segmenters.decoder import Decoder, side_of
from maskmill.store import ShardWriter, Store

CHANNELS = {"feature_4_0": 3, "feature_8_1": 2, "feature_8_0": 5}
CONFIG = {"model": "fcn", "channels": CHANNELS, "width": 6, "kernel": 3, "upsample": 2, "size": 16}
NET = {"model": "unet", "encoder": "resnet18", "encoder_weights": "", "size": 32}


def features(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {name: torch.from_numpy(rng.normal(3, 2, (batch, c, side_of(name), side_of(name))).astype(np.float32))
            for name, c in CHANNELS.items()}  # fmt: skip


def decoder(**changes) -> Decoder:
    torch.manual_seed(0)
    settings = {"width": 6, "kernel": 3, "upsample": 2, **changes}
    model = Decoder(CHANNELS, **settings)
    rng = np.random.default_rng(1)
    mean, std = ({n: torch.from_numpy(rng.uniform(1, 4, c)) for n, c in CHANNELS.items()} for _ in range(2))
    model.standardise_by(mean, std)
    return model.requires_grad_(False)


# --- the decoder ------------------------------------------------------------------------------------------------------


def test_sides_are_told_by_names():
    assert side_of("feature_16_0") == 16
    for name in ("feature", "feature_x_0"):
        with pytest.raises(UserError, match=f"feature '{name}': expected a name like feature_16_0"):
            side_of(name)


@pytest.mark.parametrize(("kernel", "upsample"), [(3, 2), (1, 1), (3, 4)])
def test_the_decoder_is_three_convolutions_on_the_sum_of_standardised_levels(kernel, upsample):
    model, inputs = decoder(kernel=kernel, upsample=upsample), features(2)
    state, fused = model.state_dict(), 0
    for side in (4, 8):
        level = state[f"levels.{side}.bias"][None, :, None, None].repeat(2, 1, side, side)
        at = 0
        for name in sorted(n for n in CHANNELS if side_of(n) == side):  # one feature at a time instead of joined
            plain = torch.empty_like(inputs[name])
            for c in range(CHANNELS[name]):
                plain[:, c] = (inputs[name][:, c] - state[f"mean_{name}"][c]) / state[f"std_{name}"][c]
            weight = state[f"levels.{side}.weight"][:, at : at + CHANNELS[name]]
            level = level + functional.conv2d(plain, weight, padding=kernel // 2)
            at += CHANNELS[name]
        if side == 4:
            level = functional.interpolate(level, scale_factor=2, mode="bilinear", align_corners=False)
        fused = fused + level
    middle = functional.conv2d(fused.clamp(min=0), state["middle.weight"], state["middle.bias"], padding=1)
    cells = functional.conv2d(middle.clamp(min=0), state["last.weight"], state["last.bias"], padding=1)
    expected = torch.empty(2, 1, 8 * upsample, 8 * upsample)
    for y in range(8 * upsample):
        for x in range(8 * upsample):
            k = (y % upsample) * upsample + x % upsample
            expected[:, 0, y, x] = cells[:, k, y // upsample, x // upsample]
    torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-5)


def test_logits_of_a_cell_are_laid_out_row_by_row():
    model = decoder(upsample=3)
    for p in model.parameters():
        p.zero_()
    model.last.bias.copy_(torch.arange(9.0))
    out = model(features(1))
    assert out.shape == (1, 1, 24, 24)
    assert out[0, 0, :3, 3:6].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_a_channel_that_never_varies_is_not_divided_by_nothing():
    model = decoder()
    flat = {n: torch.zeros(c) for n, c in CHANNELS.items()}
    model.standardise_by({n: v + 2 for n, v in flat.items()}, flat)
    assert all(torch.equal(model.get_buffer(f"std_{n}"), torch.ones(c)) for n, c in CHANNELS.items())
    assert torch.isfinite(model(features(1))).all()


def test_every_level_and_feature_counts_and_no_sample_sees_another():
    model, inputs = decoder(), features(3)
    together = model(inputs)
    for i in range(3):
        torch.testing.assert_close(model({n: v[i : i + 1] for n, v in inputs.items()})[0], together[i])
    for name in CHANNELS:
        changed = model({**inputs, name: inputs[name].roll(1, 0)})
        assert (changed - together).abs().max() > 1e-2, name


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda f: f.pop("feature_8_0"), "expected feature_8_0 of 5 channels, as in the decoder's training, got feature_4"
      "_0 of 3, feature_8_1 of 2"),
     (lambda f: f.update(feature_4_0=f["feature_8_0"]), "expected feature_4_0 of 3 channels.*got feature_4_0 of 5")],
)  # fmt: skip
def test_features_of_another_kind_are_refused(change, said):
    inputs = features(1)
    change(inputs)
    with pytest.raises(UserError, match=said):
        decoder()(inputs)


# --- trained models on disk -------------------------------------------------------------------------------------------


def test_a_model_comes_back_from_its_folder(tmp_path):
    model = decoder()
    for name in ("a", "b"):
        models.save_model(model, CONFIG, tmp_path / name)
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"config.json", "model.safetensors"}
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    back, config = models.load_model(str(tmp_path / "a"))
    assert config == CONFIG and not back.training and not any(p.requires_grad for p in back.parameters())
    assert torch.equal(back(features(2)), model(features(2)))  # statistics included


def test_the_order_in_which_features_are_named_does_not_matter(tmp_path):
    turned = dict(reversed(CHANNELS.items()))
    torch.manual_seed(0)
    model = models.build({**CONFIG, "channels": turned})
    models.save_model(model, {**CONFIG, "channels": turned}, tmp_path)
    back, _ = models.load_model(tmp_path)
    assert torch.equal(back(features(1)), model(features(1)))
    assert torch.equal(model(dict(reversed(features(1).items()))), model(features(1)))


def break_it(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    said = json.loads(config.read_text())
    if how.startswith("without "):
        (folder / how.removeprefix("without ")).unlink()
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif how == "other width":
        config.write_text(json.dumps({**said, "width": 7}))
    elif how == "no channels":
        said.pop("channels")
        config.write_text(json.dumps(said))
    else:
        config.write_text(how)


@pytest.mark.parametrize(
    "how", ["without model.safetensors", "without config.json", "cut", "other width", "no channels", "{", "[1]", "null"]
)
def test_a_broken_model_is_one_line_that_names_the_folder(tmp_path, how):
    models.save_model(decoder(), CONFIG, tmp_path)
    break_it(tmp_path, how)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}: expected a trained model") as error:
        models.load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["unet", "deeplabv3"])
def test_end_to_end_nets_have_the_decoders_interface(tmp_path, name):
    torch.manual_seed(0)
    model = models.build({**NET, "model": name}).eval().requires_grad_(False)
    x = torch.rand(2, 3, 32, 32)
    out = model({models.IMAGE: x})
    assert out.shape == (2, 1, 32, 32) and out.std() > 0
    assert torch.equal(out, model.net((x - 0.45) / 0.25))
    models.save_model(model, {**NET, "model": name}, tmp_path)
    back, config = models.load_model(tmp_path)
    assert config["model"] == name and torch.equal(back({models.IMAGE: x}), out)
    if name == "deeplabv3":
        with pytest.raises(UserError, match="train_decoder.size: expected a multiple of 8 for this net, got 20"):
            model({models.IMAGE: x[..., :20, :20]})


def test_a_trained_net_is_read_without_asking_for_downloaded_weights(tmp_path, monkeypatch):
    asked = []

    class Net(torch.nn.Linear):
        def __init__(self, encoder_name, encoder_weights, in_channels, classes, decoder_channels):
            asked.append((encoder_name, encoder_weights, in_channels, classes))
            super().__init__(1, 1)

    monkeypatch.setattr(segmentation_models_pytorch, "Unet", Net)
    config = {**NET, "encoder_weights": "imagenet"}
    models.save_model(models.build(config), config, tmp_path)
    assert models.load_model(tmp_path)[1] == config
    assert asked == [("resnet18", "imagenet", 3, 1), ("resnet18", None, 3, 1)]


def test_the_width_of_a_unets_decoder_is_its_finest_blocks_and_doubles_with_depth():
    assert models.decoder_channels(8) == [128, 64, 32, 16, 8]
    wide, narrow = models.build(NET), models.build({**NET, "decoder_width": 4})
    for net, channels in ((wide, [256, 128, 64, 32, 16]), (narrow, [64, 32, 16, 8, 4])):
        assert [block.conv2[0].out_channels for block in net.net.decoder.blocks] == channels
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert narrow({models.IMAGE: x}).shape == (2, 1, 32, 32)


@pytest.mark.parametrize("change", [{"encoder": "resnet0"}, {"encoder_weights": "none such"}])
def test_an_encoder_that_cannot_be_built_is_one_line(change):
    with pytest.raises(UserError, match="encoder '.*' of unet: cannot be built: ") as error:
        models.build({**NET, **change})
    assert "\n" not in str(error.value)


def test_a_prediction_is_resized_logits_as_probability():
    def two_cells(inputs):
        assert inputs["a"].shape == (1, 2) and inputs["a"].dtype == torch.float32
        return torch.tensor([[[[-4.0, 4.0]]]])

    got = models.predict(two_cells, {"a": np.ones(2, np.float16)}, (3, 4), "cpu")
    assert got.shape == (3, 4) and got.dtype == np.float32
    logits = np.array([-4, -2, 2, 4])  # cell centres at 0.5 and 2.5 pixels, the ends repeated
    np.testing.assert_allclose(got, np.tile(1 / (1 + np.exp(-logits)), (3, 1)), rtol=1e-6)


# --- pairs ------------------------------------------------------------------------------------------------------------

COUNT = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A set of five pictures 6 high and 4 wide with masks of its own, features, and a masks folder."""
    folder = tmp_path_factory.mktemp("a set")
    rng = np.random.default_rng(0)
    for k in range(COUNT):
        save_png(rng.integers(0, 256, (6, 4, 3), dtype=np.uint8), folder / f"images/{k}.png")
        save_png(rng.random((6, 4)) > 0.5, folder / f"own/{k}.png")
        save_png(np.full((8, 8), k % 2 == 0), folder / f"made/masks/{k}.png")
    with ShardWriter(folder / "features", [str(k) for k in range(COUNT)], "f", {}, 2, folder / "scratch") as writer:
        for shard, ids in writer.missing():
            writer.put(shard, {id: {n: v[0].half().numpy() for n, v in features(1, int(id)).items()} for id in ids})
        writer.assemble()
    return folder


def items(mask: str = "own/{}.png") -> list[Item]:
    return [Item(str(k), "bird", f"images/{k}.png", mask.format(k)) for k in range(COUNT)]


def pairs_of(place: Path, masks: str = "own", with_features: bool = False, size: int = 2) -> pairs.Pairs:
    return pairs.Pairs(items(), place, masks, Store(place / "features") if with_features else None, size)


def test_where_a_mask_lies(place):
    item = items()[1]
    assert pairs.mask_path(place, item, "own") == place / "own/1.png"
    assert pairs.mask_path(place, item, "some/where") == Path("some/where/masks/1.png")
    with pytest.raises(UserError, match=r"index.csv: 1: expected a mask of the set's own, got none"):
        pairs.mask_path(place, items("")[1], "own")


def test_a_pair_by_hand(place):
    from PIL import Image

    from maskmill.datasets.table import read_mask

    inputs, mask = pairs_of(place)[3]
    full = read_mask(place / "own/3.png").astype(float)
    expected = full.reshape(2, 3, 2, 2).mean((1, 3))  # of each quarter, 3 x 2 pixels
    np.testing.assert_allclose(mask, expected, atol=1e-3)
    picture = np.asarray(Image.open(place / "images/3.png").resize((2, 2), Image.BICUBIC)) / 255
    assert list(inputs) == ["image"] and inputs["image"].dtype == np.float16
    np.testing.assert_allclose(inputs["image"], picture.transpose(2, 0, 1), atol=1e-3)


def test_masks_of_a_folder_and_features(place):
    found = pairs_of(place, str(place / "made"), True, size=8)
    inputs, targets = found.batch(np.array([4, 0, 1]), torch.device("cpu"))
    assert len(found) == COUNT and {n: v.shape for n, v in inputs.items()} == {
        n: (3, c, side_of(n), side_of(n)) for n, c in CHANNELS.items()
    }
    assert targets.shape == (3, 1, 8, 8) and targets[:, 0, 0, 0].tolist() == [1, 1, 0]
    assert {v.dtype for v in (*inputs.values(), targets)} == {torch.float32}
    for name, value in features(1, seed=4).items():
        assert torch.equal(inputs[name][0], value[0].half().float())


def test_a_set_too_large_to_keep_is_read_again_each_time(place, monkeypatch):
    kept = pairs_of(place, with_features=True).batch([0, 3], torch.device("cpu"))
    monkeypatch.setattr(pairs, "IN_MEMORY", 100)
    found = pairs_of(place, with_features=True)
    again = found.batch([0, 3], torch.device("cpu"))
    assert torch.equal(kept[1], again[1]) and all(torch.equal(kept[0][n], v) for n, v in again[0].items())
    assert found[0] is not found[0]
    monkeypatch.undo()
    found = pairs_of(place, with_features=True)
    assert found[0] is found[0]


@pytest.mark.parametrize(
    ("rows", "masks", "said"),
    [([], "own", "expected at least one pair to train on, got none"), (items(), "no/where", "no/where/masks/0.png: "),
     (items(""), "own", "0: expected a mask of the set's own")],
)  # fmt: skip
def test_pairs_that_are_not_there_are_told_at_once(place, rows, masks, said):
    with pytest.raises(UserError, match=said):
        pairs.Pairs(rows, place, masks, None, 4)


def test_channel_statistics_are_those_of_all_values(place):
    found = pairs_of(place, with_features=True)
    for limit, used in ((256, COUNT), (2, 2)):
        channels, mean, std = pairs.channel_statistics(found, limit)
        assert channels == CHANNELS
        for name in CHANNELS:
            values = np.stack([found[k][0][name] for k in range(used)]).astype(np.float64)
            np.testing.assert_allclose(mean[name], values.mean((0, 2, 3)), rtol=1e-9)
            np.testing.assert_allclose(std[name], values.std((0, 2, 3)), rtol=1e-6)


def test_the_loss_is_cross_entropy_at_the_targets_size():
    targets = torch.tensor([[[[1.0, 0.0, 1.0, 0.25]]]])

    def model(inputs):
        return inputs["logits"]

    zero = pairs.segment_loss(model, {"logits": torch.zeros(1, 1, 1, 2)}, targets)
    assert float(zero) == pytest.approx(np.log(2))
    logits = np.array([-4, -2, 2, 4.0])  # two logits, resized
    p = 1 / (1 + np.exp(-logits))
    y = targets.numpy().ravel()
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    found = pairs.segment_loss(model, {"logits": torch.tensor([[[[-4.0, 4.0]]]])}, targets)
    assert float(found) == pytest.approx(expected, rel=1e-5)


# --- augmentation and validation --------------------------------------------------------------------------------------


def augmented(seed: int, flip: bool = True, noise: float = 0.0, batch: int = 400):
    rng = np.random.default_rng(0)
    inputs = {"a": torch.from_numpy(rng.normal(5, (1, 10), (batch, 3, 4, 2)).astype(np.float32).transpose(0, 3, 1, 2)),
              "b": torch.from_numpy(rng.random((batch, 1, 6, 6), np.float32))}  # fmt: skip
    targets = torch.from_numpy(rng.random((batch, 1, 5, 4), np.float32))
    kept = {name: value.clone() for name, value in inputs.items()}
    out = pairs.augment(inputs, targets, torch.Generator().manual_seed(seed), flip, noise)
    assert all(torch.equal(kept[name], inputs[name]) for name in inputs)  # the pairs in memory stay as they are
    return inputs, targets, *out


def test_inputs_and_target_of_a_pair_are_mirrored_together_or_not_at_all():
    inputs, targets, turned, turned_targets = augmented(0)
    mirrored = 0
    for i in range(len(targets)):
        if not torch.equal(turned_targets[i], targets[i]):
            mirrored += 1
            assert torch.equal(turned_targets[i], targets[i].flip(-1))
            assert all(torch.equal(turned[name][i], inputs[name][i].flip(-1)) for name in inputs)
        else:
            assert all(torch.equal(turned[name][i], inputs[name][i]) for name in inputs)
    assert 150 < mirrored < 250
    again, other = augmented(0)[3], augmented(1)[3]
    assert torch.equal(again, turned_targets) and not torch.equal(other, turned_targets)


def test_noise_is_in_units_of_each_channels_deviation_and_leaves_targets_alone():
    inputs, targets, noisy, same = augmented(0, flip=False, noise=0.5)
    assert torch.equal(targets, same)
    for name in inputs:
        added = noisy[name] - inputs[name]
        share = added.std((0, 2, 3)) / inputs[name].std((0, 2, 3))
        assert torch.allclose(share, torch.tensor(0.5), rtol=0.05)
        assert added.mean((0, 2, 3)).abs().max() < 0.1 * added.std()
    assert not torch.allclose(noisy["a"][0] - inputs["a"][0], noisy["a"][1] - inputs["a"][1])


def test_without_either_nothing_changes():
    inputs, targets, out, same = augmented(0, flip=False)
    assert same is targets and all(out[name] is inputs[name] for name in inputs)


def test_validation_scores_by_hand(place):
    found = pairs_of(place, str(place / "made"), size=8)  # targets: all, none, all, none, all

    def model(inputs):  # foreground in the upper half, but for the last picture, where there is none
        logits = torch.full((len(inputs["image"]), 1, 8, 8), -3.0)
        last = pairs_of(place, str(place / "made"), size=8)[4][0]["image"]
        for k, picture in enumerate(inputs["image"]):
            if not torch.equal(picture, torch.from_numpy(last).float()):
                logits[k, :, :4] = 3.0
        return logits

    hit, missed = np.log1p(np.exp(-3)), np.log1p(np.exp(3))
    expected = {"val_loss": (4 * (hit + missed) / 2 + missed) / 5, "val_iou": (0.5 + 0 + 0.5 + 0 + 0) / 5}
    for batch in (1, 2, 5):
        assert pairs.validation_scores(model, found, batch, torch.device("cpu")) == pytest.approx(expected, rel=1e-5)

    def nothing(inputs):
        return torch.full((len(inputs["image"]), 1, 8, 8), -3.0)

    assert pairs.validation_scores(nothing, found, 5, torch.device("cpu"))["val_iou"] == pytest.approx(2 / 5)
