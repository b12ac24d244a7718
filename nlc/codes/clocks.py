"""NL2xx: what is wrong with a frequency, a reset or what happens at a firing."""

from __future__ import annotations

from .entry import Code, code, spec, system


def _clocked(
    clock: str,
    reset: str = "",
    before: str = "",
    inputs: str = "x",
    call: str = "",
    start: str = "",
) -> str:
    """A memory of the last tokens on some clock, as a level."""
    rows = [
        before,
        f"level slow({inputs}) {clock} {{",
        f"  {reset}" if reset else "",
        f"  state     M : matrix(width, width){start}",
        "  objective sum((M(unit(x)) - x)^2)",
        "  learn     gradient(rate = 0.01)",
        "  read      M(unit(x))",
        "}",
    ]
    return system("\n".join(row for row in rows if row), call or "x += slow(norm(x))")


def _solved(clock: str, near: str = "x") -> str:
    """A state that is the nearest vector to what came in."""
    made = "" if near == "x" else f"\n              y = {near}"
    return system(
        f"""
            level nearest(x) {clock} {{
              state     z : vector(width){made}
              objective sum((z - {"y" if made else "x"})^2)
              learn     exact
              read      z
            }}
        """,
        "x += nearest(norm(x))",
    )


def _ruled(rules: str) -> str:
    """A matrix with these lines to change it."""
    rows = ["level slow(x) every token {", "  state M : matrix(width, width)"]
    rows += [f"  {line}" for line in rules.splitlines()]
    return system("\n".join([*rows, "  read M(unit(x))", "}"]), "x += slow(norm(x))")


CODES: dict[str, Code] = {
    "NL201": code(
        "a frequency needs a unit",
        """A clock counts something: `every 16 tokens`, `every sequence`, `every 8 steps`, `every
        task`. A token is one element of a stream, a sequence is a run of tokens between two resets
        of the stream, a step is one batch of the training loop, a task is a run of steps or
        sequences of one kind. The unit decides which of two levels is the faster one, so it is
        never guessed. The lengths of `linearise` and of `transfer .. through` count tokens.""",
        _clocked("every 16"),
        _clocked("every 16 tokens"),
    ),
    "NL202": code(
        "a period is a whole number, known when compiled",
        """The order of the levels, and with it which gradient passes where, is worked out before
        the model runs. So a period is a whole number above zero made of numbers, settings and
        sizes, never of a stream, whose value changes at each token. To change how much a level
        learns at each token, give its rate or its retention a stream: `learn gradient(rate =
        beta)`.""",
        _clocked("every alpha tokens", inputs="x, alpha", call="x += slow(norm(x), 16)"),
        _clocked("every 16 tokens"),
    ),
    "NL203": code(
        "this level can never fire",
        """A level that counts tokens counts them from its last reset, and by default it is reset
        at each sequence. If the sequences are shorter than its period, the count starts anew
        before it is full, so the level never changes and only costs. The length of a sequence is
        what `assume sequence = 4096 tokens` says. Choose a shorter period, or let the count go on
        over the ends of sequences with `reset never`; then what it holds goes on too.""",
        _clocked("every 8192 tokens", before="assume sequence = 4096 tokens"),
        _clocked("every 1024 tokens", before="assume sequence = 4096 tokens"),
    ),
    "NL204": code(
        "`set` leaves nothing for the other statements to do",
        """`set e` gives the whole new state, once, at the last tick of the period. So there is
        nothing left to retain, no gradient to take and no amount to add: `retain`, `objective`,
        `learn` and `write` cannot stand beside it. To keep a part of the old state, name it in the
        expression: `set 0.9 * S + 0.1 * x`. To add an amount, use `write`, with `retain` for what
        is kept.""",
        spec("""
            memory mean(x[n]) {
              state  S : vector(n)
              retain 0.9
              set    0.1 * x
              read   S
            }
        """),
        spec("""
            memory mean(x[n]) {
              state S : vector(n)
              set   0.9 * S + 0.1 * x
              read  S
            }
        """),
    ),
    "NL205": code(
        "what is solved at every read belongs on `always`",
        """`learn exact` solves the objective anew for every read; there is no step from one state
        to the next, and so no frequency but `always`. A level that declares such a state says
        `always`. A memory may learn `exact` in any body, on any clock: it is solved when it is
        read, and keeps only what its objective looks back on. For a state that changes a little at
        each tick, learn by `gradient`.""",
        _solved("every token"),
        _solved("always"),
    ),
    "NL206": code(
        "a reset falls inside a period",
        """A level that fires every 16 tokens and is reset every 24 would be reset in the middle of
        its second period, and the eight tokens since its last firing would be lost. That is seldom
        meant. Make the reset a multiple of the period; or say what shall happen to a period cut
        short: `partial flush` fires first, on what there is, and `partial drop` forgets it. With a
        phase it is a tick at which the level fires: of `every 4 tokens from 2`, 6 or 10. A reset
        ends its own count too, so `reset every 4 tokens from 2` is `reset every 2 tokens`. A level
        on tokens is reset at the end of each sequence, if it does not say otherwise; where
        that falls by `assume sequence = 1000 tokens` is told as a warning.""",
        _clocked("every 16 tokens", reset="reset     every 24 tokens"),
        _clocked("every 16 tokens", reset="reset     every 48 tokens"),
    ),
    "NL207": code(
        "an objective that nothing follows",
        """An objective says what a state is asked to do; `learn` says by which rule it gets there.
        Without a rule the objective changes nothing, and the state keeps its start. Add a `learn`
        line, or take the objective out. So it is with an optimizer that ends without `write`: what
        it makes of the gradient is added to nothing. Weights that shall stay as they were drawn, or
        as a file gives them, belong to a level that is `never`.""",
        _ruled("objective sum((M(unit(x)) - x)^2)"),
        _ruled("objective sum((M(unit(x)) - x)^2)\nlearn gradient(rate = 0.01)"),
    ),
    "NL208": code(
        "a rule without an objective",
        """A rule follows the gradient of an objective, and here there is none. Say what the state
        is asked to do: `objective e`, or `objective loss` for the model's own loss. An amount that
        is no objective's gradient is given by `write e`, and needs no rule.""",
        _ruled("learn gradient(rate = 0.01)"),
        _ruled("objective sum((M(unit(x)) - x)^2)\nlearn gradient(rate = 0.01)"),
    ),
    "NL209": code(
        "a draw at resets that never come",
        """`fresh(e)` draws a start anew each time the state is reset. Levels on tokens are reset at
        the end of each sequence; levels on sequences, steps and tasks, and those that say `reset
        never`, are not reset at all, so the state would be drawn once and never again. If that is
        meant, write `= normal(0.1)`, which is drawn once with the model; if not, say when it starts
        anew, as in `reset every 8 sequences`.""",
        _clocked("every 16 tokens", reset="reset     never", start=" = fresh(normal(0.1))"),
        _clocked("every 16 tokens", start=" = fresh(normal(0.1))"),
    ),
    "NL210": code(
        "a solution that waits for itself",
        """`learn exact` solves the objective with the token that is there, so what the objective is
        made of must be known before the solution is. A line that asks the state is not; nor are two
        states that are each solved from the other. Ask for what another memory knows, or let the
        state change a little at each token, by `gradient`: a line then sees it as the token before
        has left it.""",
        _solved("always", near="x + z"),
        _solved("always", near="norm(x)"),
    ),
}
