"""The matrix that fits all pairs seen, older ones counting less (Mesa 2506.05233).

    H_t = keep_t H_{t-1} + w_t k_t k_t'        G_t = keep_t G_{t-1} + w_t v_t k_t'
    y_t = G_t (H_t + diag(ridge_t))^-1 q_t

H_t is made for the ticks of one chunk at a time and factored as it is (Cholesky): exact, and for
heads of up to some hundred channels no dearer than the thirty rounds of conjugate gradients that
published code spends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import by_hand
from .recurrence import Number, scan
from .retention import products

CHUNK = 32


def least_squares(
    H0: Tensor, G0: Tensor, q: Tensor, k: Tensor, v: Tensor, weight: Number, keep: Number,
    ridge: Number,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(y [..., T, m], H_T, G_T).

    H0, G0    [..., n, n], [..., m, n]
    q, k, v   [..., T, n], [..., T, n], [..., T, m]
    weight    above 0: a number or [..., T]
    keep      what `fade` leaves from one tick to the next: a number or [..., T]
    ridge     above 0: a number, [..., T] or one an input channel [..., T, n]
    """
    with torch.autocast(q.device.type, enabled=False):
        wide = H0.dtype
        x, u = k.to(wide), q.to(wide)
        time = x.shape[-2]

        def row(value: Number) -> Tensor:
            if isinstance(value, Tensor):
                return value.to(wide).expand(x.shape[:-1])
            return x.new_full(x.shape[:-1], value)

        amount = row(weight).unsqueeze(-1) * x
        if isinstance(ridge, Tensor) and ridge.ndim == x.ndim:
            diagonal = ridge.to(wide).expand_as(x)
        else:
            diagonal = row(ridge).unsqueeze(-1).expand_as(x)
        asked, H = [], H0
        chunks = [torch.split(t, CHUNK, -2) for t in (x, amount, diagonal, u)]
        each = zip(*chunks, torch.split(row(keep), CHUNK, -1), strict=True)
        for keys, amounts, ridges, queries, keeps in each if time else ():
            moments = _moments(H, keys, amounts, keeps)
            asked.append(_met(moments, ridges, queries))
            H = moments[..., -1, :, :]
        met = torch.cat(asked, -2) if asked else u
        y, G, _ = scan(G0, met, k, -v, weight, keep)
        return y.to(q.dtype), H, G


def _moments(H: Tensor, k: Tensor, amount: Tensor, keep: Tensor) -> Tensor:
    """[..., C, n, n]: H after each tick of a chunk."""
    table = products(keep)
    start, left = table[..., 1:, :1].unsqueeze(-1), table[..., 1:, 1:]
    squares = (amount.unsqueeze(-1) * k.unsqueeze(-2)).flatten(-2)
    return start * H.unsqueeze(-3) + torch.unflatten(left @ squares, -1, H.shape[-2:])


def _met(moments: Tensor, ridge: Tensor, q: Tensor) -> Tensor:
    """(H + diag ridge)^-1 q. A sample that is not a number stays one, and says so alone; so does
    one without a least (a ridge that is not above 0, where the keys alone give none).
    """
    factor, failed = torch.linalg.cholesky_ex(moments + torch.diag_embed(ridge))
    lost = failed > 0
    if by_hand.transformed() or not lost.is_meta and bool(lost.any()):
        ridge = torch.where(lost.unsqueeze(-1), _found_again(moments, ridge), ridge)
        factor, failed = torch.linalg.cholesky_ex(moments + torch.diag_embed(ridge))
    met = torch.cholesky_solve(q.unsqueeze(-1), factor).squeeze(-1)
    return met.masked_fill((failed > 0).unsqueeze(-1), torch.nan)


def _found_again(moments: Tensor, ridge: Tensor) -> Tensor:
    """A ridge above 0 that was lost in the rounding of H, as large as that may be."""
    largest = moments.detach().diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
    rounding = 4 * moments.shape[-1] * torch.finfo(moments.dtype).eps * largest
    return torch.where(ridge > 0, torch.maximum(ridge, rounding), ridge)
