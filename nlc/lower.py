"""STAGE: system, rules -> plan: the fastest exact algorithm for each box, or a diagnostic that says
which is missing.

What no lowering covers yet is NL701: the reference interpreter runs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from .affine import affine_writes, touched, values_of
from .array_rules import array_rules, one_solve
from .backward import Underivable
from .crossing import apart, check_edges, openness, trained_levels
from .derive import given_write, gradient, shrinkage, substitute, turned_read
from .diagnostics import Diagnostic
from .endings import ending, summed
from .foreign import names_others, reads_old, spans, through_lines
from .idle import idle
from .joint import is_joint, joint
from .lacking import NotLowered
from .pasts import attention, squares
from .plan import Lowering, Plan
from .rules import Gradient
from .system import (
    ALL,
    Box,
    Clock,
    Learn,
    Level,
    State,
    System,
    Term,
    line_terms,
)
from .windows import mixed, rows_of

# Operations that no generated code has yet.
UNLOWERED = {"fade", "across", "copy", "fresh"}


def lower(system: System) -> tuple[Plan | None, list[Diagnostic]]:
    """One lowering for each box; every box that has none is told."""
    told: list[Diagnostic] = []
    lowerings: dict[int, Lowering] = {}
    for box in system.boxes:
        try:
            rests = idle(system, box)
            lowerings[id(box)] = static(box, rests=True) if rests else lower_box(box)
        except NotLowered as error:
            if error.diagnostic not in told:
                told.append(error.diagnostic)
    learners = tuple(
        l
        for l in system.levels
        if any(
            lowerings.get(id(b)) and lowerings[id(b)].kind == "loss" for b in boxes_of(system, l)
        )
    )
    try:
        dropping = next((l for l in system.levels if l.partial == "drop"), None)
        if learners and dropping is not None and dropping.clock.period > 1:
            raise NotLowered("`partial drop` beside what learns the model's loss", dropping.span)
        check_owner(system)
        training = openness(system, trained_levels(system))
        inner = openness(system, learners)
        if any(is_joint(t, learners) for t in system.transfers):
            keep_derivatives(lowerings)
        for box in system.boxes:
            if id(box) in lowerings and apart(lowerings[id(box)], training):
                lowerings[id(box)] = taken_apart(box, lowerings[id(box)].gradients)
        check_edges(system, learners, training, inner, lowerings)
        check_flow(system)
        cut = spans(system, lowerings, learners, training.truncate)
        shared = joint(system, learners, lowerings, training) if not told else None
    except NotLowered as error:
        told.append(error.diagnostic)
        return None, told
    return (None if told else Plan(system, lowerings, learners, training, inner, cut, shared)), told


def boxes_of(system: System, level: Level) -> Iterator[Box]:
    """The boxes of a level, and those of the memories it calls."""
    return (b for b in system.boxes if b.level is level)


def check_owner(system: System) -> None:
    """Generated weights are one for all of a batch; on tokens each sequence has its own (2.4.3)."""
    owner = system.owner
    if owner is None or owner.clock.unit in ("step", "task", "never"):
        return
    weight = next((w for w in system.weights if owner.line_for(w) is not None), None)
    if weight is not None:
        raise NotLowered(
            f"a weight (`{weight.path}`) that `{owner.name}` learns {owner.clock}", weight.span
        )


# ---- terms --------------------------------------------------------------------------------------


def check_flow(system: System) -> None:
    roots = [*line_terms(system.flow.lines), system.flow.result]
    past = next((t for root in roots for t in root.walk() if t.op == "past"), None)
    if past is not None:
        raise NotLowered("`past` in a flow", past.span)
    for root in roots:
        check_terms(root, flow=True)


def check_terms(
    root: Term,
    flow: bool = False,
    box: Box | None = None,
    stream: bool = False,
    setting: bool = False,
) -> None:
    lines = {} if box is None else values_of(box)
    for t in root.walk():
        if t.op in UNLOWERED and not (stream and t.op == "across"):
            raise NotLowered(f"`{t.op}`", t.span)
        if t.op == "count" and not (setting or stream or box is not None and on_steps(box)):
            raise NotLowered("`count` outside a learning rule", t.span)
        if t.op == "past" and t.info.window == ALL:
            raise NotLowered("`past` of all ticks outside attention", t.span)
        if t.op == "past" and touched(t.args[0], lines):
            raise NotLowered("`past` of what a memory says", t.span)
        if t.op == "index" and len(t.args[0].shape) != 1:
            raise NotLowered("entries of an array of arrays, by an array,", t.span)
        if t.op == "next" and not flow:
            raise NotLowered("`next` in a level's own objective", t.span)


def on_steps(box: Box) -> bool:
    return box.level is not None and box.level.clock.unit in ("step", "task", "never")


def check_windows(box: Box, *parts: Term) -> None:
    """Windows that a body can run as rows (windows.py)."""
    roots = [*body_roots(box), *parts]
    lines = values_of(box)
    bad = mixed(roots, lambda t: touched(t, lines))
    if bad is not None:
        raise NotLowered("a window whose ticks are mixed before they are added up", bad.span)
    if any(t.op == "past" for root in roots for t in root.walk()):
        if any(s.per for s in box.states):
            raise NotLowered("a window beside `per heads`", box.span)


# ---- boxes
# -----------------------------------------------------------------------------------------


def lower_box(box: Box) -> Lowering:
    level = box.level
    assert level is not None
    check_clock(box, level)
    if not box.states:
        check_body(box)
        check_windows(box)
        return Lowering(box, "stateless", "no state of its own")
    if on_steps(box) or not any(s.rule.changes for s in box.states):
        return static(box)
    others = names_others(box)
    loss = any(s.rule.uses_loss for s in box.states)
    if others and (box.exact or loss):
        raise NotLowered(f"another box's state (`{others[0].name}`) in `{box.name}`", box.span)
    made = next((t for t in box.terms() if t.op == "state" and t.info.array is not None), None)
    if made is not None and not loss:
        raise NotLowered(f"a call of a network that is made of states, in `{box.name}`,", made.span)
    check_in_place(box)
    if box.exact:
        return solved_anew(box)
    if loss:
        return loss_box(box)
    return own_objective(box)


def check_in_place(box: Box) -> None:
    """What carries ticks on is a line of its box, but where it must see what no line does."""
    for term in (t for state in box.states for root in rule_terms(state) for t in root.walk()):
        if term.op in ("call", "conv"):
            what = "`conv`" if term.op == "conv" else f"a call of `{term.info.name}`"
            raise NotLowered(f"{what} of what `{box.name}` says, in its own rule,", term.span)


def solved_anew(box: Box) -> Lowering:
    """`learn exact`: a closed form of what its pasts hold."""
    state = box.states[0]
    for asked in (t for root in line_terms(box.lines) for t in root.walk()):
        if asked.op in ("state", "apply") and asked.info.box is box:
            what = f"a line of `{box.name}` that asks what `learn exact` finds"
            raise NotLowered(what, asked.span)
    softmax = attention(box, state) if len(box.states) == 1 else None
    if softmax is not None:
        beside = (softmax.beside.key, softmax.beside.value) if softmax.beside is not None else ()
        for term in (*line_terms(box.lines), softmax.query, softmax.key, softmax.value, *beside):
            check_terms(term, box=box)
        if softmax.weight is not None:
            check_windows(box, softmax.weight)
        why = "non-parametric: scaled-dot-product attention over the past (class vii)"
        return Lowering(box, "attention", why, attention=softmax)
    found = squares(box, state) if len(box.states) == 1 else None
    if found is None:
        raise NotLowered(
            f"`learn exact` of `{box.name}`, whose objective is neither a softmax over a past nor "
            "a sum of squares with a ridge,",
            state.span,
        )
    check_body(box)
    for term in (found.key, found.value, found.weight, found.keep, found.ridge):
        if term is not None:
            check_terms(term)
            if any(t.op in ("state", "apply") and t.info.box is box for t in term.walk()):
                raise NotLowered(f"`learn exact` of `{box.name}`, made of what it says", term.span)
    why = "the sums of all pairs, solved at each tick (class iii)"
    return Lowering(box, "squares", why, squares=found)


def check_clock(box: Box, level: Level) -> None:
    clock = level.clock
    loss = any(s.rule.uses_loss for s in box.states)
    own = level.reset
    late = clock.period == 1 and clock.first > 1 and box.states and not reads_old(box)
    if late and level.partial == "flush":  # a read sees what it wrote, and not what a flush wrote
        raise NotLowered(f"`partial flush` of `{level.name}` ({clock})", level.span)
    phased = clock.phase is not None and clock.unit == "token"
    if loss and (phased or clock.unit == "sequence"):
        raise NotLowered(f"the model's own loss, learned {clock} by `{level.name}`,", level.span)
    if clock.unit == "sequence" and box.exact:
        raise NotLowered(f"`learn exact` in `{level.name}`, {clock},", level.span)
    if clock.unit == "sequence" and level.resets.unit != "never":
        raise NotLowered(f"`reset {level.resets}` of `{level.name}`, {clock},", level.span)
    within = own is None or own.unit in ("token", "sequence")
    learns = any(s.rule.uses_loss for b in (box, *level.boxes) for s in b.states)
    drops = level.partial == "drop"  # at a reset it is dropped anyway; here, at the end of a call
    if drops and (clock.unit != "token" or learns) or level.partial == "flush" and not within:
        raise NotLowered(f"`partial {level.partial}` of `{level.name}`", level.span)
    if own is None or clock.unit not in ("token", "always") or own == Clock("sequence"):
        return
    if own.unit != "token" or not learns and any(b.mapped for b in level.boxes):
        raise NotLowered(f"`reset {own}` of `{level.name}`", level.span)


def check_body(box: Box) -> None:
    for root in body_roots(box):
        check_terms(root, box=box)


def body_roots(box: Box) -> list[Term]:
    return [*line_terms(box.lines), *([box.read] if box.read is not None else [])]


def static(box: Box, rests: bool = False) -> Lowering:
    """`rests`: its rules write nothing."""
    check_body(box)
    at = box.level.clock if box.level is not None else ""
    for s in box.states:
        own = s.rule.objective is not None and s.rule.objective.op != "loss"
        if s.rule.set is not None and not rests:
            follows(box, s)
        elif s.rule.set is not None or s.rule.write is not None or own and not rests:
            raise NotLowered(
                f"state `{s.name}` of a level on steps with a rule of its own",
                s.span,
            )
        elif s.start is not None and s.start.op not in ("zeros", "normal"):
            raise NotLowered(f"the start of `{s.name}`", s.span)
        if s.rule.through or s.rule.onto:
            raise NotLowered(f"`retain` of `{s.name}` {at}, with a link,", s.span)
    return Lowering(box, "static", "stands still while a stream runs")


def follows(box: Box, state: State) -> None:
    """A state on steps that is `set` from numbers and from what stands still in a stream, as it
    does itself.
    """
    assert state.rule.set is not None
    if state.start is not None and state.start.op not in ("zeros", "normal", "const", "copy"):
        raise NotLowered(f"the start of `{state.name}`", state.span)
    named = [t.info for t in through_lines(box, state.rule.set) if t.op == "state"]
    if state.start is not None and state.start.op == "copy":
        named.append(state.start.info)
    if any(h.box.level is None or h.box.level.clock.unit in ("token", "sequence") for h in named):
        raise NotLowered(f"`{state.name}`, which follows what each sequence has,", state.span)
    if box.mapped or any(h.box.mapped for h in named):
        raise NotLowered(f"`set` of `{state.name}`, one a head, on steps", state.span)


def loss_box(box: Box) -> Lowering:
    check_body(box)
    assert box.level is not None
    if box.linearise is not None and box.level.clock.period % box.linearise:
        raise NotLowered("`linearise` of what learns the model's own loss", box.span)
    for s in box.states:
        rule = s.rule
        start = s.start
        nothing = start is not None and start.op == "fresh" and start.args[0].op == "zeros"
        if start is not None and not nothing and start.op not in ("zeros", "normal"):
            raise NotLowered(f"the start of `{s.name}`", s.span)
        if rule.objective is None or rule.objective.op != "loss" or rule.through or rule.onto:
            raise NotLowered(
                f"`{s.name}` with the loss as a part of its objective, or with a link", s.span
            )
        for learn in rule.learn.values():
            if (
                learn.steps > 1
                or learn.streams
                or any(uses_examples(b) for b in learn.optimizers.values())
            ):
                raise NotLowered(f"`{learn.rule}` on the model's own loss", learn.span)
            constant_settings(learn, s)
        if rule.retain is not None and varies(rule.retain):
            raise NotLowered(f"a retention of `{s.name}` that changes with the tokens", s.span)
    return Lowering(
        box, "loss", "learns the model's own loss at a token clock: constant between its firings"
    )


def constant_settings(learn: Learn, state: State) -> None:
    for term in learn.settings.values():
        if varies(term):
            raise NotLowered(f"a rate of `{state.name}` that changes with the tokens", learn.span)


def varies(term: Term) -> bool:
    return any(
        t.op in ("input", "local", "apply", "call", "state", "position", "past", "conv")
        for t in term.walk()
    )


def uses_examples(rule: Box) -> bool:
    return any(t.op == "input" and t.info in ("input", "surprise") for t in rule.terms())


# ---- own objectives
# -----------------------------------------------------------------------------------


def own_objective(box: Box) -> Lowering:
    """In the dual form if the rule has one; else as the recurrence stands."""
    assert box.level is not None
    check_body(box)
    terms = [t for state in box.states for t in rule_terms(state)]
    settings = [t for s in box.states for l in s.rule.learn.values() for t in l.settings.values()]
    for term in terms:
        check_terms(term, box=box, setting=any(term is t for t in settings))
    for stream in (
        t for s in box.states for l in s.rule.learn.values() for t in l.streams.values()
    ):
        check_terms(stream, box=box, stream=True)
    check_windows(box, *terms)
    check_counts(box)
    clock = box.level.clock
    if clock.unit == "sequence":
        return at_the_end(box)
    if clock.period > 1 or clock.phase is not None:
        why = f"gradients summed over {clock.period} tokens at the state that stands (class v)"
        if clock.period == 1:
            why = f"tick by tick from the sum of the first {clock.first} on (class iv-d)"
        return at_firings(box, why)
    if names_others(box):
        return at_firings(box, "tick by tick: it names another box's state (class iv-d)")
    if any(t.op == "count" for term in settings for t in term.walk()):
        return at_firings(box, "tick by tick: a rate that counts its firings (class iv-d)")
    try:
        return in_dual_form(box)
    except NotLowered as error:
        return at_firings(box, f"tick by tick: {error} has no parallel form (class iv-d)")


def check_counts(box: Box) -> None:
    """A line counts the level's firings, a rule its own steps (2.9.4, 2.9.6)."""
    for learn in (l for s in box.states for l in s.rule.learn.values() if l.steps > 1):
        given = (*learn.settings.values(), *learn.streams.values())
        if any(t.op == "count" for term in given for t in term.walk()):
            raise NotLowered(f"`count` in a line of `steps = {learn.steps}`", learn.span)


