"""What a paper leaves open, or prints wrong, is a setting: each other reading is what the reference
makes of it, and is what it says.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shipped import SPECS, distance, own_settings, small, tokens
from torch import Tensor

import nlc
from nlc.backends.runtime import State
from nlc.driver import Spec, check_text
from nlc.verify import properties as P
from nlc.verify.streams import random_streams


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


READINGS: list[tuple[str, dict[str, Any]]] = [
    ("moneta", {"printed": 0}),
    ("memora", {"inputs": 0}),
    ("cms_sequential", {"periods": [4, 2]}),
    ("cms_independent", {"periods": [4, 2]}),
    ("elastic", {"keep": 1}),
    ("target_network", {"keep": 0}),
    ("transformer", {"base": 500000, "eps": 1e-5}),
    ("stacked", {"base": 500000, "eps": 1e-5}),
    ("titans_mac", {"segment": 3}),
    ("self_modifying_titans", {"chunk": 1}),
    ("titans", {"chunk": 1}),
    ("titans_mac", {"chunk": 1}),
    ("titans_mag", {"chunk": 1}),
    ("titans_mal", {"chunk": 1}),
    ("moneta", {"chunk": 1}),
    ("yaad", {"chunk": 1}),
    ("memora", {"chunk": 1}),
    ("ttt_mlp", {"chunk": 1}),
    ("ttt_linear", {"inner": 1}),
    ("cms_sequential", {"inner": 0.1}),
    ("cms_independent", {"inner": 0.1}),
    ("hope", {"inner": 0.1}),
    ("hope_attention", {"inner": 0.1}),
    ("cms_sequential", {"inner": 0.2, "printed": 1}),
    ("cms_independent", {"inner": 0.2, "printed": 1}),
    ("cms_nested", {"rates": [0.2, 0.1, 0.1], "printed": 1}),
    ("hope", {"inner": 0.2, "printed": 1}),
    ("hope_attention", {"inner": 0.2, "printed": 1}),
    ("hope_ablations", {"inner": 0.2, "printed": 1}),
    ("omega_net", {"window": 1}),
    ("titans_mag", {"window": 1}),
    ("titans_mag", {"gate": 1}),
    ("titans_mac", {"persist": 0}),
    ("titans_mag", {"persist": 0}),
    ("titans_mal", {"persist": 0}),
    ("referential_static", {"product": 1}),
    ("referential_adaptive", {"made": 1}),
]


@pytest.mark.parametrize("name, other", READINGS, ids=lambda x: x if isinstance(x, str) else "")
def test_the_other_reading_is_a_setting(name: str, other: dict[str, Any]) -> None:
    """It is another model, compiled, and is what the reference makes of it."""
    spec = small(name, **({"depth": 1} if "depth" in own_settings(name) else {}), **other)
    model = nlc.compile(spec, dtype=torch.float64)
    shapes = [(2, 7, *shape) for _, shape in spec.system.flow.inputs]
    inputs = [draw(*s, seed=i) if len(s) > 2 else tokens(2, 7) for i, s in enumerate(shapes)]
    truth = nlc.reference(spec, model.state_dict())
    assert distance(model(*inputs)[0], truth(inputs)[0]) < 1e-9
    losses, labelled, _ = model.losses(*inputs)
    torch.autograd.backward(losses[labelled].mean())
    for path, grad in truth.gradients(inputs).items():
        found = dict(model.named_weights())[path].grad
        if grad.numel():
            assert distance(torch.zeros_like(grad) if found is None else found, grad) < 1e-9, path


@pytest.mark.parametrize("name", ["sliding_window", "samba"])
def test_a_window_of_one_is_attention_to_oneself(name: str) -> None:
    """Answers are those of the values alone: nothing is asked of queries and keys."""
    spec, x = small(name, depth=1, window=1), tokens(2, 7)
    model = nlc.compile(spec, dtype=torch.float64)
    truth = nlc.reference(spec, model.state_dict())((x,))[0]
    assert distance(model(x)[0], truth) < 1e-9
    weights = {n: w.clone() for n, w in model.state_dict().items()}
    for n in weights:
        if n.endswith(("q.linear", "k.linear")) and "recurrent" not in n:
            weights[n] = draw(*weights[n].shape, seed=len(n))
    assert any(not torch.equal(w, weights[n]) for n, w in model.state_dict().items())
    model.load_state_dict(weights)
    assert distance(model(x)[0], truth) < 1e-9


CHOICES = [
    ("hope_ablations", "query", 2), ("hope_ablations", "query", 0.5), ("moneta", "printed", 2),
    ("titans_mag", "gate", 2),
    ("referential_adaptive", "made", 2), ("target_network", "ahead", 0.5),
    ("referential_static", "product", 2), ("memora", "inputs", [0, 1]), ("hope", "printed", -1),
]  # fmt: skip


@pytest.mark.parametrize("name, setting, value", CHOICES)
def test_what_chooses_is_one_of_its_choices(name: str, setting: str, value: Any) -> None:
    """Told once, where the setting stands, and nothing that would follow from it."""
    with pytest.raises(nlc.SpecError) as told:
        nlc.load(name, **{setting: value})
    (one,) = told.value.diagnostics
    assert one.code == "NL606" and one.message.endswith("and may be 0 or 1")
    assert one.span.text.startswith(f"{setting} = ")


def test_what_is_said_of_settings_is_said_of_settings() -> None:
    text = "nl 1\nsystem one(a = 2) {{ assume {} in {}; flow(x) {{ return a * x }} }}"
    nlc.load(text.format("a", "[1, 2]"))
    for name, values, code in (("b", "[1]", "NL101"), ("a", "[]", "NL606"), ("a", "2", "NL606")):
        with pytest.raises(nlc.SpecError, match=code):
            nlc.load(text.format(name, values))


def test_a_setting_lies_where_it_is_said_to() -> None:
    """A number, each number of a list; a stream is what it is."""
    text = "nl 1\nsystem one(a = 2, b = [1, 3]) {{ assume {}; flow(x) {{ return a * x }} }}"
    for fine in ("a >= 2", "a > 1", "a <= 2", "a, b < 4", "b >= a - 1"):
        nlc.load(text.format(fine))
    for wrong, said_of_it in {
        "a > 2": "`a` is 2, and may be above 2",
        "b < 3": "`b` is [1, 3], and may be below 3",
        "a == 2": "`== 2` is no bound of a setting",
        "a >= b": "`>= b` is no bound of a setting",
        "c >= 1": "`c` is no setting; they are a, b",
    }.items():
        with pytest.raises(nlc.SpecError) as error:
            nlc.load(text.format(wrong))
        assert [d.message for d in error.value.diagnostics] == [said_of_it]


@pytest.mark.parametrize(
    ("name", "streams", "setting"),
    [
        ("elastic", 2, {"gamma": -1e-3}), ("elastic_ftrl", 1, {"gamma": -1}),
        ("lp", 2, {"p": 0.5}), ("lp", 2, {"smooth": -1e-6}),
        ("moneta", 2, {"p": 0.5}), ("moneta_ftrl", 2, {"p": 0}),
    ],
)  # fmt: skip
def test_a_memory_is_not_given_a_setting_that_means_nothing(
    name: str, streams: int, setting: dict[str, float]
) -> None:
    x, gate = torch.randn(1, 2, 1, 4), torch.rand(1, 2, 1)
    (named,) = setting
    with pytest.raises(ValueError, match=f"`{named}` is .*, and may be no less than [01]"):
        nlc.memory(name)(x, x, x, *[gate] * streams, **setting)
    nlc.memory(name)(x, x, x, *[gate] * streams, **{named: 1})


CHOOSING = """nl 1
memory m(q[n], k[n], which = 1) {
  assume which in [0, 1]
  state M : matrix(n, n)
  objective sum((M(k) - q)^2)
  learn gradient(rate = 0.1 + which)
  read M(q)
}
optimizer o(weight, grad, rate = 0.1, twice = 1) {
  assume twice in [1, 2]
  write -rate * twice * grad
}
"""
AROUND = """system one() {{
  level training every step {{ objective loss; learn o({}) }}
  level b(x) every token {{ read m(x, x{}) }}
  transfer backprop b -> training
  flow(x[4], y[4]) {{ h = b(linear(x, 4)); loss = sum((h - y)^2); return h }}
}}
"""


@pytest.mark.parametrize(
    ("rule", "memory", "message", "place"),
    [
        ("", ", which = 2", "`which` is 2, and may be 0 or 1", "m(x, x, which = 2)"),
        ("", ", which = sum(x)", "`which` changes while the system runs, and may be 0 or 1",
         "m(x, x, which = sum(x))"),
        ("twice = 3", "", "`twice` is 3, and may be 1 or 2", "learn o(twice = 3)"),
        ("twice = count", "", "`twice` changes while the system runs, and may be 1 or 2",
         "learn o(twice = count)"),
    ],
)  # fmt: skip
def test_a_memory_and_an_optimizer_say_what_theirs_may_be(
    rule: str, memory: str, message: str, place: str
) -> None:
    nlc.load(CHOOSING + AROUND.format("twice = 2", ", which = 0"))
    with pytest.raises(nlc.SpecError) as told:
        nlc.load(CHOOSING + AROUND.format(rule, memory))
    (one,) = told.value.diagnostics
    assert (one.code, one.message, one.span.text) == ("NL606", message, place)


def test_a_default_that_may_not_be() -> None:
    (one,) = check_text(CHOOSING.replace("which = 1", "which = 3")).diagnostics
    assert (one.code, one.span.text) == ("NL606", "which = 3")


def test_an_operation_is_told_of_a_setting_that_may_not_be() -> None:
    q = torch.randn(1, 3, 2, 4)
    for name, setting in (("moneta", "printed"), ("memora", "inputs")):
        memory = nlc.memory(name)
        memory(q, q, q, 0.9, 0.1, **{setting: 0})
        with pytest.raises(ValueError, match=f"`{setting}` is 2, and may be 0 or 1"):
            memory(q, q, q, 0.9, 0.1, **{setting: 2})
        with pytest.raises(ValueError, match=f"`{setting}` changes .* and may be 0 or 1"):
            memory(q, q, q, 0.9, 0.1, **{setting: torch.ones(1, 3, 2)})
    for shape in ((4,), (4, 3), (2, 4, 3)):
        with pytest.raises(ValueError, match="`twice` is 3, and may be 1 or 2"):
            nlc.optimizer(CHOOSING)([torch.nn.Parameter(torch.zeros(shape))], twice=3)


def test_a_repeat_of_no_round_is_told_as_one() -> None:
    with pytest.raises(nlc.SpecError, match="called only in a `repeat` of no round"):
        nlc.load("stacked", periods=[])


# ---- a chunk of one token ------------------------------------------------------------------------

RECURRENT = ["titans", "titans_mag", "titans_mal", "moneta", "yaad", "memora", "ttt_mlp"]


def without_chunks(name: str) -> Spec:
    """The system with its memory written into it, and no line that freezes a gradient."""
    text = (SPECS / f"{name}.nl").read_text("utf-8")
    memory = "titans" if name.startswith("titans") else name
    if f'use "memory/{memory}"\n' in text:
        inside = (SPECS / "memory" / f"{memory}.nl").read_text("utf-8").removeprefix("nl 1\n")
        text = text.replace(f'use "memory/{memory}"\n', "").replace(
            "\nsystem ", inside + "\nsystem "
        )
    assert text.count("linearise every chunk tokens") == 1
    return sized(text.replace("linearise every chunk tokens", ""), name)


def sized(text: str, name: str) -> Spec:
    """A text at the sizes at which the system of that name is tested."""
    return nlc.load(text, **small(name, depth=1).system.settings)


@pytest.mark.parametrize("name", [*RECURRENT, "titans_mac"])
def test_a_chunk_of_one_token_is_the_recurrence(name: str) -> None:
    """Of every gradient at the state that the token before has left; a longer chunk is not."""
    exact, x = without_chunks(name), tokens(2, 9)
    for chunk, same in ((1, True), (3, False)):
        model = nlc.compile(small(name, depth=1, chunk=chunk), dtype=torch.float64)
        truth = nlc.reference(exact, model.state_dict())((x,))[0]
        assert (distance(model(x)[0], truth) < 1e-9) is same, chunk


# ---- rates inside --------------------------------------------------------------------------------


@torch.no_grad()
def moved(spec: Spec, time: int) -> dict[str, Tensor]:
    """What a few tokens add to each state."""
    model = nlc.compile(spec, dtype=torch.float64)
    before: State = model.reset(1)
    after: State = model(tokens(1, time))[1]
    inside = [n for n in before.arrays if ("continuum" in n or "ttt" in n) and ".start" not in n]
    return {n: after.arrays[n] - before.arrays[n] for n in inside}


@pytest.mark.parametrize(
    "name", ["ttt_linear", "cms_sequential", "cms_independent", "hope", "hope_attention"]
)
def test_a_rate_inside_is_a_setting(name: str) -> None:
    """The first write is in proportion to it, and at none nothing is written."""
    more: dict[str, Any] = {"depth": 1, "periods": [3], "chunk": 8}
    one, ten, none = (moved(small(name, inner=rate, **more), 4) for rate in (0.02, 0.2, 0))
    written = [n for n, x in one.items() if bool(x.any())]
    assert written and not any(bool(x.any()) for x in none.values())
    for n in written:
        assert distance(ten[n], 10 * one[n]) < 1e-12, n


# ---- the sum of (71) -----------------------------------------------------------------------------

BLOCK = """nl 1
use "memory/continuum"
system one(printed = 0) {
  level training every step { objective loss; learn adam(rate = 0.01) }
  level m(x) every 3 tokens { read continuum_block(x, 0.02, printed) }
  transfer backprop m -> training
  transfer init training -> m
  flow(x[4], y[4]) { p = m(x); loss = sum((p - y)^2); return p }
}
"""


def summed(w: list[Tensor], x: Tensor, y: Tensor, first: int) -> tuple[Tensor, list[Tensor]]:
    """(71) as a loop: at each i that 3 divides, less 0.02 times the sum over t from i - first to i
    of gradients, each at the weights of its own tick.
    """
    answers, terms = [], []
    for i in range(1, x.shape[0] + 1):
        w = [a.detach().requires_grad_() for a in w]
        z = x[i - 1] * (x[i - 1].square().mean() + 1e-6).rsqrt()
        p = torch.nn.functional.gelu(z @ w[0].mT) @ w[1].mT
        terms.append(torch.autograd.grad((p - y[i - 1]).square().sum(), w))
        answers.append(p.detach())
        if i % 3 == 0:
            since = terms[max(0, i - first - 1) : i]
            w = [a - 0.02 * sum(g[k] for g in since) for k, a in enumerate(w)]
    return torch.stack(answers), [a.detach() for a in w]


@pytest.mark.parametrize("printed", [0, 1])
def test_the_sum_of_a_period_has_as_many_terms_as_is_said(printed: int) -> None:
    """As many as ticks; as printed, one more: C + 1, from i - C to i."""
    spec = nlc.load(BLOCK, printed=printed)
    model, (x, y) = nlc.compile(spec, dtype=torch.float64), (draw(1, 14, 4, seed=i) for i in (0, 1))
    path = f"m.{'continuum_printed' if printed else 'continuum'}"
    weights = [dict(model.named_weights())[f"{path}.F.W{i}"].detach() for i in (1, 2)]
    answers, ends = summed(weights, x[0], y[0], first=3 if printed else 2)
    found, state = model(x, y)
    truth = nlc.reference(spec, model.state_dict())((x, y))[0]
    assert distance(found[0], answers) < 1e-12 and distance(truth[0], answers) < 1e-12
    for i, wanted in enumerate(ends, 1):
        kept = [state.arrays[n] for n in (f"{path}.F.W{i}", f"{path}.L.W{i}") if n in state.arrays]
        assert distance(sum(kept)[0], wanted) < 1e-12


def test_a_loss_learned_once_is_that_of_the_last_tick() -> None:
    """Across calls too, and where spans end at other ticks than the period's."""
    text = BLOCK.replace("printed = 0", "printed = 1").replace("every 3 tokens", "every 4 tokens")
    other = """  level n(x) every 3 tokens { read continuum(x, rate = 0.02) }
  transfer init training -> n
  transfer backprop n -> training
"""
    spec = nlc.load(text.replace("  flow", other + "  flow").replace("p = m(x)", "p = m(x) + n(x)"))
    model, x = nlc.compile(spec, dtype=torch.float64), [draw(2, 13, 4, seed=i) for i in (0, 1)]
    truth = nlc.reference(spec, model.state_dict())(x)[0]
    assert distance(model(*x)[0], truth) < 1e-9
    state, parts = None, []
    for a, b in ((0, 3), (3, 7), (7, 8), (8, 13)):
        y, state = model(*(each[:, a:b] for each in x), state=state)
        parts.append(y)
    assert distance(torch.cat(parts, 1), truth) < 1e-9


