"""Reading and writing text files so that nothing is half-read, half-written or lost without a word."""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import shutil
from pathlib import Path

from leaderboard.text import one_line, reason

LARGEST_FILE = 2**26  # bytes


def read_text(path: Path) -> str:
    """The content of a UTF-8 file. Raises OSError, or ValueError for what is no such file."""
    if path.exists() and not path.is_file():  # reading a pipe would wait forever
        raise ValueError("it is no file")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(f"{size:,} bytes are too many")
    with path.open(encoding="utf-8", newline="") as file:
        return file.read()


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` in one step: after a failure the old file is untouched and no other file is left.

    What has been written survives a power failure too, and what a killed process left half-written of the same file is
    removed. Raises OSError (one line) that names the file and the space left on its disk.
    """
    # In the same folder because os.replace is atomic only within one file system; the process keeps writers apart
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_half_written(path)
        with temporary.open("wb") as file:
            file.write(text.encode("utf-8", errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    _sync(path.parent)
    return path


def unwritable(path: Path, error: BaseException) -> OSError:
    """The error to raise where `path` cannot be written because of `error`."""
    free = ""
    with contextlib.suppress(OSError):
        free = f" ({shutil.disk_usage(path.parent).free:,} bytes are free on its disk)"
    return OSError(one_line(f"{path} cannot be written: {reason(error)}{free}"))


def _remove_half_written(path: Path) -> None:
    """Remove what processes of this machine that are no more left half-written of a file."""
    prefix = f".{path.name}."
    for left in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        # Earlier versions named the process alone
        process = left.name.removeprefix(prefix).removesuffix(".tmp").removeprefix(f"{platform.node()}-")
        if process.isdecimal() and not _lives(int(process)):
            left.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Whether a process works; where nobody reaps the killed ones (in containers), they stay as zombies."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's, or no such file on this system
        return True


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where its file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
