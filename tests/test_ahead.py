"""What comes before the levels that learn the loss: run for many spans at once, the numbers are the
same.
"""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from shipped import compiled, distance, tokens, truth_of
from test_random import Case, agrees
from torch import Tensor

import nlc
from nlc.backends.runtime import Model, ahead

PIECES = (1, 3, 512)
SYSTEM = """nl 1
system s(vocab = 5) {{
  level training every step {{ objective loss; learn adamw(rate = 4e-4) }}
  level fast(x) every token {{
    state M : matrix(4, 4)
    k = unit(linear(x, 4))
    objective sum((M(k) - linear(x, 4))^2) / 2
    retain 0.9
    learn gradient(rate = 0.5)
    read M(k)
  }}
  level slow(x) every 2 tokens {{
    state S : matrix(4, 4)
    objective loss
    learn gradient(rate = 0.1)
    read S(x)
  }}
  transfer backprop fast -> training
  transfer backprop slow -> training first order
  flow(tokens) {{
    x = embed(tokens, vocab, 4)
{lines}
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
"""
# Lines of a flow, and what is made ahead of the first span that fires.
LINES = {
    "in the first round": ("repeat 2 { x += fast(conv(x, 3)); x += slow(x) }", ["embed", "fast"]),
    "one round": ("repeat 1 { x += fast(conv(x, 3)); x += slow(x) }", ["embed", "fast"]),
    "before a loop": ("x += fast(conv(x, 3))\n    repeat 2 { x += slow(x) }", ["embed", "fast"]),
    "all but what is returned": ("x += fast(x)\n    y = x\n    x = y + slow(x)", ["embed", "fast"]),
    "after": ("x += slow(x)\n    x += fast(x)", ["embed"]),
    "two that are asked for": ("y = fast(x)\n    x += slow(x)\n    x += y * x", ["embed", "fast"]),
    "made in a round, asked behind": (
        "y = 0 * x\n    repeat 2 { y = fast(x); x += slow(x) }\n    x += y", ["embed", "fast"],
    ),
    "only a loop of its own": ("repeat 2 { repeat 2 { x += fast(x) }\n x += slow(x) }", ["embed"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_what_is_made_ahead(name: str) -> None:
    lines, made = LINES[name]
    text = SYSTEM.format(lines=f"    {lines}")
    with patch.object(ahead, "PIECE", 4):
        assert agrees(Case(text, 11, [3, 7]))
    source = nlc.compile(nlc.load(text)).source
    method = source[source.index("def ahead") : source.index("def flow")]
    words = {"embed": "F.embedding(", "fast": "self.fast", "slow": "self.slow"}
    assert [word for word, code in words.items() if code in method] == made


def answers(model: Model, x: Tensor) -> dict[str, Tensor]:
    """Losses and all gradients."""
    model.zero_grad()
    losses, labelled, _ = model.losses(x)
    losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
    grads = {k: p.grad for k, p in model.named_weights() if p.grad is not None}
    return {"losses": losses.detach(), **{k: g.clone() for k, g in grads.items()}}


def test_pieces_of_any_length() -> None:
    model, x = compiled("hope"), tokens(2, 15)
    wanted = truth_of("hope", model)(x)[0]
    found = []
    for piece in PIECES:
        with patch.object(ahead, "PIECE", piece):
            assert distance(model(x)[0], wanted) < 1e-9
            found.append(answers(model, x))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        assert max(float((other[k] - g).abs().max()) for k, g in found[0].items()) < 1e-12


@pytest.mark.parametrize("training", [False, True])
def test_a_state_is_made_again_from_the_last_span(training: bool, tmp_path: Path) -> None:
    """A call of several spans: what is saved is where its last one began."""
    model, x = compiled("hope"), tokens(2, 15)
    with torch.set_grad_enabled(training):
        _, state = model(x[:, :9])
        assert state.base_position == 8 and len(state.replay) == 1
        state.save(tmp_path / "state")
        loaded = nlc.load_state(tmp_path / "state", model)
        assert all(torch.equal(loaded.arrays[k], v) for k, v in state.arrays.items())
        assert distance(model(x[:, 9:], loaded)[0], model(x[:, 9:], state)[0]) < 1e-12


STARTS_ANEW = """nl 1
system s() {
  level training every step { objective loss; learn gradient(rate = 0.1) }
  level fast(x) every 3 tokens {
    reset every 6 tokens
    state M : vector(4)
    objective -sum(M * x) / 9
    learn gradient(rate = 0.1)
    read x + M
  }
  level slow(x) every 2 tokens {
    state F : mlp(4, 4); objective loss; learn gradient(rate = 0.1); read F(x)
  }
  flow(tokens) {
    x = embed(tokens, 5, 4)
    x = norm(x + fast(x))
    x += slow(x)
    logits = unembed(x, 5)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }
}
"""


@pytest.mark.parametrize("ticks", [10, 11, 12, 16])
def test_what_starts_anew_ahead_lives_on(ticks: int) -> None:
    """A reset that what is ahead has passed long ago is none of the state it has left."""
    spec = nlc.load(STARTS_ANEW)
    model = nlc.compile(spec, dtype=torch.float64)
    assert model.AHEAD
    x = torch.randint(5, (2, ticks), generator=torch.Generator().manual_seed(1))
    wanted, _ = nlc.reference(spec, model.state_dict(), traced=())((x,))
    assert distance(model(x)[0], wanted) < 1e-9


def test_it_is_run_for_many_spans_at_once() -> None:
    """15 ticks in spans of 2: all but the last of them, and the last."""
    model, x = compiled("hope"), tokens(1, 15)
    with patch.object(model, "ahead", wraps=model.ahead) as calls:
        model.losses(x)
    assert [call.args[1].shape[1] for call in calls.call_args_list] == [14, 1]
