"""STAGE: rows, scores -> rows in order, with what was measured: the table as CSV and in words."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from .choices import Combination
from .survey import Row
from .tasks import TASKS

Shares = Mapping[str, tuple[float, ...]]  # of right answers, by task: one for each seed


TIMES = 2
BARS = {t.name: TIMES * t.guess for t in TASKS}  # a median above it is no chance


@dataclass(frozen=True, slots=True)
class Ranked:
    """A row and its place: by what it recalls, where that was measured, then by what it costs."""

    place: int
    row: Row
    shares: Shares
    good: bool  # above chance in some task, and at its best seed as good as the best memory of it
    chance: bool = False  # measured, and above chance in no task

    @property
    def told(self) -> str:
        return "good" if self.good else "at chance" if self.chance else ""

    @property
    def name(self) -> str:
        return self.row.name


def ranked(rows: Sequence[Row], measured: Mapping[str, Shares]) -> list[Ranked]:
    """Those that have a spec, the best first."""
    fine = sorted((r for r in rows if r.cost is not None), key=lambda r: order(r, measured))
    best = bests(measured)
    made = []
    for i, row in enumerate(fine, 1):
        shares = {t: s for t, s in measured.get(row.name, {}).items() if s}
        above = [t for t, s in shares.items() if middle(s) > BARS.get(t, 1.0)]
        good = any(highest(shares[t]) >= best[t] for t in above)
        made.append(Ranked(i, row, shares, good, bool(shares) and not above))
    return made


def highest(shares: Sequence[float]) -> float:
    return max((s for s in shares if not math.isnan(s)), default=0.0)


def order(row: Row, measured: Mapping[str, Shares]) -> tuple[float, int, int, str]:
    assert row.cost is not None
    shares = [middle(s) for s in measured.get(row.name, {}).values() if s]
    recalled = sum(shares) / len(shares) if shares else -1.0
    return -recalled, row.cost.operations, row.cost.state, row.name


def middle(shares: Sequence[float]) -> float:
    """The median; a run that left the numbers recalled nothing."""
    return median(0.0 if math.isnan(s) else s for s in shares)


def bests(measured: Mapping[str, Shares]) -> dict[str, float]:
    """The best median of each task."""
    found: dict[str, float] = {}
    for shares in measured.values():
        for task, values in shares.items():
            found[task] = (
                max(found.get(task, 0.0), middle(values)) if values else found.get(task, 0)
            )
    return found


# ---- words ---------------------------------------------------------------------------------------


def known_as(row: Row) -> str:
    return "; ".join(known.name for known, _ in row.known)


def with_gates(row: Row) -> str:
    """What the gates of the named memories are to be."""
    return "; ".join(str(how) or "the same gates" for _, how in row.known)


def same_as(row: Row) -> str:
    return "" if row.law is not None or row.distinct else row.first


def same_gates(row: Row) -> str:
    return "" if not same_as(row) else str(row.substitution) or "the same gates"


def percent(share: float) -> str:
    return "diverged" if math.isnan(share) else f"{100 * share:.1f}"


def spread(shares: Sequence[float]) -> str:
    """`91.2 (88.0 to 93.1)`."""
    if not shares:
        return ""
    if len(shares) == 1:
        return percent(shares[0])
    low = 0.0 if any(map(math.isnan, shares)) else min(shares)
    return f"{percent(middle(shares))} ({percent(low)} to {percent(highest(shares))})"


def verdicts(tasks: Sequence[str]) -> str:
    """What `good` and `at chance` say."""
    bars = ", ".join(f"{t} {percent(BARS[t])}%" for t in tasks)
    return (
        f"at chance: no more than {TIMES} times what guessing among the values that could be asked "
        f"finds ({bars}); good: above it, and no less than the best that was measured"
    )


# ---- CSV -----------------------------------------------------------------------------------------

COLUMNS = (
    "place", "name", "verdict", "known_as", "with", "same_as", "same_with", "law", "memory", "bias",
    "retention", "rule", "operations", "state_bytes", "compiled", "run_as", "missing", "looks_good",
)  # fmt: skip


def table_csv(rows: Sequence[Row], order: Sequence[Ranked], tasks: Sequence[str]) -> str:
    """Those with a spec in their order, then those that break a law."""
    out = io.StringIO()
    measures = [f"{t}_{part}" for t in tasks for part in ("median", "low", "high", "seeds")]
    writer = csv.DictWriter(out, [*COLUMNS, *measures], restval="", lineterminator="\n")
    writer.writeheader()
    for one in order:
        writer.writerow(fields(one.row) | placed(one) | figures(one.shares))
    writer.writerows(fields(row) for row in rows if row.law is not None)
    return out.getvalue()


def fields(row: Row) -> dict[str, object]:
    c: Combination = row.combination
    found: dict[str, object] = {
        "name": row.name, "verdict": row.verdict, "known_as": known_as(row),
        "with": with_gates(row), "same_as": same_as(row), "same_with": same_gates(row),
        "law": row.law.sentence if row.law else "", "memory": c.memory.name, "bias": c.bias.name,
        "retention": c.retention.name, "rule": c.rule.name,
    }  # fmt: skip
    if row.cost is not None:
        found |= {
            "operations": row.cost.operations, "state_bytes": row.cost.state,
            "compiled": "yes" if row.compiled else "no", "run_as": row.cost.run_as,
            "missing": row.cost.missing,
        }  # fmt: skip
    return found


def placed(one: Ranked) -> dict[str, object]:
    return {"place": one.place, "looks_good": "yes" if one.good else one.told}


def figures(shares: Shares) -> dict[str, object]:
    made: dict[str, object] = {}
    for task, values in shares.items():
        whole = [0.0 if math.isnan(v) else v for v in values]
        if whole:
            made |= {
                f"{task}_median": f"{middle(values):.4f}", f"{task}_low": f"{min(whole):.4f}",
                f"{task}_high": f"{max(whole):.4f}", f"{task}_seeds": len(whole),
            }  # fmt: skip
    return made


# ---- the summary ---------------------------------------------------------------------------------


def summary(rows: Sequence[Row]) -> list[str]:
    """What was found, in a few lines."""
    kinds = Counter(row.verdict for row in rows)
    fine = [row for row in rows if row.law is None]
    compiled = sum(row.compiled for row in fine)
    return [
        f"{len(rows):,} combinations of four choices",
        f"  {kinds['ill-posed']:,} are ill-posed, {kinds['apart']:,} do not go together, "
        f"{kinds['idle']:,} say what another says",
        f"  {len(fine):,} specs: {kinds['known']:,} are a memory that has a name, "
        f"{kinds['same']:,} the same as a simpler one, {kinds['new']:,} have no name known here",
        f"  {sum(row.distinct for row in fine):,} distinct functions; {compiled:,} specs are "
        f"compiled, {len(fine) - compiled:,} run in the reference interpreter alone",
    ]


def found_names(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Each published memory, and the rows that are it, the plainest first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        for known, _ in row.known:
            found.setdefault(known.name, []).append(row)
    for name, all_ in found.items():
        yield name, sorted(all_, key=lambda r: not r.distinct)


def laws_broken(rows: Sequence[Row]) -> Iterator[tuple[object, list[Row]]]:
    """Each law, and the rows that break it."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.law is not None:
            found.setdefault(row.law.name, []).append(row)
    for all_ in found.values():
        yield all_[0].law, all_
