"""Levels of random systems with rules that few have: any optimizer at any clock, several states and
rules, links to a dual, steps, rates for each channel, gradients that are changed before use.
"""

from __future__ import annotations

import re

from .expressions import Expressions
from .made import Made, words
from .named import CLOCKS, CUTS, reset, said, shape

OBJECTIVES = (
    "sum((M({k}) - {v})^2) / 4", "-sum(M({k}) * {v}) / 4", "sum(smooth_abs(M({k}) - {v})) / 4",
    "sum(tanh(M({k}) - {v})^2)", "sum((M({k}) - {v})^2) / 4 + sum(M({v})^2) / 9",
    "mean(b) * sum((M({k}) - {v})^2) / 4", "sum(softplus(-M({k}) * {v})) / 4",
)  # fmt: skip
ARRAYS = (  # of what is one array
    "sum((M - outer({v}, {k}))^2) / 9", "sum((M({k}) - {v})^2) / 9 + sum(M^2) / 20",
    "-sum(M * outer({v}, {k})) / 4",
)  # fmt: skip
VECTORS = (
    "sum((M - v)^2) / 9", "-sum(M * v) / 9", "sum(smooth_abs(M - v)) / 9",
    "sum(tanh(M * k - v)^2) / 4",
)  # fmt: skip
# Linear in the gradient, and not; those that are of matrices alone come last.
RULES = (
    "gradient(rate = 0.1)", "momentum(rate = 0.1, keep = 0.5)", "gradient(rate = 0.2 * mean(b))",
    "nesterov(rate = 0.05, keep = 0.5)", "gradient(rate = 0.2 / count)",
    "adam(rate = 0.01, eps = 0.1)", "adamw(rate = 0.01 * mean(b), eps = 0.1)",
    "rmsprop(rate = 0.01, eps = 0.1)", "adagrad(rate = 0.02, eps = 0.1)",
    "nadam(rate = 0.01, eps = 0.1)", "gradient(rate = 0.1, grad = tanh(grad))",
    "adam(rate = 0.01, eps = 0.1, grad = grad / (1 + frobenius(grad)))",
    "gradient(rate = 0.1, grad = grad / (1 + sqrt(across(sum(grad^2)) + 1)))",
    "momentum(rate = 0.1, keep = 0.5, grad = clip(grad, -0.5, 0.5))",
)  # fmt: skip
OF_MATRICES = (
    "dgd(rate = 0.1)", "delta_momentum(rate = 0.05, keep = 0.5)",
    "dgd_momentum(rate = 0.1, keep = 0.5)", "dgd_proximal(rate = 0.1)",
    "preconditioned_momentum(rate = 0.05, eps = 0.1)", "muon(rate = 0.05, keep = 0.5)",
)  # fmt: skip
AT_EACH = ("gradient(rate = 0.1, steps = 2)", "adam(rate = 0.01, eps = 0.1, steps = 2)")
# What carries ticks on, in the place of a name.
CARRIED = ("conv({}, 3)", "carried({})", "twice(carried({}))", "tanh(conv({}, 2))")
OUTSIDE = (
    "memory carried(x[n]) { state S : vector(n) { retain 0.5; write x }; read S }",
    "def twice(x) { return x * sigmoid(x) + tanh(x) }",
)
CHANNELS = ("gradient(rate = 0.2 * {w})", "implicit(rate = 0.5)", "gradient(rate = 0.1)")
LINKS = ("through tanh", "through softmax", "onto tanh", "onto sin")


