"""What is wrong with a record that somebody sends, in plain words: all of it, not only the first problem.

Whether a file is a record is decided by the schema (`leaderboard/record.py`), as for every record. Beyond that, this
looks for what no evaluation of this suite gives: impossible values, unknown metrics, hashes that do not match.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from imagefolder.errors import one_line, reason, shortened
from imagefolder.files import CHECKSUM, sealed
from leaderboard.pictures import read_picture
from leaderboard.record import PROXY_EXTRACTOR, PROXY_PREFIX, UNGUIDED_SUFFIX, Checkpoint, Dataset, Metric, Record
from leaderboard.reported import INCEPTION_SHA256
from leaderboard.speed_record import SpeedRecord
from leaderboard.store import NEWER, read_json

CLEAN_INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # clean-fid's file
LITE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
HASHES = {"clean": ("Inception", {CLEAN_INCEPTION_SHA256}), "lite0": ("EfficientNet-Lite0", {LITE_SHA256})}
MOST = 200  # problems listed of one file
NEVER = 1e-9  # a distance of equal sets may round to a little below zero

Space = Literal["features", "pixels", "classes"]
_Kind = TypeVar("_Kind", bound=BaseModel)


@dataclass(frozen=True)
class Known:
    """A metric of this suite: its newest protocol, its direction, the values it can have, and what computes it."""

    version: int
    higher: bool
    low: float | None
    high: float | None
    space: Space


def _distance(version: int = 1) -> Known:
    return Known(version, False, 0, None, "features")


def _share(space: Space, version: int = 1) -> Known:
    return Known(version, True, 0, 1, space)


_KERNEL = Known(1, False, None, None, "features")  # unbiased: it can be negative
METRICS = {
    "FID": _distance(),
    "rFID": _distance(), "gFID": _distance(), "pFID": _distance(2), "sFID": _distance(), "clean-rFID": _distance(),
    "IS": Known(1, True, 1, 1008, "features"), "precision": _share("features"), "recall": _share("features"),
    "rKID": _KERNEL, "gKID": _KERNEL,
    "lite0-rFID": _distance(), "lite0-gFID": _distance(), "lite0-gKID": _KERNEL,
    "lite0-IS": Known(1, True, 1, 1000, "features"),
    "dinov2-rFID": _distance(), "dinov2-gFID": _distance(),
    "dinov2-precision": _share("features"), "dinov2-recall": _share("features"),
    "convnext-gFID": _distance(), "mae-gFID": _distance(), "siglip-gFID": _distance(), "clip-gFID": _distance(),
    "FDr-6": _distance(),
    "class accuracy": _share("classes"), "worst class accuracy": _share("classes"),
    "training neighbour ratio": Known(1, True, 0, None, "features"), "mode coverage": _share("features"),
    "linear probe accuracy (continuous)": _share("pixels", 2),
    "linear probe accuracy (quantized)": _share("pixels", 2),
    "PSNR": Known(1, True, 0, 200, "pixels"), "SSIM": Known(1, True, -1, 1, "pixels"),
    "LPIPS": Known(1, False, 0, None, "pixels"),
}  # fmt: skip
"""By name, without the prefix of proxies"""
METRICS |= {f"{name}{UNGUIDED_SUFFIX}": known for name, known in METRICS.items() if name.endswith(("gFID", "IS"))}


@dataclass
class Examination:
    """What was found in a file; `summary` says in one line what a file without problems holds."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summary: str = ""


def examine(path: Path, output: Path | None = None) -> Examination:
    """All that is wrong with the record in a file.

    Args:
        output: folder that the paths of pictures begin in; None: the parent of the folder records/ that the file is in
            (pictures of a file elsewhere are not checked).
    """
    found = Examination()
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        found.problems.append(f"not readable as JSON: {reason(error)}")
        return found
    if not isinstance(data, dict):
        found.problems.append(f"a record is a JSON object {{...}}, not {_shown(data)}")
        return found
    _check_sum(data, found)
    kind = SpeedRecord if "benchmark" in data else Record
    record = _parsed(kind, data, found)
    if kind is Record:
        _examine_parts(data, path, output, found)
    if record is not None and path.stem != record.name:
        found.problems.append(f"the file of this record must be named {shortened(record.name)}.json: rename it")
    if isinstance(record, Record):
        what = f"{len(record.metrics)} metrics" if record.metrics else "no metrics"
        data_set = f"{record.table} at {record.place} on {record.dataset.name}"
        found.summary = f"{record.label}, {data_set}, seed {record.seed}, {record.status}, {what}"
    elif record is not None:
        found.summary = f"speed of {record.label}"
    if len(found.problems) > MOST:
        found.problems[MOST:] = [f"and {len(found.problems) - MOST} more"]
    return found


