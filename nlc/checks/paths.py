"""How far a gradient goes: from an objective backwards through the flow and the reads, and into the
states that a transfer opens (2.10.1, 2.11.1).
"""

from __future__ import annotations

from collections.abc import Iterator

from ..system import Box, Level, State, Term
from .facts import Facts
from .terms import exact, roots_of, rule_terms

FLAT = frozenset(
    [
        "sign",
        "floor",
        "top",
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "where",
        "index",
        "embed",
        "cross_entropy",
        "next",
    ]
)
"""Functions with an argument whose gradient is zero everywhere."""

FIRST_ORDER = " first order"
Place = tuple[Term, Box | None]

_OPEN = {"where": (1, 2), "index": (0,), "embed": (1,), "cross_entropy": (0,)}
_TOLD = frozenset(["sign", "floor", "top", "lt", "le", "gt", "ge", "eq", "where"])


def gradient_args(term: Term) -> tuple[Term, ...]:
    """The arguments that a gradient passes to."""
    if term.op not in FLAT:
        return term.args
    return tuple(term.args[i] for i in _OPEN.get(term.op, ()))


def flat_args(term: Term) -> list[Term]:
    """The arguments for which the gradient is zero everywhere."""
    return [a for i, a in enumerate(term.args) if i not in _OPEN.get(term.op, ())]


def addends(objective: Term, box: Box, state: State) -> list[Term]:
    """Those with a gradient at the state, or with the loss of the model: others are constants."""
    found: list[Term] = []
    waiting = [objective]
    while waiting:
        term = waiting.pop()
        if term.op in ("add", "sub", "neg"):
            waiting += term.args
        elif any(t.op == "loss" or names(t, box, state) for t in term.walk()):
            found.append(term)
    return found


def names(term: Term, box: Box, state: State) -> bool:
    if term.op not in ("state", "apply"):
        return False
    return term.info.box is box and term.info.name == state.name


