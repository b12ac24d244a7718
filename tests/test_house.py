"""The laws of the house, proved from the files: what may import what, how long things may be.

`LAYERS` is the street, from what stands alone to what knows all. A module imports from the layers
below its own, and on its own layer from its own room alone; `DOORS` are the ones that are open
between rooms, each with its reason. A package is one room.
"""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx
import pytest

from nlc.codes import CODES

ROOT = Path(__file__).parent.parent
LINKS = {"grammar", "specs", "backends"}  # nlc/backends is backends/

LAYERS: tuple[tuple[str, ...], ...] = (
    # words and files
    ("text", "files", "interrupts", "codes", "progress", "grammar", "specs"),
    ("diagnostics", "calls", "corpus", "run_folder"),
    # pages: one representation each
    ("syntax", "system", "render"),
    ("levels", "rules"),
    ("plan", "layout", "kernels"),
    # stages: text -> syntax -> system -> levels, rules -> plan
    (
        "tokens lines mistakes build parse",
        "printer",
        "placement",
        "resolve",
        "checks",
        "reading components order",
        "backward derive affine",
        "lacking foreign crossing joint windows pasts endings idle array_rules lower",
    ),
    ("driver",),
    # tools, each a question about what the stages have made
    ("format", "around", "draw", "schedule", "show explain", "testing", "lsp"),
    ("backends.triton",),
    ("backends.ids",),
    ("backends.parameters", "backends.ops", "backends.gates"),
    ("backends.runtime", "backends.reference"),
    ("backends.torch_source",),
    ("backends", "api memory operation operations memories optimizing"),
    ("loading", "checkpoint", "logbook", "verify"),
    ("learner", "testing", "weights"),
    ("train", "bench", "miras"),
    ("generate",),
    ("commands",),
    ("cli",),
    ("__main__", "nlc"),
)

DOORS = {
    ("text", "diagnostics"): "a file that is no text is told as a diagnostic",
    ("resolve", "parse"): "a used file is read by the parser",
    ("backward", "resolve"): "one rule of broadcasting",
    ("lower", "derive"): "a lowering is chosen by the derived rule",
    ("lower", "affine"): "and by what its writes ask",
    ("array_rules", "derive"): "what is written is chosen by the derived rule",
    ("array_rules", "affine"): "and by what it asks",
    ("array_rules", "backward"): "what is kept is a product of terms",
    ("idle", "derive"): "a rate of nothing is seen in the derived rule",
    ("pasts", "backward"): "a weight is a product of terms",
    ("lower", "backward"): "what has no derivative has no lowering",
    ("loading", "nlc"): "runs compile as a user does",
}

# Longer than the ceiling. They may shrink, not grow.
LONG = {"nlc/resolve/bodies.py": 750}
FILE, FUNCTION, MEDIAN = 700, 60, 12

TORCH = {
    "train", "learner", "checkpoint", "generate", "logbook", "verify", "bench", "operation",
    "miras", "optimizing", "testing", "weights",
}  # fmt: skip
ONLY_IN = {
    "sympy": {"miras.symbols", "miras.normal", "miras.same"},
    "lark": {"parse", "build"},
    "hypothesis": {"testing", "testing.expressions", "testing.search", "testing.optimizers"},
    "rich": {"progress"},
    "tokenizers": {"corpus"},
    "pygls": {"lsp"},
    "triton": {f"backends.triton.{m}" for m in ("tiles", "tables", "reads", "writes", "chain")},
}
LAZY = {"networkx", "graphviz", "tokenizers"}

# Modules of one package that know each other: an optimizer is a box that fires boxes.
KNOT = {("backends.reference.optimizers", "backends.reference.firing")}


# ---- what there is -------------------------------------------------------------------------------


def sources(*folders: str) -> list[Path]:
    found = [p for f in folders for p in sorted((ROOT / f).rglob("*.py"))]
    return [p for p in found if not (set(p.relative_to(ROOT).parts[1:2]) & LINKS)]


