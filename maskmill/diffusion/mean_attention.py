"""Mean attention of real images (concept distillation, 3.1 and Eq. 3).

    M(p) = mean over t, n and l of  softmax(Q_l K_l^T / sqrt d)(p, token)

over the last T0 steps of an S-step schedule, N noise samples a step and all cross-attention layers l. The latent of the
REAL image is noised anew for every step and sample; there is no trajectory, and no guidance. As in the authors' code,
the heads of a layer are averaged, every layer is brought to one size by nearest neighbour, and all count alike.

The maps of all tokens come from one U-Net call: a layer's softmax has a column per token anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from maskmill.diffusion.backbone import Backbone, Condition
from maskmill.diffusion.capture import word_weights
from maskmill.diffusion.noise import diffuse, keyed_noise
from maskmill.errors import UserError
from maskmill.prompts import word_span

SCORES = 1 << 25  # entries of the softmax that are held at once; one head of the batch at the least


class CrossMaps:
    """Cross-attention maps of sets of tokens, averaged over layers and U-Net calls; use it as a context.

    A hook reads what goes into each cross-attention layer and computes queries, keys and softmax beside it, in float32.
    The layer itself runs untouched, whatever its processor, so the U-Net's output keeps its bits.

    Args:
        unet: a diffusers UNet2DConditionModel.
        weights: (K, T) or (B, K, T) float: map k is the sum over tokens j of weights[k, j] A(p, j). The identity gives
            every token's own map, ``maskmill.diffusion.capture.word_weights`` the mean of a word's tokens.
        size: (h, w) of the maps; None: the latent's.

    Raises:
        UserError: a U-Net without cross-attention, or with added key projections, whose softmax would be another.
    """

    def __init__(self, unet: nn.Module, weights: Tensor, size: tuple[int, int] | None = None) -> None:
        self.layers = [(name, m) for name, m in unet.named_modules()
                       if isinstance(m, Attention) and m.is_cross_attention]  # fmt: skip
        if not self.layers:
            raise UserError(f"{type(unet).__name__}: expected a U-Net with cross-attention to text, found none")
        for name, layer in self.layers:
            if layer.added_kv_proj_dim is not None:
                raise UserError(f"layer {name}: expected plain cross-attention, got added key projections")
        device = next(unet.parameters()).device
        self.unet, self.size = unet, size
        self.weights = weights.float().reshape(-1, *weights.shape[-2:]).to(device)  # (1 or B, K, T)
        self._latent: tuple[int, int] = (0, 0)
        self._sum: Tensor | None = None
        self._calls: dict[str, int] = {}
        self._handles: list = []

    def __enter__(self) -> CrossMaps:
        self._handles = [self.unet.register_forward_pre_hook(self._begin_call, with_kwargs=True)]
        self._handles += [layer.register_forward_pre_hook(self._hook(name), with_kwargs=True)
                          for name, layer in self.layers]  # fmt: skip
        self._sum, self._calls = None, {"": 0, **{name: 0 for name, _ in self.layers}}
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._sum = [], None

    def take(self) -> Tensor:
        """(B, K, h, w) float32, the mean since the last ``take``; starts afresh.

        Raises:
            RuntimeError: no U-Net call, or a layer that missed one; names it.
        """
        calls = self._calls[""]
        silent = [name for name, count in self._calls.items() if count != calls]
        if silent or not calls or self._sum is None:
            raise RuntimeError(f"layer {silent[0]} recorded {self._calls[silent[0]]} of {calls} calls" if silent else
                               "no attention recorded: the U-Net never ran")  # fmt: skip
        mean = self._sum / (calls * len(self.layers))
        self._sum, self._calls = None, dict.fromkeys(self._calls, 0)
        return mean

    def _begin_call(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        sample = args[0] if args else kwargs["sample"]  # (B, C, h, w)
        self._latent = (sample.shape[-2], sample.shape[-1])
        self._calls[""] += 1

    def _hook(self, name: str):
        @torch.no_grad()
        def record(layer: Attention, args: tuple, kwargs: dict) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]  # (B, N, channels)
            text = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]  # (B, T, text channels)
            mask = args[2] if len(args) > 2 else kwargs.get("attention_mask")
            maps = token_maps(layer, hidden, text, mask, self.weights)  # (B, K, N)
            maps = maps.unflatten(2, layer_size(maps.shape[2], self._latent))  # (B, K, h_l, w_l)
            maps = F.interpolate(maps, size=self.size or self._latent, mode="nearest")  # (B, K, h, w)
            self._sum = maps if self._sum is None else self._sum.add_(maps)
            self._calls[name] += 1

        return record


def layer_size(n: int, latent: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of a layer of n cells: the latent's size, halved and rounded up until it has n."""
    h, w = latent
    while h * w > n:
        h, w = (h + 1) // 2, (w + 1) // 2
    if h * w != n:
        raise RuntimeError(f"{n} cells are no halving of the latent {latent}")
    return h, w


