"""Derived rules against autograd: every derivative, every form, and optimizers in linear form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nlc.backends.ops import parts
from nlc.backward import VJP, Underivable, sum_to
from nlc.derive import gradient, linear_rule, substitute
from nlc.driver import check_text
from nlc.rules import LinearRule
from nlc.system import Box, Learn, Shape, State, System, Term

EXACT = 1e-10


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    a = a.expand(b.shape)
    assert float((a - b).detach().abs().max()) <= EXACT * (1 + float(b.detach().abs().max()))


# ---- the meaning of a term ----------------------------------------------------------------------

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "abs": torch.abs,
    "sign": torch.sign, "sin": torch.sin, "cos": torch.cos, "floor": torch.floor,
    "sigmoid": torch.sigmoid, "softplus": functional.softplus, "silu": functional.silu,
    "gelu": functional.gelu, "tanh": torch.tanh, "relu": torch.relu,
    "smooth_abs": lambda x: torch.sqrt(x * x + 1e-6),
    "smooth_sign": lambda x: x / torch.sqrt(x * x + 1e-6),
    "gelu_slope": parts.gelu_slope, "silu_slope": parts.silu_slope,
    "sqrt_slope": parts.sqrt_slope,
    "unit": lambda x: x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-30),
    "softmax": lambda x: torch.softmax(x, -1), "stop": torch.detach,
    "column": lambda x: x[..., None], "squeeze": lambda x: x[..., 0],
    "transpose": lambda x: x.mT,
}  # fmt: skip
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "pow": torch.pow,
    "max": torch.maximum, "min": torch.minimum, "matmul": torch.matmul,
    "lt": lambda a, b: (a < b).double(), "le": lambda a, b: (a <= b).double(),
    "gt": lambda a, b: (a > b).double(), "ge": lambda a, b: (a >= b).double(),
    "eq": lambda a, b: (a == b).double(), "dot": lambda a, b: (a * b).sum(-1),
    "layer_norm_back": parts.layer_norm_back, "outer": torch.outer,
}  # fmt: skip
Env = Mapping[Any, Tensor]


def value(term: Term, env: Env) -> Tensor:
    """A term by its meaning; `env` holds inputs by name, and arrays of states by their name."""
    args = [value(a, env) for a in term.args]
    op = term.op
    if op == "const":
        return torch.tensor(term.info, dtype=torch.float64)
    if op == "input":
        return env[term.info]
    if op == "state":
        return env[term.info.name]
    if op == "apply":
        return applied(term.info.state, env, args[0])
    if op in UNARY:
        return UNARY[op](args[0])
    if op in BINARY:
        return BINARY[op](*args)
    if op == "where":
        return torch.where(args[0] != 0, args[1], args[2])
    if op == "clip":
        return torch.minimum(torch.maximum(args[0], args[1]), args[2])
    if op in ("sum", "mean"):
        reduce: Callable[..., Tensor] = getattr(torch, op)
        return reduce(args[0], -1) if term.info == 1 else reduce(args[0])
    if op == "length":
        return args[0].abs().pow(term.info).sum(-1).pow(1 / term.info)
    if op == "length_slope":
        return parts.length_slope(args[0], term.info)
    if op == "layer_norm":
        return functional.layer_norm(args[0], args[0].shape[-1:], None, None, 1e-6)
    if op in ("reshape", "split", "join"):
        return args[0].reshape(term.shape)
    if op == "expand":
        return args[0].expand(term.shape)
    if op == "sum_to":
        return args[0].sum_to_size(term.shape)
    if op == "product":
        return args[0] @ env[term.info.array.name].mT
    if op == "product_back":
        return args[0] @ env[term.info.array.name]
    raise AssertionError(f"no meaning for {op}")


def given(name: str, *shape: int) -> Term:
    return Term("input", (), shape, name)


def number(x: float) -> Term:
    return Term("const", (), (), x)


# ---- one rule at a time -------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An operation on inputs of these shapes; `positive`: at positive numbers only."""

    op: str
    shapes: tuple[Shape, ...]
    out: Shape
    info: Any = None
    more: tuple[float, ...] = ()  # constant arguments after the inputs
    positive: bool = False

    def __str__(self) -> str:
        return f"{self.op}-{self.info}-{self.more}-{self.shapes}"


def elementwise(op: str, positive: bool = False) -> list[Case]:
    return [Case(op, (s,), s, positive=positive) for s in ((), (4,), (2, 3))]


