"""`dropout(x, p)` of a model that trains: which entries fall depends on the seed, the step of
training and the place alone (language.md 2.12), not on how a batch is run or a sequence is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops.chance import begin, kept, turn
from .stream import Stream


@dataclass
class Chance:
    """What the draws of a model have in common. `steps`: of training, before this one."""

    seed: int
    steps: int = 0

    def dropout(
        self, s: Stream, path: str, chance: float, x: Tensor, mapped: tuple[int, ...]
    ) -> Tensor:
        """Entries fall with this chance, those that stay are `x / (1 - chance)`. `x` has leading
        axes [batch, *mapped, time], of 1 where it is the same along them.
        """
        own = x.shape[len(mapped) + 2 :]
        x = x.expand(s.batch, *mapped, s.time, *own)
        h = torch.tensor(begin(self.seed, path), device=s.device)
        h = turn(h, torch.tensor(self.steps, device=s.device))
        h = turn(h, s.samples)
        for n in mapped:
            h = turn(h.unsqueeze(-1), torch.arange(n, device=s.device))
        ticks = s.ticks if s.began is None else s.ticks.view(-1, *[1] * len(mapped), s.time)
        h = turn(h.unsqueeze(-1), ticks)
        h = turn(h.unsqueeze(-1), torch.arange(own.numel(), device=s.device))
        return torch.where(kept(h, chance).view(x.shape), x / (1 - chance), 0)
