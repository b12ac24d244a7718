"""What a file of memories and optimizers shows of its nesting: `nlc graph`, `nlc schedule`."""

from __future__ import annotations

from pathlib import Path

import pytest
from shipped import SPECS

from nlc.around import around
from nlc.cli import main
from nlc.driver import SpecError, check_file, check_text
from nlc.order import order
from nlc.schedule import schedule

FILES = [f"{p.parent.name}/{p.stem}" for k in ("optim", "memory") for p in (SPECS / k).glob("*.nl")]
IN_A_SYSTEM = {"memory/continuum"}  # it makes weights, which somebody has to own


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_shipped_file_can_be_looked_at(name: str) -> None:
    checked = check_file(name)
    if name in IN_A_SYSTEM:
        with pytest.raises(SpecError, match="this file declares no system"):
            around(checked)
        return
    levels = order(around(checked).system)
    assert levels.name.rstrip("_") == name.partition("/")[2]
    assert all(rank.components for rank in levels.levels)


def test_m3_is_four_levels_and_its_settings_are_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["schedule", "optim/m3", "--set", "period=3"]) == 0
    text = capsys.readouterr().out
    assert "W.m3.5 rounds" in text and "inside a firing of W" in text
    assert "W.m3.slow      ··●··●··●··●··●·\n" in text and "16 steps" in text
    assert main(["graph", "optim/m3", "--format", "mermaid"]) == 0
    shown = capsys.readouterr().out
    places = [
        shown.index(part) for part in ("m3.slow of W", '"W<br', '"m3 of W', "m3.5 rounds of W")
    ]
    assert places == sorted(places)


def test_a_setting_that_nothing_has_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "optim/m3", "--set", "perod=3"]) == 1
    assert "`m3` has no setting `perod`; did you mean `period`?" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["2.5", "0", "-3"])
def test_a_setting_that_is_no_size_is_told_as_it_is(
    size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a memory alone, whose own sizes are open; not what is missing because of it."""
    assert main(["explain", "memory/window", "--set", f"size={size}"]) == 1
    told = capsys.readouterr().err
    assert f"`size` is {size}; a size is a whole number" in told and "NL208" not in told


def test_one_of_several_may_have_the_setting() -> None:
    system = around(check_file("optim/dgd"), {"rate": 1e-07}).system
    assert [level.name for level in system.levels] == ["W_dgd", "W_dgd_proximal", "W_dgd_momentum"]


def test_the_names_of_a_file_stay_its_own(tmp_path: Path) -> None:
    """Those of levels, inputs and states are others; a vector is served where no matrix can be."""
    text = """nl 1
def W(x) { return x }
optimizer y(weight, grad, a = 2) {
  state array : vector(8) { objective sum(array * grad); learn gradient() }
  write W(a * array)
}
memory inner(x[n]) {
  state M : matrix(n, n)
  objective -dot(M(x), x)
  learn gradient()
  read M(x)
}
memory odd(x[n], a) { read a * inner(x) }
"""
    path = tmp_path / "2 of mine.nl"
    path.write_text(text, encoding="utf-8")
    system = around(check_file(path)).system
    assert [level.name for level in system.levels] == ["W_", "inner_level", "odd_level"]
    assert system.name == "nl_2_of_mine"


def test_what_only_names_functions_has_nothing_to_show() -> None:
    with pytest.raises(SpecError, match="with a level that uses what this file declares"):
        around(check_text("nl 1\ndef double(x) { return 2 * x }\n"))


def test_steps_are_shown_where_nothing_is_faster() -> None:
    made = schedule(around(check_file("optim/adam")).system)
    assert made.unit == "step" and "16 steps" in made.svg()
    assert schedule(around(check_file("optim/adam")).system, sequence=4).unit == "token"
    assert schedule(around(check_file("memory/delta")).system).unit == "token"


def test_settings_of_what_is_declared_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a system `--set` speaks of the memories and optimizers, in every command."""
    assert main(["explain", "optim/momentum", "--set", "keep=0.5"]) == 0
    assert "m = 0.5 * m - 0.01 * grad" in capsys.readouterr().out
    assert main(["explain", "memory/titans", "--set", "chunk=3"]) == 0
    assert "every 3 tokens" in capsys.readouterr().out
    for verb in ("explain", "check", "schedule"):
        assert main([verb, "optim/momentum", "--set", "kep=0.5"]) == 1
        told = capsys.readouterr()
        assert "`momentum` has no setting `kep`; did you mean `keep`?" in told.out + told.err
    assert main(["check", "optim/dgd", "--set", "size=1"]) == 1
    assert "this file has no setting `size`; it has rate" in capsys.readouterr().out


ODD = """nl 1
memory odd({inputs}) {{
  state N : matrix(d, 5)
  objective sum((N(z) - y)^2)
  learn gradient(rate = 0.1)
  read N(z)
}}
"""


def of(inputs: str, d: str) -> str:
    return ODD.format(inputs=inputs).replace("matrix(d", f"matrix({d}")


@pytest.mark.parametrize(("inputs", "d"), [("z, y[d]", "d"), ("z[n], y[m]", "7"), ("y, z", "6")])
def test_the_sizes_that_a_text_needs_are_found(inputs: str, d: str) -> None:
    """What nothing calls was told that it has no objective, or that the size 8 does not fit."""
    checked = check_text(of(inputs, d))
    assert not checked.diagnostics and len(checked.alone) == 1


def test_what_no_size_mends_is_told_with_the_sizes_taken() -> None:
    text = of("z[n], y[n]", "n").replace("- y", "- concat(y, y)").replace(", 5)", ", n)")
    (told,) = check_text(text).diagnostics
    assert told.code == "NL602" and "were taken as n = 8" in told.help


def test_a_gate_without_brackets_hides_no_mistake_beside_it() -> None:
    """A memory with one was fine to `nlc check`, whatever its other shapes."""
    text = (
        "nl 1\nmemory whiten(q[n], v[n], a) {\n  state  C : matrix(n, n) = eye(C)\n  retain a\n"
        "  write  outer(v, v)\n  read   solve(C, q)\n}\n"
    )
    (told,) = check_text(text).diagnostics
    assert told.code == "NL602" and "x @ b = a" in told.message
    assert not check_text(text.replace("solve(C, q)", "solve(q, C)")).diagnostics
    assert not check_text(text.replace("solve(C, q)", "concat(q, a)[0]")).diagnostics


def test_of_what_fits_no_example_nothing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.nl"
    path.write_text(of("z, y", "dim(z) * 3").replace("- y", "- concat(y, y, y, y, y, y, y)"))
    assert main(["check", str(path)]) == 0
    assert main(["explain", str(path)]) == 0
    assert "`odd` fits no example sizes" in capsys.readouterr().out
