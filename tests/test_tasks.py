"""Levels on steps that follow others, and what happens when a task is over: against the reference,
and against what one writes by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from shipped import distance, small, tokens
from torch import Tensor, nn

import nlc
from nlc import checkpoint, cli
from nlc.backends.reference import Reference
from nlc.backends.runtime import Model, Optimizer
from nlc.driver import Spec, SpecError
from nlc.run_folder import RunFolder


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def batch(step: int, spec: Spec) -> list[Tensor]:
    """Two samples of every input of the flow."""
    return [
        draw(2, 3, *shape, seed=10 * step + i) if shape else tokens(2, 3, step)
        for i, (_, shape) in enumerate(spec.system.flow.inputs)
    ]


def one_step(model: Model, optimizers: list[Optimizer], inputs: list[Tensor]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    losses, labelled, _ = model.losses(*inputs)
    losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()


def standing(truth: Reference) -> dict[str, Tensor]:
    """All that stands in a stream, by the names of a compiled module."""
    kept = {
        ".".join(n for n in (path, state, array) if n): x
        for ((path, _), state), arrays in truth.kept.items()
        for array, x in arrays.items()
    }
    return {**truth.values, **kept}


def follows_the_reference(spec: Spec, ends: set[int], steps: int = 7) -> tuple[Model, Reference]:
    """After every step, and after the ends of tasks; once from a state that was saved."""
    model = nlc.compile(spec, dtype=torch.float64)
    truth, optimizers = nlc.reference(spec, model.state_dict()), model.optimizers()
    for step in range(steps):
        inputs = batch(step, spec)
        assert distance(model(*inputs)[0], truth(inputs)[0]) < 1e-9, f"answers at step {step}"
        one_step(model, optimizers, inputs)
        truth.step(inputs)
        if step in ends:
            for optimizer in optimizers:
                optimizer.end_task()
            truth.end_task()
        if step == steps // 2:
            model, optimizers = saved(spec, model, optimizers)
        ours = dict(model.named_weights())
        for name, value in standing(truth).items():
            assert distance(ours[name], value) < 1e-9, f"{name} after step {step}"
    return model, truth


def saved(spec: Spec, model: Model, optimizers: list[Optimizer]) -> tuple[Model, list[Optimizer]]:
    """The same, from what was written down."""
    other = nlc.compile(spec, dtype=torch.float64, seed=1)
    other.load_state_dict(model.state_dict())
    theirs = other.optimizers()
    for a, b in zip(optimizers, theirs, strict=True):
        b.load_state_dict(a.state_dict())
    return other, theirs


# ---- states that follow others -------------------------------------------------------------------


def followed(
    clock: str = "every step", T: str = "= student.F", e: str = "", more: str = "", call: str = ""
) -> Spec:
    e = e or "0.75 * T + 0.25 * student.F"
    return nlc.load(f"""nl 1
    system followed() {{
      level student(x) every step {{
        state F : mlp(3, 4)
        objective loss
        learn adam(rate = 0.05)
        read F(x)
      }}
      level target(x) {clock} {{
        state T : mlp(3, 4) {T}
        set {e}
        read T(x)
      }}
      {more}
      transfer generate student -> target
      flow(x[3], y[3]) {{
        z = student(x)
        t = target(y)
        loss = sum((z - y)^2) + sum((z - stop(t))^2)
        return concat(z, t{call})
      }}
    }}""")


@pytest.mark.parametrize(
    "clock",
    ["every step", "every 2 steps", "every 3 steps from 1", "every task", "every 2 tasks from 1"],
)
def test_a_state_follows_another_on_its_clock(clock: str) -> None:
    follows_the_reference(followed(clock), {1, 2, 5})


@pytest.mark.parametrize(
    "start, value",
    [
        ("", "0.5 * T + 0.5 * student.F"),
        ("= normal(0.1)", "T + student.F * (0.1 / count)"),
        ("= student.F", "0 * T + 2"),
    ],
)
def test_what_is_set_may_be_made_of_all_that_stands(start: str, value: str) -> None:
    follows_the_reference(followed("every step", start, value), set())


@pytest.mark.parametrize("reset", ["never", "every 3 steps"])
def test_a_level_counts_its_own_firings(reset: str) -> None:
    """Once each, whether its rule asks or a `set` of its box."""
    truth = Reference(
        nlc.load(f"""nl 1
    system counted() {{
      level one(x) every step {{
        reset {reset}
        state M : vector(3)
        state n : vector(3) {{ set 0 * n + count }}
        objective loss
        learn gradient(rate = 0 * count + 1, grad = 0 * grad - count)
        read M + 0 * n
      }}
      flow(x[3]) {{ y = one(x); loss = sum(y * x); return y }}
    }}""").system
    )
    counts = [1, 2, 3, 4, 5] if reset == "never" else [1, 2, 3, 1, 2]
    learned = 0.0
    for step, count in enumerate(counts):
        truth.step([draw(2, 3, 3, seed=step)])
        learned = count + (learned if count > 1 else 0.0)
        if reset == "never" or count < 3:  # at the third step it has been reset
            assert truth.values["one.M"].tolist() == [learned] * 3
            assert truth.kept[("one", ()), "n"][""].tolist() == [count] * 3


def test_one_follows_another_that_follows() -> None:
    """Each sees what stood: a chain is late by one step a link, in whatever order it is written."""
    chain = """
      level above(x) every step {
        state U : mlp(3, 4) = target.T
        set 0.5 * U + 0.5 * target.T
        read U(x)
      }
      transfer generate target -> above"""
    spec = followed(more=chain, call=", above(x)")
    model, _ = follows_the_reference(spec, set())
    names = [type(o).__name__ for o in model.optimizers()]
    assert names == ["AboveOptimizer", "TargetOptimizer", "StudentOptimizer"]


def test_rounds_each_have_their_own() -> None:
    spec = nlc.load("""nl 1
    system rounds() {
      level student(x) every step {
        state F : matrix(3, 3) = normal(0.5)
        objective loss
        learn gradient(rate = 0.05)
        read F(x)
      }
      level target(x) every step {
        state T : matrix(3, 3) = student.F
        near = min(T, 0.5 * T + 0.5 * student.F)
        set near + 0.01 * tanh(T)
        read T(x)
      }
      transfer generate student -> target
      flow(x[3]) {
        z = x
        off = sum(0 * x)
        repeat 2 { y = student(z); off += sum((y - target(z) - 1)^2); z = y }
        loss = off + sum(z^2)
        return z
      }
    }""")
    follows_the_reference(spec, set())


def test_levels_that_follow_each_other_have_no_order() -> None:
    spec = nlc.load("""nl 1
    system ring() {
      level a(x) every step { state A : matrix(3, 3) = normal(1); set b.B; read A(x) }
      level b(x) every step { state B : matrix(3, 3) = normal(1); set a.A; read B(x) }
      transfer generate a -> b
      transfer generate b -> a
      flow(x[3]) { return a(x) + b(x) }
    }""")
    with pytest.raises(SpecError, match="`a` and `b`, which follow each other"):
        nlc.compile(spec)


def test_what_follows_the_stream_is_refused() -> None:
    spec = nlc.load("""nl 1
    system seen() {
      level mean(x) every step { state m : vector(3); set 0.9 * m + 0.1 * x; read m }
      flow(x[3]) { return mean(x) }
    }""")
    with pytest.raises(SpecError, match="`set` of `m` on steps with `input`"):
        nlc.compile(spec)


# ---- one line, all that it serves ---------------------------------------------------------------

CLIPPED = """nl 1
def clipped(grad) { return grad * min(1, 0.1 / sqrt(across(sum(grad^2)))) }
system clipping() {
  level training every step {
    state E : matrix(3, 4) = normal(0.5)
    objective loss
    learn gradient(rate = 0.1, grad = clipped(grad))
  }
  level low(x) every step {
    state A : matrix(4, 1) = normal(0.5)
    state B : matrix(1, 4) = normal(0.5)
    objective loss
    learn gradient(rate = 0.1, grad = clipped(grad))
    read x + B(A(x))
  }
  flow(x[3], y[4]) {
    z = training.E(x)
    repeat 2 { z += low(z) }
    z = linear(z + low(z), 4)
    loss = sum((z - y)^2)
    return z
  }
}"""


def test_a_line_adds_up_over_states_weights_and_instances() -> None:
    """The norm of all that one line of the text serves, and of nothing else (2.9.4)."""
    spec = nlc.load(CLIPPED)
    model = nlc.compile(spec, dtype=torch.float64)
    wanted = {n: p.detach().clone() for n, p in model.named_weights()}
    for step in range(3):
        losses, _, _ = model.losses(*batch(step, spec))
        names, ps = zip(*model.named_weights(), strict=True)
        grads = dict(zip(names, torch.autograd.grad(losses.mean(), ps), strict=True))
        for mine in ([n for n in names if "low" in n], [n for n in names if "low" not in n]):
            norm = torch.stack([grads[n].square().sum() for n in mine]).sum().sqrt()
            for n in mine:
                wanted[n] = wanted[n] - 0.1 * grads[n] * min(1.0, 0.1 / float(norm))
        one_step(model, model.optimizers(), batch(step, spec))
        for n, p in model.named_weights():
            assert distance(p, wanted[n]) < 1e-12, n
    assert len(wanted) == 8 and "training.E" in wanted
    follows_the_reference(spec, set())


# ---- the target network that ships ---------------------------------------------------------------


def test_a_target_is_a_copy_and_then_an_average_of_what_stood() -> None:
    spec = small("target_network", keep=0.75)
    model = nlc.compile(spec, dtype=torch.float64)
    weights, optimizers = dict(model.named_weights()), model.optimizers()
    pairs = [(weights[f"target.T.{w}"], weights[f"student.F.{w}"]) for w in ("W1", "W2")]
    assert all(torch.equal(T, F) for T, F in pairs)
    follows = [T.detach().clone() for T, _ in pairs]
    for step in range(5):
        stood = [F.detach().clone() for _, F in pairs]
        one_step(model, optimizers, batch(step, spec))
        follows = [0.75 * T + 0.25 * F for T, F in zip(follows, stood, strict=True)]
        for (T, F), wanted in zip(pairs, follows, strict=True):
            assert distance(T, wanted) < 1e-12 and not torch.equal(T, F)
            assert T.grad is None and not T.requires_grad


def said(w: Mapping[str, Tensor], network: str, x: Tensor) -> Tensor:
    first, second = (w[f"{network}.W{i}"].detach() for i in (1, 2))
    return nn.functional.linear(nn.functional.gelu(nn.functional.linear(x, first)), second)


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_target_follows_the_student_before_or_after_its_update(ahead: int) -> None:
    """`ahead = 1` is the print: the student learns, then the average takes it (2006.07733, (2))."""
    spec = small("target_network", keep=0.75, ahead=ahead)
    model = nlc.compile(spec, dtype=torch.float64)
    w, optimizers = dict(model.named_weights()), model.optimizers()
    names = ("W1", "W2")
    target = {f"T.{n}": w[f"student.F.{n}"].detach().clone() for n in names}
    for step in range(5):
        view, other = batch(step, spec)
        stood = {n: w[f"student.F.{n}"].detach().clone() for n in names}
        y = said(w, "student.P", said(w, "student.F", view))
        z = said(target, "T", other)
        off = nn.functional.normalize(y, dim=-1) - nn.functional.normalize(z, dim=-1)
        assert distance(model.losses(view, other)[0], off.square().sum(-1)) < 1e-12
        one_step(model, optimizers, [view, other])
        taken = {n: w[f"student.F.{n}"].detach() for n in names} if ahead else stood
        target = {f"T.{n}": 0.75 * target[f"T.{n}"] + 0.25 * taken[n] for n in names}


def test_what_a_target_is_asked_ahead_is_the_reference() -> None:
    follows_the_reference(small("target_network", keep=0.75, ahead=1), {1, 3})


def test_a_target_starts_from_weights_that_are_brought(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    spec = small("target_network")
    other, model = nlc.compile(spec, seed=7), nlc.compile(spec)
    brought = {n: x for n, x in other.state_dict().items() if n.startswith("student")}
    save_file(brought, tmp_path / "student.safetensors")
    nlc.start_from(model, tmp_path / "student.safetensors")
    weights = model.state_dict()
    assert torch.equal(weights["target.T.W1"], other.state_dict()["student.F.W1"])


# ---- tasks -------------------------------------------------------------------------------------


def network(learn: str, clock: str = "every step", rule: str = "") -> Spec:
    return nlc.load(
        f"nl 1\n{rule}\nsystem one() {{\n  level training {clock} {{ objective loss; {learn} }}\n"
        "  flow(x[3], y[4]) {\n    p = norm(linear(tanh(linear(x, 5)), 4))\n"
        "    loss = sum((p - y)^2)\n    return p\n  }\n}\n"
    )


@pytest.mark.parametrize(
    "clock", ["every task", "every 2 tasks", "every 2 tasks from 1", "every 3 steps from 1"]
)
def test_a_level_learns_from_the_means_of_its_steps(clock: str) -> None:
    follows_the_reference(network("learn adam(rate = 0.05)", clock), {1, 2, 4})


@pytest.mark.parametrize("clock", ["3 steps from 1", "2 tasks from 1"])
def test_a_level_that_is_called_has_a_first_step(clock: str) -> None:
    follows_the_reference(nlc.load(CLIPPED.replace("every step", f"every {clock}")), {1, 2, 4})


BESIDE = """nl 1
system beside() {
  level training every step { objective loss; retain 0.9; learn adam(rate = 0.05) }
  level student(x) every step {
    state F : matrix(4, 4) = normal(0.5)
    objective loss
    learn gradient(rate = 0.1)
    read F(x)
  }
  level target(x) every step {
    state T : matrix(4, 4) = student.F
    set 0.5 * T + 0.5 * student.F
    read T(x)
  }
  level mixer(x) every token {
    state M : matrix(4, 4)
    k = unit(linear(x, 4))
    objective sum((M(k) - x)^2) / 2
    learn gradient(rate = 0.3)
    read M(k)
  }
  transfer generate student -> target
  transfer backprop mixer -> training, student
  transfer init training -> mixer
  flow(x[3], y[4]) {
    z = linear(x, 4)
    z += student(z) + target(z)
    z += mixer(z)
    loss = sum((z - y)^2)
    return z
  }
}"""


def test_what_follows_asks_for_no_gradient_and_starts_fade() -> None:
    """A level that only follows learns nothing, so a memory need not be open to it; a start is one
    of the states of the level that learns it, and what that retains holds for it too.
    """
    _, truth = follows_the_reference(nlc.load(BESIDE), set())
    assert float(truth.values["mixer.M"].abs().max()) > 0


RULE = """optimizer mine(weight, grad, rate = 0.05, keep = 0.8) {{
  state m : like(weight) {{ retain 0.5; objective sum(m * grad); learn gradient(rate = 1) }}
  level tasks every {clock} {{
    {inside}
  }}
  {beside}
  write rate * (m - tasks.a * weight)
}}"""
INSIDE = [
    "state a : like(weight) { retain keep; objective -sum(a * grad^2); learn gradient(rate = 1) }",
    "state a : like(weight) { retain keep; objective sum((a - m)^2) once; learn gradient() }",
    "state a : like(weight) = weight { set 0.5 * a + m }",
    "state a : like(weight) { write abs(grad) - 0.1 * a }",
    "state a : like(weight) { retain keep onto relu; objective -sum(a * m); learn gradient() }",
]


@pytest.mark.parametrize("clock", ["task", "2 tasks", "2 tasks from 1"])
@pytest.mark.parametrize("inside", INSIDE)
def test_a_level_on_tasks_inside_a_rule(inside: str, clock: str) -> None:
    rule = RULE.format(clock=clock, inside=inside, beside="")
    follows_the_reference(network("learn mine()", rule=rule), {1, 2, 4})


def test_a_rule_with_tasks_on_a_level_on_tasks() -> None:
    rule = RULE.format(clock="task", inside=INSIDE[0], beside="")
    for level in ("every 2 tasks", "every 2 steps"):
        follows_the_reference(network("learn mine()", level, rule), {0, 2, 3, 5}, steps=8)


@pytest.mark.parametrize(
    "inside, beside, told",
    [
        (
            "state a : like(weight) { objective sum((a - grad)^2); learn adam() }",
            "", "`a` of `mine`, on tasks, with `adam`",
        ),
        (
            "state a : like(weight) { retain 1 / count; write grad }",
            "", "`a` of `mine`, on tasks, with a number that changes in a task",
        ),
        (
            INSIDE[0], "level more every 3 tasks { state b : like(weight) { set weight } }",
            "`b` of `mine`, on tasks, beside a level of another clock",
        ),
    ],
)  # fmt: skip
def test_what_is_not_compiled_is_said(inside: str, beside: str, told: str) -> None:
    rule = RULE.format(clock="task", inside=inside, beside=beside)
    with pytest.raises(SpecError, match=told):
        nlc.compile(network("learn mine()", rule=rule)).optimizers()


def test_two_ends_in_a_row_are_no_task_more() -> None:
    """Nothing was learned between them."""
    spec = network("learn ewc(hold = 3)")
    model = nlc.compile(spec, dtype=torch.float64)
    truth, (optimizer,) = nlc.reference(spec, model.state_dict()), model.optimizers()
    optimizer.end_task()
    truth.end_task()
    for step in range(4):
        inputs = batch(step, spec)
        one_step(model, [optimizer], inputs)
        truth.step(inputs)
        if step == 1:
            for _ in range(2):
                optimizer.end_task()
                truth.end_task()
    for name, p in model.named_weights():
        assert distance(p, truth.values[name]) < 1e-9


# ---- elastic weight consolidation ----------------------------------------------------------------


def test_elastic_follows_the_reference() -> None:
    follows_the_reference(small("elastic", hold=40), {1, 3})


def penalty(weight: Tensor, fisher: Tensor, anchor: Tensor, hold: float) -> Tensor:
    """Of the paper: the quadratic that holds a weight to what earlier tasks needed."""
    return hold / 2 * (fisher * (weight - anchor) ** 2).sum()


def losses_of(task: int) -> Callable[[Tensor], Tensor]:
    """The first task asks for the first entries of a vector, the second for the others."""
    wanted = torch.tensor([3.0, 2.0, 0.0, 0.0] if task == 0 else [-1.0, 0.0, 2.0, 3.0]).double()
    asked = torch.tensor([1.0, 1.0, 0.0, 0.0] if task == 0 else [0.3, 0.0, 1.0, 1.0]).double()
    return lambda w: (asked * (w - wanted) ** 2).sum()


@pytest.mark.parametrize("keep", [0.9, 1.0])
def test_ewc_is_the_quadratic_penalty_by_hand(keep: float) -> None:
    w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    ours = nlc.optimizer("ewc")([w], lr=0.05, hold=2.0, keep=keep)
    hand = w.detach().clone()
    fisher, anchor = torch.zeros(4).double(), hand.clone()
    for task in range(3):
        seen, last = torch.zeros(4).double(), anchor
        for _ in range(6):
            ours.zero_grad()
            losses_of(task % 2)(w).backward()  # type: ignore[no-untyped-call]
            ours.step()
            hand.requires_grad_()
            (slope,) = torch.autograd.grad(losses_of(task % 2)(hand), hand)
            (hold,) = torch.autograd.grad(penalty(hand, fisher, anchor, 2.0), hand)
            last, seen = hand.detach(), seen + slope**2
            hand = (hand - 0.05 * (slope + hold)).detach()
            assert distance(w, hand) < 1e-12
        ours.end_task()
        fisher, anchor = keep * fisher + seen, last


def test_what_a_task_needed_moves_less_after_it() -> None:
    """The second task pulls all entries alike; those that the first one needed hardly move."""
    moved = {}
    for hold in (0.0, 0.05):
        w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        ewc = nlc.optimizer("ewc")([w], lr=0.05, hold=hold)
        for task in range(2):
            before = w.detach().clone()
            for _ in range(40):
                ewc.zero_grad()
                pull = losses_of(0)(w) if task == 0 else w.sum() * 0.2
                pull.backward()  # type: ignore[no-untyped-call]
                ewc.step()
            ewc.end_task()
        moved[hold] = (w.detach() - before).abs()
    assert distance(moved[0.0], moved[0.0][0].expand(4)) < 1e-2
    assert moved[0.05][:2].max() < 0.2 * moved[0.05][2:].min()
    assert distance(moved[0.05][2:], moved[0.0][2:]) < 1e-9


def test_tasks_of_arrays_without_a_gradient() -> None:
    """An array that did not fire in a task was no part of it; saved states go on."""
    a, b = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    ewc = nlc.optimizer("ewc")([a, b], lr=0.1, hold=1.0)
    for step, used in enumerate((a, b, a, a)):
        ewc.zero_grad()
        used.square().sum().backward()  # type: ignore[no-untyped-call]
        ewc.step()
        if step < 2:
            ewc.end_task()
    fishers = [ewc.state[p]["tasks.fisher"] for p in (a, b)]
    assert [f.tolist() for f in fishers] == [[4.0, 4.0], [4.0, 4.0]]
    other = nlc.optimizer("ewc")([p.detach().clone().requires_grad_() for p in (a, b)], lr=0.1)
    other.load_state_dict(ewc.state_dict())
    other.end_task()
    ewc.end_task()
    for p, q in zip(ewc.arrays, other.arrays, strict=True):
        for key, value in ewc.state[p].items():
            same = value == other.state[q][key]
            assert bool(same.all()) if isinstance(same, Tensor) else same


# ---- what a loss is made of ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        "sum((linear(x, 4) - next(y))^2)",
        "sum((conv(x, 3) - y)^2)",
        "sum(rope(x) * y) * position",
        "sum((f(norm(x)) - next(y))^2)",
        "sum((learned(4) - y)^2)",
        "sum(training.B(x) * next(y))",
    ],
)
def test_a_loss_may_use_weights_and_memories(part: str) -> None:
    """In the line of the loss itself, which is run when the next input has come."""
    spec = nlc.load(f"""nl 1
    system late() {{
      level training every step {{
        state B : matrix(4, 4)
        objective loss
        learn gradient(rate = 0.1)
      }}
      level f(x) every token {{
        state M : matrix(4, 4) = normal(0.5)
        objective sum((M(x) - x)^2)
        learn gradient(rate = 0.1)
        read M(x)
      }}
      transfer backprop f -> training
      flow(x[4], y[4]) {{
        z = linear(training.B(x) + x, 4) + 0.1 * f(x)
        loss = {part} + sum(z)
        return z
      }}
    }}""")
    model = nlc.compile(spec, dtype=torch.float64)
    truth, inputs = nlc.reference(spec, model.state_dict()), [draw(2, 5, 4), draw(2, 5, 4, seed=1)]
    wanted, _ = truth.losses(inputs)
    losses, labelled, _ = model.losses(*inputs)
    assert distance(losses, wanted) < 1e-9
    losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
    for name, grad in truth.gradients(inputs).items():
        found = dict(model.named_weights())[name].grad
        assert found is not None and distance(found, grad) < 1e-9, name
    _, _, state = model.losses(*(x[:, :2] for x in inputs))
    later, _, _ = model.losses(*(x[:, 2:] for x in inputs), state=state)
    assert distance(later, wanted[:, 2:]) < 1e-9


def test_a_weight_of_the_next_token_is_refused() -> None:
    spec = nlc.load("""nl 1
    system late() {
      level training every step { objective loss; learn gradient(rate = 0.1) }
      flow(x[4]) { z = linear(x, 4); loss = sum((z - linear(next(x), 4))^2); return z }
    }""")
    with pytest.raises(SpecError, match="`linear` of what the next token says"):
        nlc.compile(spec)


def test_a_state_of_the_same_round() -> None:
    """A body inside `repeat` that names another box's state on steps means that of its round."""
    spec = nlc.load("""nl 1
    system rounds() {
      level student(x) every step {
        state F : matrix(3, 3) = normal(0.5)
        objective loss
        learn gradient(rate = 1e-4)
        read F(x)
      }
      level mixer(x) every token {
        k = student.F(x)
        state M : matrix(3, 3)
        objective sum((M(k) - x)^2)
        learn gradient(rate = 0.1)
        read M(k) + student.F(x)
      }
      transfer backprop mixer -> student
      flow(x[3]) {
        z = x
        repeat 2 { z += student(z); z += mixer(z) + student.F(z) }
        loss = sum(z^2)
        return z
      }
    }""")
    follows_the_reference(spec, set(), steps=3)


