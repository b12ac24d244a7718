"""Pictures of a level graph: DOT, Mermaid, JSON, SVG, PNG.

In: a `LevelGraph`. Out: text (`dot`, `mermaid`, `json`) or bytes (`render`). Nothing here decides
anything. Each kind of transfer has one colour, one dash and one arrowhead. The places come from
`layout`, because Graphviz bends its lines around bands; the DOT text holds them, and says so
(`layout=nop2`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import pairwise
from json import dumps
from typing import Any

from .layout import (
    GAP,
    HEAD,
    PAD,
    STEP,
    TEXT,
    Bus,
    Page,
    Place,
    Point,
    cells_of,
    clean,
    frequency_lines,
    label,
    style_of,
    title,
    width_of,
)
from .levels import Component, Frequency, LevelGraph, Rank

FORMAT_VERSION = 1
FONT = "Helvetica,Arial,sans-serif"
INK, GREY, LINE = "#1f2937", "#667085", "#7c8798"
SLOW, FAST = (0xE7, 0xED, 0xF6), (0xFB, 0xF0, 0xE2)  # the bands go from one to the other
ARROW = 7.0
PLAIN = "shape=plaintext"


class DrawError(Exception):
    """What keeps a picture from being drawn, in a sentence for the user."""


@dataclass(frozen=True, slots=True)
class Style:
    colour: str
    dash: str
    head: str
    says: str


STYLES = {
    "backprop": Style("#b5443b", "dashed", "normal", "backprop: the gradient"),
    "init": Style("#2b68ae", "solid", "dot", "init: the start"),
    "generate": Style("#2f7d4f", "bold", "diamond", "generate: the state"),
    "condition": Style("#7b57a8", "dotted", "onormal", "condition: the value"),
    "flow": Style("#8391a5", "solid", "vee", "flow: a read enters a call"),
    "carried": Style("#8391a5", "dashed", "vee", "flow into the next round"),
    "gradient": Style("#a3803c", "dotted", "odot", "gradients, to an optimizer"),
}


# ---- DOT -----------------------------------------------------------------------------------------


def dot(levels: LevelGraph) -> str:
    """In the language of Graphviz: a component is a node, an edge of the page an edge."""
    page = Page(levels)
    pen = _Pen(page.height + 34)
    pen.lines += [
        f"digraph {_quoted(levels.name)} {{",
        "  graph [layout=nop2, bgcolor=white, pad=0.15, outputorder=nodesfirst]",
        f'  node [shape=box, fixedsize=true, penwidth=0.8, fontname="{FONT}", fontcolor="{INK}"]',
        "  edge [arrowsize=0.7, penwidth=1.1]",
    ]
    for rank, top, bottom in page.bands:
        pen.band(rank, top, bottom, page.width, len(levels.levels))
    for place in page.places.values():
        pen.box(place)
    beside: Counter[frozenset[str]] = Counter()
    for bus in page.straight:
        pair = bus.pairs[0]
        pen.line(bus, pair, _straight(page, pair, beside[frozenset(pair)]))
        beside[frozenset(pair)] += 1
    for bus in page.buses:
        _draw_bus(pen, page, bus)
    _legend(pen, page)
    return "\n".join([*pen.lines, "}", ""])


def _straight(page: Page, pair: tuple[str, str], shift: int) -> list[Point]:
    a, b = (page.places[name] for name in pair)
    if a.row == b.row:
        y = min(a.y + a.height / 2, b.y + b.height / 2) + 10 * shift
        return [(a.right, y), (b.x, y)] if a.x < b.x else [(a.x, y), (b.right, y)]
    x = a.x + 40 + 14 * shift
    down = a.row < b.row
    return [(x, a.bottom if down else a.y), (x, b.y if down else b.bottom)]


def _draw_bus(pen: _Pen, page: Page, bus: Bus) -> None:
    """The outermost ends go all the way, every other end only as far as that line."""
    ways = {stub: page.way(bus, *stub) for stub in bus.stubs}
    left = dict.fromkeys(bus.pairs)
    reached: set[tuple[str, bool]] = set()

    def draw(a: str, b: str, arrow: bool, way: Sequence[Point]) -> None:
        del left[a, b]
        pen.line(bus, (a, b), way, arrow)

    def all_the_way(pair: tuple[str, str]) -> None:
        a, b = (pair[0], True), (pair[1], False)
        below = len(ways[a]) == len(ways[b]) == 3 and ways[a][1][1] == ways[b][1][1]
        draw(
            *pair, True, [*ways[a][: 2 if below else None], *ways[b][: 2 if below else None][::-1]]
        )
        reached.update((a, b))

    own = [stub for stub in ways if not page.joins(bus, *stub)]
    by_height = sorted(own, key=lambda stub: ways[stub][-1][1])
    for name, leaves in (by_height[0], by_height[-1]):
        if (name, leaves) not in reached:
            met = [p for p in left if p[not leaves] == name]
            far = (by_height[-1] if name == by_height[0][0] else by_height[0])[0]
            wanted = [p for p in met if (p[leaves], not leaves) in reached]
            wanted += [p for p in met if far in p]
            all_the_way((wanted or met)[0])
    for name, leaves in ways:
        if (name, leaves) not in reached:
            met = [p for p in left if p[not leaves] == name]
            pair = max(met, key=lambda p: (p[leaves], not leaves) in reached)
            way = ways[name, leaves][: 2 if (name, leaves) not in own else None]
            draw(*pair, not leaves, way if leaves else way[::-1])
    for pair in left:
        pen.hidden(bus, pair, ways[pair[0], True])
    if bus.says and bus.right:
        hub = bus.stubs[0] if len(bus.sources) == 1 else (bus.targets[0], False)
        pen.says(bus, hub[0], ways[hub])


def _legend(pen: _Pen, page: Page) -> None:
    x, y = PAD, page.height + 20
    for kind in [kind for kind in STYLES if kind in page.kinds]:
        style = STYLES[kind]
        wide = width_of(style.says, TEXT) + 6
        if x > PAD and x + 28 + wide > page.width:
            x, y = PAD, y + 16
        text = _text(style.says, TEXT, GREY)
        pen.node(f"key {kind}", (x + 28 + wide / 2, y), (wide, 12), text)
        for end, at in (("a", x), ("b", x + 24)):
            pen.node(f"key {kind} {end}", (at, y), (0.1, 0.1))
        ends = f"key {kind} a", f"key {kind} b"
        pen.line(Bus(kind, "", ends[:1], ends[1:]), ends, [(x, y), (x + 24, y)])
        x += 28 + wide + 14


class _Pen:
    """Writes DOT lines; turns the page over, for Graphviz counts from the lower left."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.lines: list[str] = []

    def at(self, x: float, y: float) -> str:
        return f"{x:.4g},{self.height - y:.5g}"

    def node(self, name: str, at: Point, size: Point, text: str = "", look: str = PLAIN) -> None:
        """A box around a point. `text` is HTML, as Graphviz has it."""
        width, height = (f"{points / 72:.4f}" for points in size)
        shown = f"<{text}>" if text else '""'
        self.lines.append(
            f'  {_quoted(name)} [pos="{self.at(*at)}", width={width}, height={height}, '
            f"label={shown}, {look}]"
        )

    def band(self, rank: Rank, top: float, bottom: float, width: float, ranks: int) -> None:
        fill = _between(rank.number, ranks)
        look = f'style="rounded,filled", color="{fill}", fillcolor="{fill}"'
        at, size = (width / 2, (top + bottom) / 2), (width, bottom - top)
        self.node(f"level {rank.number}", at, size, look=look)
        lines = frequency_lines(rank)
        wide = max(width_of(line, TEXT) for line in lines) + 8
        tall = STEP * len(lines) + 20
        rows = [_text(f"level {rank.number}", HEAD, INK, bold=True)]
        rows += [_text(line, TEXT, GREY) for line in lines]
        table = _table([f'<td align="left">{row}</td>' for row in rows], wide)
        at = PAD + wide / 2, top + PAD + tall / 2 - 4
        self.node(f"says level {rank.number}", at, (wide, tall), table)

    def box(self, place: Place) -> None:
        c = place.component
        dashed = ",dashed" if c.kind in ("optimizer", "iteration") else ""
        look = (
            f'style="rounded,filled{dashed}", color="{LINE}", fillcolor=white, '
            f"tooltip={_quoted(c.doc or title(c))}"
        )
        at = place.x + place.width / 2, place.y + place.height / 2
        text = _contents(c, place.width - 12)
        self.node(c.name, at, (place.width, place.height), text, look)

    def line(
        self, bus: Bus, pair: tuple[str, str], way: Sequence[Point], arrow: bool = True
    ) -> None:
        """An edge along corners, with a head unless it joins a longer one at its end."""
        style = STYLES[bus.kind]
        self._edge(bus, pair, way, arrow, f"style={style.dash}, arrowhead={style.head}")

    def hidden(self, bus: Bus, pair: tuple[str, str], way: Sequence[Point]) -> None:
        """An edge whose line others have drawn."""
        self._edge(bus, pair, way, False, "style=invis")

    def _edge(
        self, bus: Bus, pair: tuple[str, str], way: Sequence[Point], arrow: bool, look: str
    ) -> None:
        ends = " -> ".join(map(_quoted, pair))
        says = _quoted(bus.kind + (f": {bus.says}" if bus.says else ""))
        look = look if arrow else f"{look}, dir=none"
        self.lines.append(
            f'  {ends} [pos="{self.path(way, arrow)}", color="{STYLES[bus.kind].colour}", '
            f"{look}, tooltip={says}]"
        )

    def path(self, way: Sequence[Point], arrow: bool) -> str:
        """A spline along the corners, each a little rounded."""
        points = list(way)
        tip = points[-1]
        if arrow:
            points[-1] = _towards(tip, points[-2], ARROW)
        curve = [points[0]]
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            curve += _segment(curve[-1], _towards(corner, before, 5))
            curve += [corner, corner, _towards(corner, after, 5)]
        curve += _segment(curve[-1], points[-1])
        spline = " ".join(self.at(*p) for p in curve)
        return f"e,{self.at(*tip)} {spline}" if arrow else spline

    def says(self, bus: Bus, name: str, way: Sequence[Point]) -> None:
        """What a line on the right says besides its kind, above it where it leaves a box."""
        (x, y), wide = way[-2], width_of(bus.says, 8) + 4
        text = _text(bus.says, 8, STYLES[bus.kind].colour)
        self.node(f"says {len(self.lines)} {name}", (x + 9 + wide / 2, y - 5), (wide, 9), text)