def rule_terms(state: State) -> Iterator[Term]:
    """What a state's rule is made of, its settings and links too."""
    rule = state.rule
    yield from (t for t in (rule.objective, rule.retain, rule.write, rule.set) if t is not None)
    for links in (rule.through, rule.onto):
        yield from (link.body for link in (links or {}).values())
    for learn in rule.learn.values():
        yield from learn.settings.values()


def in_dual_form(box: Box) -> Lowering:
    changing = [s for s in box.states if s.rule.changes]
    table = next((s for s in changing if s.form.core.kind == "table"), None)
    if table is not None:
        raise NotLowered(f"a row of `{table.name}`", table.span)
    gradients = {s.name: derived(box, s) for s in changing}
    if box.linearise is None:
        return exactly(box, changing, gradients)
    if box.linearise == 1:  # the recurrence itself (2.9.7): frozen, it would go tick by tick
        try:
            linked = next((s for s in changing if s.rule.through), None)
            if linked is not None:
                raise NotLowered(f"`retain .. through` of `{linked.name}`", linked.span)
            return exactly(box, changing, gradients)
        except NotLowered:
            if calls_twice(gradients):
                raise
    return frozen(box, gradients)


def frozen(box: Box, gradients: Mapping[str, Gradient]) -> Lowering:
    changing = [s for s in box.states if s.rule.changes]
    arrays = tuple(r for s in changing for r in array_rules(box, s, gradients[s.name], True))
    why = f"gradients at the start of every {box.linearise} tokens, in dual form (class iv)"
    if any(s.rule.through for s in changing):
        why += ", the link on each read (class vi)"
    return Lowering(box, "frozen", why, arrays=arrays, gradients=gradients)


