"""One method for each box: what its lowering in the plan says, in Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nlc.backward import add, constant, mul
from nlc.derive import application, substitute
from nlc.diagnostics import InternalError
from nlc.plan import ArrayRule
from nlc.system import Assign, Box, Handle, State, Term

from .bodies import Body, Module, all_mapped, state_path
from .code import identifier
from .expressions import ATOM, Expressions, Value
from .folding import Folder, Unfoldable


def write_box(module: Module, box: Box) -> None:
    """The method of a box that is called."""
    {
        "stateless": plain,
        "static": plain,
        "loss": plain,
        "attention": attention,
        "recurrence": recurrence,
        "frozen": frozen,
    }[module.plan.of(box).kind](module, box)


# ---- heads and openings
# ------------------------------------------------------------------------------


def head(module: Module, box: Box, body: Body) -> tuple[str, list[str]]:
    """`def name(self, s, at, w, x):` and the names it takes."""
    names = ["s", "at"] + (["w"] if box.path in module.has_weights else [])
    for name, shape in box.inputs:
        given = unique(name, names)
        names.append(given)
        body.e.names[f"input {name}"] = Value(given, ATOM, True, len(shape))
    annotated = [
        "self",
        "s: Stream",
        "at: str",
        *(["w: Part"] if "w" in names else []),
        *(f"{n}: Tensor" for n in names if n not in ("s", "at", "w")),
    ]
    return f"def {module.method(box)}({', '.join(annotated)}) -> Tensor:", names


def unique(name: str, names: list[str]) -> str:
    """A Python name for an input: the spec's `x` and `x_` stay two."""
    given = identifier(name)
    while given in names:
        given += "_"
    return given


def opening(module: Module, box: Box, *more: str) -> None:
    """The docstring: what the box is, its source, its inputs and how it is run."""
    level = box.level
    clock = f" {level.clock}" if level is not None and box.kind == "level" else ""
    where = f"{box.span.source.name.rsplit('/', 1)[-1]}:{box.span.line}"
    lines = [f"{box.kind} {box.name}{clock} ({where})."]
    if box.cites:
        lines.append("Source: " + "; ".join(box.cites))
    mapped = [str(n) for n in all_mapped(box)]
    shapes = [f"{n} [{', '.join(['batch', *mapped, 'time', *map(str, s)])}]" for n, s in box.inputs]
    if shapes:
        lines.append("Inputs: " + ", ".join(shapes))
    lines.append("Run as: " + module.plan.of(box).reason + ".")
    module.code.docstring([*lines, *more])


def plain(module: Module, box: Box) -> None:
    """Lines and a read; states, if any, stand still in a span."""
    body = Body(module, box)
    first, names = head(module, box, body)
    with module.code.function(first, names):
        opening(module, box)
        assert box.read is not None
        body.e.count([box.read])
        keep_states(module, box)
        body.lines(box.lines)
        body.cite_line(box.read)
        module.code.add(f"return {body.e(box.read).code}")
    module.code.add("")


def keep_states(module: Module, box: Box, *extra: str) -> None:
    """The rows of the table of states for a box's arrays."""
    if module.plan.of(box).kind == "static":
        return
    for state in box.states:
        for array in state.form.arrays:
            path = state_path(box, state.name, array.name)
            shape = (*all_mapped(box), *state.per, *array.shape)
            drawn = (
                state.start is not None
                and state.start.op == "normal"
                or state.start is None
                and array.std > 0
            )
            learned = module.plan.system is not None and path in module.has_weights
            module.hold(path, box.loops, shape, "weights" if drawn or learned else "zeros")
            for suffix in extra:
                module.hold(f"{path}{suffix}", box.loops, shape, "zeros")


# ---- attention
# -----------------------------------------------------------------------------------------


