"""Gates: where the gradient of one level may enter what another level keeps (language.md 2.11).

A gate is the identity. Going back, it lets the gradient pass if the learner on whose behalf the
gradient is being taken is allowed to enter. A recorded gradient holds the same gates, so a slower
level that differentiates it meets its own transfers there (2.11.6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Learner:
    """Whose gradient is being taken.

    `kind`: "weights" (and states), "starts" (the starts M@A, 2.11.2), or "own": an objective's
    own gradient, with respect to the state as the objective names it (2.8.3).
    """

    level: Any  # as its backend names it
    kind: str


Allowed = Callable[[Learner], bool]
OWN = Learner(None, "own")
_current: list[Learner] = [OWN]


@contextmanager
def learning(learner: Learner) -> Iterator[None]:
    """Gradients taken inside are this learner's."""
    _current.append(learner)
    try:
        yield
    finally:
        _current.pop()


def is_own() -> bool:
    """Whether no level's gradient is being taken, but one from outside."""
    return _current[-1] is OWN


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, allowed: Allowed) -> Tensor:
        ctx.allowed = allowed
        ctx.set_materialize_grads(False)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None or not ctx.allowed(_current[-1]):
            return None, None
        return _Gate.apply(grad, ctx.allowed), None  # type: ignore[no-untyped-call]


def gate(x: Tensor, allowed: Allowed) -> Tensor:
    """`x`, entered by the gradients of the allowed learners only."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x
    return _Gate.apply(x, allowed)  # type: ignore[no-untyped-call, no-any-return]


def learns_starts(who: Learner) -> bool:
    return who.kind == "starts"


class _Sealed(torch.autograd.Function):
    """An amount made from a gradient of the loss, as what the box writes.

    Learners that may enter the box (2.11.2, backprop) differentiate all of it. For those that learn
    starts it is a function of the state alone, whose chain is open; everything else in it is a
    constant.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, allowed: Allowed, starts: Allowed, *standing: Tensor
    ) -> Tensor:
        ctx.allowed, ctx.starts, ctx.count = allowed, starts, len(standing)
        ctx.save_for_backward(grad, *standing)
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> Any:
        nothing = (None,) * ctx.count
        if ctx.allowed(_current[-1]):
            return (up, None, None, *nothing)
        if not ctx.starts(_current[-1]):
            return (None, None, None, *nothing)
        grad, *standing = ctx.saved_tensors
        own = torch.autograd.grad(
            grad, standing, up, allow_unused=True, retain_graph=True,
            create_graph=torch.is_grad_enabled(),
        )  # fmt: skip
        return (None, None, None, *own)


def sealed(
    grad: Tensor, allowed: Allowed, standing: Iterable[Tensor], starts: Allowed = learns_starts
) -> Tensor:
    if not (torch.is_grad_enabled() and grad.requires_grad):
        return grad
    made: Tensor = _Sealed.apply(grad, allowed, starts, *standing)  # type: ignore[no-untyped-call]
    return made


def alias(x: Tensor) -> Tensor:
    """The same numbers as a node of their own, which a gradient can be taken with respect to."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
