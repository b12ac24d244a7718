"""Terms to text, in the language's own notation or in LaTeX.

In: a term. Out: what a person would write. `x'` is a transpose, so `e k'` is an outer product, and
`|x|` the length of a vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

from .backward import constant, div, make, mul
from .resolve.shapes import broadcast
from .system import ALL, Box, Handle, Term

# ---- terms, as the language writes them ----------------------------------------------------------

COMPARED, SUM, PRODUCT, UNARY, POWER, ATOM = range(6)
# how it is written, how tightly it binds, how tightly its operands must
_INFIX = {
    "add": (" + ", SUM, SUM, SUM), "sub": (" - ", SUM, SUM, PRODUCT),
    "mul": (" * ", PRODUCT, PRODUCT, UNARY), "div": (" / ", PRODUCT, PRODUCT, UNARY),
    "matmul": (" @ ", PRODUCT, PRODUCT, UNARY), "pow": ("^", POWER, ATOM, UNARY),
    "lt": (" < ", COMPARED, SUM, SUM), "le": (" <= ", COMPARED, SUM, SUM),
    "gt": (" > ", COMPARED, SUM, SUM), "ge": (" >= ", COMPARED, SUM, SUM),
    "eq": (" == ", COMPARED, SUM, SUM),
}  # fmt: skip
_OTHER = {"+": "-", "-": "+"}
_SAME = ("expand",)  # how broadcasting is written is no news to a reader
_NAMES = {"rms_norm": "norm", "layer_norm": "layernorm", "layer_norm_back": "layernorm_back"}


@dataclass
class Writer:
    """Terms to text. `bound`: terms that have a name by now. `state`: the one that rules speak of,
    whose arrays are named alone; `base` is what it is called. `body`: whose states need no box
    before their names. `kept`: the arrays of a network are those that have been retained.
    """

    bound: dict[int, str] = field(default_factory=dict)
    state: str = ""
    base: str = ""
    body: Box | None = None
    latex: bool = False
    kept: bool = False

    def text(self, term: Term, least: int = COMPARED) -> str:
        written, binds = self.written(term)
        if binds >= least:
            return written
        return rf"\left({written}\right)" if self.latex else f"({written})"

    def written(self, term: Term) -> tuple[str, int]:
        if id(term) in self.bound:
            return self.bound[id(term)], ATOM
        if term.op in _INFIX:
            return self.infix(term)
        match term.op:
            case "const":
                return self.number(term.info)
            case "stop" if isinstance(term.info, Term):
                return self.written(term.info)
            case "neg" if term.args[0].op in ("mul", "div"):
                return f"-{self.text(term.args[0], PRODUCT)}", PRODUCT
            case "neg":
                return f"-{self.text(term.args[0], UNARY)}", UNARY
            case "product" if term.args[0].op == "const":  # a vector is what a matrix says of 1
                return self.array(term), ATOM
            case "product":
                return f"{self.array(term)}{self.at}{self.text(term.args[0], UNARY)}", PRODUCT
            case "product_back":
                name = self.array(term)
                return f"{self.turned(name)}{self.at}{self.text(term.args[0], UNARY)}", PRODUCT
            case "input" | "local" | "argument":
                return self.name(term.info), ATOM
            case "state" | "array":
                return self.name(self.handle(term.info)), ATOM
            case "loss" | "position" | "count" | "zeros":
                return self.name(term.op), ATOM
            case "item":
                return f"{self.text(term.args[0], ATOM)}[{term.info}]", ATOM
        if term.op in _SAME or term.op == "sum_to" and prod(term.shape) == prod(term.args[0].shape):
            return self.written(term.args[0])
        if term.op == "length_slope":
            return self.written(slope_of_length(term))
        if term.op == "sqrt_slope":
            return self.written(div(constant(0.5, term), make("sqrt", term.args[0])))
        if self.latex and term.op in _LATEX:
            return _LATEX[term.op](self, term)
        if term.op == "squares":
            return f"|{self.text(term.args[0])}|^2", POWER
        return self.call(term), ATOM

    @property
    def at(self) -> str:
        return r"\, " if self.latex else " @ "

    def infix(self, term: Term) -> tuple[str, int]:
        word, binds, left, right = _INFIX[term.op]
        a, b = self.column_less(term)
        if self.latex:
            return latex_infix(self, term.op, a, b), binds
        if term.op == "mul" and a.op == "const" and b.op == "matmul":
            right = PRODUCT  # a number may go with either factor
        return f"{self.text(a, left)}{word}{self.text(b, right)}", binds

    def column_less(self, term: Term) -> tuple[Term, Term]:
        """A column that only lets a number meet a vector is not written."""
        a, b = term.args
        if term.op in ("mul", "div") and a.op == "column" and b.op != "column":
            return a.args[0], b
        if term.op in ("mul", "div") and b.op == "column" and a.op != "column":
            return a, b.args[0]
        return a, b

    def number(self, value: float) -> tuple[str, int]:
        if value == float("inf"):
            return r"\infty" if self.latex else "infinity", ATOM
        text = f"{value:.12g}"
        text = text if len(text) < 9 else f"{value:.6g}"
        if "e" in text:
            digits, _, power = text.partition("e")
            text = f"{digits}e{int(power)}"
            if self.latex:
                text = rf"{digits} \cdot 10^{{{int(power)}}}"
        return text, ATOM if value >= 0 else UNARY

    def array(self, term: Term) -> str:
        """The array of a product: of the state that the rule is about, its own name alone."""
        handle, array = term.info.handle, term.info.array
        own = handle.name == self.state
        whole = self.handle(handle)
        if not array.name:
            return self.name(whole)
        return self.name(array.name if own and not self.kept else f"{whole}.{array.name}")

    def handle(self, handle: Handle) -> str:
        """A state by the name that this body has for it."""
        if handle.array is not None:
            return f"{self.handle(replace(handle, array=None))}.{handle.array}"
        if handle.foreign or (self.body is not None and handle.box is not self.body):
            return f"{handle.box.name}.{handle.name}"
        return self.base if handle.name == self.state and self.base else handle.name

    def name(self, name: str) -> str:
        return latex_name(name) if self.latex else name

    def turned(self, text: str) -> str:
        return rf"{text}^\top" if self.latex else f"{text}'"

    def call(self, term: Term) -> str:
        name, args = called(self, term)
        if self.latex and len(name) > 1 and "{" not in name and "\\" not in name:
            name = rf"\operatorname{{{name}}}".replace("_", r"\_")
        inside = ", ".join(a if isinstance(a, str) else self.text(a) for a in args)
        if self.latex and ("\\frac" in inside or "\\begin" in inside):
            return rf"{name}\left({inside}\right)"
        return f"{name}({inside})"


def slope_of_length(term: Term) -> Term:
    """In the language: x / length(x), and of another p the power of each entry's share."""
    x, p = term.args[0], term.info or 2
    length = make("length", x, shape=x.shape[:-1], info=term.info)
    if p == 2:
        return make("div", x, length, shape=x.shape)
    sign = make("sign", x)
    share = make("div", make("abs", x), length, shape=x.shape)
    return sign if p == 1 else mul(sign, make("pow", share, constant(p - 1, x), shape=x.shape))


