"""Levels on tokens that are differentiated themselves: starts that they learn for each other, and
second derivatives of the model's own loss. Against the reference, and against torch by hand.
"""

from __future__ import annotations

import pytest
import torch
from shipped import distance
from torch import Tensor

import nlc
from nlc.backends.runtime import Model
from nlc.driver import Spec, SpecError
from nlc.verify import properties as P
from nlc.verify.streams import farthest, gradients, in_calls, run_of, truth_of

EXACT = 1e-11
TEXT = """nl 1
use "memory/attend"
{outside}
system found() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level attention(x) always {{
    q = linear(x, 2)
    k = linear(x, 2)
    read attend(q, k, linear(x, 4))
  }}
  {beside}
  level slow(x) every 4 tokens {{ {slow}{body} }}
  level fast(x) every {clock} {{ {fast}{body} }}
  {transfers}
  flow(tokens) {{
    x = embed(tokens, 5, 4)
    x += attention(norm(x))
    {more}
    x += fast(x)
    x += slow(x)
    logits = unembed(norm(x), 5)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
"""
BODY = "state F : mlp(4, 3, 4); objective loss; learn gradient(rate = 0.3); read F(norm(x))"
OPEN = "transfer backprop attention -> training, fast, slow"
BACK = "transfer backprop fast, slow -> training"
INIT = "transfer init training -> slow -> fast"
TITAN = """level titan(x) every token {{
    {}state M : {}
    k = unit(linear(x, 4))
    objective sum((M(k) - x)^2)
    learn gradient(rate = 0.1)
    {}
    read M(k)
  }}"""


def spec(
    *transfers: str, body: str = BODY, clock: str = "2 tokens", slow: str = "",
    fast: str = "reset every 4 tokens; ", beside: str = "", more: str = "", outside: str = "",
) -> Spec:  # fmt: skip
    lines = "\n  ".join(transfers or (OPEN, BACK, INIT))
    return nlc.load(
        TEXT.format(
            transfers=lines, body=body, clock=clock, slow=slow, fast=fast, beside=beside, more=more,
            outside=outside,
        )
    )  # fmt: skip


def learned(rule: str) -> str:
    return BODY.replace("gradient(rate = 0.3)", rule)


def titan(form: str, extra: str = "", reset: str = "") -> dict[str, str]:
    return {"beside": TITAN.format(reset, form, extra), "more": "x += titan(x)"}


THREE = f"""level slow(x) every 4 tokens {{ {BODY} }}
  level mid(x) every 2 tokens {{ reset every 4 tokens; {BODY} }}
  level fast(x) every token {{ reset every 2 tokens; {BODY} }}"""
