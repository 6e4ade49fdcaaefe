"""Rebuild the report whenever a record, a speed record or a picture of an output folder changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event

from imagefolder.errors import InputError, one_line, reason

POLL_SECONDS = 2.0
WATCHED = {"records": "record", "speed": "speed record", "pictures": "picture"}
NAMED = 3  # files that a line names; of more, it says how many

Files = dict[tuple[str, str], tuple[int, int]]


def watch(
    output: Path,
    build: Callable[[], object],
    stop: Event,
    *,
    tell: Callable[[str], None] = lambda line: print(one_line(line), flush=True),
    built: Callable[[str], None] = lambda problem: None,
) -> None:
    """Build at once, and again after every change, until `stop` is set. A build that fails is reported in one line.

    Args:
        output: the folder whose records/, speed/ and pictures/ are watched.
        build: writes the report.
        stop: ends the loop, from another thread.
        tell: called with a line per build.
        built: called after every build with what went wrong, "" if nothing.
    """
    before: Files | None = None
    while not stop.is_set():
        found = _files(output)
        if found != before:
            began, problem = time.monotonic(), ""
            try:
                build()
            except (InputError, OSError, MemoryError) as error:
                problem = reason(error)
            except Exception as error:  # nothing that a record holds may end the loop
                problem = f"{type(error).__name__}: {reason(error)}"
            result = f"not built: {problem}" if problem else f"built in {time.monotonic() - began:.1f} s"
            tell(f"{time.strftime('%H:%M:%S')} {result} ({_changes(before, found)})")
            built(problem)
            before = found
        stop.wait(POLL_SECONDS)


def _files(output: Path) -> Files:
    """Size and time of change of every file that the report is made of."""
    found: Files = {}
    for folder in WATCHED:
        with suppress(OSError), os.scandir(output / folder) as entries:
            for entry in entries:
                with suppress(OSError):  # it has just been replaced
                    if entry.is_file() and not entry.name.startswith("."):
                        stat = entry.stat()
                        found[folder, entry.name] = stat.st_size, stat.st_mtime_ns
    return found


def _changes(before: Files | None, after: Files) -> str:
    """In words: "record new: NAME; 4 pictures new, 1 gone"."""
    if before is None:
        return "first build"
    kinds = {
        "new": after.keys() - before.keys(),
        "changed": {key for key in after.keys() & before.keys() if after[key] != before[key]},
        "gone": before.keys() - after.keys(),
    }
    parts = []
    for folder, what in WATCHED.items():
        for kind, keys in kinds.items():
            names = sorted(Path(name).stem for place, name in keys if place == folder)
            if len(names) > NAMED:
                parts.append(f"{len(names)} {what}s {kind}")
            elif names:
                parts.append(f"{what}{'s' * (len(names) > 1)} {kind}: {', '.join(names)}")
    return "; ".join(parts)
