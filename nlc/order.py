"""STAGE: a system's components in the order of their frequency, and what passes between them.

In: a resolved `System`. Out: its `LevelGraph` (`order`), and that graph as a networkx graph
(`graph`).

Three steps. `Parts` makes the components. `Reading` walks the flow once, in text order, and notes
which states of the same tick enter which firing, and which read enters which call. `_ranks` layers
the order by longest chains.

An order of whole levels needs one more word than the definition, which speaks of single boxes:
under `repeat` two levels may feed each other by turns, layer after layer. Then neither is faster as
a whole. So A is faster than B if B uses A's state of the same tick and A does not use B's, directly
or through others: the strict part of a preorder, hence a strict partial order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from .components import Parts
from .diagnostics import InternalError
from .levels import Component, Edge, Key, LevelGraph, Pair, Rank
from .reading import Reading
from .system import System, Transfer

if TYPE_CHECKING:
    import networkx


Place = tuple[str, Key]  # what a level has on one frequency


def order(system: System) -> LevelGraph:
    """The components of a system, ranked, with the edges between them."""
    parts = Parts(system)
    reading = Reading(system)
    components = parts.components()
    uses = _same_tick(components, reading) | _inside(components, parts.uses)
    anchors = parts.anchors
    edges = [
        *(_transfer(t, anchors) for t in system.transfers),
        *(Edge("flow", anchors[a], anchors[b], carried=c) for (a, b), c in reading.flows.items()),
        *(Edge("gradient", c.serves, c.name) for c in components if c.serves is not None),
    ]
    ranks = _ranks(components, uses)
    pairs = tuple(sorted(uses))
    return LevelGraph(system.name, ranks, tuple(edges), pairs, system.assume, system.doc)


def graph(levels: LevelGraph) -> networkx.MultiDiGraph:
    """One node a component, one edge a transfer; their fields are attributes."""
    import networkx  # a quarter of a second, and `nlc check` needs none of it

    made = networkx.MultiDiGraph(name=levels.name, assume=levels.assume)
    for rank in levels.levels:
        for c in rank.components:
            made.add_node(
                c.name,
                rank=rank.number,
                level=c.level,
                kind=c.kind,
                clock=c.cadence,
                frequency=str(c.frequency),
                numbers=c.numbers,
                boxes=c.boxes,
                component=c,
            )
    for e in levels.edges:
        made.add_edge(
            e.source,
            e.target,
            kind=e.kind,
            state=e.state,
            truncate=e.truncate,
            first_order=e.first_order,
            carried=e.carried,
        )
    return made


def _transfer(t: Transfer, anchors: Mapping[str, str]) -> Edge:
    source, target = anchors[t.source.name], anchors[t.target.name]
    return Edge(t.kind, source, target, t.state, t.source_state, t.truncate, t.first_order)


# ---- ranks ---------------------------------------------------------------------------------------


def _same_tick(components: Sequence[Component], reading: Reading) -> set[Pair]:
    """Pairs (faster, slower) between components of different levels and equal frequency."""
    by_name = {c.name: c for c in components}
    used_by: dict[str, list[str]] = defaultdict(list)
    learns: dict[str, list[str]] = defaultdict(list)
    for found, pairs in ((used_by, reading.fires), (learns, reading.learns)):
        for fast, name in pairs:
            found[name].append(fast)
    direct = [
        (fast, c.name)
        for c in components
        for fast in (used_by[c.name] if c.serves is None else learns[_served(c, by_name)])
        if c.kind != "iteration" and c.frequency.key == by_name[fast].frequency.key
    ]
    place = {c.name: (c.level, c.frequency.key) for c in components}
    circle = _circles((place[a], place[b]) for a, b in direct)
    return {(a, b) for a, b in direct if circle[place[a]] != circle[place[b]]}


def _served(c: Component, by_name: Mapping[str, Component]) -> str:
    """The component of a level whose gradients an optimizer is given, by way of others or not."""
    while c.serves is not None:
        c = by_name[c.serves]
    return c.name


def _inside(components: Sequence[Component], uses: Iterable[Pair]) -> set[Pair]:
    """Pairs of equal frequency inside optimizers; what never changes is not ordered."""
    often = {c.name: c.frequency for c in components}
    return {(a, b) for a, b in uses if often[a].key == often[b].key and often[a].unit != "never"}


def _ranks(components: Sequence[Component], uses: set[Pair]) -> tuple[Rank, ...]:
    """The longest-chain layers of each frequency, slowest first. Linear in components and pairs."""
    faster: dict[str, list[str]] = defaultdict(list)
    waits: Counter[str] = Counter()
    for fast, slow in uses:
        faster[slow].append(fast)
        waits[fast] += 1
    height = {c.name: 0 for c in components if not waits[c.name]}
    ready = list(height)
    while ready:
        slow = ready.pop()
        for fast in faster[slow]:
            waits[fast] -= 1
            height[fast] = max(height.get(fast, 0), height[slow] + 1)
            if not waits[fast]:
                ready.append(fast)
    if any(waits.values()):
        raise InternalError("the states of one tick need each other in a circle")
    layers: dict[tuple[Key, int], list[Component]] = defaultdict(list)
    for c in components:
        layers[c.frequency.key, height[c.name]].append(c)
    return tuple(Rank(i, tuple(layers[key])) for i, key in enumerate(sorted(layers), 1))


def _circles(pairs: Iterable[tuple[Place, Place]]) -> dict[Place, Place]:
    """For each place, one of its circle that stands for all (Tarjan, no recursion)."""
    graph: dict[Place, list[Place]] = defaultdict(list)
    for a, b in pairs:
        graph[a].append(b)
        graph.setdefault(b, [])
    number: dict[Place, int] = {}
    low: dict[Place, int] = {}
    root: dict[Place, Place] = {}
    trail: list[Place] = []
    for start in graph:
        todo = [] if start in number else [(start, iter(graph[start]))]
        while todo:
            place, rest = todo[-1]
            if place not in number:
                number[place] = low[place] = len(number)
                trail.append(place)
            for after in rest:
                if after not in number:
                    todo.append((after, iter(graph[after])))
                    break
                if after not in root:
                    low[place] = min(low[place], number[after])
            else:
                todo.pop()
                if todo:
                    low[todo[-1][0]] = min(low[todo[-1][0]], low[place])
                if low[place] == number[place]:
                    while place not in root:
                        root[trail.pop()] = place
    return root
