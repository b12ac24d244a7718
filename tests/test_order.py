"""The order of levels: the assignments of arXiv:2512.24695, same-tick dependence, the laws of an
order, its speed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlc.diagnostics import InternalError
from nlc.driver import load
from nlc.levels import Frequency, LevelGraph, Rank, frequency, verify_levels, writes_at_call
from nlc.order import graph, order
from nlc.system import (
    Assign,
    Box,
    Clock,
    Flow,
    Form,
    Handle,
    Learn,
    Level,
    Line,
    Loop,
    Rule,
    State,
    System,
    Term,
    Transfer,
    Weight,
)

N = 4
LIKE = Form("like", (N, N))
ALWAYS, NEVER, STEP, TOKEN = Clock("always", 0), Clock("never", 0), Clock("step"), Clock("token")


# ---- systems by hand -----------------------------------------------------------------------------


def t(op: str, *args: Term, info: object = None) -> Term:
    return Term(op, args, (N,), info)


def name(of: str) -> Term:
    return t("local", info=of)


TOKENS = t("input", info="tokens")


def optimizer(
    kind: str, *states: str, uses: Sequence[str] = (), lines: tuple[Line, ...] = ()
) -> Box:
    """`uses`: the states in its write. A state is a dot-product memory of the gradient."""
    made = Box(f"{kind}", kind, "optimizer", None, lines=lines)
    grad = t("input", info="grad")
    made.states = tuple(
        State(s, LIKE, (), None, Rule(objective=grad, retain=t("const"))) for s in states
    )
    made.write = t("add", grad, *(t("state", info=Handle(made, s)) for s in uses or states))
    made.order = (*(f"state:{s}" for s in states), *(f"line:{i}" for i in range(len(lines))))
    return made


def learn(rule: Box) -> Learn:
    return Learn(rule.name, {}, {}, {(N, N): rule})


GRADIENT = optimizer("gradient")


def box(level: Level, loss: bool = False, before: bool = False, rule: Box = GRADIENT) -> Box:
    """A matrix that maps its input to itself, or learns the loss."""
    made = Box(f"{level.name}_{len(level.boxes)}", level.name, "level", level, (("x", (N,)),))
    handle, x = Handle(made, "M"), t("input", info="x")
    objective = t("loss") if loss else t("sub", t("apply", x, info=handle), x)
    made.states = (
        State("M", Form("matrix", (N, N)), (), None, Rule(objective, learn={"": learn(rule)})),
    )
    made.read = t("apply", x, info=handle)
    made.read_before = before
    level.boxes += (made,)
    return made


def exact(level: Level) -> Box:
    """Solved anew at each read."""
    made = Box(f"{level.name}_attend", "attend", "level", level, (("x", (N,)),))
    rule = Rule(t("input", info="x"), learn={"": Learn("exact", {}, {}, {})})
    made.states = (State("z", Form("vector", (N,)), (), None, rule),)
    made.read = t("state", info=Handle(made, "z"))
    level.boxes += (made,)
    return made


def training(clock: Clock = STEP, *learns: Learn) -> Level:
    return Level("training", "training", clock, owner=True, learn=learns)


def add(called: Box, value: Term | None = None) -> Assign:
    """`x += called(x)`"""
    given = name("x") if value is None else value
    return Assign("x", t("add", name("x"), t("call", given, info=called)))


def system(
    levels: Sequence[Level],
    lines: Sequence[Line] = (),
    transfers: Sequence[Transfer] = (),
    assume: int | None = None,
) -> System:
    weights = tuple(
        Weight(f"w{i}", (N, N), "matrices", "linear", "normal")
        for i in range(2)
        if any(l.owner for l in levels)
    )
    flow = Flow((("tokens", ()),), (Assign("x", TOKENS), *lines), name("x"), name("x"))
    boxes = tuple(b for l in levels for b in l.boxes)
    return System("made", {}, tuple(levels), flow, tuple(transfers), weights, boxes, assume)


def ranked(made: System) -> list[set[str]]:
    """Names of the components, slowest level first; the graph is proved on the way."""
    levels = order(made)
    verify_levels(levels)
    return [{c.name for c in rank.components} for rank in levels.levels]


def levels_on(*clocks: Clock) -> list[Level]:
    return [Level(f"l{i}", f"l{i}", clock) for i, clock in enumerate(clocks)]


# ---- the assignments of the paper ----------------------------------------------------------------


def test_gradient_descent_is_one_level() -> None:
    assert ranked(system([training(STEP, learn(GRADIENT))])) == [{"training"}]


def test_momentum_is_faster_than_its_weight() -> None:
    made = system([training(STEP, learn(optimizer("momentum", "m")))])
    assert ranked(made) == [{"training"}, {"training.momentum"}]
    assert order(made).uses == (("training.momentum", "training"),)


def test_moments_of_adam_share_a_level() -> None:
    levels = order(system([training(STEP, learn(optimizer("adam", "m", "h")))]))
    assert [r.name for r in levels.levels] == ["training", "training.adam"]
    assert [p.name for p in levels.levels[1].components[0].parts] == ["m", "h"]


def test_linear_attention_is_faster_than_its_projections() -> None:
    memory = Level("memory", "memory", TOKEN)
    made = system([training(STEP, learn(GRADIENT)), memory], [add(box(memory))])
    assert ranked(made) == [{"training"}, {"memory"}]
    momentum = learn(optimizer("momentum", "m"))
    made = replace(made, levels=(training(STEP, momentum), memory))
    assert ranked(made) == [{"training"}, {"training.momentum"}, {"memory"}]


def test_transformer_is_infinity_and_steps_or_zero() -> None:
    attention = Level("attention", "attention", ALWAYS)
    lines = [Loop(3, (add(exact(attention)),))]
    levels = order(system([training(), attention], lines))
    assert [str(r.frequency) for r in levels.levels] == [
        "1 per step",
        "infinite (solved at each read)",
    ]
    levels = order(system([training(NEVER), attention], lines))
    assert [str(r.frequency) for r in levels.levels] == [
        "0 (never)",
        "infinite (solved at each read)",
    ]


@pytest.mark.parametrize("assume", [None, 4096])
def test_continuum_memory_is_ordered_by_period(assume: int | None) -> None:
    cms = [Level(f"cms[{p}]", "cms", Clock("token", p)) for p in (16, 128, 1024)]
    made = system(
        [training(), *cms], [Loop(2, tuple(add(box(l, loss=True)) for l in cms))], assume=assume
    )
    assert ranked(made) == [{"training"}, {"cms[1024]"}, {"cms[128]"}, {"cms[16]"}]


def test_newton_schulz_is_innermost() -> None:
    rounds = Loop(5, (Assign("X", t("add", name("X"))),))
    muon = optimizer("muon", "m", lines=(Assign("X", t("const")), rounds))
    levels = order(system([training(STEP, learn(muon))]))
    assert [r.name for r in levels.levels] == [
        "training",
        "training.muon",
        "training.muon.5 rounds",
    ]
    assert str(levels.levels[-1].frequency) == "5 per step"


def test_a_slow_momentum_is_slower_than_the_weight() -> None:
    m3 = optimizer("m3", "fast", "h")
    slow = Box("slow", "slow", "level", None, clock=Clock("step", 8))
    slow.states = (State("m", LIKE, (), None, Rule(objective=t("input", info="grad"))),)
    m3.levels, m3.order = (slow,), ("state:fast", "state:h", "level:slow")
    assert ranked(system([training(STEP, learn(m3))])) == [
        {"training.m3.slow"},
        {"training"},
        {"training.m3"},
    ]


def test_a_step_inside_an_optimizer_is_a_firing_of_what_it_serves() -> None:
    rule = optimizer("m3", "fast")
    rule.levels = (Box("slow", "slow", "level", None, clock=Clock("step", 8)),)
    rule.levels[0].states = (State("m", LIKE, (), None, Rule(objective=t("const"))),)
    memory = Level("memory", "memory", Clock("token", 16, 4))
    levels = order(system([memory], [add(box(memory, loss=True, rule=rule))]))
    assert levels.component("memory.m3.slow").clock == Clock("token", 128, 4 + 7 * 16)


def test_a_state_that_another_uses_is_faster_inside_an_optimizer() -> None:
    rule = optimizer("two", "m", "h", uses=["h"])
    m = t("state", info=Handle(rule, "m"))
    rule.states = (rule.states[0], State("h", LIKE, (), None, Rule(objective=m)))
    assert ranked(system([training(STEP, learn(rule))])) == [
        {"training"},
        {"training.two.h"},
        {"training.two.m"},
    ]


# ---- the same tick -------------------------------------------------------------------------------


def test_a_new_state_that_enters_a_firing_is_faster() -> None:
    a, b = levels_on(TOKEN, TOKEN)
    assert ranked(system([a, b], [add(box(a)), add(box(b))])) == [{"l1"}, {"l0"}]


def test_a_read_before_the_write_orders_nothing() -> None:
    a, b = levels_on(TOKEN, TOKEN)
    assert ranked(system([a, b], [add(box(a, before=True)), add(box(b))])) == [{"l0", "l1"}]


def test_what_fires_at_the_end_of_the_tick_orders_nothing() -> None:
    a, b = levels_on(Clock("token", 16), Clock("token", 16))
    assert ranked(system([a, b], [add(box(a)), add(box(b))])) == [{"l0", "l1"}]


def test_the_loss_is_made_from_every_state_of_its_tick() -> None:
    a, b = levels_on(TOKEN, TOKEN)
    made = system([a, b], [add(box(b, loss=True)), add(box(a))])
    assert ranked(made) == [{"l1"}, {"l0"}]


def test_levels_that_feed_each_other_by_turns_share_a_level() -> None:
    a, b = levels_on(TOKEN, TOKEN)
    lines = (add(box(a)), add(box(b)))
    assert ranked(system([a, b], [Loop(3, lines)])) == [{"l0", "l1"}]
    assert ranked(system([a, b], [*lines, *lines])) == [{"l0", "l1"}]


def test_the_memory_of_each_rule_stays_above_its_weight_in_a_circle() -> None:
    a, b = levels_on(TOKEN, TOKEN)
    rule = optimizer("momentum", "m")
    lines = (add(box(a, rule=rule)), add(box(b, rule=rule)))
    assert ranked(system([a, b], [Loop(3, lines)])) == [
        {"l0", "l1"},
        {"l0.momentum", "l1.momentum"},
    ]
    assert ranked(system([a, b], lines)) == [{"l1"}, {"l1.momentum"}, {"l0"}, {"l0.momentum"}]


def test_a_round_that_only_later_rounds_hand_on() -> None:
    a, b = levels_on(TOKEN, TOKEN)
    shift = (
        Assign("r", name("q")),
        Assign("q", name("p")),
        Assign("p", t("call", name("x"), info=box(a))),
        Assign("y", t("call", name("r"), info=box(b))),
    )
    start = [Assign(n, t("const")) for n in "pqr"]
    assert ranked(system([a, b], [*start, Loop(2, shift)])) == [{"l0", "l1"}]
    assert ranked(system([a, b], [*start, Loop(3, shift)])) == [{"l1"}, {"l0"}]


def test_a_state_by_name_is_new_after_the_call() -> None:
    a, b = levels_on(TOKEN, TOKEN)
    inner = box(a)
    seen = Assign("s", t("apply", name("x"), info=Handle(inner, "M", foreign=True)))
    use = add(box(b), name("s"))
    assert ranked(system([a, b], [add(inner), seen, use])) == [{"l1"}, {"l0"}]
    assert ranked(system([a, b], [seen, use, add(inner, TOKENS)])) == [{"l0", "l1"}]


def test_exact_memories_are_infinite_on_any_clock() -> None:
    mixer = Level("mixer", "mixer", TOKEN)
    solved = exact(mixer)
    assert ranked(system([mixer], [add(solved)])) == [{"mixer.attend"}]
    levels = order(system([mixer], [add(solved), add(box(mixer))]))
    assert [r.name for r in levels.levels] == ["mixer", "mixer.attend"]
    assert levels.levels[1].frequency.unit == "always"


def test_who_writes_at_its_call() -> None:
    a, b = levels_on(TOKEN, Clock("token", 2))
    assert writes_at_call(box(a))
    assert not writes_at_call(box(a, loss=True))
    assert not writes_at_call(box(b))


# ---- frequencies ---------------------------------------------------------------------------------


def test_a_frequency_shows_its_unit() -> None:
    assert str(frequency(Clock("token", 16), 4096)) == "1/16 per token, 256 per sequence"
    assert str(frequency(Clock("sequence", 2), 4096)) == "1/2 per sequence"
    assert frequency(Clock("token", 3), 100).per_sequence == Fraction(100, 3)


def test_assume_makes_the_comparison_exact() -> None:
    tokens, sequences = levels_on(Clock("token", 8192), Clock("sequence"))
    lines = [add(box(tokens)), add(box(sequences))]
    assert ranked(system([tokens, sequences], lines)) == [{"l1"}, {"l0"}]
    assert ranked(system([tokens, sequences], lines, assume=4096)) == [{"l0"}, {"l1"}]
    assert ranked(system([tokens, sequences], lines, assume=8192)) == [{"l0", "l1"}]


def test_units_come_before_periods() -> None:
    clocks = [Clock("task"), Clock("step", 9), STEP, Clock("sequence", 9), Clock("token", 9), TOKEN]
    assert ranked(system(levels_on(NEVER, *clocks, ALWAYS))) == [{f"l{i}"} for i in range(8)]


# ---- what is kept, and what passes ---------------------------------------------------------------


def test_sizes_count_heads_copies_and_starts() -> None:
    memory = Level("memory", "memory", TOKEN)
    inner = box(memory)
    inner.states = (replace(inner.states[0], per=(4,)),)
    inner.loops, inner.mapped = (3,), (2,)
    outer = training(STEP, learn(optimizer("momentum", "m")))
    init = Transfer("init", outer, memory)
    levels = order(system([outer, memory], [add(inner)], [init]))
    (part,) = levels.component("memory").parts
    assert (part.numbers, part.heads, part.copies, part.total) == (16, 8, 3, 384)
    assert [(p.name, p.total) for p in levels.component("training").parts] == [
        ("matrices", 32),
        ("start of memory", 384),
    ]
    assert levels.component("training.momentum").numbers == 32 + 384


def test_edges_of_the_flow_are_the_short_ones() -> None:
    a, b, c = levels_on(*[Clock("token", p) for p in (1, 16, 128)])
    lines = (add(box(a)), add(box(b)), add(box(c)))
    flows = [
        (e.source, e.target, e.carried) for e in order(system([a, b, c], [Loop(2, lines)])).edges
    ]
    assert flows == [("l0", "l1", False), ("l1", "l2", False), ("l2", "l0", True)]


def test_transfers_and_gradients_are_edges() -> None:
    memory = Level("memory", "memory", TOKEN)
    outer = training(STEP, learn(optimizer("momentum", "m")))
    through = Transfer("backprop", memory, outer, truncate=512, first_order=True)
    levels = order(system([outer, memory], [add(box(memory))], [through]))
    assert [(e.kind, e.source, e.target, e.truncate, e.first_order) for e in levels.edges] == [
        ("backprop", "memory", "training", 512, True),
        ("gradient", "training", "training.momentum", None, False),
    ]
    made = graph(levels)
    assert list(made.nodes) == ["training", "training.momentum", "memory"]
    assert made.nodes["memory"]["rank"] == 3
    assert made.edges["memory", "training", 0]["truncate"] == 512


# ---- the laws of an order ------------------------------------------------------------------------

CLOCKS = st.one_of(
    st.sampled_from([TOKEN, TOKEN, ALWAYS, NEVER]),
    st.builds(Clock, st.sampled_from(["token", "sequence", "step"]), st.integers(1, 4)),
)


@st.composite
def systems(draw: st.DrawFn) -> System:
    levels = levels_on(*draw(st.lists(CLOCKS, min_size=1, max_size=6)))
    rules = [GRADIENT, optimizer("momentum", "m"), optimizer("adam", "m", "h")]
    boxes = [
        exact(l)
        if l.clock.unit == "always"
        else box(l, draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from(rules)))
        for l in levels
    ]
    names = st.sampled_from(["x", "y"])
    calls: list[Line] = [Assign("y", TOKENS)]
    for _ in range(draw(st.integers(0, 8))):
        value = t("call", name(draw(names)), info=draw(st.sampled_from(boxes)))
        calls.append(Assign(draw(names), t("add", name(draw(names)), value)))
    loop = draw(st.integers(1, 3))
    return system(
        levels,
        calls if loop == 1 else [calls[0], Loop(loop, tuple(calls[1:]))],
        assume=draw(st.sampled_from([None, 4])),
    )


def faster(levels: LevelGraph) -> set[tuple[str, str]]:
    """All pairs of the order: higher frequency, or a chain of uses."""
    cs = levels.components
    pairs = set(levels.uses)
    for middle in cs:
        up = {a for a, b in pairs if b == middle.name}
        down = {b for a, b in pairs if a == middle.name}
        pairs |= {(a, b) for a in up for b in down}
    return pairs | {(a.name, b.name) for a in cs for b in cs if a.frequency.key > b.frequency.key}


@settings(max_examples=100, deadline=None)
@given(systems())
def test_it_is_a_strict_partial_order_and_ranks_respect_it(made: System) -> None:
    levels = order(made)
    verify_levels(levels)
    pairs = faster(levels)
    assert not any((b, a) in pairs for a, b in pairs)
    assert all((a, d) in pairs for a, b in pairs for c, d in pairs if b == c)
    assert all(levels.rank(a) > levels.rank(b) for a, b in pairs)


@settings(max_examples=100, deadline=None)
@given(systems(), st.randoms(use_true_random=False))
def test_names_and_the_order_of_declarations_change_nothing(made: System, random: object) -> None:
    before = ranked(made)
    shuffled = list(made.levels)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert ranked(replace(made, levels=tuple(shuffled), boxes=made.boxes[::-1])) == before
    for level in made.levels:
        level.name = f"z{9 - int(level.name[1:])}"
    back = [{n.replace(n[:2], f"l{9 - int(n[1])}", 1) for n in names} for names in ranked(made)]
    assert back == before


def test_a_broken_graph_is_found() -> None:
    a, b = levels_on(TOKEN, TOKEN)
    levels = order(system([a, b], [add(box(a)), add(box(b))]))
    one = Rank(1, levels.components)
    for broken in (
        replace(levels, levels=(one,)),
        replace(levels, levels=levels.levels[::-1]),
        replace(levels, uses=()),
        replace(levels, uses=(("l1", "l0"),)),
    ):
        with pytest.raises(InternalError):
            verify_levels(broken)


# ---- speed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["chain", "side by side", "repeated"])
def test_a_thousand_levels_are_ordered(shape: str) -> None:
    many = levels_on(*[TOKEN] * 1000)
    given = TOKENS if shape == "side by side" else None
    lines = tuple(add(box(l), given) for l in many)
    made = system(many, [Loop(4, lines)] if shape == "repeated" else lines)
    levels = order(made)
    verify_levels(levels)
    assert len(levels.levels) == (1000 if shape == "chain" else 1)


def test_importing_is_light() -> None:
    heavy = "('torch', 'sympy', 'networkx', 'graphviz')"
    code = f"import sys, nlc.order; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_frequencies_of_equal_key_are_equal_whatever_their_unit() -> None:
    assert frequency(Clock("token", 4), 4).key == frequency(Clock("sequence"), 4).key
    assert Frequency(Fraction(1), "token").key > Frequency(Fraction(9), "sequence").key


# ---- shipped systems -----------------------------------------------------------------------------

SPECS = Path(__file__).parent.parent / "specs"
SYSTEMS = sorted(p.stem for p in SPECS.glob("*.nl") if "\nsystem " in p.read_text("utf-8"))


@pytest.mark.parametrize("spec", SYSTEMS)
def test_shipped_systems_are_ordered(spec: str) -> None:
    made = load(spec).system
    levels = order(made)
    verify_levels(levels)
    assert {c.level for c in levels.components} == {level.name for level in made.levels}


def test_hope() -> None:
    levels = order(load("hope").system)
    assert [(rank.name, str(rank.clock), str(rank.frequency)) for rank in levels.levels] == [
        ("training", "every step", "1 per step"),
        ("training.adamw", "every step", "1 per step"),
        ("cms[1024]", "every 1024 tokens", "1/1024 per token, 4 per sequence"),
        ("cms[128]", "every 128 tokens", "1/128 per token, 32 per sequence"),
        ("cms[16]", "every 16 tokens", "1/16 per token, 256 per sequence"),
        ("titans", "every token", "1 per token, 4096 per sequence"),
    ]


def test_muon_of_the_transformer_is_three_deep() -> None:
    names = [rank.name for rank in order(load("transformer").system).levels]
    assert names == [
        "training",
        "training.adamw, training.muon",
        "training.muon.5 rounds",
        "attention",
    ]
