"""Levels on steps and tasks in the reference interpreter, against closed forms in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from nlc.backends.reference import EVENTS, Record, Reference
from nlc.driver import check_text
from nlc.system import System

torch.set_num_threads(1)
Arrays = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]


def system(text: str) -> System:
    checked = check_text("nl 1\n" + text)
    assert checked.system is not None and not checked.errors, checked.diagnostics
    return checked.system


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def batch(seed: int, time: int = 3, inputs: int = 3, outputs: int = 4) -> Batch:
    return random(2, time, inputs, seed=seed), random(2, time, outputs, seed=seed + 50)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    assert a.shape == b.shape
    a, b = a.detach(), b.detach()
    assert float((a - b).abs().max()) <= tolerance * (1 + float(b.abs().max()))


def grad(value: Tensor, at: Tensor, create: bool = False) -> Tensor:
    return torch.autograd.grad(value, at, create_graph=create, retain_graph=True)[0]


def mean_square(z: Tensor, y: Tensor) -> Tensor:
    return ((z - y) ** 2).sum(-1).mean()


# ---- levels on tasks -----------------------------------------------------------------------------


@pytest.mark.parametrize("period", [1, 2])
def test_a_task_adds_the_means_of_its_steps(period: int) -> None:
    """An owner on tasks, by momentum: it changes at the end of its tasks and only then."""
    every = "task" if period == 1 else f"{period} tasks"
    truth = Reference(
        system(f"""
        system one() {{
          level training every {every} {{ objective loss; learn momentum(rate = 0.1, keep = 0.5) }}
          flow(x[3], y[4]) {{ z = linear(x, 4); loss = sum((z - y)^2); return z }}
        }}""")
    )
    ((name, W),) = truth.values.items()
    m, total = torch.zeros(4, 3).double(), torch.zeros(4, 3).double()
    for task in range(4):
        for i in range(2 + task % 2):
            x, y = batch(10 * task + i)
            given = truth.step([x, y])
            g = 2 * torch.einsum("bto,bti->oi", x @ W.T - y, x) / 6
            close(given[name], g)
            total = total + g
            assert torch.equal(truth.values[name], W)
        truth.end_task()
        if (task + 1) % period == 0:
            m = 0.5 * m - 0.1 * total
            W, total = W + m, 0 * total
        close(truth.values[name], W)
        W = truth.values[name]


MAML = """
    system maml() {{
      level meta every task {{ objective loss; learn gradient(rate = 0.1) }}
      level inner(x, y) every 2 tokens {{
        state F : matrix(3, 4) = normal(0.5)
        objective {objective}
        learn gradient(rate = 0.1)
        read F(x)
      }}
      transfer init meta -> inner {order}
      flow(x[3], y[4]) {{
        out = tanh(inner(x, y))
        loss = sum((out - y)^2)
        return out
      }}
    }}"""


@pytest.mark.parametrize("order", ["", "first order"])
@pytest.mark.parametrize("objective", ["loss", "sum((tanh(F(x)) - y)^2)"])
def test_maml_with_one_task_of_several_steps(objective: str, order: str) -> None:
    """Each sequence learns from the start that `meta` keeps, which changes when a task is over."""
    truth = Reference(system(MAML.format(objective=objective, order=order)))
    ((name, W),) = truth.values.items()
    for task in range(2):
        start = W.clone().requires_grad_()
        total = torch.zeros_like(W)
        for i in range(2):
            x, y = batch(10 * task + i, time=5)
            losses = [of_a_sequence(start, x[b], y[b], bool(order)) for b in range(2)]
            total = total + grad(torch.stack(losses).mean(), start)
            truth.step([x, y])
            assert torch.equal(truth.values[name], W)
        truth.end_task()
        W = W - 0.1 * total
        close(truth.values[name], W)
        W = truth.values[name]


def of_a_sequence(start: Tensor, x: Tensor, y: Tensor, first_order: bool) -> Tensor:
    F, losses, period = start, [], torch.zeros(()).double()
    for t in range(5):
        loss = ((torch.tanh(F @ x[t]) - y[t]) ** 2).sum()
        losses.append(loss)
        period = period + loss
        if t % 2:
            g = grad(period, F, not first_order)
            F, period = F - 0.1 * g, torch.zeros(()).double()
    return torch.stack(losses).mean()


OVER_STEPS = """
    system over_steps() {{
      level meta every task {{ objective loss; learn gradient(rate = 0.1) }}
      level fast(x) every step {{
        reset every task
        state F : matrix(3, 4) = normal(0.5)
        objective loss
        learn {rule}
        read F({input})
      }}
      {transfers}
      flow(x[3], y[4]) {{
        z = fast(x)
        loss = sum((z - y)^2)
        return z
      }}
    }}"""


@pytest.mark.parametrize("rule", ["gradient(rate = 0.1)", "momentum(rate = 0.1, keep = 0.5)"])
@pytest.mark.parametrize("kind", ["second", "first", "closed"])
def test_maml_whose_inner_loop_are_steps(rule: str, kind: str) -> None:
    """`fast` takes a step at a time and starts each task anew; `meta` differentiates the steps."""
    first, tail = kind == "first", " first order" if kind == "first" else ""
    line = f"backprop fast -> meta{tail}" if kind != "closed" else "condition meta -> fast"
    transfers = f"transfer {line}; transfer init meta -> fast{tail}"
    text = OVER_STEPS.format(rule=rule, input="tanh(linear(x, 3))", transfers=transfers)
    truth = Reference(system(text))
    start = next(n for n in truth.values if n.endswith("F"))
    weight = next(n for n in truth.values if "linear" in n)
    W, A = truth.values[start], truth.values[weight]
    keep = 0.5 if "momentum" in rule else 0.0
    for task in range(2):
        W, A = (v.clone().requires_grad_() for v in (W, A))
        F, m = W, torch.zeros_like(W)
        totals = [torch.zeros_like(W), torch.zeros_like(A)]
        for i in range(3):
            x, y = batch(10 * task + i)
            inside = A.detach() if kind == "closed" else A
            loss = mean_square(torch.tanh(x @ inside.T) @ F.T, y)
            given = truth.step([x, y])
            if loss.requires_grad:
                found = torch.autograd.grad(loss, [W, A], retain_graph=True, allow_unused=True)
                totals = [
                    s + (0 * s if g is None else g) for s, g in zip(totals, found, strict=True)
                ]
                close(given[start], torch.zeros_like(W) if found[0] is None else found[0])
            g = grad(loss, F, not first)
            m = keep * m - 0.1 * (g.detach() if first else g)
            F = F + m
            answers, _ = truth([x, y])
            close(answers, torch.tanh(x @ A.T) @ F.T)
            assert torch.equal(truth.values[start], W)
        truth.end_task()
        W, A = W - 0.1 * totals[0], A - 0.1 * totals[1]
        close(truth.values[start], W)
        close(truth.values[weight], A)
        W, A = truth.values[start].detach(), truth.values[weight].detach()
        x, y = batch(99)
        close(truth([x, y])[0], torch.tanh(x @ A.T) @ W.T)


def test_a_memory_of_tasks() -> None:
    """Its own objective, what it keeps and its momentum, once a task: means of steps, summed."""
    truth = Reference(
        system("""
        system one() {
          level slow(x, y) every task {
            state M : matrix(3, 4) = normal(0.5)
            retain 0.9
            objective sum((M(x) - y)^2)
            learn momentum(rate = 0.1, keep = 0.5)
            read M(x)
          }
          flow(x[3], y[4]) { return slow(x, y) }
        }""")
    )
    ((name, M),) = truth.values.items()
    m, total = torch.zeros_like(M), torch.zeros_like(M)
    for task in range(3):
        for i in range(2):
            x, y = batch(10 * task + i)
            truth.step([x, y])
            total = total + 2 * torch.einsum("bto,bti->oi", x @ M.T - y, x) / 6
            close(truth([x, y])[0], x @ M.T)
        truth.end_task()
        m = 0.5 * m - 0.1 * total
        M, total = 0.9 * M + m, 0 * total
        close(truth.values[name], M)


def test_an_anchor_that_follows_once_a_task() -> None:
    """`set` at the end of a task sees what stood in the last step of it (2.7.2)."""
    truth = Reference(
        system("""
        system one() {
          level anchor(x) every task {
            state A : matrix(3, 4) = fast.F
            set 0.5 * A + 0.5 * fast.F
            read A(x)
          }
          level fast(x) every step {
            state F : matrix(3, 4) = normal(0.5)
            objective loss + sum((F - anchor.A)^2)
            learn gradient(rate = 0.1)
            read F(x)
          }
          transfer generate fast -> anchor
          transfer condition anchor -> fast
          flow(x[3], y[4]) {
            z = fast(x)
            loss = sum((z - y)^2)
            return concat(z, anchor(x))
          }
        }""")
    )
    ((name, F),) = truth.values.items()
    A = F
    for task in range(3):
        for i in range(2):
            x, y = batch(10 * task + i)
            truth.step([x, y])
            seen = F
            F = F - 0.1 * (2 * torch.einsum("bto,bti->oi", x @ F.T - y, x) / 6 + 2 * (F - A))
            close(truth.values[name], F)
            close(truth([x, y])[0], torch.cat([x @ F.T, x @ A.T], -1))
        truth.end_task()
        A = 0.5 * A + 0.5 * seen
        close(truth([x, y])[0], torch.cat([x @ F.T, x @ A.T], -1))


def test_what_lives_for_a_task() -> None:
    """`reset every task`: a memory on tokens outlives its sequences, until a task is over."""
    truth = Reference(
        system("""
        system one() {
          level fast(x) every token { reset every task; state a : vector(1) { write x }; read a }
          flow(x[1]) { return concat(fast(x), stack(position)) }
        }""")
    )
    x = torch.ones(1, 2, 1)
    first, state = truth(x)
    second, state = truth(x, truth.finish(state))
    third, _ = truth(x, truth.finish(state, task=True))
    assert first[0].tolist() == [[1, 0], [2, 1]] == third[0].tolist()
    assert second[0].tolist() == [[3, 0], [4, 1]]


# ---- levels on steps -----------------------------------------------------------------------------

Change = Callable[[Tensor, list[Batch]], Tensor]


def error(M: Tensor, batches: list[Batch]) -> Tensor:
    """The gradient of the mean error of each step, summed."""
    zero = torch.zeros_like(M)
    return sum((2 * torch.einsum("bto,bti->oi", x @ M.T - y, x) / 6 for x, y in batches), zero)


def written(M: Tensor, batches: list[Batch]) -> Tensor:
    zero = torch.zeros_like(M)
    outers = (torch.einsum("bto,bti->oi", y - x @ M.T, x) / 6 for x, y in batches)
    return 0.9 * M + sum(outers, zero)


def three_rounds(M: Tensor, batches: list[Batch]) -> Tensor:
    M = 0.9 * M
    for _ in range(3):
        M = M - 0.1 * error(M, batches)
    return M


def solved(M: Tensor, batches: list[Batch]) -> Tensor:
    """Of |N - M|^2 / 0.4 + the errors: a quadratic problem."""
    gram = sum((torch.einsum("bti,btj->ij", x, x) / 6 for x, _ in batches), torch.zeros(3, 3))
    cross = sum((torch.einsum("bto,bti->oi", y, x) / 6 for x, y in batches), torch.zeros(4, 3))
    inverse = torch.linalg.inv(2 * gram + torch.eye(3) / 0.2)
    answer: Tensor = (2 * cross + M / 0.2) @ inverse
    return answer


OBJECTIVE = "objective sum((M(x) - y)^2)"
RULES: Mapping[str, tuple[str, Change]] = {
    "gradient": (
        f"{OBJECTIVE}; learn gradient(rate = 0.1)", lambda M, b: M - 0.1 * error(M, b)
    ),
    "once": (
        f"{OBJECTIVE} once; learn gradient(rate = 0.1)", lambda M, b: M - 0.1 * error(M, b[-1:])
    ),
    "rounds": (
        f"retain 0.9; {OBJECTIVE} after retain; learn gradient(rate = 0.1, steps = 3)",
        three_rounds,
    ),
    "implicit": (f"{OBJECTIVE}; learn implicit(rate = 0.2)", solved),
    "write": ("retain 0.9; write outer(y - M(x), x)", written),
    "set": (
        "set 0.5 * M + outer(y, x)",
        lambda M, b: 0.5 * M + torch.einsum("bo,bi->oi", b[-1][1][:, -1], b[-1][0][:, -1]) / 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("every", ["step", "2 steps", "2 steps from 1", "task"])
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_of_its_own_on_steps(rule: str, every: str) -> None:
    """Two sequences of three ticks a step; every step is a mean, and steps add up."""
    text, change = RULES[rule]
    truth = Reference(
        system(f"""
        system one() {{
          level slow(x, y) every {every} {{
            state M : matrix(3, 4) = normal(0.5)
            {text}
            read M(x)
          }}
          flow(x[3], y[4]) {{ return slow(x, y) }}
        }}""")
    )
    ((_, M),) = truth.values.items()
    waiting: list[Batch] = []
    for i in range(6):
        waiting.append(batch(i))
        truth.step(list(waiting[-1]))
        fires = {"step": True, "2 steps": i % 2 == 1, "2 steps from 1": i % 2 == 0, "task": False}
        if i % 3 == 2:
            truth.end_task()
        if fires[every] or every == "task" and i % 3 == 2:
            M, waiting = change(M, waiting), []
        x, y = batch(70 + i)
        close(truth([x, y])[0], x @ M.T, 1e-10)


@pytest.mark.parametrize("partial", ["carry", "flush"])
def test_a_reset_on_steps(partial: str) -> None:
    """Every three steps weights, momenta and counts begin anew; two steps are a period."""
    truth = Reference(
        system(f"""
        system one() {{
          level training every 2 steps {{
            reset every 3 steps
            partial {partial if partial == "flush" else "drop"}
            objective loss
            learn momentum(rate = 0.1 / count, keep = 0.5)
          }}
          flow(x[3], y[4]) {{ z = linear(x, 4); loss = sum((z - y)^2); return z }}
        }}""")
    )
    ((name, first),) = truth.values.items()
    for i in range(7):
        W = truth.values[name]
        x, y = batch(i)
        g = truth.step([x, y])[name]
        if i % 3 == 0:
            close(W, first)
            total = g
        elif i % 3 == 1:
            close(truth.values[name], first - 0.1 * (total + g))
    events = [(r.step, r.event) for r in truth.trace if r.path == name]
    flush = [(3, "fire")] if partial == "flush" else []
    assert events[: 2 + len(flush)] == [(2, "fire"), *flush, (3, "reset")]


# ---- the model's own loss, at the start of a chunk -----------------------------------------------

FROZEN = """
    system frozen() {{
      level training every step {{ objective loss; learn gradient(rate = 0.1) }}
      level fast(x) every {every} {{
        state F : mlp(3, 4, 4)
        retain 0.9
        objective {objective}
        learn {rule}
        linearise every {chunk} tokens
        read F(x)
      }}
      {transfers}
      flow(x[3], y[4]) {{
        out = tanh(fast(tanh(linear(x, 3))))
        loss = sum((out - y)^2)
        return out
      }}
    }}"""


def say(F: Arrays, x: Tensor) -> Tensor:
    return torch.tanh(F["W2"] @ torch.nn.functional.gelu(F["W1"] @ x))


@pytest.mark.parametrize("every, chunk", [(1, 3), (2, 4), (2, 3), (3, 2), (4, 2)])
@pytest.mark.parametrize("kind", ["backprop", "first", "closed"])
def test_the_loss_at_the_start_of_the_chunk(every: int, chunk: int, kind: str) -> None:
    """Its gradient is that at the state of the chunk's start; reads see the state that runs on."""
    tail = " first order" if kind == "first" else ""
    lines = f"transfer init training -> fast{tail}"
    if kind != "closed":
        lines += f"; transfer backprop fast -> training{tail}"
    text = FROZEN.format(
        every=f"{every} tokens", chunk=chunk, objective="loss", transfers=lines,
        rule="momentum(rate = 0.3, keep = 0.5)",
    )  # fmt: skip
    truth = Reference(system(text))
    x, y = random(1, 9, 3), random(1, 9, 4, seed=3)
    at = {n: a.clone().requires_grad_() for n, a in truth.values.items()}
    A = next(a for n, a in at.items() if "linear" in n)
    F = {n: at[f"fast.F.{n}"] for n in ("W1", "W2")}
    m = {n: torch.zeros_like(a) for n, a in F.items()}
    amount, total = {n: torch.zeros_like(a) for n, a in F.items()}, torch.zeros(()).double()
    frozen, outs = F, []
    for t in range(9):
        frozen = F if t % chunk == 0 else frozen
        seen = torch.tanh(A @ x[0, t])
        outs.append(say(F, seen))
        total = total + ((outs[-1] - y[0, t]) ** 2).sum() / 9
        point = seen.detach() if kind == "closed" else seen
        leaf = {n: a.view_as(a) for n, a in frozen.items()}
        loss = ((say(leaf, point) - y[0, t]) ** 2).sum()
        found = torch.autograd.grad(loss, list(leaf.values()), create_graph=True)
        for n, g in zip(F, found, strict=True):
            amount[n] = amount[n] + (g.detach() if kind == "first" else g)
        if (t + 1) % every == 0:
            m = {n: 0.5 * m[n] - 0.3 * g for n, g in amount.items()}
            F = {n: 0.9 * a + m[n] for n, a in F.items()}
            amount = {n: torch.zeros_like(a) for n, a in F.items()}
    answers, _ = truth([x, y])
    close(answers[0], torch.stack(outs))
    expected = torch.autograd.grad(total, list(at.values()))
    given = truth.gradients([x, y])
    for n, g in zip(at, expected, strict=True):
        close(given[n], g, 1e-10)


