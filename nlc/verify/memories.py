"""A memory's certificate: what always holds, measured on the operation that it is (`nlc.memory`).

    verifier = MemoryVerifier(Drawing(nlc.memory("gated_delta").declared, heads=4, named={"n": 32}))
    certificate = verifier.verify()

In: a declared memory, sizes and settings. Out: the certificate of a system, with rows for packed
sequences, and for gradients of every stream and of the state.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import syntax as S
from ..backends.reference import Reference
from ..backends.torch_source import build
from ..diagnostics import Diagnostic
from ..driver import Spec, SpecError
from ..operation import Memory
from ..operation.around import Call, spec_of
from ..operation.declared import Declaration
from ..operation.given import is_number, setting, unknown
from ..system import Box
from . import Certificate, Options, Step, default_tokens, each, not_followed, too_short
from . import properties as P
from .along import Along, gradients, joined
from .drawn import Range, draw, ranges, told
from .properties import Measured
from .rounding import DRAWS, comparable, judged, other_bits
from .single import Single, beside, fitting, held, rounded
from .streams import Grads, Streams, apart, farthest, in_calls, run_of, ticks

SIZES = (8, 6, 3, 2)  # of the names in brackets, those of last axes first; others are 2
ALIKE = 8
SAMPLES = 4  # of the long stream: what a gate leaves of one memory is chance
Truth = tuple[Tensor, Grads, Grads]  # answers, gradients of every stream, states at the end
LEAST = (
    1e-2  # as for `farthest`: what scales a step whose length is fixed has no gradient but noise
)
DEFAULTS = Options()
ANSWERS = "answers"  # beside the arrays of states


@dataclass(frozen=True)
class Drawing:
    """How a memory is called. `named`: sizes, settings, and streams that are one number all along;
    `drawn`: from which numbers a stream is drawn.
    """

    memory: Declaration
    heads: int = 2
    named: Mapping[str, Any] = field(default_factory=dict)
    drawn: Mapping[str, Range] = field(default_factory=dict)

    @cached_property
    def call(self) -> Call:
        """Raises TypeError for a name that it has not, ValueError for what does not fit."""
        sizes, given, numbers = self.sorted
        own = names_in(self.memory)
        # a rule may need some sizes to be one
        alike = next(iter(sizes.values()), ALIKE)
        tries = [dict(zip(own, (*SIZES, *[2] * len(own)), strict=False)), dict.fromkeys(own, alike)]
        for i, found in enumerate(tries):
            made = self.call_of({**found, **sizes}, given, numbers)
            try:
                spec_of(made)
            except ValueError:
                if i + 1 < len(tries):
                    continue
                raise
            return made
        raise AssertionError

    def call_of(
        self, sizes: Mapping[str, int], given: set[str], numbers: Mapping[str, Any]
    ) -> Call:
        streams = tuple(
            (p.name.id, tuple(size(d, sizes) for d in p.dims))
            for p in self.memory.node.params
            if p.default is None or p.name.id in given
        )
        return Call(self.memory, (self.heads,), streams, tuple(sorted(numbers.items())))

    @cached_property
    def sorted(self) -> tuple[dict[str, int], set[str], dict[str, Any]]:
        """Sizes, settings that are drawn as streams, and settings that are numbers."""
        sizes: dict[str, int] = {}
        numbers: dict[str, Any] = {}
        known = names_in(self.memory)
        for name, value in self.named.items():
            p = self.memory.param(name)
            if p is not None and p.default is not None:
                numbers[p.name.id] = setting(p.name.id, value)
            elif p is None and name in known:
                if not isinstance(value, int) or value < 1:
                    raise ValueError(f"`{name}` is a size, a whole number above 0, not {value!r}")
                sizes[name] = value
            elif p is None:
                also = f"; its sizes are {', '.join(known)}" if known else ""
                raise TypeError(unknown(self.memory, name) + also)
            elif not is_number(value):
                raise TypeError(f"`{p.name.id}` is a stream: one number, or a range to draw from")
        given = set()
        for name in self.drawn:
            p = self.memory.param(name)
            if p is None:
                raise TypeError(unknown(self.memory, name))
            if p.default is not None:
                given.add(p.name.id)
        return sizes, given, {n: x for n, x in numbers.items() if n not in given}

    @cached_property
    def spec(self) -> Spec:
        return spec_of(self.call)

    @property
    def box(self) -> Box:
        path = self.call.prefix.rstrip(".")
        return next(b for b in self.spec.system.boxes if b.path == path)

    @cached_property
    def ranges(self) -> dict[str, Range | None]:
        """What is said holds before what the rule suggests."""
        found = ranges(self.spec.system, self.box, dict(self.call.streams))
        name_of = {n: p.name.id for n in (*self.named, *self.drawn) if (p := self.memory.param(n))}
        fixed = {name_of[n]: Range(x, x) for n, x in self.named.items() if name_of.get(n) in found}
        return {**found, **fixed, **{name_of[n]: r for n, r in self.drawn.items()}}

    @property
    def settings(self) -> dict[str, Any]:
        """What the memory is called with, in words: sizes, heads, numbers."""
        sizes: dict[str, int] = {}
        for name, own in self.call.streams:
            p = self.memory.param(name)
            for d, n in zip(p.dims if p else (), own, strict=False):
                sizes |= {d.id: n} if isinstance(d, S.Name) else {}
        return {**sizes, "heads": self.heads, **dict(self.call.numbers)}


def names_in(memory: Declaration) -> list[str]:
    """The names in brackets, those of last axes first: they are the largest."""
    last = [p.dims[-1] for p in memory.streams if p.dims]
    dims = [*last, *(d for p in memory.streams for d in p.dims)]
    return list(dict.fromkeys(d.id for d in dims if isinstance(d, S.Name)))


def size(dim: S.Expr, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, S.Name):
        return sizes[dim.id]
    return int(dim.value) if isinstance(dim, S.Number) else ALIKE


class MemoryVerifier:
    """What the properties share: the operation, the reference, and what both are run on."""

    def __init__(self, drawing: Drawing, options: Options = DEFAULTS) -> None:
        self.drawing, self.options = drawing, options
        self.spec, self.system = drawing.spec, drawing.spec.system
        self.tokens = options.tokens or default_tokens(self.system)
        self.names = [n for n, _ in self.system.flow.inputs]
        self.memory = Memory(drawing.memory, options.seed)
        self.losses: dict[int, dict[str, float]] = {}

    @cached_property
    def lacking(self) -> tuple[Diagnostic, ...]:
        """The parts that have no algorithm."""
        try:
            build(self.spec)
        except SpecError as error:
            if any(d.code != "NL701" for d in error.diagnostics):
                raise
            return error.diagnostics
        return ()

    def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
        numbers = dict(self.drawing.call.numbers)
        y, after = self.memory(**self.named(streams), **numbers, state=state, **more)
        return y, after

    def named(self, streams: Streams) -> dict[str, Tensor]:
        return dict(zip(self.names, streams, strict=True))

    def drawn(self, batch: int, time: int, seed: int = 0) -> Streams:
        return draw(self.system, self.drawing.ranges, batch, time, self.options.seed + seed)

    @cached_property
    def streams(self) -> Streams:
        return self.drawn(self.options.batch, self.tokens)

    @cached_property
    def others(self) -> Streams:
        return self.drawn(self.options.batch, self.tokens, 1)

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.system, {}, self.options.seed, traced=())

    @cached_property
    def truth(self) -> Truth:
        return self.truth_of(self.streams)

    def truth_of(self, streams: Streams) -> Truth:
        along = Along(self.reference, streams[0].shape[0])
        x = leaves(streams)
        y = along(self.named(x))
        found = gradients(self.reference, y, ramp(y), x)
        states = {n: s.detach() for n, s in along.states().items()}
        return y.detach(), dict(zip(self.names, found, strict=True)), self.kept(states)

    def kept(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By the paths of the operation."""
        prefix = self.drawing.call.prefix
        return {n.removeprefix(prefix): x for n, x in states.items() if n.startswith(prefix)}

    # ---- what is measured ------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        """What is being measured, and how, in the order of the certificate."""
        run = run_of(self.reference) if self.lacking else self.run
        if not self.lacking:
            yield "the reference, token by token", self.same_answers
            yield "gradients", self.same_gradients
            if self.own:
                yield "the state", self.same_state
                yield "gradients to the state", self.state_gradients
        system, x, seed = self.system, self.streams, self.options.seed
        yield "calls of one token", lambda: P.streamed(run, system, x)
        yield "random splits", lambda: P.random_splits(run, system, x, seed)
        yield "later tokens", lambda: P.before_a_change(run, x, self.other_from)
        several, one_other = self.several()
        yield "samples", lambda: P.beside_a_change(run, several, one_other)
        if self.lacking:
            return
        yield "the Jacobian", self.jacobian
        yield "states of calls", self.states_of_calls
        yield "gradients through calls", self.gradients_through_calls
        yield "a call of many tokens", self.many_at_once
        yield "gradients of many tokens", self.gradients_of_many
        yield "packed sequences", self.packed
        yield "what gets a gradient", self.without_gradient
        yield "answers in float32", lambda: self.in_single("outputs", self.answers)
        yield "gradients in float32", lambda: self.in_single("gradients", self.gradients)
        if self.options.long:
            yield "a long stream", lambda: P.answers_keep_their_size(self.long_run)
            if self.own:
                yield "a long stream", lambda: P.memories_keep_their_size(self.long_run)

    def same_answers(self) -> Measured:
        kept, _ = self.run(leaves(self.streams))
        with torch.no_grad():
            other, _ = self.run(self.streams)
        off, where = P.worse(apart(kept, self.truth[0]), apart(other, self.truth[0]))
        return Measured("outputs == reference", off, P.EXACT, where)

    def same_gradients(self) -> Measured:
        """Of every stream."""
        off, where = farthest(self.gradients(self.streams), self.truth[1], LEAST)
        return Measured("gradients == reference", off, P.EXACT, where)

    def gradients(self, streams: Streams, **more: Any) -> dict[str, Tensor]:
        x = leaves(streams)
        y, _ = self.run(x, **more)
        return dict(zip(self.names, grads(y, x), strict=True))

    def same_state(self) -> Measured:
        _, state = self.run(self.streams)
        wanted = {n: x for n, x in self.truth[2].items() if n in state.arrays}
        found = {n: state.arrays[n] for n in wanted}
        off, where = farthest(found, wanted)
        return Measured("state == reference", off, P.EXACT, where)

    def state_gradients(self) -> Measured:
        """Of what comes, with respect to the state that a first call handed on."""
        cut = self.cut
        first, second = ticks(self.streams, 0, cut), ticks(self.streams, cut)
        along = Along(self.reference, self.options.batch)
        along(self.named(first))
        theirs = along.leaves()
        y = along(self.named(second))
        known = gradients(self.reference, y, ramp(y), list(theirs.values()))
        wanted = self.kept(dict(zip(theirs, known, strict=True)))
        with torch.no_grad():
            _, state = self.run(first)
        state = state.each(lambda x: x.detach().requires_grad_())
        arrays = {n: x for n, x in state.groups[0].arrays.items() if n in wanted}
        y, _ = self.run(second, state)
        found = dict(zip(arrays, grads(y, list(arrays.values())), strict=True))
        off, where = farthest(found, {n: wanted[n] for n in found}, LEAST)
        at = f"{where}, after {cut} tokens" if where else ""
        return Measured("gradients to the state == reference", off, P.EXACT, at)

    @property
    def cut(self) -> int:
        return max(1, self.tokens // 3)

    def states_of_calls(self) -> Measured:
        """After calls that end anywhere, the state is that of one call."""
        rng = random.Random(self.options.seed)
        inner = list(range(1, self.tokens))
        cuts = sorted(rng.sample(inner, min(3, len(inner))))
        with torch.no_grad():
            _, whole = self.run(self.streams)
            state = None
            for a, b in pairwise([0, *cuts, self.tokens]):
                _, state = self.run(ticks(self.streams, a, b), state)
        assert state is not None
        off, where = farthest(dict(state.arrays), dict(whole.arrays))
        at = f"{where}, calls that end at {cuts}" if where else ""
        return Measured("state after calls == in one call", off, P.EXACT, at)

    def of_many(self, measured: Callable[[Streams, list[int]], Measured]) -> Measured:
        """A call that is cut into chunks, and calls that are not."""

        def at(time: int) -> Measured:
            return measured(self.drawn(self.options.batch, time), P.few_by_few(self.system, time))

        return comparable([max(many, self.tokens) for many in P.MANY], at)

    def many_at_once(self) -> Measured:
        def measured(many: Streams, cuts: list[int]) -> Measured:
            found = P.many_at_once(self.run, many, cuts)
            return self.judged(found, many, lambda x: {"": in_calls(self.run, x, cuts)})

        return self.of_many(measured)

    def gradients_of_many(self) -> Measured:
        def measured(many: Streams, cuts: list[int]) -> Measured:
            off, where = self.gradients_apart(many, cuts)
            name = f"gradients of {many[0].shape[1]} tokens == in calls"
            return self.judged(Measured(name, off, P.EXACT, where), many, self.gradients)

        return self.of_many(measured)

    def judged(
        self, measured: Measured, streams: Streams, found: Callable[[Streams], Grads]
    ) -> Measured:
        """What is too far is held to what other last bits of the streams do."""

        def bent() -> float:
            wanted = found(streams)
            others = (found(other_bits(streams, draw)) for draw in range(DRAWS))
            return max(farthest(other, wanted, LEAST)[0] for other in others)

        return judged(measured, bent)

    def gradients_through_calls(self) -> Measured:
        """A state that is not detached carries the gradient to the calls before."""
        cuts = sorted({1, self.cut} & set(range(self.tokens)))
        off, where = self.gradients_apart(self.streams, cuts)
        return Measured("gradients through calls == in one call", off, P.EXACT, where)

    def gradients_apart(self, streams: Streams, cuts: list[int]) -> tuple[float, str]:
        """How far gradients are from those of one call, where calls end at `cuts`."""
        x = leaves(streams)
        y = in_calls(self.run, x, cuts)
        found = dict(zip(self.names, grads(y, x), strict=True))
        return farthest(found, self.gradients(streams), LEAST)

    def packed(self) -> Measured:
        """Sequences in one batch, one of them empty: answers and gradients as of each alone."""
        time = self.tokens
        bounds = sorted({0, time // 3, time - 1, time})
        bounds = [*bounds[:2], *bounds[1:]]
        one = ticks(tuple(x[:1] for x in self.streams), 0)
        whole = leaves(one)
        y, _ = self.run(whole, cu_seqlens=bounds)
        parts = leaves(one)
        alone = [self.run(ticks(parts, a, b))[0] for a, b in pairwise(bounds) if b > a]
        wanted = torch.cat(alone, 1)
        names = dict(zip(self.names, grads(wanted, parts), strict=True))
        found = farthest(dict(zip(self.names, grads(y, whole), strict=True)), names, LEAST)
        off, where = P.worse(apart(y, wanted), found)
        return Measured("packed == each sequence alone", off, P.EXACT, where)

    def answers(self, streams: Streams) -> Grads:
        """And the states after them."""
        with torch.no_grad():
            y, state = self.run(streams)
        return {ANSWERS: y, **state.arrays}

    def in_single(self, what: str, found: Callable[[Streams], Grads]) -> Measured:
        return Single(
            f"{what} in float32 == in float64",
            partial(self.drawn, self.options.batch),
            lambda x, dtype: found(fitting(x, dtype)),
            lambda ticks: self.lost(ticks)[what],
            lambda x: found(tuple(map(beside, x))),
            LEAST,
        ).measured(self.tokens)

    def lost(self, ticks: int) -> dict[str, float]:
        """What rounding to float32 loses of what the reference finds in so many tokens."""
        if ticks not in self.losses:
            x = held(self.drawn(self.options.batch, ticks))
            wanted = self.found(x)
            other = rounded(lambda: self.found(x), lambda: self.found(tuple(map(beside, x))))
            far = {what: farthest(other[what], wanted[what], LEAST)[0] for what in wanted}
            self.losses[ticks] = far
        return self.losses[ticks]

    def found(self, streams: Streams) -> dict[str, Grads]:
        """By the reference."""
        y, gradients, states = self.truth_of(streams)
        return {"gradients": gradients, "outputs": {ANSWERS: y, **states}}

    def without_gradient(self) -> Measured:
        found = self.gradients(self.streams)
        missing = [n for n, g in found.items() if not (P.is_finite(g) and bool(g.any()))]
        at = ", ".join(missing) or f"of {len(found)}"
        return Measured("streams without a gradient", len(missing), 0.0, at)

    def other_from(self, start: int) -> Streams:
        """Every stream another draw from a tick on."""
        pairs = zip(self.streams, self.others, strict=True)
        return tuple(torch.cat([x[:, :start], z[:, start:]], 1) for x, z in pairs)

    def several(self) -> tuple[Streams, Streams]:
        """At least three samples, and the same with another second one."""
        batch = max(3, self.options.batch)
        one, other = (self.drawn(batch, self.tokens, s) for s in (2, 3))
        pairs = zip(one, other, strict=True)
        return one, tuple(torch.cat([x[:1], z[1:2], x[2:]]) for x, z in pairs)

    def jacobian(self) -> Measured:
        x = leaves(self.drawn(1, self.tokens, 4))
        y, _ = self.run(x)
        return P.reach_of(y, x, (), self.options.seed)

    @cached_property
    def own(self) -> list[str]:
        """The arrays of its states; what is solved anew at each read keeps none."""
        box = self.drawing.box
        pairs = ((s.name, a.name) for s in box.states for a in s.form.arrays)
        return [joined(s, a) for s, a in pairs if not box.exact]

    def notes(self) -> Iterator[str]:
        if not self.own:
            yield (
                "it keeps what it has seen: gradients to that state are those through calls, and "
                "there is no array whose size could be followed"
            )
        yield from too_short(self.system, self.tokens)
        yield from not_followed(self.options)

    @cached_property
    def long_run(self) -> P.LongRun:
        streams = tuple(x.float() for x in self.drawn(SAMPLES, self.options.long))
        return P.run_long(self.run, streams, self.own)

    # ---- the whole -------------------------------------------------------------------------------

    def title(self) -> list[str]:
        return self.certificate(()).title()

    def measure(self) -> Iterator[tuple[str, Measured | None]]:
        return each(self.steps())

    def verify(self) -> Certificate:
        return self.certificate(tuple(m for _, m in self.measure() if m is not None))

    def certificate(self, measured: tuple[Measured, ...]) -> Certificate:
        return Certificate(
            self.drawing.memory.name, self.drawing.settings, self.options, self.tokens, measured,
            self.lacking, tuple(self.notes()), told(self.drawing.ranges),
        )  # fmt: skip


# ---- words ---------------------------------------------------------------------------------------


def leaves(streams: Streams) -> Streams:
    return tuple(x.detach().clone().requires_grad_() for x in streams)


def ramp(y: Tensor) -> Tensor:
    """What is differentiated: every answer, each by a number of its own."""
    return torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)


def grads(y: Tensor, leaves: list[Tensor] | Streams) -> list[Tensor]:
    if not leaves:
        return []
    found = torch.autograd.grad((ramp(y) * y).sum(), list(leaves), allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


__all__ = ["Drawing", "MemoryVerifier"]
