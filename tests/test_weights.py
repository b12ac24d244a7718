"""Weights from files: a run, a safetensors file, a Llama-like folder; level stacking; and what is
refused, which leaves the model as it was.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import nlc
from nlc import checkpoint, cli
from nlc.backends.runtime import Model
from nlc.driver import SpecError
from nlc.run_folder import RunFolder
from nlc.show import Writer
from nlc.system import Assign
from nlc.weights import WeightsError

SIZES: dict[str, Any] = {"vocab": 11, "width": 8, "heads": 2, "hidden": 12}
LAYERS = 2
STACKED = {
    "x.embed": "x.embed",
    "x.norm": "layers.0.x.norm",
    "x.norm_2": "layers.0.x.norm_2",
    "x.norm_3": "layers.1.x.norm",
    "x.norm_4": "layers.1.x.norm_2",
    "logits.norm": "logits.norm",
    "logits.unembed": "logits.unembed",
    **{
        f"attention{end}.{part}.linear": f"layers.{i}.attention.{part}.linear"
        for i, end in enumerate(["", "_2"])
        for part in ("q", "k", "v", "read")
    },
    **{
        f"cms_{period}.F.{mine}": f"layers.{i}.swiglu.{theirs}"
        for i, period in enumerate([3, 7])
        for mine, theirs in (("W1", "linear"), ("W3", "linear_2"), ("W2", "linear_3"))
    },
}


def transformer(seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    return nlc.compile("transformer", depth=LAYERS, seed=seed, dtype=dtype, **SIZES)


def stacked(inner: float = 0.0, dtype: torch.dtype = torch.float32) -> Model:
    return nlc.compile("stacked", periods=[3, 7], inner=inner, seed=5, dtype=dtype, **SIZES)


def ids(time: int = 23) -> Tensor:
    return torch.randint(11, (2, time), generator=torch.Generator().manual_seed(time))


def same_bits(a: Model, b: Model) -> bool:
    with torch.no_grad():
        return torch.equal(a(ids())[0], b(ids())[0])


def saved(model: Model, place: Path) -> Path:
    save_file({n: p.detach().contiguous() for n, p in model.named_weights()}, place)
    return place


# ---- where they come from ------------------------------------------------------------------------


def test_a_file_of_safetensors(tmp_path: Path) -> None:
    source, model = transformer(1), transformer(2)
    assert not same_bits(source, model)
    started = nlc.start_from(model, saved(source, tmp_path / "weights.safetensors"))
    assert same_bits(source, model)
    assert str(started) == f"{len(list(model.named_weights()))} arrays were brought"


def test_a_run(tmp_path: Path) -> None:
    source, model = transformer(1), transformer(2)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "run.json").write_text("{}")
    whole = checkpoint.to_bytes({"step": 3, "model": dict(source.state_dict())})
    (tmp_path / "checkpoints" / "step-00000003.safetensors").write_bytes(whole)
    (tmp_path / "checkpoints" / "step-00000009.safetensors").write_bytes(whole[:200])
    nlc.start_from(model, tmp_path)
    assert same_bits(source, model)


def llama(source: Model, place: Path, shards: int = 1, **config: Any) -> Path:
    """The folder that a Llama-like checkpoint of these weights would be."""
    named = dict(source.named_weights())
    made = {
        "model.embed_tokens.weight": named["x.embed"],
        "model.norm.weight": named["logits.norm"],
    }
    made["lm_head.weight"] = named["logits.unembed"]
    roles = {
        "x.norm": "input_layernorm", "x.norm_2": "post_attention_layernorm",
        "attention.q.linear": "self_attn.q_proj", "attention.k.linear": "self_attn.k_proj",
        "attention.v.linear": "self_attn.v_proj", "attention.read.linear": "self_attn.o_proj",
        "swiglu.linear": "mlp.gate_proj", "swiglu.linear_2": "mlp.up_proj",
        "swiglu.linear_3": "mlp.down_proj",
    }  # fmt: skip
    for i in range(LAYERS):
        for mine, theirs in roles.items():
            made[f"model.layers.{i}.{theirs}.weight"] = named[f"layers.{i}.{mine}"]
    arrays = {n: p.detach().clone() for n, p in made.items()}
    if "tie_word_embeddings" in config:
        del arrays["lm_head.weight"]
    place.mkdir()
    said = {
        "model_type": "llama", "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "hidden_size": 8, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    }  # fmt: skip
    (place / "config.json").write_text(json.dumps(said | config))
    parts = {f"model-{i}.safetensors": sorted(arrays)[i::shards] for i in range(shards)}
    for file, names in parts.items():
        save_file({n: arrays[n] for n in names}, place / file)
    if shards > 1:
        where = {n: file for file, names in parts.items() for n in names}
        index = {"metadata": {}, "weight_map": where}
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


@pytest.mark.parametrize("shards", [1, 3])
def test_a_llama_like_folder(shards: int, tmp_path: Path) -> None:
    source, model = transformer(1), transformer(2)
    nlc.start_from(model, llama(source, tmp_path / "llama", shards))
    assert same_bits(source, model)


def test_tied_tables(tmp_path: Path) -> None:
    model = transformer(2)
    place = llama(transformer(1), tmp_path / "llama", tie_word_embeddings=True)
    nlc.start_from(model, place)
    named = dict(model.named_weights())
    assert torch.equal(named["logits.unembed"], named["x.embed"])


def test_shared_key_heads_are_there_for_each_query(tmp_path: Path) -> None:
    source, model = transformer(1), transformer(2)
    place = llama(source, tmp_path / "llama", num_key_value_heads=1)
    whole = dict(source.named_weights())
    arrays = {}
    for name, p in whole.items():
        arrays[name] = p.detach().clone()
        if ".k.linear" in name or ".v.linear" in name:
            arrays[name][4:] = arrays[name][:4]  # the second head is the first
    source.load_state_dict(arrays)
    from safetensors.torch import load_file

    theirs = load_file(place / "model-0.safetensors")
    for name in theirs:
        if "k_proj" in name or "v_proj" in name:
            theirs[name] = theirs[name][:4].clone()
    save_file(theirs, place / "model-0.safetensors")
    nlc.start_from(model, place)
    assert same_bits(source, model)


def llama_says(place: Path, tokens: Tensor) -> Tensor:
    """What a Llama computes, from its folder (2302.13971; halves as published code turns them)."""
    from safetensors.torch import load_file

    said = json.loads((place / "config.json").read_text())
    w = {n: x.double() for n, x in load_file(place / "model-0.safetensors").items()}
    heads, time = said["num_attention_heads"], tokens.shape[1]

    def norm(x: Tensor, name: str) -> Tensor:
        eps = float(said["rms_norm_eps"])
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w[name]

    def turned(x: Tensor) -> Tensor:
        n = x.shape[-1]
        speed = said["rope_theta"] ** (-2 * torch.arange(n // 2, dtype=torch.float64) / n)
        angle = torch.arange(time, dtype=torch.float64)[:, None] * speed
        both = torch.polar(torch.ones_like(angle), angle)
        pairs = torch.complex(x[..., : n // 2], x[..., n // 2 :]) * both[:, None]
        return torch.cat([pairs.real, pairs.imag], -1)

    x = w["model.embed_tokens.weight"][tokens]
    for i in range(said["num_hidden_layers"]):
        at = f"model.layers.{i}."
        z = norm(x, at + "input_layernorm.weight")
        q, k, v = (z @ w[f"{at}self_attn.{p}_proj.weight"].T for p in "qkv")
        q, k, v = (torch.unflatten(y, -1, (heads, -1)) for y in (q, k, v))
        scores = torch.einsum("bthn,bshn->bhts", turned(q), turned(k)) / q.shape[-1] ** 0.5
        ahead = torch.ones(time, time, dtype=torch.bool).triu(1)
        seen = torch.einsum("bhts,bshn->bthn", scores.masked_fill(ahead, -1e30).softmax(-1), v)
        x = x + seen.flatten(-2) @ w[at + "self_attn.o_proj.weight"].T
        z = norm(x, at + "post_attention_layernorm.weight")
        gate, up, down = (w[f"{at}mlp.{p}_proj.weight"] for p in ("gate", "up", "down"))
        x = x + (torch.nn.functional.silu(z @ gate.T) * (z @ up.T)) @ down.T
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


@pytest.mark.parametrize("name", ["transformer", "stacked"])
@pytest.mark.parametrize("theta, eps", [(10000.0, 1e-6), (500000.0, 1e-5), (500000.0, 0.3)])
def test_llama_3_says_the_same_here(name: str, theta: float, eps: float, tmp_path: Path) -> None:
    """Base 500,000 and 1e-5 under the root are settings."""
    place = llama(transformer(1), tmp_path / "llama", rope_theta=theta, rms_norm_eps=eps)
    sizes: dict[str, Any] = {"vocab": 11, "width": 8, "heads": 2, "hidden": 12}
    sizes |= {"depth": LAYERS} if name == "transformer" else {"periods": [2, 4], "inner": 0}
    spec = nlc.load(name, base=theta, eps=eps, **sizes)
    model = nlc.compile(spec, seed=3, dtype=torch.float64)
    nlc.start_from(model, place)
    tokens = torch.randint(0, 11, (2, 40), generator=torch.Generator().manual_seed(0))
    wanted = llama_says(place, tokens)
    torch.testing.assert_close(model(tokens)[0].detach(), wanted, rtol=1e-9, atol=1e-9)
    truth = nlc.reference(spec, model.state_dict())
    torch.testing.assert_close(truth(tokens[:, :7])[0], wanted[:, :7], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "call, told",
    [
        ("rope(x, base = 0)", "the base of `rope` is a number above 0, known when compiled"),
        ("rope(x, base = x)", "the base of `rope` is a number above 0, known when compiled"),
        ("norm(x, eps = -1)", "the eps of `norm` is a number above 0, known when compiled"),
        ("norm(x, eps = infinity)", "the eps of `norm` is a number above 0"),
        ("norm(x, esp = 1)", "`norm` has no setting `esp`; did you mean `eps`?"),
        ("rope(x, 2, 3)", "`rope` takes 1 to 2 arguments"),
    ],
)
def test_a_base_or_an_eps_that_is_none(call: str, told: str) -> None:
    text = "nl 1\nsystem one() {\n  level t every step { objective loss; learn gradient() }\n"
    with pytest.raises(SpecError, match=re.escape(told)):
        nlc.load(f"{text}  flow(x[4]) {{ z = linear({call}, 4); loss = sum(z); return z }}\n}}\n")


def test_a_base_and_an_eps_are_told() -> None:
    text = "nl 1\nsystem one() {\n  level t every step { objective loss; learn gradient() }\n"
    text += (
        "  flow(x[4]) { z = rope(norm(x, eps = 1e-5), base = 5e5); loss = sum(z); return z }\n}\n"
    )
    spec = nlc.load(text)
    (line,) = (x for x in spec.system.flow.lines if isinstance(x, Assign) and x.name == "z")
    assert Writer().text(line.value) == "rope(norm(x, eps = 1e-05), base = 500000)"
    assert nlc.compile(spec).BASES == (500000.0,) and nlc.compile(spec).EPS == (1e-5,)


# ---- runs that start from them -------------------------------------------------------------------


def run(*words: object) -> int:
    return cli.main(["train", *map(str, words)])


def first(folder: str = "run") -> dict[str, Tensor]:
    """The weights of a run's first checkpoint, before any step."""
    return dict(checkpoint.from_file(RunFolder(Path(folder)).saved()[0])["model"])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox; " * 99)
    return tmp_path


