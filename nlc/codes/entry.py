"""What is known of one code, and the frame that most of the examples share."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent, indent


@dataclass(frozen=True, slots=True)
class Code:
    """`wrong` is a whole file that gives this code and no other; `right` is the same file, mended.

    What cannot be seen in a file alone says so in `found`.
    """

    title: str
    story: str
    wrong: str
    right: str
    # "check"; "operation": when a memory is asked for as a function; "build": when compiled
    found: str = "check"


def code(title: str, story: str, wrong: str, right: str, found: str = "check") -> Code:
    return Code(title, " ".join(story.split()), wrong, right, found)


def spec(text: str) -> str:
    """A whole file, written indented in these pages."""
    return "nl 1\n" + dedent(text).strip("\n") + "\n"


TRAINING = "level training every step { objective loss; learn adam(rate = 1e-3) }"


def system(
    levels: str = "",
    flow: str = "",
    training: str = TRAINING,
    before: str = "",
    settings: str = "vocab = 256, width = 64",
    after: str = "",
) -> str:
    """A small language model around a few lines of its own: levels, and lines of its flow."""
    head = dedent(before).strip("\n")
    parts = [
        f"nl 1\n{head}\n" if head else "nl 1\n",
        f"system small({settings}) {{\n",
        _lines(training, 1),
        _lines(levels, 1),
        "  flow(tokens) {\n    x = embed(tokens, vocab, width)\n",
        _lines(flow, 2),
        "    logits = unembed(norm(x), vocab)\n    loss = cross_entropy(logits, next(tokens))\n",
        _lines(after, 2),
        "    return logits\n  }\n}\n",
    ]
    return "".join(parts)


def _lines(text: str, depth: int) -> str:
    text = dedent(text).strip("\n")
    return indent(text, "  " * depth) + "\n" if text else ""