# ---- networks that are made of states ------------------------------------------------------------

MADE = """nl 1
system one(width = 4) {{
  level training every step {{ objective loss; learn adam(rate = 0.01) }}
  level m(x) every {clock} {{
    state F : {form} {{ objective loss; learn gradient(rate = 0.3) }}
    state A : {form} {{ objective loss; learn gradient(rate = 0.2) }}
    read  (F + 0.5 * A - stop(F))(linear(x, width)) - {other}
  }}
  transfer backprop m -> training
  transfer init training -> m
  flow(x[4], y[4]) {{ p = m(x); loss = sum((p - y)^2); return p }}
}}
"""
FORMS = ["mlp(width, 6)", "mlp(width, 5, 6, 4, act = tanh)", "gated_mlp(width, 6)",
         "residual(mlp(width, 6))", "layernorm(mlp(width, 6))", "layernorm(matrix(width, 4))",
         "residual(layernorm(matrix(width, 4)))"]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_network_made_of_states_says_what_its_arrays_say(form: str) -> None:
    """It is compiled, and is one: with the same arrays, `(F + A / 2 - F)(x)` is `A`'s half."""
    spec = nlc.load(MADE.format(clock="3 tokens", form=form, other="F(x)"))
    model, x = nlc.compile(spec, dtype=torch.float64), [draw(2, 8, 4, seed=i) for i in range(2)]
    truth = nlc.reference(spec, model.state_dict())
    assert distance(model(*x)[0], truth(x)[0]) < 1e-9
    losses, labelled, _ = model.losses(*x)
    torch.autograd.backward(losses[labelled].mean())
    for path, grad in truth.gradients(x).items():
        found = dict(model.named_weights())[path].grad
        assert found is not None and distance(found, grad) < 1e-9, path
    zero = nlc.compile(
        nlc.load(MADE.format(clock="8 tokens", form=form, other="0")), dtype=torch.float64
    )
    half = nlc.compile(
        nlc.load(
            MADE.format(clock="8 tokens", form=form, other="0").replace(
                "(F + 0.5 * A - stop(F))(", "0 * F(x) + A("
            )
        ),
        dtype=torch.float64,
    )
    w = zero.state_dict()
    half.load_state_dict({n: 0.5 * x if ".A." in n else x for n, x in w.items()})
    assert distance(zero(*x)[0], half(*x)[0]) < 1e-12


