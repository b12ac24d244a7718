"""Random learning rules: optimizers that are valid, as text.

    from hypothesis import given
    from nlc.testing.optimizers import optimizers

    @given(optimizers())
    def test(text):                    # a file with `optimizer random(weight, grad, ..) { .. }`
        nlc.optimizer(text)(parameters)

Everything drawn is bounded by the gradient or by 1, and what is divided by is not small, so numbers
can be compared to rounding.
"""

from __future__ import annotations

from hypothesis import strategies as st

# Of the weight's size, made of the gradient.
SEEN = (
    "grad", "tanh(grad)", "sign(grad) * abs(grad)", "grad^2", "0.5 * grad + 0.1 * tanh(weight)",
    "grad / (1 + abs(grad))", "clip(grad, -1, 1)", "unit(grad)",
    "where(grad > 0, grad, 0.5 * grad)", "grad / (1 + frobenius(grad))",
)  # fmt: skip
KEPT = ("0.5", "0.9", "keep", "1 - 0.5 * keep", "where(count < 3, 0.5, keep)")
GAIN = ("1", "0.3", "1 - keep", "rate", "1 / (1 + count)")
NAMES = ("m", "h", "c")


@st.composite
def optimizers(draw: st.DrawFn, largest: int = 3, slow: bool = True) -> str:
    """The text of a file with one optimizer `random`, of up to `largest` memories of gradients.

    `slow`: one of them may be at a clock of its own.
    """
    lines: list[str] = []
    states = [memory(draw, name, lines) for name in NAMES[: draw(st.integers(0, largest))]]
    slowly = slow and draw(st.integers(0, 3)) == 3
    if slowly:
        states.append(level(draw))
    known = [*NAMES[: len(states) - slowly], *(["late.s"] if slowly else [])]
    body = [*lines, *states]
    if draw(st.booleans()):
        body.append(f"  retain 1 - 0.1 * {draw(st.sampled_from(('rate', '0.2')))}")
    body.append(f"  write {draw(written(known))}")
    head = "optimizer random(weight, grad, rate = 0.1, keep = 0.8) {"
    return "\n".join(["nl 1", head, *body, "}", ""])


def memory(draw: st.DrawFn, name: str, lines: list[str]) -> str:
    """A state, by an objective linear in it, by squares, or by a rule that says what is written."""
    seen = draw(st.sampled_from(SEEN))
    if draw(st.booleans()):
        lines.append(f"  seen_{name} = {seen}")
        seen = f"seen_{name}"
    keep = draw(st.sampled_from(("", *(f"retain {k}" for k in KEPT))))
    gain = draw(st.sampled_from(GAIN))
    rule = draw(
        st.sampled_from((
            f"objective -sum({name} * {seen}); learn gradient(rate = {gain})",
            f"objective sum(({name} - {seen})^2) / 2; learn gradient(rate = {gain})",
            f"write {gain} * ({seen})",
            f"objective -sum({name} * {seen}); learn momentum(rate = {gain}, keep = 0.5)",
        ))
    )  # fmt: skip
    parts = "; ".join(p for p in (keep, rule) if p)
    return f"  state {name} : like(weight) {{ {parts} }}"


def level(draw: st.DrawFn) -> str:
    keep = draw(st.sampled_from(("", "retain 0.9; ")))
    period = draw(st.integers(2, 3))
    return (
        f"  level late every {period} steps {{ state s : like(weight); objective -sum(s * grad); "
        f"{keep}learn gradient(rate = 0.5) }}"
    )


def written(known: list[str]) -> st.SearchStrategy[str]:
    """What is added to the weight."""
    own = st.sampled_from(("grad", "sign(grad)", *known))
    one = st.one_of(
        own,
        own.map(lambda m: f"tanh({m})"),
        own.map(lambda m: f"{m} / (1 - keep^count)"),
        st.tuples(own, own).map(lambda ab: f"{ab[0]} / (sqrt(abs({ab[1]})) + 1)"),
        st.tuples(own, own).map(lambda ab: f"({ab[0]} + keep * {ab[1]})"),
    )
    rates = st.sampled_from(("rate", "rate / sqrt(count)", "rate * min(count / 3, 1)"))
    return st.tuples(rates, one).map(lambda pair: f"-{pair[0]} * {pair[1]}")
