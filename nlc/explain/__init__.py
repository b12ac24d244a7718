"""What a spec comes to, in words: its levels, the update rules derived for them, what crosses.

In: a checked spec, or a checked file of memories and optimizers. Out: text (or LaTeX, for the
rules alone). Terms are written as the language writes them; `x'` is a transpose, so `e k'` is an
outer product.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from math import prod
from textwrap import wrap

from ..backward import Underivable
from ..derive import affine, gradient, linear_rule, linear_slope, substitute
from ..driver import Checked, Spec
from ..levels import Component, form_text
from ..lower import NotLowered, lower, lower_box
from ..plan import Attention
from ..rules import Example, LinearRule
from ..show import ATOM, INDENT, PRODUCT, SUM, UNARY, Rows, Writer, folded, signed, table
from ..system import (
    ALL,
    Assign,
    Box,
    Lambda,
    Learn,
    Level,
    Line,
    Slot,
    State,
    System,
    Term,
    Transfer,
)

BYTES = 4  # of a number in float32


def explain(subject: Spec | Checked, latex: bool = False) -> str:
    """The page of a system, or of the memories and optimizers of a file that declares no system."""
    if isinstance(subject, Checked):
        if subject.system is not None:
            return explain(Spec(subject), latex)
        return "\n".join(_alone(subject, latex)) + "\n"
    if latex:
        blocks = dict.fromkeys("\n".join(_rules(box)) for box in subject.system.boxes)
        return "\n".join(block for block in blocks if block) + "\n"
    return "\n".join(_system(subject)) + "\n"


# ---- how one state changes -----------------------------------------------------------------------


def state_rows(box: Box, state: State, base: str, latex: bool = False) -> Rows:
    """The objective of a state and the rule derived from it."""
    w = Writer(state=state.name, base=base, body=box, latex=latex)
    rule = state.rule
    name = w.name(base)
    if not rule.changes:
        return [("rule", f"{name} keeps its start")]
    if rule.set is not None:
        return [*spelled(w, "rule", f"{name} = ", rule.set), *clocked(box, "set")]
    if rule.write is not None:
        kept = retained(w, rule.retain, name)
        return [*spelled(w, "rule", f"{name} = {kept}", rule.write, True), *clocked(box, "write")]
    if rule.objective is None:
        return [("rule", f"{name} = {retained(w, rule.retain, name)}")]
    rows = spelled(w, "objective", "", rule.objective)
    if rule.objective.op == "loss":
        return rows + loss_rows(w, state, name)
    if box.exact:
        return rows + exact_rows(w, box, name)
    return rows + own_rows(w, box, state, name)


def spelled(w: Writer, label: str, before: str, term: Term, added: bool = False) -> Rows:
    """A line of a rule; in a long one, what is used twice gets a name of its own first."""
    rows: Rows = []
    if added:
        sign, term = signed(term)
        before = f"{before} {sign} "
    for part in shared(term):
        text = w.text(part)
        w.bound[id(part)] = name = w.name(f"t{len(w.bound) + 1}")
        rows.append(("with", f"{name} = {text}"))
    return [*rows, (label, before + w.text(term, PRODUCT if added else 0))]


def shared(root: Term, long: int = 40) -> list[Term]:
    """Terms that stand in a long term more than once, arguments first."""
    sizes: dict[int, int] = {}
    uses: dict[int, int] = {}
    order: list[Term] = []

    def size(term: Term) -> int:
        if id(term) not in sizes:
            for a in term.args:
                uses[id(a)] = uses.get(id(a), 0) + 1
            sizes[id(term)] = 1 + sum(size(a) for a in term.args)
            order.append(term)
        return sizes[id(term)]

    if size(root) < long:
        return []
    return [t for t in order if uses.get(id(t), 0) > 1 and sizes[id(t)] > 2 and t.shape]


def retained(w: Writer, retain: Term | None, name: str) -> str:
    """What is kept of an array."""
    if retain is None or (retain.op == "const" and retain.info == 1):
        return name
    if retain.op == "const" and retain.info == 0:
        return "0"
    return f"{w.text(retain, PRODUCT)}{times(w)}{name}"


def times(w: Writer) -> str:
    return r"\, " if w.latex else " * "


def clocked(box: Box, what: str) -> Rows:
    clock = box.clock or (box.level.clock if box.level else None)
    if clock is None or clock.period == 1 or clock.unit in ("never", "always"):
        return []
    when = "once, at the last tick" if what == "set" else "summed over the ticks"
    return [("", f"{when} of every {clock.period} {clock.unit}s")]


def loss_rows(w: Writer, state: State, name: str) -> Rows:
    """The model's own loss: no rule can be written out, only what is done with its gradient."""
    learn = next(iter(state.rule.learn.values()))
    rows = [("gradient", "g = the gradient of the losses since the last firing, added up")]
    array = state.form.arrays[0]
    linear = linear_rule(learn.optimizers[array.shape]) if learn.optimizers else None
    kept = retained(w, state.rule.retain, name)
    if linear is None or linear.erase is not None:
        return [*rows, ("rule", f"{name} = {kept} + {learn_text(w, learn, 'g')}")]
    return rows + linear_rows(w, name, kept, linear, learn, "g", "", "+")


