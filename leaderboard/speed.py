"""`python -m leaderboard.speed`: store the benchmarks of a pytest-benchmark file, or compare two such files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from leaderboard.record import Run, SpeedRecord, machine_text
from leaderboard.store import RecordError, first_problem, read_json, write_record
from leaderboard.text import one_line, reason, shortened, tell

NOISE = 0.03  # medians closer than this are the same, however narrow their quartiles
WIDTH = 200  # of a table that goes to a file or pipe: no case is cut
COLOURS = {"faster": "green", "slower": "red"}


def read_benchmarks(path: Path) -> list[SpeedRecord]:
    """The benchmarks of a file that `pytest --benchmark-only --benchmark-json FILE` wrote, in its order.

    Benchmarks without our `extra_info` are left out, and their number is told on stderr. Raises RecordError (one line,
    naming the file) for a file that cannot be used as a whole.
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
        raise RecordError(f"{path}: machine_info has no 'imagefolder': not made by the benchmarks of this project")
    if not isinstance(entries, list):
        raise RecordError(f"{path}: its benchmarks are no list; run the benchmarks again")
    ours = [entry for entry in entries if _is_ours(entry)]
    if not ours:
        raise RecordError(f"{path}: none of its {len(entries)} benchmarks has the extra_info of this project")
    if skipped := len(entries) - len(ours):
        tell(f"{path}: {skipped} of {len(entries)} benchmarks skipped: no extra_info of this project")
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
        # pytest-benchmark keeps one time for the file, and not the command line: the command here repeats this case.
        command = f"pytest --benchmark-only {shlex.quote(benchmark)}"
        run = Run.model_validate(machine | {"started": date, "finished": date, "command": command})
        values = entry["extra_info"] | taken | {"benchmark": benchmark, "run": run}
        return SpeedRecord.model_validate(values)
    except ValidationError as error:
        name = shortened(benchmark)
        raise RecordError(f"{path}: {name}: {first_problem(error)}; run the benchmarks again") from error


@dataclass(frozen=True)
class Comparison:
    """One case of two files. `old` and `new` are texts of what was compared, "" where a file has no such case."""

    case: str
    old: str
    new: str
    ratio: float | None
    verdict: str


def compare_benchmarks(old: list[SpeedRecord], new: list[SpeedRecord], other_machine: bool = False) -> list[Comparison]:
    """Every case of either list, in the order of the old one.

    On one machine the times of a call are compared, on different ones the fractions of the machine's peak. Raises
    RecordError (one line) for different machines without `other_machine`.
    """
    machines = [sorted({record.machine for record in records}, key=repr) for records in (old, new)]
    same = machines[0] == machines[1]
    if not same and not other_machine:
        before, after = ("; ".join(machine_text(machine) for machine in found) for found in machines)
        raise RecordError(
            f"different machines ({before} against {after}): a difference would be theirs; --other-machine compares "
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
                f"{record.label}: measured with several numbers of threads, which no other machine shares"
            )
        cases[key] = record
    return cases


def _compare(old: SpeedRecord | None, new: SpeedRecord | None, same_machine: bool) -> Comparison:
    record = old or new
    assert record is not None
    show: Callable[[SpeedRecord | None], str] = _seconds_text if same_machine else _fraction_text
    texts = show(old), show(new)
    if old is None or new is None:
        return Comparison(record.label, *texts, None, "only in NEW" if old is None else "only in OLD")
    if not same_machine and (old.fraction_of_peak is None or new.fraction_of_peak is None):
        return Comparison(record.label, *texts, None, "no fraction of peak")
    before, after = _cost(old, same_machine), _cost(new, same_machine)
    ratio = after[1] / before[1]
    return Comparison(record.label, *texts, ratio if same_machine else 1 / ratio, _verdict(before, after))


def _cost(record: SpeedRecord, same_machine: bool) -> tuple[float, float, float]:
    """Quartiles and median of what a call costs: seconds, or one over the fraction of peak."""
    scale = 1.0 if same_machine else record.peak_flops / record.flops
    return record.q1_seconds * scale, record.median_seconds * scale, record.q3_seconds * scale


def _verdict(old: tuple[float, float, float], new: tuple[float, float, float]) -> str:
    """Beyond noise: quartiles that do not overlap, and medians that differ by more than NOISE of the smaller one."""
    (low, median, high), (new_low, new_median, new_high) = old, new
    apart = high < new_low or new_high < low
    if not apart or max(median, new_median) <= (1 + NOISE) * min(median, new_median):
        return "same within noise"
    return "slower" if new_median > median else "faster"


def _seconds_text(record: SpeedRecord | None) -> str:
    if record is None:
        return ""
    milliseconds = 1000 * record.median_seconds
    return f"{milliseconds:,.0f} ms" if milliseconds >= 1000 else f"{milliseconds:.4g} ms"


def _fraction_text(record: SpeedRecord | None) -> str:
    fraction = record.fraction_of_peak if record else None
    return "" if fraction is None else f"{100 * fraction:.3g} %"


def add(file: Positional[Path], output: Path = Path("runs")) -> int:
    """Store the records of a benchmark file.

    Args:
        file: what `pytest --benchmark-only --benchmark-json FILE` wrote.
        output: folder of the leaderboard; the records go to its folder speed/.
    """
    records = read_benchmarks(file)
    for record in records:
        write_record(output / "speed", record)
    again = "python -m leaderboard" + ("" if output == Path("runs") else f" --output {shlex.quote(str(output))}")
    print(one_line(f"{len(records)} records in {output / 'speed'}; now run `{again}`"))
    return 0


def compare(old: Positional[Path], new: Positional[Path], other_machine: bool = False) -> int:
    """Compare two benchmark files; the exit status is 1 if any case got slower.

    Args:
        old: the file to compare with.
        new: the file to judge.
        other_machine: allow files of different machines, and compare fractions of their peaks instead of times.
    """
    rows = compare_benchmarks(read_benchmarks(old), read_benchmarks(new), other_machine)
    fractions = any("%" in row.old + row.new for row in rows)
    what = "fraction of peak" if fractions else "median"
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
        raise RecordError(f"{old} and {new} share no case that can be compared")
    return 1 if "slower" in verdicts else 0


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0; 1 if a comparison found something slower; 2 for bad input."""
    try:
        return tyro.extras.subcommand_cli_from_dict({"add": add, "compare": compare}, args=arguments)
    except (OSError, RecordError) as error:
        tell(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
