"""Compiled models under torch.compile, autocast, other precisions and on a GPU."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from shipped import SYSTEMS, compiled, distance, tokens
from torch import Tensor

import nlc
from nlc.backends.runtime import Model

every_system = pytest.mark.parametrize("name", SYSTEMS)
COMPILED = [
    ("transformer", "aot_eager"),
    ("deltanet", "aot_eager"),
    ("self_modifying_titans", "eager"),  # tracing its backward too takes a minute
    ("hope", "aot_eager"),
]


def gradients(model: Model, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in model.named_weights() if p.grad is not None}


def losses_of(model: Model, x: Tensor) -> Tensor:
    losses, labelled, _ = model.losses(x)
    return losses[labelled].float().mean()


def apart(a: Tensor, b: Tensor) -> float:
    return float(((a.float() - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("name, backend", COMPILED)
def test_torch_compile_is_eager(name: str, backend: str) -> None:
    """Forward, backward, and a state handed over; the graph may break."""
    model, x = compiled(name), tokens(2, 5)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = torch.compile(model, backend=backend)
        y, state = fast(x)
        found = gradients(model, y.square().mean())
        with torch.no_grad():
            later, _ = fast(x, state.detach())
    wanted, state = model(x)
    assert distance(y, wanted) <= 1e-12
    grads = gradients(model, wanted.square().mean())
    assert set(found) == set(grads)
    largest = max(float(g.abs().max()) for g in grads.values())
    for n, g in grads.items():
        assert float((found[n] - g).abs().max()) <= 1e-10 * largest, n
    with torch.no_grad():
        assert distance(later, model(x, state.detach())[0]) <= 1e-12


@every_system
def test_inference_mode_is_no_grad(name: str) -> None:
    """Levels that learn while they answer learn there too; training may go on from there."""
    model, x = compiled(name, torch.float32), tokens(2, 13)
    with torch.no_grad():
        wanted, state = model(x)
        later, _ = model(x, state)
    with torch.inference_mode():
        inner = tokens(2, 13)  # as a loader makes them there
        y, state = model(inner, model.reset(2))
        assert torch.equal(y, wanted)
        assert torch.equal(model(inner, state=copy.deepcopy(state))[0], later)
        model.losses(inner, state=state)
    losses, labelled, _ = model.losses(x, state=state)
    assert gradients(model, losses[labelled].mean())


@pytest.mark.parametrize("name", [*SYSTEMS, "memora", "samba"])
def test_a_batch_of_no_samples(name: str) -> None:
    model, x = compiled(name, torch.float32), tokens(2, 13)
    wanted, state = model(x[:0])
    assert wanted.shape == (0, *model(x)[0].shape[1:]) and state.position == 13
    assert model(x[:0], state)[1].position == 26
    losses, labelled, state = model.losses(x[:0])
    assert losses.shape == labelled.shape == (0, 13) and state.position == 13


def test_numbers_of_another_type_are_told() -> None:
    model = nlc.compile("fomaml", dtype=torch.float32)
    x = torch.zeros(1, 2, *model.INPUTS[0][1], dtype=torch.float64)
    with pytest.raises(TypeError, match=r"`x` is torch.float64, and the model torch.float32"):
        model(x, x)


@every_system
def test_autocast_stays_close(name: str) -> None:
    model, x = compiled(name, torch.float32), tokens(2, 13)
    wanted, _ = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = model(x)
        loss = losses_of(model, x)
        model(x, state)
    assert bool(y.isfinite().all())
    assert apart(y, wanted) <= 3e-2
    grads = gradients(model, loss)
    assert set(grads) == {n for n, p in model.named_weights() if p.requires_grad}
    assert all(bool(g.isfinite().all()) for g in grads.values())


@every_system
def test_float32_is_close_to_float64(name: str) -> None:
    x = tokens(2, 13)
    exact, single = compiled(name), compiled(name, torch.float32)
    single.load_state_dict({k: v.float() for k, v in exact.state_dict().items()})
    assert distance(single(x)[0].double(), exact(x)[0]) <= 1e-5
    wanted = gradients(exact, losses_of(exact, x))
    found = gradients(single, losses_of(single, x))
    largest = max(float(g.abs().max()) for g in wanted.values())
    for n, g in wanted.items():
        assert float((found[n] - g).abs().max()) <= 1e-4 * largest, n


@every_system
def test_a_model_in_bfloat16_keeps_states_in_float32(name: str) -> None:
    """It computes as under autocast: products in bfloat16, sums in float32."""
    model, x = compiled(name, torch.bfloat16), tokens(2, 13)
    wide = compiled(name, torch.float32)
    wide.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    assert apart(model(x)[0].float(), wide(x)[0]) <= 3e-2
    y, state = model(x)
    y, state = model(x, state.detach())
    assert y.dtype == torch.bfloat16 and bool(y.isfinite().all())
    assert model(x[:, :0])[0].dtype == torch.bfloat16
    assert all(v.dtype == torch.float32 for v in state.arrays.values() if v.is_floating_point())
    grads = gradients(model, losses_of(model, x))
    assert all(bool(g.isfinite().all()) for g in grads.values())
    for optimizer in model.optimizers():
        optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@every_system
def test_draws_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    one = compiled(name).state_dict()
    torch.manual_seed(2)
    two = compiled(name).state_dict()
    assert all(torch.equal(v, two[k]) for k, v in one.items())
    other = type(compiled(name))(seed=1, dtype=torch.float64).state_dict()
    drawn = [k for k, v in one.items() if float(v.std()) > 0]
    assert drawn and not any(torch.equal(one[k], other[k]) for k in drawn)


# ---- GPU --------------------------------------------------------------------------------------


@pytest.mark.gpu
@every_system
def test_a_gpu_computes_the_same(name: str) -> None:
    x = tokens(2, 13)
    here, there = compiled(name), compiled(name, device="cuda")
    y, state = there(x.cuda())
    assert distance(y.cpu(), here(x)[0]) <= 1e-9
    assert all(v.is_cuda for v in state.arrays.values())
    later, _ = there(x.cuda(), state.detach())
    assert distance(later.cpu(), here(x, here(x)[1].detach())[0]) <= 1e-9
    wanted = gradients(here, losses_of(here, x))
    found = gradients(there, losses_of(there, x.cuda()))
    # losses are averaged in float32
    largest = max(float(g.abs().max()) for g in wanted.values())
    for n, g in wanted.items():
        assert float((found[n].cpu() - g).abs().max()) <= 1e-6 * largest, n
    for model in (here, there):
        for optimizer in model.optimizers():
            optimizer.step()


@pytest.mark.gpu
@every_system
def test_autocast_on_a_gpu_stays_close(name: str) -> None:
    model, x = compiled(name, torch.float32, "cuda"), tokens(2, 13).cuda()
    wanted, _ = model(x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y, _ = model(x)
        loss = losses_of(model, x)
    assert apart(y, wanted) <= 3e-2
    assert all(bool(g.isfinite().all()) for g in gradients(model, loss).values())


@pytest.mark.gpu
@every_system
def test_a_state_moves_to_a_gpu(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    import nlc

    path = tmp_path_factory.mktemp("state") / "memory"
    here, there, x = compiled(name), compiled(name, device="cuda"), tokens(2, 13)
    with torch.no_grad():
        _, state = here(x[:, :5])
        state.save(path)
        moved = nlc.load_state(path, there)
        assert distance(there(x[:, 5:].cuda(), moved)[0].cpu(), here(x[:, 5:], state)[0]) <= 1e-9
