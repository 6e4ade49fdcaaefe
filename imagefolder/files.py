"""Reading, writing and identifying files.

Whatever this project stores and reads again carries a checksum: JSON documents their own, files of tensors one in the
document beside them. It is verified on every read.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from imagefolder.errors import DamagedFile, InputError, one_line, reason

CHECKSUM = "checksum"
LARGEST_TEXT = 2**26  # bytes
BIG = 2**28  # bytes; hashing a larger file takes long enough to show progress
CHUNK = 2**24
LONGEST_WRITE = 86400  # seconds after which a half-written file of another machine counts as abandoned


def file_sha256(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked_sha256(path: Path) -> str:
    """sha256 of a file, computed once per process and state of the file, with progress if the file is big."""
    stat = path.stat()
    return _shown_sha256(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.lru_cache
def _shown_sha256(path: Path, size: int, *_changed: int) -> str:
    from imagefolder.progress import Phase  # terminal output is not needed to read and write files

    digest, done = hashlib.sha256(), 0
    shown = Phase(f"{path.name}: checking its hash (MiB)", size >> 20) if size >= BIG else contextlib.nullcontext()
    with shown as phase, path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if phase is not None:
                phase.update(done >> 20)
    return digest.hexdigest()


@contextlib.contextmanager
def reading(path: Path, what: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever the reader of a file raises because of its content into a `DamagedFile` of one line.

    Raises:
        DamagedFile: "PATH: not readable as WHAT (reason)REMEDY".
        InputError: the file does not exist, or the system cannot read it.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{remedy}") from None
    except OSError as error:
        if error.errno is not None:  # of the disk or the file server; the file may be intact
            raise InputError(f"{path}: cannot be read ({reason(error)})") from None
        raise DamagedFile(f"{path}: not readable as {what} ({reason(error)}){remedy}") from None
    except Exception as error:  # readers of archives, pickles and JSON raise almost anything
        raise DamagedFile(f"{path}: not readable as {what} ({reason(error)}){remedy}") from None


def read_text(path: Path) -> str:
    """Content of a UTF-8 file, line ends as they are. Raises `OSError`, or `ValueError` if it is no such file."""
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise ValueError("it is not a regular file")
    if (size := path.stat().st_size) > LARGEST_TEXT:
        raise ValueError(f"{size:,} bytes are too many")
    with path.open(encoding="utf-8", newline="") as file:
        return file.read()


def write_text(path: Path, text: str) -> Path:
    """Write a UTF-8 file as `write_atomically` does; what UTF-8 cannot encode is written as an escape."""
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", errors="backslashreplace")))
    return path


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Store a JSON document with its checksum, atomically."""
    write_text(path, json.dumps(sealed(document), indent=1, allow_nan=False))


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """A JSON document without its checksum, which is verified if there is one (documents from elsewhere have none).

    Raises:
        DamagedFile: it is not a JSON object, or not what was written.
        InputError: the file does not exist.
    """
    with reading(path, "a JSON document", remedy):
        return unsealed(json.loads(read_text(path), parse_constant=_no_constant))


def sealed(document: dict[str, Any]) -> dict[str, Any]:
    """A JSON document with its checksum."""
    plain = json.loads(json.dumps(document))  # as it will be read
    return {**plain, CHECKSUM: _checksum(plain)}


def unsealed(value: Any) -> dict[str, Any]:
    """A JSON document without its checksum, if it has one. Raises `ValueError` if it is no object or was changed."""
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}")
    plain = {key: part for key, part in value.items() if key != CHECKSUM}
    if CHECKSUM in value and value[CHECKSUM] != _checksum(plain):
        raise ValueError("its checksum does not match: damaged, or edited by hand")
    return plain


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary path)` and move the result to `path`, so that nobody ever sees a half-written file.

    The result survives a power failure and has the permissions that the umask gives. Temporary files that killed
    processes left behind for the same path are removed. Raises `OSError`, with the path and the free space, if it
    cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_half_written(path.parent, path.name)
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # libraries that replace the file create theirs for the owner alone
        _sync(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # not every file system can do this for a folder
            _sync(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise the last two on a full disk
        if "DataLoader worker" in str(error):  # torch raises this in whatever line runs when a worker dies
            raise
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> Path:
    """Copy a file as `write_atomically` writes one; returns `target`."""
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))
    return target


def unwritable(path: Path, error: BaseException) -> OSError:
    """The error to raise if `path` cannot be written because of `error`."""
    free = ""
    with contextlib.suppress(OSError):
        free = f" ({shutil.disk_usage(path.parent).free:,} bytes are free on its disk)"
    return OSError(one_line(f"{path} cannot be written: {reason(error)}{free}"))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file, and the space left on its disk, in an `OSError` raised while writing it."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def remove_half_written(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files that killed processes left in a folder: of this machine, and older ones of others.

    Args:
        name: only those of the file of this name.
    """
    mine = re.compile(rf"\.(?:{re.escape(platform.node())}-)?(\d+)\.tmp$")  # earlier versions did not name the machine
    for left in folder.glob(f".{glob.escape(name) if name else '*'}.*.tmp"):
        if match := mine.search(left.name):
            abandoned = not is_running(int(match[1]))
        else:
            abandoned = time.time() - left.stat().st_mtime > LONGEST_WRITE
        if abandoned:
            left.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether a process of this machine is running; a zombie (nobody reaps them in some containers) is not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's, or there is no /proc
        return True


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
