"""How one state changes: its objective, what is derived from it, and the rule that comes of it.

`x'` is a transpose, so `e k'` is an outer product.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..backward import add, constant, div, make
from ..derive import affine
from ..plan import Attention, Squares
from ..rules import Example
from ..show import ATOM, PRODUCT, SUM, UNARY, Writer, folded, signed
from ..system import Box, State, System, Term
from .classes import class_rows, solved
from .derived import Derived, Step
from .lines import Row, Rows, said
from .retention import link_text, retention_rows
from .slopes import Jacobian, Kind, error_of, uses
from .stability import stability_rows


def state_rows(
    box: Box, state: State, base: str, latex: bool = False, system: System | None = None
) -> Rows:
    """The objective of a state and what is derived from it."""
    w = Writer(state=state.name, base=base, body=box, latex=latex)
    d = Derived(box, state, system)
    rule = state.rule
    name = w.name(base)
    if not rule.changes:
        return [said(w, "rule", "{} keeps its start", name)]
    if rule.set is not None:
        return [
            *spelled(w, "rule", f"{name} = ", rule.set),
            *clocked(w, d, "set"),
            *stability_rows(w, d),
        ]
    if rule.write is not None:
        kept = retained(w, rule.retain, name)
        rows = spelled(w, "rule", f"{name} = {kept}", rule.write, True)
        return [*rows, *clocked(w, d, "write"), *about(w, d, name)]
    if rule.objective is None:
        rows = [Row("rule", f"{name} = {retained(w, rule.retain, name)}")]
        return rows + about(w, d, name)
    rows = spelled(w, "objective", "", rule.objective)
    if rule.objective.op == "loss":
        return rows + loss_rows(w, d, name) + about(w, d, name)
    if box.exact:
        return rows + exact_rows(w, d, name) + about(w, d, name)
    return rows + own_rows(w, d, name)


def about(w: Writer, d: Derived, name: str) -> Rows:
    return [*class_rows(w, d), *retention_rows(w, d, name), *stability_rows(w, d)]


NAME = re.compile(r"\\?[A-Za-z]\w*(_\{\d+\})?")


# ---- terms on a line -----------------------------------------------------------------------------


def spelled(w: Writer, label: str, before: str, term: Term, added: bool = False) -> Rows:
    """A line of a rule; in a long one, what is used twice gets a name of its own first."""
    rows: Rows = []
    term = lighter(term)
    if added:
        sign, term = signed(term)
        before = f"{before} {sign} "
    rows += named_parts(w, term)
    return [*rows, Row(label, before + w.text(term, PRODUCT if added else 0))]


def lighter(term: Term) -> Term:
    """Without `1 *`, `0 *` and `+ 0`, which settings at their defaults leave."""
    known: dict[int, Term] = {}

    def of(t: Term) -> Term:
        if id(t) not in known:
            args = tuple(of(a) for a in t.args)
            same = all(a is b for a, b in zip(args, t.args, strict=True))
            new = t if same else Term(t.op, args, t.shape, t.info, t.form, t.span)
            first = {"mul": 1, "div": 1, "add": 0, "sub": 0}.get(t.op)
            if t.op == "mul" and is_number(args[0], 1):
                new = args[1]
            elif first is not None and is_number(args[1], first):
                new = args[0]
            elif t.op == "add" and is_number(args[0], 0):
                new = args[1]
            elif t.op == "mul" and not t.shape and any(is_number(a, 0) for a in args):
                new = Term("const", (), (), 0.0, None, t.span)
            known[id(t)] = new
        return known[id(t)]

    return of(term)


def named_parts(w: Writer, term: Term, long: int = 40) -> Rows:
    rows: Rows = []
    for part in shared(w, term, long):
        text = w.text(part)
        w.bound[id(part)] = name = fresh(w, "t", True)
        rows.append(Row("with", f"{name} = {text}"))
    return rows


def shared(w: Writer, root: Term, long: int) -> list[Term]:
    """Terms that stand in a long term more than once, arguments first."""
    sizes: dict[int, int] = {}
    uses: dict[int, int] = {}
    order: list[Term] = []

    def size(term: Term) -> int:
        if id(term) not in sizes:
            inner = () if id(term) in w.bound or term.op == "product" else term.args
            for a in inner:
                uses[id(a)] = uses.get(id(a), 0) + 1
            sizes[id(term)] = 1 + sum(size(a) for a in inner)
            order.append(term)
        return sizes[id(term)]

    if size(root) < long:
        return []
    return [t for t in order if uses.get(id(t), 0) > 1 and sizes[id(t)] > 2 and t.shape]


def fresh(w: Writer, letter: str, counted: bool = False) -> str:
    """A name that neither the body nor this page has given to anything else."""
    return w.name(unused(w, letter, counted))


def unused(w: Writer, letter: str, counted: bool = False) -> str:
    body = w.body
    taken = set(w.bound.values())
    if body is not None:
        taken |= {w.name(n) for n, _ in body.inputs} | {w.name(s.name) for s in body.states}
        taken |= {w.name(t.info) for t in body.terms() if t.op in ("local", "input")}
    names = [] if counted else [letter]
    names += [f"{letter}{i}" for i in range(1, len(taken) + 2)]
    return next(n for n in names if w.name(n) not in taken)


def retained(w: Writer, retain: Term | None, name: str) -> str:
    """What is kept of an array."""
    if retain is None or is_number(retain, 1):
        return name
    if is_number(retain, 0):
        return "0"
    return f"{w.text(retain, PRODUCT)}{times(w)}{name}"


def times(w: Writer) -> str:
    return r"\, " if w.latex else " * "


def is_number(term: Term, value: float) -> bool:
    return term.op == "const" and term.info == value


def clocked(w: Writer, d: Derived, what: str) -> Rows:
    clock = d.clock
    if clock is None or clock.unit in ("never", "always") or max(clock.period, clock.first) == 1:
        return []
    once = what == "set" or d.state.rule.once
    when = "once, at the last tick" if once else "summed over the ticks"
    if clock.period == 1:
        return [said(w, "when", f"{when} of the first {clock.first} {clock.unit}s, then of each")]
    return [said(w, "when", f"{when} of every {clock.period} {clock.unit}s")]


# ---- objectives that are not written out ---------------------------------------------------------


def loss_rows(w: Writer, d: Derived, name: str) -> Rows:
    """The model's own loss: no rule can be written out, only what is done with its gradient."""
    state = d.state
    text = "{} = the gradient of the losses since the last firing, added up"
    rows: Rows = [said(w, "gradient", text, w.name("g"))]
    step = d.step(state.form.arrays[0].name)
    kept = retained(w, state.rule.retain, name)
    if step is None or step.erase is not None or step.implicit:
        return [*rows, learned(w, f"{name} = {kept} + ", learn_text(w, d, "g"))]
    return rows + linear_rows(w, d, name, kept, step, w.name("g"), "", "+")