def through_another(opened: bool) -> Reference:
    return Reference(
        system(f"""
        system both() {{
          level fast(x) every 2 tokens {{
            state F : matrix(3, 3) = normal(0.5)
            objective loss
            learn dgd(rate = 0.1)
            linearise every 4 tokens
            read F(x)
          }}
          level after(x) every token {{
            state S : matrix(3, 3)
            retain 0.9
            objective -dot(S(x), tanh(x))
            learn gradient(rate = 1)
            read S(x)
          }}
          {"transfer backprop after -> fast" if opened else ""}
          flow(x[3], y[3]) {{
            out = tanh(after(fast(x)))
            loss = sum((out - y)^2)
            return out
          }}
        }}""")
    )


@pytest.mark.parametrize("opened", [True, False])
def test_the_loss_at_the_start_of_the_chunk_through_another_memory(opened: bool) -> None:
    """A memory after `fast` is as it was; open to `fast`, it is what the other reads make of it."""
    truth = through_another(opened)
    x, y = random(1, 11, 3), random(1, 11, 3, seed=3)
    (F,) = truth.values.values()
    S = torch.zeros(3, 3).double()
    since, span, outs = S, [S], []

    def tick(F: Tensor, S: Tensor, t: int) -> tuple[Tensor, Tensor]:
        z = F @ x[0, t]
        S = 0.9 * S + torch.outer(torch.tanh(z), z)
        return S, S @ z

    for t in range(11):
        if t % 4 == 0:
            frozen = F
        S, out = tick(F, S, t)
        outs.append(torch.tanh(out))
        span.append(S)
        if t % 2:
            leaf = frozen.clone().requires_grad_()
            ghost, total = since, torch.zeros(()).double()
            for i in (t - 1, t):
                ghost, out = tick(leaf, ghost, i)
                out = out if opened else span[i - t + 2] @ (leaf @ x[0, i])
                total = total + ((torch.tanh(out) - y[0, i]) ** 2).sum()
            gram = x[0, t - 1 : t + 1].T @ x[0, t - 1 : t + 1]
            F = F - 0.1 * (F @ gram + grad(total, leaf))
            since, span = S, [S]
    answers, state = truth([x, y])
    close(answers[0], torch.stack(outs))
    _, state = truth([x[:, :3], y[:, :3]])
    close(truth([x[:, 3:], y[:, 3:]], state)[0], answers[:, 3:], 0.0)


