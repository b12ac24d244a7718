"""What a span writes where every write depends on those before it: a fixed point.

The writes of a span are a function of themselves, w = ticks(w), in which tick t looks only at
earlier ticks. So iterating (Picard, memory-family.md B6.0) makes tick t exact after t rounds at
most, whatever the function; where writes are small beside what they meet, a few rounds do. One
round is what published code calls the gradient at the chunk's start.

The derivative is that of the fixed point, found the same way: with J the derivative of `ticks`,
what reaches the writes is (I - J')^-1 of what is asked of them. So only one round is kept for it,
however many were run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from . import by_hand
from .recurrence import Span, Start, Still

FADING = 0.3  # a factor from look to look below which, if all were, the next change is foretold
MARGIN = 4  # times what is foretold must be too little to see
UNSEEN = 2  # rounds before the first look at what has changed, which costs up to half a round
BOUND = 1e12, 1e100  # of what has not settled, in float32 and in float64

Writes = Sequence[tuple[Tensor, ...]]
Ticks = Callable[..., Writes]


def amount(
    rate: Tensor | float, e: Tensor, erase: Tensor | float = 0.0, met: Tensor | None = None
) -> Tensor:
    """-rate (e + erase met), for e and met [..., T, m] or [..., T, r, m]; rate and erase are a
    number or [..., T].
    """

    def beside(gate: Tensor | float) -> Tensor | float:
        if not isinstance(gate, Tensor):
            return gate
        return gate.reshape(*gate.shape, *[1] * (e.ndim - gate.ndim))

    total = e if met is None else e + beside(erase) * met
    return -beside(rate) * total


@torch.compiler.disable  # type: ignore[untyped-decorator]
def solved(
    ticks: Ticks,
    starts: Sequence[Start],
    rounds: int | None = None,
    streams: Sequence[Tensor] | None = None,
) -> tuple[Span, ...]:
    """The spans whose writes are those that `ticks` makes of the spans.

    ticks    spans, then `streams` -> for each span what is written, (x [..., T, n], wrote
             [..., T, m]), with what is kept if its start does not know; it may look at
             W_{t-1} only
    rounds   None: until no write changes, for each sample by itself. A number: exactly so many, and
             the derivative is that of these
    streams  all that `ticks` has from outside; None where it has more than streams
    """
    problem = Problem(ticks, tuple(starts), tuple(streams or ()))
    if rounds is not None:
        guess = problem.nothing()
        for _ in range(rounds):
            guess = problem.once(guess)
        return problem.spans(guess)
    if by_hand.transformed():
        return problem.spans(_every_round(problem))
    if streams is None or not by_hand.allowed():
        return problem.spans(_by_closure(problem))
    known: dict[int, int] = {}
    values = iter(_Solution.apply(problem, known, *problem.arrays()))  # type: ignore[no-untyped-call]
    many = range(sum(problem.sizes))
    return problem.spans([streams[known[i]] if i in known else next(values) for i in many])


@dataclass(frozen=True)
class Problem:
    """The arguments of `solved`."""

    ticks: Ticks
    starts: tuple[Start, ...]
    streams: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        return self.starts[0].like.shape[-2]

    @property
    def times(self) -> list[int]:
        """The axis of ticks of each array of a round: heads, which not all have, stand before."""
        each = zip(self.starts, self.sizes, strict=True)
        return [start.like.ndim - 2 for start, size in each for _ in range(size)]

    @property
    def sizes(self) -> list[int]:
        """How many arrays a round makes for each start."""
        return [2 if start.retention is not None else 3 for start in self.starts]

    def nothing(self) -> list[Tensor]:
        return [t for start in self.starts for t in start.nothing()]

    def each(self, change: Callable[[Tensor], Tensor]) -> Problem:
        """Every array that a round is made of, changed, in one order."""
        starts = tuple(start.each(lambda t, own: change(t)) for start in self.starts)
        return replace(self, starts=starts, streams=tuple(map(change, self.streams)))

    def arrays(self) -> list[Tensor]:
        """What a round is made of."""
        found: list[Tensor] = []

        def take(t: Tensor) -> Tensor:
            found.append(t)
            return t

        self.each(take)
        return found

    def of(self, arrays: Sequence[Tensor]) -> Problem:
        """The same, made of others."""
        given = iter(arrays)
        return self.each(lambda t: next(given))

    def still(self) -> Problem:
        """For many rounds: what the streams meet of the starts is made once."""
        starts = (replace(start, still=Still(self.streams)) for start in self.starts)
        return replace(self, starts=tuple(starts))

    def spans(self, flat: Sequence[Tensor]) -> tuple[Span, ...]:
        parts = iter(flat)
        return tuple(
            start.span(*islice(parts, size))
            for start, size in zip(self.starts, self.sizes, strict=True)
        )

    def once(self, flat: Sequence[Tensor]) -> list[Tensor]:
        made = [t for writes in self.ticks(*self.spans(flat), *self.streams) for t in writes]
        return [t.to(g.dtype) for t, g in zip(made, flat, strict=True)]


def _every_round(problem: Problem) -> Sequence[Tensor]:
    """As many rounds as there are ticks, which asks nothing of the numbers (`vmap`), each of them
    kept for the derivative (`torch.func.grad`).
    """
    guess = problem.nothing()
    for _ in range(problem.length):
        guess = problem.once([_borne(t) for t in guess])
    return guess


def _by_closure(problem: Problem) -> Sequence[Tensor]:
    """What is written, where gradients also go to what `ticks` alone knows of."""
    guess = problem.once(problem.nothing())
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in guess)
    with torch.no_grad():
        first = [t.detach() for t in guess]
        found = _settled(problem.once, first, problem.length, problem.times)
    if not wanted:
        return found
    asked = [t.detach().requires_grad_() for t in found]
    made = problem.once(asked)
    values: Sequence[Tensor] = _FixedPoint.apply(asked, made, problem, *made)  # type: ignore[no-untyped-call]
    return values


class _FixedPoint(torch.autograd.Function):
    """The identity on what one round has made; backwards, the sum over all rounds."""

    @staticmethod
    def forward(
        ctx: Any, asked: list[Tensor], made: list[Tensor], problem: Problem, *values: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.round = asked, made, problem
        return tuple(v.view_as(v) for v in values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        asked, made, problem = ctx.round
        return None, None, None, *_all_rounds(asked, made, problem.length, problem.times, grads)


class _Solution(torch.autograd.Function):
    """What is written, made of `arrays`, those of the problem. For the derivative one round is made
    of them alone, so that its graph ends there, and not where the stream began.

    known  is told which writes are streams of the problem, and which; the others are the outputs
    """

    @staticmethod
    def forward(
        ctx: Any, problem: Problem, known: dict[int, int], *arrays: Tensor
    ) -> tuple[Tensor, ...]:
        given = problem.of(arrays).still()
        first = given.once(given.nothing())
        numbers = {id(stream): n for n, stream in enumerate(given.streams)}
        known |= {i: numbers[id(t)] for i, t in enumerate(first) if id(t) in numbers}
        guess = [t for i, t in enumerate(first) if i not in known]
        times = [axis for i, axis in enumerate(problem.times) if i not in known]
        found = _settled(_opened(given, known), guess, problem.length, times)
        device = arrays[0].device.type
        ctx.cast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.given = problem, known, len(arrays)
        ctx.save_for_backward(*arrays, *found)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        problem, known, many = ctx.given
        saved = [t.detach() for t in ctx.saved_tensors]
        arrays = [
            t.requires_grad_(n) for t, n in zip(saved, ctx.needs_input_grad[2:], strict=False)
        ]
        asked = [t.requires_grad_() for t in saved[many:]]
        with torch.enable_grad(), torch.autocast(*ctx.cast):
            made = _opened(problem.of(arrays).still(), known)(asked)
        times = [axis for i, axis in enumerate(problem.times) if i not in known]
        whole = _all_rounds(asked, made, problem.length, times, grads)
        wanted = [t for t in arrays if t.requires_grad]
        ends = [(m, g) for m, g in zip(made, whole, strict=True) if m.requires_grad]
        found = iter(
            torch.autograd.grad(
                [m for m, _ in ends], wanted, [g for _, g in ends], allow_unused=True
            )
        )
        return None, None, *(next(found) if t.requires_grad else None for t in arrays)


def _opened(problem: Problem, known: dict[int, int]) -> Callable[[list[Tensor]], list[Tensor]]:
    """A round, of the writes that are not known."""

    def once(flat: list[Tensor]) -> list[Tensor]:
        rest = iter(flat)
        many = range(len(flat) + len(known))
        every = [problem.streams[known[i]] if i in known else next(rest) for i in many]
        return [t for i, t in enumerate(problem.once(every)) if i not in known]

    return once


def _all_rounds(
    asked: list[Tensor], made: list[Tensor], length: int, times: list[int],
    grads: Sequence[Tensor],
) -> list[Tensor]:  # fmt: skip
    """(I - J')^-1 grads, with J the derivative of `made` in `asked`."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a second derivative through a memory that is solved to its fixed point: "
            "give the model a number of `rounds`, or use the reference interpreter"
        )
    live = [i for i, t in enumerate(made) if t.requires_grad]

    def once(flat: list[Tensor]) -> list[Tensor]:
        back = torch.autograd.grad(
            [made[i] for i in live], asked, [flat[i] for i in live], retain_graph=True,
            allow_unused=True,
        )  # fmt: skip
        return [g if b is None else g + b for g, b in zip(grads, back, strict=True)]

    return _settled(once, list(grads), length, times, backwards=True)


