"""One method for each box: what its lowering in the plan says, in Python."""

from __future__ import annotations

from collections.abc import Callable

from nlc.derive import turned_read
from nlc.foreign import reads_old
from nlc.plan import Attention
from nlc.system import Box, Term

from .bodies import Body, Module, all_mapped, state_path
from .common import (
    begin_states,
    channels,
    equation,
    head,
    keep_states,
    named,
    opening,
    rates,
    rows,
    total_erase,
    transparent,
    written,
)
from .expressions import ATOM, Value
from .fired import fired
from .frozen import frozen
from .slept import slept
from .solved import solved


def write_box(module: Module, box: Box) -> None:
    """The method of a box that is called."""
    {
        "stateless": plain,
        "static": plain,
        "loss": plain,
        "attention": attention,
        "squares": squares,
        "recurrence": recurrence,
        "frozen": frozen,
        "solved": solved,
        "fired": fired,
        "slept": slept,
    }[module.plan.of(box).kind](module, box)


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


def attention(module: Module, box: Box) -> None:
    """Softmax over the past: `attend`, or `attend_pairs` for pairs that are not plain."""
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
        more = [t for t in (plan.weight, *pairs_beside(plan)) if t is not None]
        body.e.count([plan.query, plan.key, plan.value, *more])
        body.lines(box.lines)
        query, key, value = (body.e(t) for t in (plan.query, plan.key, plan.value))
        keys, values, y = code.names(["keys", "values", "y"])
        level = box.level.name if box.level is not None else ""
        cut = module.plan.training.truncate.get(level)
        paths = [(plan.key_path, key, keys, plan.key), (plan.value_path, value, values, plan.value)]
        for path, given, name, term in paths:
            shape = (*all_mapped(box), 0, *term.shape)
            module.hold(path, box.loops, shape, "zeros")
            if cut is None:
                line = f"[s[{body.key(path)}], {given.code}], {-1 - given.own}"
                code.add(f"{name} = torch.cat({line})")
        axis = -1 - key.own
        past = f"past={keys}.shape[{axis}] - s.time"
        if cut is None:
            code.add(f"{y} = {softmax_over(body, plan, query.code, keys, values, past)}")
        else:
            kept = ", ".join(f"s[{body.key(path)}]" for path, *_ in paths)
            streams = f"{query.code}, {key.code}, {value.code}, {kept}"
            code.add(
                f"{y}, {keys}, {values} = self.attend_cut(s, {cut}, {streams}, {plan.scale!r}, "
                f"{plan.window})"
            )
        keep = "None" if plan.window is None else str(plan.window - 1)
        axes = "" if axis == -2 else f", {axis}"
        code.add(
            f"s[{body.key(plan.key_path)}] = self.newest({keys}, {keep}{axes})",
            f"s[{body.key(plan.value_path)}] = self.newest({values}, {keep}{axes})",
        )
        code.add(f"return {y}")
    code.add("")


def softmax_over(body: Body, plan: Attention, query: str, keys: str, values: str, past: str) -> str:
    window = "" if plan.window is None else f", window={plan.window}"
    if plan.plain:
        return f"attend({query}, {keys}, {values}, scale={plan.scale!r}{window}, {past})"
    several = "" if len(plan.key.shape) == 2 else ".unsqueeze(-2)"
    given = f"{query}, {keys}{several}, {values}{several}, {plan.scale!r}"
    return f"attend_pairs({given}, {past}{window}{of_pairs(body, plan)})"


def pairs_beside(plan: Attention) -> tuple[Term, ...]:
    return () if plan.beside is None else (plan.beside.key, plan.beside.value)


def of_pairs(body: Body, plan: Attention) -> str:
    """How much pairs count, and those of no past, as arguments."""
    told = ""
    if plan.weight is not None:
        value = body.e(plan.weight)
        code = value.atom if value.lead else f"self.stream({value.code}, s, {body.lead})"
        told += f", weight={code}{'.unsqueeze(-1)' * (value.own == 1)}"
    if plan.beside is not None:
        K, V = (body.e(t) for t in pairs_beside(plan))
        codes = [v.atom if v.lead else f"self.stream({v.code}, s, {body.lead})" for v in (K, V)]
        told += f", beside=({plan.beside.scale!r} * {codes[0]}, {codes[1]})"
    return told


