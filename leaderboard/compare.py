"""What changed between two folders of records: rows, configurations, values, and what the runs were made with."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from imagefolder.errors import InputError, one_line
from leaderboard.record import Metric, Protocol, Record
from leaderboard.reference_files import read_packed, record_files
from leaderboard.significance import MIN_SEEDS, PREDICTED, prediction_interval
from leaderboard.store import Records, read_records
from leaderboard.tables import added_by
from leaderboard.text import differences

RULE = (
    "± is the standard deviation over seeds. B differs beyond the seeds' spread if its mean lies outside the "
    f"{PREDICTED:.0%} prediction interval of A's seeds; of fewer than {MIN_SEEDS}, the spread is not known."
)
INDENT = "   "
Rows = dict[tuple[str, ...], list[Record]]


def compare_folders(a: Path, b: Path) -> list[str]:
    """Lines on what is different in folder B: output folders, folders of records, or the reference's.

    Raises:
        InputError: there are no usable records in one of them.
    """
    found = [(folder, _read(folder)) for folder in (a, b)]
    lines = []
    for name, (folder, records) in zip("AB", found, strict=True):
        lines.append(f"{name}: {folder}: {len(records)} records")
        lines += [f"{INDENT}left out: {line}" for line in records.left_out]
    first, second = (_rows(records) for _, records in found)
    for name, rows, others in (("A", first, second), ("B", second, first)):
        lines += [f"only in {name}: {_title(key)}, {_seeds(rows[key])}" for key in rows if key not in others]
    lines += [""] * (len(lines) > 2)
    both = [key for key in first if key in second]
    for key in both:
        lines += _row_lines(key, first[key], second[key])
    if both:
        lines += _run_lines(*(_runs(rows, both) for rows in (first, second)))
        lines += ["", RULE]
    return [f"{INDENT * line.startswith(INDENT)}{one_line(line)}" for line in lines]


def _read(folder: Path) -> Records[Record]:
    place = folder / "records" if (folder / "records").is_dir() else folder
    if not place.is_dir():
        raise InputError(f"{folder}: no such folder; name an output folder, or a folder of records")
    if packed := record_files(place):
        return Records(record for path in packed for record in read_packed(path))
    if not (records := read_records(place)):
        reason = f" ({records.left_out[0]})" if records.left_out else ""
        raise InputError(f"{place}: no usable records{reason}")
    return records


def _rows(records: list[Record]) -> Rows:
    rows: Rows = {}
    for r in records:
        key = r.table, r.row, r.place, r.dataset.name, r.dataset.sha256, added_by(r)
        rows.setdefault(key, []).append(r)
    return rows


def _title(key: tuple[str, ...]) -> str:
    table, row, place, dataset, content, added = key
    return f"{table} {row}, {place} on {dataset} ({content[:8]}){f', {added}' if added else ''}"


def _seeds(records: list[Record]) -> str:
    unfinished = [f"seed {r.seed} {r.status}" for r in records if r.status != "finished"]
    seeds = [str(r.seed) for r in records if r.status == "finished"]
    return ", ".join([*([f"seed{'s' * (len(seeds) > 1)} {' '.join(seeds)}"] if seeds else []), *unfinished])


def _row_lines(key: tuple[str, ...], first: list[Record], second: list[Record]) -> Iterator[str]:
    """What changed in a row that both folders have."""
    seeds = [_seeds(records) for records in (first, second)]
    yield f"{_title(key)}: {seeds[0]}{f' -> {seeds[1]}' if seeds[0] != seeds[1] else ''}"
    for name, (old, new) in differences(first[0].config, second[0].config).items():
        yield f"{INDENT}configuration: {name}: {_shown(old)} -> {_shown(new)}"
    values = [_values(records) for records in (first, second)]
    equal = [name for name in values[0] if values[0][name] == values[1].get(name)]
    if equal:
        yield f"{INDENT}equal: {', '.join(equal)}"
    for name in dict.fromkeys([*values[0], *values[1]]):
        if name not in equal:
            yield f"{INDENT}{name}: {_value_text(*(found.get(name) for found in values))}"


def _shown(value: object) -> str:
    return "absent" if value is None else str(value)


def _values(records: list[Record]) -> dict[str, dict[int, Metric]]:
    """Name of a metric -> seed -> value. Metrics of one name but other references are told apart."""
    twice = {
        name for r in records for name, n in Counter(metric.protocol.name for metric in r.metrics).items() if n > 1
    }
    found: dict[str, dict[int, Metric]] = {}
    for record in records:
        for m in record.metrics:
            name = m.protocol.name
            if name in twice:
                name = f"{name} [{m.protocol.reference}, {m.protocol.extractor or 'pixels'}, n {m.n_generated}]"
            found.setdefault(name, {})[record.seed] = m
    return found


def _value_text(old: dict[int, Metric] | None, new: dict[int, Metric] | None) -> str:
    """Both means, and how they differ."""
    if old is None or new is None:
        return f"{_mean(old or new or {})}, only in {'A' if new is None else 'B'}"
    change = _protocol_change(next(iter(old.values())), next(iter(new.values())))
    text = f"{_mean(old)} -> {_mean(new)}"
    if change:
        return f"{text}, not comparable: {change}"
    shared = sorted(old.keys() & new.keys())
    if shared and all(old[seed].value == new[seed].value for seed in shared):
        return f"{text}, equal for {'every seed' if len(shared) > 1 else 'the seed'} that both have"
    numbers, others = ([m.value for m in found.values()] for found in (old, new))
    gap = statistics.fmean(others) - statistics.fmean(numbers)
    if len(numbers) < MIN_SEEDS:
        return f"{text}, different ({gap:+.4g})"
    low, high = prediction_interval(numbers, len(others))
    inside = low <= statistics.fmean(others) <= high
    return f"{text}, different ({gap:+.4g}), {'within' if inside else 'BEYOND'} the seeds' spread"


def _mean(found: dict[int, Metric]) -> str:
    values = [m.value for m in found.values()]
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.6g}{spread}"


def _protocol_change(old: Metric, new: Metric) -> str:
    """In what the protocols or the numbers of images differ."""
    before, after = ({**m.protocol.model_dump(), **_numbers(m)} for m in (old, new))
    texts = []
    for name in [*Protocol.model_fields, "n_real", "n_generated"]:
        if before[name] != after[name]:
            old_text, new_text = (
                _shown(value)[: 8 if name == "extractor_sha256" else None] for value in (before[name], after[name])
            )
            texts.append(f"{name} {old_text} -> {new_text}")
    return ", ".join(texts)


def _numbers(metric: Metric) -> dict[str, int]:
    return {"n_real": metric.n_real, "n_generated": metric.n_generated}


def _runs(rows: Rows, keys: list[tuple[str, ...]]) -> list[Record]:
    return [record for key in keys for record in rows[key]]


def _run_lines(first: list[Record], second: list[Record]) -> Iterator[str]:
    """In what the runs of the shared rows differ: commit, code, packages, machine, execution."""
    found = [_run(records) for records in (first, second)]
    names = dict.fromkeys([*found[0], *found[1]])
    different = [name for name in names if found[0].get(name) != found[1].get(name)]
    yield "made with: the same" if not different else "made with:"
    for name in different:
        old, new = (" and ".join(sorted(values.get(name, {"absent"}))) for values in found)
        yield f"{INDENT}{name}: {old} -> {new}"


def _run(records: list[Record]) -> dict[str, set[str]]:
    """What the runs were made with: name -> all values among the records."""
    found: dict[str, set[str]] = {}
    for run in (record.run for record in records):
        dirty = " with uncommitted changes" if run.git_dirty else ""
        values: dict[str, object] = {
            "commit": f"{(run.git_commit or 'unknown')[:12]}{dirty}",
            "python": run.python,
            **run.packages,
            **{f"code of {part}/": sha256[:8] for part, sha256 in (run.code or {}).items()},
            "platform": run.platform,
            "cpu": run.cpu,
            "gpu": run.gpu or "none",
            "threads": run.threads,
            "processes": run.processes,
            **run.execution,
        }
        for name, value in values.items():
            found.setdefault(name, set()).add(str(value))
    return found
