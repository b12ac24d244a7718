"""Gradients: rules that lack a part (NL207, NL208), weights and states that get none (NL401,
NL403),
objectives that do not see their state (NL403, NL404).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..diagnostics import Diagnostic
from ..system import Box, Level, State, Term, Weight
from ..text import Span
from .facts import Facts, header
from .paths import FIRST_ORDER, FLAT, Paths, flat_args, gradient_args, names
from .starts import Start, Starts
from .terms import distinct, roots_of, rule_terms

# ---- parts that lack each other ----


def nl207(facts: Facts) -> Iterator[Diagnostic]:
    """An objective that no `learn` line follows."""
    learning, idle = set(), []
    for box, state in all_states(facts):
        objective = state.rule.objective
        if objective is not None and state.rule.learn:
            learning.add(objective.span)
        elif objective is not None and state.rule.write is None and state.rule.set is None:
            idle.append((box, state, objective.span))
    for box, state, span in idle:
        if span not in learning:
            message = f"`{state.name}` has an objective and no `learn` line that serves it"
            place = facts.place(span, header(box.span))
            yield Diagnostic("NL207", message, place, "add `learn gradient(rate = 0.01)`")
    owner = facts.system.owner
    if owner is not None and owner.clock.unit != "never" and facts.system.weights:
        yield from idle_owner(owner)


def idle_owner(owner: Level) -> Iterator[Diagnostic]:
    if owner.learn:
        return
    message = (
        f"`{owner.name}` owns the unnamed weights and has no `learn` line, so they never change"
    )
    span = owner.objective.span if owner.objective is not None else header(owner.span)
    help = "add `objective loss` and `learn adamw(rate = 4e-4)`; frozen ones stand on `never`"
    yield Diagnostic("NL207", message, span, help)


def nl208(facts: Facts) -> Iterator[Diagnostic]:
    """A `learn` line without an objective to follow."""
    following, idle = set(), []
    for box, state in all_states(facts):
        for learn in state.rule.learn.values():
            if state.rule.objective is not None:
                following.add(learn.span)
            else:
                idle.append((box, state, learn.span))
    for box, state, span in idle:
        if span not in following:
            message = f"`{state.name}` has a `learn` line and no objective to follow"
            place = facts.place(span, header(box.span))
            yield Diagnostic("NL208", message, place, "add `objective e`, or `objective loss`")
    owner = facts.system.owner
    if owner is not None and owner.learn and owner.objective is None and facts.system.weights:
        span = owner.learn[0].span
        if span not in following:
            message = f"`{owner.name}` has a `learn` line and no objective to follow"
            yield Diagnostic("NL208", message, span, "add `objective loss`")


def all_states(facts: Facts) -> Iterator[tuple[Box, State]]:
    for box in facts.all_boxes:
        for state in box.states:
            yield box, state


# ---- objectives and their states ----


def nl404(facts: Facts) -> Iterator[Diagnostic]:
    """The gradient is that of the state as the objective itself uses it (2.8.3): NL404 where it
    does
    not, NL403 where what it makes of it is flat.
    """
    for box, state in all_states(facts):
        objective = state.rule.objective
        if objective is None or not state.rule.learn or seen(objective, box, state):
            continue
        yield unseen(facts, box, state, objective)


def seen(objective: Term, box: Box, state: State) -> bool:
    """Whether a gradient reaches the state, or may by way of the model's loss."""
    waiting, known = [objective], set()
    while waiting:
        term = waiting.pop()
        if id(term) in known:
            continue
        known.add(id(term))
        if names(term, box, state) or term.op == "loss":
            return True
        if term.op != "stop":
            waiting += gradient_args(term)
    return False


def unseen(facts: Facts, box: Box, state: State, objective: Term) -> Diagnostic:
    name = state.name
    place = facts.place(objective.span, header(box.span))
    below = list(distinct([objective]))
    if any(names(t, box, state) for t in below):
        for term in below:
            if term.op in FLAT and any(names(t, box, state) for t in distinct(flat_args(term))):
                return flat(term, facts.place(term.span, place))
        message = f"this objective uses `{name}` only inside `stop`, so `{name}` has no gradient"
        return Diagnostic("NL404", message, place, f"name `{name}` outside `stop`")
    for term in below:
        if term.op == "local" and any(
            names(t, box, state) for t in facts.through_lines(box, [term])
        ):
            line = term.span.text if term.span.text.isidentifier() else term.info
            message = (
                f"this objective uses `{name}` only through the plain line `{line}`, which is a "
                f"constant to it, so `{name}` has no gradient"
            )
            return Diagnostic("NL404", message, place, f"name `{name}` in the objective")
    message = f"this objective does not use `{name}`, so `{name}` has no gradient"
    help = f"name `{name}` in it, or give `{name}` an objective of its own in braces"
    return Diagnostic("NL404", message, place, help)


