"""The pages for people: every spec, snippet and message in them is what the program does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nlc
from nlc.codes import CODES
from nlc.draw import dot
from nlc.driver import check_text
from nlc.explain import explain
from nlc.order import order
from nlc.render import render_text

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "LOG.md",
    *(ROOT / "docs").glob("*.md"),
]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S)


def test_the_spec_is_the_shipped_one() -> None:
    assert blocks(README, "nl") == [(ROOT / "specs/hope.nl").read_text(encoding="utf-8")]


def test_the_diagnostics_are_as_printed() -> None:
    (wrong,), (told,) = blocks(README, "nl wrong"), blocks(README, "told")
    assert render_text(check_text(wrong, "delta.nl").diagnostics).strip() == told.strip()


def test_the_derived_rules_are_as_printed() -> None:
    assert blocks(README, "explained")[0] in explain(nlc.load("hope"))


def test_the_picture_is_of_the_spec() -> None:
    """Written by `nlc graph hope -o docs/hope.svg`; its titles are the text's nodes and edges."""
    text = dot(order(nlc.load("hope").system))
    wanted = set(re.findall(r'^  ("[^"]+"(?: -> "[^"]+")?) \[', text, re.M))
    picture = (ROOT / "docs/hope.svg").read_text(encoding="utf-8")
    titles = re.findall(r"<title>(.*?)</title>", picture)[1:]
    plain = [t.replace("&#45;", "-").replace("&gt;", ">").replace("&#160;", " ") for t in titles]
    assert {" -> ".join(f'"{end}"' for end in t.split("->")) for t in plain} == wanted


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_in_pages_runs(page: Path, tmp_path: Path) -> None:
    code = "\n".join(blocks(page.read_text(encoding="utf-8"), "python"))
    if not code:
        return
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", code]
    made = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_language_page_knows_every_code() -> None:
    text = (ROOT / "docs/language.md").read_text(encoding="utf-8")
    assert set(CODES) == set(re.findall(r"^\| (NL\d{3}) ", text, re.M))


def test_specs_in_the_language_page_are_right() -> None:
    """Whole files in it are checked; those that are cut say so with `...`."""
    text = (ROOT / "docs/language.md").read_text(encoding="utf-8")
    whole = [b for b in blocks(text, "nl") if b.startswith("nl 1") and "..." not in b]
    assert len(whole) >= 4
    for block in whole:
        assert check_text(block, "page.nl").diagnostics == ()


def test_the_architecture_page_names_every_file() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/.]+\.(?:py|lark|json))`", text))
    folders = ("nlc", "backends", "grammar", "bench")
    links = {"grammar", "specs", "backends"}
    there = {
        str(p.relative_to(ROOT))
        for folder in folders
        for kind in ("py", "lark", "json")
        for p in (ROOT / folder).rglob(f"*.{kind}")
        if p.relative_to(ROOT).parts[1] not in links and p.name != "__init__.py"
    }
    assert there <= named, f"not there: {sorted(there - named)}"
    rest = {f for f in named - there if not f.startswith("tests/") and "__init__" not in f}
    assert not rest
