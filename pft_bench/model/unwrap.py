"""The weights in a checkpoint: where they stand, and their names without what wrappers and trainers add."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..common.messages import UserNote
from .infer import listed

# Where training code puts weights; the moving average comes first, as in the authors' tests.
WEIGHT_KEYS = ("params_ema", "params", "state_dict", "model_state_dict", "model", "network", "net_g")
# A word of a name that says moving average: params_ema, netEMA, emaModel, swa_state_dict, shadow.
_AVERAGE = re.compile(r"(?<![a-z])(ema|swa|avg|average|averaged|shadow)(?![a-z])")
_NEXT_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Parts of names that wrappers add wherever they wrap: DataParallel and DistributedDataParallel, torch.compile, FSDP,
# activation checkpointing. No part of PFT is called so.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module"}
# Numbers that other tools register beside weights: thop's, AveragedModel's, those of moving averages. Whole numbers and
# truth values are such by any name, for no layer has them.
BOOKKEEPING = {"total_ops", "total_params", "n_averaged", "num_updates", "decay", "num_batches_tracked"}
# Each PFT has the first of these; an incomplete one may still be told by the second.
_MARKS = (r"conv_first\.weight", r"layers\.\d+\.residual_group\.layers\..+")
_ROOTS = ("conv_", "patch_embed.", "absolute_pos_embed", "layers.", "norm.", "upsample.")
# Never read when computing, so a file may lack it.
OPTIONAL = "relative_position_index_SA"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DEPTH = 6
Place: TypeAlias = tuple[str, ...]
"""The keys that lead to a dictionary inside the content of a file; () is the content itself."""


class CheckpointNote(UserNote):
    """What was left out of a file of weights, or chosen in it."""


def find_weights(content: Mapping[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of the one PFT in the content of a checkpoint, by their published names; notes of what is left out.

    Raises ValueError where there are no weights, several models, two
    names for one weight, or values that are not dense floating-point numbers.
    """
    _refuse_training_states(content)
    found = {path: mapping for path, mapping in _mappings(content) if _names(mapping)}
    models = [path for path, mapping in found.items() if _prefixes(_names(mapping), _MARKS[0])]
    if not found:
        raise ValueError(
            f"weights must stand at the top or under a key such as {', '.join(WEIGHT_KEYS[:3])}, "
            f"got a file with {listed(content)}, none of which holds tensors by name{_optimiser(content)}"
        )
    chosen = _choose(models or list(found)[:1])
    notes = _other_averages(content, chosen)
    weights = _without_prefix(_names(found[chosen]), notes)
    _check_values(weights)
    return weights, notes


def _mappings(content: Mapping[Any, Any], path: Place = ()) -> Iterator[tuple[Place, Mapping[Any, Any]]]:
    """Every dictionary inside `content`, itself included, with the keys that lead to it; none of an optimiser."""
    if "param_groups" in content:
        return
    yield path, content
    for key, value in content.items():
        if isinstance(value, Mapping) and isinstance(key, str) and len(path) < _DEPTH:
            yield from _mappings(value, (*path, key))


def _names(mapping: Mapping[Any, Any]) -> list[tuple[str, Tensor]]:
    """Names without the parts that wrappers add, and their tensors: as pairs, for two names may become one."""
    return [
        (".".join(part for part in name.split(".") if part not in WRAPPERS), value)
        for name, value in mapping.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    ]


def _prefixes(names: Iterable[tuple[str, Tensor]], mark: str) -> list[str]:
    """What stands in front of the names of each PFT among `names`: "" or "model.", once each."""
    matches = (re.fullmatch(rf"((?:.*?[\W_])?){mark}", name) for name, _ in names)
    return list(dict.fromkeys(match[1] for match in matches if match))


def _choose(places: Sequence[Place]) -> Place:
    """The place of the moving average, else the best-known one. ValueError where several would do as well."""
    best = min(map(_rank, places))
    equal = [place for place in places if _rank(place) == best]
    if len(equal) > 1:
        shown = " and ".join(repr(".".join(place)) for place in equal[:4])
        raise ValueError(f"the file must hold one model, got several, under {shown}: save one of them alone")
    return equal[0]