PAIRS: list[tuple[tuple[Shape, Shape], Shape]] = [
    (((4,), (4,)), (4,)), (((2, 3), (2, 3)), (2, 3)), (((3,), (2, 3)), (2, 3)),
    (((2, 3), ()), (2, 3)), (((), (3,)), (3,)), (((2, 1), (1, 3)), (2, 3)),
    (((2, 1), (3,)), (2, 3)),
]  # fmt: skip


def pairs(op: str, positive: bool = False) -> list[Case]:
    return [Case(op, shapes, out, positive=positive) for shapes, out in PAIRS]


CASES = [
    *[c for op in ("neg", "exp", "sin", "cos", "sigmoid", "tanh", "softplus", "abs", "relu", "gelu",
                   "silu", "smooth_abs", "sign", "floor") for c in elementwise(op)],
    *elementwise("log", positive=True), *elementwise("sqrt", positive=True),
    *[c for op in ("add", "sub", "mul", "max", "min") for c in pairs(op)],
    *[c for op in ("lt", "le", "gt", "ge", "eq") for c in pairs(op)],
    *pairs("div", positive=True),
    *[Case("pow", (s,), s, more=(n,), positive=True)
      for s in ((), (4,)) for n in (-1, 0.5, 0, 1, 2, 3)],
    *[Case("pow", ((4,),), (4,), more=(n,)) for n in (2, 3)],
    Case("where", ((4,), (4,), (4,)), (4,)), Case("where", ((2, 1), (3,), ()), (2, 3)),
    Case("clip", ((4,),), (4,), more=(-0.5, 0.5)),
    *[Case(op, (s,), (), None) for op in ("sum", "mean") for s in ((4,), (2, 3), ())],
    *[Case(op, (s,), s[:-1], 1) for op in ("sum", "mean") for s in ((4,), (2, 3))],
    Case("dot", ((4,), (4,)), ()), Case("dot", ((2, 3), (2, 3)), (2,)),
    Case("dot", ((2, 3), (3,)), (2,)),
    *[Case("length", (s,), s[:-1], p) for p in (1, 2, 3) for s in ((4,), (2, 3))],
    *[Case(op, (s,), s) for op in ("layer_norm", "softmax", "unit") for s in ((4,), (2, 3))],
    Case("column", ((3,),), (3, 1)), Case("column", ((),), (1,)), Case("reshape", ((6,),), (2, 3)),
    Case("split", ((6,),), (2, 3), 2), Case("join", ((2, 3),), (6,)),
    Case("join", ((4, 2, 3),), (4, 6)),
    Case("top", ((4,),), (4,), 2), Case("transpose", ((2, 3),), (3, 2)),
    *[Case("matmul", shapes, out)
      for shapes, out in ((((2, 3), (3, 4)), (2, 4)), (((3,), (3, 4)), (4,)),
                          (((2, 3), (3,)), (2,)), (((3,), (3,)), ()),
                          (((5, 2, 3), (3, 4)), (5, 2, 4)), (((2, 3), (5, 3, 4)), (5, 2, 4)))],
]  # fmt: skip


def test_every_rule_is_tested() -> None:
    # what is drawn has its own: tests/test_systems.py
    assert {c.op for c in CASES} == set(VJP) - {"dropout"}


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_rule_is_the_derivative(case: Case, seed: int) -> None:
    points = [random(*s, seed=10 * seed + i) for i, s in enumerate(case.shapes)]
    if case.positive:
        points = [p.abs() + 0.1 for p in points]
    if case.op == "where":
        points[0] = (points[0] > 0).double()
    names = [f"x{i}" for i in range(len(points))]
    inputs = [given(n, *s) for n, s in zip(names, case.shapes, strict=True)]
    term = Term(case.op, (*inputs, *map(number, case.more)), case.out, case.info)
    bar = random(*case.out, seed=seed + 5)
    env = {**dict(zip(names, points, strict=True)), "bar": bar}

    derived = VJP[case.op](term, given("bar", *case.out))
    assert len(derived) == len(term.args)
    if case.op == "top":  # there is no derivative to compare with
        assert derived == (None,)
        return

    def run(*xs: Tensor) -> Tensor:
        return (bar * value(term, dict(zip(names, xs, strict=True)))).sum()

    wanted = torch.func.grad(run, argnums=tuple(range(len(points))))(*points)
    for part, x, grad in zip(derived, inputs, wanted, strict=False):
        close(torch.zeros(()) if part is None else value(sum_to(part, x.shape), env), grad)


