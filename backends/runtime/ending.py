"""The end of a sequence (language.md 2.6.1): levels on sequences fire, all else starts anew."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch

from .state import State

if TYPE_CHECKING:
    from .model import Model


@torch.no_grad()
def finish(model: Model, state: State) -> State:
    if not state.position:
        return state
    s = model.stream_of(state, 1)
    s.position = state.position - 1
    with model.arithmetic(), s.life(0, 1, -state.elapsed, "end"):
        model.ends(s, state.sequence + 1)
    lasting = [p.format(*r) for p, n in model.LASTING for r in product(*map(range, n))]
    kept = {k: x for k, x in s.items() if k.startswith(tuple(lasting))}
    made = State(model.starts(state.batch) | kept, 0, state.batch, state.spec)
    made.sequence, made.elapsed = state.sequence + 1, state.elapsed + state.position
    model.rebase(made)
    return made