HEADS = "state F : matrix(2, 2) per 2; objective loss; learn gradient(rate = 0.3); "
CASES: dict[str, Spec] = {
    "a start that the slower learns": spec(),
    "of the first order": spec(OPEN, f"{BACK} first order", f"{INIT} first order"),
    "that training learns by nothing else": spec(OPEN, INIT, body=BODY.replace("norm(x)", "x")),
    "that training does not learn": spec(OPEN, BACK, "transfer init slow -> fast"),
    "without a reset": spec(fast=""),
    "both start anew": spec(slow="reset every 8 tokens; "),
    "a period cut short": spec(clock="3 tokens", fast="reset every 4 tokens; partial flush; "),
    "by adam": spec(body=learned("adam(rate = 0.05, eps = 0.1)")),
    "by momentum, fading": spec(body=learned("momentum(rate = 0.1, keep = 0.5); retain 0.9")),
    "of several states": spec(
        body="state F : mlp(4, 3, 4); state b : vector(4) = normal(0.3); objective loss; "
        "learn gradient(rate = 0.3); read F(norm(x)) + b"
    ),
    "of every head": spec(body=f"{HEADS}read join(F(split(norm(x), 2)))"),
    "past a convolution": spec(
        body=BODY.replace("norm(x)", "conv(norm(x), 2)"), more="x += conv(x, 3)"
    ),
    "a second derivative alone": spec(OPEN, BACK, "transfer init training -> slow, fast"),
    "and no start": spec(OPEN, BACK),
    "a reset alone": spec(
        OPEN, f"{BACK} first order", "transfer init training -> slow, fast first order"
    ),
    "a reset, and pasts that are closed": spec(
        "transfer backprop attention -> training, fast, slow",
        f"{BACK} first order", body=BODY.replace("norm(x)", "conv(norm(x), 2)"),
    ),
    "what the faster writes, to the slower": spec(OPEN, BACK, "transfer backprop fast -> slow"),
    "of the third order, through a norm": spec(
        OPEN, BACK, "transfer backprop fast -> slow",
        body=BODY.replace("mlp(4, 3, 4)", "layernorm(matrix(4, 4))"),
    ),
    "of the first order, and another's": spec(
        OPEN, "transfer backprop slow -> training", "transfer init training -> slow",
        "transfer backprop fast -> training first order", "transfer init slow -> fast first order",
    ),
    "and to its start": spec(OPEN, BACK, "transfer backprop fast -> slow", INIT),
    "beside a matrix": spec(
        OPEN, BACK, INIT, "transfer backprop titan -> training", **titan("matrix(4, 4)")
    ),
    "beside a matrix that is open": spec(
        OPEN, BACK, INIT, "transfer backprop titan -> training, fast, slow", **titan("matrix(4, 4)")
    ),
    "beside a network": spec(
        OPEN, BACK, INIT, "transfer backprop titan -> training",
        **titan("mlp(4, 4, 4)", "linearise every 4 tokens"),
    ),
    "beside a network, each token by itself": spec(
        OPEN, BACK, INIT, "transfer backprop titan -> training",
        **titan("mlp(4, 4, 4)", "linearise every 1 tokens"),
    ),
    "beside a memory that starts anew": spec(
        OPEN, BACK, INIT, "transfer backprop titan -> training",
        **titan("matrix(4, 4)", reset="reset every 3 tokens; "),
    ),
    "of heads by themselves": spec(
        OPEN, BACK, "transfer init training -> slow, fast", body="read join(kept(split(x, 2)))",
        outside="memory kept(x[n]) { state F : matrix(n, n); objective loss; "
        "learn gradient(rate = 0.3); read F(tanh(x)) }",
    ),
}  # fmt: skip


def three(order: str = "") -> Spec:
    text = TEXT.format(
        transfers="\n  ".join([
            "transfer backprop attention -> training, fast, mid, slow",
            f"transfer backprop fast, mid, slow -> training{order}",
            f"transfer init training -> slow -> mid -> fast{order}",
        ]), body=BODY, clock="token", slow="", fast="", beside="", more="x += mid(x)", outside="",
    )  # fmt: skip
    lines = text.split("\n")
    at = next(i for i, line in enumerate(lines) if "level slow" in line)
    lines[at : at + 2] = [f"  {THREE}"]
    return nlc.load("\n".join(lines))


def tokens(time: int, batch: int = 2) -> Tensor:
    return torch.randint(0, 5, (batch, time), generator=torch.Generator().manual_seed(time))


def agrees(made: Spec, time: int = 7, cut: int = 5) -> Model:
    """Answers, losses, gradients, any split, and a second call, as the reference has them."""
    model, x = nlc.compile(made, dtype=torch.float64), tokens(time)
    reference = nlc.reference(made, model.state_dict(), traced=())
    truth = truth_of(reference, (x,))
    for measured in (
        P.same_outputs(model, (x,), truth),
        P.same_losses(model, (x,), truth),
        P.same_gradients(model, (x,), truth),
        P.gradients_across_calls(model, made.system, (x,)),
        P.gradients_handed_over(model, reference, (x,), cut),
    ):
        assert measured.value <= EXACT, measured
    with torch.no_grad():
        for cuts in ([2, 3, time - 1], [4], list(range(1, time))):
            assert distance(in_calls(run_of(model), (x,), cuts), truth.outputs) <= EXACT, cuts
    return model


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_the_reference_says(name: str) -> None:
    agrees(CASES[name], 10 if name == "both start anew" else 7)