class Paths:
    """What a gradient of a level reaches: never less than in truth. `starts`: that of the starts
    which it learns for others, whose chain of states is open (2.11.4). `feeding`: what makes the
    terms that are added, whatever is learned for it.
    """

    def __init__(
        self, facts: Facts, level: Level, *, starts: bool = False, all_open: bool = False,
        feeding: bool = False,
    ) -> None:  # fmt: skip
        self.facts = facts
        self.level = level
        self.starts = starts
        self.all_open = all_open
        self.feeding = feeding
        self.weights: dict[int, str] = {}  # the first closed family on the way, or ""
        self.states: dict[tuple[int, str], str] = {}  # likewise
        self.cut: list[Place] = []
        self.seen: set[tuple[int, int]] = set()
        self.named: set[tuple[int, str]] = set()
        self.waiting: list[tuple[Term, Box | None, str]] = []
        self.through = ""  # the first closed family on the way to what is visited
        self.stops: dict[int, set[int]] = {}
        self.open = {t.source.name for t in facts.backprop_into.get(level.name, [])}
        if starts:
            self.open |= set(facts.inits_into)

    def from_(self, *terms: Term, box: Box | None = None) -> Paths:
        self.add(list(terms), box)
        self.walk()
        return self

    def walk(self) -> None:
        while self.waiting:
            term, box, self.through = self.waiting.pop()
            key = (id(term), id(box) if box is not None else 0)
            if key not in self.seen:
                self.seen.add(key)
                self.visit(term, box)

    def add(self, terms: list[Term], box: Box | None) -> None:
        self.waiting += [(t, box, self.through) for t in terms]

    def visit(self, term: Term, box: Box | None) -> None:
        match term.op:
            case "weight":
                self.weights.setdefault(id(term.info), self.through)
            case "loss" if not self.feeding:
                loss = self.facts.system.flow.loss
                self.add([loss] if loss is not None else [], None)
            case "local":
                self.enter_name(term, box)
            case "input" if box is not None:
                self.enter_input(box, term.info)
            case "call":
                if term.info.read is not None:
                    self.add([term.info.read], term.info)
            case "state" | "apply" | "copy":
                self.enter_state(term.info.box, term.info.name)
        if term.op == "stop" and not self.inner_stop(term, box):
            return
        if term.op in _TOLD:
            self.cut.append((term, box))
        if term.op != "call":
            self.add(list(gradient_args(term)), box)

    def inner_stop(self, term: Term, box: Box | None) -> bool:
        """`stop` in an objective is a constant for that objective's own gradient alone (2.12)."""
        if box is None:
            return False
        if id(box) not in self.stops:
            self.stops[id(box)] = set(self.stops_of(box))
        return id(term) in self.stops[id(box)]

    def stops_of(self, box: Box) -> Iterator[int]:
        for state in box.states:
            if state.rule.objective is not None:
                yield from (id(t) for t in state.rule.objective.walk() if t.op == "stop")

    def enter_name(self, term: Term, box: Box | None) -> None:
        if box is None:
            self.add(self.facts.flow_values.get(id(term), []), None)
            return
        key = (id(box), term.info)
        if key not in self.named:
            self.named.add(key)
            self.add(self.facts.values.get(key, []), box)

    def enter_input(self, box: Box, name: str) -> None:
        call = self.facts.calls.get(id(box))
        if call is None:
            return
        for (own, _), arg in zip(box.inputs, call.args, strict=True):
            if own == name:
                self.add([arg], call.caller)

    def enter_state(self, box: Box, name: str) -> None:
        """Into what made the state: its start, its rule, and the optimizers of that rule."""
        if (id(box), name) in self.states:
            return
        self.states[id(box), name] = self.through
        state = next((s for s in box.states if s.name == name), None)
        if state is None:
            return
        if exact(state):  # solved at the read: a function of its inputs and pasts
            self.add(rule_terms(state.rule), box)
        elif self.opens(box):
            self.enter_rule(box, state)

    def opens(self, box: Box) -> bool:
        level = self.facts.user_of.get(id(box))
        if level is None or level is self.level:
            return False
        if level.name in self.open:
            return True
        self.through = self.through or level.family
        return self.all_open

    def enter_rule(self, box: Box, state: State) -> None:
        level = self.facts.user_of[id(box)]
        terms = [t for t in rule_terms(state.rule) if t is not state.rule.objective]
        if self.is_constant(level, state):
            self.enter_constant(level, state, box)
        elif state.rule.objective is not None:
            terms += addends(state.rule.objective, box, state)
        self.add(terms, box)
        if state.start is not None:
            self.add([state.start], box)
        for learn in state.rule.learn.values():
            for optimizer in learn.optimizers.values():
                self.enter_optimizer(optimizer)

    def is_constant(self, level: Level, state: State) -> bool:
        """Whether the gradient that changes a state is a constant: `first order` (2.11.3)."""
        edges = [t for t in self.facts.backprop_into.get(self.level.name, []) if t.source is level]
        inits = self.facts.inits(level, state) if self.starts else []
        own = [t for t in inits if t.source is self.level]
        if own or self.starts and self.level in self.facts.starts_at(level, state):
            edges = own or inits
        return bool(edges) and all(t.first_order for t in edges)

    def enter_constant(self, level: Level, state: State, box: Box) -> None:
        if self.all_open and state.rule.objective is not None:
            outer, self.through = self.through, self.through or f"{level.family}{FIRST_ORDER}"
            self.add(addends(state.rule.objective, box, state), box)
            self.through = outer

    def enter_optimizer(self, optimizer: Box) -> None:
        """All that it computes enters the weight it serves."""
        self.add(list(roots_of(optimizer)), optimizer)
        for inner in optimizer.levels:
            self.enter_optimizer(inner)

    # ---- what a flat function cuts off ----

    def cut_off(self) -> dict[object, Term]:
        """The weights and states that a gradient would reach if it passed the flat functions, each
        with the one that it would have to pass.
        """
        found: dict[object, Term] = {}
        for term, box in list(self.cut):
            before = self.weights.keys() | self.states.keys()
            self.through = ""
            self.add(flat_args(term), box)
            self.walk()
            after = self.weights.keys() | self.states.keys()
            found.update(dict.fromkeys(after - before, term))
        return found
