"""Laws: they hold for shipped systems, each is broken by a compiler that breaks it, and a search
finds a small system that shows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nlc
from nlc.backends.ops import parts, recurrence
from nlc.backends.reference import stream
from nlc.backends.reference.gates import Transfers
from nlc.backends.runtime import Model, Stream, ahead
from nlc.backends.torch_source.bodies import Body
from nlc.driver import Spec
from nlc.files import CallError
from nlc.format import format_file
from nlc.system import Clock
from nlc.testing import laws
from nlc.text import Source
from nlc.verify import properties as P

SMALL = """nl 1
system small() {
  level training every step { objective loss; learn gradient(rate = 0.1) }
  level mixer(x) every token {
    state M : matrix(4, 4) per 1 = normal(0.5)
    k = unit(split(linear(x, 4), 1))
    v = split(linear(x, 4), 1)
    objective sum((M(k) - v)^2) / 2
    learn gradient(rate = 0.3)
    linearise every 2 tokens
    read join(M(k)) * cos(position) before write
  }
  transfer backprop mixer -> training
  flow(tokens) {
    x = embed(tokens, 5, 4)
    x += mixer(norm(x))
    logits = unembed(norm(x), 5)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }
}
"""


def small() -> Spec:
    return nlc.load(SMALL)


def hope() -> Spec:
    return nlc.load("hope", depth=1, width=4, heads=1, vocab=5, periods=[2, 3], chunk=2)


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("make", [small, hope], ids=["small", "hope"])
def test_a_law_holds(make: Any, law: laws.Law) -> None:
    law(make())


def test_all_laws_at_once() -> None:
    assert laws.check(small()) == {}
    laws.check(nlc.load("transformer", depth=1, width=4, heads=1, vocab=5))


CLOCKED = """nl 1
system clocked() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level fast(x) {clock} {{
    state M : matrix(3, 3)
    {rule}
    read  M(x)
  }}
  flow(x[3], y[3]) {{
    p = fast(linear(x, 3))
    loss = sum((p - {label})^2)
    return p
  }}
}}
"""
OWN, LOSS = "objective sum((M(x) - x)^2)", "objective loss"


def clocked(clock: str, objective: str = OWN, label: str = "y") -> Spec:
    """One memory on a clock, in a run of 17 ticks."""
    every, _, more = clock.partition("; ")
    rule = f"{more.replace('; ', chr(10))}\n{objective}\nlearn gradient(rate = 0.1)"
    return nlc.load(CLOCKED.format(clock=every, rule=rule, label=label))


CLOCKS = {
    "every 3 tokens; reset every 6 tokens": {3, 6, 9, 12, 15},
    # From a reset to the next there are as many ticks as to the first (2.6.2).
    "every 3 tokens; reset every 4 tokens from 6": {3, 6, 9, 12, 15},
    "every 4 tokens from 2": {2, 6, 10, 14},
    "every 3 tokens from 5": {5, 8, 11, 14, 17},  # the last is yet to come when the run is over
    "every 3 tokens from 1; reset every 6 tokens; partial drop": {1, 4, 7, 10, 13, 16},
    "every token from 3": set(range(3, 18)),
    # What is cut short fires at the reset (2.6.5).
    "every 2 tokens; reset every 5 tokens; partial flush": {2, 4, 5, 7, 9, 10, 12, 14, 15, 17},
    "every 3 tokens from 5; reset every 4 tokens; partial flush": {4, 8, 12, 16},
    "every 4 tokens from 2; reset every 7 tokens; partial flush": {2, 6, 7, 9, 13, 14, 16},
    "every token from 5; reset every 4 tokens; partial flush": {4, 8, 12, 16},
}


@pytest.mark.parametrize("clock", CLOCKS)
def test_clocks_with_phases_resets_and_flushes(clock: str) -> None:
    for spec in (clocked(clock), clocked(clock, LOSS), clocked(clock, LOSS, "next(y)")):
        assert laws.firings(spec.system.level("fast"), 17) == CLOCKS[clock]
        laws.fires_on_its_clock(spec)
        laws.fires_as_often_as_computed(spec)


@pytest.mark.parametrize("clock", ["every 2 tokens", "every 2 tokens; reset every 3 tokens"])
def test_calls_that_end_where_nothing_is_dropped(clock: str) -> None:
    """`partial drop` gives the end of a call a say in the numbers (2.6.5): no law forbids it."""
    spec = clocked(f"{clock}; partial drop")
    laws.streamed_equals_full(spec)
    laws.no_stale_read(spec)
    whole = P.ends(spec.system, 8)
    assert whole == ([2, 4, 6] if clock == "every 2 tokens" else [2, 3, 5, 6])
    assert P.ends(clocked("every 2 tokens").system, 4) == [1, 2, 3]


# ---- each law is broken by what breaks it --------------------------------------------------------


def broken(law: laws.Law, spec: Spec) -> str:
    with pytest.raises(laws.LawBroken) as raised:
        law(spec)
    return str(raised.value)


def test_a_read_after_its_own_write(monkeypatch: pytest.MonkeyPatch) -> None:
    read = recurrence.Span.read
    monkeypatch.setattr(recurrence.Span, "read", lambda self, q, before_write=False: read(self, q))
    assert "outputs == reference" in broken(laws.compiled_is_reference, small())


def test_a_position_counted_from_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = property(lambda self: torch.arange(self.time))
    monkeypatch.setattr(Stream, "ticks", ticks)
    assert "streamed == in one call" in broken(laws.streamed_equals_full, small())
    assert "tick" in broken(laws.no_stale_read, small())


def over(axis: int) -> Any:
    """A norm that takes its mean over one axis too many."""

    def norm(x: Tensor, gain: Tensor, *more: Any) -> Tensor:
        return x * (x.square().mean((axis, -1), keepdim=True) + 1e-6).rsqrt() * gain

    return norm


def test_a_norm_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "rms_norm", over(1))
    assert "later tokens" in broken(laws.no_write_from_the_future, small())


def test_a_norm_over_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "rms_norm", over(0))
    assert "another sample" in broken(laws.batch_independence, small())


WRONG = {
    "early": lambda fires, clock, t: fires(clock, t + 1),
    "late": lambda fires, clock, t: fires(clock, t - 1),
    "too often": lambda fires, clock, t: fires(clock, t) or t == 5,
    "too seldom": lambda fires, clock, t: fires(clock, t) and t != 6,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_reference_off_the_clock(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, fires = clocked("every 3 tokens"), Clock.fires
    monkeypatch.setattr(Clock, "fires", lambda self, t: WRONG[wrong](fires, self, t))
    if wrong != "too seldom":
        assert "is written at tick" in broken(laws.fires_on_its_clock, spec)
    if wrong.startswith("too"):
        said = "fires 4 times" if wrong == "too seldom" else "fires 6 times"
        assert said in broken(laws.fires_as_often_as_computed, spec)


def test_a_reference_that_forgets_to_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, reset = clocked("every 2 tokens; reset every 5 tokens; partial flush"), stream.reset

    def without(run: Any, level: Any, tick: int) -> None:
        for inst in stream.instances(run, level):
            inst.period = []
        reset(run, level, tick)

    monkeypatch.setattr(stream, "reset", without)
    said = broken(laws.fires_as_often_as_computed, spec)
    assert "fires 6 times" in said and "partial flush: 10 times" in said


@pytest.mark.parametrize("off", [1, -1])
def test_a_module_one_tick_off(off: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, periods = clocked("every 3 tokens"), Stream.periods
    monkeypatch.setattr(
        Stream, "periods", lambda self, period, first: periods(self, period, first + off)
    )
    assert "changes off the clock" in broken(laws.fires_on_its_clock, spec)


@pytest.mark.parametrize("label", ["y", "next(y)"])
def test_a_learner_one_tick_off(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a label is needed the firing is the first thing of the next tick, else the last of its
    own (2.7.3).
    """
    spec, due = clocked("every 3 tokens", LOSS, label), Model.due
    monkeypatch.setattr(Model, "due", lambda self, position: due(self, position + 1))
    monkeypatch.setattr(ahead, "until_firing", lambda model, position: 1)
    assert "changes off the clock" in broken(laws.fires_on_its_clock, spec)


