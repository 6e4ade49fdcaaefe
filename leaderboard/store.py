"""Writing and reading records: one JSON file per record, replaced in one step so that no reader sees half of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from leaderboard.record import SCALES, Record, SpeedRecord

Kind = TypeVar("Kind", Record, SpeedRecord)
STAGES = (
    "load images", "tokenize data set", "encode", "quantize", "decode", "reconstruct", "train tokenizer",
    "train tokenizer with discriminator", "teacher forcing", "train generator",
    "train generator: from cache", "train generator: encoding images", "sample", "sample: transformer",
    "sample: draw", "sample: decode", "feature extraction", "Frechet distance",
)  # fmt: skip
ORDERS = ("folded", "unfolded", "one branch", "raster", "")


class RecordError(ValueError):
    """A record, or a set of them, that cannot be used; the message is one line for people."""


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` in one step: after a failure the old file is untouched and no other file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder because os.replace is atomic only within one file system; the process id keeps writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_record(folder: Path, record: Record | SpeedRecord) -> Path:
    """Store `record` as `<record.name>.json` in `folder`, replacing an earlier run of the same row and seed (or case).

    Raises OSError where the folder cannot be written, and RecordError for what JSON cannot hold.
    """
    if Path(record.name).name != record.name:
        raise RecordError(f"record name {record.name!r} is no file name: use no slash in table, row and data set names")
    try:
        # json and not pydantic's own writer, which turns a NaN inside `config` into null without a word.
        text = json.dumps(record.model_dump(), indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RecordError(f"record {record.name} cannot be written as JSON: {error}") from error
    return write_text(folder / f"{record.name}.json", text + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; a NaN in it is an error. Raises OSError or ValueError."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def first_problem(error: ValidationError) -> str:
    """What is wrong with the first unusable field, in one line."""
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def read_record(path: Path, kind: type[Kind] = Record) -> Kind:
    """One record. Raises RecordError, naming the file, if it is not a valid record of this kind and schema version."""
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: not readable as JSON ({error}); repeat the run or delete the file") from error
    expected = kind.model_fields["schema_version"].default
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != expected:
        raise RecordError(f"{path}: schema version {version!r} and not {expected}; repeat the run or delete the file")
    try:
        record = kind.model_validate(data)
    except ValidationError as error:
        raise RecordError(f"{path}: {first_problem(error)}; repeat the run or delete the file") from error
    if path.stem != record.name:  # a copy under another name would count as one more seed
        raise RecordError(f"{path}: holds the record {record.name}; rename it to {record.name}.json or delete it")
    return record


def read_records(folder: Path) -> list[Record]:
    """All records in `folder`, by table, scale, data set, place in the table, row and seed; [] for a missing folder.

    Raises RecordError, naming the file, for anything that is not a valid record of this schema version.
    """
    records = [read_record(path) for path in sorted(folder.glob("*.json"))]
    return sorted(records, key=lambda r: (r.table, SCALES.index(r.scale), r.dataset.name, r.order, r.row, r.seed))


def read_speed(folder: Path) -> list[SpeedRecord]:
    """All speed records in `folder`, by machine, group and stage; [] for a missing folder.

    Raises RecordError, naming the file, for anything that is not a valid speed record of this schema version.
    """
    return sorted((read_record(path, SpeedRecord) for path in sorted(folder.glob("*.json"))), key=_speed_place)


def _speed_place(record: SpeedRecord) -> tuple[Any, ...]:
    cpu, gpu, threads = record.machine
    stage = STAGES.index(record.stage) if record.stage in STAGES else len(STAGES)
    return (
        gpu is not None, gpu or "", cpu, threads, ("stages", "folding", "growth").index(record.group), record.growth,
        stage, record.stage, record.device, record.model.split("-")[1:2], ORDERS.index(record.order), record.model,
        record.dtype, record.batch, record.growth_value, record.name,
    )  # fmt: skip
