"""Levels that start anew every so many ticks (`reset every N tokens`, language.md 2.6.4).

From one reset to the next is a life. Lives that lie whole within a span know nothing of each other,
so they stand side by side in the batch; the one that began before the span, and the one that the
span does not end, are run as they come.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from .state import State
from .stream import Stream

Starts = Callable[[int, str], dict[str, Tensor]]  # batch, box -> its arrays at a reset


def lives(
    s: Stream, every: int, starts: Starts, box: Callable[..., Tensor], at: str, *given: Any
) -> Tensor:
    """What a box answers that goes back to its start at the end of every tick which is a multiple
    of `every`. Streams are [batch, time, ..].
    """
    now, time = s.position, s.time
    left = min(time, -now % every)  # of the life that began before this span
    last = time - (time - left) % every  # where one begins that it does not end
    reads = []
    if left:
        with s.life(0, left, now // every * every, f"{at}first"):
            reads.append(box(s, at, *part(given, 0, left)))
        if (now + left) % every == 0:
            s.update(held(s, starts(s.batch, at)))
    if left < last:
        reads.append(side_by_side(s, every, starts, box, at, left, part(given, left, last)))
    if last < time:
        with s.life(last, time, now + last, f"{at}last"):
            reads.append(box(s, at, *part(given, last, time)))
    return reads[0] if len(reads) == 1 else torch.cat(reads, 1)


def side_by_side(
    s: Stream, every: int, starts: Starts, box: Callable[..., Tensor], at: str, first: int,
    given: tuple[Any, ...],
) -> Tensor:  # fmt: skip
    """Whole lives, from tick `first` of the span on: each a sample of its own. What they keep is
    gone at their end.
    """
    many = next(x for x in given if isinstance(x, Tensor)).shape[1] // every
    arrays = held(s, starts(s.batch * many, at))
    inside = Stream(arrays, 0, every, s.batch * many, s.device, s.dtype, s.inner, s.joint)
    began = s.position + first + every * torch.arange(many, device=s.device)
    inside.sequence, inside.elapsed, inside.copies = s.sequence, s.elapsed, s.copies
    inside.began, inside.lives = began.repeat(s.batch), many
    inside.remembered = s.remembered.setdefault(f"{at}lives", {})
    parted = (torch.unflatten(x, 1, (many, every)).flatten(0, 1) for x in given if is_stream(x))
    y = box(inside, at, *(next(parted) if is_stream(x) else x for x in given))
    return torch.unflatten(y, 0, (s.batch, many)).flatten(1, 2)


def part(given: tuple[Any, ...], a: int, b: int) -> tuple[Any, ...]:
    return tuple(x[:, a:b] if is_stream(x) else x for x in given)


def is_stream(x: Any) -> bool:
    return isinstance(x, Tensor)


def held(s: Stream, arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Starts are constants to levels on tokens."""
    return {k: s.hold(x) for k, x in arrays.items()}


def let_go(model: Any, state: State) -> None:
    """What becomes a constant before a span (`through .. tokens`), where spans end at each such
    tick: pasts too, and before anybody names a state.
    """
    for path, loops, life, every in model.CUTS:
        age = state.position + state.elapsed * ((path, loops) in model.LASTING)
        age = age % life if life else age
        if age and age % every == 0:
            for rounds in product(*map(range, loops)):
                model.cut(state.arrays, path.format(*rounds))