def _check_sum(data: dict[str, Any], found: Examination) -> None:
    """Verify the checksum, and take it out of the document."""
    run = data.get("run")
    if not isinstance(run, dict) or CHECKSUM not in run:
        found.notes.append("note: it has no checksum, so changes to it go unnoticed")
    elif run.pop(CHECKSUM) != sealed(data)[CHECKSUM]:
        found.problems.append(f"run.{CHECKSUM}: does not match the content: damaged, or edited after it was written")


def _parsed(kind: type[_Kind], data: dict[str, Any], found: Examination) -> _Kind | None:
    """The record, or None and every violation of the schema."""
    expected = kind.model_fields["schema_version"].default
    version = data.get("schema_version")
    if type(version) is not int or version != expected:
        shown = "is missing" if "schema_version" not in data else f"is {_shown(version)}"
        newer = type(version) is int and version > expected
        remedy = f": {NEWER}" if newer else ""
        found.problems.append(
            f"schema_version: {shown}, but this version of the code reads {expected}{remedy}; problems below may only "
            "mean that"
        )
        data = {**data, "schema_version": expected}
    try:
        return kind.model_validate(data, strict=True)
    except ValidationError as error:
        found.problems += [_in_words(problem, kind) for problem in error.errors(include_url=False)]
        return None


def _in_words(problem: Any, kind: type[BaseModel]) -> str:
    """One violation of the schema in words."""
    where, given, limits = _path(problem["loc"]), _shown(problem["input"]), problem.get("ctx", {})
    match problem["type"]:
        case "missing":
            text = "is missing"
        case "extra_forbidden":
            text = f"is no field of a record{_guess(problem['loc'], kind)}"
        case "int_type" | "int_from_float":
            text = f"must be a whole number, not {given}"
        case "float_type":
            text = f"must be a number, not {given}"
        case "string_type":
            text = f"must be a text, not {given}"
        case "bool_type":
            text = f"must be true or false, not {given}"
        case "dict_type" | "model_type" | "model_attributes_type":
            text = f"must be an object {{...}}, not {given}"
        case "list_type":
            text = f"must be a list [...], not {given}"
        case "literal_error":
            text = f"must be {limits['expected']}, not {given}"
        case "greater_than_equal":
            text = f"must be at least {limits['ge']:g}, not {given}"
        case "less_than_equal":
            text = f"must be at most {limits['le']:g}, not {given}"
        case "less_than":
            text = f"must be less than {limits['lt']:g}, not {given}"
        case "string_pattern_mismatch":
            text = f"{given} does not have the right form"
        case "string_too_long":
            text = f"is longer than {limits['max_length']:,} characters"
        case "too_long":
            text = f"has more than {limits['max_length']:,} entries"
        case "value_error":
            text = str(limits["error"])
        case _:
            text = problem["msg"]
    return one_line(f"{where}: {shortened(text)}")


def _path(loc: tuple[int | str, ...]) -> str:
    return shortened(".".join(str(part) for part in loc if part != "[key]"), 120)


def _guess(loc: tuple[int | str, ...], kind: type[BaseModel]) -> str:
    """The field that was probably meant, for one at the top level."""
    near = difflib.get_close_matches(str(loc[-1]), kind.model_fields, n=1) if len(loc) == 1 else []
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return shortened(json.dumps(value, default=str, ensure_ascii=False), 60)