BYTES: dict[str, Any] = {"vocab": 256, "width": 8, "heads": 2, "depth": 2}
SMALL = ("--length", 16, "--batch", 2, "--val-bytes", 64, "--threads", 1, "--steps", 1)
SETTINGS = tuple(word for k, v in BYTES.items() for word in ("--set", f"{k}={v}"))
CALL = ("transformer", *SETTINGS, "--set", "hidden=32", *SMALL, "--data", "text.txt")


def test_a_run_from_a_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it ends before its first checkpoint; and a run goes on with its own weights."""
    source = nlc.compile("transformer", **BYTES, hidden=32, seed=3)
    saved(source, place / "w.safetensors")
    assert run(*CALL, "--out", "run", "--from", "w.safetensors") == 0
    assert "arrays were brought from w.safetensors" in capsys.readouterr().out
    wanted = {n: p.detach() for n, p in source.named_weights()}
    assert all(torch.equal(first()[n], p) for n, p in wanted.items())
    for file in (place / "run" / "checkpoints").iterdir():
        file.unlink()
    assert run("--resume", "run", "--steps", 2) == 0
    assert all(torch.equal(first()[n], p) for n, p in wanted.items())
    (place / "w.safetensors").unlink()
    assert run("--resume", "run", "--steps", 3) == 0
    assert run("--resume", "run", "--steps", 4, "--from", "other.safetensors") == 2
    assert f"--from is {place}/w.safetensors in the run" in capsys.readouterr().err


def test_lora_beside_a_llama(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The base is the checkpoint's and stays so; the adapters, which it lacks, have their own."""
    source = nlc.compile("transformer", **BYTES, hidden=32, seed=3)
    llama(source, place / "llama")
    words = ("lora", *CALL[1:], "--set", "rank=2", "--out", "run")
    assert run(*words, "--from", "llama") == 2
    assert "has no place in a Llama-like checkpoint" in capsys.readouterr().err
    assert not (place / "run").exists()
    assert run(*words, "--from", "llama", "--partial", "--steps", 3) == 0
    model = nlc.compile("lora", **BYTES, hidden=32, rank=2)
    nlc.start_from(model, "llama", partial=True)
    assert same_bits(source, model)  # until it has learned
    newest = checkpoint.from_file(RunFolder(Path("run")).saved()[-1])["model"]
    wanted = {n: p.detach() for n, p in source.named_weights()}
    assert wanted.keys() < newest.keys() and all(torch.equal(newest[n], wanted[n]) for n in wanted)
    moved = [n for n in newest if not torch.equal(newest[n], first()[n])]
    assert any(".B" in n or n.endswith("B") for n in moved)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--from", "nowhere"), "There is no nowhere."),
        (("--from", "text.txt"), "text.txt is no whole safetensors file"),
        (("--from", "w.pt"), "w.pt may hold pickled code"),
        (("--from", "some.safetensors"), "has nothing for layers.0.x.norm"),
        (("--partial",), "it needs --from"),
    ],
)
def test_a_run_from_what_is_no_file_of_weights(
    words: tuple[str, ...], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"x.embed": torch.ones(256, 8)}, place / "w.pt")
    save_file({"x.embed": torch.ones(256, 8)}, place / "some.safetensors")
    assert run(*CALL, "--out", "run", *words) == 2
    assert said in capsys.readouterr().err
    assert not (place / "run").exists() and not (place / "runs").exists()