def test_answers_do_not_hang_on_addresses() -> None:
    """Products that `dgd` joins were told apart by the addresses of calls that had been let go."""
    truth = through_another(True)
    x, y = random(1, 11, 3), random(1, 11, 3, seed=3)
    answers, _ = truth([x, y])
    for i in range(40):
        _others = [object() for _ in range(37 * i)]
        close(truth([x, y])[0][0], answers[0], 0.0)


# ---- the trace -----------------------------------------------------------------------------------

TRACED = """
    optimizer slowly(weight, grad, rate = 0.1) {
      state m : like(weight) { objective -sum(m * grad); retain 0.5; learn gradient(rate = 1) }
      level rare every 2 steps {
        state s : like(weight) { objective -sum(s * grad); learn gradient(rate = 1) }
      }
      write -rate * (m + rare.s)
    }
    system traced() {
      level training every 2 steps { objective loss; learn slowly(rate = 0.1) }
      level fast(x) every 2 tokens {
        reset every 5 tokens; partial drop
        state F : matrix(3, 3) = normal(0.5)
        objective loss
        learn slowly(rate = 0.1)
        read F(x)
      }
      level now(x) every token {
        state A[late, early] : matrix(3, 3)
        k = A.early(x)
        retain 0.9
        objective -dot(A(x), k)
        learn gradient(rate = 1)
        linearise every 2 tokens
        read A.late(x)
      }
      transfer init training -> fast first order
      flow(x[3], y[3]) {
        out = fast(x) + now(x)
        seen = now.A.late
        loss = sum((out - y)^2)
        return out + 0 * sum(seen)
      }
    }"""


