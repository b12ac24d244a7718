"""A system's certificate: what always holds, measured on the user's own spec and shapes.

    certificate = verify(nlc.load("hope", width=64))
    print(certificate.text())
    certificate.holds

In: a checked spec. Out: one measured number for each property, and the bar it is held to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import starmap
from textwrap import fill
from typing import Any

import torch

from ..backends.reference import Reference
from ..backends.runtime import Model
from ..backends.torch_source import build, module_class
from ..diagnostics import Diagnostic
from ..driver import Spec, SpecError
from ..system import System
from . import properties as P
from .properties import Measured
from .rounding import Found, bend, comparable, judged
from .single import Single, beside, fitting, held, rounded
from .streams import (
    Grads,
    Run,
    Streams,
    Truth,
    farthest,
    gradients,
    random_streams,
    run_of,
    truth_of,
)

FEWEST, MOST = 17, 65  # tokens, if a call does not say how many
LONG = 4096
Step = tuple[str, Callable[[], Measured]]


@dataclass(frozen=True)
class Options:
    """`tokens`: None takes a few more than the shortest chunk or period. `long`: tokens of the
    stream that memories must outlive; 0 leaves it out.
    """

    tokens: int | None = None
    batch: int = 2
    seed: int = 0
    long: int = LONG


@dataclass(frozen=True)
class Certificate:
    """What was run, what was measured, and what could not be. `drawn`: what the streams are."""

    name: str
    settings: Mapping[str, Any]
    options: Options
    tokens: int
    measured: tuple[Measured, ...]
    lacking: tuple[Diagnostic, ...]  # NL701: the parts that have no algorithm
    notes: tuple[str, ...]
    drawn: str = ""

    @property
    def holds(self) -> bool:
        return not self.lacking and all(m.holds for m in self.measured)

    def text(self) -> str:
        rows = [row(m) for m in self.measured]
        return "\n".join([*self.title(), *rows, *self.ending()])

    def title(self) -> list[str]:
        """What is run, and the head of the table."""
        settings = ", ".join(f"{k} = {v}" for k, v in self.settings.items())
        batch, seed, long = self.options.batch, self.options.seed, self.options.long
        ran = f"{self.tokens} tokens, {amount(batch, 'sample')}, seed {seed}, float64"
        ran += f"; {long:,} tokens in float32" if long and not self.lacking else ""
        drawn = [fill(self.drawn, 100)] if self.drawn else []
        head = f"  {'':42}{'measured':>9}   {'bar':>6}"
        return [f"{self.name}({settings})", ran, *drawn, "", head]

    def ending(self) -> list[str]:
        """What it comes to, after the rows."""
        failed = [m.name for m in self.measured if not m.holds]
        count = len(self.measured)
        said = f"All {count} hold." if not failed else f"{len(failed)} of {count} do not hold."
        if self.lacking:
            said = f"Not compiled (NL701); of the reference alone: {said[0].lower()}{said[1:]}"
        return ["", said, *(f"note: {note}" for note in self.notes)]

    def data(self) -> dict[str, Any]:
        """For programs."""
        return {
            "system": self.name,
            "settings": dict(self.settings),
            "tokens": self.tokens,
            "batch": self.options.batch,
            "seed": self.options.seed,
            "holds": self.holds,
            "properties": [
                {
                    "name": m.name,
                    "measured": m.value if math.isfinite(m.value) else None,
                    "bar": m.bar,
                    "holds": m.holds,
                    "at": m.at,
                }
                for m in self.measured
            ],
            "not_lowered": [d.message for d in self.lacking],
            "notes": list(self.notes),
        }

    def header(self) -> list[str]:
        """Lines for a generated file: each number as the next power of ten, so that they are the
        same wherever they are measured.
        """
        said = "Verified" if self.holds else "NOT verified"
        ran = f"{self.tokens} tokens, {amount(self.options.batch, 'sample')}, float64"
        ran += f"; {self.drawn}" if self.drawn else ""
        rows = [told(m) for m in self.measured]
        notes = (fill(f"    note: {n}", 100, subsequent_indent=" " * 8) for n in self.notes)
        return [fill(f"{said} by nlc on {ran}:", 100), *rows, *notes]


class Verifier:
    """What the properties share: the module, the reference, and what both are run on."""

    def __init__(self, spec: Spec, options: Options = Options()) -> None:
        self.spec, self.system, self.options = spec, spec.system, options
        self.tokens = options.tokens or default_tokens(spec.system)
        self.losses: dict[int, dict[str, float]] = {}

    @cached_property
    def built(self) -> type[Model] | tuple[Diagnostic, ...]:
        """The generated module, or the parts that have no algorithm."""
        try:
            return module_class(build(self.spec), self.system.name)
        except SpecError as error:
            if any(d.code != "NL701" for d in error.diagnostics):
                raise
            return error.diagnostics

    @property
    def lacking(self) -> tuple[Diagnostic, ...]:
        return self.built if isinstance(self.built, tuple) else ()

    def module(self, dtype: torch.dtype) -> Model:
        assert not isinstance(self.built, tuple)
        return self.built(seed=self.options.seed, dtype=dtype)

    @cached_property
    def model(self) -> Model:
        return self.module(torch.float64)

    @cached_property
    def reference(self) -> Reference:
        weights = {} if self.lacking else self.model.state_dict()
        return Reference(self.system, weights, self.options.seed, traced=())

    @cached_property
    def streams(self) -> Streams:
        return random_streams(self.system, self.options.batch, self.tokens, self.options.seed)

    @cached_property
    def several(self) -> Streams:
        """At least three samples."""
        batch = max(3, self.options.batch)
        return random_streams(self.system, batch, self.tokens, self.options.seed)

    @cached_property
    def truth(self) -> Truth:
        return truth_of(self.reference, self.streams)

    @cached_property
    def long_run(self) -> P.LongRun:
        model = self.module(torch.float32)
        return P.long_run(model, self.system, self.options.long, self.options.seed)

    def title(self) -> list[str]:
        return self.certificate(()).title()

    # ---- what is measured ------------------------------------------------------------------------

    def steps(self) -> Iterator[Step]:
        """What is being measured, and how, in the order of the certificate."""
        if self.lacking:
            yield from self.of_the_run(self.reference)
            return
        yield from self.against_reference()
        yield from self.of_the_run(run_of(self.model))
        yield from self.of_gradients()
        yield from self.of_chunks()
        yield from self.of_float32()
        yield "clocks", lambda: P.off_the_clock(self.model, self.system, self.streams)
        if self.options.long:
            yield "a long stream", lambda: P.answers_keep_their_size(self.long_run)
            yield "a long stream", lambda: P.memories_keep_their_size(self.long_run)

    def against_reference(self) -> Iterator[Step]:
        yield "the reference, token by token", self.same_outputs
        if self.learns:
            yield "losses", self.same_losses
            yield "gradients", self.same_gradients

    def same_outputs(self) -> Measured:
        found = P.same_outputs(self.model, self.streams, self.truth)
        return self.judged(found, lambda r: {"": r(self.streams)[0]})

    def same_losses(self) -> Measured:
        found = P.same_losses(self.model, self.streams, self.truth)
        return self.judged(found, lambda r: {"": truth_of(r, self.streams).losses})

    def same_gradients(self) -> Measured:
        found = P.same_gradients(self.model, self.streams, self.truth)
        return self.judged(found, lambda r: truth_of(r, self.streams).gradients)

    def judged(self, measured: Measured, found: Found) -> Measured:
        weights = self.model.state_dict()
        return judged(measured, lambda: bend(self.system, weights, found))

    def of_the_run(self, run: Run) -> Iterator[Step]:
        system, seed = self.system, self.options.seed
        yield "calls of one token", lambda: P.streamed(run, system, self.streams)
        yield "random splits", lambda: P.random_splits(run, system, self.streams, seed)
        yield "later tokens", lambda: P.later_tokens(run, system, self.streams)
        yield "samples", lambda: P.other_samples(run, system, self.several)

    def of_gradients(self) -> Iterator[Step]:
        model, system, x = self.model, self.system, self.streams
        seed = self.options.seed
        yield "the Jacobian", lambda: P.jacobian(model, system, self.tokens, seed)
        if self.learns:
            yield "gradients through calls", lambda: P.gradients_across_calls(model, system, x)
            if P.second_calls(system, self.tokens):
                yield "gradients of a second call", self.second_call
            yield "what gets a gradient", lambda: P.without_gradient(model, x, system)

    def second_call(self) -> Measured:
        """The worst of those that are asked for."""
        model, x = self.model, self.streams

        def made(cut: int, ended: bool) -> Measured:
            found = P.gradients_handed_over(model, self.reference, x, cut, ended=ended)
            return self.judged(found, lambda r: P.second_call(r, x, cut, ended))

        calls = P.second_calls(self.system, self.tokens)
        return max(starmap(made, calls), key=lambda m: (not m.holds, m.value))

    def of_chunks(self) -> Iterator[Step]:
        """A call that is cut into chunks, which the reference would take long to run."""
        lengths = [max(many, self.tokens) for many in P.MANY]
        if not P.few_by_few(self.system, lengths[-1]):
            return
        yield "a call of many tokens", lambda: comparable(lengths, self.many_at_once)
        if self.learns:
            yield "gradients of many tokens", lambda: comparable(lengths, self.gradients_of_many)

    def many_at_once(self, ticks: int) -> Measured:
        x = random_streams(self.system, self.options.batch, ticks, self.options.seed)
        found = P.many_at_once(run_of(self.model), x, P.few_by_few(self.system, ticks))
        return self.judged(found, lambda r: {"": r(one_sample(x))[0]})

    def gradients_of_many(self, ticks: int) -> Measured:
        x = random_streams(self.system, self.options.batch, ticks, self.options.seed)
        found = P.gradients_of_many(self.model, x, P.few_by_few(self.system, ticks))
        return self.judged(found, lambda r: truth_of(r, one_sample(x)).gradients)

    def of_float32(self) -> Iterator[Step]:
        """What is wrong there alone."""
        yield "answers in float32", lambda: self.in_single("outputs", outputs)
        if self.learns:
            yield "gradients in float32", lambda: self.in_single("gradients", gradients)

    @cached_property
    def alike(self) -> dict[torch.dtype, Model]:
        """Modules with the same weights, which float32 can hold."""
        made = {dtype: self.module(dtype) for dtype in (torch.float32, torch.float64)}
        made[torch.float64].load_state_dict(made[torch.float32].state_dict())
        return made

    def in_single(self, what: str, found: Callable[[Model, Streams], Grads]) -> Measured:
        return Single(
            f"{what} in float32 == in float64",
            self.one_stream,
            lambda x, dtype: found(self.alike[dtype], fitting(x, dtype)),
            lambda ticks: self.lost(ticks)[what],
            lambda x: found(self.nearby, x),
        ).measured(self.tokens)

    def one_stream(self, ticks: int) -> Streams:
        return random_streams(self.system, 1, ticks, self.options.seed)

    @cached_property
    def nearby(self) -> Model:
        """With weights whose last bits in float32 are others."""
        made = self.module(torch.float64)
        weights = self.alike[torch.float64].state_dict()
        made.load_state_dict({n: beside(w) for n, w in weights.items()})
        return made

    def lost(self, ticks: int) -> dict[str, float]:
        """What rounding to float32 loses of what the reference finds in so many tokens."""
        if ticks not in self.losses:
            x = held(self.one_stream(ticks))
            wanted = self.found(self.alike[torch.float64], x)
            other = rounded(
                lambda: self.found(self.alike[torch.float64], x),
                lambda: self.found(self.nearby, x),
            )
            far = {what: farthest(other[what], wanted[what])[0] for what in wanted}
            self.losses[ticks] = far
        return self.losses[ticks]

    def found(self, model: Model, streams: Streams) -> dict[str, Grads]:
        """By the reference, with the weights of a module."""
        reference = Reference(self.system, model.state_dict(), self.options.seed, traced=())
        truth = truth_of(reference, streams)
        return {"gradients": truth.gradients, "outputs": {"": truth.outputs}}

    @property
    def learns(self) -> bool:
        return self.system.flow.loss is not None

    # ---- the whole -------------------------------------------------------------------------------

    def measure(self) -> Iterator[tuple[str, Measured | None]]:
        return each(self.steps())

    def certificate(self, measured: tuple[Measured, ...]) -> Certificate:
        return Certificate(
            self.system.name, self.system.settings, self.options, self.tokens, measured,
            self.lacking, tuple(self.notes()),
        )  # fmt: skip

    def notes(self) -> Iterator[str]:
        """What was too short to show, or is not there to be shown."""
        if not self.learns:
            yield "the flow binds no loss, so there are no gradients to compare"
        for level in (l for l in late(self.system) if l.partial == "drop"):
            yield f"level {level.name} drops what a call cuts short: calls end where it fires"
        yield from too_short(self.system, self.tokens)
        yield from not_followed(self.options)


def each(steps: Iterable[Step]) -> Iterator[tuple[str, Measured | None]]:
    """Each step twice: what it is, before it runs, and what was measured.

    One thread: most operations are small, and the numbers are the same each time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for what, run in steps:
            yield what, None
            yield what, run()
    finally:
        torch.set_num_threads(threads)