def squares(module: Module, box: Box) -> None:
    """The best matrix for all pairs: `least_squares` (backends/ops/least_squares.py)."""
    body, code = Body(module, box), module.code
    plan = module.plan.of(box).squares
    assert plan is not None and box.read is not None
    state = box.states[0]
    first, names = head(module, box, body)
    m, n = state.form.arrays[0].shape
    path = state_path(box, state.name, "")
    for suffix, shape in ((".H", (n, n)), (".G", (m, n))):
        module.hold(path + suffix, box.loops, (*all_mapped(box), *shape), "zeros")
    with code.function(first, names):
        opening(
            module,
            box,
            f"H = keep H + w k k', G = keep G + w v k', {state.name} = G (H + diag(ridge))^-1",
        )
        keep = [plan.keep] if plan.keep is not None else []
        body.e.count([box.read, plan.key, plan.value, plan.weight, plan.ridge, *keep])
        body.lines(box.lines)
        k, v = rows(body, plan.key, (), 1), rows(body, plan.value, (), 1)
        weight = rows(body, plan.weight, (), 0)
        kept = rows(body, plan.keep, (), 0) if plan.keep is not None else "1.0"
        ridge = rows(body, plan.ridge, (), min(len(plan.ridge.shape), 1))
        keys = [f"s[{body.key(path + suffix)}]" for suffix in (".H", ".G")]
        sums = code.names(["H", "G"])
        code.add(f"{', '.join(sums)} = {', '.join(keys)}")

        def read(term: Term) -> Value:
            if term.info.box is not box:
                return body.apply(term)
            y = code.name("y")
            q = rows(body, term.args[0], (), 1)
            given = ", ".join([*sums, q, k, v, weight, kept, ridge])
            code.add(f"{y}, {', '.join(keys)} = least_squares({given})")
            return Value(y, ATOM, True, len(term.shape))

        body.e.hooks["apply"] = read
        body.cite_line(box.read)
        code.add(f"return {body.e(box.read).code}")
    code.add("")


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
        error, aim = aimed(rule.error.rest)
        erase = total_erase(rule)
        roots = [
            box.read,
            rule.input,
            *([error] if error else []),
            *([rule.keep] if rule.keep is not None else []),
        ]
        body.e.count(roots)
        body.lines(box.lines)
        begin_states(module, box, body)
        transparent(body)
        first_order = box.level is not None and box.level.name in module.plan.training.first_order
        x = written(body, rows(body, rule.input, state.per, 1), first_order)
        e = (
            written(body, rows(body, error, state.per, 1), first_order)
            if error is not None
            else "0"
        )
        arguments = rates(body, rule, state.per)
        if erase is not None:
            arguments["erase"] = rows(body, erase, state.per, channels(erase, state.per))
        arguments = {k: written(body, v) for k, v in arguments.items()}
        flags = {
            "after_retain": rule.late,
            "aim": aim,
            "before_write": reads_old(box),
        }
        arguments |= {name: "True" for name, said in flags.items() if said}
        key = body.key(state_path(box, state.name, ""))
        memory = body.key(state_path(box, state.name, "") + ".m")
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
        body.e.hooks["matmul"] = read_hook
        body.cite_line(box.read)
        result = body.e(box.read).code
        code.add(f"return {result}")
    code.add("")


def aimed(error: Term | None) -> tuple[Term | None, bool]:
    """An error that is minus what is wanted, as what is wanted: kernels would turn it again."""
    if error is None or error.op != "neg":
        return error, False
    return error.args[0], True


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
    """A read `M(q)`, or `q @ M`, runs the whole span; a second one runs it again from the same
    start.
    """
    code = module.code
    level = box.level.name if box.level is not None else ""
    cut = module.plan.training.truncate.get(level)
    started: list[str] = []

    def read(term: Term) -> Value:
        turned = turned_read(term, box)
        if term.op == "matmul" and not turned:
            return body.e.op_matmul(term)
        if not turned and term.info.box is not box:
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
        extra += ", turned=True" if turned else ""
        last = f"s[{memory}]" if memory else "_"
        code.add(
            f"{y}, s[{key}], {last} = {function}({started[0]}, {q}, {x}, {e}, "
            f"{arguments['rate']}{named(arguments)}{extra})"
        )
        out = f"{y}.transpose({body.lead - 1}, {body.lead})" if per else y
        return Value(out, ATOM, True, len(term.shape))

    return read
