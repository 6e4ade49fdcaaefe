"""Checking the fields of a dataclass against their annotations."""

from __future__ import annotations

import functools
import re
import reprlib
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from imagefolder.errors import InputError

LONGEST = 1000  # items of a list
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def require(condition: bool, message: str) -> None:
    """`InputError` with the message unless the condition holds."""
    if not condition:
        raise InputError(message)


def check_fields(instance: Any) -> None:
    """Hold every field of a dataclass to its annotation and the pydantic constraints there.

    Types are strict: neither text nor a bool is a number, and 1.0 is no integer. Numbers are finite. What means the
    same is stored alike: a list (of JSON) as a tuple, the integer of a float field as a float.

    Raises:
        InputError: naming the field, its value, and what it must be.
    """
    for name, adapter in _adapters(type(instance)).items():
        value = getattr(instance, name)
        if isinstance(value, list | tuple):  # each of a million bad items would have an error of its own
            require(
                len(value) <= LONGEST, f"{name} {shown(value)}: must have at most {LONGEST} items, not {len(value)}"
            )
        try:
            checked = adapter.validate_python(tuple(value) if isinstance(value, list) else value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = name + "".join(f"[{key}]" for key in first["loc"] if isinstance(key, int))
            said = re.sub("^.*? should", "must", first["msg"]).replace(" after validation", "")
            raise InputError(f"{place} {shown(value if place == name else first['input'])}: {said}") from None
        object.__setattr__(instance, name, checked)  # the dataclass may be frozen


@functools.cache
def _adapters(kind: type) -> dict[str, TypeAdapter]:
    hints = get_type_hints(kind, include_extras=True)
    return {name: TypeAdapter(hint, config=_STRICT) for name, hint in hints.items()}


def shown(value: Any) -> str:
    """A value of any kind and size, in a few words."""
    try:
        return _SHORT.repr(value)
    except Exception:  # an integer too long to print, or an object whose own __repr__ fails
        return f"of type {type(value).__name__}"