def keep_derivatives(lowerings: dict[int, Lowering]) -> None:
    """What is solved has no second derivative; gradients at the start of every token have."""
    for key, found in lowerings.items():
        if found.kind == "solved" and found.box.linearise == 1:
            lowerings[key] = frozen(found.box, found.gradients)


def exactly(box: Box, changing: list[State], gradients: Mapping[str, Gradient]) -> Lowering:
    """Each write from the state that the one before it left."""
    once_a_tick(box, changing)
    rule = one_solve(box, gradients)
    if rule is not None:
        reads = rule.error is not None and rule.error.factor is not None
        why = "one triangular solve a chunk (class ii)"
        if not reads:
            why = "the write does not read the state (class i)"
        return Lowering(box, "recurrence", why, arrays=(rule,), gradients=gradients)
    return by_rounds(box, gradients)


def by_rounds(box: Box, gradients: Mapping[str, Gradient], one_by_one: bool = False) -> Lowering:
    """`one_by_one`: gradients pass through writes in other ways than through what they read."""
    changing = [s for s in box.states if s.rule.changes]
    arrays = tuple(r for s in changing for r in array_rules(box, s, gradients[s.name], False))
    lines = values_of(box)
    for r in arrays:
        if r.rule.momentum is not None and touched(substitute(r.rule.momentum, r.settings), lines):
            span = box.state(r.state).span
            raise NotLowered(f"a momentum of `{r.state}` that states make", span)
    why = "each write from those before it, by Picard iteration in dual form (class iv, exact)"
    writes = () if one_by_one else affine_writes(box, arrays)
    if writes:
        why = "all writes of a chunk from one triangular solve (class ii)"
    return Lowering(box, "solved", why, arrays=arrays, gradients=gradients, writes=writes)