def exact_rows(w: Writer, box: Box, name: str) -> Rows:
    rows = [("rule", f"{name} = the minimiser of the objective, solved at every read")]
    found = solved(box)
    if found is None:
        return rows
    window = "" if found.window is None else f", over the last {found.window} ticks"
    key, query, value = w.text(found.key), w.text(found.query), w.text(found.value)
    scale = w.number(round(found.scale, 12))[0]
    score = f"softmax({scale} * dot(past({key}), {query}))"
    return [*rows, ("that is", f"{name} = {score} @ past({value}){window}")]


def solved(box: Box) -> Attention | None:
    try:
        return lower_box(box).attention
    except NotLowered:
        return None


def own_rows(w: Writer, box: Box, state: State, name: str) -> Rows:
    """An objective in what the memory says: an outer product for each way through a product."""
    rule, before = state.rule, w.base
    rows: Rows = []
    kept = retained(w, rule.retain, name)
    if rule.after_retain and rule.retain is not None:
        rows.append(("first", f"{w.name('kept')} = {kept}"))
        w.base = "kept"
        kept = w.name(w.base)
    try:
        examples = gradient(box, state).examples
    except Underivable:
        rows += by_words(w, state, name, kept)
    else:
        rows += named(w, state, examples)
        for array in state.form.arrays:
            mine = [e for e in examples if e.array == array.name]
            rows += array_rows(w, box, state, array.name, mine, kept)
    w.base = before
    return rows + retention_rows(w, state, name) + clocked(box, "objective")


def by_words(w: Writer, state: State, name: str, kept: str) -> Rows:
    learn = next(iter(state.rule.learn.values()), None)
    if learn is None:
        return [("rule", f"{name} = {kept}")]
    if learn.rule == "implicit":
        rate = w.text(learn.settings["rate"]) if "rate" in learn.settings else "1"
        near = f"|{name} - kept|^2 / 2" if rate == "1" else f"|{name} - kept|^2 / (2 * {rate})"
        first: Rows = [] if kept == "kept" else [("first", f"kept = {kept}")]
        return [*first, ("rule", f"{name} = the minimiser of the objective + {near}")]
    gradient_text = f"d objective / d {name}"
    return [("rule", f"{name} = {kept} + {learn_text(w, learn, gradient_text)}")]


def named(w: Writer, state: State, examples: tuple[Example, ...]) -> Rows:
    """Of a network: what each of its products says, and the error that reaches it."""
    if len(state.form.arrays) == 1 and len(examples) < 2:
        return []
    rows: Rows = []
    for i, e in enumerate(examples, 1):
        text = w.text(e.output)
        w.bound[id(e.output)] = name = w.name(f"a{i}")
        rows.append(("forward", f"{name} = {text}"))
    for i, e in reversed(list(enumerate(examples, 1))):
        if not e.surprise.args:
            continue
        text = w.text(e.surprise)
        w.bound[id(e.surprise)] = name = w.name(f"e{i}")
        rows.append(("surprise", f"{name} = {text}"))
    return rows