def flat(term: Term, span: Span) -> Diagnostic:
    name = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}.get(term.op, term.op)
    smooth = {
        "sign": "use `smooth_sign`",
        "top": "multiply it by what it chooses: `g * top(g, k)`",
        "where": "a choice has no gradient; what it chooses from has one",
        "floor": "use the number itself",
    }
    what = f"the gradient of `{name}` is zero everywhere, so nothing learns through it"
    help = smooth.get(term.op, "use `sigmoid(a - b)` for a smooth comparison")
    return Diagnostic("NL403", what, span, help)


# ---- weights and states that no gradient reaches ----


def nl401(facts: Facts) -> Iterator[Diagnostic]:
    """A weight of the owner, or a state that learns the loss, that its objective does not reach."""
    owner = facts.system.owner
    if facts.system.flow.loss is None or not facts.system.levels:
        yield from no_loss(facts)
        return
    told: set[str] = set()
    yield from dead_states(facts, told)
    fed = Paths(facts, owner or facts.system.levels[0], feeding=True)  # what serves dead ends
    for name in told:
        serve(fed, facts.system.level(name))
    yield from dead_starts(facts, told, fed)
    if owner is not None and owner.learn and owner.objective is not None:
        yield from dead_weights(facts, owner, owner.objective, fed)


def no_loss(facts: Facts) -> Iterator[Diagnostic]:
    """NL308: an objective names `loss`, and the flow binds none."""
    spans = [
        l.objective.span for l in facts.system.levels if l.objective and uses_loss(l.objective)
    ]
    for box in facts.system.boxes:
        for state in box.states:
            if state.rule.uses_loss and state.rule.objective is not None:
                spans.append(facts.place(state.rule.objective.span, header(box.span)))
    if spans:
        message = "this objective names `loss`, and the flow binds none"
        yield Diagnostic("NL308", message, spans[0], "add a line `loss = e` to the flow")


def uses_loss(term: Term) -> bool:
    return any(t.op == "loss" for t in term.walk())


def dead_weights(facts: Facts, owner: Level, objective: Term, fed: Paths) -> Iterator[Diagnostic]:
    """One message a place; none for weights that only feed what has been told of."""
    reached = Paths(facts, owner).from_(objective)
    dead = [w for w in facts.system.weights if id(w) not in reached.weights]
    dead = [w for w in dead if passes_back(facts, owner, w)]
    if not dead:
        return
    told: set[tuple[str, Span]] = set()
    cut = reached.cut_off()
    opened = Paths(facts, owner, all_open=True).from_(objective).weights
    for weight in last_of(facts, dead, fed):
        diagnostic = unreached(facts, owner, weight, cut.get(id(weight)), opened)
        key = (diagnostic.code, diagnostic.span)
        if key not in told:
            told.add(key)
            yield diagnostic


def last_of(facts: Facts, dead: list[Weight], fed: Paths) -> list[Weight]:
    """Those that feed no other: what is made of the rest goes into these."""
    uses = facts.uses_of({id(w) for w in dead})
    kept: list[Weight] = []
    for weight in reversed(dead):
        if id(weight) not in fed.weights:
            kept.append(weight)
            for term, box in uses[id(weight)]:
                fed.from_(*term.args, box=box)
    return kept[::-1]


def passes_back(facts: Facts, owner: Level, weight: Weight) -> bool:
    """Whether the weight is meant to learn: not one that is fixed, or undeclared (NL301)."""
    level = facts.user_of.get(id(weight.box)) if weight.box is not None else None
    if level is None or level is owner:
        return True
    return "backprop" in facts.passes.get((level.name, owner.name), set())


def unreached(
    facts: Facts, owner: Level, weight: Weight, cut: Term | None, opened: Mapping[int, str]
) -> Diagnostic:
    span = facts.place(weight.span, *([header(weight.box.span)] if weight.box else []))
    if cut is not None:
        return flat(cut, facts.place(cut.span, span))
    what = line_of(span)
    family = opened.get(id(weight), "")
    if not family:
        message = f"`{what}` gets no gradient: nothing that it makes reaches the loss"
        return Diagnostic("NL401", message, span, "use what it makes, or take the line out")
    if family.endswith(FIRST_ORDER):
        level = family.removesuffix(FIRST_ORDER)
        line = f"transfer backprop {level} -> {owner.name}"
        return only_in_gradient(f"`{what}`", level, line, span)
    return through_closed(facts, f"`{what}`", family, owner, span)


