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

from dataclasses import dataclass, field

from hypothesis import strategies as st

from .. import syntax as S
from ..parse import parse
from ..printer import print_tree
from ..text import Source
from . import named, ruled, seldom
from .expressions import Expressions, Names
from .made import Made, makes_weights, stateless, summed, words
from .texts import (
    ACTIVATIONS,
    KINDS,
    MATRIX_OBJECTIVES,
    NAMES,
    NETWORK_OBJECTIVES,
    RARE,
    ROBUST,
    SIZES,
    THEMES,
    WINDOW_OBJECTIVES,
)

__all__ = ["KINDS", "THEMES", "Writer", "expressions", "systems", "text_of"]

FIRST = {  # a theme's first level
    "sequences": "sleeper", "cells": "cell", "windows": "window", "named": "store",
    "rules": "ruled", "rows": "rows", "labels": "labels", "lines": "lines",
    "asleep": "store", "edges": "learner", "trained": "adapter",
}  # fmt: skip
SECOND = {"named": "reader", "asleep": "reader", "edges": "edges", "trained": "follower"}
NAMED = ("named", "asleep")  # themes of levels whose states others name
WITHOUT_PERIODS = (  # no family of theirs is drawn
    "learner", "adapter", "store", "reader", "ruled", "rows", "labels", "lines", "edges",
    "follower",
)  # fmt: skip


def text_of(tree: S.File) -> str:
    """The text of a drawn system: what `nlc.load` reads."""
    return print_tree(tree)


@st.composite
def systems(
    draw: st.DrawFn,
    kinds: tuple[str, ...] = KINDS,
    largest: int = 3,
    themes: tuple[str, ...] = THEMES,
) -> S.File:
    """A valid system of 1 to `largest` levels of these kinds, and the level that trains it; one in
    three has a theme.
    """
    writer = Writer(draw, draw(st.sampled_from((4, 2, 6, 8))), draw(st.sampled_from((1, 2))))
    writer.theme = draw(st.sampled_from(themes[:1] * 2 * len(themes) + themes[1:]))
    text = writer.system(kinds, largest)
    tree, told = parse(Source("random.nl", text))
    if tree is None or told:
        raise AssertionError(f"{told[0].message}\n{text}")
    return tree


@st.composite
def expressions(draw: st.DrawFn, names: Names, size: int, depth: int = 2) -> str:
    """The text of an expression for a vector of this size, of vectors that have names."""
    return Writer(draw, size, 1).vector(names, size, depth)


@dataclass
class Writer(Expressions):
    """Writes one system. What it asks of `draw` is simplest first, so that examples shrink."""

    vocab: int = 5
    made: list[Made] = field(default_factory=list)
    table: bool = False  # the embedding is a state of the level that trains

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
        count = min(self.pick(1, 2, 1, 3) + (self.theme in SECOND), largest)
        for i in range(count):
            kind = FIRST.get(self.theme) if i == 0 else None
            kind = SECOND.get(self.theme) if i == 1 else kind
            others = [k for k in kinds if self.theme not in NAMED or k != "learner"]
            kind = kind or self.pick(*others)
            name = self.pick(*NAMES).format(kind=kind, i=i)
            if name in (m.name for m in self.made) or i and name in NAMES:
                name = f"{kind}{i}"
            made = getattr(self, f"level_{kind}")(name)
            made.weights = makes_weights(made.text) or made.weights and made.learner
            if self.theme == "resets" and not stateless(made) and kind != "adapter":
                made.text.insert(1, self.reset(made.periods, made.learner))
            if made.kind not in WITHOUT_PERIODS and self.chance(10):
                made.periods = (1, 2)
                made.text[0] = made.text[0].replace("(x)", "[p in [1, 2]](x)")
            self.made.append(made)
            if kind == "reader" and named.follows(self, self.made[0], made):
                self.made[0].generated = name
        flow = self.flow()
        lines = [
            self.training(),
            *(line for m in self.made for line in m.text),
            *self.transfers(),
            *flow,
        ]
        return "\n".join(["nl 1", *self.outside, "system random() {", *lines, "}", ""])

    def reset(self, periods: tuple[int, ...], learner: bool) -> str:
        """When a level starts anew, and what becomes of a period that this cuts short. What learns
        the loss waits for labels, so where `drop` cuts a call has a say in its numbers.
        """
        whole = [n for n in (4, 6, 3) if all(n % p == 0 for p in periods)]
        plain = [f"reset every {n} tokens" for n in whole]
        cut = [f"reset every {n} tokens; partial {p}" for n in (5, 4) for p in ("drop", "flush")]
        cut = [line for line in cut if not (learner and line.endswith("drop"))]
        return str(self.pick(*plain, *cut, "reset every 2 sequences"))

    def clock(self) -> str:
        if self.theme != "periods":
            return "every token"
        return str(self.pick("every 2 tokens", "every 3 tokens", "every 3 tokens from 1"))

    def training(self) -> str:
        if self.theme == "trained":
            clock, rule = seldom.on_steps(self)
            table = f"state E : table({self.vocab}, {self.width}); " if self.table else ""
            return f"level training every {clock} {{ {table}objective loss; {rule} }}"
        rule = self.pick("gradient(rate = 0.1)", "adamw(rate = 1e-3)", "momentum(rate = 0.1)")
        table = f"state E : table({self.vocab}, {self.width}); " if self.table else ""
        return f"level training every step {{ {table}objective loss; learn {rule} }}"

    # ---- kinds of levels ----

    def level_attention(self, name: str) -> Made:
        clock = self.pick("always", "every token")
        solved, more = self.solved(name)
        lines: list[str] = []
        x = self.source(lines)
        text = [
            f"level {name}(x) {clock} {{", *lines,
            *(f"{y} = {self.split_up(x)}" for y in "qkv"),
            f"y = join({solved}(q, k, v{more}))", f"read {self.answer()}", "}",
        ]  # fmt: skip
        return Made(name, "attention", text)

    def solved(self, name: str) -> tuple[str, str]:
        """A memory that attends, by its name, and what it is given besides q, k and v."""
        scale = self.pick(" / sqrt(n)", "", " * 0.5")
        window = self.pick("", ", 3", ", 2", ", 4")
        score = self.pick(f"dot(past(k{window}), q){scale}", f"dot(q, past(k{window})){scale}")
        distance = self.pick(f"past(v{window}) - z", f"z - past(v{window})")
        counts = "where(past(even, 3) == even, 1, 0) * " if window == ", 3" else ""
        beside = f" + sum(exp(dot(K, q){scale}) * length(V - z)^2)" if self.chance(30) else ""
        pairs = f", learned({self.heads}, 2, {self.width // self.heads}, start = normal(0.5))"
        self.outside += [
            f"memory {name}_solved(q[n], k[n], v[m]{', K[p, n], V[p, m]' if beside else ''}) {{",
            "state z : vector(m)",
            *(["even = mod(position, 2)"] if counts else []),
            f"objective sum({counts}exp({score}) * length({distance})^2){beside}",
            "learn exact",
            "read z",
            "}",
        ]
        return f"{name}_solved", pairs * 2 if beside else ""

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
        clock, learn = "step", f"learn {rule}"
        if self.theme == "trained":
            clock, learn = seldom.on_steps(self)
        text = [
            f"level {name}(x) every {clock} {{",
            f"state A : matrix({w}, {rank}) = normal(0.5)",
            f"state B : {self.pick(f'matrix({rank}, {w}) = normal(0.5)', f'mlp({rank}, 3, {w})')}",
            "objective loss",
            learn,
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
        fresh = self.theme == "fresh" and self.chance(60)
        start = " = fresh(normal(0.3))" if fresh else self.pick("", " = normal(0.3)")
        lines: list[str] = []
        x = "x" if first_order else self.source(lines)
        head = f"level {name}(x) {self.clock()} {{"
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
            return Made(name, kind, text, starts=not fresh, first_order=first_order)
        inside = self.pick([], ["o = unit(q) + q"] if "q" in words([read]) else [])
        said = read.replace("(q)", "(o)") if inside else read
        streams = self.streams(x, [*rules, read], first_order, wide)
        if "v" in streams and not wide and not first_order and self.chance(15):
            solved, more = self.solved(name)
            streams["v"] = f"{solved}({', '.join(self.split_up(x) for _ in 'qkv')}{more})"
        inputs = ", ".join(y + SIZES.get(y, "") for y in streams)
        self.outside += [
            f"memory {name}_kept({inputs}) {{", f"state M : {form}{start}", *inside, *rules,
            f"read {said}", "}",
        ]  # fmt: skip
        y = f"join({name}_kept({', '.join(streams.values())}))"
        y = f"y = linear({y}, {self.width})" if wide else f"y = {y}"
        text = [head, *lines, y, f"read {self.answer()}", "}"]
        return Made(name, kind, text, starts=not fresh, first_order=first_order)

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
        lines = [*retain, f"learn {rule}"]
        if self.theme == "periods" and self.chance(60):
            return lines
        return [*lines, f"linearise every {self.pick(2, 3, 1, 4)} tokens"]

    def self_modifying(self, name: str) -> Made:
        n, h, w = self.width // self.heads, self.heads, self.width
        own = self.pick("sum((M(k) - stop(M(v)))^2)", "sum((M(k) - v)^2) / 2", "-sum(M(k) * v)")
        gate = self.pick("sum((G(k) - stop(G(v)))^2)", "sum((G(k) - 0.5)^2)")
        last = self.pick(f"mlp({n}, {n}, 1)", f"matrix({n}, 1)")
        rules = self.frozen_rule()
        lines = {
            "v": self.pick("unit(M.value(z))", "tanh(M.value(k))"),
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
        periods = self.pick((2,), (4,)) if self.theme == "edges" and not self.made else periods
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
            text = [f"level {name}{index}(x) {clock} {{", f"read {name}_kept(x)", "}"]
        return Made(
            name, "learner", text, weights=weights, starts=True, learner=True, periods=periods,
            smooth="adam" not in rule,
        )  # fmt: skip

    # ---- a new state at every token, and memories of sequences ----

    def level_cell(self, name: str) -> Made:
        w = self.width
        rule = self.pick(
            f"set tanh(h + linear(c, {w}))", "set g * c + (1 - g) * h",
            "retain 0.9; write 0.5 * tanh(h)", "set g * tanh(h + c / 2)", "set tanh(h) + c / 2",
            "objective sum((tanh(c) - h)^2) / 9; learn gradient(rate = 0.2)",
            "retain 0.9; objective sum((c - h)^2) / 9; learn momentum(rate = 0.2, keep = 0.5)",
        )  # fmt: skip
        lines = [f"h = {self.vector({'x': w}, w, 1)}"]
        lines += [f"g = sigmoid(linear(x, {w}))"] * ("g *" in rule)
        text = [
            f"level {name}(x) {self.pick('every token', 'every 2 tokens')} {{",
            f"state c : vector({w})", *lines, rule, f"y = {self.pick('c', 'c + x')}",
            f"read {self.answer()}", "}",
        ]  # fmt: skip
        return Made(name, "cell", text)

    def level_sleeper(self, name: str) -> Made:
        w = self.width
        text = [
            f"level {name}(x) every {self.pick('sequence', '2 sequences')} {{",
            f"state M : {self.form(w, w)}{self.pick('', ' = normal(0.3)')}",
            "retain 0.9", "k = unit(x)",
            self.pick(
                "objective sum((M(k) - x)^2) / 4", "objective loss",
                "objective sum((M(past(k, 2)) - past(x, 2))^2) / 4 once",
            ),
            f"learn {self.pick('gradient(rate = 0.05)', 'momentum(rate = 0.05, keep = 0.5)')}",
            f"read M({self.pick('x', 'k')})", "}",
        ]  # fmt: skip
        return Made(name, "sleeper", text, weights=False, learner="objective loss" in text)

    def level_window(self, name: str) -> Made:
        """What the last ticks write anew at each."""
        w = self.width
        streams = {
            "k": f"linear(x, {w})", "v": self.vector({"x": w}, w, 1),
            "g": "sigmoid(linear(x, 3))", "h": "1 + mean(x)^2",
        }  # fmt: skip
        rows = self.pick(*WINDOW_OBJECTIVES)
        text = [
            f"level {name}(x) {self.pick('every token', 'every token', 'every 2 tokens')} {{",
            f"state M : {self.form(w, w)}{self.pick('', ' = normal(0.3)')}",
            *(f"{y} = {e}" for y, e in streams.items() if y in words([rows])),
            f"objective sum({rows}) / 9{self.pick('', ' once')}",
            *self.pick([], ["retain 0.9"]), f"learn {self.rule('0.1').replace('u)', '0.5)')}",
            f"y = M({self.pick('x', 'k')})", f"read {self.answer()}", "}",
        ]  # fmt: skip
        return Made(name, "window", text)

    def level_store(self, name: str) -> Made:
        return named.store(self, name)

    def level_ruled(self, name: str) -> Made:
        return ruled.ruled(self, name)

    def level_rows(self, name: str) -> Made:
        return seldom.rows(self, name)

    def level_labels(self, name: str) -> Made:
        return seldom.labels(self, name)

    def level_lines(self, name: str) -> Made:
        return seldom.lines(self, name)

    def level_follower(self, name: str) -> Made:
        return seldom.follower(self, name, self.made[0])

    def level_edges(self, name: str) -> Made:
        return seldom.edges(self, name, self.made[0])

    def level_reader(self, name: str) -> Made:
        return named.reader(self, name, self.made[0])

    # ---- transfers ----

    def transfers(self) -> list[str]:
        learners = [m for m in self.made if m.learner]
        lines = [line for m in self.made for line in self.transfer(m, learners)]
        made = [m for m in self.made if m.generated]
        return [*lines, *(f"transfer generate {m.generated} -> {m.name}" for m in made)]

    def transfer(self, m: Made, learners: list[Made]) -> list[str]:
        if m.kind in ("adapter", "follower"):
            return []
        if m.learner:
            return self.of_learner(m)
        stands = m.kind in ("attention", "stateless", "cell")
        if m.kind == "stateless" and not m.weights:
            return []
        if m.weights and not m.first_order and not stands and self.chance(15):
            start = m.starts and self.chance(50)
            order = self.pick("", " first order") * (not m.second_order)
            init = [f"transfer init training -> {m.name}{order}"] * start
            return [f"transfer condition training -> {m.name}", *init]
        adapters = [a.name for a in self.made if a.kind == "adapter" and not stateless(m)]
        to = ", ".join(["training", *adapters, *(l.name for l in learners)])
        cuts = [f" through {n} tokens" for n in m.cuts] if not learners and not stands else []
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
        order = self.pick(" first order", "") if m.smooth else " first order"
        lines = [f"transfer backprop {m.name} -> training{adapters}{order}"]
        if self.chance(25):
            lines = [f"transfer condition training -> {m.name}"] if m.weights else []
        members = [f"{m.name}[{p}]" for p in sorted(m.periods, reverse=True)]
        if len(members) > 1 and self.chance(15):
            lines.append(f"transfer backprop {members[1]} -> {members[0]}{self.pick('', order)}")
        if len(members) > 1 and self.chance(40):
            source = self.pick("training -> ", "")
            lines.append(f"transfer init {source}{' -> '.join(members)}{order}")
        elif m.started:
            chain = self.pick(f"training -> {m.started}", m.started)
            lines.append(f"transfer init {chain} -> {m.name}{order}")
        elif self.chance(50) and self.theme != "edges":
            lines.append(f"transfer init training -> {m.name}{order}")
        return lines

    # ---- the flow ----

    def flow(self) -> list[str]:
        w = self.width
        inputs, start, head, loss = self.ends()
        taken = {m.taken for m in self.made}
        made = [m for m in self.made if f"{m.name}(x)" not in taken]  # which is called there
        if self.theme in NAMED and self.chance(25):
            made = made[::-1]  # what is named is called later
        block = [line for m in made for line in self.calls(m)]
        if self.theme in NAMED and self.chance(25):
            block.insert(self.pick(1, 0), named.named_by_the_flow(self, self.made[0]))
        if self.chance(30):
            block.append(f"x += {self.vector({'x': w}, w)}")
        if self.theme in RARE and self.chance(60):
            block.append(f"x += {self.rare({'x': w}, w, 1, True)}")
        depth = self.pick(1, 1, 2)
        body = block if depth == 1 else [f"repeat {depth} {{", *block, "}"]
        first = [f"x = {self.vector({'x': w}, w)}"] if self.chance(20) else []
        return [
            f"flow({inputs}) {{", start, *first, *body, f"logits = {head}", f"loss = {loss}",
            "return logits", "}",
        ]  # fmt: skip

    def ends(self) -> tuple[str, str, str, str]:
        """What comes in, what is made of it, what is answered, and how wrong that is."""
        w, v = self.width, self.vocab
        streams = self.pick("tokens, z[3]", "z[3], y[2]", "z[3]") if self.theme == "streams" else ""
        if streams.startswith("z"):
            m, label = (2, "y") if "y" in streams else (3, "next(z)")
            errors = f"sum((logits - {label})^2)", f"mean(smooth_abs(logits - {label}))"
            head = self.pick(f"linear(norm(x), {m})", f"tanh(linear(x, {m}))")
            return streams, f"x = linear(z, {w})", head, self.pick(*errors)
        self.table = self.chance(15)
        start = "training.E(tokens)" if self.table else f"embed(tokens, {v}, {w})"
        if streams:
            start += " + " + self.vector({"z": 3}, w)
        head = self.pick(f"unembed(norm(x), {v})", f"linear(layernorm(x), {v})")
        loss = self.pick(
            "cross_entropy(logits, next(tokens))",
            "0.5 * cross_entropy(logits, next(tokens)) + sum(logits^2) / 100",
            "where(position >= 2, cross_entropy(logits, next(tokens)), 0)",
        )
        return streams or "tokens", f"x = {start}", head, loss

    def alone(self) -> set[str]:
        """Kinds of levels that are called once, for others name them."""
        return {"store", "reader", *("adapter",) * (self.theme == "trained")}

    def calls(self, m: Made) -> list[str]:
        """The call of a level, or of each member of a family."""
        given = self.pick("norm(x)", "x", "tanh(x)", "conv(norm(x), 3)")
        if len(m.periods) > 1:
            return [
                f"repeat p in [{', '.join(map(str, m.periods))}] {{ x += {m.name}[p]({given}) }}"
            ]
        call = f"{m.name}({given}{m.taken and ', '}{m.taken})"
        if m.kind not in self.alone() and not m.taken and self.chance(10):
            call = f"({call} + {m.name}(x))"  # two instances
        return [self.pick(f"x += {call}", f"x = norm(x + {call})", f"x += 0.5 * {call}")]