def test_an_order_upside_down(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = hope()
    upside_down = spec.level_graph.levels[::-1]
    monkeypatch.setattr(type(spec.level_graph), "levels", property(lambda self: upside_down))
    assert "order" in broken(laws.fastest_first, spec)


def test_a_gate_that_is_not_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    laws.gradients_cross_where_declared(small())
    monkeypatch.setattr(Body, "open", property(lambda self: True))
    assert "backprop mixer -> training" in broken(laws.gradients_cross_where_declared, small())


def unlowered() -> Spec:
    text = SMALL.replace("    linearise every 2 tokens\n", "").replace(
        "every token", "every 2 tokens"
    )
    return nlc.load(text.replace("rate = 0.3)", "rate = 0.3, steps = 2)"))


def test_a_system_without_a_lowering_is_asked_what_the_reference_can_be() -> None:
    assert list(laws.check(unlowered())) == ["compiled_is_reference"]


def test_a_reference_whose_edge_opens_more_than_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_any_edge(self: Transfers, box: Any) -> Any:
        return lambda who: any(t.kind == "backprop" for t in self.system.transfers)

    monkeypatch.setattr(Transfers, "weights", with_any_edge)
    said = broken(laws.gradients_cross_where_declared, unlowered())
    assert "logits.unembed" in said and "keeps nothing of" in said


def test_a_gate_that_opens_by_a_start_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that lets a gradient into those levels alone that say where they start from."""
    line = "transfer backprop mixer -> training"
    spec = nlc.load(SMALL.replace(line, f"{line}\n  transfer init training -> mixer"))
    laws.gradients_cross_where_declared(spec)
    is_open = vars(Body)["open"].fget
    inits = property(
        lambda self: is_open(self) and any(t.kind == "init" for t in self.plan.system.transfers)
    )
    monkeypatch.setattr(Body, "open", inits)
    said = broken(laws.gradients_cross_where_declared, spec)
    assert "without init training -> mixer" in said


# ---- the search ----------------------------------------------------------------------------------


def test_a_counterexample_is_a_small_file(tmp_path: Path) -> None:
    """The smallest system that linearises has one level beside the one that trains it."""

    def plain(spec: Spec) -> None:
        assert "linearise" not in spec.text, "it linearises"

    found = laws.search(plain, examples=60)
    assert (
        isinstance(found, laws.Counterexample) and found.smallest and "it linearises" in found.said
    )
    assert found.text.count("level ") == 2 and found.text.count("linearise") == 1
    text = str(found)
    assert text.startswith("nl 1\n# breaks plain: it linearises\n")
    found.save(tmp_path / "found.nl")
    assert nlc.load(tmp_path / "found.nl").system.name == "random"
    assert format_file(Source("found.nl", found.text)) == found.text


def test_no_counterexample() -> None:
    found = laws.search(laws.fastest_first, examples=5)
    assert not found and isinstance(found, laws.Nothing)
    assert found.tried == 5 and not found.timed_out
    assert str(found) == "no counterexample to fastest_first in 5 systems"


def test_a_search_for_nothing_or_to_nowhere_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a search draws one system or more"):
        laws.search(laws.fastest_first, examples=0)
    found = laws.Counterexample("a_law", "it is broken", SMALL)
    with pytest.raises(CallError, match="no such file or directory"):
        found.save(tmp_path / "missing" / "found.nl")


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"kinds": ["nope"]}, ValueError, "kinds has 'nope', which is none of 'attention', 'ma"),
        ({"kinds": ()}, ValueError, r"kinds = \(\): one or more are needed, of 'attention'"),
        ({"kinds": "matrix"}, TypeError, "kinds = 'matrix': a tuple or list of names"),
        ({"kinds": [["matrix"]]}, ValueError, r"kinds has \['matrix'\], which is none of"),
        ({"themes": ["nope"]}, ValueError, "themes has 'nope', which is none of '', 'streams'"),
        ({"examples": "a"}, TypeError, "examples = 'a': a whole number"),
        ({"examples": 2.5}, TypeError, "examples = 2.5: a whole number"),
        ({"seconds": None}, TypeError, "seconds = None: a number"),
        ({"largest": 0}, ValueError, "largest = 0: a system has one level or more"),
    ],
)  # fmt: skip
def test_what_a_search_is_given_is_known_to_it(
    given: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        laws.search(laws.fastest_first, **given)


def test_kinds_and_themes_may_be_lists() -> None:
    found = laws.search(laws.fastest_first, 1, kinds=["matrix"], themes=["streams"])  # type: ignore[arg-type]
    assert isinstance(found, laws.Nothing)


def test_a_crash_is_a_counterexample() -> None:
    def crash(spec: Spec) -> None:
        raise KeyError("a name")

    found = laws.search(crash, examples=3)
    assert isinstance(found, laws.Counterexample) and found.said.startswith("KeyError")


def test_a_search_without_time_says_so() -> None:
    def fails(spec: Spec) -> None:
        raise laws.LawBroken("always")

    found = laws.search(fails, examples=3, seconds=0)
    assert not found and isinstance(found, laws.Nothing)
    assert found.timed_out and found.tried == 0
    assert "in 0 systems of 3: time was up" in str(found)
    seconds = iter([0.0, 0.0, 99.0, 99.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nlc.testing.search.time.monotonic", lambda: next(seconds))
        found = laws.search(fails, examples=3, seconds=10)
    assert isinstance(found, laws.Counterexample) and not found.smallest
    assert "give the search more seconds" in str(found)


def test_what_is_drawn_in_training_is_no_stale_read() -> None:
    """A model as it is compiled trains, and drops; what answers is held to what answers."""
    spec = nlc.load("""nl 1
system drawn(n = 3) {
  level training every step { objective loss; learn adamw(rate = 0.05) }
  level fast(x) every token {
    state     M : matrix(n, n)
    objective sum((M(x) - x)^2)
    learn     gradient(rate = 0.1)
    read      M(dropout(x, 0.5))
  }
  transfer backprop fast -> training
  flow(x[n]) {
    y = fast(linear(x, n))
    loss = sum((y - next(x))^2)
    return y
  }
}
""")
    laws.no_stale_read(spec)


BENT = """nl 1

memory network0_kept(q[n], k[n], v[m], a, b) {
  state M : layernorm(mlp(3, 3))
  o = unit(q) + q
  objective dot(M(k), stop(M(v)) - v)
  retain 1 - 0.3 * a
  learn dgd(rate = 0.2 * b)
  linearise every 1 tokens
  read M(o) * tanh(M(k))
}

system random() {
  level training every step {
    objective loss
    learn adamw(rate = 1e-3)
  }
  level network0(x) every token {
    q = split(silu(conv(linear(x, 6), 3)), 2)
    k = unit(split(silu(conv(linear(x, 6), 3)), 2))
    v = split(linear(x, 6), 2)
    y = join(network0_kept(q, k, v, sigmoid(linear(x, 2) + 2), sigmoid(linear(x, 2))))
    read y * linear(linear(y, 2), 6) + y
  }
  level matrix1(x) every token {
    state M : matrix(3, 3) per 2 = normal(0.3)
    q = tanh(split(silu(conv(linear(x, 6), 3)), 2))
    k = unit(split(silu(conv(linear(x, 6), 3)), 2))
    v = tanh(split(silu(conv(linear(x, 6), 3)), 2))
    b = sigmoid(linear(x, 2))
    objective sum(-sum(M(k) * v))
    learn gradient(rate = 0.5 * b)
    read join(M(q) * v + M(q))
  }
  level adapter2(x) every step {
    state A : matrix(6, 2) = normal(0.5)
    state B : matrix(2, 6) = normal(0.5)
    objective loss
    learn adamw(rate = 1e-3)
    read B(A(x))
  }
  transfer backprop network0 -> training, adapter2
  transfer backprop matrix1 -> training, adapter2 through 4 tokens
  transfer init training -> matrix1 through 4 tokens
  flow(tokens) {
    x = embed(tokens, 5, 6)
    x += network0(tanh(x))
    x += 0.5 * (matrix1(tanh(x)) + matrix1(x))
    x += adapter2(norm(x))
    logits = unembed(norm(x), 5)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }
}
"""


def test_rounding_is_no_broken_law() -> None:
    """A gradient of this one moves by some 1e-9 with the last bits of its weights."""
    spec = nlc.load(BENT)
    (edge,) = (t for t in spec.system.transfers if t.kind == "init")
    assert laws.init_crosses(spec, edge)
