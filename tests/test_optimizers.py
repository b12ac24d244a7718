"""What a model is trained by: against torch.optim, and against the reference's steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from shipped import SPECS, SYSTEMS, compiled, distance, tokens, truth_of
from torch import Tensor, nn

import nlc
from nlc.backends.reference import Reference
from nlc.backends.runtime import Model, Optimizer
from nlc.driver import Spec

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def network(learn: str, clock: str = "every step", uses: str = "", more: str = "") -> Spec:
    """A network of two layers and a gain that learns sums of squares."""
    return nlc.load(
        f"nl 1\n{uses}\nsystem one() {{\n  level training {clock} {{ objective loss; {learn} }}\n"
        f"{more}  flow(x[4], y[3]) {{\n    p = linear(tanh(norm(linear(x, 5))), 3)\n"
        "    loss = sum((p - y)^2)\n    return p\n  }\n}\n"
    )


def pair(spec: Spec) -> tuple[Model, Model]:
    return nlc.compile(spec, dtype=torch.float64), nlc.compile(spec, dtype=torch.float64)


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(2, 6, 7, generator=generator, dtype=torch.float64)
    return x[..., :4], x[..., 4:]


def backward(model: Model, *inputs: Tensor) -> None:
    losses, labelled, _ = model.losses(*inputs)
    losses[labelled].mean().backward()  # type: ignore[no-untyped-call]


def train(model: Model, optimizers: list[Optimizer], steps: range) -> None:
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(model, *data(step))
        for optimizer in optimizers:
            optimizer.step()


def assert_same(a: Model, b: Model, tolerance: float = 1e-10) -> None:
    others = dict(b.named_weights())
    for name, p in a.named_weights():
        assert distance(p, others[name]) <= tolerance, name


# ---- torch.optim --------------------------------------------------------------------------------

RULES: list[tuple[str, Make]] = [
    ("learn gradient(rate = 0.05)", lambda p: torch.optim.SGD(p, 0.05)),
    (
        "learn momentum(rate = 0.02, keep = 0.8)",
        lambda p: torch.optim.SGD(p, 0.02, momentum=0.8),
    ),
    (
        "learn adam(rate = 0.01, b1 = 0.8, b2 = 0.95, eps = 1e-6)",
        lambda p: torch.optim.Adam(p, 0.01, betas=(0.8, 0.95), eps=1e-6),
    ),
    (
        "learn adamw(rate = 0.01, shrink = 0.3)",
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.3),
    ),
]


@pytest.mark.parametrize("learn, make", RULES, ids=[r for r, _ in RULES])
def test_twenty_steps_are_those_of_torch(learn: str, make: Make) -> None:
    ours, theirs = pair(network(learn))
    optimizers, other = ours.optimizers(), make(list(theirs.parameters()))
    train(ours, optimizers, range(20))
    for step in range(20):
        other.zero_grad()
        backward(theirs, *data(step))
        other.step()
    assert_same(ours, theirs)


def test_clipping_is_over_all_arrays_of_a_line() -> None:
    learn = "learn gradient(rate = 0.05, grad = clipped(grad, 0.7))"
    ours, theirs = pair(network(learn, uses='use "schedules"'))
    train(ours, ours.optimizers(), range(10))
    other = torch.optim.SGD(theirs.parameters(), 0.05)
    clipped = 0
    for step in range(10):
        other.zero_grad()
        backward(theirs, *data(step))
        clipped += float(nn.utils.clip_grad_norm_(theirs.parameters(), 0.7)) > 0.7
        other.step()
    assert clipped > 2
    assert_same(ours, theirs)


def test_a_schedule_counts_firings() -> None:
    learn = "learn gradient(rate = 0.05 * warm_cosine(count, 3, 9))"
    ours, theirs = pair(network(learn, uses='use "schedules"'))
    train(ours, ours.optimizers(), range(12))
    other = torch.optim.SGD(theirs.parameters(), 1.0)
    for step in range(12):
        done = min(max((step + 1 - 3) / 6, 0), 1)
        shape = 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
        other.param_groups[0]["lr"] = 0.05 * ((step + 1) / 3 if step + 1 < 3 else shape)
        other.zero_grad()
        backward(theirs, *data(step))
        other.step()
    assert_same(ours, theirs)


def test_every_four_steps_sums_and_fires() -> None:
    learn = "learn adamw(rate = 0.01, shrink = 0.3)"
    ours, theirs = pair(network(learn, "every 4 steps"))
    optimizers = ours.optimizers()
    other = torch.optim.AdamW(theirs.parameters(), 0.01, weight_decay=0.3)
    for step in range(10):
        before = [p.detach().clone() for p in ours.parameters()]
        train(ours, optimizers, range(step, step + 1))
        backward(theirs, *data(step))  # gradients add up in .grad
        stood = all(map(torch.equal, before, ours.parameters()))
        assert stood == ((step + 1) % 4 != 0)
        if (step + 1) % 4 == 0:
            other.step()
            other.zero_grad()
    assert_same(ours, theirs)


# ---- the reference ------------------------------------------------------------------------------


def compare_steps(model: Model, truth: Reference, batches: list[tuple[Tensor, ...]]) -> None:
    """Where both see the same gradient, the same steps."""
    optimizers = model.optimizers()
    for inputs in batches:
        for optimizer in optimizers:
            optimizer.zero_grad()
        backward(model, *inputs)
        grads = truth.step(inputs[0] if len(inputs) == 1 else list(inputs))
        # Adam's first amount is the sign of a gradient: where that is rounding, so is its sign.
        for name, p in model.named_weights():
            if name in grads and p.grad is not None:
                assert float((p.grad - grads[name]).abs().max()) <= 1e-9, name
                noise = grads[name].abs() < 1e-12
                assert bool((p.grad[noise].abs() < 1e-12).all()), name
                p.grad = torch.where(noise, grads[name], p.grad)
        for optimizer in optimizers:
            optimizer.step()
        for name, p in model.named_weights():
            assert distance(p, truth.values[name]) <= 1e-9, name


@pytest.mark.parametrize("name", SYSTEMS)
def test_two_steps_are_those_of_the_reference(name: str) -> None:
    model = compiled(name)
    compare_steps(model, truth_of(name, model), [(tokens(2, 7, seed=s),) for s in range(2)])


HELD = """  level slow(x) every 2 steps {
    state W : matrix(4, 4) = normal(0.5)
    state F : mlp(4, 6)
    objective loss
    retain 0.98
    learn momentum(rate = 0.05)
    read F(W(x))
  }
  transfer backprop slow -> training
