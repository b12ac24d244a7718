"""What is kept of a state: the closed form of a retention, the map from a dual to its state.

Each closed form is the minimiser of what the paper calls a retention gate (2504.13173; the tests
solve each of them).
"""

from __future__ import annotations

from math import inf

from ..backward import Underivable, constant, is_number, make, mul, sub
from ..derive import shrinkage
from ..show import PRODUCT, Writer
from ..system import Lambda, Term
from .derived import Derived, link_body
from .lines import Rows, said
from .slopes import Curved, Kind, bending, uses
from .tidy import wide


def retention_rows(w: Writer, d: Derived, name: str) -> Rows:
    rule = d.state.rule
    if d.box.exact or rule.set is not None or not rule.changes:
        return []
    return [*kept_rows(w, d, name), *ridge_rows(w, d), *link_rows(w, d, name)]


def kept_rows(w: Writer, d: Derived, name: str) -> Rows:
    """`a W` is the nearest to W, beside a price on its size."""
    keep = d.state.rule.retain
    if keep is None or keep.op == "const" and keep.info == 1:
        return [] if d.state.rule.through else [said(w, "retention", "all is kept")]
    if keep.op == "const" and keep.info == 0:
        return [said(w, "retention", "nothing is kept")]
    if d.state.rule.through:
        return []
    one = constant(1.0, keep)
    price = w.text(make("sub", make("div", one, keep), one), PRODUCT)
    times, x = r"\, " if w.latex else " * ", w.name("X")
    size = f"{price}{times}{squared(w, x)}"
    if not d.narrow(keep):
        size = total(w, f"{price}{times}{x}^2")
    sentence = "l2: {} is the {} of the least {}"
    kept = f"{w.text(keep, PRODUCT)}{times}{name}"
    return [said(w, "retention", sentence, kept, x, f"{squared(w, f'{x} - {name}')} + {size}")]


def ridge_rows(w: Writer, d: Derived) -> Rows:
    """What is quadratic in the state alone is a retention, and is run as one."""
    step = d.step("")
    try:
        ridge = None if d.gradient is None else shrinkage(d.gradient)
    except Underivable:
        return []
    if ridge is None or step is None or step.steps > 1 or step.momentum is not None:
        return []
    if d.state.form.kind != "matrix" or max(d.period, d.box.linearise or 1) > 1:
        return []
    shape = wide((step.rate.shape, ridge.shape))
    taken = d.tidy.of(make("mul", step.rate, ridge, shape=shape))
    one = constant(1.0, taken)
    left = make("sub", one, taken)
    if step.implicit:
        left = make("div", one, make("add", one, taken))
    text = "the ridge keeps {} of that"
    if d.state.rule.retain is None:
        text = "the ridge keeps {}"
    elif not d.state.rule.after_retain and not step.implicit:
        left, text = taken, "the ridge takes {} of it away"
    return [said(w, "retention", text, w.text(left))]


def squared(w: Writer, x: str) -> str:
    return rf"\left\|{x}\right\|^2" if w.latex else f"|{x}|^2"


def total(w: Writer, x: str) -> str:
    return rf"\operatorname{{sum}}({x})" if w.latex else f"sum({x})"


# ---- links ---------------------------------------------------------------------------------------


def link_rows(w: Writer, d: Derived, name: str) -> Rows:
    """`through`: the state is kept in the dual. `onto`: it is put in its place after each write."""
    rule, single = d.state.rule, d.state.form.single
    one, dual = name if single else w.name("W"), w.name("A")
    each = "" if single else "each array "
    rows: Rows = []
    for link in {link_text(w, link, dual): link for link in (rule.through or {}).values()}.values():
        text = f"{each}{{}} is {{}}, and {{}} is what is kept"
        rows.append(said(w, "through", text, one, link_text(w, link, dual), dual))
        rows += known_rows(w, d, "through", link, dual)
    for link in {link_text(w, link, one): link for link in (rule.onto or {}).values()}.values():
        text = f"after each write {each}{{}} becomes {{}}"
        rows.append(said(w, "onto", text, one, link_text(w, link, one)))
        rows += known_rows(w, d, "onto", link, one)
    return rows


def link_text(w: Writer, link: Lambda, name: str) -> str:
    inner = Writer(latex=w.latex)
    for t in link.body.walk():
        if t.op == "argument" and link.params and t.info == link.params[0]:
            inner.bound[id(t)] = name
    return inner.text(link.body)


