"""`nlc.optimizer`: against torch.optim, as a torch.optim.Optimizer, and what it refuses."""

from __future__ import annotations

import copy
import gc
import importlib
import inspect
import math
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from shipped import SPECS, distance
from torch import Tensor, nn

import nlc
from nlc.backends.runtime import serving
from nlc.backends.runtime.optimizer import GradientError
from nlc.optimizing import Composed, names

RUFF = shutil.which("ruff", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
F64, F32 = torch.float64, torch.float32
Make = Callable[[Any], torch.optim.Optimizer]


def net(seed: int = 0, dtype: torch.dtype = F64) -> nn.Module:
    """Matrices, vectors, a table, kernels of a convolution and a number."""
    torch.manual_seed(seed)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 6)
            self.conv = nn.Conv1d(6, 4, 3, padding=1)
            self.norm = nn.LayerNorm(4)
            self.out = nn.Linear(4, 3)
            self.scale = nn.Parameter(torch.tensor(1.5))

        def forward(self, ids: Tensor) -> Tensor:
            x = self.conv(self.table(ids).mT).mT
            y: Tensor = self.scale * self.out(torch.tanh(self.norm(x)))
            return y

    return Net().to(dtype)


def backward(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 7, (2, 5), generator=generator)
    dtype = next(model.parameters()).dtype
    target = torch.randn(2, 5, 3, generator=generator, dtype=F64).to(dtype)
    loss: Tensor = ((model(ids) - target) ** 2).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def apart(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(distance(p, q) for p, q in pairs)


# ---- torch.optim ---------------------------------------------------------------------------------

O = torch.optim
NADAM = importlib.import_module("torch.optim.nadam")
COUPLED = "grad = grad + 0.1 * weight"
PEERS: dict[str, tuple[str, Make]] = {
    "SGD": ("learn gradient(rate = 0.05)", lambda p: O.SGD(p, 0.05)),
    "SGD, decay": (
        f"learn gradient(rate = 0.05, {COUPLED})",
        lambda p: O.SGD(p, 0.05, weight_decay=0.1),
    ),
    "momentum": ("learn momentum(rate = 0.02)", lambda p: O.SGD(p, 0.02, momentum=0.9)),
    "Nesterov": (
        "learn nesterov(rate = 0.02)",
        lambda p: O.SGD(p, 0.02, momentum=0.9, nesterov=True),
    ),
    "Nesterov, decay": (
        f"learn nesterov(rate = 0.02, {COUPLED})",
        lambda p: O.SGD(p, 0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "RMSprop": ("learn rmsprop(rate = 0.002)", lambda p: O.RMSprop(p, 0.002)),
    "RMSprop, decay": (
        f"learn rmsprop(rate = 0.002, {COUPLED})",
        lambda p: O.RMSprop(p, 0.002, weight_decay=0.1),
    ),
    "Adagrad": (
        "learn adagrad(rate = 0.05, slowing = 0.01)",
        lambda p: O.Adagrad(p, 0.05, lr_decay=0.01),
    ),
    "Adam": ("learn adam(rate = 0.01)", lambda p: O.Adam(p, 0.01)),
    "Adam, decay": (
        f"learn adam(rate = 0.01, {COUPLED})",
        lambda p: O.Adam(p, 0.01, weight_decay=0.1),
    ),
    "AdamW": ("learn adamw(rate = 0.01, shrink = 0)", lambda p: O.AdamW(p, 0.01, weight_decay=0)),
    "AdamW, decay": (
        "learn adamw(rate = 0.01, shrink = 0.3)",
        lambda p: O.AdamW(p, 0.01, weight_decay=0.3),
    ),
    "NAdam": ("learn nadam(rate = 0.01)", lambda p: O.NAdam(p, 0.01)),
}


@pytest.mark.parametrize("name", PEERS)
def test_200_steps_are_those_of_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learn, make = PEERS[name]
    for dtype, bound in ((F64, 1e-10), (F32, 1e-5)):
        scalars = Mock(return_value=dtype)  # else float32, whatever the weights are
        monkeypatch.setattr(NADAM, "_get_scalar_dtype", scalars)
        ours, theirs = net(dtype=dtype), net(dtype=dtype)
        train(ours, nlc.optimizer(learn)(ours), range(200))
        train(theirs, make(theirs.parameters()), range(200))
        assert apart(ours, theirs) <= bound


@pytest.mark.skipif(not hasattr(O, "Muon"), reason="this torch has no Muon")
def test_200_steps_of_muon_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch rounds to bfloat16 within; without that its steps are ours."""
    from torch.optim import _muon

    text = inspect.getsource(_muon._zeropower_via_newtonschulz)
    assert "grad.bfloat16()" in text
    scope: dict[str, Any] = dict(vars(_muon))
    exec(text.replace("grad.bfloat16()", "grad.clone()"), scope)
    name = "_zeropower_via_newtonschulz"
    monkeypatch.setattr(_muon, name, scope[name])
    for shrink in (0.0, 0.1):
        ours, theirs = (nn.Sequential(nn.Linear(4, 3, False), nn.Linear(3, 6, False)).double()
                        for _ in range(2))  # fmt: skip
        theirs.load_state_dict(ours.state_dict())
        # torch's m is a mean, (1 - keep) times ours, which the rounds cannot tell
        a = nlc.optimizer("muon")(ours, lr=0.01, nesterov=1, scale=1, shrink=shrink)
        b = O.Muon(theirs.parameters(), 0.01, weight_decay=shrink)
        for step in range(200):
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step), dtype=F64)
            for model, optimizer in ((ours, a), (theirs, b)):
                optimizer.zero_grad()
                (model(x) ** 2 - model(x)).mean().backward()
                optimizer.step()
        assert apart(ours, theirs) <= 1e-10


def test_schedulers_set_the_rate() -> None:
    ours, theirs = net(), net()
    a = nlc.optimizer("adamw")(ours.parameters(), rate=0.01, shrink=0.1)
    b = O.AdamW(theirs.parameters(), 0.01, weight_decay=0.1)
    plans = [O.lr_scheduler.OneCycleLR(o, 0.02, total_steps=20, cycle_momentum=False)
             for o in (a, b)]  # fmt: skip
    for step in range(20):
        for model, optimizer, plan in ((ours, a, plans[0]), (theirs, b, plans[1])):
            train(model, optimizer, [step])
            plan.step()
    assert a.param_groups[0]["lr"] == b.param_groups[0]["lr"]
    assert apart(ours, theirs) <= 1e-10


def test_groups_have_options_of_their_own() -> None:
    def grouped(model: nn.Module, name: str) -> list[dict[str, Any]]:
        wide = [p for p in model.parameters() if p.ndim > 1]
        rest = [p for p in model.parameters() if p.ndim <= 1]
        return [{"params": wide, name: 0.2}, {"params": rest, "lr": 0.02, name: 0.0}]

    ours, theirs = net(), net()
    train(ours, nlc.optimizer("adamw")(grouped(ours, "shrink"), lr=0.01), range(20))
    train(theirs, O.AdamW(grouped(theirs, "weight_decay"), lr=0.01), range(20))
    assert apart(ours, theirs) <= 1e-10


def test_an_array_without_a_gradient_stays() -> None:
    """As in torch, where it does not count either."""
    ours, theirs = net(), net()
    a = nlc.optimizer("adamw")(ours, lr=0.01)
    b = O.AdamW(theirs.parameters(), 0.01)
    for step in range(12):
        for model, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            backward(model, step)
            for i, p in enumerate(model.parameters()):
                if (step + i) % 3 == 0:
                    p.grad = None
            optimizer.step()
    assert apart(ours, theirs) <= 1e-10


# ---- how arrays are served -----------------------------------------------------------------------


@pytest.mark.parametrize("learn", ["learn adamw(rate = 0.01)", "learn lion(rate = 0.01)"])
def test_blocks_and_bundles_change_nothing(learn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole arrays, blocks of 5 numbers, and all arrays as one."""
    made = []
    for block, small in ((1 << 30, 0), (5, 0), (1 << 30, 1 << 30), (11, 13)):
        monkeypatch.setattr(serving, "BLOCK", block)
        monkeypatch.setattr(serving, "SMALL", small)
        model = net()
        train(model, nlc.optimizer(learn)(model), range(5))
        made.append(model)
    assert all(apart(made[0], other) <= 1e-15 for other in made[1:])


def test_half_precision_is_served_in_float32() -> None:
    """The state is float32, and a step is that of float32, rounded once."""
    weight = torch.linspace(-1, 1, 24).bfloat16().view(4, 6)
    grad = torch.linspace(1, -0.5, 24).bfloat16().view(4, 6)
    for small in (0, 1 << 30):
        p, q = nn.Parameter(weight.clone()), nn.Parameter(weight.float())
        p.grad, q.grad = grad.clone(), grad.float()
        a, b = (nlc.optimizer("adamw")([x], lr=0.01) for x in (p, q))
        a.step()
        b.step()
        assert a.state[p]["m"].dtype == F32 and small >= 0
        assert torch.equal(p, q.detach().bfloat16())
        saved = copy.deepcopy(a.state_dict())
        a.load_state_dict(saved)
        assert a.state[p]["h"].dtype == F32


def test_memory_does_not_grow() -> None:
    p = nn.Parameter(torch.zeros(3, 4))
    optimizer = nlc.optimizer("m3", "adamw")([p], m3={"lr": 1e-3})
    p.grad = torch.ones(3, 4)
    kept = []
    for step in range(1000):
        optimizer.step()
        if step in (10, 999):
            arrays = [x for x in optimizer.state[p].values() if isinstance(x, Tensor)]
            kept.append((sum(x.untyped_storage().nbytes() for x in arrays), len(arrays)))
    assert kept[0] == kept[1] == (4 * 4 * 12, 4)


def test_each_array_goes_to_the_first_rule_that_fits() -> None:
    optimizer = nlc.optimizer("muon", "adamw")(net(), muon={"lr": 0.02}, adamw={"lr": 1e-3})
    served = {n: g["rule"] for g in optimizer.param_groups for n in g["names"]}
    assert [n for n, rule in served.items() if rule == "muon"] == ["table.weight", "out.weight"]
    assert [g["lr"] for g in optimizer.param_groups] == [0.02, 1e-3]


def test_a_module_tells_tables_from_matrices() -> None:
    model = net()
    optimizer = nlc.optimizer("learn muon() for matrices", "learn adamw()")(model)
    served = {n: g["rule"] for g in optimizer.param_groups for n in g["names"]}
    assert [n for n, rule in served.items() if rule == "muon"] == ["out.weight"]


def test_lines_may_name_parts_of_a_module() -> None:
    optimizer = nlc.optimizer("learn lion() for conv", "learn adamw()")(net())
    served = {n: g["rule"] for g in optimizer.param_groups for n in g["names"]}
    assert {n for n, rule in served.items() if rule == "lion"} == {"conv.weight", "conv.bias"}


def test_lines_clip_and_schedule() -> None:
    ours, theirs = net(), net()
    learn = "learn gradient(rate = 0.1 * warm_cosine(count, 3, 9), grad = clipped(grad, 0.5))"
    train(ours, nlc.optimizer(learn)(ours), range(10))
    other = O.SGD(theirs.parameters(), 1.0)
    for step in range(10):
        done = min(max((step + 1 - 3) / 6, 0), 1)
        shape = 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
        other.param_groups[0]["lr"] = 0.1 * ((step + 1) / 3 if step + 1 < 3 else shape)
        other.zero_grad()
        backward(theirs, step)
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        other.step()
    assert apart(ours, theirs) <= 1e-7  # torch adds 1e-6 to the length as we do


@pytest.mark.parametrize("number", ["[1, 0.5, 0.25][min(count, 2)]", "1 / (1 + count)"])
def test_a_number_of_the_count_is_a_factor(number: str) -> None:
    """Of a list, too, and beside an array, where torch's calls take arrays alone."""
    rule = f"nl 1\noptimizer steps(weight, grad, rate = 1) {{ write -rate * grad * {number} }}"
    w = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = nlc.optimizer(rule)([w])
    for wanted in (-0.5, -0.5 - (0.25 if "[" in number else 1 / 3)):
        w.grad = torch.ones_like(w)
        optimizer.step()
        torch.testing.assert_close(w.detach(), torch.full((3, 2), wanted))


def test_a_system_lends_its_lines() -> None:
    optimizer = nlc.optimizer("transformer")(net())
    assert {g["rule"] for g in optimizer.param_groups} == {"muon", "adamw"}


MINE = """nl 1
optimizer mine(weight, grad, rate = 0.1, keep = 0.5) {
  state m : like(weight) {
    objective -sum(m * grad)
    retain    keep
    learn     gradient(rate = 1)
  }
  write -rate * sign(m)
}
"""


def test_a_text_or_a_file_is_an_optimizer(tmp_path: Path) -> None:
    path = tmp_path / "mine.nl"
    path.write_text(MINE, encoding="utf-8")
    for spec in (MINE, path):
        p = nn.Parameter(torch.zeros(2))
        optimizer = nlc.optimizer(spec)([("p", p)], lr=0.25)
        p.grad = torch.tensor([1.0, -3.0])
        optimizer.step()
        assert p.tolist() == [-0.25, 0.25]
        assert "def rule_mine" in optimizer.arrays[p].owner.SOURCE


@pytest.mark.parametrize("name", names())
def test_every_shipped_optimizer_lessens_a_loss(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4, bias=False).double()
    if name.startswith(("dgd",)):
        optimizer = nlc.optimizer(name)(model, lr=0.01)
    else:
        optimizer = nlc.optimizer(name)(model, lr=1e-3)
    x, y = torch.randn(16, 6, dtype=F64), torch.randn(16, 4, dtype=F64)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] or name.startswith("dmgd") and losses[-1] != losses[0]


def test_dgd_sees_what_goes_through_a_layer() -> None:
    """-rate (W mean(x x') + gradient), by hand; over two calls of the layer."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    optimizer = nlc.optimizer("dgd")(model, lr=0.1)
    x, z = torch.randn(4, 5, 3, dtype=F64), torch.randn(4, 3, dtype=F64)
    before = model.weight.detach().clone()
    optimizer.zero_grad()
    loss = (torch.cat([model(x).flatten(0, 1), model(z)]) ** 2).sum(-1).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    rows = torch.cat([x.flatten(0, 1), z])
    gram = rows.mT @ rows / len(rows)
    assert model.weight.grad is not None
    wanted = before - 0.1 * (before @ gram + model.weight.grad)
    optimizer.step()
    assert distance(model.weight, wanted) <= 1e-14


def clear_by_module(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.zero_grad()


def clear_to_zero(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.zero_grad(set_to_none=False)


def clear_by_hand(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for p in model.parameters():
        p.grad = None


def clear_after_a_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    clear_by_hand(model, optimizer)
    optimizer.step()


def clear_after_a_refusal(model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    assert model.weight.grad is not None
    model.weight.grad[0] = math.nan
    with pytest.raises(GradientError):
        optimizer.step()
    model.zero_grad()


@pytest.mark.parametrize(
    "clear",
    [clear_by_module, clear_to_zero, clear_by_hand, clear_after_a_step, clear_after_a_refusal],
)
def test_examples_go_with_their_gradient(clear: Callable[..., None]) -> None:
    """And two backward passes, of which one saw the layer twice, add up theirs."""
    torch.manual_seed(0)
    x, old = torch.randn(3, 4, 3, dtype=F64), torch.randn(9, 3, dtype=F64)
    made = []
    for stale in (False, True):
        torch.manual_seed(1)
        model = nn.Linear(3, 2, bias=False).double()
        optimizer = nlc.optimizer("dgd")(model, lr=0.1)
        if stale:
            (model(old) ** 2).mean().backward()
            clear(model, optimizer)
        (model(x[0]) ** 2 + model(x[1])).mean().backward()
        model(x[2]).mean().backward()
        assert len(optimizer.examples[0].pairs) == 3
        optimizer.step()
        made.append(model.weight)
    assert torch.equal(made[0], made[1])


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_gradient_without_examples_changes_nothing(by_hand: bool) -> None:
    first, last = nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)
    model = nn.Sequential(first, last)
    optimizer = nlc.optimizer("dgd")(model, lr=0.1)
    h = first(torch.ones(1, 3))
    made: Tensor = h if by_hand else nn.functional.linear(h, last.weight)
    made.sum().backward()  # type: ignore[no-untyped-call]
    if by_hand:
        last.weight.grad = torch.ones(2, 2)
    before = copy.deepcopy(model.state_dict())
    refusal(optimizer.step, says=r"`dgd` .* gradient of `1\.weight` came through no call")
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_layer_forgets_its_optimizer() -> None:
    model = nn.Linear(3, 2, bias=False)
    optimizer = nlc.optimizer("dgd")(model, lr=0.1)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(torch.ones(1, 3)).sum().backward()
        assert not optimizer.examples[0].pairs
    model(torch.ones(1, 3)).sum().backward()
    assert len(optimizer.examples[0].pairs) == 1 == len(model._forward_hooks)
    del optimizer
    gc.collect()
    assert not model._forward_hooks


@pytest.mark.skipif(RUFF is None, reason="there is no ruff")
def test_what_is_generated_is_formatted(tmp_path: Path) -> None:
    for name in names():
        model = nn.Linear(6, 4, bias=False)
        optimizer = nlc.optimizer(name)(model)
        (tmp_path / f"{name}.py").write_text(
            optimizer.arrays[model.weight].owner.SOURCE, encoding="utf-8"
        )
    for command in (["format", "--check"], ["check"]):
        config = str(SPECS.parent / "pyproject.toml")
        done = subprocess.run(
            [str(RUFF), *command, "--config", config, str(tmp_path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


# ---- a torch.optim.Optimizer ---------------------------------------------------------------------

RESUMED = {
    "adamw": lambda m: nlc.optimizer("adamw")(m, lr=0.01),
    "m3": lambda m: nlc.optimizer("m3", "lion")(m, m3={"period": 3}),
    "dmgd": lambda m: nlc.optimizer("dmgd", "nadam")(m, dmgd={"hidden": 3}),
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_run_resumes_to_the_same_bits(name: str, at: int, tmp_path: Path) -> None:
    one, two = net(), net(1)
    first = RESUMED[name](one)
    train(one, first, range(at))
    torch.save({"model": one.state_dict(), "optimizer": first.state_dict()}, tmp_path / "saved")
    train(one, first, range(at, 8))
    saved = torch.load(tmp_path / "saved")
    two.load_state_dict(saved["model"])
    second = RESUMED[name](two)
    second.load_state_dict(saved["optimizer"])
    train(two, second, range(at, 8))
    assert apart(one, two) == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_goes_on(copied: Callable[[Any], Any]) -> None:
    one = net()
    train(one, optimizer := nlc.optimizer("adamw")(one, lr=0.01), range(3))
    two, other = copied((list(one.parameters()), optimizer))
    assert isinstance(other, Composed)
    for p, q in zip(one.parameters(), two, strict=True):
        p.grad = torch.ones_like(p)
        q.grad = torch.ones_like(q)
    optimizer.step()
    other.step()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two, strict=True))


def test_a_closure_is_run_and_groups_can_be_added() -> None:
    model = net()
    params = list(model.parameters())
    optimizer = nlc.optimizer("adamw")(params[:2], lr=0.05)
    optimizer.add_param_group({"params": params[2:], "lr": 0.01})

    def closure() -> float:
        optimizer.zero_grad()
        return float(backward(model, 0))

    first = optimizer.step(closure)
    for _ in range(5):
        last = optimizer.step(closure)
    assert first is not None and last is not None and last < first
    assert len(optimizer.param_groups) == 2


def test_a_scaler_of_gradients_works() -> None:
    ours, theirs = net(dtype=F32), net(dtype=F32)
    a, b = nlc.optimizer("adamw")(ours, lr=0.01), nlc.optimizer("adamw")(theirs, lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        a.zero_grad()
        ids = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(step))
        scaler.scale((ours(ids) ** 2).mean()).backward()
        scaler.step(a)
        scaler.update()
        b.zero_grad()
        loss = (theirs(ids) ** 2).mean()
        loss.backward()
        b.step()
    assert apart(ours, theirs) <= 1e-6


def test_a_sparse_gradient_is_that_of_its_table() -> None:
    made = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(6, 3, sparse=sparse)
        optimizer = nlc.optimizer("adam")(table, lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            table(torch.tensor([step, 5])).sum().backward()
            optimizer.step()
        made.append(table.weight)
    assert torch.equal(made[0], made[1])


def test_compiled_code_may_step() -> None:
    model = net(dtype=F32)
    optimizer = nlc.optimizer("adamw")(model, lr=0.01)
    backward(model, 0)
    before = [p.detach().clone() for p in model.parameters()]
    torch.compile(optimizer.step, backend="eager")()  # type: ignore[no-untyped-call]
    assert not any(map(torch.equal, before, model.parameters()))


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("worst", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(worst: float) -> None:
    model = net()
    optimizer = nlc.optimizer("muon", "adamw")(model)
    train(model, optimizer, range(2))
    backward(model, 3)
    assert model.out.bias.grad is not None  # type: ignore[union-attr]
    model.out.bias.grad[1] = worst  # type: ignore[union-attr, operator]
    held = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    with pytest.raises(GradientError, match=r"`out\.bias` holds numbers that are not finite"):
        optimizer.step()
    now = [model.state_dict(), optimizer.state_dict()]
    torch.testing.assert_close(now[0], held[0], rtol=0, atol=0)
    torch.testing.assert_close(now[1]["state"], held[1]["state"], rtol=0, atol=0)


def test_a_gradient_may_be_large() -> None:
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.full((4,), 3e38)
    nlc.optimizer("lion")([p], lr=0.1).step()
    torch.testing.assert_close(p.detach(), torch.full((4,), -0.1))


def refusal(
    make: Callable[[], object], error: type[Exception] = ValueError, says: str = ""
) -> None:
    with pytest.raises(error, match=says):
        make()


def test_what_is_given_is_checked() -> None:
    weight, vector = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(3))
    adamw, muon = nlc.optimizer("adamw"), nlc.optimizer("muon")
    refusal(lambda: adamw([]), says="given no parameters")
    refusal(lambda: adamw([{"params": []}]), says="a group of an optimizer has no parameters")
    refusal(lambda: adamw(weight), TypeError, "put it in")
    refusal(lambda: adamw({weight, vector}), TypeError, "need an order")
    refusal(lambda: adamw([("a", weight), ("b", weight)]), says="`b` is given twice: it is `a` too")
    both = [{"params": [("a", weight)]}, {"params": [("b", weight)]}]
    refusal(lambda: adamw(both), says="`b` is in two groups: it is `a` of another")
    refusal(lambda: adamw([("x", weight * 2)]), says="`x` is computed from other tensors")
    refusal(lambda: adamw([("x", torch.zeros(2).long())]), TypeError, "`x` is of torch.int64")
    refusal(lambda: adamw([("x", 3.0)]), TypeError, "`x` is a float")
    refusal(lambda: muon([("gain", vector)]), says="multiplies matrices .* serve `gain`, a vector")
    kernel = nn.Parameter(torch.zeros(2, 3, 3))
    refusal(lambda: muon([("conv", kernel)]), says=r"would serve `conv`, an array of \[2, 3, 3\]")
    only = nlc.optimizer("learn muon() for matrices")
    refusal(lambda: only([("gain", vector)]), says="no `learn` line serves `gain`")
    dgd = nlc.optimizer("dgd")
    refusal(lambda: dgd([("w", weight)]), says="reads the `input` of products.*`w`")


def test_settings_are_checked() -> None:
    weight = nn.Parameter(torch.zeros(3, 2))
    adamw = nlc.optimizer("adamw")
    refusal(lambda: nlc.optimizer("adamv"), says="there is no optimizer `adamv`; did you mean")
    refusal(lambda: nlc.optimizer(), says="which optimizer")
    refusal(
        lambda: adamw([weight], shrnk=1), TypeError, "no setting `shrnk`; did you mean `shrink`"
    )
    refusal(lambda: adamw([weight], lr=math.nan), says="`rate` of `adamw` is a number")
    refusal(lambda: adamw([weight], lr="x"), says="`rate` of `adamw` is a number")
    refusal(lambda: adamw([weight], lr=1, rate=1), TypeError, "which are one")
    refusal(lambda: adamw([weight], b1=1), says="`adamw` comes to no number with .*b1 = 1,")
    refusal(lambda: adamw([weight], b2=1), says="`adamw` comes to no number with .*b2 = 1,")
    optimizer = nlc.optimizer("m3")([weight], period=3)
    weight.grad = torch.ones(3, 2)
    optimizer.param_groups[0]["period"] = 4
    refusal(optimizer.step, says="cannot change once the optimizer is made")


def test_mistaken_settings_are_explained() -> None:
    weight = nn.Parameter(torch.zeros(3, 2))
    adamw, fixed = nlc.optimizer("adamw"), nlc.optimizer("learn adam(rate = 1e-2)")
    both = nlc.optimizer("muon", "adamw")
    refusal(lambda: fixed([weight], lr=0.5), TypeError, "`learn adam.*` sets `rate` itself")
    refusal(lambda: O.lr_scheduler.StepLR(fixed([weight]), 1), KeyError, "has no option `lr` here")
    refusal(lambda: adamw([weight], lr=None), says="`rate` of `adamw` is a number.* given None")
    refusal(lambda: adamw([weight], lr=-1), says="`rate` of `adamw` is how far.* given -1")
    refusal(lambda: adamw([weight], lr=math.inf), says="`rate` of `adamw` is how far.* given inf")
    refusal(lambda: adamw([weight], weight_decay=0.1), TypeError, "`weight_decay` is `shrink` here")
    refusal(lambda: adamw([weight], betas=(0.9, 0.99)), TypeError, "`betas` is `b1` and `b2` here")
    refusal(lambda: both([weight], moun={"lr": 1}), TypeError, "`moun`; did you mean `muon`")
    down = nlc.optimizer(two_settings("rate", "half"))([weight], half=-1)
    assert down.param_groups[0]["half"] == -1
    assert copy.deepcopy(down).param_groups[0]["lr"] == 0.1
    assert nlc.optimizer("muon")([weight], nesterov=True).param_groups[0]["nesterov"] == 1


def test_a_group_that_is_added_is_checked() -> None:
    first, single = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(4))
    optimizer = nlc.optimizer("adamw")([first])
    is_dict = "a dict with `params`"
    wrong: list[Any] = [[single], single, {"lr": 1.0}, None]
    for group in wrong:
        with pytest.raises(TypeError, match=is_dict):
            optimizer.add_param_group(group)
    for params, says in ((None, "given as NoneType"), ("w", "given as str"), ({single}, "order")):
        with pytest.raises(TypeError, match=says):
            optimizer.add_param_group({"params": params})
        with pytest.raises(TypeError, match=says):
            nlc.optimizer("adamw")(params)
    optimizer.add_param_group({"params": single, "lr": 0.5})
    assert optimizer.arrays[single].rule.name == "adamw" and len(optimizer.param_groups) == 2


def two_settings(first: str, second: str) -> str:
    return (
        f"nl 1\noptimizer mine(weight, grad, {first} = 0.1, {second} = 0.5) {{\n"
        f"  write -{first} * {second} * grad\n}}\n"
    )


def test_settings_are_told_apart() -> None:
    p = nn.Parameter(torch.zeros(1))
    both = nlc.optimizer(two_settings("rate", "lr"))
    refusal(lambda: both([p]), says="`mine` has both `rate` and `lr`")
    for name in ("names", "spec", "initial_lr", "max_lr"):
        with pytest.raises(ValueError, match=f"has a setting `{name}`"):
            nlc.optimizer(two_settings("rate", name))([p])
    optimizer = nlc.optimizer(two_settings("lr", "half"))([p], rate=0.25)  # rate is lr
    p.grad = torch.ones(1)
    optimizer.step()
    assert p.item() == -0.125


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("learn adam()",), r"`adam` .* at firing 1 \(.*b1 = 1,"),
        (
            ("learn lion() for first", "learn gradient(rate = 1 / (count - 2))"),
            r"`gradient` .* at firing 2 \(",
        ),
        (("learn lion() for first", "learn muon(rate = 1 / (count - 2))"), "`muon` .* at firing 2"),
    ],
)
def test_numbers_are_none_before_anything_changes(lines: tuple[str, ...], says: str) -> None:
    """Of a later group, a later line or a later count."""
    model = nn.ModuleDict({n: nn.Linear(3, 2, bias=False) for n in ("first", "last")})
    params = [{"params": [pair]} for pair in model.named_parameters()]
    optimizer = nlc.optimizer(*lines)(params)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    if "adam()" in lines[-1]:
        optimizer.param_groups[-1]["b1"] = 1
    else:
        optimizer.step()
    held = copy.deepcopy([model.state_dict(), optimizer.state_dict()["state"]])
    refusal(optimizer.step, says=f"{says}.*nothing was changed")
    now = [model.state_dict(), optimizer.state_dict()["state"]]
    torch.testing.assert_close(now, held, rtol=0, atol=0)


def test_a_state_of_another_rule_is_refused() -> None:
    model = net()
    optimizer = nlc.optimizer("adamw")(model)
    train(model, optimizer, range(2))
    held = copy.deepcopy(optimizer.state_dict())
    other = nlc.optimizer("lion")(net()).state_dict()
    says = "the state saved for `scale` is of `lion`, and here it is served by `adamw`"
    refusal(lambda: optimizer.load_state_dict(other), says=says)
    fewer = nlc.optimizer("adamw")(list(net().parameters())[:3]).state_dict()
    refusal(lambda: optimizer.load_state_dict(fewer), says="groups of")
    theirs = O.AdamW(net().parameters()).state_dict()
    refusal(lambda: optimizer.load_state_dict(theirs), says="of another optimizer")
    wide = copy.deepcopy(held)
    wide["state"][0]["m"] = torch.zeros(9)
    refusal(lambda: optimizer.load_state_dict(wide), says=r"holds m as \[9\]")
    torch.testing.assert_close(optimizer.state_dict()["state"], held["state"], rtol=0, atol=0)


def spoil(saved: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy with one thing in it changed."""
    spoilt = inner = copy.deepcopy(saved)
    for step in at[:-1]:
        inner = inner[step]
    inner[at[-1]] = value
    return spoilt


SPOILT: list[tuple[tuple[Any, ...], Any, str]] = [
    (("state",), None, "it is damaged"),
    (("param_groups",), [None], "it is damaged"),
    (("param_groups", 0, "params"), 3, "it is damaged"),
    (("state", 0), None, "it holds nothing"),
    (("state", 0, "m"), None, "holds m as None, and here it is an array of"),
    (("state", 0, "m"), 0.5, "holds m as 0.5"),
    (("state", 0, "m"), "x", "holds m as 'x'"),
    (("state", 0, "m"), torch.zeros(7, 6).long(), "holds m as tensor"),
    (("state", 0, "firings so far"), "x", "holds firings so far as 'x'"),
    (("state", 0, "firings so far"), -1, "holds firings so far as -1"),
    (("param_groups", 0, "lr"), "x", "`rate` of `adamw` is a number"),
    (("param_groups", 0, "b1"), None, "`b1` of `adamw` is a number"),
]


@pytest.mark.parametrize(("at", "value", "says"), SPOILT)
def test_a_damaged_state_changes_nothing(at: tuple[Any, ...], value: Any, says: str) -> None:
    model = net()
    optimizer = nlc.optimizer("adamw")(model)
    train(model, optimizer, range(2))
    held = copy.deepcopy(optimizer.state_dict())
    refusal(lambda: optimizer.load_state_dict(spoil(held, at, value)), says=says)
    now = optimizer.state_dict()
    assert now["param_groups"] == held["param_groups"]
    torch.testing.assert_close(now["state"], held["state"], rtol=0, atol=0)


def test_a_state_is_loaded_into_another_order_of_lines() -> None:
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    saved = nlc.optimizer("muon", "adamw")([p], adamw={"lr": 0.5}).state_dict()
    optimizer = nlc.optimizer("adamw")([q])
    optimizer.load_state_dict(saved)
    q.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.5 and float(q[0].detach()) < -0.4
    m3 = nlc.optimizer("m3")
    kept = m3([nn.Parameter(torch.zeros(3, 2))], period=3).state_dict()
    other = m3([nn.Parameter(torch.zeros(3, 2))], period=4)
    refusal(lambda: other.load_state_dict(kept), says="cannot change once the optimizer is made")


def test_a_state_follows_its_parameter() -> None:
    """To float64 and back, as if it had been there from the start; never below float32."""
    model, other = net(dtype=F32), net(dtype=F32).double()
    first, second = nlc.optimizer("adamw")(model), nlc.optimizer("adamw")(other)
    model.double()
    train(model, first, range(3))
    train(other, second, range(3))
    assert apart(model, other) == 0
    p = dict(model.named_parameters())["out.weight"]
    for dtype, state in ((torch.bfloat16, F32), (F64, F64)):
        model.to(dtype)
        train(model, first, [3])
        assert first.state[p]["m"].dtype == state
    first.load_state_dict(second.state_dict())
    model.float()
    first.load_state_dict(second.state_dict())
    assert first.state[p]["h"].dtype == F32


def test_mistakes_of_a_text_are_told() -> None:
    with pytest.raises(nlc.SpecError, match="NL101"):
        nlc.optimizer(MINE.replace("sign(m)", "sign(n)"))
    refusal(
        lambda: nlc.optimizer("learn adamw(rte = 1)")([nn.Parameter(torch.zeros(2))]), says="rte"
    )
    two = (SPECS / "optim/dgd.nl").read_text(encoding="utf-8")
    refusal(lambda: nlc.optimizer(two), says="declares several optimizers")
    refusal(lambda: nlc.optimizer("learn adam(steps = 2)"), says="several steps on the same data")
    refusal(lambda: nlc.optimizer("learn exact()"), says="there is no optimizer `exact`")