def attention(module: Module, box: Box) -> None:
    body = Body(module, box)
    plan = module.plan.of(box).attention
    assert plan is not None
    first, names = head(module, box, body)
    code = module.code
    with code.function(first, names):
        opening(
            module,
            box,
            "z = sum_i softmax_i(scale q.k_i) v_i minimises the objective: the weighted mean.",
        )
        body.e.count([plan.query, plan.key, plan.value])
        body.lines(box.lines)
        query, key, value = (body.e(t) for t in (plan.query, plan.key, plan.value))
        keys, values, y = code.names(["keys", "values", "y"])
        paths = [(plan.key_path, key, keys, plan.key), (plan.value_path, value, values, plan.value)]
        for path, given, name, term in paths:
            shape = (*all_mapped(box), 0, *term.shape)
            module.hold(path, box.loops, shape, "zeros")
            code.add(f"{name} = torch.cat([s[{body.key(path)}], {given.code}], -2)")
        window = "" if plan.window is None else f", window={plan.window}"
        code.add(
            f"{y} = attend({query.code}, {keys}, {values}, scale={plan.scale!r}{window}, "
            f"past={keys}.shape[-2] - s.time)"
        )
        keep = "None" if plan.window is None else str(plan.window - 1)
        code.add(
            f"s[{body.key(plan.key_path)}] = self.newest({keys}, {keep})",
            f"s[{body.key(plan.value_path)}] = self.newest({values}, {keep})",
        )
        code.add(f"return {y}")
    code.add("")


# ---- a matrix, exactly
# ------------------------------------------------------------------------------------


def rows(body: Body, term: Term, per: tuple[int, ...], trailing: int) -> str:
    """A term for the ops: [batch, *mapped, *per, time, ..]; `trailing` axes of its own are kept (0:
    one number).
    """
    value = body.e(term)
    if not value.lead and value.own == 0:
        return value.code
    code = value.atom
    own = value.own
    if not value.lead:
        code = f"self.stream({value.code}, s, {body.lead})"
    has_per = bool(per) and own > trailing
    if own == len(per) + 1 and trailing == 0 and term.shape[-1:] == (1,):
        code = f"{code}.squeeze(-1)"
        own -= 1
    if per:
        code = (
            f"{code}.transpose({body.lead - 1}, {body.lead})"
            if has_per
            else f"{code}.unsqueeze({body.lead - 1})"
        )
    elif own == 1 and trailing == 0 and term.shape == (1,):
        code = f"{code}.squeeze(-1)"
    return code


def rates(body: Body, rule: ArrayRule, retain: Term | None, per: tuple[int, ...]) -> dict[str, str]:
    """rate, keep, momentum and erase as arguments of an op."""
    given = {"rate": rows(body, substitute(rule.rule.rate, rule.settings), per, 0)}
    keep = retain
    if rule.rule.keep is not None:
        own = substitute(rule.rule.keep, rule.settings)
        keep = own if keep is None else mul(keep, own)
    if keep is not None:
        channel = len(keep.shape) > len(per) and keep.shape[-1] != 1
        given["keep"] = rows(body, keep, per, 1 if channel else 0)
    if rule.rule.momentum is not None:
        given["momentum"] = rows(body, substitute(rule.rule.momentum, rule.settings), per, 0)
    return given


def named(arguments: dict[str, str], skip: str = "rate") -> str:
    return "".join(f", {k}={v}" for k, v in arguments.items() if k != skip)


def recurrence(module: Module, box: Box) -> None:
    """One matrix state written at every token: `scan` (backends/ops/recurrence.py)."""
    body = Body(module, box)
    code = module.code
    rule = module.plan.of(box).arrays[0]
    state = box.state(rule.state)
    assert rule.error is not None and box.read is not None
    first, names = head(module, box, body)
    keep_states(module, box, *([".m"] if rule.rule.momentum is not None else []))
    with code.function(first, names):
        opening(module, box, equation(rule, state.name))
        error = rule.error.rest if rule.error.rest is not None else None
        erase = total_erase(rule)
        roots = [
            box.read,
            rule.input,
            *([error] if error else []),
            *([state.rule.retain] if state.rule.retain else []),
        ]
        body.e.count(roots)
        body.lines(box.lines)
        transparent(body)
        first_order = box.level is not None and box.level.name in module.plan.training.first_order
        x = written(body, rows(body, rule.input, state.per, 1), first_order)
        e = (
            written(body, rows(body, error, state.per, 1), first_order)
            if error is not None
            else "0"
        )
        arguments = rates(body, rule, state.rule.retain, state.per)
        if erase is not None:
            arguments["erase"] = rows(body, erase, state.per, 0)
        arguments = {k: written(body, v) for k, v in arguments.items()}
        if state.rule.after_retain:
            arguments["after_retain"] = "True"
        key = body.key(state_path(box, state.name, ""))
        memory = body.key(state_path(box, state.name, "") + ".m")
        if box.read_before:
            arguments["before_write"] = "True"
        read_hook = scan_read(
            module,
            body,
            box,
            state.per,
            x,
            e,
            arguments,
            key,
            memory if rule.rule.momentum is not None else None,
        )
        body.e.hooks["apply"] = read_hook
        body.cite_line(box.read)
        result = body.e(box.read).code
        code.add(f"return {result}")
    code.add("")


