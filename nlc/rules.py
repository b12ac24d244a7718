"""PAGE: update rules: the gradient of an objective, and the rule that writes it, in the form that
lowerings read.

With a memory that multiplies (`W @ x`), every gradient is a sum of outer products: one example
(2.9.6) for each time
the gradient passes through a product.
"""

from __future__ import annotations

from dataclasses import dataclass

from .system import Array, Handle, Term


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """`info` of a term `product`: the array of a state that multiplies the argument
    (`product_back`: its transpose).
    """

    handle: Handle
    array: Array


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """`surprise input'` is one outer product of the gradient of `array`; `output` is the product
    itself.
    """

    array: str
    input: Term
    surprise: Term
    output: Term


@dataclass(frozen=True, slots=True, eq=False)
class Gradient:
    """The gradient of one state's objective, and `value`, the objective with its products written
    out. `direct`: by name of the array, what reaches it where it is used as an array.
    """

    state: str
    examples: tuple[Example, ...]
    value: Term
    direct: tuple[tuple[str, Term], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """`factor * y + rest`, for some term y. None stands for nothing."""

    factor: Term | None
    rest: Term | None


@dataclass(frozen=True, slots=True, eq=False)
class LinearRule:
    """An optimizer that is linear in the gradient, as a recurrence over firings (memory-family.md
    B5):

    S = momentum S - rate (grad + erase W x x'),   W = keep W + S       (without momentum S is the
    amount itself)
    Each part is a term over the optimizer's own settings, or None (momentum, erase: absent).
    """

    rate: Term
    momentum: Term | None = None
    erase: Term | None = None
    keep: Term | None = None
    memory: str | None = None  # the optimizer's state that is S