def module(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[1:] if parts[0] == "nlc" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "nlc"


MODULES = {module(p): p for p in sources("nlc", "backends", "grammar", "specs")}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room(name: str) -> str:
    """A package is one room; those of the backends are one each."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "backends" else parts[0]


def imports(name: str) -> Iterator[tuple[str, str]]:
    """What a module imports, and when: at the top, when a function runs, or for types alone."""
    path = MODULES[name]
    inside: dict[int, str] = {}
    for node in ast.walk(tree(path)):
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if typing or isinstance(node, ast.FunctionDef):
            inside |= {id(n): "types" if typing else "lazy" for n in ast.walk(node)}
    for node in ast.walk(tree(path)):
        when = inside.get(id(node), "top")
        if isinstance(node, ast.Import):
            yield from ((ours(alias.name), when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(name, path, node)
            for alias in node.names:
                full = ours(f"{base}.{alias.name}" if base else alias.name)
                yield full if full in MODULES else ours(base), when


def absolute(name: str, path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = [] if name == "nlc" else name.split(".")
    package = parts if path.name == "__init__.py" else parts[:-1]
    up = package[: len(package) - node.level + 1]
    return ".".join(["nlc", *up, *([node.module] if node.module else [])])


def ours(name: str) -> str:
    """`nlc.text` is `text`, and what is not ours keeps its name."""
    return name.removeprefix("nlc.") if name.startswith("nlc.") else name


def internal(name: str) -> set[str]:
    return {t for t, when in imports(name) if t in MODULES and when != "types"}


PLACES = {m: (i, r) for i, layer in enumerate(LAYERS) for r in layer for m in r.split()}


# ---- imports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_place(name: str) -> None:
    assert room(name) in PLACES, f"say on which layer `{room(name)}` stands: LAYERS, in this file"


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downhill(name: str) -> None:
    here = room(name)
    wrong = []
    for target in internal(name):
        there = room(target)
        if there == here or (here, there) in DOORS:
            continue
        (mine, own), (theirs, other) = PLACES[here], PLACES[there]
        if theirs > mine or (theirs == mine and own != other):
            wrong.append(there)
    assert not wrong, f"{name} imports {wrong}, which stand above it or in another room beside it"


def test_no_door_is_open_for_nothing() -> None:
    used = {(room(m), room(t)) for m in MODULES for t in internal(m)}
    assert set(DOORS) <= used


def test_no_module_needs_itself() -> None:
    graph = networkx.DiGraph()
    for name in MODULES:
        tops = {t for t, when in imports(name) if t in MODULES and when == "top"}
        graph.add_edges_from((name, t) for t in tops if t != name)
    graph.remove_edges_from(KNOT)
    graph.remove_edges_from([(m, "nlc") for m in MODULES])  # `import nlc` runs nothing
    cycles = [c for c in networkx.strongly_connected_components(graph) if len(c) > 1]
    assert not cycles


def foreign(name: str) -> Iterator[tuple[str, str]]:
    for target, when in imports(name):
        first = target.split(".")[0]
        if target not in MODULES and first not in sys.stdlib_module_names and first != "nlc":
            yield first, when


@pytest.mark.parametrize("name", MODULES)
def test_libraries_stay_in_their_rooms(name: str) -> None:
    found = set(foreign(name))
    packages = {p for p, when in found if when != "types"}
    assert "torch" not in packages or name.startswith("backends") or room(name) in TORCH
    assert not {p for p in packages if p in ONLY_IN and name not in ONLY_IN[p]}
    assert not {p for p, when in found if p in LAZY and when == "top"}


@pytest.mark.parametrize("words", ["check hope", "graph hope", "fmt --check specs/hope.nl"])
def test_answers_in_a_blink_need_no_torch(words: str) -> None:
    code = f"import sys; from nlc.cli import main; status = main({words.split()!r}); "
    code += "heavy = {'torch', 'sympy', 'numpy'} & sys.modules.keys(); "
    code += "sys.exit(f'{status}, {heavy}' if status or heavy else 0)"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


# ---- files ---------------------------------------------------------------------------------------

OURS = sources("nlc", "backends", "grammar", "specs", "tests", "bench")


@pytest.mark.parametrize("path", OURS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree(path)), "a docstring on top: what comes in, what goes out"


@pytest.mark.parametrize("path", OURS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_fit_into_a_head(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    if path.is_relative_to(ROOT / "tests"):
        return
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONG.get(name, FILE)


def functions() -> list[tuple[int, str]]:
    found = []
    for path in OURS:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                found.append((length, f"{path.relative_to(ROOT)}: {node.name}"))
    return sorted(found)


def test_functions_are_short() -> None:
    found = functions()
    lengths = [n for n, _ in found]
    files = sorted(len(p.read_text(encoding="utf-8").splitlines()) for p in OURS)
    print(f"functions: median {statistics.median(lengths)}, p90 {lengths[len(lengths) * 9 // 10]}")
    print(f"files: median {statistics.median(files)}, longest {files[-1]}")
    assert statistics.median(lengths) <= MEDIAN
    assert not [f for f in found if f[0] > FUNCTION]


@pytest.mark.parametrize("path", OURS, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_mypy_is_not_asked_is_named(path: Path) -> None:
    bare = re.compile(r"#\s*type:\s*ignore(?!\[)")
    assert not bare.search(path.read_text(encoding="utf-8").replace(bare.pattern, ""))


def tracked() -> list[Path]:
    made = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / n for n in made.stdout.split("\0") if n and (ROOT / n).is_file()]


def test_no_file_knows_a_machine() -> None:
    place = re.compile(r"(?<![\w.])/(?:work|home|Users|root)/\w")
    found = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path != Path(__file__) and place.search(path.read_bytes().decode("utf-8", "replace"))
    ]
    assert not found


# ---- codes ---------------------------------------------------------------------------------------


def reported() -> set[str]:
    """The codes that modules report: their strings that are a code, the pages of codes apart."""
    return {
        node.value
        for name, path in MODULES.items()
        if room(name) != "codes"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"NL\d{3}", node.value)
    }


def test_codes_and_reports_are_the_same() -> None:
    pages = set(CODES)
    silent, homeless = pages - reported(), reported() - pages
    assert not homeless, "reported, and without a page in nlc/codes"
    assert not silent, "a page of nlc/codes that nothing reports"


@pytest.mark.parametrize("code", CODES)
def test_a_page_has_a_wrong_and_a_right_file(code: str) -> None:
    page = CODES[code]
    assert page.title and page.story and page.wrong and page.right and page.wrong != page.right


def test_every_code_has_a_bad_case() -> None:
    marks = re.compile(r"# error: (.*)")
    texts = [p.read_text(encoding="utf-8") for p in (ROOT / "tests/cases/bad").glob("*.nl")]
    marked = {c for text in texts for m in marks.findall(text) for c in re.findall(r"NL\d{3}", m)}
    assert {c for c in CODES if CODES[c].found == "check"} == marked


# ---- grammar -------------------------------------------------------------------------------------


def words(pattern: str) -> set[str]:
    """The words of `(?:a|b)` in a regular expression."""
    found = re.search(r"\(\?:([a-z?|]+)\)", pattern)
    assert found is not None
    return set(found[1].split("|"))


def test_highlighting_knows_the_words_of_the_grammar() -> None:
    grammar = re.sub(r"//.*", "", (ROOT / "grammar/nl.lark").read_text(encoding="utf-8"))
    made = json.loads((ROOT / "grammar/nl.tmLanguage.json").read_text(encoding="utf-8"))
    shown = {n: words(made["repository"][n]["match"]) for n in ("reserved", "unit", "kind", "word")}
    terminals = dict(re.findall(r"^([A-Z]+)[.\d]*: (/.*)$", grammar, re.M))
    assert shown["reserved"] == words(terminals["NAME"])
    assert shown["unit"] == words(terminals["UNIT"])
    assert shown["kind"] == words(terminals["KIND"])
    literals = set(re.findall(r'"([a-z]+)"', grammar))
    assert shown["word"] == literals - shown["reserved"]