def scan_read(
    module: Module,
    body: Body,
    box: Box,
    per: tuple[int, ...],
    x: str,
    e: str,
    arguments: dict[str, str],
    key: str,
    memory: str | None,
) -> Callable[[Term], Value]:
    """A read `M(q)` runs the whole span; a second one runs it again from the same start."""
    code = module.code
    level = box.level.name if box.level is not None else ""
    cut = module.plan.training.truncate.get(level)
    started: list[str] = []

    def read(term: Term) -> Value:
        handle: Handle = term.info
        if handle.box is not box:
            return body.apply(term)
        q = rows(body, term.args[0], per, 1)
        if not started:
            before = code.name("before")
            code.add(f"{before} = s[{key}]")
            started.append(before)
            if memory:
                momentum = code.name("momentum")
                code.add(f"{momentum} = s[{memory}]")
                arguments["S0"] = momentum
        y = code.name("y")
        function = "scan" if cut is None else "self.scan_cut"
        extra = "" if cut is None else f", every={cut}, s=s"
        last = f"s[{memory}]" if memory else "_"
        code.add(
            f"{y}, s[{key}], {last} = {function}({started[0]}, {q}, {x}, {e}, "
            f"{arguments['rate']}{named(arguments)}{extra})"
        )
        out = f"{y}.transpose({body.lead - 1}, {body.lead})" if per else y
        return Value(out, ATOM, True, len(term.shape))

    return read


def written(body: Body, code: str, constant: bool = False) -> str:
    """What goes into a write: a constant to the gradients that do not enter this level; what is
    asked is not.
    """
    if (
        code.replace(".", "").replace("e-", "").replace("-", "").isdigit()
        or not constant
        and body.open
        and not body.held_inside
    ):
        return code
    return f"({code}).detach()" if constant else body.gate(f"({code})")


def total_erase(rule: ArrayRule) -> Term | None:
    """What the error says of the prediction, and what the optimizer erases besides."""
    parts = [
        p for p in (rule.error.factor if rule.error else None, rule.rule.erase) if p is not None
    ]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else summed(parts[0], parts[1])


def summed(a: Term, b: Term) -> Term:
    return constant(a.info + b.info, a) if a.op == b.op == "const" else add(a, b)


def equation(rule: ArrayRule, name: str) -> str:
    """The update, for the reader."""
    momentum = "S = momentum S + r x', " if rule.rule.momentum is not None else ""
    write = "S" if momentum else "r x'"
    says = " + erase M x" if total_erase(rule) is not None else ""
    return f"r = -rate (e{says}), {momentum}{name} = keep {name} + {write}"


# ---- gradients frozen at the start of a stretch
# ---------------------------------------------------------------


@dataclass(frozen=True)
class Amount:
    """What is written into one array: the arguments of `span` as Python."""

    rule: ArrayRule
    path: str
    shape: tuple[int, ...]
    x: str
    e: str
    arguments: tuple[tuple[str, str], ...]


