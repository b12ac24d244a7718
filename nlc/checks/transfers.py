"""Transfers: what crosses levels undeclared (NL301, NL306), what is declared and empty (NL302,
NL303, NL402), a gradient that is cut where it has ended (NL309), and answers made from inputs to
come (NL305).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby

from ..diagnostics import Diagnostic
from ..levels import frequency
from ..system import Assign, Box, Level, Line, Term, Transfer
from ..text import Span
from .facts import Facts, header, named
from .sources import Making
from .terms import distinct, exact, may_start, rule_terms

Taint = dict[str, frozenset[Span]]


# ---- weights of the owner ----


def nl301(facts: Facts) -> Iterator[Diagnostic]:
    """A body that uses the unnamed weights says what passes back (2.11.2)."""
    owner = facts.system.owner
    if owner is None:
        return
    open_levels: dict[str, list[Level]] = defaultdict(list)
    for level in facts.system.levels:
        if level is owner or not facts.weights_of.get(level.name):
            continue
        back = facts.passes.get((level.name, owner.name), set())
        ahead = facts.passes.get((owner.name, level.name), set())
        if "backprop" not in back and "condition" not in ahead:
            open_levels[level.family].append(level)
    for family, members in open_levels.items():
        if len(members) == facts.family_size[family]:
            yield undeclared_weights(facts, family, members[0], owner)
        else:
            yield from (undeclared_weights(facts, m.name, m, owner) for m in members)


def undeclared_weights(facts: Facts, name: str, level: Level, owner: Level) -> Diagnostic:
    line = f"transfer backprop {name} -> {owner.name}"
    weights = facts.weights_of[level.name]
    return Diagnostic(
        "NL301",
        f"`{name}` uses weights of `{owner.name}` and no transfer says what passes back",
        facts.place(weights[0].span, header(level.span)),
        f"add `{line}`, or `transfer condition {owner.name} -> {name}` to keep them fixed here",
        fix=facts.add_transfer(line),
    )


# ---- transfers that carry nothing ----


def nl302(facts: Facts) -> Iterator[Diagnostic]:
    """One message for each transfer as written between two families, if all its members agree."""
    edges = sorted(
        facts.system.transfers, key=lambda t: (t.span.start, t.source.family, t.target.family)
    )
    told: set[Span] = set()
    groups = groupby(edges, key=lambda t: (t.span, t.source.family, t.target.family))
    for (span, _, _), group in groups:
        found = [empty(facts, t) for t in group]
        if all(found) and found[0] is not None and span not in told:
            told.add(span)
            yield found[0]
    yield from twice(facts)
    yield from (idle_clause(t) for t in edges if t.span not in told and clause_is_idle(t))


def clause_is_idle(t: Transfer) -> bool:
    """`first order` and `through` where no gradient passes (2.11.3)."""
    if not t.first_order and t.truncate is None:
        return False
    frozen = t.kind == "init" and t.source.clock.unit == "never"
    return t.kind in ("condition", "generate") or frozen


def idle_clause(t: Transfer) -> Diagnostic:
    through = f"through {t.truncate} tokens" if t.truncate is not None else ""
    clause = f"{through} {'first order' * t.first_order}".strip()
    why = f"`{t.source.name}` never learns" if t.kind == "init" else f"`{t.kind}` passes none"
    message = f"`{clause}` carries nothing: it is said of a gradient, and {why}"
    return Diagnostic("NL302", message, t.span, f"take `{clause}` out")


def nl309(facts: Facts) -> Iterator[Diagnostic]:
    """A line whose cut comes no sooner than every state starts anew that its gradient enters: what
    would be cut at that very tick has ended.
    """
    lines: dict[Span, list[Transfer]] = defaultdict(list)
    for t in facts.system.transfers:
        if t.truncate is not None and not clause_is_idle(t):
            lines[t.span].append(t)
    for span, edges in lines.items():
        entered = [t.source if t.kind == "backprop" else t.target for t in edges]
        lives = [(tokens_kept(level, facts.system.assume) or math.inf, level) for level in entered]
        longest, level = max(lives, key=lambda life: life[0])
        cut = edges[0].truncate
        if cut is not None and longest <= cut:
            ends = level.resets
            why = f"`{level.name}` starts anew {ends}"
            why += f", of {facts.system.assume} tokens each" if ends.unit == "sequence" else ""
            message = f"`through {cut} tokens` never cuts: {why}"
            help = f"take it out, or cut after less than {longest}"
            yield Diagnostic("NL309", message, span, help, severity="warning")


def tokens_kept(level: Level, assume: int | None) -> int | None:
    """Tokens from one reset of a level to the next, where that is known."""
    if level.resets.unit == "sequence" and assume is not None:
        return level.resets.first * assume
    return level.resets.first if level.resets.unit == "token" else None


def empty(facts: Facts, t: Transfer) -> Diagnostic | None:
    match t.kind:
        case "init":
            return idle_init(facts, t)
        case "backprop":
            return idle_backprop(facts, t)
        case "condition":
            return idle_condition(facts, t)
        case _:
            return idle_generate(facts, t)


def nothing(t: Transfer, why: str, help: str = "take the line out") -> Diagnostic:
    return Diagnostic("NL302", f"this transfer carries nothing: {why}", t.span, help)


def idle_init(facts: Facts, t: Transfer) -> Diagnostic | None:
    assume = facts.system.assume
    a, b = t.source, t.target
    if a is b:
        return nothing(t, f"`{a.name}` is on both sides of it")
    if frequency(a.clock, assume).key > frequency(b.clock, assume).key:
        message = f"`{a.name}` ({a.clock}) is faster than `{b.name}` ({b.clock})"
        help = f"perhaps `transfer init {b.name} -> {a.name}`"
        return Diagnostic("NL303", f"a start is given by a slower level; {message}", t.span, help)
    states = [s for s in facts.states_of(b) if t.speaks_of(s)]
    if states and all(exact(s) for s in states):
        message = "`init` through `learn exact` is dead"
        help = "the solution does not depend on where it starts: take the line out"
        return Diagnostic("NL402", message, t.span, help)
    if not any(may_start(s) for s in states):
        return nothing(t, f"`{named(t)}` has no state that starts from `{a.name}`")
    return None


def idle_backprop(facts: Facts, t: Transfer) -> Diagnostic | None:
    b, a = t.source, t.target
    if a is b:
        return nothing(t, f"`{a.name}` is on both sides of it")
    if a.clock.unit == "never":
        help = f"write `transfer condition {a.name} -> {b.name}`"
        return nothing(t, f"`{a.name}` never learns, so no gradient passes back to it", help)
    keeps = any(facts.states_of(b)) or remembers(facts, b)
    uses = a.owner and bool(facts.weights_of.get(b.name))
    if keeps or uses or uses_states(facts, b, a):
        return None
    what = f"`{b.name}` keeps no state and no past, and uses nothing of `{a.name}`"
    return nothing(t, what)


def remembers(facts: Facts, level: Level) -> bool:
    boxes = facts.boxes_of[level.name]
    return any(t.op in ("past", "conv", "fade") for b in boxes for t in facts.box_terms[id(b)])


def uses_states(facts: Facts, level: Level, other: Level) -> bool:
    """Whether a body of the level names a state of the other, or is handed one."""
    for box in facts.boxes_of[level.name]:
        for term in facts.box_terms[id(box)]:
            if term.op in ("state", "apply", "copy") and term.info.box.level is other:
                return True
        if any(source.level is other for source in facts.handed.get(id(box), {}).values()):
            return True
    return False


def idle_condition(facts: Facts, t: Transfer) -> Diagnostic | None:
    a, b = t.source, t.target
    if "backprop" in facts.passes.get((b.name, a.name), set()):
        return nothing(t, f"`backprop {b.name} -> {a.name}` says as much, and passes the gradient")
    if (a.owner and facts.weights_of.get(b.name)) or uses_states(facts, b, a):
        return None
    return nothing(t, f"`{b.name}` uses no weight and no state of `{a.name}`")


def idle_generate(facts: Facts, t: Transfer) -> Diagnostic | None:
    for made in facts.makings:
        pair = made.source.level is t.source and made.level is t.target
        if pair and t.speaks_of(made.state):
            return None
    return nothing(t, f"no start, `write` or `set` of `{named(t)}` uses `{t.source.name}`")


def twice(facts: Facts) -> Iterator[Diagnostic]:
    """The same edge, with the same clauses, declared before."""
    seen: dict[tuple[object, ...], Transfer] = {}
    for t in facts.system.transfers:
        key = (
            t.kind,
            t.source.name,
            t.target.name,
            t.state,
            t.source_state,
            t.truncate,
            t.first_order,
        )
        before = seen.setdefault(key, t)
        if before is not t:
            line = before.span.line
            yield nothing(
                t, f"line {line} declares `{t.kind} {t.source.name} -> {named(t)}` already"
            )


# ---- states made from another level's ----


def nl306(facts: Facts) -> Iterator[Diagnostic]:
    """A start, `write` or `set` that uses another level's state or read says so (2.11.2)."""
    told: set[tuple[str, str, str]] = set()
    generated = [t for t in facts.system.transfers if t.kind == "generate"]
    pairs: dict[tuple[str, str], list[Transfer]] = defaultdict(list)
    for t in generated:
        pairs[t.source.name, t.target.name].append(t)
    for made in facts.makings:
        family = (made.level.family, made.state.path, made.source.level.family)
        lines = pairs.get((made.source.level.name, made.level.name), [])
        if any(t.speaks_of(made.state) for t in lines) or family in told:
            continue
        told.add(family)
        yield undeclared_source(facts, made)