def taken_apart(box: Box, gradients: Mapping[str, Gradient]) -> Lowering:
    """Where gradients pass through what is kept, and not through what is written."""
    if any(g.direct for g in gradients.values()):
        why = "tick by tick: a ridge whose gradient is a constant has no parallel form"
        return at_firings(box, f"{why} (class iv-d)")
    return by_rounds(box, gradients, one_by_one=True)


def calls_twice(gradients: Mapping[str, Gradient]) -> bool:
    """Whether an objective calls some array of its state more than once. Frozen gradients are of
    one call; those at the start of every single token are exact ones (2.9.7).
    """
    found = (Counter(e.array for e in g.examples) for g in gradients.values())
    return any(n > 1 for counts in found for n in counts.values())


def once_a_tick(box: Box, changing: list[State]) -> None:
    """A memory that is called by a line moves on: the line cannot be made again in every round."""
    lines = values_of(box)
    for root in (root for state in changing for root in rule_terms(state)):
        for term in through_lines(box, root):
            if term.op == "call" and touched(term, lines):
                raise NotLowered("a memory called with what another says", term.span)


def at_firings(box: Box, why: str) -> Lowering:
    """Any optimizer and any state; the gradient is taken at the state that stands."""
    level = box.level
    assert level is not None
    if box.linearise is not None and (level.clock.period > 1 or level.clock.phase is not None):
        raise NotLowered(f"`linearise` of `{box.name}` {level.clock}", box.span)
    gradients = {}
    if any(l.rule == "implicit" for s in box.states for l in s.rule.learn.values()):
        why = f"tick by tick, an implicit step by Newton's method ({why.rpartition('(')[2]}"
    for state in box.states:
        rule = state.rule
        check_start(box, state)
        if rule.after_retain and max(level.clock.period, level.clock.first) > 1:
            raise NotLowered(f"`after retain` of `{state.name}` {level.clock}", state.span)
        if rule.objective is None:
            continue
        try:
            gradients[state.name] = gradient(box, state)
        except Underivable as error:
            why += f"; the gradient of `{state.name}` is autograd's: {error}"
        for array in state.form.arrays:
            fires_with(box, state, array.name, gradients.get(state.name))
    return Lowering(box, "fired", why, gradients=gradients)


