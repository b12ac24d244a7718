"""The functions of the language over arrays (2.12), each as it is written there."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nlc.system import Shape

from ..ids import places


def number(x: Any) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64)


def root(x: Tensor) -> Tensor:
    """The square root, of derivative 0 at 0."""
    nought = x == 0
    return torch.where(nought, 0.0, torch.sqrt(torch.where(nought, 1.0, x)))


def power(x: Tensor, p: Tensor) -> Tensor:
    """x^p, of derivative 0 at 0 where that is infinite: the first below 1, the second below 2."""
    steep = (x == 0) & (p > 0) & (p != 1) & (p < 2)
    return torch.where(steep, 0.0, torch.pow(torch.where(steep, 1.0, x), p))


def length(x: Tensor, p: float) -> Tensor:
    """Over the last axis; 0 has derivative 0."""
    if p == 2:
        return root((x * x).sum(-1))
    total = (x.abs() ** p).sum(-1)
    positive = total > 0
    return torch.where(positive, torch.pow(torch.where(positive, total, 1.0), 1 / p), 0.0)


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-30)


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def top(x: Tensor, k: int) -> Tensor:
    """1 for the k largest of the last axis, else 0; of equal ones the first."""
    order = torch.sort(x.detach(), dim=-1, descending=True, stable=True).indices
    chosen = order[..., : min(k, x.shape[-1])]
    return torch.zeros_like(x.detach()).scatter(-1, chosen, 1.0)


def orthogonal(a: Tensor) -> Tensor:
    """The orthogonal factor, R's diagonal positive."""
    q, r = torch.linalg.qr(a)
    signs = torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(a.dtype)
    turned: Tensor = q * signs.unsqueeze(-2)
    return turned


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * gain


def layer_norm(x: Tensor, gain: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    out = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-6)
    out = out if gain is None else out * gain
    return out if bias is None else out + bias


def lookup(table: Tensor, ids: Tensor) -> Tensor:
    """[.., *heads, n] from a table [*heads, rows, n] and numbers [.., *heads]: a row a head."""
    at = places(ids, table.shape[-2])
    sizes = [torch.arange(n) for n in table.shape[:-2]]
    heads = torch.meshgrid(*sizes, indexing="ij") if sizes else ()
    return table[(*heads, at)]


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    logs = torch.log_softmax(logits, -1)
    return -logs.gather(-1, label.long().unsqueeze(-1)).squeeze(-1)


