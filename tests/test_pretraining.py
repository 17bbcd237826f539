"""The miniature's training: vocabulary, loop, losses, corpus, on problems small enough to check."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import socket
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import launched
import numpy as np
import pytest
import running
import torch
from conftest import CONTEXT, world_captions
from torch import nn
from transformers import CLIPTokenizer

from maskmill import params, world
from maskmill.diffusion.backbone import Backbone
from maskmill.errors import UserError
from maskmill.pretraining import clip, corpus, loop, run, tokenizer, unet, vae
from maskmill.zeroshot import ZeroShot

pytestmark = pytest.mark.usefixtures("one_thread")


# --- tokenizer --------------------------------------------------------------------------------------------------------


def pieces(words, text: str) -> list[str]:
    return words.convert_ids_to_tokens(words(text).input_ids)[1:-1]


def test_every_word_of_the_world_is_one_token(words):
    everyday = ("a", "an", "photo", "picture", "good", "of", "on", "in", "front", "and")
    colours = {palette[0] for palettes in world.PALETTES.values() for palette in palettes}
    for word in (*world.CLASSES, *world.STUFF, *everyday, *sorted(colours)):
        assert pieces(words, word) == [f"{word}</w>"], word
    text = "a photo of a red bird and a brown dog on grass in front of brick"
    assert len(words(text).input_ids) == 2 + len(text.split())


@pytest.mark.parametrize("text", ["zebra", "x-ray 12", "häuser", "雪", "don't"])
def test_unknown_words_are_spelt_and_come_back(words, text):
    ids = words(text).input_ids
    assert len(ids) > 2 + len(text.split()) and words.unk_token_id not in ids[1:-1]
    assert words.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_start_and_end_token_and_the_end_token_has_the_largest_id(words):
    ids = words("a bird").input_ids
    assert ids[0] == words.bos_token_id and ids[-1] == words.eos_token_id
    assert words.eos_token_id == max(words.get_vocab().values()) == len(words) - 1
    assert (words.bos_token, words.eos_token) == (tokenizer.BOS, tokenizer.EOS)
    assert sorted(words.get_vocab().values()) == list(range(len(words)))  # no gap: it is the embedding's height


def test_padding_is_the_end_token_up_to_the_context_and_long_text_is_cut(words):
    assert words.pad_token_id == words.eos_token_id and words.model_max_length == CONTEXT
    batch = words(["a bird", "a " * 40], padding="max_length", truncation=True)
    short, long = batch.input_ids
    assert len(short) == len(long) == CONTEXT
    assert short[4:] == [words.eos_token_id] * (CONTEXT - 4) and long[-1] == words.eos_token_id
    assert batch.attention_mask[0] == [1] * 4 + [0] * (CONTEXT - 4)


def test_capitals_do_not_matter_and_the_folder_gives_the_same_tokenizer(words, tiny_model):
    assert words("A Photo of a BIRD").input_ids == words("a photo of a bird").input_ids
    saved = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer")
    assert saved.get_vocab() == words.get_vocab()
    assert saved("a red fish on sand").input_ids == words("a red fish on sand").input_ids


def test_the_same_captions_give_the_same_vocabulary(words, tmp_path):
    assert tokenizer.build(world_captions(), CONTEXT, tmp_path / "again").get_vocab() == words.get_vocab()


# --- corpus -----------------------------------------------------------------------------------------------------------


def test_the_corpus_is_pictures_and_captions_and_never_masks(tmp_path):
    made = corpus.build(3, 32, 0.5, tmp_path / "corpus")
    assert [f.name for f in fields(corpus.Corpus)] == ["images", "captions"]
    assert sorted(p.name for p in (tmp_path / "corpus").iterdir()) == ["captions.json", "images.npy"]
    assert made.images.shape == (3, 32, 32, 3) and made.images.dtype == np.uint8
    for i in range(3):
        scene = world.render(corpus.TRAIN_SEEDS + i, 32, 0.5)
        assert np.array_equal(made.images[i], scene.image)
        assert made.captions[i] == [world.caption(scene, 4 * i + k) for k in range(4)]
        image, captions = corpus._scene(i, 32, 0.5)  # all that leaves the process that drew the scene
        assert np.array_equal(image, scene.image) and captions == made.captions[i]
    shop = {f.name for f in fields(run.Workshop)}
    assert shop == {"p", "world", "seed", "scratch", "device", "key", "data", "words", "tokens"}


def test_the_corpus_is_drawn_once_and_again_when_it_was_not_finished(tmp_path, monkeypatch):
    cache = tmp_path / "corpus"
    first = corpus.build(2, 32, 0.5, cache)
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "ProcessPoolExecutor", lambda *a: pytest.fail("drawn again"))
        again = corpus.build(2, 32, 0.5, cache)
    assert np.array_equal(first.images, again.images) and first.captions == again.captions
    (cache / "captions.json").unlink()  # killed before the last file
    np.save(cache / "images.npy", np.zeros_like(first.images))
    assert np.array_equal(corpus.build(2, 32, 0.5, cache).images, first.images)


# --- loop -------------------------------------------------------------------------------------------------------------


def test_the_rate_warms_up_stays_and_falls_to_zero():
    schedule = loop.Schedule(steps=1000, batch=1, lr=0.4, warmup=100, decay_share=0.25)
    assert [schedule.rate(s) for s in (0, 49, 99, 100, 500, 749, 750)] == pytest.approx([0.004, 0.2] + [0.4] * 5)
    assert schedule.rate(875) == pytest.approx(0.2) and schedule.rate(999) == pytest.approx(0.4 / 250)
    assert schedule.rate(1000) == 0.0
    longer = replace(schedule, steps=2000)
    assert [longer.rate(s) for s in range(750)] == [schedule.rate(s) for s in range(750)]


def test_batches_depend_on_seed_and_step_alone():
    def draw(seed: int, step: int) -> tuple:
        rng, generator = loop.batch_rng(seed, step)
        return (*rng.integers(0, 2**40, 3), *torch.randn(3, generator=generator).tolist())

    first = draw(0, 7)
    torch.manual_seed(5)
    np.random.seed(5)
    assert draw(0, 7) == first
    assert len({draw(seed, step) for seed in (0, 1) for step in range(50)}) == 100


def test_one_process_alone_takes_the_whole_batch(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert loop.join_launcher() and list(range(5))[loop.share()] == [0, 1, 2, 3, 4]


def test_the_loss_falls_and_the_law_is_found(tmp_path):
    law = torch.tensor([[1.0, -2.0, 0.5]])

    def loss(model: nn.Module, step: int) -> torch.Tensor:
        x = torch.randn(16, 3, generator=loop.batch_rng(0, step)[1])
        return (model(x) - x @ law.T).pow(2).mean()

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    schedule = loop.Schedule(400, 16, lr=0.05, warmup=10, decay_share=0.5, ema=0.9)
    curve = loop.train("toy", model, loss, schedule, tmp_path / "c.pt", torch.device("cpu"), False)
    assert [step for step, _ in curve] == list(range(50, 401, 50))
    losses = [value for _, value in curve]
    assert losses[-1] < 0.01 * losses[0] and losses[0] > losses[1] > losses[2]
    assert torch.allclose(model.weight.detach(), law, atol=0.02) and not model.training


def test_the_result_is_the_moving_average(tmp_path):
    """With keep = min(ema, (1 + s) / (10 + s)) it starts near the weights and grows slow; by hand over three steps."""
    seen = []

    def loss(model: nn.Module, step: int) -> torch.Tensor:
        seen.append(model.weight.detach().clone())
        return (model(torch.ones(1, 1)) - 3.0).pow(2).mean()

    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    schedule = loop.Schedule(3, 1, lr=0.1, warmup=1, decay_share=0.0, ema=0.15)
    loop.train("toy", model, loss, schedule, tmp_path / "c.pt", torch.device("cpu"), False)
    final = torch.load(tmp_path / "c.pt", weights_only=True)["model"]["weight"]
    average = seen[0]
    for weights, keep in zip([seen[1], seen[2], final], [0.1, 0.15, 0.15], strict=True):  # 1/10, then ema < 2/11, 3/12
        average = keep * average + (1 - keep) * weights
    assert torch.allclose(model.weight, average, atol=1e-6) and not torch.allclose(model.weight, final, atol=1e-3)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("at", [1, 37, 50, 59])
def test_a_resumed_run_is_bit_identical_to_an_undisturbed_one(tmp_path, monkeypatch, half, at):
    whole, curve = launched.regression(tmp_path / "whole.pt", half=half, norm=True)

    def until(model: nn.Module, step: int) -> torch.Tensor:
        if step == at:
            raise Interrupted
        return launched.regression_loss(model, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)  # at every step
        with pytest.raises(Interrupted):
            launched.regression(tmp_path / "parts.pt", half=half, norm=True, loss_of=until)
    assert torch.load(tmp_path / "parts.pt", weights_only=True)["step"] == at
    steps = []

    def counted(model: nn.Module, step: int) -> torch.Tensor:
        steps.append(step)
        return launched.regression_loss(model, step)

    torch.manual_seed(99)
    resumed, resumed_curve = launched.regression(tmp_path / "parts.pt", half=half, norm=True, loss_of=counted)
    assert steps == list(range(at, launched.STEPS))
    assert resumed_curve == curve and len(curve) == 1
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())
    assert not list(tmp_path.glob("*.part"))


def test_a_finished_run_is_only_read(tmp_path):
    def never(model: nn.Module, step: int) -> torch.Tensor:
        raise AssertionError(f"step {step} ran again")

    model, curve = launched.regression(tmp_path / "c.pt")
    again, same_curve = launched.regression(tmp_path / "c.pt", loss_of=never)
    assert same_curve == curve
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())


@pytest.mark.parametrize(("first", "then"), [(60, 40), (40, 60)])
def test_a_checkpoint_that_another_schedule_would_not_pass_is_not_used(tmp_path, first, then):
    launched.regression(tmp_path / "c.pt", steps=first)  # ends after its decay
    fresh, curve = launched.regression(tmp_path / "fresh.pt", steps=then)
    after, same_curve = launched.regression(tmp_path / "c.pt", steps=then)
    assert same_curve == curve
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in after.state_dict().items())


def test_a_run_that_stopped_before_its_decay_can_be_made_longer(tmp_path, monkeypatch):
    def until(model: nn.Module, step: int) -> torch.Tensor:
        if step == 30:  # of 40, whose last 8 steps decay
            raise Interrupted
        return launched.regression_loss(model, step)

    whole, _ = launched.regression(tmp_path / "whole.pt")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
        with pytest.raises(Interrupted):
            launched.regression(tmp_path / "c.pt", steps=40, loss_of=until)
    longer, _ = launched.regression(tmp_path / "c.pt")
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in longer.state_dict().items())


def test_a_loss_that_is_not_finite_names_part_step_and_rate_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)

    def loss(model: nn.Module, step: int) -> torch.Tensor:
        value = launched.regression_loss(model, step)
        return value * (math.nan if step == 12 else 1.0)

    with pytest.raises(UserError, match=r"^toy: loss is nan at step 12 with learning rate 0.02; lower"):
        launched.regression(tmp_path / "c.pt", loss_of=loss)
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert state["step"] == 12 and all(torch.isfinite(v).all() for v in state["model"].values())


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict]:
    """What both of two processes were left with."""
    folder = tmp_path_factory.mktemp("launched")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(running.ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")  # the one that runs stages, which has imported torch already
    context.set_forkserver_preload(running.IMPORTED)
    processes = [context.Process(target=launched.one_of_two, args=(rank, folder, port)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_two_processes_end_with_the_weights_of_one(two_processes, tmp_path):
    model, curve = launched.regression(tmp_path / "one.pt")
    first, second = (state["model"] for state in two_processes)
    torch.manual_seed(0)
    start = nn.Linear(3, 4).weight.detach()
    assert float((model[0].weight.detach() - start).abs().max()) > 0.1  # they have gone somewhere
    for key, value in model.state_dict().items():
        assert torch.equal(first[key], second[key])
        assert torch.allclose(first[key], value, rtol=0, atol=1e-5), key
    assert two_processes[0]["curve"][0][1] == pytest.approx(curve[0][1], rel=1e-4)


@pytest.mark.parametrize("part", ["unet", "vae", "clip"])
def test_the_losses_of_two_processes_have_the_gradient_of_one(two_processes, part):
    alone = {k: v for k, v in launched.gradients().items() if k.startswith(f"{part}.")}
    scale = max(float(v.abs().max()) for k, v in alone.items() if not k.endswith(".loss"))
    for state in two_processes:
        there = {k: v for k, v in state["gradients"].items() if k.startswith(f"{part}.")}
        assert there.keys() == alone.keys() and len(alone) > 10
        assert float(there[f"{part}.loss"]) == pytest.approx(float(alone[f"{part}.loss"]), rel=1e-5)
        worst = max(float((there[k] - alone[k]).abs().max()) for k in alone)
        assert worst < 1e-5 * scale, (worst, scale)


# --- losses -----------------------------------------------------------------------------------------------------------

ABAR = unet.scheduler().alphas_cumprod


class OffByOne(nn.Module):
    """On latents of zero the noise is known, noisy / sqrt(1 - abar): this answers it plus one, so every error is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.times, self.tokens = [], []

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        self.times += t.tolist()
        self.tokens += tokens[:, 0].tolist()
        return noisy / (1 - ABAR[t]).sqrt()[:, None, None, None] + 1.0