@pytest.mark.parametrize("order", ["", " first order"], ids=["second", "first"])
def test_starts_of_starts(order: str) -> None:
    """fast from what mid has learned, and that from what slow has: third derivatives, or none."""
    model = agrees(three(order), 7, 3)
    assert {"fast.F.W1@mid", "fast.F.W1@mid@slow", "mid.F.W1@slow"} <= set(model.kept_arrays())
    assert set(model.SECOND) == {not order}


def test_a_system_without_them_keeps_its_two_graphs() -> None:
    assert not nlc.compile(CASES["a reset alone"]).JOINT
    assert nlc.compile(CASES["of the first order"]).SECOND == (False, False)
    assert nlc.compile(CASES["a second derivative alone"]).SECOND == (False, True)


def test_the_orders_differ() -> None:
    second, first = (
        gradients(nlc.compile(CASES[n], dtype=torch.float64), (tokens(9),))
        for n in ("a start that the slower learns", "of the first order")
    )
    assert farthest(second, first)[0] > 1e-3


# ---- by hand -------------------------------------------------------------------------------------

PLAIN = """nl 1
system plain() {{
  level training every step {{ objective loss; learn gradient(rate = 0.1) }}
  level slow(x) every 4 tokens {{ {body} }}
  level fast(x) every 2 tokens {{ reset every 4 tokens; {body} }}
  transfer init training -> slow -> fast{order}
  flow(x[3], y[3]) {{
    p = slow(fast(x))
    loss = sum((p - y)^2)
    return p
  }}
}}
"""
MATRIX = "state F : matrix(3, 3); objective loss; learn gradient(rate = 0.1); read F(x)"


@pytest.mark.parametrize("order", ["", " first order"], ids=["second", "first"])
def test_a_start_moves_by_the_derivative_through_the_steps_from_it(order: str) -> None:
    """The fast block takes a step in the slow one's period; after it, it starts from what the slow
    one has learned by the loss before and after that step.
    """
    model = nlc.compile(nlc.load(PLAIN.format(body=MATRIX, order=order)), dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1, 5, 3, generator=draw, dtype=torch.float64)
    start, slow = (dict(model.named_weights())[n].detach() for n in ("fast.F", "slow.F"))

    def cost(F: Tensor, first: int) -> Tensor:
        says = x[0, first : first + 2] @ F.mT @ slow.mT
        off: Tensor = says - y[0, first : first + 2]
        return off.square().sum()

    def whole(F: Tensor) -> Tensor:
        slope = torch.func.grad(cost)(F, 0)
        step = slope.detach() if order else slope
        return cost(F, 0) + cost(F - 0.1 * step, 2)

    wanted = start - 0.1 * torch.func.grad(whole)(start)
    _, state = model(x[:, :4], y[:, :4])
    assert distance(state.arrays["fast.F@slow"][0], wanted) <= 1e-12
    assert torch.equal(state.arrays["fast.F"], state.arrays["fast.F@slow"])


# ---- what is kept, and what is refused -----------------------------------------------------------


def test_a_state_that_is_saved_goes_on(tmp_path: object) -> None:
    """In the middle of a period, what is owed and where starts come from is made again."""
    from pathlib import Path

    from nlc.backends.runtime import load_state

    model, x = nlc.compile(CASES["a start that the slower learns"], dtype=torch.float64), tokens(15)
    with torch.no_grad():
        whole = model(x)[0]
        for cut in (3, 4, 6, 9):
            _, state = model(x[:, :cut])
            state.save(Path(str(tmp_path)) / "state")
            loaded = load_state(Path(str(tmp_path)) / "state", model)
            assert distance(model(x[:, cut:], state=loaded)[0], whole[:, cut:]) <= EXACT
            forked = state.fork()
            assert distance(model(x[:, cut:], state=state)[0], whole[:, cut:]) <= EXACT
            assert distance(model(x[:, cut:], state=forked)[0], whole[:, cut:]) <= EXACT