def array_rows(
    w: Writer, box: Box, state: State, array: str, examples: list[Example], kept: str
) -> Rows:
    """How one array changes. `kept` is what is left of the state's first array."""
    whole = w.name(state.name if not w.base or w.base == "kept" else w.base)
    name = w.name(array) if array else whole
    if array and w.base != "kept":
        kept = retained(w, state.rule.retain, name)
    elif array:
        kept = f"kept.{array}"
    learn = state.rule.learn.get(array)
    if learn is None or not examples:
        return [("rule", f"{name} = {kept}")]
    shape = next(a.shape for a in state.form.arrays if a.name == array)
    if learn.rule == "implicit":
        return by_words(w, state, name, kept)
    linear = linear_rule(learn.optimizers[shape]) if shape in learn.optimizers else None
    if linear is None or learn.steps > 1 or learn.streams or len(examples) > 1:
        outer = " + ".join(f"{w.text(e.surprise, PRODUCT)} {row(w, e.input)}" for e in examples)
        return [("rule", f"{name} = {kept} + {learn_text(w, learn, outer)}")]
    e = examples[0]
    sign, said = surprise_text(w, e, linear, name)
    rows = linear_rows(w, name, kept, linear, learn, said, row(w, e.input), sign)
    return rows + expanded(w, state, e, linear, learn, name)


def row(w: Writer, x: Term) -> str:
    return w.turned(w.text(x, ATOM))


def surprise_text(w: Writer, e: Example, linear: LinearRule, name: str) -> tuple[str, str]:
    """What multiplies the input: the surprise, and with DGD what the weight says of the input."""
    if linear.erase is None:
        sign, term = ("+", e.surprise) if id(e.surprise) in w.bound else signed(e.surprise)
        return sign, w.text(term, PRODUCT)
    factor = "" if is_one(linear.erase) else f"{w.text(linear.erase, PRODUCT)}{times(w)}"
    inside = f"{w.text(e.surprise, SUM)} + {factor}{name}{w.at}{w.text(e.input, UNARY)}"
    return "+", rf"\left({inside}\right)" if w.latex else f"({inside})"


def is_one(term: Term) -> bool:
    return term.op == "const" and term.info == 1


def linear_rows(
    w: Writer, name: str, kept: str, linear: LinearRule, learn: Learn, said: str, x: str, sign: str
) -> Rows:
    """`S = momentum S - rate (..) x'`, `W = keep W + S`; without momentum in one line."""
    own, rate = signed(substitute(linear.rate, learn.settings))
    factor = "" if is_one(rate) else f"{w.text(rate, PRODUCT)}{times(w)}"
    amount = f"{'-' if own == sign else '+'} {factor}{said}{' ' + x if x else ''}"
    if linear.keep is not None:
        kept = f"{w.text(substitute(linear.keep, learn.settings), PRODUCT)}{times(w)}{kept}"
    if linear.momentum is None:
        return [("rule", f"{name} = {kept} {amount}")]
    memory = w.name(f"S{name[1:]}" if name[1:].isdigit() else "S")
    momentum = retained(w, substitute(linear.momentum, learn.settings), memory)
    return [("rule", f"{memory} = {momentum} {amount}"), ("rule", f"{name} = {kept} + {memory}")]


def expanded(
    w: Writer, state: State, e: Example, linear: LinearRule, learn: Learn, name: str
) -> Rows:
    """A rule whose error is linear in what the memory says, solved for the memory."""
    error = affine(e.surprise, e.output)
    simple = linear.momentum is None and linear.erase is None and linear.keep is None
    if error is None or error.factor is None or not simple or len(state.form.arrays) > 1:
        return []
    rule = state.rule
    rate = substitute(linear.rate, learn.settings)
    x = w.text(e.input, ATOM)
    erased = f"{w.text(folded(rate, error.factor), PRODUCT)}{times(w)}{x} {row(w, e.input)}"
    identity = "I"
    if rule.after_retain or rule.retain is None:
        kept = f"{retained(w, rule.retain, name)} ({identity} - {erased})"
    else:
        kept = f"{name} ({retained(w, rule.retain, identity)} - {erased})"
    added = "" if error.rest is None else rest_text(w, rate, error.rest, row(w, e.input))
    return [("that is", f"{name} = {kept}{added}")]


