"""Reading, writing and identifying files.

Whatever this project stores and reads again carries a checksum: JSON documents their own, files of tensors one in the
document beside them. It is verified where it is read.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from imagefolder.errors import DamagedFile, InputError, reason
from imagefolder.numerics import not_finite
from imagefolder.progress import Phase

CHECKSUM = "checksum"
LARGEST_JSON = 2**26  # bytes
BIG = 2**28  # bytes; the hash of larger files takes long enough to show progress
CHUNK = 2**24
LONGEST_WRITE = 86400  # seconds after which another machine is no longer at it


def file_sha256(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked_sha256(path: Path) -> str:
    """sha256 of a file, with progress where it is big; once per process and state of the file."""
    stat = path.stat()
    return _shown_sha256(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.lru_cache
def _shown_sha256(path: Path, size: int, *_changed: int) -> str:
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
    """Turn whatever readers of a file raise over its content into a `DamagedFile` of one line.

    Raises:
        DamagedFile: "PATH: not readable as WHAT (reason)REMEDY".
        InputError: there is no such file, or the system cannot read it.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{remedy}") from None
    except OSError as error:
        if error.errno is not None:  # of the disk or the file server: what is there may be sound
            raise InputError(f"{path}: cannot be read ({reason(error)})") from None
        raise DamagedFile(f"{path}: not readable as {what} ({reason(error)}){remedy}") from None
    except Exception as error:  # readers of archives, pickles and JSON raise almost anything over damaged content
        raise DamagedFile(f"{path}: not readable as {what} ({reason(error)}){remedy}") from None


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Store a JSON document with its checksum, atomically."""
    plain = json.loads(json.dumps(document))  # as it will be read
    text = json.dumps({**plain, CHECKSUM: _checksum(plain)}, indent=1, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """A JSON document, its checksum verified where it has one (documents from elsewhere need not) and taken off.

    Raises:
        DamagedFile: it is no JSON object, or not what was written.
        InputError: there is no such file.
    """
    with reading(path, "a JSON document", remedy):
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise ValueError(f"{size:,} bytes are too many")
        document = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        if not isinstance(document, dict):
            raise ValueError(f"it holds a {type(document).__name__}")
        checksum = document.pop(CHECKSUM, None)
        if checksum is not None and checksum != _checksum(document):
            raise ValueError("its checksum is another: damaged, or changed by hand")
    return document


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Args:
        sha256: what the file's hash must be, where it is known.

    Raises:
        DamagedFile: unreadable, another hash, or values that are not finite.
        InputError: there is no such file.
    """
    with reading(path, "safetensors"):
        if sha256 is not None and file_sha256(path) != sha256:
            raise ValueError("its sha256 is not the one stored beside it: damaged, or exchanged")
        tensors = load_file(path)
    require_finite(tensors, str(path))
    return tensors


def require_finite(tensors: Any, origin: str) -> None:
    """`DamagedFile` if tensors, in any nesting of containers, hold NaN or infinity."""
    if bad := not_finite(tensors):
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DamagedFile(f"{origin}: {bad[0]}{more} hold NaN or infinity: these weights are of no use")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary path)` and move the result to `path`, so that no half-written file is ever seen.

    What has been written survives a power failure too, and has the usual permissions. What a killed process left
    half-written of the same file is removed. Raises `OSError`, with the path and the space left, if it cannot be
    written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.tmp")
    try:
        remove_half_written(path)
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # libraries that replace the file create theirs for the owner alone
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is the last two to torch and safetensors
        if "DataLoader worker" in str(error):  # raised wherever this process is when one dies
            raise
        free = ""
        with contextlib.suppress(OSError):
            free = f" ({shutil.disk_usage(path.parent).free:,} bytes are free on its disk)"
        raise OSError(f"{path} cannot be written: {reason(error)}{free}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_half_written(path: Path) -> None:
    """Remove what killed processes left half-written of a file: those of this machine, and of others after a day."""
    for left in path.parent.glob(f"{glob.escape(f'.{path.name}.')}*.tmp"):
        host, _, pid = left.name.removeprefix(f".{path.name}.").removesuffix(".tmp").rpartition("-")
        if host == platform.node() and pid.isdecimal():
            dead = not _lives(int(pid))
        else:
            dead = time.time() - left.stat().st_mtime > LONGEST_WRITE
        if dead:
            left.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    """Whether a process works; where nobody reaps the killed ones (in containers), they stay as zombies."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's, or no such file on this system
        return True


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def weight_folders() -> list[Path]:
    """Where weight files of other projects are looked for: $IMAGEFOLDER_WEIGHTS, then torch hub's own folder."""
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if "IMAGEFOLDER_WEIGHTS" in os.environ:
        folders.insert(0, Path(os.environ["IMAGEFOLDER_WEIGHTS"]))
    return folders


def find_weights(name: str) -> Path | None:
    """The first file of this name in `weight_folders()`."""
    return next((folder / name for folder in weight_folders() if (folder / name).is_file()), None)