def verify(spec: Spec, options: Options = Options()) -> Certificate:
    """The whole certificate of a checked spec."""
    verifier = Verifier(spec, options)
    return verifier.certificate(tuple(m for _, m in verifier.measure() if m is not None))


def late(system: System) -> Iterator[Any]:
    return (l for l in system.levels if l.clock.unit == "token")


def too_short(system: System, tokens: int) -> Iterator[str]:
    """The clocks and chunks that so many tokens do not come to the end of."""
    spans = {f"level {l.name} fires {l.clock}": l.clock.period for l in late(system)}
    spans |= {
        f"gradients of {b.name} are those at the start of {b.linearise} tokens": b.linearise
        for b in system.boxes
        if b.linearise is not None
    }
    for said, needed in spans.items():
        if needed >= tokens:
            more = f"--tokens {needed + 1}, or a smaller one by --set"
            yield f"{said}, more than were run: {more}"


def not_followed(options: Options) -> Iterator[str]:
    if not options.long:
        yield f"whether answers and memories outlive {LONG:,} tokens was not run: --long {LONG}"


def default_tokens(system: System) -> int:
    """An odd number, past the end of the shortest chunk or period if that is short."""
    spans = [l.clock.period for l in late(system)]
    spans += [b.linearise for b in system.boxes if b.linearise is not None]
    shortest = min((n for n in spans if n > 1), default=0)
    return min(max(shortest + 1, FEWEST), MOST) // 2 * 2 + 1


