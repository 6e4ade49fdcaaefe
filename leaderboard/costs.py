"""Time and memory in the report's measured tables. Only what was measured alone on the machine can be best."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from leaderboard.cells import Cell, Column, arrow, has_value, mark_best, number
from leaderboard.record import Record
from leaderboard.tables import how_timed


@dataclass(frozen=True)
class _Cost:
    label: str
    piece: str = ""
    """field of `Cost` with its quartiles; "" without any"""
    factor: float = 1.0
    higher_is_better: bool = False
    timed: bool = True
    """part of the timing of a row, and so comparable if that ran alone"""


COSTS = {
    "tokenizer_train_seconds": _Cost("tokenizer training s", timed=False),
    "generator_train_seconds": _Cost("generator training s", timed=False),
    "tokenizer_step_seconds": _Cost("tokenizer ms per step", "tokenizer_step", 1000),
    "generator_step_seconds": _Cost("generator ms per step", "generator_step", 1000),
    "samples_per_second": _Cost("samples/s", "sampling", higher_is_better=True),
    "memory_mib": _Cost("memory MiB"),
    "peak_memory_mib": _Cost("peak memory MiB", timed=False),
}
"""By column of the frame; the last one is shown only for rows that were never timed"""
TRAININGS = (
    "Training s: of the whole training, beside which other rows may have trained. Time per step, samples/s and memory "
    "come from a timing at the end of the run, with quartiles in small print; only what ran alone can be bold."
)


def cost_columns(frame: pd.DataFrame, groups: list[list[Record]]) -> tuple[list[Column], list[str]]:
    """Columns of time and memory, and remarks on them.

    Args:
        frame: of the rows, from `measured_frame`.
        groups: the records of each row.
    """
    records = [r for group in groups for r in group if r.cost]
    runs = {(r.machine, str(r.run.execution), r.cost.sample_batch, r.cost.threads) for r in records if r.cost}
    shared = [any(r.cost and r.cost.tokenizer_shared for r in group) for group in groups]
    timed = [any(r.cost and r.cost.timed for r in group) for group in groups]
    ways = [how_timed(group) for group in groups]
    columns = []
    for name, cost in COSTS.items():
        values = [cost.factor * value for value in frame[name]]
        if name == "peak_memory_mib":
            values = [math.nan if known else value for known, value in zip(timed, values, strict=True)]
        if not has_value(values, frame["n_seeds"]):
            continue
        cells = [Cell(number(value)) for value in values]
        label = cost.label
        if name == "tokenizer_train_seconds":
            for cell, is_shared in zip(cells, shared, strict=True):
                cell.text += "*" if is_shared else ""
        if cost.timed:
            for cell, group, way, value in zip(cells, groups, ways, values, strict=True):
                beside = [_quartiles(group, cost), "" if way == "alone" else way]
                cell.spread = "" if math.isnan(value) else ", ".join(filter(None, beside))
            if len(runs) == 1:  # times and memory of different machines are not comparable
                alone = [v if way == "alone" else math.nan for v, way in zip(values, ways, strict=True)]
                label, cells = arrow(label, cost.higher_is_better), mark_best(cells, alone, cost.higher_is_better)
        columns.append(Column(label, cells))
    remarks = ["* the tokenizer was trained once for several rows"] if any(shared) else []
    if any(timed):
        remarks.append(TRAININGS)
    if len(runs) > 1:
        remarks.append(
            "no best value is marked for time and memory: the rows ran on different machines, batch sizes or settings"
        )
    return columns, remarks


def _quartiles(group: list[Record], cost: _Cost) -> str:
    """The range of the quartiles of all seeds; "" if there are none."""
    pieces = [record.cost.timed.get(cost.piece) for record in group if record.cost]
    found = [piece for piece in pieces if piece is not None]
    if not found:
        return ""
    low, high = min(piece.q1 for piece in found), max(piece.q3 for piece in found)
    return f"({number(cost.factor * low)}–{number(cost.factor * high)})"
