"""The command line: statuses, sentences, and nothing written when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nlc import cli
from nlc.commands import VERBS

GOOD = """nl 1

system small(vocab = 256, width = 8) {
  level training every step { objective loss; learn adamw(rate = 1e-3) }

  flow(tokens) {
    x = embed(tokens, vocab, width)
    logits = unembed(norm(x), vocab)
    loss = cross_entropy(logits, next(tokens))
    return logits
  }
}
"""
MISSPELT = GOOD.replace("unembed", "unembd")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.nl").write_text(GOOD)
    (tmp_path / "bad.nl").write_text(MISSPELT)
    return tmp_path


def nlc(*words: str) -> int:
    return cli.main(list(words))


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


# ---- mistakes in a call ------------------------------------------------------------------------

MISTAKES = [
    ((), "nlc check"),
    (("chek",), "Did you mean check?"),
    (("--verison",), "Did you mean --version?"),
    (("check",), "What is missing: FILE"),
    (("check", "good.nl", "--formt", "json"), "Did you mean --format?"),
    (("explain", "good.nl", "--latex"), "Did you mean --format latex?"),
    (("check", "good.nl", "--format", "xml"), "invalid choice: 'xml'"),
    (("check", "nowhere.nl"), "nowhere.nl"),
    (("check", "god.nl"), "Did you mean good.nl?"),
    (("check", "hop"), "Did you mean hope?"),
    (("check", "."), "is a folder"),
    (("check", "good.nl", "--set", "width"), "is not name=value"),
    (("check", "good.nl", "--set", "width=wide"), "is not name=value"),
    (("check", "good.nl", "--set", "width=[1, 'a']"), "is not name=value"),
    (("fmt", "nowhere.nl"), "There is no file nowhere.nl"),
    (("graph", "good.nl", "-o", "out.gif"), "No picture is made as .gif"),
    (("graph", "good.nl", "-o", "no/where.dot"), "cannot be written"),
    (("graph", "good.nl", "extra.nl"), "knows no argument extra.nl"),
    (("train", "good.nl"), "nlc train SPEC --data PATH"),
    (("train", "--data", "good.nl"), "nlc train SPEC --data PATH"),
    (("train", "good.nl", "--data", "good.nl", "--steps", "0"), "'0' is not a whole number"),
    (("train", "good.nl", "--data", "good.nl", "--steps", "many"), "'many' is not a whole number"),
    (("train", "good.nl", "--data", "good.nl", "--minutes", "-1"), "'-1' is not a number above 0"),
    (("train", "good.nl", "--data", "good.nl", "--minutes", "nan"), "'nan' is not a number"),
    (("train", "good.nl", "--data", "good.nl", "--dtype", "int8"), "invalid choice: 'int8'"),
    (("train", "good.nl", "--data"), "expected at least one argument"),
    (("generate",), "What is missing: RUN"),
    (("generate", "nowhere"), "There is no run folder nowhere"),
    (("generate", "x", "--temperature", "-1"), "'-1' is not a number of at least 0"),
    (("generate", "x", "--top-k", "0"), "'0' is not a whole number of at least 1"),
    (("explain", "NL000"), "NL000"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=[" ".join(w) for w, _ in MISTAKES])
def test_a_mistake_in_a_call(
    place: Path, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nlc(*words) == 2
    out, wrong = capsys.readouterr()
    assert said in wrong and "Traceback" not in wrong and out == ""
    assert sorted(p.name for p in place.iterdir()) == ["bad.nl", "good.nl"]


@pytest.mark.parametrize("verb", ["check", "graph", "schedule", "explain", "build", "train"])
def test_a_mistake_in_a_spec(place: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--data", "good.nl") if verb == "train" else ()
    assert nlc(verb, "bad.nl", *more) == 1
    said = "".join(capsys.readouterr())
    assert "NL101" in said and "unembed" in said and "Traceback" not in said
    assert sorted(p.name for p in place.iterdir()) == ["bad.nl", "good.nl"]


@pytest.mark.parametrize("verb", VERBS)
def test_each_command_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc(verb, "--help") == 0
    assert f"nlc {verb}" in capsys.readouterr().out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc("--help") == 0
    said = capsys.readouterr().out
    assert all(verb in said for verb in VERBS)
    assert nlc("--version") == 0
    assert capsys.readouterr().out.startswith("nlc")


def test_a_fault_of_nlc_is_owned(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nlc.driver.check_file", lambda *_: 1 / 0)
    assert nlc("check", "good.nl") == cli.FAULT
    wrong = capsys.readouterr().err
    assert "a fault of nlc" in wrong and "test_cli.py" in wrong and "Traceback" not in wrong


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    torch.OutOfMemoryError("CUDA out of memory"),
])  # fmt: skip
def test_sizes_too_large_for_the_memory_are_no_fault_of_nlc(
    error: Exception,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*_: object) -> None:
        raise error

    monkeypatch.setattr("nlc.driver.check_file", refused)
    assert nlc("check", "good.nl") == cli.CANNOT_GO_ON
    wrong = capsys.readouterr().err
    assert "not enough memory" in wrong and "a fault of nlc" not in wrong


# ---- check -------------------------------------------------------------------------------------


def test_check_says_what_is_fine(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc("check", "good.nl", "hope") == 0
    assert "good.nl: fine" in capsys.readouterr().out


def test_check_reads_several_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc("check", "good.nl", "bad.nl") == 1
    said = capsys.readouterr().out
    assert "good.nl: fine" in said and "bad.nl" in said


def test_check_speaks_to_machines(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc("check", "good.nl", "bad.nl", "--format", "json") == 1
    assert "NL101" in json.dumps(json.loads(capsys.readouterr().out))
    assert nlc("check", "bad.nl", "--format", "github") == 1
    assert capsys.readouterr().out.startswith("::error file=bad.nl,line=8")
    assert nlc("check", "good.nl", "--format", "github") == 0
    assert capsys.readouterr().out == ""


def test_check_mends_what_it_can(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc("check", "--fix", "bad.nl") == 0
    assert Path("bad.nl").read_text() == GOOD


def test_settings_reach_the_spec(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc("check", "good.nl", "--set", "width=16") == 0
    assert nlc("check", "good.nl", "--set", "wdth=16") == 1
    assert "width" in capsys.readouterr().out


def test_check_imports_neither_torch_nor_sympy() -> None:
    code = (
        "import sys; from nlc.cli import main; main(['check', 'hope']);"
        "print([m for m in ('torch', 'sympy', 'numpy', 'networkx', 'rich') if m in sys.modules])"
    )
    assert python(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", [["fmt", "--check", "good.nl"], ["graph", "hope"], ["--help"]])
def test_quick_commands_import_no_torch(place: Path, words: list[str]) -> None:
    code = (
        f"import sys; from nlc.cli import main; main({words!r});"
        "print('\\n', 'torch' in sys.modules)"
    )
    assert python(code).splitlines()[-1].strip() == "False"


# ---- fmt, graph, schedule, explain, build ------------------------------------------------------


def test_fmt_writes_checks_and_shows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc("fmt", "good.nl") == 0
    neat = Path("good.nl").read_text()
    Path("good.nl").write_text(neat.replace("x = embed", "x   =   embed"))
    assert nlc("fmt", "--check", "good.nl") == 1
    assert nlc("fmt", "--diff", "good.nl") == 0
    assert "+    x = embed" in capsys.readouterr().out
    assert Path("good.nl").read_text() != neat
    assert nlc("fmt", "good.nl") == 0 and Path("good.nl").read_text() == neat
    assert nlc("fmt", "--check", "good.nl") == 0


def test_fmt_reads_a_stream(place: Path) -> None:
    words = [sys.executable, "-m", "nlc", "fmt", "-"]
    done = subprocess.run(words, input=GOOD, capture_output=True, text=True, check=True)
    again = subprocess.run(words, input=done.stdout, capture_output=True, text=True, check=True)
    assert "flow(tokens)" in done.stdout and done.stdout == again.stdout


def test_fmt_leaves_what_it_cannot_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("torn.nl").write_text("nl 1\nsystem {{\n")
    Path("good.nl").write_text(GOOD.replace("x = ", "x  = "))
    assert nlc("fmt", "good.nl", "torn.nl") == 1
    assert "NL0" in capsys.readouterr().err
    assert Path("good.nl").read_text() == GOOD.replace("x = ", "x  = ")


def test_graph_speaks_in_several_forms(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc("graph", "good.nl") == 0
    assert capsys.readouterr().out.startswith("digraph")
    assert nlc("graph", "good.nl", "--format", "mermaid") == 0
    assert capsys.readouterr().out.strip()
    assert nlc("graph", "good.nl", "-o", "out.json") == 0
    assert json.loads(Path("out.json").read_text())


def test_build_writes_python(place: Path) -> None:
    assert nlc("build", "good.nl", "-o", "out.py") == 0
    compile(Path("out.py").read_text(), "out.py", "exec")


def test_explain_knows_codes_and_specs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nlc("explain", "nl101") == 0
    assert "NL101" in capsys.readouterr().out
    assert nlc("explain", "good.nl") == 0
    assert nlc("schedule", "good.nl") == 0
    assert "training" in capsys.readouterr().out


def test_explain_takes_a_memory_by_its_name_at_given_sizes(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nlc("explain", "kda", "--set", "n=16", "--set", "m=32") == 0
    page = capsys.readouterr().out
    assert page.startswith("memory kda(q[16], k[16], v[32], alpha[16], beta)")
    assert "512 numbers, 2 KiB a sample" in page
    assert nlc("explain", "softmax") == 0
    assert capsys.readouterr().out.startswith("memory attend(")
    assert nlc("explain", "kda", "--set", "n=0") == 1
    assert "`n` is a size, a whole number above 0, and was given 0" in capsys.readouterr().err
    assert nlc("explain", "kda", "--set", "z=1") == 1
    assert "has no setting `z`; it has n, m" in capsys.readouterr().err


def test_a_closed_pipe_is_quiet(place: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "nlc", "graph", "hope"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    with child.stderr as stderr:
        assert stderr.read() == b""
    assert child.wait() == 141


def test_what_a_terminal_cannot_write_is_told_by_number(place: Path) -> None:
    body = "state M : matrix(n, n); objective -dot(M(x), x); learn gradient(rate = 2); read M(x)"
    (place / "named.nl").write_text(f"nl 1\n# Größe\nmemory a(x[n]) {{ {body} }}\n", "utf-8")
    told = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-m", "nlc", "explain", "named.nl"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert rb"Gr\xf6\xdfe" in told.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_no_fault_of_nlc(place: Path, unbuffered: str) -> None:
    """What cannot be printed is said once, and nothing more at the end of Python."""
    here = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    for words, status in (("graph", "hope"), 3), (("check", "--help"), 3), (("check", "no.nl"), 2):
        call = [sys.executable, "-m", "nlc", *words]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(call, env=here, stdout=full, stderr=subprocess.PIPE, check=False)
            mute = subprocess.run(call, env=here, stdout=full, stderr=full, check=False)
        said = done.stderr.decode()
        assert done.returncode == mute.returncode == status, said
        assert said.count("\n") == 1 and "a fault of nlc" not in said
        assert ("cannot be written: the disk is full." in said) == (status == 3)


def test_streams_that_are_closed_lead_nowhere(place: Path) -> None:
    call = f"{sys.executable} -m nlc"
    for words, status in (f"{call} graph hope >&-", 0), (f"{call} check no.nl 2>&- >&-", 2):
        done = subprocess.run(words, shell=True, capture_output=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")
