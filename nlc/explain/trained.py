"""What learns through a transfer: the arrays whose gradient is another without it, and no others.

In: a system and the edges of one line. A gradient that enters a level goes on from what its states
and pasts are made of, back through the flow and every read on its way (2.11.1). Taken out, the line
leaves everything else as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

from ..checks.facts import Facts
from ..checks.paths import Paths, Place, addends, gradient_args
from ..checks.starts import objective_of
from ..checks.terms import exact, may_start, roots_of, rule_terms
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


class Starting(Paths):
    """What the gradient of the starts that a level learns reaches. Where it may not enter a level,
    the chain of states and what they make of each other is open to it, and what comes into a write
    from outside is a constant (2.11.2).
    """

    def __init__(self, facts: Facts, level: Level, without: Iterable[Level] = ()) -> None:
        super().__init__(facts, level, starts=True)
        back = {t.source.name for t in facts.backprop_into.get(level.name, [])}
        self.entered = back - {l.name for l in without}
        self.open |= {l.name for l in facts.system.levels}  # each has its chain of states

    def may_enter(self, box: Box) -> bool:
        level = self.facts.user_of.get(id(box))
        return level is None or level is self.level or level.name in self.entered

    def visit(self, term: Term, box: Box | None) -> None:
        if term.op in SLOTS and box is not None and not self.may_enter(box):
            self.add(list(term.args), box)  # this tick's own
            return
        super().visit(term, box)

    def enter_rule(self, box: Box, state: State) -> None:
        if self.may_enter(box):
            super().enter_rule(box, state)
            return
        for own, name in self.made_of(box, state)[0]:
            self.enter_state(own, name)

    def enter(self, levels: Iterable[Level]) -> Starting:
        """From what comes from outside into the writes and the pasts of these levels."""
        for level in levels:
            for box in self.facts.boxes_of[level.name]:
                for state in (s for s in box.states if not exact(s)):
                    for term, at in self.made_of(box, state)[1]:
                        self.add([term], at)
                terms = [t for root in roots_of(box) for t in root.walk()]
                self.add([a for t in terms if t.op in SLOTS for a in t.args[:1]], box)
        self.walk()
        return self

    def made_of(self, box: Box, state: State) -> tuple[list[tuple[Box, str]], list[Place]]:
        """The states of its own body that a write is made of, and what comes from outside."""
        own: list[tuple[Box, str]] = []
        outside: list[Place] = []
        waiting: list[tuple[Term, Box]] = [(t, box) for t in self.written_by(box, state)]
        seen: set[tuple[int, int]] = set()
        while waiting:
            term, at = waiting.pop()
            if (id(term), id(at)) in seen or term.op == "stop" and not self.inner_stop(term, at):
                continue
            seen.add((id(term), id(at)))
            if term.op in ("state", "apply", "copy") and self.outer(term.info.box, box):
                outside.append((term, at))
            elif term.op in ("state", "apply", "copy"):
                own.append((term.info.box, term.info.name))
            elif term.op == "loss" or term.op == "input" and at is box:
                outside.append((term, at))
            waiting += self.before(term, at, box)
        return own, outside

    def outer(self, other: Box, box: Box) -> bool:
        return self.facts.user_of.get(id(other)) is not self.facts.user_of.get(id(box))

    def before(self, term: Term, at: Box, box: Box) -> Iterator[tuple[Term, Box]]:
        """What a term in a body is made of, as far as the body goes."""
        if term.op == "local":
            yield from ((t, at) for t in self.facts.values.get((id(at), term.info), []))
        elif term.op == "call":
            if term.info.read is not None:
                yield term.info.read, term.info
        elif term.op == "input" and at is not box:
            call = self.facts.calls.get(id(at))
            pairs = zip(at.inputs, call.args, strict=True) if call is not None else ()
            for (name, _), arg in pairs:
                if name == term.info and call is not None and call.caller is not None:
                    yield arg, call.caller
        else:
            yield from ((t, at) for t in gradient_args(term))

    def written_by(self, box: Box, state: State) -> list[Term]:
        terms = [t for t in rule_terms(state.rule) if t is not state.rule.objective]
        if state.rule.objective is not None:
            if not self.is_constant(self.facts.user_of[id(box)], state):
                terms += addends(state.rule.objective, box, state)
        return terms


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
            starts = Starting(self.facts, target).enter(sources)
            found |= dict.fromkeys(self.named(paths, starts, target))
        return list(found)

    def otherwise(self, group: list[Transfer]) -> set[str]:
        """Those that have a gradient without them."""
        found: set[str] = set()
        for target, sources in by_target(group).items():
            objective = objective_of(self.facts, target) or self.system.flow.loss
            if objective is not None:
                paths = Entering(self.facts, target, sources).from_(objective)
                starts = Starting(self.facts, target, sources).from_(objective)
                found |= set(self.named(paths, starts, target))
        return found

    def named(self, paths: Paths, starts: Paths, learner: Level) -> Iterator[str]:
        """Weights in the order of the text, then states, then starts."""
        if learner.owner:
            yield from (w.path for w in self.system.weights if id(w) in paths.weights)
        for box in self.system.boxes:
            for state in box.states:
                reached = (paths if box.level is learner else starts).states
                if (id(box), state.name) in reached and self.learns(learner, box, state):
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