def only_in_gradient(what: str, level: str, line: str, span: Span) -> Diagnostic:
    message = (
        f"{what} gets no gradient: it enters only the gradient of `{level}`, which `first order` "
        "takes as a constant"
    )
    return Diagnostic("NL401", message, span, f"take `first order` off `{line}`")


def through_closed(facts: Facts, what: str, family: str, learner: Level, span: Span) -> Diagnostic:
    line = f"transfer backprop {family} -> {learner.name}"
    message = (
        f"{what} gets no gradient: it reaches the loss only through the state of `{family}`, and "
        f"no `{line}` opens it"
    )
    return Diagnostic("NL401", message, span, f"add `{line}`", fix=facts.add_transfer(line))


def line_of(span: Span) -> str:
    """The line of text around a place, without its comment."""
    source = span.source
    text = source.line(span.line).split("#")[0]
    parts = [p.strip(" {}") for p in text.split(";")]
    return next((p for p in parts if span.text in p), span.text).strip()


def dead_states(facts: Facts, levels: set[str]) -> Iterator[Diagnostic]:
    """States that learn the model's loss, and whose reading does not enter it; `levels` gathers
    whose they are.
    """
    loss = facts.system.flow.loss
    assert loss is not None
    reached: dict[frozenset[tuple[str, bool]], Paths] = {}
    told: set[tuple[str, Span]] = set()
    for level in facts.system.levels:
        learners = [
            (b, s) for b in facts.boxes_of[level.name] for s in b.states if s.rule.uses_loss
        ]
        learners = [(b, s) for b, s in learners if s.rule.learn]
        if not learners:
            continue
        into = facts.backprop_into.get(level.name, [])
        opened = frozenset((t.source.name, t.first_order) for t in into)
        if opened not in reached:
            reached[opened] = Paths(facts, level).from_(loss)
        for box, state in learners:
            if (id(box), state.name) in reached[opened].states:
                continue
            levels.add(level.name)
            if (state.name, state.span) not in told:
                told.add((state.name, state.span))
                yield dead_state(facts, level, box, state)


def serve(fed: Paths, level: Level) -> None:
    """What the bodies of a level use, and what makes that."""
    for box in fed.facts.boxes_of[level.name]:
        fed.from_(*roots_of(box), box=box)


def dead_state(facts: Facts, level: Level, box: Box, state: State) -> Diagnostic:
    message = (
        f"`{state.name}` gets no gradient: nothing that `{level.name}` makes of it reaches the loss"
    )
    call = facts.calls.get(id(box))
    span = facts.place(state.span, header(level.span)) if call else header(level.span)
    return Diagnostic("NL401", message, span, f"use what `{level.name}` answers, or take it out")


# ---- starts that no gradient reaches (2.11.4) ----


def dead_starts(facts: Facts, told: set[str], fed: Paths) -> Iterator[Diagnostic]:
    """One message for those of a level that lack a gradient for one reason. `fed` gathers what
    serves only them: all of a level, if none of its starts is reached.
    """
    starts = Starts(facts)
    for dead in starts.dead(told):
        yield unstarted(facts, starts.why(dead[0]), dead)
        for start in dead:
            fed.from_(*rule_terms(start.state.rule), box=start.box)
        for level in {d.level.name: d.level for d in dead}.values():
            if len([d for d in dead if d.level is level]) == len(facts.states_of(level)):
                serve(fed, level)


def unstarted(facts: Facts, why: Term | str, dead: list[Start]) -> Diagnostic:
    start = dead[0]
    learner, level = start.learner.name, start.level
    span = facts.place(start.state.span, header(level.span))
    if isinstance(why, Term):
        return flat(why, facts.place(why.span, span))
    what = shown(dead)
    if why.endswith(FIRST_ORDER):
        name = why.removesuffix(FIRST_ORDER)
        return only_in_gradient(what, name, f"transfer init {learner} -> {name}", span)
    if why:
        return through_closed(facts, what, why, start.learner, span)
    message = f"{what} gets no gradient: nothing that `{level.name}` makes of it reaches the loss"
    help = f"use `{start.state.path}`, or leave it out of `transfer init {learner} -> ..`"
    return Diagnostic("NL401", message, span, help)


def shown(dead: list[Start]) -> str:
    first, *rest = dict.fromkeys(f"`{d.state.path}`" for d in dead)
    others = f" (and of {', '.join(rest)})" if rest else ""
    return f"the start of {first}{others} that `{dead[0].learner.name}` learns"
