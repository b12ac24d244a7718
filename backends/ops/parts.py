"""The small pieces of a flow, on spans of any length.

Functions of a vector work on the last axis; every one is the same for a token and for a span.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ..ids import places
from . import by_hand

SMALL = 1e-6
WIDE = (torch.float32, torch.float64)


def rms_norm(x: Tensor, gain: Tensor, eps: float = SMALL) -> Tensor:
    """x / sqrt(mean x^2 + eps) * gain; x [..., n], gain [n] (1910.07467)."""
    return _shortened(x, 1 / max(x.shape[-1], 1), eps) * gain


def layer_norm(x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """(x - mean) / sqrt(var + 1e-6) * gain + bias; x [..., n], gain, bias [n] (1607.06450)."""
    if by_hand.PLAINLY.get():  # torch's own third derivative is another one (2.13)
        wide = _wide(x)
        centred = wide - wide.mean(-1, keepdim=True)
        deviation = torch.sqrt(centred.square().mean(-1, keepdim=True) + SMALL)
        made = (centred / deviation).to(x.dtype)
        made = made if gain is None else made * gain
        return made if bias is None else made + bias
    return functional.layer_norm(x, x.shape[-1:], gain, bias, SMALL)


def unit(x: Tensor) -> Tensor:
    """x / sqrt(sum x^2 + 1e-30); x [..., n]."""
    return _shortened(x, 1.0, 1e-30)


def _shortened(x: Tensor, share: float, small: float) -> Tensor:
    """x / sqrt(share sum x^2 + small)."""
    wide, plain = _wide(x), partial(_short, share=share, small=small)
    by = plain
    if wide.requires_grad and torch.is_grad_enabled() and by_hand.allowed():
        by = partial(by_hand.Shortened.apply, plain, share, small)
    short: Tensor = by(wide)
    return short.to(x.dtype)


def _short(x: Tensor, share: float, small: float) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) * share + small)


def smooth_abs(x: Tensor) -> Tensor:
    """sqrt(x^2 + 1e-6), element by element (MIRAS 2504.13173: gradients flow through the kink)."""
    return torch.sqrt(x.square() + SMALL)


def smooth_sign(x: Tensor) -> Tensor:
    """x / sqrt(x^2 + 1e-6), element by element: the derivative of `smooth_abs`."""
    return x * torch.rsqrt(x.square() + SMALL)


def length(x: Tensor, p: float = 2) -> Tensor:
    """(sum |x|^p)^(1/p), p >= 1; [..., n] -> [...]. Its derivative at 0 is 0."""
    wide = _wide(x)
    # |x|^2 would lose the second derivative of x^2 where x = 0.
    total = (wide.square() if p == 2 else wide.abs().pow(p)).sum(-1)
    nought = total == 0
    return torch.where(nought, 0.0, torch.where(nought, 1.0, total).pow(1 / p)).to(x.dtype)


def sqrt(x: Tensor) -> Tensor:
    """The root, element by element. Its derivative at 0 is 0, and so is every further one."""
    nought = x == 0
    return torch.where(nought, 0.0, torch.where(nought, 1.0, x).sqrt())


def sqrt_slope(x: Tensor) -> Tensor:
    """The derivative of `sqrt`, 0 at 0: 1 / (2 sqrt(x))."""
    nought = x == 0
    return torch.where(nought, 0.0, 0.5 * torch.where(nought, 1.0, x).rsqrt())


def power(x: Tensor | float, p: Tensor | float) -> Tensor:
    """x^p, element by element. Of x = 0 its derivative is 0 where p is below 1, and the second one
    where p is below 2: they would be infinite.
    """
    if not isinstance(x, Tensor):
        return torch.as_tensor(x**p)
    steep = (x == 0) & (p > 0) & (p != 1) & (p < 2)
    return torch.where(steep, 0.0, torch.where(steep, 1.0, x) ** p)


def rope(x: Tensor, position: Tensor, axis: int, base: float = 10000.0) -> Tensor:
    """Rotary positions (2104.09864), the first half of the features paired with the second.

    (a, b) -> (a cos - b sin, b cos + a sin)    angle = position / base^(2 i / n), i < n / 2

    x [B, ..., n] with time on `axis`; position [T], or [B, T].
    """
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    power = torch.arange(half, device=x.device, dtype=wide) / half
    angle = position.to(wide).unsqueeze(-1) * torch.pow(base, -power)
    shape = [1] * x.ndim
    shape[axis], shape[-1] = position.shape[-1], half
    shape[0] = position.shape[0] if position.ndim == 2 else shape[0]
    cos, sin = (f(angle).view(shape).to(x.dtype) for f in (torch.cos, torch.sin))
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def causal_conv(
    x: Tensor, weight: Tensor, past: Tensor, hold: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """y_t = sum_i weight[:, i] x_{t - (taps - 1) + i}, each channel for itself.

    x [B, T, ..., n], weight [n, taps], past [B, taps - 1, ..., n] (the inputs before x, oldest
    first) -> y [B, T, ..., n]. Every input but the token's own passes through `hold`, in the span
    as
    well as before it.
    """
    ticks, taps = x.shape[1], weight.shape[-1]
    line = torch.cat((past, x), 1)
    seen = line if hold is None else hold(line)
    y = x * weight[:, -1]
    for tap in range(taps - 1):
        y = y + seen.narrow(1, tap, ticks) * weight[:, tap]
    return y


def _wide(x: Tensor) -> Tensor:
    """Sums of squares are made in float32 at least."""
    return x if x.dtype in WIDE else x.float()


def length_slope(x: Tensor, p: float = 2) -> Tensor:
    """The derivative of `length`, 0 at 0: sign(x) |x|^(p-1) / length^(p-1)."""
    size = length(x, p).unsqueeze(-1)
    safe = torch.where(size == 0, torch.ones_like(size), size)
    slope = torch.sign(x) * (x.abs() / safe) ** (p - 1) if p != 2 else x / safe
    return torch.where(size == 0, torch.zeros_like(x), slope)


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), element by element (1606.08415, by erf)."""
    return by_hand.gelu(x)


