"""Where the boxes and lines of a level graph's picture stand.

In: a `LevelGraph`. Out: `Page`: a place for each component, the buses that join them, the corners
of each line.

Levels are bands, the slowest on top. What the flow and the optimizers hand on runs straight between
neighbours, or left of the boxes; declared transfers run on the right. Edges of one kind with one
end in common share a line, a bus, so that sixty gradients to one level are one line with sixty
ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .levels import Component, Edge, LevelGraph, Part, Rank

SHOWN = 8  # parts of one box
WIDE = 900.0  # boxes of one level go on in a new row here
TEXT, HEAD = 9.0, 11.0  # sizes of letters
STEP, PAD, BETWEEN, STUB = 13.0, 14.0, 8.0, 11.0  # lines of text, bands, lines that end in one box
BESIDE, LANE, GAP = 28.0, 11.0, 10.0  # between boxes, lines, columns of text

Point = tuple[float, float]
Names = tuple[str, ...]


# ---- places --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Place:
    """A box, in points from the upper left. `ports`: the lines that end at its sides."""

    component: Component
    row: int
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0
    last: bool = True  # in its row
    ports: dict[tuple[Bus, bool], float] = field(default_factory=dict)

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height


@dataclass(frozen=True, slots=True)
class Bus:
    """Edges of one kind and label on one line: each source with each other target."""

    kind: str
    says: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]

    @property
    def right(self) -> bool:
        return self.kind not in ("flow", "carried", "gradient")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(a, b) for a in self.sources for b in self.targets if a != b]

    @property
    def stubs(self) -> list[tuple[str, bool]]:
        """Its ends: a box, and whether the line leaves it."""
        return [(a, True) for a in self.sources] + [(b, False) for b in self.targets]


def style_of(edge: Edge) -> str:
    return "carried" if edge.carried else edge.kind


def _buses(edges: Iterable[Edge]) -> list[Bus]:
    """Few lines that together are all edges: of one source, of one target, or of all with all."""
    kinds: dict[tuple[str, str], dict[tuple[str, str], None]] = defaultdict(dict)
    for e in edges:
        kinds[style_of(e), label(e)][e.source, e.target] = None
    found = []
    for (kind, says), pairs in kinds.items():
        by_source = _shared(pairs)
        by_target = [(b, a) for a, b in _shared((b, a) for a, b in pairs)]
        fewer = min(by_source, by_target, key=len)
        found += [Bus(kind, says, sources, targets) for sources, targets in fewer]
    return found


def _shared(pairs: Iterable[tuple[str, str]]) -> list[tuple[Names, Names]]:
    """Sources with the same targets, and these; in a ring of three or more, the others."""
    targets: dict[str, list[str]] = defaultdict(list)
    for a, b in pairs:
        targets[a].append(b)
    rings: dict[frozenset[str], list[str]] = defaultdict(list)
    for a, bs in targets.items():
        rings[frozenset((a, *bs))].append(a)
    groups: dict[frozenset[str], list[str]] = defaultdict(list)
    for ring, members in rings.items():
        for a in members:
            groups[ring if len(members) > 2 else frozenset(targets[a])].append(a)
    found = []
    for members in groups.values():
        every = dict.fromkeys(b for a in members for b in targets[a])
        found.append((tuple(members), tuple(every)))
    return found


class Page:
    """Where everything stands."""

    def __init__(self, levels: LevelGraph) -> None:
        self.levels = levels
        self.places: dict[str, Place] = {}
        self.rows: list[list[Place]] = []
        self.ranks: list[Rank] = []  # of each row
        self._fill_rows()
        buses = _buses(levels.edges)
        self.straight = [bus for bus in buses if self._neighbours(bus)]
        self.buses = [bus for bus in buses if bus not in self.straight]
        self.lanes = self._lanes(True) | self._lanes(False)
        self._make_room()
        self._put()

    def _fill_rows(self) -> None:
        for rank in self.levels.levels:
            row: list[Place] = []
            for c in rank.components:
                place = Place(c, 0, *_extent(c))
                if row and sum(p.width + BESIDE for p in row) + place.width > WIDE:
                    self._row(row, rank)
                    row = []
                row.append(place)
            self._row(row, rank)

    def _row(self, row: list[Place], rank: Rank) -> None:
        for place in row:
            place.row, place.last = len(self.rows), place is row[-1]
            self.places[place.component.name] = place
        self.rows.append(row)
        self.ranks.append(rank)

    def _neighbours(self, bus: Bus) -> bool:
        """Whether a line can go straight: to the next box, or from a row's first box to the
        next's.
        """
        if bus.right or len(bus.pairs) > 1:
            return False
        a, b = (self.places[name] for name in bus.pairs[0])
        rows = self.rows[a.row], self.rows[b.row]
        if a.row == b.row:
            return abs(rows[0].index(a) - rows[0].index(b)) == 1
        return abs(a.row - b.row) == 1 and a is rows[0][0] and b is rows[1][0]

    def _lanes(self, right: bool) -> dict[Bus, int]:
        """The shortest lines innermost; two share a lane if they do not meet."""
        lanes: dict[Bus, int] = {}
        taken: list[list[tuple[int, int]]] = []
        spans = {bus: self._span(bus) for bus in self.buses if bus.right == right}
        for bus in sorted(spans, key=lambda bus: spans[bus][1] - spans[bus][0]):
            first, last = spans[bus]
            free = (i for i, t in enumerate(taken) if all(b < first or last < a for a, b in t))
            lanes[bus] = lane = next(free, len(taken))
            taken[lane:] = taken[lane:] or [[]]
            taken[lane].append((first, last))
        return lanes

    def _span(self, bus: Bus) -> tuple[int, int]:
        rows = [self.places[name].row for name, _ in bus.stubs]
        return min(rows), max(rows)

    def _make_room(self) -> None:
        """Ports, in an order in which few lines of a box cross; boxes grow until all have room."""
        stubs: dict[tuple[str, bool], list[tuple[tuple[int, int], int, bool]]] = defaultdict(list)
        for i, bus in enumerate(self.buses):
            for name, leaves in bus.stubs:
                stubs[name, bus.right].append((self._turn(bus, name), i, leaves))
        for (name, _), found in stubs.items():
            place = self.places[name]
            place.height = max(place.height, STUB * (len(found) + 1))
            for n, (_, i, leaves) in enumerate(sorted(found), 1):
                place.ports[self.buses[i], leaves] = n / (len(found) + 1)

    def _turn(self, bus: Bus, name: str) -> tuple[int, int]:
        """Lines that go up leave above those that go down; of the former the inner first."""
        row, lane = self.places[name].row, self.lanes[bus]
        first, last = self._span(bus)
        return (0, lane) if last - row < row - first else (1, -lane)

    def _put(self) -> None:
        said = [width_of(bus.says, 8) + 12 for bus in self.buses if bus.right and bus.says]
        heads = [width_of(line, TEXT) for rank in self.ranks for line in frequency_lines(rank)]
        lanes = [
            1 + max((n for b, n in self.lanes.items() if b.right == r), default=-1)
            for r in (True, False)
        ]
        self.left = PAD + max([60.0, *heads]) + 16
        start = self.left + LANE * lanes[1] + 16
        y = 0.0
        self.bands: list[tuple[Rank, float, float]] = []
        for row, rank in zip(self.rows, self.ranks, strict=True):
            fresh = not self.bands or self.bands[-1][0] is not rank
            top = y + (BETWEEN if fresh and self.bands else 0)
            x, y = start, top + PAD if fresh else top
            for place in row:
                place.x, place.y = x, y
                x = place.right + BESIDE
            y += max(p.height for p in row) + self._corridor(row) + PAD
            self.bands[len(self.bands) - (not fresh) :] = [
                (rank, top if fresh else self.bands[-1][1], y)
            ]
        edge = max(place.right for place in self.places.values()) if self.places else start
        self.lane0 = edge + 12 + max([4.0, *said])
        self.width = self.lane0 + LANE * max(lanes[0] - 1, 0) + PAD
        self.height = y

    @property
    def kinds(self) -> set[str]:
        return {style_of(e) for e in self.levels.edges}

    def _corridor(self, row: Sequence[Place]) -> float:
        """Room below a row, for lines that pass the boxes beside theirs."""
        return STUB * len(self._passing(row))

    def _passing(self, row: Sequence[Place]) -> dict[Bus, list[tuple[str, bool]]]:
        """The lines that pass below a row; of each the end farthest from its lane first."""
        passing: dict[Bus, list[tuple[str, bool]]] = defaultdict(list)
        for place in row:
            for bus, leaves in place.ports:
                if place is not (row[-1] if bus.right else row[0]):
                    passing[bus].append((place.component.name, leaves))
        return {bus: ends if bus.right else ends[::-1] for bus, ends in passing.items()}

    # ---- lines ----

    def lane(self, bus: Bus) -> float:
        return (
            self.lane0 + LANE * self.lanes[bus] if bus.right else self.left + LANE * self.lanes[bus]
        )

    def way(self, bus: Bus, name: str, leaves: bool) -> list[Point]:
        """From a box to the bus's lane, beside the other boxes of its row or below them."""
        place = self.places[name]
        share, lane = place.ports[bus, leaves], self.lane(bus)
        passing = self._passing(self.rows[place.row])
        if (name, leaves) not in passing.get(bus, ()):
            y = place.y + place.height * share
            return [(place.right if bus.right else place.x, y), (lane, y)]
        low = max(p.bottom for p in self.rows[place.row])
        x, y = place.x + place.width * share, low + STUB * (list(passing).index(bus) + 1)
        return [(x, place.bottom), (x, y), (lane, y)]

    def joins(self, bus: Bus, name: str, leaves: bool) -> bool:
        """Whether another end of the bus, farther from the lane, comes by below this box."""
        ends = self._passing(self.rows[self.places[name].row]).get(bus, [])
        return (name, leaves) in ends and ends[0] != (name, leaves)


