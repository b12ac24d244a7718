"""Terms of an optimizer as Python: tensors, and numbers, which stay Python's own.

A number (a setting, the count, a schedule made of them) is known before an array is touched: it has
no leading axes and none of its own. `Chained` works in place on what nobody else holds, so that a
rule element by element makes few passes and little garbage.
"""

from __future__ import annotations

from nlc.backward import Underivable
from nlc.derive import gradient
from nlc.lacking import NotLowered
from nlc.rules import Gradient
from nlc.system import EXAMPLES, Box, State, Term, line_terms

from .expressions import (
    ATOM,
    CALLS,
    COMPARISONS,
    PLUS,
    POWER,
    TIMES,
    UNARY,
    Expressions,
    Value,
    may_be_steep,
)  # fmt: skip

# Functions of one number; `max` and the like stand in `of_numbers`.
NUMBERS = {
    **{op: f"math.{op}" for op in ("exp", "log", "sqrt", "sin", "cos", "floor", "tanh")},
    **{op: f"numbers.{op}" for op in ("sign", "sigmoid", "softplus", "silu", "gelu")},
    **{op: f"numbers.{op}" for op in ("smooth_abs", "smooth_sign")},
    "abs": "abs",
}
SAME = ("stop", "sum", "mean")  # of one number, the number
IN_PLACE = ("exp", "log", "sqrt", "abs", "sign", "sin", "cos", "floor", "sigmoid", "tanh", "relu")


class Fresh(Value):
    """A tensor that only this expression holds."""


def is_plain(value: Value) -> bool:
    """A number, as Python has it."""
    return not value.lead and value.own == 0


class RuleExpressions(Expressions):
    """`weight` is what every array here is like."""

    def write(self, term: Term) -> Value:
        if term.op in self.hooks:
            return self.hooks[term.op](term)
        if term.op == "where" and is_plain(self(term.args[0])):
            return self.chosen(term)
        values = [self(a) for a in term.args]
        if values and all(map(is_plain, values)) and not term.shape:
            code = self.of_numbers(term, [v.code for v in values], values)
            if code is not None:
                return code
        return super().write(term)

    def window(self, term: Term) -> int:
        """Of examples none is missing."""
        return 0 if term.shape[:1] == (EXAMPLES,) else super().window(term)

    def of_numbers(self, term: Term, codes: list[str], values: list[Value]) -> Value | None:
        """The operation on Python's numbers, or None where it is the same as on tensors."""
        op = term.op
        if op in SAME:
            return values[0]
        if op in NUMBERS:
            return Value(f"{NUMBERS[op]}({codes[0]})", ATOM, False, 0)
        if op == "pow":
            text = f"{values[0].at(ATOM)} ** {values[1].at(ATOM)}"
            return Value(text, POWER, False, 0)
        if op in COMPARISONS:
            return Value(f"float({self.asked(term)})", ATOM, False, 0)
        if op in ("min", "max"):
            return Value(f"{op}({codes[0]}, {codes[1]})", ATOM, False, 0)
        if op == "clip":
            x, low, high = codes
            return Value(f"min(max({x}, {low}), {high})", ATOM, False, 0)
        if op == "relu":
            return Value(f"max({codes[0]}, 0.0)", ATOM, False, 0)
        if op == "mod":
            return Value(f"{values[0].at(UNARY)} % {values[1].at(UNARY)}", TIMES, False, 0)
        return None

    def asked(self, condition: Term) -> str:
        """A condition on numbers as Python asks it."""
        if condition.op in COMPARISONS and self.uses[id(condition)] < 2:
            a, b = (self(x).at(PLUS) for x in condition.args)
            return f"{a} {COMPARISONS[condition.op]} {b}"
        return self(condition).code

    def chosen(self, term: Term) -> Value:
        """One of two, by a number."""
        a, b = self(term.args[1]), self(term.args[2])
        text = f"({a.code} if {self.asked(term.args[0])} else {b.code})"
        return Value(text, ATOM, a.lead or b.lead, max(a.own, b.own))

    # ---- what has the precision of the weight ----------------------------------------------------

    def like(self, text: str) -> str:
        return f"torch.{text}, dtype=weight.dtype, device=weight.device)"

    def op_range(self, term: Term) -> Value:
        return Value(self.like(f"arange({term.info}"), ATOM, False, 1)

    def op_eye(self, term: Term) -> Value:
        return Value(self.like(f"eye({term.info}"), ATOM, False, 2)

    def condition(self, term: Term, number: bool) -> Value:
        value = super().condition(term, False)
        if not number or is_plain(value):
            return value
        return Value(f"({value.code}).to(weight.dtype)", ATOM, value.lead, value.own)

    def op_expand(self, term: Term) -> Value:
        v = self(term.args[0])
        if not is_plain(v):
            return super().op_expand(term)
        shape = tuple(map(abs, term.shape))
        return Value(f"weight.new_full({shape}, {v.code})", ATOM, False, len(shape))

    def op_where(self, term: Term) -> Value:
        c, a, b = term.args
        if not (is_plain(self(a)) and is_plain(self(b))):
            return super().op_where(term)
        test = self.condition(c, False) if c.op in COMPARISONS else self(c)
        asked = test.code if c.op in COMPARISONS else f"{test.atom} != 0"
        one = f"weight.new_full((), {self(a).code})"
        return Value(f"torch.where({asked}, {one}, {self(b).code})", ATOM, test.lead, test.own)

    def op_index(self, term: Term) -> Value:
        """One of a list of numbers, by a number."""
        listed, at = term.args
        if listed.op != "stack" or not is_plain(self(at)):
            return super().op_index(term)
        entries = [self(a).code for a in listed.args]
        listed_ = ", ".join(entries) + "," * (len(entries) == 1)
        return Value(f"({listed_})[int({self(at).code})]", ATOM, False, 0)


