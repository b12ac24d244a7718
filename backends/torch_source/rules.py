"""Optimizers as methods on whole arrays: what a level does at a firing, on tokens and on steps.

One method serves every array of the same kind: `lead` axes come before the array's own ([batch,
heads], or none).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nlc.diagnostics import InternalError
from nlc.lower import NotLowered
from nlc.resolve.shapes import broadcast
from nlc.system import Assign, Box, Shape, State, Term

from .code import Code, identifier
from .expressions import ATOM, Expressions, Value


@dataclass
class Written:
    """A method of a rule: its name, and which states it keeps for an array, by suffix."""

    name: str
    states: tuple[str, ...]
    keeps_all: bool = True  # the rule itself lets nothing be forgotten


class RuleWriter:
    """Writes the methods of optimizers, each text once."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.known: dict[str, Written] = {}

    def method(
        self,
        wish: str,
        rule: Box,
        lead: int,
        settings: dict[str, Term],
        streams: dict[str, Term],
        passed: dict[str, int] | None = None,
    ) -> Written:
        """`(weight, grad, m, count) -> (what is kept of the weight, the amount)`; `m` holds the
        rule's states. `passed`: settings and streams that are given as well, with how many axes
        they have of their own.
        """
        inner = Code(depth=self.code.depth)
        states = RuleBody(inner, rule, lead, settings, streams, passed or {}).write("NAME")
        return self.once(wish, inner.text(), states, rule.retain is None)

    def once(
        self, wish: str, text: str, states: tuple[str, ...] = (), keeps_all: bool = True
    ) -> Written:
        """A method of this text, `NAME` in place of its name; one for all that say the same."""
        if text not in self.known:
            name, n = wish, 1
            while any(w.name == name for w in self.known.values()):
                n += 1
                name = f"{wish}_{n}"
            self.known[text] = Written(name, states, keeps_all)
            lines = text.replace("def NAME(", f"def {name}(").rstrip("\n").split("\n")
            self.code.lines += [*lines, ""]
        return self.known[text]


