from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import speed_files as files
from commands import run

from leaderboard.speed import compare_benchmarks, main, read_benchmarks
from leaderboard.speed_record import SpeedRecord
from leaderboard.store import RecordError, read_speed, write_record


def records_of(tmp_path, *entries, name="bench.json", **machine):
    return read_benchmarks(files.write(tmp_path / name, list(entries), **machine))


def test_a_benchmark_becomes_a_record(tmp_path):
    entry = files.benchmark("sample: draw", 0.5, batch=4, tokens=2000, flops=1e10, model="VAR-d17-MSVR10P2-4096")
    (record,) = records_of(tmp_path, entry)
    assert (record.stage, record.model, record.batch, record.rounds) == ("sample: draw", "VAR-d17-MSVR10P2-4096", 4, 5)
    assert (record.median_seconds, record.q1_seconds, record.q3_seconds) == (0.5, 0.49, 0.51)
    assert record.seconds_per_image == pytest.approx(0.125)
    assert record.images_per_second == pytest.approx(8)
    assert record.tokens_per_second == pytest.approx(4000)
    assert record.gflops == pytest.approx(20)
    assert record.fraction_of_peak == pytest.approx(0.2)  # 1e10 in half a second, of 1e11 per second
    assert record.benchmark == entry["fullname"]
    assert record.run.finished == "2026-01-02T03:04:05.678901+00:00"
    assert record.run.git_commit == "0123456789abcdef" * 2


def test_meaningless_figures_are_none(tmp_path):
    (record,) = records_of(tmp_path, files.benchmark(flops=0.0, tokens=0, images=0))
    assert record.gflops is record.fraction_of_peak is record.tokens_per_second is None
    assert record.images_per_second is record.seconds_per_image is None


def test_benchmarks_of_others_are_skipped_and_counted(tmp_path, capsys):
    other = files.benchmark() | {"extra_info": {}}
    assert len(records_of(tmp_path, files.benchmark(), other, other)) == 1
    assert "2 of 3 benchmarks skipped" in capsys.readouterr().err
    assert len(records_of(tmp_path, files.benchmark())) == 1
    assert capsys.readouterr().err == ""
    with pytest.raises(RecordError, match="none of its 1 benchmarks"):
        records_of(tmp_path, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": 3}, "stage: Input should be a valid string"),
        ({"batch": "8"}, "batch: Input should be a valid integer"),
        ({"batch": 8.0}, "batch: Input should be a valid integer"),
        ({"threads": True}, "threads: Input should be a valid integer"),
        ({"group": "else"}, "group: Input should be"),
        ({"order": "sideways"}, "order: Input should be"),
        ({"flops": -1.0}, "flops: Input should be greater"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"median_seconds": 1.0, "dtype": "float16"}, "dtype: Input should be"),
    ],
)
def test_extra_info_is_checked_against_the_schema(tmp_path, change, message):
    entry = files.benchmark()
    entry["extra_info"] |= change
    with pytest.raises(RecordError, match=re.escape(message)) as caught:
        records_of(tmp_path, files.benchmark("decode"), entry)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'bench.json'}: tests/benchmarks/test_it.py::test_encode")
    assert "\n" not in text


