"""Our files: written atomically, verified by checksums; damage is distinguished from read errors of the system."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imagefolder.errors import DamagedFile, InputError
from imagefolder.files import read_json, reading, write_atomically, write_json
from imagefolder.tensors import read_tensors


def test_a_document_comes_back_and_any_change_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"steps": (1, 2), "text": "é"})
    assert read_json(path) == {"steps": [1, 2], "text": "é"}
    data = path.read_bytes()
    for place in range(data.index(b'"checksum"')):
        path.write_bytes(data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :])
        with pytest.raises(DamagedFile, match=str(path)):
            read_json(path)


def test_what_the_system_cannot_read_is_not_called_damaged(tmp_path: Path) -> None:
    """A temporary failure of a file server is no reason to replace an intact file."""
    with pytest.raises(InputError, match="cannot be read") as caught, reading(tmp_path / "x", "a file"):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    assert not isinstance(caught.value, DamagedFile)
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "nothing")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"good": torch.zeros(2), "bad": torch.tensor([0.0, value])}, path)
    with pytest.raises(DamagedFile, match="bad"):
        read_tensors(path)


def test_a_full_disk_is_reported_with_the_file_and_the_free_space(tmp_path: Path) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"a\.bin cannot be written: .*No space left.* \([\d,]+ bytes are free"):
        write_atomically(tmp_path / "a.bin", full)
    assert list(tmp_path.iterdir()) == []


def test_half_written_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = {
        "dead": tmp_path / f".a.bin.{platform.node()}-{dead.pid}.tmp",
        "alive": tmp_path / f".a.bin.{platform.node()}-{os.getppid()}.tmp",
        "elsewhere": tmp_path / ".a.bin.other-node-7.tmp",
        "elsewhere, long ago": tmp_path / ".a.bin.other-node-8.tmp",
        "of another file": tmp_path / f".b.bin.{platform.node()}-{dead.pid}.tmp",
    }
    for path in left.values():
        path.write_bytes(b"half")
    os.utime(left["elsewhere, long ago"], (0, time.time() - 2 * 86400))
    write_atomically(tmp_path / "a.bin", lambda path: path.write_bytes(b"whole"))
    assert {name for name, path in left.items() if path.exists()} == {"alive", "elsewhere", "of another file"}
