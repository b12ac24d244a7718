"""What the methods of boxes share: heads and docstrings, states, and the gates of a recurrence."""

from __future__ import annotations

from nlc.backward import add, constant
from nlc.derive import substitute
from nlc.foreign import readings
from nlc.plan import ArrayRule
from nlc.system import Box, State, Term, line_terms

from ..parameters import start_draw, trainer
from .bodies import Body, Module, all_mapped, state_path
from .code import identifier
from .expressions import ATOM, Value


def head(module: Module, box: Box, body: Body) -> tuple[str, list[str]]:
    """`def name(self, s, at, w, x):` and the names it takes; states of others come last."""
    names = ["s", "at"] + (["w"] if box.path in module.has_weights else [])
    for name, shape in box.inputs:
        given = unique(name, names)
        names.append(given)
        body.e.names[f"input {name}"] = Value(given, ATOM, True, len(shape))
    for path, wish, own in body.others(box):
        given = unique(wish, names)
        names.append(given)
        body.e.names[f"other {path}"] = Value(given, ATOM, False, own)
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


def keep_states(module: Module, box: Box, *extra: str) -> None:
    """The rows of the table of states for a box's arrays."""
    if module.plan.of(box).kind == "static":
        return
    for state in box.states:
        for array in state.form.arrays:
            path = state_path(box, state.name, array.name)
            shape = (*all_mapped(box), *state.per, *array.shape)
            learned = trainer(module.plan.system, box, state) is not None
            made = start_draw(state, array, learned) is not None
            module.hold(path, box.loops, shape, "weights" if made else "zeros")
            for suffix in extra:
                module.hold(f"{path}{suffix}", box.loops, shape, "zeros")


def begin_states(module: Module, box: Box, body: Body) -> None:
    """Starts that are computed, at the first tick after a reset (2.3.4)."""
    made = [s for s in box.states if computed(module, box, s)]
    if not made:
        return
    code, axis = module.code, body.lead - 1
    colon = ", ".join([":"] * axis)
    first = type(body)(module, box)
    first.e.names = {
        n: Value(f"{v.code}[{colon}, :1]", ATOM, True, v.own) if v.lead else v
        for n, v in body.e.names.items()
    }
    with code.block("if s.age == 0:"), code.block('with s.life(0, 1, s.born, "start"):'):
        for state in made:
            assert state.start is not None
            first.cite_line(state.start)
            start = state.start.args[0] if state.start.op == "fresh" else state.start
            for array in state.form.arrays:
                key = first.key(state_path(box, state.name, array.name))
                if start.op == "copy":
                    told, _ = first.array(start.info, array.name)
                elif start.op == "normal":
                    shapes = f"{all_mapped(box)}, {(*state.per, *array.shape)}"
                    told = f"self.drawn(s, {key}, {start.info!r}, {shapes})"
                elif start.op == "zeros":
                    told = "0.0"
                else:
                    first.e.count([start])
                    value = first.e(start)
                    told = f"{value.atom}.select({axis}, 0)" if value.lead else value.code
                code.add(f"s[{key}] = {first.gate(f'self.begun(s[{key}], {told})')}")
                if named_by_others(module, box, state):
                    code.add(f"s.stands({key})")


def named_by_others(module: Module, box: Box, state: State) -> bool:
    named = (handle for _, handle, _ in readings(module.plan.system))
    return any(h.box is box and h.name == state.name for h in named)


def computed(module: Module, box: Box, state: State) -> bool:
    """Whether the start is made at each reset, and not once with the model."""
    if state.start is None or state.start.op == "zeros":
        return False
    learned = trainer(module.plan.system, box, state) is not None
    return all(start_draw(state, a, learned) is None for a in state.form.arrays)


def rows(body: Body, term: Term, per: tuple[int, ...], trailing: int) -> str:
    """A term for the ops: [batch, *mapped, *per, time, ..]; `trailing` axes of its own are kept (0:
    one number).
    """
    value = body.e(term)
    if not value.lead and value.own == 0 and (trailing or term.op == "const"):
        return value.code
    value = body.led(value)
    code = value.atom
    own = value.own
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


def rates(body: Body, rule: ArrayRule, per: tuple[int, ...]) -> dict[str, str]:
    """rate, keep and momentum as arguments of an op."""
    given = {"rate": rows(body, substitute(rule.rule.rate, rule.settings), per, 0)}
    if rule.keep is not None:
        given["keep"] = rows(body, rule.keep, per, channels(rule.keep, per))
    if rule.rule.momentum is not None:
        given["momentum"] = rows(body, substitute(rule.rule.momentum, rule.settings), per, 0)
    return given


def channels(gate: Term, per: tuple[int, ...]) -> int:
    """1 for a gate of one number a channel, 0 for one of one number."""
    return int(len(gate.shape) > len(per) and gate.shape[-1] != 1)


def named(arguments: dict[str, str], skip: str = "rate") -> str:
    return "".join(f", {k}={v}" for k, v in arguments.items() if k != skip)


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


def transparent(body: Body) -> None:
    """In an objective `stop` is a constant for that objective's own gradient only, which has been
    taken; elsewhere it is one for all (2.12).
    """
    assert body.box is not None
    rules = [s.rule for s in body.box.states]
    if all(rule.objective is None for rule in rules):
        return
    learns = [line for rule in rules for line in rule.learn.values()]
    roots = [*line_terms(body.box.lines), body.box.read]
    roots += [t for rule in rules for t in (rule.retain, rule.write, rule.set)]
    roots += [t for line in learns for t in (*line.settings.values(), *line.streams.values())]
    closed = {id(t) for root in roots if root for t in root.walk() if t.op == "stop"}

    def stop(term: Term) -> Value:
        return body.e.op_stop(term) if id(term) in closed else body.e(term.args[0])

    body.e.hooks["stop"] = stop