def undeclared_source(facts: Facts, made: Making) -> Diagnostic:
    level = made.level
    whole = facts.family_size[level.family] > 1
    target = f"{level.family if whole else level.name}.{made.state.path}"
    line = f"transfer generate {made.source.text} -> {target}"
    message = f"state `{target}` is made from `{made.source.text}` and no transfer says so"
    span = facts.place(made.span, header(level.span))
    return Diagnostic("NL306", message, span, f"add `{line}`", fix=facts.add_transfer(line))


# ---- inputs to come ----


def nl305(facts: Facts) -> Iterator[Diagnostic]:
    """No answer at t depends on an input after t (2.10.2, 2.10.4)."""
    flow = facts.system.flow
    told: set[Span] = set()
    env: Taint = {}
    found = [*early(flow.lines, env), *below(flow.result, env)]
    for box in facts.system.boxes:
        found += in_body(facts, box)
    for span in found:
        if span not in told:
            told.add(span)
            where = "a flow" if flow.span.start <= span.start < flow.span.end else "a body"
            message = f"the answer at token t depends on token t+1 through `{span.text}` in {where}"
            place = facts.place(span, header(flow.span))
            yield Diagnostic("NL305", message, place, "only `loss` and objectives may use `next`")


def early(lines: tuple[Line, ...], env: Taint) -> Iterator[Span]:
    """What is handed to a box; `env` gathers which names hold inputs to come."""
    for line in lines:
        if isinstance(line, Assign):
            for term in distinct([line.value]):
                if term.op == "call":
                    for arg in term.args:
                        yield from below(arg, env)
            env[line.name] = frozenset(below(line.value, env))
        else:
            for _ in range(2):  # a loop hands its names on to the next round
                yield from early(line.lines, env)


def below(root: Term, env: Taint) -> Iterator[Span]:
    """Uses of `next` that a value depends on; those handed to a box are told by themselves."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        term = waiting.pop()
        if id(term) in seen or term.op == "call":
            continue
        seen.add(id(term))
        if term.op == "next":
            yield term.span
        elif term.op == "local":
            yield from env.get(term.info, ())
        waiting.extend(term.args)


def in_body(facts: Facts, box: Box) -> Iterator[Span]:
    """In a body all but the objective."""
    roots = [box.read] if box.read is not None else []
    for state in box.states:
        roots += [t for t in rule_terms(state.rule) if t is not state.rule.objective]
        roots += [state.start] if state.start is not None else []
    for term in facts.through_lines(box, roots):
        if term.op == "next":
            yield term.span
