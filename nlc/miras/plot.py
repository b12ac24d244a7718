"""STAGE: scores -> a picture (SVG): a line for each memory, a dot for each seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from .ranking import middle, percent
from .tasks import Task

LEFT, WIDTH, ROW, TOP, RIGHT = 300, 420, 22, 46, 70


def plot(task: Task, shares: Mapping[str, Sequence[float]]) -> str:
    """The share of right answers, best first; a dashed line where a guess would be."""
    names = sorted(shares, key=lambda n: -middle(shares[n]))
    height = TOP + ROW * len(names) + 30
    whole = LEFT + WIDTH + RIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {height}" width="{whole}" '
        f'height="{height}" font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(task.name)}: {escape(task.words)}</title>",
        f'<rect width="{whole}" height="{height}" fill="white"/>',
        text(10, 20, f"{task.name}: {task.words}", "14"),
        *axis(height, task.chance),
    ]
    for i, name in enumerate(names):
        lines += one(name, shares[name], TOP + ROW * i + ROW // 2)
    return "\n".join([*lines, "</svg>"]) + "\n"


def axis(height: int, chance: float) -> list[str]:
    made = []
    for tenth in range(0, 11, 2):
        x = at(tenth / 10)
        made.append(f'<path d="M{x} {TOP}V{height - 24}" stroke="#ddd"/>')
        made.append(text(x, height - 8, f"{tenth * 10}%", anchor="middle"))
    made.append(
        f'<path d="M{at(chance)} {TOP}V{height - 24}" stroke="#b00" stroke-dasharray="4 3">'
        "<title>a guess</title></path>"
    )
    return made


def one(name: str, shares: Sequence[float], y: int) -> list[str]:
    real = [s for s in shares if not math.isnan(s)]
    made = [text(LEFT - 10, y + 4, name, anchor="end")]
    if real:
        made.append(
            f'<path d="M{at(min(real))} {y}H{at(max(real))}" stroke="#369" stroke-width="3"/>'
        )
        made += [f'<circle cx="{at(s)}" cy="{y}" r="4" fill="#369"/>' for s in real]
    return [*made, text(LEFT + WIDTH + 10, y + 4, percent(middle(shares)))]


def at(share: float) -> str:
    return f"{LEFT + WIDTH * share:.1f}"


def text(x: float | str, y: float, said: str, size: str = "12", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}">{escape(said)}</text>'
