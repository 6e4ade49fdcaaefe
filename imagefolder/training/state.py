"""What a training keeps on disk: the state it continues from, and the best weights so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from imagefolder.distributed import is_main
from imagefolder.errors import InputError
from imagefolder.files import write_atomically

STATE, BEST = "state.pt", "best.pt"


class StateFile:
    """A file of tensors and plain values that belongs to one training, known by the hash of its settings."""

    def __init__(self, path: Path, settings_hash: str) -> None:
        self.path, self.settings_hash = path, settings_hash

    def write(self, content: dict[str, Any]) -> None:
        """Replace the content, atomically; `OSError` if there is no room for it."""
        state = {"settings_hash": self.settings_hash, **content}
        write_atomically(self.path, lambda temporary: torch.save(state, temporary))

    def read(self) -> dict[str, Any] | None:
        """The content, on the CPU, or None if there is none.

        Raises:
            InputError: the file is unreadable or of a training with other settings.
        """
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged archives and pickles raise many kinds
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{self.path} cannot be read ({reason}); delete it to start the training anew") from None
        if not isinstance(state, dict) or state.get("settings_hash") != self.settings_hash:
            raise InputError(
                f"{self.path} is of a training with other settings; train in another folder, or delete it to start anew"
            )
        return state


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half-written in a training's folder."""
    if is_main():
        for name in (STATE, BEST):
            for path in folder.glob(f".{name}.*.tmp"):
                path.unlink(missing_ok=True)


def remove_state(folder: Path) -> None:
    """Remove the files of a training that is done and saved."""
    if is_main():
        for name in (STATE, BEST):
            (folder / name).unlink(missing_ok=True)
