"""The words of a call. In: what was typed. Out: values, or a sentence on what is wrong."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .files import CallError, did_you_mean

Arguments = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """argparse, but mistakes are sentences, and a misspelt option is told its neighbour."""

    options: list[str]

    def error(self, message: str) -> NoReturn:
        raise CallError(f"{_sentence(message)} See {self.prog} --help.")

    def read(self, words: Sequence[str]) -> Arguments:
        arguments, strange = self.parse_known_args(words)
        if strange:
            word = strange[0].partition("=")[0]
            what = "option" if word.startswith("-") else "argument"
            near = self.option_near(word) if what == "option" else ""
            self.error(f"{self.prog} knows no {what} {word}.{near}")
        return arguments

    def option_near(self, word: str) -> str:
        """The option that may have been meant, or the one that takes this word."""
        for action in self._actions:
            if action.choices is not None and word.lstrip("-") in action.choices:
                return f" Did you mean {action.option_strings[-1]} {word.lstrip('-')}?"
        return did_you_mean(word, self.options)

    def print_help(self, file: Any = None) -> None:
        """As anything is printed: argparse hides that it could not be."""
        print(self.format_help(), end="", file=file)

    def add(self, *names: str, **keywords: Any) -> None:
        self.add_argument(*names, **keywords)
        self.options.extend(n for n in names if n.startswith("-"))


def _sentence(message: str) -> str:
    """argparse's messages as sentences."""
    message = message.removeprefix("argument ")
    if message.startswith("the following arguments are required: "):
        message = message.replace("the following arguments are required: ", "What is missing: ")
    return message if message.endswith((".", "?")) else message + "."


def setting(word: str) -> tuple[str, Any]:
    """`width=128`, `periods=[16, 128]`."""
    name, equals, value = word.partition("=")
    try:
        if not equals or not name.strip():
            raise ValueError
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        found = None
    numbers = found if isinstance(found, list | tuple) else [found]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise argparse.ArgumentTypeError(
            f"{word!r} is not name=value with a number or a list of numbers, as in width=128"
        )
    return name.strip(), list(found) if isinstance(found, tuple) else found


def shape(word: str) -> tuple[int, int, int]:
    """`2x512x128`: samples, tokens and width; without a width, 0."""
    parts = word.lower().split("x")
    if len(parts) not in (2, 3) or not all(p.isdecimal() and int(p) for p in parts):
        raise argparse.ArgumentTypeError(
            f"{word!r} is not SAMPLESxTOKENSxWIDTH, as in 2x512x128; the width may be left out"
        )
    batch, time, width = (*map(int, parts), 0)[:3]
    return batch, time, width


def names(word: str) -> tuple[str, ...]:
    """`l2,huber`."""
    found = tuple(part.strip() for part in word.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{word!r} is not a list of names, as in l2,huber")
    return found


def how_many_or_names(word: str) -> int | tuple[str, ...]:
    """`8`, or `l2,huber`."""
    return positive(word) if re.fullmatch(r"[-+.\d]+", word) else names(word)


def drawn(word: str) -> tuple[str, tuple[float, float]]:
    """`alpha=0.9:1`."""
    name, equals, ends = word.partition("=")
    try:
        low, high = (float(end) for end in ends.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not (equals and name.strip() and -float("inf") < low <= high < float("inf")):
        raise argparse.ArgumentTypeError(
            f"{word!r} is not NAME=LOW:HIGH with two numbers, as in alpha=0.9:1"
        )
    return name.strip(), (low, high)


def positive(word: str) -> int:
    return int(_number(word, int, 1, "a whole number of at least 1"))


def several(word: str) -> int:
    return int(_number(word, int, 2, "a whole number of at least 2"))


def natural(word: str) -> int:
    return int(_number(word, int, 0, "a whole number of at least 0"))


def amount(word: str) -> float:
    return _number(word, float, 0, "a number of at least 0")


def minutes(word: str) -> float:
    return _number(word, float, 1e-9, "a number above 0")


def _number(word: str, kind: Callable[[str], float], least: float, what: str) -> float:
    try:
        value = kind(word)
    except ValueError:
        value = float("nan")
    if not least <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{word!r} is not {what}")
    return value
