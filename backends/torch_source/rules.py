"""Optimizers as methods on whole arrays: what a level does at a firing (2.9.6).

One method serves every array of the same kind: `lead` axes come before the array's own ([batch,
heads], [heads] or none). `Pure` writes rules at tokens, which a slower level may differentiate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from nlc.lacking import NotLowered
from nlc.resolve.shapes import broadcast
from nlc.system import Array, Box, Learn, Shape, State, Term

from .code import Code, identifier
from .expressions import ATOM, Value
from .rule_body import AT_TASK, STREAMS, Kept, RuleBody, Slope, Written
from .rule_streams import examples_asked
from .rule_terms import RuleExpressions, is_plain, uses_examples


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
        settings: Mapping[str, Term],
        streams: Mapping[str, Term],
        passed: Mapping[str, int | None] | None = None,
        weights: bool = False,
        across: Mapping[int, int] | None = None,
    ) -> Written:
        """`(weight, grad, m, count) -> (what is kept of the weight, the amount)`; `m` holds the
        rule's states. `passed`: settings that are given as well, with how many axes they have of
        their own. `weights`: the rule may make some, which are then given too. `across`: which
        number of those of its line each `across` of a stream is.
        """
        inner = Code(depth=self.code.depth)
        found = {t.info.path: t for t in rule.terms() if t.op == "weight"}
        made = dict(sorted(found.items())) if weights else {}
        names = weight_names(made.values(), [*STREAMS, *IN_METHODS, *map(identifier, passed or {})])
        numbers = across or {}
        body = Pure(self, inner, rule, lead, settings, streams, passed or {}, names, numbers)
        body.write("NAME")
        written = self.once(wish, inner.text(), tuple(body.kept), rule.retain is None)
        return replace(written, weights=tuple(made.values()))

    def part_of_sum(self, term: Term, lead: int, across: Mapping[int, int], rows: bool) -> str:
        """The method that gives what one array adds to one of a line's `across`, for each head."""
        inner = Code(depth=self.code.depth)
        hooks: dict[str, Callable[[Term], Value]] = {
            "input": lambda t: Value(identifier(str(t.info)), ATOM, True, len(t.shape)),
            "across": lambda t: Value(f"across[{across[id(t)]}]", ATOM, True, 0),
            "count": lambda t: Value("count", ATOM, False, 0),
        }
        e = RuleExpressions(inner, lead, hooks=hooks)
        names = ["weight", "grad", *(("input", "surprise") if rows else ())]
        given = "".join(f", {identifier(n)}: Tensor" for n in names)
        given += ", count: int, across: tuple[Tensor, ...]"
        with inner.function(f"def NAME(self{given}) -> Tensor:", [*names, "count", "across"]):
            inner.docstring(["What this array adds to `across`."])
            e.count(term.args)
            value = e(term.args[0])
            one = f"weight.new_full(weight.shape[:{lead}], {value.code})"
            inner.add(f"return {value.code if value.lead else one}")
        return self.once(f"measure_{len(self.known)}", inner.text()).name

    def once(
        self,
        wish: str,
        text: str,
        kept: tuple[Kept, ...] = (),
        keeps_all: bool = True,
        pointwise: bool = False,
        streams: tuple[str, ...] = (),
        tasks: tuple[int, ...] = (),
    ) -> Written:
        """A method of this text, `NAME` in place of its name; one for all that say the same."""
        known = self.known.get(text)
        if known is not None and known.kept == kept:
            return known
        name, n = wish, 1
        while any(w.name == name for w in self.known.values()):
            n += 1
            name = f"{wish}_{n}"
        made = Written(name, kept, keeps_all, pointwise, streams, tasks=tasks)
        if known is not None:  # the same text over arrays of other sizes
            return replace(made, name=known.name)
        self.known[text] = made
        for head in ("def NAME(", f"def {AT_TASK}NAME("):
            text = text.replace(head, head.replace("NAME", name))
        lines = text.rstrip("\n").split("\n")
        self.code.lines += [*lines, ""]
        return made


IN_METHODS = ("m", "count", "across")


def weight_names(made: Iterable[Term], taken: list[str]) -> dict[str, str]:
    """By path, what a weight of a rule is called in its method: as in the tree of weights."""
    names: dict[str, str] = {}
    for term in made:
        name = identifier(term.info.path.rsplit(".", 1)[-1])
        while name in taken:
            name += "_"
        taken.append(name)
        names[term.info.path] = name
    return names


