"""Softmax attention over pairs that are weighed, several a tick, and over pairs of no past.

    y_i = sum_j p_ij v_j + sum_l p_il V_il
    p_ij ~ w_ij exp(scale q_i' k_j)   p_il ~ exp(q_i' K_il)   their sum is 1

    q [..., T, n]    k [..., past + T, c, n]    v [..., past + T, c, m]    y [..., T, m]
    K [..., T, p, n] V [..., T, p, m]                     weight [..., T, window, c or 1]

j runs over the c pairs of each of the last `window` ticks, l over the p pairs beside them. A weight
is not negative; 0 is a pair that is not seen. Row i of `weight` holds the window of query i, oldest
first. Persistent pairs and segments are those of Titans (2501.00663, sections 3.3 and 4.1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 64


def attend_pairs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    past: int,
    window: int | None = None,
    weight: Tensor | None = None,
    beside: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`beside`: K and V, K with its own scale in it."""
    ticks, several = q.shape[-2], k.shape[-2]
    if ticks == 0:
        return v.narrow(-3, past, 0).select(-2, 0)
    size = past + ticks if window is None else window
    block = ticks if size >= past + ticks else min(max(size, BLOCK), ticks)
    blocks = -(-ticks // block)
    extra, missing = blocks * block - ticks, size - 1 - past
    asked = torch.unflatten(pad(q, (0, 0, 0, extra)), -2, (blocks, block))
    keys, values = (_reached(x, missing, extra, block, size) for x in (k, v))
    seen = _seen(block, size, blocks, missing, q)
    told = torch.where(seen, 0.0, -math.inf).to(q.dtype).repeat_interleave(several, -1)
    if weight is not None:
        told = told + _skewed(_log(weight), blocks, block, extra, several)
    scores = asked @ keys.mT * scale + told
    if beside is None:
        y = torch.softmax(scores, -1) @ values
        return y.flatten(-3, -2).narrow(-2, 0, ticks)
    K, V = beside
    own = _for_each(q, K.mT)
    scores = torch.cat([scores.flatten(-3, -2).narrow(-2, 0, ticks), own], -1)
    p, mine = torch.split(torch.softmax(scores, -1), [keys.shape[-2], own.shape[-1]], -1)
    p = torch.unflatten(pad(p, (0, 0, 0, extra)), -2, (blocks, block))
    return (p @ values).flatten(-3, -2).narrow(-2, 0, ticks) + _for_each(mine, V)


def _for_each(x: Tensor, a: Tensor) -> Tensor:
    """x_t @ a_t for every tick; one product where a is the same at all of them."""
    if a.stride(-3) == 0 or a.shape[-3] == 1:
        return x @ a.select(-3, 0)
    return (x.unsqueeze(-2) @ a).squeeze(-2)


def _reached(x: Tensor, missing: int, extra: int, block: int, window: int) -> Tensor:
    """[..., blocks, (block + window - 1) * c, n]: the pairs that each block of queries can see."""
    line = pad(x, (0, 0, 0, 0, missing, extra)).unfold(-3, block + window - 1, block)
    return line.movedim(-1, -3).flatten(-3, -2)


def _seen(block: int, window: int, blocks: int, missing: int, like: Tensor) -> Tensor:
    """[blocks, block, block + window - 1]: which places lie in the window of each query."""
    width = block + window - 1
    place = torch.arange(width, device=like.device)
    ahead = place - torch.arange(block, device=like.device)[:, None]
    known = place + block * torch.arange(blocks, device=like.device)[:, None] >= missing
    return (ahead >= 0) & (ahead < window) & known[:, None]


def _skewed(weight: Tensor, blocks: int, block: int, extra: int, several: int) -> Tensor:
    """Rows of each query's window, [..., T, window, c], as rows over the places of a block."""
    window = weight.shape[-2]
    w = weight.expand(*weight.shape[:-1], several)
    w = torch.unflatten(pad(w, (0, 0, 0, 0, 0, extra)), -3, (blocks, block))
    # Rows longer by `block` than their window, read one place shorter, move on by one place each.
    w = pad(w, (0, 0, 0, block)).flatten(-3, -2).narrow(-2, 0, block * (window + block - 1))
    return torch.unflatten(w, -2, (block, window + block - 1)).flatten(-2)


def _log(weight: Tensor) -> Tensor:
    """With an axis for the pairs of a tick; the derivative of log where the weight is not 0."""
    none = weight <= 0
    return torch.where(none, -math.inf, torch.log(torch.where(none, 1.0, weight)))
