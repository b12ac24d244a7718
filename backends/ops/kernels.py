"""The door to the kernels of `backends/triton`: when they run, and their derivatives.

They run for tensors on a CUDA device in float32 or bfloat16, spans of 2 to 64 ticks, where Triton
is installed. On all else, while tracing, under torch.func, and where a second derivative is asked
for, torch's operations run, as in `by_hand`. NLC_TRITON=0 in the environment turns them off; with
TRITON_INTERPRET=1 they run on the CPU too, in Triton's interpreter.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from . import by_hand

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
TYPES = (torch.float32, torch.bfloat16)
TICKS = 64
MISSING = (
    "Triton is not installed, so memories on the GPU run in torch's own operations, with the same "
    "results: pip install triton for the kernels, or set NLC_TRITON=0 to go without them in silence"
)
OLD = "memories run in torch's own operations, as Triton's kernels need compute capability 8.0"


def ready(ticks: int, *given: Tensor | None) -> bool:
    """Whether the kernels can take a span of so many ticks, of these tensors, here and now."""
    first = given[0]
    if first is None or not (INTERPRETED or first.is_cuda) or not 1 < ticks <= TICKS:
        return False
    known = [v for v in given if v is not None]
    if any(v.dtype not in TYPES or v.device != first.device for v in known):
        return False
    return by_hand.allowed() and all(first.shape) and usable(first.device)


@cache
def usable(device: torch.device) -> bool:
    """Whether kernels run on a device at all; a person who could have them is told once why not."""
    if os.environ.get("NLC_TRITON") == "0" or device.type not in ("cuda", "cpu"):
        return False
    try:
        import_module("triton")
    except ImportError:
        warnings.warn(MISSING, stacklevel=2)
        return False
    if INTERPRETED:
        return True
    if torch.version.hip is not None:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        warnings.warn(f"{torch.cuda.get_device_name(device)}: {OLD}", stacklevel=2)
        return False
    return True


def _kernels() -> Any:
    return import_module("..triton", __package__)


def _rows(x: Tensor | None, lead: torch.Size) -> Tensor | None:
    """[..., a, b], which may lack leading axes, with one axis in place of them."""
    if x is None or (x.ndim == 3 and len(lead) == 1 and x.shape[0] == lead[0]):
        return x
    return x.expand(*lead, *x.shape[-2:]).reshape(-1, *x.shape[-2:])


def _alike(found: tuple[Tensor | None, ...], given: tuple[Tensor | None, ...]) -> Any:
    """What comes to each argument, in the argument's own type."""
    pairs = zip(found, given, strict=True)
    return tuple(g if g is None or x is None else g.to(x.dtype) for g, x in pairs)


# ---- what is left of writes ----------------------------------------------------------------------


class Products(by_hand.Products):
    """`by_hand.Products`, of factors [b, C]."""

    @staticmethod
    def forward(ctx: Any, factor: Tensor, plain: by_hand.Plain) -> Tensor:
        table: Tensor = _kernels().products(factor)
        ctx.plain = plain
        ctx.save_for_backward(factor, table)
        return table

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factor, table = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *by_hand.again(ctx.plain, [factor], [grad]), None
        return _kernels().products_back(table, grad), None


def products(factor: Tensor, plain: by_hand.Plain) -> Tensor:
    """[..., C + 1, C + 1], as `retention.products`."""
    ticks = factor.shape[-1]
    made = Products.apply(factor.reshape(-1, ticks), plain)  # type: ignore[no-untyped-call]
    return made.view(*factor.shape[:-1], ticks + 1, ticks + 1)  # type: ignore[no-any-return]


# ---- what a span answers, and leaves -------------------------------------------------------------


def _read(
    u: Tensor, x: Tensor, wrote: Tensor, w: Tensor, s: Tensor | None, table: Tensor,
    left: Tensor | None, of_s: Tensor | None,
) -> Tensor:  # fmt: skip
    asked = u.to(w.dtype)
    y = torch.bmm(asked if left is None else asked * left, w.mT)
    if s is not None and of_s is not None:
        y = y + torch.bmm(asked * of_s, s.mT)
    return torch.baddbmm(y, torch.bmm(asked, x.mT) * table, wrote).to(u.dtype)