def ruled(writer: Expressions, name: str) -> Made:
    """A level with a state M, and now and then another beside it."""
    w, h = writer.width, writer.heads
    form, clock = writer.pick("matrix", "network", "heads", "vector"), writer.pick(*CLOCKS)
    key = f"split({{}}, {h})" if form == "heads" else "{}"
    objective = objective_of(writer, form).format(k=key.format("k"), v=key.format("v"))
    often = clock == "token"
    once = "" if often else writer.pick("", "", " once")
    keep = retained(writer, form)
    late = " after retain" * (often and bool(keep) and "ough" not in keep and writer.chance(25))
    rules = [*keep, f"objective {objective}{late}{once}", f"learn {rule(writer, form, often)}"]
    more = beside(writer, form, key)
    carried = writer.chance(30)
    if carried:
        rules, more = ([in_place(writer, line) for line in lines] for lines in (rules, more))
    read = f"x + {said('M', form, writer.pick('x', 'k'), h)}{' + c' * bool(more)}"
    if often and form in ("matrix", "network") and not once and writer.chance(10):
        rules.append(f"linearise every {writer.pick(2, 3)} tokens")
    lines = {
        "k": writer.pick("unit(x)", f"unit(linear(x, {w}))"),
        "v": writer.pick("tanh(x)", f"linear(x, {w})", "conv(x, 3)"),
        "b": f"sigmoid(linear(x, {w}))",
    }
    used = words([*rules, *more, read])
    text = [
        f"level {name}(x) every {clock} {{", *reset(writer, clock),
        f"state M : {shape(form, w, h)}{writer.pick('', ' = normal(0.3)')}", *more,
        *(f"{y} = {e}" for y, e in lines.items() if y in used), *rules,
        f"read {read}{' before write' * writer.chance(15)}", "}",
    ]  # fmt: skip
    # A memory called in a rule starts from zeros: what it says may be a constant to training.
    return Made(name, "ruled", text, starts=not carried, cuts=CUTS.get(clock, ()))


def in_place(writer: Expressions, line: str) -> str:
    """Some of the names in a rule, carried on there."""
    if not writer.outside:
        writer.outside += OUTSIDE

    def carried(name: re.Match[str]) -> str:
        text: str = writer.pick("{}", *CARRIED)
        return text.format(name[0])

    head, colon, rest = line.partition("= normal") if line.startswith("state") else ("", "", line)
    return head + colon + re.sub(r"(?<![\w.])[vbx]\b(?! *=)(?!\()", carried, rest)


def objective_of(writer: Expressions, form: str) -> str:
    if form == "vector":
        return str(writer.pick(*VECTORS))
    return str(writer.pick(*OBJECTIVES, *(ARRAYS if form != "network" else ())))


def retained(writer: Expressions, form: str) -> list[str]:
    keep = writer.pick("", "0.9", "sigmoid(mean(b) + 1)", "1 - 0.1 * mean(b)")
    if form == "matrix" and writer.chance(15):
        keep = "b"  # one a channel
    if form != "heads" and writer.chance(15):
        return [f"retain {keep or '1'} {writer.pick(*LINKS)}"]
    return [f"retain {keep}"] if keep else []


def rule(writer: Expressions, form: str, often: bool) -> str:
    """An optimizer, with settings that keep what it writes small."""
    rules = [*RULES, *(OF_MATRICES if form != "vector" else ()), *(AT_EACH if often else ())]
    if form == "matrix" and writer.chance(15):
        return str(writer.pick(*CHANNELS)).replace("{w}", "b")
    return str(writer.pick(*rules))


def beside(writer: Expressions, form: str, key: str) -> list[str]:
    """A second state, whose rule may name the first."""
    if not writer.chance(30):
        return []
    w, h = writer.width, writer.heads
    first = said("M", form, "x", h)
    change = writer.pick(
        "set 0.5 * c + tanh(x)", f"set 0.5 * c + 0.5 * {first}", f"write 0.1 * {first}",
        "objective sum((c - v)^2) / 9; learn adam(rate = 0.01, eps = 0.1)",
        "objective sum((c - stop(v))^2) / 9; retain 0.9; learn momentum(rate = 0.1, keep = 0.5)",
    )  # fmt: skip
    return [f"state c : vector({w}) = normal(0.3) {{ {change} }}"]
