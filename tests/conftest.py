"""A random miniature and a few held-out scenes, made once per test run; what they need is imported when they are asked
for, so that modules without torch start at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the nets below are too small to share among cores

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = 24
SIZE = 64


def world_captions(count: int = 3000) -> list[str]:
    """Captions as the corpus has them, without rendering: only the names of a scene's things are read."""
    import numpy as np

    from maskmill import world

    rng, captions = np.random.default_rng(0), []
    for seed in range(count):
        things = []
        for k in rng.choice(len(world.CLASSES), 1 + rng.integers(2), replace=False):
            palettes = world.PALETTES[world.CLASSES[k]]
            things.append(world.Thing(world.CLASSES[k], palettes[rng.integers(len(palettes))][0], (), np.zeros(0)))
        upper, lower = rng.choice(world.UPPER_STUFF), rng.choice(world.LOWER_STUFF)
        captions.append(world.caption(world.Scene(seed, np.zeros(0), upper, lower, np.zeros(0), tuple(things)), seed))
    return captions


@pytest.fixture(scope="module")
def one_thread():
    """For modules that compare bits: how sums are rounded depends on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Run a stage's ``main`` in this process with the committed parameters; -> what it printed."""

    def call(main: Callable[[], None], *argv: object) -> str:
        monkeypatch.setattr(sys, "argv", ["stage.py", "--params", str(ROOT / "params.yaml"), *map(str, argv)])
        main()
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """The miniature's kind of tokenizer, learnt from ``world_captions``."""
    from maskmill.pretraining import tokenizer

    return tokenizer.build(world_captions(), CONTEXT, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, words) -> Path:
    """A folder as stage pretrain leaves it (``data/mini``), of the miniature's architecture: narrow, random weights.

    Attention is sharpened and the decoder's contrast raised: untrained, every map and picture would be flat, and a test
    that compares two of them could not fail.
    """
    import torch

    from maskmill.pretraining import clip, run, unet, vae

    folder = tmp_path_factory.mktemp("tiny model") / "mini"  # a path with a space
    torch.manual_seed(0)
    autoencoder = vae.build([8, 8, 8], 4, SIZE)
    denoiser = unet.build([16, 16, 16], 16, 2, 1, 4, SIZE // 4, CONTEXT, len(words), words.bos_token_id,
                          words.eos_token_id)  # fmt: skip
    with torch.no_grad():
        for name, parameter in denoiser.unet.named_parameters():
            if name.endswith(("to_q.weight", "to_k.weight")):
                parameter.mul_(3.0)
        autoencoder.decoder.conv_out.weight.mul_(1.5)
        noise = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
        autoencoder.register_to_config(scaling_factor=1 / float(autoencoder.encode(noise).latent_dist.mean.std()))
    run.assemble(SimpleNamespace(words=words), autoencoder, denoiser).save_pretrained(folder, safe_serialization=True)
    config = clip.config(8, [1, 1, 1, 1], 16, SIZE, len(words), CONTEXT)
    clip.save(clip.build(config), config, words, folder / "clip")
    return folder


@pytest.fixture(scope="session")
def world_set(tmp_path_factory) -> Path:
    """A folder as stage world writes it: two draws of four held-out scenes."""
    from maskmill.datasets.table import table_csv
    from stages.world import draw

    folder = tmp_path_factory.mktemp("world")
    items = [draw(seed, index, SIZE, 1.0, folder) for seed in (1, 2) for index in range(4)]
    folder.joinpath("index.csv").write_text(table_csv(items))
    return folder
