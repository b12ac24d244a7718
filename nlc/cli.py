"""The command `nlc`. In: words. Out: an exit status: 1 is a mistake in a spec, 2 in
the call, 3 a run that could not go on.

What a command needs is imported when it runs: `check`, `fmt` and `graph` answer in a blink.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from .calls import Parser
from .commands import VERBS, print_diagnostics
from .files import CallError, did_you_mean

FAULT = 70  # exit status of a fault of nlc itself
CANNOT_GO_ON = 3
TOO_LARGE = (
    "There is not enough memory for these sizes. Choose smaller ones, with --set or in the spec."
)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; every mistake ends as a sentence and a status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that has no Greek is told its numbers
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _dispatch(sys.argv[1:] if words is None else list(words))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # nobody reads on: that is no mistake
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("\nnlc: stopped", file=sys.stderr)
        return 130
    except SystemExit as end:  # of argparse, after --help
        return end.code if isinstance(end.code, int) else 0
    except CallError as error:
        print(f"nlc: {error}", file=sys.stderr)
        return error.status
    except Exception as error:
        return _told(error)


def _dispatch(words: list[str]) -> int:
    if not words:
        print(_overview(), file=sys.stderr)
        return 2
    name = words[0]
    if name in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if name == "--version":
        return _version()
    verb = VERBS.get(name)
    if verb is None:
        kind = "option" if name.startswith("-") else "command"
        near = did_you_mean(name, [*VERBS, "--version", "--help"])
        raise CallError(f"There is no {kind} {name}.{near} See nlc --help.")
    parser = Parser(prog=f"nlc {name}", description=verb.help, allow_abbrev=False)
    parser.options = ["--help"]
    verb.words(parser)
    return verb.act(parser.read(words[1:]))


def _overview() -> str:
    rows = [f"  nlc {name:<9} {verb.help}" for name, verb in VERBS.items()]
    return "\n".join(
        ["nlc: a compiler for nested learning systems", "", *rows, "", "More: nlc COMMAND --help"]
    )


def _version() -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"nlc {version('nlc-compiler')}")
    except PackageNotFoundError:  # a plain clone
        print("nlc, not installed")
    return 0


def _told(error: Exception) -> int:
    """A mistake in a spec, as diagnostics; anything else is a fault of nlc and says where."""
    from .diagnostics import Unsettled
    from .driver import SpecError

    if isinstance(error, SpecError):
        print_diagnostics(error.diagnostics, sys.stderr)
        return 1
    if isinstance(error, Unsettled):
        print(f"nlc: {error}", file=sys.stderr)
        return 1
    if os.environ.get("NLC_TRACEBACK"):
        raise error
    if _out_of_memory(error):
        print(f"nlc: {TOO_LARGE}", file=sys.stderr)
        return CANNOT_GO_ON
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = f" ({Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno})" if at else ""
    print(
        f"nlc: a fault of nlc, not of your call: {type(error).__name__}: {error}{where}\n"
        "NLC_TRACEBACK=1 shows how it came to it.",
        file=sys.stderr,
    )
    return FAULT


def _out_of_memory(error: Exception) -> bool:
    """Whether Python, or torch on a CPU (a plain RuntimeError) or a GPU, was refused memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )
