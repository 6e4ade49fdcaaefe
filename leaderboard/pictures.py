"""Reading the pictures of a record, and checking that they are unchanged."""

from __future__ import annotations

import hashlib
from pathlib import Path

from leaderboard.record import Record

LARGEST_PICTURE = 2**25  # bytes
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def pictures_intact(record: Record, output: Path) -> bool:
    """Whether all pictures of a record are in the output folder, complete and with the hashes stored in the record."""
    return all(
        read_picture(output, path, record.picture_sha256.get(path)) is not None for path in record.pictures.values()
    )


def read_picture(output: Path, path: str, sha256: str | None = None) -> bytes | None:
    """A PNG inside the output folder.

    Args:
        path: relative to `output`.
        sha256: the expected hash of the file, if known.

    Returns None if the picture is missing, truncated, too large, not a PNG, of another hash, or outside the folder
    (links are resolved).
    """
    if Path(path).is_absolute() or ".." in Path(path).parts:
        return None
    try:
        place = (output / path).resolve(strict=True)
        inside = place.is_relative_to(output.resolve())
        if not inside or not place.is_file() or place.stat().st_size > LARGEST_PICTURE:
            return None
        content = place.read_bytes()
    except (OSError, ValueError, RuntimeError):  # a NUL or lone surrogate in the path, circular links
        return None
    whole = content.startswith(PNG_START) and content.endswith(PNG_END)
    return content if whole and sha256 in (None, hashlib.sha256(content).hexdigest()) else None
