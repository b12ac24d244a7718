"""One run of a span for training and for the levels on tokens, and rows that wait for training:
the numbers are the same, in every kind of gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from shipped import small, tokens
from test_random import Case, agrees
from torch import Tensor

import nlc
from nlc.backends.ops.by_hand import plainly
from nlc.backends.ops.retention import times
from nlc.backends.runtime import Model

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
    {reset}
    state S : {form}
    objective loss{once}
    {rule}
    read {read}
  }}
  transfer backprop fast -> training
  transfer backprop slow -> training first order
  {start}
  flow(tokens) {{
    x = embed(tokens, vocab, 4)
    {lines}
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
"""
START = "transfer init training -> slow first order"
PLAIN = {
    "reset": "", "form": "mlp(4, 8)", "once": "", "rule": "learn gradient(rate = 0.1)",
    "read": "S(norm(x))", "start": START, "lines": "x += fast(x)\n    x += slow(x)",
}  # fmt: skip
# What is said otherwise, and whether a span has one run for both.
KINDS: dict[str, tuple[dict[str, str], bool]] = {
    "as it is": ({}, True),
    "rounds": ({"lines": "x += fast(x)\n    repeat 2 { x += slow(x) }"}, True),
    "one that is held": ({"lines": "repeat 2 { x += fast(x); x += slow(x) }"}, False),
    "a past that is held": ({"lines": "x += fast(x)\n    x += slow(conv(x, 2))"}, False),
    "nothing ahead": ({"lines": "x += slow(x)\n    x += fast(x)"}, False),
    "what fades": ({"rule": "retain 0.9; learn gradient(rate = 0.1)"}, True),
    "a rule that shrinks": ({"rule": "learn adamw(rate = 0.01, shrink = 0.1)"}, True),
    "resets": ({"reset": "reset every 4 tokens"}, True),
    "a closed start": ({"start": ""}, True),
    "the last loss": ({"once": " once"}, True),
    "heads": ({"form": "matrix(2, 2) per 2", "read": "join(S(split(x, 2)))"}, True),
    "the array itself": ({"form": "matrix(4, 4)", "read": "S(norm(x)) + sum(S^2) * x"}, True),
}  # fmt: skip


def text_of(kind: str) -> str:
    return SYSTEM.format(**{**PLAIN, **KINDS[kind][0]})


@pytest.mark.parametrize("kind", KINDS)
def test_any_system_is_its_reference(kind: str) -> None:
    text = text_of(kind)
    assert agrees(Case(text, 11, [3, 7]))
    assert nlc.compile(nlc.load(text)).ALONE is KINDS[kind][1]


def loss_of(model: Model, x: Tensor, cut: int) -> Tensor:
    """Of two calls: a gradient goes through the state between them."""
    first, _, state = model.losses(x[:, :cut])
    second, _, _ = model.losses(x[:, cut:], state=state)
    return (torch.cat((first, second), 1).square() * torch.arange(1, x.shape[1] + 1)).sum()


def slopes(loss: Tensor, model: Model, create: bool = False, keep: bool = False) -> list[Tensor]:
    given = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(
        loss, given, retain_graph=keep or create, create_graph=create, allow_unused=True
    )
    return [torch.zeros_like(w) if g is None else g for w, g in zip(given, found, strict=True)]


def furthest(found: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", ["as it is", "rounds", "what fades", "the array itself"])
def test_second_derivatives(kind: str) -> None:
    model = nlc.compile(nlc.load(text_of(kind)), dtype=torch.float64)
    x = tokens(2, 9, vocab=5)

    def second() -> list[Tensor]:
        first = slopes(loss_of(model, x, 5), model, create=True)
        return slopes(torch.stack([g.square().sum() for g in first]).sum(), model)

    with plainly():
        wanted = second()
    assert max(float(g.abs().max()) for g in wanted) > 0.1
    assert furthest(second(), wanted) < 1e-9


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda losses, y: losses[:, :-1].mean(),
    "weighted": lambda losses, y: (losses * torch.arange(losses.numel()).view_as(losses)).sum(),
    "answers too": lambda losses, y: losses[:, :-1].mean() + y.square().mean(),
    "some of them": lambda losses, y: losses[:, 1:-1:3].sum(),
    "answers alone": lambda losses, y: y.square().mean(),
}


@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["as it is", "rounds", "a closed start", "the array itself"])
def test_what_training_is_sent(kind: str, loss: str, room: bool) -> None:
    """Once for it and for the levels on tokens, where what comes to every loss is one number; where
    there is room for no array, what is larger than the smallest is asked for by itself.
    """
    model = nlc.compile(nlc.load(text_of(kind)), dtype=torch.float64)
    x = tokens(2, 9, vocab=5)

    def first() -> list[Tensor]:
        return slopes(LOSSES[loss](model.losses(x)[0], model(x)[0]), model)

    with plainly():
        wanted = first()
    assert max(float(g.abs().max()) for g in wanted) > 0.01
    with patch("nlc.backends.runtime.shared.ROOM", 1 if room else 0.01):
        assert furthest(first(), wanted) < 1e-12


def test_a_mean_loss_asks_a_span_for_nothing() -> None:
    model, x = nlc.compile(small("hope", depth=1), dtype=torch.float64), tokens(1, 15)
    asked = []
    for loss in ("mean", "weighted"):
        losses, _, _ = model.losses(x)
        of_training = LOSSES[loss](losses, losses)
        with patch("torch.autograd.grad", wraps=torch.autograd.grad) as calls:
            of_training.backward()  # type: ignore[no-untyped-call]
        asked.append(calls.call_count)
    assert asked == [0, 7]


def test_a_graph_that_is_walked_again() -> None:
    """A pass that is for some of the weights leaves nothing to the next."""
    model, x = nlc.compile(small("hope", depth=1), dtype=torch.float64), tokens(2, 15)
    with plainly():
        wanted = slopes(loss_of(model, x, 9), model)
    loss = loss_of(model, x, 9)
    torch.autograd.grad(loss, model.weights.x.embed, retain_graph=True)
    for _ in range(2):
        assert furthest(slopes(loss, model, keep=True), wanted) < 1e-10
    slopes(loss, model)
    with pytest.raises(RuntimeError, match="second time"):
        slopes(loss, model)


def test_a_span_is_run_once() -> None:
    """But for the last of a call, whose last tick waits for its label."""
    model, x = nlc.compile(small("hope", depth=1), dtype=torch.float64), tokens(1, 15)
    with patch.object(model, "flow", wraps=model.flow) as calls:
        model.losses(x)
    assert [call.args[1].shape[1] for call in calls.call_args_list] == [2] * 7 + [1, 1]


def test_a_gradient_that_waits_is_multiplied_once() -> None:
    """For each array of a level, however often it fires."""
    model = nlc.compile(small("hope", depth=1, width=64))
    losses, _, _ = model.losses(tokens(1, 15))
    with patch("nlc.backends.runtime.sums.times", wraps=times) as calls:
        losses.sum().backward()  # type: ignore[no-untyped-call]
    assert calls.call_count == sum(len(paths) for _, _, paths in model.LEARNERS) == 6
