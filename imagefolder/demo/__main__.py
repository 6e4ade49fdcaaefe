"""`python -m imagefolder.demo`: serve the page on this machine."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from imagefolder.cli import command_line
from imagefolder.errors import InputError


def main() -> NoReturn:
    """Entry point."""
    command_line(serve, prog="python -m imagefolder.demo")


def serve(runs: tuple[Path, ...] = (Path("runs"),), port: int = 7860, open: bool = False) -> None:
    """Show trained models in the browser: samples that grow scale by scale, reconstructions, swapped branches.

    Args:
        runs: folders to search for models: outputs of the scripts, or the folders of single models
        port: of the page, which only this machine can reach
        open: open the page in the browser
    """
    if not 0 < port < 2**16:
        raise InputError(f"--port must lie in 1..{2**16 - 1}, not {port}")
    if find_spec("gradio") is None:
        raise InputError("the demo needs gradio, which is not installed; run: pip install gradio")
    from imagefolder.demo.page import launch

    launch(runs, port, open)


if __name__ == "__main__":
    main()