class RuleBody:
    """One optimizer on one kind of array."""

    def __init__(
        self,
        code: Code,
        rule: Box,
        lead: int,
        settings: dict[str, Term],
        streams: dict[str, Term],
        passed: dict[str, int],
    ) -> None:
        self.code, self.rule, self.lead = code, rule, lead
        self.settings, self.streams, self.passed = settings, streams, passed
        self.suffixes: list[str] = []
        self.values: dict[tuple[int, str], str] = {}

    def expressions(self, box: Box) -> Expressions:
        def state(term: Term) -> Value:
            return Value(
                self.values[id(term.info.box), term.info.name], ATOM, True, len(term.shape)
            )

        def count(term: Term) -> Value:
            return Value("count", ATOM, False, 0)

        def across(term: Term) -> Value:
            return Value("across", ATOM, False, 0)

        def given(term: Term) -> Value:
            return self.input(box, term)

        hooks: dict[str, Callable[[Term], Value]] = {
            "state": state,
            "count": count,
            "across": across,
            "input": given,
        }
        return Expressions(self.code, self.lead, hooks=hooks)

    def input(self, box: Box, term: Term) -> Value:
        name = term.info
        if name in ("weight", "grad"):
            return Value(name, ATOM, True, len(term.shape))
        if name in self.passed:
            return Value(identifier(name), ATOM, True, self.passed[name])
        if name in self.settings:
            return self.setting(name)
        raise NotLowered(f"`{name}` of `{self.rule.name}` in a whole step", self.rule.span)

    def setting(self, name: str) -> Value:
        """A setting that the line gives as a term: constants and the level's count only."""
        ticks = Value("self.counted(count)", ATOM, False, 0)
        e = Expressions(self.code, 0, hooks={"count": lambda t: ticks})
        e.count([self.settings[name]])
        value = e(self.settings[name])
        return Value(f"({value.code})", ATOM, False, value.own)

    def write(self, name: str) -> tuple[str, ...]:
        rule, code = self.rule, self.code
        uses_across = any(t.op == "across" for s in self.streams.values() for t in s.walk())
        extra = ", across: Tensor" if uses_across else ""
        extra += "".join(f", {identifier(n)}: Tensor" for n in self.passed)
        given = f"weight: Tensor, grad: Tensor, m: dict[str, Tensor], count: int{extra}"
        head = f"def {name}(self, {given}) -> tuple[Any, Tensor]:"
        names = ["weight", "grad", "m", "count", "across", *map(identifier, self.passed)]
        with code.function(head, names):
            where = f"{rule.span.source.name.rsplit('/', 1)[-1]}:{rule.span.line}"
            code.docstring(
                [
                    f"optimizer {rule.name} ({where}): what the weight keeps, and what is added.",
                    *(f"Source: {c}" for c in rule.cites),
                ]
            )
            for key, term in self.streams.items():
                e = self.expressions(rule)
                e.count([term])
                value = e(term)
                if key not in ("grad", "weight"):
                    raise NotLowered(f"the stream `{key}` given to `{rule.name}`", rule.span)
                code.add(f"{key} = {value.code}")
            self.body(rule, "")
            e = self.expressions(rule)
            e.names = self.names
            roots = [t for t in (rule.retain, rule.write) if t is not None]
            e.count(roots)
            keep = e(rule.retain).code if rule.retain is not None else "1.0"
            assert rule.write is not None
            code.add(f"return {keep}, {e(rule.write).code}")
        return tuple(self.suffixes)

    names: dict[str, Value]

    def body(self, box: Box, prefix: str) -> None:
        """Lines and states in text order; a state is new from its place on (2.9.6)."""
        self.names = {}
        lines = list(box.lines)
        e = self.expressions(box)
        e.names = self.names
        for step in box.order:
            kind, _, key = step.partition(":")
            if kind == "line":
                line = lines[int(key)]
                if not isinstance(line, Assign):
                    raise InternalError("a loop in an optimizer")
                e.count([line.value])
                value = e(line.value)
                name = self.code.name(line.name)
                self.code.add(f"{name} = {value.code}")
                self.names[f"local {line.name}"] = Value(name, ATOM, value.lead, value.own)
            elif kind == "state":
                self.state(box, box.state(key), prefix, e)
            else:
                raise NotLowered(f"a level inside `{self.rule.name}`", self.rule.span)

    def state(self, box: Box, state: State, prefix: str, e: Expressions) -> None:
        """A memory of gradients fires: its objective is linear in it, or it is set or written."""
        from nlc.derive import linear_rule, linear_slope, substitute

        if state.form.kind != "like" or state.start is not None:
            raise NotLowered(f"state `{state.name}` of `{self.rule.name}`", state.span)
        name = self.code.name(state.name)
        key = f"{prefix}{state.name}"
        self.suffixes.append(key)
        self.code.add(f'{name} = m["{key}"]')
        self.values[id(box), state.name] = name
        rule = state.rule
        amount: str | None = None
        if rule.objective is not None:
            slope = linear_slope(rule.objective, state.name)
            learn = rule.learn.get("")
            step = (
                linear_rule(next(iter(learn.optimizers.values())))
                if learn is not None and learn.optimizers
                else None
            )
            if (
                slope is None
                or step is None
                or learn is None
                or step.momentum
                or step.erase
                or step.keep
            ):
                raise NotLowered(f"the memory `{state.name}` of `{self.rule.name}`", state.span)
            rate = substitute(step.rate, learn.settings)
            slope_value, rate_value = e(slope), e(rate)
            own = len(state.form.sizes)
            amount = f"-{e.fit(rate_value, own)} * {e.fit(slope_value, own)}"
        elif rule.write is not None:
            amount = e(rule.write).atom
        if rule.set is not None:
            self.code.add(f"{name} = {e(rule.set).code}")
        elif amount is not None or rule.retain is not None:
            own = len(state.form.sizes)
            kept = f"{e.fit(e(rule.retain), own)} * {name}" if rule.retain is not None else name
            sign = (
                " - " + amount[1:]
                if amount and amount.startswith("-")
                else f" + {amount}"
                if amount
                else ""
            )
            self.code.add(f"{name} = {kept}{sign}")
        self.code.add(f'm["{key}"] = {name}')
        e.done.clear()


ELEMENTWISE = {
    *("add", "sub", "mul", "div", "pow", "neg", "lt", "le", "gt", "ge", "eq", "exp", "log", "sqrt"),
    *("abs", "sign", "sin", "cos", "floor", "mod", "sigmoid", "softplus", "silu", "gelu", "tanh"),
    *("relu", "clip", "min", "max", "where", "smooth_abs", "smooth_sign"),
}


def fitted(root: Term, shape: Shape) -> Term:
    """A stream of a line that serves arrays of many shapes, for an array of this one."""
    done: dict[int, Term] = {}

    def visit(term: Term) -> Term:
        if id(term) not in done:
            args = tuple(visit(a) for a in term.args)
            done[id(term)] = Term(term.op, args, new_shape(term, args), term.info, None, term.span)
        return done[id(term)]

    def new_shape(term: Term, args: tuple[Term, ...]) -> Shape:
        if term.op == "input":
            return shape if term.info in ("weight", "grad") else term.shape
        if term.op in ELEMENTWISE:
            wide: Shape | None = ()
            for a in args:
                wide = None if wide is None else broadcast(wide, a.shape)
            if wide is not None:
                return wide
        if not term.shape or all(a.shape == b.shape for a, b in zip(args, term.args, strict=True)):
            return term.shape
        if term.op in ("unit", "softmax"):
            return args[0].shape
        raise NotLowered(f"`{term.op}` in a stream for arrays of several shapes", term.span)

    return visit(root)
