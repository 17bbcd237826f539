"""Attention capture: what a mask needs from a diffusion U-Net's attention, without the self-attention matrix.

A fused attention call returns, beside its output, the log-sum-exp of every query's scores,

    L(p) = log sum_q exp(q_p . k_q / sqrt(d)).

With it any single entry of the softmax is exact and costs one dot product:

    A(p, q) = exp(q_p . k_q / sqrt(d) - L(p)).

So a 64 x 64 layer, whose matrix has 8 x 4096 x 4096 entries, gives its eight neighbour maps, the
columns of a grid of anchors and the maps of the category word's tokens in O(N) memory. Typical use:

    capture = AttentionCapture(unet)
    with capture:
        capture.begin(words, bins=4, conditional=slice(B, 2 * B))
        ...                                  # any number of unet(x, t, encoder_hidden_states=...) calls
        records = capture.end()              # one dict of float16 arrays per sample; capture.meta describes them

The record of one sample (r is the side of a square attention resolution; for other shapes the key ends in "{h}x{w}"):

    cross_{r}    (bins, L_r, r, r)  A_c of the word: mean over heads and the bin's steps, times the number of tokens
    near_{r}     (8, r, r)          A_s(p, p + o), o in NEIGHBOURS: mean over heads, layers and steps, times r * r
    pairs_{r}    (n (n + 1) / 2,)   A_s between the n = c * c cells of a grid, symmetric; scaled alike

For `pairs_{r}` the column of a cell is that of its anchor, the pixel in its middle, and its row the mean over its
pixels; A_s(a, b) is the mean of both ways to look. What is kept is the upper triangle with the diagonal, row by row
(`numpy.triu_indices`). At c = r a cell is a pixel and every entry exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor, nn

from maskmill.errors import UserError

NEIGHBOURS: tuple[tuple[int, int], ...] = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""The offsets (dy, dx) of `near_{r}`, in order."""

# These compute softmax(Q K^T) V and nothing else, so our own processor may stand in for them.
_PLAIN_PROCESSORS = (AttnProcessor, AttnProcessor2_0, FusedAttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)
_FLASH, _EFFICIENT, _CUDNN = 1, 2, 3  # torch.nn.attention.SDPBackend, as torch._fused_sdp_choice numbers them
_FLOAT16_MAX = 65504.0


class _Step(NamedTuple):
    """The U-Net call in progress: latent height and width, and the bin of its t."""

    latent: tuple[int, int]
    bin: int


def word_weights(tokens_of_word: Sequence[Sequence[int] | range], n_tokens: int) -> Tensor:
    """Weights that average the attention maps of each word's tokens.

    Args:
        tokens_of_word: per sample a list or range of token positions, or a tuple (start, end), the half-open span.
        n_tokens: length of the text sequence, e.g. 77.

    Returns:
        (B, n_tokens) float32; row i is 1/len on the tokens of word i and 0 elsewhere, so it sums to 1.

    Raises:
        UserError: a word without tokens, or a position outside 0..n_tokens-1; the row is named.
    """
    weights = torch.zeros(len(tokens_of_word), n_tokens)
    for row, word in enumerate(tokens_of_word):
        is_span = isinstance(word, tuple)
        if is_span and len(word) != 2:
            raise UserError(f"word of row {row}: expected a span (start, end) or a list of positions, got {word}")
        positions = sorted(set(range(*word) if is_span else word))
        if not positions or positions[0] < 0 or positions[-1] >= n_tokens:
            raise UserError(f"word of row {row}: expected token positions within 0..{n_tokens - 1}, got {word}")
        weights[row, positions] = 1.0 / len(positions)
    return weights


def anchor_positions(height: int, width: int, anchors: int) -> Tensor:
    """Flat positions of the anchors, row-major (g_h * g_w,) int64: row (2i+1) h // 2g_h, column (2j+1) w // 2g_w.

    g_h = min(height, anchors) and g_w = min(width, anchors).
    """
    g_h, g_w = min(height, anchors), min(width, anchors)
    y = (2 * torch.arange(g_h) + 1) * height // (2 * g_h)
    x = (2 * torch.arange(g_w) + 1) * width // (2 * g_w)
    return (y[:, None] * width + x[None, :]).flatten()