def _examine_parts(data: dict[str, Any], path: Path, output: Path | None, found: Examination) -> None:
    """Look for what no evaluation gives, in every part of a record that can be read by itself."""
    dataset = _read(Dataset, data.get("dataset"))
    checkpoints = [c for value in _list(data.get("checkpoints")) if (c := _read(Checkpoint, value))]
    metrics = [(i, m) for i, value in enumerate(_list(data.get("metrics"))) if (m := _read(Metric, value))]
    for i, metric in metrics:
        where = f"metrics.{i} ({shortened(metric.protocol.name, 40)})"
        found.problems += [f"{where}: {text}" for text in _metric_problems(metric, dataset, checkpoints)]
        known = METRICS.get(metric.protocol.usual_metric)
        if known is not None and metric.protocol.version < known.version:
            found.notes.append(
                f"note: {where}: version {metric.protocol.version} of its protocol is out of date; it does not share a "
                f"column with version {known.version}"
            )
    proxies = {m.protocol.extractor_sha256 for _, m in metrics if m.protocol.is_proxy}
    if len(proxies) > 1:
        found.problems.append("metrics: the proxy metrics name different extractors, so they are not of one evaluation")
    found.problems += _status_problems(data)
    found.problems += _hash_problems(data, dataset, checkpoints)
    found.problems += _time_problems(data.get("run"))
    _check_pictures(data, path, output, found)


def _metric_problems(metric: Metric, dataset: Dataset | None, checkpoints: list[Checkpoint]) -> Iterator[str]:
    protocol, value = metric.protocol, metric.value
    known = METRICS.get(protocol.usual_metric)
    if known is None:
        near = difflib.get_close_matches(protocol.metric, METRICS, n=1)
        guess = f"did you mean {near[0]}?" if near else f"known: {', '.join(METRICS)}"
        yield f"is no metric of this suite; {guess}"
        return
    if protocol.version > known.version:
        yield f"version {protocol.version} of its protocol is unknown; the newest is {known.version}"
    if protocol.higher_is_better != known.higher:
        yield f"higher_is_better must be {json.dumps(known.higher)}"
    if known.low is not None and value < known.low - NEVER:
        yield f"value {value:g} is impossible: it is at least {known.low:g}"
    high, score = known.high, protocol.usual_metric.removesuffix(UNGUIDED_SUFFIX)
    if score == "IS" and protocol.is_proxy and dataset is not None:
        high = dataset.classes
    if high is not None and value > high + NEVER:
        yield f"value {value:g} is impossible: it is at most {high:g}"
    if metric.n_generated == 0:
        yield "n_generated is 0: a value needs images"
    against_images = known.space != "classes" and score not in ("IS", "lite0-IS")
    if against_images and metric.n_real == 0:
        yield "n_real is 0: this metric compares with real images"
    yield from _extractor_problems(metric, known, checkpoints)
    if dataset is not None and metric.n_generated and metric.n_real:
        yield from _number_problems(metric, dataset)


def _extractor_problems(metric: Metric, known: Known, checkpoints: list[Checkpoint]) -> Iterator[str]:
    """Whether a metric's name claims another network than its extractor's hash."""
    protocol = metric.protocol
    sha256 = protocol.extractor_sha256
    if sha256 is not None and not _is_sha256(sha256):
        yield f"extractor_sha256 {shortened(repr(sha256), 40)} is no sha256 (64 hexadecimal digits)"
    elif known.space == "features" and protocol.name.startswith(PROXY_PREFIX) != protocol.is_proxy:
        yield (
            f"the name must begin with {PROXY_PREFIX!r} exactly if the extractor is {PROXY_EXTRACTOR!r}, and the "
            f"extractor is {shortened(repr(protocol.extractor), 40)}"
        )
    elif known.space == "features" and not protocol.is_proxy:
        network, published = _claimed(protocol.name)
        if protocol.variant is not None:  # such as one that clean-fid computes
            published = {*published, CLEAN_INCEPTION_SHA256}
        has = f"the sha256 {sha256[:8]}" if sha256 else "no sha256"
        if published and sha256 not in published:
            expected = " or ".join(sorted(each[:8] for each in published))
            yield f"the name claims the published {network} network ({expected}), but the extractor has {has}"
        elif sha256 is None:
            yield f"the name claims the published {network} network, but the extractor has {has}"
    elif protocol.is_proxy and sha256 is None:
        yield "extractor_sha256 is missing: values of different proxy extractors are not comparable"
    elif protocol.is_proxy:
        stated = {c.sha256 for c in checkpoints if c.role == "extractor"}
        if stated and sha256 not in stated:
            yield "extractor_sha256 is not that of the record's checkpoint with the role extractor"


def _claimed(name: str) -> tuple[str, set[str]]:
    """The network that the name of a metric claims, and the hashes of its published weights; empty if not known."""
    first, _, rest = name.partition("-")
    if rest and first in HASHES:
        return HASHES[first]
    known = rest and first in ("dinov2", "convnext", "mae", "siglip", "clip", "FDr")
    return (first, set()) if known else ("Inception", set(INCEPTION_SHA256))