def scrambled(x: int) -> int:
    """lowbias32 (Chris Wellons, hash-prospector): the mixer of 32 bits that 2.12 names."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> shift) * factor % 2**32
    return x ^ x >> 16


def drawn(name: str, place: tuple[int, ...], shape: Shape) -> Tensor:
    """A number from 0 to 2^32 for each entry, of the name and the place alone (2.12)."""
    state = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    for coordinate in place:
        state = scrambled(state ^ scrambled((coordinate + 0x9E3779B9) % 2**32))
    numbers = [
        scrambled(state ^ scrambled((entry + 0x9E3779B9) % 2**32))
        for entry in range(math.prod(shape))
    ]
    return torch.tensor(numbers, dtype=torch.int64).reshape(shape)


def normal(name: str, place: tuple[int, ...], shape: Shape) -> Tensor:
    """Normal numbers by Box and Muller, from the draws 0 and 1 of each entry (2.12)."""
    made = []
    for entry in range(math.prod(shape)):
        a, b = ((int(x) + 0.5) / 2**32 for x in drawn(name, (*place, entry), (2,)))
        made.append(math.sqrt(-2 * math.log(a)) * math.cos(2 * math.pi * b))
    return number(made).reshape(shape)


def rope(x: Tensor, position: int, base: float) -> Tensor:
    """Halves turned by `position`, in `base`."""
    half = x.shape[-1] // 2
    angle = position * base ** (-torch.arange(half, dtype=torch.float64) / half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def joint(*shapes: Shape) -> Shape:
    """The shape to which all of them stretch (2.5.2)."""
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]


def concat(*parts: Tensor) -> Tensor:
    lead = joint(*(p.shape[:-1] for p in parts))
    return torch.cat([p.expand(*lead, p.shape[-1]) for p in parts], -1)


def product(weight: Tensor, x: Tensor) -> Tensor:
    """`W @ x`, the heads of W against the last axes of x before its own (2.4.2)."""
    return (weight @ x.unsqueeze(-1)).squeeze(-1)


def compare(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: f(a, b).to(torch.float64)


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp, "log": torch.log, "sqrt": root, "abs": torch.abs, "sign": torch.sign,
    "sin": torch.sin, "cos": torch.cos, "floor": torch.floor, "sigmoid": torch.sigmoid,
    "softplus": softplus, "silu": lambda x: x * torch.sigmoid(x), "tanh": torch.tanh,
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), "relu": torch.relu,
    "smooth_abs": lambda x: torch.sqrt(x * x + 1e-6),
    "smooth_sign": lambda x: x / torch.sqrt(x * x + 1e-6),
    "neg": torch.neg,
}  # fmt: skip

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": power,
    "lt": compare(torch.lt), "le": compare(torch.le), "gt": compare(torch.gt),
    "ge": compare(torch.ge), "eq": compare(torch.eq),
    "mod": lambda a, b: a - b * torch.floor(a / b), "min": torch.minimum, "max": torch.maximum,
}  # fmt: skip

# op -> f(arguments, info, shape of the term)
OTHERS: dict[str, Callable[[list[Tensor], Any, Shape], Tensor]] = {
    "clip": lambda a, i, s: torch.clamp(a[0], a[1], a[2]),
    "where": lambda a, i, s: torch.where(a[0] != 0, a[1], a[2]),
    "matmul": lambda a, i, s: a[0] @ a[1],
    "dot": lambda a, i, s: (a[0] * a[1]).sum(-1),
    "outer": lambda a, i, s: a[0].unsqueeze(-1) * a[1].unsqueeze(-2),
    "length": lambda a, i, s: length(a[0], float(i)),
    "unit": lambda a, i, s: unit(a[0]),
    "frobenius": lambda a, i, s: root((a[0] * a[0]).sum()),
    "sum": lambda a, i, s: a[0].sum() if i is None else a[0].sum(-1),
    "mean": lambda a, i, s: a[0].mean() if i is None else a[0].mean(-1),
    "solve": lambda a, i, s: torch.linalg.solve(a[1], a[0], left=False)
    if a[0].ndim > 1
    else torch.linalg.solve(a[1], a[0].unsqueeze(0), left=False).squeeze(0),
    "qr": lambda a, i, s: orthogonal(a[0]),
    "top": lambda a, i, s: top(a[0], i),
    "softmax": lambda a, i, s: torch.softmax(a[0], -1),
    "split": lambda a, i, s: split(a[0], i),
    "join": lambda a, i, s: a[0].reshape(*a[0].shape[:-2], -1),
    "column": lambda a, i, s: a[0].unsqueeze(-1),
    "squeeze": lambda a, i, s: a[0].squeeze(-1),
    "stack": lambda a, i, s: torch.stack([x.expand(joint(*(y.shape for y in a))) for x in a], -1),
    "concat": lambda a, i, s: concat(*a),
    "reshape": lambda a, i, s: a[0].reshape([max(n, -1) for n in s]),
    "transpose": lambda a, i, s: a[0].transpose(-1, -2),
    "item": lambda a, i, s: a[0][i],
    "index": lambda a, i, s: a[0][places(a[1], a[0].shape[0])],
    "linear": lambda a, i, s: product(a[1], a[0]),
    "rms_norm": lambda a, i, s: rms_norm(a[0], a[1], i),
    "layer_norm": lambda a, i, s: layer_norm(*a),
    "embed": lambda a, i, s: a[1][places(a[0], a[1].shape[0])],
    "cross_entropy": lambda a, i, s: cross_entropy(*a),
    "range": lambda a, i, s: torch.arange(i, dtype=torch.float64),
    "eye": lambda a, i, s: torch.eye(i, dtype=torch.float64),
}  # fmt: skip
