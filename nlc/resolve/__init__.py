"""STAGE: syntax -> system. Names, shapes, units, instances; every mistake of a file in one run.

`resolve(file)` gives the system (None where the mistakes left none) and what is to be told.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import islice, product
from pathlib import Path
from typing import Any

from .. import syntax as S
from ..diagnostics import Diagnostic
from ..system import Box, Clock, Learn, Level, Shape, System, Term
from .bodies import Body
from .functions import Stop
from .resolver import Resolver
from .systems import SystemStage
from .values import Declared
from .work import Placed


@dataclass(frozen=True)
class Resolved:
    """What the stage gives: `system` is None if there is none, or mistakes left none. `texts`:
    files used, by name. `alone`: what the file declares and no system of it calls, at example
    sizes.
    """

    system: System | None
    diagnostics: tuple[Diagnostic, ...]
    names: Mapping[str, Any]
    texts: Mapping[str, str]
    alone: tuple[Box, ...] = ()


def resolve(
    file: S.File, folder: Path | None = None, settings: Mapping[str, Any] | None = None
) -> Resolved:
    """Resolve a file whose `use` lines look in `folder` first; `settings` override those of its
    system (2.2.4), or of what it declares, if there is none.
    """
    r = Resolver(folder, settings)
    r.source, r.recovered = file.span.source, file.recovered
    names = r.files.names_of(file, folder)
    node = next((i for i in file.items if isinstance(i, S.System)), None)
    system = None
    if node is not None:
        doc = file.docs.get(node.span.start, "")
        with suppress(Stop):  # too large, which has been told
            system = SystemStage(r, node, names, doc, file.docs).system()
    given = {} if node is not None else dict(settings or {})
    tell_unknown(r, file, given)
    alone = tuple(declared_alone(r, file, names, given))
    return Resolved(system, r.diagnostics, names, dict(r.files.texts), alone)


def tell_unknown(r: Resolver, file: S.File, given: Mapping[str, Any]) -> None:
    """Settings that nothing in a file without a system has, and sizes that are none."""
    items = [i for i in file.items if isinstance(i, S.Memory | S.Optimizer)]
    known = [p.name.id for i in items for p in i.params if p.default is not None]
    sized = [n for i in items for n in named_sizes(i)]
    for name in (n for n in given if n not in known):
        if name in sized:
            n = given[name]
            if isinstance(n, bool) or not isinstance(n, int) or n < 1:
                told = f"`{name}` is a size, a whole number above 0, and was given {n!r}"
                r.report("NL601", told, items[0].name.span)
            continue
        near = get_close_matches(name, known + sized, n=1)
        own = ", ".join(dict.fromkeys(known + sized)) or "none"
        hint = f"; did you mean `{near[0]}`?" if near else f"; it has {own}"
        what, span = "this file", file.span
        if len(items) == 1:
            what, span = f"`{items[0].name.id}`", items[0].name.span
        r.report("NL101", f"{what} has no setting `{name}`{hint}", span)


def declared_alone(
    r: Resolver, file: S.File, names: Mapping[str, Any], given: Mapping[str, Any]
) -> Iterator[Box]:
    """The memories and optimizers that nothing calls are resolved at example sizes, to find their
    mistakes.
    """
    for item in file.items:
        if not isinstance(item, S.Memory | S.Optimizer) or id(item) in r.used:
            continue
        declared = names.get(item.name.id)
        if isinstance(declared, Declared) and declared.node is item:
            own = {p.name.id for p in item.params if p.default is not None}
            settings = {n: value for n, value in given.items() if n in own}
            sizes = {n: given[n] for n in named_sizes(item) if n in given and n not in own}
            found, told = best_example(r, declared, settings, sizes)
            r.retell(told)
            yield from found


def named_sizes(item: S.Node) -> list[str]:
    """The sizes in the brackets of a memory's inputs."""
    streams = [p for p in item.params if p.default is None] if isinstance(item, S.Memory) else []
    return list(dict.fromkeys(d.id for p in streams for d in p.dims if isinstance(d, S.Name)))