@pytest.mark.parametrize("case", [c for c in CASES if c.out == () and c.op != "top"], ids=str)
def test_a_rule_at_the_objective_itself(case: Case) -> None:
    """There the cotangent is the number 1."""
    points = [random(*s, seed=i).abs() + 0.1 for i, s in enumerate(case.shapes)]
    names = [f"x{i}" for i in range(len(points))]
    inputs = [given(n, *s) for n, s in zip(names, case.shapes, strict=True)]
    term = Term(case.op, (*inputs, *map(number, case.more)), case.out, case.info)

    def run(*xs: Tensor) -> Tensor:
        return value(term, dict(zip(names, xs, strict=True)))

    wanted = torch.func.grad(run, argnums=tuple(range(len(points))))(*points)
    derived = VJP[case.op](term, number(1.0))
    for part, x, grad in zip(derived, inputs, wanted, strict=False):
        found = (
            torch.zeros(()) if part is None else value(sum_to(part, x.shape), env_of(names, points))
        )
        close(found, grad)


def env_of(names: list[str], points: list[Tensor]) -> Env:
    return dict(zip(names, points, strict=True))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_the_length_of_nothing_has_the_derivative_nothing(p: float) -> None:
    x = given("x", 3)
    (part,) = VJP["length"](Term("length", (x,), (), p), number(1.0))
    assert part is not None
    assert not bool(value(part, {"x": torch.zeros(3, dtype=torch.float64)}).any())


def test_the_root_of_nothing_has_the_derivative_nothing() -> None:
    x = given("x", 3)
    (part,) = VJP["sqrt"](Term("sqrt", (x,), (3,)), number(1.0))
    assert part is not None
    at = torch.tensor([0.0, 4.0, -1.0], dtype=torch.float64)
    assert value(part, {"x": at}).tolist()[:2] == [0.0, 0.25]
    assert bool(value(part, {"x": at})[2].isnan())  # a root of less than nothing stays none


# ---- objectives of every form -------------------------------------------------------------------


def system(text: str) -> System:
    checked = check_text("nl 1\n" + text)
    assert checked.system is not None and not checked.errors, checked.diagnostics
    return checked.system


FORMS = {
    "matrix(3, 4)": (3, 4),
    "mlp(3, 4)": (3, 3),
    "mlp(3, 5, 4)": (3, 4),
    "mlp(3, 5, 4, act = tanh)": (3, 4),
    "mlp(3, 5, 4, act = silu)": (3, 4),
    "mlp(3, 5, 4, act = relu)": (3, 4),
    "mlp(3, 5, 4, act = sigmoid)": (3, 4),
    "mlp(3, 5, 6, 4)": (3, 4),
    "mlp(3, 5, 6, 4, act = softplus)": (3, 4),
    "gated_mlp(3, 5)": (3, 3),
    "residual(mlp(3, 5))": (3, 3),
    "residual(gated_mlp(3, 5))": (3, 3),
    "layernorm(mlp(3, 5, 4))": (3, 4),
    "residual(layernorm(mlp(3, 5)))": (3, 3),
    "layernorm(residual(matrix(3, 3)))": (3, 3),
}
OBJECTIVES = [
    "sum((M(k) - v)^2)",
    "-dot(M(k), v)",
    "sum(smooth_abs(M(k) - v))",
    "length(M(k) - v, 3)^3 / 3",
    "length(M(k) - v)^2",
    "mean(M(k) * v) + 0.5 * length(M(k))",
    "where(length(M(k) - v) < 2, sum((M(k) - v)^2), length(M(k) - v))",
    "sum(exp(-M(k) / 3)) / 4 + sum(log(1 + M(k)^2)) - min(sum(M(k)), 2)",
    "-dot(softmax(M(k)), v) + sum(unit(M(k)) * v)",
    "sum((M(k) - stop(M(2 * k)))^2)",
    "dot(M(k), M(2 * k))",
    "sum(max(M(k), v)) + sum(clip(M(k), -1, 1) * sigmoid(v))",
]


def memory(form: str, objective: str) -> tuple[Box, State]:
    n, m = FORMS[form]
    found = system(
        f"system one() {{\n  level a(k[{n}], v[{m}]) every token {{\n    state M : {form}\n"
        f"    objective {objective}\n    learn gradient(rate = 0.1)\n    read M(k)\n  }}\n"
        f"  flow(k[{n}], v[{m}]) {{ return a(k, v) }}\n}}\n"
    )
    box = found.level("a").boxes[0]
    return box, box.states[0]


