"""Write the record of a row, and check whether there is one already."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torchvision.utils import save_image

from imagefolder.checkpoints.native import read_about
from imagefolder.config import config_hash, to_dict
from imagefolder.distributed import world_size
from imagefolder.environment import describe, peak_memory_mib
from imagefolder.errors import InputError
from imagefolder.evaluation.results import Result
from imagefolder.files import file_sha256, write_atomically
from imagefolder.progress import console
from leaderboard.pictures import pictures_intact
from leaderboard.record import CodebookUsage, Cost, Metric, Record, Run, Size
from leaderboard.store import RecordError, read_record, write_record
from reproductions.models import Models
from reproductions.recipe import Measure
from reproductions.row import Row
from reproductions.versions import Change, change_since, code_hashes

CAPTIONS: dict[Measure, str] = {
    "reconstruction": "reconstructions of test images (original left, reconstruction right)",
    "generation": "samples, classes in turn",
}
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
    pictures = {
        CAPTIONS[name]: write_picture(row.output, row.record.stem, name, result.picture, row.dataset.classes)
        for name, result in results.items()
        if result.picture is not None
    }
    write_record(
        row.output / "records",
        Record(
            **_identity(row, config),
            status="finished",
            size=_size(models),
            checkpoints=models.checkpoints,
            metrics=[Metric.of(value) for result in results.values() for value in result.measurements],
            codebook_usage=[CodebookUsage.of(usage) for result in results.values() for usage in result.usage],
            pictures=pictures,
            picture_sha256={path: file_sha256(row.output / path) for path in pictures.values()},
            cost=Cost(
                tokenizer_train_seconds=about.get("tokenizer", {}).get("seconds"),
                generator_train_seconds=about.get("generator", {}).get("seconds"),
                evaluation_seconds=seconds,
                samples_per_second=generation and generation.samples_per_second,
                sample_batch=generation and row.sampling.batch_size,
                tokenizer_shared=row.tokenizer_shared,
                peak_memory_mib=max([peak_memory_mib(), *(stored["peak_memory_mib"] for stored in about.values())]),
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
        execution={name: value for name, value in to_dict(row.execution).items() if name != "logger"},
        code=code_hashes(),
        **describe(),
    )


def write_picture(output: Path, record: str, name: Measure, images: Tensor, classes: int) -> str:
    """Write the picture of a measure; returns its path relative to the output folder.

    Args:
        record: name of the record that it belongs to.
        images: uint8 (N, 3, H, W).
        classes: of the data; samples show them side by side.
    """
    columns = 10 if name == "reconstruction" else min(classes, 10)
    path = output / "pictures" / f"{record}-{name}.png"
    grid = images.float() / 255
    write_atomically(path, lambda temporary: save_image(grid, temporary, nrow=columns, padding=1, format="png"))
    return str(path.relative_to(output))