def at_the_end(box: Box) -> Lowering:
    """A box on sequences: any optimizer, from sums and from what the last tick saw."""
    level = box.level
    assert level is not None
    if names_others(box) or box.linearise is not None:
        raise NotLowered(f"another box's state, or `linearise`, in `{box.name}`", box.span)
    ending(box)
    why = f"at the end of a sequence, at the state that stood (class v, {level.clock})"
    made = at_firings(box, why)
    for state in box.states:
        for learn in state.rule.learn.values():
            terms = [
                *learn.streams.values(),
                *(t for b in learn.optimizers.values() for t in b.terms()),
            ]
            examples = any(is_example(t) for root in terms for t in root.walk())
            if learn.rule == "implicit" or summed(state) and (learn.steps > 1 or examples):
                raise NotLowered(f"`{learn.rule}` on all ticks of a sequence", learn.span)
        if state.rule.after_retain and summed(state):
            raise NotLowered(f"`after retain` of `{state.name}` {level.clock}", state.span)
    return replace(made, kind="slept")


def fires_with(box: Box, state: State, array: str, found: Gradient | None) -> None:
    learn = state.rule.learn.get(array)
    clock = box.level.clock if box.level is not None else None
    several = clock is not None and max(clock.period, clock.first) > 1
    waits = clock is not None and clock.unit == "token" and several and not state.rule.once
    if learn is not None and waits and (learn.rule == "implicit" or learn.steps > 1):
        assert clock is not None
        many = "" if learn.rule == "implicit" else f" with `steps = {learn.steps}`"
        help = f"an objective of `past(.., {clock.period})` that ends with `once` is compiled"
        help += "; `nlc.reference` runs any, token by token"
        raise NotLowered(f"`{learn.rule}`{many} {clock}", learn.span, help)
    if learn is not None and learn.rule == "implicit":
        return
    if learn is None or not learn.optimizers:
        raise NotLowered(
            f"the learning rule of `{state.name}`", learn.span if learn else state.span
        )
    if any(s not in ("weight", "grad", "input", "surprise") for s in learn.streams):
        raise NotLowered(f"a stream given to `{learn.rule}`", learn.span)
    terms = [*(t for b in learn.optimizers.values() for t in b.terms())]
    terms += [t for stream in learn.streams.values() for t in stream.walk()]
    if not any(map(is_example, terms)):
        return
    if found is None or state.form.kind == "vector":
        raise NotLowered(f"`{learn.rule}`, which asks for its examples, here", learn.span)
    windows = any(rows_of(e.input) for e in found.examples if e.array == array)
    if windows and not all(map(adds_rows_up, terms)):
        raise NotLowered(f"`{learn.rule}` on the examples of a window", learn.span)


