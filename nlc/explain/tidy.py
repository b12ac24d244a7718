"""Terms as a person would write them: numbers in front, like terms together, cases merged.

In: terms that reverse mode has made. Out: terms of the same value, but for how broadcasting is
written. Equal terms come out as one object, so `is` compares what is said.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from math import prod

from ..backward import is_number, make, root_slope
from ..resolve.shapes import broadcast
from ..rules import Example, Gradient
from ..system import Shape, Term

Factor = tuple[Term, float]  # a base, and the power it is raised to
Product = tuple[float, tuple[Factor, ...]]  # a number, and what it multiplies


def tidied(gradient: Gradient, tidy: Tidy) -> Gradient:
    """The same gradient, in a person's words."""
    examples = (
        Example(e.array, tidy.of(e.input), tidy.of(e.surprise), tidy.of(e.output))
        for e in gradient.examples
    )
    direct = tuple((array, tidy.of(t)) for array, t in gradient.direct)
    return Gradient(gradient.state, tuple(examples), gradient.value, direct)


def never(term: Term) -> bool:
    return False


class Tidy:
    """`positive`: terms that are known to be above zero, by what a reader may assume."""

    def __init__(self, positive: Callable[[Term], bool] = never) -> None:
        self.positive = positive
        self.done: dict[int, tuple[Term, Term]] = {}
        self.known: dict[Hashable, Term] = {}

    def of(self, term: Term) -> Term:
        if id(term) not in self.done:
            new = self.rewritten(term)
            if new.shape != term.shape and new.op != "const":
                new = self.same(make("expand", new, shape=term.shape))
            self.done[id(term)] = term, new
        return self.done[id(term)][1]

    def same(self, term: Term) -> Term:
        """The first term that says this."""
        said = term.info if isinstance(term.info, Hashable) else id(term.info)
        kind = (term.op, type(said), said, term.shape, *(id(a) for a in term.args))
        return self.known.setdefault(kind, term)

    def number(self, value: float, at: Term) -> Term:
        return self.same(Term("const", (), (), float(value), None, at.span))

    def rewritten(self, term: Term) -> Term:
        match term.op:
            case "stop":
                return self.same(term)
            case "const":
                return self.number(term.info, term)
            case "add" | "sub" | "neg":
                whole = Term(term.op, tuple(self.of(a) for a in term.args), term.shape)
                return self.total(self.addends(whole), term)
            case "mul" | "div" | "sqrt" | "sqrt_slope":
                return self.whole(self.product(term), term)
            case "pow" if term.args[1].op == "const":
                return self.whole(self.product(term), term)
            case "where" if (slope := root_slope(term)) is not None:  # it is 0 at 0 (2.12)
                return self.of(slope)
        args = tuple(self.of(a) for a in term.args)
        match term.op:
            case "expand" | "sum_to" if args[0].shape == term.shape or args[0].op == "const":
                return args[0]
            case "matmul":
                pairs = [self.factors(a) for a in args]
                new = [self.built(1.0, f, a) for (_, f), a in zip(pairs, args, strict=True)]
                inner = self.same(make("matmul", *new, shape=term.shape))
                return self.built(pairs[0][0] * pairs[1][0], ((inner, 1.0),), inner)
            case "column" | "sum_to":
                return self.outside(term, args[0])
            case "where":
                return self.cases(term, *args)
            case "abs" | "sign":
                return self.sized(term.op, args[0])
            case "lt" | "le" | "gt" | "ge":
                decided = self.compared(term.op, *args)
                if decided is not None:
                    return self.number(decided, term)
        return self.same(
            Term(term.op, args, term.shape, term.info, term.form, term.span) if args else term
        )

    def outside(self, term: Term, x: Term) -> Term:
        """Numbers stand before a column and before a sum; a column of one number is that number."""
        if term.op == "column" and not x.shape:
            return x
        number, factors = self.factors(x)
        if not factors:
            return self.same(Term(term.op, (x,), term.shape, term.info, None, term.span))
        rest = self.built(1.0, factors, x)
        shape = (*rest.shape, 1) if term.op == "column" else term.shape
        inner = self.same(Term(term.op, (rest,), shape, term.info, None, term.span))
        return self.built(number, ((inner, 1.0),), inner)

    def sized(self, op: str, x: Term) -> Term:
        """`abs(-2 * x)` is `2 * abs(x)`, and of what is above 0 it is the same."""
        number, factors = self.factors(x)
        rest = self.built(1.0, factors, x)
        own = abs(number) if op == "abs" else float((number > 0) - (number < 0))
        if not factors or self.surely(rest):
            return self.built(own, factors if op == "abs" else (), x)
        if number == 1:
            rest = x
        inner = self.same(Term(op, (rest,), rest.shape, None, None, x.span))
        return self.built(own, ((inner, 1.0),), x)

    def surely(self, term: Term) -> bool:
        return term.info > 0 if term.op == "const" else self.positive(term)

    def compared(self, op: str, a: Term, b: Term) -> bool | None:
        if a is b:
            return op in ("le", "ge")
        for less, more, words in ((a, b, ("lt", "le")), (b, a, ("gt", "ge"))):
            if less.op == "const" and less.info <= 0 and self.surely(more):
                return op in words
        return None

    def cases(self, term: Term, c: Term, a: Term, b: Term) -> Term:
        if c.op == "const":
            return a if c.info else b
        if a is b:
            return a
        return self.same(Term("where", (c, a, b), term.shape, None, None, term.span))

    # ---- products --------------------------------------------------------------------------------

    def product(self, term: Term) -> Product:
        """A number and powers, in the order in which they are first met."""
        first = self.of(term.args[0])
        match term.op:
            case "mul":
                return self.times(self.factors(first), self.factors(self.of(term.args[1])))
            case "div":
                return self.times(self.factors(first), self.raised(self.of(term.args[1]), -1.0))
            case "sqrt":
                return self.raised(first, 0.5)
            case "sqrt_slope":
                number, factors = self.raised(first, -0.5)
                return 0.5 * number, factors
        return self.raised(first, float(term.args[1].info))

    def raised(self, term: Term, n: float) -> Product:
        number, factors = self.factors(term)
        whole = n == int(n)
        if n == 0:
            return 1.0, ()
        if number > 0 or whole and number:
            if whole:
                return number**n, tuple((t, p * n) for t, p in factors)
            if len(factors) < 2 and all(p == 1 for _, p in factors):
                return number**n, tuple((t, n) for t, _ in factors)
        return 1.0, ((term, n),)

    def times(self, a: Product, b: Product) -> Product:
        """Powers of one base add up, unless that would hide a division by zero."""
        found: list[Factor] = list(a[1])
        for base, n in b[1]:
            for i, (other, m) in enumerate(found):
                roots = m != int(m) or n != int(n)
                if other is base and (m * n > 0 or roots or self.surely(base)):
                    found[i] = (base, m + n)
                    break
            else:
                found.append((base, n))
        return self.signs(a[0] * b[0], [f for f in found if f[1] != 0])

    def signs(self, number: float, factors: list[Factor]) -> Product:
        """`abs(x) * sign(x)` is x, and `x * sign(x)` is abs(x)."""
        for sign in (t for t, p in factors if t.op == "sign" and p == 1):
            x = sign.args[0]
            rest = tuple(f for f in factors if f[0] is not sign)
            for base, p in rest:
                if base is x and p == int(p) and p > 0:
                    new = self.same(make("abs", x)), base
                elif base.op == "abs" and base.args[0] is x and p >= 1:
                    new = x, base
                else:
                    continue
                left = ((t, q - 1) if t is base else (t, q) for t, q in rest)
                with_one = self.times((number, tuple(left)), self.factors(new[0]))
                return with_one[0], tuple(f for f in with_one[1] if f[1])
        return number, tuple(factors)

    def factors(self, term: Term) -> Product:
        """What a term that is tidy multiplies."""
        match term.op:
            case "const":
                return float(term.info), ()
            case "expand":
                return self.factors(term.args[0])
            case "neg":
                number, rest = self.factors(term.args[0])
                return -number, rest
            case "mul":
                return self.times(self.factors(term.args[0]), self.factors(term.args[1]))
            case "div":
                number, below = self.factors(term.args[1])
                under: Product = 1 / number, tuple((t, -p) for t, p in below)
                return self.times(self.factors(term.args[0]), under)
            case "pow" if term.args[1].op == "const":
                return 1.0, ((term.args[0], float(term.args[1].info)),)
            case "sqrt":
                return 1.0, ((term.args[0], 0.5),)
        return 1.0, ((term, 1.0),)

    def whole(self, product: Product, at: Term) -> Term:
        """A product as a term; cases that are numbers take in what they multiply."""
        number, factors = product
        if number == 0:
            return self.number(0, at)
        for base, n in factors:
            if base.op == "where" and n == 1 and splits(base):
                rest = number, tuple(f for f in factors if f[0] is not base)
                if rest[1]:
                    parts = (self.times(self.factors(b), rest) for b in base.args[1:])
                    a, b = (self.whole(p, at) for p in parts)
                    return self.cases(self.shaped(base, a, b), base.args[0], a, b)
        return self.built(number, factors, at)

    def shaped(self, *terms: Term) -> Term:
        return make("where", *terms, shape=wide(t.shape for t in terms))

    def built(self, number: float, factors: tuple[Factor, ...], at: Term) -> Term:
        if number == 0:
            return self.number(0, at)
        flips = [f for f in factors if f[1] > 0 and f[1] % 2 == 1 and simple_difference(f[0])]
        if number < 0 and flips:  # -(a - b) is b - a
            number, (base, n) = -number, flips[0]
            turned = self.same(make("sub", base.args[1], base.args[0], shape=base.shape))
            factors = tuple((turned, n) if f is flips[0] else f for f in factors)
        above = [self.powered(t, p) for t, p in factors if p > 0]
        below = [self.powered(t, -p) for t, p in factors if p < 0]
        if abs(number) != 1 or not above:
            above.insert(0, self.number(abs(number), at))
        top = self.chain(above)
        if below:
            top = self.joined("div", top, self.chain(below))
        if number > 0:
            return top
        if top.op == "const":
            return self.number(-top.info, at)
        return self.same(make("neg", top))

    def chain(self, terms: list[Term]) -> Term:
        made = terms[0]
        for t in terms[1:]:
            made = self.joined("mul", made, t)
        return made

    def joined(self, op: str, a: Term, b: Term) -> Term:
        return self.same(make(op, a, b, shape=wide((a.shape, b.shape))))

    def powered(self, base: Term, n: float) -> Term:
        if n == 1:
            return base
        if n == 0.5:
            return self.same(make("sqrt", base))
        return self.same(make("pow", base, self.number(n, base), shape=base.shape))

    # ---- sums ------------------------------------------------------------------------------------

    def addends(self, term: Term) -> list[Product]:
        """What a sum adds up, each as a product."""
        match term.op:
            case "neg":
                return [(-n, f) for n, f in self.addends(term.args[0])]
            case "add" | "sub":
                sign = -1 if term.op == "sub" else 1
                return [
                    *self.addends(term.args[0]),
                    *((sign * n, f) for n, f in self.addends(term.args[1])),
                ]
        number, factors = self.factors(term)
        if abs(number) == 1 and len(factors) == 1 and factors[0][1] == 1:
            inner = factors[0][0]
            if inner.op in ("add", "sub"):
                return [(number * n, f) for n, f in self.addends(inner)]
        return [(number, factors)]

    def total(self, addends: list[Product], at: Term) -> Term:
        """Like terms together, cases of one condition too; what is added comes before what is
        taken away.
        """
        found: dict[Hashable, Product] = {}
        for number, factors in addends:
            key = tuple(sorted((id(t), p) for t, p in factors))
            found[key] = (found[key][0] + number if key in found else number), factors
        left = self.merged([p for p in found.values() if p[0]], at)
        terms = [self.whole(p, at) for p in left]
        if not terms:
            return self.number(0, at)
        first = next((i for i, t in enumerate(terms) if not negative(t)), 0)
        made = terms.pop(first)
        for t in terms:
            op, rest = ("sub", self.negated(t)) if negative(t) else ("add", t)
            made = self.joined(op, made, rest)
        return made

    def negated(self, term: Term) -> Term:
        return self.number(-term.info, term) if term.op == "const" else term.args[0]

    def merged(self, addends: list[Product], at: Term) -> list[Product]:
        """`where(c, a, b) + where(c, d, e)` is `where(c, a + d, b + e)`."""
        groups: dict[int, list[Product]] = {}
        for number, factors in addends:
            if len(factors) == 1 and factors[0][1] == 1 and factors[0][0].op == "where":
                groups.setdefault(id(factors[0][0].args[0]), []).append((number, factors))
        many = [g for g in groups.values() if len(g) > 1]
        if not many:
            return addends
        group = many[0]
        rest = [p for p in addends if p not in group]
        wheres = [(n, f[0][0]) for n, f in group]
        a, b = (self.total([self.scaled(n, t.args[i]) for n, t in wheres], at) for i in (1, 2))
        one = self.cases(self.shaped(wheres[0][1], a, b), wheres[0][1].args[0], a, b)
        place = addends.index(group[0])
        return self.merged([*rest[:place], self.factors(one), *rest[place:]], at)

    def scaled(self, number: float, term: Term) -> Product:
        own, factors = self.factors(term)
        return number * own, factors


def simple_difference(term: Term) -> bool:
    return term.op == "sub" and term.args[0].op not in ("add", "sub")


def splits(case: Term) -> bool:
    """Whether a case takes in what it is multiplied with: one side is 0, or both are numbers."""
    sides = case.args[1:]
    return any(is_number(t, 0) for t in sides) or all(t.op == "const" for t in sides)


def negative(term: Term) -> bool:
    return term.op == "neg" or term.op == "const" and term.info < 0


def wide(shapes: Iterable[Shape]) -> Shape:
    """The shape that all stretch to; the one with most entries, where they cannot."""
    made: Shape | None = ()
    given = list(shapes)
    for shape in given:
        made = None if made is None else broadcast(made, shape)
    return max(given, key=lambda s: prod(map(abs, s))) if made is None else made


__all__ = ["Tidy", "tidied"]
