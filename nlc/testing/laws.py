"""What every system must obey, as assertions on a spec of one's own, and a search for a system that
breaks one.

    from nlc.testing import laws

    def test_mine():
        laws.check(nlc.load("mine.nl"))                       # all of them
        laws.batch_independence(nlc.load("mine.nl"))          # one

    found = laws.search(laws.streamed_equals_full, examples=500)
    print(found)              # a small .nl file, or in how many systems there was none

A law is a function of a spec, and raises LawBroken; where it has nothing to ask of a spec, it
answers why. What compiles is held to it as compiled, and against the reference interpreter; what
has no lowering (NL701) as the reference runs it, so of that `compiled_is_reference` asks nothing.
"""

from __future__ import annotations

import copy
import functools
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..backends.parameters import paths
from ..backends.reference import State as ReferenceState
from ..backends.reference import reference
from ..backends.reference.frames import Record
from ..backends.runtime import Model
from ..backends.torch_source import compile as compile_spec
from ..driver import Spec, SpecError
from ..foreign import through_lines, writes_at_call
from ..system import Box, Level, System, Term, Transfer, line_terms
from ..verify import default_tokens
from ..verify import properties as P
from ..verify.rounding import Found, bend
from ..verify.streams import (
    Grads,
    Run,
    Streams,
    distance,
    farthest,
    gradients,
    in_calls,
    random_streams,
    run_of,
    ticks,
    truth_of,
)
from .search import Counterexample, Nothing, search

__all__ = [
    "LAWS", "Counterexample", "LawBroken", "Nothing", "batch_independence", "check",
    "compiled_is_reference", "fastest_first", "fires_as_often_as_computed", "fires_on_its_clock",
    "gradients_cross_where_declared", "no_stale_read", "no_write_from_the_future", "search",
    "streamed_equals_full",
]  # fmt: skip

BATCH, SEED = 3, 0
EXACT = P.EXACT  # in parts of the largest number, float64
ROUNDING = 1e-3  # a gradient below this part of the largest is measured by it: random systems bend


class LawBroken(AssertionError):
    """What was measured, where, and what it may be."""


Law = Callable[[Spec], str | None]  # why it has nothing to ask
NO_LOWERING, NO_LOSS = "it has no lowering (NL701)", "its flow has no loss"


def alone(law: Law) -> Law:
    """Runs on one thread: operations are small, and numbers are the same each time."""

    @functools.wraps(law)
    def run(spec: Spec) -> str | None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return law(spec)
        finally:
            torch.set_num_threads(threads)

    return run


def check(spec: Spec) -> dict[str, str]:
    """Every law, in the order of LAWS. Raises LawBroken at the first that is broken; answers with
    the laws that had nothing to ask of this spec, and why.
    """
    answers = {law.__name__: law(spec) for law in LAWS}
    return {name: why for name, why in answers.items() if why is not None}


# ---- numbers -------------------------------------------------------------------------------------


@alone
def compiled_is_reference(spec: Spec) -> str | None:
    """Answers, losses and gradients of the compiled module are the reference's; and gradients of a
    second call, to which what the first made is a constant.
    """
    model = compiled(spec)
    if model is None:
        return NO_LOWERING
    streams = streams_of(spec)
    run = reference(spec, model.state_dict(), traced=())
    truth = truth_of(run, streams)
    hold(P.same_outputs(model, streams, truth), bent(spec, model, lambda r: {"": r(streams)[0]}))
    if spec.system.flow.loss is not None:
        losses = bent(spec, model, lambda r: {"": truth_of(r, streams).losses})
        hold(P.same_losses(model, streams, truth), losses)
        same_gradients("gradients == reference", spec, model, streams, truth.gradients)
        for cut, ended in P.second_calls(spec.system, streams[0].shape[1]):
            second = functools.partial(P.second_call, streams=streams, cut=cut, ended=ended)
            found = P.gradients_handed_over(model, run, streams, cut, ROUNDING, ended)
            hold(found, bent(spec, model, second))
    return None


