"""Softmax attention over a past that grows, or over its last tokens.

    y_i = sum_j softmax_j(scale q_i' k_j) v_j       past + i - window < j <= past + i

    q [..., T, n]    k [..., past + T, n]    v [..., past + T, m]    y [..., T, m]

The closed form of a memory that is not parametric (Nadaraya-Watson; 1706.03762).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

BLOCK = 64


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    window: int | None = None,
    past: int = 0,
) -> Tensor:
    """Query i sees keys 0 .. past + i, the last `window` of them if given.

    scale is 1 / sqrt(n) if not given. The leading axes of q, k and v are the same. A caller that
    differentiates twice has to choose the MATH kernel: the others have no second derivative.
    """
    ticks = q.shape[-2]
    if ticks == 0:
        return v.narrow(-2, past, 0)
    if window is not None and window < past + ticks:
        return _windowed(q, k, v, scale, window, past)
    if past == 0:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    if ticks == 1:
        return scaled_dot_product_attention(q, k, v, scale=scale)
    mask = _seen(ticks, past, past + ticks, past + ticks, q)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _windowed(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, window: int, past: int
) -> Tensor:
    """Blocks of queries, each beside the keys it can see: T (block + window) scores, not T^2."""
    ticks = q.shape[-2]
    block = min(max(window, BLOCK), ticks)
    blocks = -(-ticks // block)
    extra = blocks * block - ticks
    missing = window - 1 - past
    asked = torch.unflatten(pad(q, (0, 0, 0, extra)), -2, (blocks, block))
    keys, values = (_reached(x, missing, extra, block, window) for x in (k, v))
    mask = _seen(block, window - 1, block + window - 1, window, q)
    if missing > 0:
        place = torch.arange(blocks * block + window - 1, device=q.device)
        mask = mask & (place.unfold(0, block + window - 1, block).unsqueeze(-2) >= missing)
    # The fused kernels take four axes: batch, blocks (as heads), time, features.
    asked, keys, values = (x.reshape(-1, *x.shape[-3:]) for x in (asked, keys, values))
    y = scaled_dot_product_attention(asked, keys, values, attn_mask=mask, scale=scale)
    return y.view(*q.shape[:-2], -1, v.shape[-1]).narrow(-2, 0, ticks)


def _reached(x: Tensor, missing: int, extra: int, block: int, window: int) -> Tensor:
    """[..., blocks, block + window - 1, n]: the keys that the queries of each block can see.

    `missing` places stand before the first key; a negative number of keys is seen by no query.
    """
    return pad(x, (0, 0, missing, extra)).unfold(-2, block + window - 1, block).mT


def _seen(ticks: int, past: int, keys: int, window: int, like: Tensor) -> Tensor:
    """[ticks, keys]: does query i, which stands at key past + i, see key j?"""
    back = torch.arange(past, past + ticks, device=like.device)[:, None]
    back = back - torch.arange(keys, device=like.device)
    return (back >= 0) & (back < window)
