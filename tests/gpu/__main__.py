"""Everything that a GPU must show, in one go: `python -m tests.gpu` from the root of the checkout."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal, NoReturn

from imagefolder.cli import command_line
from imagefolder.errors import InputError, one_line
from tests.gpu.item import Item, Result
from tests.gpu.items import ITEMS
from tests.gpu.runner import run_items
from tests.gpu.summary import write_summary

INTERRUPTED = 130  # the exit code of a shell's command that Ctrl-C ended


def main() -> NoReturn:
    """The command; its exit code is 1 if an item failed, whether goals are met or not."""
    command_line(run, prog="python -m tests.gpu")


def run(
    minutes: float = 8.0,
    device: Literal["cuda", "cpu"] = "cuda",
    output: Path = Path("runs"),
    only: tuple[str, ...] = (),
) -> int:
    """Check and measure on a GPU, most important things first: results, speed, precisions, processes, memory.

    OUTPUT/gpu/summary.md and summary.json are rewritten after every item, and speed records are stored in OUTPUT/speed
    as they are made, so an interrupted run has shown what it had done.

    Args:
        minutes: that all of it may take.
        device: cpu is a dry mode at tiny sizes: it shows that the items run, and says nothing about speed.
        output: folder of records and summary.
        only: names of the items to run.
    """
    unknown = [name for name in only if name not in {item.name for item in ITEMS}]
    if unknown:
        raise InputError(f"no item is named {', '.join(unknown)}; there are: {', '.join(item.name for item in ITEMS)}")
    items = [item for item in ITEMS if not only or item.name in only]
    (output / "gpu").mkdir(parents=True, exist_ok=True)
    results: dict[str, Result] = {}
    machine: dict[str, Any] = {}
    clock = time.monotonic()

    def report(item: Item, result: Result) -> None:
        results[item.name] = result
        goal = f" (goal: {result.goal})" if result.goal else ""
        write_summary(output / "gpu", items, results, machine, time.monotonic() - clock)
        print(one_line(f"{item.name}: {result.value}{goal} {result.in_words}, {result.seconds:.1f} s"), flush=True)

    summary = output / "gpu" / "summary.md"
    try:
        run_items(items, device, output, 60 * minutes, machine, report)
    except KeyboardInterrupt:
        print(one_line(f"interrupted; {summary} has what was measured, and --only chooses what is missing"))
        return INTERRUPTED
    print(one_line(f"{summary} has the table; `python -m leaderboard --output {output}` the report"))
    return 1 if any(result.verdict == "failed" for result in results.values()) else 0


if __name__ == "__main__":
    main()