def traced(events: tuple[str, ...], steps: int = 2) -> list[Record]:
    truth = Reference(system(TRACED), traced=events)
    for i in range(steps):
        truth.step([random(1, 6, 3, seed=i), random(1, 6, 3, seed=i + 9)])
    return truth.trace


def test_the_trace_holds_the_memories_of_optimizers() -> None:
    trace = traced(("fire", "remember", "reset"))
    first = [r for r in trace if r.step == 1 and r.sample == 0 and r.path.startswith("fast")]
    assert [(r.tick, r.event, r.path) for r in first] == [
        (2, "remember", "fast.F.m"), (2, "fire", "fast.F"), (4, "remember", "fast.F.m"),
        (4, "remember", "fast.F.rare.s"), (4, "fire", "fast.F"),
        (5, "reset", "fast.F"), (5, "reset", "fast.F.m"), (5, "reset", "fast.F.rare.s"),
    ]  # fmt: skip
    clocks = {(r.path, r.clock, r.serves) for r in first if r.event == "remember"}
    m, s = ("fast.F.m", "every 2 tokens", "fast.F"), ("fast.F.rare.s", "every 2 steps", "fast.F")
    assert clocks == {m, s}
    assert first[0].before == 0 < first[0].after == first[2].before
    assert all(r.after == 0 < r.before for r in first if r.path in ("fast.F.m", "fast.F.rare.s")
               and r.event == "reset")  # fmt: skip
    slow = [r for r in trace if r.sample == -1]
    assert {(r.tick, r.step) for r in slow} == {(0, 2)}
    assert [(r.event, r.path, r.serves) for r in slow] == [
        ("remember", "fast.F.m", "fast.F"), ("fire", "fast.F@training", "")
    ]  # fmt: skip
    fired = Reference(system(TRACED), traced=("fire",))
    fired.step([random(1, 6, 3), random(1, 6, 3, seed=9)])
    assert {r.event for r in fired.trace} == {"fire"}
    assert not traced(())


