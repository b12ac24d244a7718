"""What each command does. In: the arguments of its call. Out: files, text, and an exit status.

Each imports what it needs when it runs, so that a check does not wait for torch or sympy.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from . import interrupts
from .calls import (
    Arguments,
    Parser,
    amount,
    drawn,
    how_many_or_names,
    minutes,
    names,
    natural,
    positive,
    setting,
    several,
    shape,
)
from .files import CallError, read_text, write_output

ROUNDS_OF_FIXES = 10


@dataclass(frozen=True)
class Verb:
    """One command: how it is called, and what it does."""

    help: str
    words: Callable[[Parser], None]
    act: Callable[[Arguments], int]


def _add_file(parser: Parser) -> None:
    parser.add("file", metavar="FILE", help="a spec, or the name of a shipped one")
    _add_set(parser)


def _add_set(parser: Parser) -> None:
    parser.add(
        "--set", metavar="NAME=VALUE", type=setting, action="append", default=[],
        dest="settings", help="give a setting of the system another value",
    )  # fmt: skip


def _add_output(parser: Parser) -> None:
    parser.add("-o", "--output", metavar="OUT", help="write to this file (default: print)")


def _find(name: str) -> Path:
    """The file that a call names: a path, or a shipped spec."""
    from .driver import readable

    try:
        return readable(name)
    except OSError as error:
        raise CallError(str(error)) from None


def _emit(data: str | bytes, output: str | None) -> int:
    if output is not None:
        write_output(Path(output), data)
    elif isinstance(data, bytes):
        sys.stdout.buffer.write(data)
    else:
        sys.stdout.write(data if data.endswith("\n") else data + "\n")
    return 0


def _load(arguments: Arguments) -> Any:
    """The checked spec that a call names."""
    from .driver import load

    return load(str(_find(arguments.file)), **dict(arguments.settings))


def _looked_at(arguments: Arguments) -> Any:
    """The spec that a call names; what a file without a system declares has a small one around."""
    from .around import around
    from .driver import Spec, check_file

    settings = dict(arguments.settings)
    checked = check_file(_find(arguments.file), settings)
    return Spec(checked) if checked.system is not None else around(checked, settings)


def print_diagnostics(diagnostics: Iterable[Any], stream: IO[str]) -> None:
    from .render import render_text

    print(render_text(tuple(diagnostics), color=_colored(stream)), file=stream)


def _colored(stream: IO[str]) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ


# ---- check -----------------------------------------------------------------------------------


def _check_words(parser: Parser) -> None:
    parser.add("files", metavar="FILE", nargs="+", help="specs, or names of shipped ones")
    parser.add("--format", choices=("text", "json", "github"), default="text", help="of the output")
    parser.add("--fix", action="store_true", help="apply the fixes that are safe, then check again")
    _add_set(parser)


def _check(arguments: Arguments) -> int:
    from . import render
    from .driver import check_file

    settings = dict(arguments.settings)
    paths = [_find(name) for name in arguments.files]
    if arguments.fix:
        for path in paths:
            _fix(path, settings)
    checked = [check_file(path, settings) for path in paths]
    found = [d for c in checked for d in c.diagnostics]
    if arguments.format == "json":
        _emit(render.render_json(found), None)
    elif arguments.format == "github":
        sys.stdout.write(render.render_github(found))
    else:
        if found:
            print_diagnostics(found, sys.stdout)
        _summarise(checked)
    return 1 if any(d.severity == "error" for d in found) else 0


def _summarise(checked: Iterable[Any]) -> None:
    """A line for each file without errors."""
    for one in checked:
        if not any(d.severity == "error" for d in one.diagnostics):
            levels = f", {len(one.system.levels)} levels" if one.system is not None else ""
            print(f"{one.source.name}: fine{levels}")


def _fix(path: Path, settings: dict[str, Any]) -> None:
    """Apply fixes until none is left; one may uncover the next."""
    from .driver import check_text
    from .render import apply_fixes

    before = text = read_text(path)
    for _ in range(ROUNDS_OF_FIXES):
        checked = check_text(text, str(path), path.parent, settings)
        fixed = apply_fixes(checked.source, checked.diagnostics)
        if fixed == text:
            break
        text = fixed
    if text != before:
        write_output(path, text)
        print(f"{path}: mended", file=sys.stderr)


# ---- fmt -------------------------------------------------------------------------------------


def _fmt_words(parser: Parser) -> None:
    parser.add("files", metavar="FILE", nargs="+", help="specs; - reads one and prints it")
    parser.add("--check", action="store_true", help="write nothing; status 1 if one would change")
    parser.add("--diff", action="store_true", help="write nothing; print what would change")


def _fmt(arguments: Arguments) -> int:
    texts = {n: sys.stdin.read() if n == "-" else read_text(Path(n)) for n in arguments.files}
    formatted = {name: _formatted(name, text) for name, text in texts.items()}
    whole = {name: text for name, text in formatted.items() if text is not None}
    if len(whole) < len(formatted):  # a mistake of syntax, which has been told
        return 1
    changed = [name for name, text in whole.items() if text != texts[name]]
    if arguments.diff:
        for name in changed:
            sys.stdout.write(_difference(name, texts[name], whole[name]))
    if arguments.check or arguments.diff:
        for name in changed:
            print(f"{name}: not in the one style", file=sys.stderr)
        return 1 if changed and arguments.check else 0
    if "-" in whole:
        sys.stdout.write(whole["-"])
    for name in changed:
        if name != "-":
            write_output(Path(name), whole[name])
            print(f"{name}: formatted", file=sys.stderr)
    return 0


def _formatted(name: str, text: str) -> str | None:
    """The text in the one style; None, and diagnostics, where it cannot be read."""
    from .format import format_source
    from .text import Source

    formatted, mistakes = format_source(Source("<stdin>" if name == "-" else name, text))
    if mistakes:
        print_diagnostics(mistakes, sys.stderr)
    return formatted


def _difference(name: str, before: str, after: str) -> str:
    lines = (before.splitlines(keepends=True), after.splitlines(keepends=True))
    return "".join(difflib.unified_diff(*lines, name, f"{name} (formatted)"))


# ---- graph, schedule, explain, build -----------------------------------------------------------

GRAPH_FORMATS = ("dot", "mermaid", "json", "svg", "png")


def _graph_words(parser: Parser) -> None:
    _add_file(parser)
    parser.add("--format", choices=GRAPH_FORMATS, help="default: by the suffix of OUT, else dot")
    _add_output(parser)


def _graph(arguments: Arguments) -> int:
    from . import draw
    from .order import order

    suffix = Path(arguments.output or "").suffix.lstrip(".")
    kind = arguments.format or ({"mmd": "mermaid"}.get(suffix, suffix) if suffix else "dot")
    if kind not in GRAPH_FORMATS:
        raise CallError(f"No picture is made as .{suffix}: --format {', '.join(GRAPH_FORMATS)}.")
    if kind == "png" and arguments.output is None and sys.stdout.isatty():
        raise CallError("A png does not fit a terminal: say where to write it with -o OUT.png.")
    levels = order(_looked_at(arguments).system)
    try:
        return _emit(draw.render(levels, kind), arguments.output)
    except draw.DrawError as error:
        raise CallError(str(error)) from None


def _schedule_words(parser: Parser) -> None:
    _add_file(parser)
    parser.add("--ticks", metavar="N", type=positive, help="show so many tokens")
    parser.add("--sequence", metavar="N", type=positive, help="tokens a sequence")
    parser.add(
        "--step", metavar="N", type=positive, default=1, help="sequences a step (default: 1)"
    )
    parser.add("-o", "--output", metavar="OUT", help="write to this file; .svg is a picture")


def _schedule(arguments: Arguments) -> int:
    from .schedule import schedule

    system = _looked_at(arguments).system
    made = schedule(system, arguments.ticks, arguments.sequence, arguments.step)
    picture = Path(arguments.output or "").suffix == ".svg"
    return _emit(made.svg() if picture else str(made), arguments.output)


def _explain_words(parser: Parser) -> None:
    parser.add("file", metavar="FILE|CODE", help="a spec, or the code of a diagnostic (NL203)")
    parser.add(
        "--format", choices=("text", "latex", "json"), default="text",
        help="latex: the derivations alone; json: both, line by line",
    )  # fmt: skip
    _add_set(parser)
    _add_output(parser)


def _explain(arguments: Arguments) -> int:
    if re.fullmatch(r"(?i)nl\d+", arguments.file):
        from .codes import CODES, explain_code

        code = arguments.file.upper()
        if code not in CODES:
            raise CallError(explain_code(code).strip())
        return _emit(explain_code(code), arguments.output)
    from .driver import SpecError, check_file
    from .explain import explain

    checked = check_file(_find(_memory_file(arguments.file)), dict(arguments.settings))
    if checked.errors:
        raise SpecError(checked.diagnostics)
    return _emit(explain(checked, arguments.format), arguments.output)


def _memory_file(name: str) -> str:
    """A shipped memory by its name alone, as `nlc.memory` takes it, where no system has it."""
    from .driver import locate
    from .operation.declared import ALIASES

    own = f"memory/{ALIASES.get(name, name)}"
    return own if not locate(name).exists() and locate(own).exists() else name


def _build_words(parser: Parser) -> None:
    _add_file(parser)
    _add_memory(parser)
    parser.add(
        "--no-verify", dest="verify", action="store_false",
        help="do not measure what the file says of itself (see nlc verify)",
    )  # fmt: skip
    _add_long(parser)
    _add_output(parser)


def _build(arguments: Arguments) -> int:
    from .verify import Options, headed

    verifier = _verifier(arguments, Options(batch=1, long=arguments.long))
    from .backends.torch_source import build

    source = build(verifier.spec)
    if not arguments.verify:
        return _emit(source, arguments.output)
    certificate = _measured(verifier, _silent)
    _emit(headed(source, certificate), arguments.output)
    if not certificate.holds:
        print("nlc: what is written does not hold:", file=sys.stderr)
        print("\n".join(certificate.header()), file=sys.stderr)
    return 0 if certificate.holds else 1


# ---- verify ------------------------------------------------------------------------------------


def _add_memory(parser: Parser) -> None:
    parser.add("--memory", metavar="NAME", help="this memory of the file, alone, not its system")
    parser.add("--heads", metavar="N", type=positive, help="of a memory alone (default: 2)")
    parser.add(
        "--range", metavar="NAME=LOW:HIGH", type=drawn, action="append", default=[], dest="ranges",
        help="draw a stream of a memory alone from these numbers",
    )  # fmt: skip


def _add_long(parser: Parser) -> None:
    parser.add(
        "--long", metavar="N", type=natural, default=4096,
        help="tokens that memories must outlive; 0 leaves it out (default: 4096)",
    )  # fmt: skip


def _verifier(arguments: Arguments, options: Any) -> Any:
    """Of what a call names: a system, or a memory alone."""
    from .verify import Verifier

    declared = _memory(arguments)
    if declared is None:
        for word, value in (("--heads", arguments.heads), ("--range", arguments.ranges)):
            if value:
                raise CallError(f"{word} is for a memory alone, and {arguments.file} is a system.")
        return Verifier(_load(arguments), options)
    from .verify.drawn import Range
    from .verify.memories import Drawing, MemoryVerifier

    ranges = {name: Range(*ends) for name, ends in arguments.ranges}
    named = dict(arguments.settings)
    try:
        drawing = Drawing(declared, arguments.heads or 2, named, ranges)
        return MemoryVerifier(drawing, options)
    except (TypeError, ValueError) as error:
        raise CallError(f"{error}.") from None


def _memory(arguments: Arguments) -> Any:
    """The memory that a call names; None for a system, or a file that declares no memory."""
    from .driver import SpecError, check_file, locate
    from .operation.declared import chosen, declaration, names
    from .syntax import Memory, System

    name = arguments.file.removeprefix("memory/")
    if not Path(arguments.file).exists() and name in names() and not locate(name).exists():
        return declaration(name)
    path = _find(arguments.file)
    checked = check_file(path)
    kinds = [type(item) for item in checked.syntax.items] if checked.syntax is not None else []
    if arguments.memory is None and (System in kinds or Memory not in kinds):
        return None
    if checked.errors:
        raise SpecError(checked.diagnostics)
    try:
        return chosen(checked.source.text, str(path), path.parent, path.stem, arguments.memory)
    except ValueError as error:
        raise CallError(f"{error}: choose one with --memory NAME.") from None


def _verify_words(parser: Parser) -> None:
    parser.add("file", metavar="FILE", help="a system or a memory: a spec, or a shipped name")
    _add_set(parser)
    _add_memory(parser)
    parser.add(
        "--tokens", metavar="N", type=several,
        help="of each stream (default: past the shortest chunk or period, 17 to 65)",
    )  # fmt: skip
    parser.add("--batch", metavar="N", type=positive, default=2, help="samples (default: 2)")
    parser.add("--seed", metavar="N", type=natural, default=0, help="of weights and streams")
    _add_long(parser)
    parser.add("--format", choices=("text", "json"), default="text", help="of the output")
    _add_output(parser)


def _verify(arguments: Arguments) -> int:
    from .verify import Options

    options = Options(arguments.tokens, arguments.batch, arguments.seed, arguments.long)
    verifier = _verifier(arguments, options)
    if verifier.lacking:
        print_diagnostics(verifier.lacking, sys.stderr)
    shown = arguments.format == "text" and arguments.output is None
    certificate = _measured(verifier, _say if shown else _silent)
    if arguments.format == "json":
        _emit(json.dumps(certificate.data(), indent=2, ensure_ascii=False), arguments.output)
    elif arguments.output is not None:
        _emit(certificate.text(), arguments.output)
    return 0 if certificate.holds else 1


def _measured(verifier: Any, say: Callable[[str], None]) -> Any:
    """Each row as soon as it is measured; on a terminal, also what is being measured."""
    from .verify import row

    say("\n".join(verifier.title()) + "\n")
    found = []
    for what, measured in verifier.measure():
        if measured is None:
            _pending(f"  {what} ..")
        else:
            _pending("")
            found.append(measured)
            say(row(measured) + "\n")
    certificate = verifier.certificate(tuple(found))
    say("\n".join(certificate.ending()) + "\n")
    return certificate


def _pending(text: str) -> None:
    """A line that the next one takes the place of."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    """Says nothing: the whole is written at the end."""


# ---- bench -------------------------------------------------------------------------------------


def _bench_words(parser: Parser) -> None:
    parser.add(
        "spec", metavar="SPEC", nargs="?",
        help="a system, beside a transformer (default: all that nlc is judged by, in minutes)",
    )  # fmt: skip
    parser.add("--memory", metavar="NAME", help="a shipped memory as a layer, beside its peers")
    parser.add("--optimizer", metavar="NAME", help="steps of a shipped optimizer, beside torch's")
    parser.add(
        "--parameters", metavar="N", type=positive, default=50_000_000,
        help="that an optimizer steps (default: 50000000)",
    )  # fmt: skip
    parser.add(
        "--shape", metavar="BxTxW", type=shape, action="append", default=[], dest="shapes",
        help="samples, tokens and width; may be given again (default: 1x512x128 to 2x2048x256)",
    )  # fmt: skip
    parser.add("--heads", metavar="N", type=positive, default=4, help="of a layer (default: 4)")
    parser.add(
        "--lengths", metavar="N", type=positive, nargs="+", default=[],
        help="what a token costs in streams of so many",
    )  # fmt: skip
    parser.add(
        "--context",
        metavar="N",
        type=positive,
        help="what the tokens after N others cost, one by one",
    )
    parser.add("--rounds", metavar="N", type=positive, default=5, help="(default: 5)")
    parser.add("--threads", metavar="N", type=positive, default=1, help="of the CPU (default: 1)")
    parser.add("--device", metavar="NAME", default="cpu", help="cpu (default) or cuda")
    parser.add("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add("--format", choices=("text", "json"), default="text", help="of the output")
    _add_set(parser)
    _add_output(parser)


def _bench(arguments: Arguments) -> int:
    if sum(x is not None for x in (arguments.spec, arguments.memory, arguments.optimizer)) > 1:
        raise CallError("A system, --memory NAME or --optimizer NAME is measured, one of them.")
    if arguments.memory is not None and not all(width for _, _, width in arguments.shapes):
        raise CallError("A layer needs a width: --shape SAMPLESxTOKENSxWIDTH.")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # a profiler tells when it starts
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from . import bench as B

    given = {k: v for k, v in vars(arguments).items() if k not in ("format", "output")}
    given["settings"] = dict(arguments.settings)
    given["shapes"] = tuple(B.Shape(*s) for s in arguments.shapes)
    given["lengths"] = tuple(arguments.lengths)
    if arguments.spec is not None:
        given["spec"] = str(_find(arguments.spec))
    machine = B.machine(arguments.device, arguments.threads)
    shown = arguments.format == "text" and arguments.output is None
    say = _say if shown else _silent
    say(", ".join(f"{k} {v}" for k, v in machine.items()) + "\n")
    say("ratio: the time that a token takes, in parts of the first row's\n\n")
    results = []
    for result in B.bench(B.Options(**given), _pending):
        results.append(result)
        say(result.text() + "\n")
    if arguments.format == "json":
        data = {"machine": machine, "results": [r.data() for r in results]}
        return _emit(json.dumps(data, indent=2, ensure_ascii=False), arguments.output)
    return 0 if shown else _emit("\n".join(r.text() for r in results), arguments.output)


# ---- train, generate -------------------------------------------------------------------------


def _train_words(parser: Parser) -> None:
    parser.add("spec", metavar="SPEC", nargs="?", help="a spec, or the name of a shipped one")
    parser.add("--data", metavar="PATH", nargs="+", default=[], help="text files or folders")
    parser.add(
        "--only", metavar="PATTERN", action="append", default=[],
        help="in folders, only files of such names, as '*.py'",
    )  # fmt: skip
    parser.add(
        "--skip", metavar="PATTERN", action="append", default=[],
        help="in folders, no files or folders of such names",
    )  # fmt: skip
    parser.add("--tokenizer", metavar="FILE", help="a tokenizers file (default: bytes)")
    parser.add(
        "--from", metavar="PATH", dest="start",
        help="start from these weights: a run, a safetensors file, a Llama-like folder",
    )  # fmt: skip
    parser.add(
        "--partial", action="store_const", const=True,
        help="what --from lacks keeps the start that the spec gives it",
    )  # fmt: skip
    parser.add("--out", metavar="FOLDER", help="the run folder (default: runs/NAME)")
    parser.add("--resume", metavar="RUN", help="go on with this run, bit for bit")
    parser.add("--steps", metavar="N", type=positive, help="train so many steps (default: 1000)")
    parser.add("--minutes", metavar="M", type=minutes, help="train so long")
    parser.add("--task", metavar="N", type=positive, help="a task ends every N steps")
    parser.add("--batch", metavar="N", type=positive, help="sequences a step (default: 8)")
    parser.add("--length", metavar="N", type=several, help="tokens a sequence (default: 256)")
    parser.add("--seed", metavar="N", type=natural, help="of weights and data (default: 0)")
    parser.add("--device", metavar="NAME", help="cpu or cuda (default: cuda if there is one)")
    parser.add("--dtype", choices=("float32", "bfloat16"), help="bfloat16 is mixed precision")
    parser.add("--threads", metavar="N", type=positive, help="threads of the CPU")
    parser.add("--val-every", metavar="N", type=positive, help="steps (default: 100)")
    parser.add("--val-bytes", metavar="N", type=several, help="held-out text (default: 65536)")
    parser.add("--save-every", metavar="N", type=positive, help="steps (default: each minute)")
    parser.add("--keep", metavar="N", type=positive, help="newest checkpoints to keep (default: 3)")
    _add_set(parser)


def _train(arguments: Arguments) -> int:
    if arguments.resume is None and (arguments.spec is None or not arguments.data):
        raise CallError("A run needs a spec and text: nlc train SPEC --data PATH...")
    if arguments.spec is not None:
        arguments.spec = str(_find(arguments.spec))
    with interrupts.whole():
        from .train import Options, train

    given: dict[str, Any] = {**vars(arguments), "settings": dict(arguments.settings)}
    given.update((k, tuple(given[k])) for k in ("data", "only", "skip"))
    return train(Options(**given))


def _generate_words(parser: Parser) -> None:
    parser.add("run", metavar="RUN", help="a run folder")
    parser.add("--prompt", metavar="TEXT", default="", help="what the text begins with")
    parser.add("--tokens", metavar="N", type=natural, default=400, help="how many (default: 400)")
    parser.add(
        "--temperature", metavar="T", type=amount, default=0.8,
        help="0 always takes the likeliest (default: 0.8)",
    )  # fmt: skip
    parser.add("--top-k", metavar="K", type=positive, help="draw from the K likeliest only")
    parser.add("--seed", metavar="N", type=natural, default=0, help="of the draws (default: 0)")
    parser.add("--memory", metavar="FILE", help="loaded first if it is there, and saved after")
    parser.add("--device", metavar="NAME", help="cpu or cuda (default: cuda if there is one)")
    parser.add("--threads", metavar="N", type=positive, help="threads of the CPU")


def _generate(arguments: Arguments) -> int:
    if not Path(arguments.run).is_dir():
        raise CallError(f"There is no run folder {arguments.run}.")
    with interrupts.whole():
        from .generate import Options, generate

    sys.stdout.write(arguments.prompt)
    generate(Options(**vars(arguments)), _say)
    _say("\n")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


# ---- miras -----------------------------------------------------------------------------------


def _miras_words(parser: Parser) -> None:
    parser.add("--out", metavar="FOLDER", default="runs/miras", help="(default: runs/miras)")
    for kind in ("memory", "bias", "retention", "rule"):
        parser.add(
            f"--{kind}", metavar="NAME,..", type=names, default=(), help="only these (see --list)"
        )
    parser.add("--all", action="store_true", help="memories and rules that are less usual too")
    parser.add("--list", action="store_true", help="what can be chosen, the laws, the names")
    parser.add(
        "--chunk", metavar="N", type=positive, default=16,
        help="tokens that the gradients of a network stand still for (default: 16)",
    )  # fmt: skip
    parser.add(
        "--size", metavar="N", type=several, default=64,
        help="of keys and values, for what is counted (default: 64)",
    )  # fmt: skip
    parser.add(
        "--recall", metavar="N|NAME,..", type=how_many_or_names, default=0,
        help="train a small model around the N cheapest that differ, or around these",
    )  # fmt: skip
    parser.add("--task", metavar="NAME,..", type=names, default=(), help="mqar, rebind or both")
    parser.add("--steps", metavar="N", type=positive, default=600, help="(default: 600)")
    parser.add("--seeds", metavar="N", type=positive, default=1, help="(default: 1)")
    parser.add("--threads", metavar="N", type=positive, help="threads of the CPU")


def _miras(arguments: Arguments) -> int:
    from .miras.run import Options, listed, miras

    given = vars(arguments)
    if given.pop("list"):
        return _emit(listed(), None)
    wanted = given.pop("recall")
    given["recall"], given["names"] = (wanted, ()) if isinstance(wanted, int) else (0, wanted)
    given["everything"], given["tasks"] = given.pop("all"), given.pop("task")
    return miras(Options(**{**given, "out": Path(given["out"])}))


VERBS = {
    "check": Verb("say what is wrong in specs, and how to mend it", _check_words, _check),
    "fmt": Verb("put specs into the one style", _fmt_words, _fmt),
    "graph": Verb("draw the levels and what passes between them", _graph_words, _graph),
    "schedule": Verb("who updates when", _schedule_words, _schedule),
    "explain": Verb("the derived update rules, or a diagnostic's page", _explain_words, _explain),
    "build": Verb("write the PyTorch module", _build_words, _build),
    "verify": Verb("measure what must hold of a system", _verify_words, _verify),
    "bench": Verb("time and memory, beside peers that are installed", _bench_words, _bench),
    "miras": Verb(
        "memories from four choices: which are one, which are good", _miras_words, _miras
    ),
    "train": Verb("train on real text", _train_words, _train),
    "generate": Verb("stream text from a trained run", _generate_words, _generate),
}
