"""A span of ticks as its stretches: what needs no state is made for all of them at once.

Stretches of one length that follow each other are a run: [lengths] 5, 16, 16, 16, 3 are three runs.
Within a run a stretch is one more axis, or joins the batch, stretches before samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .recurrence import Number, Span, retained, side_by_side
from .retention import Retention


@dataclass(frozen=True)
class Stretches:
    """Where the stretches of a span lie: start, end, and what else is known of each. `enter` tells
    the stream which of its ticks are looked at.
    """

    parts: tuple[tuple[int, ...], ...]
    enter: Callable[[int, int], None]

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        for part in self.parts:
            self.enter(part[0], part[1])
            yield part
        self.enter(0, self.parts[-1][1] if self.parts else 0)

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """First tick, length of each stretch, and how many there are."""
        for length, group in groupby(self.parts, key=lambda part: part[1] - part[0]):
            stretches = list(group)
            yield stretches[0][0], length, len(stretches)

    def split(self, axis: int, *streams: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """For each stretch its part of the streams, which have time on `axis`."""
        if len(self.parts) == 1:
            return iter([streams])
        sizes = [b - a for a, b, *_ in self.parts]
        return zip(*(torch.split(x, sizes, axis) for x in streams), strict=True)

    def retained(
        self, keep: Number, momentum: Number | None = None, channels: bool = False
    ) -> Iterator[Retention]:
        """For each stretch what is left of its writes; arguments as in `retained` for a span, all
        that are tensors with all the leading axes.
        """
        for a, length, many in self.runs():

            def part(x: Any, axis: int, a: int = a, n: int = length, many: int = many) -> Any:
                if not isinstance(x, Tensor):
                    return x
                run = x.narrow(axis, a, n * many)
                return (
                    torch.unflatten(run, axis, (many, n)).movedim(axis - 1, 0) if many > 1 else run
                )

            given = part(keep, -2 if channels else -1), part(momentum, -1)
            made = retained(*given, channels=channels)
            known = next(v for v in given if isinstance(v, Tensor))
            lead = known.ndim - 2 - channels
            yield from [made] if many == 1 else made.unbound(many, lead)

    def read(
        self,
        axis: int,
        answer: Callable[..., Tensor],
        own: tuple[Any, ...],
        written: Sequence[tuple[Span, ...]],
        *streams: Tensor,
    ) -> Tensor:
        """What a box answers, time on `axis`: `answer` of its own arguments, a run's spans and the
        run's parts of the streams, its stretches part of the batch.
        """
        reads, first = [], 0
        for a, length, many in self.runs():
            spans = written[first : first + many]
            first += many
            given = [x.narrow(axis, a, length * many) for x in streams]
            if many == 1:
                reads.append(answer(*own, spans[0], *given))
                continue
            joined = tuple(side_by_side(each) for each in zip(*spans, strict=True))
            given = [_folded(x, axis, many) for x in given]
            y = torch.unflatten(answer(*own, joined, *given), 0, (many, -1))
            reads.append(y.movedim(0, axis).flatten(axis, axis + 1))
        return reads[0] if len(reads) == 1 else torch.cat(reads, axis)


def _folded(x: Tensor, axis: int, many: int) -> Tensor:
    """Time in `many` parts, which join the batch."""
    return torch.unflatten(x, axis, (many, -1)).movedim(axis, 0).flatten(0, 1)
