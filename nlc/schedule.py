"""Who updates when: a table of all components, and a timeline as text or SVG.

In: a `System`. Out: `Schedule`; `str(schedule)` is the table and the timeline, `schedule.svg()` a
picture.

One stream of tokens is shown, from a reset on. A sequence ends where `assume` (or `sequence=`)
says; a step is one sequence of this stream unless `step=` says how many. Where nothing changes more
often than once a step, and no length is said, steps are shown. Firings are ranges of ticks, never
lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from .levels import Component, Frequency
from .order import order
from .system import Clock, System

COLUMNS = 64  # of the timeline as text
MARKS = {"█": "at every {}", "▓": "more than once", "●": "once", "◐": "early, by partial flush"}
MARKS |= {"↺": "reset", "·": "not"}
NO_SEQUENCE = (
    "how long a sequence is was not said: firings by sequence, step and task are not shown"
)


@dataclass(frozen=True, slots=True)
class Lane:
    """The ticks at which one component fires, flushes (fires early, for a reset) and is reset."""

    fires: tuple[range, ...] = ()
    flushes: tuple[int, ...] = ()
    resets: range = range(0)

    @property
    def ticks(self) -> Iterator[int]:
        """All firings."""
        for r in self.fires:
            yield from r
        yield from self.flushes


@dataclass(frozen=True, slots=True)
class Row:
    """One component. `turn`: its place among those that fire at one tick, the fastest first."""

    turn: int
    level: int
    name: str
    boxes: tuple[str, ...]
    clock: str
    first: str
    fires: str
    resets: str
    writes: str
    lane: Lane

    @property
    def cells(self) -> tuple[str, ...]:
        boxes = _cut(", ".join(self.boxes), 28)
        return (
            *(str(self.turn), str(self.level), self.name, boxes, self.clock),
            *(self.first, self.fires, self.resets, self.writes),
        )


HEADS = ("turn", "level", "name", "boxes", "clock", "first", "fires", "resets", "writes")


@dataclass(frozen=True, slots=True)
class Schedule:
    """All rows, the fastest first, over `ticks` tokens (or what else `unit` says)."""

    name: str
    rows: tuple[Row, ...]
    ticks: int
    sequence: int | None
    unit: str = "token"

    def __str__(self) -> str:
        return f"{self.table()}\n{self.timeline()}"

    def table(self) -> str:
        """Plain text, one line a component."""
        cells = [HEADS, *(row.cells for row in self.rows)]
        wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, wide, strict=True)) for line in cells]
        lines.insert(1, "  ".join("-" * w for w in wide))
        return "".join(line.rstrip() + "\n" for line in lines)

    def timeline(self, columns: int = COLUMNS) -> str:
        """Plain text: one line a component, one column a tick or a run of ticks."""
        each = -(-self.ticks // columns)
        shown = -(-self.ticks // each)
        wide = max([len(row.name) for row in self.rows], default=0)
        end = f"{self.ticks:,} {self.unit}s"
        lines = [f"{'':{wide}}  1{end:>{max(shown - 1, len(end) + 1)}}"]
        for row in self.rows:
            lines.append(f"{row.name:{wide}}  {_marks(row.lane, each, self.ticks)}")
            resets = _reset_marks(row.lane, each, self.ticks)
            if resets.strip():
                lines.append(f"{'':{wide}}  {resets}")
        if each > 1:
            lines.append(f"{'':{wide}}  one column is {each:,} {self.unit}s")
        marks = {mark: says.format(self.unit) for mark, says in MARKS.items()}
        notes = [f"{mark} {says}" for mark, says in marks.items() if any(mark in l for l in lines)]
        lines.append(f"{'':{wide}}  {'   '.join(notes)}")
        if self.sequence is None and self.unit == "token":
            lines.append(f"{'':{wide}}  {NO_SEQUENCE}")
        return "".join(line.rstrip() + "\n" for line in lines)

    def svg(self) -> str:
        """A picture, 960 points wide."""
        return _Picture(self).text()


def schedule(
    system: System, ticks: int | None = None, sequence: int | None = None, step: int = 1
) -> Schedule:
    """When the components of a system fire in the first `ticks` tokens (default: one sequence)."""
    levels = order(system)
    sequence = sequence or system.assume
    units = {c.clock.unit for c in levels.components}
    counted = "step" if sequence is None and units <= {"step", "never"} else "token"
    shown = ticks or sequence or _enough(levels.components, counted)
    rows = []
    for turn, rank in enumerate(reversed(levels.levels), 1):
        for c in rank.components:
            unit, resets = (_unit(clock, counted, sequence, step) for clock in (c.clock, c.resets))
            lane = lane_of(c, shown, unit, resets)
            rows.append(
                Row(
                    turn,
                    rank.number,
                    c.name,
                    c.boxes,
                    c.cadence,
                    _first(c),
                    _fires(c, sequence),
                    str(c.resets),
                    _writes(c),
                    lane,
                )
            )
    return Schedule(system.name, tuple(rows), shown, sequence, counted)


def _enough(components: tuple[Component, ...], counted: str) -> int:
    """Two of the longest periods in tokens, or in steps."""
    periods = [c.clock.period for c in components if c.clock.unit == counted]
    return max(16, min(2 * max(periods, default=8), 65536))


def _unit(clock: Clock, counted: str, sequence: int | None, step: int) -> int | None:
    """How many tokens (or steps) one tick of a clock's unit is; None if that is not known."""
    if clock.unit == counted:
        return 1
    if clock.unit in ("sequence", "step") and sequence is not None:
        return sequence * (step if clock.unit == "step" else 1)
    return None