def same_gradients(name: str, spec: Spec, model: Model, streams: Streams, truth: Grads) -> None:
    off, where = farthest(gradients(model, streams), truth, ROUNDING)
    near = bent(spec, model, lambda r: truth_of(r, streams).gradients)
    hold(P.Measured(name, off, EXACT, where), near)


@alone
def streamed_equals_full(spec: Spec) -> None:
    """One tick a call, and calls of any length, answer what one call does; of a level that says
    `partial drop`, calls that end where it fires or starts anew (2.6.5).
    """
    run, streams = run_for(spec), streams_of(spec)
    hold(P.streamed(run, spec.system, streams))
    hold(P.random_splits(run, spec.system, streams, SEED))


@alone
def no_write_from_the_future(spec: Spec) -> None:
    """No answer changes when a later input does: nothing is written before its tick."""
    hold(P.later_tokens(run_for(spec), spec.system, streams_of(spec)))


@alone
def batch_independence(spec: Spec) -> None:
    """No sample changes the answers of another."""
    hold(P.other_samples(run_for(spec), spec.system, streams_of(spec)))


# ---- clocks and order ----------------------------------------------------------------------------


@alone
def fires_on_its_clock(spec: Spec) -> None:
    """Between its firings a memory does not change, to the last bit, and no weight does while it
    runs; and by the reference's trace each write is at a tick of the clock.
    """
    model, streams = compiled(spec), streams_of(spec)
    if model is not None:
        hold(P.off_the_clock(model, spec.system, streams))
    time = streams[0].shape[1]
    for record in traced(spec, streams, steps=0):
        level = writer_of(spec.system, record.path)
        if level is None or level.clock.unit != "token":
            continue
        if record.tick not in firings(level, time):
            raise LawBroken(f"{record.path} is written at tick {record.tick}, and {told(level)}")


@alone
def fires_as_often_as_computed(spec: Spec) -> str | None:
    """f(token) : f(step): in each of two steps of training a memory fires as its clock says."""
    streams, steps = streams_of(spec, batch=1), 2
    if spec.system.flow.loss is None:
        return NO_LOSS
    time = streams[0].shape[1]
    counts = Counter((r.path, r.step) for r in traced(spec, streams, steps) if r.sample >= 0)
    for box, path in memories(spec.system):
        if box.level is None or box.level.clock.unit != "token":
            continue
        wanted = firings(box.level, time)
        # What does not write at its call fires when the tick is over: the last one is not (2.7.3).
        lawful = {len(wanted), len(wanted - {time})} if waits(spec.system, box) else {len(wanted)}
        mine = {at: found for at, found in counts.items() if instance(at[0]) == path}
        if not mine and 0 not in lawful:
            raise LawBroken(f"{path} never fires in {time} tokens, and {told(box.level)}")
        for (whole, step), found in mine.items():
            if found not in lawful:
                said = f"{whole} fires {found} times in {time} tokens of step {step}"
                raise LawBroken(f"{said}, and {told(box.level)}: {len(wanted)} times")
    return None


@alone
def fastest_first(spec: Spec) -> None:
    """The order of levels is that of what runs: faster levels fire at least as often, and of two
    that fire as often the one whose new state the other reads is the faster (2.7.4).
    """
    ranks = spec.level_graph.levels
    place = {c.name: i for i, rank in enumerate(ranks) for c in rank.components}
    keys = [c.frequency.key for rank in ranks for c in rank.components]
    if keys != sorted(keys):
        raise LawBroken("the levels are not in the order of their frequencies, slowest first")
    by_level = {c.level: c for rank in ranks for c in rank.components if c.kind == "level"}
    for record in traced(spec, streams_of(spec), steps=0, events=("read",)):
        read, reader = level_of(spec.system, record.path), level_of(spec.system, record.reader)
        if record.sees != "new" or read is None or reader is None or read is reader:
            continue
        a, b = by_level.get(read.name), by_level.get(reader.name)
        if a is None or b is None or a.frequency.key != b.frequency.key:
            continue
        if place[a.name] <= place[b.name]:
            raise LawBroken(
                f"{record.reader} reads what {record.path} has become in the same tick, and "
                f"level {a.name} is not ordered as faster than {b.name}"
            )


