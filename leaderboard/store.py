"""Writing and reading records: one JSON file per record, replaced in one step so that no reader sees half of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from leaderboard.record import SCHEMA_VERSION, Record


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


def write_record(folder: Path, record: Record) -> Path:
    """Store `record` as `<record.name>.json` in `folder`, replacing an earlier run of the same row and seed.

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


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def read_record(path: Path) -> Record:
    """One record. Raises RecordError, naming the file, if it is not a valid record of this schema version."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: not readable as JSON ({error}); repeat the run or delete the file") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path}: schema version {version!r} and not {SCHEMA_VERSION}; repeat the run or delete the file"
        )
    try:
        record = Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path}: {where}: {first['msg']}; repeat the run or delete the file") from error
    if path.stem != record.name:  # a copy under another name would count as one more seed
        raise RecordError(f"{path}: holds the record {record.name}; rename it to {record.name}.json or delete it")
    return record


def read_records(folder: Path) -> list[Record]:
    """All records in `folder`, by table, scale, data set, place in the table, row and seed; [] for a missing folder.

    Raises RecordError, naming the file, for anything that is not a valid record of this schema version.
    """
    records = [read_record(path) for path in sorted(folder.glob("*.json"))]
    return sorted(records, key=lambda r: (r.table, r.scale, r.dataset.name, r.order, r.row, r.seed))
