"""STAGE: system -> rules. Gradients by our own reverse mode over terms, and optimizers in linear
form.

The rules of differentiation are in `backward.py`'s table; every one is tested against
`torch.func.grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from .backward import VJP, Underivable, add, column, constant, div, make, mul, neg, power, sum_to
from .rules import Affine, Example, Gradient, LinearRule, Product
from .system import Box, Form, Handle, State, Term


def gradient(box: Box, state: State) -> Gradient:
    """The gradient of the state's objective with respect to the state as the objective names it
    (2.8.3).
    """
    assert state.rule.objective is not None
    value = written_out(state.rule.objective, box, state)
    examples, direct = reverse(value)
    return Gradient(state.name, tuple(examples), value, tuple(("", t) for t in direct))


def given_write(box: Box, state: State) -> Gradient:
    """The same for `write e`: e as a sum of outer products, one rate of 1 (2.9.5)."""
    assert state.rule.write is not None
    value = written_out(state.rule.write, box, state)
    return Gradient(
        state.name, tuple(Example("", b, neg(a), b) for a, b in outer_products(value)), value
    )


def outer_products(term: Term) -> list[tuple[Term, Term]]:
    """A matrix as outer products: pairs of a column and a row, or of as many of each as they have
    rows.
    """
    match term.op:
        case "outer":
            return [(term.args[0], term.args[1])]
        case "matmul" if term.args[0].op == "transpose":
            return [(term.args[0].args[0], term.args[1])]
        case "add" | "sub":
            a, b = (outer_products(x) for x in term.args)
            return [*a, *((neg(c), r) for c, r in b)] if term.op == "sub" else [*a, *b]
        case "neg":
            return [(neg(c), r) for c, r in outer_products(term.args[0])]
        case "mul" | "div":
            for whole, other in ((0, 1), (1, 0)) if term.op == "mul" else ((0, 1),):
                scale, matrix = term.args[other], term.args[whole]
                narrow = scale.shape == matrix.shape[:-2] or scale.op == "const"
                if narrow and len(matrix.shape) > 1:
                    pairs = outer_products(matrix)
                    wide = column(scale) if scale.shape else scale
                    return [((mul if term.op == "mul" else div)(c, wide), r) for c, r in pairs]
    raise Underivable("a write that is no sum of outer products")


# ---- products written out -----------------------------------------------------------------------


def written_out(root: Term, box: Box, state: State) -> Term:
    """The same term with each call of the state replaced by its products."""
    done: dict[int, Term] = {}
    known: dict[object, Term] = {}

    def visit(term: Term) -> Term:
        if id(term) in done:
            return done[id(term)]
        if term.op == "apply" and is_own(term.info, box, state):
            x = visit(term.args[0])
            new = known.get(("own", id(x))) or application(term.info, x, term)
            known["own", id(x)] = new
        elif term.op == "state" and is_own(term.info, box, state):
            new = known.setdefault("array", as_array(term, state))
        else:
            args = tuple(visit(a) for a in term.args)
            same = all(a is b for a, b in zip(args, term.args, strict=True))
            said = term if term.op == "stop" else term.info  # a constant is shown as it was written
            new = term if same else Term(term.op, args, term.shape, said, term.form, term.span)
        new = alike(squared(new), known)
        done[id(term)] = new
        return new

    return visit(root)


def as_array(term: Term, state: State) -> Term:
    """A state that is named and not called: a vector is what a matrix of one column says of 1."""
    if term.info.array is not None:
        raise Underivable(f"a network made of `{state.name}` has no products")
    if state.form.kind != "vector":
        return Term("array", (), term.shape, term.info, None, term.span)
    one = Term("const", (), (1,), 1.0, None, term.span)
    product = Product(term.info, state.form.arrays[0])
    return Term("product", (one,), term.shape, product, None, term.span)


def squared(term: Term) -> Term:
    """`length(x)^2` is the sum of squares: no root is taken (2.5.2)."""
    match term:
        case Term(op="pow", args=(Term(op="length", info=2, args=(x,)), Term(op="const", info=2))):
            squares = Term("pow", (x, term.args[1]), x.shape, None, None, term.span)
            return Term("sum", (squares,), term.shape, 1, None, term.span)
    return term


def alike(term: Term, known: dict[object, Term]) -> Term:
    """The first term that says the same: `M(k)` written twice is one call, with one gradient."""
    if not isinstance(term.info, int | float | str | tuple | Handle | None):
        return term
    args = tuple(id(a) for a in term.args)
    return known.setdefault((term.op, type(term.info), term.info, args, term.shape), term)


def is_own(handle: Handle, box: Box, state: State) -> bool:
    return handle.box is box and handle.name == state.name


def application(handle: Handle, x: Term, at: Term) -> Term:
    """`M(x)` as products (2.3.2): an mlp has an activation after each layer but the last."""
    return apply_form(handle, handle.state.form, x, at)


def apply_form(handle: Handle, form: Form, x: Term, at: Term) -> Term:
    arrays = {a.name: a for a in form.arrays}

    def product(name: str, v: Term) -> Term:
        array = arrays[name]
        return Term(
            "product", (v,), (*v.shape[:-1], array.shape[0]), Product(handle, array), None, at.span
        )

    match form.kind:
        case "matrix":
            return product("", x)
        case "mlp":
            y = x
            for i in range(1, len(form.sizes)):
                y = product(f"W{i}", y)
                if i < len(form.sizes) - 1:
                    y = Term(form.act, (y,), y.shape, None, None, at.span)
            return y
        case "gated_mlp":
            gate = product("W1", x)
            h = Term("silu", (gate,), gate.shape, None, None, at.span)
            return product("W2", Term("mul", (h, product("W3", x)), h.shape, None, None, at.span))
        case "residual" | "layernorm":
            assert form.inner is not None
            y = apply_form(handle, form.inner, x, at)
            if form.kind == "layernorm":
                return Term("layer_norm", (y,), y.shape, None, None, at.span)
            return Term("add", (x, y), y.shape, None, None, at.span)
    raise Underivable(f"a {form.kind} has no products")


# ---- reverse mode
# -----------------------------------------------------------------------------------


def reverse(root: Term) -> tuple[list[Example], list[Term]]:
    """Cotangents from the objective down to every product, in the order of the products; and what
    reaches the state where it is an array.
    """
    order = topological(root)
    live = depends(order)
    cotangents: dict[int, Term] = {id(root): constant(1.0, root)}
    examples: list[Example] = []
    direct: list[Term] = []
    for term in reversed(order):
        bar = cotangents.get(id(term))
        if bar is None or id(term) not in live or term.op == "stop":
            continue
        if bar.shape != term.shape and term.op in ("array", "product"):
            bar = make("expand", bar, shape=term.shape)  # one number for all entries
        if term.op == "array":
            direct.append(bar)
            continue
        if term.op == "product":
            examples.append(Example(term.info.array.name, term.args[0], bar, term))
            if id(term.args[0]) in live:
                back = Term("product_back", (bar,), term.args[0].shape, term.info, None, term.span)
                accumulate(cotangents, term.args[0], back)
            continue
        parts = vjp(term, bar)
        for arg, part in zip(term.args, parts, strict=True):
            if part is not None and id(arg) in live:
                accumulate(cotangents, arg, sum_to(part, arg.shape))
    return list(reversed(examples)), direct


def vjp(term: Term, bar: Term) -> tuple[Term | None, ...]:
    rule = VJP.get(term.op)
    if rule is None:
        raise Underivable(f"no rule gives the derivative of `{term.op}`")
    return rule(term, bar)


def accumulate(cotangents: dict[int, Term], arg: Term, part: Term) -> None:
    old = cotangents.get(id(arg))
    cotangents[id(arg)] = part if old is None else add(old, part)


def topological(root: Term) -> list[Term]:
    """Arguments before what uses them."""
    order: list[Term] = []
    seen: set[int] = set()
    stack: list[tuple[Term, bool]] = [(root, False)]
    while stack:
        term, ready = stack.pop()
        if ready:
            order.append(term)
        elif id(term) not in seen:
            seen.add(id(term))
            stack.append((term, True))
            if term.op != "stop":
                stack.extend((a, False) for a in reversed(term.args))
    return order


def depends(order: list[Term]) -> set[int]:
    """The terms that depend on the state."""
    live: set[int] = set()
    for term in order:
        if term.op in ("product", "array") or (
            term.op != "stop" and any(id(a) in live for a in term.args)
        ):
            live.add(id(term))
    return live


# ---- affine in one term
# -----------------------------------------------------------------------------


def affine(term: Term, y: Term) -> Affine | None:
    """`term` as factor * y + rest, or None if it is not affine in y (memory-family.md B2)."""
    if term is y:
        return Affine(constant(1.0, term), None)
    if not any(t is y for t in term.walk()):
        return Affine(None, term)
    parts = [affine(a, y) for a in term.args]
    if any(p is None for p in parts):
        return None
    found = [p for p in parts if p is not None]
    match term.op:
        case "neg":
            return scaled(found[0], neg)
        case "add" | "sub":
            return combined(term, found)
        case "mul":
            return times(term, found)
        case "div" if found[1].factor is None:
            return scaled(found[0], lambda t: div(t, term.args[1]))
        case "pow" if term.args[1].op == "const" and term.args[1].info == 1:
            return found[0]
    return None


def scaled(part: Affine, f: Callable[[Term], Term]) -> Affine:
    return Affine(
        None if part.factor is None else f(part.factor), None if part.rest is None else f(part.rest)
    )


def combined(term: Term, parts: list[Affine]) -> Affine:
    a, b = parts
    if term.op == "sub":
        b = scaled(b, neg)
    return Affine(added(a.factor, b.factor), added(a.rest, b.rest))


def added(a: Term | None, b: Term | None) -> Term | None:
    return b if a is None else a if b is None else add(a, b)


def times(term: Term, parts: list[Affine]) -> Affine | None:
    if parts[0].factor is not None and parts[1].factor is not None:
        return None
    which = 0 if parts[0].factor is not None else 1
    other = term.args[1 - which]
    return scaled(parts[which], lambda t: mul(t, other))


def implicit_step(example: Example, rate: Term, ridge: Term | None = None) -> Term | None:
    """The surprise after the step that minimises objective + |M - kept|^2 / (2 rate), from the one
    at the kept state, or None where the objective is not quadratic (memory-family.md B2.5).

    With s = f y + r and y = M x: y_new = y - rate s_new |x|^2, so s_new = s / (1 + rate f |x|^2).
    With a ridge l, of gradient l M, and g = 1 + rate l, M_new = (M - rate s_new x') / g with
    s_new = (s + rate l r) / (g + rate f |x|^2), and what comes of it is s_new / g.
    """
    line = affine(example.surprise, example.output)
    if line is None or len(example.input.shape) != len(example.surprise.shape):
        return None
    x, one, surprise = example.input, constant(1.0, example.input), example.surprise
    taken = None if ridge is None else mul(rate, ridge)
    whole = one if taken is None else add(one, taken)
    if line.factor is None:
        return surprise if taken is None else div(surprise, whole)
    squares = make("sum", power(x, 2), shape=x.shape[:-1], info=1)
    met = mul(rate, squares)
    below = add(whole, mul(column(met) if met.shape else met, line.factor))
    if taken is None:
        return div(surprise, below)
    above = surprise if line.rest is None else add(surprise, mul(taken, line.rest))
    return div(above, mul(whole, below))


def turned_read(term: Term, box: Box | None) -> bool:
    """Whether it is `x @ M`, M' x, of one of the box's matrices."""
    match term:
        case Term(op="matmul", args=(x, Term(op="state", info=handle))):
            matrix = handle.state.form.kind == "matrix" and not handle.state.per
            return handle.box is box and matrix and len(x.shape) == 1
    return False


# ---- objectives in the state's own size
# ---------------------------------------------------------------------------------


def shrinkage(found: Gradient) -> Term | None:
    """f of a gradient `.. + f * M`, where part of the objective is quadratic in M alone: a ridge,
    `sum(M^2)`. A step of `rate` takes the fraction `rate f` of M away, which is a retention.
    One number, or one an input channel; None where no such part is.
    """
    total: Term | None = None
    for _, bar in found.direct:
        array = next((t for t in bar.walk() if t.op == "array"), None)
        line = None if array is None else affine(bar, array)
        factor = None if line is None or line.rest is not None else line.factor
        if factor is None or any(t.op in ("product", "array") for t in factor.walk()):
            raise Underivable("an objective of its numbers that is more than the sum of squares")
        factor = unexpanded(factor)
        if len(factor.shape) > 1:
            raise Underivable("a ridge of a number for each entry, or for each output")
        total = added(total, factor)
    return total


def unexpanded(term: Term) -> Term:
    """The same in the least shape that broadcasting makes it of."""
    if term.op == "expand":
        return unexpanded(term.args[0])
    if term.op in ("add", "sub", "mul", "div"):
        a, b = map(unexpanded, term.args)
        return mul(a, b) if term.op == "mul" else make(term.op, a, b)
    return neg(unexpanded(term.args[0])) if term.op == "neg" else term


def before_fading(term: Term, keep: Term, per: int, arrays: Collection[str]) -> Term:
    """A term of the state as it is kept, in what the state said before: (keep M) x = keep (M x),
    or M (keep * x) where keep is one number a channel; of its arrays of these names. `per`: how
    many axes of heads come first.
    """
    done: dict[int, Term] = {}
    channels = keep.shape[per:] not in ((), (1,))
    number = column(keep) if len(keep.shape) == per > 0 else keep

    def visit(t: Term) -> Term:
        if id(t) not in done:
            done[id(t)] = visited(t)
        return done[id(t)]

    def visited(t: Term) -> Term:
        args = tuple(map(visit, t.args))
        own = t.op.startswith("product") and t.info.array.name in arrays
        if own and channels and t.op == "product":
            args = (mul(keep, args[0]),)
        same = all(a is b for a, b in zip(args, t.args, strict=True))
        made = t if same else Term(t.op, args, t.shape, t.info, t.form, t.span)
        if own and (not channels or t.op == "product_back"):
            return mul(number, made)
        return made

    return visit(term)


# ---- optimizers in linear form
# ------------------------------------------------------------------------


def linear_rule(rule: Box) -> LinearRule | None:
    """The optimizer as `S = momentum S - rate (grad + erase W x x')`, or None where it is not of
    that form.
    """
    if rule.levels or rule.lines or rule.write is None or len(rule.states) > 1:
        return None
    if not rule.states:
        return from_write(rule, rule.write)
    memory = rule.states[0]
    inner = memory_rule(rule, memory)
    if inner is None or not is_state(rule.write, memory.name):
        return None
    return LinearRule(
        inner.rate,
        memory.rule.retain or constant(1.0, rule.write),
        inner.erase,
        rule.retain,
        memory.name,
    )


def is_state(term: Term, name: str) -> bool:
    return term.op == "state" and term.info.name == name


def memory_rule(rule: Box, memory: State) -> LinearRule | None:
    """What a memory of gradients adds at each firing: one gradient step on an objective linear in
    it.
    """
    objective = memory.rule.objective
    learn = memory.rule.learn.get("")
    if (
        objective is None
        or learn is None
        or learn.streams
        or memory.rule.through
        or memory.rule.onto
        or memory.form.kind != "like"
    ):
        return None
    step = linear_rule(next(iter(learn.optimizers.values()))) if learn.optimizers else None
    if step is None or step.momentum is not None or step.erase is not None or step.keep is not None:
        return None
    slope = linear_slope(objective, memory.name)
    if slope is None:
        return None
    parts = grad_and_erasure(slope)
    if parts is None:
        return None
    factor, erase = parts
    return LinearRule(mul(substitute(step.rate, learn.settings), factor), erase=erase)


def linear_slope(objective: Term, name: str) -> Term | None:
    """g where the objective is `c sum(m * g)`."""
    match objective.op:
        case "neg":
            inner = linear_slope(objective.args[0], name)
            return neg(inner) if inner is not None else None
        case "mul":
            for i in (0, 1):
                if not any(is_state(t, name) for t in objective.args[i].walk()):
                    inner = linear_slope(objective.args[1 - i], name)
                    return mul(objective.args[i], inner) if inner is not None else None
        case "sum" if objective.args[0].op == "mul":
            a, b = objective.args[0].args
            if is_state(a, name) or is_state(b, name):
                other = b if is_state(a, name) else a
                return other if not any(is_state(t, name) for t in other.walk()) else None
    return None


def substitute(term: Term, settings: Mapping[str, Term]) -> Term:
    """A rule's setting, as the line that uses the rule gives it: shapes are those of the line."""
    if term.op == "input":
        return settings.get(term.info, term)
    if not term.args:
        return term
    args = tuple(substitute(a, settings) for a in term.args)
    if term.op == "neg":
        return neg(args[0])
    if term.op == "mul":
        return mul(*args)
    return make(term.op, *args, info=term.info)


def from_write(rule: Box, write: Term) -> LinearRule | None:
    """`-rate * grad`, or with `weight @ (input' @ input)` beside it, as DGD has it ((57), (88))."""
    parts = grad_and_erasure(write)
    return LinearRule(neg(parts[0]), erase=parts[1], keep=rule.retain) if parts else None


def grad_and_erasure(term: Term) -> tuple[Term, Term | None] | None:
    """(f, e) of `f * (grad + e * (weight @ (input' @ input)))`; e is None without that part."""
    grad = next((t for t in term.walk() if t.op == "input" and t.info == "grad"), None)
    gram = next((t for t in term.walk() if is_erasure(t)), None)
    whole = affine(term, grad) if grad is not None else None
    if whole is None or whole.factor is None:
        return None
    if gram is None:
        return (whole.factor, None) if whole.rest is None else None
    rest = affine(whole.rest, gram) if whole.rest is not None else None
    if rest is None or rest.factor is None or rest.rest is not None:
        return None
    if same_term(rest.factor, whole.factor):
        return whole.factor, constant(1.0, term)
    return whole.factor, div(rest.factor, whole.factor)


def is_erasure(term: Term) -> bool:
    """`weight @ (transpose(input) @ input)`."""
    match term:
        case Term(
            op="matmul",
            args=(
                Term(op="input", info="weight"),
                Term(op="matmul", args=(Term(op="transpose", args=(a,)), b)),
            ),
        ):
            return a.op == b.op == "input" and a.info == b.info == "input"
    return False


def same_term(a: Term, b: Term) -> bool:
    return (
        a.op == b.op
        and a.info == b.info
        and len(a.args) == len(b.args)
        and all(map(same_term, a.args, b.args))
    )
