"""Commands called from a test."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest


def run(command: Callable[[], object], *arguments: object) -> int:
    """The exit code of a command with these arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            command()
    assert isinstance(end.value.code, int)
    return end.value.code
