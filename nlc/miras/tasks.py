"""The recall tasks, as random sequences. In: a seed. Out: tokens, what to answer, and where.

`mqar` (arXiv:2312.04927): pairs of a key and a value, then every key once more, at random places;
the answer is its value. There are more pairs than a small memory can hold by adding them up.
`rebind`: every key is given a new value several times over; the answer is the last one.
Tokens below half of the vocabulary are keys, the others values; 0 fills what is between.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """`tokens` [batch, time], `targets` alike (0 where nothing is asked), `asked` where it is."""

    tokens: Tensor
    targets: Tensor
    asked: Tensor


@dataclass(frozen=True, slots=True)
class Task:
    """`pairs` keys, each given `writes` values, in `length` tokens of a vocabulary of `vocab`."""

    name: str
    words: str
    vocab: int
    length: int
    pairs: int
    writes: int

    @property
    def chance(self) -> float:
        """The share of right answers of a model that guesses among the values."""
        return 2 / self.vocab

    @property
    def guess(self) -> float:
        """That of a model that knows the values which could be asked, and not of which key each is:
        a memory is to recall more.
        """
        return 1 / self.pairs

    def batch(self, count: int, draw: torch.Generator) -> Batch:
        half = self.vocab // 2
        keys = 1 + several(count, half - 1, self.pairs, draw)
        order = several(count, self.pairs * self.writes, self.pairs * self.writes, draw)
        which = order % self.pairs
        values = half + self.drawn_values(count, half, draw)
        last = torch.zeros(count, self.pairs, dtype=torch.long)
        for t in range(which.shape[1]):
            last.scatter_(1, which[:, t : t + 1], values[:, t : t + 1])
        return self.asked(keys, keys.gather(1, which), values, last, draw)

    def drawn_values(self, count: int, half: int, draw: torch.Generator) -> Tensor:
        """Distinct inside a sequence, where there are enough."""
        wanted = self.pairs * self.writes
        if self.writes == 1:
            return several(count, half, wanted, draw)
        return torch.randint(0, half, (count, wanted), generator=draw)

    def asked(
        self, keys: Tensor, shown: Tensor, values: Tensor, last: Tensor, draw: torch.Generator
    ) -> Batch:
        """The pairs in turn, then each key once, at an even place of what is left."""
        count, written = shown.shape
        tokens = torch.zeros(count, self.length, dtype=torch.long)
        targets = torch.zeros_like(tokens)
        begin = 2 * written
        tokens[:, 0:begin:2], tokens[:, 1:begin:2] = shown, values
        places = begin + 2 * several(count, (self.length - begin) // 2, self.pairs, draw)
        tokens.scatter_(1, places, keys)
        targets.scatter_(1, places, last)
        return Batch(tokens, targets, targets > 0)


def several(count: int, among: int, wanted: int, draw: torch.Generator) -> Tensor:
    """For each of `count` rows, `wanted` different numbers below `among`."""
    return torch.rand(count, among, generator=draw).argsort(1)[:, :wanted]


TASKS = (
    Task("mqar", "16 pairs in 64 tokens, each asked once", 128, 64, 16, 1),
    Task("rebind", "8 keys, each given 3 values in turn; the last is asked", 64, 64, 8, 3),
)
