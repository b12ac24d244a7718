"""States: streamed on, forked, saved at any tick, and refused where they do not belong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from shipped import SYSTEMS, compiled, distance, small, tokens
from torch import Tensor
from torch.nn import functional

import nlc
from nlc.backends.runtime import Model, State, StateError
from nlc.driver import Spec, check_text
from nlc.verify import properties as P
from nlc.verify.streams import farthest, gradients, random_streams, truth_of

every_system = pytest.mark.parametrize("name", SYSTEMS)
LEARNING = [n for n in SYSTEMS if compiled(n).LEARNERS]


def snapshot(state: State) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in state.arrays.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(v, b[k]) for k, v in a.items())


# ---- saved and loaded ---------------------------------------------------------------------------


@every_system
@pytest.mark.parametrize("training", [False, True])
def test_a_loaded_state_continues_to_the_same_numbers(
    name: str, training: bool, tmp_path: Path
) -> None:
    """Saved at every tick: in the middle of periods and chunks, and while labels are waited for."""
    model, x = compiled(name), tokens(2, 16)
    path = tmp_path / "memory"
    state = model.reset(2)
    with torch.set_grad_enabled(training):
        for t in range(11):
            _, state = model(x[:, t : t + 1], state)
            state.save(path)
            loaded = nlc.load_state(path, model)
            assert loaded.position == state.position == t + 1
            assert same(snapshot(loaded), snapshot(state))
            wanted, _ = model(x[:, t + 1 : t + 6], state)
            got, _ = model(x[:, t + 1 : t + 6], loaded)
            assert distance(got, wanted) <= 1e-12, t


@every_system
def test_after_the_end_of_a_sequence_all_is_as_at_its_start(name: str) -> None:
    """Where no level counts sequences; also in the middle of a period. The old state goes on."""
    model, x = compiled(name), tokens(2, 16)
    fresh, _ = model(x)
    _, state = model(x[:, :7])
    over = model.finish(state)
    assert (over.position, over.sequence, over.elapsed) == (0, 1, 7)
    assert same(snapshot(over), snapshot(model.reset(2)))
    assert torch.equal(model(x, over)[0], fresh)
    assert distance(model(x[:, 7:], state)[0], fresh[:, 7:]) <= 1e-12
    again = model.finish(over)  # a sequence of no ticks is none
    assert (again.position, again.sequence, again.elapsed) == (0, 1, 7)


def test_the_end_of_what_is_no_state() -> None:
    model, x = compiled("deltanet"), tokens(2, 16)
    slips: list[Any] = [None, model(x), x]
    for wrong in slips:
        told = f"a state is what this model returned before, not {type(wrong).__name__}"
        with pytest.raises(TypeError, match=told):
            model.finish(wrong)


def test_an_input_that_the_model_has_not() -> None:
    model, x = compiled("deltanet"), tokens(2, 16)
    slip: Any = model.reset(2)
    told = r"takes tokens \(and a state\), and has no input `sate`"
    with pytest.raises(TypeError, match=told):
        model(x, sate=slip)
    with pytest.raises(TypeError, match=told):
        model.losses(x, sate=slip)


@every_system
def test_a_loaded_state_can_be_saved_again(name: str, tmp_path: Path) -> None:
    model, x = compiled(name), tokens(2, 12)
    with torch.no_grad():
        _, state = model(x[:, :7])
        state.save(tmp_path / "one")
        nlc.load_state(tmp_path / "one", model).save(tmp_path / "two")
        loaded = nlc.load_state(tmp_path / "two", model)
        assert distance(model(x[:, 7:], loaded)[0], model(x[:, 7:], state)[0]) <= 1e-12


def test_the_file_is_tensors_and_a_json_header(tmp_path: Path) -> None:
    model = compiled("hope")
    _, state = model(tokens(2, 5))
    state.save(tmp_path / "memory")
    with safe_open(tmp_path / "memory", framework="pt") as file:
        header = json.loads(file.metadata()["nlc"])
    assert header["spec"] == model.SPEC_HASH and header["batch"] == 2


def test_saving_replaces_the_whole_file_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled("deltanet")
    _, state = model(tokens(1, 3))
    path = tmp_path / "memory"
    state.save(path)
    before = path.read_bytes()

    def full(tensors: Any, name: str, metadata: Any) -> None:
        Path(name).write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr("nlc.backends.runtime.state.save_file", full)
    with pytest.raises(OSError, match="no space"):
        model(tokens(1, 3), state)[1].save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["memory"]


# ---- refused ------------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """The same file with another header, or other tensors."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["nlc"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, metadata={"nlc": json.dumps(header)})