def pool_rows(columns: Tensor, size: tuple[int, int], rows: int) -> Tensor:
    """Average-pool the query axis: (B, h * w, K) float -> (B, m_h * m_w, K), m = min(side, rows).

    Sides that m does not divide are pooled over the windows of `adaptive_avg_pool2d`.
    """
    (h, w), (batch, _, n_columns) = size, columns.shape
    m_h, m_w = min(h, rows), min(w, rows)
    if (m_h, m_w) == (h, w):
        return columns
    if h % m_h == 0 and w % m_w == 0:
        grid = columns.view(batch, m_h, h // m_h, m_w, w // m_w, n_columns)
        return grid.mean(2).mean(3).flatten(1, 2)  # (B, m_h * m_w, K)
    image = columns.mT.reshape(batch, n_columns, h, w)
    return F.adaptive_avg_pool2d(image, (m_h, m_w)).flatten(2).mT  # (B, m_h * m_w, K)


def log_sum_exp(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None, budget: int = 1 << 22) -> Tensor:
    """L(p) = log sum_q exp(scale q_p . k_q + mask), computed in float32 over chunks of queries.

    q (B, heads, N, d), k (B, heads, T, d) of any float dtype, mask broadcastable to (B, heads, N, T).
    Returns (B, heads, N) float32. Never holds more than `budget` scores at once (one query of each head at the least).
    """
    batch, heads, n, _ = q.shape
    keys = k.float().mT  # (B, heads, d, T)
    lse = torch.empty(batch, heads, n, device=q.device)
    chunk = max(1, budget // (batch * heads * k.shape[2]))
    for start in range(0, n, chunk):
        scores = (q[:, :, start : start + chunk].float() * scale) @ keys  # (B, heads, chunk, T)
        if mask is not None:
            scores += mask.expand(batch, heads, n, -1)[:, :, start : start + chunk]
        lse[:, :, start : start + chunk] = scores.logsumexp(-1)
    return lse


def _choose_operator(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> int:
    """The fused operator that F.scaled_dot_product_attention would take, so that outputs stay the same; 0 for none."""
    if q.device.type not in ("cpu", "cuda") or (q.device.type == "cuda" and mask is not None):
        return 0  # CUDA's operators want masks padded and aligned; masks are rare enough for the exact path
    return int(torch._fused_sdp_choice(q, k, v, attn_mask=mask, scale=scale))


def _call_operator(
    operator: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """One fused attention call: output (B, heads, N, d) and L (B, heads, N) float32."""
    aten = torch.ops.aten
    if q.device.type == "cpu":
        if mask is not None:
            mask = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=scale)
    n, d = q.shape[-2:]
    if d % 8:  # CUDA kernels want aligned heads; zero channels change neither scores nor the outputs kept
        q, k, v = (F.pad(x, (0, -d % 8)) for x in (q, k, v))
    if operator == _FLASH:
        out, lse = aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[:2]
    elif operator == _EFFICIENT:
        out, lse = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, scale=scale)[:2]
    else:
        out, lse = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, scale=scale)[:2]
    # The efficient operator rounds the queries up to a whole tile, cuDNN's keeps a last axis of one.
    return out[..., :d], lse.flatten(2)[..., :n]


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None, verdicts: dict[tuple, bool] | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(scale Q K^T + mask) V, with the log-sum-exp of each query.

    q (B, heads, N, d); k, v (B, heads, T, d); mask broadcastable to (B, heads, N, T) or None. Returns the output
    (B, heads, N, d) of q's dtype and L (B, heads, N) float32. A fused operator gives both where one accepts the input;
    else F.scaled_dot_product_attention gives the output and `log_sum_exp` L. `verdicts` remembers, per device, dtype
    and operator, whether its L agreed with `log_sum_exp` on its first use; one that disagrees is not used again.
    """
    verdicts = {} if verdicts is None else verdicts
    operator = _choose_operator(q, k, v, mask, scale)
    key = (q.device.type, q.dtype, operator, q.shape[-1], mask is not None)
    if operator in (_FLASH, _EFFICIENT, _CUDNN) and verdicts.get(key, True):
        try:
            out, lse = _call_operator(operator, q, k, v, mask, scale)
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            verdicts[key] = False
        else:
            if key not in verdicts:
                verdicts[key] = _agrees(lse, q, k, scale, mask)
            if verdicts[key]:
                return out, lse
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    with torch.no_grad():
        return out, log_sum_exp(q, k, scale, mask)


def _agrees(lse: Tensor, q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> bool:
    """Whether an operator's L has the right shape, base and order: first and last query against the direct sum."""
    if lse.shape != q.shape[:3]:
        return False
    ends = [0, q.shape[2] - 1]
    if mask is not None:
        mask = mask.expand(-1, -1, q.shape[2], -1)[:, :, ends]
    direct = log_sum_exp(q[:, :, ends].detach(), k.detach(), scale, mask)
    tolerance = 1e-3 if q.dtype == torch.float32 else 1e-2
    return torch.allclose(lse[:, :, ends].float(), direct, rtol=tolerance, atol=tolerance, equal_nan=True)


def _head_groups(heads: int, entries_per_head: int, budget: int) -> Iterator[slice]:
    """Slices of heads whose scores together stay within `budget` entries, one head at the least."""
    step = max(1, budget // entries_per_head)
    return (slice(start, min(start + step, heads)) for start in range(0, heads, step))


def _packed(x: Tensor, scale: float = 1.0) -> Tensor:
    """A contiguous float32 copy of x, times scale: half-precision products would lose the digits that exp magnifies."""
    copy = torch.empty(x.shape, device=x.device).copy_(x)
    return copy if scale == 1.0 else copy.mul_(scale)


def word_map(
    q: Tensor, k: Tensor, lse: Tensor, tokens: Tensor, weights: Tensor, scale: float, mask: Tensor | None, budget: int
) -> Tensor:
    """A_c(p) = mean over heads of sum_j weights_j A(p, tokens_j), (B, N) float32.

    q (B, heads, N, d), k (B, heads, T, d), L (B, heads, N), tokens (B, K) int64 positions, weights (B, K) float32.
    """
    batch, heads, n, d = q.shape
    index = tokens[:, None, :, None].expand(-1, heads, -1, d)
    k = k.gather(2, index)  # (B, heads, K, d)
    if mask is not None:
        mask = mask.expand(batch, heads, n, -1).gather(3, tokens[:, None, None].expand(-1, heads, n, -1))
    total = torch.zeros(batch, n, device=q.device)
    for group in _head_groups(heads, batch * n * max(d, k.shape[2]), budget):
        scores = _packed(q[:, group], scale) @ k[:, group].float().mT  # (B, c, N, K)
        scores -= lse[:, group, :, None]
        if mask is not None:
            scores += mask[:, group]
        total += (scores.exp_() @ weights[:, None, :, None]).sum(1)[..., 0]
    return total / heads


def packed(matrices: Tensor) -> Tensor:
    """(B, n, n) -> (B, n (n + 1) / 2): the upper triangles of the means with the transposed, row by row."""
    n = matrices.shape[-1]
    rows, columns = torch.triu_indices(n, n, device=matrices.device)
    return ((matrices + matrices.mT) / 2)[:, rows, columns]


def neighbours_and_columns(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    size: tuple[int, int],
    anchors: Tensor,
    scale: float,
    mask: Tensor | None = None,
    budget: int = 1 << 20,
) -> tuple[Tensor, Tensor]:
    """Mean over heads of A_s(p, p + o) for the eight NEIGHBOURS o and of A_s(p, b) for the anchors b.

    q, k (B, heads, N, d) of an h x w layer with N = h * w, L (B, heads, N), anchors (K,) flat positions. Returns, in
    float32, near (B, 8, N), 0 where the neighbour is outside, and columns (B, N, K). Heads are taken in groups of at
    most `budget` scores, one head at the least.
    """
    batch, heads, n, d = q.shape
    near = torch.zeros(batch, 8, n, device=q.device)
    columns = torch.zeros(batch, n, len(anchors), device=q.device)
    for group in _head_groups(heads, batch * n * max(d, len(anchors)), budget):
        q_g, k_g = _packed(q[:, group], scale), _packed(k[:, group])  # (B, c, N, d)
        minus_l = -lse[:, group].float()  # (B, c, N)
        mask_g = None if mask is None else mask.expand(batch, heads, n, n)[:, group]
        near += _near_scores(q_g, k_g, minus_l, size[1], mask_g).exp_().sum(1)
        keys = k_g[:, :, anchors].flatten(0, 1).mT  # (B * c, d, K)
        scores = torch.baddbmm(minus_l.reshape(-1, n, 1), q_g.flatten(0, 1), keys)  # (B * c, N, K)
        scores = scores.unflatten(0, (batch, -1))  # (B, c, N, K)
        if mask_g is not None:
            scores += mask_g[..., anchors]
        scores.exp_()
        columns += scores[:, 0] if scores.shape[1] == 1 else scores.sum(1)
    near.masked_fill_(_outside(size, q.device), 0.0)
    return near.div_(heads), columns.div_(heads)


def _near_scores(q: Tensor, k: Tensor, minus_l: Tensor, width: int, mask: Tensor | None) -> Tensor:
    """scale q_p . k_{p+o} - L(p) for the eight offsets, (B, c, 8, N), from scaled q (B, c, N, d).

    The offset is taken on the flat axis, where a shift is one slice. At the left and right border it wraps into the
    next row: those are entries of another pair, and the caller blanks them with `_outside`, as those no slice reaches.
    """
    batch, c, n, _ = q.shape
    scores = q.new_zeros(batch, c, 8, n)
    for i, (dy, dx) in enumerate(NEIGHBOURS):
        shift = dy * width + dx
        first, last = max(0, -shift), min(n, n - shift)
        if first >= last:  # a layer smaller than the shift has no such neighbour
            continue
        product = q[:, :, first:last] * k[:, :, first + shift : last + shift]  # (B, c, last - first, d)
        scores[:, :, i, first:last] = product.sum(-1)
        if mask is not None:
            scores[:, :, i, first:last] += mask.diagonal(shift, -2, -1)
    return scores.add_(minus_l[:, :, None])


def _outside(size: tuple[int, int], device: torch.device) -> Tensor:
    """(8, h * w) bool: where p + o lies outside the map."""
    h, w = size
    y, x = torch.arange(h, device=device)[:, None], torch.arange(w, device=device)[None]
    maps = [((y + dy < 0) | (y + dy >= h) | (x + dx < 0) | (x + dx >= w)).flatten() for dy, dx in NEIGHBOURS]
    return torch.stack(maps)


class _RecordingProcessor:
    """Stands in for one layer's processor: same output, and tells the capture what the layer attended to."""

    def __init__(self, capture: AttentionCapture, name: str, original: Any) -> None:
        self.capture = capture
        self.name = name
        self.original = original

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states (B, N, channels) or (B, channels, h, w) -> the layer's output in the same layout."""
        if self.capture._step is None:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        image = hidden_states.shape if hidden_states.ndim == 4 else None  # (B, channels, h, w) or None
        if image is not None:
            hidden_states = hidden_states.flatten(2).mT  # (B, N, channels)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.mT).mT

        is_cross = encoder_hidden_states is not None
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states  # (B, T, text channels)
        if is_cross and attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        q, k, v = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, N or T, d)
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        mask = None
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, k.shape[2], k.shape[0])
            mask = mask.view(k.shape[0], attn.heads, -1, mask.shape[-1])  # (B, heads, 1 or N, T)

        out, lse = attend(q, k, v, attn.scale, mask, self.capture._verdicts)
        del v
        with torch.no_grad():
            size = None if image is None else (image[2], image[3])
            self.capture._record(self.name, is_cross, q, k, lse, attn.scale, mask, size)
        del q, k, lse
        hidden_states = out.transpose(1, 2).flatten(2)  # (B, N, heads * d)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if image is not None:
            hidden_states = hidden_states.mT.reshape(image)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor


