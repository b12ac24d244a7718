"""STAGE: combinations -> rows: what each is, what it costs, and which of them are one.

Every combination is a row: one that breaks a law says which, any other has a spec.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .alone import read
from .choices import RULES, Combination
from .cost import Cost, cost
from .equations import equations
from .known import KNOWN, Known
from .laws import Law, first_broken
from .normal import Normal, normal
from .same import Substitution, same
from .writing import spec

SMALL = {"n": 2, "m": 3}  # sizes that tell keys from values
SQUARE = {"n": 2, "m": 2}


@dataclass(frozen=True, slots=True)
class Row:
    """One combination. `known`: published memories that it is, and with which gates. `first`: the
    simplest combination that it is the same as; its own name if there is none before it.
    """

    combination: Combination
    law: Law | None = None
    text: str = ""
    form: Normal | None = None
    cost: Cost | None = None
    known: tuple[tuple[Known, Substitution], ...] = ()
    first: str = ""
    substitution: Substitution | None = None

    @property
    def name(self) -> str:
        return self.combination.name

    @property
    def verdict(self) -> str:
        """`ill-posed`, `apart`, `idle`; `known`, `same` or `new`."""
        if self.law is not None:
            return self.law.kind
        if self.known:
            return "known"
        return "new" if self.distinct else "same"

    @property
    def distinct(self) -> bool:
        """The first of those that are one function."""
        return self.law is None and self.first == self.name

    @property
    def compiled(self) -> bool:
        return self.cost is not None and not self.cost.missing


Named = list[tuple[Known, Normal]]


def survey(
    combinations: Sequence[Combination],
    size: int,
    told: Callable[[int, Row], None] = lambda done, row: None,
) -> list[Row]:
    """Rows in the order of the combinations. `size`: of keys and values, for the costs. `told`
    hears of each row as it is made.
    """
    chunk = combinations[0].chunk if combinations else 1
    rows: list[Row] = []
    for i, combination in enumerate(combinations):
        rows.append(looked_at(combination, size))
        told(i + 1, rows[-1])
    return classes(rows, named(chunk))


def looked_at(combination: Combination, size: int) -> Row:
    """A combination by itself."""
    law = first_broken(combination)
    if law is not None:
        return Row(combination, law)
    memory = read(spec(combination))
    form = normal(memory.box(SQUARE if combination.memory.square else SMALL))
    text = spec(combination, equations(combination, form))
    return Row(combination, None, text, form, cost(memory.box({"n": size, "m": size})))


# ---- which are one -------------------------------------------------------------------------------


def named(chunk: int) -> Named:
    """The published memories in normal form, in chunks as long as ours."""
    return [(known, published(known, chunk)) for known in KNOWN]


def published(known: Known, chunk: int) -> Normal:
    memory = read(known.text)
    square = all(d.span.text != "m" for p in memory.node.params for d in p.dims)
    return normal(memory.box(SQUARE if square else SMALL, {"chunk": chunk, **dict(known.given)}))


def classes(rows: list[Row], known: Named) -> list[Row]:
    """Each row with the published memories that it is, and the first row that it is the same as.

    Simpler rules come first, then simpler biases: what is clever is told to be what is plain.
    """
    by_kind: dict[tuple[str, ...], list[Row]] = {}
    made: dict[str, Row] = {}
    for row in sorted((r for r in rows if r.form is not None), key=plainness):
        assert row.form is not None
        own = by_kind.setdefault(row.form.kind, [])
        first, how = first_same(row.form, own)
        named_ = replace(row, known=names(row.form, known), first=first or row.name)
        made[row.name] = replace(named_, substitution=how)
        if not first:
            own.append(row)
    return [made.get(row.name, row) for row in rows]


def first_same(form: Normal, among: Sequence[Row]) -> tuple[str, Substitution | None]:
    for other in among:
        how = same(form, other.form) if other.form is not None else None
        if how is not None:
            return other.name, how
    return "", None


def plainness(row: Row) -> int:
    return [r.name for r in RULES].index(row.combination.rule.name)


def names(form: Normal, known: Named) -> tuple[tuple[Known, Substitution], ...]:
    found = ((one, same(form, theirs)) for one, theirs in known)
    return tuple((one, how) for one, how in found if how is not None)