class Chained(RuleExpressions):
    """The same, in place on what is fresh."""

    def __call__(self, term: Term) -> Value:
        value = super().__call__(term)
        if isinstance(value, Fresh) and self.uses[id(term)] > 1:
            return self.named(term, value)
        return value

    def named(self, term: Term, value: Value) -> Value:
        """What is used twice has a name, and is nobody's to change."""
        name = self.code.name(term.op)
        self.code.add(f"{name} = {value.code}")
        self.done[id(term)] = Value(name, ATOM, value.lead, value.own)
        return self.done[id(term)]

    def fit(self, value: Value, own: int) -> str:
        """Without leading axes torch puts them in by itself."""
        return super().fit(value, own) if self.lead else value.atom

    def fits(self, a: Term, term: Term) -> bool:
        """Whether the value of `term` has room in that of `a`."""
        return a.shape == term.shape

    def infix(self, term: Term, sign: str, level: int) -> Value:
        (x, y), _, _ = self.together(term)
        first, second = term.args
        plain = super().infix(term, sign, level)
        if not plain.lead or term.op not in ("add", "sub", "mul", "div"):
            return plain
        if isinstance(x, Fresh) and self.fits(first, term) and self.alike(y, second, term):
            return Fresh(f"{x.atom}.{term.op}_({y.code})", ATOM, True, x.own)
        turned = isinstance(y, Fresh) and term.op in ("add", "mul") and self.fits(second, term)
        if turned and self.alike(x, first, term):
            return Fresh(f"{y.atom}.{term.op}_({x.code})", ATOM, True, y.own)
        return Fresh(plain.code, plain.level, True, plain.own)

    def alike(self, value: Value, term: Term, whole: Term) -> bool:
        """Whether it can be added as it stands: no axes are to be put in."""
        return is_plain(value) or value.own == len(whole.shape) or not self.lead

    def called(self, term: Term, template: str) -> Value:
        value = super().called(term, template)
        inner = self(term.args[0])
        if not value.lead or term.op not in CALLS:
            return value
        if isinstance(inner, Fresh) and term.op in IN_PLACE:
            return Fresh(f"{inner.atom}.{term.op}_()", ATOM, True, value.own)
        if term.op == "sqrt":  # nothing is derived through what a step writes
            return Fresh(f"{inner.atom}.sqrt()", ATOM, True, value.own)
        return Fresh(value.code, value.level, True, value.own)

    def op_frobenius(self, term: Term) -> Value:
        v, axes = self(term.args[0]), self.own_axes(term.args[0])
        return Value(f"torch.linalg.vector_norm({v.code}, dim={axes})", ATOM, v.lead, 0)

    def op_neg(self, term: Term) -> Value:
        inner = self(term.args[0])
        if isinstance(inner, Fresh):
            return Fresh(f"{inner.atom}.neg_()", ATOM, True, inner.own)
        value = super().op_neg(term)
        return Fresh(value.code, value.level, True, value.own) if value.lead else value

    def op_pow(self, term: Term) -> Value:
        base, exponent = term.args
        inner, power = self(base), self(exponent)
        value = super().op_pow(term)
        if not value.lead:
            return value
        if isinstance(inner, Fresh) and is_plain(power) and not may_be_steep(term):
            squared = exponent.op == "const" and exponent.info == 2
            text = "square_()" if squared else f"pow_({power.code})"
            return Fresh(f"{inner.atom}.{text}", ATOM, True, value.own)
        return Fresh(value.code, value.level, True, value.own)

    def op_matmul(self, term: Term) -> Value:
        value = super().op_matmul(term)
        return Fresh(value.code, value.level, True, value.own) if value.lead else value

    def choice(self, term: Term, function: str) -> Value:
        """With a number, a bound."""
        a, b = term.args
        for x, bound in ((a, b), (b, a)):
            value, number = self(x), self(bound)
            if value.lead and is_plain(number):
                side = "min" if function == "maximum" else "max"
                fresh = isinstance(value, Fresh)
                text = f"{value.atom}.clamp{'_' if fresh else ''}({side}={number.code})"
                return Fresh(text, ATOM, True, value.own)
        return super().choice(term, function)

    def op_clip(self, term: Term) -> Value:
        x, low, high = (self(a) for a in term.args)
        if x.lead and is_plain(low) and is_plain(high):
            call = "clamp_" if isinstance(x, Fresh) else "clamp"
            text = f"{x.atom}.{call}(min={low.code}, max={high.code})"
            return Fresh(text, ATOM, True, x.own)
        return super().op_clip(term)


