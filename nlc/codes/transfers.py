"""NL3xx: what is wrong with the flow and with what passes between levels."""

from __future__ import annotations

from .entry import Code, code, system

_MIXER = """
    level mixer(x) every token {
      state     M : matrix(width, width)
      k = unit(linear(x, width))
      objective sum((M(k) - x)^2)
      learn     gradient(rate = 0.1)
      read      M(k)
    }
"""
_GIST = """
    level gist(x) every 16 tokens {
      state c : vector(width) { set x }
      read  c
    }
    level fast(x, c[width]) every token {
      reset     every 16 tokens
      state     W : vector(width) = c
      objective sum((W - x)^2)
      learn     gradient(rate = 0.1)
      read      W
    }
"""
_KEPT = """
    level fast(x) every token {
      state     W : vector(width)
      objective sum((W - x)^2)
      learn     gradient(rate = 0.1)
      read      W
    }
    level slow(x) every 64 tokens {
      state     S : vector(width)
      objective sum((S - x)^2)
      learn     gradient(rate = 0.1)
      read      S
    }
"""


def _mixed(transfer: str) -> str:
    return system(f"{_MIXER}    {transfer}\n" if transfer else _MIXER, "x += mixer(norm(x))")


def _generated(transfer: str) -> str:
    return system(f"{_GIST}    {transfer}\n" if transfer else _GIST, "x += fast(x, gist(x))")


def _started(*lines: str) -> str:
    return system(
        "\n".join([_KEPT, *(f"    {line}" for line in lines)]), "x += fast(x)\nx += slow(x)"
    )


CODES: dict[str, Code] = {
    "NL301": code(
        "a body uses weights of another level, and no transfer says what passes back",
        """Weights that nobody declared belong to the level without inputs. When the body of
        another level uses some, as `k = linear(x, width)` does, two things can be meant. `transfer
        backprop mixer -> training`: the gradient of training passes through what the level wrote
        into its state, back to those weights. `transfer condition training -> mixer`: the level
        uses them as they are and nothing passes back. The two are different models, so the choice
        is written down.""",
        _mixed(""),
        _mixed("transfer backprop mixer -> training"),
    ),
    "NL302": code(
        "this transfer carries nothing",
        """A transfer names something that passes from one level to another: weights or states that
        a body uses (`condition`), a gradient that enters a state (`backprop`), a start (`init`),
        or a state made from another (`generate`). Here the second level uses nothing of the first,
        so the line says what the system does not do. Either the line is left over, or a use of it
        was forgotten in the flow. `first order` and `through 512 tokens` say how a gradient goes;
        on a line that passes none they carry nothing either.""",
        _started("transfer generate slow -> fast"),
        _started("transfer init slow -> fast"),
    ),
    "NL303": code(
        "a start is given by a slower level",
        """`transfer init A -> B` lets A learn where B starts at each reset. That takes an A that
        changes more slowly than B: B has run for a while from a start before A, seeing how that
        went, moves it. A faster A would move the start many times before it is used once. Turn the
        line around, or give the two other clocks.""",
        _started("transfer init fast -> slow"),
        _started("transfer init slow -> fast"),
    ),
    "NL304": code(
        "a line uses the loss of its own tick",
        """`loss` compares an answer with its label, and the label of a token is the next one. So
        the loss of this tick is known only when the next token has come, too late for any line
        that helps to make the answer. Only an objective may name `loss`: there it means the
        gradient of the losses, each taken when its label is there.""",
        system(flow="x = x * loss"),
        system(flow="x = x * 0.5"),
    ),
    "NL305": code(
        "an answer depends on a later token",
        """`next(tokens)` is the token to come: the label. The answer at a token must not depend on
        it, or the model would be trained on what it can never see when it is used. So `next` may
        stand only in `loss` and in objectives. What came before is reached by `past(x, w)`, and by
        whatever a level keeps.""",
        system(flow="x += embed(next(tokens), vocab, width)"),
        system(flow="x += embed(tokens, vocab, width)"),
    ),
    "NL306": code(
        "a state is made from another level's state, and no transfer says so",
        """The start of a state, a `write` or a `set` may use what another level holds: that is how
        one memory makes the weights of another. It is declared by `transfer generate gist ->
        fast.W`, for it is a tie between two levels that the call does not show. It carries values
        forward and no gradient; where a gradient shall pass too, add `transfer backprop fast ->
        gist`.""",
        _generated(""),
        _generated("transfer generate gist -> fast.W"),
    ),
    "NL307": code(
        "a level that is called twice has two states",
        """A box is made where it is called, so two calls of `fast` are two memories, each with
        states of its own. `fast.W` then has two meanings in this block. Bind the reading of the
        call that you mean to a name, split the level into two, or put the calls into blocks of
        their own: inside a block a name means the one call there. So it is with `transfer init
        training -> mixer.M` where two memories that `mixer` calls have an `M`: `mixer.delta.M`
        says which.""",
        system(_KEPT, "x += fast(x)\nx += fast(x)\nx += slow(fast.W)"),
        system(_KEPT, "x += fast(x)\nx += slow(fast.W)"),
    ),
    "NL308": code(
        "the flow is not whole",
        """A system has one flow, which says what happens at each tick and ends in `return e`, the
        answer of the model. A level with inputs takes part in it by being called: one that is
        never called never fires, and its states have no inputs to learn from. A level without
        inputs is not called; it owns the weights that nobody declared.""",
        system(_KEPT, "x += fast(x)"),
        system(_KEPT, "x += fast(x)\nx += slow(x)"),
    ),
    "NL309": code(
        "a gradient is cut where it has ended",
        """`through 512 tokens` cuts the gradient of a transfer at each multiple of 512 tokens since
        the level was reset. A level that starts anew by then has nothing to cut: its gradient ends
        at the reset. The numbers are those of a system without the clause, so this is a warning:
        either the cut should come sooner, or the level should be kept longer, or `assume` says less
        than a sequence has.""",
        _started(
            "assume sequence = 256 tokens", "transfer backprop fast -> training through 512 tokens"
        ),
        _started(
            "assume sequence = 256 tokens", "transfer backprop fast -> training through 128 tokens"
        ),
    ),
}