def _towards(start: Point, end: Point, length: float) -> Point:
    """The point so far along from start, at most half the way."""
    (a, b), (c, d) = start, end
    far = max(abs(c - a) + abs(d - b), 1e-9)
    share = min(length / far, 0.5)
    return a + (c - a) * share, b + (d - b) * share


def _segment(a: Point, b: Point) -> list[Point]:
    third = (abs(b[0] - a[0]) + abs(b[1] - a[1])) / 3
    return [_towards(a, b, third), _towards(b, a, third), b]


# ---- what a box says -----------------------------------------------------------------------------


def _contents(c: Component, width: float) -> str:
    """The name, the clock, then what is kept."""
    rows = [
        f'<td colspan="3" align="left">{_text(title(c), HEAD, INK, bold=True)}</td>',
        f'<td colspan="3" align="left">{_text(c.cadence, TEXT, GREY)}</td>',
    ]
    for cells in cells_of(c):
        sides = zip(cells, ("left", "left", "right"), (GAP, GAP, 0), strict=True)
        rows.append(
            "".join(f'<td align="{a}">{_text(t, TEXT, INK, gap=g)}</td>' for t, a, g in sides)
        )
    return _table(rows, width)


def _table(rows: Iterable[str], width: float) -> str:
    look = f'border="0" cellborder="0" cellspacing="0" cellpadding="1" width="{width:.0f}"'
    return f"<table {look}>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _text(text: str, points: float, colour: str, bold: bool = False, gap: float = 0) -> str:
    inner = (escape(clean(text)) or " ") + "&#160;" * round(gap / (0.28 * points))
    inner = f"<b>{inner}</b>" if bold else inner
    return f'<font point-size="{points:g}" color="{colour}">{inner}</font>'