# ---- level stacking ------------------------------------------------------------------------------


def test_stacked_at_rate_0_is_the_transformer_to_the_last_bit(tmp_path: Path) -> None:
    """arXiv:2512.24695, section 7.3: with inner rates at 0 nothing of the trained model changes."""
    source, model = transformer(1), stacked()
    nlc.start_from(model, saved(source, tmp_path / "weights.safetensors"), STACKED)
    assert same_bits(source, model)


def test_stacked_from_a_llama_like_folder(tmp_path: Path) -> None:
    source, model = transformer(1), stacked()
    nlc.start_from(model, llama(source, tmp_path / "llama"))
    assert same_bits(source, model)


def test_stacked_at_a_rate_starts_as_the_transformer_and_then_learns(tmp_path: Path) -> None:
    """The first period is the transformer's; after it the feed-forward of that period has moved."""
    source, model = transformer(1, torch.float64), stacked(0.1, torch.float64)
    nlc.start_from(model, saved(source, tmp_path / "weights.safetensors"), STACKED)
    with torch.no_grad():
        ours, theirs = model(ids())[0], source(ids())[0]
    off = (ours - theirs).abs().amax((0, 2)) / theirs.abs().max()
    assert float(off[:3].max()) < 1e-14 and float(off[3:].min()) > 1e-8