def known_rows(w: Writer, d: Derived, label: str, link: Lambda, one: str) -> Rows:
    """What a link that has a name minimises."""
    kind, bound = named_link(d, link)
    x = w.name("X")
    log = rf"\log {x}" if w.latex else f"log({x})"
    keep = d.state.rule.retain
    if label == "onto":
        if kind == "soft threshold" and bound is not None:
            twice = w.text(d.tidy.of(mul(constant(2.0, bound), bound)), PRODUCT)
            price = f"{twice}{times(w)}{total(w, size_of(w, x))}"
            near = f"{squared(w, f'{x} - {one}')} + {price}"
            return [said(w, label, "that is the {} of the least {}", x, near)]
        if kind == "sphere":
            return [said(w, label, "that is the nearest on the sphere, row by row")]
        return []
    least = "the {} of the least {}: "
    dual = f"-{total(w, f'{one}{times(w)}{x}')}"
    if kind == "softmax":
        price = total(w, f"{x}{times(w)}{log}")
        rows = [said(w, label, least + "a row adds up to 1 (KL)", x, f"{dual} + {price}")]
        if keep is not None and d.narrow(keep):
            rest = d.tidy.of(sub(constant(1.0, keep), keep))
            near = rf"\operatorname{{KL}}({x}, \mathrm{{old}})" if w.latex else f"KL({x}, old)"
            cost = " + ".join(filter(None, [weighed(w, keep, near), weighed(w, rest, price)]))
            rows.append(said(w, label, "a step minimises {} beside rate times its gradient", cost))
        return rows
    if kind == "sigmoid":
        log_rest = rf"\log(1 - {x})" if w.latex else f"log(1 - {x})"
        price = total(w, f"{x}{times(w)}{log} + (1 - {x}){times(w)}{log_rest}")
        return [said(w, label, least + "between 0 and 1", x, f"{dual} + {price}")]
    if kind == "soft threshold" and bound is not None:
        price = f"{w.text(bound, PRODUCT)}{times(w)}{total(w, size_of(w, x))}"
        half = f"{squared(w, x)} / 2"
        return [said(w, label, least + "an elastic net", x, f"{dual} + {half} + {price}")]
    return []


def weighed(w: Writer, number: Term, text: str) -> str:
    """`0.1 * text`; nothing of what counts for nothing."""
    if is_number(number, 0):
        return ""
    return text if is_number(number, 1) else f"{w.text(number, PRODUCT)}{times(w)}{text}"


def times(w: Writer) -> str:
    return r"\, " if w.latex else " * "


def size_of(w: Writer, x: str) -> str:
    return rf"\left|{x}\right|" if w.latex else f"abs({x})"


def named_link(d: Derived, link: Lambda) -> tuple[str, Term | None]:
    """softmax, sigmoid, tanh, soft threshold (with its bound), sphere; "" for any other."""
    body, x = link_body(link, d.tidy)
    if x is None:
        return "", None
    if body.op in ("softmax", "sigmoid", "tanh") and body.args[0] is x:
        return body.op, None
    number, factors = d.tidy.factors(body)
    if number == 1 and len(factors) == 2 and all(p == 1 for _, p in factors):
        for (a, _), (b, _) in (factors, factors[::-1]):
            if a.op == "sign" and a.args[0] is x and b.op == "max":
                over, zero = b.args
                cut = over.op == "sub" and over.args[0].op == "abs" and over.args[0].args[0] is x
                if cut and zero.op == "const" and zero.info == 0 and not uses(over.args[1], x):
                    return "soft threshold", over.args[1]
    if is_sphere(factors, x):
        return "sphere", None
    return "", None


def is_sphere(factors: tuple[tuple[Term, float], ...], x: Term) -> bool:
    """x times what it is long no more and should be long, row by row."""
    whole = [t for t, p in factors if t is x and p == 1]
    columns = [t.args[0] for t, p in factors if t.op == "column" and p == 1]
    if len(whole) != 1 or len(columns) != 1 or len(factors) != 2 or columns[0].op != "div":
        return False
    above, below = columns[0].args
    return below.op == "length" and below.args[0] is x and not uses(above, x)


def steepest(d: Derived, link: Lambda) -> float | None:
    """How many times as far as two duals their states can be apart, at most: the largest slope of
    the link, whose derivative is symmetric and nowhere below 0.

    softmax: its Jacobian diag(p) - p p' has no eigenvalue above 1/2 (Gershgorin: 2 p (1 - p)).
    """
    kind, _ = named_link(d, link)
    known = {"softmax": 0.5, "sigmoid": 0.25, "tanh": 1.0, "soft threshold": 1.0}
    if kind in known:
        return known[kind]
    body, x = link_body(link, d.tidy)
    if x is None:
        return None
    try:
        found = bending(body, x, d.tidy)
    except (Curved, Underivable):
        return None
    if found.kind is not Kind.BENDS and found.kind is not Kind.NUMBER:
        return None
    if found.scale is None or found.scale.op != "const" or found.assumes:
        return None
    ends = [found.scale.info * s for s in (found.slopes.low, found.slopes.high)]
    return max(ends) if min(ends) >= 0 and max(ends) < inf else None


__all__ = ["link_text", "retention_rows", "steepest"]
