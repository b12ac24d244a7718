"""A stream while it runs: what it keeps between spans, and where in it we are."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .gate import Switch, gated


class Stream(dict[str, Tensor]):
    """The arrays a stream keeps, by path, each [batch, ..].

    `position`: ticks before this span. `time`: ticks in it. `switch`: thrown while a level on tokens takes its
    gradient; None where no one else takes another, so that what is held is a constant.
    """

    def __init__(
        self, arrays: dict[str, Tensor], position: int, time: int, batch: int, device: torch.device, dtype: torch.dtype,
        switch: Switch | None = None,
    ) -> None:  # fmt: skip
        super().__init__(arrays)
        self.position, self.time, self.batch = position, time, batch
        self.device, self.dtype = device, dtype
        self.switch = switch

    def hold(self, x: Tensor) -> Tensor:
        """A constant to levels on tokens, not to training (language.md 2.10.1)."""
        return x.detach() if self.switch is None else gated(self.switch, x)[0]

    def hold_all(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The same for several at once."""
        return tuple(t.detach() for t in tensors) if self.switch is None else gated(self.switch, *tensors)

    @property
    def ticks(self) -> Tensor:
        """The positions of this span, [time]."""
        return torch.arange(self.position, self.position + self.time, device=self.device)

    def positions(self, lead: int) -> Tensor:
        """The same, with the leading axes of a stream."""
        return self.ticks.to(self.dtype).view(*[1] * (lead - 1), -1)

    def stretches(self, period: int, cut: int = 0) -> Iterator[tuple[int, int, bool, bool]]:
        """Parts of this span that end at multiples of `period` (and `cut`) ticks: start, end, whether a period
        begins there, and whether a gradient is cut there. Nothing for a span of no ticks."""
        a = 0
        while a < self.time:
            tick = self.position + a
            b = min(self.time, a + period - tick % period)
            if cut:
                b = min(b, a + cut - tick % cut)
            yield a, b, tick % period == 0, bool(cut) and tick > 0 and tick % cut == 0
            a = b