def test_only_some(tmp_path: Path) -> None:
    """Rounds are numbered by {}; what is not named keeps its start, if the call says so."""
    source, model = transformer(1), transformer(2)
    place = saved(source, tmp_path / "weights.safetensors")
    before = {n: p.detach().clone() for n, p in model.named_weights()}
    names = {"layers.{}.swiglu.linear": "layers.{}.swiglu.linear_2"}
    with pytest.raises(WeightsError, match=r"nothing for x\.embed"):
        nlc.start_from(model, place, names)
    started = nlc.start_from(model, place, names, partial=True)
    theirs = dict(source.named_weights())
    for name, p in model.named_weights():
        wanted = theirs[name + "_2"] if name.endswith("swiglu.linear") else before[name]
        assert torch.equal(p, wanted), name
    assert len(started.loaded) == LAYERS and "x.embed" in started.kept
    assert "keep their own start" in str(started) and "are not used" in str(started)


# ---- what is refused -----------------------------------------------------------------------------


def refused(tmp_path: Path, place: Path, names: Any = None) -> str:
    model = transformer(2)
    before = {n: p.detach().clone() for n, p in model.named_weights()}
    with pytest.raises(WeightsError) as raised:
        nlc.start_from(model, place, names)
    assert all(torch.equal(p, before[n]) for n, p in model.named_weights())
    return str(raised.value)