def is_example(term: Term) -> bool:
    return term.op == "input" and term.info in ("input", "surprise")


def adds_rows_up(term: Term) -> bool:
    """Whether its arguments meet examples in `transpose(a) @ b` alone, to which rows of nought (a
    window that is not yet full) add nothing.
    """
    alone = any(is_example(a) or turned(a) for a in term.args)
    sums = term.op == "matmul" and turned(term.args[0]) and is_example(term.args[1])
    return sums or turned(term) or not alone


def turned(term: Term) -> bool:
    return term.op == "transpose" and is_example(term.args[0])


def derived(box: Box, state: State) -> Gradient:
    rule = state.rule
    if rule.set is not None:
        raise NotLowered(f"`set` of `{state.name}` at every token", state.span)
    if rule.onto or rule.through and not plain_link(box, state):
        raise NotLowered(f"`retain .. through` and `onto` of `{state.name}`", state.span)
    if rule.once:
        raise NotLowered("`once`", state.span)
    check_start(box, state)
    what = rule.write if rule.write is not None else rule.objective
    if what is None:
        raise NotLowered(f"`{state.name}`, which nothing is written to,", state.span)
    if state.form.kind == "vector" and (rule.write is not None or state.per):
        raise NotLowered(f"a vector `{state.name}` that is written", state.span)
    ridge = () if rule.objective is None or state.form.kind != "matrix" else (state.name,)
    gates = [t for learn in rule.learn.values() for t in learn.settings.values()]
    gates += [rule.retain] if rule.retain is not None else []
    named = [
        *(t for root in (*line_terms(box.lines), *gates) for t in arrays_in(root, box)),
        *(arrays_in(box.read, box, turned=True) if box.read is not None else ()),
        *(t for t in arrays_in(what, box) if t.info.name not in ridge),
    ]
    if named:
        raise NotLowered(f"a state of `{box.name}` as an array", named[0].span)
    try:
        if what is rule.write:
            return given_write(box, state)
        found = gradient(box, state)
        if any(t.op == "array" for e in found.examples for t in e.surprise.walk()):
            raise NotLowered(f"a state of `{box.name}` as an array", state.span)
        if state.form.kind == "matrix" and shrinkage(found) is not None and not found.examples:
            raise NotLowered(f"a ridge of `{state.name}` alone", state.span)
        return found
    except Underivable as error:
        told = "the gradient" if what is rule.objective else "the write"
        raise NotLowered(f"{told} of `{state.name}` ({error})", state.span) from None


