"""The command `nlc`. In: words. Out: an exit status: 1 is a mistake in a spec, 2 in
the call, 3 a run that could not go on.

What a command needs is imported when it runs: `check`, `fmt` and `graph` answer in a blink.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from .calls import Parser
from .commands import VERBS, print_diagnostics
from .files import CallError, did_you_mean, why

FAULT = 70  # exit status of a fault of nlc itself
CANNOT_GO_ON = 3
# what a full disk, a quota, a limit on files or a medium answers to what is printed into a file
UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
TOO_LARGE = (
    "There is not enough memory for these sizes. Choose smaller ones, with --set or in the spec."
)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; every mistake ends as a sentence and a status."""
    _prepare()
    try:
        status = _status_of(sys.argv[1:] if words is None else list(words))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # nobody reads on: that is no mistake
        _let_go(sys.stdout)
        return 141
    except KeyboardInterrupt:
        return _say("\nnlc: stopped", 130)
    except CallError as error:
        return _say(f"nlc: {error}", error.status)
    except Exception as error:
        return _told(error)


def _prepare() -> None:
    """Streams that can be written to: closed ones lead nowhere, and a terminal that has no Greek is
    told its numbers.
    """
    nowhere = Path(os.devnull)
    sys.stdout = sys.stdout or nowhere.open("w", encoding="utf-8")
    sys.stderr = sys.stderr or nowhere.open("w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _status_of(words: list[str]) -> int:
    try:
        return _dispatch(words)
    except SystemExit as end:  # of argparse, after --help
        return end.code if isinstance(end.code, int) else 0


def _say(text: str, status: int) -> int:
    """A mistake has its status, whether or not anybody can be told of it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _let_go(sys.stderr)
    return status


def _let_go(stream: TextIO) -> None:
    """What it still holds goes nowhere: at the end Python would try again, and complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
        with suppress(OSError):
            print_diagnostics(error.diagnostics, sys.stderr)
        return 1
    if isinstance(error, Unsettled):
        return _say(f"nlc: {error}", 1)
    if os.environ.get("NLC_TRACEBACK"):
        raise error
    if _out_of_memory(error):
        return _say(f"nlc: {TOO_LARGE}", CANNOT_GO_ON)
    if isinstance(error, OSError) and error.filename is None and error.errno in UNWRITTEN:
        _let_go(sys.stdout)
        return _say(f"nlc: What is printed cannot be written: {why(error)}.", CANNOT_GO_ON)
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = f" ({Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno})" if at else ""
    said = f"nlc: a fault of nlc, not of your call: {type(error).__name__}: {error}{where}"
    return _say(f"{said}\nNLC_TRACEBACK=1 shows how it came to it.", FAULT)


def _out_of_memory(error: Exception) -> bool:
    """Whether Python, or torch on a CPU (a plain RuntimeError) or a GPU, was refused memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )
