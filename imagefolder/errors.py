"""The one exception for what a user can put right, and text of foreign origin made fit for people's eyes."""

from __future__ import annotations

import re

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")


class InputError(ValueError):
    """Bad input: the message says what is wrong, with which file or value, and what to do.

    It is one line that any terminal can show. Entry points print it and exit with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class DamagedFile(InputError):
    """A file whose content is not what was written: cut short, changed, or of another kind."""


def one_line(text: object) -> str:
    """A message, or the name of something from elsewhere, as one line of what can be shown and stored as UTF-8.

    Control characters (of terminals, of writing direction) and bytes that are no text are shown by their codes.
    """
    lines = " ".join(str(text).split("\n")) if "\n" in str(text) else str(text)
    return _UNPRINTABLE.sub(_code, lines.replace("\t", " ").replace("\r", " ")).strip()


def reason(error: BaseException) -> str:
    """What an exception says, or its kind if it says nothing, in one line of at most 300 characters."""
    text = one_line(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"


def _code(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