def test_a_graph_is_let_go_where_all_have_fired() -> None:
    """So a long stream keeps no more than the slowest period; and a state of training, detached, no
    weights.
    """
    model = nlc.compile(CASES["a start that the slower learns"], dtype=torch.float64)
    x = tokens(40)
    with torch.no_grad():
        _, state = model(x)
    assert len(state.replay) <= 3 and len(state.owed) <= 3
    assert not any(a.requires_grad for a in state.arrays.values())
    _, state = model(x[:, :7])
    assert any(a.requires_grad for a in state.arrays.values())
    y, after = model(x[:, 7:9], state=state.detach())
    found = torch.autograd.grad(y.sum(), list(model.parameters()), allow_unused=True)
    assert any(g is not None for g in found)
    with torch.no_grad():
        again, _ = model(x[:, 9:], state=after)
    assert distance(again, model(x)[0][:, 9:]) <= EXACT


def test_tokens_of_the_models_own_are_no_labels() -> None:
    """A period without a label is a firing by a gradient of nothing."""
    made = CASES["by momentum, fading"]
    model, x = nlc.compile(made, dtype=torch.float64), tokens(6)
    _, state = model(x)
    _, state = model(tokens(9), state=state, own=True)
    assert all(bool(a.isfinite().all()) for a in state.arrays.values())


@pytest.mark.parametrize(
    ("transfers", "more", "told"),
    [
        ((OPEN, BACK, f"{INIT} first order"), {}, "one of them `first order`"),
        (
            (OPEN, "transfer backprop slow -> training", INIT),
            {"body": BODY.replace("norm(x)", "x")},
            "and not the `fast` that starts from it",
        ),
        (
            (OPEN, BACK, INIT, "transfer backprop titan -> training"),
            titan("mlp(4, 4, 4)"),
            "a second derivative through a memory that is solved exactly",
        ),
        (
            (OPEN, BACK, INIT),
            {"slow": "reset every 8 tokens; ", "fast": ""},
            "where `slow` starts anew and `fast` does not",
        ),
        (
            (OPEN, BACK, "transfer backprop titan -> training", "transfer init slow -> titan"),
            titan("matrix(4, 4)"),
            "a start that `slow` learns while the stream runs",
        ),
    ],
)  # fmt: skip
def test_what_has_no_algorithm_is_told(
    transfers: tuple[str, ...], more: dict[str, str], told: str
) -> None:
    with pytest.raises(SpecError, match=told) as error:
        nlc.compile(spec(*transfers, **more))
    assert all(d.code == "NL701" for d in error.value.diagnostics)


def test_the_next_sequence_starts_as_the_first_did() -> None:
    """Starts that are learned while a stream runs end with it."""
    made = CASES["a start that the slower learns"]
    model, x = nlc.compile(made, dtype=torch.float64), tokens(7)
    reference = nlc.reference(made, model.state_dict(), traced=())
    with torch.no_grad():
        first, state = model(x)
        assert distance(model(x, state=model.finish(state))[0], first) <= EXACT
    _, before = reference(x)
    assert distance(reference(x, reference.finish(before))[0], first) <= EXACT


def test_examples_are_those_of_trainings_gradient_alone() -> None:
    """Two gradients that are added up, and the step of a rule that asks for what they came through;
    those of the levels on tokens come through the same products.
    """
    text = CASES["a start that the slower learns"].text.replace("unembed(", "linear(")
    text = text.replace(
        "learn gradient(rate = 0.1) }", "learn dgd(rate = 0.1) for matrices; learn gradient() }", 1
    )
    made = nlc.load(text)
    model, x = nlc.compile(made, dtype=torch.float64), tokens(9)
    reference = nlc.reference(made, model.state_dict(), traced=())
    optimizers = model.optimizers()
    for _ in range(2):
        losses, known, _ = model.losses(x)
        (losses[known].mean() / 2).backward()  # type: ignore[no-untyped-call]
    rows, _ = model.examples.of("logits.linear", dict(model.named_weights())["logits.linear"])
    assert len(rows) == 2 * int(known.sum())
    model.zero_grad()
    losses, known, _ = model.losses(x)
    losses[known].mean().backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()
    reference.step(x)
    for name, weight in model.named_weights():
        assert distance(weight.detach(), reference.values[name]) <= EXACT, name
