"""The names of a Llama-like checkpoint, for systems of its shape: `transformer`, `stacked`, and
what is written as they are.

In: the names of our arrays, the arrays of the checkpoint, its `config.json`. Out: which is which,
and the arrays as ours are laid out (a key head that several queries share is there once, and here
once for each query). What a model computes otherwise is refused: another number of heads, another
base of its rotary angles or number under the root of its norms, angles that are no powers of one
base, factors of its own, biases, and any other array of a block that has no place here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

BLOCK = "model.layers.{}."
ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "read": "o_proj"}
FORWARD = {
    "linear": "gate_proj", "linear_2": "up_proj", "linear_3": "down_proj",
    "W1": "gate_proj", "W3": "up_proj", "W2": "down_proj",
}  # fmt: skip
# What a config must say, if it says anything; the first value is what it means where it is silent.
WANTED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window": (None,),
    "partial_rotary_factor": (1, None),
    "embedding_multiplier": (1, None),
    "residual_multiplier": (1, None),
    "logits_scaling": (1, None),
    "logit_scale": (1, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}
# Arrays that must all have a place here, and those of them that say nothing new.
BLOCKS = re.compile(r"model\.(layers\.\d+|norm|embed_tokens)\..*|lm_head\..*")
DERIVED = re.compile(r".*\.rotary_emb\.inv_freq|lm_head\.weight")


# What both sides have as a number: what it means where a config is silent, and our setting.
NUMBERS = {
    "num_attention_heads": (0, "heads"),  # it is always said
    "rope_theta": (10000.0, "base"),
    "rms_norm_eps": (1e-6, "eps"),
}


ANGLES = ("rope_theta", "partial_rotary_factor")  # what stands among the others or by itself


class UnlikeError(ValueError):
    """A checkpoint that the model does not compute."""


def names(
    ours: list[str],
    theirs: dict[str, Tensor],
    config: Mapping[str, Any],
    numbers: Mapping[str, Collection[float]],
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Our name -> theirs, and their arrays, keys and values repeated for shared heads. `numbers`:
    by the keys of NUMBERS, all that the model has.
    """
    check(config, numbers)
    layers = int(config.get("num_hidden_layers", 0))
    found = {"x.embed": "model.embed_tokens.weight", "logits.norm": "model.norm.weight"}
    tied = bool(config.get("tie_word_embeddings")) or "lm_head.weight" not in theirs
    found["logits.unembed"] = "model.embed_tokens.weight" if tied else "lm_head.weight"
    found |= numbered(ours, r"x\.norm(?:_\d+)?", ["input_layernorm", "post_attention_layernorm"])
    for part, name in ATTENTION.items():
        found |= numbered(ours, rf"attention(?:_\d+)?\.{part}\.linear", [f"self_attn.{name}"])
    for part, name in FORWARD.items():
        found |= numbered(ours, rf"(?:swiglu(?:_\d+)?|\w+\.F)\.{part}", [f"mlp.{name}"])
    wrong = [n for n in ours if n not in found]
    if wrong:
        raise UnlikeError(f"{wrong[0]} of this model has no place in a Llama-like checkpoint")
    here = sum(name.endswith("input_layernorm.weight") for name in found.values())
    if here != layers:
        raise UnlikeError(f"the checkpoint has {layers} layers, and this model {here}")
    placed = set(found.values())
    left = [n for n in theirs if n not in placed and BLOCKS.fullmatch(n)]
    over = [n for n in left if not DERIVED.fullmatch(n)]
    if over:
        raise UnlikeError(f"the checkpoint has {over[0]}, which has no place in this model")
    return found, repeated(theirs, config)


def heads(states: Iterable[tuple[Any, ...]]) -> set[int]:
    """How many heads the attention of a model has, by the rows of what it keeps of the past."""
    path = re.compile(r"(?:layers\.\{\}\.)?attention(?:_\d+)?\..*past(?:_\d+)?")
    shapes = [shape for name, _, shape, _ in states if path.fullmatch(name)]
    return {shape[0] if len(shape) == 3 else 1 for shape in shapes}


def numbered(ours: list[str], pattern: str, roles: list[str]) -> dict[str, str]:
    """Our arrays of a kind in their order, `roles` of them a layer."""
    mine = [n for n in ours if re.fullmatch(rf"(?:layers\.\d+\.)?{pattern}", n)]
    places = ((i // len(roles), roles[i % len(roles)]) for i in range(len(mine)))
    made = (f"{BLOCK.format(layer)}{role}.weight" for layer, role in places)
    return dict(zip(mine, made, strict=True))


def check(config: Mapping[str, Any], numbers: Mapping[str, Collection[float]]) -> None:
    """Raises UnlikeError where the checkpoint computes something else."""
    scaled = config.get("rope_scaling") or {}
    angles = {**scaled, **(config.get("rope_parameters") or {})}
    kind = angles.get("rope_type", angles.get("type", "default"))
    if kind != "default":
        raise UnlikeError(
            f"the checkpoint has rope_type = {kind}: its angles are no powers of one base, which "
            "is what `rope` has"
        )
    if "num_attention_heads" not in config:
        raise UnlikeError(
            "the checkpoint's config.json does not say num_attention_heads: its matrices do not "
            "show into how many heads they are split"
        )
    said = {**config, **{k: v for k, v in angles.items() if k in ANGLES}}
    for key, values in WANTED.items():
        if key in said and said[key] not in values:
            raise UnlikeError(
                f"the checkpoint has {key} = {said[key]}, where this language has {values[0]}"
            )
    for key, (usual, setting) in NUMBERS.items():
        there = said.get(key, usual)
        here = [x for x in numbers[key] if x != there]
        if here:
            raise UnlikeError(
                f"the checkpoint has {key} = {there}, and this model {here[0]:g}: make it with "
                f"{setting} = {there}, if its spec has that setting"
            )
    heads = int(config["num_attention_heads"])
    width = int(config.get("hidden_size", heads))
    if config.get("head_dim") not in (None, width // heads):
        raise UnlikeError(
            f"the checkpoint has heads of {config['head_dim']}, of a width of {width} by {heads}"
        )
    own, usual = config.get("attention_multiplier"), (width // heads) ** -0.5
    if own is not None and not math.isclose(float(own), usual, rel_tol=1e-6):
        raise UnlikeError(
            f"the checkpoint has attention_multiplier = {own}, where this language has {usual:g}"
        )


def repeated(theirs: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Keys and values once for each query head."""
    heads = int(config["num_attention_heads"])
    shared = heads // int(config.get("num_key_value_heads") or heads)
    if shared == 1:
        return theirs

    def laid_out(name: str, x: Tensor) -> Tensor:
        if not name.endswith(("k_proj.weight", "v_proj.weight")):
            return x
        own = torch.unflatten(x, 0, (heads // shared, -1))
        return own.repeat_interleave(shared, 0).flatten(0, 1)

    return {n: laid_out(n, x) for n, x in theirs.items()}
