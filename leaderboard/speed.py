"""`python -m leaderboard.speed`: store the benchmarks of a pytest-benchmark file, or compare two such files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import ValidationError
from tyro.conf import Positional

from imagefolder.cli import subcommands
from imagefolder.errors import one_line, reason, shortened
from leaderboard.record import Run
from leaderboard.speed_record import SpeedRecord, machine_text
from leaderboard.store import RecordError, first_problem, read_json, write_record

NOISE = 0.03  # medians closer than this count as equal, however narrow their quartiles
WIDTH = 200  # of a table that goes to a file or pipe, so that no case is cut
COLOURS = {"faster": "green", "slower": "red"}

Change = Literal["same within noise", "faster", "slower", "only in OLD", "only in NEW", "no fraction of peak"]
Quartiles = tuple[float, float, float]


def read_benchmarks(path: Path) -> list[SpeedRecord]:
    """The benchmarks of a file that `pytest --benchmark-only --benchmark-json FILE` wrote, in its order.

    Benchmarks without the `extra_info` of this project are skipped, and their number is printed to stderr. Raises
    RecordError (one line, naming the file) if the file or one of its benchmarks is invalid.
    """
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: not readable as JSON ({reason(error)}); run the benchmarks again") from error
    if not isinstance(data, dict) or not all(key in data for key in ("benchmarks", "machine_info", "datetime")):
        raise RecordError(f"{path}: not a file of `pytest --benchmark-only --benchmark-json FILE`")
    entries, machine_info, date = data["benchmarks"], data["machine_info"], data["datetime"]
    machine = machine_info.get("imagefolder") if isinstance(machine_info, dict) else None
    if not isinstance(machine, dict):
        raise RecordError(f"{path}: machine_info has no 'imagefolder': not from the benchmarks of this project")
    if not isinstance(entries, list):
        raise RecordError(f"{path}: its benchmarks are not a list; run the benchmarks again")
    ours = [entry for entry in entries if _is_ours(entry)]
    if not ours:
        raise RecordError(f"{path}: none of its {len(entries)} benchmarks has the extra_info of this project")
    if skipped := len(entries) - len(ours):
        line = f"{path}: {skipped} of {len(entries)} benchmarks skipped: no extra_info of this project"
        print(one_line(line), file=sys.stderr)
    records = [_speed_record(path, entry, machine, date) for entry in ours]
    by_name: dict[str, SpeedRecord] = {}
    for record in records:
        if record.name in by_name:
            both = " and ".join(shortened(r.benchmark) for r in (by_name[record.name], record))
            case = shortened(record.label)
            raise RecordError(f"{path}: {both} are one case ({case}): one would replace the other")
        by_name[record.name] = record
    return records


def _is_ours(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("extra_info"), dict) and "stage" in entry["extra_info"]


def _speed_record(path: Path, entry: dict[str, Any], machine: dict[str, Any], date: Any) -> SpeedRecord:
    benchmark, stats = entry.get("fullname"), entry.get("stats")
    if not isinstance(benchmark, str) or not isinstance(stats, dict):
        raise RecordError(f"{path}: a benchmark has no fullname or no stats; run the benchmarks again")
    taken = {f"{name}_seconds": stats.get(name) for name in ("median", "q1", "q3")} | {"rounds": stats.get("rounds")}
    try:
        # pytest-benchmark stores one time for the whole file and no command line; this command repeats the case
        command = f"pytest --benchmark-only {shlex.quote(benchmark)}"
        run = Run.model_validate(machine | {"started": date, "finished": date, "command": command})
        values = entry["extra_info"] | taken | {"benchmark": benchmark, "run": run}
        return SpeedRecord.model_validate(values)
    except ValidationError as error:
        name = shortened(benchmark)
        raise RecordError(f"{path}: {name}: {first_problem(error)}; run the benchmarks again") from error


@dataclass(frozen=True)
class SpeedChange:
    """One case of two files. `old` and `new` are the compared values as text, "" if a file lacks the case."""

    case: str
    old: str
    new: str
    ratio: float | None
    verdict: Change
    by_fraction: bool
    """whether fractions of the machines' peaks were compared, and not times"""


def compare_benchmarks(
    old: list[SpeedRecord], new: list[SpeedRecord], *, other_machine: bool = False
) -> list[SpeedChange]:
    """Every case of either list, in the order of the old one.

    On one machine the times of a call are compared, on different machines the fractions of their peaks. Raises
    RecordError (one line) for different machines without `other_machine`.
    """
    machines = [sorted({record.machine for record in records}, key=repr) for records in (old, new)]
    same = machines[0] == machines[1]
    if not same and not other_machine:
        before, after = ("; ".join(machine_text(machine) for machine in found) for found in machines)
        raise RecordError(
            f"different machines ({before} against {after}): their times are not comparable; --other-machine compares "
            "fractions of each machine's peak"
        )
    olds, news = _by_case(old, same), _by_case(new, same)
    return [_compare(olds.get(key), news.get(key), same) for key in dict.fromkeys([*olds, *news])]


