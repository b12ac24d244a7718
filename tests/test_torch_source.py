"""The generated file: one that a person could have left, whatever names a spec has."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from shipped import SYSTEMS, compiled, distance, small, tokens, truth_of

import nlc
from nlc.backends.runtime import Model
from nlc.backends.torch_source import build
from nlc.backends.torch_source.layout import laid_out

every_system = pytest.mark.parametrize("name", SYSTEMS)
ROOT = Path(__file__).resolve().parent.parent
RUFF = shutil.which("ruff", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def imported(text: str, folder: Path) -> Model:
    """The model of a generated file, as a program of its own would import it."""
    path = folder / "generated.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("generated", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.MODULE(dtype=torch.float64)
    assert isinstance(model, Model)
    return model


# ---- the file -------------------------------------------------------------------------------


@every_system
@pytest.mark.parametrize("sizes", ["small", "default"])
def test_the_file_is_python_of_100_columns(name: str, sizes: str) -> None:
    text = build(small(name) if sizes == "small" else nlc.load(name))
    tree = ast.parse(text)
    assert ast.get_docstring(tree) and text.endswith("\n") and "\t" not in text
    assert all(len(line) <= 100 and line == line.rstrip() for line in text.split("\n"))
    names = [n.name for n in tree.body if isinstance(n, ast.ClassDef)]
    assert len(names) == len(set(names)) == 2  # the model, and what trains it


@pytest.mark.skipif(RUFF is None, reason="there is no ruff")
@pytest.mark.parametrize("sizes", ["small", "default"])
def test_the_files_are_formatted(sizes: str, tmp_path: Path) -> None:
    for name in SYSTEMS:
        text = build(small(name) if sizes == "small" else nlc.load(name))
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    for command in (["format", "--check"], ["check"]):
        asked = [str(RUFF), *command, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@every_system
def test_the_file_can_be_imported(name: str, tmp_path: Path) -> None:
    model, x = compiled(name), tokens(2, 9)
    assert distance(imported(model.source, tmp_path)(x)[0], model(x)[0]) == 0


@every_system
def test_the_file_says_where_it_comes_from(name: str) -> None:
    text = build(small(name))
    spec = small(name)
    for at, line in enumerate(spec.text.split("\n"), 1):
        if line.strip().startswith("logits ="):
            assert f".nl:{at}: {line.strip()}" in text
    flat = " ".join(text.split())
    for cite in [*spec.system.cites, *(c for b in spec.system.boxes for c in b.cites)]:
        assert cite in flat, cite


@every_system
def test_the_same_spec_is_the_same_file(name: str) -> None:
    assert build(small(name)) == build(small(name))


def test_the_file_does_not_depend_on_the_process() -> None:
    program = (
        "import nlc, hashlib; from nlc.backends.torch_source import build\n"
        "text = build(nlc.load('hope', width=8, heads=2, depth=1))\n"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True, text=True, check=True, cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


def test_a_traceback_shows_lines_of_the_file() -> None:
    model = compiled("transformer")
    dict(model.named_weights())["x.embed"].data = torch.zeros(3)
    with pytest.raises(RuntimeError) as caught:
        model(torch.full((1, 3), 9))
    shown = "".join(traceback.format_exception(caught.value))
    assert "<nlc transformer" in shown and "x = F.embedding(tokens.long(), w.x.embed)" in shown


# ---- names ----------------------------------------------------------------------------------

NAMES = [
    "lambda", "class", "self", "s", "at", "w", "torch", "F", "fresh", "time", "cut", "nn",
    "Tensor",
    "parts", "scan", "span", "attend", "None", "True", "import", "def", "__init__", "__class__",
    "_", "_x", "x__y", "print", "range", "super", "type", "kept", "loss_", "logits", "amount", "m",
    "count", "grad", "weight", "reads", "runs", "row", "y", "i", "layer", "before", "keys",
    "values",
    "forward", "flow_", "losses", "optimizers", "weights", "state_dict", "parameters", "training_",
    "device", "dtype", "source", "plant", "fire", "span_", "reset", "begin", "live", "train_",
    "eval", "cuda", "half", "apply", "modules", "named_weights", "Model", "Part", "Any", "Stream",
    "η", "α", "θ", "ﬁ", "x²", "日本",
]  # fmt: skip


REFUSED = {"def", "reset", "count", "x²"}  # no names of the language, in one place or another


def named(n: str) -> str:
    """A system in which a level, its input, a line and a state have the name n, or one like it."""
    return (
        f"nl 1\nsystem {n}() {{\n  level training every step {{ objective loss; learn adam() }}\n"
        f"  level {n}(q[4]) every token {{\n    state {n}_ : matrix(4, 4)\n"
        f"    {n}l = linear(q, 4)\n    objective sum(({n}_({n}l) - q)^2)\n"
        f"    learn gradient(rate = 0.1)\n    read {n}_({n}l) + {n}l\n  }}\n"
        f"  transfer backprop {n} -> training\n"
        f"  flow({n}i[4]) {{\n    {n}x = {n}({n}i)\n    loss = sum(({n}x - next({n}i))^2)\n"
        f"    return {n}x\n  }}\n}}\n"
    )


def bound(n: str) -> str:
    """A flow whose input and line have the name n, and a box whose input and line have it."""
    return (
        "nl 1\nsystem one() {\n  level training every step { objective loss; learn adam() }\n"
        f"  level mixer({n}[4]) every token {{\n    {n}2 = linear({n}, 4)\n"
        f"    state M : matrix(4, 4)\n    objective sum((M({n}2) - {n})^2)\n"
        "    learn momentum(rate = 0.1)\n    linearise every 3 tokens\n"
        f"    read M({n}2) + {n}\n  }}\n  transfer backprop mixer -> training\n"
        f"  flow({n}[4]) {{\n    z = mixer({n})\n    repeat 2 {{ z += linear(z, 4) }}\n"
        f"    loss = sum((z - next({n}))^2)\n    return z\n  }}\n}}\n"
    )


@pytest.mark.parametrize("shape", [named, bound], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_spec_make_no_trouble(shape: object, name: str) -> None:
    """A name that the language has is one that the generated file can have."""
    assert callable(shape)
    try:
        spec = nlc.load(shape(name))
    except nlc.SpecError:
        assert name in REFUSED
        return
    model = nlc.compile(spec, dtype=torch.float64)
    x = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = nlc.reference(spec, model.state_dict())
    assert distance(model(x)[0], truth(x)[0]) <= 1e-9
    losses, labelled, _ = model.losses(x)
    losses[labelled].mean().backward()  # type: ignore[no-untyped-call]
    for optimizer in model.optimizers():
        optimizer.step()
    model.eval()
    assert model.state_dict()


# ---- texts ----------------------------------------------------------------------------------

TEXTS = [
    'three quotes """ in it', "three ''' of the other", "a backslash \\ and \\N{DIGIT ONE} \\x",
    'ends in a quote"', "ends in a backslash\\", "{braces} and %s", "日本語 η \u2028 \u200b",
    '"""\nimport os\n"""', "# a comment in a comment", "x" * 300, "word " * 60,
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_texts_of_the_spec_stay_texts(text: str) -> None:
    lines = "\n".join(f"# {line}" for line in text.split("\n"))
    cite = text.replace('"', "'").replace("\n", " ").replace("\\", "/")
    first = text.split("\n")[0]
    source = (
        f'nl 1\n{lines}\nsystem one() {{\n  cite "{cite}"\n'
        f"  level training every step {{ objective loss; learn adam() }}   # {first}\n"
        f"  flow(x[4]) {{\n    y = linear(x, 4)  # {first}\n"
        "    loss = sum(y^2)\n    return y\n  }\n}\n"
    )
    try:
        spec = nlc.load(source)
    except nlc.SpecError:
        spec = nlc.load(source.replace(f'  cite "{cite}"\n', ""))
    made = build(spec)
    body = ast.parse(made).body
    assert [type(n) for n in body[:2]] == [ast.Expr, ast.ImportFrom]
    assert not any(isinstance(n, ast.Import) and n.names[0].name == "os" for n in body)
    model = nlc.compile(spec)
    assert model(torch.ones(1, 2, 4))[0].shape == (1, 2, 4)


