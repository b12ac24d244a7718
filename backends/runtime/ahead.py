"""Spans of a call, and what is made for many of them at once.

Nothing that fires within a call has a hand in what comes before the first level that learns the
loss. It is made ahead, for at most PIECE ticks; and for the last span of a call by itself, since
what a state is made again from is the start of that span.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .state import State

if TYPE_CHECKING:
    from .model import Model, Pass

PIECE = 512


@dataclass(frozen=True)
class Ahead:
    """What was made for ticks `first` to `last` of a call, each [batch, time, ..]."""

    first: int
    last: int
    made: tuple[Tensor, ...]

    def part(self, a: int, b: int) -> tuple[Tensor, ...]:
        return tuple(x[:, a - self.first : b - self.first] for x in self.made)


def spans(model: Model, call: Pass, position: int) -> list[tuple[int, int]]:
    """Parts of a call that end where some level fires or starts anew."""
    found, a = [], 0
    while a < call.time:
        b = min(call.time, a + until_firing(model, position + a))
        b = model.before_the_last(call, a, b)
        found.append((a, b))
        a = b
    return found


def until_firing(model: Model, position: int) -> int:
    """Ticks to the next firing or reset."""
    waits = []
    for level, period, _ in model.LEARNERS:
        every = model.life_of(level)
        lived = position % every if every else position
        waits.append(int(period) - lived % int(period))
        waits += [every - lived] if every else []
    return min(waits)


def look_ahead(model: Model, call: Pass, state: State, a: int, training: bool) -> None:
    """What the span at tick a asks for, if it is not there yet."""
    if not model.AHEAD or call.ahead is not None and a < call.ahead.last:
        return
    last = call.spans[-1][0]
    ends = [b for start, b in call.spans if start >= a and (a == last or b <= last)]
    b = max([ends[0], *(end for end in ends if end <= a + PIECE)])
    s = model.stream_of(state, b - a)
    s.inner, s.once = not training, True
    if call.watching is not None:
        call.watching.on = not model.NEEDS_NEXT or b < call.time
    with nullcontext() if training else torch.no_grad():
        call.ahead = Ahead(a, b, model.ahead(s, *(x[:, a:b] for x in call.inputs)))
    state.arrays = dict(s)
