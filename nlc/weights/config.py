"""What the `config.json` of a checkpoint says, each value of its kind.

In: the table of the file. Out: a `Config`, or one sentence: what is no value of its key, what does
not fit together, and what this language does not compute. The keys and what they mean where a file
is silent are those of transformers' LlamaConfig, MistralConfig and GraniteConfig.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

# Blocks like Llama's, and what such a file must say: silent, each means something else by it.
SORTS: Mapping[str, tuple[str, ...]] = {
    "llama": (),
    "mistral": ("sliding_window", "num_key_value_heads"),
    "granite": ("attention_multiplier",),
}
ALWAYS = ("model_type", "num_hidden_layers", "num_attention_heads", "hidden_size")

# What a config must say, if it says anything.
WANTED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "clip_qkv": (None,),
    "partial_rotary_factor": (1, None),
    "embedding_multiplier": (1, None),
    "residual_multiplier": (1, None),
    "logits_scaling": (1, None),
    "logit_scale": (1, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}
# What both sides have as a number: what it means where a config is silent, and our setting.
NUMBERS = {
    "num_attention_heads": (0, "heads"),  # it is always said
    "rope_theta": (10000.0, "base"),
    "rms_norm_eps": (1e-6, "eps"),
}
ANGLES = ("rope_theta", "partial_rotary_factor")  # what stands among the others or by itself


class UnlikeError(ValueError):
    """A checkpoint that the model does not compute, or that says nothing that can be computed."""


@dataclass(frozen=True)
class Config:
    """`shared`: heads of queries that one of keys serves; None: the file does not say."""

    layers: int
    heads: int
    shared: int
    width: int
    hidden: int | None
    vocab: int | None
    tied: bool


# ---- kinds ---------------------------------------------------------------------------------------

Kind = tuple[str, Callable[[Any], bool]]


def _count(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and 0 < x < 2**53


def _number(x: Any) -> bool:
    return _count(x) or (isinstance(x, float) and 0 < x < math.inf)


def _full(x: Any) -> bool:
    return isinstance(x, list) and all(one == "full_attention" for one in x)


def _or_null(kind: Kind) -> Kind:
    return f"{kind[0]} or null", lambda x: x is None or kind[1](x)


COUNT: Kind = ("a whole number above 0", _count)
NUMBER: Kind = ("a number above 0", _number)
TABLE: Kind = ("a table", lambda x: isinstance(x, dict))
TRUTH: Kind = ("true or false", lambda x: isinstance(x, bool))
SORT: Kind = (f"one of {', '.join(SORTS)}", lambda x: isinstance(x, str) and x in SORTS)
FULL: Kind = ('"full_attention" for each layer', _full)

KINDS: Mapping[str, Kind] = {
    "model_type": SORT,
    "num_hidden_layers": COUNT,
    "num_attention_heads": COUNT,
    "num_key_value_heads": _or_null(COUNT),
    "hidden_size": COUNT,
    "intermediate_size": COUNT,
    "vocab_size": COUNT,
    "head_dim": _or_null(COUNT),
    "rms_norm_eps": NUMBER,
    "rope_theta": NUMBER,
    "rope_scaling": _or_null(TABLE),
    "rope_parameters": _or_null(TABLE),
    "attention_multiplier": _or_null(NUMBER),
    "tie_word_embeddings": TRUTH,
    "layer_types": _or_null(FULL),
}


def _typed(said: Mapping[str, Any]) -> None:
    for key, (what, holds) in KINDS.items():
        if key in said and not holds(said[key]):
            raise UnlikeError(f"config.json has {key} = {shown(said[key])}, which must be {what}")
    for key in ALWAYS:
        if key not in said:
            raise UnlikeError(f"config.json does not say {key}, which must be {KINDS[key][0]}")
    for key in SORTS[said["model_type"]]:
        if key not in said:
            raise UnlikeError(
                f"config.json does not say {key}, and {said['model_type']} then means another than "
                "this language has"
            )


def shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:56] + " .."


# ---- the whole -----------------------------------------------------------------------------------


def read(said: Mapping[str, Any], numbers: Mapping[str, Collection[float]]) -> Config:
    """What is said, if this model computes it. `numbers`: by the keys of NUMBERS, all that the
    model has.
    """
    _typed(said)
    said = {**said, **_angles(said)}
    for key, values in WANTED.items():
        if key in said and said[key] not in values:
            raise UnlikeError(
                f"the checkpoint has {key} = {shown(said[key])}, where this language has "
                f"{shown(values[0])}"
            )
    for key, (usual, setting) in NUMBERS.items():
        there = said.get(key, usual)
        here = [x for x in numbers[key] if x != there]
        if here:
            raise UnlikeError(
                f"the checkpoint has {key} = {there}, and this model {here[0]:g}: make it with "
                f"{setting} = {there}, if its spec has that setting"
            )
    return Config(
        layers=said["num_hidden_layers"],
        heads=said["num_attention_heads"],
        shared=_shared(said),
        width=said["hidden_size"],
        hidden=said.get("intermediate_size"),
        vocab=said.get("vocab_size"),
        tied=said.get("tie_word_embeddings", False),
    )


def _angles(said: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of angles, if they are powers of one base."""
    tables = {**(said.get("rope_scaling") or {}), **(said.get("rope_parameters") or {})}
    usual = None if "factor" in tables else "default"
    kind = tables.get("rope_type", tables.get("type", usual))
    if kind != "default" or any(isinstance(value, dict) for value in tables.values()):
        raise UnlikeError(
            f"the checkpoint has rope_type = {shown(kind)}: its angles are no powers of one base, "
            "which is what `rope` has"
        )
    found = {key: value for key, value in tables.items() if key in ANGLES}
    if not _number(found.get("rope_theta", 1)):
        what = shown(found["rope_theta"])
        raise UnlikeError(f"config.json has rope_theta = {what}, which must be {NUMBER[0]}")
    return found


def _shared(said: Mapping[str, Any]) -> int:
    """The heads of queries by those of keys, where all divide as they must."""
    heads, width = said["num_attention_heads"], said["hidden_size"]
    keys = said.get("num_key_value_heads") or heads
    if heads % keys:
        raise UnlikeError(
            f"config.json has num_key_value_heads = {keys}, which must be a divisor of "
            f"num_attention_heads = {heads}"
        )
    if width % heads:
        raise UnlikeError(
            f"config.json has hidden_size = {width}, which must be a multiple of "
            f"num_attention_heads = {heads}"
        )
    size = width // heads
    if said.get("head_dim") not in (None, size):
        raise UnlikeError(
            f"the checkpoint has heads of {said['head_dim']}, of a width of {width} by {heads}"
        )
    own = said.get("attention_multiplier")
    if own is not None and not math.isclose(own, size**-0.5, rel_tol=1e-6):
        raise UnlikeError(
            f"the checkpoint has attention_multiplier = {own}, where this language has "
            f"{size**-0.5:g}"
        )
    return int(heads // keys)
