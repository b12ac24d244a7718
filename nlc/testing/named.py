"""Levels of random systems whose states other levels name (language.md 2.7.2), and those that name
them: at their own clocks, in writes, objectives, settings and lines that no input enters, and in
some that one does.
"""

from __future__ import annotations

import re

from .expressions import Expressions
from .made import Made, words

CLOCKS = ("token", "2 tokens", "3 tokens", "3 tokens from 1", "4 tokens from 2")
SLOW = ("sequence", "2 sequences", "sequence from 2")
CUTS = {"token": (3, 4), "2 tokens": (4,), "3 tokens": (3,)}  # between two periods
RESETS = ("5 tokens; partial flush", "4 tokens; partial flush", "6 tokens")

# How the state S of a store changes; `k` and `v` are made of its input.
KEPT = {
    "matrix": (
        "write outer({k}, {v}) / 4", "set 0.5 * S + outer({k}, {v}) / 4",
        "objective sum((S({k}) - {v})^2) / 4; learn {r}", "retain 0.9; write outer({v}, {k}) / 4",
        "objective -sum(S({k}) * {v}) / 4; retain 0.9; learn {r}",
    ),
    "network": ("objective sum((S({k}) - {v})^2) / 4; learn {r}", "retain 0.9; write 0.1 * S"),
}  # fmt: skip
VECTORS = (
    "set 0.5 * u + x", "retain 0.9; write 0.5 * x", "write 0.1 * x",
    "objective sum((u - x)^2) / 9; learn {r}",
)  # fmt: skip

# How M changes, by the store's `{S}` and lines: `a` is made of the store alone, `b` of the input.
ALONE = {
    "matrix": (
        "write 0.1 * {S}", "write 0.3 * ({S} - M)", "write outer({a}, {a}) / 4",
        "set 0.9 * M + 0.1 * {S}", "objective -sum(M * {S}) / 9; learn {r}",
        "objective sum((M - {S})^2) / 9{o}; learn {r}",
        "objective sum((M({a}) - {a})^2) / 4{o}; learn {d}",
        "objective -sum(M({a}) * {a}) / 4{o}; learn {d}",
        "objective sum(smooth_abs(M - {S})) / 9{o}; learn {r}",
        "objective sum((M({a}) - {S}({a}))^2) / 4{o}; learn {d}",
        "objective sum((M({u}) - {u})^2) / 4{o}; learn {d}",
    ),
    "network": (
        "write 0.1 * {S}", "set 0.9 * M + 0.1 * {S}",
        "objective sum((M({u}) - {u})^2) / 4{o}; learn {d}",
        "objective sum((M({a}) - {a})^2) / 4{o}; learn {d}",
        "objective sum((M({a}) - {S}({a}))^2) / 4{o}; learn {d}",
    ),
    "vector": (
        "write 0.1 * {a}", "write 0.3 * ({a} - M)", "set 0.5 * M + {a}",
        "objective sum((M - {a})^2) / 9{o}; learn {r}", "objective -sum(M * {a}) / 9{o}; learn {r}",
    ),
}  # fmt: skip
BESIDE = {
    "matrix": (
        "objective sum((M({b}) - {a})^2) / 4{o}; learn {d}",
        "objective sum((M({a}) - {b})^2) / 4{o}; learn {d}",
        "objective sum((M({b}) - {S}({b}))^2) / 4{o}; learn {d}",
        "objective sum((M({u}) - {b})^2) / 4 + sum(M({u})^2) / 9{o}; learn {d}",
        "objective sum((M({b}) - {u})^2) / 4{o}; learn {d}",
        "objective sum((M - {S})^2) / 9 + sum((M({b}) - {b})^2) / 9{o}; learn {r}",
        "write 0.1 * {S} + outer({b}, {a}) / 9", "set 0.5 * M + 0.1 * {S} + outer({a}, {b}) / 9",
        "objective -sum(M({b}) * {a}) / 4{o}; learn {d}",
    ),
    "network": (
        "objective sum((M({b}) - {a})^2) / 4{o}; learn {d}",
        "objective sum((M({b}) - {S}({b}))^2) / 4{o}; learn {d}",
        "objective sum((M({a}) - {b})^2) / 4 + sum((M({a}) - {a})^2) / 9{o}; learn {r}",
    ),
    "vector": (
        "set 0.5 * M + 0.5 * {b} * {a}", "write 0.3 * ({b} + {a} - M)",
        "objective sum((M - {b})^2) / 9 + sum((M - {a})^2) / 9{o}; learn {r}",
    ),
}  # fmt: skip
RULES = (
    "gradient(rate = 0.1)", "momentum(rate = 0.1, keep = 0.5)", "adam(rate = 0.01, eps = 0.1)",
    "gradient(rate = 0.2 * sigmoid(mean(a)))", "adamw(rate = 0.01, eps = 0.1)",
    "gradient(rate = 0.1 / count)", "gradient(rate = 0.1, steps = 2)",
)  # fmt: skip