def _network_order(unet: nn.Module) -> list[tuple[str, Attention]]:
    """Every Attention layer with its module name, in the order in which a pass reaches them: down, middle, up."""
    layers: list[tuple[str, Attention]] = []
    for part in ("down_blocks", "mid_block", "up_blocks"):
        block = getattr(unet, part, None)
        for name, module in block.named_modules() if isinstance(block, nn.Module) else ():
            if isinstance(module, Attention):
                layers.append((f"{part}.{name}", module))
    return layers


class AttentionCapture:
    """Records the attention of a diffusers UNet2DConditionModel; see the module's text for the use and the record.

    Nothing in it grows with the number of steps: running sums are float32 and updated in place.
    """

    def __init__(self, unet: nn.Module, cells: int = 32) -> None:
        """Find the layers of `unet`. `cells` is the largest c of `pairs_{r}`.

        Raises:
            UserError: a U-Net without cross-attention, or with layers of another kind (added key projections, an
                IP-Adapter's or other trained processors), whose output this capture would not reproduce.
        """
        self.unet = unet
        self.cells = cells
        self.layers = _network_order(unet)
        self.meta: dict[str, Any] = {}
        if not any(layer.is_cross_attention for _, layer in self.layers):
            raise UserError(
                f"{type(unet).__name__}: expected a U-Net with cross-attention to text, found {len(self.layers)} "
                "attention layers and none of them cross-attention"
            )
        self._refuse_unknown_layers()
        self._installed: list[tuple[Attention, Any]] = []
        self._handles: list[Any] = []
        self._verdicts: dict[tuple, bool] = {}
        self._step: _Step | None = None
        self._paused = False
        self._recording = False
        self._sums: dict[tuple, Tensor] = {}

    def _refuse_unknown_layers(self) -> None:
        for name, layer in self.layers:
            processor = layer.get_processor()
            if layer.added_kv_proj_dim is not None or type(processor) not in _PLAIN_PROCESSORS:
                kind = "added key projections" if layer.added_kv_proj_dim is not None else type(processor).__name__
                raise UserError(f"layer {name}: expected plain attention, got {kind}; unload adapters before capturing")

    # Installing and restoring

    def __enter__(self) -> AttentionCapture:
        if self._installed:
            raise RuntimeError("this AttentionCapture is already installed")
        self._refuse_unknown_layers()  # an adapter may have been loaded, or another capture entered, since __init__
        for name, layer in self.layers:
            original = layer.get_processor()
            layer.set_processor(_RecordingProcessor(self, name, original))
            self._installed.append((layer, original))
        self._handles = [
            self.unet.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.unet.register_forward_hook(self._after_forward, always_call=True),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        for layer, original in self._installed:
            layer.set_processor(original)
        self._handles, self._installed = [], []
        self._step, self._recording = None, False
        self._sums = {}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """U-Net calls within this context are not recorded and run on the original processors."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    # Recording

    def begin(
        self,
        words: Tensor,
        bins: int = 4,
        conditional: slice | Sequence[int] | Tensor | None = None,
        num_train_timesteps: int = 1000,
    ) -> None:
        """Start a record of B samples; an unfinished one is dropped.

        Args:
            words: (B, T) float weights of the tokens of each sample's category word, >= 0, each row summing to 1.
            bins: equal bins of the diffusion time 0..num_train_timesteps; bin 0 holds t = 0.
            conditional: which rows of the U-Net's batch are the B samples, in order: None for all of them, else a
                slice, positions or a boolean mask (classifier-free guidance runs 2B rows).
            num_train_timesteps: the length of the diffusion time.

        Raises:
            ValueError: words of another shape or whose rows do not sum to 1, or bins < 1.
            RuntimeError: outside `with capture:`.
        """
        if not self._installed:
            raise RuntimeError("begin() works inside `with capture:` only")
        if words.ndim != 2 or not words.numel():
            raise ValueError(f"words: expected weights of shape (B, n_tokens), got {tuple(words.shape)}")
        if not (words >= 0).all() or not ((words.sum(1) - 1).abs() <= 1e-3).all():
            sums = words.sum(1).tolist()[:8]
            raise ValueError(f"words: expected weights >= 0 with rows summing to 1, got sums {sums}")
        if bins < 1 or num_train_timesteps < 1:
            raise ValueError(f"expected bins and num_train_timesteps >= 1, got {bins} and {num_train_timesteps}")
        device = next(self.unet.parameters()).device
        self._batch, self._n_tokens = words.shape
        most = int((words != 0).sum(1).max())  # only the word's own columns are computed, padded to the longest word
        used = (words == 0).int().argsort(dim=1, stable=True)[:, :most]  # (B, K): positions with weight come first
        self._tokens, self._weights = used.to(device), words.float().gather(1, used).to(device)
        if conditional is None or isinstance(conditional, slice):
            self._rows = self._rows_cpu = slice(None) if conditional is None else conditional
        else:
            rows = torch.as_tensor(conditional).cpu()
            self._rows_cpu = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows.long()
            self._rows = self._rows_cpu.to(device)
        self._bins, self._time = bins, num_train_timesteps
        self._steps_per_bin = [0] * bins
        self._calls = {name: 0 for name, _ in self.layers}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._is_cross: dict[str, bool] = {}
        self._sums = {}
        self._recording = True

    def _before_forward(self, unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._step = None
        if self._paused or not self._recording:
            return
        sample = args[0] if args else kwargs["sample"]  # (U, channels, h, w)
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        try:
            chosen = len(torch.arange(sample.shape[0])[self._rows_cpu])
        except IndexError:
            rows = self._rows_cpu.tolist()
            raise ValueError(f"conditional: rows {rows} of a U-Net batch of {sample.shape[0]} rows") from None
        if chosen != self._batch:
            raise ValueError(
                f"words has {self._batch} rows but {chosen} of the U-Net batch's {sample.shape[0]} are recorded; "
                "set conditional to the rows of the recorded samples"
            )
        times = set(torch.as_tensor(timestep).flatten().tolist())
        if len(times) != 1 or not 0 <= min(times) <= self._time:
            raise ValueError(f"expected one timestep within 0..{self._time} for the batch, got {sorted(times)[:4]}")
        bin_of_t = min(int(times.pop() * self._bins / self._time), self._bins - 1)
        self._steps_per_bin[bin_of_t] += 1
        self._step = _Step((sample.shape[-2], sample.shape[-1]), bin_of_t)

    def _after_forward(self, unet: nn.Module, args: tuple, output: Any) -> None:
        self._step = None

    def _size_of(self, name: str, n: int, size: tuple[int, int] | None) -> tuple[int, int]:
        """(h, w) of a layer of n tokens: the latent halved, rounding up as strided convolutions do, until it has n."""
        if size is None:
            h, w = self._step.latent
            while h * w > n and h * w > 1:
                h, w = (h + 1) // 2, (w + 1) // 2
            size = (h, w)
        if size[0] * size[1] != n:
            raise RuntimeError(f"layer {name}: {n} tokens are no halving of the latent {self._step.latent}")
        before = self._sizes.setdefault(name, size)
        if before != size:
            raise RuntimeError(f"layer {name}: {size} tokens now, {before} before; a record has one latent size")
        return size

    def _add(self, key: tuple, value: Tensor) -> None:
        if key in self._sums:
            self._sums[key].add_(value)
        else:
            self._sums[key] = value.clone()

    def _record(
        self,
        name: str,
        is_cross: bool,
        q: Tensor,
        k: Tensor,
        lse: Tensor,
        scale: float,
        mask: Tensor | None,
        size: tuple[int, int] | None,
    ) -> None:
        """Add one layer's call to the running sums: q (U, heads, N, d), k (U, heads, T, d), L (U, heads, N)."""
        size = self._size_of(name, q.shape[2], size)
        self._calls[name] += 1
        self._is_cross[name] = is_cross
        q, k, lse = (x[self._rows].detach() for x in (q, k, lse))
        mask = None if mask is None else mask[self._rows]
        budget = 1 << 23 if q.device.type == "cpu" else 1 << 25  # few large operations, 32 or 128 MB of scores
        if is_cross:
            if k.shape[2] != self._n_tokens:
                raise RuntimeError(f"layer {name}: {k.shape[2]} text tokens, but words has {self._n_tokens}")
            a_c = word_map(q, k, lse, self._tokens, self._weights, scale, mask, budget)  # (B, N)
            self._add((name, self._step.bin), a_c)
        else:
            anchors = anchor_positions(*size, self.cells).to(q.device)
            near, columns = neighbours_and_columns(q, k, lse, size, anchors, scale, mask, budget)
            self._add(("near", size), near)
            self._add(("pairs", size), pool_rows(columns, size, self.cells))

    # The result

    def end(self) -> list[dict[str, np.ndarray]]:
        """Finish the record: one dict of float16 arrays per sample, as the module's text lists; sets `meta`.

        `meta` has `cross_layers` {r: [module names in network order]}, `self_layers` {r: count}, `bins`, `steps`,
        `steps_per_bin` and `tokens`; r is written as in the record's keys, a string. A bin without steps is all zeros.

        Raises:
            RuntimeError: no record was begun, no step ran, or a layer did not record every step (it is named).
        """
        if not self._recording:
            raise RuntimeError("end() without begin(), or after the capture was left")
        steps = sum(self._steps_per_bin)
        if steps == 0:
            raise RuntimeError("no step was recorded: the unet was not called between begin() and end()")
        for name, calls in self._calls.items():
            if calls != steps:
                raise RuntimeError(f"layer {name} recorded {calls} of {steps} steps")
        labels = {name: f"{h}" if h == w else f"{h}x{w}" for name, (h, w) in self._sizes.items()}
        cross_layers: dict[str, list[str]] = {}
        self_layers: dict[str, int] = {}
        for name, _ in self.layers:
            if self._is_cross[name]:
                cross_layers.setdefault(labels[name], []).append(name)
            else:
                self_layers[labels[name]] = self_layers.get(labels[name], 0) + 1
        arrays = {f"cross_{label}": self._cross_array(names) for label, names in cross_layers.items()}
        for (kind, size), total in ((key, value) for key, value in self._sums.items() if key[0] in ("near", "pairs")):
            label = f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}"
            values = total * (size[0] * size[1] / (self_layers[label] * steps))
            arrays[f"{kind}_{label}"] = _half(values.unflatten(2, size) if kind == "near" else packed(values))
        self.meta = {
            "cross_layers": cross_layers,
            "self_layers": self_layers,
            "bins": self._bins,
            "steps": steps,
            "steps_per_bin": list(self._steps_per_bin),
            "tokens": self._n_tokens,
        }
        self._recording, self._sums = False, {}
        return [{key: np.ascontiguousarray(array[i]) for key, array in arrays.items()} for i in range(self._batch)]

    def _cross_array(self, names: list[str]) -> np.ndarray:
        """(B, bins, L_r, h, w) float16: the bins' means of the given layers, times the number of tokens."""
        h, w = self._sizes[names[0]]
        result = torch.zeros(self._batch, self._bins, len(names), h * w)
        for i, name in enumerate(names):
            for b, count in enumerate(self._steps_per_bin):
                if count:
                    result[:, b, i] = self._sums[name, b].cpu() * (self._n_tokens / count)
        return _half(result.unflatten(3, (h, w)))


def _half(values: Tensor) -> np.ndarray:
    """float16 array on the CPU; values beyond its range (attention of 1 times over 65504 tokens) stop at its end."""
    return values.clamp(max=_FLOAT16_MAX).half().cpu().numpy()
