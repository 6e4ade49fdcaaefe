"""Files of a run: for their owner alone, whole or not there, with checksums, and errors that name them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slurm.stage import SlurmError

CHECKSUM = "checksum"
PRIVATE = 0o077
"""umask for what only its owner may read"""
FORGOTTEN = 86_400.0
"""seconds after which another machine's half-written file is nobody's any more"""


@contextlib.contextmanager
def umask(mask: int) -> Iterator[int]:
    """Files are created with this umask meanwhile, in the whole process. Yields the one that is in force otherwise."""
    usual = os.umask(mask)
    try:
        yield usual
    finally:
        os.umask(usual)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `SlurmError` that names what cannot be written, and says so of a full disk."""
    try:
        yield
    except OSError as error:
        free = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                free = f" ({shutil.disk_usage(path.parent).free:,} bytes are free on its disk)"
        raise SlurmError(f"{error.filename or path} cannot be written: {error.strerror or error}{free}") from None


def opened(path: Path, flags: int) -> int:
    """Descriptor of a plain file, created for its owner alone; a pipe in its place does not make anybody wait.

    Raises:
        OSError: it cannot be opened, or is something else than a file.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except ValueError:  # NUL, or what no file system can store
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is no plain file", str(path))
    return descriptor


def read(path: Path, most: int = 2**30) -> bytes | None:
    """Content of a file, None if there is none. Raises `SlurmError` naming it if it cannot be read, or is too big."""
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


def write(path: Path, content: bytes) -> None:
    """Create or replace a file, for its owner alone, so that nobody ever sees half of it, not even after a power cut.

    Raises:
        SlurmError: it cannot be written; an earlier one of the name is as it was.
    """
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")
    with writing(path):
        try:
            with open(opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def remove_half_written(folder: Path) -> None:
    """Remove what killed processes have left half-written in a folder."""
    for path in folder.glob(".*.tmp"):
        host, _, pid = path.name.removesuffix(".tmp").rpartition("-")
        with contextlib.suppress(OSError):
            mine = host.endswith(f".{platform.node()}") and pid.isdigit()
            if not _lives(int(pid)) if mine else time.time() - path.stat().st_mtime > FORGOTTEN:
                path.unlink()


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """A JSON document with its checksum."""
    plain = json.loads(json.dumps(document))  # as it will be read
    return {**plain, CHECKSUM: _checksum(plain)}


def parsed(text: str | bytes, strict: bool = False) -> dict[str, Any] | None:
    """A JSON document less its checksum; None if it is no JSON object, or not what was written.

    One without a checksum is taken, unless `strict`: the reader then looks himself whether all is there.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    checksum = value.pop(CHECKSUM, None)
    return value if checksum == _checksum(value) or (checksum is None and not strict) else None


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _lives(pid: int) -> bool:
    """Whether a process works; where nobody reaps the killed ones (in containers), they stay as zombies."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no such file on this system
        return True