def applied(state: State, arrays: Env, x: Tensor) -> Tensor:
    """`M(x)` in the words of 2.3.2."""

    def form(f: Any, x: Tensor) -> Tensor:
        if f.kind == "residual":
            return x + form(f.inner, x)
        if f.kind == "layernorm":
            y = form(f.inner, x)
            return functional.layer_norm(y, y.shape, None, None, 1e-6)
        if f.kind == "matrix":
            return arrays[""] @ x
        if f.kind == "gated_mlp":
            return arrays["W2"] @ (functional.silu(arrays["W1"] @ x) * (arrays["W3"] @ x))
        layers = len(f.sizes) - 1
        for i in range(1, layers + 1):
            x = arrays[f"W{i}"] @ x
            x = UNARY[f.act](x) if i < layers else x
        return x

    return form(state.form, x)


def example_sum(box: Box, state: State, arrays: Env, env: Env) -> dict[str, Tensor]:
    """The gradient as the derived rule has it: a sum of `surprise input'`."""
    total = {n: torch.zeros_like(a) for n, a in arrays.items()}
    everything = {**env, **arrays}
    for example in gradient(box, state).examples:
        surprise = value(example.surprise, everything).expand(total[example.array].shape[0])
        total[example.array] += torch.outer(surprise, value(example.input, everything))
    return total


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_of_an_objective(form: str, objective: str) -> None:
    box, state = memory(form, objective)
    n, m = FORMS[form]
    env = {"k": random(n, seed=1), "v": random(m, seed=2)}
    arrays = {a.name: 0.7 * random(*a.shape, seed=i) for i, a in enumerate(state.form.arrays, 3)}
    term = state.rule.objective
    assert term is not None
    wanted = torch.func.grad(lambda arrays: value(term, {**env, **arrays}))(arrays)
    found = example_sum(box, state, arrays, env)
    for name in arrays:
        close(found[name], wanted[name])


# ---- what cannot be derived ---------------------------------------------------------------------

NOT_DERIVED = {
    "sum(outer(M(k), v))": "`outer`",
    "frobenius(outer(M(k), v))": "derivative of",
    "sum(mod(M(k), 2))": "`mod`",
    "sum(abs(v) ^ M(k))": "a power that is not a number",
    "sum(concat(M(k), v))": "`concat`",
}


def test_a_state_that_is_an_array() -> None:
    """What reaches it directly is beside what reaches it through products."""
    found = gradient(*memory("matrix(3, 4)", "sum(M^2) + dot(M(k), v)"))
    assert [name for name, _ in found.direct] == [""]
    assert [e.array for e in found.examples] == [""]
    ((_, bar),) = found.direct
    assert bar.shape == (4, 3) and any(t.op == "array" for t in bar.walk())


@pytest.mark.parametrize("objective", NOT_DERIVED)
def test_what_cannot_be_derived_is_said(objective: str) -> None:
    with pytest.raises(Underivable, match=NOT_DERIVED[objective]):
        gradient(*memory("matrix(3, 4)", objective))


def test_a_gain_in_an_objective_is_not_derived() -> None:
    x = given("x", 3)
    with pytest.raises(Underivable, match="gain"):
        VJP["layer_norm"](Term("layer_norm", (x, x, x), (3,)), x)


# ---- optimizers in linear form ------------------------------------------------------------------


def served(rule: str, uses: str = "") -> tuple[Box, Learn]:
    """The optimizer of a matrix [3, 2] by `learn rule`."""
    found = system(
        f"{uses}\nsystem one() {{\n  level a(k[2], v[3]) every token {{\n"
        f"    state M : matrix(2, 3)\n    objective sum((M(k) - v)^2)\n    learn {rule}\n"
        "    read M(k)\n  }\n  flow(k[2], v[3]) { return a(k, v) }\n}\n"
    )
    learn = found.level("a").boxes[0].states[0].rule.learn[""]
    return learn.optimizers[3, 2], learn