def called(w: Writer, term: Term) -> tuple[str, list[Term | str]]:
    """A function as it is called in a spec: its name, and its arguments (terms, or words)."""
    args: list[Term | str] = list(term.args)
    info = term.info
    match term.op:
        case "apply":
            return w.name(w.handle(info)), args
        case "call":
            return info.name, args
        case "linear" | "rms_norm" | "conv" | "embed" | "layer_norm" | "weight":
            return made(term)
        case "past" | "fade":
            window = [] if info.window == ALL else [str(info.window)]
            return term.op, [*args, *window]
        case "gelu_slope" | "silu_slope" if w.latex:
            return rf"\operatorname{{{term.op[:4]}}}'", args
        case "reshape":
            return "reshape", [*args, *map(str, term.shape)]
        case "copy":
            return "copy", [info.name]
        case "range" | "eye" | "split" | "top" | "normal":
            return term.op, [*args, str(info)]
        case "rope" if info != 10000:
            return term.op, [*args, f"base = {info:g}"]
        case "sum" | "mean" | "length" if info not in (None, 2):
            return term.op, [*args, str(info)]
        case "sum_to" if not term.shape:
            return "sum", args
        case "sum_to" if term.shape == args[0].shape[-len(term.shape) :]:  # type: ignore[union-attr]
            return "sum_rows", args
        case "sum_to" if term.shape == (*args[0].shape[:-1], 1):  # type: ignore[union-attr]
            return "column", [f"sum({w.text(term.args[0])}, 1)"]
    return _NAMES.get(term.op, term.op), args


def made(term: Term) -> tuple[str, list[Term | str]]:
    """A function that makes weights says their size instead of their name."""
    weights = [a.info for a in term.args if a.op == "weight"]
    rest: list[Term | str] = [a for a in term.args if a.op != "weight"]
    if term.op == "weight":
        return "learned", [str(n) for n in term.info.shape]
    if not weights:
        return _NAMES.get(term.op, term.op), rest
    shape = weights[0].shape
    sizes = {"linear": shape[:1], "conv": shape[1:], "embed": shape}.get(term.op, ())
    eps = [f"eps = {term.info:g}"] if term.op == "rms_norm" and term.info != 1e-6 else []
    return weights[0].maker, [*rest, *map(str, sizes), *eps]


