"""NL4xx: gradients that are zero, or that reach nothing."""

from __future__ import annotations

from .entry import Code, code, system

_BUCKET = """
    level bucket(q, k, v) every token {
      state     M : matrix(width, width)
      objective -sum(M(k) * v)
      learn     gradient(rate = 1)
      read      M(q)
    }
"""
_BEFORE = _BUCKET.replace("read      M(q)", "read      M(q) before write")
_CALLS = "z = norm(x)\nx += bucket(z, linear(z, width), z)"

_NEAREST = """
    level nearest(x) always {
      state     z : vector(width)
      objective sum((z - x)^2)
      learn     exact
      read      z
    }
"""


def _one(objective: str) -> str:
    return system(
        f"""
            level one(x) every token {{
              state     M : matrix(width, width)
              y = M(unit(x))
              objective {objective}
              learn     gradient(rate = 0.1)
              read      M(unit(x))
            }}
        """,
        "x += one(norm(x))",
    )


CODES: dict[str, Code] = {
    "NL401": code(
        "a weight, or a learned start, gets no gradient",
        """A weight learns from the loss along paths from one to the other. Through the readings of
        levels a path is always open; into a state, and so to what wrote it, it is open only where
        a transfer says so. All paths from this weight go into a state that no `transfer backprop`
        opens, so the weight would stay where it was drawn. Add the transfer; or, if it shall stay,
        make it a state that nothing changes. A start that `transfer init` lets a level learn is
        told in the same way: of a state that nothing uses, say a gate whose line was taken out, or
        whose only use is in a gradient that `first order` takes as a constant.""",
        system(_BEFORE, _CALLS),
        system(_BEFORE + "    transfer backprop bucket -> training\n", _CALLS),
    ),
    "NL402": code(
        "a start that an exact solution forgets",
        """`learn exact` gives the state at which the objective is smallest, wherever the search
        began. So its start has no effect, its derivative is zero, and a `transfer init` to it can
        learn nothing. Take the line out; or let the state learn by `gradient`, which remembers
        where it started.""",
        system(_NEAREST + "    transfer init training -> nearest\n", "x += nearest(norm(x))"),
        system(_NEAREST, "x += nearest(norm(x))"),
    ),
    "NL403": code(
        "nothing learns through a step",
        """`sign`, `floor`, `top` and comparisons are flat wherever they are not at a jump: their
        gradient is zero everywhere, and what stands behind them learns nothing. For an error of
        absolute size use `abs`, whose gradient is the sign, or `smooth_abs` with its derivative
        `smooth_sign`. A choice that shall be learned is made soft, by `sigmoid` or `softmax`.""",
        _one("sum(sign(M(unit(x)) - x) * x)"),
        _one("sum(smooth_sign(M(unit(x)) - x) * x)"),
    ),
    "NL404": code(
        "an objective that does not see its own state",
        """The gradient of an objective is taken with respect to the state as the objective itself
        names it. Plain lines are constants in it, also those that were made from the state; so a
        memory can make keys and targets from itself without learning through them. This objective
        names only such lines, so its gradient is zero. Write the use of the state into the
        objective.""",
        _one("sum((y - x)^2)"),
        _one("sum((M(unit(x)) - x)^2)"),
    ),
    "NL405": code(
        "no rule serves this weight",
        """A level may have several `learn` lines, each for some of its arrays: `for matrices`,
        `for tables`, `for vectors`, for a level or a state. The first that fits an array serves
        it. This array is served by none, so it would never change. Add a last `learn` without
        `for`, which serves the rest.""",
        system(
            training="""
            level training every step {
              objective loss
              learn     adam(rate = 1e-3) for matrices
            }
        """
        ),
        system(
            training="""
            level training every step {
              objective loss
              learn     adam(rate = 1e-3) for matrices
              learn     adam(rate = 1e-3)
            }
        """
        ),
    ),
}
