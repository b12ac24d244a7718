"""Levels on tasks inside an optimizer (2.6.1): each step leaves sums, or the last of what is taken
once, in arrays of the rule; a second method fires the level when a task is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nlc.lacking import NotLowered
from nlc.system import Array, Box, Clock, State, Term

from .expressions import Value
from .pointwise import plain_rule
from .rule_body import STREAMS, Kept, RuleBody, Slope
from .rule_terms import is_plain
from .rules import ELEMENTWISE


class TaskLevels(RuleBody):
    """The part of a rule in place that is about tasks."""

    clocks = ("step", "task")
    keep_also: float | None  # None where the rule serves a memory of another

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.at_task: list[Callable[[], None]] = []
        self.tasks: tuple[int, ...] = ()  # period and first of their clock
        self.made_settings: dict[str, Value] = {}

    def write_task(self, head: str) -> None:
        """A second method: what its levels on tasks do when a task is over (2.6.1)."""
        self.made_settings = {}
        self.forget()
        self.code.add("")
        with self.code.block(head):
            self.code.docstring([f"optimizer {self.rule.name}, when a task is over."])
            for change in self.at_task:
                change()

    def tick_of_task(self, box: Box, state: State, clock: Clock) -> None:
        """What a firing leaves for the task's end: sums, or the last of what is taken once."""
        self.check_task(state, clock)
        rule = state.rule
        if rule.set is not None:
            self.cite(rule.set)
            new = {
                a.name: self.last(box, state, a, self.of_arrays(rule.set, a.name))
                for a in state.form.arrays
            }
            self.at_task.append(lambda: self.put_all(box, state, new))
        else:
            found = self.amounts_of(box, state)
            terms = found.terms if isinstance(found, Slope) else found
            arrays = {a.name: a for a in state.form.arrays}
            kept = {n: self.for_task(box, state, arrays[n], t, clock) for n, t in terms.items()}
            given = Slope(kept, {}) if isinstance(found, Slope) else kept
            self.at_task.append(lambda: self.add_amounts(box, state, given))
            sums = [] if rule.once else list(self.sums(box, state))
            self.at_task.append(lambda: self.empty(sums))
        self.at_task.append(lambda: self.onto(box, state))
        self.at_task.append(self.forget)

    def for_task(self, box: Box, state: State, array: Array, term: Term, clock: Clock) -> Term:
        if not state.rule.once:
            return self.summed(box, state, array.name, term, clock)
        name = self.last(box, state, array, self.e_of(term))
        return Term("made", (), array.shape, name)

    def last(self, box: Box, state: State, array: Array, value: Value) -> str:
        """Keeps what was the value at the last firing."""
        key = ".".join(n for n in (box.name, state.name, array.name, "last") if n)
        name = self.holds(Kept(key, self.own_shape(state, array)))
        self.code.add(f"{name}.{'fill' if is_plain(value) else 'copy'}_({value.code})")
        return name

    def check_task(self, state: State, clock: Clock) -> None:
        """When a task is over there are settings, and what was kept for it."""
        rule, name = state.rule, f"`{state.name}` of `{self.rule.name}`, on tasks,"
        if self.keep_also is None:
            raise NotLowered(f"{name} inside another rule", state.span)
        if self.tasks not in ((), (clock.period, clock.first)):
            raise NotLowered(f"{name} beside a level of another clock", state.span)
        self.tasks = clock.period, clock.first
        late = [rule.retain] if rule.retain is not None else []
        for line in dict.fromkeys(rule.learn.values()):
            rules = [plain_rule(b) for b in line.optimizers.values()]
            if None in rules or not rules or line.streams or line.steps > 1:
                raise NotLowered(f"{name} with `{line.rule}`", line.span)
            late += line.settings.values()
        for term in (t for root in late for t in root.walk()):
            known = term.op in ELEMENTWISE or term.op in ("const", "expand")
            if not known and (term.op != "input" or term.info in STREAMS):
                raise NotLowered(f"{name} with a number that changes in a task", term.span)
