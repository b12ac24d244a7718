"""For which rates a step contracts: what two states of one memory differ by, before and after it.

Only what is proven is said (tests/test_explain_proofs.py tries each bound from both sides).
With D the difference and d = D k, a step of a matrix that multiplies is

    D <- a D - rate J d k'      so      d <- (a - s J) d,  s = rate |k|^2      (J = de/dy)

and what is across k is multiplied by a alone. With momentum (S, M) goes by a matrix of two by two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from ..backward import constant, make, neg, power
from ..derive import affine
from ..rules import Example
from ..show import PRODUCT, UNARY, Writer
from ..system import Term
from .bounds import Interval
from .derived import Derived, Step
from .lines import Row, Rows, said
from .retention import steepest
from .slopes import Jacobian, Kind, bare, linear
from .tidy import wide

LABEL = "stability"


class Unknown(Exception):
    """Why nothing is proven."""


@dataclass(frozen=True, eq=False)
class Contraction:
    """d <- (keep - s J) d, or keep (1 - s J) d with `after`; D <- keep D across k.

    strength  s, without the slopes of J
    slopes    J lies between them, times `scale`; both 1 where it is constant
    several   the pairs or ticks that are added up: "" for one
    """

    keep: Term
    strength: Term
    slopes: Interval
    scale: Term
    key: Term | None
    after: bool
    momentum: Term | None = None
    several: str = ""
    each: str = ""  # "for each output", where s is a vector
    assumes: tuple[Term, ...] = ()
    steps: int = 1
    implicit: bool = False

    @property
    def bends(self) -> bool:
        return self.slopes != Interval(1, 1)


# Gates are told apart by head and by channel, and need not have one shape to be multiplied.


def mul(a: Term, b: Term) -> Term:
    return make("mul", a, b, shape=wide((a.shape, b.shape)))


def div(a: Term, b: Term) -> Term:
    return make("div", a, b, shape=wide((a.shape, b.shape)))


def add(a: Term, b: Term) -> Term:
    return make("add", a, b, shape=wide((a.shape, b.shape)))


def sub(a: Term, b: Term) -> Term:
    return make("sub", a, b, shape=wide((a.shape, b.shape)))


def stability_rows(w: Writer, d: Derived) -> Rows:
    rule = d.state.rule
    if not rule.changes:
        return []
    if d.box.exact:
        return [said(w, LABEL, "solved anew at each read: no error is carried on")]
    try:
        return told(w, d)
    except Unknown as why:
        return [said(w, LABEL, f"not known: {why}"), *slope_of_link(w, d)]


def told(w: Writer, d: Derived) -> Rows:
    rule = d.state.rule
    if rule.set is not None:
        return of_set(w, d, rule.set)
    if rule.objective is not None and rule.uses_loss:
        raise Unknown("the loss depends on the whole model")
    if rule.objective is None and rule.write is None:
        return across(w, d, d.keep(None))
    if rule.write is not None and not d.moves(rule.write, rule.retain):
        return across(w, d, d.keep(None))
    if d.gradient is None:
        raise Unknown(d.why or "no gradient was derived")
    check_alone(d)
    if rule.write is not None:
        return of_given(w, d)
    found = contraction(d)
    if rule.through:
        return of_dual(w, d, found)
    rows = of_contraction(w, d, found)
    if rule.onto:
        return of_onto(w, d, rows)
    return rows


def of_set(w: Writer, d: Derived, new: Term) -> Rows:
    """A state that is a share of itself and something that does not read it."""
    term = d.tidy.of(new)
    named = {id(t): t for t in d.reads(term)}
    own = [t for t in named.values() if t.op == "state" and t.info.name == d.state.name]
    if not named:
        return [said(w, LABEL, "the state before is forgotten: nothing is carried on")]
    line = affine(term, own[0]) if len(named) == len(own) == 1 else None
    factor = None if line is None or line.factor is None else bare(d.tidy.of(line.factor))
    if factor is None or d.moves(factor) or not d.narrow(factor):
        raise Unknown("`set` gives the whole state, which is more than a share of the one before")
    return across(w, d, factor)


def check_alone(d: Derived) -> None:
    """Whether the state changes by itself, and what it is asked, kept and written with does not."""
    if d.network:
        raise Unknown("the error of a network is not convex in its weights")
    rule, learn = d.state.rule, d.learn
    settings = list(learn.settings.values()) if learn is not None else []
    if d.moves(rule.retain, *settings):
        raise Unknown("what is kept, or the rate, depends on the state itself")
    if d.moves(*(e.input for e in d.examples)):
        raise Unknown("what the memory is asked depends on the memory itself")


# ---- the contraction of a matrix -----------------------------------------------------------------


def contraction(d: Derived) -> Contraction:
    step = d.step("")
    if step is None:
        raise Unknown(f"`{d.learn.rule if d.learn else ''}` is not linear in the gradient")
    for e in d.examples:
        others = [t for t in d.reads(e.surprise) if t is not e.output]
        if others:
            raise Unknown(f"the error reads {told_names(others)} in another way too")
    if not d.narrow(step.rate):
        raise Unknown("a rate for each channel")
    if step.keep is not None and d.state.rule.after_retain:
        raise Unknown("a rule that forgets by itself, after the retention")
    keep, strength, slopes, assumes, several = terms(d, step)
    after, line = d.state.rule.after_retain, d.state.rule.retain
    if after and d.direct:  # a ridge is no part of what the error sees: (line - s J) is apart
        if line is not None and not d.narrow(line):
            raise Unknown("a retention for each channel, and an objective in the array itself")
        strength = strength if line is None else d.tidy.of(mul(line, strength))
        after = False
    if d.box.linearise is not None and d.box.linearise > 1:
        if step.momentum is not None or step.steps > 1:
            raise Unknown("momentum, or several steps, with gradients of the chunk's start")
        several = f"over the {d.box.linearise} tokens"
    if d.period > 1 and not d.state.rule.once:
        several = f"over the {d.period} ticks"
    if several and (step.momentum is not None or step.steps > 1 or step.implicit):
        raise Unknown("several pairs with momentum, several steps or an implicit one")
    vector = not d.narrow(strength)
    one = d.number(1.0)
    scale = next((j.scale for j in d.jacobians if not j.constant and j.scale is not None), one)
    return Contraction(
        keep, strength, slopes, d.tidy.of(scale), key_of(d), after,
        step.momentum, several, "for each output " if vector else "", assumes, step.steps,
        step.implicit,
    )  # fmt: skip


def told_names(terms: list[Term]) -> str:
    names = {t.info.handle.name if t.op == "product" else t.info.name for t in terms}
    return ", ".join(f"`{n}`" for n in sorted(names))


def key_of(d: Derived) -> Term | None:
    """What the memory is asked; None where it is a vector, which is asked nothing."""
    keys = [e.input for e in d.examples if e.input.op != "const"]
    return keys[0] if len(keys) == 1 else None


Parts = tuple[Term, Term, Interval, tuple[Term, ...], str]


def terms(d: Derived, step: Step) -> Parts:
    """What is kept, how much is taken away along the key, and between which slopes."""
    one = d.number(1.0)
    keep, pull = d.keep(step), d.number(0.0)
    assumes: tuple[Term, ...] = ()
    slopes, several = Interval(1, 1), ""
    for e, j in zip(d.examples, d.jacobians, strict=True):
        factor, slopes, own = slope(d, j, step)
        assumes += own
        squares = make("squares", e.input, shape=e.input.shape[:-1])
        size = one if e.input.op == "const" else squares
        amount = mul(mul(step.rate, bare_column(factor)), size)
        if len(e.input.shape) > len(d.state.per) + 1:
            several = "over the window"
            inner = mul(bare_column(factor), squares)
            amount = mul(step.rate, make("sum", inner, shape=(), info=None))
        pull = amount if pull.op == "const" and pull.info == 0 else add(pull, amount)
    if len(d.examples) > 1:
        if slopes != Interval(1, 1):
            raise Unknown("several calls, with an error that is not affine")
        several = "over the calls"
    for _, bar in d.direct:
        keep = shrunk(d, keep, step, bar)
    return d.tidy.of(keep), d.tidy.of(pull), slopes, assumes, several


def bare_column(term: Term) -> Term:
    return bare_column(term.args[0]) if term.op in ("column", "expand") else term


def slope(d: Derived, j: Jacobian, step: Step) -> tuple[Term, Interval, tuple[Term, ...]]:
    """The number that multiplies the difference, and the interval that multiplies that."""
    erase = step.erase
    if j.kind is Kind.NONE:
        return (d.number(0.0) if erase is None else erase), Interval(1, 1), ()
    if j.scale is None:
        raise Unknown("no bounds on the slope of the error are known")
    if erase is not None and j.constant:
        return add(j.scale, erase), Interval(1, 1), j.assumes
    if erase is not None:
        raise Unknown("an error that is not affine, beside what is erased")
    return j.scale, j.slopes, j.assumes


def shrunk(d: Derived, keep: Term, step: Step, bar: Term) -> Term:
    """An objective in the array itself shrinks it: `ridge * M^2 / 2` takes rate * ridge away."""
    arrays = [t for t in bar.walk() if t.op == "array"]
    if not arrays and not d.moves(bar):
        return keep  # a stream that is added to it
    if not arrays:
        raise Unknown("an objective in the array itself, times what the memory says")
    if step.implicit or step.steps > 1 or step.erase is not None or len(set(map(id, arrays))) > 1:
        raise Unknown("an objective in the array itself, with such a rule")
    line = affine(bar, arrays[0])
    factor = None if line is None or line.factor is None else bare(d.tidy.of(line.factor))
    if factor is None or factor.shape or d.moves(factor):
        raise Unknown("an objective in the array itself that is not one number times its square")
    taken = mul(step.rate, factor)
    if step.momentum is not None:
        raise Unknown("an objective in the array itself, with momentum")
    if d.state.rule.after_retain:
        return mul(keep, sub(constant(1.0, keep), taken))
    return sub(keep, taken)


# ---- what is said of it --------------------------------------------------------------------------


def of_contraction(w: Writer, d: Derived, c: Contraction) -> Rows:
    if is_zero(c.strength):
        if c.momentum is not None:
            return with_momentum(w, d, c)
        return across(w, d, c.keep)
    if c.slopes.low < 0:
        raise Unknown("the slope of the error may be below 0")
    if c.momentum is not None:
        return with_momentum(w, d, c)
    if c.implicit:
        return implicit(w, d, c)
    if c.several:
        return sums(w, d, c)
    if c.bends:
        return bent(w, d, c)
    return straight(w, d, c)


def is_zero(t: Term) -> bool:
    return t.op == "const" and t.info == 0


def is_one(t: Term) -> bool:
    return t.op == "const" and t.info == 1


def across(w: Writer, d: Derived, keep: Term, what: str = "states") -> Rows:
    """Where the write does not read the state."""
    if is_one(keep):
        return [said(w, LABEL, f"what two {what} differ by stays as it is")]
    each = channels(d, keep)
    first = said(w, LABEL, f"what two {what} differ by is multiplied by {{}}{each}", w.text(keep))
    if keep.op == "const":
        return [first]
    rows = [first, said(w, LABEL, "it shrinks if and only if {}", less(w, magnitude(w, keep), "1"))]
    return rows + guarantee(w, d, [keep], d.scope.interval(keep))


def channels(d: Derived, keep: Term) -> str:
    return ", channel by channel" if not d.narrow(keep) else ""


def magnitude(w: Writer, term: Term) -> str:
    inside = w.text(term)
    return rf"\left|{inside}\right|" if w.latex else f"|{inside}|"


def less(w: Writer, *parts: str, strictly: bool = True) -> str:
    sign = " < " if strictly else r" \le " if w.latex else " <= "
    return sign.join(parts)


def where_it_acts(w: Writer, c: Contraction) -> tuple[str, tuple[str, ...]]:
    if c.key is None:
        return "", ()
    return " along {}", (w.text(c.key),)


def along(d: Derived, c: Contraction) -> Term:
    """What the difference is multiplied by along the key."""
    one = constant(1.0, c.keep)
    if c.steps > 1:
        left = power(d.tidy.of(sub(one, c.strength)), c.steps)
        made = mul(c.keep, left) if c.after else add(sub(c.keep, one), left)
        return made if c.after else d.tidy.of(made)
    if c.after:
        return mul(c.keep, d.tidy.of(sub(one, c.strength)))
    return d.tidy.of(sub(c.keep, c.strength))


def straight(w: Writer, d: Derived, c: Contraction) -> Rows:
    """One pair, one slope."""
    if not d.narrow(c.keep):
        return by_channel(w, d, c)
    factor, s = along(d, c), w.text(c.strength, PRODUCT)
    place, key = where_it_acts(w, c)
    rest = "" if c.key is None else ", and by {} across it"
    more = () if c.key is None else (w.text(c.keep),)
    sentence = f"what two states differ by is multiplied {c.each}by {{}}{place}{rest}"
    rows = [said(w, LABEL, sentence, w.text(factor), *key, *more)]
    if is_one(c.keep):
        bound = less(w, "0", s, "2")
    elif c.after or c.steps > 1:
        bound = less(w, magnitude(w, factor), "1")
    else:
        one = constant(1.0, c.keep)
        low, high = (w.text(d.tidy.of(t)) for t in (sub(c.keep, one), add(c.keep, one)))
        bound = less(w, low, s, high)
    rows.append(said(w, LABEL, f"it shrinks{place} if and only if {{}}", *key, bound))
    a, x = d.scope.interval(c.keep), d.scope.interval(c.strength)
    inside = Interval(1, 1) + -x
    whole = a * inside if c.after else a + -x
    if c.steps > 1:
        whole = Interval() if not within(inside) else Interval(-1, 1) if c.after else Interval()
    return rows + guarantee(w, d, [c.strength, c.keep], whole | a)


def by_channel(w: Writer, d: Derived, c: Contraction) -> Rows:
    """A retention for each channel: sufficient bounds only."""
    if c.steps > 1 or c.each:
        raise Unknown("a retention for each channel, with such a rule")
    a, s = w.text(c.keep), w.text(c.strength, PRODUCT)
    key = w.text(c.key, UNARY) if c.key is not None else "1"
    outer = f"{key} {w.turned(key)}"
    diagonal = rf"\operatorname{{diag}}({a})" if w.latex else f"diag({a})"
    number, factors = d.tidy.factors(c.strength)
    lengths = [t for t, _ in factors if t.op == "squares"]
    share = d.tidy.built(number, tuple(f for f in factors if f[0] not in lengths), c.strength)
    part = outer if is_one(share) else f"{w.text(share, PRODUCT)}{times(w)}{outer}"
    matrix = f"{diagonal} (I - {part})" if c.after else f"{diagonal} - {part}"
    rows = [said(w, LABEL, "what two states differ by is multiplied by {}", matrix)]
    if c.after:
        bound = less(w, "0", s, "2", strictly=False)
        sentence = "it does not grow if {} in every channel and {}"
    else:
        least = r"\min" if w.latex else "min"
        bound = less(w, "0", s, f"1 + {least}({a})", strictly=False)
        sentence = "it does not grow if {} in every channel and {}"
    rows.append(said(w, LABEL, sentence, less(w, magnitude(w, c.keep), "1", strictly=False), bound))
    k, x = d.scope.interval(c.keep), d.scope.interval(c.strength)
    whole = k * (Interval(1, 1) + -x) if c.after else k + -x
    return rows + guarantee(w, d, [c.strength, c.keep], whole | k)


def times(w: Writer) -> str:
    return r"\, " if w.latex else " * "


def scaled(w: Writer, c: Contraction, slope: float) -> str:
    text = w.text(c.strength, PRODUCT)
    if slope == 1:
        return text
    return f"{w.number(slope)[0]}{times(w)}{text}"


def bent(w: Writer, d: Derived, c: Contraction) -> Rows:
    """The slope lies between two numbers: the mean value theorem, entry by entry."""
    if not d.narrow(c.keep) or c.steps > 1:
        raise Unknown("an error that is not affine, with such a rule")
    low, high = (w.number(x)[0] for x in (c.slopes.low, c.slopes.high))
    place, key = where_it_acts(w, c)
    given = [f"{w.text(t)} > 0" for t in c.assumes]
    if_given = f", for {' and '.join('{}' for _ in given)}" if given else ""
    scale = [] if is_one(c.scale) else [w.text(c.scale)]
    of_scale = " times {}" * len(scale)
    free = replace(c, slopes=Interval(1, 1))
    if c.slopes.high == inf:
        sentence = f"the slope of the error is at least {{}}{of_scale}{if_given}"
        sentence += ", and no upper bound is known"
        lead = f"where it is at most {{}}, what two states differ by does not grow{place} if {{}}"
        name = w.name("c")
        bounds = bound_of(w, d, free, f"{name}{times(w)}{w.text(c.strength, PRODUCT)}")
        lead += " and {}" * (len(bounds) - 1)
        first = said(w, LABEL, sentence, low, *scale, *given)
        return [first, said(w, LABEL, lead, name, *key, *bounds)]
    sentence = f"the slope of the error is between {{}} and {{}}{of_scale}{if_given}"
    bounds = bound_of(w, d, free, scaled(w, c, c.slopes.high))
    each = f", {c.each.strip()}," if c.each else ","
    lead = f"what two states differ by does not grow{place}{each} whatever the errors, if {{}}"
    lead += " and {}" * (len(bounds) - 1)
    first = said(w, LABEL, sentence, low, high, *scale, *given)
    rows = [first, said(w, LABEL, lead, *key, *bounds)]
    a, x = d.scope.interval(c.keep), d.scope.interval(c.strength) * c.slopes
    whole = a * (Interval(1, 1) + -x) if c.after else a + -x
    return rows + guarantee(w, d, [c.strength, c.keep], whole | a)


def bound_of(w: Writer, d: Derived, c: Contraction, s: str) -> tuple[str, ...]:
    """How large s may be, and what may be kept."""
    kept = less(w, magnitude(w, c.keep), "1", strictly=False)
    top = "2" if c.after else w.text(d.tidy.of(add(constant(1.0, c.keep), c.keep)))
    bound = less(w, "0", s, top, strictly=False)
    return (bound,) if is_one(c.keep) else (bound, kept)


def sums(w: Writer, d: Derived, c: Contraction) -> Rows:
    """Several pairs at one state: their strengths add up at worst."""
    if not d.narrow(c.keep):
        raise Unknown("a retention for each channel, with several pairs")
    if c.slopes.high == inf:
        raise Unknown("no upper bound of the slope of the error is known")
    ticks = c.several in ("over the window", "over the calls")
    frozen = c.several.endswith("tokens")
    if c.after and not ticks:
        raise Unknown("`after retain` with several ticks")
    s = scaled(w, c, c.slopes.high)
    total = s if ticks else added(w, s)
    one = constant(1.0, c.keep)
    top = w.text(d.tidy.of(add(one, c.keep)))
    top = "2" if c.after or is_one(c.keep) else "1" if frozen else top
    chunk = "over a chunk " if frozen else ""
    lead = f"{chunk}what two states differ by does not grow if {{}}"
    kept = () if is_one(c.keep) else (less(w, "0", w.text(c.keep), "1", strictly=False),)
    lead += " and {}" * len(kept)
    rows = [said(w, LABEL, lead, less(w, total, top, strictly=False), *kept)]
    return [*rows, said(w, LABEL, f"(added up {c.several}, no pair with less than 0)")]


def added(w: Writer, s: str) -> str:
    return rf"\operatorname{{sum}}({s})" if w.latex else f"sum({s})"


def implicit(w: Writer, d: Derived, c: Contraction) -> Rows:
    """The nearest point of a convex function: two of them are no further apart than what they are
    nearest to.
    """
    if c.bends or not d.narrow(c.keep):
        text = "what two states differ by does not grow for any {}: the objective is convex"
        rows = [said(w, LABEL, text, less(w, "0", w.text(c.strength, PRODUCT)))]
        kept = less(w, magnitude(w, c.keep), "1", strictly=False)
        return rows if is_one(c.keep) else [*rows, said(w, LABEL, "(for {})", kept)]
    place, key = where_it_acts(w, c)
    one = constant(1.0, c.keep)
    factor = div(c.keep, d.tidy.of(add(one, c.strength)))
    sentence = f"what two states differ by is multiplied {c.each}by {{}}{place}"
    sentence += ", and by {} across it"
    first = said(w, LABEL, sentence, w.text(factor), *key, w.text(c.keep))
    positive = less(w, "0", w.text(c.strength, PRODUCT))
    kept = "" if is_one(c.keep) else " and {}"
    more = () if is_one(c.keep) else (less(w, magnitude(w, c.keep), "1", strictly=False),)
    sentence = f"it shrinks{place} for any {{}}{kept}: the step is implicit"
    second = said(w, LABEL, sentence, *key, positive, *more)
    a, x = d.scope.interval(c.keep), d.scope.interval(c.strength)
    whole = a if x.low >= 0 else Interval()
    return [first, second, *guarantee(w, d, [c.strength, c.keep], whole)]


def with_momentum(w: Writer, d: Derived, c: Contraction) -> Rows:
    """(S k, M k) goes by a matrix of two by two: both its eigenvalues are inside the unit circle if
    and only if |det| < 1 and |trace| < 1 + det (Jury).
    """
    mu = c.momentum
    assert mu is not None
    narrow = all(d.narrow(t) for t in (c.keep, mu))
    if not narrow or c.steps > 1:
        raise Unknown("momentum with a retention for each channel, or with several steps")
    one = constant(1.0, mu)
    a, m = w.text(c.keep), w.text(mu)
    if is_zero(c.strength):
        sentence = "what two states differ by goes with the powers of {} and {}"
        small = [less(w, magnitude(w, t), "1") for t in (c.keep, mu)]
        shrinks = said(w, LABEL, "it shrinks if and only if {} and {}", *small)
        return [said(w, LABEL, sentence, a, m), shrinks]
    s = d.tidy.of(mul(c.keep, c.strength)) if c.after else c.strength
    low = mul(neg(d.tidy.of(sub(one, c.keep))), d.tidy.of(sub(one, mu)))
    low = d.number(0.0) if is_one(c.keep) else low
    high = mul(d.tidy.of(add(one, c.keep)), d.tidy.of(add(one, mu)))
    if is_one(c.keep):
        high = d.tidy.of(high)
    st = w.text(s, PRODUCT)
    if c.bends:
        name = w.name("c")
        bound = less(w, w.text(low), f"{name}{times(w)}{st}", w.text(high))
        first = said(w, LABEL, "not known for every error: with momentum, its slope may change")
        text = "where the slope stays at {} what two states differ by shrinks if and only if {}"
        return [first, said(w, LABEL, text, name, bound)]
    matrix = two_by_two(w, w.text(d.tidy.of(sub(c.keep, s))), m, w.text(d.tidy.of(neg(s))), m)
    place, key = where_it_acts(w, c)
    sentence = (
        f"with the same key and gates at every token, what two pairs (M, S) differ by{place} "
        "is multiplied by {}"
    )
    rows = [said(w, LABEL, sentence, *key, matrix)]
    det = d.tidy.of(mul(c.keep, mu))
    bound = less(w, w.text(low), st, w.text(high))
    rows.append(
        said(
            w, LABEL, "it shrinks if and only if {} and {}", less(w, magnitude(w, det), "1"), bound
        )
    )
    return rows + momentum_guarantee(w, d, c.keep, mu, s)


def two_by_two(w: Writer, a: str, b: str, c: str, e: str) -> str:
    if w.latex:
        return rf"\begin{{pmatrix}} {a} & {b} \\ {c} & {e} \end{{pmatrix}}"
    return f"[[{a}, {b}], [{c}, {e}]]"


def momentum_guarantee(w: Writer, d: Derived, keep: Term, mu: Term, s: Term) -> Rows:
    a, m, x = (d.scope.interval(t) for t in (keep, mu, s))
    fine = a.low >= 0 and m.low >= 0 and a.high <= 1 and m.high <= 1 and x.low >= 0
    if not fine or x.high > (1 + a.low) * (1 + m.low):
        return guarantee(w, d, [s, keep, mu], Interval())
    # Matrices of different gates do not commute: where each shrinks a product of them may grow.
    end = "within these bounds; with gates that change from token to token it may grow all the same"
    return guarantee(w, d, [s, keep, mu], Interval(0, 1), end)


# ---- duals, what is put in its place, given writes -----------------------------------------------


def of_dual(w: Writer, d: Derived, c: Contraction) -> Rows:
    """|A - B| <- at most (|a| + s J L) |A - B|, with L the largest slope of the link."""
    links = list((d.state.rule.through or {}).values())
    largest = steepest(d, links[0]) if len(links) == 1 else None
    if largest is None:
        raise Unknown("no bound on the slope of the link is known, which multiplies the error's")
    plain = not (c.after or c.momentum or c.several or c.implicit or c.steps > 1 or c.each)
    if not plain or c.slopes.high == inf or not d.narrow(c.keep):
        raise Unknown(f"the link multiplies the slope of the error by at most {largest:g}")
    if c.slopes.low < 0:
        raise Unknown("the slope of the error may be below 0")
    text = "two states are at most {} times as far apart as their duals (the link's slope)"
    rows = [said(w, LABEL, text, w.number(largest)[0])]
    if is_zero(c.strength):
        return rows + across(w, d, c.keep, "duals")
    bound = scaled(w, c, largest * c.slopes.high)
    least = f"{w.text(c.keep)} - {bound}"
    text = "the derivative of a step in the dual has all its eigenvalues between {} and {}"
    rows.append(said(w, LABEL, text, least, w.text(c.keep)))
    if not is_one(c.keep):
        total = f"{magnitude(w, c.keep)} + {bound}"
        rows.append(said(w, LABEL, "what two duals differ by shrinks if {}", less(w, total, "1")))
    a, x = d.scope.interval(c.keep), d.scope.interval(c.strength)
    top = a.size + x.size * largest * c.slopes.high
    return rows + guarantee(w, d, [c.strength, c.keep], Interval(0, top))


def slope_of_link(w: Writer, d: Derived) -> Rows:
    """Beside what is not known: the one number that is."""
    links = list((d.state.rule.through or {}).values())
    found = {steepest(d, link) for link in links}
    if len(found) != 1 or None in found:
        return []
    text = "the link multiplies a difference of two duals by at most {}"
    return [said(w, LABEL, text, w.number(found.pop() or 0.0)[0])]


def of_onto(w: Writer, d: Derived, rows: Rows) -> Rows:
    links = list((d.state.rule.onto or {}).values())
    largest = steepest(d, links[0]) if len(links) == 1 else None
    if largest is None or largest > 1:
        raise Unknown("what puts the state in its place may take two states apart")
    text = "(before it is put in its place, which takes no two states apart)"
    return [*rows, said(w, LABEL, text)]


def of_given(w: Writer, d: Derived) -> Rows:
    """M <- a M + (v - f M p) k': a matrix of one direction."""
    rule = d.state.rule
    reading = [(e, p) for e in d.examples for p in products(d, e)]
    if not reading:
        return across(w, d, d.keep(None))
    if len(reading) > 1 or any(t.op != "product" for t in d.reads(reading[0][0].surprise)):
        raise Unknown("the write reads the state more than once")
    ((e, product),) = reading
    line = affine(e.surprise, product)
    factor = None if line is None or line.factor is None else bare(d.tidy.of(line.factor))
    if factor is None or factor.shape or not linear(e.surprise, product):
        raise Unknown("the write is no outer product with one number before what it reads")
    if d.moves(product.args[0]):
        raise Unknown("what the memory is asked depends on the memory itself")
    probe, key = product.args[0], e.input
    keep = d.keep(None)
    a, p, k = w.text(keep), w.text(probe, UNARY), w.text(key, UNARY)
    part = f"{p} {w.turned(k if len(k) == 1 or k.startswith('(') else w.text(key, 5))}"
    part = part if is_one(factor) else f"{w.text(factor, PRODUCT)}{times(w)}{part}"
    met = make("dot", probe, key, shape=())
    met = make("squares", key, shape=()) if probe is key else met
    pull = d.tidy.of(mul(factor, met))
    if not d.narrow(keep):
        diagonal = rf"\operatorname{{diag}}({a})" if w.latex else f"diag({a})"
        matrix = f"{diagonal} (I - {part})" if rule.after_retain else f"{diagonal} - {part}"
        rows = [said(w, LABEL, "what two states differ by is multiplied by {}", matrix)]
        return [*rows, said(w, LABEL, "for which gates that shrinks is not known")]
    one = constant(1.0, keep)
    inner = d.tidy.of(sub(one, pull) if rule.after_retain else sub(keep, pull))
    value = mul(keep, inner) if rule.after_retain else inner
    whole = f"{a}{times(w)}I - {part}"
    if is_one(keep) or rule.after_retain:
        whole = f"I - {part}" if is_one(keep) else f"{a} (I - {part})"
    rows = [said(w, LABEL, "what two states differ by is multiplied by {}", whole)]
    rows.append(said(w, LABEL, "its eigenvalues are {} and, once, {}", a, w.text(value)))
    if is_one(keep):
        bound = less(w, "0", w.text(pull, PRODUCT), "2")
        rows.append(said(w, LABEL, "the second is inside the unit circle if and only if {}", bound))
    else:
        bounds = [less(w, magnitude(w, t), "1") for t in (keep, value)]
        text = "with the same key and gates at every token it shrinks if and only if {} and {}"
        rows.append(said(w, LABEL, text, *bounds))
    return rows


