"""Shapes of the language: broadcasting, and how a shape is told to a user."""

from __future__ import annotations

from ..system import ALL, Shape


def broadcast(a: Shape, b: Shape) -> Shape | None:
    """numpy's rule from the last axis (2.5.2); None where the two do not fit."""
    out: list[int] = []
    for i in range(1, max(len(a), len(b)) + 1):
        x = a[-i] if i <= len(a) else 1
        y = b[-i] if i <= len(b) else 1
        if x != y and 1 not in (x, y):
            return None
        out.append(y if x == 1 else x)
    return tuple(reversed(out))


def size(n: int) -> str:
    if n == ALL:
        return "all past"
    return str(n) if n >= 0 else f"last {-n}"


def told(shape: Shape) -> str:
    """`a number`, `a vector of 64`, `[4, 64]`."""
    if not shape:
        return "a number"
    if len(shape) == 1:
        return f"a vector of {size(shape[0])}"
    return "[" + ", ".join(size(n) for n in shape) + "]"