def _ticks(clock: Clock, unit: int | None, start: int, end: int) -> range:
    """The tokens from `start` to `end` at which a clock fires that counts from `start`."""
    if unit is None:
        return range(0)
    base = start // unit * unit  # a sequence in which the count begins is counted
    return range(base + unit * clock.first, end + 1, unit * clock.period)


def lane_of(c: Component, ticks: int, unit: int | None, reset_unit: int | None) -> Lane:
    """When a component fires and is reset; the due fire first, then are reset (2.7.3)."""
    if c.clock.unit == "always":
        return Lane((range(1, ticks + 1),))
    resets = _ticks(c.resets, reset_unit, 0, ticks)
    fires, flushes = [], []
    for start, end in pairwise(dict.fromkeys((0, *resets, ticks))):
        due = _ticks(c.clock, unit, start, end)
        if due:
            fires.append(due)
        if c.partial == "flush" and end in resets and (not due or due[-1] != end):
            flushes.append(end)
    return Lane(tuple(fires), tuple(flushes), resets)


# ---- words ---------------------------------------------------------------------------------------


def _first(c: Component) -> str:
    if c.clock.unit in ("always", "never"):
        return {"always": "every read", "never": "never"}[c.clock.unit]
    return f"{c.clock.unit} {c.clock.first:,}"


def _fires(c: Component, sequence: int | None) -> str:
    """How often in one sequence, where that is a number; else in one unit of its clock."""
    each_sequence = c.resets == Clock("sequence")
    if c.clock.unit == "token" and sequence is not None:
        if each_sequence or (c.resets.unit == "token" and sequence % c.resets.period == 0):
            lane = lane_of(c, sequence, 1, 1 if c.resets.unit == "token" else sequence)
            count = sum(map(len, lane.fires)) + len(lane.flushes)
            return f"{count * c.rounds:,} per sequence"
        return f"{c.frequency.times * sequence} per sequence"
    return str(Frequency(c.frequency.times, c.frequency.unit)).split(" (")[0]


def _writes(c: Component) -> str:
    if c.clock.unit in ("always", "never"):
        return {"always": "solved at each read", "never": "never"}[c.clock.unit]
    if c.kind == "iteration":
        return f"inside a firing of {c.serves}"
    if c.serves is not None:
        return f"with {c.serves}"
    if not c.at_call:
        return "at the end of the tick, read old"
    return f"at its call, read {'new' if c.reads_new else 'old'}"


def _cut(text: str, wide: int) -> str:
    return text if len(text) <= wide else text[: wide - 2] + ".."


# ---- the timeline as text ------------------------------------------------------------------------


