"""The end of a sequence (language.md 2.6.1): levels on sequences fire, all else starts anew."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .state import State, detached

if TYPE_CHECKING:
    from .model import Model


def finish(model: Model, state: State) -> State:
    """What lasts is a constant; what starts anew is what `reset` makes, so that a start is trained
    through the sequences after the first as well.
    """
    if not state.position:
        return state
    made = State(model.starts(state.batch) | lasting(model, state), 0, state.batch, state.spec)
    made.sequence, made.elapsed = state.sequence + 1, state.elapsed + state.position
    model.rebase(made)
    return made


@torch.no_grad()
def lasting(model: Model, state: State) -> dict[str, Tensor]:
    """The arrays of the levels on sequences, after those that are due have fired."""
    s = model.stream_of(state, 1)
    s.position = state.position - 1
    with model.arithmetic(), s.life(0, 1, -state.elapsed, "end"):
        model.ends(s, state.sequence + 1)
    return detached({k: x for k, x in s.items() if k.startswith(outliving(model))})


def outliving(model: Model) -> tuple[str, ...]:
    """The places of the boxes that outlive a sequence."""
    return tuple(p.format(*r) for p, n in model.LASTING for r in product(*map(range, n)))