def test_missing_field_is_named(tmp_path):
    entry = files.benchmark()
    del entry["extra_info"]["peak_flops"]
    with pytest.raises(RecordError, match="peak_flops: Field required"):
        records_of(tmp_path, entry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: json.dumps(data)[:-40], "not readable as JSON"),
        (lambda data: json.dumps(data).replace("0.98", "NaN", 1), "NaN is not a number"),
        (lambda data: json.dumps([data]), "not a file of"),
        (lambda data: json.dumps({"schema_version": 1}), "not a file of"),
        (lambda data: json.dumps(data | {"machine_info": {}}), "no 'imagefolder'"),
        (lambda data: json.dumps(data | {"benchmarks": 3}), "not a list"),
        (lambda data: json.dumps(data | {"datetime": 3}), "finished|started"),
        (lambda data: json.dumps(data | {"benchmarks": [data["benchmarks"][0] | {"stats": None}]}), "no stats"),
        (lambda data: json.dumps(data | {"benchmarks": [data["benchmarks"][0] | {"stats": {}}]}), "median_seconds"),
    ],
)
def test_unusable_file_is_named_in_one_line(tmp_path, change, message):
    path = tmp_path / "bench.json"
    text = change(files.document([files.benchmark(seconds=1.0)]))
    assert text != json.dumps(files.document([files.benchmark(seconds=1.0)]))
    path.write_text(text)
    with pytest.raises(RecordError, match=message) as caught:
        read_benchmarks(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_two_benchmarks_of_one_case_are_an_error(tmp_path):
    first, second = files.benchmark(seconds=0.1), files.benchmark(seconds=0.2)
    second["fullname"] = "other.py::test_again"
    with pytest.raises(RecordError, match=r"other\.py::test_again are one case \(encode, MSVR10P2-4096, cpu"):
        records_of(tmp_path, first, second)


def test_one_file_per_case_and_machine(tmp_path):
    def names(folder, seconds=0.1, **machine):
        entries = [files.benchmark("sample: draw", seconds), *files.folding(), *files.growing()]
        for record in records_of(tmp_path, *entries, **machine):
            write_record(folder, record)
        return sorted(path.name for path in folder.iterdir())

    first = names(tmp_path / "speed")
    assert len(first) == 1 + 8 + 28
    (draw,) = [name for name in first if name.startswith("sample-draw-MSVR10P2-4096-cpu-float32-batch-8-")]
    assert re.fullmatch(r"[A-Za-z0-9.-]+-[0-9a-f]{8}\.json", draw)
    assert names(tmp_path / "speed", seconds=0.3) == first  # replaced
    assert {r.median_seconds for r in read_speed(tmp_path / "speed") if r.stage == "sample: draw"} == {0.3}
    assert len(names(tmp_path / "speed", cpu="Another CPU")) == 2 * len(first)
    assert len(names(tmp_path / "speed", gpu="A GPU")) == 3 * len(first)


def test_stored_records_are_read_back_if_their_version_matches(tmp_path):
    (record,) = records_of(tmp_path, files.benchmark())
    path = write_record(tmp_path / "speed", record)
    assert read_speed(tmp_path / "speed") == [record]
    assert SpeedRecord.model_validate(record.model_dump()) == record
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"schema_version": 2}))
    assert read_speed(tmp_path / "speed") == []
    assert (
        "schema version 2, but this version reads 1: a newer version of this project wrote it"
        in read_speed(tmp_path / "speed").left_out[0]
    )
    assert read_speed(tmp_path / "nothing") == []


def test_changed_record_is_detected_and_the_others_are_read(tmp_path):
    for record in records_of(tmp_path, files.benchmark(), files.benchmark("decode")):
        path = write_record(tmp_path / "speed", record)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"median_seconds": 0.2}))
    found = read_speed(tmp_path / "speed")
    assert [record.stage for record in found] == ["encode"]
    assert "its checksum does not match" in found.left_out[0]
    del data["run"]["checksum"]  # as earlier versions wrote it
    path.write_text(json.dumps(data))
    assert len(read_speed(tmp_path / "speed")) == 2


def test_stages_are_listed_in_pipeline_order(tmp_path):
    training = ["train generator", "train generator: from cache", "train generator: encoding images"]
    stages = ("sample", "unheard of", training[2], training[0], "decode", training[1], "encode")
    for record in records_of(tmp_path, *(files.benchmark(stage) for stage in stages)):
        write_record(tmp_path / "speed", record)
    assert [r.stage for r in read_speed(tmp_path / "speed")] == ["encode", "decode", *training, "sample", "unheard of"]


def verdict(tmp_path, old, new, **options):
    (row,) = compare_benchmarks(records_of(tmp_path, old), records_of(tmp_path, new), **options)
    return row.verdict


@pytest.mark.parametrize(
    ("seconds", "spread", "expected"),
    [
        (1.0, 0.001, "same within noise"),
        (1.029, 0.001, "same within noise"),  # quartiles apart, medians too close
        (1.031, 0.001, "slower"),
        (1 / 1.029, 0.001, "same within noise"),
        (1 / 1.031, 0.001, "faster"),
        (1.2, 0.15, "same within noise"),  # medians apart, quartiles overlap
        (1.5, 0.15, "slower"),
        (0.8, 0.15, "same within noise"),
        (0.5, 0.15, "faster"),
    ],
)
def test_verdict_needs_quartiles_and_medians_apart(tmp_path, seconds, spread, expected):
    old, new = files.benchmark(seconds=1.0, spread=spread), files.benchmark(seconds=seconds, spread=spread)
    assert verdict(tmp_path, old, new) == expected


