"""The certificate of a memory alone: each row fails where it must, and the command says so."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nlc
from nlc import cli
from nlc.driver import SpecError
from nlc.operation import MemoryState
from nlc.verify import Options
from nlc.verify import properties as P
from nlc.verify.drawn import Range, told
from nlc.verify.memories import Drawing, MemoryVerifier
from nlc.verify.properties import Measured
from nlc.verify.streams import Streams

FAST = Options(tokens=7, long=0)

# A state, one of momentum, one kept in the dual, one whose gradients are frozen, one of pasts.
NAMES: dict[str, dict[str, Any]] = {
    "gated_delta": {},
    "momentum_delta": {},
    "elastic_ftrl": {},
    "titans": {"n": 4, "hidden": 2, "chunk": 4},
    "memora": {"n": 4, "chunk": 4},
    "mesa": {},
    "delta_product": {"h": 2},
}


def drawing(name: str, **named: Any) -> Drawing:
    return Drawing(nlc.memory(name).declared, named=named)


@cache
def small() -> MemoryVerifier:
    return MemoryVerifier(drawing("gated_delta", n=3, m=2), FAST)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_memory_has_its_certificate(name: str) -> None:
    certificate = MemoryVerifier(drawing(name, **NAMES[name]), FAST).verify()
    assert certificate.holds, certificate.text()
    rows = [m.name for m in certificate.measured]
    for row in ("gradients == reference", "packed", "Jacobian", "another sample", "streamed"):
        assert any(row in name for name in rows), row
    kept = name != "mesa"
    assert ("gradients to the state == reference" in rows) == kept
    assert any("what it has seen" in note for note in certificate.notes) == (not kept)


def test_a_memory_outlives_a_long_stream_or_is_seen_to_run_away() -> None:
    long = Options(tokens=3, long=64)
    fine = MemoryVerifier(drawing("gated_delta", n=3, m=2), long).verify()
    assert fine.holds and [m.name for m in fine.measured][-1] == "memories after 64 tokens"
    wild = Drawing(nlc.memory("delta").declared, drawn={"beta": Range(40, 50)})
    found = MemoryVerifier(wild, long).verify()
    failed = {m.name for m in found.measured if not m.holds}
    assert failed == {"answers after 64 tokens", "memories after 64 tokens"}


# ---- each row has teeth --------------------------------------------------------------------------


def failing(verifier: MemoryVerifier) -> set[str]:
    return {m.name for m in verifier.verify().measured if not m.holds}


class Changed(MemoryVerifier):
    """An operation that is a little off."""

    def __init__(self) -> None:
        super().__init__(small().drawing, FAST)


def test_an_answer_that_is_off_is_seen() -> None:
    class Shifted(Changed):
        def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
            y, after = super().run(streams, state, **more)
            return y * (1 + 1e-6), after

    assert {"outputs == reference", "gradients == reference"} <= failing(Shifted())


def test_a_state_that_is_off_or_carries_no_gradient_is_seen() -> None:
    class Moved(Changed):
        def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
            y, after = super().run(streams, state, **more)
            return y, after.each(lambda x: x * (1 + 1e-6))

    found = failing(Moved())
    assert {"state == reference", "streamed == in one call"} <= found
    assert "outputs == reference" not in found

    class Cut(Changed):
        def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
            y, after = super().run(streams, state, **more)
            return y, after.detach()

    rows = {"gradients through calls == in one call", "gradients of 150 tokens == in calls"}
    assert failing(Cut()) == rows

    class Half(Changed):
        """A state whose gradient is half of what it is."""

        def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
            if isinstance(state, MemoryState):
                state = state.each(lambda x: (x + x.detach()) / 2)
            return super().run(streams, state, **more)

    assert "gradients to the state == reference" in failing(Half())


def test_chunks_that_are_off_are_seen() -> None:
    class Off(Changed):
        """Wrong where a call is long enough to be cut into chunks."""

        def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
            y, after = super().run(streams, state, **more)
            return (y * (1 + 1e-6) if y.shape[1] > 64 else y), after

    rows = {"150 tokens at once == in calls of 13", "gradients of 150 tokens == in calls"}
    assert failing(Off()) == rows


def test_a_memory_that_stops_writing_is_not_alive() -> None:
    class Stopped(MemoryVerifier):
        def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
            y, after = super().run(streams, state, **more)
            return y, after if state is None else state

    found = Stopped(small().drawing, Options(tokens=7, long=64)).long_run
    alive = P.memories_keep_their_size(found)
    assert not alive.holds and alive.at == "M no longer changes"
    assert P.answers_keep_their_size(found).holds


def test_sequences_that_see_each_other_are_seen() -> None:
    class Together(Changed):
        def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
            return super().run(streams, state)  # packed as if they were one

    assert failing(Together()) == {"packed == each sequence alone"}

    class Mixed(Changed):
        def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
            y, after = super().run(streams, state, **more)
            return y + 1e-3 * y.mean(0), after

    assert "change by another sample" in failing(Mixed())


def test_a_later_token_and_a_stream_without_a_gradient_are_seen() -> None:
    class Ahead(Changed):
        def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
            y, after = super().run(streams, state, **more)
            return y + 1e-3 * y.mean(1, keepdim=True), after

    assert {"change by later tokens", "Jacobian to later tokens"} <= failing(Ahead())

    class Deaf(Changed):
        def run(self, streams: Streams, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
            return super().run((*streams[:4], streams[4].detach()), state, **more)

    (row,) = (m for m in Deaf().verify().measured if m.name == "streams without a gradient")
    assert row == Measured("streams without a gradient", 1, 0.0, "beta")


# ---- what it is run on ---------------------------------------------------------------------------

DRAWN = {
    "gated_delta": "q, k, v normal, of length about 1; alpha, beta from 0 to 1",
    "rwkv7": "r, k, v, kappa normal, of length about 1; w, a from 0 to 1",
    "gated_delta_2": "q, k, v normal, of length about 1; alpha, b, w from 0 to 1",
    "longhorn": "q, k, v normal, of length about 1; beta from 0 to 1",
    "lp": "q, k, v normal, of length about 1; alpha from 0 to 1; eta from 0 to 0.03",
    "surprise_gate": (
        "q, k, v normal, of length about 1; alpha from 0 to 1; beta from 0 to 0.03"
    ),
    "titans": (
        "q, k, v normal, of length about 1; alpha from 0.999 to 1; eta from 0 to 0.01; "
        "mu from 0 to 1"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_gates_are_drawn_where_they_make_sense(name: str) -> None:
    assert told(drawing(name).ranges) == DRAWN[name]


def test_streams_are_as_they_are_told() -> None:
    made = Drawing(
        nlc.memory("gated_delta").declared, 3, {"alpha": 0.5, "n": 16}, {"beta": Range(1, 2)}
    )
    assert made.settings == {"n": 16, "m": 6, "heads": 3}
    q, _, v, alpha, beta = MemoryVerifier(made, Options(tokens=50)).streams
    assert q.shape == (2, 50, 3, 16) and v.shape == (2, 50, 3, 6)
    assert 0.8 < float(q.square().sum(-1).mean()) < 1.2
    assert bool((alpha == 0.5).all()) and float(beta.min()) >= 1 and 1.9 < float(beta.max()) <= 2


def test_sizes_that_must_be_one_are_one() -> None:
    """Where different ones do not fit, and none is asked for."""
    text = """nl 1
