"""Resets, and the beginning of a call right after one.

What no tick has followed since its reset is no value that an earlier call made: it is its start,
the parameter as it is now. So a state that was detached, saved, or held over a step of training
begins as a fresh one does. (Where training and the levels on tokens share a graph: joint.py.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .ending import outliving
from .state import State

if TYPE_CHECKING:
    from .model import Model


def begin_anew(model: Model, state: State) -> dict[str, Tensor]:
    """The starts that a state holds, made from their parameters again."""
    if state.given:
        return {}
    if state.position:
        return start_anew(model, state)
    lasts = outliving(model) if state.sequence else ()
    kept, starts = model.kept_arrays(), model.starts(state.batch)
    fresh = {
        path: x
        for path, x in starts.items()
        if kept[path][1] == "weights" and not path.startswith(lasts)
    }
    state.arrays |= fresh
    return fresh


def start_anew(model: Model, state: State, whole: bool = True) -> dict[str, Tensor]:
    """The levels that are reset when a span is over: the arrays that go back to their start.
    `whole`: not only those that learn the loss; what is ahead of these has lived on (ahead.py).
    """
    rows = model.RESETS if whole else model.LEARNERS
    over = {level for level, *_ in rows if model.starts_anew(level, state.position)}
    fresh: dict[str, Tensor] = {}
    for level in over:
        for path in model.prefixes(level):
            fresh |= model.starts(state.batch, path)
    state.arrays |= fresh
    return fresh


def begin_in_both(model: Model, state: State) -> None:
    """The same, in the graph of training and in that of the levels on tokens."""
    fresh = begin_anew(model, state)
    if model.INNER_OPEN and fresh and state.inner is not None:
        model.renew(state, set(model.learning_paths()) & set(fresh), fresh)
