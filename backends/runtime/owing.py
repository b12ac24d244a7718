"""What is owed to the levels on tokens: gradients of losses they have seen, until they fire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .state import State
from .sums import Met, owed

if TYPE_CHECKING:
    from .model import Model


def owe(
    model: Model, state: State, of: Tensor, met: tuple[Met, ...], tick: int, keep: bool,
    also: Sequence[Tensor] = (),
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of these losses, of ticks from `tick` on, are summed at once where no later tick
    can add to this graph, else at the firing. Of a product what came to it is summed.

    Answers what came to each path, each product and each of `also`, which none may ask for where
    some learn the last loss alone; nothing where there was nothing to ask.
    """
    parts = in_parts(model, of, tick)
    if model.INNER_OPEN or model.JOINT:
        state.owed += parts
        return []
    assert state.inner is not None
    grads: Sequence[Tensor | None] = ()
    for at, loss in parts:
        paths = learning_from(model, at)
        here = [m for m in met if m[0] in paths] if model.ONCE else met
        asked = [*(state.inner[p] for p in paths), *(y for _, _, y in here), *also]
        if not asked:  # all learn the last loss of a period alone
            continue
        more = keep or at != parts[-1][0]
        grads = torch.autograd.grad(loss, asked, retain_graph=more, allow_unused=True)
        came = grads[len(paths) : len(paths) + len(here)]
        owed(state.sums, paths, grads[: len(paths)], here, came)
    return list(grads)


def in_parts(model: Model, losses: Tensor, tick: int) -> list[tuple[int, Tensor]]:
    """Losses of ticks from `tick` on, summed; the last by itself where some learn it alone."""
    before = losses.shape[1] - 1
    if not model.ONCE or before < 1:
        return [(tick, losses.sum())]
    return [(tick, losses[:, :before].sum()), (tick + before, losses[:, before:].sum())]


def learning_from(model: Model, tick: int) -> list[str]:
    """Those that learn the loss of a tick."""
    ends = {path for _, _, paths in model.due(tick + 1) for path in paths} if model.ONCE else ()
    return [p for p in model.learning_paths() if p not in model.ONCE or p in ends]
