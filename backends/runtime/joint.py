"""Training and the levels on tokens in one graph, where one's gradient goes through the other's.

Where a level that learns the model's own loss is differentiated itself (a second derivative, or a
start that another level on tokens learns), what it wrote has to be a function of what it was made
from. So a stream is run once, gates decide whose gradient enters what (language.md 2.11), and the
gradient of a firing is recorded. A gradient asked of this graph walks it back to its start, so
other systems are run in two graphs (model.py), which are cut where nothing open reaches back.

A start that level A on tokens learns for an array `fast.F.W1` is an array `fast.F.W1@A` of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..gates import Allowed, Learner, alias, gate, learning, sealed
from ..ops.by_hand import plainly
from . import beginning
from .owing import in_parts
from .state import State, Waiting, detached
from .stream import Stream

if TYPE_CHECKING:
    from .model import Model, Pass

Arrays = dict[str, Tensor]


def name(who: Learner) -> str:
    """Of its level; "" for a gradient that is taken from outside, which is training's."""
    return who.level or ""


def row(table: tuple[tuple[Any, ...], ...], level: str) -> Any:
    return next(found for name, found in table if name == level)


# ---- who may enter what --------------------------------------------------------------------------


def enters(model: Model, level: str) -> Allowed:
    """What a level on tokens wrote: `backprop level -> ..`."""
    open_to = row(model.ENTERS, level)
    return lambda who: name(who) in open_to


def starts(model: Model, level: str) -> Allowed:
    """From a state back into the start that another level keeps: the levels of its chain, learning
    starts; and those that may enter both.
    """
    chain = row(model.CHAINS, level)
    both = set(row(model.ENTERS, level)) & set(row(model.ENTERS, chain[0]))

    def allowed(who: Learner) -> bool:
        return learns_starts(who) and name(who) in chain or name(who) in both

    return allowed


def learns_starts(who: Learner) -> bool:
    """Training's gradient is one for weights and starts."""
    return who.level is None or who.kind == "starts"


def handed(closed: Iterable[tuple[str, str]]) -> Allowed:
    """The gradient that a rule is handed is a constant to those that say `first order`."""
    constant = set(closed)
    return lambda who: (name(who), "" if who.level is None else who.kind) not in constant


# ---- spans ---------------------------------------------------------------------------------------


def span(model: Model, call: Pass, state: State, a: int, b: int, training: bool) -> None:
    """One span, once: its answers, its losses, and what the levels on tokens owe for them."""
    if state.inner is None:
        stand(model, state, training)
    assert state.inner is not None
    state.replay.append(call.played(a, b))
    s = stream_of(model, state, b - a)
    s.inner, s.joint = not training, training
    if call.watching is not None:
        call.watching.on = not model.NEEDS_NEXT or b < call.time
    with differentiable():
        result, kept = model.flow(s, *(x[:, a:b] for x in call.inputs))
        losses = model.labelled(kept, call, a, b)
        if not call.own:
            state.owed += in_parts(model, losses, state.position)
        last = model.NEEDS_NEXT and b == call.time
        state.waiting = Waiting(tuple(k[:, -1:] for k in kept)) if last else None
    state.inner = dict(s)
    if not training:
        result, losses = result.detach(), losses.detach()
    call.outputs.append(result)
    if call.want_losses:
        call.losses.append(losses)
    state.position += b - a
    if not last:
        fire(model, state)
    show(state)


def since(model: Model, state: State, period: int, paths: Sequence[str]) -> Arrays:
    """Gradients of what is owed since a level fired, in a graph of the levels on tokens alone."""
    assert state.inner is not None
    found: dict[str, Tensor] = {}
    for once, ticks in ((False, period), (True, 1)):
        owed = [loss for tick, loss in state.owed if tick >= state.position - ticks]
        some = [p for p in paths if (p in model.ONCE) is once]
        leaves = [state.inner[p] for p in some]
        grads: Sequence[Tensor | None] = [None] * len(leaves)
        if owed and leaves:
            with torch.enable_grad():
                total = torch.stack(owed).sum()
            grads = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        for p, leaf, g in zip(some, leaves, grads, strict=True):
            found[p] = torch.zeros_like(leaf) if g is None else g
    return found


def stream_of(model: Model, state: State, time: int) -> Stream:
    assert state.inner is not None
    at = state.position, time, state.batch, model.device, model.dtype
    return model.placed(Stream(state.inner, *at), state)