def run_loss(model: nn.Module, step: int, batch: int = 500, t_range=(380, 850), uncond: float = 0.1) -> float:
    latents, tokens = torch.zeros(20, 1, 2, 2), torch.arange(40).reshape(20, 2, 1)
    return float(unet.loss(model, step, latents, tokens, torch.tensor([99]), ABAR, batch, 3, t_range, uncond))


def test_the_unets_loss_is_weighted_by_the_clipped_noise_to_signal_ratio():
    model = OffByOne()
    value = run_loss(model, 1)
    by_hand = [min(max(((1 - float(ABAR[t])) / float(ABAR[t])) ** 0.5, 0.4), 3.0) for t in model.times]
    assert value == pytest.approx(np.mean(by_hand), rel=1e-4)
    assert min(by_hand) == 0.4 and max(by_hand) == 3.0 and len(set(by_hand)) > 100
    for t_range, weight in (((0, 2), 0.4), ((998, 1000), 3.0)):  # both ends of the clip
        model = OffByOne()
        value = run_loss(model, 1, t_range=t_range)
        mid = np.isin(model.times, range(*t_range)).mean()
        assert value == pytest.approx(mid * weight + (1 - mid) * 1.2, abs=0.3) and mid > 0.7


def test_three_quarters_of_the_times_lie_where_the_word_matters_the_rest_anywhere():
    model = OffByOne()
    for step in range(20):
        run_loss(model, step)
    times = np.array(model.times)
    assert times.min() >= 0 and times.max() <= 999
    inside = ((times >= 380) & (times < 850)).mean()
    assert abs(inside - (0.75 + 0.25 * 0.47)) < 0.02
    low, high = times[times < 380], times[times >= 850]
    assert low.min() < 10 and high.max() > 990 and abs(len(low) / len(high) - 380 / 150) < 0.4


