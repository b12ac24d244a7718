"""What `nlc explain` says that an edge trains: exactly the arrays whose gradient is another when it
is taken out of the reference, of every system that ships.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import takewhile
from typing import Any

import pytest
import torch
from shipped import EVERY, SPECS, own_settings
from shipped import small as at_sizes
from torch import Tensor

import nlc
from nlc.backends.reference.frames import Record
from nlc.driver import Spec
from nlc.explain.trained import Trained
from nlc.explain.transfers import edges, transfer_lines
from nlc.system import System, Transfer
from nlc.testing.laws import changed, varied
from nlc.verify import properties as P
from nlc.verify.streams import Grads, Streams, random_streams, truth_of

TIME = 7  # past the first firing of every period
STEPS = ("step", "task")
SAID = ("it alone trains ", "it adds to the gradient of ")


def small(name: str, depth: int = 2) -> Spec:
    """Two layers: what one writes is what the next one reads. In one, no write is made of it."""
    return of_depth(name, depth)


@cache
def of_depth(name: str, depth: int) -> Spec:
    tiny: dict[str, Any] = {"periods": [1, 2, 4] if name == "cms_nested" else [2, 4]}
    if depth != 2:
        tiny["depth"] = depth
    return at_sizes(name, **{k: v for k, v in tiny.items() if k in own_settings(name)})


@cache
def weights(name: str, depth: int = 2) -> dict[str, Tensor]:
    """A little beside the draw: where a weight is 0, what it multiplies has no gradient."""
    model = nlc.compile(small(name, depth), dtype=torch.float64)
    with P.moved(model, 0.1):
        return {n: x.clone() for n, x in model.state_dict().items()}


def streams(system: System) -> Streams:
    return random_streams(system, 1, TIME)


def asked(name: str, spec: Spec, depth: int = 2) -> Grads:
    truth = nlc.reference(spec, weights(name, depth), traced=())
    return truth_of(truth, streams(spec.system)).gradients


@cache
def whole(name: str, depth: int = 2) -> Grads:
    return asked(name, small(name, depth), depth)


def without(spec: Spec, group: list[Transfer]) -> Spec:
    return varied(spec, tuple(t for t in spec.system.transfers if t not in group))


def written(path: str) -> str:
    """As the page has it: all rounds of a `repeat` are one."""
    return re.sub(r"layers\.\d+", "layers.{}", path)


def arrays(names: set[str], grads: Grads) -> set[str]:
    """The arrays of weights and states; a start is called M@A on the page."""
    plain = {n.split("@")[0] for n in names}
    found = {written(n) for n in grads}
    return {n for n in found if n in plain or re.sub(r"\.W\d$", "", n) in plain}


def told(system: System, group: list[Transfer]) -> tuple[set[str], set[str]]:
    """What the page says of an edge: what it alone trains, and what it adds to."""
    lines, names = transfer_lines(system), [set[str](), set[str]()]
    start = lines.index(next(a for a in arrows(system) if a[1] is group or a[1] == group)[0])
    said: list[str] = []
    for line in lines[start + 1 :]:
        if not line.startswith(" " * 4):
            break
        said.append(line.strip())
    text = " ".join(said)
    for i, words in enumerate(SAID):
        if words in text:
            rest = re.split("|".join(SAID), text.partition(words)[2])[0]
            names[i] = set(rest.strip().split(", "))
    return names[0], names[1]


def arrows(system: System) -> list[tuple[str, list[Transfer]]]:
    heads = [l for l in transfer_lines(system) if not l.startswith(" " * 4)]
    return list(zip(heads, edges(system), strict=True))


def groups(name: str, kind: str, depth: int = 2) -> list[list[Transfer]]:
    return [g for g in edges(small(name, depth).system) if g[0].kind == kind]


def saying(*kinds: str) -> list[str]:
    """The systems with such a line."""
    texts = {n: (SPECS / f"{n}.nl").read_text(encoding="utf-8") for n in EVERY}
    return [n for n, text in texts.items() if any(f"  transfer {k} " in text for k in kinds)]


DEEP = [(n, d) for n in saying("backprop") for d in (2, 1) if d == 2 or "depth" in own_settings(n)]


@pytest.mark.parametrize(("name", "depth"), DEEP)
def test_a_gradient_changes_exactly_where_explain_says(name: str, depth: int) -> None:
    """Of one layer and of two: what comes into the writes of one layer is made of no memory, so the
    start of a memory learns nothing by an edge that lets its gradient go on from there.
    """
    spec = small(name, depth)
    for group in groups(name, "backprop", depth):
        if group[0].target.clock.unit not in STEPS:
            continue
        before, after = asked(name, without(spec, group), depth), whole(name, depth)
        alone, more = told(spec.system, group)
        moved = {written(n) for n in changed(before, after)}
        assert moved == arrays(alone | more, after), group[0].source.name
        reached, still = ({written(n) for n, g in x.items() if g.any()} for x in (after, before))
        assert reached - still == arrays(alone, after), group[0].source.name


@pytest.mark.parametrize("name", saying("condition", "generate"))
def test_condition_and_generate_train_nothing(name: str) -> None:
    for group in [*groups(name, "condition"), *groups(name, "generate")]:
        assert told(small(name).system, group) == (set(), set())
        assert changed(asked(name, without(small(name), group)), whole(name)) == frozenset()


def words(name: str, arrow: str) -> str:
    """What the page says of one line."""
    lines = transfer_lines(nlc.load(name).system)
    after = lines[lines.index(f"  {arrow}") + 1 :]
    inside = takewhile(lambda line: line.startswith(" " * 4), after)
    return " ".join(line.strip() for line in inside)


def test_only_starts_of_other_levels_are_starts_of_starts() -> None:
    for name, target in [("hope", "titans"), ("self_modifying_titans", "titans")]:
        page = " ".join(transfer_lines(nlc.load(name).system))
        assert f"starts that {target} learns for others" not in page
    told = words("cms_nested", "init training -> slow")
    assert "so do the starts that slow learns for others: layers.{}.fast.continuum.F," in told


def test_what_a_gradient_goes_through_is_said_of_every_kind() -> None:
    full = words("maml", "init outer -> inner")
    assert "through every inner update of inner" in full and "second derivatives" in full
    text = (SPECS / "maml.nl").read_text(encoding="utf-8")
    spec = text.replace("init outer -> inner ", "init outer -> inner first order ")
    first = words(spec, "init outer -> inner first order")
    assert "inner update of inner; inner gradients are constants" in first
    assert "second derivative" not in first
    none = "no gradient passes back through it: it trains nothing"
    assert none in words("target_network", "generate student -> target")
    assert none in words("lora", "condition frozen -> attention")
    made = words("consolidation", "generate fast -> slow")
    assert "enters by `backprop slow -> training`, goes through it on into fast;" in made
    made_of = nlc.load("consolidation")
    fast = [t for t in made_of.system.transfers if t.kind == "backprop" and t.source.name == "fast"]
    made = " ".join(line.strip() for line in transfer_lines(without(made_of, fast).system))
    assert "goes through it but not into the states and pasts of fast" in made
    text = (SPECS / "consolidation.nl").read_text(encoding="utf-8")
    line = next(one for one in text.splitlines() if "transfer generate fast -> slow" in one)
    more = text.replace(line, f"{line}\n  transfer condition fast -> slow")
    both = words(more, "condition fast -> slow")
    assert "what does through `generate fast -> slow" in both and none not in both


@pytest.mark.parametrize("name", saying("init"))
def test_init_lets_exactly_these_starts_be_learned(name: str) -> None:
    spec = small(name)
    for group in groups(name, "init"):
        starts = set(Trained(spec.system).starts(group))
        said = " ".join(transfer_lines(spec.system))
        assert all(s.partition("@")[0].rpartition(".")[2] in said for s in starts)
        if group[0].source.clock.unit in STEPS:
            shut = nlc.reference(without(spec, group), traced=())
            left = {n for n, p in shut.specs.items() if p.trained_by is not None}
            gone = {n: g for n, g in whole(name).items() if n not in left}
            assert {written(n) for n in gone} == arrays(starts, whole(name)) != set()
            assert all(g.any() for g in gone.values())
        else:
            mine = {written(r.path) for r in fired(name, spec) if "@" in r.path}
            assert {s for s in starts if s.split("@")[1] == group[0].source.name} <= mine


def fired(name: str, spec: Spec) -> list[Record]:
    truth = nlc.reference(spec, weights(name), traced=("fire",))
    truth(streams(spec.system))
    return truth.trace


@pytest.mark.parametrize(
    "name", ["cms_independent", "cms_nested", "cms_sequential", "hope_attention", "stacked"]
)
def test_what_a_level_on_tokens_learns_changes_exactly_where_explain_says(name: str) -> None:
    """Until it first fires by another gradient nothing is another; then exactly these are."""
    spec = small(name)
    trained, one = Trained(spec.system), fired(name, spec)
    for group in groups(name, "backprop"):
        if group[0].target.clock.unit in STEPS:
            continue
        alone, more = told(spec.system, group)
        assert alone == set() and more == {n for t in group for n in trained.through([t])}
        for edge in group:
            other = fired(name, without(spec, [edge]))
            pairs = zip(one, other, strict=True)
            moved = [a for a, b in pairs if abs(a.after - b.after) > 1e-9 * a.after]
            first = min((a.tick for a in moved), default=0)
            said = {written(a.path) for a in moved if a.tick == first}
            assert said == set(trained.through([edge])), edge.target.name


def test_a_level_without_an_objective_has_no_gradient() -> None:
    """What only sets its state learns nothing, whatever is said to pass into others for it."""
    spec = nlc.load("""nl 1
system s() {
  level training every step { objective loss; learn gradient(rate = 0.1) }
  level a(x) every 2 tokens {
    state F : matrix(4, 4); objective sum((F(x) - x)^2); learn gradient(rate = 0.1); read F(x)
  }
  level g(x) every token { state c : vector(4) { set 0.5 * c + 0.5 * tanh(x) }; read c * x }
  transfer backprop a, g -> training
  transfer backprop a -> g
  flow(x[4]) { h = linear(x, 4); h += a(h); y = g(norm(h)); loss = sum(y^2); return y }
}
""")
    told = "\n".join(transfer_lines(spec.system))
    said = told.split("backprop a -> g")[1]
    assert "g has no objective, so no gradient of its own: nothing passes" in said
    assert "the gradient of training enters the states and pasts of a" in told