def test_a_network_of_heads_is_called_by_its_name() -> None:
    text = MADE.format(clock="3 tokens", form="mlp(2, 3) per heads", other="0")
    text = text.replace("width = 4", "width = 4, heads = 2")
    with pytest.raises(nlc.SpecError, match="is one memory a head"):
        nlc.load(text.replace("linear(x, width)", "split(x, heads)"))
    with pytest.raises(nlc.SpecError, match="this network takes vectors of 4"):
        nlc.load(MADE.format(clock="3 tokens", form=FORMS[0], other="0").replace(
            "linear(x, width)", "linear(x, 3)"))  # fmt: skip


def test_where_a_network_made_of_states_learns_by_itself_it_is_not_compiled() -> None:
    text = MADE.format(clock="token", form=FORMS[0], other="0").replace(
        "objective loss; learn gradient", "objective sum((F + A)(x)^2); learn gradient"
    )
    with pytest.raises(nlc.SpecError, match="a network that is made of states, in `m`"):
        nlc.compile(text)


@pytest.mark.parametrize("name", [
    "ada_transformer", "stacked", "hope", "cms_sequential", "cms_independent", "hope_attention",
])  # fmt: skip
def test_what_learns_at_a_rate_of_nothing_is_its_start_in_every_call(name: str) -> None:
    """A state handed on cuts nothing off: no call has made it."""
    off = {"rate" if name == "ada_transformer" else "inner": 0}
    spec = small(name, depth=1, **off)
    model = nlc.compile(spec, dtype=torch.float64)
    truth = nlc.reference(spec, model.state_dict(), traced=())
    x = random_streams(spec.system, 2, 11)
    for cut in (3, 4, 8):
        found = P.gradients_handed_over(model, truth, x, cut)
        assert found.holds, found
