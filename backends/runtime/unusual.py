"""Calls that the rest of a model need not think of: under `torch.inference_mode`, and of a batch of
no samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .model import Model, Pass
    from .state import State

Made = TypeVar("Made")


def as_usual(call: Callable[..., Made]) -> Callable[..., Made]:
    """Memories learn while they answer, so that what is called has graphs of its own; under
    inference_mode, where none is made, it runs as under no_grad.
    """

    @wraps(call)
    def run(model: Model, *inputs: Any, **named: Any) -> Made:
        if not torch.is_inference_mode_enabled():
            return call(model, *inputs, **named)
        with torch.inference_mode(False), torch.no_grad():
            named = {k: usual(x) for k, x in named.items()}
            return call(model, *map(usual, inputs), **named)

    return run


def usual(x: Any) -> Any:
    """A tensor that a graph may hold."""
    return x.clone() if isinstance(x, Tensor) and x.is_inference() else x


def nobody(model: Model, call: Pass) -> tuple[Pass, State]:
    """A call of one sample of zeros, in the place of none."""
    one = tuple(x.new_zeros(1, *x.shape[1:]) for x in call.inputs)
    return replace(call, inputs=one, outputs=[], losses=[]), model.reset(1)