# ---- what is written, and how wide it is ---------------------------------------------------------


def cells_of(c: Component) -> list[tuple[str, str, str]]:
    cells = [(p.name, p.form, size(p)) for p in c.parts[:SHOWN]]
    if len(c.parts) > SHOWN:
        rest = c.parts[SHOWN:]
        cells.append((f"and {len(rest)} more", "", f"{sum(p.total for p in rest):,}"))
    return cells


def _columns(c: Component) -> list[float]:
    return [
        max(width_of(text, TEXT) for text in column) for column in zip(*cells_of(c), strict=True)
    ]


def _extent(c: Component) -> tuple[float, float]:
    heads = max(width_of(title(c), HEAD) * 1.08, width_of(c.cadence, TEXT))
    width = max(heads, sum(_columns(c)) + 2 * GAP, 80.0) + 26
    return width, 36 + STEP * len(cells_of(c))


def frequency_lines(rank: Rank) -> list[str]:
    cadences = list(dict.fromkeys(c.cadence for c in rank.components))
    return [cadences[0], *str(rank.frequency).split(", ")]


def width_of(text: str, points: float) -> float:
    """Of a text in Helvetica, and a little more."""
    return sum(_WIDTHS.get(c, 1.0 if ord(c) > 0x2000 else 0.6) for c in text) * points * 1.04


