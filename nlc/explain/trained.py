"""What learns through a transfer: the arrays whose gradient is another without it, and no others.

In: a system and the edges of one line. A gradient that enters a level goes on from what its states
and pasts are made of, back through the flow and every read on its way (2.11.1). Taken out, the line
leaves everything else as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise

from ..checks.facts import Facts
from ..checks.paths import Paths
from ..checks.starts import objective_of
from ..checks.terms import exact, may_start, roots_of
from ..system import Box, Level, State, System, Term, Transfer

SLOTS = ("past", "conv", "fade")


class Entering(Paths):
    """What the gradient of a level reaches, where a body that it does not enter keeps its weights
    as constants. `without`: levels that are closed, whatever is declared.
    """

    def __init__(self, facts: Facts, level: Level, without: Iterable[Level] = ()) -> None:
        super().__init__(facts, level)
        self.open -= {l.name for l in without}

    def visit(self, term: Term, box: Box | None) -> None:
        if term.op == "weight" and box is not None:
            level = self.facts.user_of.get(id(box))
            if level is not None and level is not self.level and level.name not in self.open:
                return
        if term.op in SLOTS and box is not None and not self.opens(box):
            self.add(list(term.args), box)  # this tick's own
            return
        super().visit(term, box)

    def enter(self, levels: Iterable[Level]) -> Entering:
        """From the states and pasts of these levels, and the weights of their bodies."""
        for level in levels:
            for box in self.facts.boxes_of[level.name]:
                self.enter_box(box)
        self.walk()
        return self

    def enter_box(self, box: Box) -> None:
        for state in box.states:
            if not exact(state):
                self.enter_rule(box, state)
        terms = [t for root in roots_of(box) for t in root.walk()]
        self.add([a for t in terms if t.op in SLOTS for a in t.args[:1]], box)
        self.add([t for t in terms if t.op == "weight"], box)


class Trained:
    """The arrays that the level at the head of an edge learns, by name; `M@A` is the start of M."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.facts = Facts(system)

    def through(self, group: list[Transfer]) -> list[str]:
        """Those whose gradient goes through these edges."""
        found: dict[str, None] = {}
        for target, sources in by_target(group).items():
            paths = Entering(self.facts, target).enter(sources)
            found |= dict.fromkeys(self.named(paths, target))
        return list(found)

    def otherwise(self, group: list[Transfer]) -> set[str]:
        """Those that have a gradient without them. A start that is learned gets one by its own
        line, whatever else is open.
        """
        found: set[str] = set()
        for target, sources in by_target(group).items():
            objective = objective_of(self.facts, target) or self.system.flow.loss
            if objective is not None:
                paths = Entering(self.facts, target, sources).from_(objective)
                found |= set(self.named(paths, target))
                paths = Paths(self.facts, target, starts=True).from_(objective)
                found |= {n for n in self.named(paths, target) if n not in self.unnamed}
        return found

    @cached_property
    def unnamed(self) -> set[str]:
        return {w.path for w in self.system.weights}

    def named(self, paths: Paths, learner: Level) -> Iterator[str]:
        """Weights in the order of the text, then states, then starts."""
        if learner.owner:
            yield from (w.path for w in self.system.weights if id(w) in paths.weights)
        for box in self.system.boxes:
            for state in box.states:
                if (id(box), state.name) in paths.states and self.learns(learner, box, state):
                    at = "" if box.level is learner else f"@{learner.name}"
                    yield f"{box.path}.{state.name}{at}"

    def starts(self, group: list[Transfer]) -> list[str]:
        """The starts that `init` lines let a level learn: those of their states, and those that
        these learn for others, which start so themselves (M@A@Z, 2.11.4).
        """
        pairs = ((t, box, s) for t in group for box, s in self.begun(t))
        return list(dict.fromkeys(f"{box.path}.{s.name}@{t.source.name}" for t, box, s in pairs))

    def begun(self, t: Transfer) -> list[tuple[Box, State]]:
        """The states whose start goes back through this edge, each with its box."""
        return [(b, s) for b in self.system.boxes for s in b.states if self.begins(t, b, s)]

    def begins(self, t: Transfer, box: Box, state: State) -> bool:
        """Whether the start of a state goes back through this edge."""
        if box.level is None or not may_start(state):
            return False
        chain = [box.level, *self.facts.starts_at(box.level, state)]
        here = t.speaks_of(state) if t.target is box.level else t.state is None
        return here and (t.target, t.source) in pairwise(chain)

    def learns(self, learner: Level, box: Box, state: State) -> bool:
        """Its own state, by the model's loss; or the start of another's."""
        if exact(state) or box.level is None:
            return False
        if box.level is learner:
            return bool(state.rule.learn) and state.rule.uses_loss
        return learner in self.facts.starts_at(box.level, state)


def by_target(group: list[Transfer]) -> dict[Level, list[Level]]:
    found: dict[Level, list[Level]] = {}
    for t in group:
        found.setdefault(t.target, []).append(t.source)
    return found


__all__ = ["Trained"]
