"""Writing and reading records: one JSON file per record, replaced in one step so that no reader sees half of it.

A file carries the checksum of what it holds, and what is not as it was written is no record. The checksum stands in
`run`, the part that differs between equal runs, since it differs with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from pydantic import ValidationError

from leaderboard.files import read_text, unwritable, write_text
from leaderboard.record import SCALES, Record, SpeedRecord
from leaderboard.text import one_line, reason, shortened

Kind = TypeVar("Kind", Record, SpeedRecord)
STAGES = (
    "load images", "tokenize data set", "encode", "quantize", "decode", "reconstruct", "train tokenizer",
    "train tokenizer with discriminator", "teacher forcing", "train generator",
    "train generator: from cache", "train generator: encoding images", "sample", "sample: transformer",
    "sample: draw", "sample: decode", "feature extraction", "Frechet distance",
)  # fmt: skip
ORDERS = ("folded", "unfolded", "one branch", "raster", "")
CHECKSUM = "checksum"
EARLIER = "earlier"  # folder of what has been replaced
LOCK_SECONDS = 60  # what runs wait for each other; replacing a record takes a moment
REMEDY = "repeat the run or delete the file"


class RecordError(ValueError):
    """A record, or a set of them, that cannot be used; the message is one line that any terminal can show."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Records(list[Kind]):
    """The usable records of a folder; `left_out` says in one line each which files are not, and why."""

    left_out: tuple[str, ...] = ()


def write_record(folder: Path, record: Record | SpeedRecord) -> Path | None:
    """Store `record` as `<record.name>.json` in `folder`, replacing an earlier run of the same row and seed (or case).

    Nothing finished is lost: a record that is not finished never replaces one that is, and a finished one of another
    configuration is first copied to `folder`/earlier, as `NAME-CONFIG.json` with the first digits of the
    configuration's hash. What cannot be read goes there as `NAME-damaged.json`. Two runs take turns.

    Returns the path, or None where a finished record stays and `record` was not written. Raises OSError where the
    folder cannot be written, and RecordError for what JSON cannot hold.
    """
    name = record.name
    if Path(name).name != name or name.startswith("."):
        shown = shortened(repr(name))
        raise RecordError(f"record name {shown} is no file name: no slash in names of tables, rows and data sets")
    try:
        # json and not pydantic's own writer, which turns a NaN inside `config` into null without a word.
        plain = json.loads(json.dumps(record.model_dump(), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise RecordError(f"record {name} cannot be written as JSON: {reason(error)}") from error
    plain["run"][CHECKSUM] = _checksum(plain)
    # Half a character, as in a file name that is no UTF-8, is written by its code, which JSON reads as what it was
    text = json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
    path = folder / f"{name}.json"
    if isinstance(record, SpeedRecord):
        return write_text(path, text)
    with _turn(folder):
        return write_text(path, text) if _make_way(path, record) else None


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Be the only one that replaces records in `folder`. Raises OSError (one line)."""
    folder = folder.absolute()
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=LOCK_SECONDS)  # in it there are records alone
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise unwritable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def _make_way(path: Path, record: Record) -> bool:
    """Put aside what would be lost if `record` replaced the file `path`; False if it must not replace it."""
    if not path.exists():
        return True
    try:
        before = read_record(path)
    except RecordError:
        damaged = path.parent / EARLIER / f"{path.stem}-damaged.json"
        try:
            damaged.parent.mkdir(exist_ok=True)
            os.replace(path, damaged)
        except OSError as error:
            raise unwritable(damaged, error) from error
        return True
    if before.status != "finished":
        return True
    if record.status != "finished":
        return False
    if before.config_sha256 != record.config_sha256:
        config = re.sub("[^0-9A-Za-z]", "-", before.config_sha256[:8])
        write_text(path.parent / EARLIER / f"{path.stem}-{config}.json", read_text(path))
    return True


def read_json(path: Path) -> Any:
    """The content of a JSON file. A number that is not finite and a key given twice are errors.

    Raises OSError or ValueError.
    """
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


def _checksum(document: dict[str, Any]) -> str:
    """sha256 of a JSON document in one fixed form."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def first_problem(error: ValidationError) -> str:
    """What is wrong with the first unusable field, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{shortened('.'.join(str(part) for part in first['loc']))}: {shortened(first['msg'])}"


def read_record(path: Path, kind: type[Kind] = Record) -> Kind:
    """One record. Raises RecordError, naming the file, if it is not a valid record of this kind and schema version, or
    not what was written. Files without a checksum, as earlier versions wrote them, are taken as they are."""
    expected = kind.model_fields["schema_version"].default
    try:
        data = read_json(path)
        version = data.get("schema_version") if isinstance(data, dict) else None
        known = type(version) is int and version == expected
        run = data.get("run") if known else None
        intact = not isinstance(run, dict) or CHECKSUM not in run or run.pop(CHECKSUM) == _checksum(data)
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: not readable as JSON ({reason(error)}); {REMEDY}") from error
    if not known:
        shown = repr(version) if isinstance(version, int | float | str | None) else f"a {type(version).__name__}"
        raise RecordError(f"{path}: schema version {shortened(shown)} and not {expected}; {REMEDY}")
    if not intact:
        raise RecordError(f"{path}: its checksum is another: damaged, or changed by hand; {REMEDY}")
    try:
        # Strict: a text or a truth value where a number belongs is none
        record = kind.model_validate(data, strict=True)
    except ValidationError as error:
        raise RecordError(f"{path}: {first_problem(error)}; {REMEDY}") from error
    if path.stem != record.name:  # a copy under another name would count as one more seed
        name = shortened(record.name)
        raise RecordError(f"{path}: holds the record {name}; rename it to {name}.json or delete it")
    return record


def read_records(folder: Path) -> Records[Record]:
    """The records in `folder`, by table, scale, data set, place in the table, row and seed; none for a missing folder.

    A file that is no valid record keeps none of the others from being read: it is told in `left_out`. Hidden files are
    no records. Raises OSError for a folder that cannot be read.
    """
    return _read_folder(
        folder, Record, lambda r: (r.table, SCALES.index(r.scale), r.dataset.name, r.order, r.row, r.seed)
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
        gpu is not None, gpu or "", cpu, threads, ("stages", "folding", "growth").index(record.group), record.growth,
        stage, record.stage, record.device, record.model.split("-")[1:2], ORDERS.index(record.order), record.model,
        record.dtype, record.batch, record.growth_value, record.name,
    )  # fmt: skip
