"""Write the record of a row, and check whether there is one already."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from imagefolder.checkpoints.native import read_about
from imagefolder.config import config_hash, to_dict
from imagefolder.distributed import world_size
from imagefolder.environment import describe, hardware, peak_memory_mib
from imagefolder.errors import InputError
from imagefolder.evaluation.results import Result
from imagefolder.files import file_sha256
from imagefolder.progress import console
from leaderboard.pictures import pictures_intact
from leaderboard.record import CodebookUsage, Cost, Metric, Record, Run, Size
from leaderboard.store import RecordError, read_record, write_record
from reproductions.models import Models
from reproductions.pictures import measured_sheets, model_sheets, write_pictures
from reproductions.recipe import Measure
from reproductions.row import Row
from reproductions.versions import Change, change_since, code_hashes

MOST_CLASSES = 1000  # whose accuracies a record lists
TRAINING = ("tokenizer_training", "generator_training", "loss", "views", "proxy_steps")


def record_finished(row: Row, models: Models, results: Mapping[Measure, Result], started: str, seconds: float) -> None:
    """Write the record of an evaluated row, with its pictures. Called by rank 0 alone.

    Args:
        started: time stamp of the evaluation's start.
        seconds: duration of the evaluation.
    """
    if row.scale.published:  # at other scales, metrics that need published weights are not expected
        for note in (note for result in results.values() for note in result.notes):
            console.print(f"{row.recipe.row}: {note}")
    config, about = row.config, models.about
    if row.given is not None:  # it is not known how they were trained
        unknown = (*TRAINING, *row.batch_statistics)
        config = {name: value for name, value in config.items() if name not in unknown}
        config["weights"] = {checkpoint.role: checkpoint.sha256 for checkpoint in models.checkpoints}
    generation = next((result for result in results.values() if result.samples_per_second), None)
    memory = peak_memory_mib()  # of the evaluation, without the pictures
    sheets = (*measured_sheets(results, row.dataset.classes), *model_sheets(row, models, results))
    pictures = write_pictures(row.output, row.record.stem, sheets)
    write_record(
        row.output / "records",
        Record(
            **_identity(row, config),
            status="finished",
            size=_size(models),
            checkpoints=models.checkpoints,
            metrics=[Metric.of(value) for result in results.values() for value in result.measurements],
            codebook_usage=[CodebookUsage.of(usage) for result in results.values() for usage in result.usage],
            notes=[note for result in results.values() for note in result.notes],
            class_accuracies=class_accuracies(results, row.splits.classes),
            pictures=pictures,
            picture_sha256={path: file_sha256(row.output / path) for path in pictures.values()},
            cost=Cost(
                tokenizer_train_seconds=about.get("tokenizer", {}).get("seconds"),
                generator_train_seconds=about.get("generator", {}).get("seconds"),
                evaluation_seconds=seconds,
                samples_per_second=generation and generation.samples_per_second,
                sample_batch=generation and row.sampling.batch_size,
                tokenizer_shared=row.tokenizer_shared,
                peak_memory_mib=max([memory, *(stored["peak_memory_mib"] for stored in about.values())]),
            ),
            run=_run(row, started),
        ),
    )


def record_unfinished(row: Row, status: Literal["failed", "not run"], reason: str) -> None:
    """Record that a row failed or was not run, and why; a finished record is kept."""
    record = Record(**_identity(row, row.config), status=status, reason=reason, run=_run(row, utc_now()))
    if write_record(row.output / "records", record) is None:
        console.print(f"{row.name}: the record of its earlier, finished run is kept")


def has_record(row: Row) -> bool:
    """Whether the row has an intact, finished record of exactly these settings and models, with its pictures."""
    return finished_record(row) is not None


def finished_record(row: Row) -> Record | None:
    """The record that `has_record` asks for."""
    try:
        record = read_record(row.record)
        same = record.config_sha256 == config_hash(row.config) and record.dataset.sha256 == row.dataset.sha256
        finished = record.status == "finished" and same and _is_of_these_models(record, row)
    except (RecordError, InputError):  # of the models' documents; loading them reports it
        return None
    return record if finished and pictures_intact(record, row.output) else None


def is_timed(row: Row, record: Record | None) -> bool:
    """Whether a row needs no timing: it was timed alone, it is about sampling settings or evaluators and has the models
    of another row, or its record is of another machine, number of processes or execution, to which a timing here would
    not belong."""
    if row.recipe.sampling or "evaluators" in row.recipe.measures:
        return True
    if record is None or record.cost is None:
        return False
    run, here = record.run, hardware()
    if (run.cpu, run.gpu, run.processes) != (here["cpu"], here["gpu"], world_size()):
        return True
    if run.execution != _execution(row):
        return True
    return record.cost.threads is not None if record.cost.alone is None else record.cost.alone


def record_timing(row: Row, **measured: Any) -> None:
    """Add fields to the cost in the record of a finished row, and leave the rest of it as it is.

    Called by rank 0 alone, which holds the record's lock.

    Raises:
        InputError: the record is no longer there, or is of other settings or models.
    """
    record = read_record(row.record) if row.given is not None else finished_record(row)
    if record is None or record.cost is None:
        raise InputError(f"{row.record}: no longer the finished record of this row; run the same command again")
    cost = Cost.model_validate(record.cost.model_dump() | measured)
    write_record(row.output / "records", record.model_copy(update={"cost": cost}))


def changed_since(record: Record) -> Change | None:
    """How the code that decides a record's numbers differs from the code that made it; None: not at all."""
    return change_since(record.run.git_commit, record.run.code, "record")