def test_no_file(tmp_path: Path) -> None:
    assert "There is no" in refused(tmp_path, tmp_path / "weights.safetensors")
    assert "neither a run nor safetensors" in refused(tmp_path, tmp_path)


def test_a_damaged_file(tmp_path: Path) -> None:
    place = saved(transformer(1), tmp_path / "weights.safetensors")
    place.write_bytes(place.read_bytes()[:-100])
    assert "no whole safetensors file" in refused(tmp_path, place)
    place.write_bytes(b"\0")
    assert "no whole safetensors file" in refused(tmp_path, place)


def test_pickled_code_is_never_read(tmp_path: Path) -> None:
    place = tmp_path / "weights.pt"
    torch.save({"x.embed": torch.ones(11, 8)}, place)
    assert "pickled code" in refused(tmp_path, place)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "pytorch_model.bin").write_bytes(place.read_bytes())
    assert "pickled code" in refused(tmp_path, folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights", "weights.th", "weights.BIN"])
@pytest.mark.parametrize("pickled", [True, False])
def test_pickled_code_by_another_name(name: str, pickled: bool, tmp_path: Path) -> None:
    place = tmp_path / name
    torch.save({"x.embed": torch.ones(11, 8)}, place, _use_new_zipfile_serialization=not pickled)
    assert f"{place} may hold pickled code" in refused(tmp_path, place)


def test_an_index_of_pickled_files(tmp_path: Path) -> None:
    place = llama(transformer(1), tmp_path / "llama", 2)
    torch.save({"x": torch.ones(1)}, place / "pytorch_model.bin")
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "pytorch_model.bin"}}))
    assert "pytorch_model.bin may hold pickled code" in refused(tmp_path, place)


def test_a_length_is_no_pickle(tmp_path: Path) -> None:
    """A header of 128 bytes: the file begins with the first byte of a pickle."""
    place, model = tmp_path / "weights.safetensors", transformer(2)
    name = "w" * (128 - 58)
    save_file({name: torch.ones(11, 8)}, place)
    assert place.read_bytes()[0] == 0x80
    nlc.start_from(model, place, {"x.embed": name}, partial=True)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (float("nan"), "x.embed of PLACE holds nan or infinity"),
        (float("-inf"), "x.embed of PLACE holds nan or infinity"),
        (1e300, "x.embed of PLACE holds numbers too large for float32"),
    ],
)
def test_weights_that_are_no_numbers(x: float, said: str, tmp_path: Path) -> None:
    arrays = {n: p.detach().double() for n, p in transformer(1).named_weights()}
    arrays["x.embed"][3, 2] = x
    place = tmp_path / "weights.safetensors"
    save_file(arrays, place)
    assert said.replace("PLACE", str(place)) in refused(tmp_path, place)


def test_names_that_are_none(tmp_path: Path) -> None:
    place = saved(transformer(1), tmp_path / "weights.safetensors")
    for odd in ("foo{bar}", "foo{", "{0}"):
        assert f"has no array {odd}." in refused(tmp_path, place, {"x.embed": odd})
    assert "'x.embed': 3, and both must be" in refused(tmp_path, place, {"x.embed": 3})
    assert "`names` is [1], and must be a table" in refused(tmp_path, place, [1])