def rest_text(w: Writer, rate: Term, rest: Term, x: str) -> str:
    sign, part = signed(folded(rate, rest))
    return f" {'-' if sign == '+' else '+'} {w.text(part, PRODUCT)} {x}"


def learn_text(w: Writer, learn: Learn, grad: str) -> str:
    """What a rule that is not linear makes of a gradient."""
    given = [f"grad = {grad}"] if "grad" not in learn.streams else []
    given += [f"{n} = {w.text(t)}" for n, t in {**learn.streams, **learn.settings}.items()]
    return f"{learn.rule}({', '.join(given)}){steps_text(learn)}"


def steps_text(learn: Learn) -> str:
    return f", {learn.steps} times on the same data" if learn.steps > 1 else ""


def retention_rows(w: Writer, state: State, name: str) -> Rows:
    """`through`: the state is kept in the dual. `onto`: it is put in its place after each write."""
    rows: Rows = []
    one = name if state.form.single else "A"
    each = "" if state.form.single else "each array A "
    for links, words in (
        (state.rule.through, "what is kept is read through a function:"),
        (state.rule.onto, "after each write"),
    ):
        becomes = "is read as" if links is state.rule.through else "becomes"
        texts = {link_text(w, link, one) for link in (links or {}).values()}
        label = "through" if links is state.rule.through else "onto"
        rows += [(label, f"{words} {each or one + ' '}{becomes} {text}") for text in sorted(texts)]
    return rows


def link_text(w: Writer, link: Lambda, name: str) -> str:
    inner = Writer(latex=w.latex)
    for t in link.body.walk():
        if t.op == "argument" and link.params and t.info == link.params[0]:
            inner.bound[id(t)] = name
    return inner.text(link.body)


# ---- optimizers ----------------------------------------------------------------------------------


def optimizer_rows(box: Box, latex: bool = False) -> Rows:
    """An optimizer's memories, its lines and what it writes, as they stand in its text."""
    w = Writer(body=box, latex=latex)
    states = {f"state:{s.name}": s for s in box.states}
    rows: Rows = []
    for place in box.order:
        if place in states:
            rows += memory_of_gradients(w, box, states[place])
        elif place.startswith("line:"):
            rows += line_rows(w, (box.lines[int(place.partition(":")[2])],), "with")
    kept = retained(w, box.retain, w.name("weight"))
    if box.write is not None:
        rows += spelled(w, "rule", f"{w.name('weight')} = {kept}", box.write, True)
    for inner in box.levels:
        for state in inner.states:
            rows += [(str(inner.clock), text) for _, text in memory_of_gradients(w, inner, state)]
    return rows


def memory_of_gradients(w: Writer, box: Box, state: State) -> Rows:
    """`m = keep m - rate g` where the objective is `sum(m * g)`."""
    rule, learn = state.rule, next(iter(state.rule.learn.values()), None)
    slope = None if rule.objective is None else linear_slope(rule.objective, state.name)
    step = (
        linear_rule(next(iter(learn.optimizers.values()))) if learn and learn.optimizers else None
    )
    if learn is None or slope is None or step is None or step.momentum is not None:
        return state_rows(box, state, state.name, w.latex)
    sign, amount = signed(folded(substitute(step.rate, learn.settings), slope))
    name = w.name(state.name if w.body is box else f"{box.name}.{state.name}")
    kept = retained(w, rule.retain, name)
    return [("memory", f"{name} = {kept} {'-' if sign == '+' else '+'} {w.text(amount, PRODUCT)}")]


# ---- lines and boxes -----------------------------------------------------------------------------


def line_rows(w: Writer, lines: tuple[Line, ...], label: str) -> Rows:
    rows: Rows = []
    for line in lines:
        if isinstance(line, Assign):
            rows += spelled(w, label, f"{line.name} = ", line.value)
        else:
            rows.append((label, f"repeat {line.count} {{"))
            rows += [(label, INDENT + text) for _, text in line_rows(w, line.lines, label)]
            rows.append((label, "}"))
    return rows