@alone
def no_stale_read(spec: Spec) -> None:
    """What is read after a firing is what the firing wrote: calls that end at each firing, and one
    tick before and after it, answer what the reference does in one.
    """
    run, streams = run_for(spec), streams_of(spec)
    time = streams[0].shape[1]
    fires = {
        t
        for level in {box.level for box, _ in memories(spec.system)}
        if level is not None and level.clock.unit == "token"
        for t in firings(level, time)
    }
    model = compiled(spec)
    truth = run_of(reference(spec, None if model is None else model.state_dict(), traced=()))
    wanted, _ = truth(streams, None)
    drops = any(level.partial == "drop" for level in spec.system.levels)
    with torch.no_grad():
        for cut in sorted({c for t in fires for c in (t - 1, t, t + 1) if 0 < c < time}):
            if drops:  # what is read depends on where a call ends
                wanted = in_calls(truth, streams, [cut])
            off = distance(in_calls(run, streams, [cut]), wanted)
            hold(P.Measured("reads after a firing", off, EXACT, f"a call that ends at tick {cut}"))


# ---- gradients -----------------------------------------------------------------------------------


@alone
def gradients_cross_where_declared(spec: Spec) -> str | None:
    """With `backprop X -> training` declared, and without, for each level X on tokens: exactly the
    gradients change that do in the reference, and only of weights in its own body, and of what has
    a hand in what X keeps. Of what has no lowering the second alone can be asked. Without one of
    the `init` lines, each gradient is that of the reference.
    """
    trainer = next((l for l in spec.system.levels if l.owner and l.clock.unit == "step"), None)
    if trainer is None:
        return "no level trains its weights on steps"
    if spec.system.flow.loss is None:
        return NO_LOSS
    kept = {b.level for b, _ in memories(spec.system)}
    entered = [v for v in spec.system.levels if v.clock.unit == "token" and v in kept]
    for level in entered:
        backprop_crosses(spec, level, trainer)
    asked = [init_crosses(spec, t) for t in spec.system.transfers if t.kind == "init"]
    return None if entered or any(asked) else "no level on tokens keeps what is written"


def backprop_crosses(spec: Spec, level: Level, trainer: Level) -> None:
    streams, edge = streams_of(spec), f"backprop {level.name} -> {trainer.name}"
    shut, wide = without(spec, level, trainer), with_edge(spec, level, trainer)
    before, after = compiled(shut), compiled(wide)
    given = None if before is None else before.state_dict()
    runs = [reference(s, given, traced=()) for s in (shut, wide)]
    moved = changed(*(truth_of(run, streams).gradients for run in runs))
    mine = weights_of(spec.system, level)
    if before is None or after is None:
        beyond = {n for n in moved - mine if not has_a_hand(wide, n, level, streams)}
    else:
        found = changed(gradients(before, streams), gradients(after, streams))
        if found != moved:
            raise LawBroken(f"{edge}: the gradient of {', '.join(sorted(moved ^ found)[:3])}")
        beyond = set(moved - hands(after, wide, level, streams) - mine)
    if beyond:
        raise LawBroken(
            f"{edge} changes the gradient of {', '.join(sorted(beyond)[:3])}, which {level.name} "
            "keeps nothing of"
        )


def init_crosses(spec: Spec, edge: Transfer) -> bool:
    """Whether it could be asked: what has no lowering is the reference itself."""
    others = tuple(t for t in spec.system.transfers if t is not edge)
    shut, streams = varied(spec, others), streams_of(spec)
    model = compiled(shut)
    if model is None:
        return False
    truth = truth_of(reference(shut, model.state_dict(), traced=()), streams).gradients
    name = f"gradients == reference without init {edge.source.name} -> {edge.target.name}"
    same_gradients(name, shut, model, streams, truth)
    return True


