"""The summary of a run, as Markdown for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imagefolder.errors import one_line
from imagefolder.files import write_json, write_text
from tests.gpu.item import Item, Result

PENDING = Result("not run", reason="not reached")


def write_summary(
    folder: Path, items: Sequence[Item], results: Mapping[str, Result], machine: Mapping[str, Any], seconds: float
) -> None:
    """Replace `summary.md` and `summary.json` in `folder`.

    Args:
        items: all of them, in order.
        results: by name, of those that are done; the others count as not reached.
        machine: as from `environment.describe`; empty while nothing is known.
        seconds: since the start.
    """
    rows = [(item, results.get(item.name, PENDING)) for item in items]
    document = {
        "machine": dict(machine),
        "seconds": round(seconds, 1),
        "items": [
            {
                "name": item.name,
                "about": item.about,
                "verdict": result.verdict,
                "reason": result.reason,
                "value": result.value,
                "goal": result.goal,
                "numbers": result.numbers,
                "seconds": round(result.seconds, 1),
            }
            for item, result in rows
        ],
    }
    write_json(folder / "summary.json", document)
    write_text(folder / "summary.md", _markdown(rows, machine, seconds))


def _markdown(rows: Sequence[tuple[Item, Result]], machine: Mapping[str, Any], seconds: float) -> str:
    verdicts = [result.verdict for _, result in rows]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    lines = [f"# {machine.get('gpu') or 'No GPU: dry mode at tiny sizes'}", ""]
    if machine:
        commit = f"commit {str(machine['git_commit'])[:12]}{' and changes' if machine['git_dirty'] else ''}"
        lines += [f"{machine['cpu']}, torch {machine['packages']['torch']}, {commit}.", ""]
    lines += [
        f"{counts}; {seconds:,.0f} s.",
        "",
        "| item | what | result | goal | verdict | s |",
        "|---|---|---|---|---|---|",
    ]
    for item, result in rows:
        cells = (item.name, item.about, result.value, result.goal, result.in_words, f"{result.seconds:.0f}")
        lines.append("| " + " | ".join(one_line(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