_WIDTHS = {
    c: width
    for letters, width in (
        ("ijl'", 0.22),
        ("ft.,:;/I[]| !", 0.28),
        ("r()-`", 0.34),
        ("cksvxyzJ*", 0.5),
        ("abdeghnopqu0123456789_L?", 0.56),
        ("ABEFKPSTVXYZ&", 0.67),
        ("CDGHNOQRUw", 0.76),
        ("mMW%", 0.9),
    )
    for c in letters
}


def clean(text: str) -> str:
    """Without control characters; a line end is a space."""
    return "".join(c if c.isprintable() else " " for c in text)


def title(c: Component) -> str:
    """A component's name as a picture shows it."""
    if c.serves is None:
        return clean(c.name)
    return clean(f"{c.name.removeprefix(c.serves + '.')} of {c.serves}")


def size(part: Part) -> str:
    """How many numbers, as one head of one copy has them, and how many of those."""
    times = [
        f" x{n} {word}" for n, word in ((part.heads, "heads"), (part.copies, "copies")) if n > 1
    ]
    return f"{part.numbers:,}{''.join(times)}"


def label(edge: Edge) -> str:
    """What an arrow says besides its kind."""
    states = [s for s in (edge.source_state, edge.state) if s]
    words = [" to ".join(states) if edge.source_state else f"to {edge.state}"] if states else []
    if edge.truncate is not None:
        words.append(f"through {edge.truncate:,} tokens")
    if edge.first_order:
        words.append("first order")
    return ", ".join(words)