# ---- text ----------------------------------------------------------------------------------------


def row(m: Measured) -> str:
    said = "holds" if m.holds else "FAILS"
    at = m.at or "nothing depends on what was changed" * (not m.contrast > 0)
    return f"  {m.name:42}{number(m.value):>9}   {short(m.bar, 2):>6}   {said}   {at}".rstrip()


def told(m: Measured) -> str:
    """A line of a header. What fails has its number, and where it was."""
    bar = f"(bar {short(m.bar, 2)})"
    if m.holds:
        return f"    {m.name}: {within(m.value)} {bar}"
    why = row(m).partition("FAILS")[2].strip()
    text = f"    {m.name}: {number(m.value)} {bar}, FAILS{why and f': {why}'}"
    return fill(text, 100, subsequent_indent=" " * 8)


def number(value: float) -> str:
    return f"{value:.0f}" if value < 1e6 and value == int(value) else short(value, 2)


def short(value: float, digits: int = 6) -> str:
    """`1e-9`, where Python writes 1e-09."""
    return f"{value:.{digits}g}".replace("e-0", "e-")


def within(value: float) -> str:
    """`0`, `below 1e-13`, `below 10`."""
    if value == 0 or not math.isfinite(value):
        return short(value)
    return f"below {short(10.0 ** math.ceil(math.log10(value) + 1e-9))}"


def amount(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def headed(source: str, certificate: Certificate) -> str:
    """A generated file with the certificate at the end of its docstring."""
    end = source.index('"""', 3)
    lines = [source[:end].rstrip("\n"), *certificate.header()]
    return "\n".join(lines) + '\n"""' + source[end + 3 :]


__all__ = [
    "Certificate", "Measured", "Options", "Step", "Verifier", "default_tokens", "each",
    "headed", "not_followed", "too_short", "verify",
]  # fmt: skip


def outputs(model: Model, streams: Streams) -> Grads:
    with torch.no_grad():
        return {"": model(*streams)[0]}


def one_sample(streams: Streams) -> Streams:
    """Rounding is as large in one."""
    return tuple(s[:1] for s in streams)