def _rules(box: Box) -> list[str]:
    """The rules of a box as LaTeX: those of an optimizer, or of each of its states."""
    if box.kind == "optimizer":
        found = [optimizer_rows(box, True)]
    else:
        found = [state_rows(box, s, s.name.partition(".")[0], True) for s in box.states]
    wanted = ("rule", "that is", "memory", "with", "first", "forward", "surprise")
    blocks = dict.fromkeys(tuple(t for k, t in rows if k in wanted) for rows in found)
    return [rf"\[ {text} \]" for block in blocks for text in block]  # M.key, M.value: both M


def box_lines(box: Box) -> list[str]:
    """A memory, or what a level keeps itself: what it says, what it learns, how it is run."""
    w = Writer()
    rows = line_rows(w, box.lines, "lines")
    out: list[str] = []
    if box.read is not None:
        early = " before write" if box.read_before else ""
        rows += [(k, v + early * (k == "read")) for k, v in spelled(w, "read", "", box.read)]
    if box.linearise is not None:
        rows.append(("linearise", f"every {box.linearise} tokens: gradients at the first state"))
    out += table(rows)
    for names, form, found in grouped(box):
        out += ["", f"{INDENT}{', '.join(names)} : {form}", *table(found, 2)]
    return out


def grouped(box: Box) -> Iterator[tuple[list[str], str, Rows]]:
    """States that differ by name alone are told once: `M.key`, `M.value` are both M."""

    def told(state: State) -> tuple[str, Rows]:
        heads = f", {prod(state.per)} heads" if state.per else ""
        return form_text(state.form) + heads, state_rows(box, state, state.name.partition(".")[0])

    for (form, rows), group in groupby(box.states, told):
        yield [s.name for s in group], form, rows


def lowered(box: Box) -> str:
    try:
        plan = lower_box(box)
    except NotLowered as error:
        return f"by the reference interpreter alone (NL701): {error.diagnostic.message}"
    return plan.reason


# ---- the page of a system ------------------------------------------------------------------------


def _system(spec: Spec) -> list[str]:
    system = spec.system
    settings = ", ".join(f"{n} = {v}" for n, v in system.settings.items())
    out = [f"system {system.name}({settings})"]
    out += [INDENT + text for text in (*system.doc.splitlines(), *system.cites)]
    told: dict[str, list[Level]] = {}
    for level in spec.levels:
        told.setdefault("\n".join(_level(spec, level)), []).append(level)
    for text, levels in told.items():
        out += ["", *(_heading(spec, level) for level in levels), text]
    out += _optimizers(system)
    if system.transfers:
        out += ["", "Transfers", *_transfers(system)]
    return [*out, "", "Numbers", *_numbers(spec), *_untold(spec)]


def _heading(spec: Spec, level: Level) -> str:
    graph = spec.level_graph
    rank = max(graph.rank(c.name) for c in graph.components if c.level == level.name)
    rank = next((graph.rank(c.name) for c in graph.components if c.name == level.name), rank)
    resets = level.resets
    ends = "never reset" if resets.unit == "never" else f"reset {resets}"
    return f"level {level.name}, {level.clock}, {ends} (level {rank} of {len(graph.levels)})"


def _level(spec: Spec, level: Level) -> list[str]:
    out = [INDENT + line for line in level.doc.splitlines()]
    if level.owner:
        out += table(_owner(level))
    boxes = [b for b in spec.system.boxes if b.level is level and (b.states or b.lines or b.read)]
    texts: dict[str, list[Box]] = {}
    for box in boxes:
        texts.setdefault("\n".join([_signature(box), *_box(box)]), []).append(box)
    for text, same in texts.items():
        copies = sum(prod(b.loops) for b in same)
        first, _, rest = text.partition("\n")
        made = f", {copies} copies" if copies > 1 else ""
        heads = f" of {prod(same[0].mapped)} heads" if same[0].mapped else ""
        out += ["", f"{INDENT}{first}{made}{heads}", *rest.splitlines()]
    return out[1:] if out and not out[0] else out


def _signature(box: Box) -> str:
    inputs = ", ".join(f"{n}[{', '.join(map(size, s))}]" if s else n for n, s in box.inputs)
    name = box.level.family if box.kind == "level" and box.level else box.name
    return f"{box.kind} {name}({inputs})"


