"""NL1xx: what is wrong with a name, and with what is called by it."""

from __future__ import annotations

from .entry import Code, code, spec, system

_ONE = """
    memory one(q[n], k[n], v[m]{inputs}) {{
      state     M : matrix(n, m)
      {line}
      objective -dot(M({key}), v)
      learn     {rule}
      read      M(q)
    }}
"""


def _one(
    line: str = "", key: str = "k", rule: str = "gradient(rate = 0.5)", inputs: str = ""
) -> str:
    text = _ONE.format(line=line, key=key, rule=rule, inputs=inputs)
    return spec("\n".join(row for row in text.splitlines() if row.strip()))


def _eightfold(depth: int) -> str:
    """Functions that call the one before them eight times."""
    rows = ["def f0(x) { return x + 1 }"]
    for at in range(depth):
        rows.append(f"def f{at + 1}(x) {{ return {f'f{at}(' * 8}x{')' * 8} }}")
    return "\n".join(rows)


CODES: dict[str, Code] = {
    "NL101": code(
        "nothing here has that name",
        """A name is an input or a setting of the block, one of its states, a line above, a size
        from the brackets of an input, a level of the system, a function, or one of the names that
        the language binds (`loss`, `count`, `position`, `infinity`, `matrices`, `vectors`,
        `tables`). A name first given inside `repeat` ends with it. A line sees only what stands
        above it: values are those at their place in the text. If a name close to yours is known,
        the message offers it.""",
        _one(key="kk"),
        _one(),
    ),
    "NL102": code(
        "one name is given twice",
        """Levels, memories, optimizers, functions and the inputs, settings and states of a block
        share one name space, so that a name never means two things on one page. A Greek letter and
        its English name are one name: `α` is `alpha`, `β₁` is `beta1`. Plain lines may give a name
        a new value; an input, a setting or a state may not be given again, and the settings of a
        system not in its flow or its levels either. Rename one of the two.""",
        _one(inputs=", alpha", line="state     α : vector(n)"),
        _one(inputs=", alpha", line="retain    α"),
    ),
    "NL103": code(
        "no function, memory or optimizer has that name",
        """What is called must be declared: a `def`, `memory` or `optimizer` of this file or of a
        file that it brings in by `use`, a function of the language, or a rule of the library
        (`gradient`, `adam`, `muon`, `dgd` and others, which need no `use`). The forms after the
        colon of a state are a list of their own: `vector`, `matrix`, `table`, `mlp`, `gated_mlp`,
        `residual`, `layernorm`, `like`.""",
        _one(rule="lstn(rate = 1)"),
        _one(rule="gradient(rate = 1)"),
    ),
    "NL104": code(
        "weights that nobody declared have no owner, or two",
        """`linear`, `norm`, `embed` and the other functions that make weights leave those weights
        to one level: the one written without inputs, as in `level training every step { objective
        loss; learn adam() }`. It says what the weights learn, by which rule and how often. With
        two such levels nobody could say whose a weight is; with none it would never change, and a
        weight that is meant to stay is owned by a level on `never`. A second set of learned
        numbers is declared as a `state` of a level with inputs.""",
        system(
            training="""
            level a every step { objective loss; learn adam(rate = 1e-3) }
            level b every 8 steps { objective loss; learn adam(rate = 1e-4) }
        """
        ),
        system(),
    ),
    "NL105": code(
        "this memory cannot be a function by itself",
        """A memory that makes weights of its own, or learns the loss of a model, needs a system
        around it: the weights belong to a level of that system, and the loss is that of its flow.
        As an operation on tensors, `nlc.memory("name")(q, k, v)`, there is neither. Take the
        weights as inputs and make them outside, or declare them as states with a start; or use the
        memory in a system, where nothing has to change.""",
        spec("""
            memory normed(x[n], v[n]) {
              state     M : matrix(n, n)
              objective -dot(M(x), v)
              learn     gradient(rate = 0.5)
              read      M(norm(x))
            }
        """),
        spec("""
            memory normed(x[n], v[n], gain[n]) {
              state     M : matrix(n, n)
              objective -dot(M(x), v)
              learn     gradient(rate = 0.5)
              read      M(gain * x)
            }
        """),
        found="operation",
    ),
    "NL106": code(
        "the language binds this name",
        """`loss`, `count`, `position`, `infinity`, `matrices`, `vectors` and `tables` have a
        meaning everywhere: `count` is the number of firings so far, `position` the number of
        tokens of this sequence so far, `loss` what the model learns. A line, an input or a state
        cannot take one of them. Only a flow may bind `loss`, and there it says what the loss of
        the model is. Nor can a line take the name of a function, as `norm = x` would: the lines
        below it could not call `norm` any more.""",
        _one(line="count = 3"),
        _one(line="shots = 3"),
    ),
    "NL107": code(
        "this call does not fit what it calls",
        """A call gives every input without a default, in the order of the declaration or by name,
        and may give settings by name. This one gives too many or too few, names one that does not
        exist, or gives a kind of value that the function cannot take: a stream where a number
        known when compiled is needed, or an array where a form is. A setting of a system has a
        default always, since nobody calls a system. A level written without inputs is not called;
        its states are seen by name.""",
        _one(key="k, q"),
        _one(key="k"),
    ),
    "NL108": code(
        "this `use` brings nothing",
        """`use "memory/attend"` names a file without its ending: first beside this file, then
        among the shipped specs. There is none, or it cannot be read, or it leads back to a file
        that is being read already. A spec may use what lies in its own folder and below, so that a
        folder can be moved as a whole. What two files need of each other goes into a third. The
        shipped optimizers and the functions of the language need no `use`.""",
        'nl 1\nuse "memory/atend"\n',
        'nl 1\nuse "memory/attend"\n',
    ),
    "NL109": code(
        "a function or a memory contains itself",
        """A `def` is written out where it is called, and a memory is made where it is called, so
        neither can contain itself, directly or by way of another: there would be no end to it.
        What repeats a known number of times is a `repeat n { .. }` inside the function.""",
        spec("""
            def twice(x) {
              return twice(x) + x
            }
            memory one(q[n], k[n], v[m]) {
              state     M : matrix(n, m)
              objective -dot(M(twice(k)), v)
              learn     gradient(rate = 0.5)
              read      M(q)
            }
        """),
        spec("""
            def twice(x) {
              return x + x
            }
            memory one(q[n], k[n], v[m]) {
              state     M : matrix(n, m)
              objective -dot(M(twice(k)), v)
              learn     gradient(rate = 0.5)
              read      M(q)
            }
        """),
    ),
    "NL110": code(
        "this text stands for too many operations",
        """A `def` is written out where it is called, because each call has weights of its own, and
        so is a `repeat` whose rounds differ. A `repeat` inside another multiplies, and so do
        functions that call functions twice. This text stands for more operations than a model of
        any size needs, so it is refused before memory runs out. Use fewer rounds, or one array
        with an axis more in place of many copies.""",
        system(before=_eightfold(7), flow="x = f7(x)"),
        system(before=_eightfold(2), flow="x = f2(x)"),
    ),
}