def learned(w: Writer, before: str, text: str) -> Row:
    """A rule by its name: mathematics in plain text, and in LaTeX words in mathematics."""
    return Row("rule", before + (rf"\text{{{text}}}".replace("_", r"\_") if w.latex else text))


def exact_rows(w: Writer, d: Derived, name: str) -> Rows:
    plan = solved(d.box)
    text = "{} = the minimiser of the objective, solved at every read"
    rows = [said(w, "rule", text, name)]
    if plan is not None and plan.squares is not None:
        return [*gradient_rows(w, d), *rows, *sums_of_squares(w, name, plan.squares)]
    found = None if plan is None else plan.attention
    if found is None or not found.plain:
        return [*gradient_rows(w, d), *rows]
    window = "" if found.window is None else f", over the last {found.window} ticks"
    return [*rows, said(w, "that is", f"{{}}{window}", f"{name} = {softmax_text(w, found)}")]


def sums_of_squares(w: Writer, name: str, found: Squares) -> Rows:
    """Where the gradient is zero: M (H + ridge) = G, with H and G the sums of all pairs so far."""
    h, g, x = fresh(w, "H"), fresh(w, "G"), row(w, found.key)
    ridge = w.text(found.ridge)
    diagonal = rf"\operatorname{{diag}}({ridge})" if w.latex else f"diag({ridge})"
    added = f"{ridge}{times(w)}I" if not found.ridge.shape else diagonal
    inverse = rf"\left({h} + {added}\right)^{{-1}}" if w.latex else f"({h} + {added})^-1"
    weight = "" if is_number(found.weight, 1) else f"{w.text(found.weight, PRODUCT)}{times(w)}"

    def total(sum_: str, column: Term) -> Row:
        kept = retained(w, found.keep, sum_)
        return Row("that is", f"{sum_} = {kept} + {weight}{w.text(column, UNARY)} {x}")

    return [
        Row("that is", f"{name} = {g} {inverse}"), total(h, found.key), total(g, found.value),
    ]  # fmt: skip


