"""Reading the pictures of a record, checking that they are unchanged, and making them small."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path

from leaderboard.record import Record

LARGEST_PICTURE = 2**25  # bytes
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
EMBEDDED = 300  # pictures that a page holds in full; beyond that it holds small ones, and links
SMALL = 240  # pixels of a small picture's longer side
LARGEST_SIDE = 2**14  # pixels; anything larger is no picture of ours


@dataclass(frozen=True)
class Picture:
    """One picture of a row."""

    row: str
    anchor: str
    """of the row"""
    caption: str
    seed: int
    path: str
    """relative to the output folder"""
    data: bytes
    """b"" if it is missing or damaged"""
    is_small: bool = False
    """whether `data` is less than the file"""

    @property
    def base64(self) -> str:
        return base64.b64encode(self.data).decode()


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
    try:
        if (place := picture_file(output, path)) is None:
            return None
        content = place.read_bytes()
    except OSError:
        return None
    whole = content.startswith(PNG_START) and content.endswith(PNG_END)
    return content if whole and sha256 in (None, hashlib.sha256(content).hexdigest()) else None


def picture_file(output: Path, path: str) -> Path | None:
    """The file of a picture inside the output folder (links are resolved); None if it is missing or too large."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        return None
    try:
        place = (output / path).resolve(strict=True)
        inside = place.is_relative_to(output.resolve())
        return place if inside and place.is_file() and place.stat().st_size <= LARGEST_PICTURE else None
    except (OSError, ValueError, RuntimeError):  # a NUL or lone surrogate in the path, circular links
        return None


def small(picture: Picture) -> Picture:
    """The picture with at most `SMALL` pixels a side; as it is if it is that small, or cannot be drawn."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(picture.data)) as image:
            if max(image.size) <= SMALL or max(image.size) > LARGEST_SIDE:
                return picture
            image = image.convert("RGB")
            image.thumbnail((SMALL, SMALL), Image.Resampling.BOX)
            target = io.BytesIO()
            image.save(target, "PNG", optimize=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises for a broken file
        return picture
    return replace(picture, data=target.getvalue(), is_small=True)
