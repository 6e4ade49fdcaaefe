"""Writing and reading records: one JSON file each, replaced atomically.

A file carries the checksum of its content, and one that does not match is refused. The checksum is stored in `run`, the
part of a record that differs between equal runs anyway.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from imagefolder.errors import InputError, reason, shortened
from imagefolder.files import CHECKSUM, read_text, sealed, unwritable, write_text
from imagefolder.locks import file_lock
from leaderboard.record import SCALES, Record
from leaderboard.speed_record import SpeedRecord

Kind = TypeVar("Kind", Record, SpeedRecord)
STAGES = (
    "load images", "tokenize data set", "encode", "quantize", "decode", "reconstruct", "train tokenizer",
    "train tokenizer with discriminator", "teacher forcing", "train generator",
    "train generator: from cache", "train generator: encoding images", "sample", "sample: transformer",
    "sample: draw", "sample: decode", "feature extraction", "Frechet distance",
)  # fmt: skip
GROUPS = ("stages", "folding", "growth")
ORDERS = ("folded", "unfolded", "one branch", "raster", "")
MODEL_SCALES = ("", *SCALES)
EARLIER = "earlier"  # folder of replaced records
LOCK_SECONDS = 60  # that a run waits for others; replacing a record takes a moment
REMEDY = "repeat the run or delete the file"
NEWER = "a newer version of this project wrote it; update this one to read it"


class RecordError(InputError):
    """A record, or a set of records, that cannot be used."""


class NewerRecordError(RecordError):
    """A record that a newer version of this project wrote."""


class Records(list[Kind]):
    """The usable records of a folder; `left_out` has one line for each of the other files, with the reason."""

    left_out: tuple[str, ...] = ()


def write_record(folder: Path, record: Record | SpeedRecord) -> Path | None:
    """Store `record` as `<record.name>.json` in `folder`, replacing an earlier run of the same row and seed (or case).

    No finished record is lost: an unfinished one never replaces it, and before one of another configuration (or of
    other added images) does, it is copied to `folder`/earlier as `NAME-CONFIG.json`, with the first digits of the
    configuration's (or the images') hash. Records of newer versions are moved there as `NAME-newer.json`, unreadable
    files as `NAME-damaged.json`. Concurrent runs take turns.

    Returns the path, or None if a finished record was kept and `record` was not written. Raises OSError if the folder
    cannot be written, and RecordError for values that JSON cannot hold.
    """
    name = record.name
    if Path(name).name != name or name.startswith("."):
        shown = shortened(repr(name))
        raise RecordError(f"record name {shown} is no file name: tables, rows and data sets need names without slashes")
    try:
        # Not with pydantic's own writer, which silently turns a NaN inside `config` into null
        plain = json.loads(json.dumps(record.model_dump(), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RecordError(f"record {name} cannot be written as JSON: {reason(error)}") from error
    plain["run"][CHECKSUM] = sealed(plain)[CHECKSUM]
    # Lone surrogates, as in file names that are not UTF-8, are written as escapes, which JSON reads back unchanged
    text = json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
    path = folder / f"{name}.json"
    if isinstance(record, SpeedRecord):
        return write_text(path, text)
    with _turn(folder):
        return write_text(path, text) if _make_way(path, record) else None


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Hold the lock for replacing records in `folder`. Raises OSError (one line)."""
    folder = folder.absolute()
    lock = file_lock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LOCK_SECONDS)
    except (OSError, NotImplementedError) as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _make_way(path: Path, record: Record) -> bool:
    """Keep a copy of what `record` would replace in the file `path`, if necessary; False if it must not replace it."""
    if not path.exists():
        return True
    try:
        before = read_record(path)
    except RecordError as error:
        why = "newer" if isinstance(error, NewerRecordError) else "damaged"
        aside = path.parent / EARLIER / f"{path.stem}-{why}.json"
        try:
            aside.parent.mkdir(exist_ok=True)
            os.replace(path, aside)
        except OSError as problem:
            raise unwritable(aside, problem) from problem
        return True
    if before.status != "finished":
        return True
    if record.status != "finished":
        return False
    if _made_from(before) != _made_from(record):
        config = re.sub("[^0-9A-Za-z]", "-", _made_from(before)[:8])
        write_text(path.parent / EARLIER / f"{path.stem}-{config}.json", read_text(path))
    return True


