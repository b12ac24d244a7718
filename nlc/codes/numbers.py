"""NL5xx: numbers that grow without bound or are none."""

from __future__ import annotations

from .entry import Code, code, system


def _kept(retain: str) -> str:
    return system(
        f"""
            level kept(x) every token {{
              reset     never
              state     M : matrix(width, width)
              {retain}
              objective -sum(M(unit(x)) * unit(x))
              learn     gradient(rate = 0.1)
              read      M(unit(x))
            }}
        """,
        "x += kept(norm(x))",
    )


def _dual(start: str) -> str:
    return system(
        f"""
            level dual(x) every token {{
              state     M : matrix(width, width){start}
              retain    0.9 through lq(4)
              objective sum((M(unit(x)) - x)^2)
              learn     gradient(rate = 0.1)
              read      M(unit(x))
            }}
        """,
        "x += dual(norm(x))",
        before="def lq(A, r) { return A / sum(abs(A)^r)^((r - 2) / r) }",
    )


CODES: dict[str, Code] = {
    "NL501": code(
        "a state grows without bound",
        """This state is never reset, keeps all of what it holds, and adds something at each firing
        that does not shrink as the state grows. So it grows as long as the model runs, and its
        readings with it. Let it forget (`retain 0.99`), reset it (`reset every sequence`), bring
        it back to a length with `retain 1 onto f`, or take an objective with an error in it, such
        as `sum((M(k) - v)^2)`, which stops growing when it fits.""",
        _kept("# keeps all"),
        _kept("retain    0.99"),
    ),
    "NL502": code(
        "a value that is no number",
        """At the start of the state, or for the settings given, this expression divides by zero or
        takes the logarithm or a negative power of zero, so it is infinite or no number at all;
        everything made from it is lost. With `retain .. through f` the function f is taken at the
        start of the state, and zeros are the usual start of a matrix. Give the state another start
        (`= normal(0.02)`, if f is a number on both sides of 0, as a logarithm is not), or add a
        small number where the division is. The orthogonal factor
        `qr(M)` of a matrix without rank is a number, but its derivative is none: an objective must
        not ask for it there, and where only a read does, it is a warning.""",
        _dual(""),
        _dual(" = normal(0.02)"),
    ),
    "NL504": code(
        "a retention that is no fraction",
        """`retain a` multiplies the state by a at each firing: a is the fraction that is kept, from
        0, nothing, to 1, all of it. With more than 1 the state grows without bound, below 0 its
        sign turns every time; most often a forgotten `1 -` or a misplaced digit is behind it. So is
        it with an optimizer, whose retention may be a setting (`adam(b1 = 1.5)`, or a `shrink` that
        its rate makes larger than 1). It is told where the number is known when compiled; a stream
        is used as it is given.""",
        _kept("retain    1.5"),
        _kept("retain    0.99"),
    ),
}