def best_example(
    r: Resolver, declared: Declared, settings: Mapping[str, Any], given: Mapping[str, int]
) -> tuple[list[Box], list[Diagnostic]]:
    """The first example sizes that fit. What fits none may be meant for others, if a size is open:
    then only what does not depend on sizes is told, and what none of them mends, and a size that is
    a setting and cannot be one; and nothing is known of what it makes.
    """
    node = declared.node
    tries: list[tuple[list[Box], list[Diagnostic], dict[str, int]]] = []
    for sizes in (each | dict(given) for each in example_sizes(node)):
        boxes, told = example(r, declared, sizes, settings)
        if not told:
            return boxes, told
        tries.append((boxes, told, sizes))
    boxes, told, sizes = min(tries, key=lambda t: len(t[1]))
    streams = {p.name.id for p in node.params if p.default is None and not p.dims}
    open_shapes = bool(streams & sizes.keys()) or any(d.code == "NL601" for d in told)
    found = [{(d.code, d.span) for d in each} for _, each, _ in tries]
    own = {p.name.id for p in node.params if p.default is not None}
    named = {n: size for n, size in sizes.items() if n not in streams}
    alike = [each for _, each, at in tries if named.items() <= at.items()]
    same = [{(d.code, d.span, d.message) for d in each} for each in alike]

    def whatever_is_open(d: Diagnostic) -> bool:
        """The same, to the word, whatever the shapes of the inputs without brackets."""
        return len(same) > 1 and all((d.code, d.span, d.message) in f for f in same)

    def always(d: Diagnostic) -> bool:
        if d.code in ("NL601", "NL606"):  # a setting is what it is, whatever the sizes
            return d.code == "NL606" or d.span.text in own
        everywhere = all((d.code, d.span) in f for f in found)
        told_of_one = d.code == "NL603" and len(tries) > 1
        return everywhere and (not open_shapes or told_of_one or whatever_is_open(d))

    kept = [d for d in told if not d.code.startswith("NL6") or always(d)]
    taken = ", ".join(f"{name} = {n}" for name, n in (named if open_shapes else sizes).items())
    if taken and (streams or not open_shapes):
        help = f"(`{node.name.id}` is not called; its sizes were taken as {taken})"
        kept = [replace(d, help=f"{d.help} {help}") if d.code == "NL602" else d for d in kept]
    return boxes if len(kept) == len(told) else [], kept


def example_sizes(node: S.Node) -> Iterator[dict[str, int]]:
    """Sizes for the names in brackets and for inputs without brackets, of which 0 is a number: one
    for all, of our own or that the text writes, and then mixed. An optimizer's weight, "", is a
    matrix or a vector.
    """
    if not isinstance(node, S.Memory):
        yield from ({"": 0}, {"": 8})
        return
    streams = [p for p in node.params if p.default is None]
    named = named_sizes(node)
    bare = [p.name.id for p in streams if not p.dims]
    numbers = (n.value for n in S.walk(node) if isinstance(n, S.Number))
    written = (int(n) for n in numbers if n == int(n) and 1 < n <= 1024)
    sizes = list(dict.fromkeys((8, 5, *written)))[:5]
    for n in sizes if named or bare else sizes[:1]:
        for shape in (0, n) if bare else (0,):
            yield dict.fromkeys(named, n) | dict.fromkeys(bare, shape)
    if len(named) + len(bare) > 1:
        choices = [sizes] * len(named) + [[0, *sizes]] * len(bare)
        for mixed in islice(product(*choices), 64):
            yield dict(zip((*named, *bare), mixed, strict=True))


