"""Weights from a file into a compiled model: a run of one's own, a safetensors file, or the folder
of a Llama-like checkpoint.

    model = nlc.compile("stacked", ...)
    print(nlc.start_from(model, "runs/transformer", {"cms_64.F.W1": "layers.0.swiglu.linear", ..}))

All is looked at before anything is written: a call that fails leaves the model as it was. Only
safetensors are read, which hold numbers and no code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import checkpoint
from ..backends.runtime import Model
from ..files import CallError, did_you_mean, why
from ..run_folder import RunFolder
from . import llama
from .config import UnlikeError

CODE = {".bin", ".pt", ".pth", ".th", ".ckpt", ".pkl", ".pickle"}  # pickled: reading them runs them
PICKLED = (b"PK\x03\x04", b"\x80")  # how torch's files and pickles begin
Arrays = dict[str, Tensor]


class WeightsError(ValueError):
    """A file of weights that cannot be used; the model is as it was."""


@dataclass(frozen=True)
class Started:
    """What was brought: `loaded`, ours by the name it had there; `kept`, ours that stay as they
    were drawn; `unused`, theirs that nothing here asked for.
    """

    loaded: Mapping[str, str]
    kept: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} arrays were brought"]
        parts += [f"{len(self.kept)} keep their own start ({few(self.kept)})"] if self.kept else []
        parts += [f"{len(self.unused)} of the file are not used ({few(self.unused)})"] * bool(
            self.unused
        )
        return "; ".join(parts)


def start_from(
    model: Model, path: str | Path, names: Mapping[str, str] | None = None, partial: bool = False
) -> Started:
    """Brings weights into `model`, in place.

    path: a run folder (its newest checkpoint), a `.safetensors` file, or a folder with a
    `config.json` and safetensors (Llama-like).
    names: our path -> the name there; `{}` in both stands for the number of a round. Without it,
    names are the same, or those of a Llama-like checkpoint.
    partial: arrays that are not named keep the start they have; without it that is an error. What
    starts as a copy of another array (a target network) is one anew, if it is not named.

    Raises WeightsError: a file that is missing, damaged or of pickled code, a name that is not
    there, or another shape. Nothing is changed then.
    """
    place = Path(path)
    ours = dict(model.named_weights())
    if names is not None:
        check_names(names)
    try:
        theirs = read(place)
        if names is None and (place / "config.json").is_file():
            numbers = {
                "num_attention_heads": llama.heads(model.STATES),
                "rope_theta": model.BASES,
                "rms_norm_eps": model.EPS,
            }
            said = json_of(place / "config.json")
            names, theirs = llama.names(list(ours), theirs, said, numbers, partial)
    except CallError as error:
        raise WeightsError(str(error)) from None
    except UnlikeError as error:
        raise WeightsError(f"{place}: {error}.") from None
    pairs = {n: n for n in ours if n in theirs}
    if names is not None:
        pairs = dict(paired(list(ours), names))
    kept = tuple(n for n in ours if n not in pairs and n not in model.copies)
    check(ours, theirs, pairs, place)
    if kept and not partial:
        raise WeightsError(
            f"{place} has nothing for {few(kept)}. `partial = True` (`--partial`) leaves them as "
            "they are; `names` of `nlc.start_from` says what an array is called there."
        )
    with torch.no_grad():
        for mine, other in pairs.items():
            ours[mine].copy_(theirs[other])
    model.begin_copies(pairs)
    return Started(pairs, kept, tuple(n for n in theirs if n not in set(pairs.values())))


# ---- names ---------------------------------------------------------------------------------------


def check_names(names: Any) -> None:
    if not isinstance(names, Mapping):
        raise WeightsError(
            f"`names` is {names!r:.60}, and must be a table: our name -> the name there."
        )
    for mine, other in names.items():
        if not isinstance(mine, str) or not isinstance(other, str):
            raise WeightsError(f"`names` has {mine!r:.60}: {other!r:.60}, and both must be names.")


def paired(ours: list[str], names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Our arrays by the names they have there, `{}` filled in."""
    for mine, other in names.items():
        pattern = re.compile(re.escape(mine).replace(r"\{\}", r"(\d+)"))
        rounds = [(n, m.groups()) for n in ours if (m := pattern.fullmatch(n))]
        if not rounds:
            raise WeightsError(f"This model has no array {mine}.{did_you_mean(mine, ours)}")
        if other.count("{}") > mine.count("{}"):
            raise WeightsError(f"{other} has more {{}} than {mine}: there is no number for it.")
        for name, numbers in rounds:
            yield name, filled(other, numbers)


def filled(name: str, numbers: Iterable[str]) -> str:
    """The name with a number for each `{}`; any other brace is one of its letters."""
    for number in numbers:
        name = name.replace("{}", number, 1)
    return name