memory both(q[n], k[m], eta) {
  state     M : matrix(n, n)
  objective sum((M(k) - q)^2)
  learn     gradient(rate = eta)
  read      M(q)
}
"""
    declared = nlc.memory(text).declared
    assert Drawing(declared).settings == {"n": 8, "m": 8, "heads": 2}
    with pytest.raises(ValueError, match="does not fit `both`"):
        _ = Drawing(declared, named={"n": 4, "m": 3}).call


# ---- the command ---------------------------------------------------------------------------------

OWN = """nl 1
memory clipped(q[n], k[n], v[m], keep, rate, most = 1) {
  state     M : matrix(n, m)
  objective sum(where(abs(M(k) - v) < most, (M(k) - v)^2 / 2, most * abs(M(k) - v)))
  retain    keep
  learn     gradient(rate = rate)
  read      M(q)
}
"""
WORDS = ("--tokens", "5", "--long", "16")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.nl").write_text(OWN)
    (tmp_path / "two.nl").write_text(OWN + OWN[5:].replace("clipped", "other"))
    return tmp_path


@pytest.mark.parametrize("name", ["own.nl", "memory/gated_delta", "gated_delta", "linear"])
def test_verify_takes_a_memory(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", name, *WORDS, "--set", "n=4", "--heads", "1"]) == 0
    said, _ = capsys.readouterr()
    assert "n = 4, m = 6, heads = 1" in said and "hold." in said and "FAILS" not in said


def test_verify_of_a_memory_speaks_to_programs_and_takes_settings(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*WORDS, "--set", "most=0.5", "--range", "rate=0.5:1", "--format", "json"]
    assert cli.main(["verify", "two.nl", "--memory", "other", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["system"] == "other" and found["settings"]["most"] == 0.5 and found["holds"]
    monkeypatch.setattr(P, "EXACT", -1.0)
    assert cli.main(["verify", "own.nl", *WORDS]) == 1


SAID = {
    ("two.nl",): "choose one with --memory NAME",
    ("own.nl", "--memory", "mine"): "has no memory `mine`",
    ("own.nl", "--set", "mots=1"): "did you mean `most`?",
    ("own.nl", "--set", "w=1"): "its sizes are n, m",
    ("own.nl", "--set", "n=0"): "`n` is a size, a whole number above 0, not 0",
    ("own.nl", "--set", "keep=[1,2]"): "`keep` is a stream: one number",
    ("own.nl", "--range", "keep=1"): "is not NAME=LOW:HIGH",
    ("own.nl", "--range", "keep=2:1"): "is not NAME=LOW:HIGH",
    ("own.nl", "--range", "kep=0:1"): "did you mean `keep`?",
    ("gatd_delta",): "no shipped spec of that name",
    ("deltanet", "--heads", "2"): "deltanet is a system",
}


@pytest.mark.parametrize("words", SAID, ids=" ".join)
def test_what_a_memory_cannot_be_called_with_is_a_sentence(
    words: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", *words]) == 2
    assert SAID[words] in capsys.readouterr().err


def test_what_needs_a_system_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "memory/continuum"]) == 1
    assert "NL105" in capsys.readouterr().err


def test_build_writes_a_memory_as_a_module_of_its_own(place: Path) -> None:
    """A file that runs by itself, with its certificate, and is the operation."""
    sizes = ["--set", "n=4", "--set", "m=3", "--heads", "2"]
    assert cli.main(["build", "own.nl", *sizes, "--long", "16", "-o", "made.py"]) == 0
    text = (place / "made.py").read_text()
    assert "Verified by nlc on 17 tokens" in text and "memories after 16 tokens" in text
    made: dict[str, Any] = {"__name__": "made"}
    exec(compile(text, "made.py", "exec"), made)
    streams = MemoryVerifier(Drawing(nlc.memory("own.nl").declared, named={"n": 4, "m": 3})).streams
    y, state = made["ClippedOperation"](dtype=streams[0].dtype)(*streams)
    z, wanted = nlc.memory("own.nl")(*streams)
    assert torch.equal(y, z)
    assert torch.equal(state.arrays["op.clipped.M"], wanted.arrays["M"])
    assert cli.main(["build", "own.nl", "--long", "0", "-o", "made.py"]) == 0
    assert "was not run: --long 4096" in (place / "made.py").read_text()


def test_a_memory_that_is_not_lowered_is_run_by_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nlc.diagnostics import Diagnostic
    from nlc.verify import memories

    made = drawing("gated_delta", n=3, m=2)

    def lowers_nothing(spec: nlc.Spec) -> str:
        raise SpecError((Diagnostic("NL701", "this is not lowered yet", spec.system.span),))

    monkeypatch.setattr(memories, "build", lowers_nothing)
    found = MemoryVerifier(made, FAST).verify()
    assert not found.holds and "Not compiled (NL701)" in found.text()
    assert all(m.holds and "reference" not in m.name for m in found.measured)
