"""The report's speed section: a table of stages and charts for each machine, and the same as a flat frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import pandas as pd

from leaderboard.cells import Cell
from leaderboard.charts import Chart
from leaderboard.speed_charts import Bar, Line, bar_chart, growth_chart
from leaderboard.speed_record import STEADY, SpeedRecord, machine_text

SENTENCES = (
    "Fraction of peak: operations needed divided by time and by what the same machine reached in a plain matrix "
    "product of the same dtype in the same run. Blank: the time of this stage does not depend on its operations.",
    "Times are medians over the rounds of a benchmark, with quartiles in small print. Times of different machines, "
    "batches or dtypes are not comparable.",
    f"Unsteady: the quartiles lie more than {STEADY:.0%} of the median apart, also when the case was repeated: other "
    "work ran on the machine, or its clock changed.",
    "Memory is what the case added to the process's resident set (CPU) or allocated memory (GPU), beyond the model. "
    "Earlier records have only the peak of the whole process.",
)
UNSTEADY = "unsteady"
DERIVED = (
    "seconds_per_image", "images_per_second", "tokens_per_second", "gflops", "fraction_of_peak", "is_steady",
)  # fmt: skip
TITLES = {"stages": "Stages", "folding": "Folded and unfolded prediction", "growth": "Growth"}


@dataclass
class SpeedTable:
    """One table: columns as (label, whether they hold numbers), rows of cells."""

    group: str
    title: str
    columns: list[tuple[str, bool]]
    rows: list[list[Cell]]


@dataclass
class SpeedMachine:
    """Everything measured on one machine; the tables other than that of the stages hold the numbers of the charts."""

    title: str
    facts: list[tuple[str, str]]
    tables: list[SpeedTable]
    charts: list[Chart]
    records: list[SpeedRecord]


def figure(value: float | None) -> str:
    """A measured value to three significant digits, or as an integer; "" for None."""
    if value is None:
        return ""
    decimals = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{min(max(decimals, 0), 9)}f}"


def speed_machines(speed: list[SpeedRecord]) -> list[SpeedMachine]:
    """The content of the section by machine, in the order of the records."""
    return [_machine(records) for records in _grouped(speed, lambda r: r.machine)]


def speed_frame(speed: list[SpeedRecord]) -> pd.DataFrame:
    """One row per record: case, figures, machine and provenance."""
    rows = []
    for record in speed:
        values = record.model_dump(exclude={"run", "schema_version"})
        for name in DERIVED:
            values[name] = getattr(record, name)
        run = record.run
        values |= {"cpu": run.cpu, "gpu": run.gpu, "commit": commit_text(record, short=False), "measured": run.finished}
        rows.append(values)
    return pd.DataFrame(rows)


def commit_text(record: SpeedRecord, short: bool = True) -> str:
    commit = record.run.git_commit or "unknown"
    return f"{commit[:10] if short else commit}{' (modified)' if record.run.git_dirty else ''}"


def _grouped(records: Iterable[SpeedRecord], key: Callable[[SpeedRecord], Hashable]) -> list[list[SpeedRecord]]:
    """The records by key, in order of first appearance."""
    groups: dict[Hashable, list[SpeedRecord]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.values())


def _machine(records: list[SpeedRecord]) -> SpeedMachine:
    groups = {group: [r for r in records if r.group == group] for group in TITLES}
    title = machine_text(records[0].machine)
    return SpeedMachine(
        title=title,
        facts=_facts(records),
        tables=[_table(group, members) for group, members in groups.items() if members],
        charts=[
            *_peak_charts(groups["stages"], title),
            *_folding_charts(groups["folding"], title),
            *_growth_charts(groups["growth"], title),
        ],
        records=records,
    )


def _facts(records: list[SpeedRecord]) -> list[tuple[str, str]]:
    peaks = []
    for group in _grouped((r for r in records if r.peak_flops), lambda r: (r.device, r.dtype)):
        ends = sorted({figure(r.peak_flops / 1e9) for r in group}, key=lambda text: float(text.replace(",", "")))
        peaks.append(f"{group[0].device} {group[0].dtype} {'–'.join(dict.fromkeys((ends[0], ends[-1])))} GFLOP/s")
    software = [
        f"Python {r.run.python}, {r.run.platform}; " + ", ".join(f"{k} {v}" for k, v in sorted(r.run.packages.items()))
        for r in records
    ]
    return [
        ("plain matrix product", "; ".join(peaks)),
        ("memory", "; ".join(dict.fromkeys(f"{figure(r.run.memory_gib)} GiB" for r in records))),
        ("software", " / ".join(dict.fromkeys(software))),
    ]


def _table(group: str, records: list[SpeedRecord]) -> SpeedTable:
    columns: list[tuple[str, bool, list[Cell]]] = []

    def column(label: str, text: Callable[[SpeedRecord], str | Cell], number: bool = True, needed: bool = True) -> None:
        cells = [value if isinstance(value := text(r), Cell) else Cell(value) for r in records]
        if needed or any(cell.text for cell in cells):
            columns.append((label, number, cells))

    column("stage", lambda r: r.stage, number=False)
    column("model", lambda r: r.model, number=False)
    column("device", lambda r: r.device, number=False)
    column("dtype", lambda r: r.dtype, number=False)
    column("order", lambda r: r.order, number=False, needed=False)
    column("positions", lambda r: f"{r.positions}" if r.positions else "", needed=False)
    column("grows with", lambda r: f"{r.growth} {r.growth_value:g}" if r.growth else "", number=False, needed=False)
    column("batch", lambda r: f"{r.batch}")
    column("images per call", lambda r: f"{r.images}" if r.images != r.batch else "", needed=False)
    column("ms per image", _milliseconds)
    column("images/s", lambda r: figure(r.images_per_second))
    column("tokens/s", lambda r: figure(r.tokens_per_second))
    column("GFLOP/s", lambda r: figure(r.gflops))
    column("fraction of matmul peak", lambda r: _per_cent(r.fraction_of_peak))
    column("memory MiB", lambda r: figure(r.memory_growth_mib), needed=False)
    column("peak of the process MiB", _peak_of_earlier, needed=False)
    column("commit", commit_text, number=False)
    rows = [[cells[i] for _, _, cells in columns] for i in range(len(records))]
    return SpeedTable(group, TITLES[group], [(label, number) for label, number, _ in columns], rows)


def _peak_of_earlier(record: SpeedRecord) -> str:
    return "" if record.memory_growth_mib is not None else figure(record.peak_memory_mib)


def _milliseconds(record: SpeedRecord) -> Cell:
    if not record.images:
        return Cell("")
    low, median, high = (
        figure(1000 * s / record.images) for s in (record.q1_seconds, record.median_seconds, record.q3_seconds)
    )
    return Cell(median, f"({low}–{high})" + ("" if record.is_steady else f" {UNSTEADY}"))


def _per_cent(fraction: float | None) -> str:
    return "" if fraction is None else f"{figure(100 * fraction)}%"


def _varying(records: list[SpeedRecord], *parts: Callable[[SpeedRecord], str]) -> Callable[[SpeedRecord], str]:
    """A function that labels each record by the parts in which they differ (by the first part if none does)."""
    chosen = [part for part in parts if len({part(r) for r in records}) > 1] or list(parts[:1])
    return lambda r: ", ".join(text for text in (part(r) for part in chosen) if text)


def _peak_charts(records: list[SpeedRecord], machine: str) -> list[Chart]:
    known = [r for r in records if r.fraction_of_peak is not None]
    if not known:
        return []
    label = _varying(
        known, lambda r: r.stage, lambda r: r.model, lambda r: r.device, lambda r: r.dtype,
        lambda r: f"batch {r.batch}",
        lambda r: r.order if len({o.order for o in known if o.stage == r.stage}) > 1 else "",
    )  # fmt: skip
    bars = [
        _bar(r, label(r), (100 * _number(r.fraction_of_peak), 100 * _number(r.fraction_at(r.q3_seconds)),
                           100 * _number(r.fraction_at(r.q1_seconds))), "%")
        for r in known
    ]  # fmt: skip
    axis = "operations needed / time, % of the machine's matrix product, → higher is better"
    text = f"Fraction of the peak of every stage on {machine}: medians, with quartiles as whiskers."
    return [bar_chart("Fraction of matmul peak", text, bars, axis, "%")]


def _number(value: float | None) -> float:
    assert value is not None
    return value


def _bar(record: SpeedRecord, label: str, values: tuple[float, float, float], unit: str = "") -> Bar:
    """A bar of (median, low, high)."""
    # The file rounds, so that a median of a few rounds may lie outside its quartiles; whiskers cannot be negative
    value, low, high = values
    return Bar(label, value, min(low, value), max(high, value), f"{figure(value)}{unit}", record.rounds)


def _folding_charts(records: list[SpeedRecord], machine: str) -> list[Chart]:
    """Latency at batch 1 and throughput at each order's largest batch, for every stage, device, dtype and scale."""
    charts = []
    records = [r for r in records if r.images]
    for group in _grouped(records, lambda r: (r.stage, r.device, r.dtype, r.scale)):
        orders = _grouped(group, lambda r: (r.order, r.model, r.positions))
        first = group[0]
        where = ", ".join(filter(None, (first.scale, first.stage, first.device, first.dtype)))
        text = f"of {where} by order of prediction, on {machine}: medians, with quartiles as whiskers."
        single = [r for r in group if r.batch == 1]
        if single:
            bars = [_bar(r, _order_label(r, single), _scaled(r, 1000)) for r in single]
            axis = "ms per image, batch 1, ← lower is better"
            charts.append(bar_chart(f"Latency of one image ({where})", f"Latency {text}", bars, axis, " ms"))
        largest = [max(members, key=lambda r: r.batch) for members in orders]
        batches = sorted({r.batch for r in largest})
        if batches[-1] > 1:
            batch = f"batch {batches[0]}" if len(batches) == 1 else "each at its largest batch"
            bars = [
                _bar(
                    r, _order_label(r, largest) + (f", batch {r.batch}" if len(batches) > 1 else ""),
                    (r.images / r.median_seconds, r.images / r.q3_seconds, r.images / r.q1_seconds),
                )
                for r in largest
            ]  # fmt: skip
            axis = f"images/s, {batch}, → higher is better"
            charts.append(bar_chart(f"Throughput ({where})", f"Throughput {text}", bars, axis))
    return charts