def size(n: int) -> str:
    """A negative size is how many ticks a past has: all, or at most so many."""
    return str(n) if n >= 0 else ".." if n < ALL // 2 else f"..{-n}"


def _box(box: Box) -> list[str]:
    out = [INDENT + line for line in (*box.doc.splitlines(), *box.cites)]
    out += box_lines(box)
    if box.states:
        out += ["", *table([("run as", lowered(box))])]
    return [INDENT + line if line else line for line in out]


def _owner(level: Level) -> Rows:
    w = Writer()
    rows = spelled(w, "objective", "", level.objective) if level.objective is not None else []
    for learn in level.learn:
        given = {**learn.streams, **learn.settings}
        settings = ", ".join(f"{n} = {w.text(t)}" for n, t in given.items())
        served = f" for {', '.join(learn.targets)}" if learn.targets else ""
        rows.append(("learn", f"{learn.rule}({settings}){served}{steps_text(learn)}"))
    return [*rows, ("", "every weight that no box declares is its own")]


def _optimizers(system: System) -> list[str]:
    """Each rule in use that is more than a gradient step, once."""
    lines = [l for level in system.levels for l in level.learn]
    lines += [l for b in system.boxes for s in b.states for l in s.rule.learn.values()]
    found: dict[str, Box] = {}
    for box in (b for line in lines for b in line.optimizers.values()):
        found.setdefault(box.name, box)
    out: list[str] = []
    found.pop("gradient", None)  # which says itself what it is
    for name, box in sorted(found.items()):
        rows: Rows = [("", text) for text in (*box.doc.splitlines(), *box.cites)]
        out += ["", f"optimizer {name}", *(INDENT + t for _, t in rows)]
        out += table(optimizer_rows(box))
    return out


# ---- transfers -----------------------------------------------------------------------------------


def _transfers(system: System) -> list[str]:
    out: list[str] = []
    groups: dict[tuple[int, str, str], list[Transfer]] = {}
    for t in system.transfers:
        groups.setdefault((t.span.start, t.kind, t.target.family), []).append(t)
    for group in groups.values():
        out += [f"{INDENT}{_arrow(group)}", *(f"{INDENT * 2}{s}" for s in _words(system, group))]
    return out


def _names(levels: Iterable[Level], state: str | None) -> str:
    return ", ".join(dict.fromkeys(l.name + (f".{state}" if state else "") for l in levels))


def _arrow(group: list[Transfer]) -> str:
    t = group[0]
    sources = _names((u.source for u in group), t.source_state)
    targets = _names((u.target for u in group), t.state)
    through = f" through {t.truncate} tokens" if t.truncate is not None else ""
    return f"{t.kind} {sources} -> {targets}{through}{' first order' * t.first_order}"


def _words(system: System, group: list[Transfer]) -> list[str]:
    """What crosses, and which weights train by it."""
    t = group[0]
    a, b = _names((u.source for u in group), None), _names((u.target for u in group), None)
    first = ["inner gradients are constants to it"] if t.first_order else []
    cut = f", no further than {t.truncate} tokens" if t.truncate is not None else ""
    match t.kind:
        case "condition":
            return [f"{b} uses weights or states of {a}, which are constants there"]
        case "backprop":
            enters = f"the gradient of {b} enters the states and pasts of {a}{cut}"
            return [enters, *first, *_trained(system, group)]
        case "init":
            starts = f"at each reset {b} starts from what {a} has learned: {_starts(system, group)}"
            learned = [f"these learn by its gradient{cut}"] if cut else []
            return [starts, *learned, *first]
    return [f"a start, write or set of {b} is made from {a}"]


def _trained(system: System, group: list[Transfer]) -> list[str]:
    if not group[0].target.owner:
        return []
    inside = {id(t.source) for t in group}
    paths = [w.path for w in system.weights if w.box is not None and id(w.box.level) in inside]
    return wrap(f"it trains {', '.join(paths)}", 92) if paths else []


def _starts(system: System, group: list[Transfer]) -> str:
    names: dict[str, None] = {}
    for t in group:
        for box in (b for b in system.boxes if b.level is t.target):
            before = "" if box.kind == "level" else f"{box.name}."
            names |= {before + s.name: None for s in box.states if t.speaks_of(s)}
    return ", ".join(names)


