"""Pictures: every component and edge is there once, names cannot break out, texts parse and are
stable.
"""

from __future__ import annotations

import json as json_module
import re
import shutil
import subprocess
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from test_order import STEP, TOKEN, add, box, learn, optimizer, system, systems, training

from nlc.draw import STYLES, DrawError, dot, json, mermaid, render
from nlc.layout import Page, label
from nlc.levels import EDGES, LevelGraph
from nlc.order import order
from nlc.system import Clock, Level, Loop, System, Transfer

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


def continuum(levels: int, same: bool = False) -> LevelGraph:
    blocks = [Level(f"b{i}", "b", Clock("token", 8 if same else 2 + i)) for i in range(levels)]
    outer = training(STEP, learn(optimizer("adam", "m", "h")))
    transfers = [Transfer("backprop", l, outer, first_order=True, truncate=512) for l in blocks]
    transfers += [Transfer("init", outer, l, state="M") for l in blocks[::2]]
    transfers += [Transfer("generate", a, b) for a, b in zip(blocks, blocks[3:], strict=False)]
    transfers += [Transfer("condition", outer, blocks[0])]
    lines = tuple(add(box(l, loss=True)) for l in blocks)
    return order(system([outer, *blocks], [Loop(2, lines)], transfers, assume=64))


GRAPHS = [continuum(n, same) for n in (1, 3, 12, 60) for same in (False, True)]


def drawn_edges(text: str) -> list[tuple[str, str]]:
    """Edges between components, as the DOT text has them."""
    found = re.findall(r'^  "([^"]*)" -> "([^"]*)" \[', text, re.MULTILINE)
    return [(a, b) for a, b in found if not a.startswith("key ")]


def distinct_edges(levels: LevelGraph) -> list[tuple[str, str]]:
    kinds = {(e.kind, e.carried, label(e), e.source, e.target) for e in levels.edges}
    return sorted((a, b) for *_, a, b in kinds)


@pytest.mark.parametrize("levels", GRAPHS)
def test_every_component_and_edge_is_in_the_dot_text_once(levels: LevelGraph) -> None:
    text = dot(levels)
    assert sorted(drawn_edges(text)) == distinct_edges(levels)
    for c in levels.components:
        assert len(re.findall(f'^  "{re.escape(c.name)}" \\[', text, re.MULTILINE)) == 1


@settings(max_examples=60, deadline=None)
@given(systems())
def test_any_system_can_be_drawn(made: System) -> None:
    levels = order(made)
    assert sorted(drawn_edges(dot(levels))) == distinct_edges(levels)
    assert mermaid(levels).startswith("flowchart TB\n")


@pytest.mark.parametrize("levels", GRAPHS)
def test_boxes_do_not_overlap_and_stay_in_their_band(levels: LevelGraph) -> None:
    page = Page(levels)
    places = list(page.places.values())
    for i, a in enumerate(places):
        assert a.right <= page.width
        for b in places[i + 1 :]:
            apart = a.right <= b.x or b.right <= a.x or a.bottom <= b.y or b.bottom <= a.y
            assert apart, (a.component.name, b.component.name)
    for rank, top, bottom in page.bands:
        for c in rank.components:
            assert top < page.places[c.name].y < page.places[c.name].bottom < bottom
    assert all(a[2] <= b[1] for a, b in zip(page.bands, page.bands[1:], strict=False))


def test_bands_stand_slowest_first() -> None:
    ranks = [rank.number for rank, _, _ in Page(continuum(5)).bands]
    assert ranks == sorted(ranks)


def test_each_kind_looks_different() -> None:
    assert set(EDGES) <= set(STYLES)
    looks = [(s.dash, s.head) for s in STYLES.values()]
    assert len(set(looks)) == len(looks)
    declared = [STYLES[k].colour for k in EDGES]
    assert len(set(declared)) == len(declared)


def test_labels_say_truncation_and_order() -> None:
    text = dot(continuum(3))
    assert "through 512 tokens, first order" in text
    assert "every 4 tokens" in text
    assert "1/4 per token" in text


@needs_dot
@pytest.mark.parametrize("levels", GRAPHS[:6])
def test_graphviz_draws_without_a_word(levels: LevelGraph) -> None:
    done = subprocess.run(["dot", "-Tsvg"], input=dot(levels).encode(), capture_output=True)
    assert done.returncode == 0
    assert done.stderr == b""


@needs_dot
def test_svg_and_png() -> None:
    levels = continuum(3)
    svg = ElementTree.fromstring(render(levels, "svg"))
    titles = {t.text for t in svg.iter("{http://www.w3.org/2000/svg}title")}
    assert {c.name for c in levels.components} <= titles
    assert render(levels, "png").startswith(b"\x89PNG")
    assert render(levels, "dot").decode() == dot(levels)


def test_without_graphviz_the_message_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DrawError, match="`dot` of Graphviz is needed"):
        render(continuum(1), "svg")
    with pytest.raises(DrawError, match="no picture of kind gif"):
        render(continuum(1), "gif")


NASTY = 'a"]; b\\" -> c <script>&amp;\n}\x00 `end` | [x] %% ü'


def nasty() -> LevelGraph:
    memory = Level(NASTY, NASTY, TOKEN, doc=NASTY)
    outer = training()
    backprop = Transfer("backprop", memory, outer, state=NASTY)
    made = order(system([outer, memory], [add(box(memory))], [backprop]))
    return replace(made, name=NASTY, doc=NASTY)


@needs_dot
def test_names_cannot_break_out_of_the_picture() -> None:
    svg = ElementTree.fromstring(render(nasty(), "svg"))
    nodes = [g for g in svg.iter() if g.get("class") == "edge"]
    assert len(nodes) == 2  # the transfer, and its line in the legend
    assert not list(svg.iter("{http://www.w3.org/2000/svg}script"))


def test_names_cannot_break_out_of_the_texts() -> None:
    for line in mermaid(nasty()).splitlines():
        assert line.count('"') in (0, 2)
        assert "<script" not in line
    assert json_module.loads(json(nasty()))["system"] == NASTY


def test_json_holds_the_page_and_no_layout() -> None:
    levels = continuum(3)
    made = json_module.loads(json(levels))
    assert made["format_version"] == 1
    assert [rank["number"] for rank in made["levels"]] == [r.number for r in levels.levels]
    fast = made["levels"][-1]
    assert fast["frequency"] == {"times": "1/2", "unit": "token", "per_sequence": "32"}
    (component,) = fast["components"]
    assert component["clock"] == {"unit": "token", "period": 2, "phase": None}
    assert component["parts"][0]["total"] == 16
    assert len(made["edges"]) == len(levels.edges)
    assert not {"x", "y", "pos"} & set(component)


def test_texts_are_stable() -> None:
    for write in (dot, mermaid, json):
        assert write(continuum(4)) == write(continuum(4))


def test_mermaid_has_a_subgraph_a_level_and_a_style_a_link() -> None:
    levels = continuum(4)
    text = mermaid(levels)
    assert text.count("subgraph ") == text.count("\n  end\n") == len(levels.levels)
    links = re.findall(r"^  \w+ (?:-|=|~)\S*\|? ?", text, re.MULTILINE)
    styled = [int(n) for n in re.findall(r"linkStyle (\d+)", text)]
    assert styled == list(range(len(levels.levels) - 1, len(links)))


def test_a_thousand_levels_are_drawn_in_seconds() -> None:
    levels = continuum(1000)
    assert len(drawn_edges(dot(levels))) == len(distinct_edges(levels))