def test_other_names_and_shapes(tmp_path: Path) -> None:
    place = tmp_path / "weights.safetensors"
    save_file({"w": torch.ones(3)}, place)
    assert "no name in common" in refused(tmp_path, place)
    assert "is [11, 8], and w" in refused(tmp_path, place, {"x.embed": "w"})
    assert "has no array ww. Did you mean w?" in refused(tmp_path, place, {"x.embed": "ww"})
    assert "no array x.embeds. Did you mean x.embed?" in refused(tmp_path, place, {"x.embeds": "w"})
    assert "more {}" in refused(tmp_path, place, {"x.embed": "w.{}"})
    save_file({"w": torch.ones(11, 8, dtype=torch.int64)}, place)
    assert "torch.int64" in refused(tmp_path, place, {"x.embed": "w"})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rope_theta", 500000.0, "rope_theta = 500000.0, and this model 10000: make it with base"),
        ("rope_parameters", {"rope_theta": 5e5}, "rope_theta = 500000.0"),
        ("rms_norm_eps", 1e-5, "rms_norm_eps = 1e-05, and this model 1e-06: make it with eps"),
        ("rope_parameters", {"rope_type": "llama3"}, 'rope_type = "llama3": its angles are no'),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}, 'rope_type = "llama3"'),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, 'rope_type = "linear"'),
        ("hidden_act", "gelu", 'hidden_act = "gelu"'),
        ("head_dim", 16, "heads of 16"),
        ("num_attention_heads", 4, "num_attention_heads = 4, and this model 2: make it with heads"),
        ("partial_rotary_factor", 0.5, "partial_rotary_factor = 0.5, where this language has 1"),
        ("rope_parameters", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("embedding_multiplier", 12.0, "embedding_multiplier = 12.0, where this language has 1"),
        ("residual_multiplier", 0.22, "residual_multiplier = 0.22"),
        ("logits_scaling", 8.0, "logits_scaling = 8.0"),
        ("attention_multiplier", 1.0, "attention_multiplier = 1.0, where this language has 0.5"),
        ("final_logit_softcapping", 30.0, "final_logit_softcapping = 30.0"),
        ("num_hidden_layers", 3, "3 layers, and this model 2"),
    ],
)
def test_a_checkpoint_that_computes_something_else(
    key: str, value: Any, said: str, tmp_path: Path
) -> None:
    place = llama(transformer(1), tmp_path / "llama", **{key: value})
    assert said in refused(tmp_path, place)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_attention_heads", "2", '= "2", which must be a whole number above 0'),
        ("num_attention_heads", True, "= true, which must be a whole number above 0"),
        ("num_key_value_heads", 4, "= 4, which must be a divisor of num_attention_heads = 2"),
        ("num_key_value_heads", -1, "= -1, which must be a whole number above 0 or null"),
        ("num_key_value_heads", "x", '= "x", which must be a whole number above 0 or null'),
        ("hidden_size", None, "= null, which must be a whole number above 0"),
        ("hidden_size", 9, "= 9, which must be a multiple of num_attention_heads = 2"),
        ("num_hidden_layers", None, "= null, which must be a whole number above 0"),
        ("num_hidden_layers", 10**400, "which must be a whole number above 0"),
        ("rope_scaling", [1], "= [1], which must be a table or null"),
        ("rope_scaling", "linear", '= "linear", which must be a table or null'),
        ("rope_parameters", {"rope_theta": "x"}, 'rope_theta = "x", which must be a number'),
        ("rms_norm_eps", float("nan"), "= NaN, which must be a number above 0"),
        ("attention_multiplier", "x", '= "x", which must be a number above 0 or null'),
        ("tie_word_embeddings", "no", '= "no", which must be true or false'),
        ("model_type", "gemma", '= "gemma", which must be one of llama, mistral, granite'),
        ("layer_types", ["sliding_attention"], 'must be "full_attention" for each layer'),
    ],
)
def test_a_value_that_is_none_of_its_key(key: str, value: Any, said: str, tmp_path: Path) -> None:
    place = llama(transformer(1), tmp_path / "llama", **{key: value})
    told = refused(tmp_path, place)
    assert said in told and f"llama: config.json has {key if 'theta' not in said else ''}" in told


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("quantization_config", {"bits": 4}, 'quantization_config = {"bits": 4}, where this'),
        ("clip_qkv", 3.0, "clip_qkv = 3.0"),
        ("sliding_window", 16, "sliding_window = 16"),
        ("model_type", "mistral", "does not say sliding_window, and mistral then means another"),
        ("model_type", "granite", "does not say attention_multiplier, and granite then means"),
        ("rope_scaling", {"factor": 8.0}, "rope_type = null: its angles"),
        ("rope_parameters", {"full_attention": {"rope_theta": 5e5}}, "are no powers of one base"),
        ("hidden_size", 16, "[11, 8], and by hidden_size of config.json it must have 16 columns"),
        ("vocab_size", 12, "[11, 8], and by vocab_size of config.json it must have 12 rows"),
        ("intermediate_size", 13, "[12, 8], and by intermediate_size of config.json it must have"),
        ("num_key_value_heads", 1, "[8, 8], and by num_attention_heads / num_key_value_heads of"),
    ],
)
def test_a_config_that_its_arrays_or_this_language_contradict(
    key: str, value: Any, said: str, tmp_path: Path
) -> None:
    place = llama(transformer(1), tmp_path / "llama", **{key: value})
    assert said in refused(tmp_path, place)


