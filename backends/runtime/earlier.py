"""What is no number at a tick stays out of the answers before it.

The ticks of a span are answered together, by products in which what is later counts 0 times; and 0
times what is no number is none. No sum, mask or solve is slowed for that: where an answer of a call
is no number, and no gradient is wanted, the ticks before it are run again without it, as any split
of a call gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import by_hand
from .state import State

ALONE = 4  # ticks of a sample that spoil no state, and are looked past

Run = Callable[[int, int, State], tuple[Tensor, State]]


def looked_at(made: Tensor) -> bool:
    """Whether it can be asked here if all answers are numbers, and something can be done."""
    if made.shape[1] < 2 or made.requires_grad or not made.is_floating_point():
        return False
    if made.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return by_hand.allowed()


def all_numbers(made: Tensor) -> bool:
    """A sum is the fastest look at all of an array; one that overflows is looked at again."""
    return bool(made.sum().isfinite()) or bool(made.isfinite().all())


def mended(run: Run, state: State, made: Tensor) -> Tensor:
    """The answers of a call, those before what is no number made again, of such samples alone.

    run    from a tick to a tick, from a state on -> answers and the state then
    state  where the call began
    """
    if not looked_at(made) or all_numbers(made):
        return made
    made, time = made.clone(), made.shape[1]
    watched = dict.fromkeys(spoiled(made), ALONE)
    first, last, known = 0, time // 2, time  # from first to known an answer is none
    while watched and first < time:
        found, after = run(first, last, state.fork())
        bad = [i for i in spoiled(found) if i in watched]
        if bad and last - first > 1:
            known, last = last, first + (last - first) // 2
            continue
        for i in watched:
            made[i, first:last] = found[i]
        lost = {i for array in after.arrays.values() for i in spoiled(array)} if bad else set()
        for i in bad:
            watched[i] = 0 if i in lost else watched[i] - 1
        watched = {i: n for i, n in watched.items() if n}
        first, state = last, after
        last = first + max(1, (known - first) // 2) if known > first else time
        known = known if known > first else time
    return made


def spoiled(array: Tensor) -> list[int]:
    """The samples of an array [batch, ..] that are not all numbers."""
    if not array.is_floating_point() or not array.numel():
        return []
    found: list[int] = (~array.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    return found
