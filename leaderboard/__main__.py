"""`python -m leaderboard`: build the report from the stored records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

from imagefolder.cli import command_line
from imagefolder.errors import one_line
from leaderboard.reported import REPORTED_CSV
from leaderboard.store import RecordError, read_records, read_speed


def main(output: Path = Path("runs"), reported: Path = REPORTED_CSV, all_kinds: bool = False) -> int:
    """Build report.html, report.md, leaderboard.csv, claims.csv and speed.csv from the stored records.

    Unusable records are named and left out. The exit code is 2 if no record is usable.

    Args:
        output: folder with records/, pictures/ and speed/; the report is written there.
        reported: CSV file of published numbers.
        all_kinds: also list reported GANs, one-step systems, tokenizers, ablations and references.
    """
    records = read_records(output / "records")
    speed = read_speed(output / "speed")
    if not records and not speed:
        for line in (left_out := (*records.left_out, *speed.left_out)):
            print(f"error: {line}", file=sys.stderr)
        if left_out:
            return 2
        places = f"{output / 'records'} or {output / 'speed'}"
        raise RecordError(f"no records in {places}: run `python reproductions/table2.py` first")

    from leaderboard.report import build_report

    for path in build_report(output, records, reported, all_kinds=all_kinds, speed=speed):
        print(one_line(path))
    return 0


def command() -> NoReturn:
    """`main` with the arguments of the command line."""
    command_line(main, prog="python -m leaderboard")


if __name__ == "__main__":
    command()
