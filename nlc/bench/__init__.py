"""`nlc bench`: what is compiled, beside what others made for the same work, in one process.

In: what a call asks for. Out: groups of figures, as tables and as data. Nothing here needs a peer:
one that is not installed is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from ..backends.runtime import Model
from ..driver import Spec
from . import ours, steps
from .measuring import Case, Figures, machine, measured, peak, quiet
from .peers import PEERS, AbsentError, Cache, Shape, Transformer

SHAPES = (
    Shape(1, 512, 128),
    Shape(1, 2048, 128),
    Shape(2, 512, 256),
    Shape(2, 2048, 256),
)
LENGTHS = (512, 2048, 8192, 32768, 65536)
CONTEXT = 32768
DECODED = 64  # tokens in a row
PARAMETERS = 50_000_000  # of the model whose arrays an optimizer steps
PIECE = 512  # tokens a call, where a stream is read in several
ROOM = 2**31  # bytes that a backward pass may keep
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """Without `spec`, `memory` and `optimizer`: all that nlc is judged by.

    `shapes`: () takes SHAPES; of a system, 1 x 512 at its own width. `lengths`, `context`: () and
    None leave them out, or take LENGTHS and CONTEXT where all is measured.
    """

    spec: str | None = None
    memory: str | None = None
    optimizer: str | None = None
    parameters: int = PARAMETERS
    settings: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[Shape, ...] = ()
    lengths: tuple[int, ...] = ()
    context: int | None = None
    heads: int = 4
    rounds: int = 5
    threads: int = 1
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def place(self) -> ours.Place:
        return ours.Place(self.device, DTYPES[self.dtype])


@dataclass(frozen=True)
class Group:
    """Cases that are measured beside each other; `absent`: the peers that are not there."""

    title: str
    cases: tuple[Case, ...]
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    title: str
    figures: tuple[Figures, ...]
    absent: tuple[str, ...]

    def text(self) -> str:
        first = self.figures[0]
        head = f"  {'':38}{'ms':>10} {'min..max':>15} {'tokens/s':>10} {'peak MiB':>9} {'ratio':>6}"
        rows = [line(f, first) for f in self.figures]
        return "\n".join([self.title, head, *rows, *(f"  absent: {a}" for a in self.absent), ""])

    def data(self) -> dict[str, Any]:
        figures = [f.data() for f in self.figures]
        return {"title": self.title, "figures": figures, "absent": list(self.absent)}


def line(figures: Figures, first: Figures) -> str:
    """One row; `ratio` is the time a token takes, in parts of the first row's."""
    low, high = min(figures.seconds) * 1e3, max(figures.seconds) * 1e3
    peak = "" if figures.peak is None else f"{figures.peak / 2**20:.1f}"
    ratio = figures.median / figures.tokens / (first.median / first.tokens)
    return (
        f"  {figures.name:38}{figures.median * 1e3:10.2f} {f'{low:.1f}..{high:.1f}':>15} "
        f"{figures.tokens / figures.median:10,.0f} {peak:>9} {ratio:6.2f}"
    )


# ---- a step of training --------------------------------------------------------------------------


def memory_group(name: str, shape: Shape, options: Options) -> Group:
    """A memory as a layer, beside the layers that others have of it."""
    place = options.place
    model = place.module(ours.layer_spec(name, shape.width, options.heads))
    x = place.put(torch.randn(shape.batch, shape.time, shape.width))
    tokens = shape.batch * shape.time
    step = ours.layer_step(partial(first, model), model.parameters(), x)
    cases, absent = [Case(f"nlc {name}", step, tokens)], []
    for other in ours.EXACT.get(name, ()):
        exact = place.module(ours.layer_spec(other, shape.width, options.heads))
        step = ours.layer_step(partial(first, exact), exact.parameters(), x)
        cases.append(Case(f"nlc {other}", step, tokens))
    for peer in PEERS.get(name, ()):
        try:
            layer = peer.made(shape.width, options.heads, options.device)
        except AbsentError as error:
            absent.append(str(error))
            continue
        layer = layer.to(place.device, place.dtype)
        cases.append(Case(peer.title, ours.layer_step(layer, layer.parameters(), x), tokens))
    title = f"{name} as a layer, forward and backward, {shape}, {options.heads} heads"
    return Group(title, tuple(cases), tuple(dict.fromkeys(absent)))


