"""How far other last bits of the weights move what the reference finds: no algorithm, which adds up
in another order, can promise less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..backends.reference import Reference
from ..system import System
from .properties import Measured
from .streams import Grads, Streams, farthest

LAST_BITS = 1e-15  # of a weight, float64
DRAWS = 4
CHAOS = 1e-3  # moved by more, a number has no digits that could be compared
Found = Callable[[Reference], Grads]


def nearby(system: System, weights: Mapping[str, Tensor], draw: int = 0) -> Reference:
    """The reference with weights that differ in their last bits."""
    moved = other_bits(tuple(weights.values()), draw)
    return Reference(system, dict(zip(weights, moved, strict=True)), traced=())


def other_bits(numbers: Streams, draw: int) -> Streams:
    """Numbers that differ in their last bits."""
    drawn = torch.Generator().manual_seed(draw)
    return tuple(
        x * (1 + LAST_BITS * torch.randn(x.shape, generator=drawn, dtype=x.dtype)) for x in numbers
    )


def bend(system: System, weights: Mapping[str, Tensor], found: Found, least: float = 1e-6) -> float:
    """How far the last bits move what is `found`, in any array; `least`: as for `farthest`."""
    wanted = found(Reference(system, weights, traced=()))
    near = (found(nearby(system, weights, draw)) for draw in range(DRAWS))
    return max(farthest(other, wanted, least)[0] for other in near)


def judged(measured: Measured, bent: Callable[[], float]) -> Measured:
    """What is too far is held to what rounding alone does, unless that leaves nothing to hold."""
    if measured.holds:
        return measured
    far = bent()
    said = f"{measured.at}; rounding alone moves the reference by {far:.1e}".removeprefix("; ")
    bar = max(measured.bar, far) if far <= CHAOS else measured.bar
    return replace(measured, bar=bar, at=said, bent=far)


def comparable(lengths: Iterable[int], measured: Callable[[int], Measured]) -> Measured:
    """At the first of these lengths where rounding leaves digits to compare, or the last."""
    found = None
    for ticks in lengths:
        found = measured(ticks)
        if found.bent <= CHAOS:
            break
    assert found is not None
    return found