def no_position(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    del header["position"]


def text_for_batch(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    header["batch"] = "two"


def other_shape(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    key = next(k for k in tensors if k.startswith("array "))
    tensors[key] = tensors[key][..., :1].clone()


def other_batch(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    header["batch"] = 3


def lost_array(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    del tensors[next(k for k in tensors if k.startswith("array "))]


def lost_inputs(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for key in [k for k in tensors if k.startswith("input ")]:
        del tensors[key]


CHANGES = [no_position, text_for_batch, other_shape, other_batch, lost_array, lost_inputs]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_changed_file_is_refused(change: Callable[..., None], tmp_path: Path) -> None:
    model = compiled("hope")
    _, state = model(tokens(2, 5))
    state.save(tmp_path / "memory")
    rewritten(tmp_path / "memory", change)
    with pytest.raises(StateError):
        nlc.load_state(tmp_path / "memory", model)


@pytest.mark.parametrize(
    "content",
    [b"", b"no state", pickle.dumps({"position": 3}), b"\x10\x00\x00\x00\x00\x00\x00\x00[1, 2, 3]"],
    ids=["empty", "text", "pickle", "list"],
)
def test_junk_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(content)
    with pytest.raises(StateError, match="memory is no state"):
        nlc.load_state(tmp_path / "memory", compiled("deltanet"))


@pytest.mark.parametrize("header", ["[]", "3", "{", '{"format": 1}', '{"format": 99}'])
def test_a_header_of_something_else_is_refused(header: str, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "memory", metadata={"nlc": header})
    with pytest.raises(StateError, match=r"memory is (no state|a state of another)"):
        nlc.load_state(tmp_path / "memory", compiled("deltanet"))


def test_a_short_file_is_refused(tmp_path: Path) -> None:
    model = compiled("deltanet")
    _, state = model(tokens(1, 3))
    path = tmp_path / "memory"
    state.save(path)
    whole = path.read_bytes()
    for size in (1, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(StateError, match="cut short"):
            nlc.load_state(path, model)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="there is no state file"):
        nlc.load_state(tmp_path / "memory", compiled("deltanet"))
    with pytest.raises(StateError, match="is no state file"):
        nlc.load_state(tmp_path, compiled("deltanet"))


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    model, x = compiled("deltanet"), tokens(2, 3)
    _, state = model(x)
    state.save(tmp_path / "memory")
    others = {
        "another spec": compiled("linear_attention"),
        "other settings": nlc.compile(small("deltanet", width=16), dtype=torch.float64),
        "float64": compiled("deltanet", torch.float32),
    }
    before = snapshot(state)
    for message, other in others.items():
        with pytest.raises(StateError, match=message):
            other(x, state)
        with pytest.raises(StateError, match=message):
            nlc.load_state(tmp_path / "memory", other)
    with pytest.raises(StateError, match="batch of 2"):
        model(tokens(3, 3), state)
    with pytest.raises(TypeError, match="a state is what this model returned"):
        model(x, state={"position": 3})
    assert same(snapshot(state), before) and state.position == 3


@pytest.mark.parametrize(
    "inputs, message",
    [
        ((), "takes tokens"),
        ((torch.zeros(3),), r"`tokens` is \[batch, time\]"),
        ((torch.zeros(2, 3, 4),), r"`tokens` is \[batch, time\]"),
        (([[1, 2]],), "list"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), "takes tokens"),
    ],
)
def test_a_wrong_input_is_named(inputs: tuple[Any, ...], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        compiled("deltanet")(*inputs)


# ---- forked, detached, reset --------------------------------------------------------------------


@every_system
@pytest.mark.parametrize("training", [False, True])
def test_forks_do_not_see_each_other(name: str, training: bool) -> None:
    model, x = compiled(name), tokens(2, 14)
    with torch.set_grad_enabled(training):
        _, state = model(x[:, :5])
        before = snapshot(state)
        fork = state.fork()
        wanted, _ = model(x[:, 5:], state)
        other, _ = model((x[:, 5:] + 1) % 11, fork)
        assert same(snapshot(state), before) and same(snapshot(fork), before)
        assert torch.equal(model(x[:, 5:], state)[0], wanted)
        assert torch.equal(model(x[:, 5:], fork)[0], wanted)
        assert not torch.equal(other, wanted)


@every_system
def test_a_detached_state_is_a_constant(name: str) -> None:
    model, x = compiled(name), tokens(2, 12)
    _, state = model(x[:, :5])
    assert any(v.requires_grad for v in state.arrays.values())
    constant = state.detach()
    assert not any(v.requires_grad for v in constant.arrays.values())
    assert any(v.requires_grad for v in state.arrays.values())
    assert distance(model(x[:, 5:], constant)[0], model(x[:, 5:], state)[0]) == 0


@every_system
def test_a_reset_state_is_the_start(name: str) -> None:
    model, x = compiled(name), tokens(2, 9)
    with torch.no_grad():
        wanted, _ = model(x)
        assert torch.equal(model(x, model.reset(2))[0], wanted)
        assert torch.equal(model(x, state=model.reset(2))[0], wanted)
    assert model.reset(2).position == 0


# Starts that training learns, in systems that run in one graph, in two, and in one for both.
LEARNED = ["ada_transformer", "cms_nested", "cms_sequential", "hope", "maml", "titans"]


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_start_is_trained_through_every_sequence(name: str) -> None:
    """The state between them is a constant, and what stands after a reset is no part of it."""
    model, system = compiled(name), small(name).system
    x = random_streams(system, 2, 7)
    starts = [p for p, (_, start) in model.kept_arrays().items() if start == "weights"]
    fresh = gradients(model, x)
    assert starts and all(fresh[p.partition("@")[0]].any() for p in starts)
    _, state = model(*random_streams(system, 2, 9, seed=1))
    for before in (
        model.finish(state).detach(),
        model.finish(state.detach()),
        model.reset(2).detach(),
    ):
        assert farthest(gradients(model, x, before), fresh)[0] <= 1e-12


ANEW = """nl 1
system anew(vocab = 5, width = 4) {{
  level training every step {{ objective loss; learn adamw(rate = 1e-2) }}
  level mixer(x) every token {{
    reset every 4 tokens
    state M : {form}
    objective {objective}
    learn gradient(rate = 0.3)
    read M(norm(x))
  }}
  transfer backprop mixer -> training{order}
  transfer init training -> mixer{order}
  flow(tokens) {{
    x = embed(tokens, vocab, width)
    x += mixer(norm(x))
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }}
}}
"""
OF_ITS_OWN = "sum((M(x) - x)^2) / 2"
KINDS = {
    "a matrix": ("matrix(width, width)", OF_ITS_OWN, ""),
    "a network": ("mlp(width, 5)", OF_ITS_OWN, ""),
    "that learns the loss": ("matrix(width, width)", "loss", " first order"),
    "in the graph of training": ("matrix(width, width)", "loss", ""),
}


def anew(kind: str) -> tuple[Spec, Model]:
    form, objective, order = KINDS[kind]
    spec = nlc.load(ANEW.format(form=form, objective=objective, order=order))
    model = nlc.compile(spec, dtype=torch.float64)
    with torch.no_grad():
        dict(model.named_weights())["mixer.M" + ".W2" * ("mlp" in form)].add_(0.3)
    return spec, model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("time", "cut"), [(6, 4), (10, 4), (10, 8), (7, 5)])
def test_a_start_is_trained_by_the_call_after_a_reset(kind: str, time: int, cut: int) -> None:
    spec, model = anew(kind)
    reference = nlc.reference(spec, model.state_dict(), traced=())
    x = (tokens(2, time, vocab=5),)
    for ended in (False, True):
        assert P.gradients_handed_over(model, reference, x, cut, ended=ended).holds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ended", [False, True])
def test_after_a_step_of_training_a_start_is_the_new_one(
    kind: str, ended: bool, tmp_path: Path
) -> None:
    """Whether the state was handed on as it is, detached, or saved."""
    spec, model = anew(kind)
    x, y = tokens(2, 4, vocab=5), tokens(2, 6, seed=1, vocab=5)
    old = nlc.reference(spec, model.state_dict(), traced=())
    _, _, before = old.run((x,), None, train=False)
    _, state = model(x)
    if ended:
        before, state = old.finish(before), model.finish(state)
    state.save(tmp_path / "memory")
    with torch.no_grad():
        for _, p in model.named_weights():
            p.mul_(1.1)
    new = nlc.reference(spec, model.state_dict(), traced=())
    truth = truth_of(new, (y,), before)
    for given in (nlc.load_state(tmp_path / "memory", model), state.detach()):
        assert distance(model(y, given)[0], truth.outputs) <= 1e-9
        assert farthest(gradients(model, (y,), given), truth.gradients)[0] <= 1e-9


@every_system
@pytest.mark.parametrize("training", [False, True])
def test_no_ticks_change_nothing(name: str, training: bool) -> None:
    model, x = compiled(name), tokens(2, 12)
    with torch.set_grad_enabled(training):
        first, fresh = model(x[:, :0])
        assert first.shape == (2, 0, 11) and fresh.position == 0
        _, state = model(x[:, :5], fresh)
        y, after = model(x[:, :0], state)
        assert y.shape == (2, 0, 11) and y.dtype == torch.float64
        assert after.position == 5 and same(snapshot(after), snapshot(state))
        losses, labelled, after = model.losses(x[:, :0], state=after)
        assert losses.shape == labelled.shape == (2, 0)
        assert torch.equal(model(x[:, 5:], after)[0], model(x[:, 5:], state)[0])


@every_system
def test_a_sample_that_is_not_a_number_stays_alone(name: str) -> None:
    """A token whose embedding is no number, in one sample."""
    model, x = compiled(name), tokens(3, 14) % 10
    with torch.no_grad():
        wanted, _ = model(x)
        next(p for n, p in model.named_weights() if n.endswith(".embed"))[10] = float("nan")
        x[1, 4] = 10
        y, after = model(x)
    assert bool(y[1, 4:].isnan().any(-1).all())
    assert torch.equal(y[[0, 2]], wanted[[0, 2]])
    assert all(bool(v[[0, 2]].isfinite().all()) for v in after.arrays.values())


# ---- losses and labels --------------------------------------------------------------------------


@every_system
def test_the_last_tick_of_a_call_has_no_label(name: str) -> None:
    model, x = compiled(name), tokens(2, 7)
    losses, labelled, _ = model.losses(x)
    y, _ = model(x)
    wanted = functional.cross_entropy(y[:, :-1].flatten(0, 1), x[:, 1:].flatten(), reduction="none")
    assert distance(losses[:, :-1], wanted.view(2, 6)) <= 1e-12
    assert bool(labelled[:, :-1].all()) and not bool(labelled[:, -1].any())
    assert not bool(losses[:, -1].any())


def test_a_system_without_a_loss_says_so() -> None:
    model = nlc.compile(
        "nl 1\nsystem bare() {\n  level a(x[4]) every token { read x }\n"
        "  flow(x[4]) { return a(x) }\n}"
    )
    x = torch.randn(2, 3, 4)
    assert torch.equal(model(x)[0], x)
    with pytest.raises(ValueError, match="no loss"):
        model.losses(x)


def learned(model: Model, state: State) -> dict[str, Tensor]:
    start = dict(model.named_weights())
    return {p: state.arrays[p][0] - start[p] for _, _, learning in model.LEARNERS for p in learning}


@pytest.mark.parametrize("name", LEARNING)
def test_tokens_of_its_own_are_no_labels(name: str) -> None:
    """The first firing is -rate times the gradient of the losses whose label was given.

    With one layer nothing that these levels learn reaches a memory, so training's gradient is
    theirs.
    """
    model = nlc.compile(small(name, depth=1, periods=[8]), dtype=torch.float64)
    x = tokens(1, 9)
    state = model.reset(1)
    with torch.no_grad():
        for a, b, own in [(0, 3, False), (3, 4, True), (4, 6, True), (6, 9, False)]:
            _, state = model(x[:, a:b], state=state, own=own)
    losses, _, _ = model.losses(x)
    given = losses[0, [0, 1, 5, 6, 7]].sum()
    changes = learned(model, state)
    weights = dict(model.named_weights())
    grads = torch.autograd.grad(given, [weights[p] for p in changes])
    for (path, change), grad in zip(changes.items(), grads, strict=True):
        assert distance(change, -1e-2 * grad) <= 1e-9, path


@pytest.mark.parametrize("name", LEARNING)
def test_without_labels_nothing_is_learned(name: str) -> None:
    model, x = compiled(name), tokens(1, 18)
    with torch.no_grad():
        _, state = model(x, own=True)
    assert not any(bool(change.any()) for change in learned(model, state).values())


@pytest.mark.parametrize("name", LEARNING)
def test_own_tokens_are_saved_as_such(name: str, tmp_path: Path) -> None:
    model, x = compiled(name), tokens(2, 16)
    with torch.no_grad():
        _, state = model(x[:, :3])
        for t in range(3, 11):
            _, state = model(x[:, t : t + 1], state=state, own=t % 3 != 0)
            state.save(tmp_path / "memory")
            loaded = nlc.load_state(tmp_path / "memory", model)
            wanted, _ = model(x[:, t + 1 :], state)
            assert distance(model(x[:, t + 1 :], loaded)[0], wanted) <= 1e-12, t


MIXED = """nl 1
use "memory/attend"
use "memory/continuum"
use "self_modifying_titans"
system mix(vocab = 11, width = 8, heads = 2) {
  n = width / heads
  level training every step { objective loss; learn adamw(rate = 4e-4) }
  level titans(x) every token {
    state M[main, key] : residual(mlp(n, n)) per heads { objective own_target(M, k, v) }
    z = split(x, heads)
    k = unit(M.key(z))
    v = unit(z)
    learn dgd(rate = 0.1)
    linearise every 3 tokens
    read join(M.main(unit(z)))
  }
  level attention(x) always {
    q = split(linear(x, width), heads)
    k = split(linear(x, width), heads)
    read linear(join(attend(q, k, k)), width)
  }
  level cms[p in [2, 8]](x) every p tokens { read continuum(x, rate = 0.1) }
  transfer backprop titans -> training
  transfer backprop attention -> training, cms
  transfer backprop cms -> training first order
  transfer init training -> titans
  transfer init training -> cms first order
  flow(tokens) {
    x = embed(tokens, vocab, width)
    repeat 2 {
      x += titans(norm(x))
      x += attention(norm(x))
      repeat p in [2, 8] { x += cms[p](x) }
    }
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }
}
"""


def test_training_and_inference_may_take_turns_within_a_period() -> None:
    """What is constant to the levels on tokens is kept up by the run for training as well."""
    spec = nlc.load(MIXED)
    model = nlc.compile(spec, dtype=torch.float64)
    given = torch.randint(0, 11, (2, 21), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, _ = model(given)
    first, state = model(given[:, :5])
    with torch.no_grad():
        second, state = model(given[:, 5:12], state)
    third, _ = model(given[:, 12:], state)
    torch.testing.assert_close(torch.cat([first, second, third], 1), whole, rtol=0, atol=1e-12)


def test_a_model_without_weights_is_what_was_asked_for() -> None:
    """Its device and its precision are no property of its parameters."""
    text = """nl 1
use "memory/delta"
system plain() {
  level mem(q[2, 3], k[2, 3], v[2, 3], beta[2]) every token { read delta(q, k, v, beta) }
  flow(q[2, 3], k[2, 3], v[2, 3], beta[2]) { return mem(q, k, v, beta) }
}
"""
    checked = check_text(text, "plain.nl")
    model = nlc.compile(Spec(checked), dtype=torch.float64)
    assert not list(model.parameters()) and model.dtype == torch.float64
    assert model.reset(1).arrays["mem.delta.M"].dtype == torch.float64
    assert model.to("meta").device.type == "meta"