def test_every_case_of_either_file_is_listed(tmp_path):
    old = records_of(tmp_path, files.benchmark("encode"), files.benchmark("decode", 0.1))
    new = records_of(tmp_path, files.benchmark("decode", 0.2), files.benchmark("sample"))
    rows = compare_benchmarks(old, new)
    assert [(row.case.split(",")[0], row.verdict, row.ratio) for row in rows] == [
        ("encode", "only in OLD", None),
        ("decode", "slower", 2.0),
        ("sample", "only in NEW", None),
    ]
    assert (rows[1].old, rows[1].new) == ("100 ms", "200 ms")


@pytest.mark.parametrize("change", [{"cpu": "Another CPU"}, {"gpu": "A GPU"}, {"threads": 4}])
def test_other_machines_are_refused_or_compared_by_fraction_of_peak(tmp_path, change):
    threads = change.get("threads", 2)
    # Twice as long on a machine a quarter as fast: the fraction of its peak is twice as large.
    old = records_of(tmp_path, files.benchmark(seconds=1.0), files.benchmark("sample: draw", flops=0.0))
    entries = (
        files.benchmark(seconds=2.0, peak_flops=2.5e10, threads=threads),
        files.benchmark("sample: draw", flops=0.0, threads=threads),
    )
    new = records_of(tmp_path, *entries, **change)
    with pytest.raises(RecordError, match=r"different machines .*--other-machine") as caught:
        compare_benchmarks(old, new)
    assert "\n" not in str(caught.value)
    encode, draw = compare_benchmarks(old, new, other_machine=True)
    assert (encode.verdict, encode.ratio) == ("faster", pytest.approx(2))
    assert (encode.old, encode.new) == ("8%", "16%")
    assert (draw.verdict, draw.ratio) == ("no fraction of peak", None)


def test_slower_by_fraction_of_peak(tmp_path):
    old = records_of(tmp_path, files.benchmark(seconds=1.0))
    new = records_of(tmp_path, files.benchmark(seconds=0.5, peak_flops=1e12), cpu="Another CPU")
    (row,) = compare_benchmarks(old, new, other_machine=True)
    assert (row.verdict, row.ratio) == ("slower", pytest.approx(0.2))


def test_other_machine_changes_nothing_on_one_machine(tmp_path):
    old, new = files.benchmark(seconds=1.0), files.benchmark(seconds=2.0, peak_flops=1e10)
    assert verdict(tmp_path, old, new, other_machine=True) == "slower"


@pytest.mark.parametrize(("seconds", "status"), [(1.0, 0), (0.5, 0), (2.0, 1)])
def test_exit_code_of_a_comparison(tmp_path, capsys, seconds, status):
    old = files.write(tmp_path / "old.json", [files.benchmark(seconds=1.0), files.benchmark("sample", model="[red]x")])
    new = files.write(tmp_path / "new.json", [files.benchmark(seconds=seconds)])
    assert run(main, "compare", old, new) == status
    out, err = capsys.readouterr()
    assert err == ""
    assert f"{seconds:.3f}" in out
    assert "only in OLD" in out
    assert "[red]x" in out  # unchanged


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    old = files.write(tmp_path / "old.json", [files.benchmark()])
    other = files.write(tmp_path / "other.json", [files.benchmark(seconds=9.0)], cpu="Another CPU")
    nothing_shared = files.write(tmp_path / "decode.json", [files.benchmark("decode")])
    (tmp_path / "no.json").write_text("{")
    for arguments in (
        ["compare", old, other],
        ["compare", old, nothing_shared],
        ["compare", old, tmp_path / "no.json"],
        ["compare", tmp_path / "gone.json", old],
        ["add", tmp_path / "gone.json", "--output", tmp_path / "runs"],
    ):
        assert run(main, *arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert run(main, "compare", old, other, "--other-machine") == 1
    assert not (tmp_path / "runs").exists()


def test_add_stores_the_records_and_prints_the_next_command(tmp_path):
    path = files.write(tmp_path / "bench.json", files.folding())
    command = [sys.executable, "-m", "leaderboard.speed", "add", str(path), "--output", str(tmp_path / "my runs")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"python -m leaderboard --output '{tmp_path / 'my runs'}'" in result.stdout
    assert len(read_speed(tmp_path / "my runs/speed")) == 8