def products(d: Derived, e: Example) -> list[Term]:
    return list({id(t): t for t in d.reads(e.surprise)}.values())


# ---- what the spec's own gates guarantee ---------------------------------------------------------


def within(x: Interval) -> bool:
    return x.low >= -1 and x.high <= 1


def guarantee(
    w: Writer, d: Derived, gates: list[Term], whole: Interval, fine: str = "it never grows"
) -> Rows:
    """The ranges of the gates as they are made in this system, and what follows."""
    if d.system is None:
        return []
    told, values = [], []
    for gate in gates:
        found = d.scope.interval(gate)
        if gate.op == "const" or not found.known:
            continue
        told.append(f"{{}} is {range_text(found)}")
        values.append(w.text(gate, PRODUCT))
    if not told:
        return [] if not within(whole) else [said(w, LABEL, f"here {fine}")]
    end = fine if within(whole) else "that does not keep it from growing"
    return [said(w, LABEL, f"here {' and '.join(told)}: {end}", *values)]


def range_text(x: Interval) -> str:
    if x.high == inf:
        return f"at least {x.low:.4g}"
    if x.low == -inf:
        return f"at most {x.high:.4g}"
    return f"{x.low:.4g}" if x.low == x.high else f"between {x.low:.4g} and {x.high:.4g}"


__all__ = ["Row", "stability_rows"]