def _scaled(record: SpeedRecord, factor: float) -> tuple[float, float, float]:
    times = record.median_seconds, record.q1_seconds, record.q3_seconds
    median, low, high = (factor * seconds / record.images for seconds in times)
    return median, low, high


def _order_label(record: SpeedRecord, others: list[SpeedRecord]) -> str:
    twice = [o.order for o in others].count(record.order) > 1
    parts = [record.order or "no order", record.model if twice else ""]
    parts.append(f"{record.positions} positions" if record.positions else "")
    parts.append(f"{record.tokens / record.images:g} tokens" if record.tokens else "")
    return ", ".join(part for part in parts if part)


def _growth_charts(records: list[SpeedRecord], machine: str) -> list[Chart]:
    charts = []
    for group in _grouped((r for r in records if r.images and r.growth), lambda r: r.growth):
        growth = group[0].growth
        # A line is of one model, order, stage, device, dtype and, unless the plot is of growth with it, batch
        batch = "" if growth == "batch" else "batch "
        parts = (
            lambda r: r.model, lambda r: r.order, lambda r: r.stage, lambda r: r.device, lambda r: r.dtype,
            lambda r, batch=batch: f"{batch}{r.batch}" if batch else "",
        )  # fmt: skip
        label = _varying(group, *parts)
        lines = []
        for members in _grouped(group, lambda r, parts=parts: tuple(part(r) for part in parts)):
            points = sorted((r.growth_value, r.images / r.median_seconds) for r in members)
            lines.append(Line(label(members[0]), tuple(points)))
        title = f"Growth with {growth}: {', '.join(dict.fromkeys(r.stage for r in group))}"
        text = f"Images per second as {growth} grows, on {machine}: a line per case, medians."
        axes = growth, "images/s, ↑ higher is better"
        charts.append(growth_chart(title, text, lines, axes, doubling=growth == "batch"))
    return charts