FOREIGN = {
    "across": "", "position": "", "next": "", "dropout": "", "past": "", "conv": "", "fade": "",
    "rope": "", "weight": "a weight that is made",
}  # fmt: skip


def check_words(rule: Box, weights: bool) -> None:
    """What belongs to a body on tokens, or to a stream that a line gives, has no code in a rule;
    weights only where they are handed to it.
    """
    roots = [*line_terms(rule.lines), rule.write, rule.retain]
    own = [t for root in roots if root is not None for t in root.walk()]
    for term in [*own, *(t for t in rule.terms() if t.op != "across")]:
        if term.op in FOREIGN and not (weights and term.op == "weight"):
            what = FOREIGN[term.op] or f"`{term.op}`"
            raise NotLowered(f"{what} in the optimizer `{rule.name}`", term.span)


# ---- what a rule says ----------------------------------------------------------------------------


def derived(box: Box, state: State) -> Gradient | None:
    """The gradient in closed form, or None where no rule of ours derives it."""
    try:
        found = gradient(box, state)
    except Underivable:
        return None
    return found


def found_terms(found: Gradient) -> list[Term]:
    pairs = [t for e in found.examples for t in (e.input, e.surprise)]
    return [*pairs, *(t for _, t in found.direct)]


def uses_examples(box: Box) -> bool:
    return any(t.op == "input" and t.info in ("input", "surprise") for t in box.terms())
