"""Functions of the language on single numbers, where Python's `math` has none: what a schedule is
made of. The formulas are those of the language (2.12).
"""

from __future__ import annotations

import math


def sign(x: float) -> float:
    return math.copysign(1.0, x) if x else 0.0


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), for any x."""
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    """log(1 + exp(x))."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def silu(x: float) -> float:
    return x * sigmoid(x)


def gelu(x: float) -> float:
    """By erf."""
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def smooth_abs(x: float) -> float:
    return math.sqrt(x * x + 1e-6)


def smooth_sign(x: float) -> float:
    return x / smooth_abs(x)
