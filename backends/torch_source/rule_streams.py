"""What rules and `learn` lines ask of what they are told: examples, and sums over all arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nlc.system import Box, Term

from .rule_terms import uses_examples


def examples_asked(rule: Box | None, streams: Iterable[Term]) -> bool:
    """Whether a rule, or what a line gives it, is made of its examples (2.9.6)."""
    if rule is not None and uses_examples(rule):
        return True
    walked = (t for stream in streams for t in stream.walk())
    return any(t.op == "input" and t.info in ("input", "surprise") for t in walked)


def across_in(root: Term) -> list[Term]:
    """`across` terms below, the inner before the outer."""
    found: list[Term] = []
    seen: set[int] = set()

    def visit(term: Term) -> None:
        if id(term) in seen:
            return
        seen.add(id(term))
        for a in term.args:
            visit(a)
        if term.op == "across":
            found.append(term)

    visit(root)
    return found


def across_of(streams: Mapping[str, Term]) -> list[Term]:
    return list({id(t): t for s in streams.values() for t in across_in(s)}.values())
