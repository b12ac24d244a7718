"""Memories whose writes add up in a dual, and whose reads see a function of it: mirror descent
(2504.13173; memory-family.md B6.4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import by_hand
from .recurrence import Span


@dataclass(frozen=True)
class Linked:
    """A span of the dual of a memory: what is read is a function of each state. The states are made
    where they are asked for, and made again for the derivative.
    """

    span: Span
    link: Callable[[Tensor], Tensor]

    def read(self, q: Tensor, before_write: bool = False) -> Tensor:
        """[..., T, m]: f(W_t) q_t, or f(W_{t-1}) q_t, for q [..., T, n]."""
        if not torch.is_grad_enabled() or not by_hand.allowed():  # checkpoint is no transform's
            return self._read(q, before_write)
        return checkpoint(self._read, q, before_write, use_reentrant=False)  # type: ignore[no-any-return]

    def _read(self, q: Tensor, before_write: bool) -> Tensor:
        states = self.link(self.span.states(before_write))
        return (states @ q.to(states.dtype).unsqueeze(-1)).squeeze(-1).to(q.dtype)
