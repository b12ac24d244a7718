"""One method for each box: what its lowering in the plan says, in Python."""

from __future__ import annotations

from collections.abc import Callable

from nlc.backward import add, constant, mul
from nlc.derive import application, substitute
from nlc.diagnostics import InternalError
from nlc.plan import ArrayRule
from nlc.system import Assign, Box, Handle, Term

from .bodies import Body, Module, all_mapped, state_path
from .code import identifier
from .expressions import ATOM, Value


def write_box(module: Module, box: Box) -> None:
    """The method of a box that is called."""
    {
        "stateless": plain, "static": plain, "loss": plain, "attention": attention, "recurrence": recurrence, "frozen": frozen,
    }[module.plan.of(box).kind](module, box)  # fmt: skip


# ---- heads and openings ------------------------------------------------------------------------------


def head(module: Module, box: Box, body: Body) -> tuple[str, list[str]]:
    """`def name(self, s, at, w, x):` and the names it takes."""
    names = ["s", "at"] + (["w"] if box.path in module.has_weights else [])
    for name, shape in box.inputs:
        given = identifier(name)
        names.append(given)
        body.e.names[f"input {name}"] = Value(given, ATOM, True, len(shape))
    annotated = ["self", "s: Stream", "at: str", *(["w: Part"] if "w" in names else []), *(f"{n}: Tensor" for n in names if n not in ("s", "at", "w"))]
    return f"def {module.method(box)}({', '.join(annotated)}) -> Tensor:", names


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
            drawn = state.start is not None and state.start.op == "normal" or state.start is None and array.std > 0
            learned = module.plan.system is not None and path in module.has_weights
            module.hold(path, box.loops, shape, "weights" if drawn or learned else "zeros")
            for suffix in extra:
                module.hold(f"{path}{suffix}", box.loops, shape, "zeros")


# ---- attention -----------------------------------------------------------------------------------------


def attention(module: Module, box: Box) -> None:
    body = Body(module, box)
    plan = module.plan.of(box).attention
    assert plan is not None
    first, names = head(module, box, body)
    code = module.code
    with code.function(first, names):
        opening(module, box, "z = sum_i softmax_i(scale q.k_i) v_i minimises the objective: the weighted mean.")
        body.e.count([plan.query, plan.key, plan.value])
        body.lines(box.lines)
        query, key, value = (body.e(t) for t in (plan.query, plan.key, plan.value))
        paths = [(plan.key_path, key, "keys", plan.key), (plan.value_path, value, "values", plan.value)]
        for path, given, name, term in paths:
            shape = (*all_mapped(box), 0, *term.shape)
            module.hold(path, box.loops, shape, "zeros")
            code.add(f"{name} = torch.cat([s[{body.key(path)}], {given.code}], -2)")
        window = "" if plan.window is None else f", window={plan.window}"
        code.add(f"y = attend({query.code}, keys, values, scale={plan.scale!r}{window}, past=keys.shape[-2] - s.time)")
        keep = "None" if plan.window is None else str(plan.window - 1)
        code.add(f"s[{body.key(plan.key_path)}], s[{body.key(plan.value_path)}] = self.newest(keys, {keep}), self.newest(values, {keep})")
        code.add("return y")
    code.add("")


# ---- a matrix, exactly ------------------------------------------------------------------------------------


def rows(body: Body, term: Term, per: tuple[int, ...], trailing: int) -> str:
    """A term for the ops: [batch, *mapped, *per, time, ..]; `trailing` axes of its own are kept (0: one number)."""
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
        code = f"{code}.transpose({body.lead - 1}, {body.lead})" if has_per else f"{code}.unsqueeze({body.lead - 1})"
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
        roots = [box.read, rule.input, *([error] if error else []), *([state.rule.retain] if state.rule.retain else [])]
        body.e.count(roots)
        body.lines(box.lines)
        hold_inputs(body, box)
        transparent(body)
        x = rows(body, rule.input, state.per, 1)
        e = rows(body, error, state.per, 1) if error is not None else "0"
        arguments = rates(body, rule, state.rule.retain, state.per)
        if erase is not None:
            arguments["erase"] = rows(body, erase, state.per, 0)
        if state.rule.after_retain:
            arguments["after_retain"] = "True"
        key = body.key(state_path(box, state.name, ""))
        memory = body.key(state_path(box, state.name, "") + ".m")
        if rule.rule.momentum is not None:
            arguments["S0"] = f"s[{memory}]"
        if box.read_before:
            arguments["before_write"] = "True"
        read_hook = scan_read(module, body, box, state.per, x, e, arguments, key, memory if rule.rule.momentum is not None else None)
        body.e.hooks["apply"] = read_hook
        body.cite_line(box.read)
        result = body.e(box.read).code
        code.add(f"return {result}")
    code.add("")


