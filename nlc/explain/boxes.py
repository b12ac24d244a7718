"""A box on its page: what it says, what its states learn, how it is run and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from math import prod

from ..foreign import readings
from ..lacking import NotLowered
from ..levels import form_text
from ..lower import lower, lower_box
from ..plan import Lowering, Plan
from ..show import Writer
from ..system import ALL, Box, State, System
from .cost import chunk_of, cost_rows
from .kernels import kernel_rows
from .lines import INDENT, Row, Rows, latex, said, table
from .optimizers import line_rows, optimizer_blocks
from .rules import spelled, state_rows

Block = tuple[str, Rows]


def signature(box: Box) -> str:
    inputs = ", ".join(f"{n}[{', '.join(map(size, s))}]" if s else n for n, s in box.inputs)
    name = box.level.family if box.kind == "level" and box.level else box.name
    return f"{box.kind} {name}({inputs})"


def size(n: int) -> str:
    """A negative size is how many ticks a past has: all, or at most so many."""
    return str(n) if n >= 0 else ".." if n < ALL // 2 else f"..{-n}"


def blocks(box: Box, system: System | None = None, tex: bool = False) -> list[Block]:
    """(heading, lines): the body first, then each state, then how it is run."""
    if box.kind == "optimizer":
        return optimizer_blocks(box, tex)
    out: list[Block] = [("", body_rows(box, tex))]
    for names, form, rows in grouped(box, system, tex):
        out.append((f"{', '.join(names)} : {form}", rows))
    if box.states:
        out.append(("", run_rows(box, system, tex)))
    return [b for b in out if b[1]]


def body_rows(box: Box, tex: bool = False) -> Rows:
    w = Writer(latex=tex)
    rows = line_rows(w, box.lines, "lines")
    if box.read is not None:
        found = spelled(w, "read", "", box.read)
        early = (r" \quad \text{before the write}" if tex else " before write") * box.read_before
        rows += [Row(r.label, r.text + early * (r.label == "read"), r.words) for r in found]
    if box.linearise is not None:
        text = f"every {box.linearise} tokens: gradients at the first state"
        rows.append(said(w, "linearise", text))
    return rows


def grouped(
    box: Box, system: System | None, tex: bool = False
) -> Iterator[tuple[list[str], str, Rows]]:
    """States that differ by name alone are told once: `M.key`, `M.value` are both M."""

    def told(state: State) -> tuple[str, Rows]:
        heads = f", {prod(state.per)} heads" if state.per else ""
        base = state.name.partition(".")[0]
        return form_text(state.form) + heads, state_rows(box, state, base, tex, system)

    for (form, rows), group in groupby(box.states, told):
        yield [s.name for s in group], form, rows


def run_rows(box: Box, system: System | None = None, tex: bool = False) -> Rows:
    """The chosen algorithm, its reason, and what it costs."""
    w = Writer(latex=tex)
    found, reason = lowered(box, system)
    plan = None if system is None else planned(system)
    longest, why = (0, "") if plan is None else longest_span(plan)
    short = found is not None and 0 < longest < chunk_of(box, found)
    reason += f"; {why}" if short else ""
    return [
        said(w, "run as", reason),
        *kernel_rows(w, box, found),
        *cost_rows(w, box, found, longest),
    ]


def lowered(box: Box, system: System | None = None) -> tuple[Lowering | None, str]:
    """As the plan of the system has it; without one, or where it has no plan, by itself."""
    plan = None if system is None else planned(system)
    try:
        found = plan.of(box) if plan is not None else lower_box(box)
    except NotLowered as error:
        return None, f"by the reference interpreter alone (NL701): {error.diagnostic.message}"
    return found, found.reason


@lru_cache(maxsize=1)
def planned(system: System) -> Plan | None:
    return lower(system)[0]


def longest_span(plan: Plan) -> tuple[int, str]:
    """Of how many ticks a call is run at once, and why no more; 0: as many as are given."""
    ticks = plan.spans.every
    if ticks:
        _, handle, _ = next(iter(readings(plan.system)))
        at = "one token at a time" if ticks == 1 else f"at most {ticks} tokens at a time"
        return ticks, f"{at}, for `{handle.box.name}.{handle.name}` is used elsewhere"
    learners = sorted(plan.learners, key=lambda l: l.clock.period)
    if not learners:
        return 0, ""
    first = learners[0]
    at = "one token" if first.clock.period == 1 else f"at most {first.clock.period} tokens"
    return first.clock.period, f"{at} at a time, for `{first.name}` fires {first.clock}"


def box_text(box: Box, system: System | None = None) -> list[str]:
    """The page of a box, without its heading."""
    out: list[str] = []
    for i, (heading, rows) in enumerate(blocks(box, system)):
        out += [""] * (i > 0 or bool(heading))
        out += [INDENT + heading] if heading else []
        out += table(rows, 2 if heading else 1)
    return out


def box_latex(box: Box, system: System | None = None) -> list[str]:
    out = [rf"\section*{{{escaped_name(signature(box))}}}"]
    for heading, rows in blocks(box, system, True):
        out += [rf"\subsection*{{{escaped_name(heading)}}}"] if heading else []
        out += latex(rows)
    return out


def escaped_name(text: str) -> str:
    return text.replace("_", r"\_").replace("{", r"\{").replace("}", r"\}")


__all__ = ["blocks", "box_latex", "box_text", "signature"]
