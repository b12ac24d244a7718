"""Two pictures of memories of gradients, as the shipped specs run in the reference interpreter.

    python bench/draw_optimizers.py [docs]

`valley.svg`: momentum and delta momentum in the valley of (53), arXiv:2512.24695, each at its best
rate of a grid. `orthogonal_tasks.svg`: tasks whose gradients are orthogonal, one after another
((45)): what each memory still holds of the first one, and what that does to its loss.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nlc

Point = tuple[float, float]
Valley = tuple[float, float, float]
START: Point = (-3.5, 2.0)
VALLEYS = (
    (10.0, 0.5, 2.0),
    (20.0, 0.5, 3.0),
    (5.0, 1.0, 3.0),
)  # k, alpha, omega: the paper has none
KEEP = 0.9
RATES = tuple(10 ** (e / 4) for e in range(-12, -3))
ERASES = tuple(10 ** (e / 2) for e in range(-10, -3))
COLOURS = ("#5b6472", "#b5443b", "#2b68ae", "#2f7d4f", "#b8860b")
LOOK = (
    "text{font:11px Helvetica,Arial,sans-serif;fill:#1f2937}.s{font-size:10px;fill:#667085}"
    ".a{stroke:#98a2b3;fill:none}.g{stroke:#e4e7ec}.c{stroke:#c4cad4;fill:none;stroke-width:.8}"
    "polyline{fill:none;stroke-width:1.6}"
)


# ---- the valley ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Race:
    """Where one rule went, and the steps after which the loss stays below `CLOSE`."""

    rule: str
    path: tuple[Point, ...]
    losses: tuple[float, ...]
    steps: int | None


CLOSE = 1e-2


def height(valley: Valley, r: float, t: float) -> float:
    k, alpha, omega = valley
    return r**2 + k * (r - t + alpha * math.sin(omega * r)) ** 2


def race(rule: str, valley: Valley, steps: int) -> Race:
    spec = nlc.load(
        f"""nl 1
system valley(k = {valley[0]}, alpha = {valley[1]}, omega = {valley[2]}) {{
  level training every step {{ state W : matrix(2, 1); objective loss; learn {rule} }}
  flow(first[2], second[2]) {{
    r = sum(W(first))
    t = sum(W(second))
    loss = r^2 + k * (r - t + alpha * sin(omega * r))^2
    return loss
  }}
}}
"""
    )
    name = next(iter(nlc.reference(spec).values))
    truth = nlc.reference(spec, {name: torch.tensor([START], dtype=torch.float64)})
    axes = list(torch.eye(2, dtype=torch.float64).reshape(2, 1, 1, 2))
    path: list[Point] = [START]
    for _ in range(steps):
        if not height(valley, *path[-1]) <= 1e6:
            break
        truth.step(axes)
        r, t = truth.values[name][0].tolist()
        path.append((r, t))
    losses = tuple(height(valley, *p) for p in path)
    far = [i for i, x in enumerate(losses) if not x <= CLOSE]
    settled = len(losses) > steps and (not far or far[-1] < steps)
    return Race(rule, tuple(path), losses, (far[-1] + 1 if far else 0) if settled else None)


def races(
    valley: Valley = VALLEYS[0],
    steps: int = 160,
    rates: Sequence[float] = RATES,
    erases: Sequence[float] = ERASES,
) -> list[Race]:
    """Momentum and delta momentum, each with the numbers that bring it there soonest."""
    momentum = [f"momentum(rate = {r:.4f}, keep = {KEEP})" for r in rates]
    delta = [
        f"delta_momentum(rate = {r:.4f}, erase = {e:.1e}, keep = {KEEP})"
        for r, e in product(rates, erases)
    ]
    found = ([race(rule, valley, steps) for rule in rules] for rules in (momentum, delta))
    return [min(each, key=lambda x: (x.steps is None, x.steps)) for each in found]


# ---- tasks one after another ---------------------------------------------------------------------

INPUTS, OUTPUTS, TASKS, STEPS = 8, 4, 4, 40
MEMORIES = {
    "momentum, keep 0.9": "momentum(rate = 0.02, keep = 0.9)",
    "delta momentum, keep 0.9": "delta_momentum(rate = 0.02, keep = 0.9, erase = 0.02)",
    "delta momentum, keep 1": "delta_momentum(rate = 0.02, keep = 1, erase = 0.02)",
    "M3, fast": "m3(rate = 2e-2)",
    "M3, slow": "m3(rate = 2e-2)",
}


@dataclass(frozen=True)
class Life:
    """Of each step: how long what the memory holds of the first task's gradients is, by its longest
    so far; and the loss of the first task.
    """

    name: str
    held: tuple[float, ...]
    loss: tuple[float, ...]


def life(name: str, rule: str, steps: int = STEPS) -> Life:
    """Inputs of task i lie in the i-th part of the input space, so gradients of different tasks are
    orthogonal, and one matrix can solve all of them.
    """
    spec = nlc.load(
        f"""nl 1
