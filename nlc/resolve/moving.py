"""What carries ticks on is made at every tick, also where a rule that fires now and then asks for
it: in the rule of a state a call or a convolution is a line of its box. In a line of a flow that
waits for its label, a tick later, it is a line before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace

from ..system import Assign, Box, Learn, Line, Rule, State, Term

MOVING = ("call", "conv")
KEEPING = (*MOVING, "past", "fade")  # of a flow, whose lines a loss that waits does not run again


class Moving:
    """The lines that the rules of a box ask for. In an objective what asks the box's own states
    stays where it is, as a line would be a constant to it; so does what sees a state after
    retention, which no line does.
    """

    def __init__(
        self, box: Box | None, lines: Sequence[Line], taken: set[str],
        waiting: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self.box, self.taken, self.waiting = box, taken, waiting
        self.kinds = KEEPING if box is None else MOVING
        self.lines: list[Assign] = []
        self.values = {line.name: line.value for line in lines if isinstance(line, Assign)}
        self.done: dict[int, tuple[Term, Term]] = {}
        self.takes_own = True  # what asks the box's own states becomes a line too

    def state(self, state: State) -> State:
        rule = state.rule
        lines = {id(one): self.learn(one) for one in rule.learn.values()}  # one may serve several
        learn = {array: lines[id(one)] for array, one in rule.learn.items()}
        with self.within(own=False):
            objective = self.known(rule.objective)
        with self.within(own=not rule.after_retain):
            write = self.known(rule.write)
        new = Rule(
            objective, rule.once, self.known(rule.retain), rule.through, rule.onto,
            rule.after_retain, learn, write, self.known(rule.set),
        )  # fmt: skip
        return replace(state, rule=new)

    @contextmanager
    def within(self, own: bool) -> Iterator[None]:
        outer, self.takes_own, self.done = self.takes_own, own, {}
        yield
        self.takes_own, self.done = outer, {}

    def learn(self, learn: Learn) -> Learn:
        return replace(learn, settings={k: self(t) for k, t in learn.settings.items()})

    def known(self, term: Term | None) -> Term | None:
        return None if term is None else self(term)

    def __call__(self, term: Term) -> Term:
        """The term, lines in place of what they hold; what was one term stays one."""
        if id(term) not in self.done:
            self.done[id(term)] = term, self.made(term)
        return self.done[id(term)][1]

    def made(self, term: Term) -> Term:
        if term.op in self.kinds and not self.stays(term):
            name = self.name(term)
            self.lines.append(Assign(name, term))
            return Term("local", (), term.shape, name, term.form, term.span)
        args = tuple(map(self, term.args))
        if all(a is b for a, b in zip(args, term.args, strict=True)):
            return term
        return replace(term, args=args)

    def stays(self, term: Term) -> bool:
        """Whether it is known in a rule alone, or asks what it must not as a line."""
        seen, stack = set[str](), [term]
        while stack:
            for t in stack.pop().walk():
                if t.op in ("loss", "next", "count", "argument") or waits(t, self.waiting):
                    return True
                if not self.takes_own and t.op in ("apply", "state") and t.info.box is self.box:
                    return True
                if t.op == "local" and t.info in self.values and t.info not in seen:
                    seen.add(t.info)
                    stack.append(self.values[t.info])
        return False

    def name(self, term: Term) -> str:
        base = term.info.path.rsplit(".", 1)[-1] if term.op == "call" else term.op
        name, i = base, 1
        while name in self.taken:
            name, i = f"{base}_{i + 1}", i + 1
        self.taken.add(name)
        return name


def lined_up(lines: Sequence[Line], taken: set[str]) -> list[Line]:
    """The lines of a flow. One that waits for `next` is not run when its tick is, but when the
    label has come: what carries ticks on in it stands before it.
    """
    found: list[Line] = []
    waiting: set[str] = set()
    for line in lines:
        if isinstance(line, Assign):
            late = any(waits(t, waiting) for t in line.value.walk())
            waiting_before = waiting
            waiting = waiting - {line.name} | ({line.name} if late else set())
            if late:
                # a flow's name may be given anew, of itself: what waits is known line by line
                moving = Moving(None, (), taken, frozenset(waiting_before))
                value = moving(line.value)
                found += moving.lines
                line = Assign(line.name, value)
        found.append(line)
    return found


def waits(term: Term, waiting: Set[str]) -> bool:
    return term.op == "next" or term.op == "local" and term.info in waiting
