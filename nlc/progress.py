"""What a person sees of a run: a live line on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

PLAIN_EVERY = 10.0  # seconds between plain lines
SMOOTH = 20  # steps that the shown loss and speed are a mean of


@dataclass(frozen=True)
class Goal:
    """When a run ends: after so many steps, or so many seconds of training, whichever is first."""

    steps: int | None
    seconds: float | None

    def reached(self, step: int, seconds: float) -> bool:
        by_steps = self.steps is not None and step >= self.steps
        return by_steps or (self.seconds is not None and seconds >= self.seconds)

    def share(self, step: int, seconds: float) -> float:
        """How much of the way is done, from 0 to 1."""
        shares = [step / self.steps] if self.steps else []
        shares += [seconds / self.seconds] if self.seconds else []
        return min(1.0, max(shares, default=1.0))


class QuietConsole(Console):
    """A console that falls silent when nobody reads on: what a run learns is worth more."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


@dataclass
class Reporter:
    """Turns steps into lines."""

    goal: Goal
    console: Console = field(default_factory=lambda: QuietConsole(highlight=False, soft_wrap=True))
    _recent: deque[tuple[float, float, int]] = field(default_factory=lambda: deque(maxlen=SMOOTH))
    _live: tuple[Progress, TaskID] | None = None
    _said: float = 0.0
    _first: tuple[int, float] | None = None

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Keep a live line below the notes, if this is a terminal."""
        if not self.console.is_terminal:
            yield
            return
        columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
        with Progress(*columns, console=self.console, transient=True) as progress:
            self._live = (progress, progress.add_task("", total=1.0))
            yield
        self._live = None

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)

    def step(self, step: int, seconds: float, bits: float, took: float, tokens: int) -> None:
        """One step is done: its loss in bits per byte, the time it took and what it read."""
        self._first = self._first or (step - 1, seconds - took)
        self._recent.append((bits, took, tokens))
        text = self._line(step, seconds)
        if self._live is not None:
            progress, task = self._live
            progress.update(task, completed=self.goal.share(step, seconds), description=text)
        elif time.monotonic() - self._said > PLAIN_EVERY:
            self._said = time.monotonic()
            self.note(text)

    def speed(self) -> float:
        """Tokens a second, over the last steps."""
        return sum(n for _, _, n in self._recent) / max(sum(t for _, t, _ in self._recent), 1e-9)

    def _line(self, step: int, seconds: float) -> str:
        bits = sum(b for b, _, _ in self._recent) / len(self._recent)
        of = f"/{self.goal.steps:,}" if self.goal.steps else ""
        left = f"{duration(self._left(step, seconds))} left"
        return f"step {step:,}{of}  {bits:.3f} bits/byte  {self.speed():,.0f} tokens/s  {left}"

    def _left(self, step: int, seconds: float) -> float:
        """Seconds to the nearer goal, at the pace since this process began."""
        assert self._first is not None
        first, began = self._first
        pace = (seconds - began) / max(step - first, 1)
        ways = [(self.goal.steps - step) * pace] if self.goal.steps is not None else []
        ways += [self.goal.seconds - seconds] if self.goal.seconds is not None else []
        return max(0.0, min(ways, default=0.0))


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `5 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