def test_a_share_of_the_captions_is_replaced_by_the_empty_one():
    for uncond in (0.0, 0.25, 1.0):
        model = OffByOne()
        for step in range(8):
            run_loss(model, step, uncond=uncond)
        tokens = np.array(model.tokens)
        assert abs((tokens == 99).mean() - uncond) < 0.03
        if uncond == 0:
            assert set(tokens) == set(range(40))  # every caption of every scene


def test_the_unets_loss_is_the_same_at_each_call_and_differs_from_step_to_step():
    a = run_loss(OffByOne(), 4)
    torch.manual_seed(8)
    assert run_loss(OffByOne(), 4) == a != run_loss(OffByOne(), 5)


def test_the_caption_goes_with_its_own_picture():
    """Latents that hold their own index, and captions that do too: no noise at t = 0."""
    latents = torch.arange(20).float().reshape(20, 1, 1, 1).expand(20, 1, 2, 2)
    tokens = torch.arange(20).reshape(20, 1, 1).expand(20, 2, 1)
    pairs = []

    class Spy(nn.Module):
        def forward(self, noisy, t, text):
            pairs.extend(zip(noisy[:, 0, 0, 0].tolist(), text[:, 0].tolist(), strict=True))
            return torch.zeros_like(noisy)

    unet.loss(Spy(), 0, latents, tokens, torch.tensor([99]), torch.full((1000,), 1.0 - 1e-6), 50, 0, (0, 1000), 0.0)
    assert len(pairs) == 50 and all(abs(z - y) < 0.05 for z, y in pairs)