def _settled(
    once: Callable[[list[Tensor]], list[Tensor]],
    flat: list[Tensor],
    length: int,
    times: list[int],
    backwards: bool = False,
) -> list[Tensor]:
    """Rounds until nothing changes. A tick has settled with those before it, so that none that
    follows has a say in its numbers, and stays as it is, each sample by itself. Backwards, with
    those after it.

    Each round makes one more tick exact, whatever the rest holds; so where writes are large beside
    what they meet, and what has not settled grows from round to round, it is kept within bounds:
    what is not a number would reach the ticks that do not see it, as 0 times it is none.
    """
    settled = before = None
    factor = flat[0].new_zeros(())  # the largest so far, from look to look
    for made in range(length + UNSEEN + 1):
        new = once(flat)
        if made < UNSEEN or any(o.shape != n.shape for o, n in zip(flat, new, strict=True)):
            flat = new  # several writes a tick, where the first guess has one
            continue
        change, tame = _change(flat, new, times, backwards)
        least = tolerance(new[0].dtype)
        same = change <= least
        if before is not None:
            factor = torch.maximum(change / before, factor)
            same |= (factor < FADING) & (MARGIN * change * factor <= least)
        known = torch.zeros_like(same) if settled is None else settled
        same |= _next(known)
        flat = [
            _kept(known, same, o, n, tame, time, backwards)
            for o, n, time in zip(flat, new, times, strict=True)
        ]
        settled, before = same | known, change
        if bool(settled.all()):
            break
    return flat


