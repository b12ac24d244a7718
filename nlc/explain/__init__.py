"""What a spec comes to, in words: its levels, the rules derived for them, what crosses, the costs.

In: a checked spec, or a checked file of memories and optimizers. Out: a page as text, its
derivations as LaTeX, or both as JSON. Terms are written as the language writes them; `x'` is a
transpose, so `e k'` is an outer product, and L is the objective.
"""

from __future__ import annotations

import json
from typing import Any

from ..driver import Checked, Spec
from ..syntax import Memory
from ..system import Box, System
from .boxes import blocks, box_latex, box_text, signature
from .lines import INDENT
from .optimizers import optimizer_lines
from .systems import optimizers, system_text

FORMS = ("text", "latex", "json")


def explain(subject: Spec | Checked, form: str = "text") -> str:
    """The page of a system, or of the memories and optimizers of a file that declares no system."""
    checked = subject.checked if isinstance(subject, Spec) else subject
    system = checked.system
    if form == "text":
        if system is None:
            return "\n".join(_alone(checked)) + "\n"
        return "\n".join(system_text(Spec(checked))) + "\n"
    boxes = _boxes(checked)
    if form == "latex":
        found = dict.fromkeys("\n".join(box_latex(b, system)) for b in boxes)
        return "\n\n".join(found) + "\n"
    data = {"name": system.name if system else "", "boxes": _data(boxes, system)}
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _boxes(checked: Checked) -> list[Box]:
    """Those that learn something, and the optimizers in use."""
    if checked.system is None:
        return list(checked.alone)
    kept = [b for b in checked.system.boxes if b.states]
    return [*kept, *optimizers(checked.system).values()]


def _data(boxes: list[Box], system: System | None) -> list[dict[str, Any]]:
    """Each box once: lines with a label, in plain text and in LaTeX."""
    found: dict[str, dict[str, Any]] = {}
    for box in boxes:
        made = [
            {
                "heading": heading,
                "lines": [
                    {"label": a.label, "text": a.text, "latex": b.text, "words": a.words}
                    for a, b in zip(rows, tex, strict=True)
                ],
            }
            for (heading, rows), (_, tex) in zip(
                blocks(box, system), blocks(box, system, True), strict=True
            )
        ]
        data = {"box": signature(box), "cites": list(box.cites), "parts": made}
        found.setdefault(json.dumps(data, sort_keys=True), data)
    return list(found.values())


def _alone(checked: Checked) -> list[str]:
    """Each memory and optimizer on inputs of example sizes."""
    out: list[str] = []
    for box in checked.alone:
        out += ["", signature(box)] if out else [signature(box)]
        out += [INDENT + line for line in (*box.doc.splitlines(), *box.cites)]
        out += optimizer_lines(box) if box.kind == "optimizer" else box_text(box)
    return out or [_nothing(checked)]


def _nothing(checked: Checked) -> str:
    items = checked.syntax.items if checked.syntax is not None else ()
    named = [f"`{i.name.id}`" for i in items if isinstance(i, Memory)]
    if not named:
        return "nothing to explain: this file declares no memory, no optimizer and no system"
    fit = "fits" if len(named) == 1 else "fit"
    advice = "give the inputs sizes, or call it in a system"
    return f"nothing to explain: {', '.join(named)} {fit} no example sizes; {advice}"


__all__ = ["FORMS", "explain"]
