"""Zip archives: their directory, and members read one by one in any order."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from imagefolder.data.archive import REMEDY, Member
from imagefolder.data.disk import IMAGE_SUFFIXES, LARGEST_FILE, is_hidden
from imagefolder.errors import InputError
from imagefolder.files import reading

HEADER = struct.Struct("<4s5H3L2H")
MAGIC = b"PK\3\4"
MOST_OVERHEAD = 2**16  # bytes that deflate may add to what it cannot compress; generous
DAMAGED = f"damaged in the zip file{REMEDY}"

_ENCRYPTED = 1  # a bit of a member's flags
_MS_DOS, _UNIX = 0, 3


def read_directory(path: Path) -> Iterator[Member]:
    """All members of a zip file that are not folders. Names are normalized: "./cats/a.png" becomes "cats/a.png".

    Raises:
        InputError: naming the file, and the member where one is to blame: no readable zip, or an image that is
            encrypted, compressed in a way other than deflate, a link, or named outside the archive.
    """
    with reading(path, "a zip file", REMEDY):
        if not path.is_file():  # opening a pipe would block
            raise InputError(f"{path}: not a regular file")
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            archive.NameToInfo.clear()
            left = archive.filelist
            left.reverse()
            while left:  # each takes 0.7 kB, so ImageNet's two million are freed on the way
                info = left.pop()
                if not info.is_dir() and (member := _member(info, path, size)).name:
                    yield member


def _member(info: zipfile.ZipInfo, path: Path, size: int) -> Member:
    name = info.filename.replace("\\", "/") if info.create_system == _MS_DOS else info.filename
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.lower().endswith(IMAGE_SUFFIXES) and not any(is_hidden(part) for part in parts if part != ".."):
        origin = f"{path}: {name}"
        if name.startswith("/") or ".." in parts:
            raise InputError(f"{origin}: the name points outside the archive; create it with relative names")
        if info.create_system == _UNIX and stat.S_ISLNK(info.external_attr >> 16):
            raise InputError(f"{origin}: a link, not a regular file; store the image itself in the archive")
        if info.flag_bits & _ENCRYPTED:
            raise InputError(f"{origin}: encrypted; unpack the archive, or create it without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{origin}: compressed by method {info.compress_type}; create it with deflate or store")
        if info.header_offset + info.compress_size > size:
            raise InputError(f"{origin}: {DAMAGED}")
    name = "/".join(part for part in parts if part != "..")
    return Member(name, info.header_offset, min(info.file_size, LARGEST_FILE + 1), info.compress_size, info.CRC)


def reader(packed: int, crc: int) -> Callable[[int, int, int], bytes]:
    """How `read_unchanged` reads a member that takes `packed` bytes in its zip; 0: its bytes are as they are."""
    return partial(unpacked, packed=packed, crc=crc) if packed else os.pread


def unpacked(descriptor: int, size: int, offset: int, *, packed: int, crc: int) -> bytes:
    """The content of a member of an open zip file.

    Args:
        size: of the content, bytes; no more is ever unpacked.
        offset: of the member's header.
        packed: number of bytes the content takes in the archive.
        crc: CRC-32 of the content.

    Raises:
        ValueError: the bytes there are not this member.
    """
    header = os.pread(descriptor, HEADER.size, offset)
    if len(header) < HEADER.size:
        raise ValueError(DAMAGED)
    magic, _, _, method, *_, name_size, extra_size = HEADER.unpack(header)
    if magic != MAGIC:
        raise ValueError(DAMAGED)
    if packed > (size if method == zipfile.ZIP_STORED else size + size // 1000 + MOST_OVERHEAD):
        raise ValueError(DAMAGED)
    data = os.pread(descriptor, packed, offset + HEADER.size + name_size + extra_size)
    if method == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)  # 0 would be no limit
        except zlib.error:
            raise ValueError(DAMAGED) from None
    if len(data) != size or zlib.crc32(data) != crc:
        raise ValueError(DAMAGED)
    return data