def softmax_text(w: Writer, found: Attention) -> str:
    key, query, value = w.text(found.key), w.text(found.query), w.text(found.value)
    scale = w.number(round(found.scale, 12))[0]
    if w.latex:
        score = rf"{scale}\, \operatorname{{past}}({key})\, {query}"
        values = w.turned(rf"\operatorname{{past}}({value})")
        return rf"{values}\, \operatorname{{softmax}}({score})"
    return f"softmax({scale} * dot(past({key}), {query})) @ past({value})"


# ---- an objective in what the memory says --------------------------------------------------------


def own_rows(w: Writer, d: Derived, name: str) -> Rows:
    """An outer product for each way through a product."""
    state, rule = d.state, d.state.rule
    before = w.base
    rows: Rows = []
    kept = retained(w, rule.retain, dual_name(w, d, "") if rule.through else name)
    if rule.after_retain and rule.retain is not None:
        w.base, w.kept = unused(w, "kept"), True
        links = list((rule.through or {}).values())
        read = link_text(w, links[0], kept) if links else kept
        rows.append(Row("first", f"{w.name(w.base)} = {read}"))
        kept = kept if links else w.name(w.base)
    if d.gradient is None:
        rows += [*class_rows(w, d), *retention_rows(w, d, name), *by_words(w, d, name, kept)]
    else:
        rows += named(w, d)
        rows += gradient_rows(w, d)
        rows += [*class_rows(w, d), *retention_rows(w, d, name)]
        for array in state.form.arrays:
            rows += array_rows(w, d, array.name, kept)
    w.base, w.kept = before, False
    return [*rows, *clocked(w, d, "objective"), *stability_rows(w, d)]


def by_words(w: Writer, d: Derived, name: str, kept: str) -> Rows:
    learn = d.learn
    if learn is None:
        return [Row("rule", f"{name} = {kept}")]
    if learn.rule == "implicit":
        return implicit_words(w, d, name, kept)
    gradient_text = f"d objective / d {name}"
    return [learned(w, f"{name} = {kept} + ", learn_text(w, d, gradient_text))]


def implicit_words(w: Writer, d: Derived, name: str, kept: str) -> Rows:
    learn = d.learn
    assert learn is not None
    rate = w.text(learn.settings["rate"], UNARY) if "rate" in learn.settings else "1"
    x = w.name("kept") if w.latex else "kept"
    length = rf"\left\|{name} - {x}\right\|^2" if w.latex else f"|{name} - {x}|^2"
    near = f"{length} / 2" if rate == "1" else f"{length} / (2{times(w)}{rate})"
    first: Rows = [] if kept == x else [Row("first", f"{x} = {kept}")]
    text = "{} = the minimiser of the objective + {}"
    return [*first, said(w, "rule", text, name, near)]


def named(w: Writer, d: Derived) -> Rows:
    """What the products say, and the errors that reach them, where a rule would be long."""
    if d.network or len(d.examples) > 1:
        return layers(w, d)
    return [] if not d.examples else one_error(w, d)


def layers(w: Writer, d: Derived) -> Rows:
    rows: Rows = []
    for i, e in enumerate(d.examples, 1):
        text = w.text(e.output)
        w.bound[id(e.output)] = name = w.name(f"a{i}")
        rows.append(Row("forward", f"{name} = {text}"))
    for i, e in reversed(list(enumerate(d.examples, 1))):
        if not e.surprise.args or id(e.surprise) in w.bound:
            continue
        rows += named_parts(w, e.surprise, 12)
        text = w.text(e.surprise)
        w.bound[id(e.surprise)] = name = w.name(f"e{i}")
        rows.append(Row("surprise", f"{name} = {text}"))
    return rows


def one_error(w: Writer, d: Derived) -> Rows:
    """Of a single product: a long surprise gets a name, and so does the error it is made of."""
    (e,), (j,) = d.examples, d.jacobians
    plain = Writer(dict(w.bound), w.state, w.base, w.body)
    if j.constant and len(plain.text(e.surprise)) <= 48:
        return []
    rows: Rows = []
    r = error_of(e.surprise, e.output)
    if r is not None and r is not e.surprise:
        text = w.text(r)
        w.bound[id(r)] = name = fresh(w, "r")
        rows.append(Row("error", f"{name} = {text}"))
    rows += named_parts(w, e.surprise, 12)
    text = w.text(e.surprise)
    w.bound[id(e.surprise)] = name = fresh(w, "e")
    return [*rows, Row("surprise", f"{name} = {text}")]


