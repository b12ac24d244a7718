"""Random systems that are valid: what compiles must equal the reference interpreter on them.

    from hypothesis import given
    from nlc.testing import systems, text_of

    @given(systems())
    def test(tree):
        spec = nlc.load(text_of(tree))

Everything drawn is bounded (units, sigmoids, small rates), so numbers can be compared to rounding.
Drawing needs hypothesis, and never torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from . import syntax as S
from .parse import parse
from .printer import print_tree
from .text import Source

__all__ = ["KINDS", "Writer", "expressions", "systems", "text_of"]

Names = dict[str, int]  # the vectors that a body may name, and their sizes

# Kinds of levels, the frequent ones more than once.
KINDS = (
    "attention", "matrix", "matrix", "network", "network", "learner", "stateless", "adapter",
)  # fmt: skip

ACTIVATIONS = ("gelu", "tanh", "silu", "relu", "sigmoid", "softplus", "sin", "smooth_abs")
ELEMENTWISE = (
    "tanh({})", "sigmoid({})", "silu({})", "gelu({})", "relu({})", "sin({})", "cos({})",
    "softplus({})", "abs({})", "smooth_abs({})", "smooth_sign({})", "exp(-abs({}))",
    "log(1 + abs({}))", "sqrt(1 + abs({}))", "clip({}, -1, 0.5)", "-({})", "0.5 * ({})",
    "({})^2 / (1 + ({})^2)", "1 / (1 + abs({}))", "({}) * mod(floor(position / 2), 2)",
)  # fmt: skip
WHOLE = ("norm({})", "layernorm({})", "unit({})", "softmax({})", "({}) * stop(tanh({x}))")
PAIRS = (
    "{a} + {b}", "{a} - 0.7 * {b}", "tanh({a}) * {b}", "{a} / (2 + sin({b}))", "min({a}, {b})",
    "max({a}, {b})",
    "where({x} < 0.2, {a}, {b})", "dot({a}, {b}) * learned({n}, start = 0.1)",
)  # fmt: skip
# Of what M says of a key; `g` stands for a weight, and `v` is what it should say.
MATRIX_OBJECTIVES = (
    "-g * dot(M(k), v)", "g * sum((M(k) - v)^2) / 2", "g * length(M(k) - v)^2 / 2",
    "-g * sum(M(k) * v)", "g * sum((v - M(k))^2) / 2", "g * mean((M(k) - v)^2)",
    "-g * dot(v, M(k)) / 2", "-0.3 * dot(0.5 * v - k, M(k))", "g * sum((0.5 * M(k) - v)^2)",
    "g * sum((M(k) - stop(tanh(v)) + k)^2) / 2",
)  # fmt: skip
NETWORK_OBJECTIVES = (
    "g * sum((M(k) - v)^2) / 2", "-g * dot(M(k), v)", "g * sum(smooth_abs(M(k) - v)^3)",
    "g * sum(where(abs(M(k) - v) < 0.5, (M(k) - v)^2, abs(M(k) - v) - 0.25))",
    "g * robust(M(k) - v, 0.7)", "g * sum(softplus(-M(k) * v))", "g * length(M(k) - v)",
    "g * dot(M(k), stop(M(v)) - v)", "-g * dot(unit(M(k)), v)", "g * length(M(k) - v, 3)",
    "-g * dot(softmax(M(k)), v)", "g * sum(max(M(k), v))", "g * sum(sqrt(1 + (M(k) - v)^2))",
    "g * sum(exp(-(M(k) - v)^2))", "g * mean(clip(M(k), -0.5, 0.5) * v)",
    "g * sum(tanh(M(k) / 2 - v)^2)", "g * sum(log(1 + M(k)^2) / (1 + v^2))",
    "g * sum(relu(M(k) - v))", "g * sum(silu(v * M(k)))", "g * dot(gelu(M(k)), k)",
    "g * sum(min(v, sin(M(k))))", "-g * sum(cos(M(k) - v))", "g * sum(sigmoid(M(k)) * v)",
    "g * frobenius(M(k) - v)", "g * sum(M(k) / (2 + tanh(v)))", "g * sum(abs(M(k) - v))",
)  # fmt: skip
ROBUST = (
    "def robust(r, delta) "
    "{ return where(length(r) <= delta, sum(r^2), delta * sum(smooth_abs(r))) }"
)
# Of levels: plain ones, and some that the generated Python must not take as they are.
NAMES = ("{kind}{i}",) * 8 + ("train{i}", "lambda{i}", "λ{i}", "w", "forward", "half", "{kind}_")
SIZES = {"q": "[n]", "k": "[n]", "v": "[m]"}  # of the inputs of a memory
NUMBERS = (
    "mean({})", "sum({}) / 8", "length({})", "dot({}, {})", "length({}, 3)", "sum(({})^2) / 4",
    "frobenius({})", "({})[0]", "squeeze(linear({}, 1))",
)  # fmt: skip


def text_of(tree: S.File) -> str:
    """The text of a drawn system: what `nlc.load` reads."""
    return print_tree(tree)


@st.composite
def systems(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS, largest: int = 3) -> S.File:
    """A valid system of 1 to `largest` levels of these kinds, and the level that trains it."""
    writer = Writer(draw, draw(st.sampled_from((4, 2, 6, 8))), draw(st.sampled_from((1, 2))))
    text = writer.system(kinds, largest)
    tree, told = parse(Source("random.nl", text))
    if tree is None or told:
        raise AssertionError(f"{told[0].message}\n{text}")
    return tree


@st.composite
def expressions(draw: st.DrawFn, names: Names, size: int, depth: int = 2) -> str:
    """The text of an expression for a vector of this size, of vectors that have names."""
    return Writer(draw, size, 1).vector(names, size, depth)


WEIGHTS = re.compile(r"\b(linear|norm|layernorm|conv|learned)\(")


def words(texts: list[str]) -> set[str]:
    """The names that stand in them."""
    return {w for text in texts for w in re.findall(r"[a-z_]+", text)}


def summed(line: str) -> str:
    """An objective of every head as one number."""
    if not line.startswith("objective "):
        return line
    value, after, _ = line.removeprefix("objective ").partition(" after retain")
    value = value.replace("b * ", "mean(b) * ")
    return f"objective sum({value}){after}"


def makes_weights(lines: list[str]) -> bool:
    """Whether a body makes unnamed weights: after a colon a name is a form."""
    return any(WEIGHTS.search(re.sub(r":.*?(per|=|\{|$)", "", line)) for line in lines)


@dataclass
class Made:
    """One level that a flow can call: its text, what stands outside the system, and its lines."""

    name: str
    kind: str
    text: list[str]
    weights: bool = True  # its body uses unnamed weights
    starts: bool = False  # its states may start where training has learned
    first_order: bool = False  # training takes its gradients as constants
    second_order: bool = False  # its gradients are all that some of its starts learn by
    opened: bool = True  # training's gradient enters its states
    learner: bool = False  # it learns the model's loss on tokens
    periods: tuple[int, ...] = ()


def stateless(made: Made) -> bool:
    """Whether it keeps nothing, not even a past."""
    return made.kind == "stateless" and not any("conv(" in line for line in made.text)


@dataclass
class Writer:
    """Writes one system. What it asks of `draw` is simplest first, so that examples shrink."""

    draw: st.DrawFn
    width: int
    heads: int
    vocab: int = 5
    outside: list[str] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    table: bool = False  # the embedding is a state of the level that trains

    # ---- choices ----

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def chance(self, percent: int) -> bool:
        return bool(self.draw(st.integers(0, 99)) >= 100 - percent)

    # ---- expressions ----

    def vector(self, names: Names, n: int, depth: int = 2, weights: bool = True) -> str:
        """A vector of n, of the names given; `weights`: it may make unnamed weights."""
        if depth == 0 or self.chance(25):
            return self.leaf(names, n, weights)
        make = self.pick(
            self.leaf_projected, self.elementwise, self.paired, self.whole, self.scaled,
            self.shaped, self.remembered,
        )  # fmt: skip
        return str(make(names, n, depth - 1, weights))

    def leaf(self, names: Names, n: int, weights: bool) -> str:
        fitting = [name for name, size in names.items() if size == n]
        if fitting and (not weights or self.chance(70)):
            return str(self.pick(*fitting))
        if weights:
            return f"linear({self.pick(*names)}, {n})"
        name = self.pick(*names)
        return f"(mean({name}) + range({n}) / {n})"

    def leaf_projected(self, names: Names, n: int, depth: int, weights: bool) -> str:
        if not weights:
            return self.leaf(names, n, False)
        return f"linear({self.vector(names, self.pick(n, 2, 3), depth)}, {n})"

    def elementwise(self, names: Names, n: int, depth: int, weights: bool) -> str:
        inner = self.vector(names, n, depth, weights)
        text: str = self.pick(*ELEMENTWISE)
        return text.replace("{}", inner)

    def whole(self, names: Names, n: int, depth: int, weights: bool) -> str:
        text: str = self.pick(*(WHOLE if weights else WHOLE[2:]))
        inner = f"({self.vector(names, n, depth, weights)})"
        return f"({text.replace('{}', inner).replace('{x}', self.leaf(names, n, False))})"

    def paired(self, names: Names, n: int, depth: int, weights: bool) -> str:
        a, b = (self.vector(names, n, depth, weights) for _ in range(2))
        text = self.pick(*(PAIRS if weights else PAIRS[:-1]))
        return str(
            "(" + text.format(a=f"({a})", b=f"({b})", x=self.leaf(names, n, False), n=n) + ")"
        )

    def scaled(self, names: Names, n: int, depth: int, weights: bool) -> str:
        return f"{self.number(names, depth, weights)} * ({self.vector(names, n, depth, weights)})"

    def number(self, names: Names, depth: int, weights: bool) -> str:
        """One bounded number."""
        if self.chance(25):
            return str(self.pick("sin(position)", "1 / (1 + position)", "mod(position, 3) / 3"))
        size = self.pick(self.width, 3)
        text: str = self.pick(*(NUMBERS if weights else NUMBERS[:-1]))
        inner = f"({self.vector(names, size, depth, weights)})"
        return f"tanh({text.replace('{}', inner)})"

    def shaped(self, names: Names, n: int, depth: int, weights: bool) -> str:
        """Through other shapes and back."""
        options = [self.parts, self.picked, self.products]
        if n % 2 == 0:
            options += [self.halves, self.turned]
        return str(self.pick(*options)(names, n, depth, weights))

    def parts(self, names: Names, n: int, depth: int, weights: bool) -> str:
        first = self.draw(st.integers(1, n - 1)) if n > 1 else 0
        if not first:
            return self.leaf(names, n, weights)
        a, b = (self.vector(names, m, depth, weights) for m in (first, n - first))
        return f"concat({a}, {b})"

    def picked(self, names: Names, n: int, depth: int, weights: bool) -> str:
        inner = self.vector(names, 2 * n, depth, weights)
        return f"split({inner}, 2)[{self.pick(0, 1)}]"

    def products(self, names: Names, n: int, depth: int, weights: bool) -> str:
        a = self.vector(names, n, depth, weights)
        forms = [
            "outer({a}, {a}) @ tanh({a})",
            "({a}) @ outer(tanh({a}), {a})",
            f"2 * solve({{a}}, 2 * eye(range({n})))",
        ]
        if weights:
            forms += [f"({{a}}) @ learned({n}, {n}, start = normal(0.5))"]
        return f"tanh({self.pick(*forms).format(a=a)})"

    def halves(self, names: Names, n: int, depth: int, weights: bool) -> str:
        a, b = (self.vector(names, n // 2, depth, weights) for _ in range(2))
        return f"join(stack({a}, {b}))"

    def turned(self, names: Names, n: int, depth: int, weights: bool) -> str:
        a = self.vector(names, n, depth, weights)
        forms = ["join(transpose(split({a}, 2)))", f"reshape(split({{a}}, 2), {n})", "rope({a})"]
        forms += [f"join(split({{a}}, 2) * column(sum(split({{a}}, 2), 1) / {n}))"]
        forms += ["join(tanh(column(range(2)) + split({a}, 2)))", "join(softmax(split({a}, 2)))"]
        return str(self.pick(*forms)).replace("{a}", a)

    def remembered(self, names: Names, n: int, depth: int, weights: bool) -> str:
        if not weights:
            return self.elementwise(names, n, depth, False)
        return f"conv({self.vector(names, n, depth)}, {self.pick(2, 3, 4, 1)})"

    # ---- streams of a level: [heads, n] and [heads] ----

    def split_up(self, of: str, unit: bool = False) -> str:
        """Queries, keys or values of every head."""
        inner = self.pick(
            f"linear({of}, {self.width})", of, f"silu(conv(linear({of}, {self.width}), 3))"
        )
        text = f"split({inner}, {self.heads})"
        if unit:
            return f"unit({text})"
        return str(
            self.pick(
                text,
                f"tanh({text})",
                f"rope({text})" if self.width // self.heads % 2 == 0 else text,
            )
        )

    # ---- the system ----

    def system(self, kinds: tuple[str, ...], largest: int) -> str:
        count = min(self.pick(1, 2, 1, 3), largest)
        for i in range(count):
            kind = self.pick(*kinds)
            name = self.pick(*NAMES).format(kind=kind, i=i)
            if name in (m.name for m in self.made) or i and name in NAMES:
                name = f"{kind}{i}"
            made = getattr(self, f"level_{kind}")(name)
            made.weights = makes_weights(made.text) or made.weights and made.learner
            if made.kind not in ("learner", "adapter") and self.chance(10):
                made.periods = (1, 2)
                made.text[0] = made.text[0].replace("(x)", "[p in [1, 2]](x)")
            self.made.append(made)
        flow = self.flow()
        lines = [
            self.training(),
            *(line for m in self.made for line in m.text),
            *self.transfers(),
            *flow,
        ]
        return "\n".join(["nl 1", *self.outside, "system random() {", *lines, "}", ""])

    def training(self) -> str:
        rule = self.pick("gradient(rate = 0.1)", "adamw(rate = 1e-3)", "momentum(rate = 0.1)")
        table = f"state E : table({self.vocab}, {self.width}); " if self.table else ""
        return f"level training every step {{ {table}objective loss; learn {rule} }}"

    # ---- kinds of levels ----

    def level_attention(self, name: str) -> Made:
        clock = self.pick("always", "every token")
        solved = self.solved(name)
        lines: list[str] = []
        x = self.source(lines)
        text = [
            f"level {name}(x) {clock} {{", *lines,
            *(f"{y} = {self.split_up(x)}" for y in "qkv"),
            f"y = join({solved}(q, k, v))", f"read {self.answer()}", "}",
        ]  # fmt: skip
        return Made(name, "attention", text)

    def solved(self, name: str) -> str:
        """A memory that attends, by its name."""
        scale = self.pick(" / sqrt(n)", "", " * 0.5")
        window = self.pick("", ", 3", ", 2", ", 4")
        score = self.pick(f"dot(past(k{window}), q){scale}", f"dot(q, past(k{window})){scale}")
        distance = self.pick(f"past(v{window}) - z", f"z - past(v{window})")
        self.outside += [
            f"memory {name}_solved(q[n], k[n], v[m]) {{",
            "state z : vector(m)",
            f"objective sum(exp({score}) * length({distance})^2)",
            "learn exact",
            "read z",
            "}",
        ]
        return f"{name}_solved"

    def source(self, lines: list[str]) -> str:
        """What keys and values are made of: the input, or a line made of it."""
        if not self.chance(25):
            return "x"
        lines.append(f"s = 0.7 * x + {self.vector({'x': self.width}, self.width)}")
        if self.chance(20):
            lines.append(f"repeat 2 {{ s += tanh(linear(s, {self.width})) }}")
        return "s"

    def answer(self) -> str:
        """What a level says, of x and y."""
        w = self.width
        plain = ("y", f"linear(y, {w})", f"linear(norm(y) * silu(linear(x, {w})), {w})")
        if self.chance(20):
            return "y * " + self.vector({"y": w, "x": w}, w, 1) + " + y"
        return str(self.pick(*plain))

    def level_stateless(self, name: str) -> Made:
        names = {"x": self.width}
        clock = self.pick("every token", "always")
        text = [f"level {name}(x) {clock} {{", f"y = {self.vector(names, self.width, 3)}"]
        return Made(name, "stateless", [*text, f"read {self.answer()}", "}"])

    def level_adapter(self, name: str) -> Made:
        w, rank = self.width, self.pick(2, 1)
        rule = self.pick("gradient(rate = 0.1)", "adamw(rate = 1e-3)")
        text = [
            f"level {name}(x) every step {{",
            f"state A : matrix({w}, {rank}) = normal(0.5)",
            f"state B : {self.pick(f'matrix({rank}, {w}) = normal(0.5)', f'mlp({rank}, 3, {w})')}",
            "objective loss",
            f"learn {rule}",
            f"read {self.pick('B(A(x))', 'x + B(tanh(A(x)))')}",
            "}",
        ]
        return Made(name, "adapter", text, weights=False)

    # ---- one matrix, written at every token ----

    def level_matrix(self, name: str) -> Made:
        first_order = self.chance(8)
        g = "" if first_order else self.pick("", "b * ", "0.5 * ")
        retain = self.pick([], ["0.9"], ["a"], ["c"], ["1 - 0.5 * a"], ["exp(-a)"], ["1"])
        rule = self.rule(self.pick("0.1", "0.5", "b", "0.5 * b"))
        if rule.startswith("momentum") and retain == ["c"]:
            retain = ["a"]
        after = " after retain" if retain and self.chance(10 if "dgd" in rule else 50) else ""
        wide = self.chance(20) and not first_order
        objectives = [o for o in MATRIX_OBJECTIVES if not wide or "k" not in o.replace("M(k)", "")]
        rules = [
            f"objective {self.pick(*objectives).replace('g * ', g)}{after}",
            *(f"retain {r}" for r in retain), f"learn {rule}",
        ]  # fmt: skip
        n = self.width // self.heads
        read = self.pick(
            "M(q)", "M(q) before write", "tanh(M(q))", "M(q) + M(k)", "M(q) * v + M(q)"
        )
        if wide:
            return self.memory(name, "matrix", f"matrix({n}, {2 * n})", rules, read, False, wide)
        return self.memory(name, "matrix", f"matrix({n}, {n})", rules, read, first_order)

    def rule(self, rate: str) -> str:
        rules = ("gradient(rate = {r})", "momentum(rate = {r}, keep = {m})", "dgd(rate = {r})")
        return str(self.pick(*rules, rules[0])).format(r=rate, m=self.pick("0.5", "u"))

    def memory(
        self, name: str, kind: str, form: str, rules: list[str], read: str, first_order: bool,
        wide: bool = False,
    ) -> Made:  # fmt: skip
        """A state M with these rules, in a level or in a memory that a level calls.

        `wide`: values, and so what it reads, are twice as long.
        """
        own = self.chance(40)
        start = self.pick("", " = normal(0.3)")
        lines: list[str] = []
        x = "x" if first_order else self.source(lines)
        head = f"level {name}(x) every token {{"
        if own:
            body = [summed(r) for r in rules]
            asked = [*body, *read.split(" before")[:1]]
            streams = self.streams(x, asked, first_order, wide)
            if read == "M(q)" and "k" in streams and self.chance(30):
                body.append("k = 0.5 * k")  # the rule has seen the old one
            inner = read.removesuffix(" before write")
            early = " before write" if inner != read else ""
            answers = f"linear(join({inner}), {self.width})", f"join({inner})"
            answer = answers[0] if wide else self.pick(*reversed(answers))
            text = [
                head, f"state M : {form} per {self.heads}{start}", *lines,
                *(f"{y} = {e}" for y, e in streams.items()), *body, f"read {answer}{early}", "}",
            ]  # fmt: skip
            return Made(name, kind, text, starts=True, first_order=first_order)
        inside = self.pick([], ["o = unit(q) + q"] if "q" in words([read]) else [])
        said = read.replace("(q)", "(o)") if inside else read
        streams = self.streams(x, [*rules, read], first_order, wide)
        if "v" in streams and not wide and not first_order and self.chance(15):
            streams["v"] = f"{self.solved(name)}({', '.join(self.split_up(x) for _ in 'qkv')})"
        inputs = ", ".join(y + SIZES.get(y, "") for y in streams)
        self.outside += [
            f"memory {name}_kept({inputs}) {{", f"state M : {form}{start}", *inside, *rules,
            f"read {said}", "}",
        ]  # fmt: skip
        y = f"join({name}_kept({', '.join(streams.values())}))"
        y = f"y = linear({y}, {self.width})" if wide else f"y = {y}"
        text = [head, *lines, y, f"read {self.answer()}", "}"]
        return Made(name, kind, text, starts=True, first_order=first_order)

    def streams(
        self, x: str, used: list[str], first_order: bool, wide: bool = False
    ) -> dict[str, str]:
        """Queries, keys, values and gates, those that are used."""
        w, h = self.width, self.heads
        made = {
            "q": self.split_up("x"),
            "k": f"unit(split({x}, {h}))" if first_order else self.split_up(x, unit=True),
            "v": f"tanh(split({x}, {h}))" if first_order else self.split_up(x),
            "a": f"sigmoid(linear({x}, {h}) + 2)", "b": f"sigmoid(linear({x}, {h}))",
            "c": f"sigmoid(split(linear({x}, {w}), {h}) + 1)",
            "u": f"0.8 * sigmoid(linear({x}, {h}))",
        }  # fmt: skip
        if wide:
            made["v"] = f"tanh(split(linear({x}, {2 * w}), {h}))"
        wanted = words(used)
        return {name: text for name, text in made.items() if name in wanted}

    # ---- networks whose gradients are frozen for a few tokens ----

    def form(self, n: int, m: int) -> str:
        """A network from n to m."""
        act = self.pick("", *(f", act = {a}" for a in ACTIVATIONS))
        plain = self.pick(
            f"mlp({n}, {m})", f"mlp({n}, 3, {m}{act})", f"mlp({n}, 2, 3, {m}{act})",
            f"matrix({n}, {m})",
        )  # fmt: skip
        if n != m:
            return str(self.pick(plain, f"layernorm({plain})"))
        gated = f"gated_mlp({n}, 3)"
        return str(
            self.pick(
                plain, f"residual({plain})", gated, f"residual(layernorm({plain}))",
                f"layernorm({plain})", f"residual({gated})",
            )
        )  # fmt: skip

    def level_network(self, name: str) -> Made:
        """A network a head, or several that make each other's streams."""
        if self.chance(35):
            return self.self_modifying(name)
        first_order = self.chance(15)
        g = "" if first_order else self.pick("", "b * ", "0.5 * ")
        objective = self.pick(*NETWORK_OBJECTIVES).replace("g * ", g)
        if "robust" in objective:
            self.outside.append(ROBUST) if ROBUST not in self.outside else None
        n = self.width // self.heads
        read = self.pick("M(q)", "M(q) before write", "q + M(q)", "M(q) * tanh(M(k))")
        rules = [f"objective {objective}", *self.frozen_rule()]
        return self.memory(name, "network", self.form(n, n), rules, read, first_order)

    def frozen_rule(self) -> list[str]:
        retain = self.pick([], ["retain 0.9"], ["retain a"], ["retain 1 - 0.3 * a"])
        rule = self.rule(self.pick("0.1", "0.03", "0.2 * b"))
        return [*retain, f"learn {rule}", f"linearise every {self.pick(2, 3, 1, 4)} tokens"]

    def self_modifying(self, name: str) -> Made:
        n, h, w = self.width // self.heads, self.heads, self.width
        own = self.pick("sum((M(k) - stop(M(v)))^2)", "sum((M(k) - v)^2) / 2", "-sum(M(k) * v)")
        gate = self.pick("sum((G(k) - stop(G(v)))^2)", "sum((G(k) - 0.5)^2)")
        last = self.pick(f"mlp({n}, {n}, 1)", f"matrix({n}, 1)")
        rules = self.frozen_rule()
        lines = {
            "v": self.pick("M.value(z)", "tanh(M.value(k))"),
            "b": "squeeze(sigmoid(G.rate(z)))", "a": "sigmoid(squeeze(G.keep(z)) + 2)",
            "u": "0.5 * squeeze(sigmoid(G.rate(z)))",
        }  # fmt: skip
        used = words([*rules, own, gate])
        named = ["rate"] * bool(used & {"b", "u"}) + ["keep"] * ("a" in used)
        gates = [", ".join(named)] if named else []
        query = self.pick("k", f"unit(split(linear(x, {w}), {h}))", f"split(linear(x, {w}), {h})")
        text = [
            f"level {name}(x) every token {{",
            f"state M[main, key, value] : {self.form(n, n)} per {h} {{ objective {own} }}",
            *(f"state G[{g}] : {last} per {h} {{ objective {gate} }}" for g in gates),
            f"z = split(x, {h})", "k = unit(M.key(z))",
            *(f"{y} = {e}" for y, e in lines.items() if y in used), *rules,
            f"read join(M.main({query})){self.pick('', ' before write')}", "}",
        ]  # fmt: skip
        return Made(name, "network", text, starts=True, second_order=True)

    # ---- the model's own loss ----

    def level_learner(self, name: str) -> Made:
        w = self.width
        periods = self.pick((2,), (3,), (2, 4), (1,), (2, 3), (1, 3))
        index = f"[p in [{', '.join(map(str, periods))}]]" if len(periods) > 1 else ""
        clock = "every p tokens" if index else f"every {periods[0]} tokens"
        rule = self.pick(
            "gradient(rate = 0.1)", "momentum(rate = 0.05, keep = 0.5)",
            "adam(rate = 0.01, eps = 0.1)",
            "adamw(rate = 0.01, eps = 0.1)",
        )  # fmt: skip
        retain = self.pick([], ["retain 0.9"])
        read = self.pick(
            "F(x)", "F(norm(x))", f"linear(F(tanh(x)), {w})", "F(x) + 0.5 * F(norm(x))"
        )
        body = [
            f"state F : {self.form(w, w)}{self.pick('', ' = normal(0.4)')}",
            "objective loss", f"learn {rule}", *retain, f"read {read}",
        ]  # fmt: skip
        text = [f"level {name}{index}(x) {clock} {{", *body, "}"]
        weights = "norm" in read or "linear" in read
        if self.chance(30):
            self.outside += [f"memory {name}_kept(x[n]) {{", *body, "}"]
            text = [f"level {name}{index}(x) {clock} {{ read {name}_kept(x) }}"]
        return Made(
            name, "learner", text, weights=weights, starts=True, learner=True, periods=periods
        )

    # ---- transfers ----

    def transfers(self) -> list[str]:
        learners = [m for m in self.made if m.learner]
        return [line for m in self.made for line in self.transfer(m, learners)]

    def transfer(self, m: Made, learners: list[Made]) -> list[str]:
        if m.kind == "adapter":
            return []
        if m.learner:
            return self.of_learner(m)
        stands = m.kind in ("attention", "stateless")
        if m.kind == "stateless" and not m.weights:
            return []
        if m.weights and not m.first_order and not stands and self.chance(15):
            start = m.starts and self.chance(50)
            order = self.pick("", " first order") * (not m.second_order)
            init = [f"transfer init training -> {m.name}{order}"] * start
            return [f"transfer condition training -> {m.name}", *init]
        adapters = [a.name for a in self.made if a.kind == "adapter" and not stateless(m)]
        to = ", ".join(["training", *adapters, *(l.name for l in learners)])
        cuts = [f" through {n} tokens" for n in (3, 4)] if not learners and not stands else []
        tail = self.pick("", "", *cuts) + (" first order" if m.first_order else "")
        targets = self.pick(to, to, to, "training") if m.kind == "matrix" else to
        if stateless(m):
            if not m.weights:
                return []
            targets = "training"
        lines = [f"transfer backprop {m.name} -> {targets}{tail}"]
        if m.starts and self.chance(50):
            first = self.chance(8) and not m.second_order
            lines.append(f"transfer init training -> {m.name}{' first order' if first else tail}")
        return lines

    def of_learner(self, m: Made) -> list[str]:
        adapters = "".join(f", {a.name}" for a in self.made if a.kind == "adapter")
        lines = [f"transfer backprop {m.name} -> training{adapters} first order"]
        if self.chance(25):
            lines = [f"transfer condition training -> {m.name}"] if m.weights else []
        if self.chance(50):
            lines.append(f"transfer init training -> {m.name} first order")
        return lines

    # ---- the flow ----

    def flow(self) -> list[str]:
        w, v = self.width, self.vocab
        self.table = self.chance(15)
        block = [line for m in self.made for line in self.calls(m)]
        if self.chance(30):
            block.append(f"x += {self.vector({'x': w}, w)}")
        depth = self.pick(1, 1, 2)
        body = block if depth == 1 else [f"repeat {depth} {{", *block, "}"]
        first = [f"x = {self.vector({'x': w}, w)}"] if self.chance(20) else []
        loss = self.pick(
            "cross_entropy(logits, next(tokens))",
            "0.5 * cross_entropy(logits, next(tokens)) + sum(logits^2) / 100",
            "where(position >= 2, cross_entropy(logits, next(tokens)), 0)",
        )
        start = "x = training.E(tokens)" if self.table else f"x = embed(tokens, {v}, {w})"
        head = self.pick(f"unembed(norm(x), {v})", f"linear(layernorm(x), {v})")
        return [
            "flow(tokens) {", start, *first, *body, f"logits = {head}",
            f"loss = {loss}", "return logits", "}",
        ]  # fmt: skip

    def calls(self, m: Made) -> list[str]:
        """The call of a level, or of each member of a family."""
        given = self.pick("norm(x)", "x", "tanh(x)", "conv(norm(x), 3)")
        if len(m.periods) > 1:
            return [
                f"repeat p in [{', '.join(map(str, m.periods))}] {{ x += {m.name}[p]({given}) }}"
            ]
        call = f"{m.name}({given})"
        if self.chance(10):
            call = f"({call} + {m.name}(x))"  # two instances
        return [self.pick(f"x += {call}", f"x = norm(x + {call})", f"x += 0.5 * {call}")]