def changed(a: Grads, b: Grads) -> frozenset[str]:
    """The arrays whose gradients differ by more than rounding."""
    largest = max((float(g.abs().max()) for g in b.values()), default=0.0)
    apart = (n for n in a if float((a[n] - b[n]).abs().max()) > EXACT * max(largest, 1e-300))
    return frozenset(apart)


def hands(model: Model, spec: Spec, level: Level, streams: Streams) -> frozenset[str]:
    """The weights that have a hand in what a level keeps after some tick."""
    kept, state = torch.zeros((), dtype=torch.float64), None
    for t in range(streams[0].shape[1]):
        _, state = model(*ticks(streams, t, t + 1), state=state)
        mine = [x for p, x in state.arrays.items() if level_of(spec.system, p) is level]
        draw = torch.Generator().manual_seed(t)
        for x in (x for x in mine if x.requires_grad):
            kept = kept + (x * torch.randn(x.shape, generator=draw, dtype=x.dtype)).sum()
    named = [(n, p) for n, p in model.named_weights() if p.requires_grad]
    if not kept.requires_grad:
        return frozenset()
    found = torch.autograd.grad(kept, [p for _, p in named], allow_unused=True)
    pairs = zip(named, found, strict=True)
    return frozenset(n for (n, _), g in pairs if g is not None and bool(g.any()))


def has_a_hand(spec: Spec, name: str, level: Level, streams: Streams) -> bool:
    """Whether what a level keeps in the reference is another where this array is."""
    plain = reference(spec, traced=())
    array = plain.values[name]
    draw = torch.Generator().manual_seed(SEED)
    other = array + 0.1 * torch.randn(array.shape, generator=draw, dtype=array.dtype)
    moved = reference(spec, {**plain.values, name: other}, traced=())
    states: list[ReferenceState | None] = [None, None]
    for t in range(streams[0].shape[1]):
        now = ticks(streams, t, t + 1)
        states = [run(now, s)[1] for run, s in zip((plain, moved), states, strict=True)]
        a, b = (kept_by(level, s) for s in states if s is not None)
        if any(not torch.equal(x, y) for x, y in zip(a, b, strict=True)):
            return True
    return False


def kept_by(level: Level, state: ReferenceState) -> list[Tensor]:
    """The arrays of a level's states, and its pasts."""
    found: list[Tensor] = []
    for sample in state.samples:
        for inst in sample.instances.values():
            if inst.level is level:
                found += [x for cell in inst.cells.values() for x in cell.kept.values()]
        for key, owner in sample.slot_level.items():
            found += sample.slots.get(key, ()) if owner is level else ()
    return found


def weights_of(system: System, level: Level) -> frozenset[str]:
    """The unnamed weights of a level's bodies: constants, if nothing is declared (2.11.2)."""
    own = (w for w in system.weights if w.box is not None and w.box.level is level)
    return frozenset(p for w in own for p in paths(w.path, w.loops))


def without(spec: Spec, level: Level, trainer: Level) -> Spec:
    kept = (
        t
        for t in spec.system.transfers
        if not (t.kind == "backprop" and t.source is level and t.target is trainer)
    )
    return varied(spec, tuple(kept))


def with_edge(spec: Spec, level: Level, trainer: Level) -> Spec:
    edges = spec.system.transfers
    if any(t.kind == "backprop" and t.source is level and t.target is trainer for t in edges):
        return spec
    return varied(spec, (*edges, Transfer("backprop", level, trainer)))


def varied(spec: Spec, transfers: tuple[Transfer, ...]) -> Spec:
    """The same system with other transfers, which nothing checks."""
    made = copy.copy(spec)
    made.system = replace(spec.system, transfers=transfers)
    made.checked = replace(spec.checked, system=made.system)
    return made


# ---- what laws share -----------------------------------------------------------------------------


def bent(spec: Spec, model: Model, found: Found) -> Callable[[], float]:
    """How far rounding alone moves what the reference finds."""
    return lambda: bend(spec.system, model.state_dict(), found, ROUNDING)