# ---- gradient and Jacobian -----------------------------------------------------------------------


def gradient_rows(w: Writer, d: Derived) -> Rows:
    rows: Rows = []
    for array in d.state.form.arrays:
        text = gradient_text(w, d, array.name)
        if text:
            whole = w.base or d.state.name
            named = f"{whole}.{array.name}" if w.kept else array.name
            of = w.name(named if array.name else whole)
            left = rf"\frac{{\partial L}}{{\partial {of}}}" if w.latex else f"dL/d{of}"
            rows.append(Row("gradient", f"{left} = {text}"))
    if any(len(e.input.shape) > len(d.state.per) + 1 for e in d.examples):
        rows.append(said(w, "gradient", "added up over the rows of the window"))
    return rows + jacobian_rows(w, d)


def gradient_text(w: Writer, d: Derived, array: str) -> str:
    """The outer products of an array, and what reaches it as an array."""
    parts = [outer(w, e) for e in d.examples if e.array == array]
    parts += [split(w, bar) for name, bar in d.direct if name == array]
    text = ""
    for sign, part in parts:
        text += f" {sign} {part}" if text else f"-{part}" if sign == "-" else part
    return text


def split(w: Writer, term: Term) -> tuple[str, str]:
    sign, rest = ("+", term) if id(term) in w.bound else signed(term)
    return sign, w.text(rest, SUM)


def outer(w: Writer, e: Example) -> tuple[str, str]:
    sign, rest = ("+", e.surprise) if id(e.surprise) in w.bound else signed(e.surprise)
    if e.input.op == "const":  # a vector
        return sign, w.text(rest, PRODUCT)
    return sign, f"{w.text(rest, PRODUCT)} {row(w, e.input)}"


def jacobian_rows(w: Writer, d: Derived) -> Rows:
    """Of each call its last product, which is what the objective sees of a network."""
    pairs = list(zip(d.examples, d.jacobians, strict=True))
    last = [
        (e, j)
        for e, j in pairs
        if e.array == d.examples[-1].array and not any(uses(x.input, e.output) for x, _ in pairs)
    ]
    return list(dict.fromkeys(jacobian_row(w, e, j) for e, j in last))


def jacobian_row(w: Writer, e: Example, j: Jacobian) -> Row:
    ends = w.text(e.surprise), w.text(e.output)
    top, below = (t if NAME.fullmatch(t) else f"({t})" for t in ends)
    left = rf"\frac{{\partial {top}}}{{\partial {below}}}" if w.latex else f"d{top}/d{below}"
    if j.kind is Kind.NONE:
        return Row("Jacobian", f"{left} = 0")
    if j.term is None:
        return said(w, "Jacobian", f"{{}}: {j.kind.value}", left)
    if j.kind in (Kind.NUMBER, Kind.ROWS):
        number = j.term.args[0] if j.term.op == "column" else j.term
        sign = "" if is_number(j.term, 1) else f"{w.text(number, PRODUCT)}{times(w)}"
        rows = " for each row" if j.kind is Kind.ROWS else ""
        text = f"{left} = {sign}I"
        return said(w, "Jacobian", f"{{}}{rows}", text) if rows else Row("Jacobian", text)
    diagonal = r"\operatorname{diag}" if w.latex else "diag"
    return Row("Jacobian", f"{left} = {diagonal}({w.text(j.term)})")


# ---- rules ---------------------------------------------------------------------------------------


