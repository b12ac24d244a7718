"""All codes: the story of each, a file that has the mistake, and the file without it.

In: a code. Out: what `nlc explain NL203` prints. One page of codes for each hundred.
"""

from __future__ import annotations

from difflib import get_close_matches
from textwrap import fill, indent

from . import clocks, gradients, lowering, names, numbers, shapes, text, transfers
from .entry import Code as Code

CODES: dict[str, Code] = {
    **text.CODES,
    **names.CODES,
    **clocks.CODES,
    **transfers.CODES,
    **gradients.CODES,
    **numbers.CODES,
    **shapes.CODES,
    **lowering.CODES,
}

_WIDTH = 96


def explain_code(name: str) -> str:
    """The page of a code; of one that does not exist, the nearest ones."""
    wanted = name.strip().upper()
    found = CODES.get(wanted)
    return _unknown(wanted) if found is None else _page(wanted, found)


def _page(name: str, found: Code) -> str:
    parts = [f"{name}: {found.title}", fill(found.story, _WIDTH)]
    if found.found == "operation":
        parts.append(fill("This is found when the memory is asked for as an operation.", _WIDTH))
    if found.found == "build":
        parts.append(fill("This is found by `nlc build` and `nlc.compile`.", _WIDTH))
    parts += ["Wrong:\n\n" + indent(found.wrong, "    ").rstrip()]
    parts += ["Right:\n\n" + indent(found.right, "    ").rstrip()]
    return "\n\n".join(parts) + "\n"


def _unknown(wanted: str) -> str:
    near = get_close_matches(wanted, CODES, 3, 0.6)
    meant = (
        f"; did you mean {' or '.join(near)}?"
        if near
        else f"; codes run from {min(CODES)} to {max(CODES)}"
    )
    return f"there is no code {wanted}{meant}\n"