def token_maps(layer: Attention, hidden: Tensor, text: Tensor, mask: Tensor | None, weights: Tensor) -> Tensor:
    """The head mean of softmax(Q K^T / sqrt d), times the weights: (B, K, N) float32.

    Args:
        hidden: (B, N, channels), what the layer is given. text: (B, T, text channels).
        mask: what diffusers hands a layer as attention_mask, (B, 1, T) added to the scores, or None.
        weights: (1 or B, K, T).
    """
    if layer.norm_cross:
        text = layer.norm_encoder_hidden_states(text)
    q, k = (x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (layer.to_q(hidden), layer.to_k(text)))
    q = q if layer.norm_q is None else layer.norm_q(q)  # (B, heads, N, d)
    k = k if layer.norm_k is None else layer.norm_k(k)  # (B, heads, T, d)
    batch, heads, n, _ = q.shape
    if mask is not None:
        mask = layer.prepare_attention_mask(mask, k.shape[2], batch).unflatten(0, (batch, heads)).float()
    step = max(1, SCORES // (batch * n * k.shape[2]))
    total = torch.zeros(batch, n, k.shape[2], device=q.device)
    for group in (slice(start, start + step) for start in range(0, heads, step)):
        scores = (q[:, group].float() * layer.scale) @ k[:, group].float().mT  # (B, c, N, T)
        if mask is not None:
            scores += mask[:, group]
        total += scores.softmax(-1).sum(1)
    return (weights @ total.mT).div_(heads)  # (B, K, N)


def attention_steps(
    backbone: Backbone,
    z: Tensor,
    condition: Condition,
    weights: Tensor,
    seeds: Sequence[int],
    *,
    times: Sequence[int],
    samples: int = 1,
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[int, int, Tensor]]:
    """The summands of the mean attention, one U-Net call each: (index into ``times``, n, maps (B, K, h, w) float32).

    Args:
        z: (B, C, h, w) latents of the images. condition: their prompts, B rows.
        weights: token sets, see ``CrossMaps``.
        seeds: one per image, >= 0; with t and n they decide the noise.
        times: time steps t. samples: N.
        size: of the maps; None: the latent's.
    """
    with CrossMaps(backbone.unet, weights, size) as maps:
        for i, t in enumerate(times):
            for n in range(samples):
                noise = keyed_noise(seeds, z.shape[1:], t, n).to(z.device)
                backbone.noise(diffuse(z, noise, float(backbone.abar[t])), t, condition)
                yield i, n, maps.take()


def last_steps(backbone: Backbone, steps: int, t0: int) -> list[int]:
    """The last T0 time steps of an S-step schedule, ascending: the least noisy ones. S = 50, T0 = 40 end at t = 781.

    Raises:
        UserError: T0 is not within 1..S.
    """
    if not 1 <= t0 <= steps:
        raise UserError(f"mean attention: expected 1 to {steps} of {steps} steps, got {t0}")
    return backbone.timesteps(steps)[:t0]


def nested_means(
    backbone: Backbone,
    z: Tensor,
    condition: Condition,
    weights: Tensor,
    seeds: Sequence[int],
    *,
    steps: int,
    t0: Sequence[int],
    samples: Sequence[int] = (1,),
    size: tuple[int, int] | None = None,
) -> dict[tuple[int, int], np.ndarray]:
    """The mean attention for several T0 and N at once, from max(T0) x max(N) U-Net calls.

    Arguments as ``mean_attention``, but for lists of T0 and N. Nothing in memory grows with the steps: there is one sum
    per N, and one map for each pair.

    Returns:
        {(T0, N): (B, K, h, w) float32}; each is, to the bit, what ``mean_attention`` gives for it alone.
    """
    if not samples or min(samples) < 1:
        raise UserError(f"mean attention: expected at least 1 noise sample, got {min(samples, default=0)}")
    times = max((last_steps(backbone, steps, t) for t in t0), key=len)
    sums: dict[int, Tensor] = {}
    out: dict[tuple[int, int], np.ndarray] = {}
    for i, n, maps in attention_steps(backbone, z, condition, weights, seeds, times=times, samples=max(samples),
                                      size=size):  # fmt: skip
        for count in set(samples):
            if n < count:
                sums[count] = sums[count] + maps if count in sums else maps
            if n == count - 1 and i + 1 in t0:
                out[i + 1, count] = (sums[count] / ((i + 1) * count)).cpu().numpy()
    return out


def mean_attention(
    backbone: Backbone,
    z: Tensor,
    condition: Condition,
    weights: Tensor,
    seeds: Sequence[int],
    *,
    steps: int = 50,
    t0: int = 40,
    samples: int = 1,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Mean attention of real images at sets of tokens: (B, K, h, w) float32 in 0..1.

    Args:
        z: (B, C, h, w), from ``backbone.encode_images``.
        condition: the images' prompts, such as "a photo of a bird", B rows.
        weights: token sets, see ``CrossMaps``: (K, T) for all images or (B, K, T).
        seeds: one per image, >= 0.
        steps: S of the schedule. t0: T0, how many of its last steps are summed. samples: N per step.
        size: (h, w) of the maps; None: the latent's.

    Raises:
        UserError: T0 outside 1..S, or N below 1.
    """
    return nested_means(backbone, z, condition, weights, seeds, steps=steps, t0=[t0], samples=[samples],
                        size=size)[t0, samples]  # fmt: skip


def phrase_weights(tokenizer, prompt: str, words: Sequence[str]) -> Tensor:
    """The set of all tokens of some words of a prompt, weighted alike: (1, T), a row for ``CrossMaps``.

    For "a human with arms and legs" and human, arms, legs this is the mean of the parts' maps.

    Raises:
        UserError: no word, a word that is not in the prompt, that lies beyond the context, or that the tokenizer was
            never taught: it falls into more pieces than half its letters.
    """
    positions: list[int] = []
    for word in words:
        start, end = word_span(tokenizer, prompt, word)
        if end - start > max(2, len(word) / 2):
            raise UserError(f"expected a word that the model's tokenizer knows, got {word!r}, which it takes to "
                            f"{end - start} pieces: {' '.join(token_names(tokenizer, prompt)[start:end])}")  # fmt: skip
        positions += range(start, end)
    if not positions:
        raise UserError(f"expected at least one word of the prompt {prompt!r}, got none")
    return word_weights([positions], tokenizer.model_max_length)


def token_names(tokenizer, prompt: str) -> list[str]:
    """What stands at each position of the padded prompt, for the axis of a figure: ``<start>, a, photo, ..., <end>,
    <pad>, ...``."""
    ids = tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True).input_ids
    length = len(tokenizer(prompt, truncation=True).input_ids)
    words = [token.replace("</w>", "") for token in tokenizer.convert_ids_to_tokens(ids)]
    names = {0: "<start>", length - 1: "<end>", **dict.fromkeys(range(length, len(ids)), "<pad>")}
    return [names.get(i, word) for i, word in enumerate(words)]
