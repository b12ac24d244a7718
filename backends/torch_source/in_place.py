"""Optimizers for levels on steps: methods that change an array, and what they keep of it, in place.

A rule element by element is told apart: it may serve any part of an array alone, so the runtime
hands it blocks that fit a cache, and small arrays many at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from nlc.backward import constant, div, is_number, mul, neg
from nlc.derive import same_term, substitute
from nlc.diagnostics import InternalError
from nlc.lacking import NotLowered
from nlc.rules import Example
from nlc.system import Array, Box, Learn, Shape, State, Term

from .code import Code, identifier
from .expressions import ATOM, TIMES, Value
from .pointwise import is_pointwise, plain_rule
from .rule_body import (
    AT_TASK,
    STREAMS,
    Kept,
    Slope,
    Written,
)
from .rule_streams import across_in, across_of, examples_asked
from .rule_tasks import TaskLevels
from .rule_terms import Chained, is_plain
from .rules import ELEMENTWISE, RuleWriter, fitted

ROOM, SHORT = 76, 20  # columns of a line, and of what needs no name
VIEWS = ("transpose", "reshape", "split", "join", "column", "squeeze", "item", "stop", "expand")


@dataclass(frozen=True)
class Part:
    """`numbers / (below) * tensors / (under)`, one summand of an amount."""

    minus: bool = False
    numbers: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    tensors: tuple[Term, ...] = ()
    under: tuple[Term, ...] = ()

    @property
    def coefficient(self) -> str:
        """Its number, as Python; "" is 1."""
        text = " * ".join(self.numbers)
        if len(self.numbers) == 1 and not self.below and not self.minus:
            return bare(text)
        if self.below:
            below = self.below[0] if len(self.below) == 1 else f"({' * '.join(self.below)})"
            text = f"{text or '1.0'} / {below}"
        if not self.minus:
            return text
        return f"-{text}" if text else "-1.0"

    def __mul__(self, other: Part) -> Part:
        return Part(
            self.minus != other.minus, self.numbers + other.numbers, self.below + other.below,
            self.tensors + other.tensors, self.under + other.under,
        )  # fmt: skip


class InPlace(TaskLevels):
    """`(weight, grad, what it keeps, count, across, settings)`, all that changes in place."""

    kind_of_expressions = Chained
    does = "in place"

    def __init__(
        self,
        writer: StepWriter,
        code: Code,
        rule: Box,
        lead: int,
        settings: Mapping[str, Term],
        streams: Mapping[str, Term],
        passed: Mapping[str, int | None],
        keep: float | None = 1.0,
        forgets: bool = True,
    ) -> None:
        """`keep`: what else the weight keeps; None, if it is given. `forgets`: whether the rule's
        own retention counts.
        """
        super().__init__(code, rule, lead, settings, streams, passed)
        self.writer = writer
        self.keep_also, self.forgets = keep, forgets
        self.parameters: list[str] = []
        self.across_terms = across_of(streams)
        self.pointwise = keep is not None and is_pointwise(rule, streams)
        self.e.hooks["expand"] = self.expand

    # ---- the method ------------------------------------------------------------------------------

    def write(self, name: str) -> None:
        rule, code = self.rule, self.code
        assert rule.write is not None
        streams = ["weight", "grad"]
        if examples_asked(rule, self.streams.values()):
            streams += [identifier("input"), identifier("surprise")]
        self.examples = tuple(streams[2:])
        extra = [identifier(n) for n in self.passed]
        code.taken = {*streams, "count", "across", "keep", *extra, *map(identifier, STREAMS)}
        start = len(code.lines)
        code.depth += 1
        code.docstring(self.about())
        self.settings_first()
        self.streams_given()
        self.body(rule)
        self.write_weight(rule.write, rule.retain)
        for change in self.later:
            change()
        code.depth -= 1
        arrays = ", ".join(f"{n}: Tensor" for n in (*streams, *self.parameters))
        numbers = ", count: int"
        numbers += ", across: tuple[float, ...]" if self.across_terms else ""
        numbers += ", keep: float | Tensor" if self.keep_also is None else ""
        numbers += "".join(
            f", {n}: {'float' if self.passed[k] is None else 'Tensor'}"
            for k, n in zip(self.passed, extra, strict=True)
        )
        lines, code.lines = code.lines[start:], code.lines[:start]
        code.add(f"def {name}(self, {arrays}{numbers}) -> None:")
        code.lines += lines
        if self.at_task:
            kept = ", ".join(f"{n}: Tensor" for n in ("weight", *self.parameters))
            self.write_task(f"def {AT_TASK}{name}(self, {kept}{numbers}) -> None:")

    def settings_first(self) -> None:
        """What a line makes of the count is a number, made once."""
        for name, _ in self.rule.inputs:
            if name in self.settings and name not in self.passed:
                value = self.setting(name)
                if len(value.code) > SHORT:
                    known = self.code.name(name)
                    self.code.add(f"{known} = {bare(value.code)}")
                    value = replace(value, code=known)
                self.made_settings[name] = value

    def input(self, term: Term) -> Value:
        return self.made_settings.get(str(term.info)) or super().input(term)

    def write_weight(self, write: Term, retain: Term | None) -> None:
        """weight = keep weight + amount; the amount is of the weight as it was."""
        self.cite(write)
        kept = self.whole_keep(retain if self.forgets else None)
        self.count(write)
        self.update("weight", kept, write, self.shape, is_weight)
        self.forget()

    def update(
        self, name: str, keep: str, amount: Term, shape: Shape, is_own: Callable[[Term], bool]
    ) -> None:
        """`name = keep name + amount`, where the amount is of what was."""
        found = self.parts(amount, shape, root=True)
        own = [any(is_own(x) for t in (*p.tensors, *p.under) for x in t.walk()) for p in found]
        if any(own) and (keep or sum(own) > 1):
            found = [Part(tensors=(self.made("amount", self.e(amount).code, amount.shape),))]
        elif any(own):  # what reads it comes first
            found.insert(0, found.pop(own.index(True)))
        calls = [f"mul_({keep})"] if keep else []
        calls += map(self.call_of, found)
        if len(f"{name}.{'.'.join(calls)}") > ROOM:
            calls = [f"mul_({self.short(keep, 'kept')})"] if keep else []
            calls += [self.call_of(p, True) for p in found]
        if len(f"{name}.{'.'.join(calls)}") > ROOM:
            self.code.add(*(f"{name}.{c}" for c in calls))
        else:
            self.code.add(f"{name}.{'.'.join(calls)}")

    def whole_keep(self, retain: Term | None) -> str:
        """What the weight keeps, by its rule and by its level; "": all."""
        parts = []
        if self.keep_also is None:
            parts.append("keep")
        elif self.keep_also != 1.0:
            parts.append(repr(self.keep_also))
        if retain is not None and not is_number(retain, 1.0):
            value = self.e_of(retain)
            parts.append(value.at(TIMES) if parts else value.code)
        return " * ".join(parts)

    def across(self, term: Term) -> Value:
        at = next(i for i, t in enumerate(self.across_terms) if t is term)
        return Value(f"across[{at}]", ATOM, False, 0)

    def expand(self, term: Term) -> Value:
        """A number needs no room where all is element by element."""
        value = self.e(term.args[0])
        return value if is_plain(value) and self.pointwise else self.e.op_expand(term)

    def lasting(self, term: Term, value: Value) -> str:
        """Not a view of what will change."""
        root = term
        while root.op in VIEWS:
            root = root.args[0]
        changes = root.op in ("state", "array") or root.op == "input" and root.info == "weight"
        return f"{value.atom}.clone()" if changes and value.lead else value.code

    # ---- amounts ---------------------------------------------------------------------------------

    def call_of(self, part: Part, named: bool = False) -> str:
        """The call that adds a part to an array: as few passes as torch has. `named`: what it is
        given has names.
        """
        c = part.coefficient
        codes = [self.e(t).code for t in (*part.tensors, *part.under)]
        if named:
            wishes = ["above"] * len(part.tensors) + ["below"] * len(part.under)
            codes = [self.short(x, n) for x, n in zip(codes, wishes, strict=True)]
            c = self.short(c, "factor")
        value = f", value={c}" if c else ""
        match len(part.tensors), len(part.under):
            case 0, 0:
                return f"add_({c or '1.0'})"
            case 1, 0 if c == "-1.0":
                return f"sub_({codes[0]})"
            case 1, 0:
                return f"add_({codes[0]}{f', alpha={c}' if c else ''})"
            case 2, 0:
                return f"addcmul_({codes[0]}, {codes[1]}{value})"
            case 1, 1:
                return f"addcdiv_({codes[0]}, {codes[1]}{value})"
        raise InternalError("an amount of too many parts")

    def short(self, code: str, wish: str) -> str:
        """A name for what takes a line of its own."""
        if len(code) <= SHORT:
            return code
        name = self.code.name(wish)
        self.code.add(f"{name} = {bare(code)}")
        return name

    def parts(self, term: Term, shape: Shape, root: bool = False) -> list[Part]:
        """A sum as its parts, each with at most two tensors."""
        found = self.summands(term, shape, root)
        return [p if self.has_call(p) else self.folded(p) for p in found]

    def has_call(self, part: Part) -> bool:
        return (len(part.tensors), len(part.under)) in ((0, 0), (1, 0), (2, 0), (1, 1))

    def folded(self, part: Part) -> Part:
        """What torch has no one call for is a tensor of its own."""
        whole = part.tensors[0] if part.tensors else constant(1.0, part.under[0])
        for t in part.tensors[1:]:
            whole = mul(whole, t)
        for t in part.under:
            whole = div(whole, t)
        return replace(part, tensors=(whole,), under=())

    def summands(self, term: Term, shape: Shape, root: bool = False) -> list[Part]:
        whole = [Part(tensors=(term,))]
        if self.plain(term) and term.op == "neg":
            return [Part(True) * p for p in self.summands(term.args[0], shape)]
        if self.plain(term):
            value = self.e(term)
            if value.code.startswith("-") and term.op == "const":
                return [Part(True, (value.code[1:],))]
            return [Part(numbers=(value.at(ATOM),))]
        if not root and self.e.uses[id(term)] > 1 or self.lead and term.shape != shape:
            return whole
        match term.op:
            case "neg":
                return [Part(True) * p for p in self.summands(term.args[0], shape)]
            case "add" | "sub":
                first, second = (self.summands(a, shape) for a in term.args)
                if any(not self.plain(a) and a.shape != shape for a in term.args):
                    return whole
                return [*first, *(Part(term.op == "sub") * p for p in second)]
            case "mul":
                first, second = (self.summands(a, shape) for a in term.args)
                if len(first) == 1 and len(second) == 1:
                    return [first[0] * second[0]]
                if self.plain(term.args[0]):
                    return [first[0] * p for p in second]
                if self.plain(term.args[1]):
                    return [second[0] * p for p in first]
            case "div":
                return self.quotient(term, shape)
            case "pow" if term.args[1].op == "const" and term.args[1].info == 2:
                inner = term.args[0]
                if inner.op in ("input", "state", "array", "local", "made"):
                    return [Part(tensors=(inner, inner))]
        return whole

    def quotient(self, term: Term, shape: Shape) -> list[Part]:
        above, below = term.args
        found = self.summands(above, shape)
        if self.plain(below):
            number = self.e(below).at(ATOM)
            return [p * Part(below=(number,)) for p in found]
        if len(found) == 1:
            return [found[0] * Part(under=(below,))]
        return [Part(tensors=(term,))]

    def plain(self, term: Term) -> bool:
        """Whether it is a number."""
        match term.op:
            case "const" | "count" | "across":
                return True
            case "input":
                return term.info not in STREAMS and is_plain(self.input(term))
            case "local":
                return is_plain(self.names[f"local {term.info}"])
            case "expand":
                return self.pointwise and self.plain(term.args[0])
            case "index":
                listed, at = term.args
                return listed.op == "stack" and all(map(self.plain, (*listed.args, at)))
        known = term.op in ELEMENTWISE or term.op == "stop"
        return known and not term.shape and all(map(self.plain, term.args))

    # ---- what is kept ----------------------------------------------------------------------------

    def holds(self, kept: Kept) -> str:
        name = self.code.name(kept.name)
        self.kept.append(kept)
        self.parameters.append(name)
        self.keys[name] = kept.name
        return name

    def begin(self, name: str, start: Term, array: Array) -> None:
        value = self.of_arrays(start, array.name)
        self.code.add(f"{name}.{'fill' if is_plain(value) else 'copy'}_({value.code})")

    def put(self, place: tuple[int, str, str], code: str) -> None:
        number = code.replace(".", "").replace("-", "").isdigit()
        self.code.add(f"{self.held[place]}.{'fill' if number else 'copy'}_({code})")

    def change(
        self, box: Box, state: State, array: Array, amount: Term | None, retains: bool
    ) -> None:
        name = self.held[id(box), state.name, array.name]
        retain = state.rule.retain if retains else None
        if amount is None:
            if retain is not None:
                self.code.add(f"{name}.mul_({self.kept_of(state, array)})")
            return
        self.count(amount)
        mean = self.mean(retain, amount, array.shape)
        if mean is not None:
            self.code.add(f"{name}.lerp_({mean})")
            return
        keeps_all = retain is None or is_number(retain, 1.0)
        keep = "" if keeps_all else self.kept_of(state, array)
        self.update(name, keep, amount, array.shape, lambda t: names_state(t, box, state))

    def mean(self, retain: Term | None, amount: Term, shape: Shape) -> str | None:
        """`keep old + (1 - keep) x` is one pass: the arguments of `lerp_`."""
        if retain is None or not self.plain(retain):
            return None
        found = self.parts(amount, shape, root=True)
        if len(found) != 1 or found[0].minus or len(found[0].tensors) != 1 or found[0].under:
            return None
        tensor = found[0].tensors[0]
        if tensor.shape != shape or not ones(retain, share_of(amount)):
            return None
        return f"{self.e(tensor).code}, {found[0].coefficient}"

    def gather(self, name: str, term: Term, key: str) -> None:
        self.count(term)
        self.update(name, "", term, term.shape, lambda t: False)

    def empty(self, sums: list[str]) -> None:
        names = {k: n for n, k in self.keys.items()}
        self.code.add(*(f"{names[key]}.zero_()" for key in sums))

    # ---- rules inside ----------------------------------------------------------------------------

    def learn(self, box: Box, state: State, slope: Slope) -> None:
        lines = list(dict.fromkeys(state.rule.learn.values()))
        for line in lines:
            if not line.optimizers:
                raise NotLowered(f"`{line.rule}` of `{state.name}`", line.span)
        if len({line.steps for line in lines}) > 1:
            raise NotLowered(f"several `steps` of `{state.name}`", state.span)
        steps = lines[0].steps if lines else 1
        retains = state.rule.retain is not None
        first, last = self.held_back(box, state, lines) if steps > 1 else (retains, lambda: None)
        for step in range(steps):
            if step:
                self.read(box, state)
                self.forget()
                self.is_retained = True
                slope = self.slope(box, state)
                self.is_retained = False
            for line in lines:
                self.learn_line(box, state, line, slope, step, first and step == 0)
        for array in state.form.arrays:
            if array.name not in state.rule.learn and first:
                self.change(box, state, array, None, True)
        last()

    def held_back(
        self, box: Box, state: State, lines: list[Learn]
    ) -> tuple[bool, Callable[[], None]]:
        """Several steps on the same data. Retention comes once, and unless it comes first no step
        sees it: whether the first step retains, and what comes after the last.
        """
        rules = [b for line in lines for b in line.optimizers.values()]
        reads = any(t.op == "input" and t.info == "weight" for b in rules for t in b.terms())
        retains = state.rule.retain is not None
        if any(b.retain is not None for b in rules) or reads and retains:
            raise NotLowered(f"`steps` of a rule that reads `{state.name}`", state.span)
        if not retains or state.rule.after_retain:
            return retains, lambda: None
        old = {}
        for array in state.form.arrays:
            name = self.held[id(box), state.name, array.name]
            old[array.name] = self.code.name("old")
            self.code.add(f"{old[array.name]} = {name}.clone()")

        def forget() -> None:
            for array in state.form.arrays:
                name, before = self.held[id(box), state.name, array.name], old[array.name]
                self.code.add(
                    f"{name}.sub_({before}).add_({self.kept_of(state, array)} * {before})"
                )

        return False, forget

    def learn_line(
        self, box: Box, state: State, line: Learn, slope: Slope, step: int, retains: bool
    ) -> None:
        """One step of the arrays that a line serves."""
        served = [a for a in state.form.arrays if state.rule.learn.get(a.name) is line]
        steps = line.steps
        across = self.sums_across(line, served, box, state, slope)
        for array in served:
            rule = line.optimizers[array.shape]
            simple = plain_rule(rule)
            if simple is not None and not line.streams:
                amount = neg(mul(substitute(simple.rate, line.settings), slope.terms[array.name]))
                self.change(box, state, array, amount, retains)
                continue
            counts = self.counts if steps == 1 else f"({self.counts} - 1) * {steps} + {step + 1}"
            self.call(box, state, array, line, slope, retains, counts, across, step == 0)

    def sums_across(
        self, line: Learn, served: list[Array], box: Box, state: State, slope: Slope
    ) -> str:
        """The numbers of `across`, as one name."""
        made: list[str] = []
        terms = across_of(line.streams)
        for term in terms:
            parts = []
            for array in served:
                measure = self.writer.measure(term, terms, array.shape, self.lead)
                grad = self.e_of(slope.terms[array.name]).code
                weight = self.held[id(box), state.name, array.name]
                told = f", ({', '.join(made)},)" if made else ""
                parts.append(f"self.{measure}({weight}, {grad}{told})")
            name = self.code.name("across")
            self.code.add(f"{name} = float({' + '.join(parts)})")
            made.append(name)
        return f"({', '.join(made)},)" if made else ""

    def call(
        self, box: Box, state: State, array: Array, line: Learn, slope: Slope, retains: bool,
        counts: str, across: str, first: bool,
    ) -> None:  # fmt: skip
        """The rule of a memory of gradients, where it is more than a step."""
        rule, name = line.optimizers[array.shape], self.held[id(box), state.name, array.name]
        passed, given = self.settings_of(rule, line)
        streams = {k: fitted(t, array.shape) for k, t in line.streams.items()}
        wish = f"rule_{identifier(self.rule.name)}_{identifier(state.name)}"
        method = self.writer.in_place(
            wish, rule, self.lead, {}, streams, passed, None, forgets=first
        )
        keep = self.kept_of(state, array) if retains else "1.0"
        if retains and state.rule.after_retain:
            self.code.add(f"{name}.mul_({keep})")
            keep = "1.0"
        grad = self.e_of(slope.terms[array.name])
        arguments = [name, grad.code]
        if method.streams:
            arguments += self.rows_of(slope.examples.get(array.name, []), array, state)
        base = self.keys[name]
        for kept in method.kept:
            inside = self.kept_inside(base, kept, array)
            known = next((n for n, k in self.keys.items() if k == inside.name), None)
            arguments.append(known or self.holds(inside))
        arguments += [counts, *([across] if across else []), keep, *given]
        self.code.add(f"self.{method.name}({', '.join(arguments)})")

    def settings_of(self, rule: Box, line: Learn) -> tuple[dict[str, int | None], list[str]]:
        passed: dict[str, int | None] = {}
        given = []
        for name, _ in rule.inputs:
            if name not in STREAMS:
                value = self.e_of(line.settings[name])
                passed[name] = None if is_plain(value) else value.own
                given.append(value.code)
        return passed, given

    def rows_of(self, examples: list[Example], array: Array, state: State) -> list[str]:
        """`input` and `surprise`, a row for each example."""
        if self.lead or not examples:
            raise NotLowered(f"examples of `{state.name}` for each head", state.span)
        made = []
        for kind in ("input", "surprise"):
            terms = [getattr(e, kind) for e in examples]
            codes = [f"{self.as_rows(self.e_of(t))}" for t in terms]
            made.append(codes[0] if len(codes) == 1 else f"torch.cat([{', '.join(codes)}])")
        return made

    def nested(self, box: Box, state: State, array: Array, line: Learn, slope: Slope) -> None:
        raise InternalError("a rule inside a rule is called by `learn_line`")


class StepWriter(RuleWriter):
    """Writes the rules of levels on steps."""

    def in_place(
        self,
        wish: str,
        rule: Box,
        lead: int,
        settings: Mapping[str, Term],
        streams: Mapping[str, Term],
        passed: Mapping[str, int | None],
        keep: float | None = 1.0,
        forgets: bool = True,
    ) -> Written:
        inner = Code(depth=self.code.depth)
        body = InPlace(self, inner, rule, lead, settings, streams, passed, keep, forgets)
        body.write("NAME")
        kept = tuple(body.kept)
        return self.once(wish, inner.text(), kept, True, body.pointwise, body.examples, body.tasks)

    def measure(self, term: Term, terms: list[Term], shape: Shape, lead: int) -> str:
        """The method that gives what one array of this shape adds to one of a line's `across`."""
        inner = Code(depth=self.code.depth)
        own = fitted(term, shape)
        places = [next(i for i, t in enumerate(terms) if t is a) for a in across_in(term)]
        index = {id(a): i for a, i in zip(across_in(own), places, strict=True)}
        before = places[-1]
        hooks: dict[str, Callable[[Term], Value]] = {
            "input": lambda t: Value(identifier(str(t.info)), ATOM, True, len(t.shape)),
            "across": lambda t: Value(f"across[{index[id(t)]}]", ATOM, False, 0),
            "count": lambda t: Value("count", ATOM, False, 0),
        }
        e = Chained(inner, lead, hooks=hooks)
        extra = ", across: tuple[float, ...]" if before else ""  # those before it
        with inner.function(
            f"def NAME(self, weight: Tensor, grad: Tensor{extra}) -> Tensor:",
            ["weight", "grad", "across"],
        ):
            inner.docstring(["What this array adds to `across`."])
            e.count(own.args)
            value = e(own.args[0])
            code = value.code if value.lead else f"weight.new_full((), {value.code})"
            inner.add(f"return {code}" + (".sum()" if lead and value.lead else ""))
        return self.once(f"measure_{len(self.known)}", inner.text()).name


