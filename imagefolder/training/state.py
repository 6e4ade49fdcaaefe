"""What a training keeps on disk: the state it resumes from, the state before that, and the best weights so far."""

from __future__ import annotations

import contextlib
import glob
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from imagefolder.distributed import is_main
from imagefolder.errors import DamagedFile, InputError
from imagefolder.files import reading, write_atomically
from imagefolder.progress import console
from imagefolder.tensors import require_finite

STATE, PREVIOUS, BEST = "state.pt", "state.previous.pt", "best.pt"


class StateFile:
    """A file of tensors and plain values that belongs to one training, identified by the hash of its settings.

    With `previous`, the content before the last `write` is kept under that name, in case the newer file turns out to be
    damaged.
    """

    def __init__(self, path: Path, settings_hash: str, previous: str | None = None) -> None:
        self.path, self.settings_hash = path, settings_hash
        self.previous = None if previous is None else path.with_name(previous)
        self.damaged = False
        """the last state turned out to be damaged: it must not replace the one before it"""

    def write(self, content: dict[str, Any]) -> None:
        """Replace the content atomically; `OSError` if it cannot be written."""
        state = {"settings_hash": self.settings_hash, **content}

        def save(temporary: Path) -> None:
            torch.save(state, temporary)
            if self.previous is not None and self.path.exists() and not self.damaged:
                os.replace(self.path, self.previous)  # where `read` finds it if this process is killed now

        write_atomically(self.path, save)
        self.damaged = False

    def read(self) -> dict[str, Any] | None:
        """The content, on the CPU, or None if there is none; the previous one if the last is damaged.

        Raises:
            DamagedFile: no file is readable.
            InputError: the file belongs to a training with other settings.
        """
        files = [path for path in (self.path, self.previous) if path is not None and path.exists()]
        for number, path in enumerate(files, 1):
            try:
                return self._read(path)
            except DamagedFile as error:
                if number == len(files):
                    raise
                self.damaged = True
                if is_main():
                    console.print(f"{error}; resuming from the state before it")
        return None

    def _read(self, path: Path) -> dict[str, Any]:
        remedy = f"; delete {path.name} (and everything else in its folder) to restart the training"
        with reading(path, "a saved state", remedy):
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:  # torch stores checksums but does not verify them
                    raise ValueError(f"the checksum of {damaged} does not match")
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise ValueError(f"it holds a {type(state).__name__}")
            require_finite(state, str(path))
        if state.get("settings_hash") != self.settings_hash:
            raise InputError(
                f"{path} belongs to a training with other settings; train in another folder, or delete it to start over"
            )
        return state


def saved_step(folder: Path) -> int:
    """The step that the training in `folder` would resume from; 0 if there is no saved state, or none is readable."""
    for path in (folder / STATE, folder / PREVIOUS):
        with contextlib.suppress(Exception):  # whatever damage does to a pickle; resuming reports it
            return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"])
    return 0


def remove_state(folder: Path) -> None:
    """Remove the state files of a finished training, and what any machine left half-written of them."""
    if is_main():
        for name in (STATE, PREVIOUS, BEST):
            (folder / name).unlink(missing_ok=True)
            for left in folder.glob(f".{glob.escape(name)}.*.tmp"):
                left.unlink(missing_ok=True)