system tasks() {{
  level training every step {{
    state W : matrix({INPUTS}, {OUTPUTS})
    objective loss
    learn {rule}
  }}
  flow(x[{INPUTS}], y[{OUTPUTS}]) {{ p = W(x); loss = sum((p - y)^2) / 2; return p }}
}}
"""
    )
    truth = nlc.reference(spec)
    (weight,) = truth.values
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(OUTPUTS, INPUTS, generator=draw, dtype=torch.float64)
    size = INPUTS // TASKS
    held, losses = [], []
    for task in range(TASKS):
        for _ in range(steps):
            x = torch.zeros(1, 16, INPUTS, dtype=torch.float64)
            part = slice(size * task, size * (task + 1))
            x[..., part] = torch.randn(1, 16, size, generator=draw, dtype=torch.float64)
            truth.step([x, x @ target.T])
            held.append(
                float(memory(truth, "slow" if name.endswith("slow") else "")[:, :size].norm())
            )
            missed = (truth.values[weight] - target)[:, :size]
            losses.append(float(missed.square().sum()) / 2)
    longest = max(held[:steps]) or 1.0
    return Life(name, tuple(h / longest for h in held), tuple(losses))


def memory(truth: Any, level: str) -> Tensor:
    """What the one optimizer of a run holds: its first state, or that of a level in it."""
    (rules,) = truth.rules.values()
    (held,) = rules.values()
    held = held.levels[level] if level else held
    made: Tensor = next(iter(held.cells.values())).value[""]
    return made


def lives(steps: int = STEPS) -> list[Life]:
    return [life(name, rule, steps) for name, rule in MEMORIES.items()]


# ---- SVG -----------------------------------------------------------------------------------------


class Panel:
    """A part of a picture with axes of its own; `log` for heights in powers of ten."""

    def __init__(
        self, box: tuple[float, float, float, float], xs: Point, ys: Point, log: bool
    ) -> None:
        self.left, self.top, self.wide, self.high = box
        self.xs, self.log = xs, log
        self.ys = (math.log10(ys[0]), math.log10(ys[1])) if log else ys
        self.lines: list[str] = []

    def at(self, x: float, y: float) -> Point:
        y = math.log10(max(y, 1e-300)) if self.log else y
        y = min(max(y, self.ys[0]), self.ys[1])
        across = (x - self.xs[0]) / (self.xs[1] - self.xs[0])
        up = (y - self.ys[0]) / (self.ys[1] - self.ys[0])
        return self.left + self.wide * across, self.top + self.high * (1 - up)

    def path(self, points: Iterable[Point], colour: str, dash: str = "") -> None:
        shown = " ".join("{:.1f},{:.1f}".format(*self.at(*p)) for p in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.lines.append(f'<polyline points="{shown}" stroke="{colour}"{dashed}/>')

    def dot(self, point: Point, colour: str, size: float = 2) -> None:
        x, y = self.at(*point)
        self.lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>')

    def say(self, x: float, y: float, text: str, look: str = "") -> None:
        self.lines.append(f'<text x="{x:.1f}" y="{y:.1f}"{look}>{escape(text)}</text>')

    def axes(
        self, title: str, below: str, ticks: Iterable[float], marks: Iterable[float] = ()
    ) -> None:
        bottom = self.top + self.high
        self.say(self.left, self.top - 12, title)
        for y in ticks:
            x0, at = self.at(self.xs[0], y)
            self.lines.append(f'<path class="g" d="M{x0:.1f} {at:.1f}h{self.wide:.1f}"/>')
            self.say(self.left - 6, at + 3, f"{y:g}", ' class="s" text-anchor="end"')
        for x in marks:
            at, _ = self.at(x, 1)
            self.lines.append(f'<path class="g" d="M{at:.1f} {self.top:.1f}v{self.high:.1f}"/>')
            self.say(at, bottom + 14, f"{x:g}", ' class="s" text-anchor="middle"')
        self.lines.append(
            f'<path class="a" d="M{self.left:.1f} {self.top:.1f}v{self.high:.1f}h{self.wide:.1f}"/>'
        )
        self.say(self.left + self.wide / 2, bottom + 30, below, ' class="s" text-anchor="middle"')

    def legend(self, names: Sequence[tuple[str, str, str]], x: float, y: float) -> None:
        for i, (name, colour, dash) in enumerate(names):
            at = y + 15 * i
            dashed = f' stroke-dasharray="{dash}"' if dash else ""
            self.lines.append(
                f'<path d="M{x:.1f} {at:.1f}h22" stroke="{colour}" stroke-width="1.8"{dashed}/>'
            )
            self.say(x + 28, at + 4, name)


def picture(title: str, notes: Sequence[str], panels: Sequence[Panel], high: float = 410) -> str:
    size = f'width="960" height="{high:g}" viewBox="0 0 960 {high:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{LOOK}</style>'
    body = [line for panel in panels for line in panel.lines]
    feet = (
        f'<text x="50" y="{high - 22 + 14 * i:g}" class="s">{escape(note)}</text>'
        for i, note in enumerate(notes)
    )
    back = '<rect width="960" height="100%" fill="white"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", back, *body, *feet, "</svg>", ""])


def contours(
    panel: Panel, valley: Valley, levels: Iterable[float], cells: int = 90
) -> Iterator[str]:
    """Lines of equal height, cell by cell: each is crossed along a straight line."""
    (x0, x1), (y0, y1) = panel.xs, panel.ys
    xs = [x0 + (x1 - x0) * i / cells for i in range(cells + 1)]
    ys = [y0 + (y1 - y0) * i / cells for i in range(cells + 1)]
    grid = [[height(valley, x, y) for y in ys] for x in xs]
    for level in levels:
        parts = []
        for i, j in product(range(cells), repeat=2):
            corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
            met = []
            for (a, b), (c, d) in zip(corners, corners[1:] + corners[:1], strict=True):
                low, top = grid[a][b] - level, grid[c][d] - level
                if (low < 0) != (top < 0):
                    s = low / (low - top)
                    met.append(panel.at(xs[a] + s * (xs[c] - xs[a]), ys[b] + s * (ys[d] - ys[b])))
            parts += [
                "M{:.1f} {:.1f}L{:.1f} {:.1f}".format(*p, *q)
                for p, q in zip(met[::2], met[1::2], strict=False)
            ]
        yield f'<path class="c" d="{"".join(parts)}"/>'


def valley_picture(found: Sequence[Race], valley: Valley = VALLEYS[0]) -> str:
    left = Panel((50, 40, 410, 290), (-4.2, 4.2), (-4, 4.4), False)
    left.axes(
        "the valley and the ways through it",
        "r (across), theta (up)",
        [-4, -2, 0, 2],
        [-4, -2, 0, 2],
    )
    left.lines += contours(left, valley, [0.1, 1, 4, 12, 30, 70, 150, 300, 600])
    steps = max(len(r.losses) for r in found) - 1
    right = Panel((530, 40, 400, 290), (0, steps), (1e-5, 1e3), True)
    right.axes(
        "height above the bottom", "step", [10**e for e in range(-4, 4, 2)], range(0, steps + 1, 40)
    )
    right.path([(0, CLOSE), (steps, CLOSE)], "#98a2b3", "2 3")
    names = []
    for r, colour in zip(found, (COLOURS[0], COLOURS[1]), strict=True):
        left.path(r.path, colour)
        for p in r.path:
            left.dot(p, colour, 1.6)
        right.path(enumerate(r.losses), colour)
        done = f"{r.steps} steps" if r.steps is not None else "not there"
        names.append((f"{r.rule}: {done}", colour, ""))
    left.dot(START, "#1f2937", 4)
    left.dot((0, 0), "#1f2937", 3)
    right.legend(names, 540, 56)
    k, alpha, omega = valley
    notes = (
        f"(53), arXiv:2512.24695: k = {k:g}, alpha = {alpha:g}, omega = {omega:g}, from (-3.5, 2). "
        f"Steps until the height stays below {CLOSE:g}.",
        "Rates, and how much is erased, are the best of a grid for each.",
    )
    return picture("Momentum and delta momentum in the valley of (53)", notes, [left, right])


def tasks_picture(found: Sequence[Life]) -> str:
    steps = len(found[0].held)
    bounds = range(0, steps + 1, steps // TASKS)
    left = Panel((60, 40, 400, 290), (0, steps), (1e-5, 2), True)
    left.axes(
        "held of the first task's gradients (1: at its most)",
        "step; a task ends at each line",
        [10**e for e in range(-5, 1)],
        bounds,
    )
    right = Panel((530, 40, 400, 290), (0, steps), (1e-4, 1e3), True)
    right.axes(
        "loss of the first task",
        "step; a task ends at each line",
        [10**e for e in range(-4, 4)],
        bounds,
    )
    names = []
    for one, colour in zip(found, COLOURS, strict=False):
        left.path(enumerate(one.held, 1), colour)
        names.append((one.name, colour, ""))
        if one.name != "M3, slow":  # one weight has both
            right.path(enumerate(one.loss, 1), colour)
    left.legend(names, 76, 250)
    rules = list(dict.fromkeys(MEMORIES.values()))
    notes = (
        f"(45), arXiv:2512.24695: {TASKS} tasks of orthogonal gradients, one after another; one "
        "matrix can solve all of them.",
        "; ".join(rules),
    )
    return picture("Tasks one after another: which memory forgets", notes, [left, right])


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    found = {valley: races(valley) for valley in VALLEYS}
    for valley, each in found.items():
        for one in each:
            print(f"k, alpha, omega = {valley}: {one.rule}: {one.steps} steps")
    pictures = {
        "valley": valley_picture(found[VALLEYS[0]]),
        "orthogonal_tasks": tasks_picture(lives()),
    }
    for name, text in pictures.items():
        (folder / f"{name}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