def test_two_pictures_with_the_same_caption_are_one_target_split_evenly():
    """Features that tell captions apart and nothing else: the loss is the entropy of the even split, mean log(n)."""
    tokens = torch.randint(0, 3, (12, 2, 4), generator=torch.Generator().manual_seed(0)).sort(dim=0).values
    images = np.zeros((12, 64, 64, 3), np.uint8)
    groups = []

    class Oracle(nn.Module):
        def forward(self, x, text):
            code = (text * torch.tensor([27, 9, 3, 1])).sum(1)
            groups.append(code)
            features = torch.nn.functional.one_hot(code, 81).float()
            return features, features, torch.tensor(200.0)

    value = float(clip.loss(Oracle(), 0, images, tokens, 16, 0))
    _, inverse, counts = np.unique(groups[0].numpy(), return_inverse=True, return_counts=True)
    assert counts.max() > 1
    assert value == pytest.approx(np.log(counts[inverse]).mean(), rel=1e-4)


def test_the_most_telling_captions_name_the_most_classes():
    captions = [["a bird", "a bird and a dog", "a photo of a dog", "a dog and a bird on sand"],
                ["a car on road", "a birdhouse", "a boat", "on snow"]]  # fmt: skip
    assert clip.most_telling(captions).tolist() == [[1, 3], [0, 2]]
    assert clip.most_telling(captions, keep=1).tolist() == [[1], [0]]