def scan_read(
    module: Module, body: Body, box: Box, per: tuple[int, ...], x: str, e: str, arguments: dict[str, str], key: str, memory: str | None
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
        y = code.name("y")
        function = "scan" if cut is None else "self.scan_cut"
        extra = "" if cut is None else f", every={cut}, s=s"
        last = f"s[{memory}]" if memory else "_"
        code.add(f"{y}, s[{key}], {last} = {function}({started[0]}, {q}, {x}, {e}, {arguments['rate']}{named(arguments)}{extra})")
        out = f"{y}.transpose({body.lead - 1}, {body.lead})" if per else y
        return Value(out, ATOM, True, len(term.shape))

    return read


def hold_inputs(body: Body, box: Box) -> None:
    """What is written is a constant to the gradients that do not enter this level; what is asked is not."""
    if body.open and not body.held_inside:
        return
    raise_if_shared: set[str] = {str(t.info) for t in box.read.walk() if t.op == "input"} if box.read is not None else set()
    for name, value in list(body.e.names.items()):
        if name.startswith("input ") and name.removeprefix("input ") not in raise_if_shared:
            body.code.add(f"{value.code} = {body.gate(value.code)}")


def total_erase(rule: ArrayRule) -> Term | None:
    """What the error says of the prediction, and what the optimizer erases besides."""
    parts = [p for p in (rule.error.factor if rule.error else None, rule.rule.erase) if p is not None]
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


# ---- gradients frozen at the start of a stretch ---------------------------------------------------------------


class Frozen:
    """Writes a box that linearises: lines outside, then a method for one stretch."""

    def __init__(self, module: Module, box: Box) -> None:
        self.module = module
        self.box = box
        self.code = module.code
        self.rules = module.plan.of(box).arrays
        self.used = self.lines_of_writes()
        self.touching = self.lines_touching_state()

    # ---- which lines go where -----------------------------------------------------------------------

    def lines_of_writes(self) -> set[str]:
        """Lines that a write, a retention, an objective or a setting uses, directly or not (2.9.7)."""
        roots: list[Term] = []
        for state in self.box.states:
            rule = state.rule
            roots += [t for t in (rule.objective, rule.retain) if t is not None]
            roots += [t for learn in rule.learn.values() for t in learn.settings.values()]
        return self.reach(roots)

    def reach(self, roots: list[Term]) -> set[str]:
        values = {line.name: line.value for line in self.box.lines if isinstance(line, Assign)}
        found: set[str] = set()
        stack = list(roots)
        while stack:
            for t in stack.pop().walk():
                if t.op == "local" and t.info not in found:
                    found.add(t.info)
                    stack.append(values[t.info])
        return found

    def lines_touching_state(self) -> set[str]:
        """Lines that depend on the box's own states."""
        touching: set[str] = set()
        for line in self.box.lines:
            if isinstance(line, Assign) and any(
                t.op in ("apply", "state") and t.info.box is self.box or t.op == "local" and t.info in touching for t in line.value.walk()
            ):
                touching.add(line.name)
        return touching

    # ---- the outer method -----------------------------------------------------------------------------

    def write(self) -> None:
        keep_states(self.module, self.box, ".start", *([".m"] if any(r.rule.momentum is not None for r in self.rules) else []))
        body = Body(self.module, self.box)
        first, names = head(self.module, self.box, body)
        self.passed: list[tuple[str, Value]] = []
        with self.code.function(first, names):
            opening(self.module, self.box)
            self.outside(body)
            self.stretches(body)
        self.code.add("")
        self.inside()

    def outside(self, body: Body) -> None:
        """What does not read the states is computed for the whole span at once."""
        box = self.box
        free = [line for line in box.lines if isinstance(line, Assign) and line.name not in self.touching]
        needed = self.needed_inside()
        split_roles = not body.open or body.held_inside
        for line in free:
            body.assign(line)
        for name in needed:
            value = body.e.names[name]
            if value.code and split_roles and self.for_writes(name) and not self.for_reads(name):
                held = self.code.name(value.code + "_held") if name.startswith("input ") and self.lines_use(name, free) else value.code
                self.code.add(f"{held} = {body.gate(value.code)}")
                value = Value(held, ATOM, value.lead, value.own)
            self.passed.append((name, value))

    def lines_use(self, name: str, lines: list[Assign]) -> bool:
        wanted = name.removeprefix("input ")
        return any(t.op == "input" and t.info == wanted for line in lines for t in line.value.walk())

    def needed_inside(self) -> list[str]:
        """Inputs and outside lines that the stretch uses."""
        found: dict[str, None] = {}
        for root in self.inside_roots():
            for t in root.walk():
                if t.op == "input":
                    found[f"input {t.info}"] = None
                elif t.op == "local" and t.info not in self.touching:
                    found[f"local {t.info}"] = None
        return list(found)

    def inside_roots(self) -> list[Term]:
        roots = [line.value for line in self.box.lines if isinstance(line, Assign) and line.name in self.touching]
        for state in self.box.states:
            roots += [t for t in (state.rule.objective, state.rule.retain) if t is not None]
            roots += [t for learn in state.rule.learn.values() for t in learn.settings.values()]
        assert self.box.read is not None
        return [*roots, self.box.read]

    def roles(self, name: str) -> tuple[bool, bool]:
        """Whether a name is used for writes, and for reads, inside the stretch."""
        kind, wanted = name.split(" ", 1)
        values = {line.name: line.value for line in self.box.lines if isinstance(line, Assign)}

        def uses(root: Term) -> bool:
            return any(t.op == kind and t.info == wanted for t in root.walk())

        writes = any(uses(r) for r in self.inside_roots()[:-1] if r not in [values[n] for n in self.touching if n not in self.used])
        reads = uses(self.inside_roots()[-1]) or any(uses(values[n]) for n in self.touching if n not in self.used)
        return writes, reads

    def for_writes(self, name: str) -> bool:
        return self.roles(name)[0]

    def for_reads(self, name: str) -> bool:
        return self.roles(name)[1]

    def stretches(self, body: Body) -> None:
        """At most `linearise` ticks at a time; the gradient may be cut at longer ones."""
        box = self.box
        assert box.linearise is not None
        level = box.level.name if box.level is not None else ""
        cut = self.module.plan.training.truncate.get(level)
        axis = body.lead - 1
        colon = ", ".join([":"] * axis)
        sliced = [f"{v.code}[{colon}, a:b]" if v.lead else v.code for _, v in self.passed]
        extra = f", {cut}" if cut is not None else ""
        with self.code.block(f"for a, b, fresh, cut in s.stretches({box.linearise}{extra}):"):
            if cut is not None:
                with self.code.block("if cut:"):
                    self.code.add("self.cut(s, at)")
            w = ", w" if box.path in self.module.has_weights else ""
            call = f"self.{self.module.method(box)}_stretch(s, at{w}, b - a, fresh{''.join(', ' + x for x in sliced)})"
            self.code.add(f"reads.append({call})")
        self.code.lines.insert(len(self.code.lines) - (2 if cut is None else 4), "    " * self.code.depth + "reads = []")
        self.code.add(f"return self.joined(reads, {axis})")

    # ---- one stretch --------------------------------------------------------------------------------------

    def inside(self) -> None:
        box, module, code = self.box, self.module, self.code
        body = StretchBody(module, box)
        arguments, taken = [], ["s", "at", "w", "time", "fresh"]
        for name, value in self.passed:
            given = identifier(name.split(" ", 1)[1])
            arguments.append(f"{given}: Tensor")
            taken.append(given)
            body.e.names[name] = Value(given, ATOM, value.lead, value.own)
        w = "w: Part, " if box.path in module.has_weights else ""
        first = f"def {module.method(box)}_stretch(self, s: Stream, at: str, {w}time: int, fresh: bool, {', '.join(arguments)}) -> Tensor:"
        with code.function(first, taken):
            code.docstring([f"At most {box.linearise} ticks; lines and gradients are taken at the state where the stretch started."])
            self.anchors(body)
            for line in box.lines:
                if isinstance(line, Assign) and line.name in self.touching and line.name in self.used:
                    body.assign(line)
            self.writes(body)
            self.read(body)
        code.add("")

    def anchors(self, body: StretchBody) -> None:
        """The arrays at the stretch's start, and as they run on."""
        code, box = self.code, self.box
        with code.block("if fresh:"):
            for state in box.states:
                for array in state.form.arrays:
                    path = state_path(box, state.name, array.name)
                    code.add(f"s[{body.key(path + '.start')}] = s[{body.key(path)}]")
        for state in box.states:
            for array in state.form.arrays:
                name = code.name(f"{state.name}_{array.name}" if array.name else state.name)
                path = state_path(box, state.name, array.name)
                code.add(f"{name} = s[{body.key(path + '.start')}]")
                body.anchors[state.name, array.name] = name

    def writes(self, body: StretchBody) -> None:
        """For each array the gradient as surprise and input, then its recurrence over the stretch."""
        plan = self.module.plan
        level = self.box.level.name if self.box.level is not None else ""
        first_order = level in plan.training.first_order
        transparent(body)
        body.e.count([t for r in self.rules for t in (r.surprise, r.input)])
        for state in self.box.states:
            mine = [r for r in self.rules if r.state == state.name]
            if not mine:
                continue
            objective = state.rule.objective
            assert objective is not None
            body.cite_line(objective)
            for rule in mine:
                x, e = rows(body, rule.input, state.per, 1), rows(body, rule.surprise, state.per, 1)
                if first_order:
                    x, e = f"({x}).detach()", f"({e}).detach()"
                arguments = rates(body, rule, state.rule.retain, state.per)
                if rule.rule.erase is not None:
                    arguments["erase"] = rows(body, substitute(rule.rule.erase, rule.settings), state.per, 0)
                path = state_path(self.box, state.name, rule.array)
                if rule.rule.momentum is not None:
                    arguments["S0"] = f"s[{body.key(path + '.m')}]"
                self.run(body, rule, path, x, e, arguments)
        body.e.hooks.pop("stop")

    def run(self, body: StretchBody, rule: ArrayRule, path: str, x: str, e: str, arguments: dict[str, str]) -> None:
        code = self.code
        anchor = body.anchors[rule.state, rule.array]
        name = code.name(f"run_{anchor}")
        code.comment(equation(rule, anchor))
        code.add(f"{name} = span(s[{body.key(path)}], {x}, {e}, {arguments['rate']}{named(arguments)})")
        last = f"s[{body.key(path + '.m')}]" if rule.rule.momentum is not None else "_"
        code.add(f"s[{body.key(path)}], {last} = {name}.end()")
        body.runs[rule.state, rule.array] = name

    def read(self, body: StretchBody) -> None:
        """Lines that only reads use see the running state before the write; the read sees the new one (2.8)."""
        box = self.box
        assert box.read is not None
        body.running, body.before = True, True
        body.e.done.clear()
        for line in box.lines:
            if isinstance(line, Assign) and line.name in self.touching and line.name not in self.used:
                body.assign(line)
        body.before = box.read_before
        body.e.done.clear()
        body.cite_line(box.read)
        body.e.count([box.read])
        self.code.add(f"return {body.e(box.read).code}")


class StretchBody(Body):
    """A body inside one stretch: products use the arrays of its start, or those that run on."""

    def __init__(self, module: Module, box: Box) -> None:
        super().__init__(module, box)
        self.anchors: dict[tuple[str, str], str] = {}
        self.runs: dict[tuple[str, str], str] = {}
        self.running = False
        self.before = False

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

    def apply(self, term: Term) -> Value:
        handle: Handle = term.info
        return self.e(application(handle, term.args[0], term)) if handle.box is self.box else super().apply(term)


def transparent(body: Body) -> None:
    """In an objective `stop` is a constant for that objective's own gradient only, which has been taken (2.12)."""
    body.e.hooks["stop"] = lambda term: body.e(term.args[0])


def frozen(module: Module, box: Box) -> None:
    if any(not isinstance(line, Assign) for line in box.lines):
        raise InternalError("a loop in a box")
    Frozen(module, box).write()