def _rank(place: Place) -> tuple[int, int]:
    """Smaller is better: an average before all else, then the order of WEIGHT_KEYS, then the top, then others."""
    known = min((WEIGHT_KEYS.index(key) for key in place if key in WEIGHT_KEYS), default=len(WEIGHT_KEYS))
    if _is_average(place):
        return 0, known
    if known < len(WEIGHT_KEYS):
        return 1, known
    return (3 if place else 2), 0


def _is_average(place: Iterable[str]) -> bool:
    return any(_AVERAGE.search(_NEXT_WORD.sub("_", part).lower()) for part in place)


def _without_prefix(named: Sequence[tuple[str, Tensor]], notes: list[str]) -> dict[str, Tensor]:
    """The weights of the one model among `named`, without what stands in front of its names; adds to `notes`."""
    prefixes = _prefixes(named, _MARKS[0]) or _prefixes(named, _MARKS[1]) or [""]
    averages = [prefix for prefix in prefixes if _is_average(prefix.split("."))]
    chosen = (averages or prefixes)[0]
    if len(averages or prefixes) > 1:
        shown = " and ".join(f"'{prefix}conv_first.weight'" for prefix in (averages or prefixes)[:4])
        raise ValueError(f"the file must have one name for each weight, got {shown}: save one model alone")
    weights: dict[str, Tensor] = {}
    beside, counters = [], []
    for name, value in named:
        own = name.removeprefix(chosen)
        if _is_counter(name, value):
            counters.append(name)
        elif not name.startswith(chosen):
            beside.append(name)
        elif own in weights:
            raise ValueError(f"the file must have one name for each weight, got two for {name!r}")
        else:
            weights[own] = value
    for name in beside:
        if name in weights:
            raise ValueError(
                f"the file must have one name for each weight, got {name!r} and {chosen + name!r}"
            )
    if counters:
        notes.append(f"counters of other tools are left out: {listed(counters, 3)}")
    if beside or len(prefixes) > 1:
        notes.append(f"the weights are those under {chosen!r}; the others are left out: {listed(beside, 3)}")
    return weights


def _is_counter(name: str, value: Tensor) -> bool:
    known = name.rpartition(".")[2] in BOOKKEEPING
    whole = not (value.is_floating_point() or value.is_complex() or name.startswith(_ROOTS))
    return value.numel() == 1 and (known or whole)


def _refuse_training_states(content: Mapping[Any, Any]) -> None:
    state = content.get("state")
    if isinstance(state, Mapping) and isinstance(state.get("ema"), Mapping) and "run" in content:
        raise ValueError(
            "this is the state of a training run, to go on from with pft-bench train --resume: the weights to use are "
            "in weights.safetensors beside it"
        )


def _other_averages(content: Mapping[Any, Any], chosen: Place) -> list[str]:
    """Notes of moving averages that hold no weights by name; ValueError for the published key's.

    An average that was meant to be saved and was not must not be replaced silently.
    """
    notes = []
    for key, value in content.items():
        if not isinstance(value, Mapping) or not _is_average([str(key)]) or _is_average(chosen):
            continue
        what = f"{len(value)} keys" if value else "nothing"
        if key == WEIGHT_KEYS[0]:
            raise ValueError(
                f"{key}, the moving average, must hold the weights of a PFT, got {what}; to use those under "
                f"{'.'.join(chosen) or 'the top'} instead, save them alone"
            )
        notes.append(
            f"the weights are those under {'.'.join(chosen)!r}: {key!r} holds none by name, but {what}"
        )
    return notes


def _check_values(weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError for weights that no model can compute with, naming the first of them."""
    wrong = [
        f"{name} ({kind})"
        for name, value in weights.items()
        if name.startswith(_ROOTS) and (kind := _unusable(value)) is not None
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"weights must be dense tensors of {', '.join(_short(dtype) for dtype in DTYPES)}, "
            f"got {', '.join(wrong[:3])}{more}"
        )


def _unusable(value: Tensor) -> str | None:
    if value.is_meta:
        return "on the meta device: shape without values"
    if value.is_quantized or value.is_nested or value.layout != torch.strided:
        return "quantised" if value.is_quantized else "nested" if value.is_nested else _short(value.layout)
    return None if value.dtype in DTYPES else _short(value.dtype)


def _short(name: object) -> str:
    return str(name).removeprefix("torch.")


def _optimiser(content: Mapping[Any, Any]) -> str:
    names = " ".join(map(str, content))
    return "; it seems to be the state of an optimiser" if re.search("optim|param_groups", names) else ""