def signed(term: Term) -> tuple[str, Term]:
    """A term as a sign and what is left without one, so that `- -x` is never written."""
    match term.op:
        case "neg":
            sign, rest = signed(term.args[0])
            return _OTHER[sign], rest
        case "const" if term.info < 0:
            return "-", constant(-term.info, term)
        case "mul" | "div":
            parts = [signed(a) for a in term.args]
            sign = "+" if parts[0][0] == parts[1][0] else "-"
            if all(s == "+" for s, _ in parts):
                return "+", term
            a, b = (t for _, t in parts)
            if term.op == "mul":
                return sign, folded(a, b)
            return sign, make("div", a, b, shape=term.shape)
        case op if op in _SAME:
            sign, rest = signed(term.args[0])
            return sign, rest if sign == "-" else term
    return "+", term


def folded(a: Term, b: Term) -> Term:
    """A product for the eye: numbers are multiplied out, and shapes need not fit each other."""
    if broadcast(a.shape, b.shape) is not None:
        return mul(a, b)
    return make("mul", a, b, shape=b.shape)


# ---- LaTeX ---------------------------------------------------------------------------------------

_GREEK = frozenset(
    """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau
    upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega""".split()  # noqa: SIM905
)


def latex_name(name: str) -> str:
    """`M.key` is M with a label; a letter and a number is a subscript."""
    first, _, label = name.partition(".")
    letters = first.rstrip("0123456789")
    number = first[len(letters) :]
    if letters in _GREEK:
        shown = f"\\{letters}"
    elif len(letters) == 1:
        shown = letters
    else:
        shown = rf"\mathrm{{{letters}}}".replace("_", r"\_")
    below = ", ".join(p for p in (number, rf"\mathrm{{{label}}}" if label else "") if p)
    return f"{shown}_{{{below}}}" if below else shown


def wrapped(before: str, after: str) -> Callable[[Writer, Term], tuple[str, int]]:
    return lambda w, t: (f"{before}{w.text(t.args[0])}{after}", ATOM)


def latex_function(name: str) -> Callable[[Writer, Term], tuple[str, int]]:
    def written(w: Writer, t: Term) -> tuple[str, int]:
        inside = ", ".join(w.text(a) for a in t.args)
        return rf"\{name}\left({inside}\right)", ATOM

    return written


def latex_cases(w: Writer, t: Term) -> tuple[str, int]:
    condition, a, b = (w.text(x) for x in t.args)
    rows = rf"{a} & \text{{if }} {condition} \\ {b} & \text{{otherwise}}"
    return rf"\begin{{cases}} {rows} \end{{cases}}", ATOM


def latex_length(w: Writer, t: Term) -> tuple[str, int]:
    below = "" if t.info in (None, 2) else f"_{{{t.info:g}}}"
    return rf"\left\|{w.text(t.args[0])}\right\|{below}", ATOM


_LATEX: dict[str, Callable[[Writer, Term], tuple[str, int]]] = {
    "abs": wrapped(r"\left|", r"\right|"),
    "sqrt": wrapped(r"\sqrt{", "}"),
    "floor": wrapped(r"\left\lfloor ", r"\right\rfloor"),
    "squares": lambda w, t: (rf"{{\left\|{w.text(t.args[0])}\right\|}}^{{2}}", POWER),
    "length": latex_length,
    "where": latex_cases,
    "dot": lambda w, t: (
        rf"\left\langle {w.text(t.args[0])}, {w.text(t.args[1])} \right\rangle", ATOM
    ),
    "outer": lambda w, t: (
        rf"{w.text(t.args[0], UNARY)}\, {w.turned(w.text(t.args[1], ATOM))}", PRODUCT
    ),
    "transpose": lambda w, t: (w.turned(w.text(t.args[0], ATOM)), ATOM),
    **{n: latex_function(n) for n in ("exp", "log", "sin", "cos", "tanh", "max", "min")},
}  # fmt: skip


def latex_infix(w: Writer, op: str, a: Term, b: Term) -> str:
    word, _, left, right = _INFIX[op]
    match op:
        case "div":
            return rf"\frac{{{w.text(a)}}}{{{w.text(b)}}}"
        case "pow":
            return f"{{{w.text(a, left)}}}^{{{w.text(b)}}}"
        case "mul":
            sign = r" \odot " if a.shape and b.shape else r"\, "
            return f"{w.text(a, left)}{sign}{w.text(b, right)}"
    word = {"matmul": r"\, ", "le": r" \le ", "ge": r" \ge ", "eq": " = "}.get(op, word)
    return f"{w.text(a, left)}{word}{w.text(b, right)}"
