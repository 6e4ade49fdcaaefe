"""Escaping of text for Markdown and spreadsheets."""

from __future__ import annotations

import re

from imagefolder.errors import one_line, printable

_FORMULA = tuple("=+-@\t\r＝＋－＠")  # East Asian spreadsheet programs accept the full-width characters, too
_ADDRESS = re.compile(r"(:|\bwww)([/.])", re.IGNORECASE)  # Markdown renders addresses as links
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