def test_the_vaes_loss_by_hand():
    """An encoder that answers N(2, 1) everywhere and a decoder that answers zero: KL = 4 / 2 per latent number."""
    posterior = SimpleNamespace(
        mean=torch.full((1,), 2.0), std=torch.full((1,), 1.0), kl=lambda: torch.full((3,), 2.0 * 4 * 8 * 8)
    )
    model = SimpleNamespace(
        device="cpu", config=SimpleNamespace(block_out_channels=[8, 8, 8], latent_channels=4),
        encode=lambda x: SimpleNamespace(latent_dist=posterior),
        decode=lambda z: SimpleNamespace(sample=torch.zeros(z.shape[0], 3, 32, 32)),
    )  # fmt: skip
    images = np.full((5, 64, 64, 3), 255, np.uint8)  # one everywhere: squared error 1
    assert float(vae.loss(model, 0, images, 3, 0, 0.0)) == pytest.approx(1.0)
    assert float(vae.loss(model, 0, images, 3, 0, 0.5)) == pytest.approx(1.0 + 0.5 * 2 * 4 * 64 / (3 * 32 * 32))


def test_psnr_by_hand():
    """Ten grey levels too bright everywhere: 20 log10(255 / 10)."""
    model = SimpleNamespace(
        device="cpu", encode=lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mean=x)),
        decode=lambda z: SimpleNamespace(sample=z + 10 / 127.5),
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 240, (3, 8, 8, 3), dtype=np.uint8)
    assert vae.psnr(model, images) == pytest.approx(20 * math.log10(25.5), abs=1e-3)


def test_encoding_all_pictures_is_encoding_each():
    torch.manual_seed(0)
    model = vae.build([8, 8], 4, 32).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    latents = vae.encode_all(model, images, half=False, batch=2)
    assert latents.shape == (5, 4, 16, 16) and latents.dtype == torch.float16
    with torch.inference_mode():
        for i in range(5):
            expected = model.encode(vae.to_tensor(images[i : i + 1])).latent_dist.mean[0]
            assert torch.allclose(latents[i].float(), expected, atol=2e-3)


# --- the whole --------------------------------------------------------------------------------------------------------


