"""Terms to numbers (2.3.2, 2.5, 2.12). One sample, one tick, one head of a mapped memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlc.diagnostics import InternalError
from nlc.system import ALL, Form, Handle, Slot, Term

from . import arrays as A
from .frames import Arrays, Frame, Later, Missing, Value
from .gates import OWN, gate

if TYPE_CHECKING:
    from .boxes import Run


@dataclass(eq=False)
class Scope:
    """Where a term is evaluated: a frame, in one role, with the states that its place sees.

    `tracked`: the state whose products are written down as examples in `log` (2.9.6).
    """

    run: Run
    frame: Frame
    role: str = "read"
    own: Mapping[str, Arrays] = field(default_factory=dict)
    given: Mapping[str, Tensor] = field(default_factory=dict)  # streams of a learn line, arguments
    objective: bool = False
    tracked: str | None = None
    log: list[tuple[str, Tensor, Tensor]] | None = None
    loss: Tensor | None = None
    across: Callable[[Term], Tensor] | None = None
    memo: dict[int, Value] = field(default_factory=dict)

    def array(self, term: Term) -> Tensor:
        value = evaluate(term, self)
        if isinstance(value, dict):
            raise InternalError(f"a network where an array is wanted: {term.op}")
        return value


def evaluate(term: Term, scope: Scope) -> Value:
    """Terms make a graph: each is evaluated once for each place."""
    if id(term) not in scope.memo:
        scope.memo[id(term)] = _value(term, scope)
    return scope.memo[id(term)]


def _value(term: Term, scope: Scope) -> Value:
    special = SPECIAL.get(term.op)
    if special is not None:
        return special(term, scope)
    if term.op == "pow" and _is_square_of_length(term):
        x = scope.array(term.args[0].args[0])
        return (x * x).sum(-1)  # no root is taken (2.5.2)
    values = [evaluate(a, scope) for a in term.args]
    if term.op in A.ELEMENTWISE:
        return over(A.ELEMENTWISE[term.op], values[0])
    if term.op in A.BINARY:
        return both(A.BINARY[term.op], values[0], values[1])
    if term.op in A.OTHERS:
        return A.OTHERS[term.op](
            [v for v in values if isinstance(v, Tensor)], term.info, term.shape
        )
    raise InternalError(f"no such operation: {term.op}")


def _is_square_of_length(term: Term) -> bool:
    base, power = term.args
    return base.op == "length" and base.info == 2 and power.op == "const" and power.info == 2


def over(f: Callable[[Tensor], Tensor], x: Value) -> Value:
    return {n: f(a) for n, a in x.items()} if isinstance(x, dict) else f(x)


def both(f: Callable[[Tensor, Tensor], Tensor], x: Value, y: Value) -> Value:
    """Between states of one form, and with numbers, array by array (2.3.2)."""
    if isinstance(x, dict):
        return {n: f(a, y[n] if isinstance(y, dict) else y) for n, a in x.items()}
    if isinstance(y, dict):
        return {n: f(x, b) for n, b in y.items()}
    return f(x, y)


# ---- names -------------------------------------------------------------------------------------


def _named(value: Any, scope: Scope) -> Value:
    if isinstance(value, Later):
        return resolve_later(value, scope.run)
    if value is None:
        raise Missing
    return value  # type: ignore[no-any-return]


def resolve_later(later: Later, run: Run) -> Value:
    """The value of a line that waited for the next input; Missing if that has not come."""
    frame = replace(later.frame, names={later.role: dict(later.names)}, rounds=later.rounds)
    own = later.frame.values
    value = evaluate(later.term, Scope(run, frame, later.role, own))
    if later.head is not None and isinstance(value, Tensor):
        value = value[later.head]
    return value if later.allowed is None else over(lambda x: gate(x, later.allowed), value)


def _input(term: Term, scope: Scope) -> Value:
    if term.info in scope.given:
        return scope.given[term.info]
    named = scope.frame.inputs[scope.role]
    if term.info not in named and not named and scope.frame.box is not None:
        raise ValueError(
            f"a start in `{scope.frame.where}` is made of its input `{term.info}`, and its state "
            "is named before the call that gives it: name it after the call"
        )
    if term.info not in named:
        raise InternalError(f"no input `{term.info}` in `{scope.frame.where}`")
    return _named(named[term.info], scope)


def _local(term: Term, scope: Scope) -> Value:
    return _named(scope.frame.names[scope.role][term.info], scope)


def _argument(term: Term, scope: Scope) -> Value:
    return scope.given[term.info]


def _weight(term: Term, scope: Scope) -> Value:
    value = scope.run.weight(term.info, scope.frame)
    return gate(value, scope.run.transfers.weights(scope.frame.level))


def _loss(term: Term, scope: Scope) -> Value:
    if scope.loss is None:
        raise Missing
    return scope.loss


def own_state(handle: Handle, scope: Scope) -> Arrays:
    """The arrays of a state as this place sees it (2.7.2)."""
    frame = scope.frame
    if scope.run.reads and scope.role == "read" and not scope.objective:
        scope.run.tell_read(handle, frame, scope.own)
    if handle.box is frame.box:
        if handle.state.rule.learn and handle.box.exact and handle.name not in scope.own:
            return scope.run.solved(frame, handle.name, scope.role)
        return scope.own[handle.name]
    if id(handle.box) in frame.family:
        return frame.family[id(handle.box)].cells[handle.name].value
    values = scope.run.foreign(handle, frame)
    policy = scope.run.transfers
    kept_by = handle.box.level
    allowed = (
        policy.enters(frame.level)
        if scope.role == "write" and frame.box is not None
        else policy.foreign(frame.level, kept_by)
    )
    return {n: gate(a, allowed) for n, a in values.items()}


def _state(term: Term, scope: Scope) -> Value:
    values = own_state(term.info, scope)
    array = "" if term.info.state.form.single else term.info.array
    return dict(values) if array is None else values[array]


def _next(term: Term, scope: Scope) -> Value:
    """The stream one tick on (2.10.2)."""
    frame = scope.frame
    name = term.args[0].info
    if frame.box is not None:
        if name not in frame.streams:
            raise InternalError(f"`next({name})` in `{frame.where}` is no stream of the flow")
        name = frame.streams[name]
    given = scope.run.sample.inputs.get(frame.tick + 1, {}).get(name)
    if given is None:
        raise Missing
    return given


# ---- networks ----------------------------------------------------------------------------------


def apply_form(
    form: Form, values: Arrays, x: Tensor, note: Callable[[str, Tensor, Tensor], None]
) -> Tensor:
    """`M(x)` (2.3.2). Each product `W @ x` is noted: array, x, result."""

    def times(name: str, at: Tensor) -> Tensor:
        out = A.product(values[name], at)
        note(name, at, out)
        return out

    match form.kind:
        case "residual":
            return x + apply_form(_inner(form), values, x, note)
        case "layernorm":
            return A.layer_norm(apply_form(_inner(form), values, x, note))
        case "table":
            return A.lookup(values[""], x)
        case "matrix":
            return times("", x)
        case "gated_mlp":
            return times("W2", A.ELEMENTWISE["silu"](times("W1", x)) * times("W3", x))
        case "mlp":
            last = len(form.sizes) - 1
            for i in range(1, last + 1):
                x = times(f"W{i}", x)
                x = x if i == last else A.ELEMENTWISE[form.act](x)
            return x
    raise InternalError(f"a {form.kind} cannot be called")


def _inner(form: Form) -> Form:
    if form.inner is None:
        raise InternalError(f"{form.kind} around nothing")
    return form.inner


@dataclass(eq=False)
class Sayings:
    """Terms that say the same: in an objective, `M(k)` written twice is one call (2.9.6)."""

    first: dict[int, Term] = field(default_factory=dict)
    known: dict[object, Term] = field(default_factory=dict)

    def of(self, term: Term) -> Term:
        """The first term that says what this one does."""
        if id(term) not in self.first:
            args = tuple(id(self.of(a)) for a in term.args)
            plain = isinstance(term.info, int | float | str | tuple | Handle | None)
            said = (term.op, type(term.info), term.info, args, term.shape) if plain else id(term)
            self.first[id(term)] = self.known.setdefault(said, term)
        return self.first[id(term)]


def _apply(term: Term, scope: Scope) -> Value:
    handle: Handle = term.info
    if scope.objective and (first := scope.run.passing.sayings.of(term)) is not term:
        return evaluate(first, scope)
    x = scope.array(term.args[0])
    values = own_state(handle, scope)
    mine = handle.box is scope.frame.box

    def note(name: str, at: Tensor, out: Tensor) -> None:
        if scope.objective:
            if mine and handle.name == scope.tracked and scope.log is not None:
                scope.log.append((name, at, out))
        else:
            key = scope.run.state_key(handle, scope.frame)
            scope.run.note((key, handle.name, name), (scope.frame, term, name), at, out)

    return apply_form(handle.state.form, values, x, note)


def _linear(term: Term, scope: Scope) -> Value:
    x, w = scope.array(term.args[0]), scope.array(term.args[1])
    out = A.product(w, x)
    weight = term.args[1]
    if weight.op == "weight":
        name = weight.info.path.format(*scope.frame.rounds)
        scope.run.note(name, (scope.frame, term, name), x, out)
    return out


def _call(term: Term, scope: Scope) -> Value:
    return scope.run.call(term, scope)


# ---- time --------------------------------------------------------------------------------------


def remembered(slot: Slot, now: Tensor, scope: Scope) -> list[Tensor]:
    """What a slot holds: older ticks behind the gate of the body's level, then this tick's own."""
    frame = scope.frame
    key = (slot.path.format(*frame.rounds), frame.heads)
    older = frame.older.setdefault(key, scope.run.sample.slots.get(key, ()))
    frame.entries.setdefault(key, now)
    scope.run.slot_kept(key, slot, frame)
    allowed = scope.run.transfers.enters(frame.level)
    return [*(gate(x, allowed) for x in older), now]


def _past(term: Term, scope: Scope) -> Value:
    window = term.info.window
    values = remembered(term.info, scope.array(term.args[0]), scope)
    return torch.stack(values if window == ALL else values[-window:])


def _conv(term: Term, scope: Scope) -> Value:
    weight = scope.array(term.args[1])
    values = remembered(term.info, scope.array(term.args[0]), scope)
    taps = weight.shape[-1]
    recent = values[-taps:]
    return sum((weight[:, taps - len(recent) + i] * x for i, x in enumerate(recent)), A.number(0.0))


def _fade(term: Term, scope: Scope) -> Value:
    values = remembered(term.info, scope.array(term.args[0]), scope)
    products = [A.number(1.0)]
    for a in reversed(values[1:]):
        products.append(products[-1] * a)
    return torch.stack(products[::-1])


def _dropout(term: Term, scope: Scope) -> Value:
    """`x` unless a level on steps fires; the draw depends on seed, instance and tick."""
    x, slot, run, frame = scope.array(term.args[0]), term.info, scope.run, scope.frame
    if not run.drops or not slot.chance:
        return x
    name = f"{run.seed}:{slot.path.format(*frame.rounds)}"
    drawn = A.drawn(name, run.place(frame), tuple(x.shape))
    return torch.where(drawn >= round(slot.chance * 2**32), x / (1 - slot.chance), 0.0)


# ---- training and starts -----------------------------------------------------------------------


def _stop(term: Term, scope: Scope) -> Value:
    """In an objective a constant for its own gradient only; elsewhere for every gradient."""
    if not scope.objective:
        return over(torch.Tensor.detach, evaluate(term.args[0], scope))
    inside = replace(scope, log=None, memo={})
    return over(lambda x: gate(x, lambda who: who is not OWN), evaluate(term.args[0], inside))


def _across(term: Term, scope: Scope) -> Value:
    if scope.across is None:
        raise InternalError("`across` outside a learn line")
    return scope.across(term.args[0])


def _unknown_start(term: Term, scope: Scope) -> Value:
    raise InternalError(f"`{term.op}` stands only in a start")


SPECIAL: dict[str, Callable[[Term, Scope], Value]] = {
    "const": lambda t, s: A.number(float(t.info)), "input": _input, "local": _local,
    "weight": _weight, "state": _state, "loss": _loss,
    "position": lambda t, s: A.number(float(s.frame.position)),
    "count": lambda t, s: A.number(float(s.frame.count)), "argument": _argument, "apply": _apply,
    "call": _call, "linear": _linear, "past": _past, "conv": _conv, "fade": _fade,
    "rope": lambda t, s: A.rope(s.array(t.args[0]), s.frame.position, t.info), "next": _next,
    "dropout": _dropout, "stop": _stop, "across": _across, "zeros": _unknown_start,
    "normal": _unknown_start,
    "fresh": _unknown_start, "copy": _unknown_start,
}  # fmt: skip
