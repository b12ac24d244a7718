"""NL0xx: what is wrong with the text itself."""

from __future__ import annotations

from .entry import Code, code, spec, system

_HELD = """
    memory held(q[n], k[n], v[m], alpha) {{
      state     M : matrix(n, m)
      {retain}
      objective -dot(M(k), v)
      learn     gradient(rate = {rate})
      read      M(q)
    }}
"""
_RIGHT = spec(_HELD.format(retain="retain    alpha", rate="0.5"))

_MIXER = """
    level mixer(x) every token {
      state     M : matrix(width, width)
      k = unit(linear(x, width))
      objective sum((M(k) - x)^2)
      learn     gradient(rate = 0.1)
      read      M(k)
    }
"""


def _with_mixer(line: str) -> str:
    return system(f"{_MIXER}    {line}\n", "x += mixer(norm(x))")


CODES: dict[str, Code] = {
    "NL001": code(
        "this line cannot be read",
        """A line is a statement. It begins with a word that says which one (`state`, `learn`,
        `read`), or with `name =` or `name +=`. It goes on inside ( ) and [ ], and after a line
        that ends in an operator, `->`, `=` or a comma; blocks stand in braces. This code is given
        for whatever breaks these rules: a misspelt word, a bracket left open, an operator without
        its right side, a lost `->`, a word of the language used as a name, or a character that
        only looks like the right one (a curly quote, an en dash). The message says what was read
        and what could have stood there; where one reading is likely it offers it as a fix. One
        mistake gives one message, and reading goes on with the next line.""",
        spec(_HELD.format(retain="retian    alpha", rate="0.5")),
        _RIGHT,
    ),
    "NL002": code(
        "the first line does not say `nl 1`",
        """A file begins with the version of the language that it is written in, `nl 1`. A compiler
        reads every version up to its own, and a file keeps its meaning for good: the number
        changes only when you change it. The message comes when the line is missing, is spelt
        differently, or names a version that this compiler does not know. A file of a later version
        is not read any further, since nobody here knows what it says.""",
        "nl 3\n" + _RIGHT.removeprefix("nl 1\n"),
        _RIGHT,
    ),
    "NL003": code(
        "this statement belongs in another block",
        """Each block has its own statements. A system holds levels, one flow, transfers and
        `assume`; a flow computes, and ends in `return`; a level, a memory or an optimizer holds
        states and says how they change. A `def` is computed where it is called and holds nothing.
        Plain lines (`name = value`, `name += value`, `repeat`) may stand in any body. If a
        statement stands in a block that has no use for it, ask whose it is: what is kept belongs
        to a box, what is computed at each token belongs to the flow. The same code is given for an
        argument without a name that follows a named one.""",
        system(flow="retain 0.9"),
        system(flow="x = 0.9 * x"),
    ),
    "NL004": code(
        "numbers are written `2`, `0.5` or `1e-3`",
        """A number has a digit on both sides of its point, no `_` between digits, and ends before
        a letter begins: `0.5` and not `.5`, `2.0` and not `2.`, `1000` and not `1_000`, `4*n` and
        not `4n`. One way to write a number keeps files easy to compare and leaves the point free
        for `M.key`. Numbers too large or too small to be held are refused too, in place of
        becoming infinite or zero in silence; where no bound is meant, write `infinity`.""",
        spec(_HELD.format(retain="retain    alpha", rate=".5")),
        _RIGHT,
    ),
    "NL005": code(
        "the clauses of this line stand in the wrong order",
        """The clauses of a statement have one order, so that the same line always looks the same:
        a transfer says `through 512 tokens` before `first order`; a state says `per heads` before
        `= start`; a retention says `through f` before `onto g`; an objective says `after retain`
        before `once`. Nothing is wrong with what the line says. The fix puts the clauses in
        order.""",
        _with_mixer("transfer backprop mixer -> training first order through 512 tokens"),
        _with_mixer("transfer backprop mixer -> training through 512 tokens first order"),
    ),
    "NL006": code(
        "this block has that statement already",
        """A block has at most one of each statement but `state`, `learn`, `cite` and plain lines:
        one objective, one retention, one reading. A file has one system. Two objectives for one
        state are one objective, their sum; two states with an objective each say so in braces of
        their own, as the two moments of Adam do. Two readings are two memories, or one reading of
        both values side by side.""",
        spec("""
            memory twice(q[n], k[n], v[m]) {
              state     M : matrix(n, m)
              objective -dot(M(k), v)
              objective sum(M(k)^2)
              learn     gradient(rate = 0.5)
              read      M(q)
            }
        """),
        spec("""
            memory twice(q[n], k[n], v[m]) {
              state     M : matrix(n, m)
              objective sum(M(k)^2) - dot(M(k), v)
              learn     gradient(rate = 0.5)
              read      M(q)
            }
        """),
    ),
}