def array_rows(w: Writer, d: Derived, array: str, kept: str) -> Rows:
    """How one array changes. `kept` is what is left of the state's first array."""
    state = d.state
    first = w.base if w.base and state.rule.after_retain and state.rule.retain is not None else ""
    whole = w.name(state.name.partition(".")[0] if first or not w.base else w.base)
    name = w.name(array) if array else whole
    if state.rule.through:
        name = dual_name(w, d, array)
    if array and (not first or state.rule.through):
        kept = retained(w, state.rule.retain, name)
    elif array:
        kept = w.name(f"{first}.{array}")
    examples = [e for e in d.examples if e.array == array]
    direct = [t for n, t in d.direct if n == array]
    learn = state.rule.learn.get(array)
    if learn is None or not examples and not direct:
        return [Row("rule", f"{name} = {kept}")]
    step = d.step(array)
    if step is not None and step.implicit:
        return [*implicit_words(w, d, name, kept), *implicit_rows(w, d, name, kept, step)]
    if step is None or step.steps > 1:
        text = learn_text(w, d, gradient_text(w, d, array), array)
        return [learned(w, f"{name} = {kept} + ", text)]
    if direct and not examples and len(direct) == 1 and step.erase is None and d.narrow(step.rate):
        sign, amount = signed(d.tidy.of(folded(step.rate, direct[0])))
        step_one = replace(step, rate=d.number(1.0))
        return linear_rows(w, d, name, kept, step_one, w.text(amount, PRODUCT), "", sign)
    if direct or len(examples) > 1:
        sign, said_, x = "+", f"({gradient_text(w, d, array)})", ""
        if step.erase is not None:
            return [learned(w, f"{name} = {kept} + ", learn_text(w, d, said_, array))]
        return linear_rows(w, d, name, kept, step, said_, x, sign)
    e = examples[0]
    x = "" if e.input.op == "const" else row(w, e.input)
    if step.erase is None and id(e.surprise) not in w.bound and d.narrow(step.rate):
        sign, amount = signed(d.tidy.of(folded(step.rate, e.surprise)))
        one, said_ = replace(step, rate=d.number(1.0)), w.text(amount, PRODUCT)
    else:
        sign, said_ = surprise_text(w, d, e, step, name if not first else kept)
        one = step
    rows = linear_rows(w, d, name, kept, one, said_, x, sign)
    less, amount_ = amount_text(w, d, one, said_, x, sign)
    rows += companion(w, d, step, f"{less if less == '-' else ''}{amount_}")
    return rows + expanded(w, d, e, step, name)


def dual_name(w: Writer, d: Derived, array: str) -> str:
    """Of what is kept, where it is read through a function: A, or A1 beside W1."""
    return w.name(f"A{array[1:]}") if array[1:].isdigit() else fresh(w, "A")


def row(w: Writer, x: Term) -> str:
    return w.turned(w.text(x, ATOM))


def surprise_text(w: Writer, d: Derived, e: Example, step: Step, name: str) -> tuple[str, str]:
    """What multiplies the input: the surprise, and with DGD what the weight says of the input."""
    if step.erase is None:
        sign, term = ("+", e.surprise) if id(e.surprise) in w.bound else signed(e.surprise)
        return sign, w.text(term, PRODUCT)
    factor = "" if is_number(step.erase, 1) else f"{w.text(step.erase, PRODUCT)}{times(w)}"
    inside = f"{w.text(e.surprise, SUM)} + {factor}{name}{w.at}{w.text(e.input, UNARY)}"
    return "+", rf"\left({inside}\right)" if w.latex else f"({inside})"


def linear_rows(
    w: Writer, d: Derived, name: str, kept: str, step: Step, said_: str, x: str, sign: str
) -> Rows:
    """`S = momentum S - rate (..) x'`, `W = keep W + S`; without momentum in one line."""
    less, amount = amount_text(w, d, step, said_, x, sign)
    amount = f"{less} {amount}"
    if step.keep is not None:
        kept = f"{w.text(step.keep, PRODUCT)}{times(w)}{kept}"
    if step.momentum is None:
        return [Row("rule", f"{name} = {kept} {amount}")]
    memory = momentum_name(w, name)
    momentum = retained(w, step.momentum, memory)
    return [
        Row("rule", f"{memory} = {momentum} {amount}"),
        Row("rule", f"{name} = {kept} + {memory}"),
    ]


def amount_text(
    w: Writer, d: Derived, step: Step, said_: str, x: str, sign: str
) -> tuple[str, str]:
    """What is written: its sign, and the rest."""
    own, rate = signed(step.rate)
    grad = f"{said_}{' ' + x if x else ''}"
    if not d.narrow(rate) and x:
        grad = f"({grad})"
    factor = "" if is_number(rate, 1) else f"{w.text(rate, PRODUCT)}{times(w)}"
    return "-" if own == sign else "+", f"{factor}{grad}"


def momentum_name(w: Writer, name: str) -> str:
    plain = name.replace("_{", "").replace("}", "") if w.latex else name
    return w.name(f"S{plain[1:]}") if plain[1:].isdigit() else fresh(w, "S")


