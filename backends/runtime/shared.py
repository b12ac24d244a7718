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
from .owing import owe
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

ROOM = 1  # for gradients that wait for training, in parts of what a span answers and multiplies


def shareable(model: Model, call: Pass, b: int) -> bool:
    """Not the last span of a call whose last tick waits for its label, in the graph of its span."""
    waits = model.NEEDS_NEXT and b == call.time
    return model.ALONE and not (waits or call.own) and call.watching is None and by_hand.allowed()


@dataclass
class Sent:
    """What a span's losses have sent to leaves, by place, and to products (None: not known)."""

    leaves: dict[int, Tensor | None]
    products: list[Tensor | None] | None

    def times(self, share: Tensor) -> Sent:
        def part(g: Tensor | None) -> Tensor | None:
            return None if g is None else g * share

        products = None if self.products is None else [part(g) for g in self.products]
        return Sent({i: part(g) for i, g in self.leaves.items()}, products)


@dataclass
class Ran:
    """A span that was run: its graph, and how it is run by itself.

    leaves   in the graph, what `Shared` is given: made ahead, arrays, weights
    learned  of the arrays, rows that wait for them
    met      products with arrays, and which of the leaves is the array
    sent     by the sum of the losses, for the levels on tokens
    """

    leaves: list[Tensor]
    outputs: tuple[Tensor, ...]
    met: list[tuple[int, Tensor, Tensor]]
    learned: dict[int, Rows]
    plain: by_hand.Plain
    sent: Sent | None

    def back(
        self, grads: Sequence[Tensor | None], needed: Sequence[bool], keep: bool
    ) -> list[Tensor | None]:
        """To the leaves. What comes to a product is the row of a gradient that waits."""
        sent = self.asked(grads, keep)
        found = [sent.leaves.get(i) for i in range(len(self.leaves))]
        for (place, x, _), grad in zip(self.met, sent.products or (), strict=True):
            if grad is None or not needed[place]:
                continue
            if place in self.learned:
                self.learned[place].after(x.detach(), grad)
                continue
            made, own = Sum().after(x, grad).total(), found[place]
            found[place] = made if own is None else own + made
        return found

    def asked(self, grads: Sequence[Tensor | None], keep: bool) -> Sent:
        """Training's loss is mostly a mean, so that one number comes to all losses: what the levels
        on tokens were sent is then sent to training as often, and only the rest is asked for.
        """
        share = None if self.sent is None else one_number(grads)
        known = Sent({}, None) if share is None or self.sent is None else self.sent.times(share)
        places = [i for i, x in enumerate(self.leaves) if x.requires_grad and i not in known.leaves]
        wanted = [self.leaves[i] for i in places]
        if known.products is None:
            wanted += [y for _, _, y in self.met]
        if not wanted:
            return known
        given = [(y, g) for y, g in zip(self.outputs, grads, strict=True) if g is not None]
        came = torch.autograd.grad(
            [y for y, _ in given], wanted, [g for _, g in given], retain_graph=keep,
            allow_unused=True,
        )  # fmt: skip
        leaves = known.leaves | dict(zip(places, came[: len(places)], strict=True))
        return Sent(leaves, known.products or list(came[len(places) :]))


def one_number(grads: Sequence[Tensor | None]) -> Tensor | None:
    """What comes to each loss, if that is one number and nothing comes to the answers."""
    of_answers, of_losses = grads
    if of_answers is not None or of_losses is None:
        return None
    first = of_losses.flatten()[0]
    return first if bool((of_losses == first).all()) else None


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
        needed = ctx.needs_input_grad[1:]
        found = ctx.ran.back(grads, needed, keep)
        if not keep:
            ctx.ran = None
        return None, *(g if n else None for g, n in zip(found, needed, strict=True))


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
    given = [*made, *(inner[p] for p in paths), *asked.values()]
    place = {p: len(made) + i for i, p in enumerate(paths)}
    early = early_leaves(model, given, place.values(), outputs, met)
    grads = owe(
        model,
        state,
        outputs[1],
        tuple(met),
        call.first + a,
        keep=True,
        also=[given[i] for i in early],
    )
    still, count = detached(state.arrays), len(made)

    def plain(*seen: Tensor) -> tuple[Tensor, ...]:
        mine = dict(zip(asked, seen[count + len(paths) :], strict=True))
        arrays = still | {p: seen[i] for p, i in place.items()}
        with model.arithmetic():
            return run(seen[:count], arrays, mine, None)

    ran = Ran(
        given, outputs, [(place[p], x, y) for p, x, y in met],
        {place[p]: rows for p, rows in state.learned.waiting(state.arrays)}, plain,
        sent_by(grads, [*place.values()], len(met), early),
    )  # fmt: skip
    outer = *ahead, *(state.arrays[p] for p in paths), *(leaves.weights[p] for p in asked)
    result, losses = Shared.apply(ran, *outer)  # type: ignore[no-untyped-call]
    call.outputs.append(result)
    if call.want_losses:
        call.losses.append(losses)
    state.position += b - a
    model.fire_due(state)


def early_leaves(
    model: Model, leaves: Sequence[Tensor], learning: Iterable[int], outputs: Sequence[Tensor],
    met: Sequence[Met],
) -> list[int]:  # fmt: skip
    """Which leaves are asked for with what the levels on tokens learn: as long as their gradients,
    which wait for training, take no more room than the span has. None on a device that would be
    waited for, when training comes to look at its numbers.
    """
    if model.ONCE or not outputs[1].is_cpu:
        return []
    kept = *outputs, *(t for _, x, y in met for t in (x, y))
    room, early = ROOM * sum(t.numel() for t in kept), list[int]()
    others = {i for i, x in enumerate(leaves) if x.requires_grad} - set(learning)
    for i in sorted(others, key=lambda i: leaves[i].numel()):
        room -= leaves[i].numel()
        if room >= 0:
            early.append(i)
    return early


def sent_by(
    grads: Sequence[Tensor | None], learning: Sequence[int], products: int, early: Sequence[int]
) -> Sent | None:
    """What `owe` has asked for, if more than the levels on tokens need."""
    if not early or not grads:
        return None
    first, last = len(learning), len(learning) + products
    leaves = zip((*learning, *early), (*grads[:first], *grads[last:]), strict=True)
    return Sent(dict(leaves), list(grads[first:last]))


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
