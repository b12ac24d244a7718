"""One run of a span for training and for the levels on tokens that learn the loss.

The two need graphs of their own, as a gradient walks all of the graph that it is asked of
(model.py). Where nothing in a span is held from those levels (ALONE), one graph does for both: it
starts at the span, they take their gradients in it, and `Shared` is what stands for it in the graph
of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..ops import by_hand
from .rows import Rows
from .state import State, detached
from .stream import Stream
from .sums import Met, Sum

if TYPE_CHECKING:
    from .model import Model, Pass

Weights = Mapping[str, Tensor]
Run = Callable[
    [tuple[Tensor, ...], dict[str, Tensor], Weights, list[Met] | None], tuple[Tensor, Tensor]
]


def shareable(model: Model, call: Pass, b: int) -> bool:
    """Not the last span of a call whose last tick waits for its label, in the graph of its span."""
    waits = model.NEEDS_NEXT and b == call.time
    return model.ALONE and not (waits or call.own) and call.watching is None and by_hand.allowed()


@dataclass
class Ran:
    """A span that was run: its graph, and how it is run by itself.

    leaves   in the graph, what `Shared` is given: made ahead, arrays, weights
    learned  of the arrays, rows that wait for them
    met      products with arrays, and which of the leaves is the array
    """

    leaves: list[Tensor]
    outputs: tuple[Tensor, ...]
    met: list[tuple[int, Tensor, Tensor]]
    learned: dict[int, Rows]
    plain: by_hand.Plain

    def back(self, grads: Sequence[Tensor | None], keep: bool) -> list[Tensor | None]:
        """To the leaves. What comes to a product is the row of a gradient that waits."""
        known = [(y, g) for y, g in zip(self.outputs, grads, strict=True) if g is not None]
        asked = [x for x in self.leaves if x.requires_grad]
        came = torch.autograd.grad(
            [y for y, _ in known], [*asked, *(y for _, _, y in self.met)],
            [g for _, g in known], retain_graph=keep, allow_unused=True,
        )  # fmt: skip
        left = iter(came)
        found = [next(left) if x.requires_grad else None for x in self.leaves]
        for (place, x, _), grad in zip(self.met, left, strict=True):
            if grad is None:
                continue
            if place in self.learned:
                self.learned[place].after(x.detach(), grad)
                continue
            made, own = Sum().after(x, grad).total(), found[place]
            found[place] = made if own is None else own + made
        return found


class Shared(torch.autograd.Function):
    """What a span answers, as a function of what it was made of."""

    @staticmethod
    def forward(ctx: Any, ran: Ran, *outer: Tensor) -> tuple[Tensor, ...]:
        ctx.ran = ran
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*outer)
        return tuple(y.detach() for y in ran.outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        outer = ctx.saved_tensors  # or torch's own words, where the graph is gone
        if torch.is_grad_enabled():
            return None, *by_hand.again(ctx.ran.plain, outer, grads)
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        found = ctx.ran.back(grads, keep)
        if not keep:
            ctx.ran = None
        return None, *(
            g if n else None for g, n in zip(found, ctx.needs_input_grad[1:], strict=True)
        )


class Leaves(dict[str, Tensor]):
    """Copies of weights, by path, as leaves of the graphs of a call's spans. `asked`: by this span;
    `weights`: of which they are copies.
    """

    def __init__(self, copies: Mapping[str, Tensor], weights: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__({path: x.detach().requires_grad_() for path, x in copies.items()})
        self.weights = dict(weights)
        self.asked: dict[str, Tensor] = {}

    def __getitem__(self, path: str) -> Tensor:
        self.asked[path] = leaf = super().__getitem__(path)
        return leaf


def shared_span(model: Model, call: Pass, state: State, a: int, b: int) -> None:
    """One span: its answers and losses join the call's, and what the levels on tokens owe for it
    the state; who is due fires.
    """
    assert state.inner is not None
    paths, inner, met = model.learning_paths(), state.inner, list[Met]()
    ahead = () if call.ahead is None else call.ahead.part(a, b)
    run = runner(model, call, state, a, b)
    leaves = call.leaves = call.leaves or Leaves(call.copies, model.named_weights())
    leaves.asked = asked = dict[str, Tensor]()
    made = tuple(x.detach().requires_grad_(x.requires_grad) for x in ahead)
    outputs = run(made, inner, leaves, met)
    model.owe(state, outputs[1], tuple(met), call.first + a, keep=True)

    place = {p: len(made) + i for i, p in enumerate(paths)}
    still, count = detached(state.arrays), len(made)

    def plain(*seen: Tensor) -> tuple[Tensor, ...]:
        mine = dict(zip(asked, seen[count + len(paths) :], strict=True))
        arrays = still | {p: seen[i] for p, i in place.items()}
        with model.arithmetic():
            return run(seen[:count], arrays, mine, None)

    ran = Ran(
        [*made, *(inner[p] for p in paths), *asked.values()], outputs,
        [(place[p], x, y) for p, x, y in met if state.arrays[p].requires_grad],
        {place[p]: rows for p, rows in state.learned.waiting(state.arrays)}, plain,
    )  # fmt: skip
    given = *ahead, *(state.arrays[p] for p in paths), *(leaves.weights[p] for p in asked)
    result, losses = Shared.apply(ran, *given)  # type: ignore[no-untyped-call]
    call.outputs.append(result)
    if call.want_losses:
        call.losses.append(losses)
    state.position += b - a
    model.fire_due(state)


def runner(model: Model, call: Pass, state: State, a: int, b: int) -> Run:
    """The span as a function, which keeps nothing of the call: that keeps what it answers."""
    inputs, following = (
        tuple(x[:, first:last] for x in call.inputs) for first, last in ((a, b), (a + 1, b + 1))
    )
    at, when = (state.position, b - a, state.batch), (state.sequence, state.elapsed)
    has_ahead = call.ahead is not None

    def run(
        made: tuple[Tensor, ...], arrays: dict[str, Tensor], weights: Weights, met: list[Met] | None
    ) -> tuple[Tensor, Tensor]:
        s = Stream(arrays, *at, model.device, model.dtype)
        s.sequence, s.elapsed = when
        s.made, s.met, s.shared, s.copies = made if has_ahead else None, met, True, weights
        result, kept = model.flow(s, *inputs)
        return result, model.loss(kept, *following)

    return run