def arrays_in(root: Term, box: Box, turned: bool = False) -> list[Term]:
    """The box's states that a term has as arrays, vectors aside; `turned`: but for the `M` of
    `x @ M`, which is M' x.
    """
    found, seen, stack = [], set(), [root]
    while stack:
        t = stack.pop()
        if id(t) in seen:
            continue
        seen.add(id(t))
        own = t.op == "state" and t.info.box is box
        if own and t.info.state.form.kind != "vector":
            found.append(t)
        stack.extend(t.args[:1] if turned and turned_read(t, box) else t.args)
    return found


def check_start(box: Box, state: State) -> None:
    """Drawn once with the model, or made at the first tick after a reset (2.3.4)."""
    start = state.start
    if start is not None and start.op == "fresh":
        start = start.args[0]
    if start is None or start.op in ("zeros", "normal", "const") or start.op == "copy":
        return
    lines = values_of(box)
    moves = any(t.op in ("call", "conv", "past") for t in start.walk())
    own = any(t.op in ("state", "apply") and t.info.box is box for t in start.walk())
    through = any(t.op == "local" and touched(lines[str(t.info)], lines) for t in start.walk())
    if moves or own or through or not state.form.single or state.rule.through:
        raise NotLowered(f"the start of `{state.name}`", state.span)
    check_terms(start, box=box)


def plain_link(box: Box, state: State) -> bool:
    """Whether a dual is read at the start of every chunk, by a function of it alone."""
    links = (state.rule.through or {}).values()
    return (
        box.linearise is not None
        and (not state.per or len({s.per for s in box.states}) == 1)
        and state.form.kind != "vector"
        and all(t.args or t.op in ("const", "argument") for l in links for t in l.body.walk())
        and not any(t.op == "argument" and t.info == "start" for l in links for t in l.body.walk())
    )
