"""The registries of quantizers and token orders: what can be known about each without importing torch.

A new quantizer is a module that defines its `Codes` and one entry in `QUANTIZERS`; a new order is a `TokenSequence` and
one entry in `ORDERS`. Nothing else compares the names: the entries and the objects they build answer all questions.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imagefolder.errors import InputError
from imagefolder.validation import require

LARGEST_CODEBOOK = 2**26


@dataclass(frozen=True)
class QuantizerKind:
    """A possible `TokenizerConfig.quantizer`."""

    title: str
    """in model cards"""
    letter: str
    """in model names"""
    codes: str
    """module:function that builds the `imagefolder.tokenizer.codes.Codes` of a `TokenizerConfig`"""
    learned: bool = False
    """whether the codes are parameters: only these sum the commitment loss over scales or have their codes perturbed"""
    check: Callable[[int, int], object] = lambda codebook_size, code_dim: None
    """raises `InputError` unless a codebook can have this size and dimension"""


@dataclass(frozen=True)
class OrderKind:
    """A possible `GeneratorConfig.order`."""

    prefix: str
    """of model names"""
    sequence: str
    """module:class, an `imagefolder.generator.sequence.TokenSequence`"""
    suffix: str = ""
    """of model names"""
    folded: bool = True
    """whether all branches of a position are predicted at once; otherwise each branch has its own positions"""
    single_scale: bool = False
    """whether the tokens must be those of a single-scale tokenizer"""
    guidance: float = 1.0
    """factor on the guidance strength in our recipes; constant guidance gets 0.5, the mean of the ramp over scales"""


def imported(path: str) -> Any:
    """The object behind a "module:name" of the registries."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def fsq_levels(codebook_size: int, code_dim: int) -> tuple[int, ...]:
    """Levels per channel of finite scalar quantization: code_dim factors of codebook_size, each at least 2, with the
    smallest sum, largest first. 4375 codes of dimension 5 are 7 x 5 x 5 x 5 x 5.

    Raises:
        InputError: there are no such factors; names the nearest codebook sizes that have them.
    """
    levels = _factors(codebook_size, code_dim)
    if levels is None:
        # However many factors are odd, every possible size is divisible by this power of 2
        step = 2 ** max(0, code_dim - int(math.log(max(LARGEST_CODEBOOK / 2**code_dim, 1), 1.5)))
        below = range(codebook_size // step * step, 2**code_dim - 1, -step)
        above = range(-(-codebook_size // step) * step, LARGEST_CODEBOOK + 1, step)
        found = (next((size for size in sizes if _splits(size, code_dim)), None) for sizes in (below, above))
        near = " and ".join(str(size) for size in found if size is not None)
        raise InputError(
            f"fsq: codebook_size {codebook_size} is not a product of code_dim {code_dim} factors of at least 2; "
            + (f"the nearest that are: {near}" if near else f"no size up to {LARGEST_CODEBOOK} is")
        )
    return tuple(sorted(levels, reverse=True))


def _splits(size: int, parts: int) -> bool:
    """Whether a number is a product of so many factors, each at least 2."""
    prime = 2
    while parts > 1 and prime**parts <= size:
        if size % prime:
            prime += 1
        else:
            size, parts = size // prime, parts - 1
    return parts == 1 and size > 1


@functools.cache
def _factors(size: int, parts: int) -> tuple[int, ...] | None:
    """So many factors of a number, each at least 2, with the smallest sum; ascending."""
    if parts == 1:
        return (size,) if size > 1 else None
    best: tuple[int, ...] | None = None
    smallest = 2
    while smallest**parts <= size:
        rest = _factors(size // smallest, parts - 1) if size % smallest == 0 else None
        if rest is not None:
            found = tuple(sorted((smallest, *rest)))
            best = found if best is None else min(best, found, key=lambda factors: (sum(factors), factors[::-1]))
        smallest += 1
    return best


def _check_binary(codebook_size: int, code_dim: int) -> None:
    require(
        codebook_size == 2**code_dim,
        f"a binary quantizer has 2^code_dim codes: codebook_size {codebook_size} does not fit code_dim {code_dim}",
    )


QUANTIZERS: dict[str, QuantizerKind] = {
    "vq": QuantizerKind("vector", "V", "imagefolder.tokenizer.codes:learned", learned=True),
    "bsq": QuantizerKind("binary spherical", "B", "imagefolder.tokenizer.codes:spherical", check=_check_binary),
    "lfq": QuantizerKind("lookup-free", "L", "imagefolder.tokenizer.codes:lookup_free", check=_check_binary),
    "fsq": QuantizerKind("finite scalar", "F", "imagefolder.tokenizer.fsq:finite_scalar", check=fsq_levels),
}

_SEQUENCES = "imagefolder.generator.sequence"
ORDERS: dict[str, OrderKind] = {
    "folded": OrderKind("VAR", f"{_SEQUENCES}:NextScale"),
    "unfolded": OrderKind("VAR", f"{_SEQUENCES}:NextScale", suffix="-unfolded", folded=False),
    "raster": OrderKind("AR", f"{_SEQUENCES}:Raster", single_scale=True, guidance=0.5),
}