# ---- what a rule says ----------------------------------------------------------------------------


def bare(text: str) -> str:
    """Without brackets around the whole."""
    if not text.startswith("("):
        return text
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if not depth:
            return text[1:-1] if i == len(text) - 1 else text
    return text


def is_weight(term: Term) -> bool:
    return term.op == "input" and term.info == "weight"


def names_state(term: Term, box: Box, state: State) -> bool:
    """Whether it is the state itself."""
    if term.op in ("product", "product_back"):
        return term.info.handle.box is box and term.info.handle.name == state.name
    own = term.op in ("state", "array", "apply")
    return own and term.info.box is box and term.info.name == state.name


def ones(keep: Term, share: Term | None) -> bool:
    """Whether two numbers add up to one, as they are written."""
    if share is None:
        return False
    if keep.op == share.op == "const":
        return bool(keep.info + share.info == 1.0)
    one = share.op == "sub" and share.args[0].op == "const" and share.args[0].info == 1
    return one and same_term(share.args[1], keep)


def share_of(amount: Term) -> Term | None:
    """The number r of an amount `-(r * -x)`, `r * x`."""
    match amount.op:
        case "neg":
            inner = amount.args[0]
            return share_of(inner) if inner.op in ("mul", "neg") else None
        case "mul":
            a, b = amount.args
            if not a.shape and b.shape:
                return a
            if not b.shape and a.shape:
                return b
            return a if a.op in ("const", "sub") else None
    return None


__all__ = ["InPlace", "StepWriter", "Written", "across_of", "is_pointwise"]