def utc_now() -> str:
    """The current time in the format of records."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _is_of_these_models(record: Record, row: Row) -> bool:
    recorded = {checkpoint.role: checkpoint.sha256 for checkpoint in record.checkpoints}
    return all(recorded.get(m.role) == read_about(m.folder).get("weights_sha256") for m in row.models)


def _identity(row: Row, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "table": row.table,
        "row": row.recipe.row,
        "order": row.order,
        "label": row.recipe.label,
        "note": row.recipe.note,
        "reported_system": row.recipe.reported,
        "scale": row.scale.name,
        "budget": row.scale.budget_text,
        "seed": row.seed,
        "config": config,
        "config_sha256": config_hash(config),
        "dataset": row.dataset,
    }


def _size(models: Models) -> Size:
    config = models.tokenizer.config
    tokens = config.branches * config.length
    size = {
        "tokens": tokens,
        "bits": tokens * math.log2(config.codebook_size),
        "tokenizer_parameters": sum(p.numel() for p in models.tokenizer.parameters()),
    }
    if models.generator is not None:
        transformer = models.generator.transformer
        size |= {
            "positions": transformer.sequence.length,
            "steps": len(transformer.sequence.blocks),
            "generator_parameters": sum(p.numel() for p in transformer.parameters()),
        }
    return Size(**size)


def _run(row: Row, started: str) -> Run:
    return Run(
        started=started,
        finished=utc_now(),
        command=row.command,
        processes=world_size(),
        execution=_execution(row),
        code=code_hashes(),
        **describe(),
    )


def _execution(row: Row) -> dict[str, Any]:
    """How the row's models are trained, apart from where the losses go."""
    return {name: value for name, value in to_dict(row.execution).items() if name != "logger"}


def class_accuracies(results: Mapping[Measure, Result], classes: Sequence[str]) -> dict[str, float]:
    """The accuracy of samples by name of their class; of equal names, each with its number. Empty for many classes."""
    measured = next((result.class_accuracies for result in results.values() if result.class_accuracies), [])
    if not 0 < len(measured) <= MOST_CLASSES:
        return {}
    names = [f"{name} ({i})" if classes.count(name) > 1 else name for i, name in enumerate(classes)]
    return {name: value for name, value in zip(names, measured, strict=True) if value is not None}
