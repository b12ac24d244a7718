"""`nlc bench`: that it runs on tiny sizes and prints its tables, whatever is installed.

No test here asks how fast anything is.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nlc
from nlc import bench, cli
from nlc.bench import ours, peers, steps
from nlc.bench.measuring import Case, measured, peak
from nlc.driver import SpecError
from nlc.files import CallError
from nlc.resolve.files import shipped_names

TINY = ("--shape", "1x8x8", "--heads", "2", "--rounds", "1")
MEMORIES = sorted(n.partition("/")[2] for n in shipped_names() if n.startswith("memory/"))


def run(*words: str) -> int:
    return cli.main(["bench", *words])


def nothing(name: str) -> Any:
    raise ImportError(name)


class FakeMemory(nn.Module):
    """What titans-pytorch gives a layer."""

    def __init__(self, dim: int, **rest: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x @ self.weight, None


def fake(name: str) -> Any:
    def rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **_: Any) -> Any:
        return q + k + v + (g + beta)[..., None], None

    return SimpleNamespace(
        NeuralMemory=FakeMemory,
        torch_chunk_gated_delta_rule=rule,
        set_verbosity_error=lambda: None,
    )


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "package", nothing)
    monkeypatch.setattr(peers, "version_of", lambda _: "")


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "package", fake)
    monkeypatch.setattr(peers, "version_of", lambda _: "1.0")


# ---- the command ---------------------------------------------------------------------------------


def test_all_without_peers(absent: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*TINY, "--lengths", "8", "4", "--context", "4") == 0
    said = capsys.readouterr().out
    for part in (
        "nlc titans", "nlc gated_delta", "nlc hope", "transformer, plain PyTorch",
        "hope, forward, in calls of 512", "state", "64 tokens one by one after 4",
        "transformer with a cache",
        "absent: titans-pytorch is not installed", "absent: transformers is not installed",
        "absent: flash-linear-attention runs on a GPU only", "processor", "tokens/s", "peak MiB",
    ):  # fmt: skip
        assert part in said, part
    assert said.count("titans-pytorch") == 1


def test_a_memory_beside_its_peers(present: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--memory", "titans", *TINY) == 0
    assert run("--memory", "gated_delta", *TINY) == 0
    said = capsys.readouterr().out
    for part in ("titans-pytorch 1.0", "titans-pytorch W0 1.0", "transformers 1.0"):
        assert part in said
    assert "is not installed" not in said


def test_figures_for_programs(
    absent: None, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    words = ("deltanet", "--set", "depth=1", *TINY, "--format", "json", "-o", str(out))
    assert run(*words) == 0
    assert capsys.readouterr().out == ""
    found = json.loads(out.read_text())
    assert found["machine"]["torch"] == torch.__version__
    (result,) = found["results"]
    assert [f["name"] for f in result["figures"]] == ["transformer, plain PyTorch", "nlc deltanet"]
    assert all(len(f["seconds"]) == 1 and f["peak_bytes"] > 0 for f in result["figures"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--memory", "titan"), "no shipped memory titan"),
        (("--memory", "omega", *TINY), "its input gamma"),
        (("--memory", "titans", "--shape", "1x8"), "needs a width"),
        (("hope", "--memory", "titans"), "one of them"),
        (("hope", "--shape", "8"), "is not SAMPLESxTOKENSxWIDTH"),
        (("hope", "--shape", "1x0x8"), "is not SAMPLESxTOKENSxWIDTH"),
    ],
)
def test_a_mistake_in_a_call(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert said in capsys.readouterr().err


# ---- what is measured ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEMORIES)
def test_a_shipped_memory_is_a_layer(name: str) -> None:
    try:
        spec = ours.layer_spec(name, 8, 2)
    except CallError:
        assert name in ("omega", "delta_product", "continuum"), "of their own kind"
        return
    assert [s for _, s in spec.system.flow.inputs] == [(8,)]


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_layer_with_peers_is_compiled_and_learns(name: str) -> None:
    model = nlc.compile(ours.layer_spec(name, 8, 2))
    x = torch.randn(2, 70, 8)
    ours.layer_step(lambda x: model(x)[0], model.parameters(), x)()
    assert x.grad is not None and all(p.grad is not None for p in model.parameters())


def test_a_cache_answers_as_the_whole() -> None:
    plain = peers.Transformer(11, 8, 2, 2)
    ids = torch.randint(0, 11, (1, 6))
    assert plain.room(6) == (2, 1, 2, 6, 4)
    cache = peers.Cache(torch.zeros(2, 1, 2, 6, 4), torch.zeros(2, 1, 2, 6, 4), used=0)
    with torch.no_grad():
        whole = plain(ids)
        for t in range(6):
            cache.used = t
            assert torch.allclose(plain(ids[:, t : t + 1], cache)[:, 0], whole[:, t], atol=1e-5)


def test_every_case_has_its_turn() -> None:
    turns: list[str] = []
    cases = [Case(n, lambda n=n: turns.append(n), 1, False) for n in ("a", "b")]  # type: ignore[misc]
    figures = measured(cases, 2, "cpu", lambda _: None)
    assert turns == ["a", "b"] * 3
    assert [(f.name, len(f.seconds), f.peak) for f in figures] == [("a", 2, None), ("b", 2, None)]


def test_a_peak_is_what_was_alive_at_once() -> None:
    def step() -> None:
        for _ in range(3):
            torch.zeros(2**18)  # a MiB, gone before the next

    assert 2**20 <= peak(step, "cpu") < 2 * 2**20


def test_a_state_is_as_large_as_what_it_keeps() -> None:
    spec = nlc.load("deltanet", width=8, depth=1, heads=2)
    model = nlc.compile(spec)
    streams = ours.Place().streams(spec, 1, 5)
    kept = sum(4 * torch.Size(shape).numel() for shape, _ in model.kept_arrays().values())
    assert ours.bytes_of(ours.after(model, streams, None, piece=2)) == kept


def test_a_group_of_a_system_without_a_width_stands_alone() -> None:
    text = (
        "nl 1\nsystem s() {\n  level training every step { objective loss; learn adamw() }\n"
        "  flow(x[4]) {\n    y = linear(x, 4)\n    loss = sum(y^2)\n    return y\n  }\n}\n"
    )
    spec = nlc.load(text)
    group = bench.system_group(spec, bench.Shape(1, 4, 0), bench.Options(rounds=1))
    assert [c.name for c in group.cases] == ["nlc s"]
    with pytest.raises(SpecError):
        nlc.load(text.replace("linear", "linera"))


@pytest.mark.parametrize("name", [*steps.PEERS, "m3"])
def test_an_optimizer_is_measured_beside_torch(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--optimizer", name, "--parameters", "3000", "--rounds", "1") == 0
    told = capsys.readouterr().out
    assert f"nlc {name}" in told
    assert all(f"torch {peer}" in told for peer in steps.PEERS.get(name, ()))


def test_an_unknown_optimizer_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--optimizer", "adamv", "--rounds", "1") == 2
    assert "did you mean `adam`" in capsys.readouterr().err