def check(
    ours: Mapping[str, Tensor], theirs: Arrays, pairs: Mapping[str, str], place: Path
) -> None:
    """Every array that is asked for is there, and of our shape."""
    if not pairs:
        raise WeightsError(
            f"{place} and this model have no name in common: `names` says which is which."
        )
    for mine, other in pairs.items():
        if other not in theirs:
            raise WeightsError(f"{place} has no array {other}.{did_you_mean(other, theirs)}")
        wanted, given = list(ours[mine].shape), list(theirs[other].shape)
        if wanted != given:
            raise WeightsError(f"{mine} is {wanted}, and {other} of {place} is {given}.")
        if not theirs[other].is_floating_point():
            raise WeightsError(f"{other} of {place} holds {theirs[other].dtype}, no weights.")
        check_finite(f"{other} of {place}", theirs[other], ours[mine].dtype)


def check_finite(what: str, x: Tensor, dtype: torch.dtype) -> None:
    """Numbers only, which stay numbers as the model keeps them."""
    if bool(x.to(dtype).isfinite().all()):
        return
    if not bool(x.double().isfinite().all()):
        raise WeightsError(f"{what} holds nan or infinity; weights must be finite numbers.")
    kept = str(dtype).removeprefix("torch.")
    raise WeightsError(f"{what} holds numbers too large for {kept}, which the model keeps them in.")


# ---- files ---------------------------------------------------------------------------------------


def read(place: Path) -> Arrays:
    """Every array of a file, a run, or a checkpoint folder."""
    if not place.exists():
        raise WeightsError(f"There is no {place}.")
    if place.is_file():
        return arrays_of(place)
    if (place / "run.json").is_file():
        return of_run(RunFolder(place))
    return of_folder(place)


def of_run(run: RunFolder) -> Arrays:
    """The weights of a run's newest checkpoint that is whole."""
    for saved in reversed(run.saved()):
        try:
            return dict(checkpoint.from_file(saved)["model"])
        except checkpoint.DAMAGED:
            continue
    raise WeightsError(f"{run.path} has no checkpoint that is whole.")


def of_folder(place: Path) -> Arrays:
    """The files of a checkpoint: one, or the parts that an index names."""
    index = place / "model.safetensors.index.json"
    if index.is_file():
        files = parts_of(index)
    else:
        files = sorted(p.name for p in place.glob("*.safetensors"))
    if not files:
        files = [p.name for p in sorted(place.iterdir()) if p.suffix.lower() in CODE][:1]
    if not files:
        raise WeightsError(f"{place} holds neither a run nor safetensors.")
    found: Arrays = {}
    for name in files:
        found |= arrays_of(place / name)
    return found


def parts_of(index: Path) -> list[str]:
    """The files that an index names, each of them there."""
    where = json_of(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        told = json.dumps(where)[:60]
        raise WeightsError(
            f"{index} has weight_map = {told}, which must be a table: array -> file."
        )
    for name, file in where.items():
        if not isinstance(file, str):
            told = json.dumps(file)[:60]
            raise WeightsError(
                f"{index} has {told} for {name}, which must be the name of a file of its folder."
            )
        if Path(file).name != file:
            raise WeightsError(f"{index} names files outside its folder: {file} for {name}.")
        if not (index.parent / file).is_file():
            raise WeightsError(f"{index} names {file}, which is not there.")
    return sorted(set(where.values()))


def arrays_of(place: Path) -> Arrays:
    try:
        refuse_pickled(place)
        with safe_open(place, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise WeightsError(f"{place} cannot be read: {why(error)}.") from None
    except SafetensorError as error:
        raise WeightsError(f"{place} is no whole safetensors file: {error}.") from None


def refuse_pickled(place: Path) -> None:
    """By its name or its first bytes. A safetensors file may begin with any of them, for its first
    eight are a length; the ninth is a brace.
    """
    with place.open("rb") as file:
        start = file.read(9)
    if place.suffix.lower() in CODE or (start.startswith(PICKLED) and start[8:] != b"{"):
        raise WeightsError(
            f"{place} may hold pickled code, which would run as it is read. Bring weights as "
            "safetensors: safetensors.torch.save_file(state_dict, path)."
        )


def json_of(place: Path) -> dict[str, Any]:
    try:
        made = json.loads(place.read_text("utf-8"))
    except OSError as error:
        raise WeightsError(f"{place} cannot be read: {why(error)}.") from None
    except (ValueError, RecursionError):
        raise WeightsError(f"{place} is no JSON.") from None
    if not isinstance(made, dict):
        raise WeightsError(f"{place} holds no table, which it must.")
    return made


def few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", .." if len(names) > 3 else "")
