from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from imagefolder.errors import InputError
from imagefolder.files import sealed
from leaderboard import record as record_module
from leaderboard.record import Metric, Part, Record
from leaderboard.reported import reported_frame, reported_text
from leaderboard.speed_record import SpeedRecord
from leaderboard.speed_view import speed_machines
from leaderboard.store import NewerRecordError, RecordError, read_record, read_records, write_record

EARLIER = Path(__file__).parent / "earlier"  # records that an earlier version wrote


def test_record_is_read_back_unchanged(tmp_path, make, failed):
    records = [failed("a"), make("b", seed=0), make("b", seed=1)]
    for record in records:
        path = write_record(tmp_path / "records", record)
        assert path == tmp_path / "records" / f"{record.name}.json"
    assert read_records(tmp_path / "records") == records


def test_records_are_sorted_by_place_then_row_then_seed(tmp_path, make):
    for record in (make("b", order=1), make("a", order=2), make("c", order=1), make("b", order=1, seed=10, gfid=1)):
        write_record(tmp_path, record)
    write_record(tmp_path, make("b", order=1, seed=2, gfid=1))
    assert [(r.row, r.seed) for r in read_records(tmp_path)] == [("b", 0), ("b", 2), ("b", 10), ("c", 0), ("a", 0)]


def test_missing_folder_holds_no_records(tmp_path):
    assert read_records(tmp_path / "nothing") == []


def test_unknown_field_is_refused(make):
    data = make().model_dump()
    assert Record.model_validate(data) == make()
    data["cost"]["dollars"] = 3.0
    with pytest.raises(ValidationError, match="dollars"):
        Record.model_validate(data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metric_that_is_not_finite_is_refused(metric, value):
    with pytest.raises(ValidationError, match="finite"):
        metric("proxy-gFID", value)


def test_nan_in_the_configuration_is_refused_and_not_written_as_null(tmp_path, make):
    with pytest.raises(RecordError, match="table2-imagefolder-mini-digits-d1d1d1d1-seed0"):
        write_record(tmp_path, make(config={"lr": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def test_repeated_run_replaces_the_record_and_leaves_no_other_file(tmp_path, make):
    write_record(tmp_path, make(gfid=3.0))
    write_record(tmp_path, make(gfid=2.0))
    assert [path.name for path in tmp_path.iterdir()] == ["table2-imagefolder-mini-digits-d1d1d1d1-seed0.json"]
    assert read_records(tmp_path) == [make(gfid=2.0)]


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_failing_write_keeps_the_old_record(tmp_path, make, monkeypatch, broken):
    write_record(tmp_path, make(gfid=3.0))

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, no_space)
    with pytest.raises(OSError, match="No space left"):
        write_record(tmp_path, make(gfid=2.0))
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    assert read_records(tmp_path) == [make(gfid=3.0)]


def test_unserialisable_record_keeps_the_old_one(tmp_path, make):
    write_record(tmp_path, make())
    with pytest.raises(RecordError, match="PosixPath"):
        write_record(tmp_path, make(config={"folder": Path("/data").absolute()}))
    assert len(list(tmp_path.iterdir())) == 1
    assert read_records(tmp_path) == [make()]


def test_record_cannot_leave_its_folder(tmp_path, make):
    with pytest.raises(RecordError, match="no file name"):
        write_record(tmp_path / "records", make(row="../../evil"))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_an_os_error(tmp_path, make):
    (tmp_path / "records").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="records") as caught:
        write_record(tmp_path / "records", make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: "{ not json", "not readable as JSON"),
        (lambda data: json.dumps(data)[:-40], "not readable as JSON"),
        (lambda data: json.dumps(data | {"config": {"lr": float("nan")}}), "NaN is not a number"),
        (lambda data: json.dumps([data]), "no record of this project"),
        (lambda data: json.dumps({"cells": [], "metadata": {}}), "no record of this project"),
        (lambda data: json.dumps(data | {"schema_version": 0}), "schema version 0 and not 1"),
        (lambda data: json.dumps(data | {"schema_version": "2"}), "schema version '2' and not 1"),
        (lambda data: json.dumps(data | {"extra": 1}), "extra"),
        (lambda data: json.dumps({k: v for k, v in data.items() if k != "run"}), "run: Field required"),
        (lambda data: json.dumps(data | {"seed": 7}), "holds the record table2-imagefolder-mini-digits-d1d1d1d1-seed7"),
    ],
)
def test_unusable_file_is_named_in_one_line(tmp_path, make, change, message):
    path = write_record(tmp_path, make())
    data = json.loads(path.read_text())
    del data["run"]["checksum"]
    path.write_text(change(data))
    with pytest.raises(RecordError, match=message) as caught:
        read_record(path)
    text = str(caught.value)
    assert read_records(tmp_path) == []
    assert read_records(tmp_path).left_out == (text,)
    assert text.startswith(f"{path}: ")
    assert "delete" in text
    assert "\n" not in text


def loaded(modules: str) -> set[str]:
    """The modules of torch and of this project's other packages that importing `modules` loads."""
    code = f"import sys, {modules}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = ("torch", "imagefolder", "reproductions", "slurm")
    return {name for name in result.stdout.split() if name.split(".")[0] in packages}


def test_leaderboard_imports_neither_torch_nor_the_model():
    found = loaded("leaderboard.__main__, leaderboard.report, leaderboard.speed")
    assert found <= loaded("imagefolder.cli, imagefolder.errors, imagefolder.files, imagefolder.locks")
    assert not found & {"torch", "imagefolder.config", "imagefolder.zoo"}


