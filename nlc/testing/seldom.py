"""Levels of random systems that few others are like: tables whose rows are memories, objectives
that ask for labels of their own, several `learn` lines of one level, starts that a level on tokens
learns, and what is trained on steps and tasks.
"""

from __future__ import annotations

from .expressions import Expressions
from .made import Made, makes_weights, words
from .named import CLOCKS, CUTS, SLOW, reset, shape

RULES = (
    "gradient(rate = 0.1)", "momentum(rate = 0.1, keep = 0.5)", "adam(rate = 0.01, eps = 0.1)",
    "gradient(rate = 0.2 * mean(b))", "gradient(rate = 0.2 / count)",
    "adamw(rate = 0.01, eps = 0.1)",
)  # fmt: skip
KEEPS = ("", "", "retain 0.9", "retain sigmoid(mean(b) + 1)")

IDS = ("i", "mod(i + 1, 5)", "mod(position, 5)", "1", "where(i < 2, i, 4)")
ROWS = (  # of a table T
    "objective sum((T({i}) - {v})^2) / 4; learn {r}", "objective -sum(T({i}) * {v}) / 4; learn {r}",
    "objective sum(tanh(T({i}) - {v})^2); learn {r}", "objective loss; learn {r}",
    "objective sum((T({i}) - T({j}) - x)^2) / 9; learn {r}",
    "objective sum((T({i}) - stop(T({j})) - x)^2) / 9; learn {r}",
    "objective sum((T({i}) - {v})^2) / 4 + sum(T^2) / 20; learn {r}",
    "write outer(where(range(5) == {i}, 0.3, 0), {v})",
    "set 0.9 * T + outer(where(range(5) == {i}, 0.3, 0), {v})",
)  # fmt: skip
READS = ("x + T({i})", "T({i}) * x + x", "x + T({i}) + T({j})", "x * (T({i}) + 1)")

TOLD = (  # of a memory M of five words, by the word that comes next
    "cross_entropy(M(k), next(i)) / 4", "cross_entropy(M(k), next(i)) * sigmoid(mean(x))",
    "cross_entropy(M(k), next(i)) / 4 + sum(M(v)^2) / 40",
    "where(next(i) == i, 0.5, 0.1) * sum(M(k)^2)", "where(next(i) < 3, cross_entropy(M(k), i), 0)",
    "loss + cross_entropy(M(k), next(i)) / 4",
)  # fmt: skip

LINES = (
    ("for matrices", ""), ("for vectors", ""), ("for M", ""), ("for u", "for matrices"),
    ("for matrices", "for vectors"),
)  # fmt: skip

# Of levels on steps and tasks, one rule or several.
ON_STEPS = (
    "learn muon(rate = 0.02) for matrices; learn adamw(rate = 1e-3)",
    "learn momentum(rate = 0.1, keep = 0.5) for vectors; learn adam(rate = 0.01, eps = 0.1)",
    "learn gradient(rate = 0.1, grad = clip(grad, -0.1, 0.1)) for tables; "
    "learn gradient(rate = 0.05)",
    "learn adam(rate = 0.01, eps = 0.1) for matrices; learn ewc(rate = 0.05)",
    "learn gradient(rate = 0.1 / count)", "retain 0.99; learn adamw(rate = 1e-3)",
    "learn ewc(rate = 0.05)",
    "learn gradient(rate = 0.1, grad = grad / (1 + sqrt(across(sum(grad^2)) + 1)))",
    "learn m3(rate = 0.01) for matrices; learn nadam(rate = 0.01, eps = 0.1)",
)  # fmt: skip
STEPS = ("step", "2 steps", "task", "3 steps from 1", "2 tasks from 1")
FOLLOWING = (
    "0.5 * A + 0.5 * {A}", "{A}", "0.9 * A + 0.1 * {A} + 0.01 * tanh({A})",
    "A + {A} * (0.1 / count)",
)  # fmt: skip


def rows(writer: Expressions, name: str) -> Made:
    """A table, asked for its rows by what the flow was given; of the level or of a memory."""
    w, clock = writer.width, clock_of(writer)
    first, second = writer.pick(*IDS), writer.pick(*IDS)
    line = writer.pick(*ROWS)
    rule = line.format(i=first, j=second, v=writer.pick("x", "v"), r=rule_of(writer, line))
    keeps = ("",) if "set " in line else KEEPS if "learn" in line else KEEPS[2:]
    keep = writer.pick(*keeps)
    read = writer.pick(*READS).format(i=first, j=writer.pick(first, second))
    rules = [*([keep] if keep else []), *rule.split("; ")]
    start = writer.pick("", " = normal(0.3)", " = zeros()")
    lines = made_of(writer, [*rules, read])
    first, second = f"level {name}(x, i) every {clock} {{", reset(writer, clock)
    if writer.chance(30) and not makes_weights(lines):
        writer.outside += [
            f"memory {name}_kept(x[n], i) {{", f"state T : table(5, n){start}", *lines, *rules,
            f"read {read}", "}",
        ]  # fmt: skip
        body = [f"read {name}_kept(x, i)"]
        if writer.heads > 1 and writer.chance(50):
            body = [f"read join({name}_kept(split(x, {writer.heads}), i))"]
    else:
        early = " before write" * writer.chance(15)
        body = [f"state T : table(5, {w}){start}", *lines, *rules, f"read {read}{early}"]
    return level(name, "rows", [first, *second, *body, "}"], clock)


