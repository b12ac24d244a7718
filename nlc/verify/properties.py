"""What always holds of a system, one function for each property: each runs it and measures.

A measured value may be at most its bar: a difference in parts of the largest number, a count, or a
factor. Where 0 is asked for, `contrast` is the same number where it must not be 0.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ..backends.parameters import paths
from ..backends.reference import Reference
from ..backends.runtime import Model
from ..backends.torch_source.bodies import state_path
from ..idle import stands
from ..system import Level, System
from .streams import (
    Grads,
    Nudged,
    Run,
    Streams,
    Truth,
    answering,
    apart,
    changed,
    distance,
    exceeds,
    farthest,
    gradients,
    in_calls,
    random_streams,
    run_of,
    ticks,
    truth_of,
)

EXACT = 1e-9  # of the largest number, float64
ALIVE = 10.0  # a norm may change by this factor
PIECES = 8  # calls of a long stream
LONGEST = 4096  # tokens, in search of a gradient
MANY = 150, 70  # tokens of a call that is cut into several chunks; the fewer, where rounding grows
FEW = 13  # of one that never is


class HasArrays(Protocol):
    """The state of a system or of an operation."""

    @property
    def arrays(self) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Measured:
    """One property, what was measured, and the most it may be. `at`: where the worst was."""

    name: str
    value: float
    bar: float
    at: str = ""
    contrast: float = math.inf
    bent: float = 0.0  # what other last bits do to it, where that was asked

    @property
    def holds(self) -> bool:
        return self.value <= self.bar and self.contrast > 0


# ---- exactness -----------------------------------------------------------------------------------


def same_outputs(model: Model, streams: Streams, truth: Truth) -> Measured:
    """Answers, with and without gradients kept."""
    kept = model(*streams)[0]
    with torch.no_grad():
        other = model(*streams)[0]
    off, where = worse(apart(kept, truth.outputs), apart(other, truth.outputs))
    return Measured("outputs == reference", off, EXACT, where)


def same_losses(model: Model, streams: Streams, truth: Truth) -> Measured:
    """The loss of every token, and which tokens have one."""
    with torch.no_grad():
        losses, labelled, _ = model.losses(*streams)
    if not torch.equal(labelled, truth.labelled):
        tick = int((labelled != truth.labelled).nonzero()[0][1]) + 1
        return Measured("losses == reference", math.inf, EXACT, f"whether token {tick} has one")
    off, where = apart(losses, truth.losses)
    return Measured("losses == reference", off, EXACT, where)


def same_gradients(model: Model, streams: Streams, truth: Truth) -> Measured:
    """Of the mean loss, to every weight and every start that is trained."""
    off, where = farthest(gradients(model, streams), truth.gradients)
    return Measured("gradients == reference", off, EXACT, where)


def worse(a: tuple[float, str], b: tuple[float, str]) -> tuple[float, str]:
    """The larger distance; what is no number is larger than any."""
    return a if b[0] <= a[0] or math.isnan(a[0]) else b


def handed_over(model: Model, reference: Reference, streams: Streams, cut: int) -> Measured:
    """Answers of two calls, the second with the state of the first, on both sides."""
    first, second = ticks(streams, 0, cut), ticks(streams, cut)
    wanted, before = reference(first)
    with answering(model):
        y, state = model(*first)
        early = apart(y, wanted)
        late = apart(model(*second, state=state)[0], reference(second, before)[0], cut)
    off, where = worse(early, late)
    return Measured("two calls == reference", off, EXACT, where)


def gradients_handed_over(
    model: Model,
    reference: Reference,
    streams: Streams,
    cut: int,
    least: float = 1e-6,
    ended: bool = False,
) -> Measured:
    """Gradients of the second of two calls, the state between them detached: what the first made is
    a constant, and a start is not made by it. `least`: as for `farthest`. `ended`: the second is a
    sequence of its own. Both train, so in both is dropped what is to be.
    """
    _, state = model(*ticks(streams, 0, cut))
    state = model.finish(state) if ended else state
    wanted = second_call(reference, streams, cut, ended)
    found = gradients(model, ticks(streams, cut), state.detach())
    reached = {n: g for n, g in wanted.items() if bool(g.any())}
    floor = EXACT * max((float(g.abs().max()) for g in reached.values()), default=0.0)
    astray = [n for n, g in found.items() if n not in reached and float(g.abs().max()) > floor]
    off, where = farthest({n: found[n] for n in reached}, reached, least)
    off, where = (math.inf, astray[0]) if astray else (off, where)
    first = f"the first of {cut} tokens" + ", a sequence" * ended
    at = f"{where}, {first}" if where else ""
    return Measured("gradients of a second call == reference", off, EXACT, at)


def second_call(reference: Reference, streams: Streams, cut: int, ended: bool = False) -> Grads:
    """The gradients of the ticks from a cut on, after a call of the same step on those before."""
    _, _, before = reference.run(ticks(streams, 0, cut), None, train=False, drops=True)
    before = reference.finish(before) if ended else before
    return truth_of(reference, ticks(streams, cut), before).gradients


# ---- any split -----------------------------------------------------------------------------------


@torch.no_grad()
def streamed(run: Run, system: System, streams: Streams) -> Measured:
    """One token a call."""
    whole, _ = run(streams, None)
    off, where = apart(in_calls(run, streams, ends(system, whole.shape[1])), whole)
    return Measured("streamed == in one call", off, EXACT, where)


@torch.no_grad()
def random_splits(
    run: Run, system: System, streams: Streams, seed: int | str = 0, splits: int = 3
) -> Measured:
    whole, _ = run(streams, None)
    rng, worst, where = random.Random(seed), 0.0, ""
    inner = ends(system, whole.shape[1])
    for _ in range(splits if inner else 0):
        cuts = sorted(rng.sample(inner, rng.randint(1, min(6, len(inner)))))
        off = distance(in_calls(run, streams, cuts), whole)
        if exceeds(off, worst):
            worst, where = off, f"calls that end at {cuts}"
    return Measured("random splits == in one call", worst, EXACT, where)


@torch.no_grad()
def many_at_once(run: Run, streams: Streams, cuts: Sequence[int]) -> Measured:
    """A call of several chunks takes other algorithms than one of a few tokens, which alone the
    reference, a token at a time, is quick enough to be compared to.
    """
    found, _ = run(streams, None)
    off, where = apart(found, in_calls(run, streams, cuts))
    return Measured(f"{found.shape[1]} tokens at once == in calls of {FEW}", off, EXACT, where)


def few_by_few(system: System, time: int) -> list[int]:
    """Where calls end that are too short to be cut into chunks."""
    cuts = [0]
    for t in ends(system, time):
        if t - cuts[-1] >= FEW:
            cuts.append(t)
    return cuts[1:]


def gradients_of_many(model: Model, streams: Streams, cuts: Sequence[int]) -> Measured:
    """The same of gradients."""
    off, where = gradients_apart(model, streams, cuts)
    return Measured(f"gradients of {streams[0].shape[1]} tokens == in calls", off, EXACT, where)


def gradients_across_calls(model: Model, system: System, streams: Streams) -> Measured:
    """A state that is not detached carries the gradient to the calls before."""
    last = streams[0].shape[1]
    inner = sorted({1, (last + 1) // 3, max(1, last - 2)} & set(ends(system, last)))
    off, where = gradients_apart(model, streams, inner)
    return Measured("gradients through calls == in one call", off, EXACT, where)


def gradients_apart(model: Model, streams: Streams, inner: Sequence[int]) -> tuple[float, str]:
    """How far gradients of all answers are from those of one call, where calls end at `inner`."""
    named = [(n, p) for n, p in model.named_weights() if p.requires_grad]
    found = []
    for cuts in ([], inner):
        y = in_calls(run_of(model), streams, cuts)
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
        grads: Sequence[Tensor | None] = [None] * len(named)
        if y.requires_grad:
            total = (weight * y).sum()
            grads = torch.autograd.grad(total, [p for _, p in named], allow_unused=True)
        pairs = zip(named, grads, strict=True)
        found.append({n: torch.zeros_like(p) if g is None else g for (n, p), g in pairs})
    return farthest(found[1], found[0])


# ---- no token changes an earlier one, no sample another ------------------------------------------


def jacobian(model: Model, system: System, time: int, seed: int = 0) -> Measured:
    """The largest derivative of an answer by a later token; `contrast`, by any other."""
    streams = random_streams(system, 1, time, seed, distinct=True)
    leaves = [x.requires_grad_() if x.is_floating_point() else x for x in streams]
    with Nudged() as nudged:
        y, _ = model(*leaves)
    return reach_of(y, leaves, list(nudged.nudges.values()), seed)


def reach_of(y: Tensor, inputs: Sequence[Tensor], nudges: Sequence[Tensor], seed: int) -> Measured:
    """Of answers [1, time, ..] to their inputs. Not each need depend on its own: a memory may hold
    nothing yet, or be all that is asked.
    """
    sides = [x for x in inputs if x.is_floating_point()] + list(nudges)
    pick = torch.Generator().manual_seed(seed)
    late, own, where = 0.0, [], ""
    for t in range(y.shape[1] if sides and y.requires_grad else 0):
        weight = torch.randn(y[:, t].shape, generator=pick, dtype=torch.float64).to(y)
        grads = torch.autograd.grad(
            (weight * y[:, t]).sum(), sides, retain_graph=True, allow_unused=True
        )
        reach = reached(inputs, grads)
        own.append(float(reach[: t + 1].amax()))
        off = float(reach[t + 1 :].amax()) if t + 1 < len(reach) else 0.0
        if exceeds(off, late):
            late, where = off, f"token {t + 1}"
    return Measured("Jacobian to later tokens", late, 0.0, where, max(own, default=math.inf))


def reached(inputs: Sequence[Tensor], grads: Iterable[Tensor | None]) -> Tensor:
    """How far each tick [time] is reached by a gradient to the inputs that are numbers, and then to
    the rows of the tables that the ids look up.
    """
    reach = torch.zeros(inputs[0].shape[1])
    numbers = [x for x in inputs if x.is_floating_point()]
    ids = [x[0] for x in inputs if not x.is_floating_point()]
    for i, g in enumerate(grads):
        if g is None:
            continue
        at = [g[0]] if i < len(numbers) else [g[rows] for rows in ids]
        for value in at:
            far = value.abs().reshape(len(value), -1).amax(1)
            reach = torch.maximum(reach, far.to(reach))
    return reach


def later_tokens(run: Run, system: System, streams: Streams, training: bool = False) -> Measured:
    """Inputs other from some tick on: the largest change before it; `contrast`, from it on."""
    return before_a_change(run, streams, lambda t: changed(streams, system, t), training)


def before_a_change(
    run: Run,
    streams: Streams,
    other_from: Callable[[int], Streams],
    training: bool = False,
) -> Measured:
    time = streams[0].shape[1]
    late, own, where = 0.0, [], ""
    with torch.set_grad_enabled(training):
        whole, _ = run(streams, None)
        for t in sorted({1, 3, time // 3, 2 * time // 3, time - 1} & set(range(1, time))):
            other, _ = run(other_from(t), None)
            own.append(float((other[:, t:] - whole[:, t:]).detach().abs().max()))
            off = float((other[:, :t] - whole[:, :t]).detach().abs().max())
            if exceeds(off, late):
                late, where = off, f"token {t + 1} was changed"
    return Measured("change by later tokens", late, 0.0, where, max(own, default=math.inf))


def other_samples(run: Run, system: System, streams: Streams) -> Measured:
    return beside_a_change(run, streams, changed(streams, system, 0, sample=1))


@torch.no_grad()
def beside_a_change(run: Run, streams: Streams, other: Streams) -> Measured:
    """The second sample is another one: the largest change of the rest."""
    one, _ = run(streams, None)
    two, _ = run(other, None)
    off = (two - one).abs().flatten(1).amax(1)
    own, off[1] = float(off[1]), 0
    worst = float(off.max())
    where = f"sample {int(off.argmax()) + 1}, as sample 2 was changed" * (worst != 0)
    return Measured("change by another sample", worst, 0.0, where, own)


# ---- what learns ---------------------------------------------------------------------------------


def without_gradient(model: Model, streams: Streams, system: System) -> Measured:
    """How many trained arrays get no gradient, or one that is not finite; a start that is one for
    each head counts by its heads. A gradient may be nothing only where the weights happen to stand
    (A's in B(A(x)), while B is 0), or until a slow level has fired: what has none is asked again a
    little beside them, and of longer streams.
    """
    fixed = kept_fixed(system)
    found = {n: g for n, g in gradients(model, streams).items() if n not in fixed}
    missing, ran = [n for n, g in found.items() if not all_reached(g)], ""
    runs = [streams, *longer(system, streams[0].shape[1])] if missing else []
    for x in runs if all(map(is_finite, found.values())) else []:
        with moved(model):
            beside = gradients(model, x)
        missing = [n for n in missing if not all_reached(beside[n])]
        ran = "" if x is streams else f", some of {x[0].shape[1]:,} tokens"
        if not missing:
            break
    at = f"{', '.join(missing[:3])}{', ..' * (len(missing) > 3)}" or f"of {len(found)}"
    return Measured("arrays without a gradient", len(missing), 0.0, at + ran)


def longer(system: System, time: int) -> Iterator[Streams]:
    """One sample each, until the slowest level has fired twice."""
    levels = [l for l in system.levels if l.clock.unit == "token"]
    clocks = [c for l in levels for c in (l.clock, l.resets) if c.unit == "token"]
    slowest = max((c.period for c in clocks), default=1)
    while time < min(2 * slowest, LONGEST):
        time *= 2
        yield random_streams(system, 1, time + 2)


def kept_fixed(system: System) -> frozenset[str]:
    """Weights in the bodies of levels that pass no gradient back: constants there, as `transfer
    condition` says (2.11.2).
    """
    passing = {t.source for t in system.transfers if t.kind == "backprop" and t.target.owner}
    levels = ((w, w.box.level) for w in system.weights if w.box is not None)
    mine = (w for w, level in levels if level is not None and not level.owner | (level in passing))
    return frozenset(path for w in mine for path in paths(w.path, w.loops))


@contextmanager
def moved(model: Model, by: float = 1e-2) -> Iterator[None]:
    """While every array is a little beside where it stands, by one draw."""
    arrays = [p for _, p in model.named_weights()]
    before, draw = [p.detach().clone() for p in arrays], torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in arrays:
            p.add_(by * torch.randn(p.shape, generator=draw, dtype=torch.float64).to(p))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, x in zip(arrays, before, strict=True):
                p.copy_(x)


def is_finite(gradient: Tensor) -> bool:
    return bool(gradient.isfinite().all())


def all_reached(gradient: Tensor) -> bool:
    heads = gradient.flatten(0, -3) if gradient.ndim > 2 else gradient[None]
    return is_finite(gradient) and bool((heads.flatten(1).abs().amax(1) > 0).all())


# ---- a long stream -------------------------------------------------------------------------------


@dataclass(frozen=True)
class LongRun:
    """A long stream at the default initialisation: the deviation of the answers in its first and
    last piece, and the norms of the memories before it, after the first piece, and at the end;
    `still`: the memories that keep every bit in the last piece.
    """

    time: int
    answers: tuple[float, float]
    norms: tuple[dict[str, float], dict[str, float], dict[str, float]]
    still: tuple[str, ...] = ()


def long_run(model: Model, system: System, time: int, seed: int = 0) -> LongRun:
    streams = tuple(
        x.to(model.dtype) if x.is_floating_point() else x
        for x in random_streams(system, 1, time, seed)
    )
    found = run_long(run_of(model), streams, lasting(system), model.reset(1))
    learning = firing_within(system, time // PIECES)
    return replace(found, still=tuple(path for path in found.still if path in learning))


@torch.no_grad()
def run_long(
    run: Run, streams: Streams, memories: Sequence[str], start: HasArrays | None = None
) -> LongRun:
    """In calls of a piece each. `start`: the state before them, if memories are compared to it."""
    time, state, sizes = streams[0].shape[1], None, []
    before: HasArrays | None = None
    kept = [dict.fromkeys(memories, 0.0) if start is None else norms(start, memories)]
    for first, last in pairwise([time * i // PIECES for i in range(PIECES + 1)]):
        before = state
        y, state = run(ticks(streams, first, last), state)
        sizes.append(float(y.std()) if bool(y.isfinite().all()) else math.nan)
        kept.append(norms(state, memories))
    last_size = math.nan if any(map(math.isnan, sizes)) else sizes[-1]
    assert state is not None and before is not None
    still = tuple(n for n in kept[-1] if torch.equal(state.arrays[n], before.arrays[n]))
    return LongRun(time, (sizes[0], last_size), (kept[0], kept[1], kept[-1]), still)


def lasting(system: System) -> list[str]:
    """The memories that live as long as the stream: a reset every few ticks ends the others."""
    return [path for path, level in owners(system).items() if level.resets.unit != "token"]


def firing_within(system: System, ticks: int) -> set[str]:
    """The memories that fire at least once in so many ticks, at a rate that is not nothing."""
    waits = 1  # for the label of its last tick
    quick = {p for p, level in owners(system).items() if level.clock.period + waits <= ticks}
    return quick - standing(system)


def norms(state: HasArrays, paths: Iterable[str]) -> dict[str, float]:
    return {p: float(state.arrays[p].norm()) for p in paths if p in state.arrays}


def answers_keep_their_size(run: LongRun) -> Measured:
    """By which factor the deviation of the answers changed."""
    before, after = run.answers
    said = f"their deviation was {before:.2g} and is {after:.2g}"
    return Measured(f"answers after {run.time:,} tokens", factor(before, after), ALIVE, said)


def memories_keep_their_size(run: LongRun) -> Measured:
    """By which factor the norm of a memory changed; of one that starts at nothing, since an eighth
    of the tokens. One that no longer changes is not alive, whatever its norm.
    """
    start, early, end = run.norms
    worst, where = 1.0, ""
    for path, after in end.items():
        before = start[path] or early[path]
        change = factor(before, after) if before or not math.isfinite(after) else 1.0
        if exceeds(change, worst):
            worst, where = change, path
    name = f"memories after {run.time:,} tokens"
    if run.still:
        return Measured(name, worst, ALIVE, f"{run.still[0]} no longer changes", 0.0)
    return Measured(name, worst, ALIVE, where)


def factor(before: float, after: float) -> float:
    """10 for ten times as much, and for a tenth."""
    if not (math.isfinite(after) and math.isfinite(before)):
        return math.inf
    if after == before:
        return 1.0
    return max(after / before, before / after) if after > 0 and before > 0 else math.inf


# ---- clocks --------------------------------------------------------------------------------------


def owners(system: System) -> dict[str, Level]:
    """The arrays that levels on tokens write; what is solved anew has no clock."""
    found = {}
    for box in system.boxes:
        if box.level is None or box.level.clock.unit != "token" or box.exact:
            continue
        for state in box.states:
            for array in state.form.arrays:
                for path in paths(state_path(box, state.name, array.name), box.loops):
                    found[path] = box.level
    return found


def due(level: Level, tick: int) -> tuple[bool, bool]:
    """Whether a level's clock fires at the end of a tick, and whether it starts anew there: from a
    reset to the next there are as many ticks as to the first, and the clock counts from it (2.6.2).
    """
    if tick < 1:
        return False, False
    every = level.resets.first if level.resets.unit == "token" else 0
    age = (tick - 1) % every + 1 if every else tick
    since = age - level.clock.first
    return since >= 0 and since % level.clock.period == 0, age == every


def ends(system: System, time: int) -> list[int]:
    """Where a call may end and have no say in the numbers: before the last tick, and where it cuts
    no period short that `partial drop` would forget (2.6.5).
    """
    drops = [l for l in system.levels if l.partial == "drop" and l.clock.unit == "token"]
    return [t for t in range(1, time) if all(any(due(level, t)) for level in drops)]


def second_calls(system: System, time: int) -> list[tuple[int, bool]]:
    """Where a first call is to end, and whether a sequence does: once within periods and once where
    one ends, for what is handed on is a sum, or what was made of it; and where levels start anew.
    """
    levels = [l for l in system.levels if l.clock.unit == "token" and l.clock.period > 1]
    firing = [t for t in range(2, time - 1) if any(due(level, t)[0] for level in levels)]
    within = [t for t in range(2, time - 1) if t not in firing]
    cuts = {*firing[:1], *within[len(within) // 3 :][:1]}
    return sorted({(cut, False) for cut in cuts} | set(at_starts(system, time)))


def at_starts(system: System, time: int) -> list[tuple[int, bool]]:
    """The same, after a reset: within a sequence, and at the end of one where starts are learned
    or some level outlives it.
    """
    lives = [l.resets.first for l in system.levels if l.resets.unit == "token"]
    anew = [(t, False) for t in range(2, time - 1) if any(t % life == 0 for life in lives)]
    lasts = any(t.kind == "init" for t in system.transfers)
    lasts = lasts or any(l.clock.unit == "sequence" for l in system.levels)
    return anew[-1:] + [(time // 2, True)] * (lasts and time > 3)


@torch.no_grad()
def off_the_clock(model: Model, system: System, streams: Streams) -> Measured:
    """How often an array changed though its level did not fire, or a weight did; `contrast`, the
    least share of its firings that changed an array. A firing that waits for its label is the first
    thing of the next call (2.7.3). A reset is no firing, nor is a start that is made after it.
    """
    kept = model.kept_arrays()  # what learns at a rate of nothing is a weight
    levels = {path: level for path, level in owners(system).items() if path in kept}
    waits = {path for _, _, learning in model.LEARNERS for path in learning if model.NEEDS_NEXT}
    weights = {n: p.clone() for n, p in model.named_weights()}
    state, wrong = model.reset(streams[0].shape[0]), []
    fired: dict[str, list[bool]] = {path: [] for path in levels}
    for t in range(1, streams[0].shape[1] + 1):
        before = state
        _, state = model(*ticks(streams, t - 1, t), state=state)
        for path, level in levels.items():
            same = torch.equal(state.arrays[path], before.arrays[path])
            late = path in waits
            fires, anew = due(level, t - late)
            begins = not late and (t == 1 or due(level, t - 1)[1])
            if fires:
                fired[path].append(not same)
            elif not (same or anew or begins):
                wrong.append(f"{path} at token {t}")
    wrong += [n for n, p in model.named_weights() if not torch.equal(p, weights[n])]
    shares = {p: sum(changed) / len(changed) for p, changed in fired.items() if changed}
    at_rest = standing(system)
    moving = sorted((p for p in shares if p not in at_rest), key=shares.__getitem__)
    contrast = shares[moving[0]] if moving else math.inf
    still = [f"{p} changes at none of its {len(fired[p])} firings" for p in moving if not shares[p]]
    at = next(iter([*wrong, *still]), "")
    return Measured("changes off the clock", len(wrong), 0.0, at, contrast)


def standing(system: System) -> frozenset[str]:
    """The arrays of states that learn at a rate of nothing and forget nothing."""
    found = ((b, s) for b in system.boxes for s in b.states if stands(s))
    return frozenset(
        path
        for box, s in found
        for array in s.form.arrays
        for path in paths(state_path(box, s.name, array.name), box.loops)
    )
