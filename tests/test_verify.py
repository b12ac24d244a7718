"""The certificate: each property fails where it must, and the command says so."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from shipped import SPECS
from test_cli import GOOD, MISSPELT
from torch import Tensor

import nlc
from nlc import cli
from nlc.backends.ops import recurrence
from nlc.backends.reference import Reference
from nlc.backends.runtime import Model
from nlc.diagnostics import Diagnostic
from nlc.driver import Spec, SpecError
from nlc.system import Clock
from nlc.verify import Options, Verifier, headed, number, told, verify, within
from nlc.verify import properties as P
from nlc.verify.properties import LongRun, Measured
from nlc.verify.rounding import comparable, judged
from nlc.verify.streams import farthest, gradients, random_streams, run_of, truth_of, vocabularies

SMALL: dict[str, Any] = {"vocab": 19, "width": 8, "depth": 1, "heads": 2}
FAST = Options(tokens=5, long=0)


@cache
def small() -> Verifier:
    return Verifier(nlc.load("deltanet", **SMALL), FAST)


def changed(shift: float) -> Model:
    """The module with one weight that is a little off."""
    model = small().module(torch.float64)
    with torch.no_grad():
        next(p for n, p in model.named_weights() if "beta" in n).add_(shift)
    return model


# ---- each property has teeth ---------------------------------------------------------------------


def test_a_weight_that_is_off_is_seen() -> None:
    x, truth = small().streams, small().truth
    for measure in (P.same_outputs, P.same_losses, P.same_gradients):
        assert measure(changed(0.0), x, truth).holds
        assert 1e-7 < measure(changed(1e-5), x, truth).value < 1e-1
    reference = Reference(small().system, small().model.state_dict())
    for handed in (P.handed_over, P.gradients_handed_over):
        assert handed(changed(0.0), reference, x, 2).holds
        assert not handed(changed(1e-5), reference, x, 2).holds


def test_a_second_call_begins_within_a_period_and_where_one_ends() -> None:
    """Where what is handed on is a sum, and what was made of it; a state that still carries the
    gradient to the first call is seen.
    """
    slow = Verifier(nlc.load("hope", **SMALL, chunk=2, periods=[4]), Options(tokens=9, long=0))
    assert P.second_calls(slow.system, 9) == [(3, False), (4, False), (4, True)]
    assert P.second_calls(small().system, 9) == [(4, False)]
    found = slow.second_call()
    assert found.name == "gradients of a second call == reference" and found.holds

    class Kept(Wrapped):
        """A state that `detach` leaves as it is."""

        training = True

        def __getattr__(self, name: str) -> Any:
            return getattr(self.model, name)

        def __call__(self, *streams: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            y, after = self.model(*streams, state=state)
            after.detach = lambda: after
            return y, after

    kept: Any = Kept(lambda y: y)
    assert not P.gradients_handed_over(kept, small().reference, small().streams, 2).holds


def test_a_gradient_of_one_array_is_seen() -> None:
    truth = small().truth
    name = "layers.0.mixer.beta.linear"
    off = {**truth.gradients, name: truth.gradients[name] * (1 + 1e-6)}
    found = P.same_gradients(small().model, small().streams, replace(truth, gradients=off))
    assert found.at == name and found.value == pytest.approx(1e-6, rel=1e-3)


def test_what_is_no_number_is_not_forgotten_for_the_next_array() -> None:
    one, nan = torch.ones(2), torch.full((2,), math.nan)
    off, where = farthest({"a": nan, "b": one}, {"a": one, "b": one})
    assert math.isnan(off) and where == "a"
    truth = small().truth
    first, *rest = truth.gradients
    off_at = {**truth.gradients, first: truth.gradients[first] * math.nan}
    assert (
        rest
        and not P.same_gradients(
            small().model, small().streams, replace(truth, gradients=off_at)
        ).holds
    )


def forgets(streams: tuple[Tensor, ...], state: Any) -> tuple[Tensor, None]:
    """A run whose calls do not know of each other."""
    return streams[0].double().cumsum(1), None


def looks_ahead(streams: tuple[Tensor, ...], state: Any) -> tuple[Tensor, None]:
    return streams[0].double().flip(1).cumsum(1).flip(1), None


def mixes(streams: tuple[Tensor, ...], state: Any) -> tuple[Tensor, None]:
    return streams[0].double() + streams[0].double().mean(0), None


def answers_nothing(streams: tuple[Tensor, ...], state: Any) -> tuple[Tensor, None]:
    return torch.zeros(streams[0].shape), None


def test_runs_that_break_a_property_are_seen() -> None:
    system, x = small().system, random_streams(small().system, 3, 9)
    assert not P.streamed(forgets, system, x).holds
    assert not P.random_splits(forgets, system, x).holds
    assert P.later_tokens(forgets, system, x).holds
    assert not P.later_tokens(looks_ahead, system, x).holds
    assert not P.other_samples(mixes, system, x).holds
    for nothing in (P.later_tokens, P.other_samples):
        found = nothing(answers_nothing, system, x)
        assert found.value == 0 and not found.holds, "nothing depends on what was changed"


LATE = """nl 1
system t(width = 2) {
  level slow(x) every 2 tokens { state S : matrix(width, width); write outer(x, x); read x }
  level fast(x) every 2 tokens {
    reset every 4 tokens
    state M : matrix(width, width)
    write 0.1 * slow.S
    retain 0.9
    read M(RANGE)
  }
  transfer generate slow -> fast.M
  flow(x[width]) { a = slow(x); return fast(x) }
}
"""


@pytest.mark.parametrize("asked", ["x", "range(width)"])
def test_an_answer_may_depend_on_earlier_firings_alone(asked: str) -> None:
    """Of some tokens, or of all: no token has to change the answer at its own tick."""
    found = verify(nlc.load(LATE.replace("RANGE", asked)), Options(tokens=9, long=0))
    moved = ("change by later tokens", "Jacobian to later tokens")
    named = {m.name: m for m in found.measured}
    assert all(named[n].holds and 0 < named[n].contrast < math.inf for n in moved)


class Wrapped:
    """A module whose answers are changed."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.model, self.change = small().model, change

    def __call__(self, *streams: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, after = self.model(*streams, state=state)
        return self.change(y), after

    def named_weights(self) -> Any:
        return self.model.named_weights()


def test_a_gradient_to_a_later_token_is_seen() -> None:
    def jacobian(change: Callable[[Tensor], Tensor]) -> Measured:
        model: Any = Wrapped(change)
        return P.jacobian(model, small().system, 9)

    assert jacobian(lambda y: y).holds
    assert not jacobian(lambda y: y + 1e-12 * y.mean(1, keepdim=True)).holds
    assert jacobian(lambda y: y.detach() + 0 * y).contrast == 0


def test_a_state_that_carries_no_gradient_is_seen() -> None:
    class Cut(Wrapped):
        def __call__(self, *streams: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            y, after = super().__call__(*streams, state=state)
            return y, after.detach()

    whole: Any = Wrapped(lambda y: y)
    cut: Any = Cut(lambda y: y)
    assert P.gradients_across_calls(whole, small().system, small().streams).holds
    assert not P.gradients_across_calls(cut, small().system, small().streams).holds


UNUSED = """nl 1
system unused(n = 4, on = 0) {
  level training every step { objective loss; learn adam(rate = 1e-3) }
  flow(x[n], y[n]) {
    z = linear(x, n)
    z += on * linear(x, n)
    loss = sum((z - y)^2)
    return z
  }
}
"""


def test_chunks_that_are_off_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tokens never enter the algorithm of long calls; that too is measured."""
    scanned = recurrence._scanned

    def off(*given: Any) -> tuple[Tensor, Tensor]:
        answers, end = scanned(*given)
        return answers * (1 + 1e-3), end

    def half(*given: Any) -> tuple[Tensor, Tensor]:
        answers, end = scanned(*given)
        return (answers + answers.detach()) / 2, end

    steps = [run for _, run in small().of_chunks()]
    assert [run().holds for run in steps] == [True, True]
    monkeypatch.setattr(recurrence, "_scanned", off)
    assert not steps[0]().holds
    monkeypatch.setattr(recurrence, "_scanned", half)
    assert [run().holds for run in steps] == [True, False]


def test_an_array_without_a_gradient_is_seen() -> None:
    found = verify(nlc.load(UNUSED), FAST)
    assert [(m.name, m.value, m.at) for m in found.measured if not m.holds] == [
        ("arrays without a gradient", 1, "z.linear_2")
    ]
    assert "arrays without a gradient: 1 (bar 0), FAILS: z.linear_2" in "\n".join(found.header())
    assert verify(nlc.load(UNUSED, on=1), FAST).holds
    assert not P.all_reached(torch.tensor([1.0, math.nan]))
    assert not P.all_reached(torch.stack([torch.ones(2, 2), torch.zeros(2, 2)])), "one head"


def test_a_gradient_that_is_nothing_where_a_weight_stands_is_none_that_is_missing() -> None:
    model = small().module(torch.float64)
    assert P.without_gradient(model, small().streams, small().system).value == 0
    out = next(p for n, p in model.named_weights() if n.endswith("out.linear_2"))
    with torch.no_grad():  # nothing passes through the mixer while this stands at 0
        out.zero_()
    before = {n: p.clone() for n, p in model.named_weights()}
    assert P.without_gradient(model, small().streams, small().system).value == 0
    assert all(torch.equal(p, before[n]) for n, p in model.named_weights())
    with torch.no_grad():
        out.fill_(math.nan)
    found = P.without_gradient(model, small().streams, small().system)
    assert found.value > 3 and not found.holds, "a gradient that is no number is none"


def test_a_gradient_may_wait_until_a_slow_level_has_fired() -> None:
    """What weighs a bucket of 8 tokens gets none in a run of 5, and none is missing."""
    spec = nlc.load("log_linear_attention", width=8, depth=1, heads=2, vocab=7, buckets=[1, 2, 8])
    verifier = Verifier(spec, replace(FAST, tokens=5))
    model, x = verifier.model, verifier.streams
    never = [n for n, g in gradients(model, x).items() if not P.all_reached(g)]
    assert never
    found = P.without_gradient(model, x, spec.system)
    assert found.holds and found.at.endswith("some of 12 tokens")


def test_weights_that_a_spec_keeps_fixed_need_no_gradient() -> None:
    text = (SPECS / "deltanet.nl").read_text(encoding="utf-8")
    assert "transfer backprop mixer -> training" in text
    text = text.replace("backprop mixer -> training", "condition training -> mixer")
    verifier = Verifier(nlc.load(text, **SMALL), FAST)
    found = P.without_gradient(verifier.model, verifier.streams, verifier.system)
    fixed = P.kept_fixed(verifier.system)
    assert found.holds and fixed == {n for n, _ in verifier.model.named_weights() if "mixer." in n}


def test_changes_off_the_clock_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x = small().streams
    assert P.off_the_clock(small().model, small().system, x).holds
    slow = Verifier(nlc.load("hope", **SMALL, chunk=4, periods=[2]), FAST)
    assert P.off_the_clock(slow.model, slow.system, slow.streams).holds
    other = {path: replace(v, clock=Clock("token", 3)) for path, v in P.owners(slow.system).items()}
    monkeypatch.setattr(P, "owners", lambda _: other)
    assert not P.off_the_clock(slow.model, slow.system, slow.streams).holds


STILL = """nl 1
system still(n = 4, rate = 0) {
  level training every step { objective loss; learn adam(rate = 1e-3) }
  level a(x) every token {
    state M : mlp(n, n)
    objective sum((M(x) - x)^2) RULE
    read M(x)
  }
  flow(x[n]) {
    z = linear(x, n)
    z += a(z)
    loss = sum((z - x)^2)
    return z
  }
}
"""


def test_what_never_changes_is_told_by_name_unless_its_rate_is_nothing() -> None:
    """A rate of 0 that the text shows is a weight; one that only the numbers show is a fault."""
    plain = Verifier(nlc.load(STILL.replace("RULE", "; learn gradient(rate = rate)")), FAST)
    assert P.off_the_clock(plain.model, plain.system, plain.streams).holds
    flat = nlc.load(STILL.replace("RULE", "* floor(0 * sum(x)); learn gradient(rate = 0.1)"))
    found = verify(flat, FAST)
    (failed,) = (m for m in found.measured if m.name == "changes off the clock")
    assert failed.at == "a.M.W1 changes at none of its 5 firings" and failed.value == 0
    assert f"FAILS: {failed.at}" in "\n".join(found.header()) and failed.at in found.text()


def test_each_property_that_fails_says_where_and_by_how_much() -> None:
    x, truth = small().streams, small().truth
    off = truth.outputs.clone()
    off[0, 3] += 1
    assert P.same_outputs(small().model, x, replace(truth, outputs=off)).at == "token 4"
    none = truth.labelled.clone()
    none[0, 2] = ~none[0, 2]
    unlike = P.same_losses(small().model, x, replace(truth, labelled=none))
    assert unlike.at == "whether token 3 has one" and not unlike.holds
    assert P.streamed(forgets, small().system, random_streams(small().system, 3, 9)).at.startswith(
        "token "
    )
    mixed = P.other_samples(mixes, small().system, random_streams(small().system, 3, 9))
    assert mixed.at == "sample 1, as sample 2 was changed"
    nothing = P.later_tokens(answers_nothing, small().system, x)
    assert told(nothing).endswith("FAILS: nothing depends on what was changed")
    assert told(Measured("a", 2.14e-3, 1e-9, "token 4")) == (
        "    a: 0.0021 (bar 1e-9), FAILS: token 4"
    )


@pytest.mark.parametrize("end", [0.0, 1e-3, 1e3, math.inf, math.nan])
def test_memories_that_vanish_or_explode_are_seen(end: float) -> None:
    for start in (1.0, 0.0):
        fine = LongRun(100, (1.0, 2.0), ({"M": start}, {"M": 1.0}, {"M": 3.0}))
        assert P.memories_keep_their_size(fine) == Measured("memories after 100 tokens", 3, 10, "M")
        wrong = replace(fine, answers=(1.0, end), norms=(*fine.norms[:2], {"M": end}))
        assert not P.memories_keep_their_size(wrong).holds
        assert not P.answers_keep_their_size(wrong).holds


# ---- what a system is run on ---------------------------------------------------------------------


SCALED = """nl 1
system scaled(n = 4) {
  level mem(k[n], v[n], keep) every token {
    state M : matrix(n, n)
    objective sum((M(k) - v)^2) / 2
    retain keep
    learn gradient(rate = 0.3)
    read M(k)
  }
  flow(k[n], v[n], keep) { return mem(k, v, keep) }
}
"""
ALONE = """nl 1
system alone(n = 4) {
  level mem(x[n]) every 2 tokens {
    state M : matrix(n, n)
    objective loss
    learn gradient(rate = 0.1)
    read M(x)
  }
  flow(x[n], y[n]) {
    z = x + mem(x)
    loss = sum((z - y)^2)
    return z
  }
}
"""
WINDOWED = """nl 1
system windowed(n = 4) {
  level mem(q[n], k[n], v[n]) every 2 tokens {
    state M : matrix(n, n)
    objective sum((M(past(k, 2)) - past(v, 2))^2) once
    learn gradient(rate = 0.1)
    read M(q)
  }
  flow(q[n], k[n], v[n]) { return mem(q, k, v) }
}
"""


@pytest.mark.parametrize("text", [SCALED, ALONE, WINDOWED])
def test_a_system_that_nothing_trains_is_verified(text: str) -> None:
    """Streams of one number a tick; answers that no gradient leaves; a window no one learns by."""
    assert all(m.holds for m in verify(nlc.load(text), FAST).measured)


def test_ids_are_told_from_numbers() -> None:
    spec = nlc.load("hope", **SMALL)
    assert vocabularies(spec.system) == {"tokens": 19}
    (x,) = random_streams(spec.system, 2, 40)
    assert x.dtype == torch.int64 and set(x.flatten().tolist()) == set(range(19))
    (x,) = random_streams(spec.system, 1, 40, distinct=True)
    assert sorted(x[0].tolist()) == list(range(19))
    numbers = GOOD.replace("tokens)", "z[width])").replace("embed(tokens, vocab, width)", "z", 1)
    numbers = numbers.replace("cross_entropy(logits, next(z[width]))", "sum(logits^2)")
    spec = nlc.load(numbers)
    (x,) = random_streams(spec.system, 2, 5)
    assert x.shape == (2, 5, 8) and x.dtype == torch.float64
    assert verify(spec, FAST).holds


def test_a_truth_is_what_the_reference_says() -> None:
    reference, x = small().reference, small().streams
    made = truth_of(reference, x)
    losses, labelled = reference.losses(x)
    assert torch.equal(made.outputs, reference(x)[0])
    assert torch.equal(made.losses, losses) and torch.equal(made.labelled, labelled)
    assert made.gradients.keys() == reference.gradients(x).keys()


# ---- the whole -----------------------------------------------------------------------------------


def test_a_stream_that_rounding_spoils_is_taken_shorter() -> None:
    def found(ticks: int) -> Measured:
        return Measured(f"{ticks} tokens", 1e-2, 1e-9, bent={150: 4e-2, 70: 1e-7}[ticks])

    assert comparable((150, 70), found).name == "70 tokens"
    assert comparable((70, 150), found).name == "70 tokens"
    assert comparable((150,), found).name == "150 tokens"  # and fails


def test_numbers_are_short() -> None:
    assert [number(v) for v in (0.0, 3.0, 2.14e-14, 1.53, 1234.5)] == (
        ["0", "3", "2.1e-14", "1.5", "1.2e+03"]
    )
    assert [within(v) for v in (0.0, 2.1e-14, 1e-14, 3.0)] == (
        ["0", "below 1e-13", "below 1e-13", "below 10"]
    )


def test_a_certificate_is_the_same_each_time() -> None:
    spec = nlc.load("deltanet", **SMALL)
    certificate = verify(spec, FAST)
    assert certificate.holds and certificate.header() == verify(spec, FAST).header()
    source = nlc.compile(spec).source
    written = headed(source, certificate)
    assert written.replace("\n".join(certificate.header()) + "\n", "") == source
    assert "Verified by nlc on 5 tokens" in (ast.get_docstring(ast.parse(written)) or "")


def test_what_was_too_short_is_told() -> None:
    certificate = verify(nlc.load("hope", **SMALL, chunk=4, periods=[4, 64]), FAST)
    assert certificate.holds
    assert any("every 64 tokens" in n and "--tokens 65" in n for n in certificate.notes)
    assert not any("every 4 tokens" in n for n in certificate.notes)
    lines = "\n".join(certificate.header()).split("\n")
    assert "every 64 tokens" in "".join(lines) and max(map(len, lines)) <= 100


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.nl").write_text(GOOD)
    (tmp_path / "bad.nl").write_text(MISSPELT)
    return tmp_path


WORDS = ("--tokens", "5", "--long", "16")


def run(*words: str) -> int:
    return cli.main(["verify", *words])


def test_verify_prints_a_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("good.nl", *WORDS) == 0
    said, _ = capsys.readouterr()
    for row in ("outputs == reference", "streamed", "Jacobian", "sample", "gradient", "16 tokens"):
        assert row in said
    assert "hold." in said and "FAILS" not in said


def test_verify_speaks_to_programs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("good.nl", *WORDS, "--set", "width=4", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] and found["settings"]["width"] == 4
    assert {"name", "measured", "bar", "holds", "at"} == set(found["properties"][0])


def lowers_nothing(spec: Spec) -> str:
    raise SpecError((Diagnostic("NL701", "this is not lowered yet", spec.system.span),))


def test_verify_says_what_is_not_lowered(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nlc.verify.build", lowers_nothing)
    assert run("good.nl", *WORDS) == 1
    said, told = capsys.readouterr()
    assert "NL701" in told and "Not compiled (NL701)" in said
    assert "streamed" in said and "== reference" not in said
    assert run("good.nl", *WORDS, "--format", "json") == 1
    assert json.loads(capsys.readouterr().out)["not_lowered"] == ["this is not lowered yet"]


def test_statuses_of_verify(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("bad.nl") == 1
    assert run("good.nl", "--tokens", "1") == 2
    monkeypatch.setattr(P, "EXACT", -1.0)
    assert run("good.nl", *WORDS) == 1


def test_build_writes_what_was_verified(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "out.py"
    words = ["build", "good.nl", "--long", "64", "-o", str(out)]
    assert cli.main(words) == 0
    verified = out.read_text()
    assert "Verified by nlc on 17 tokens" in verified
    assert "answers after 64 tokens" in verified and "memories after 64 tokens" in verified
    assert cli.main(words) == 0
    assert out.read_text() == verified
    assert cli.main(["build", "good.nl", "--no-verify", "-o", str(out)]) == 0
    assert "erified" not in out.read_text()
    assert cli.main(["build", "good.nl", "--long", "0", "-o", str(out)]) == 0
    short = "outlive 4,096 tokens was not run: --long 4096"
    assert short in " ".join(out.read_text().split()) and "memories after" not in out.read_text()
    monkeypatch.setattr(P, "EXACT", -1.0)
    capsys.readouterr()
    assert cli.main(words) == 1
    assert "NOT verified" in out.read_text() and "FAILS" in capsys.readouterr().err
    assert run_of(small().reference) is small().reference


@pytest.mark.parametrize(("value", "bend", "holds"), [
    (1e-10, math.nan, True), (1e-8, 2e-8, True), (1e-8, 5e-9, False), (0.1, 0.5, False),
    (math.nan, 1e-8, False), (1e-8, math.nan, False),
])  # fmt: skip
def test_what_rounding_alone_does_is_allowed(value: float, bend: float, holds: bool) -> None:
    """And said. Where it leaves no digit to compare, nothing is shown, so nothing holds."""
    found = judged(Measured("outputs", value, 1e-9, "token 3"), lambda: bend)
    assert found.holds is holds
    assert found.value == value or math.isnan(value)
    if value > 1e-9:
        assert found.at == f"token 3; rounding alone moves the reference by {bend:.1e}"