"""
LEVELS = {
    "a clip": network("learn adam(rate = 0.01, grad = clipped(grad, 1))", uses='use "schedules"'),
    "lines for kinds": network("learn muon(rate = 0.1) for matrices; learn adam(rate = 0.01)"),
    "periods": network("learn adam(rate = 0.01)", "every 3 steps"),
}


@pytest.mark.parametrize("name", LEVELS)
def test_levels_on_steps_are_those_of_the_reference(name: str) -> None:
    model = nlc.compile(LEVELS[name], dtype=torch.float64)
    truth = nlc.reference(LEVELS[name], model.state_dict())
    compare_steps(model, truth, [data(s) for s in range(4)])


def test_states_of_levels_on_steps_are_those_of_the_reference() -> None:
    spec = nlc.load(
        "nl 1\nsystem one() {\n"
        "  level training every step { objective loss; learn gradient(rate = 0.05) }\n"
        f"{HELD}  flow(x[4], y[3]) {{\n    p = linear(slow(x), 3)\n"
        "    loss = sum((p - y)^2)\n    return p\n  }\n}\n"
    )
    model = nlc.compile(spec, dtype=torch.float64)
    truth = nlc.reference(spec, model.state_dict())
    assert len(model.optimizers()) == 2
    compare_steps(model, truth, [data(s) for s in range(4)])


@pytest.mark.parametrize("rule", ["muon(rate = 0.02)", "dmgd(rate = 0.02, hidden = 3)"])
def test_a_matrix_for_each_head_is_served_alone(rule: str) -> None:
    """The starts of memories `per heads`: each head is made orthogonal, or has a network, of its
    own, whose sizes are those of that start.
    """
    text = (SPECS / "self_modifying_titans.nl").read_text(encoding="utf-8")
    text = text.replace("learn     adamw", f"learn {rule} for matrices; learn adamw")
    spec = nlc.load(text, width=8, depth=1, heads=2, vocab=11, chunk=3)
    model = nlc.compile(spec, dtype=torch.float64)
    truth = nlc.reference(spec, model.state_dict())
    compare_steps(model, truth, [(tokens(2, 7),)])


def test_muon_serves_matrices_only() -> None:
    (optimizer,) = compiled("transformer").optimizers()
    for name, rule in optimizer.rules.items():
        assert rule.startswith("muon") == ("linear" in name), name
    # of matrices with more rows than columns the products are taken on the other side
    assert set(optimizer.rules.values()) == {"muon", "muon_2", "adamw"}


# ---- rules of every form ------------------------------------------------------------------------

FORMS = """
optimizer network(weight, grad, rate = 0.05) {
  state m : mlp(dim(grad), 3) {
    objective sum((m(grad) - grad)^2)
    retain 0.9
    learn adam(rate = 0.02)
  }
  write -rate * m(grad)
}