def _made_from(record: Record) -> str:
    """Hashes that differ if two records of one name are about different things."""
    added = record.added
    if added is None:
        return record.config_sha256
    return f"{added.samples_sha256 or ''}{added.reconstructions_sha256 or ''}"


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises OSError, or ValueError, also for repeated keys and non-finite numbers."""
    try:
        return json.loads(read_text(path), parse_constant=_finite, parse_float=_finite, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is not a number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"{key!r} is given twice")
    return found


def first_problem(error: ValidationError) -> str:
    """The problem with the first invalid field, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{shortened('.'.join(str(part) for part in first['loc']))}: {shortened(first['msg'])}"


def read_record(path: Path, kind: type[Kind] = Record) -> Kind:
    """One record, of this schema version or an earlier one: what earlier versions did not write has its default.

    Files without a checksum, which earlier versions wrote, are accepted.

    Raises:
        NewerRecordError: it has a later schema version, or is intact and has fields that this version does not know.
        RecordError: it is not a valid record of this kind, or not what was written.

    Both name the file.
    """
    expected = kind.model_fields["schema_version"].default
    try:
        data = read_json(path)
        version = data.get("schema_version") if isinstance(data, dict) else None
        known = type(version) is int and version == expected
        run = data.get("run") if known else None
        stated = [run.pop(CHECKSUM)] if isinstance(run, dict) and CHECKSUM in run else []
        intact = not stated or stated == [sealed(data)[CHECKSUM]]
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not readable as JSON ({reason(error)}); {REMEDY}") from error
    if not known:
        raise _of_another_version(path, version, expected)
    if not intact:
        raise RecordError(f"{path}: its checksum does not match: damaged, or edited by hand; {REMEDY}")
    try:
        # Strict: neither a text nor a boolean is accepted as a number
        record = kind.model_validate(data, strict=True)
    except ValidationError as error:
        if stated and all(problem["type"] == "extra_forbidden" for problem in error.errors(include_input=False)):
            field = first_problem(error).partition(":")[0]
            raise NewerRecordError(f"{path}: its field {field} is not known here: {NEWER}") from error
        raise RecordError(f"{path}: {first_problem(error)}; {REMEDY}") from error
    if path.stem != record.name:  # a copy under another name would count as another run
        name = shortened(record.name)
        raise RecordError(f"{path}: holds the record {name}; rename it to {name}.json or delete it")
    return record


def _of_another_version(path: Path, version: object, expected: int) -> RecordError:
    if version is None:
        return RecordError(f"{path}: no record of this project (it has no schema_version); move it or delete it")
    shown = shortened(repr(version) if isinstance(version, int | float | str) else f"a {type(version).__name__}")
    if type(version) is int and version > expected:
        return NewerRecordError(f"{path}: schema version {shown}, but this version reads {expected}: {NEWER}")
    return RecordError(f"{path}: schema version {shown} and not {expected}; {REMEDY}")


def read_records(folder: Path) -> Records[Record]:
    """The records in `folder`, by table, scale, budget, data set, place in the table, row and seed.

    There are none if the folder is missing.

    Invalid files are skipped and listed in `left_out`; hidden files are ignored. Raises OSError if the folder cannot be
    read.
    """
    return _read_folder(
        folder, Record, lambda r: (r.table, SCALES.index(r.scale), r.budget, r.dataset.name, r.order, r.row, r.seed)
    )


def read_speed(folder: Path) -> Records[SpeedRecord]:
    """The speed records in `folder`, by machine, group and stage; otherwise as `read_records`."""
    return _read_folder(folder, SpeedRecord, _speed_place)


def _read_folder(folder: Path, kind: type[Kind], place: Callable[[Kind], Any]) -> Records[Kind]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json" and not path.name.startswith("."))
    except FileNotFoundError:
        return Records()
    records, left_out = [], []
    for path in paths:
        try:
            records.append(read_record(path, kind))
        except RecordError as error:
            left_out.append(str(error))
    found = Records(sorted(records, key=place))
    found.left_out = tuple(left_out)
    return found


def _speed_place(record: SpeedRecord) -> tuple[Any, ...]:
    cpu, gpu, threads = record.machine
    stage = STAGES.index(record.stage) if record.stage in STAGES else len(STAGES)
    return (
        gpu is not None, gpu or "", cpu, threads, GROUPS.index(record.group), record.growth,
        stage, record.stage, record.device, MODEL_SCALES.index(record.scale), ORDERS.index(record.order), record.model,
        record.dtype, record.batch, record.growth_value, record.name,
    )  # fmt: skip
