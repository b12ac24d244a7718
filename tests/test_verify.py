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
from test_cli import GOOD, MISSPELT
from torch import Tensor

import nlc
from nlc import cli
from nlc.backends.reference import Reference
from nlc.backends.runtime import Model
from nlc.diagnostics import Diagnostic
from nlc.driver import Spec, SpecError
from nlc.system import Clock
from nlc.verify import Options, Verifier, headed, number, verify, within
from nlc.verify import properties as P
from nlc.verify.properties import LongRun, Measured
from nlc.verify.streams import random_streams, run_of, truth_of, vocabularies

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


def test_a_gradient_of_one_array_is_seen() -> None:
    truth = small().truth
    name = "layers.0.mixer.beta.linear"
    off = {**truth.gradients, name: truth.gradients[name] * (1 + 1e-6)}
    found = P.same_gradients(small().model, small().streams, replace(truth, gradients=off))
    assert found.at == name and found.value == pytest.approx(1e-6, rel=1e-3)


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
    assert not P.streamed(forgets, x).holds and not P.random_splits(forgets, x).holds
    assert P.later_tokens(forgets, system, x).holds
    assert not P.later_tokens(looks_ahead, system, x).holds
    assert not P.other_samples(mixes, system, x).holds
    for nothing in (P.later_tokens, P.other_samples):
        found = nothing(answers_nothing, system, x)
        assert found.value == 0 and not found.holds, "nothing depends on what was changed"


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
    assert P.gradients_across_calls(whole, small().streams).holds
    assert not P.gradients_across_calls(cut, small().streams).holds


def test_an_array_without_a_gradient_is_seen() -> None:
    model = small().module(torch.float64)
    assert P.without_gradient(model, small().streams).value == 0
    with torch.no_grad():  # nothing passes any more through the mixer
        next(p for n, p in model.named_weights() if n.endswith("out.linear_2")).zero_()
    found = P.without_gradient(model, small().streams)
    assert found.value > 3 and "mixer" in found.at
    assert not P.all_reached(torch.tensor([1.0, math.nan]))
    assert not P.all_reached(torch.stack([torch.ones(2, 2), torch.zeros(2, 2)])), "one head"


def test_changes_off_the_clock_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    x = small().streams
    assert P.off_the_clock(small().model, small().system, x).holds
    slow = Verifier(nlc.load("hope", **SMALL, chunk=4, periods=[2]), FAST)
    assert P.off_the_clock(slow.model, slow.system, slow.streams).holds
    other = {path: replace(v, clock=Clock("token", 3)) for path, v in P.owners(slow.system).items()}
    monkeypatch.setattr(P, "owners", lambda _: other)
    assert not P.off_the_clock(slow.model, slow.system, slow.streams).holds


@pytest.mark.parametrize("end", [0.0, 1e-3, 1e3, math.inf, math.nan])
def test_memories_that_vanish_or_explode_are_seen(end: float) -> None:
    for start in (1.0, 0.0):
        fine = LongRun(100, (1.0, 2.0), ({"M": start}, {"M": 1.0}, {"M": 3.0}))
        assert P.memories_keep_their_size(fine) == Measured("memories after 100 tokens", 3, 10, "M")
        wrong = replace(fine, answers=(1.0, end), norms=(*fine.norms[:2], {"M": end}))
        assert not P.memories_keep_their_size(wrong).holds
        assert not P.answers_keep_their_size(wrong).holds


# ---- what a system is run on ---------------------------------------------------------------------


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
    assert cli.main(["build", "good.nl", "-o", str(out)]) == 0
    verified = out.read_text()
    assert "Verified by nlc on 17 tokens" in verified
    assert cli.main(["build", "good.nl", "-o", str(out)]) == 0
    assert out.read_text() == verified
    assert cli.main(["build", "good.nl", "--no-verify", "-o", str(out)]) == 0
    assert "erified" not in out.read_text()
    monkeypatch.setattr(P, "EXACT", -1.0)
    capsys.readouterr()
    assert cli.main(["build", "good.nl", "-o", str(out)]) == 1
    assert "NOT verified" in out.read_text() and "FAILS" in capsys.readouterr().err
    assert run_of(small().reference) is small().reference
