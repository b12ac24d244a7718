"""What is wrong in float32 alone. The other rows compare in float64, where a cast to fewer digits,
an exponential that overflows or a sum that cancels may leave no trace.

What may be lost is measured: so many times as OVER_REFERENCE says what the reference loses when
each number that it makes is rounded to float32. In a call of many tokens, which the reference would
take long to run, as much for each token, or OVER_BITS times what other last bits of the inputs do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..diagnostics import Unsettled
from .properties import MANY, Measured
from .streams import Grads, Streams, farthest

Found = TypeVar("Found")

LAST_BIT = 2.0**-23  # of a number, float32
SURE = 1e-5  # of the largest number: so near, nothing more is asked
OVER_REFERENCE = 32  # the most that shipped systems and memories lose is 17 times as much
OVER_BITS = 1000  # 660 times
DIGITS = 0.1  # a bar above it leaves nothing to compare
FEWER = 9, 5, 3  # tokens, where rounding grows
LARGEST = 1e37  # float32 ends at 3.4e38


class Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While every float64 number that is made is rounded to float32."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        told = func._schema
        if told.is_mutable:
            for a, x in zip(told.arguments, args, strict=False):
                if a.alias_info is not None and a.alias_info.is_write and is_double(x):
                    x.copy_(x.float())
            return made
        if any(r.alias_info is not None for r in told.returns):  # a view
            return made
        return tree_map(lambda x: x.float().double() if is_double(x) else x, made)


def is_double(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float64


def fitting(streams: Streams, dtype: torch.dtype) -> Streams:
    """Numbers in this type; ids as they are."""
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in streams)


def held(streams: Streams) -> Streams:
    """In float64, what float32 can hold."""
    return fitting(fitting(streams, torch.float32), torch.float64)


def beside(x: Tensor) -> Tensor:
    """A number whose last bits are others."""
    drawn = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x * (1 + LAST_BIT * (2 * drawn - 1)) if x.is_floating_point() else x


def rounded(run: Callable[[], Found], otherwise: Callable[[], Found]) -> Found:
    """What is found while it is rounded; what is solved to the last digit may not come to an end
    with fewer.
    """
    try:
        with Rounded():  # type: ignore[no-untyped-call]
            return run()
    except Unsettled:
        return otherwise()


@dataclass(frozen=True)
class Single:
    """A property in float32. `found`: what is compared, of streams, computed in a type; `lost`: how
    far rounding moves the reference in so many tokens; `bent`: what is found in float64 with other
    last bits. `least`: as for `farthest`.
    """

    name: str
    drawn: Callable[[int], Streams]
    found: Callable[[Streams, torch.dtype], Grads]
    lost: Callable[[int], float]
    bent: Callable[[Streams], Grads]
    least: float = 1e-6

    def measured(self, tokens: int) -> Measured:
        """The worst of a call of these tokens and of many: each the longest that has digits to
        compare. Not even the fewest may be without.
        """
        last = (self.of_many(ticks, tokens) for ticks in MANY if ticks > tokens)
        first = self.of_few(tokens)
        for fewer in (n for n in FEWER if n < tokens):
            if compares(first):
                break
            first = self.of_few(fewer)
        both = [first, *islice(filter(compares, last), 1)]
        return max(both, key=lambda m: (not m.holds, m.value / m.bar))

    def of_few(self, ticks: int) -> Measured:
        """Where other last bits explain it, the reference need not run."""
        by_bits, measured = self.compared(ticks)
        sooner = judged(measured, lambda: OVER_REFERENCE * by_bits())
        return sooner if sooner.holds else judged(measured, lambda: self.most(ticks))

    def of_many(self, ticks: int, few: int) -> Measured:
        by_bits, measured = self.compared(ticks)
        sooner = judged(measured, lambda: OVER_BITS * by_bits())
        if sooner.holds or not compares(sooner):
            return sooner
        return judged(measured, lambda: self.most(few) * ticks / few)

    def most(self, ticks: int) -> float:
        return OVER_REFERENCE * self.lost(ticks)

    def compared(self, ticks: int) -> tuple[Callable[[], float], Measured]:
        """What other last bits do, and how far float32 is from float64, of streams that float32 can
        hold.
        """
        x = held(self.drawn(ticks))
        wanted = self.found(x, torch.float64)
        found = {n: a.double() for n, a in self.found(x, torch.float32).items()}
        value, where = farthest(found, wanted, self.least)
        at = ", ".join(filter(None, [where, f"{ticks} tokens"]))

        def by_bits() -> float:
            if any(map(too_large, wanted.values())):
                return math.inf
            return farthest(self.bent(x), wanted, self.least)[0]

        return by_bits, Measured(self.name, value, SURE, at)


def judged(measured: Measured, most: Callable[[], float]) -> Measured:
    """A distance, held to the power of ten above what rounding alone may come to."""
    if measured.holds:
        return measured
    far = most()
    at = f"{measured.at}; rounding alone may move it by {far:.0e}"
    return replace(measured, bar=bar_of(far), at=at, bent=far)


def bar_of(most: float) -> float:
    """The next power of ten, so that it is the same wherever it is measured."""
    if not most <= DIGITS:
        return SURE
    return max(SURE, 10.0 ** math.ceil(math.log10(most) - 1e-9)) if most > 0 else SURE


def compares(measured: Measured) -> bool:
    return measured.holds or measured.bent <= DIGITS


def too_large(x: Tensor) -> bool:
    """For float32."""
    return not bool((x.detach().abs() < LARGEST).all())