def labels(writer: Expressions, name: str) -> Made:
    """A memory that is told what comes next, when it has come."""
    w, clock = writer.width, clock_of(writer)
    form = writer.pick(f"matrix({w}, 5)", f"mlp({w}, 3, 5)")
    objective = writer.pick(*TOLD)
    once = writer.pick("", "", " once") if clock != "token" and "loss" not in objective else ""
    read = writer.pick("x + mean(M(x))", f"x + linear(M(k), {w})")
    learn = f"learn {rule_of(writer, objective)}"
    rules = [line for line in (writer.pick(*KEEPS), f"objective {objective}{once}", learn) if line]
    text = [
        f"level {name}(x, i) every {clock} {{", *reset(writer, clock),
        f"state M : {form}{writer.pick('', ' = normal(0.3)')}", *made_of(writer, [*rules, read]),
        *rules, f"read {read}", "}",
    ]  # fmt: skip
    return level(name, "labels", text, clock)


def lines(writer: Expressions, name: str) -> Made:
    """Two states by two rules of one level, each for some of the arrays."""
    w, h, clock = writer.width, writer.heads, clock_of(writer)
    form = writer.pick("matrix", "network", "heads")
    key = f"split(k, {h})" if form == "heads" else "k"
    value = f"split(v, {h})" if form == "heads" else "v"
    said = f"join(M(split(x, {h})))" if form == "heads" else "M(x)"
    objective = writer.pick(
        f"sum((M({key}) - {value})^2) / 4 + sum((u - v)^2) / 9", "loss",
        f"sum((u - v)^2) / 9 - sum(M({key}) * {value}) / 4",
        f"sum(({said.replace('x', 'k')} + u - v)^2) / 4",
    )  # fmt: skip
    ours, others = writer.pick(*LINES)
    learn = [f"learn {rule_of(writer, objective)} {which}".rstrip() for which in (ours, others)]
    rules = [line for line in (writer.pick(*KEEPS), f"objective {objective}", *learn) if line]
    read = f"{said} + u"
    text = [
        f"level {name}(x, i) every {clock} {{", *reset(writer, clock),
        f"state M : {shape(form, w, h)} = normal(0.3)", f"state u : vector({w}) = normal(0.3)",
        *made_of(writer, [*rules, read]), *rules, f"read {read}", "}",
    ]  # fmt: skip
    return level(name, "lines", text, clock)


def clock_of(writer: Expressions) -> str:
    return str(writer.pick(*CLOCKS, *SLOW[: writer.chance(50)]))


def rule_of(writer: Expressions, line: str) -> str:
    """What learns the loss has settings that every tick of a period shares."""
    return str(writer.pick(*(r for r in RULES if "loss" not in line or "b)" not in r)))


def made_of(writer: Expressions, used: list[str]) -> list[str]:
    """The lines that are named."""
    w = writer.width
    made = {
        "k": writer.pick("unit(x)", f"unit(linear(x, {w}))", "tanh(x)"),
        "v": writer.pick("tanh(x)", f"linear(x, {w})", "conv(x, 3)"),
        "b": writer.pick("sigmoid(x)", f"sigmoid(linear(x, {w}))"),
    }
    return [f"{y} = {e}" for y, e in made.items() if y in words(used)]


def level(name: str, kind: str, text: list[str], clock: str) -> Made:
    learner = any("loss" in line for line in text)
    made = Made(name, kind, text, weights=False, starts=True, learner=learner, taken="tokens")
    made.cuts, made.smooth = CUTS.get(clock, ()), not any("adam" in line for line in text)
    return made


def edges(writer: Expressions, name: str, slow: Made) -> Made:
    """What starts where a slower level, that learns the loss, has learned it should."""
    w, clock = writer.width, writer.pick("token", "token", "2 tokens")
    told = [line for text in (slow.text, writer.outside) for line in text if " F : " in line]
    same = told[0].split(" : ")[1].split(" = normal")[0]
    form = writer.pick(same, same, same, f"mlp({w}, 3, {w})", f"residual(mlp({w}, {w}))")
    read = writer.pick("F(x)", "F(norm(x))", f"linear(F(tanh(x)), {w})", "F(x) + 0.5 * F(norm(x))")
    both = writer.chance(10)
    first = writer.pick("", f"reset every {writer.pick(4, 6, 4)} tokens")
    text = [
        f"level {name}(x) every {clock} {{", *([first] if first else []),
        f"state F : {form}{writer.pick('', ' = normal(0.4)')}",
        *([f"state b : vector({w}) = normal(0.3)"] if both else []), "objective loss",
        f"learn {writer.pick(*(r for r in RULES if 'b)' not in r))}",
        *writer.pick([], ["retain 0.9"]), f"read {read}{' + b' * both}", "}",
    ]  # fmt: skip
    made = Made(name, "edges", text, weights=False, starts=True, learner=True)
    made.smooth, made.started = not any("adam" in line for line in text), slow.name
    return made


def on_steps(writer: Expressions) -> tuple[str, str]:
    """Clock and rules of a level that is trained."""
    return writer.pick("step", *STEPS), writer.pick(*ON_STEPS)


def follower(writer: Expressions, name: str, source: Made) -> Made:
    """What follows an adapter's first state, on steps or tasks."""
    shape = next(line for line in source.text if "state A" in line).split(" : ")[1].split(" = ")[0]
    kept = f"{source.name}.A"
    text = [
        f"level {name}(x) every {writer.pick(*STEPS)} {{",
        f"state A : {shape} = {writer.pick(kept, 'normal(0.3)')}",
        f"set {writer.pick(*FOLLOWING).format(A=kept)}", "read x + mean(A(x))", "}",
    ]  # fmt: skip
    return Made(name, "follower", text, weights=False, opened=False, generated=source.name)
