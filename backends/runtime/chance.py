"""What a model draws while it runs: `dropout(x, p)` and `fresh(normal(s))`. A draw depends on the
seed, the step of training and the place alone (language.md 2.12), not on how a batch is run or a
sequence is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.chance import begin, kept, normal, turn
from .stream import Stream

Axes = tuple[int, ...]


@dataclass
class Chance:
    """What the draws of a model have in common. `steps`: of training, before this one."""

    seed: int
    steps: int = 0

    def dropout(self, s: Stream, path: str, chance: float, x: Tensor, mapped: Axes) -> Tensor:
        """Entries fall with this chance, those that stay are `x / (1 - chance)`. `x` has leading
        axes [batch, *mapped, time], of 1 where it is the same along them.
        """
        own = x.shape[len(mapped) + 2 :]
        x = x.expand(s.batch, *mapped, s.time, *own)
        h = self.entries(s, path, mapped, s.time, own.numel())
        return torch.where(kept(h, chance).view(x.shape), x / (1 - chance), 0)

    def normal(self, s: Stream, path: str, deviation: float, mapped: Axes, own: Axes) -> Tensor:
        """A start [batch, *mapped, *own], drawn at the first tick after a reset."""
        h = self.entries(s, path, mapped, 1, torch.Size(own).numel())
        drawn = deviation * normal(h).view(s.batch, *mapped, *own)
        return drawn.to(torch.float32 if s.dtype.itemsize < 4 else s.dtype)

    def entries(self, s: Stream, path: str, mapped: Axes, ticks: int, many: int) -> Tensor:
        """[batch, *mapped, ticks, many]: the draws of the stream's first ticks from here."""
        h = torch.tensor(begin(self.seed, path), device=s.device)
        for count in (self.steps, s.sequence):
            h = turn(h, torch.tensor(count, device=s.device))
        h = turn(h, s.samples)
        for n in mapped:
            h = turn(h.unsqueeze(-1), torch.arange(n, device=s.device))
        here = s.ticks[..., :ticks]
        if s.began is not None:
            here = here.view(-1, *[1] * len(mapped), ticks)
        h = turn(h.unsqueeze(-1), here)
        return turn(h.unsqueeze(-1), torch.arange(many, device=s.device))
