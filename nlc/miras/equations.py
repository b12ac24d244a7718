"""STAGE: combination, normal form -> the lines that say how the memory changes.

Of a matrix whose error is linear in what it says, the numbers are those of the normal form, so two
steps or an implicit one are seen to be what they are. Of all others the gradient is called g.
"""

from __future__ import annotations

from .choices import Combination
from .normal import Normal
from .same import text
from .symbols import Expr

STEPS = {
    "gradient": "eta * g", "momentum": "eta * g", "dgd": "eta * (g + {cleared})",
    "steps": "eta * (g + g after the first step)", "implicit": "eta * g",
    "adam": "eta * adam(g)", "muon": "eta * muon(g)",
}  # fmt: skip


def equations(combination: Combination, form: Normal) -> list[str]:
    """One line, or two where something filters what is written."""
    if combination.rule.name == "exact":
        return ["M = the minimiser of the objective, at each read"]
    explicit = "erases" in form.kind or ("blind" in form.kind and not combination.memory.network)
    if explicit:
        return momentum_lines(combination, form, linear_amount(form))
    name = "A" if combination.retention.link else "M"
    cleared = (
        "W x x' in every layer" if combination.memory.network else f"{name} {form.key} {form.key}'"
    )
    amount = f"- {STEPS[combination.rule.name].format(cleared=cleared)}"
    return [*momentum_lines(combination, form, amount), gradient_line(combination)]


def linear_amount(form: Normal) -> str:
    """`- erase * (M k) k' + write * v k'`."""
    asked = "A" if any(k.startswith("through") for k in form.kind) else "M"
    asked = f"kept {form.key}" if "forgets first" in form.kind else f"{asked} {form.key}"
    x, v = form.key, form.target
    if any(k.startswith("the last") for k in form.kind):
        asked, x, v = f"{asked}_i", f"{x}_i", f"{v}_i"
    erase = form.numbers.get("erase", form.numbers.get("clear"))  # a dual is cleared, blind or not
    write = form.numbers["write"]
    parts = [] if erase is None else [f"- {times(erase, form.key)}({asked}) {x}'"]
    parts.append(f"+ {times(write, form.key)}{v} {x}'")
    return " ".join(parts)


def times(factor: Expr, key: str) -> str:
    if factor == 1:
        return ""
    shown = text(factor, key)
    return f"({shown}) * " if factor.is_Add else f"{shown} * "


def momentum_lines(combination: Combination, form: Normal, amount: str) -> list[str]:
    c = combination
    name = "A" if c.retention.link else "M"
    kept = f"alpha * {name}" if "alpha" in c.retention.streams else name
    if c.retention.channel:
        on_left = (c.retention.name.startswith("value")) != c.bias.exchanged
        kept = f"diag(alpha) {name}" if on_left else f"{name} diag(alpha)"
    first = [f"kept = {kept}"] if "forgets first" in form.kind and "(kept" in amount else []
    kept = "kept" if first else kept
    if c.rule.name == "momentum":
        return [*first, f"S = mu * S {amount}", wrapped(c, f"{kept} + S")]
    return [*first, wrapped(c, f"{kept} {amount}")]


def wrapped(combination: Combination, new: str) -> str:
    """What becomes of the new weights: a projection, or a function that they are read through."""
    c = combination
    names = {"elastic": "soft_threshold", "sphere": "same_rows"}
    if c.retention.name in names:
        return f"M = {names[c.retention.name]}({new})"
    if c.retention.link:
        link = c.retention.line.rpartition(" through ")[2].partition("(")[0]
        return f"A = {new}, M = {link}(A)"
    return f"M = {new}"


def gradient_line(combination: Combination) -> str:
    c = combination
    at = "the state as it was"
    if c.retention.after:
        at = "the retained state"
    if c.frozen:
        at = "the first state of every chunk" + (", retained" if c.retention.after else "")
    if c.rule.name == "implicit":
        at = "the state that the step ends in"
    return f"g = d objective / d M at {at}"