def _marks(lane: Lane, each: int, ticks: int) -> str:
    columns = [0] * -(-ticks // each)
    for tick in lane.ticks:
        columns[(tick - 1) // each] += 1
    flushed = {(tick - 1) // each for tick in lane.flushes}
    widths = [min(each, ticks - i * each) for i in range(len(columns))]
    return "".join(
        _mark(n, w, i in flushed) for i, (n, w) in enumerate(zip(columns, widths, strict=True))
    )


def _mark(fires: int, ticks: int, flushed: bool) -> str:
    if fires == ticks > 1 and not flushed:
        return "█"
    if fires == 1:
        return "◐" if flushed else "●"
    return "▓" if fires else "·"


def _reset_marks(lane: Lane, each: int, ticks: int) -> str:
    """Blank, if there is no reset before the end."""
    found = {(tick - 1) // each for tick in lane.resets if tick < ticks}
    return "".join("↺" if i in found else " " for i in range(-(-ticks // each)))


# ---- the timeline as a picture -------------------------------------------------------------------

LEFT, WIDE, HIGH, TOP = 230.0, 700.0, 30.0, 40.0
DENSE = 2.5  # points between ticks, below which they become a bar
LOOK = (
    "text{font:11px Helvetica,Arial,sans-serif;fill:#1f2937}.s{font-size:9px;fill:#667085}"
    ".f{stroke:#2b68ae;stroke-width:1.4}.b{fill:#2b68ae;opacity:.55}.u{stroke:#b5443b;"
    "stroke-width:1.4}.r{fill:none;stroke:#b5443b}.a{stroke:#c4cad4}"
)


class _Picture:
    """Writes the SVG; places are in points."""

    def __init__(self, made: Schedule) -> None:
        self.made = made
        self.lines: list[str] = []

    def text(self) -> str:
        rows = self.made.rows
        high = TOP + HIGH * len(rows) + 34
        self._axis(high)
        for i, row in enumerate(rows):
            self._row(row, TOP + HIGH * i, i)
        says = "bar or stroke: a firing; red stroke: early, by partial flush; red ring: a reset"
        self._say(LEFT, high - 8, says)
        size = f'width="960" height="{high:g}" viewBox="0 0 960 {high:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{LOOK}</style>'
        title = f"<title>{escape(self.made.name)}: who updates when</title>"
        back = '<rect width="960" height="100%" fill="white"/>'
        return "\n".join([head, title, back, *self.lines, "</svg>", ""])

    def x(self, tick: float) -> float:
        return LEFT + WIDE * tick / self.made.ticks

    def _say(self, x: float, y: float, text: str, small: bool = True, anchor: str = "") -> None:
        look = ' class="s"' * small + (f' text-anchor="{anchor}"' if anchor else "")
        self.lines.append(f'<text x="{x:.1f}" y="{y:.1f}"{look}>{escape(text)}</text>')

    def _axis(self, high: float) -> None:
        for part in range(5):
            tick = self.made.ticks * part // 4
            x = self.x(tick)
            self.lines.append(f'<path class="a" d="M{x:.1f} {TOP - 6:g}V{high - 26:g}"/>')
            self._say(
                x, TOP - 12, f"{tick:,}" + f" {self.made.unit}s" * (part == 4), anchor="middle"
            )

    def _row(self, row: Row, y: float, number: int) -> None:
        if number % 2 == 0:
            self.lines.append(
                f'<rect y="{y:g}" width="960" height="{HIGH:g}" fill="#eef1f6" opacity=".5"/>'
            )
        self._say(12, y + 13, row.name, small=False)
        self._say(12, y + 25, f"level {row.level}, {row.clock}")
        for ticks in row.lane.fires:
            self._fires(ticks, y)
        for tick in row.lane.flushes:
            self.lines.append(self._stroke("u", [tick], y))
        for tick in row.lane.resets:
            self.lines.append(f'<circle class="r" cx="{self.x(tick):.1f}" cy="{y + 26:g}" r="2"/>')

    def _fires(self, ticks: range, y: float) -> None:
        if WIDE * ticks.step / self.made.ticks < DENSE and len(ticks) > 1:
            a, b = self.x(ticks[0] - 1), self.x(ticks[-1])
            size = f'width="{b - a:.1f}" height="{HIGH - 14:g}"'
            self.lines.append(f'<rect class="b" x="{a:.1f}" y="{y + 6:g}" {size}/>')
        elif ticks:
            self.lines.append(self._stroke("f", ticks, y))

    def _stroke(self, look: str, ticks: range | list[int], y: float) -> str:
        path = "".join(f"M{self.x(t):.1f} {y + 6:g}v{HIGH - 14:g}" for t in ticks)
        return f'<path class="{look}" d="{path}"/>'
