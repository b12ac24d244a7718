"""Draws that are a function of where they are: no generator, no order.

The number at a place is `turn(.. turn(turn(begin, a), b) .., z)` over the coordinates of the place
(language.md 2.12), in 32 bits. `mixed` is lowbias32 (Chris Wellons, hash-prospector, public domain;
https://nullprogram.com/blog/2018/07/31/): each bit that goes in turns about half of those that come
out. It is written in int64, of which no product here is too large, so that every device and torch
has the same numbers.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
FIRST, SECOND = 0x7FEB352D, 0x846CA68B - 2**32  # the second less 2^32: products stay below 2^63
APART = 0x9E3779B9  # 2^32 by the golden ratio: a coordinate of 0 is no 0


def mixed(x: Tensor) -> Tensor:
    """lowbias32 of numbers below 2^32; `x` is written over."""
    x ^= x >> 16
    x *= FIRST
    x &= MASK
    x ^= x >> 15
    x *= SECOND
    x &= MASK
    x ^= x >> 16
    return x


def turn(h: Tensor, coordinate: Tensor) -> Tensor:
    """What has been mixed so far, and one coordinate more; they broadcast."""
    return mixed(h ^ mixed((coordinate + APART) & MASK))


@cache
def begin(seed: int, path: str) -> int:
    """The first 32 bits of SHA-256 of `seed:path`."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{path}".encode()).digest()[:4], "big")


def kept(h: Tensor, chance: float) -> Tensor:
    """Where an entry is kept that falls with this chance."""
    return h >= round(chance * 2**32)


def normal(h: Tensor) -> Tensor:
    """A normal number of each place, in float64 (Box and Muller): its draws 0 and 1."""
    a, b = ((turn(h, torch.tensor(i, device=h.device)).double() + 0.5) / 2**32 for i in (0, 1))
    return torch.sqrt(-2 * torch.log(a)) * torch.cos(2 * math.pi * b)


__all__ = ["begin", "kept", "mixed", "normal", "turn"]