def store(writer: Expressions, name: str) -> Made:
    """A level with states S and u that change by what comes in."""
    w, h = writer.width, writer.heads
    form = writer.pick("matrix", "network", "heads")
    key = f"split({{}}, {h})" if form == "heads" else "{}"
    rule = writer.pick(*KEPT["network" if form == "network" else "matrix"], "")
    answers = writer.chance(70)  # else its weights and starts might be nobody's to learn
    read = f"x + {said('S', form, 'x', h)} + u" if answers else "x"
    made = writer.pick("tanh(x)", f"linear(x, {w})") if answers else "tanh(x)"
    clock = clock_of(writer)
    rules = [
        r.format(k=key.format("unit(x)"), v=key.format(made), r=writer.pick(*RULES[:3]))
        for r in (rule, writer.pick(*VECTORS))
    ]
    rules = [bounded(r, clock) for r in rules]
    normal = " = normal(0.3)"
    text = [
        f"level {name}(x) every {clock} {{", *reset(writer, clock),
        f"state S : {shape(form, w, h)}{normal}{f' {{ {rules[0]} }}' * bool(rule)}",
        f"state u : vector({w}) = normal(0.5) {{ {rules[1]} }}", f"read {read}", "}",
    ]  # fmt: skip
    return Made(name, "store", text, starts=answers, form=form, cuts=CUTS.get(clock, ()))


def reader(writer: Expressions, name: str, source: Made) -> Made:
    """A level with a state M whose rule names states of the source, or is given what it says."""
    w, h, own = writer.width, writer.heads, source.name
    form = writer.pick(source.form, source.form, "vector")
    clock = clock_of(writer)
    given, taken = handed(writer, source)
    names = {f"{own}.u": w, said(f"{own}.S", source.form, f"{own}.u", h): w}
    if given == "c":
        names = {"c": w}
    lines = {"a": alone(writer, names), "b": beside(writer, names)}
    matrix, u = "W" if given.startswith("W") else f"{own}.S", "c" if given == "c" else f"{own}.u"
    rules = changes(writer, form, clock, matrix, u)
    if given == "c":
        rules = [r.replace(f"{own}.S", "M") for r in rules]
    read = f"x + {'c + ' * (given == 'c')}{said('M', form, writer.pick('x', 'a', 'b'), h)}"
    used = words([*rules, read])
    used |= words([lines["b"]]) if "b" in used else set()
    copies = form == source.form and not given
    start = writer.pick("", " = normal(0.3)", f" = {own}.S" * copies)
    inputs = "x" if not given else f"x, {given}"
    text = [
        f"level {name}({inputs}) every {clock} {{", *reset(writer, clock),
        f"state M : {shape(form, w, h)}{start}",
        *(f"{y} = {e}" for y, e in lines.items() if y in used), *rules,
        f"read {read}{' before write' * writer.chance(15)}", "}",
    ]  # fmt: skip
    made = Made(name, "reader", text, starts=".S" not in start, form=form)
    made.cuts, made.taken = CUTS.get(clock, ()), taken
    asked = [*reached([r for r in rules if r.startswith(("write", "set"))], lines), start]
    if any(re.search(rf"\b({own}\.|c\b|W\b)", e) for e in asked):
        made.generated = own
    return made


def handed(writer: Expressions, source: Made) -> tuple[str, str]:
    """What a reader is given beside x, and what a flow gives it: mostly nothing, for it names what
    it needs.
    """
    if not writer.chance(15):
        return "", ""
    w, n = writer.width, writer.width // writer.heads
    sizes = {"matrix": f"W[{w}, {w}]", "heads": f"W[{writer.heads}, {n}, {n}]"}
    state = sizes.get(source.form, "")
    if state and writer.chance(50):
        return state, f"{source.name}.S"
    return "c", f"{source.name}(x)"