def _by_case(records: list[SpeedRecord], with_threads: bool) -> dict[tuple[Any, ...], SpeedRecord]:
    cases: dict[tuple[Any, ...], SpeedRecord] = {}
    for record in records:
        key = (record.case, record.threads if with_threads else 0)
        if key in cases:
            raise RecordError(
                f"{record.label}: measured with several numbers of threads; other machines compare with one only"
            )
        cases[key] = record
    return cases


def _compare(old: SpeedRecord | None, new: SpeedRecord | None, same_machine: bool) -> SpeedChange:
    record = old or new
    assert record is not None
    show: Callable[[SpeedRecord | None], str] = _seconds_text if same_machine else _fraction_text

    def change(ratio: float | None, verdict: Change) -> SpeedChange:
        return SpeedChange(record.label, show(old), show(new), ratio, verdict, not same_machine)

    if old is None or new is None:
        return change(None, "only in NEW" if old is None else "only in OLD")
    if not same_machine and (old.fraction_of_peak is None or new.fraction_of_peak is None):
        return change(None, "no fraction of peak")
    before, after = _cost(old, same_machine), _cost(new, same_machine)
    ratio = after[1] / before[1]
    return change(ratio if same_machine else 1 / ratio, _verdict(before, after))


def _cost(record: SpeedRecord, same_machine: bool) -> Quartiles:
    """Quartiles and median of the cost of a call: seconds, or the reciprocal of the fraction of peak."""
    scale = 1.0 if same_machine else record.peak_flops / record.flops
    return record.q1_seconds * scale, record.median_seconds * scale, record.q3_seconds * scale


def _verdict(old: Quartiles, new: Quartiles) -> Change:
    """A change needs quartiles that do not overlap, and medians that differ by more than NOISE of the smaller one."""
    (low, median, high), (new_low, new_median, new_high) = old, new
    apart = high < new_low or new_high < low
    if not apart or max(median, new_median) <= (1 + NOISE) * min(median, new_median):
        return "same within noise"
    return "slower" if new_median > median else "faster"


def _seconds_text(record: SpeedRecord | None) -> str:
    if record is None:
        return ""
    milliseconds = 1000 * record.median_seconds
    text = f"{milliseconds:,.0f} ms" if milliseconds >= 1000 else f"{milliseconds:.4g} ms"
    return text if record.is_steady else f"{text}, unsteady"


def _fraction_text(record: SpeedRecord | None) -> str:
    fraction = record.fraction_of_peak if record else None
    if record is None or fraction is None:
        return ""
    return f"{100 * fraction:.3g}%{'' if record.is_steady else ', unsteady'}"


def add(file: Positional[Path], output: Path = Path("runs")) -> int:
    """Store the results of a benchmark file as records.

    Args:
        file: written by `pytest --benchmark-only --benchmark-json FILE`.
        output: output folder of the reproductions; the records are stored in its speed/ folder.
    """
    records = read_benchmarks(file)
    for record in records:
        write_record(output / "speed", record)
        if not record.is_steady:
            print(one_line(f"unsteady: {record.label}: its quartiles lie far apart, on an idle machine they would not"))
    again = "python -m leaderboard" + ("" if output == Path("runs") else f" --output {shlex.quote(str(output))}")
    number = f"{len(records)} record{'s' * (len(records) > 1)}"
    print(one_line(f"{number} stored in {output / 'speed'}; `{again}` builds the report"))
    return 0


def compare(old: Positional[Path], new: Positional[Path], other_machine: bool = False) -> int:
    """Compare two benchmark files; the exit code is 1 if any case got slower.

    Args:
        old: the baseline file.
        new: the file to compare with it.
        other_machine: allow files of different machines, and compare fractions of their peaks instead of times.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = compare_benchmarks(read_benchmarks(old), read_benchmarks(new), other_machine=other_machine)
    what = "fraction of peak" if any(row.by_fraction for row in rows) else "median"
    table = Table("case", f"old {what}", f"new {what}", "new / old", "verdict")
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        verdict = Text(row.verdict, COLOURS.get(row.verdict, ""))
        table.add_row(row.case, row.old, row.new, ratio, verdict)
    width = None if sys.stdout.isatty() else WIDTH
    Console(markup=False, emoji=False, highlight=False, width=width).print(table)
    verdicts = [row.verdict for row in rows]
    print(", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts)))
    if all(row.ratio is None for row in rows):
        raise RecordError(f"{old} and {new} have no case in common that can be compared")
    return 1 if "slower" in verdicts else 0


def main() -> NoReturn:
    """The command; its exit code is 1 if a comparison found a slowdown."""
    about = "Store the results of benchmarks as records, or compare two files of results."
    subcommands({"add": add, "compare": compare}, prog="python -m leaderboard.speed", description=about)


if __name__ == "__main__":
    main()
