"""Runs of an operation's module over sequences of different lengths.

Sequences that stand at one tick run together until the shortest ends, then the others go on: any
split of a stream gives the same numbers, so this is each of them run alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..backends.runtime import Model
from .state import Group, merged


def fresh(model: Model, prefix: str, batch: int) -> Group:
    """The state before the first tick."""
    arrays = model.reset(batch).arrays
    named = {k.removeprefix(prefix): x for k, x in arrays.items()}
    return Group(tuple(range(batch)), 0, named)


def advance(
    model: Model, prefix: str, streams: Sequence[Tensor], group: Group
) -> tuple[Tensor, Group]:
    """All sequences of a group by the same ticks: y [rows, time, ..], and where they then are."""
    arrays = {prefix + k: x for k, x in group.arrays.items()}
    state = model.state_from(arrays, group.position, len(group.rows), {})
    state.given = True
    y, state = model(*streams, state=state)
    kept = {k.removeprefix(prefix): x for k, x in state.arrays.items()}
    return y, Group(group.rows, state.position, kept)


def batched(
    model: Model, prefix: str, streams: Sequence[Tensor], groups: Sequence[Group]
) -> tuple[Tensor, tuple[Group, ...]]:
    """Streams [batch, time, ..], each row a sequence."""
    if not streams[0].shape[0]:
        return nobody(model, prefix, streams, groups[0])
    if len(groups) == 1:
        y, group = advance(model, prefix, streams, groups[0])
        return y, (group,)
    reads, ended, places = [], [], []
    for group in groups:
        at = torch.tensor(group.rows, device=streams[0].device)
        y, end = advance(model, prefix, [x[at] for x in streams], group)
        reads.append(y)
        ended.append(end)
        places.append(at)
    return torch.cat(reads)[torch.argsort(torch.cat(places))], merged(ended)


def nobody(
    model: Model, prefix: str, streams: Sequence[Tensor], group: Group
) -> tuple[Tensor, tuple[Group, ...]]:
    """A batch of no sequences: one of zeros begins in their place, and nothing is kept of it."""
    one = [torch.cat([x, x.new_zeros(1, *x.shape[1:])]) for x in streams]
    y, end = advance(model, prefix, one, fresh(model, prefix, 1))
    position = group.position + end.position
    return y[:0], (Group((), position, {k: x[:0] for k, x in end.arrays.items()}),)


def packed(
    model: Model,
    prefix: str,
    streams: Sequence[Tensor],
    groups: Sequence[Group],
    bounds: Sequence[int],
) -> tuple[Tensor, tuple[Group, ...]]:
    """Streams [1, total, ..]: sequence i is the ticks from bounds[i] to bounds[i + 1]."""
    if not streams[0].shape[1]:
        y, _ = model(*streams, state=model.reset(1))
        return y, tuple(groups)
    reads: list[Tensor] = []
    places: list[Tensor] = []
    ended: list[Group] = []
    rows = [x[0] for x in streams]
    for group in groups:
        for y, at, end in stairs(model, prefix, rows, group, bounds):
            reads.append(y)
            places.append(at)
            ended.append(end)
    return torch.cat(reads)[torch.argsort(torch.cat(places))].unsqueeze(0), merged(ended)


def stairs(
    model: Model, prefix: str, rows: Sequence[Tensor], group: Group, bounds: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Group]]:
    """Answers [ticks, ..], their places among all ticks, and the sequences that end there."""
    lengths = {row: bounds[row + 1] - bounds[row] for row in group.rows}
    group = group.part(sorted(range(len(group.rows)), key=lambda i: -lengths[group.rows[i]]))
    done = 0
    for length in sorted(set(lengths.values())):
        starts = torch.tensor([bounds[row] + done for row in group.rows], device=rows[0].device)
        at = starts[:, None] + torch.arange(length - done, device=rows[0].device)
        y, group = advance(model, prefix, [x[at] for x in rows], group)
        cut = sum(lengths[row] > length for row in group.rows)
        yield y.flatten(0, 1), at.flatten(), group.slice(cut, len(group.rows))
        group, done = group.slice(0, cut), length