def companion(w: Writer, d: Derived, step: Step, amount: str) -> Rows:
    """Momentum and state as one linear recurrence, driven by what is written."""
    if step.momentum is None or d.network:
        return []
    m, a = w.text(step.momentum), w.text(d.keep(step))
    s, name, u = fresh(w, "S"), w.name(d.state.name.partition(".")[0]), fresh(w, "u")
    if w.latex:
        pair = rf"\begin{{pmatrix}} {s} \\ {name} \end{{pmatrix}}"
        matrix = rf"\begin{{pmatrix}} {m} & 0 \\ {m} & {a} \end{{pmatrix}}"
        text = rf"{pair} = {matrix} {pair} + \begin{{pmatrix}} {u} \\ {u} \end{{pmatrix}}"
    else:
        text = f"({s}, {name}) = [[{m}, 0], [{m}, {a}]] ({s}, {name}) + ({u}, {u})"
    return [Row("companion", text), Row("companion", f"{u} = {amount}")]


def expanded(w: Writer, d: Derived, e: Example, step: Step, name: str) -> Rows:
    """A rule whose error is linear in what the memory says, solved for the memory."""
    j = d.jacobians[d.examples.index(e)]
    simple = step.momentum is step.erase is step.keep is None and d.narrow(step.rate)
    plain = simple and not d.network and not d.state.rule.through
    if j.kind is not Kind.NUMBER or not plain or e.input.op == "const":
        return []
    error = affine(e.surprise, e.output)
    if error is None or error.factor is None:
        return []
    rule = d.state.rule
    x = w.text(e.input, ATOM)
    strength = d.tidy.of(folded(step.rate, j.term if j.term is not None else error.factor))
    erased = f"{w.text(strength, PRODUCT)}{times(w)}{x} {row(w, e.input)}"
    if is_number(strength, 1):
        erased = f"{x} {row(w, e.input)}"
    identity = "I"
    if rule.after_retain or rule.retain is None:
        kept = f"{retained(w, rule.retain, name)} ({identity} - {erased})"
    elif not d.narrow(rule.retain):
        diagonal = r"\operatorname{diag}" if w.latex else "diag"
        kept = f"{name} ({diagonal}({w.text(rule.retain)}) - {erased})"
    else:
        kept = f"{name} ({retained(w, rule.retain, identity)} - {erased})"
    added = "" if error.rest is None else rest_text(w, d, step.rate, error.rest, row(w, e.input))
    return [Row("that is", f"{name} = {kept}{added}")]


def rest_text(w: Writer, d: Derived, rate: Term, rest: Term, x: str) -> str:
    sign, part = signed(d.tidy.of(folded(rate, rest)))
    return f" {'-' if sign == '+' else '+'} {w.text(part, PRODUCT)} {x}"


def implicit_rows(w: Writer, d: Derived, name: str, kept: str, step: Step) -> Rows:
    """The step that minimises objective and change together, in closed form (B2.5)."""
    if len(d.examples) != 1 or d.direct or d.network or not d.jacobians[0].constant:
        return []
    e, j = d.examples[0], d.jacobians[0]
    line = affine(e.surprise, e.output)
    one = len(e.input.shape) == len(e.surprise.shape) == len(d.state.per) + 1  # and no window
    if line is None or line.factor is None or not one:
        return []
    term = j.term
    assert term is not None
    met = folded(folded(step.rate, term), make("squares", e.input, shape=e.input.shape[:-1]))
    amount = d.tidy.of(folded(step.rate, div(e.surprise, add(constant(1.0, met), met))))
    base = w.base
    w.base = "kept"
    text = f"{name} = {w.name('kept')} - {w.text(amount, PRODUCT)} {row(w, e.input)}"
    w.base = base
    return [Row("that is", text)]


def learn_text(w: Writer, d: Derived, grad: str, array: str | None = None) -> str:
    """What a rule that is not linear makes of a gradient."""
    rules = d.state.rule.learn
    learn = rules[array] if array is not None else next(iter(rules.values()))
    plain = Writer(w.bound, w.state, w.base, w.body)
    given = [f"grad = {grad}"] if "grad" not in learn.streams else []
    given += [f"{n} = {plain.text(t)}" for n, t in {**learn.streams, **learn.settings}.items()]
    steps = f", {learn.steps} times on the same data" if learn.steps > 1 else ""
    return f"{learn.rule}({', '.join(given)}){steps}"


__all__ = ["fresh", "retained", "spelled", "state_rows", "times"]
