"""The exception for errors that the user can fix, and text of foreign origin made fit for display."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]"
)  # all but the newline
_BREAKS = str.maketrans("\n\t\r", "   ")


class InputError(ValueError):
    """Bad input: the message names the problem, the file or value, and the remedy.

    It is one line that any terminal can show. Commands print it and exit with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class DamagedFile(InputError):
    """A file whose content is not what was written: truncated, modified, or of another kind."""


def printable(text: str) -> str:
    """Text that can be displayed and stored as UTF-8, line breaks kept.

    Control characters (of terminals, of text direction) and bytes that are not UTF-8 are replaced by their codes.
    """
    return _UNPRINTABLE.sub(_code, text)


def one_line(text: object) -> str:
    """A message, or a name from elsewhere, as one line of `printable` text."""
    return printable(str(text).translate(_BREAKS)).strip()


def shortened(text: object, longest: int = 300) -> str:
    """`text` as one line that ends in "…" if it had to be cut."""
    line = one_line(text)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def reason(error: BaseException) -> str:
    """The message of an exception, or its type if it has none, in one line of at most 300 characters."""
    return shortened(" ".join(str(error).split())) or type(error).__name__


def _code(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