@pytest.mark.parametrize("module", ["leaderboard", "leaderboard.speed"])
def test_help_imports_only_what_parsing_needs(module):
    code = f"import sys; sys.argv = ['x', '--help']; import runpy; runpy.run_module('{module}', run_name='__main__')"
    code = f"import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); {code}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: python -m leaderboard" in result.stdout
    assert {"pandas", "vl_convert", "jinja2", "torch"}.isdisjoint(result.stderr.split())


def test_records_of_earlier_versions_load(reported_csv):
    found = read_records(EARLIER)
    assert [line.split("/")[-1].split("-")[0] for line in found.left_out] == ["sample"]  # of speed, see below
    record, first = found
    assert record.run.code is None
    assert (record.metrics[0].protocol.metric, record.metrics[0].protocol.is_proxy) == ("rFID", True)
    assert reported_text(reported_frame(reported_csv, all_kinds=True), record.reported_system, "gfid") == "2.60"
    assert (first.row, first.order, first.budget, first.notes, first.run.processes) == ("vq", 0, "", [], 1)
    assert first.metrics[0].interval is first.added is None  # fields of today that the first version did not have


# A field that is missing here needs a default: without one, no earlier record could be read
REQUIRED = {
    "Record": "table row label note scale seed status config config_sha256 dataset run",
    "Metric": "protocol value n_real n_generated",
    "Protocol": "name version description reference evaluator extractor extractor_sha256 higher_is_better",
    "Dataset": "name sha256 n_train n_test classes image_size",
    "Size": "tokens bits tokenizer_parameters",
    "Checkpoint": "role path sha256 selection",
    "CodebookUsage": "branch scale position tokens used perplexity",
    "Cost": "evaluation_seconds tokenizer_shared peak_memory_mib",
    "Run": "started finished command git_commit git_dirty packages python platform cpu threads gpu memory_gib",
    "SpeedRecord": "benchmark group stage model device dtype batch threads images tokens flops peak_flops "
    "peak_memory_mib order positions growth growth_value median_seconds q1_seconds q3_seconds rounds run",
}


@pytest.mark.parametrize("part", REQUIRED)
def test_fields_that_were_added_later_have_defaults(part):
    kind: type[Part] = getattr(record_module, part, SpeedRecord)
    assert {name for name, field in kind.model_fields.items() if field.is_required()} == set(REQUIRED[part].split())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"schema_version": 2}, "schema version 2, but this version reads 1"),
        ({"schema_version": 3, "table": ["another type"]}, "schema version 3, but this version reads 1"),
        ({"energy": {"joules": 5.0}}, "its field energy is not known here"),
    ],
)
def test_record_of_a_newer_version_says_so_and_costs_its_own_row_only(tmp_path, make, change, what):
    write_record(tmp_path, make("var"))
    path = write_record(tmp_path, make())
    data = json.loads(path.read_text()) | change
    del data["run"]["checksum"]
    data["run"]["checksum"] = sealed(data)["checksum"]  # as the newer version writes it
    path.write_text(json.dumps(data))
    with pytest.raises(NewerRecordError, match="newer version of this project wrote it; update") as caught:
        read_record(path)
    assert what in str(caught.value)
    assert "delete" not in str(caught.value)
    found = read_records(tmp_path)
    assert [record.row for record in found] == ["var"]
    assert found.left_out == (str(caught.value),)


def test_unknown_field_that_somebody_wrote_by_hand_is_not_taken_for_a_newer_version(tmp_path, make):
    path = write_record(tmp_path, make())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"energy": 5.0}))
    with pytest.raises(RecordError, match="edited by hand") as caught:
        read_record(path)
    assert not isinstance(caught.value, NewerRecordError)


def test_speed_records_of_the_previous_version_load():
    (record,) = (read_record(path, SpeedRecord) for path in EARLIER.glob("sample-*.json"))
    assert (record.scale, record.order, record.positions) == ("", "folded", 14)
    (machine,) = speed_machines([record])
    assert [chart.title for chart in machine.charts] == ["Latency of one image (sample, cpu, float32)"]


def test_code_of_a_run_is_stored(tmp_path, make):
    run = make().run.model_copy(update={"code": {"tokenizer": "ab" * 32, "evaluation": "cd" * 32}})
    record = make(run=run)
    assert read_record(write_record(tmp_path, record)).run.code == run.code


def test_models_are_built_from_the_attributes_of_other_objects():
    protocol = SimpleNamespace(
        name="proxy-gFID", version=1, description="d", reference="r", evaluator="e", extractor="proxy-cnn",
        extractor_sha256="ab" * 32, higher_is_better=False,
    )  # fmt: skip
    measured = SimpleNamespace(protocol=protocol, value=2.5, n_real=10, n_generated=9, spread=None, floor=0.5)
    measured.interval = (2.4, 2.6)
    metric = Metric.of(measured)
    assert metric.model_dump() == vars(measured) | {"protocol": vars(protocol)}
    with pytest.raises(ValidationError, match="finite"):
        Metric.of(SimpleNamespace(**(vars(measured) | {"value": float("nan")})))


def test_error_of_records_is_bad_input():
    assert issubclass(RecordError, InputError)
    assert str(RecordError("two\nlines \x1b[31m")) == "two lines \\x1b[31m"