class Pure(RuleBody):
    """A method that changes nothing it is given: `m` gets new arrays."""

    def __init__(
        self,
        writer: RuleWriter,
        code: Code,
        rule: Box,
        lead: int,
        settings: Mapping[str, Term],
        streams: Mapping[str, Term],
        passed: Mapping[str, int | None],
        weights: Mapping[str, str],
        across: Mapping[int, int],
    ) -> None:
        super().__init__(code, rule, lead, settings, streams, passed, weights)
        self.writer = writer
        self.numbers = across

    def write(self, name: str) -> None:
        rule, code = self.rule, self.code
        types = {k: "float" if own is None else "Tensor" for k, own in self.passed.items()}
        types |= dict.fromkeys(self.weights.values(), "Tensor")
        extra = ", across: tuple[Tensor, ...]" if self.numbers else ""
        extra += "".join(f", {identifier(n)}: {t}" for n, t in types.items())
        rows = "".join(
            f"{identifier(n)}: Tensor, "
            for n in ("input", "surprise")
            if examples_asked(rule, self.streams.values())
        )
        given = f"weight: Tensor, grad: Tensor, {rows}m: dict[str, Tensor], count: int{extra}"
        head = f"def {name}(self, {given}) -> tuple[Any, Tensor]:"
        names = [*STREAMS, *IN_METHODS, *map(identifier, self.passed), *self.weights.values()]
        with code.function(head, names):
            code.docstring(self.about())
            self.streams_given()
            self.body(rule)
            assert rule.write is not None
            roots = [t for t in (rule.retain, rule.write) if t is not None]
            self.count(*roots)
            keep = self.e(rule.retain).code if rule.retain is not None else "1.0"
            amount = self.e(rule.write)
            text = amount.code
            if is_plain(amount):
                text = f"torch.full_like(weight, {text})"
            if self.later:
                self.code.add(f"amount = {text}")
                text = "amount"
            for change in self.later:
                change()
            code.add(f"return {keep}, {text}")

    def across(self, term: Term) -> Value:
        return Value(f"across[{self.numbers[id(term)]}]", ATOM, True, 0)

    def holds(self, kept: Kept) -> str:
        if kept.std:
            raise NotLowered(f"a memory of `{self.rule.name}` that is drawn", self.rule.span)
        self.kept.append(kept)
        name = self.code.name(kept.name)
        self.code.add(f'{name} = m["{kept.name}"]')
        self.keys[name] = kept.name
        return name

    def begin(self, name: str, start: Term, array: Array) -> None:
        value = self.of_arrays(start, array.name)
        whole = f"({value.code}).expand_as({name})"
        if is_plain(value):
            whole = f"torch.full_like({name}, {value.code})"
        self.code.add(f"{name} = {whole}", f'm["{self.keys[name]}"] = {name}')

    def put(self, place: tuple[int, str, str], code: str) -> None:
        name = self.held[place]
        self.code.add(f"{name} = {code}", f'm["{self.keys[name]}"] = {name}')

    def change(
        self, box: Box, state: State, array: Array, amount: Term | None, retains: bool
    ) -> None:
        place = id(box), state.name, array.name
        name, own = self.held[place], len(array.shape)
        text = name
        if amount is not None:
            self.count(amount)
            value = self.e(amount)
            told = self.e.fit(value, own) if value.own != own else value.code
        if retains:
            text = f"{self.kept_of(state, array)} * {name}"
        if amount is not None:
            minus = told.startswith("-") and value.own == own
            text += f" - {told[1:].lstrip()}" if minus else f" + {told}"
        self.put(place, text)

    def nested(self, box: Box, state: State, array: Array, line: Learn, slope: Slope) -> None:
        """A memory of gradients that learns by a rule of its own."""
        rule = line.optimizers[array.shape]
        if line.steps > 1 or state.rule.after_retain or line.streams or uses_examples(rule):
            raise NotLowered(f"`{line.rule}` of the memory `{state.name}`", line.span)
        place = id(box), state.name, array.name
        name, base = self.held[place], self.keys[self.held[place]]
        given = {n: self.e_of(line.settings[n]) for n, _ in rule.inputs if n not in STREAMS}
        passed = {n: None if is_plain(v) else v.own for n, v in given.items()}
        wish = f"rule_{identifier(self.rule.name)}_{identifier(state.name)}"
        method = self.writer.method(wish, rule, self.lead, {}, {}, passed)
        kept, amount, inner = self.code.names(["kept", "amount", "inner"])
        held = [(k.name, self.holds(self.kept_inside(base, k, array))) for k in method.kept]
        self.code.add(f"{inner} = {{{', '.join(f'{json.dumps(k)}: {n}' for k, n in held)}}}")
        arguments = [name, self.e_of(slope.terms[array.name]).code, inner, self.counts]
        arguments += [v.code for v in given.values()]
        self.code.add(f"{kept}, {amount} = self.{method.name}({', '.join(arguments)})")
        keeps = [] if state.rule.retain is None else [self.kept_of(state, array)]
        keeps += [] if method.keeps_all else [kept]
        self.put(place, f"{' * '.join([*keeps, name])} + {amount}")
        for key, _ in held:
            self.code.add(f'm["{base}.{key}"] = {inner}["{key}"]')

    def gather(self, name: str, term: Term, key: str) -> None:
        value = self.e_of(term)
        self.code.add(f"{name} = {name} + {value.at(ATOM)}", f'm["{key}"] = {name}')

    def empty(self, sums: list[str]) -> None:
        for key in sums:
            name = next(n for n, k in self.keys.items() if k == key)
            self.code.add(f'm["{key}"] = torch.zeros_like({name})')


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


__all__ = ["ELEMENTWISE", "Kept", "RuleWriter", "Written", "fitted"]
