"""Whether a rule comes to numbers, before it changes anything: not where it divides by
`1 - b1^count`, say, and that is 0.

A rule's numbers are Python's, and come between its changes of arrays. So it is run with blanks for
arrays, which costs next to nothing; where that fails, on copies, whose error is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch

from .serving import Firing, streams

NO_NUMBER = (ArithmeticError, ValueError)


class Blank:
    """Stands for an array: whatever is made with it is one too."""

    dtype: ClassVar[torch.dtype] = torch.float64
    device: ClassVar[torch.device] = torch.device("meta")
    requires_grad: ClassVar[bool] = False
    __iter__: ClassVar[None] = None  # nobody knows how long it is

    def __getattr__(self, name: str) -> Blank:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Blank:
        return self

    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Blank:
        return BLANK


def same(self: Blank, *args: Any) -> Blank:
    return self


BLANK = Blank()
for word in ("add", "sub", "mul", "truediv", "matmul", "pow", "mod", "floordiv", "and", "or"):
    setattr(Blank, f"__{word}__", same)
    setattr(Blank, f"__r{word}__", same)
for word in ("neg", "pos", "abs", "invert", "getitem", "lt", "le", "gt", "ge"):
    setattr(Blank, f"__{word}__", same)


def failing(due: Iterable[Firing]) -> tuple[Firing, Exception] | None:
    """The first firing whose numbers are none, and why."""
    seen = set()
    for one in due:
        alike = id(one.array.owner), one.array.rule.method, one.numbers
        if alike not in seen:
            seen.add(alike)
            error = on_copies(one) if fails_on_blanks(one) else None
            if error is not None:
                return one, error
    return None


def fails_on_blanks(one: Firing) -> bool:
    rule = one.array.rule
    blanks = [BLANK] * (2 + 2 * rule.examples + len(rule.kept))
    method: Any = one.array.fire
    try:
        method(*blanks, *one.numbers)
    except NO_NUMBER:
        return True
    except (TypeError, RuntimeError):  # it asks more of an array than a blank knows
        return False
    return False


def on_copies(one: Firing) -> Exception | None:
    array = one.array
    copies = [x.to(array.dtype, copy=True) for x in (array.weight, *streams(one), *array.kept)]
    try:
        array.fire(*copies, *one.numbers)
    except NO_NUMBER as error:
        return error
    return None