def first(model: Model, x: torch.Tensor) -> torch.Tensor:
    answer: torch.Tensor = model(x)[0]
    return answer


def system_group(spec: Spec, shape: Shape, options: Options) -> Group:
    """A system beside a transformer of its width, depth and heads."""
    place, name = options.place, spec.system.name
    streams = place.streams(spec, shape.batch, shape.time)
    tokens = shape.batch * shape.time
    step = ours.system_step(place.module(spec), streams)
    cases = [Case(f"nlc {name}", step, tokens)]
    plain = transformer(spec, options)
    if plain is not None:
        cases.insert(0, Case("transformer, plain PyTorch", plain_step(plain, streams[0]), tokens))
    title = f"{name}({told(spec)}), forward and backward, {shape.batch} x {shape.time:,}"
    return Group(title, tuple(cases))


def plain_step(plain: Transformer, ids: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        plain.zero_grad(set_to_none=True)
        plain.loss(ids).backward()  # type: ignore[no-untyped-call]

    return step


def transformer(spec: Spec, options: Options) -> Transformer | None:
    """Of the sizes that the spec names; None if it has no tokens or no width."""
    has = spec.system.settings
    if [n for n, _ in spec.system.flow.inputs] != ["tokens"] or not {"vocab", "width"} <= set(has):
        return None
    sizes = (has["vocab"], has["width"], has.get("depth", 1), has.get("heads", options.heads))
    return Transformer(*sizes).to(options.place.device, options.place.dtype)


def told(spec: Spec) -> str:
    shown = ("width", "depth", "heads")
    return ", ".join(f"{k} = {v}" for k, v in spec.system.settings.items() if k in shown)


# ---- long streams --------------------------------------------------------------------------------


def length_groups(name: str, spec: Spec, options: Options) -> Iterator[Group]:
    """What a token costs, by how many came before: in one call, in calls, and with gradients."""
    place = options.place
    model, lengths = place.module(spec), sorted(options.lengths)
    x = place.streams(spec, 1, max(lengths) + PIECE)
    first = {n: tuple(part[:, :n] for part in x) for n in lengths}
    calls = [Case(f"{n:,} tokens", ours.forward(model, first[n]), n, False) for n in lengths]
    yield Group(f"{name}, forward, in one call", tuple(calls))
    state, pieces, start = None, [], 0
    for n in lengths:
        state = ours.after(model, tuple(part[:, start:n] for part in x), state, PIECE)
        more, start = tuple(part[:, n : n + PIECE] for part in x), n
        said = f"{PIECE} tokens after {n:,}, state {ours.bytes_of(state):,} B"
        pieces.append(Case(said, ours.forward(model, more, state), more[0].shape[1], False))
    yield Group(f"{name}, forward, in calls of {PIECE}", tuple(pieces))
    steps = [Case(f"{n:,} tokens", ours.system_step(model, first[n]), n) for n in lengths]
    yield Group(f"{name}, forward and backward, in one call", tuple(fitting(steps, options)))


def fitting(steps: Sequence[Case], options: Options) -> Iterator[Case]:
    """Those that keep no more than ROOM, judged by the shortest."""
    steps[0].step()
    each = peak(steps[0].step, options.device) / steps[0].tokens
    return (s for s in steps if each * s.tokens <= ROOM)


def decode_group(names: Sequence[str], width: int, context: int, options: Options) -> Group:
    """The next tokens of one stream, one by one, after `context` others: a state, beside a cache of
    keys. Several in a row, as the token at which levels fire costs more than those between.
    """
    place, cases = options.place, []
    with torch.no_grad():
        for name in names:
            spec = sized(name, width, options)
            model, x = place.module(spec), place.streams(spec, 1, context + DECODED)
            state = ours.after(model, tuple(part[:, :context] for part in x), None, PIECE)
            step = ours.decoded(model, tuple(part[:, context:] for part in x), state)
            cases.append(Case(f"nlc {spec.system.name}", step, DECODED, False))
    plain = transformer(spec, options)
    if plain is not None:
        step = cached(plain, context, place)
        cases.insert(0, Case("transformer with a cache", step, DECODED, False))
    return Group(f"{DECODED} tokens one by one after {context:,}, {told(spec)}", tuple(cases))


def cached(plain: Transformer, context: int, place: ours.Place) -> Callable[[], None]:
    """Steps with the keys and values of so many tokens, in the room of a few more."""
    keys, values = (place.put(torch.randn(plain.room(context + DECODED))) for _ in range(2))
    token = place.put(torch.zeros(1, 1, dtype=torch.int64))

    @torch.no_grad()
    def step() -> None:
        for t in range(DECODED):
            plain(token, Cache(keys, values, context + t))

    return step


def sized(name: str, width: int, options: Options) -> Spec:
    wanted = {"width": width, "depth": 1, "heads": options.heads}
    return ours.system_spec(name, options.settings, wanted)


# ---- optimizers ----------------------------------------------------------------------------------


def optimizer_group(name: str, options: Options) -> Group:
    """A step of all arrays of a transformer; what is counted is its parameters."""
    found = tuple(steps.cases(name, options.parameters, options.place))
    title = f"{name}, one step of {found[0].tokens:,} parameters (a token is one)"
    return Group(title, found)


# ---- what a call asks for ------------------------------------------------------------------------


def groups(options: Options) -> Iterator[Group]:
    """One after the other: a group is made when the one before has been measured."""
    if options.optimizer is not None:
        yield optimizer_group(options.optimizer, options)
        return
    if options.spec is None and options.memory is None:
        yield from everything(options)
        return
    shapes = options.shapes
    if options.memory is not None:
        for shape in shapes or SHAPES:
            yield memory_group(options.memory, shape, options)
        spec = ours.layer_spec(options.memory, (shapes or SHAPES)[0].width, options.heads)
        name = options.memory
    else:
        assert options.spec is not None
        for shape in shapes or (Shape(1, 512, 0),):
            wanted = {"width": shape.width} if shape.width else {}
            spec = ours.system_spec(options.spec, options.settings, wanted)
            yield system_group(spec, shape, options)
        name = spec.system.name
    if options.lengths:
        yield from length_groups(name, spec, options)
    if options.context is not None and options.spec is not None:
        width = spec.system.settings.get("width", 0)
        yield decode_group([options.spec], width, options.context, options)


def everything(options: Options) -> Iterator[Group]:
    shapes = options.shapes or SHAPES
    options = replace(options, lengths=options.lengths or LENGTHS)
    for name in PEERS:
        for shape in shapes:
            yield memory_group(name, shape, options)
    for shape in shapes:
        yield system_group(sized("hope", shape.width, options), shape, options)
    width = shapes[0].width
    layer = ours.layer_spec("gated_delta", width, options.heads)
    yield from length_groups("gated_delta", layer, options)
    yield from length_groups("hope", sized("hope", width, options), options)
    yield optimizer_group("adamw", options)
    for width in sorted({s.width for s in shapes}):
        context = options.context or CONTEXT
        yield decode_group(["hope", "titans", "deltanet"], width, context, options)


def bench(options: Options, say: Callable[[str], None]) -> Iterator[Result]:
    """Each group as it is measured; `say` is told what is being run."""
    with quiet(options.threads):
        for group in groups(options):
            found = measured(group.cases, options.rounds, options.device, say)
            say("")
            yield Result(group.title, tuple(found), group.absent)


__all__ = ["DTYPES", "LENGTHS", "Options", "Result", "Shape", "bench", "machine"]