class Frozen:
    """Writes a box that linearises: lines that read no state, then what each stretch writes, then
    what it reads.
    """

    def __init__(self, module: Module, box: Box) -> None:
        self.module = module
        self.box = box
        self.code = module.code
        self.rules = module.plan.of(box).arrays
        self.values = {line.name: line.value for line in box.lines if isinstance(line, Assign)}
        self.touching = self.lines_touching_state()
        self.write_roots = self.roots_of_writes()
        self.used = self.reach(self.write_roots)
        self.heads = self.common_heads()
        self.folder = self.folding()
        assert box.read is not None
        self.read_roots = [
            box.read,
            *(v for n, v in self.values.items() if n in self.touching and n not in self.used),
        ]

    # ---- heads ---------------------------------------------------------------------------------

    def common_heads(self) -> tuple[int, ...]:
        """The axes that join the batch in a stretch: those of the map, or the level's own heads."""
        mapped = all_mapped(self.box)
        per = {s.per for s in self.box.states}
        return mapped or (next(iter(per)) if len(per) == 1 else ())

    def folding(self) -> Callable[[Term], Term] | None:
        """How terms are rewritten for one head; None where some term sees the heads as an axis."""
        if not self.heads:
            return None
        if all_mapped(self.box):
            return (lambda term: term) if not any(s.per for s in self.box.states) else None
        folder = Folder(self.heads)
        try:
            for name in self.touching & self.used:
                folder(self.values[name])
            for root in self.write_roots:
                folder(root)
            for rule in self.rules:
                folder(rule.input), folder(rule.surprise)
        except Unfoldable:
            return None
        return folder

    def fold(self, term: Term) -> Term:
        return self.folder(term) if self.folder is not None else term

    def join_heads(self, code: str) -> str:
        """A stream with its heads in the batch."""
        n = len(self.heads)
        turned = code if all_mapped(self.box) else f"{code}.transpose(1, 2)"
        return f"{turned}.flatten(0, {n})"

    def part_heads(self, code: str) -> str:
        sizes = ", ".join(map(str, self.heads))
        parted = f"{code}.unflatten(0, (-1, {sizes}))"
        return parted if all_mapped(self.box) else f"{parted}.transpose(1, 2)"

    def into(self, code: str) -> str:
        """An array of the stream, its heads in the batch."""
        return f"{code}.flatten(0, {len(self.heads)})" if self.folder is not None else code

    def back(self, code: str) -> str:
        """An array for the stream."""
        if self.folder is None:
            return code
        return f"{code}.unflatten(0, (-1, {', '.join(map(str, self.heads))}))"

    # ---- which lines go where
    # -----------------------------------------------------------------------

    def roots_of_writes(self) -> list[Term]:
        """What a write, a retention, an objective or a setting is made of (2.9.7)."""
        roots: list[Term] = []
        for state in self.box.states:
            rule = state.rule
            roots += [t for t in (rule.objective, rule.retain) if t is not None]
            roots += [t for learn in rule.learn.values() for t in learn.settings.values()]
        return roots

    def reach(self, roots: list[Term]) -> set[str]:
        """The lines that these terms use, directly or not."""
        found: set[str] = set()
        stack = list(roots)
        while stack:
            for t in stack.pop().walk():
                if t.op == "local" and t.info not in found:
                    found.add(t.info)
                    stack.append(self.values[t.info])
        return found

    def lines_touching_state(self) -> set[str]:
        """Lines that depend on the box's own states."""
        touching: set[str] = set()
        for name, value in self.values.items():
            if any(
                t.op in ("apply", "state")
                and t.info.box is self.box
                or t.op == "local"
                and t.info in touching
                for t in value.walk()
            ):
                touching.add(name)
        return touching

    def given(self, roots: list[Term]) -> list[str]:
        """Inputs and lines made outside that these terms use, through lines that touch the states
        too.
        """
        found: dict[str, None] = {}
        inner = [self.values[n] for n in self.reach(roots) & self.touching]
        for root in [*roots, *inner]:
            for t in root.walk():
                if t.op == "input":
                    found[f"input {t.info}"] = None
                elif t.op == "local" and t.info not in self.touching:
                    found[f"local {t.info}"] = None
        return list(found)

    def runs_read(self) -> list[ArrayRule]:
        """The arrays that reads see as they run on."""
        names = {
            t.info.name
            for root in self.read_roots
            for t in root.walk()
            if t.op == "apply" and t.info.box is self.box
        }
        return [r for r in self.rules if r.state in names]

    # ---- the method of the box
    # ------------------------------------------------------------------------

    def write(self) -> None:
        box, code = self.box, self.code
        keep_states(
            self.module,
            box,
            ".start",
            *([".m"] if any(r.rule.momentum is not None for r in self.rules) else []),
        )
        body = Body(self.module, box)
        first, names = head(self.module, box, body)
        with code.function(first, names):
            opening(self.module, box)
            for line in box.lines:
                if isinstance(line, Assign) and line.name not in self.touching:
                    body.assign(line)
            self.stretches(body)
        code.add("")
        self.writes_method()
        self.read_method()

    def stretches(self, body: Body) -> None:
        """At most `linearise` ticks at a time; training's gradient may be cut at longer ones."""
        box, code = self.box, self.code
        method = self.module.method(box)
        level = box.level.name if box.level is not None else ""
        cut = self.module.plan.training.truncate.get(level)
        axis = body.lead - 1
        colon = ", ".join([":"] * axis)

        a, b, fresh, cuts, runs, reads = code.names(["a", "b", "new", "cut", "runs", "reads"])

        def slices(names: list[str], gate: bool) -> str:
            parts = []
            for n in names:
                v = body.e.names[n]
                text = f"{v.code}[{colon}, {a}:{b}]" if v.lead else v.code
                parts.append(f"{text}.detach()" if gate and not body.open else text)
            return "".join(f", {p}" for p in parts)

        w = ", w" if box.path in self.module.has_weights else ""
        code.add(f"{reads} = []")
        periods = f"{box.linearise}, {cut}" if cut is not None else f"{box.linearise}"
        asked = slices(self.given(self.read_roots), False)
        with code.block(f"for {a}, {b}, {fresh}, {cuts} in s.stretches({periods}):"):
            if cut is not None:
                with code.block(f"if {cuts}:"):
                    code.add("self.cut(s, at)")
            written = slices(self.given(self.write_roots), True)
            call = f"self.{method}_writes(s, at{w}, {fresh}{written})"
            if body.held_inside:
                code.add(f'{runs} = s.writes(f"{{at}}{{{a}}}", lambda: {call})')
            else:
                code.add(f"{runs} = {call}")
            code.add(f"{reads}.append(self.{method}_read(s, at{w}, {runs}{asked}))")
        code.add(f"return self.joined({reads}, {axis})")

    def parameters(self, body: Body, names: list[str], taken: list[str]) -> str:
        """The names a method of one stretch is given, as its parameters."""
        out = []
        outer = Body(self.module, self.box)
        for name in names:
            given = unique(name.split(" ", 1)[1], taken)
            taken.append(given)
            out.append(f", {given}: Tensor")
            shape = (
                dict(self.box.inputs).get(name.split(" ", 1)[1], ())
                if name.startswith("input ")
                else self.values[name.split(" ", 1)[1]].shape
            )
            lead = name.startswith("input ") or self.leads(outer, name)
            body.e.names[name] = Value(given, ATOM, lead, len(shape))
        return "".join(out)

    def leads(self, outer: Body, name: str) -> bool:
        """Whether a line made outside changes with the ticks."""
        return any(
            t.op in ("input", "position", "call", "conv")
            or t.op == "local"
            and self.leads(outer, f"local {t.info}")
            for t in self.values[name.split(" ", 1)[1]].walk()
        )

    # ---- what a stretch writes
    # ------------------------------------------------------------------------------

    def writes_method(self) -> None:
        box, module, code = self.box, self.module, self.code
        body = StretchBody(module, box)
        taken = ["s", "at", "w", "fresh"]
        parameters = self.parameters(body, self.given(self.write_roots), taken)
        w = ", w: Part" if box.path in module.has_weights else ""
        with code.function(
            f"def {module.method(box)}_writes"
            f"(self, s: Stream, at: str{w}, fresh: bool{parameters}) -> tuple[Span, ...]:",
            taken,
        ):
            code.docstring(
                [
                    f"What at most {box.linearise} ticks write: lines and gradients are taken",
                    "at the state where the stretch started.",
                ]
            )
            if self.folder is not None:
                self.enter_batch(body)
            self.anchors(body, fresh=True)
            for name, value in self.values.items():
                if name in self.touching and name in self.used:
                    body.assign(Assign(name, self.fold(value)))
            self.amounts(body)
            wanted = [body.runs[r.state, r.array] for r in self.runs_read()]
            code.add(
                f"return {', '.join(wanted)}{',' if len(wanted) == 1 else ''}"
                if wanted
                else "return ()"
            )
        code.add("")

    def enter_batch(self, body: StretchBody) -> None:
        """Every stream that is given, with its heads in the batch."""
        body.fold_lead()
        for name, value in body.e.names.items():
            if value.lead:
                self.code.add(f"{value.code} = {self.join_heads(value.code)}")
                own = value.own if all_mapped(self.box) else value.own - len(self.heads)
                body.e.names[name] = Value(value.code, ATOM, True, own)

    def anchors(self, body: StretchBody, fresh: bool) -> None:
        """The arrays as they were at the stretch's start."""
        code, box = self.code, self.box
        if fresh:
            with code.block("if fresh:"):
                for path in self.paths():
                    code.add(f"s[{body.key(path + '.start')}] = s[{body.key(path)}]")
        for state in box.states:
            for array in state.form.arrays:
                name = code.name(f"{state.name}_{array.name}" if array.name else state.name)
                start = f"s[{body.key(state_path(box, state.name, array.name) + '.start')}]"
                code.add(f"{name} = {self.into(start) if body.folded else start}")
                body.anchors[state.name, array.name] = name

    def paths(self) -> list[str]:
        return [
            state_path(self.box, s.name, a.name) for s in self.box.states for a in s.form.arrays
        ]

    def amounts(self, body: StretchBody) -> None:
        """For each array the gradient as surprise and input; then the recurrences, those alike
        together.
        """
        transparent(body)
        body.e.count([self.fold(t) for r in self.rules for t in (r.surprise, r.input)])
        found: list[Amount] = []
        for state in self.box.states:
            for rule in (r for r in self.rules if r.state == state.name):
                assert state.rule.objective is not None
                body.cite_line(state.rule.objective)
                found.append(self.amount(body, state, rule))
        for group in together(found):
            self.run(body, group)

    def amount(self, body: StretchBody, state: State, rule: ArrayRule) -> Amount:
        level = self.box.level.name if self.box.level is not None else ""
        per = () if body.folded else state.per
        x, e = (body.row(self.fold(t), per) for t in (rule.input, rule.surprise))
        if level in self.module.plan.training.first_order:
            x, e = f"{x}.detach()", f"{e}.detach()"
        settings = {k: self.fold(t) for k, t in rule.settings.items()}
        retain = self.fold(state.rule.retain) if state.rule.retain is not None else None
        given = rates(body, replace(rule, settings=settings), retain, per)
        arguments = {k: body.name_row(v) for k, v in given.items()}
        if rule.rule.erase is not None:
            arguments["erase"] = rows(body, substitute(rule.rule.erase, settings), per, 0)
        shape = next(a.shape for a in state.form.arrays if a.name == rule.array)
        return Amount(
            rule,
            state_path(self.box, state.name, rule.array),
            shape,
            x,
            e,
            tuple(arguments.items()),
        )

    def run(self, body: StretchBody, group: list[Amount]) -> None:
        """One call of `span` for arrays alike: rows of one matrix where the input is the same, else
        side by side.
        """
        code = self.code
        first = group[0]
        name = code.name(
            "run" if len(group) > 1 else f"run_{body.anchors[first.rule.state, first.rule.array]}"
        )
        keys = [body.key(a.path) for a in group]
        names = [body.anchors[a.rule.state, a.rule.array] for a in group]
        shared = all(a.x == first.x for a in group)
        arguments = dict(first.arguments)
        code.comment(
            equation(
                first.rule, ", ".join(names) if len(names) < 4 else f"{names[0]} .. {names[-1]}"
            )
        )

        def gathered(parts: list[str], axis: int) -> str:
            if len(parts) == 1:
                return parts[0]
            return (
                f"torch.cat([{', '.join(parts)}], {axis})"
                if shared
                else f"torch.stack([{', '.join(parts)}])"
            )

        state = gathered([self.into(f"s[{k}]") for k in keys], -2)
        x = first.x if shared else gathered([a.x for a in group], -1)
        e = gathered([a.e for a in group], -1)
        momentum = first.rule.rule.momentum is not None
        memories = [body.key(a.path + ".m") for a in group]
        if momentum:
            arguments["S0"] = gathered([self.into(f"s[{k}]") for k in memories], -2)
        code.add(f"{name} = span({state}, {x}, {e}, {arguments['rate']}{named(arguments)})")
        self.ends(name, group, keys, memories if momentum else None, shared)
        self.parts_of(body, name, group, shared)

    def ends(
        self,
        name: str,
        group: list[Amount],
        keys: list[str],
        memories: list[str] | None,
        shared: bool,
    ) -> None:
        code = self.code
        if len(group) == 1 and self.folder is None:
            code.add(f"s[{keys[0]}], {f's[{memories[0]}]' if memories else '_'} = {name}.end()")
            return
        end = code.name("end")
        kept = code.name("momentum") if memories else "_"
        code.add(f"{end}, {kept} = {name}.end()")
        cut = f".split({tuple(a.shape[0] for a in group)}, -2)" if shared else ".unbind(0)"
        for source, targets in ((end, keys), (kept, memories or [])):
            if len(targets) == 1:
                code.add(f"s[{targets[0]}] = {self.back(source)}")
            elif targets:
                whole = source if not shared else self.back(source)
                if not shared and self.folder is not None:
                    sizes = ", ".join(map(str, self.heads))
                    whole = f"{source}.unflatten(1, (-1, {sizes}))"
                code.add(f"{', '.join(f's[{k}]' for k in targets)} = {whole}{cut}")

    def parts_of(self, body: StretchBody, name: str, group: list[Amount], shared: bool) -> None:
        """The part of the run that belongs to each array which is read."""
        wanted = {(r.state, r.array) for r in self.runs_read()}
        row = 0
        for i, a in enumerate(group):
            mine = (a.rule.state, a.rule.array)
            part = f"{name}.rows({row}, {row + a.shape[0]})" if shared else f"{name}.pick({i})"
            row += a.shape[0]
            if mine in wanted:
                body.runs[mine] = name if len(group) == 1 else part

    # ---- what a stretch reads
    # ---------------------------------------------------------------------------------

    def read_method(self) -> None:
        """Lines that only reads use see the running state before the write; the read sees the new
        one (2.8).
        """
        box, module, code = self.box, self.module, self.code
        body = StretchBody(module, box)
        taken = ["s", "at", "w", "runs"]
        parameters = self.parameters(body, self.given(self.read_roots), taken)
        w = ", w: Part" if box.path in module.has_weights else ""
        with code.function(
            f"def {module.method(box)}_read"
            f"(self, s: Stream, at: str{w}, runs: tuple[Span, ...]{parameters}) -> Tensor:",
            taken,
        ):
            when = "before" if box.read_before else "after"
            code.docstring([f"What the stretch answers, each tick {when} its own write."])
            frozen_lines = self.reach(self.read_roots) & self.touching & self.used
            if frozen_lines:
                self.anchors(body, fresh=False)
                for name, value in self.values.items():
                    if name in frozen_lines:
                        body.assign(Assign(name, value))
            names = [
                code.name(f"{r.state}_{r.array}" if r.array else r.state) for r in self.runs_read()
            ]
            if names:
                code.add(f"{', '.join(names)}{',' if len(names) == 1 else ''} = runs")
            body.runs = {
                (r.state, r.array): n for r, n in zip(self.runs_read(), names, strict=True)
            }
            body.frozen = self if self.folder is not None else None
            self.reads(body)
        code.add("")

    def reads(self, body: StretchBody) -> None:
        box = self.box
        assert box.read is not None
        body.running, body.before = True, True
        for name, value in self.values.items():
            if name in self.touching and name not in self.used:
                body.assign(Assign(name, value))
        body.before = box.read_before
        body.e.done.clear()
        body.cite_line(box.read)
        body.e.count([box.read])
        self.code.add(f"return {body.e(box.read).code}")


