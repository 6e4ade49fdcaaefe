"""Averaged weights in checkpoints of various training programs: wrapped, prefixed, or under other names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

State = Mapping[str, Tensor]

_AVERAGED = {"ema", "shadow", "averaged", "average", "swa"}
_ALSO = {"model", "state", "dict", "params", "parameters", "weights", "net", "network", "module"}
_COUNTERS = {"decay", "num_updates", "n_averaged", "initted", "step", "steps"}  # one number each, next to the weights
_PREFIX = "ema_model."  # in a module that also holds the trained weights
WRAPPERS = ("module.", "_orig_mod.")  # left by data-parallel training and by torch.compile


def averaged_states(document: Any, raw: State) -> Iterator[tuple[str, list[tuple[str, State]]]]:
    """What a checkpoint stores under names for averaged weights, "ema" first.

    Args:
        document: the content of the file.
        raw: the weights that were averaged, whose names explain names without dots; empty: the file has none.

    Yields:
        A key that means "ema" and holds tensors, with the (place, state dict) pairs found below it.
    """
    keys = [key for key in document if isinstance(key, str)] if isinstance(document, Mapping) else []
    for key in sorted(filter(_means_averaged, keys), key=lambda key: key != "ema"):
        mappings, tensors = _below(document[key], key)
        if tensors:
            yield key, [(place, _named(mapping, raw)) for place, mapping in mappings]


def _means_averaged(key: str) -> bool:
    words = set(re.findall("[a-z]+", key.lower()))
    return bool(words & _AVERAGED) and words <= _AVERAGED | _ALSO


def _below(value: Any, place: str) -> tuple[list[tuple[str, Mapping[Any, Any]]], bool]:
    """Every mapping in nested containers with its place, and whether any of them holds a tensor.

    A container that occurs in several places is searched once: a small file can repeat it astronomically often.
    """
    mappings, tensors, seen, left = [], False, set(), [(place, value)]
    while left:
        place, value = left.pop()
        if isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            if isinstance(value, Mapping):
                mappings.append((place, value))
            for key, item in items:
                tensors |= isinstance(item, Tensor) and item.numel() > 1
                if isinstance(item, Mapping | list | tuple):
                    left.append((f"{place}.{key}" if isinstance(key, str | int) else place, item))
    return mappings, tensors


def _named(mapping: Mapping[Any, Any], raw: State) -> State:
    """The tensors of a mapping by their names in the model, as far as these can be determined."""
    tensors = {name: value for name, value in mapping.items() if isinstance(name, str) and isinstance(value, Tensor)}
    tensors = {name: value for name, value in tensors.items() if name not in _COUNTERS or value.numel() > 1}
    if any(name.startswith(_PREFIX) for name in tensors):
        return {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
    while len({name.partition(".")[0] for name in tensors}) == 1 and all("." in name for name in tensors):
        tensors = {name.partition(".")[2]: value for name, value in tensors.items()}
    names = dict.fromkeys([*raw, *map(unwrapped, raw)])
    dotted = {name.replace(".", ""): name for name in names}
    if len(dotted) == len(names) and not tensors.keys() & names.keys() and tensors.keys() <= dotted.keys():
        return {dotted[name]: value for name, value in tensors.items()}
    return tensors


def unwrapped(name: str) -> str:
    """The name of a tensor without the prefixes of model wrappers."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name