def gelu_back(bar: Tensor, x: Tensor) -> Tensor:
    """bar (Phi(x) + x phi(x)): the cotangent of x from that of gelu(x), in one operation."""
    if bar.dtype != x.dtype:
        wide = torch.promote_types(bar.dtype, x.dtype)
        bar, x = bar.to(wide), x.to(wide)
    back: Tensor = (
        by_hand.GeluBack.apply(bar, x)  # type: ignore[no-untyped-call]
        if by_hand.allowed()
        else by_hand.gelu_backward(bar, x)
    )
    return back


def gelu_slope(x: Tensor) -> Tensor:
    """The derivative of gelu (by erf): Phi(x) + x phi(x)."""
    density = torch.exp(-0.5 * x * x) * 0.3989422804014327
    return 0.5 * (1 + torch.erf(x * 0.7071067811865476)) + x * density


def silu_slope(x: Tensor) -> Tensor:
    """The derivative of silu: s (1 + x (1 - s)) with s = sigmoid(x)."""
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def layer_norm_back(bar: Tensor, x: Tensor) -> Tensor:
    """The cotangent of x from that of layer_norm(x), without gain: (bar - mean bar - z mean(bar z))
    / deviation.
    """
    wide = _wide(x)
    centred = wide - wide.mean(-1, keepdim=True)
    deviation = torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    z = centred / deviation
    b = _wide(bar)
    back = (b - b.mean(-1, keepdim=True) - z * (b * z).mean(-1, keepdim=True)) / deviation
    return back.to(x.dtype)


def ones(like: Tensor) -> Tensor:
    """1 for every vector: [..., 1] for [..., n]."""
    return like.new_ones(*like.shape[:-1], 1)


def only(x: Tensor, seen: Tensor) -> Tensor:
    """x where `seen` is 1, else 0."""
    return torch.where(seen != 0, x, 0.0)


def top(x: Tensor, k: int) -> Tensor:
    """1 for the k largest of the last axis, else 0; of equal ones the first. No gradient."""
    order = torch.sort(x.detach(), dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(x.detach()).scatter(-1, order[..., : min(k, x.shape[-1])], 1.0)


def orthogonal(x: Tensor) -> Tensor:
    """The orthogonal factor of QR, R's diagonal positive; x [..., n, m]."""
    q, r = torch.linalg.qr(x)
    signs = torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(x.dtype)
    turned: Tensor = q * signs.unsqueeze(-2)
    return turned


def entries(x: Tensor, at: Tensor) -> Tensor:
    """x[at] for lists [..., n] and numbers [..., k], the leading axes broadcast."""
    wide = torch.broadcast_shapes(x.shape[:-1], at.shape[:-1])  # type: ignore[no-untyped-call]
    at = places(at, x.shape[-1])
    return torch.gather(x.expand(*wide, x.shape[-1]), -1, at.expand(*wide, at.shape[-1]))


def rows(table: Tensor, ids: Tensor) -> Tensor:
    """[..., n]: the rows of a table [rows, n] that have these numbers [...]."""
    return functional.embedding(places(ids, table.shape[0]), table)


def lookup(table: Tensor, ids: Tensor, per: int = 0) -> Tensor:
    """The rows of these numbers, each sample's of its own table, and each head's.

    table [batch, .., *heads, rows, n]; ids [batch, .., *k, *heads], with `per` axes of heads
    -> [batch, .., *k, *heads, n]. A batch of 1 is for all samples.
    """
    own = table.ndim - 2
    axes = [a if a < own - per else ids.ndim - own + a for a in range(own)]
    at = [
        torch.arange(n, device=ids.device).view([n if a == p else 1 for a in range(ids.ndim)])
        for n, p in zip(table.shape[:-2], axes, strict=True)
    ]
    return table[(*at, places(ids, table.shape[-2]))]