def test_memories_alike_are_run_together() -> None:
    """HOPE's five networks: the first layers meet one key, the second layers of each kind stand
    side by side; three recurrences a stretch, not ten, and their gates once.
    """
    source = nlc.compile("hope", depth=1, width=16, vocab=8).source
    body = source.split("def titans_writes")[1].split("def titans_read")[0]
    assert body.count(" spans(") == 1 and body.count(".end()") == 3
    assert "torch.cat([M_main_W2, M_key_W2, M_value_W2])" in body


def test_long_lines_are_made_of_named_parts() -> None:
    inner = " + ".join(f"torch.relu(value_{i}.square())" for i in range(8))
    text = f"def f(self):\n    x = F.gelu(({inner}) ** 2)  # [batch, time]\n    return x\n"
    made = laid_out(text)
    assert all(len(line) <= 100 for line in made.split("\n"))
    values = {f"value_{i}": torch.tensor(0.1 * i) for i in range(8)}
    for version in (text, made):
        scope = {"torch": torch, "F": torch.nn.functional, **values}
        exec(version, scope)
        values.setdefault("wanted", scope["f"](None))  # type: ignore[operator]
        assert torch.equal(scope["f"](None), values["wanted"])  # type: ignore[operator]


@every_system
def test_the_file_of_a_small_system_is_the_reference(name: str, tmp_path: Path) -> None:
    model, x = imported(build(small(name)), tmp_path), tokens(1, 4)
    assert distance(model(x)[0], truth_of(name, model)(x)[0]) <= 1e-9