# ---- numbers -------------------------------------------------------------------------------------


def _numbers(spec: Spec) -> list[str]:
    """Parameters once, states for each sequence, in numbers and in bytes of float32."""
    rows: Rows = []
    for c in spec.level_graph.components:
        if c.numbers and c.clock.unit != "always":  # what is solved keeps only its pasts
            rows.append((c.name, f"{_amount(c.numbers)}{_each(spec, c)}: {_parts(c)}"))
    frozen = sum(_states(b) for b in spec.system.boxes if b.linearise is not None)
    if frozen:
        rows.append(("linearise", f"{_amount(frozen)} a sequence: the states of the chunk's start"))
    fixed, growing = _pasts(spec.system)
    if fixed:
        rows.append(("pasts", f"{_amount(fixed)} a sequence: conv, and windows of past"))
    if growing:
        rows.append(("pasts", f"{_amount(growing)} more for each token: what is never forgotten"))
    return table(rows)


def _states(box: Box) -> int:
    copies = prod(box.loops) * prod(box.mapped)
    arrays = [prod(s.shape(a)) for s in box.states for a in s.form.arrays]
    return copies * sum(arrays)


def _amount(numbers: int) -> str:
    held = float(numbers * BYTES)
    for unit in ("bytes", "KiB", "MiB"):
        if held < 1024:
            return f"{numbers:,} ({held:.4g} {unit})"
        held /= 1024
    return f"{numbers:,} ({held:,.4g} GiB)"


def _each(spec: Spec, c: Component) -> str:
    level = next(l for l in spec.system.levels if l.name == c.level)
    return "" if level.clock.unit in ("step", "task", "never") else " a sequence"


def _parts(c: Component) -> str:
    return ", ".join(f"{p.name} {p.total:,}" for p in c.parts)


def _pasts(system: System) -> tuple[int, int]:
    """Numbers that windows hold, and numbers that each token adds to a past without one."""
    slots: dict[str, tuple[Slot, int]] = {}
    roots = [t for line in system.flow.lines for t in _values(line)] + [system.flow.result]
    terms = [t for root in roots for t in root.walk()]
    for box in system.boxes:
        terms += list(box.terms())
    for t in terms:
        if isinstance(t.info, Slot) and t.info.kind in ("past", "conv", "fade"):
            owner = t.info.box
            copies = prod(owner.loops) * prod(owner.mapped) if owner else _rounds(system, t.info)
            slots[t.info.path] = t.info, prod(t.args[0].shape) * copies
    fixed = sum(n * s.window for s, n in slots.values() if s.window != ALL)
    return fixed, sum(n for s, n in slots.values() if s.window == ALL)


def _values(line: Line) -> Iterator[Term]:
    if isinstance(line, Assign):
        yield line.value
    else:
        for inner in line.lines:
            yield from _values(inner)


def _rounds(system: System, slot: Slot) -> int:
    """How many copies a slot of the flow has: those of the weights beside it."""
    where = slot.path.rpartition(".")[0]
    return next((prod(w.loops) for w in system.weights if w.path.startswith(where)), 1)


def _untold(spec: Spec) -> list[str]:
    """What keeps the system as a whole from being compiled."""
    told = lower(spec.system)[1]
    return ["", "Not compiled yet", *table([(d.code, d.message) for d in told])] if told else []


# ---- files without a system ----------------------------------------------------------------------


def _alone(checked: Checked, latex: bool) -> list[str]:
    """Each memory and optimizer on inputs of example sizes."""
    from ..resolve import resolve

    if checked.syntax is None:
        return []
    out: list[str] = []
    for box in resolve(checked.syntax).alone:
        if latex:
            out += _rules(box)
            continue
        out += ["", _signature(box)] if out else [_signature(box)]
        out += [INDENT + line for line in (*box.doc.splitlines(), *box.cites)]
        if box.kind == "optimizer":
            out += table(optimizer_rows(box))
        else:
            out += box_lines(box)
            out += ["", *table([("run as", lowered(box))])]
    return out


__all__ = ["explain"]