def _between(number: int, ranks: int) -> str:
    share = (number - 1) / max(ranks - 1, 1)
    mixed = (round(a + (b - a) * share) for a, b in zip(SLOW, FAST, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _quoted(text: str) -> str:
    return '"' + clean(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


# ---- Mermaid, JSON, and what needs Graphviz ------------------------------------------------------

_MERMAID = {
    "backprop": "-.->",
    "init": "==>",
    "generate": "-->",
    "condition": "-.-o",
    "flow": "-->",
    "carried": "-.->",
    "gradient": "--o",
}


def mermaid(levels: LevelGraph) -> str:
    """The picture for a README: a flowchart with one subgraph a level."""
    ids = {c.name: f"c{i}" for i, c in enumerate(levels.components)}
    lines = ["flowchart TB"]
    for rank in levels.levels:
        says = f"level {rank.number}: {', '.join(frequency_lines(rank))}"
        lines.append(f"  subgraph level{rank.number}[{_entities(says)}]")
        for c in rank.components:
            texts = (
                f"{name} {form} {numbers}".replace("  ", " ") for name, form, numbers in cells_of(c)
            )
            text = "<br/>".join(map(_plain, (title(c), c.cadence, *texts)))
            lines.append(f'    {ids[c.name]}["{text}"]')
        lines.append("  end")
    ranks = [f"level{rank.number}" for rank in levels.levels]
    lines += [f"  {a} ~~~ {b}" for a, b in pairwise(ranks)]
    first = max(len(ranks) - 1, 0)
    for i, e in enumerate(levels.edges, first):
        kind = style_of(e)
        says = ", ".join(filter(None, ("next round" if e.carried else e.kind, label(e))))
        lines.append(f"  {ids[e.source]} {_MERMAID[kind]}|{_entities(says)}| {ids[e.target]}")
        lines.append(f"  linkStyle {i} stroke:{STYLES[kind].colour},color:{STYLES[kind].colour}")
    return "\n".join([*lines, ""])


def _entities(text: str) -> str:
    return f'"{_plain(text)}"'


def _plain(text: str) -> str:
    """With everything that Mermaid or HTML might read as its own written as an entity."""
    return "".join(c if c.isalnum() or c in " _.,:/" else f"#{ord(c)};" for c in clean(text))


def json(levels: LevelGraph) -> str:
    """The page without layout; `format_version` grows when a field changes its meaning."""
    made = {
        "format_version": FORMAT_VERSION,
        "system": levels.name,
        "doc": levels.doc,
        "assume": levels.assume,
        "levels": [
            {
                "number": rank.number,
                "frequency": _frequency_fields(rank.frequency),
                "components": [_component_fields(c) for c in rank.components],
            }
            for rank in levels.levels
        ],
        "edges": [asdict(e) for e in levels.edges],
        "uses": [{"faster": a, "slower": b} for a, b in levels.uses],
    }
    return dumps(made, indent=2, ensure_ascii=False) + "\n"


def _frequency_fields(f: Frequency) -> dict[str, Any]:
    per = f.per_sequence
    return {
        "times": str(f.times) if f.unit != "always" else "infinite",
        "unit": f.unit,
        "per_sequence": None if per is None else str(per),
    }


def _component_fields(c: Component) -> dict[str, Any]:
    return {
        "name": c.name,
        "level": c.level,
        "kind": c.kind,
        "clock": asdict(c.clock),
        "rounds": c.rounds,
        "resets": str(c.resets),
        "partial": c.partial,
        "serves": c.serves,
        "boxes": list(c.boxes),
        "parts": [asdict(part) | {"total": part.total} for part in c.parts],
        "doc": c.doc,
    }


def render(levels: LevelGraph, kind: str) -> bytes:
    """The picture as `svg` or `png`, through the program `dot` of Graphviz; or one of the texts, in
    UTF-8.
    """
    texts = {"dot": dot, "mermaid": mermaid, "json": json}
    if kind in texts:
        return texts[kind](levels).encode()
    if kind not in ("svg", "png"):
        raise DrawError(f"There is no picture of kind {kind}: take dot, mermaid, json, svg or png.")
    import graphviz  # slow to import, and only pictures need it

    try:
        drawn: bytes = graphviz.Source(dot(levels)).pipe(format=kind)
    except graphviz.ExecutableNotFound:
        raise DrawError(
            f"To draw {kind} the program `dot` of Graphviz is needed, and it was not found. "
            "Install Graphviz (https://graphviz.org/download), or take dot, mermaid or json."
        ) from None
    except graphviz.CalledProcessError as fault:
        said = (fault.stderr or b"").decode(errors="replace").strip()
        raise DrawError(f"The program `dot` of Graphviz could not draw this: {said}") from None
    return drawn
