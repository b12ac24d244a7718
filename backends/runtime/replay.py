"""The weights that ticks ran with, where what they owe waits while a step of training passes.

A loss waits for its label and a period for its end; until then their gradients go back through
ticks that have run, each with the weights of its own call. A step changes weights in place, so a
call that is trained runs for the levels on tokens on copies. A call without gradients makes none:
where the weights have changed since, its ticks are played again with those there are, as those of
a loaded state are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .state import State, detached
from .tree import standing

if TYPE_CHECKING:
    from .model import Model


def copied(model: Model) -> dict[str, Tensor]:
    """Copies of the weights that are trained."""
    return {n: p.detach().clone() for n, p in model.named_weights() if p.requires_grad}


def ready(model: Model, state: State, training: bool) -> State:
    """A state for a call. In one graph with training, weights are no constants in training alone,
    and a gradient that was taken there has used it up: it is made again.
    """
    now = {n: p._version for n, p in model.named_weights()}
    if state.rewind or state.live and not training or lost(state, now):
        state = wound_back(model, state)
    state.live, state.seen = model.JOINT and training, now
    return state


def lost(state: State, now: dict[str, int]) -> bool:
    """Whether weights have changed, of which ticks that may be looked back at kept no copy."""
    changed = {n for n, version in now.items() if state.seen.get(n, version) != version}
    return bool(changed) and not all(changed <= set(p.weights) for p in state.replay)


def wound_back(model: Model, state: State) -> State:
    """The same state in a graph in which the weights are constants: all since its base is played
    again, with the weights of its own call.
    """
    base = detached(state.base)
    fresh = model.state_from(base, state.base_position, state.batch, state.base_sums)
    fresh.sequence, fresh.elapsed = state.sequence, state.elapsed
    for played in state.replay:
        before = set(map(id, fresh.replay))
        with torch.no_grad(), standing(model.weights, played.weights):
            _, fresh = model(*played.inputs, state=fresh, own=played.own)
        fresh.seen = {}
        fresh.replay = [
            p if id(p) in before else replace(p, weights=played.weights) for p in fresh.replay
        ]
    return fresh


__all__ = ["copied", "ready"]