def literally(
    box: Box, learn: Learn, kept: dict[str, Tensor], streams: Env
) -> tuple[Tensor, Tensor]:
    """One firing in the words of 2.9.6: each memory of gradients at its place, then the write."""
    env: dict[Any, Tensor] = {n: value(t, {}) for n, t in learn.settings.items()}
    env |= dict(streams)
    for step in box.order:
        kind, _, name = step.partition(":")
        assert kind == "state"
        rule = box.state(name).rule
        assert rule.objective is not None
        objective, inner = rule.objective, rule.learn[""]

        def asked(m: Tensor, name: str = name, objective: Term = objective) -> Tensor:
            return value(objective, {**env, name: m})

        grad = torch.func.grad(asked)(kept[name])
        own = {n: value(t, env) for n, t in inner.settings.items()}
        write = next(iter(inner.optimizers.values())).write
        assert write is not None
        amount = value(write, {**own, "grad": grad, "weight": kept[name]})
        keep = value(rule.retain, env) if rule.retain is not None else 1.0
        kept[name] = env[name] = keep * kept[name] + amount
    assert box.write is not None
    keep = value(box.retain, env) if box.retain is not None else torch.ones(())
    return keep, value(box.write, env)


def linearly(form: LinearRule, learn: Learn, S: Tensor, streams: Env) -> tuple[Tensor, Tensor]:
    """S = momentum S - rate (grad + erase W x x'), W = keep W + S."""

    def setting(t: Term | None, default: float) -> Tensor:
        if t is None:
            return torch.tensor(default, dtype=torch.float64)
        return value(substitute(t, learn.settings), {})

    x = streams["input"]
    erased = setting(form.erase, 0.0) * (streams["weight"] @ (x.mT @ x))
    amount = -setting(form.rate, 0.0) * (streams["grad"] + erased)
    return setting(form.keep, 1.0), setting(form.momentum, 0.0) * S + amount


SHRINKING = """optimizer shrinking(weight, grad, rate = 0.1) {
  retain 1 - 2 * rate
  write -(rate * grad + grad / 4)
}"""
HALF_ERASING = """optimizer half(weight, grad, input, rate = 0.1) {
  write -rate * (weight @ (transpose(input) @ input) / 2 + grad)
}"""
AVERAGE = """optimizer average(weight, grad, rate = 0.1, b = 0.8) {
  state m : like(weight) {
    objective -3 * sum(m * grad)
    retain b
    learn gradient(rate = (1 - b) * rate)
  }
  write m
}"""
LINEAR = [
    ("gradient(rate = 0.2)", ""),
    ("momentum(rate = 0.2, keep = 0.7)", ""),
    ("momentum(rate = 0.2, keep = 1)", ""),
    ("dgd(rate = 0.2)", ""),
    ("shrinking(rate = 0.2)", SHRINKING),
    ("half(rate = 0.2)", HALF_ERASING),
]


@pytest.mark.parametrize("rule, uses", LINEAR, ids=[r for r, _ in LINEAR])
def test_the_linear_form_is_the_optimizer(rule: str, uses: str) -> None:
    box, learn = served(rule, uses)
    form = linear_rule(box)
    assert form is not None
    kept = {s.name: torch.zeros(3, 2, dtype=torch.float64) for s in box.states}
    S, W, V = torch.zeros(3, 2), random(3, 2), random(3, 2)
    for t in range(6):
        x, grad = random(4, 2, seed=t), random(3, 2, seed=20 + t)
        keep, amount = literally(box, learn, kept, {"weight": W, "grad": grad, "input": x})
        W = keep * W + amount
        keep, S = linearly(form, learn, S, {"weight": V, "grad": grad, "input": x})
        V = keep * V + S
        close(V, W)


@pytest.mark.parametrize(
    "rule",
    ["adam(rate = 0.1)", "adamw(rate = 0.1)", "muon(rate = 0.1)", "delta_momentum(rate = 0.1)",
     "dgd_proximal(rate = 0.1)", "m3(rate = 0.1)", "dmgd(rate = 0.1)"],
)  # fmt: skip
def test_a_rule_of_another_form_has_no_linear_one(rule: str) -> None:
    uses = {"dgd_proximal": 'use "optim/dgd"'}.get(rule.partition("(")[0], "")
    assert linear_rule(served(rule, uses)[0]) is None


def test_the_factors_of_a_memory_of_gradients_are_its_rate() -> None:
    box, learn = served("average(rate = 0.2)", AVERAGE)
    form = linear_rule(box)
    assert form is not None and form.momentum is not None
    assert math.isclose(float(value(substitute(form.rate, learn.settings), {})), -0.12)
    assert float(value(substitute(form.momentum, learn.settings), {})) == 0.8
