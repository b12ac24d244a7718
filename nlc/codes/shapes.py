"""NL6xx: shapes that do not fit."""

from __future__ import annotations

from .entry import TRAINING, Code, code, spec, system


def _headed(heads: int, key: str = "z", per: str = " per heads") -> str:
    join = "join(M(z))"
    return system(
        f"""
            level mixer(x) every token {{
              state     M : matrix(n, n){per}
              z = split(unit(x), heads)
              objective sum((M({key}) - z)^2)
              learn     gradient(rate = 0.1)
              read      {join}
            }}
        """,
        "x += mixer(norm(x))",
        before="",
        settings=f"vocab = 256, width = 64, heads = {heads}",
        training=f"n = width / heads\n{TRAINING}",
    )


def _error(objective: str) -> str:
    return spec(f"""
            memory one(q[n], k[n], v[m]) {{
              state     M : matrix(n, m)
              objective {objective}
              learn     gradient(rate = 0.1)
              read      M(q)
            }}
        """)


CODES: dict[str, Code] = {
    "NL601": code(
        "a size that is not whole",
        """The sizes of arrays, the counts of `repeat`, periods and windows are whole numbers. A
        division that leaves a rest is an error, for rounding it would hide a mistake in the
        settings: 64 channels do not divide into 6 heads. Change one of the settings that the
        message names. Where rounding is meant, write `floor(a / b)`.""",
        _headed(6),
        _headed(4),
    ),
    "NL602": code(
        "two shapes do not fit",
        """A stream has a shape without batch and time. `M(x)` takes vectors of the size that M was
        declared with; operators stretch an axis of 1 and otherwise want equal axes, from the last
        one; an input with sizes in brackets takes an array with those axes last. The message names
        both shapes and where they come from. Often one side has its heads apart and the other has
        not: `split(x, heads)` parts them, `join` is its inverse.""",
        _headed(4, key="x"),
        _headed(4),
    ),
    "NL603": code(
        "an objective is one number",
        """An objective says how bad things are, in one number a tick, or one a head where a memory
        serves several. This one is an array. `sum(..)` of squares is the usual error, `-dot(a, b)`
        the agreement of two vectors. `dot` acts on the last axis only, so of two matrices it is a
        vector: write `sum(a * b)`.""",
        _error("(M(k) - v)^2"),
        _error("sum((M(k) - v)^2)"),
    ),
    "NL604": code(
        "one memory is given several rows",
        """A memory that is called is made once for each head of what it is given. A state that a
        level declares itself is one state, unless it says otherwise, and is given one vector a
        tick. Here the vectors come by heads. `per heads` after the form makes one memory for each;
        or `join` the heads into one vector.""",
        _headed(4, per=""),
        _headed(4),
    ),
    "NL605": code(
        "a rule for matrices would serve something else",
        """Rules such as `muon` multiply the gradient by itself, or look at the inputs of a layer,
        so they can serve only arrays that multiply vectors: `matrices`. The gains of `norm` are
        vectors, and the rows of `embed` are looked up. Say `for matrices` on that line, and add a
        second `learn` for the rest.""",
        system(training="level training every step { objective loss; learn muon(rate = 0.02) }"),
        system(
            training="""
            level training every step {
              objective loss
              learn     muon(rate = 0.02) for matrices
              learn     adam(rate = 1e-3)
            }
        """
        ),
    ),
    "NL606": code(
        "a setting is not one of those it may be",
        """The system, the memory or the optimizer says of this setting what it may be: `assume
        printed in [0, 1]`. It was given something else, by `--set`, by the caller or as its
        default, or a stream, which is another number at every tick. Such a setting chooses between
        readings, and there is nothing between them or beyond. `assume p >= 1` says where one lies,
        if it is a number.""",
        system("assume causal in [0, 1]", settings="vocab = 256, width = 64, causal = 2"),
        system("assume causal in [0, 1]", settings="vocab = 256, width = 64, causal = 1"),
    ),
}
