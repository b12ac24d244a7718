"""A small system around what a file without one declares, so that its nesting can be looked at.

In: a checked file of memories and optimizers, and settings for them. Out: a checked spec in which
each optimizer serves one matrix on steps (or one vector, if it serves no matrix), and each memory
is called at every token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .diagnostics import Diagnostic
from .driver import Checked, Spec, SpecError, check_text
from .syntax import Memory, Optimizer
from .system import Box
from .text import Span

SERVED = {"matrix(4, 8)": "{W}({x})", "vector(8)": "{W} * sum({x})"}  # form -> how it is read


def around(checked: Checked, settings: Mapping[str, Any] | None = None) -> Spec:
    """The file with a system after it; each of the settings goes to all that have it."""
    if checked.errors or checked.syntax is None:
        raise SpecError(checked.diagnostics)
    folder = Path(checked.source.name).parent
    boxes = {b.name: b for b in checked.alone}
    items = [d for d in checked.syntax.items if isinstance(d, Memory | Optimizer)]
    found = [d for d in items if d.name.id in boxes]
    given = dict(settings or {})
    for form in SERVED if found else ():
        system = _Around(checked, form).system(found, boxes, given)
        text = f"{checked.source.text.rstrip()}\n\n{system}"
        made = check_text(text, checked.source.name, folder)
        if not made.errors and made.system is not None:
            return Spec(made)
    help = "add `system name() { .. }`, with a level that uses what this file declares"
    where = Span(checked.source, 0, 0)
    raise SpecError((Diagnostic("NL308", "this file declares no system", where, help),))


def _has(item: Memory | Optimizer, setting: str) -> bool:
    return any(p.name.id == setting and p.default is not None for p in item.params)


class _Around:
    """Writes the system, with names that the file has not."""

    def __init__(self, checked: Checked, form: str) -> None:
        self.taken = set(re.findall(r"\w+", checked.source.text))
        name = re.sub(r"\W", "_", Path(checked.source.name).stem)
        self.name = self.free(name if name[:1].isalpha() else f"nl_{name}")
        self.form = form
        self.levels: list[str] = []
        self.inputs: list[str] = []
        self.answers: list[str] = []
        self.losses: list[str] = []

    def free(self, wish: str) -> str:
        while wish in self.taken:
            wish += "_"
        self.taken.add(wish)
        return wish

    def system(
        self,
        found: list[Memory | Optimizer],
        boxes: Mapping[str, Box],
        settings: Mapping[str, Any],
    ) -> str:
        optimizers = [d for d in found if isinstance(d, Optimizer)]
        x, y = (self.free(n) for n in "xy") if optimizers else ("", "")
        self.inputs += [f"{x}[4]", f"{y}[8]"] if optimizers else []
        for d in found:
            given = [f"{n} = {_number(v)}" for n, v in settings.items() if _has(d, n)]
            if isinstance(d, Optimizer):
                self.optimizer(d.name.id, given, x, y, len(optimizers) > 1)
            else:
                self.memory(boxes[d.name.id], given)
        lines = [*self.answers, f"loss = {' + '.join(self.losses)}"]
        lines.append(f"return {self.answers[0].partition(' ')[0]}")
        flow = "".join(f"    {line}\n" for line in lines)
        head = (
            f"system {self.name}() {{\n{''.join(self.levels)}  flow({', '.join(self.inputs)}) {{\n"
        )
        return f"{head}{flow}  }}\n}}\n"

    def optimizer(self, rule: str, given: list[str], x: str, y: str, several: bool) -> None:
        level = self.free(f"W_{rule}" if several else "W")
        W, a = self.free("array"), self.free("a")
        read = SERVED[self.form].format(W=W, x=x)
        learn = f"learn {rule}({', '.join(given)})"
        self.levels.append(
            f"  level {level}({x}) every step {{ state {W} : {self.form}; objective loss; {learn}; "
            f"read {read} }}\n"
        )
        self.answers.append(f"{a} = {level}({x})")
        self.losses.append(f"sum(({a} - {y})^2)")

    def memory(self, box: Box, given: list[str]) -> None:
        level, a = self.free(f"{box.name}_level"), self.free("a")
        names = {n: self.free(n) for n, _ in box.inputs}
        self.inputs += [f"{names[n]}{list(s) if s else ''}" for n, s in box.inputs]
        streams = ", ".join(names.values())
        call = ", ".join([*(f"{n} = {names[n]}" for n in names), *given])
        clock = "always" if box.exact else "every token"
        self.levels.append(f"  level {level}({streams}) {clock} {{ read {box.name}({call}) }}\n")
        self.answers.append(f"{a} = {level}({streams})")
        self.losses.append(f"sum({a})")


def _number(value: Any) -> str:
    """A number, or a list of numbers, as the language writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value))}]"
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


__all__ = ["around"]
