"""What a training keeps on disk: the state it continues from, the one before it, and the best weights so far."""

from __future__ import annotations

import glob
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from imagefolder.distributed import is_main
from imagefolder.errors import DamagedFile, InputError
from imagefolder.files import reading, remove_half_written, require_finite, write_atomically
from imagefolder.progress import console

STATE, PREVIOUS, BEST = "state.pt", "state.previous.pt", "best.pt"


class StateFile:
    """A file of tensors and plain values that belongs to one training, known by the hash of its settings.

    With `previous`, the content before the last `write` is kept in a file of that name, for when the newer one turns
    out damaged.
    """

    def __init__(self, path: Path, settings_hash: str, previous: str | None = None) -> None:
        self.path, self.settings_hash = path, settings_hash
        self.previous = None if previous is None else path.with_name(previous)
        self.damaged = False
        """the last state turned out damaged: it is not to replace the one before it"""

    def write(self, content: dict[str, Any]) -> None:
        """Replace the content, atomically; `OSError` if there is no room for it."""
        state = {"settings_hash": self.settings_hash, **content}

        def save(temporary: Path) -> None:
            torch.save(state, temporary)
            if self.previous is not None and self.path.exists() and not self.damaged:
                os.replace(self.path, self.previous)  # `read` finds it there if this process is killed now

        write_atomically(self.path, save)
        self.damaged = False

    def read(self) -> dict[str, Any] | None:
        """The content, on the CPU, or None if there is none; the previous one where the last is damaged.

        Raises:
            DamagedFile: what is there is unreadable.
            InputError: it is of a training with other settings.
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
                    console.print(f"{error}; going on from the state before it")
        return None

    def _read(self, path: Path) -> dict[str, Any]:
        remedy = f"; delete {path.name} (and what else is in its folder) to start the training anew"
        with reading(path, "a saved state", remedy):
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:  # torch stores checksums but does not read them
                    raise ValueError(f"the checksum of {damaged} is another")
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict):
                raise ValueError(f"it holds a {type(state).__name__}")
            require_finite(state, str(path))
        if state.get("settings_hash") != self.settings_hash:
            raise InputError(
                f"{path} is of a training with other settings; train in another folder, or delete it to start anew"
            )
        return state


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes of this machine left half-written in a training's folder."""
    if is_main():
        for name in (STATE, BEST):
            remove_half_written(folder / name)


def remove_state(folder: Path) -> None:
    """Remove the files of a training that is done and saved, also what was left half-written elsewhere."""
    if is_main():
        for name in (STATE, PREVIOUS, BEST):
            (folder / name).unlink(missing_ok=True)
            for left in folder.glob(f".{glob.escape(name)}.*.tmp"):
                left.unlink(missing_ok=True)