def _kept(
    settled: Tensor, same: Tensor, old: Tensor, new: Tensor, tame: bool, time: int, backwards: bool
) -> Tensor:
    """What has settled before, what is new, and of the rest what can be borne."""
    rows = _rows(settled, new, time, backwards)
    if tame:  # as `where`, which takes four times as long
        return torch.lerp(new, old, rows.to(new.dtype))
    follows = torch.where(_rows(same, new, time, backwards), new, _borne(new))
    return torch.where(rows, old, follows)


def _borne(x: Tensor) -> Tensor:
    most = BOUND[x.dtype == torch.float64]
    return x.nan_to_num(0.0, most, -most).clamp(-most, most)


def _next(settled: Tensor) -> Tensor:
    """The ticks that only settled ones come before: a round makes them exact."""
    return torch.cat((torch.ones_like(settled[:, :1]), settled[:, :-1]), 1)


def _change(
    old: list[Tensor], new: list[Tensor], times: list[int], backwards: bool
) -> tuple[Tensor, bool]:
    """[batch, ticks]: the most that an array has changed up to the tick, in parts of its largest
    number; and whether all numbers are within bounds.
    """
    each = zip(old, new, times, strict=True)
    sizes = [_largest(x, time) for o, n, time in each for x in (n - o, n)]
    together = torch.stack(sizes)
    tame = bool((together <= BOUND[new[0].dtype == torch.float64]).all())
    together = torch.cummax(together.flip(-1) if backwards else together, -1).values
    gaps, wholes = together[::2], together[1::2]
    return torch.where(gaps == 0, gaps, gaps / wholes).amax(0), tame


def _largest(x: Tensor, time: int) -> Tensor:
    """[batch, ticks]: the largest entry of each tick."""
    axes = [a for a in range(1, x.ndim) if a != time]
    return x.abs().amax(axes) if axes else x.abs()


def tolerance(dtype: torch.dtype) -> float:
    """What a sum of a few hundred terms loses to rounding: 1e-12 in float64, 1e-6 in float32."""
    return 1e-12 if dtype == torch.float64 else 1e-6


def _rows(settled: Tensor, like: Tensor, time: int, backwards: bool) -> Tensor:
    shape = [settled.shape[0], *[1] * (like.ndim - 1)]
    shape[time] = settled.shape[1]
    return (settled.flip(-1) if backwards else settled).view(shape)