class Read(torch.autograd.Function):
    """left (w u) + of_s (s u) + (u x' table) wrote: triton/reads.py."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor | None) -> Tensor:
        ctx.save_for_backward(*given)
        y: Tensor = _kernels().read(*given)
        return y

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        if torch.is_grad_enabled():
            return by_hand.again(_read, given, [bar])
        return _alike(_kernels().read_back(*given, bar), given)  # type: ignore[no-any-return]


def read(
    u: Tensor, x: Tensor, wrote: Tensor, w: Tensor, s: Tensor | None, table: Tensor,
    left: Tensor | None = None, of_s: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """[..., T, m] for u [..., T, n], with the leading axes of x; others may lack some."""
    lead = x.shape[:-2]
    given = [_rows(v, lead) for v in (u, x, wrote, w, s, table, left, of_s)]
    y: Tensor = Read.apply(*given)  # type: ignore[no-untyped-call]
    return y.view(*lead, *y.shape[-2:])


class Ended(by_hand.Ended):
    """`by_hand.Ended` in one pass over the states; its derivative is the same."""

    @staticmethod
    def forward(
        ctx: Any, plain: by_hand.Plain, w: Tensor, s: Tensor, x: Tensor, wrote: Tensor,
        *left: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        end, memory = _kernels().end(w, s, x, wrote, *left)
        ctx.plain = plain
        ctx.save_for_backward(w, s, x, wrote, *left)
        return end, memory


def _left(w: Tensor, x: Tensor, wrote: Tensor, last: Tensor, rest: Tensor) -> Tensor:
    return torch.baddbmm(w * rest, wrote.mT, x * last)


class Left(torch.autograd.Function):
    """The same without momentum: rest W + R' (last x)."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        ctx.save_for_backward(*given)
        w, x, wrote, last, rest = given
        end: Tensor = _kernels().end(w, None, x, wrote, last, rest)[0]
        return end

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        w, x, wrote, last, rest = given = ctx.saved_tensors
        if torch.is_grad_enabled():
            return by_hand.again(_left, given, [bar])
        seen = torch.bmm(wrote, bar)
        of_wrote = torch.bmm(x * last, bar.mT)
        of_last = (seen * x).sum(-1, keepdim=True)
        return bar * rest, seen * last, of_wrote, of_last, (bar * w).sum((-2, -1), keepdim=True)


def end(
    plain: by_hand.Plain, w: Tensor, s: Tensor | None, x: Tensor, wrote: Tensor,
    last: tuple[Tensor, ...], rest: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """(W_T, S_T) with the leading axes of x; last and rest as `retention.ScalarRetention`'s."""
    lead = x.shape[:-2]
    w, s, x, wrote, *left = (_rows(v, lead) for v in (w, s, x, wrote, *last, *rest))  # type: ignore[assignment]
    if s is None:
        made: Tensor = Left.apply(w, x, wrote, *left)  # type: ignore[no-untyped-call]
        return made.view(*lead, *made.shape[-2:]), None
    found = Ended.apply(plain, w, s, x, wrote, *left)  # type: ignore[no-untyped-call]
    W, S = (v.view(*lead, *v.shape[-2:]) for v in found)
    return W, S


# ---- what a span writes --------------------------------------------------------------------------


def _affine(
    x: Tensor, amount: Tensor, strength: Tensor, table: Tensor, left: Tensor | None
) -> tuple[Tensor, Tensor]:
    system = strength * torch.bmm(x, x.mT) * table
    right = torch.cat((amount, -strength * (x if left is None else x * left)), -1)
    made = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    U, Y = made.split((amount.shape[-1], x.shape[-1]), -1)
    return U, Y


class Affine(torch.autograd.Function):
    """U and Y, with what is written U + Y W_0': triton/writes.py."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        inverse, fixed, slope = _kernels().affine(*given)
        ctx.save_for_backward(*given, inverse, fixed, slope)
        return fixed, slope

    @staticmethod
    def backward(ctx: Any, of_fixed: Tensor, of_slope: Tensor) -> tuple[Tensor | None, ...]:
        *given, inverse, fixed, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            return by_hand.again(_affine, given, [of_fixed, of_slope])
        found = _kernels().affine_back(*given, inverse, fixed, slope, of_fixed, of_slope)
        return _alike(found, tuple(given))  # type: ignore[no-any-return]


def affine(
    x: Tensor, amount: Tensor, strength: Tensor, table: Tensor, left: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """U [..., C, m] and Y [..., C, n]; strength [..., C, 1] may lack leading axes of x."""
    lead = x.shape[:-2]
    given = [_rows(v, lead) for v in (x, amount, strength, table, left)]
    U, Y = Affine.apply(*given)  # type: ignore[no-untyped-call]
    return U.view(*lead, *U.shape[-2:]), Y.view(*lead, *Y.shape[-2:])


# ---- from chunk to chunk -------------------------------------------------------------------------


class Chained(torch.autograd.Function):
    """`by_hand.Chained` without momentum: triton/chain.py."""

    @staticmethod
    def forward(
        ctx: Any, plain: by_hand.Plain, start: Tensor, U: Tensor, Y: Tensor | None, T: Tensor,
        left: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        S, R, last = _kernels().chained(start, U, Y, T, left)
        ctx.plain = plain
        ctx.save_for_backward(start, U, Y, T, left, S, R)
        return S, U.view_as(U) if Y is None else R, last

    @staticmethod
    def backward(ctx: Any, of_S: Tensor, of_R: Tensor, of_end: Tensor) -> tuple[Tensor | None, ...]:
        start, U, Y, T, left, S, R = ctx.saved_tensors
        if torch.is_grad_enabled():
            given = [start, U, Y, T, *([] if left is None else [left])]
            found = by_hand.again(ctx.plain, given, [of_S, of_R, of_end])
            return None, *found, *([None] if left is None else [])
        G, of_U, of_start = _kernels().chained_back(Y, T, left, of_S, of_R, of_end)
        of_Y = None if Y is None else by_hand.product(of_U, S)
        of_left = None if left is None else by_hand.of_left(G, S, [left])[0]
        return None, of_start, of_U, of_Y, by_hand.product(R, G), of_left


def chains(n: int) -> bool:
    """Whether a state of n columns can be carried from chunk to chunk."""
    fits: bool = _kernels().fits(n)
    return fits