def test_the_trace_holds_what_is_read() -> None:
    trace = traced(("read",), 1)
    at = {(r.tick, r.path, r.reader, r.sees) for r in trace}
    late, early = "now.A.late", "now.A.early"
    for t in range(1, 7):
        assert (t, "fast.F", "fast", "old") in at
        assert (t, late, "now", "new") in at and (t, late, "flow", "new") in at
        assert (t, early, "now", "old" if t % 2 else "frozen") in at
    assert len(at) == len(trace) == 24


def test_a_read_before_the_write_and_one_that_is_solved() -> None:
    truth = Reference(
        system("""
        use "memory/attend"
        system one() {
          level a(x) every token { state s : vector(3) { write x }; read s before write }
          level b(x) every 2 tokens { state s : vector(3) { set s + a.s }; read s + a.s }
          level c(x) always { read attend(x, x, x) }
          transfer generate a -> b
          transfer condition a -> b
          flow(x[3]) { early = a.s + 0; y = a(x); return early + y + b(x) + c(x) }
        }"""),
        traced=EVENTS,
    )
    truth(torch.ones(2, 2, 3))
    told = [(r.path, r.reader, r.sees) for r in truth.trace if r.event == "read" and r.sample == 1]
    assert told == 2 * [
        ("a.s", "flow", "old"), ("a.s", "a", "old"), ("b.s", "b", "old"), ("a.s", "b", "new"),
        ("c.attend.z", "c.attend", "solved"),
    ]  # fmt: skip
    fires = [(r.tick, r.path) for r in truth.trace if r.event == "fire" and r.sample == 1]
    assert fires == [(1, "a.s"), (2, "a.s")]
