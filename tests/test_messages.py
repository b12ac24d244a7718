"""What a user is told, word for word where it once misled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from shipped import EVERY, SPECS

import nlc
from nlc.diagnostics import Diagnostic
from nlc.driver import SpecError

FRAME = """nl 1
use "memory/attend"
system small(n = 4) {
  level training every step { objective loss; learn adam(rate = 1e-3) }
LEVELS
  flow(x[n], y[n]) {
    z = linear(x, n)
    LINE
    loss = sum((z - y)^2)
    return z
  }
}
"""
LEVEL = """  level a(x) CLOCK {
    RESET
    state M : matrix(n, n)
    objective sum((M(x) - x)^2)
    learn gradient(rate = 0.1)
    read M(x)
  }"""


def level(clock: str, reset: str = "") -> str:
    return LEVEL.replace("CLOCK", clock).replace("RESET", reset)


def told(levels: str, line: str = "z += a(z)") -> Diagnostic:
    with pytest.raises(SpecError) as found:
        nlc.compile(nlc.load(FRAME.replace("LEVELS", levels).replace("LINE", line)))
    (only,) = found.value.diagnostics
    return only


def test_a_reset_is_blamed_for_what_it_does() -> None:
    found = told(level("every sequence", "reset every 2 sequences"))
    assert found.code == "NL701"
    assert "`reset every 2 sequences` of `a`, every sequence," in found.message


def test_a_past_in_a_flow_is_called_that() -> None:
    for past in ("past(z, 3)", "past(z)"):
        assert "`past` in a flow is not" in told("", f"z += mean({past})").message


@pytest.mark.parametrize(("edges", "words"), [
    ("condition training -> look", "`backprop look -> slow`, where training's gradient does not"),
    ("backprop look -> training", "`backprop look -> slow` `through 3 tokens`"),
])  # fmt: skip
def test_an_edge_that_training_does_not_share_is_named(edges: str, words: str) -> None:
    more = " through 3 tokens" if "through" in words else ""
    levels = f"""  level look(x) always {{ read attend(x, linear(x, n), x) }}
  level slow(x) every 4 tokens {{
    state F : mlp(n, n, n)
    objective loss
    learn gradient(rate = 0.1)
    read F(x)
  }}
  transfer {edges}
  transfer backprop look -> slow{more}
  transfer init training -> slow first order"""
    found = told(levels, "z += look(slow(z))")
    assert words in found.message
    assert found.span.text.startswith("transfer backprop look -> slow")


def test_a_phase_names_the_resets_at_which_it_fires() -> None:
    found = told(level("every 4 tokens from 2", "reset every 8 tokens"))
    assert found.code == "NL206"
    assert found.help.startswith("make it 6 or 10, at which it fires (every 4 tokens from 2)")
    for ticks in (6, 10):
        mended = level("every 4 tokens from 2", f"reset every {ticks} tokens")
        nlc.load(FRAME.replace("LEVELS", mended).replace("LINE", "z += a(z)"))
    assert told(level("every 4 tokens", "reset every 6 tokens")).help.startswith("make it a mult")


def test_with_a_phase_each_life_is_as_long_as_the_first() -> None:
    """`reset every 4 tokens from 2` is `reset every 2 tokens` (2.6.4)."""
    x = torch.randn(1, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    answers = []
    for reset in ("reset every 4 tokens from 2", "reset every 2 tokens"):
        text = FRAME.replace("LEVELS", level("every token", reset)).replace("LINE", "z += a(z)")
        model = nlc.compile(nlc.load(text), dtype=torch.float64)
        truth = nlc.reference(nlc.load(text), model.state_dict())
        answers += [model(x, x)[0], truth((x, x))[0]]
    assert all(torch.allclose(a, answers[0], atol=1e-12) for a in answers)


def small() -> nlc.Spec:
    return nlc.load("deltanet", width=8, depth=1, heads=2, vocab=11)


@pytest.mark.parametrize("wrong", [11, -1])
def test_an_id_that_no_table_has_is_named(wrong: int) -> None:
    model = nlc.compile(small())
    tokens = torch.tensor([[1, wrong, 3]])
    words = f"`tokens` has the id {wrong}, and its rows are 0 to 10"
    for run in (model, nlc.reference(small()), model.losses):
        with pytest.raises(ValueError, match=words):
            run(tokens)
    assert model(torch.tensor([[0, 10]]))[0].shape == (1, 2, 11)


def test_steps_are_a_whole_number() -> None:
    model = nlc.compile(small())
    model.steps = 3
    for wrong in (1.5, -1, True):
        with pytest.raises(ValueError, match="`steps` is how many there were, a whole number"):
            model.steps = wrong  # type: ignore[assignment]
    assert model.steps == 3


def test_a_state_has_a_folder_to_go_to(tmp_path: Path) -> None:
    model = nlc.compile(small())
    _, state = model(torch.tensor([[1, 2]]))
    with pytest.raises(FileNotFoundError, match=r"m\.safetensors cannot be .* no folder .*nowhere"):
        state.save(tmp_path / "nowhere" / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_reference_refuses_a_state_that_is_not_its_own() -> None:
    tokens = torch.tensor([[1, 2]])
    spec = small()
    truth = nlc.reference(spec)
    _, state = truth(tokens)
    other = nlc.reference(nlc.load("deltanet", width=8, depth=2, heads=2, vocab=11))
    for run in (lambda: other(tokens, state), lambda: other.finish(state)):
        with pytest.raises(ValueError, match="another spec, to other settings of it, or"):
            run()
    with pytest.raises(ValueError, match="of a batch of 1, and the input of 2"):
        truth(tokens.repeat(2, 1), state)
    with pytest.raises(TypeError, match="not dict"):
        truth(tokens, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="loaded a second time"):
        nlc.reference(small(), truth.values)(tokens, state)
    again, _ = nlc.reference(spec, truth.values)(tokens, state)
    assert torch.equal(again, truth(tokens, state)[0])


def test_shipped_systems_are_short() -> None:
    for name in EVERY:
        lines = (SPECS / f"{name}.nl").read_text(encoding="utf-8").count("\n")
        assert lines <= (45 if name == "hope" else 60), name


def test_a_spec_that_is_not_there(tmp_path: Path) -> None:
    """A sentence, as the command says it."""
    (tmp_path / "mine.nl").write_text("nl 1\n")
    for name, says in (
        ("hoep", "There is no file hoep, and no shipped spec of that name. Did you mean hope?"),
        ("hoep.nl", "There is no file hoep.nl, and no shipped spec .* Did you mean hope.nl?"),
        ("memory/delt", "no shipped spec of that name. Did you mean memory/delta?"),
        ("gated_delta", "no shipped spec of that name. Did you mean memory/gated_delta?"),
        (tmp_path / "mime.nl", "There is no file .*mime.nl. Did you mean mine.nl?"),
        (tmp_path, "is a folder; a spec is needed."),
        ("x" * 400, "x cannot be read: file name too long."),
    ):
        with pytest.raises(OSError, match=says.replace("?", r"\?")) as error:
            nlc.load(name)
        assert "Errno" not in str(error.value)
    slip: Any = 12
    with pytest.raises(TypeError, match="a spec is a path, a shipped name or a text"):
        nlc.load(slip)
    assert nlc.load("nl 1; system one() { flow(x) { return x } }").system.name == "one"


def test_settings_are_those_of_a_name_and_not_of_a_loaded_spec() -> None:
    """Left out in silence, they would be a run of another model."""
    spec = nlc.load("rnn", width=8)
    with pytest.raises(TypeError, match=r"width = 16 cannot be set in a loaded spec.*`nlc\.load`"):
        nlc.compile(spec, width=16)
    made = nlc.compile(Path("specs/rnn.nl"), width=16)
    assert dict(made.named_weights())["x.embed"].shape[-1] == 16
    with pytest.raises(TypeError, match="a spec is wanted, not its name"):
        nlc.reference("rnn")  # type: ignore[arg-type]