optimizer clipped_network(weight, grad, rate = 0.05) {
  state m : residual(gated_mlp(dim(grad), 3)) {
    objective sum(m(grad) * grad)
    retain 0.9
    learn adamw(rate = 0.02, grad = clipped(grad, 0.01))
  }
  state S : mlp(dim(grad), 2)  { set 0.9 * S + 0.1 * S }
  write -rate * m(grad) + S(grad) * 0.01
}

optimizer twice(weight, grad, rate = 0.05) {
  state M : matrix(dim(grad), dim(grad)) = 0.5 {
    objective sum((M(grad) - grad)^2) / 2 after retain
    retain 0.95
    learn gradient(rate = 0.01, steps = 2)
  }
  write -rate * M(grad)
}

optimizer thrice(weight, grad, rate = 0.05) {
  state m : like(weight) {
    objective sum((m - grad)^2)
    retain 0.9
    learn adam(rate = 0.1, steps = 3)
  }
  write -rate * m
}

optimizer levels(weight, grad, rate = 0.05) {
  state m : like(weight) { set grad + 0.5 * m }
  old = m
  level slow every 2 steps from 3 {
    now = count * 0.1
    state a : like(weight)
    objective sum(a * grad) + now * sum(a^2)
    retain 0.9
    learn momentum(rate = 0.1)
  }
  level sums every 2 steps {
    state b : like(weight) { write m * 0.1; retain 0.5 }
    state c : like(weight) = 0.5 { set old }
    state d : like(weight) { objective sum(d * m) once; learn gradient(rate = 1) }
  }
  write -rate * (m + slow.a + sums.b + 0.1 * sums.c + sums.d + 0.01 * weight)
  retain 0.99
}

optimizer linked(weight, grad, rate = 0.05) {
  state m : like(weight) = grad {
    objective sum((m - grad)^2)
    retain 0.9 through tanh
    learn gradient(rate = 0.1)
  }
  state u : like(weight) = normal(0.3) {
    objective -sum(u * grad)
    retain 1 onto unit
    learn gradient(rate = 0.3)
  }
  write -rate * (m + u)
}

optimizer by_autograd(weight, grad, rate = 0.05) {
  state m : like(weight) {
    objective sum(frobenius(m - 0.5 * stop(m) - grad))  # `stop(m)` is no part of its gradient
    retain 0.9
    learn gradient(rate = 0.1)
  }
  write -rate * m
}

