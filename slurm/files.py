"""Private files of a run: opened without waiting for a pipe, with checksums, and with errors that name them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagefolder.files import unsealed
from slurm.stage import SlurmError

PRIVATE = 0o077
"""umask of files that only their owner may read"""


@contextlib.contextmanager
def umask(mask: int) -> Iterator[int]:
    """Create files with this umask, in the whole process. Yields the usual one."""
    usual = os.umask(mask)
    try:
        yield usual
    finally:
        os.umask(usual)


def opened(path: Path, flags: int) -> int:
    """Descriptor of a regular file, which is created for its owner alone; does not wait for the writer of a pipe.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except ValueError:  # NUL, or characters that no file system can store
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file", str(path))
    return descriptor


def read(path: Path, most: int = 2**30) -> bytes | None:
    """Content of a file, None if there is none. Raises `SlurmError` if it cannot be read, or has more bytes."""
    try:
        with open(opened(path, os.O_RDONLY), "rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SlurmError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > most:
        raise SlurmError(f"{path} cannot be read: it has more than {most:,} bytes")
    return content


def parsed(text: str | bytes) -> dict[str, Any] | None:
    """A JSON object without its checksum, if it has one; None if it is not a JSON object, or not as written."""
    try:
        return unsealed(json.loads(text))
    except (ValueError, RecursionError):
        return None
