"""What is known of how one state changes: its gradient tidied, the Jacobians of its errors, and its
rule in linear form, if it has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from ..backward import Underivable, constant
from ..derive import given_write, gradient, linear_rule, substitute
from ..rules import Example, Gradient, LinearRule
from ..show import folded
from ..system import Box, Clock, Lambda, Learn, State, System, Term
from .bounds import Scope, assigned
from .slopes import Jacobian, jacobian
from .tidy import Tidy, tidied


@dataclass(frozen=True, eq=False)
class Step:
    """A linear rule as this state uses it: S = momentum S - rate (grad + erase W x x'),
    W = keep W + S. `steps`: on the same data.
    """

    rate: Term
    momentum: Term | None = None
    erase: Term | None = None
    keep: Term | None = None
    steps: int = 1
    implicit: bool = False


@dataclass(eq=False)
class Derived:
    """One state of a box. `why`: what keeps its gradient from being derived."""

    box: Box
    state: State
    system: System | None = None
    tidy: Tidy = field(default_factory=Tidy)
    why: str = ""

    @cached_property
    def gradient(self) -> Gradient | None:
        """Of the objective, or of a write as if it were one (rates of 1); tidied."""
        rule = self.state.rule
        try:
            if rule.write is not None:
                return tidied(given_write(self.box, self.state), self.tidy)
            if rule.objective is not None and not rule.uses_loss:
                return tidied(gradient(self.box, self.state), self.tidy)
        except Underivable as error:
            self.why = str(error)
        return None

    @property
    def examples(self) -> tuple[Example, ...]:
        return () if self.gradient is None else self.gradient.examples

    @property
    def direct(self) -> tuple[tuple[str, Term], ...]:
        return () if self.gradient is None else self.gradient.direct

    @cached_property
    def jacobians(self) -> tuple[Jacobian, ...]:
        return tuple(jacobian(e, self.tidy) for e in self.examples)

    @property
    def network(self) -> bool:
        return not self.state.form.single

    @property
    def learn(self) -> Learn | None:
        return next(iter(self.state.rule.learn.values()), None)

    @property
    def scope(self) -> Scope:
        return Scope(self.box, self.system)

    @property
    def clock(self) -> Clock | None:
        return self.box.clock or (self.box.level.clock if self.box.level else None)

    @property
    def period(self) -> int:
        return 1 if self.clock is None else max(self.clock.period, 1)

    def step(self, array: str) -> Step | None:
        """The rule of one array, if it is linear in the gradient."""
        learn = self.state.rule.learn.get(array)
        shape = next((a.shape for a in self.state.form.arrays if a.name == array), None)
        if learn is None or learn.streams:
            return None
        if learn.rule == "implicit":
            rate = learn.settings.get("rate")
            return Step(self.number(1.0) if rate is None else rate, implicit=True)
        optimizer = None if shape is None else learn.optimizers.get(shape)
        rule = None if optimizer is None else linear_rule(optimizer)
        return None if rule is None else self.used(rule, learn)

    def used(self, rule: LinearRule, learn: Learn) -> Step:
        def setting(term: Term | None) -> Term | None:
            return None if term is None else self.tidy.of(substitute(term, learn.settings))

        rate = setting(rule.rate)
        assert rate is not None
        return Step(
            rate, setting(rule.momentum), setting(rule.erase), setting(rule.keep), learn.steps
        )

    def number(self, value: float) -> Term:
        at = next((t for t in self.box.terms()), Term("const", (), (), 0.0))
        return self.tidy.number(value, at)

    def keep(self, step: Step | None) -> Term:
        """What is left of the state: its retention, and that of its optimizer."""
        parts = [self.state.rule.retain, None if step is None else step.keep]
        made = constant(1.0, self.number(1.0))
        for part in parts:
            made = made if part is None else folded(made, part)
        return self.tidy.of(made)

    def narrow(self, term: Term) -> bool:
        """One number a memory or head, in place of one a channel (2.5.4)."""
        per, shape = self.state.per, term.shape
        rest = shape[len(per) :] if per and shape[: len(per)] == per else shape
        return rest in ((), (1,))

    # ---- what depends on what --------------------------------------------------------------------

    def reads(self, term: Term, names: frozenset[str] = frozenset()) -> Iterator[Term]:
        """The states of this box that change and enter a term, by way of its lines too."""
        for t in term.walk():
            if t.op in ("apply", "state", "product", "product_back", "array"):
                handle = t.info.handle if t.op.startswith("product") else t.info
                if handle.box is self.box and handle.state.rule.changes:
                    yield t
            elif t.op == "local" and t.info not in names:
                for name, value in assigned(self.box.lines):
                    if name == t.info:
                        yield from self.reads(value, names | {t.info})

    def moves(self, *terms: Term | None) -> bool:
        """Whether one of the terms changes with the box's own states."""
        return any(next(self.reads(t), None) is not None for t in terms if t is not None)

    def others(self, term: Term, own: Term) -> bool:
        """Whether a term reads a state of this box in another way than by `own`."""
        return any(t is not own for t in self.reads(term))


def link_body(link: Lambda, tidy: Tidy) -> tuple[Term, Term | None]:
    """A link's value, and the argument in it."""
    body = tidy.of(link.body)
    found = (t for t in body.walk() if t.op == "argument" and t.info == link.params[0])
    return body, next(found, None)


__all__ = ["Derived", "Step", "link_body"]