optimizer shapes(weight, grad, rate = 0.05) {
  n = dim(grad)
  state L : matrix(n, n) {
    objective -sum(L * (transpose(grad) @ grad))
    retain 0.9
    learn gradient(rate = 1)
  }
  state v : vector(n) = 1 {
    objective sum((v - mean(transpose(grad)^2, 1))^2)
    retain 0.5
    learn momentum(rate = 0.1)
  }
  write -rate * (solve(grad, L + eye(L) * 0.1))
}

optimizer odd(weight, grad, rate = 0.05) {
  a = stack(sum(grad), mean(grad), 1)
  b = concat(a, a)
  d = min(max(abs(weight), abs(grad)), 2 * abs(grad))
  e = where(grad > 0, 1, 0)
  now = [1, 2, 3][mod(count, 3)] * sigmoid(count - 2)
  write -rate * (min(max(d, 0.01), 3) * e + clip(grad, -1, sum(b)^2 + 0.1) + now * 0.01 * grad)
}

optimizer decayed(weight, grad, rate = 0.05) { write -rate * (grad + 0.1 * weight) }
"""
DECLARED = {b.split("(")[0].split()[1]: b for b in FORMS.strip().split("\n\n")}
SHIPPED = sorted(p.stem for p in (SPECS / "optim").glob("*.nl"))


def of_rule(rule: str, clock: str, rest: str) -> Spec:
    """Arrays of several kinds, some by the rule."""
    return nlc.load(
        f'nl 1\nuse "schedules"\n{DECLARED.get(rule, "")}\n'
        f"system one() {{\n  level training {clock} {{ objective loss; learn {rule}() {rest} }}\n"
        "  flow(x[4], y[3]) {\n    z = tanh(norm(linear(x, 5)) + learned(5))\n"
        "    p = linear(z, 3)\n    loss = sum((p - y)^2)\n    return p\n  }\n}\n"
    )


@pytest.mark.parametrize("rule", [*SHIPPED, *DECLARED])
def test_a_rule_on_steps_is_that_of_the_reference(rule: str) -> None:
    """Every step, and summed over two; with starts, schedules and levels of its own."""
    for clock in ("every step", "every 2 steps")[: 1 if rule == "dgd" else 2]:
        spec = of_rule(rule, clock, "for matrices; learn adam(rate = 0.01)")
        model = nlc.compile(spec, dtype=torch.float64)
        truth = nlc.reference(spec, model.state_dict())
        compare_steps(model, truth, [data(s) for s in range(7)])


VECTORS = ["gradient", "lion", "nadam", "levels", "linked", "by_autograd", "decayed", "thrice"]


@pytest.mark.parametrize("rule", VECTORS)
def test_a_rule_serves_arrays_of_every_kind(rule: str) -> None:
    spec = of_rule(rule, "every step", "")
    model = nlc.compile(spec, dtype=torch.float64)
    truth = nlc.reference(spec, model.state_dict())
    compare_steps(model, truth, [data(s) for s in range(5)])


KEEPER = """
memory keeper(q[n], k[n], v[m]) {{
  state     M : matrix(n, m)
  retain    0.9
  objective sum((M(k) - v)^2) / 2
  learn     {rule}()
  read      M(q)
}}
system one(width = 4) {{
  level training every step {{ objective loss; learn gradient(rate = 0.05) }}
  level mem(x) every 3 tokens {{
    read keeper(linear(x, width), linear(x, width), linear(x, width))
  }}
  transfer backprop mem -> training
  flow(x[4], y[4]) {{
    p = x + mem(x)
    loss = sum((p - y)^2)
    return p
  }}
}}
"""
AT_TOKENS = ["adam", "muon", "m3", "lion", "adam_mini", "shampoo", "delta_momentum", "nadam"]


@pytest.mark.parametrize("rule", [*AT_TOKENS, "levels", "shapes", "by_autograd"])
def test_a_rule_inside_a_memory_is_that_of_the_reference(rule: str) -> None:
    """What it answers, and the gradient that goes through what it wrote."""
    spec = nlc.load(f"nl 1\n{DECLARED.get(rule, '')}\n{KEEPER.format(rule=rule)}")
    model = nlc.compile(spec, dtype=torch.float64)
    truth = nlc.reference(spec, model.state_dict())
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 8, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    answers, _ = model(x, y)
    assert distance(answers, truth([x, y])[0]) <= 1e-9
    backward(model, x, y)
    wanted = truth.gradients([x, y])
    for name, p in model.named_weights():
        assert p.grad is not None
        assert distance(p.grad, wanted[name]) <= 1e-8, name


# ---- as a torch.optim.Optimizer -----------------------------------------------------------------


def test_all_state_exists_before_the_first_step() -> None:
    model = nlc.compile(network("learn adamw(rate = 0.01)", "every 2 steps"))
    (optimizer,) = model.optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    held = optimizer.state_dict()["state"]
    assert len(held) == len(list(model.parameters()))
    assert all(set(arrays) == {"m", "h", "pending gradients"} for arrays in held.values())


@pytest.mark.parametrize("at", [0, 1, 4, 5, 6])
def test_a_run_resumes_to_the_same_bits(at: int) -> None:
    """Also in the middle of a period."""
    one, two = pair(network("learn adamw(rate = 0.01, shrink = 0.3)", "every 3 steps"))
    optimizers = one.optimizers()
    train(one, optimizers, range(at))
    saved = [o.state_dict() for o in optimizers]
    weights = {k: v.clone() for k, v in one.state_dict().items()}
    saved = torch.utils._pytree.tree_map(lambda x: x.clone() if torch.is_tensor(x) else x, saved)
    train(one, optimizers, range(at, 8))
    two.load_state_dict(weights)
    others = two.optimizers()
    for optimizer, state in zip(others, saved, strict=True):
        optimizer.load_state_dict(state)
    train(two, others, range(at, 8))
    assert_same(one, two, 0)


def test_a_missing_gradient_is_nothing() -> None:
    """It leaves momentum going, and an array that shrinks shrinking."""
    one, two = pair(network("learn adamw(rate = 0.01, shrink = 0.3)"))
    first, second = one.optimizers()[0], two.optimizers()[0]
    train(one, [first], range(2))
    train(two, [second], range(2))
    first.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in one.parameters())
    second.zero_grad(set_to_none=False)
    before = [p.detach().clone() for p in one.parameters()]
    first.step()
    second.step()
    assert_same(one, two, 0)
    assert not any(map(torch.equal, before, one.parameters()))


def test_a_closure_is_run() -> None:
    model = nlc.compile(network("learn gradient(rate = 0.01)"), dtype=torch.float64)
    (optimizer,) = model.optimizers()

    def closure() -> float:
        optimizer.zero_grad()
        losses, _, _ = model.losses(*data(0))
        losses.mean().backward()  # type: ignore[no-untyped-call]
        return float(losses.detach().mean())

    first, second = optimizer.step(closure), optimizer.step(closure)
    assert first is not None and second is not None and second < first


def test_weights_keep_what_their_level_says() -> None:
    """`retain` of the level that owns the weights, against the reference."""
    spec = nlc.load(
        """nl 1
system a(vocab = 7, width = 4) {
  level training every step { objective loss; retain 0.9; learn gradient(rate = 0.1) }
  flow(tokens) {
    x = embed(tokens, vocab, width)
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }
}
"""
    )
    model = nlc.compile(spec, dtype=torch.float64)
    truth = nlc.reference(spec, model.state_dict())
    tokens = torch.randint(0, 7, (2, 9), generator=torch.Generator().manual_seed(0))
    losses, labelled, _ = model.losses(tokens)
    losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
    for optimizer in model.optimizers():
        optimizer.step()
    truth.step(tokens)
    for name, p in model.named_weights():
        torch.testing.assert_close(p.detach(), truth.values[name], rtol=0, atol=1e-12)
