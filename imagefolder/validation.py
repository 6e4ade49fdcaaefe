"""Dataclasses whose fields are checked on construction, and checks of several of them."""

from __future__ import annotations

import functools
import inspect
import re
import reprlib
from collections.abc import Mapping
from dataclasses import field
from typing import Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from imagefolder.errors import InputError, one_line

LONGEST = 1000  # items of a list
_Class = TypeVar("_Class")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def require(condition: bool, message: str) -> None:
    """`InputError` with the message unless the condition holds."""
    if not condition:
        raise InputError(message)


def check_name(name: str) -> None:
    """`InputError` for a name that is not one line."""
    require(name == one_line(name), f"name {shown(name)} is not one line of plain text")


def check_kind(name: str, value: str, known: Mapping[str, object]) -> None:
    """`InputError` for a value that is not among the known ones."""
    *others, last = (repr(each) for each in known)
    require(value in known, f"{name} {shown(value)}: must be {', '.join(others)} or {last}")


def check_scales(scales: tuple[int, ...]) -> None:
    """`InputError` for sides of token maps that are not positive, or that shrink."""
    require(len(scales) > 0 and min(scales) > 0, f"scales must be positive integers, not {shown(scales)}")
    require(list(scales) == sorted(scales), f"scales must not shrink: {shown(scales)}")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def checked(kind: type[_Class]) -> type[_Class]:
    """Make a class a frozen pydantic dataclass that raises `InputError` on construction.

    Types are strict: neither text nor a bool is a number, and 1.0 is not an integer. Numbers are finite. An integer
    given for a float field is stored as a float. The one-line message names the field, its value, and what it must be.
    """
    made: Any = dataclass(frozen=True, config=ConfigDict(strict=True, allow_inf_nan=False, validate_default=True))(kind)
    construct = made.__init__
    signature = inspect.signature(made)

    @functools.wraps(construct)
    def init(self: Any, *values: Any, **named: Any) -> None:
        arguments = signature.bind(*values, **named).arguments  # TypeError on a mismatch, as for any class
        try:
            construct(self, **arguments)
        except ValidationError as error:
            raise InputError(_explained(error)) from None

    made.__init__ = init
    return made


def _explained(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):  # raised by __post_init__
        return str(cause)
    name, *inner = first["loc"]
    place = str(name) + "".join(f"[{index}]" for index in inner)
    must = re.sub("^.*? should", "must", first["msg"]).replace(" after validation", "")
    return f"{place} {shown(first['input'])}: {must}"


def _to_tuple(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) > LONGEST:  # pydantic would report every bad item
        raise PydanticCustomError("too_long", "Input should have at most {most} items", {"most": LONGEST})
    return tuple(value) if isinstance(value, list) else value


ListToTuple = BeforeValidator(_to_tuple)
"""Annotation of a tuple field that also accepts a list (from JSON)."""


def shown(value: Any) -> str:
    """Short text for a value of any type and size."""
    try:
        return _SHORT.repr(value)
    except Exception:  # an integer too long to print, or an object whose own __repr__ fails
        return f"of type {type(value).__name__}"
