"""The whole of pre-training: world -> tokenizer -> VAE -> CLIP -> U-Net, each part resumable on its own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from open_clip.model import CLIP
from transformers import CLIPTokenizer

from maskmill import world as scenes
from maskmill.params import Pretrain, World
from maskmill.pretraining import clip, corpus, tokenizer, unet, vae
from maskmill.pretraining.loop import Curve, Schedule, one_at_a_time, train

RATE_KEYS = ("steps", "decay_share")  # a longer run goes on from a shorter one's checkpoint


def _key(*parts: object) -> str:
    """Names a checkpoint by what it is made from."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _stable(section: object) -> dict:
    return {k: v for k, v in asdict(section).items() if k not in RATE_KEYS}


def _schedule(section) -> Schedule:
    return Schedule(section.steps, section.batch, section.lr, decay_share=section.decay_share, ema=section.ema)


@dataclass(frozen=True)
class Workshop:
    """What every part of the training shares. ``tokens`` is (n, captions per scene, context) int16."""

    p: Pretrain
    world: World
    seed: int
    scratch: Path
    device: torch.device
    key: str
    data: corpus.Corpus
    words: CLIPTokenizer
    tokens: torch.Tensor

    @property
    def half(self) -> bool:
        return self.p.precision == "bfloat16"


def open_workshop(p: Pretrain, world: World, seed: int, scratch: Path, device: torch.device) -> Workshop:
    """Render the corpus and learn the vocabulary, or read both from ``scratch``."""
    sources = [Path(file).read_text() for file in (scenes.__file__, corpus.__file__)]  # another world, another corpus
    key = _key(p.scenes, world.size, world.two_objects, sources)
    with one_at_a_time():
        data = corpus.build(p.scenes, world.size, world.two_objects, scratch / f"corpus-{key}")
        texts = (caption for scene in data.captions for caption in scene)
        words = tokenizer.build(texts, p.unet.context, scratch / f"tokenizer-{key}")
    return Workshop(p, world, seed, scratch, device, key, data, words, _tokenize(words, data.captions))


def train_vae(shop: Workshop) -> tuple[AutoencoderKL, torch.Tensor, Curve]:
    """-> the VAE with its scaling factor set, the unscaled latents of the corpus (n, C, h, w) float16, the curve."""
    p = shop.p.vae
    torch.manual_seed(shop.seed)
    model = vae.build(p.channels, p.latent_channels, shop.world.size).to(memory_format=torch.channels_last)
    name = f"vae-{_key(shop.key, shop.seed, _stable(p), shop.p.precision)}"
    curve = train(
        "vae", model, lambda m, s: vae.loss(m, s, shop.data.images, p.batch, shop.seed, p.kl_weight),
        _schedule(p), shop.scratch / f"{name}.pt", shop.device, shop.half,
    )  # fmt: skip
    cache = shop.scratch / f"latents-{name}-{p.steps}-{p.decay_share}.pt"
    with one_at_a_time():
        if not cache.exists():
            torch.save(vae.encode_all(model, shop.data.images, shop.half), cache.with_suffix(".part"))
            cache.with_suffix(".part").rename(cache)
    latents = torch.load(cache, weights_only=True)
    model.register_to_config(scaling_factor=1.0 / float(latents[:2000].float().std()))
    return model, latents, curve


def train_clip(shop: Workshop) -> tuple[CLIP, dict, Curve]:
    """-> the miniature's CLIP, its open_clip configuration, the curve."""
    p = shop.p.clip
    torch.manual_seed(shop.seed + 1)
    config = clip.config(p.width, p.layers, p.embed_dim, shop.world.size, len(shop.words), shop.p.unet.context)
    telling = torch.from_numpy(clip.most_telling(shop.data.captions))[:, :, None].expand(-1, -1, shop.tokens.shape[2])
    tokens = shop.tokens.gather(1, telling).to(shop.device)
    model = clip.build(config)
    curve = train(
        "clip", model, lambda m, s: clip.loss(m, s, shop.data.images, tokens, p.batch, shop.seed),
        _schedule(p), shop.scratch / f"clip-{_key(shop.key, shop.seed, _stable(p), shop.p.precision)}.pt",
        shop.device, shop.half,
    )  # fmt: skip
    return model.float(), config, curve


def train_unet(
    shop: Workshop, autoencoder: AutoencoderKL, latents: torch.Tensor, compiled: bool = False
) -> tuple[unet.Denoiser, Curve]:
    """-> U-Net and text encoder, the curve. ``compiled`` fuses kernels: faster, and other rounding in the last bits."""
    p = shop.p.unet
    torch.manual_seed(shop.seed + 2)
    model = unet.build(
        p.channels, p.text_dim, p.heads, p.layers_per_block, latents.shape[1], latents.shape[-1], p.context,
        len(shop.words), shop.words.bos_token_id, shop.words.eos_token_id,
    ).to(memory_format=torch.channels_last)  # fmt: skip
    # At these sizes plain products and softmax train faster on a CPU than the fused kernel's backward pass.
    model.unet.set_attn_processor(AttnProcessor())
    if compiled:
        model.unet.compile()
    abar = unet.scheduler().alphas_cumprod.to(shop.device)
    empty = _tokenize(shop.words, [[""]])[0, 0].long()
    scaled = latents * autoencoder.config.scaling_factor
    name = f"unet-{_key(shop.key, shop.seed, asdict(shop.p.vae), _stable(p), shop.p.precision)}"
    curve = train(
        "unet", model,
        lambda m, s: unet.loss(m, s, scaled, shop.tokens, empty, abar, p.batch, shop.seed, (p.t_low, p.t_high),
                               p.uncond),
        _schedule(p), shop.scratch / f"{name}.pt", shop.device, shop.half,
    )  # fmt: skip
    model.unet.set_default_attn_processor()
    return model, curve


def assemble(shop: Workshop, autoencoder: AutoencoderKL, denoiser: unet.Denoiser) -> StableDiffusionPipeline:
    """The parts as an ordinary diffusers pipeline on the CPU, ready for ``save_pretrained``."""
    return StableDiffusionPipeline(
        vae=autoencoder.float().cpu(), text_encoder=denoiser.text_encoder.float().cpu(), tokenizer=shop.words,
        unet=denoiser.unet.float().cpu(), scheduler=unet.scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def _tokenize(words: CLIPTokenizer, captions: list[list[str]]) -> torch.Tensor:
    """(n, captions per scene, context) int16"""
    flat = [c for texts in captions for c in texts]
    unique = list(dict.fromkeys(flat))
    ids = words(unique, padding="max_length", truncation=True, return_tensors="np").input_ids.astype(np.int16)
    row = {c: i for i, c in enumerate(unique)}
    order = np.array([row[c] for c in flat])
    return torch.from_numpy(ids[order].reshape(len(captions), -1, ids.shape[1]))
