"""Time and memory in the report: what was measured alone, what was not, and which values can be best."""

from __future__ import annotations

import json
from typing import Any

import pytest
from make_records import make_record

from imagefolder.files import CHECKSUM
from leaderboard.cells import Column
from leaderboard.costs import cost_columns
from leaderboard.record import Cost, Record, Timed
from leaderboard.report import build_report
from leaderboard.store import read_record, write_record
from leaderboard.tables import group_rows, measured_frame


def timed(row: str, samples: float, alone: bool | None = True, **changes: Any) -> Record:
    """A record with the given median of samples per second, and quartiles a tenth below and above it."""

    def piece(median: float) -> Timed:
        return Timed(q1=0.9 * median, median=median, q3=1.1 * median, rounds=9, memory_mib=20.0)

    record = make_record(row)
    assert record.cost is not None
    fields = {"samples_per_second": samples, "alone": alone, "other_cores": 0.0, "threads": 2} | changes
    fields |= {"sampling": piece(samples), "tokenizer_step": piece(0.05), "generator_step": piece(10 / samples)}
    return record.model_copy(update={"cost": Cost.model_validate(record.cost.model_dump() | fields)})


def earlier(row: str) -> Record:
    """A record as earlier versions wrote it."""
    record = make_record(row)
    assert record.cost is not None
    return record.model_copy(update={"cost": record.cost.model_copy(update={"alone": None, "threads": None})})


def columns_of(*records: Record) -> tuple[dict[str, Column], list[str]]:
    columns, remarks = cost_columns(measured_frame(list(records)), group_rows(list(records)))
    return {column.label.split("\u00a0")[0]: column for column in columns}, remarks


def test_the_best_of_what_was_measured_alone_is_bold() -> None:
    columns, remarks = columns_of(timed("imagefolder", 200.0), timed("var", 100.0))
    assert [cell.best for cell in columns["samples/s"].cells] == [True, False]
    assert [cell.text for cell in columns["samples/s"].cells] == ["200.0", "100.0"]
    assert [cell.spread for cell in columns["samples/s"].cells] == ["(180.0–220.0)", "(90.00–110.0)"]
    assert [cell.text for cell in columns["generator ms per step"].cells] == ["50.00", "100.0"]
    assert not any(cell.best for cell in columns["tokenizer ms per step"].cells)  # equal
    assert not any(cell.best for name in ("tokenizer", "generator") for cell in columns[f"{name} training s"].cells)
    assert [cell.text for cell in columns["memory MiB"].cells] == ["20.00", "20.00"]
    assert "peak memory MiB" not in columns
    assert any("only what ran alone can be bold" in remark for remark in remarks)


@pytest.mark.parametrize("alone", [False, None])
def test_what_was_not_measured_alone_is_marked_and_never_bold(alone: bool | None) -> None:
    """It is the faster one here."""
    columns, _ = columns_of(timed("imagefolder", 200.0, alone), timed("var", 100.0), timed("vq", 50.0))
    words = "while other work ran" if alone is False else "not timed alone"
    assert [cell.best for cell in columns["samples/s"].cells] == [False, True, False]
    assert columns["samples/s"].cells[0].spread == f"(180.0–220.0), {words}"
    assert "other" not in columns["samples/s"].cells[1].spread


def test_earlier_records_keep_their_values_and_win_nothing() -> None:
    columns, remarks = columns_of(earlier("imagefolder"), earlier("var"))
    assert [cell.text for cell in columns["samples/s"].cells] == ["153.4", "183.4"]
    assert {cell.spread for cell in columns["samples/s"].cells} == {"not timed alone"}
    assert not any(cell.best for column in columns.values() for cell in column.cells)
    assert [cell.text for cell in columns["peak memory MiB"].cells] == ["812.5", "812.5"]
    assert "memory MiB" not in columns
    assert remarks == []


def test_nothing_is_best_across_numbers_of_threads() -> None:
    columns, remarks = columns_of(timed("imagefolder", 200.0), timed("var", 100.0, threads=1))
    assert not any(cell.best for column in columns.values() for cell in column.cells)
    assert any("different machines" in remark for remark in remarks)


def test_one_seed_with_work_beside_it_marks_the_row() -> None:
    other = make_record("imagefolder", seed=1)
    other = other.model_copy(update={"cost": timed("imagefolder", 100.0, alone=False).cost})
    first = timed("imagefolder", 200.0)
    frame = measured_frame([first, other])
    assert frame["speed"].tolist() == ["while other work ran"]
    columns, _ = columns_of(first, other)
    assert columns["samples/s"].cells[0].text == "150.0"
    assert columns["samples/s"].cells[0].spread == "(90.00–220.0), while other work ran"


def test_provenance_says_how_a_speed_was_measured(tmp_path, reported_csv) -> None:
    records = [
        timed("imagefolder", 200.0),
        timed("var", 100.0, alone=False, other_cores=0.5),
        earlier("vq"),
    ]
    build_report(tmp_path, [r.model_copy(update={"pictures": {}}) for r in records], reported_csv)
    html = (tmp_path / "report.html").read_text()
    for text in ("alone;", "while other work ran (others kept 0.500 cores busy);", "not timed alone;"):
        assert f"samples/s at batch size 100, {text}" in html


def test_records_with_and_without_timing_are_read_back(tmp_path) -> None:
    for record in (timed("imagefolder", 200.0), earlier("var")):
        path = write_record(tmp_path, record)
        assert path is not None
        assert read_record(path) == record
    data = json.loads(path.read_text())
    for name in ("alone", "other_cores", "threads", "sampling", "tokenizer_step", "generator_step"):
        del data["cost"][name]  # which earlier versions did not write
    del data["run"][CHECKSUM]
    path.write_text(json.dumps(data))
    assert read_record(path) == record