def changes(writer: Expressions, form: str, clock: str, matrix: str, vector: str) -> list[str]:
    """The rule of a reader's state, by a matrix and a vector of the source."""
    kind, h = "matrix" if form == "heads" else form, writer.heads
    key = f"split({{}}, {h})" if form == "heads" else "{}"
    often = clock == "token"
    optimizer = writer.pick(*RULES[: None if often else -1])
    once = writer.pick("", "", " once")
    rule = str(writer.pick(*ALONE[kind], *BESIDE[kind])).format(
        a=key.format("a"), b=key.format("b"), S=matrix, r=optimizer, o=once,
        u=key.format(vector),
        d=writer.pick(optimizer, optimizer, "dgd(rate = 0.1)"),
    )  # fmt: skip
    forgets = [*([] if clock in SLOW else [""]), "0.9", "sigmoid(mean(a))", "sigmoid(mean(b))"]
    keeps = "" if "set " in rule else writer.pick(*forgets)
    if keeps and often and "learn" in rule and not once and writer.chance(20):
        rule = rule.replace("; learn", " after retain; learn")
    return [*([f"retain {keeps}"] if keeps else []), *rule.split("; ")]


def reached(roots: list[str], lines: dict[str, str]) -> list[str]:
    """The texts, and the lines they name."""
    found = list(roots)
    for y in ("b", "a"):
        if y in words(found):
            found.append(lines[y])
    return found


def follows(writer: Expressions, source: Made, follower: Made) -> bool:
    """Whether the source keeps what a follower of its own has become, too."""
    if not writer.chance(20):
        return False
    kept, w, h = f"{follower.name}.M", writer.width, writer.heads
    back = f"state back : {shape(follower.form, w, h)} = normal(0.1)"
    source.text.insert(1, f"{back} {{ set 0.5 * back + 0.3 * {kept} }}")
    source.text[-2] += f" + {said('back', follower.form, 'x', h)}"
    return True


def named_by_the_flow(writer: Expressions, source: Made) -> str:
    """A line of the flow that names its states."""
    matrix = said(f"{source.name}.S", source.form, "x", writer.heads)
    return str(writer.pick(f"x += 0.3 * {source.name}.u", f"x += 0.3 * {matrix}"))


def alone(writer: Expressions, names: dict[str, int]) -> str:
    """A line that no input enters."""
    u = next(iter(names))
    return str(writer.pick(f"unit({u})", u, writer.vector(names, writer.width, 1)))


def beside(writer: Expressions, names: dict[str, int]) -> str:
    """A line that one does, alone or beside the store."""
    w = writer.width
    mixed = writer.vector({"x": w, **names}, w, 1)
    return str(writer.pick("x", f"linear(x, {w})", "x + a", mixed, "x * a"))


def clock_of(writer: Expressions) -> str:
    """Of tokens, and in systems of sequences half the time of those."""
    slow = writer.theme == "asleep" and writer.chance(60)
    return str(writer.pick(*(SLOW if slow else CLOCKS)))


def bounded(rule: str, clock: str) -> str:
    """The rule of a store; what no reset ends must fade."""
    grows = clock in SLOW and rule and "set " not in rule and "retain" not in rule
    return f"retain 0.9; {rule}" if grows else rule


def reset(writer: Expressions, clock: str) -> list[str]:
    """Now and then, when a level starts anew: six tokens are no whole periods `from 1`."""
    if clock in SLOW or not writer.chance(20):
        return []
    return [f"reset every {writer.pick(*RESETS[: 2 if 'from 1' in clock else 3])}"]


def shape(form: str, w: int, h: int) -> str:
    forms = {
        "matrix": f"matrix({w}, {w})", "network": f"mlp({w}, 3, {w})", "vector": f"vector({w})",
        "heads": f"matrix({w // h}, {w // h}) per {h}",
    }  # fmt: skip
    return forms[form]


def said(state: str, form: str, of: str, h: int) -> str:
    """What a state says of a vector; one that is a vector, by itself."""
    if form == "heads":
        return f"join({state}(split({of}, {h})))"
    return state if form == "vector" else f"{state}({of})"
