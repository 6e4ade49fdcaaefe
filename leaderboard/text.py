"""Text of foreign origin, made fit for terminals, pages, Markdown and spreadsheets."""

from __future__ import annotations

import re
import sys

LONGEST = 10_000  # characters of a string in a record; what is longer is no name and no sentence

_UNPRINTABLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]"
)  # all but the newline
_FORMULA = tuple("=+-@\t\r＝＋－＠")  # programs for East Asian languages take the wide ones for the same
_ADDRESS = re.compile(r"(:|\bwww)([/.])", re.IGNORECASE)  # what Markdown would make a link of
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


def printable(text: str) -> str:
    """Text that can be shown and stored as UTF-8; its lines stay.

    Control characters (of terminals, of writing direction) and bytes that are no text are shown by their codes.
    """
    return _UNPRINTABLE.sub(_code, text)


def _code(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def one_line(text: object) -> str:
    """A message, or the name of something from elsewhere, as one line of `printable` text."""
    return printable(re.sub("[\n\t\r]", " ", str(text))).strip()


def shortened(text: object, longest: int = 300) -> str:
    """`text` as one line that ends in "…" where it had to be cut."""
    line = one_line(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def reason(error: BaseException) -> str:
    """What an exception says, or its kind if it says nothing, in one short line."""
    return shortened(" ".join(str(error).split())) or type(error).__name__


def tell(text: object) -> None:
    """Print one line to stderr."""
    print(one_line(text), file=sys.stderr)


def markdown_text(value: object) -> str:
    """`value` as literal text of a Markdown table cell, or of a line that begins with words of our own."""
    text = printable(" ".join(str(value).split()))
    for character in "\\`*_[]|~":
        text = text.replace(character, f"\\{character}")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _ADDRESS.sub(lambda match: f"{match[1]}&#{ord(match[2])};", text)


def spreadsheet_text(value: object) -> object:
    """A cell of a CSV file: no program that opens the file takes a text for a formula. Numbers stay what they are."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
