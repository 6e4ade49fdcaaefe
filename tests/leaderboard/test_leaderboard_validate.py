"""What `validate` says of records that somebody sends: nothing of good ones, everything of others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run
from make_records import make_failed, make_metric, make_record
from PIL import Image
from suite_records import full_record

from imagefolder.config import config_hash
from imagefolder.evaluation.backbones import DINO_SPACE, OTHER_SPACES
from imagefolder.evaluation.metrics import SET_METRICS
from imagefolder.evaluation.pairs import PAIR_METRICS
from imagefolder.evaluation.protocols import UNGUIDED_METRICS
from imagefolder.files import CHECKSUM, file_sha256, sealed
from imagefolder.weights import CLEAN_INCEPTION, FILES, INCEPTION, LITE0
from leaderboard.__main__ import command
from leaderboard.record import Record
from leaderboard.reported import INCEPTION_SHA256
from leaderboard.store import write_record
from leaderboard.validate import CLEAN_INCEPTION_SHA256, LITE_SHA256, METRICS, examine

Change = Callable[[dict[str, Any]], object]


def plausible(**changes: Any) -> Record:
    """A record whose numbers fit together."""
    base = make_record(**changes)
    counts = {"proxy-rFID": (360, 360), "PSNR": (360, 360), "SSIM": (360, 360)}
    metrics = [make_metric(f"proxy-{m.protocol.name}", m.value) if m.protocol.name == "precision" else m
               for m in base.metrics if m.protocol.name != "class accuracy"]  # fmt: skip
    metrics = [
        m.model_copy(
            update=dict(zip(("n_real", "n_generated"), counts.get(m.protocol.name, (1437, 1000)), strict=True))
        )
        for m in metrics
    ]
    return base.model_copy(update={"metrics": metrics, "config_sha256": config_hash(base.config)})


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """In an output folder, with its pictures."""
    made = plausible()
    (tmp_path / "runs/pictures").mkdir(parents=True)
    for i, place in enumerate(made.pictures.values()):
        Image.new("L", (8, 8), i).save(tmp_path / "runs" / place)
    hashes = {place: file_sha256(tmp_path / "runs" / place) for place in made.pictures.values()}
    path = write_record(tmp_path / "runs/records", made.model_copy(update={"picture_sha256": hashes}))
    assert path is not None
    return path


def changed(path: Path, change: Change, seal: bool = True) -> Path:
    """The record after a change; `seal`: with the checksum of the new content."""
    document = json.loads(path.read_text())
    document["run"].pop(CHECKSUM, None)
    change(document)
    if seal and isinstance(document.get("run"), dict):
        document["run"][CHECKSUM] = sealed(document)[CHECKSUM]
    path.write_text(json.dumps(document))
    return path


def put(*keys: Any) -> Change:
    """Sets the entry at all but the last of `keys` to the last."""

    def change(document: dict[str, Any]) -> None:
        *path, last, value = keys
        for key in path:
            document = document[key]
        document[last] = value

    return change


def test_good_records_have_no_problem(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = write_record(
        record.parent, make_failed().model_copy(update={"config_sha256": config_hash(make_failed().config)})
    )
    assert run(command, "validate", record, failed) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("valid: ImageFolder (folded), table2 at mini on digits, seed 0, finished, 6 metrics")
    assert len(lines) == 2


def test_every_problem_is_listed_not_only_the_first(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(document: dict[str, Any]) -> None:
        document["sead"] = document.pop("seed")
        document["scale"] = "huge"
        document["metrics"][0]["value"] = "2.5"
        document["metrics"][1]["n_generated"] = 0
        document["metrics"][3]["value"] = -0.5
        document["metrics"][4]["value"] = 0.99
        document["metrics"][5]["value"] = 1.01
        document["dataset"]["sha256"] = "d1"

    assert run(command, "validate", changed(record, spoil, seal=False)) == 1
    first, *problems = capsys.readouterr().out.splitlines()
    assert first.endswith(f"{len(problems) - 1} problems")
    assert problems[-1].startswith("  note: it has no checksum")
    text = "\n".join(problems)
    for expected in (
        "seed: is missing",
        "sead: is no field of a record; did you mean seed?",
        "scale: must be 'mini'",
        'metrics.0.value: must be a number, not "2.5"',
        "metrics.1 (PSNR): n_generated is 0",
        "metrics.3 (proxy-gFID): value -0.5 is impossible: it is at least 0",
        "metrics.4 (proxy-IS): value 0.99 is impossible: it is at least 1",
        "metrics.5 (proxy-precision): value 1.01 is impossible: it is at most 1",
        "dataset.sha256: 'd1' is no sha256",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("schema_version", 2), "schema_version: is 2, but this version of the code reads 1: a newer version"),
        (put("schema_version", 0), "schema_version: is 0, but this version of the code reads 1; problems below"),
        (put("seed", 1.5), "seed: must be a whole number, not 1.5"),
        (put("label", None), "label: must be a text, not null"),
        (put("metrics", {}), "metrics: must be a list [...], not an object"),
        (put("dataset", []), "dataset: must be an object {...}, not a list"),
        (put("metrics", 0, "value", 1e31), "metrics.0.value: must be at most 1e+30"),
        (put("metrics", 0, "n_real", -1), "metrics.0.n_real: must be at least 0, not -1"),
        (put("run", "command", 3), "run.command: must be a text, not 3"),
        (put("metrics", 0, "protocol", "higher_is_better", True), "higher_is_better must be false"),
        (put("metrics", 0, "protocol", "name", "proxy-rFIB"), "is no metric of this suite; did you mean rFID?"),
        (put("metrics", 0, "protocol", "version", 9), "version 9 of its protocol is unknown; the newest is 1"),
        (put("metrics", 4, "value", 10.5), "metrics.4 (proxy-IS): value 10.5 is impossible: it is at most 10"),
        (put("metrics", 0, "n_real", 0), "n_real is 0: this metric compares with real images"),
        (put("metrics", 0, "n_generated", 361), "n_generated 361 is more than the 360 test images"),
        (put("metrics", 3, "n_real", 1436), "n_real 1,436 is not the number of training images of the data set, 1,437"),
        (put("metrics", 3, "protocol", "name", "gFID"), "the name must begin with 'proxy-' exactly if"),
        (put("metrics", 3, "protocol", "extractor_sha256", "77" * 32), "the proxy metrics name different extractors"),
        (put("metrics", 3, "protocol", "extractor_sha256", "xyz"), "extractor_sha256 'xyz' is no sha256"),
        (put("metrics", 3, "protocol", "extractor_sha256", None), "extractor_sha256 is missing"),
        (lambda d: d["checkpoints"].append(d["checkpoints"][0] | {"role": "extractor"}),
         "extractor_sha256 is not that of the record's checkpoint with the role extractor"),
        (put("config", {"changed": 1}), "config_sha256: is not the sha256 of config"),
        (put("metrics", []), "metrics: a finished record has at least one"),
        (put("status", "failed"), "metrics: a record with the status 'failed' has none"),
        (put("status", "not run"), "reason: must say why the status is 'not run'"),
        (put("run", "finished", "2026-01-02T03:00:00Z"), ""),
        (put("run", "finished", "2025-01-02T03:00:00Z"), "run.finished: is before run.started"),
        (put("run", "started", "yesterday"), "run.started: 'yesterday' is no ISO 8601 time"),
        (put("pictures", "more", "pictures/gone.png"), "pictures: pictures/gone.png is missing, or no intact PNG"),
        (put("pictures", "more", "../../etc/passwd"), "pictures: ../../etc/passwd is not a path inside"),
        (put("picture_sha256", "pictures/imagefolder-0-s.png", "00" * 32), "is another file than the one in"),
        (put("picture_sha256", "other.png", "00" * 32), "picture_sha256: other.png is none of the pictures"),
        (put("added", {"link": "javascript:alert(1)"}), "added.link: javascript:alert(1) is not a web address"),
        (put("row", "renamed"), "the file of this record must be named table2-renamed-mini"),
        (lambda d: d["metrics"].append(d["metrics"][0]), "metrics: "),
    ],
)  # fmt: skip
def test_each_problem_is_said_in_words(record: Path, change: Change, expected: str) -> None:
    found = examine(changed(record, change)).problems
    if expected:
        assert [line for line in found if expected in line], found
        assert len(found) <= 4, found
    else:
        assert found == []


def test_published_names_need_the_published_network(tmp_path: Path) -> None:
    base = full_record(50_000)
    path = write_record(tmp_path, base.model_copy(update={"config_sha256": config_hash(base.config), "pictures": {}}))
    assert path is not None

    def problems(sha256: str, clean: str) -> list[str]:
        def change(document: dict[str, Any]) -> None:
            for metric in document["metrics"]:
                metric["protocol"]["extractor_sha256"] = clean if "clean" in metric["protocol"]["name"] else sha256

        return [line for line in examine(changed(path, change)).problems if "claims the published" in line]

    assert problems(FILES[INCEPTION].sha256, FILES[CLEAN_INCEPTION].sha256) == []
    assert len(problems("ab" * 32, FILES[CLEAN_INCEPTION].sha256)) == len(base.metrics) - 1
    assert len(problems(FILES[INCEPTION].sha256, FILES[INCEPTION].sha256)) == 1


def test_the_known_metrics_are_those_of_the_suite() -> None:
    measured = {m.name.format(prefix="", kind=kind): m for m in SET_METRICS for kind in "rg"} | {
        m.name: m for m in PAIR_METRICS
    }
    for name, metric in measured.items():
        assert (METRICS[name].version, METRICS[name].higher) == (metric.version, metric.higher)
    others = {"FID", "pFID", "clean-rFID", "linear probe accuracy (continuous)", "linear probe accuracy (quantized)"}
    spaces = {
        f"{backbone.prefix}{name}"
        for backbone in (DINO_SPACE, *OTHER_SPACES)
        for name in backbone.metrics & {"rFID", "gFID", "precision", "recall"}
    }
    lite = {f"lite0-{name}" for name in ("rFID", "gFID", "gKID", "IS")}
    known = measured.keys() | others | spaces | lite | {"FDr-6"}
    unguided = {f"{name} (unguided)" for name in known if name.split("-")[-1] in UNGUIDED_METRICS}
    assert METRICS.keys() == known | unguided
    assert FILES[LITE0].sha256 == LITE_SHA256
    assert FILES[INCEPTION].sha256 in INCEPTION_SHA256
    assert FILES[CLEAN_INCEPTION].sha256 == CLEAN_INCEPTION_SHA256


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "not readable as JSON: Expecting value: line 1 column 1"),
        ('{"a": 1,}', "not readable as JSON: "),
        ("[1]", "a record is a JSON object {...}, not a list"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("[" * 100_000, "nested too deeply"),
        ("{}", "seed: is missing"),
        ('{"benchmark": "x"}', "median_seconds: is missing"),
    ],
)
def test_files_that_are_no_record(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "sent.json"
    path.write_text(content)
    assert any(expected in line for line in examine(path).problems)


def test_values_of_unguided_samples_are_checked_like_the_others(record: Path) -> None:
    def unguided(document: dict[str, Any]) -> None:
        for metric in list(document["metrics"]):
            if metric["protocol"]["name"] in ("proxy-gFID", "proxy-IS"):
                protocol = metric["protocol"] | {"name": f"{metric['protocol']['name']} (unguided)"}
                n_real = 0 if "IS" in protocol["name"] else metric["n_real"]
                document["metrics"].append(metric | {"protocol": protocol, "n_real": n_real})

    assert examine(changed(record, unguided)).problems == []
    (problem,) = examine(changed(record, put("metrics", -1, "value", 10.5))).problems
    assert "(proxy-IS (unguided)): value 10.5 is impossible: it is at most 10" in problem


def test_pictures_of_a_file_elsewhere_are_checked_where_they_are(record: Path, tmp_path: Path) -> None:
    sent = tmp_path / record.name
    sent.write_bytes(record.read_bytes())
    found = examine(sent)
    assert (found.problems, len(found.notes)) == ([], 1)
    assert "--output" in found.notes[0]
    found = examine(sent, tmp_path / "runs")
    assert (found.problems, found.notes) == ([], [])
    assert len(examine(sent, tmp_path).problems) == 2


def test_output_stays_one_printable_line_each(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(record, put("\x1b[31mred\nline" * 200, "\x1b[31m" * 400))
    assert run(command, "validate", record) == 1
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2
    assert "\x1b" not in out
    assert len(out) < 1000


def test_a_missing_file_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "validate", tmp_path / "gone.json") == 2
    assert "gone.json: no such file" in capsys.readouterr().err
    assert run(command, "validate") == 2
