"""Terms to Python expressions over a whole span of ticks.

A value that changes with the ticks has leading axes [batch, *mapped, time]; a weight or a constant
has none. The
language broadcasts from the last axis of a value's own shape, so where ranks differ axes are put in
after the leading.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from nlc.diagnostics import InternalError
from nlc.system import Term
from nlc.windows import rows_of

from .code import Code

ATOM, POWER, UNARY, TIMES, PLUS, COMPARE = 9, 8, 7, 6, 5, 4

CALLS = {
    "exp": "torch.exp",
    "log": "torch.log",
    "sqrt": "parts.sqrt",
    "sqrt_slope": "parts.sqrt_slope",
    "abs": "torch.abs",
    "sign": "torch.sign",
    "sin": "torch.sin",
    "cos": "torch.cos",
    "floor": "torch.floor",
    "sigmoid": "torch.sigmoid",
    "softplus": "F.softplus",
    "silu": "F.silu",
    "gelu": "parts.gelu",
    "tanh": "torch.tanh",
    "relu": "torch.relu",
    "smooth_abs": "parts.smooth_abs",
    "smooth_sign": "parts.smooth_sign",
    "unit": "parts.unit",
    "gelu_slope": "parts.gelu_slope",
    "silu_slope": "parts.silu_slope",
}
SIGNS = {"add": ("+", PLUS), "sub": ("-", PLUS), "mul": ("*", TIMES), "div": ("/", TIMES)}
SQUARES = {2: 1, 4: 2}  # powers that are squares of squares: torch's own are ten times slower
COMPARISONS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}


def may_be_steep(power: Term) -> bool:
    """Whether a derivative may be infinite where the base is 0: that one is 0 (2.12)."""
    base, exponent = power.args
    if exponent.op != "const":
        return base.op != "const" or not base.info
    return bool(0 < exponent.info < 2 and exponent.info != 1)


@dataclass(frozen=True)
class Value:
    """A Python expression. `lead`: it has the leading axes. `own`: how many axes follow them."""

    code: str
    level: int
    lead: bool
    own: int

    def at(self, level: int) -> str:
        return self.code if self.level >= level else f"({self.code})"

    @property
    def atom(self) -> str:
        return self.at(ATOM)


@dataclass
class Expressions:
    """Writes terms of one body. `names`: Python names of its inputs and lines. `hooks`: operations
    the body decides.
    """

    code: Code
    lead: int
    names: dict[str, Value] = field(default_factory=dict)
    hooks: dict[str, Callable[[Term], Value]] = field(default_factory=dict)
    uses: Counter[int] = field(default_factory=Counter)
    done: dict[int, Value] = field(default_factory=dict)
    of_flow: bool = False  # its inputs are those of the model
    alive: list[Term] = field(
        default_factory=list
    )  # terms in `done`: an identity is one only while it lives

    def count(self, roots: Iterable[Term]) -> None:
        """Terms used twice get a name of their own; so they must be known before writing."""
        seen: set[int] = set()
        stack = list(roots)
        for root in stack:
            self.uses[id(root)] += 1
        while stack:
            term = stack.pop()
            if id(term) in seen:
                continue
            seen.add(id(term))
            for a in term.args:
                self.uses[id(a)] += 1
                stack.append(a)

    def __call__(self, term: Term) -> Value:
        if id(term) in self.done:
            return self.done[id(term)]
        value = self.write(term)
        if (
            self.uses[id(term)] > 1
            and value.level != ATOM
            or self.uses[id(term)] > 1
            and "(" in value.code
        ):
            name = self.code.name(f"{term.op}_{len(self.done)}" if term.op != "product" else "y")
            self.code.add(f"{name} = {value.code}")
            value = Value(name, ATOM, value.lead, value.own)
        self.done[id(term)] = value
        self.alive.append(term)
        return value

    def anew(self, term: Term) -> Value:
        """The term, where states are others than those that all so far was made of."""
        done, self.done = self.done, {}
        value = self(term)
        self.done = done
        return value

    def window(self, term: Term) -> int:
        """How many ticks its rows are of, of which some may be missing."""
        return rows_of(term)

    def only_seen(self, value: Value, term: Term) -> Value:
        """The value for a sum over its rows: nought where the window is not yet full (2.9.2)."""
        rows = self.window(term)
        if not rows or not value.lead:
            return value
        seen = self.names[f"seen {rows}"].code + ".unsqueeze(-1)" * (value.own - 1)
        return Value(f"parts.only({value.code}, {seen})", ATOM, True, value.own)

    def write(self, term: Term) -> Value:
        if term.op in self.hooks:
            return self.hooks[term.op](term)
        method = getattr(self, f"op_{term.op}", None)
        if method is not None:
            return method(term)  # type: ignore[no-any-return]
        if term.op in CALLS:
            return self.called(term, f"{CALLS[term.op]}({{0}})")
        if term.op in SIGNS:
            return self.infix(term, *SIGNS[term.op])
        if term.op in COMPARISONS:
            return self.condition(term, number=True)
        raise InternalError(f"no code for `{term.op}`")

    # ---- shapes ---------------------------------------------------------------------------------

    def fit(self, value: Value, own: int) -> str:
        """The value with `own` axes of its own: axes of 1 after the leading ones."""
        missing = own - value.own
        if not value.lead or missing <= 0 or value.code.replace(".", "").isdigit():
            return value.code if value.level == ATOM else f"({value.code})"
        if value.own == 0:
            return f"{value.atom}[..., {', '.join(['None'] * missing)}]"
        return value.atom + f".unsqueeze({-value.own - 1})" * missing

    def leading(self, value: Value) -> str:
        """The sizes of the leading axes."""
        return f"*{value.atom}.shape[:{-value.own}]" if value.own else f"*{value.atom}.shape"

    def together(self, term: Term) -> tuple[list[Value], bool, int]:
        values = [self(a) for a in term.args]
        return values, any(v.lead for v in values), max((v.own for v in values), default=0)

    def called(self, term: Term, template: str) -> Value:
        values, lead, own = self.together(term)
        codes = [f"self.full({v.code}, ())" if plain_number(v) else v.code for v in values]
        return Value(template.format(*codes), ATOM, lead, own)

    def op_mul(self, term: Term) -> Value:
        """A product; with the slope of gelu it is one operation of torch."""
        bar, slope = term.args
        if slope.op == "gelu_slope" and self.uses[id(slope)] < 2 and bar.shape == slope.shape:
            b, x = self(bar), self(slope.args[0])
            if b.lead and x.lead:
                return Value(f"parts.gelu_back({b.code}, {x.code})", ATOM, True, b.own)
        return self.infix(term, *SIGNS["mul"])

    def op_div(self, term: Term) -> Value:
        """A whole matrix by a number: one division, as each takes the time of three products."""
        a, b = (self(t) for t in term.args)
        if a.own < 2 or a.own <= b.own or not b.lead:
            return self.infix(term, *SIGNS["div"])
        once = Value(f"{b.atom}.reciprocal()", ATOM, True, b.own)
        return Value(f"{a.at(TIMES)} * {self.fit(once, a.own)}", TIMES, True, a.own)

    def infix(self, term: Term, sign: str, level: int) -> Value:
        (a, b), lead, own = self.together(term)
        left = a.at(level) if a.own == own or not a.lead else self.fit(a, own)
        right = b.at(level + 1) if b.own == own or not b.lead else self.fit(b, own)
        return Value(f"{left} {sign} {right}", level, lead, own)

    def own_axes(self, term: Term) -> str:
        """The axes of a whole array, from the end."""
        return (
            "("
            + ", ".join(str(-i) for i in range(len(term.shape), 0, -1))
            + ("," if len(term.shape) == 1 else "")
            + ")"
        )

    # ---- leaves
    # ------------------------------------------------------------------------------------

    def op_const(self, term: Term) -> Value:
        text = repr(term.info)
        if text in ("inf", "-inf", "nan"):
            text = f'float("{text}")'
        return Value(text, ATOM if not text.startswith("-") else UNARY, False, 0)

    def op_input(self, term: Term) -> Value:
        return self.names[f"input {term.info}"]

    def op_local(self, term: Term) -> Value:
        return self.names[f"local {term.info}"]

    def op_range(self, term: Term) -> Value:
        return Value(f"self.range({term.info})", ATOM, False, 1)

    def op_eye(self, term: Term) -> Value:
        return Value(f"self.eye({term.info})", ATOM, False, 2)

    def op_position(self, term: Term) -> Value:
        return Value(f"s.positions({self.lead})", ATOM, True, 0)

    # ---- element by element ---------------------------------------------------------------------

    def op_neg(self, term: Term) -> Value:
        v = self(term.args[0])
        return Value(f"-{v.at(POWER)}", UNARY, v.lead, v.own)

    def op_pow(self, term: Term) -> Value:
        base, exponent = term.args
        if exponent.op == "const" and exponent.info in SQUARES:
            bare = base.op == "abs" and self.uses[id(base)] < 2  # an even power has no sign
            v = self(base.args[0] if bare else base)
            return Value(v.atom + ".square()" * SQUARES[exponent.info], ATOM, v.lead, v.own)
        (a, b), lead, own = self.together(term)
        left, right = self.fit(a, own), self.fit(b, own)
        if may_be_steep(term):
            return Value(f"parts.power({left}, {right})", ATOM, lead, own)
        left = left if a.level == ATOM or left.startswith("(") else f"({left})"
        return Value(f"{left} ** {right}", POWER, lead, own)

    def condition(self, term: Term, number: bool) -> Value:
        (a, b), lead, own = self.together(term)
        test = f"{self.fit(a, own)} {COMPARISONS[term.op]} {self.fit(b, own)}"
        return (
            Value(f"self.number({test})", ATOM, lead, own)
            if number
            else Value(test, COMPARE, lead, own)
        )

    def op_where(self, term: Term) -> Value:
        c, a, b = term.args
        test = (
            self.condition(c, number=False)
            if c.op in COMPARISONS and self.uses[id(c)] < 2
            else self(c)
        )
        if c.op == "const":  # a known one, where the other branch widens what it chooses
            test = Value(f"self.full({test.code}, ())", ATOM, False, 0)
        values = [test, self(a), self(b)]
        if a.op == b.op == "const":  # two numbers alone would have torch's own precision
            values[1] = Value(f"self.full({values[1].code}, ())", ATOM, False, 0)
        own, lead = max(v.own for v in values), any(v.lead for v in values)
        asked = (
            self.fit(values[0], own)
            if c.op in COMPARISONS and test.level == COMPARE
            else f"{self.fit(values[0], own)} != 0"
        )
        return Value(
            f"torch.where({asked}, {self.fit(values[1], own)}, {self.fit(values[2], own)})",
            ATOM,
            lead,
            own,
        )

    def choice(self, term: Term, function: str) -> Value:
        (a, b), lead, own = self.together(term)
        return Value(f"self.{function}({self.fit(a, own)}, {self.fit(b, own)})", ATOM, lead, own)

    def op_max(self, term: Term) -> Value:
        return self.choice(term, "maximum")

    def op_min(self, term: Term) -> Value:
        return self.choice(term, "minimum")

    def op_mod(self, term: Term) -> Value:
        (a, b), lead, own = self.together(term)
        return Value(f"torch.remainder({self.fit(a, own)}, {self.fit(b, own)})", ATOM, lead, own)

    def op_clip(self, term: Term) -> Value:
        values, lead, own = self.together(term)
        x, low, high = (self.fit(v, own) for v in values)
        return Value(f"self.clip({x}, {low}, {high})", ATOM, lead, own)

    # ---- vectors
    # ------------------------------------------------------------------------------------

    def op_sum(self, term: Term) -> Value:
        v = self(term.args[0])
        if term.info is None or v.own == 1:
            v = self.only_seen(v, term.args[0])
        if term.info == 1:
            return Value(f"{v.atom}.sum(-1)", ATOM, v.lead, v.own - 1)
        if v.own == 0:
            return v
        return Value(
            f"{v.atom}.sum({self.own_axes(term.args[0]) if v.own > 1 else -1})", ATOM, v.lead, 0
        )

    def op_mean(self, term: Term) -> Value:
        v, rows = self(term.args[0]), self.window(term.args[0])
        if rows and v.own == 1 and v.lead:
            many = f"{self.names[f'seen {rows}'].code}.sum(-1)"
            v = self.only_seen(v, term.args[0])
            return Value(f"{v.atom}.sum(-1) / {many}", TIMES, True, 0)
        if term.info == 1:
            return Value(f"{v.atom}.mean(-1)", ATOM, v.lead, v.own - 1)
        return (
            Value(f"{v.atom}.mean({self.own_axes(term.args[0])})", ATOM, v.lead, 0) if v.own else v
        )

    def op_dot(self, term: Term) -> Value:
        (a, b), lead, own = self.together(term)
        if own == 1:
            a = self.only_seen(a, term.args[0])
        return Value(f"({self.fit(a, own)} * {self.fit(b, own)}).sum(-1)", ATOM, lead, own - 1)

    def op_outer(self, term: Term) -> Value:
        (a, b), lead, own = self.together(term)
        return Value(
            f"{self.fit(a, own)}.unsqueeze(-1) * {self.fit(b, own)}.unsqueeze(-2)",
            TIMES,
            lead,
            own + 1,
        )

    def op_length(self, term: Term) -> Value:
        v = self(term.args[0])
        if v.own == 1:
            v = self.only_seen(v, term.args[0])
        return Value(f"parts.length({v.code}, {term.info!r})", ATOM, v.lead, v.own - 1)

    def op_length_slope(self, term: Term) -> Value:
        v = self(term.args[0])
        return Value(f"parts.length_slope({v.code}, {term.info!r})", ATOM, v.lead, v.own)

    def op_frobenius(self, term: Term) -> Value:
        """As a length: torch's own norm has no second derivative at 0."""
        v, axes = self(term.args[0]), len(term.args[0].shape)
        flat = f"{v.atom}.flatten(-{axes})" if axes > 1 else v.code
        return Value(f"parts.length({flat})", ATOM, v.lead, 0)

    def op_softmax(self, term: Term) -> Value:
        v = self(term.args[0])
        if v.own == 1:
            v = self.least_unseen(v, term)
        return Value(f"torch.softmax({v.code}, -1)", ATOM, v.lead, v.own)

    def op_qr(self, term: Term) -> Value:
        v = self(term.args[0])
        return Value(f"parts.orthogonal({v.code})", ATOM, v.lead, v.own)

    def op_top(self, term: Term) -> Value:
        v = self(term.args[0])
        if v.own == 1:
            v = self.least_unseen(v, term)
        return Value(f"parts.top({v.code}, {term.info})", ATOM, v.lead, v.own)

    def least_unseen(self, value: Value, term: Term) -> Value:
        """A window of numbers, below all others where there is no tick."""
        rows = self.window(term)
        if not rows or not value.lead:
            return value
        seen = self.names[f"seen {rows}"].code
        return Value(f"{value.atom}.masked_fill({seen} == 0, float('-inf'))", ATOM, True, 1)

    def op_matmul(self, term: Term) -> Value:
        a, b = (self(x) for x in term.args)
        b = self.only_seen(b, term.args[1])
        ranks = len(term.args[0].shape), len(term.args[1].shape)
        lead = a.lead or b.lead
        if ranks == (1, 1):
            return Value(f"({a.atom} * {b.atom}).sum(-1)", ATOM, lead, 0)
        if ranks[0] == 1:
            rows = f"{a.atom}.unsqueeze(-2)" + (
                f".unsqueeze({self.lead})" * (ranks[1] - 2) if a.lead else ""
            )
            return Value(f"({rows} @ {b.atom}).squeeze(-2)", ATOM, lead, len(term.shape))
        if ranks[1] == 1:
            return Value(
                f"({a.atom} @ {b.atom}.unsqueeze(-1)).squeeze(-1)", ATOM, lead, len(term.shape)
            )
        own = max(ranks)
        return Value(f"{self.fit(a, own)} @ {self.fit(b, own)}", TIMES, lead, own)

    def op_solve(self, term: Term) -> Value:
        a, b = (self(x) for x in term.args)
        if len(term.args[0].shape) == 1:
            return Value(
                f"torch.linalg.solve({b.code}, {a.atom}.unsqueeze(-2), left=False).squeeze(-2)",
                ATOM,
                a.lead or b.lead,
                a.own,
            )
        return Value(
            f"torch.linalg.solve({b.code}, {a.code}, left=False)", ATOM, a.lead or b.lead, a.own
        )

    # ---- shape
    # --------------------------------------------------------------------------------------

    def suffix(self, term: Term, text: str) -> Value:
        v = self(term.args[0])
        return Value(f"{v.atom}{text}", ATOM, v.lead, len(term.shape))

    def op_split(self, term: Term) -> Value:
        return self.suffix(term, f".unflatten(-1, ({term.shape[-2]}, {term.shape[-1]}))")

    def op_join(self, term: Term) -> Value:
        return self.suffix(term, ".flatten(-2)")

    def op_column(self, term: Term) -> Value:
        return self.suffix(term, ".unsqueeze(-1)")

    def op_squeeze(self, term: Term) -> Value:
        return self.suffix(term, ".squeeze(-1)")

    def op_transpose(self, term: Term) -> Value:
        return self.suffix(term, ".mT")

    def op_reshape(self, term: Term) -> Value:
        v = self(term.args[0])
        shape = ", ".join(map(str, term.shape)) or "()"
        if not v.lead:
            return Value(f"{v.atom}.reshape({shape})", ATOM, False, len(term.shape))
        return Value(f"{v.atom}.reshape({self.leading(v)}, {shape})", ATOM, True, len(term.shape))

    def op_item(self, term: Term) -> Value:
        v = self(term.args[0])
        return Value(f"{v.atom}.select({-v.own}, {term.info})", ATOM, v.lead, v.own - 1)

    def op_index(self, term: Term) -> Value:
        """Entries of a list, by numbers that may change with the ticks."""
        v, at = (self(a) for a in term.args)
        if v.own != 1:
            raise InternalError("entries of an array of arrays")
        numbers = at.atom if at.lead or at.own else f"self.full({at.code}, ())"
        numbers = numbers if at.own else f"{numbers}.unsqueeze(-1)"
        taken = f"parts.entries({v.code}, {numbers})"
        return Value(taken if at.own else f"{taken}.squeeze(-1)", ATOM, True, at.own)

    def op_stack(self, term: Term) -> Value:
        values, lead, own = self.together(term)
        if not lead and all(v.own == 0 for v in values):
            return Value(f"self.listed({', '.join(v.code for v in values)})", ATOM, False, 1)
        return Value(
            f"self.stack({', '.join(self.fit(v, own) for v in values)})", ATOM, lead, own + 1
        )

    def op_concat(self, term: Term) -> Value:
        values, lead, own = self.together(term)
        return Value(f"self.concat({', '.join(self.fit(v, own) for v in values)})", ATOM, lead, own)

    def op_expand(self, term: Term) -> Value:
        v = self(term.args[0])
        shape = tuple(map(abs, term.shape))
        sizes = ", ".join(map(str, shape))
        if v.lead:
            return Value(
                f"{self.fit(v, len(term.shape))}.expand({self.leading(v)}, {sizes})",
                ATOM,
                True,
                len(term.shape),
            )
        return Value(f"self.full({v.code}, {shape})", ATOM, False, len(shape))

    def op_sum_to(self, term: Term) -> Value:
        v = self(term.args[0])
        v = self.only_seen(v, term.args[0])
        wide, narrow = (
            term.args[0].shape,
            (1,) * (len(term.args[0].shape) - len(term.shape)) + term.shape,
        )
        axes = tuple(
            i - len(wide) for i, (a, b) in enumerate(zip(wide, narrow, strict=True)) if a != b
        )
        extra = len(wide) - len(term.shape)
        if not axes and not extra:
            return v
        summed = f"{v.atom}.sum({axes}, keepdim=True)" if axes else v.atom
        squeezed = "".join(f".squeeze({i - len(wide)})" for i in range(extra))
        return Value(f"{summed}{squeezed}", ATOM, v.lead, len(term.shape))

    # ---- weights, losses
    # ------------------------------------------------------------------------------

    def op_linear(self, term: Term) -> Value:
        x, w = (self(a) for a in term.args)
        return Value(f"F.linear({x.code}, {w.code})", ATOM, x.lead, x.own)

    def op_rms_norm(self, term: Term) -> Value:
        x, g = (self(a) for a in term.args)
        eps = "" if term.info == 1e-6 else f", {term.info!r}"
        return Value(f"parts.rms_norm({x.code}, {g.code}{eps})", ATOM, x.lead, x.own)

    def op_layer_norm(self, term: Term) -> Value:
        values = [self(a) for a in term.args]
        return Value(
            f"parts.layer_norm({', '.join(v.code for v in values)})",
            ATOM,
            values[0].lead,
            values[0].own,
        )

    def op_layer_norm_back(self, term: Term) -> Value:
        bar, x = (self(a) for a in term.args)
        return Value(f"parts.layer_norm_back({bar.code}, {x.code})", ATOM, x.lead, x.own)

    def op_embed(self, term: Term) -> Value:
        ids, table = (self(a) for a in term.args)
        return rows_at(table.code, ids, term.args[0].op == "input" and self.of_flow)

    def op_cross_entropy(self, term: Term) -> Value:
        logits, ids = (self(a) for a in term.args)
        return Value(f"self.cross_entropy({logits.code}, {ids.code})", ATOM, True, ids.own)

    def op_stop(self, term: Term) -> Value:
        v = self(term.args[0])
        x = v.atom if v.lead or v.own else f"self.full({v.code}, ())"  # or a plain number
        return Value(f"{x}.detach()", ATOM, v.lead, v.own)

    def op_rope(self, term: Term) -> Value:
        v = self(term.args[0])
        base = "" if term.info == 10000 else f", {term.info!r}"
        x = v.code if v.lead else f"self.stream({v.code}, s, {self.lead})"
        return Value(f"parts.rope({x}, s.ticks, {self.lead - 1}{base})", ATOM, True, v.own)


def rows_at(table: str, ids: Value, checked: bool) -> Value:
    """The rows of these numbers, of which one that is known may be plain Python; `checked`: they
    are, as an input of the model.
    """
    at = ids.code if ids.lead or ids.own else f"self.full({ids.code}, ())"
    code = f"F.embedding({at}.long(), {table})" if checked else f"parts.rows({table}, {at})"
    return Value(code, ATOM, ids.lead, ids.own + 1)


def plain_number(value: Value) -> bool:
    """Whether it is a number of Python's, which torch's functions do not take."""
    return not value.lead and not value.own and bool(re.fullmatch(r"-?[\d.]+(e-?\d+)?", value.code))
