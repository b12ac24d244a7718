"""STAGE: rows, scores -> one page (HTML) that needs nothing else: a table to sort and to search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from .choices import BIASES, MEMORIES, RETENTIONS, RULES
from .laws import Law
from .plot import plot
from .ranking import (
    Ranked,
    Shares,
    known_as,
    laws_broken,
    middle,
    same_as,
    same_gates,
    spread,
    summary,
    verdicts,
    with_gates,
)
from .survey import Row
from .tasks import Task

STYLE = """body { font: 14px/1.4 sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse } td, th { padding: 2px 8px; border-bottom: 1px solid #ddd;
text-align: left; vertical-align: top } th { cursor: pointer; background: #f4f4f4; position: sticky;
top: 0 } .n { text-align: right; font-variant-numeric: tabular-nums } .new { color: #063 }
.known { color: #036 } .same { color: #777 } .good { font-weight: bold } .at-chance { opacity: .6 }
code { font-size: 12px }
input { width: 30em; margin: 1em 0 } summary { cursor: pointer }"""

SCRIPT = """const body = document.querySelector("#all tbody"), rows = [...body.rows];
document.querySelectorAll("#all th").forEach((head, i) => { let up = false;
  head.onclick = () => { up = !up;
    const value = row => { const cell = row.cells[i], n = cell.dataset.n;
      return n === undefined ? cell.textContent : n === "" ? -Infinity : Number(n) };
    rows.sort((a, b) => { const x = value(a), y = value(b);
      return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1) });
    body.append(...rows) } });
document.querySelector("#find").oninput = event => {
  const words = event.target.value.toLowerCase().split(" ");
  rows.forEach(row => { const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word)) }) };"""

HEADS = ("place", "memory", "verdict", "also", "with", "operations", "bytes", "run as")


def page(rows: Sequence[Row], order: Sequence[Ranked], tasks: Sequence[Task], size: int) -> str:
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>nlc miras</title>",
        f"<style>{STYLE}</style></head><body><h1>Memories from four choices</h1>",
        "".join(f"<p>{escape(line)}</p>" for line in summary(rows)),
        *plots(order, tasks),
        "<h2>Specs</h2><p>Operations a token and bytes of state, of one head with keys and values "
        f"of {size} numbers. A click on a head sorts. Also: a published memory that it is, or the "
        "simplest of the others; with: what that one's gates are then.</p>",
        '<input id="find" placeholder="words that a row must hold: l2 new class iv">',
        *table(order, tasks),
        *laws(rows),
        *choices(),
        f"<script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(parts)


def plots(order: Sequence[Ranked], tasks: Sequence[Task]) -> Iterator[str]:
    for task in tasks:
        shares = {one.name: one.shares[task.name] for one in order if one.shares.get(task.name)}
        if shares:
            yield plot(task, shares)
            yield f"<p>{escape(verdicts([task.name]))}</p>"


# ---- the table -----------------------------------------------------------------------------------


def table(order: Sequence[Ranked], tasks: Sequence[Task]) -> Iterator[str]:
    measured = [t for t in tasks if any(one.shares.get(t.name) for one in order)]
    heads = [*HEADS, *(t.name for t in measured)]
    yield "<table id='all'><thead><tr>" + "".join(f"<th>{escape(h)}</th>" for h in heads)
    yield "</tr></thead><tbody>"
    for one in order:
        yield line(one, [t.name for t in measured])
    yield "</tbody></table>"


def line(one: Ranked, tasks: Sequence[str]) -> str:
    row = one.row
    assert row.cost is not None
    good = f" class='{one.told.replace(' ', '-')}'" if one.told else ""
    cells = [
        number(one.place),
        f"<td{good}><a href='specs/{row.name}.nl'>{row.name}</a></td>",
        f"<td class='{row.verdict}'>{row.verdict}</td>",
        cell(known_as(row) or same_as(row)),
        cell(with_gates(row) or same_gates(row)),
        number(row.cost.operations),
        number(row.cost.state),
        cell(row.cost.missing or row.cost.run_as),
        *(share(one.shares, task) for task in tasks),
    ]
    return f"<tr>{''.join(cells)}</tr>"


def cell(said: str) -> str:
    return f"<td>{escape(said)}</td>"


def number(x: int) -> str:
    return f"<td class='n' data-n='{x}'>{x:,}</td>"


def share(shares: Shares, task: str) -> str:
    found = shares.get(task, ())
    return f"<td class='n' data-n='{middle(found) if found else ''}'>{spread(found)}</td>"


# ---- laws and choices ----------------------------------------------------------------------------


def laws(rows: Sequence[Row]) -> Iterator[str]:
    yield "<h2>Left out, by law</h2>"
    for law, broken in laws_broken(rows):
        assert isinstance(law, Law)
        names = " ".join(f"<code>{row.name}</code>" for row in broken)
        yield (
            f"<p><b>{escape(law.kind)}: {escape(law.sentence)}</b> ({len(broken):,}). "
            f"{escape(law.reason)}</p><details><summary>which</summary>{names}</details>"
        )


def choices() -> Iterator[str]:
    kinds: Mapping[str, Sequence[Any]] = {
        "memory": MEMORIES, "bias": BIASES, "retention": RETENTIONS, "rule": RULES,
    }  # fmt: skip
    yield "<h2>The choices</h2>"
    for kind, found in kinds.items():
        items = "".join(f"<li><code>{c.name}</code>: {escape(c.words)}</li>" for c in found)
        yield f"<h3>{kind}</h3><ul>{items}</ul>"