@pytest.mark.parametrize("chunk", ["", "linearise every 3 tokens"])
@pytest.mark.parametrize("form", ["matrix(3, 3)", "mlp(3, 3)"])
def test_a_write_from_another_state_comes_at_the_ticks_end(form: str, chunk: str) -> None:
    """Though that state stands still: what is read is of the tick before (2.7.1)."""
    spec = nlc.load(f"""nl 1
    system late() {{
      level student(x) every step {{
        state F : matrix(3, 3) = normal(0.5)
        objective loss
        learn gradient(rate = 0.05)
        read F(x)
      }}
      level mixer(x) every token {{
        k = unit(student.F(x))
        state M : {form}
        objective sum((M(k) - x)^2) / 2
        learn gradient(rate = 0.5)
        {chunk}
        read M(k)
      }}
      transfer backprop mixer -> student
      flow(x[3]) {{ z = student(x) + mixer(x); loss = sum(z^2); return z }}
    }}""")
    follows_the_reference(spec, set(), steps=2)


# ---- nlc train -----------------------------------------------------------------------------------


def test_a_run_of_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--task 2`: after every second step a task is over, in a run that goes on too."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the quick brown fox jumps over the lazy dog; " * 40)
    common = ["--batch", 2, "--length", 16, "--val-bytes", 64, "--threads", 1, "--device", "cpu"]
    sizes = ["--set", "width=8", "--set", "depth=1"]

    def run(out: str, *more: object) -> str:
        words = ["train", "elastic", "--data", "text.txt", "--out", out, *common, *sizes, *more]
        assert cli.main([str(w) for w in words]) == 0
        return capsys.readouterr().out

    def saved_of(out: str) -> checkpoint.Tree:
        return checkpoint.from_file(RunFolder(Path(out)).saved()[-1])

    assert "--task" not in run("whole", "--steps", 5, "--task", 2)
    run("half", "--steps", 3, "--task", 2)
    assert cli.main(["train", "--resume", "half", "--steps", "5"]) == 0
    whole, half = saved_of("whole"), saved_of("half")
    assert checkpoint.difference(whole["optimizers"], half["optimizers"]) is None
    assert checkpoint.difference(whole["model"], half["model"]) is None
    assert {s["tasks so far"] for s in whole["optimizers"][0]["state"].values()} == {2}
    assert "this run is one task" in run("none", "--steps", 1)
    capsys.readouterr()
    assert cli.main(["train", "--resume", "half", "--steps", "6", "--task", "3"]) != 0
    assert "task is 2 in the run, 3 in this call" in "".join(capsys.readouterr())