def hold(measured: P.Measured, rounding: Callable[[], float] = float) -> None:
    if not measured.value <= measured.bar and not measured.value <= rounding():
        at = f", at {measured.at}" if measured.at else ""
        raise LawBroken(f"{measured.name}: {measured.value:.3g}, at most {measured.bar:g}{at}")


def compiled(spec: Spec) -> Model | None:
    """The module in float64, or None where the system has no lowering."""
    try:
        return compile_spec(spec, dtype=torch.float64)
    except SpecError as error:
        if any(d.code != "NL701" for d in error.diagnostics):
            raise
        return None


def run_for(spec: Spec) -> Run:
    """As a user runs it: nothing is dropped (2.12), as in a run of the reference that trains
    nothing.
    """
    model = compiled(spec)
    return run_of(reference(spec, traced=()) if model is None else model.eval())


def streams_of(spec: Spec, batch: int = BATCH) -> Streams:
    return random_streams(spec.system, batch, default_tokens(spec.system), SEED)


def traced(
    spec: Spec, streams: Streams, steps: int, events: tuple[str, ...] = ("fire",)
) -> list[Record]:
    """What the reference tells of a run, or of steps of training."""
    truth = reference(spec, traced=events)
    for _ in range(steps):
        truth.step(streams)
    if not steps:
        truth(streams)
    return truth.trace


def firings(level: Level, time: int) -> frozenset[int]:
    """The ticks, counted from 1, at whose end the boxes of a level on tokens write: those of its
    clock, which counts from each reset (2.6.2), and with `partial flush` those of resets (2.6.5).
    """
    flushes = level.partial == "flush"
    dues = ((t, *P.due(level, t)) for t in range(1, time + 1))
    return frozenset(t for t, fires, anew in dues if fires or flushes and anew)


def told(level: Level) -> str:
    """When it fires, in words."""
    resets = f", reset {level.reset}" if level.reset is not None else ""
    flushes = " with partial flush" if level.partial == "flush" else ""
    return f"its clock is {level.clock}{resets}{flushes}"


def waits(system: System, box: Box) -> bool:
    """Whether a box fires when its tick is over, and not at its call (2.7.1): at the last tick of a
    run it is yet to fire.
    """
    if not writes_at_call(box):
        return True
    calls: list[tuple[Box | None, Term]]
    calls = [(None, t) for root in line_terms(system.flow.lines) for t in root.walk()]
    calls += [(caller, t) for caller in system.boxes for t in caller.terms()]
    return any(
        below.op == "next"
        for caller, t in calls
        if t.op == "call" and t.info is box
        for arg in t.args
        for below in (arg.walk() if caller is None else through_lines(caller, arg))
    )


def instance(path: str) -> str:
    """A path of the trace without its heads: `layers.0.mixer.M`, of `layers.0.mixer[1].M`."""
    return re.sub(r"\[[^\]]*\]", "", path)


def memories(system: System) -> list[tuple[Box, str]]:
    """The boxes of levels with the paths of the states that they write."""
    return [
        (box, path)
        for box in system.boxes
        if box.level is not None and not box.exact
        for state in box.states
        if state.rule.changes
        for path in paths(f"{box.path}.{state.name}", box.loops)
    ]


def level_of(system: System, path: str) -> Level | None:
    """The level that a path of the trace belongs to."""
    path, best, found = instance(path), "", None
    for box in system.boxes:
        for own in paths(box.path, box.loops):
            if (path == own or path.startswith(f"{own}.")) and len(own) > len(best):
                best, found = own, box.level
    return found


def writer_of(system: System, path: str) -> Level | None:
    """The level whose firing writes it: `M@A` is A's, and a weight its owner's."""
    learner = path.partition("@")[2]
    if learner:
        return system.level(learner)
    if any(path in paths(w.path, w.loops) for w in system.weights):
        return system.owner
    return level_of(system, path)


LAWS: tuple[Law, ...] = (
    compiled_is_reference, streamed_equals_full, no_write_from_the_future, batch_independence,
    fires_on_its_clock, fires_as_often_as_computed, fastest_first, no_stale_read,
    gradients_cross_where_declared,
)  # fmt: skip
