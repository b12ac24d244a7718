"""NL7xx: what means something and is not compiled yet."""

from __future__ import annotations

from .entry import Code, code, system


def _mixer(rule: str) -> str:
    return system(
        f"""
            level mixer(x) every token {{
              state     M : matrix(width, width)
              k = unit(linear(x, width))
              {rule}
              objective sum((M(k) - x)^2) / 2
              learn     gradient(rate = 1)
              read      M(k)
            }}
            transfer backprop mixer -> training
        """,
        "x += mixer(norm(x))",
    )


CODES: dict[str, Code] = {
    "NL701": code(
        "this is not lowered to PyTorch yet",
        """
        The spec is right and has one meaning, and the reference interpreter runs it token by token.
        But no algorithm of this compiler turns this part into a fast program that computes exactly
        the same, so `nlc build`, `nlc train` and `nlc.compile` refuse it, by name, where a guess
        would give a wrong number. `nlc check` never says so. Say the same with a part that is
        lowered, or run it with `nlc.reference`. Here a memory that starts anew every 64 tokens is
        not lowered; one that forgets as it goes is.
        """,
        _mixer("reset     every 64 tokens"),
        _mixer("retain    0.95"),
        found="build",
    ),
}
