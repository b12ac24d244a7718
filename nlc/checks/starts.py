"""Starts that another level learns (2.11.4): who learns them, and for which of them no gradient
comes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from ..system import Box, Level, State, Term
from .facts import Facts
from .paths import Paths
from .terms import may_start


@dataclass(frozen=True)
class Start:
    """The start of a state, and the slowest level that learns it."""

    box: Box
    level: Level
    state: State
    learner: Level

    @property
    def key(self) -> tuple[int, str]:
        return id(self.box), self.state.name


@dataclass
class Reach:
    """What the gradient of one level reaches of the starts that it learns."""

    facts: Facts
    learner: Level
    objective: Term

    @cached_property
    def paths(self) -> Paths:
        return Paths(self.facts, self.learner, starts=True).from_(self.objective)

    @cached_property
    def cut(self) -> dict[object, Term]:
        """The flat function in the way."""
        return Paths(self.facts, self.learner, starts=True).from_(self.objective).cut_off()

    @cached_property
    def opened(self) -> dict[tuple[int, str], str]:
        """The level whose closed states, or whose constant gradient, are in the way."""
        paths = Paths(self.facts, self.learner, starts=True, all_open=True)
        return paths.from_(self.objective).states


class Starts:
    """The learned starts of a system."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.reach: dict[str, Reach | None] = {}

    def of(self, learner: Level) -> Reach | None:
        if learner.name not in self.reach:
            objective = objective_of(self.facts, learner)
            made = None if objective is None else Reach(self.facts, learner, objective)
            self.reach[learner.name] = made
        return self.reach[learner.name]

    def dead(self, but: Collection[str]) -> list[list[Start]]:
        """Starts that no level of their chain gets a gradient for, those of one family together
        that lack it for one reason; none of the levels named in `but`.
        """
        found: dict[tuple[str, object], list[Start]] = defaultdict(list)
        for level in self.facts.system.levels:
            for box in self.facts.boxes_of[level.name] if level.name not in but else ():
                for state in box.states:
                    start = self.unreached(box, level, state)
                    if start is not None:
                        found[level.family, self.why(start)].append(start)
        return list(found.values())

    def unreached(self, box: Box, level: Level, state: State) -> Start | None:
        if not may_start(state):
            return None
        chain = [r for a in self.facts.starts_at(level, state) if (r := self.of(a)) is not None]
        if not chain or any((id(box), state.name) in r.paths.states for r in chain):
            return None
        return Start(box, level, state, chain[-1].learner)

    def why(self, start: Start) -> Term | str:
        """A function without a gradient, a level that is closed to it, or "": it is not used."""
        reach = self.of(start.learner)
        assert reach is not None
        return reach.cut.get(start.key) or reach.opened.get(start.key, "")


def objective_of(facts: Facts, level: Level) -> Term | None:
    """A's objective, or the loss, if a memory that A calls learns it (2.11.4)."""
    if level.clock.unit == "never":
        return None
    if level.learn and level.objective is not None:
        return level.objective
    learns = any(s.rule.learn and s.rule.uses_loss for s in facts.states_of(level))
    return facts.system.flow.loss if learns else None