def test_the_architecture_is_what_the_readme_says():
    """No transformer layer in the text encoder, cross-attention at the two finer levels and none in the middle."""
    model = unet.build([16, 16, 16], 8, 2, 1, 4, 16, 6, 40, 38, 39)
    assert model.text_encoder.config.num_hidden_layers == 0
    cross = [name for name, _ in model.unet.named_modules() if name.endswith("attn2")]
    assert {name.rsplit(".attentions", 1)[0] for name in cross} == {
        "down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2"
    }  # fmt: skip
    with torch.no_grad():  # without layers, a token says nothing of its neighbours
        a = model.text_encoder(torch.tensor([[38, 1, 2, 39, 39, 39]])).last_hidden_state
        b = model.text_encoder(torch.tensor([[38, 1, 7, 39, 39, 39]])).last_hidden_state
    assert torch.equal(a[:, [0, 1, 3, 4, 5]], b[:, [0, 1, 3, 4, 5]]) and not torch.equal(a[:, 2], b[:, 2])


def smallest(p: params.Pretrain) -> params.Pretrain:
    """The shipped parameters at a few steps and channels."""
    return replace(
        p,
        scenes=6,
        precision="float32",
        vae=replace(p.vae, channels=(8, 8, 8), steps=2, batch=2),
        clip=replace(p.clip, width=8, embed_dim=16, steps=2, batch=4),
        unet=replace(p.unet, channels=(16, 16, 16), text_dim=8, heads=2, steps=2, batch=2),
    )


def test_all_parts_are_trained_saved_and_loaded_and_a_second_run_only_reads(tmp_path, monkeypatch):
    shipped = params.load(Path(__file__).parents[1] / "params.yaml")
    p = smallest(shipped.pretrain)

    def all_parts():
        shop = run.open_workshop(p, shipped.world, 0, tmp_path / "scratch", torch.device("cpu"))
        autoencoder, latents, _ = run.train_vae(shop)
        judge, config, _ = run.train_clip(shop)
        denoiser, _ = run.train_unet(shop, autoencoder, latents)
        return shop, autoencoder, latents, judge, config, denoiser

    shop, autoencoder, latents, judge, config, denoiser = all_parts()
    assert shop.tokens.shape == (6, 4, p.unet.context) and latents.shape == (6, 4, 16, 16)
    scaled = latents.float() * autoencoder.config.scaling_factor
    assert float(scaled.std()) == pytest.approx(1.0, rel=1e-3)  # what the U-Net's schedule expects

    monkeypatch.setattr(vae, "loss", lambda *a: pytest.fail("the VAE was trained again"))
    monkeypatch.setattr(clip, "loss", lambda *a: pytest.fail("CLIP was trained again"))
    monkeypatch.setattr(unet, "loss", lambda *a: pytest.fail("the U-Net was trained again"))
    _, autoencoder2, latents2, judge2, _, denoiser2 = all_parts()
    assert torch.equal(latents, latents2)
    for a, b in ((autoencoder, autoencoder2), (judge, judge2), (denoiser, denoiser2)):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())

    folder = tmp_path / "mini"
    run.assemble(shop, autoencoder, denoiser).save_pretrained(folder, safe_serialization=True)
    clip.save(judge, config, shop.words, folder / "clip")
    backbone = Backbone(str(folder))
    assert backbone.vae.config.scaling_factor == pytest.approx(autoencoder.config.scaling_factor)
    assert all(torch.equal(v, denoiser.unet.state_dict()[k]) for k, v in backbone.unet.state_dict().items())
    tokens = shop.words(["a bird"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        embeds = denoiser.text_encoder(tokens).last_hidden_state
    assert torch.allclose(backbone.encode_text(["a bird"], 64).embeds, embeds, atol=1e-6)
    scores = ZeroShot(str(folder / "clip"), world.CLASSES).probabilities([shop.data.images[0]])
    assert scores.shape == (1, 8)


def test_the_shipped_folder_holds_no_pickle_and_names_its_tokenizer_relatively(tiny_model):
    names = [p.name for p in tiny_model.rglob("*") if p.is_file()]
    assert not [n for n in names if n.endswith((".bin", ".pt", ".ckpt", ".pkl"))] and len(names) > 8
    config = json.loads((tiny_model / "clip" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "tokenizer"
    for path in tiny_model.rglob("*.json"):
        assert str(tiny_model) not in path.read_text(), path  # a folder that has moved must still load