def together(amounts: list[Amount]) -> list[list[Amount]]:
    """Arrays that one `span` can run: the same gates and the same input, else the same gates and
    shape.
    """
    groups: dict[tuple[object, ...], list[Amount]] = {}
    for a in amounts:
        groups.setdefault((a.x, a.arguments, a.shape[1]), []).append(a)
    out = [g for g in groups.values() if len(g) > 1]
    alone: dict[tuple[object, ...], list[Amount]] = {}
    for g in groups.values():
        if len(g) == 1:
            alone.setdefault((g[0].arguments, g[0].shape), []).append(g[0])
    return [*out, *alone.values()]


class StretchBody(Body):
    """A body inside one stretch: products use the arrays of its start, or those that run on."""

    def __init__(self, module: Module, box: Box) -> None:
        super().__init__(module, box)
        self.anchors: dict[tuple[str, str], str] = {}
        self.runs: dict[tuple[str, str], str] = {}
        self.running = False
        self.before = False
        self.folded = False
        self.frozen: Frozen | None = None

    def fold_lead(self) -> None:
        """From here on the heads are part of the batch."""
        self.folded = True
        self.mapped, self.lead, self.e.lead = (), 2, 2

    def times(self, matrix: str, own: bool, x: Value, handle: Handle, back: bool = False) -> str:
        if not self.folded or handle.box is not self.box or x.own != 1:
            return super().times(matrix, own, x, handle, back)
        return f"torch.bmm({x.code}, {matrix}{'' if back else '.mT'})"

    def apply(self, term: Term) -> Value:
        handle: Handle = term.info
        if not self.running or self.frozen is None or handle.box is not self.box:
            return super().apply(term)
        return self.asked(term, handle, self.frozen)

    def asked(self, term: Term, handle: Handle, frozen: Frozen) -> Value:
        """`M(x)` of the running state: heads join the batch for the length of the call."""
        x = self.e(term.args[0])
        name = self.code.name("asked")
        self.code.add(f"{name} = {frozen.join_heads(x.atom)}")
        own = x.own if all_mapped(self.box_) else x.own - len(frozen.heads)
        shape = term.args[0].shape[len(term.args[0].shape) - own :]
        given = Term("input", (), shape, name, None, term.span)
        inner = Expressions(self.code, 2)
        inner.names[f"input {name}"] = Value(name, ATOM, True, own)
        before = ", before_write=True" if self.before else ""

        def product(t: Term) -> Value:
            run = self.runs[handle.name, t.info.array.name]
            v = inner(t.args[0])
            return Value(f"{run}.read({v.code}{before})", ATOM, True, v.own)

        inner.hooks["product"] = product
        applied = application(handle, given, term)
        inner.count([applied])
        return Value(frozen.part_heads(inner(applied).atom), ATOM, True, len(term.shape))

    @property
    def box_(self) -> Box:
        assert self.box is not None
        return self.box

    def row(self, term: Term, per: tuple[int, ...]) -> str:
        """A vector for the ops, time before its last axis; named, as several arrays use it."""
        return self.name_row(rows(self, term, per, 1))

    def name_row(self, code: str) -> str:
        if code.isidentifier() or code.replace(".", "").isdigit():
            return code
        if code not in self.turned:
            self.turned[code] = self.code.name("row")
            self.code.add(f"{self.turned[code]} = {code}")
        return self.turned[code]

    def array(self, handle: Handle, name: str) -> tuple[str, bool]:
        if handle.box is self.box and (handle.name, name) in self.anchors:
            return self.anchors[handle.name, name], True
        return super().array(handle, name)

    def product(self, term: Term) -> Value:
        handle: Handle = term.info.handle
        run = self.runs.get((handle.name, term.info.array.name)) if handle.box is self.box else None
        if not self.running or run is None:
            return super().product(term)
        x = self.e(term.args[0])
        before = ", before_write=True" if self.before else ""
        if handle.state.per:
            turned = f".transpose({self.lead - 1}, {self.lead})"
            return Value(f"{run}.read({x.atom}{turned}{before}){turned}", ATOM, True, x.own)
        return Value(f"{run}.read({x.code}{before})", ATOM, True, x.own)


def transparent(body: Body) -> None:
    """In an objective `stop` is a constant for that objective's own gradient only, which has been
    taken (2.12).
    """
    body.e.hooks["stop"] = lambda term: body.e(term.args[0])


def frozen(module: Module, box: Box) -> None:
    if any(not isinstance(line, Assign) for line in box.lines):
        raise InternalError("a loop in a box")
    Frozen(module, box).write()
