"""Pictures of a record: whether they are still what was written."""

from __future__ import annotations

import hashlib
from pathlib import Path

from leaderboard.record import Record

LARGEST_PICTURE = 2**25  # bytes
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def pictures_intact(record: Record, output: Path) -> bool:
    """Whether all pictures of a record are in the output folder, whole and with the hashes that it knows of them."""
    return all(
        read_picture(output, path, record.picture_sha256.get(path)) is not None for path in record.pictures.values()
    )


def read_picture(output: Path, path: str, sha256: str | None = None) -> bytes | None:
    """A PNG inside the output folder.

    Args:
        path: relative to `output`.
        sha256: what the file's hash must be, where it is known.

    Returns None for a picture that is missing, cut short, too large, of another kind or hash, or outside the folder,
    also by a link.
    """
    if Path(path).is_absolute() or ".." in Path(path).parts:
        return None
    try:
        place = (output / path).resolve(strict=True)
        inside = place.is_relative_to(output.resolve())
        if not inside or not place.is_file() or place.stat().st_size > LARGEST_PICTURE:
            return None
        content = place.read_bytes()
    except (OSError, ValueError, RuntimeError):  # a NUL or half a character in the path, links in a circle
        return None
    whole = content.startswith(PNG_START) and content.endswith(PNG_END)
    return content if whole and sha256 in (None, hashlib.sha256(content).hexdigest()) else None