def _number_problems(metric: Metric, dataset: Dataset) -> Iterator[str]:
    """Whether the numbers of images fit the data set."""
    name, n, real = metric.protocol.metric, metric.n_generated, metric.n_real
    pairs = name in ("rFID", "pFID", "clean-rFID", "lite0-rFID", "dinov2-rFID", "rKID", "PSNR", "SSIM", "LPIPS")
    if pairs and n > dataset.n_test:
        yield f"n_generated {n:,} is more than the {dataset.n_test:,} test images of the data set"
    if pairs and n != real:
        yield f"{n:,} reconstructions of {real:,} images: the numbers must be equal"
    if name in ("gFID", f"gFID{UNGUIDED_SUFFIX}") and metric.protocol.is_proxy and real != dataset.n_train:
        yield f"n_real {real:,} is not the number of training images of the data set, {dataset.n_train:,}"


def _status_problems(data: dict[str, Any]) -> Iterator[str]:
    status = data.get("status")
    if status == "finished" and isinstance(data.get("metrics", []), list) and not data.get("metrics"):
        yield "metrics: a finished record has at least one"
    if status in ("failed", "not run") and data.get("metrics"):
        yield f"metrics: a record with the status {status!r} has none"
    if status in ("failed", "not run") and not data.get("reason"):
        yield f"reason: must say why the status is {status!r}"


def _hash_problems(data: dict[str, Any], dataset: Dataset | None, checkpoints: list[Checkpoint]) -> Iterator[str]:
    config, stated = data.get("config"), data.get("config_sha256")
    if isinstance(config, dict) and isinstance(stated, str):
        canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
        if hashlib.sha256(canonical).hexdigest() != stated:
            yield "config_sha256: is not the sha256 of config: one of them was changed"
    named = [("dataset.sha256", dataset.sha256)] if dataset else []
    named += [(f"checkpoints.{i}.sha256", checkpoint.sha256) for i, checkpoint in enumerate(checkpoints)]
    pictures = data.get("picture_sha256")
    if isinstance(pictures, dict):
        named += [(f"picture_sha256.{name}", value) for name, value in pictures.items() if isinstance(value, str)]
    for where, value in named:
        if not _is_sha256(value):
            yield f"{shortened(where, 120)}: {shortened(repr(value), 40)} is no sha256 (64 hexadecimal digits)"


def _time_problems(run: Any) -> Iterator[str]:
    times = []
    for name in ("started", "finished"):
        text = run.get(name) if isinstance(run, dict) else None
        if isinstance(text, str):
            try:
                times.append(datetime.datetime.fromisoformat(text))
            except ValueError:
                yield f"run.{name}: {shortened(repr(text), 60)} is no ISO 8601 time"
    if len(times) == 2 and len({time.tzinfo is None for time in times}) == 1 and times[1] < times[0]:
        yield "run.finished: is before run.started"


def _check_pictures(data: dict[str, Any], path: Path, output: Path | None, found: Examination) -> None:
    pictures, hashes = data.get("pictures"), data.get("picture_sha256", {})
    if not isinstance(pictures, dict) or not isinstance(hashes, dict):
        return
    names = [name for name in pictures.values() if isinstance(name, str)]
    found.problems += [
        f"picture_sha256: {shortened(name, 80)} is none of the pictures" for name in hashes if name not in names
    ]
    if names and output is None and path.absolute().parent.name != "records":
        found.notes.append(f"note: {len(names)} pictures not checked; name the folder they are in with --output")
        return
    folder = output or path.absolute().parent.parent
    for name in names:
        known = hashes.get(name)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            found.problems.append(f"pictures: {shortened(name, 120)} is not a path inside the output folder")
        elif read_picture(folder, name) is None:
            found.problems.append(f"pictures: {shortened(name, 120)} is missing, or no intact PNG file, in {folder}")
        elif isinstance(known, str) and read_picture(folder, name, known) is None:
            found.problems.append(f"pictures: {shortened(name, 120)} is another file than the one in the record (hash)")


def _is_sha256(text: str) -> bool:
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _read(kind: type[_Kind], value: Any) -> _Kind | None:
    """A part that can be read, or None: the schema's own errors say what is wrong."""
    try:
        return kind.model_validate(value, strict=True)
    except ValidationError:
        return None