def test_a_mistral_without_a_window_is_a_llama(tmp_path: Path) -> None:
    source, model = transformer(1), transformer(2)
    said: dict[str, Any] = {"model_type": "mistral", "sliding_window": None}
    nlc.start_from(model, llama(source, tmp_path / "llama", num_key_value_heads=2, **said))
    assert same_bits(source, model)


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False}])
def test_logits_are_tied_only_if_the_config_says_so(config: Any, tmp_path: Path) -> None:
    place = llama(transformer(1), tmp_path / "llama", tie_word_embeddings=True)  # has no lm_head
    said = json.loads((place / "config.json").read_text())
    del said["tie_word_embeddings"]
    (place / "config.json").write_text(json.dumps(said | config))
    told = refused(tmp_path, place)
    assert "no array lm_head.weight, and config.json does not say tie_word_embeddings" in told


def with_array(place: Path, name: str, x: Tensor) -> Path:
    """The folder, with one more file of one array."""
    save_file({name: x}, place / "more.safetensors")
    return place


@pytest.mark.parametrize("name", ["self_attn.q_norm.weight", "self_attn.q_proj.bias"])
def test_an_array_of_a_block_that_has_no_place(name: str, tmp_path: Path) -> None:
    at = f"model.layers.1.{name}"
    place = with_array(llama(transformer(1), tmp_path / "llama"), at, torch.ones(8))
    assert f"the checkpoint has {at}, which has no place" in refused(tmp_path, place)


def test_what_says_nothing_new_is_no_hindrance(tmp_path: Path) -> None:
    """Neutral factors, and the angles that old files hold."""
    neutral: dict[str, Any] = {
        "embedding_multiplier": 1.0,
        "logits_scaling": 1,
        "attention_multiplier": 0.5,
    }
    source, model = transformer(1), transformer(2)
    place = llama(source, tmp_path / "llama", partial_rotary_factor=1.0, **neutral)
    at = "model.layers.0.self_attn.rotary_emb.inv_freq"
    started = nlc.start_from(model, with_array(place, at, torch.ones(2)))
    assert same_bits(source, model) and started.unused == (at,)


def test_stacked_of_another_number_of_heads(tmp_path: Path) -> None:
    place = llama(transformer(1), tmp_path / "llama", num_attention_heads=4)
    with pytest.raises(WeightsError, match="this model 2: make it with heads = 4"):
        nlc.start_from(stacked(), place)
    sizes = SIZES | {"heads": 4}
    nlc.start_from(nlc.compile("stacked", periods=[3, 7], inner=0, **sizes), place)


def test_a_config_that_does_not_say_how_many_heads(tmp_path: Path) -> None:
    """One head is no guess: the matrices would be split otherwise in silence."""
    place = llama(transformer(1), tmp_path / "llama")
    config = json.loads((place / "config.json").read_text())
    del config["num_attention_heads"]
    (place / "config.json").write_text(json.dumps(config))
    assert "does not say num_attention_heads" in refused(tmp_path, place)


def test_an_index_that_leads_elsewhere(tmp_path: Path) -> None:
    place = llama(transformer(1), tmp_path / "llama", 2)
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../other.safetensors"}}))
    assert "outside its folder" in refused(tmp_path, place)
    others: list[tuple[Any, str]] = [
        ([], "has weight_map = [], which must be a table: array -> file."),
        ({"x": ["y"]}, 'has ["y"] for x, which must be the name of a file of its folder.'),
        ({"x": "more.safetensors"}, "names more.safetensors, which is not there."),
    ]
    for where, said in others:
        index.write_text(json.dumps({"weight_map": where}))
        assert refused(tmp_path, place) == f"{index} {said}"
    index.write_text("[")
    assert "no JSON" in refused(tmp_path, place)


def test_a_model_of_another_shape(tmp_path: Path) -> None:
    place = llama(transformer(1), tmp_path / "llama")
    model = nlc.compile("deltanet", vocab=11, width=8, heads=2, depth=2)
    with pytest.raises(WeightsError, match="has no place in a Llama-like checkpoint"):
        nlc.start_from(model, place)