@contextmanager
def differentiable() -> Iterator[None]:
    """What runs inside has derivatives of every order: the fused kernels of attention have no
    second one.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), plainly():
        yield


def show(state: State) -> None:
    """What a stream keeps, for those who look at it from outside."""
    assert state.inner is not None
    state.arrays = dict(state.inner) if state.live else detached(state.inner)


def stand(model: Model, state: State, training: bool) -> None:
    """The arrays as nodes of a new graph: what a level on tokens learns is one to differentiate by,
    and what starts here is made from its start.
    """
    model.rebase(state)
    state.inner = dict(state.arrays) if training else detached(state.arrays)
    with torch.enable_grad():
        for level in model.slowest_first():
            if state.position == 0 or model.starts_anew(level, state.position):
                begin(model, state.inner, level)
            node(model, state.inner, level)


def node(model: Model, arrays: Arrays, level: str) -> None:
    """What a level writes, and the starts that it learns, as nodes of their own."""
    for path in (path for kind in row(model.JOINED, level) for group in kind for path in group):
        arrays[path] = alias(arrays[path])


def begin(model: Model, arrays: Arrays, level: str) -> None:
    """What starts from an array that another level on tokens keeps, from there on."""
    allowed = None
    for path, owner, source in model.CHAINED:
        if owner == level:
            allowed = allowed or starts(model, level)
            arrays[path] = gate(arrays[source], allowed)


# ---- firings -------------------------------------------------------------------------------------


def fire(model: Model, state: State) -> None:
    """The end of a tick: the due levels write, then the due start anew, slowest first (2.7.3)."""
    due = model.due(state.position)
    over = [v for v in model.slowest_first() if model.starts_anew(v, state.position)]
    if not due and not over:
        return
    assert state.inner is not None
    with differentiable():
        found = {level: gradients(model, state, level, period) for level, period, _ in due}
        for level, period, _ in due:
            s = stream_of(model, state, 0)
            model.fire(level, s, found[level], model.age(level, state.position) // period)
            state.inner = dict(s)
            node(model, state.inner, level)
        restart(model, state, over)
    show(state)
    let_go(model, state, {level for level, _, _ in due} | set(over))


def restart(model: Model, state: State, over: Sequence[str]) -> None:
    """These levels, slowest first, go back to their start."""
    assert state.inner is not None
    for level in over:
        fresh = anew(model, state, level)
        state.inner |= fresh if state.live else detached(fresh)
        begin(model, state.inner, level)
        if level in model.slowest_first():
            node(model, state.inner, level)


def begin_anew(model: Model, state: State) -> None:
    """A call begins: what no tick has followed since its reset is its start (beginning.py)."""
    if not state.position:
        beginning.begin_anew(model, state)
        return
    learners = model.slowest_first()
    others = dict.fromkeys(row[0] for row in model.RESETS)
    levels = learners + [v for v in others if v not in learners]
    over = [v for v in levels if model.starts_anew(v, state.position)]
    for level in over:
        state.arrays |= anew(model, state, level)
    if state.inner is not None:
        with differentiable():
            restart(model, state, over)


def gradients(model: Model, state: State, level: str, period: int) -> Arrays:
    """Of the losses since the level fired, at the states that stood over them and at the starts
    that it learns (2.10.1, 2.11.2).
    """
    assert state.inner is not None
    open_ = [(tick, x) for tick, x in state.owed if x.requires_grad]
    since = [x for tick, x in open_ if tick >= state.position - period]
    last = [x for tick, x in open_ if tick == state.position - 1]
    recorded = model.SECOND[0] or state.live and model.SECOND[1]
    allowed, rule = enters(model, level), handed(row(model.FIRST, level))
    found: Arrays = {}
    for kind, groups in zip(("weights", "starts"), row(model.JOINED, level), strict=True):
        standing = [state.inner[p] for group in groups for p in group]
        with learning(Learner(level, kind)):
            raw = iter(slopes(since, standing, recorded))
            final = iter(slopes(last if model.ONCE else [], standing, recorded))
        for group in groups:
            own = [state.inner[p] for p in group]
            for path, x, whole, end in zip(group, own, raw, final, strict=False):
                g = end if path in model.ONCE else whole
                g = torch.zeros_like(x) if g is None else g
                found[path] = gate(sealed(g, allowed, own, learns_starts), rule)
    return found


def slopes(losses: list[Tensor], at: list[Tensor], recorded: bool) -> tuple[Tensor | None, ...]:
    if not losses or not at:
        return (None,) * len(at)
    return torch.autograd.grad(
        losses, at, create_graph=recorded, retain_graph=True, allow_unused=True
    )


def anew(model: Model, state: State, level: str) -> Arrays:
    """The arrays of a level at a reset, those that its rules keep, and the starts it learns."""
    fresh = model.starts(state.batch)
    return {path: x for path, x in fresh.items() if kept_by(model, path, level)}


def kept_by(model: Model, path: str, level: str) -> bool:
    array, _, chain = path.partition("@")
    if chain:
        return chain.split("@")[-1].partition(".")[0] == level
    return array.startswith(model.prefixes(level))


def let_go(model: Model, state: State, changed: set[str]) -> None:
    """Losses that no level will look at again; and all of the graph where every level has fired,
    unless training's gradient goes back through it.
    """
    since = state.position - max(period for _, period, _ in model.LEARNERS)
    state.owed = [(tick, x) for tick, x in state.owed if tick >= since]
    if len(changed) < len(model.LEARNERS):
        return
    state.owed = []
    if not state.live:
        stand(model, state, False)
    else:
        model.rebase(state)


__all__ = ["differentiable", "fire", "since", "span"]
