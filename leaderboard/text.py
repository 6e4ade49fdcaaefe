"""Escaping of text for Markdown and spreadsheets; differences of configurations in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from imagefolder.errors import one_line, printable, shortened

_FORMULA = tuple("=+-@\t\r＝＋－＠")  # East Asian spreadsheet programs accept the full-width characters, too
_ADDRESS = re.compile(r"(:|\bwww)([/.])", re.IGNORECASE)  # Markdown renders addresses as links
NAMED = 3  # differences of two configurations
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


def markdown_text(value: object) -> str:
    """`value` as literal text in a Markdown table cell, or in a line that begins with other words."""
    text = printable(" ".join(str(value).split()))
    for character in "\\`*_[]|~":
        text = text.replace(character, f"\\{character}")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _ADDRESS.sub(lambda match: f"{match[1]}&#{ord(match[2])};", text)


def spreadsheet_text(value: object) -> object:
    """A cell of a CSV file that no spreadsheet program evaluates as a formula. Numbers are not changed."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def without_seed(value: Any) -> Any:
    """A configuration without its seeds, however deep they are."""
    if isinstance(value, dict):
        return {key: without_seed(item) for key, item in value.items() if key != "seed"}
    return [without_seed(item) for item in value] if isinstance(value, list | tuple) else value


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The entries in which two configurations differ, seeds apart, as "a.b" -> both values; None: it has no such
    entry."""
    old, new = dict(_entries(without_seed(before))), dict(_entries(without_seed(after)))
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}


def differences_text(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The first `differences` in words, new value first: "training.steps 500 instead of 1000, ..., and 2 more"."""
    found = differences(before, after).items()
    texts = [f"{name} {_value(new)} instead of {_value(old)}" for name, (old, new) in found]
    more = [f"and {len(texts) - NAMED} more"] if len(texts) > NAMED else []
    return ", ".join([*texts[:NAMED], *more])


def _value(value: Any) -> str:
    return "nothing" if value is None else shortened(value, 60)


def _entries(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _entries(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
