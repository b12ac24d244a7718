"""A stream while it runs: what it keeps between spans, and where in it we are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..gates import Learner, gate
from ..ops.recurrence import Span
from ..ops.retention import times
from ..ops.stretches import Stretches
from .rows import Learned
from .sums import Met


class Stream(dict[str, Tensor]):
    """The arrays a stream keeps, by path, each [batch, ..].

    `position`: ticks before this span. `time`: ticks in it. `inner`: this run is for the gradients
    of levels on
    tokens, so what does not open to them is a constant (language.md 2.10.1). `remembered`: what
    boxes wrote in the run
    for training, which a run for the levels on tokens need not do again. `met`: products of such a
    run with what learns in it. `made`: what was made ahead; `once`: this run is that, and no other
    does it again. `copies`: what stands in for weights, by path, in an `inner` run or one that is
    `shared` by training and levels on tokens (shared.py). `learned`: arrays whose gradients wait
    for training (rows.py). `joint`: this run is for both (joint.py). `born`: the tick at which
    the level that is run was last reset; `began`: the same for each row of the batch, where they
    are lives of one stream (lives.py), as many of each sample as
    `lives` says.
    """

    def __init__(
        self,
        arrays: dict[str, Tensor],
        position: int,
        time: int,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
        inner: bool = False,
        joint: bool = False,
    ) -> None:
        super().__init__(arrays)
        self.stood = arrays  # as they were before this span
        self.position, self.time, self.batch = position, time, batch
        self.device, self.dtype = device, dtype
        self.inner, self.joint = inner, joint
        self.sequence = 0  # of the stream: how many have ended
        self.elapsed = 0  # ticks of those
        self.remembered: dict[str, Any] = {}
        self.met: list[Met] | None = None
        self.made: tuple[Tensor, ...] | None = None
        self.copies: Mapping[str, Tensor] = {}
        self.once = False
        self.learned = Learned()
        self.shared = False
        self.born = 0
        self.began: Tensor | None = None
        self.lives = 1  # of each sample, side by side in the batch

    def __setitem__(self, key: str, value: Tensor) -> None:
        """An array keeps the precision it started in, whatever an operation answers in."""
        kept = self.get(key)
        if kept is not None and kept.dtype != value.dtype:
            value = value.to(kept.dtype)
        super().__setitem__(key, value)

    def stands(self, key: str) -> None:
        """A start that this tick has made is what stood before its firing."""
        self.stood = {**self.stood, key: self[key]}

    def hold(self, x: Tensor) -> Tensor:
        """A constant to levels on tokens, not to training."""
        if self.inner:
            return x.detach()
        return gate(x, from_outside) if self.joint else x

    def answer(self, box: Callable[..., Tensor], at: str, *given: Any) -> Tensor:
        """What a box answers; in the run for levels on tokens, what it answered training if none of
        them has a hand in its inputs.
        """
        inputs = [x for x in given if isinstance(x, Tensor)]
        if self.inner and at in self.remembered and not any(x.requires_grad for x in inputs):
            return self.remembered[at]  # type: ignore[no-any-return]
        y = box(self, at, *given)
        if not self.inner and not self.joint and not self.once:
            self.remembered[at] = y.detach()
        return y

    def writes(
        self, at: str, write: Callable[..., tuple[Span, ...]], *given: Any
    ) -> tuple[Span, ...]:
        """What a box writes in one stretch, made once for both runs; to levels on tokens it is a
        constant. A box that another calls in a stretch of its own has many in a span: the tick
        says which.
        """
        at = f"{at}{self.position}"
        if self.inner and at in self.remembered:
            return self.remembered[at]  # type: ignore[no-any-return]
        made = write(*given)
        if self.once:
            return made
        if self.joint:
            return tuple(span.held(lambda *kept: tuple(map(self.hold, kept))) for span in made)
        held = tuple(span.held(constant) for span in made)
        self.remembered[at] = held
        return held if self.inner else made

    def product(self, key: str, x: Tensor) -> Tensor:
        """x W' for every tick, W an array that learns the model's own loss. In the run for that it
        is what comes to the product that is asked for, and not the gradient of W (sums.py).
        """
        if self.met is None:
            return self.learned.product(key, x, self[key])
        y = times(x, self[key].detach().mT)
        if not y.requires_grad:
            y.requires_grad_()
        self.met.append((key, x, y))
        return y

    def move(self, key: str, amount: Tensor) -> None:
        """What a firing adds to an array that it keeps whole."""
        self[key] = self.learned.moved(key, self[key], amount)

    @property
    def age(self) -> int:
        """Ticks since the reset, before this span."""
        return self.position - self.born

    @contextmanager
    def life(self, a: int, b: int, born: int, key: str) -> Iterator[None]:
        """Ticks a to b of this span, in the life that began at tick `born`."""
        outer = self.position, self.time, self.born, self.remembered
        self.position, self.time, self.born = self.position + a, b - a, born
        self.remembered = self.remembered.setdefault(key, {})
        yield
        self.position, self.time, self.born, self.remembered = outer

    @property
    def ticks(self) -> Tensor:
        """The positions of this span, [time], or [batch, time] where they differ."""
        ticks = torch.arange(self.position, self.position + self.time, device=self.device)
        return ticks if self.began is None else self.began.unsqueeze(-1) + ticks

    @property
    def samples(self) -> Tensor:
        """Which sample of the batch each row is of."""
        return torch.arange(self.batch, device=self.device) // self.lives

    def positions(self, lead: int) -> Tensor:
        """The same, with the leading axes of a stream."""
        ticks = self.ticks.to(self.dtype).view(-1, *[1] * (lead - 2), self.time)
        return ticks.expand(self.batch, *ticks.shape[1:])

    def seen(self, window: int, lead: tuple[int, ...], time: int) -> Tensor:
        """[*lead, time, window]: 1 for the ticks of each window that are, 0 before the first."""
        ages = torch.arange(window - 1, -1, -1, device=self.device)
        since = torch.arange(self.age, self.age + self.time, device=self.device)
        here = (since.unsqueeze(-1) >= ages).to(self.dtype)
        return here.expand(*lead, time, window)

    def cuts(self, period: int, cut: int = 0) -> Stretches:
        """`stretches`, all at once; while one is looked at, this stream is that part alone."""
        return self.parts(self.stretches(period, cut))

    def parts(self, parts: Iterator[tuple[int, ...]]) -> Stretches:
        position = self.position

        def enter(a: int, b: int) -> None:
            self.position, self.time = position + a, b - a

        return Stretches(tuple(parts), enter)

    def stretches(self, period: int, cut: int = 0) -> Iterator[tuple[int, int, bool, bool]]:
        """Parts of this span that end at multiples of `period` (and `cut`) ticks: start, end,
        whether a period begins there, and whether a gradient is cut there. Nothing for a span of no
        ticks.
        """
        a = 0
        while a < self.time:
            tick = self.age + a
            b = min(self.time, a + period - tick % period)
            if cut:
                b = min(b, a + cut - tick % cut)
            yield a, b, tick % period == 0, bool(cut) and tick > 0 and tick % cut == 0
            a = b

    def since(self, period: int, first: int) -> int:
        """Ticks since a clock last fired, at the end of this span: those of a period that is over,
        where it fires there.
        """
        tick = self.age + self.time
        return tick if tick <= first else (tick - first - 1) % period + 1

    def periods(self, period: int, first: int, flush: int = 0, alone: bool = False) -> Stretches:
        """Parts of this span that end where a clock fires, at `first` and every `period` ticks from
        it: start, end, and which firing it is (0: none, the span ends before). While one is looked
        at, this stream is that part alone. `flush`: what waits fires before a reset, which comes
        every so many ticks. `alone`: a tick that fires is a part of its own.
        """
        return self.parts(self._periods(period, first, flush, alone))

    def _periods(
        self, period: int, first: int, flush: int, alone: bool
    ) -> Iterator[tuple[int, int, int]]:
        age, a = self.position - self.born, 0
        while a < self.time:
            tick = age + a
            wait = first - tick if tick < first else period - (tick - first) % period
            b = min(self.time, a + (wait - 1 if alone and wait > 1 else wait))
            done = age + b - first
            fires = done >= 0 and done % period == 0
            count = done // period + 1 if done >= 0 else 0
            if flush and not fires and (done + first) % flush == 0:
                fires, count = True, count + 1
            yield a, b, count if fires else 0
            a = b


def from_outside(who: Learner) -> bool:
    """A gradient of training's, not of a level on tokens."""
    return who.level is None


def constant(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.detach() if t.requires_grad else t for t in tensors)
