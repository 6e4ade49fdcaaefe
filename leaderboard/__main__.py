"""`python -m leaderboard`: build the report from the stored records."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from leaderboard.report import build_report
from leaderboard.store import RecordError, read_records, read_speed
from leaderboard.text import one_line, tell

REPORTED_CSV = Path(__file__).parent.parent / "reproductions/reported/imagenet256.csv"


def main(output: Path = Path("runs"), reported: Path = REPORTED_CSV, all_kinds: bool = False) -> int:
    """Build report.html, report.md, leaderboard.csv, claims.csv and speed.csv from the records of earlier runs.

    Records that cannot be used are named and left out. The exit status is 2 if none can be used.

    Args:
        output: folder that holds records/, pictures/ and speed/ and receives the files.
        reported: CSV file of the numbers reported by others.
        all_kinds: also list reported GANs, one-step systems, tokenizers, ablations and references.
    """
    try:
        records = read_records(output / "records")
        speed = read_speed(output / "speed")
        if not records and not speed:
            nothing = (
                f"no records in {output / 'records'} or {output / 'speed'}: run `python reproductions/table2.py` first"
            )
            for line in (*records.left_out, *speed.left_out) or (nothing,):
                tell(line)
            return 2
        for path in build_report(output, records, reported, all_kinds, speed):
            print(one_line(path))
    except (OSError, RecordError) as error:
        tell(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