def example(
    r: Resolver, declared: Declared, sizes: Mapping[str, int], settings: Mapping[str, Any]
) -> tuple[list[Box], list[Diagnostic]]:
    """One declaration on its own; the weights and boxes it makes belong to no system."""
    weights, boxes = len(r.weights), len(r.boxes)
    made: list[Box] = []
    node = declared.node
    with r.capture() as told, suppress(Stop):
        if isinstance(node, S.Memory):
            memory_alone(r, declared, example_shapes(node, sizes), settings)
        else:
            rule = S.Learn(S.Call(node.name, ()), span=node.name.span)
            shape = (sizes[""],) if sizes[""] else (8, 4)
            outer = Body(r, ChainMap())
            made.append(r.boxes_stage.try_optimizer(outer, declared, shape, settings, (), rule))
    made += r.boxes[boxes:]
    r.drop_weights(weights)
    r.drop_boxes(boxes)
    return made, told


def example_shapes(node: S.Memory, sizes: Mapping[str, int]) -> dict[str, Shape]:
    """The shapes of a memory's inputs; dimensions are names, numbers, or settings taken as 8."""

    def size(dim: S.Expr) -> int:
        if isinstance(dim, S.Name):
            return sizes[dim.id]
        return int(dim.value) if isinstance(dim, S.Number) else 8

    streams = [p for p in node.params if p.default is None]
    bare = {p.name.id: (n,) if (n := sizes[p.name.id]) else () for p in streams if not p.dims}
    return {p.name.id: tuple(map(size, p.dims)) or bare[p.name.id] for p in streams}


def memory_alone(
    r: Resolver,
    declared: Declared,
    shapes: Mapping[str, Shape],
    settings: Mapping[str, Any] | None = None,
) -> Box:
    """A memory with a level of its own, on inputs of these shapes; `nlc.memory` runs it (2.13)."""
    node = declared.node
    level = Level(
        node.name.id, node.name.id, Clock("token"), called=True, doc=declared.doc, span=node.span
    )
    outer = Box("", node.name.id, "level", level, span=node.span)
    body = Body(r, ChainMap(), box=outer)
    named: dict[str, Any] = {
        n: Term("input", (), s, n, None, node.span) for n, s in shapes.items()
    } | dict(settings or {})
    args = tuple(S.Argument(S.Name(n), S.Name(n), span=node.name.span) for n in named)
    call = S.Call(node.name, args, span=node.name.span)
    before = len(r.boxes)
    r.boxes_stage.call_memory(body, declared, [], named, call)
    return r.boxes[before]


def line_alone(
    file: S.File,
    folder: Path | None,
    line: S.Learn,
    shapes: tuple[Shape, ...],
    given: Mapping[str, Any],
    names: Mapping[str, Any],
) -> tuple[Learn | None, tuple[Diagnostic, ...]]:
    """A `learn` line without its level, over arrays of these shapes; `nlc.optimizer` runs it
    (2.13). `given`: settings of the rule that the line does not give, as numbers or terms. `names`:
    what the line sees beside the declarations of its file.
    """
    r = Resolver(folder, None)
    r.source, r.recovered = file.span.source, file.recovered
    level = Level("training", "training", Clock("step"), owner=True, span=line.span)
    box = Box("", "training", "level", level, span=line.span)
    body = Body(r, ChainMap(dict(names), r.files.names_of(file, folder)), box=box)
    extra = {f"given {n}": value for n, value in given.items()}
    rule = line.rule if isinstance(line.rule, S.Call) else S.Call(line.rule, (), span=line.span)
    more = tuple(
        S.Argument(S.Name(n, span=line.span), S.Name(f"given {n}", span=line.span), span=line.span)
        for n in given
    )
    whole = S.Call(rule.function, (*rule.arguments, *more), span=rule.span)
    node = S.Learn(whole, line.targets, span=line.span)
    stage = r.boxes_stage
    placed, targets = Placed(node, body.env.new_child()), stage.targets(body, node)
    made: Learn | None = None
    with suppress(Stop):
        made = stage.learn_line(
            body, placed, extra, list(shapes), (), targets, lambda _: "an array of its own"
        )
    return made, tuple(r.diagnostics)
