"""The door to flash-linear-attention's kernels: when they run a scan, and with which arguments.

    W_t = keep_t W_{t-1} - rate_t (e_t + erase keep_t W_{t-1} x_t) x_t'        y_t = W_t q_t

is theirs with S = W', k = x, v = -e, beta = rate and g = log keep, scale 1:

    nothing erased     v = -rate e      chunk_simple_gla, or chunk_gla for one keep a channel
    erase 1            beta = rate      chunk_delta_rule, chunk_gated_delta_rule, chunk_kda

They run where `fla` of a known version is installed, on a CUDA device, for queries, keys and values
in bfloat16 or float16, of 16 to 256 channels, over 64 ticks or more; states and gates are float32.
Their products are of 8 or 11 binary digits, so float32 goes another way (recurrence.py), as does
all that is traced, is under torch.func, or is derived twice. NLC_FLA=0 in the environment leaves
them out.

They ask for logarithms, so a keep below FLOOR counts as FLOOR, with no gradient: what it lets
through of a state is less than float32's last digit. A keep below nought has no logarithm, and
answers NaN.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nlc.kernels import FLA, TICKS, WIDTHS, Ticks, fla_kernel

from . import by_hand

Number = Tensor | float

DEVICES = {"cuda"}
TYPES = torch.bfloat16, torch.float16
FLOOR = 2.0**-24

OTHER = (
    "flash-linear-attention {version} is installed, and nlc knows 0.4 to 0.6, so memories on the "
    "GPU run without it: install one of these, or set NLC_FLA=0 to go without it in silence"
)
BROKEN = (
    "flash-linear-attention cannot be imported ({error}), so memories on the GPU run without it: "
    "mend it, or set NLC_FLA=0 to go without it in silence"
)


class Scan(NamedTuple):
    """What `recurrence.scan` is asked; shapes as there."""

    w: Tensor
    q: Tensor
    x: Tensor
    e: Tensor
    rate: Number
    keep: Number
    erase: Number
    retained: bool
    aim: bool = False  # whether e is v itself

    @property
    def channels(self) -> bool:
        return isinstance(self.keep, Tensor) and self.keep.ndim == self.x.ndim

    @property
    def all_kept(self) -> bool:
        return not isinstance(self.keep, Tensor) and self.keep == 1.0

    def kernel(self) -> tuple[str, str] | None:
        """Where the one is that means the same."""
        erase = None if isinstance(self.erase, Tensor) else float(self.erase)
        rates = isinstance(self.rate, Tensor) and self.rate.ndim == self.x.ndim
        return fla_kernel(Ticks(erase, self.all_kept, self.channels, self.retained, rates))

    def tensors(self) -> tuple[Tensor | None, ...]:
        gates = (g if isinstance(g, Tensor) else None for g in (self.rate, self.keep))
        return self.w, self.q, self.x, self.e, *gates

    def fits(self) -> bool:
        """Whether a kernel takes these tensors."""
        half, gates = self.q.dtype, [v for v in self.tensors() if v is not None]
        alike = half in TYPES and self.x.dtype == half and self.e.dtype == half
        if not alike or any(v.dtype not in (half, torch.float32) for v in gates):
            return False
        if any(v.device != self.q.device for v in gates):
            return False
        if not isinstance(self.keep, Tensor) and self.keep < 0:
            return False
        sizes = self.x.shape[-1], self.e.shape[-1]
        return self.x.shape[-2] >= TICKS and all(n in WIDTHS for n in sizes)


def takes(asked: Scan) -> bool:
    """Whether it runs there, here and now."""
    if asked.x.device.type not in DEVICES or not all(asked.x.shape) or not asked.fits():
        return False
    return asked.kernel() is not None and by_hand.allowed() and usable()


def could_take(ticks: int, device: torch.device) -> bool:
    """Whether it takes scans of so many ticks there, if they mean the same."""
    return ticks >= TICKS and device.type in DEVICES and by_hand.allowed() and usable()


@cache
def usable() -> bool:
    """Whether it is installed and known; a person who has another one is told once."""
    if os.environ.get("NLC_FLA") == "0":
        return False
    try:
        version = str(import_module("fla").__version__)
    except ModuleNotFoundError as error:
        if error.name != "fla":
            warnings.warn(BROKEN.format(error=error), stacklevel=2)
        return False
    except Exception as error:  # whatever another package raises while it is imported
        warnings.warn(BROKEN.format(error=error), stacklevel=2)
        return False
    found = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if FLA[0] <= found < FLA[1]:
        return True
    warnings.warn(OTHER.format(version=version), stacklevel=2)
    return False


def scan(asked: Scan, plain: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """y [..., T, m] and W_T; `plain`, of the tensors, is what a second derivative is taken of."""
    y, end = _run(asked)
    given = asked.tensors()
    if not (torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in given)):
        return y, end
    made: tuple[Tensor, Tensor] = Once.apply(plain, y, end, *given)  # type: ignore[no-untyped-call]
    return made


class Once(torch.autograd.Function):
    """What the kernels made, and their derivative. They have no second one: where it is asked for,
    gradients go through `plain`.
    """

    @staticmethod
    def forward(
        ctx: Any, plain: by_hand.Plain, y: Tensor, end: Tensor, *given: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.plain = plain
        ctx.save_for_backward(*given)
        return y.view_as(y), end.view_as(end)

    @staticmethod
    def backward(ctx: Any, of_y: Tensor, of_end: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, None, *by_hand.again(ctx.plain, given, [of_y, of_end])
        return None, of_y, of_end, *[None] * len(given)


def _run(asked: Scan) -> tuple[Tensor, Tensor]:
    *lead, ticks, _ = asked.x.shape
    found = asked.kernel()
    assert found is not None
    kernel = getattr(import_module(found[0]), found[1])

    def laid(value: Tensor, own: int) -> Tensor:
        """[..., T, *own] -> [batch, T, heads, *own]."""
        every = value.expand(*lead, *value.shape[value.ndim - 1 - own :])
        heads = lead[-1] if len(lead) > 1 else 1
        return every.reshape(-1, heads, *every.shape[len(lead) :]).transpose(1, 2)

    def row(value: Number) -> Tensor:
        """One number a tick, [batch, T, heads]."""
        if not isinstance(value, Tensor):
            value = asked.x.new_full((ticks,), value, dtype=torch.float32)
        return laid(value.float(), 0)

    q, k, v = laid(asked.q, 1), laid(asked.x, 1), laid(asked.e if asked.aim else -asked.e, 1)
    start = asked.w.float()
    start = start.expand(*lead, *start.shape[-2:]).reshape(-1, q.shape[2], *start.shape[-2:])
    gates: dict[str, Tensor] = {}
    if asked.erase:
        gates["beta"] = row(asked.rate)
    elif isinstance(asked.rate, Tensor):
        v = (row(asked.rate).unsqueeze(-1) * v).to(v.dtype)
    elif asked.rate != 1.0:
        v = v * asked.rate
    if not asked.all_kept:
        keep = asked.keep
        kept = laid(keep.float(), 1) if asked.channels and isinstance(keep, Tensor) else row(keep)
        gates["g"] = logarithm(kept)
    y, end = kernel(
        q, k, v, **gates, scale=1.0, initial_state=start.mT.contiguous(), output_final_state=True
    )
    answer = y.transpose(1, 2).reshape(*lead, ticks, y.shape[-1])
    return answer, end.mT.reshape(*lead, *start.shape[-2:])


def logarithm(keep: Tensor) -> Tensor:
    """log keep, of FLOOR at least, and NaN below nought."""
    floored = keep.clamp(min=FLOOR).log()
    return torch.where(keep < 0, torch.nan, floored)
