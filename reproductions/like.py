"""A table of the output folder that images of others are measured like: its records say on what and with what."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imagefolder.data.images import DataSplits
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.protocols import BATCH
from imagefolder.files import file_sha256
from leaderboard.record import Checkpoint, Dataset, Record
from leaderboard.store import read_records
from leaderboard.tables import MetricKey, metric_key, table_key
from reproductions.measuring import extractors_of
from reproductions.options import Options
from reproductions.plan import data_source
from reproductions.recipe import Measure
from reproductions.scales import SCALES
from reproductions.source import read_splits

MEASURED_BY: dict[Measure, str] = {"generation": "gFID", "reconstruction": "rFID"}
"""Measures of a table, and the metric by which to tell that it has them"""


@dataclass(frozen=True)
class Like:
    """A table of the output folder that others' images are measured like.

    Attributes:
        records: of its finished rows that were made here, all with the same data and extractor.
        splits: the images they were measured on.
        checkpoint: the proxy extractor; None if the published ones are used.
    """

    records: list[Record]
    splits: DataSplits
    extractors: list[Extractor]
    checkpoint: Checkpoint | None
    output: Path

    @property
    def name(self) -> str:
        first = self.records[0]
        return f"{first.table} at scale {first.scale} on {first.dataset.name}"

    @property
    def keys(self) -> set[MetricKey]:
        """Its columns."""
        return {metric_key(metric) for record in self.records for metric in record.metrics}

    def numbers(self, measure: Measure) -> dict[int, Record]:
        """Numbers of samples, or of test images, that the table measures, each with a record; largest first.

        Raises:
            InputError: it measures none.
        """
        found = {
            metric.n_generated: record
            for record in self.records
            for metric in record.metrics
            if metric.protocol.metric == MEASURED_BY[measure]
        }
        if not found:
            what = "samples" if measure == "generation" else "reconstructions"
            raise InputError(f"{self.name} has no row with {what}, so there is nothing to put others' beside")
        return dict(sorted(found.items(), reverse=True))

    def batch_size(self, number: int) -> int:
        """In which the table measures this number of samples: sums over other batches would round differently."""
        cost = self.numbers("generation")[number].cost
        return cost.sample_batch if cost and cost.sample_batch else BATCH


def table_like(table: str, *, scale: str | None, budget: Sequence[str] = (), data: str, output: Path) -> Like:
    """A table of the output folder, with its images and extractors.

    Args:
        table: its name, e.g. "table2".
        scale: None if the table was run at one scale only.
        budget: FIELD=VALUE, as for the scripts; empty for the scale's own budget, or the only one it was run with.
        data: a built-in data set or a path, as for the scripts.

    Raises:
        InputError: there is no such table yet, its extractor is missing or another one, or the images are not those it
            was measured on.
    """
    records = [r for r in read_records(output / "records") if r.status == "finished" and r.added is None and r.metrics]
    members = [r for r in records if r.table == table]
    run_first = _command(table, scale, budget, data, output)
    if not members:
        known = ", ".join(dict.fromkeys(r.table for r in records)) or "none"
        raise InputError(f"{output}: no finished row of {table} (tables there: {known}); {run_first}")
    scales = list(dict.fromkeys(r.scale for r in members))
    if scale is None and len(scales) > 1:
        raise InputError(f"{output}: {table} was run at several scales; add --scale {' or --scale '.join(scales)}")
    members = [r for r in members if r.scale == (scale or scales[0])]
    if not members:
        raise InputError(
            f"{output}: no finished row of {table} at scale {scale} (only {', '.join(scales)}); {run_first}"
        )
    members = _same_budget(members, budget, output)
    splits, members = _same_data(members, data, output, run_first)
    published = SCALES[members[0].scale].published
    checkpoint = None if published else _checkpoint(members, output, run_first)
    if checkpoint is not None:
        members = [r for r in members if checkpoint.sha256 in _extractor_hashes(r)]
    members = [r for r in members if table_key(r) == table_key(members[0])]  # not of the same data by another name
    path = Path() if checkpoint is None else output / checkpoint.path
    return Like(members, splits, extractors_of(published, path, splits, output), checkpoint, output)


def _command(table: str, scale: str | None, budget: Sequence[str], data: str, output: Path) -> str:
    """What to run first, in words."""
    if not re.fullmatch("[a-z0-9_]+", table) or not Path(__file__).with_name(f"{table}.py").is_file():
        return f"{table!r} is no table of this suite"
    words = [f"reproductions/{table}.py", *(["--scale", scale] if scale else [])]
    words += [
        *(["--budget", *budget] if budget else []),
        *(["--data", data] if data != "digits" else []),
        *(["--output", str(output)] if output != Path("runs") else []),
    ]
    return f"run `python {shlex.join(words)}` first"


def _same_budget(members: list[Record], budget: Sequence[str], output: Path) -> list[Record]:
    """The records of the budget asked for."""
    known = list(dict.fromkeys(r.budget for r in members))
    wanted = known[0] if not budget and len(known) == 1 else " ".join(budget)
    if found := [r for r in members if sorted(r.budget.split()) == sorted(wanted.split())]:
        return found
    first, listed = members[0], " or ".join(f"--budget {each}" if each else "no --budget" for each in known)
    raise InputError(f"{output}: {first.table} was not run at scale {first.scale} with that budget; give {listed}")


def _same_data(members: list[Record], data: str, output: Path, run_first: str) -> tuple[DataSplits, list[Record]]:
    """The images, and the records that were measured on exactly them."""
    for size in dict.fromkeys(r.dataset.image_size for r in members):
        scale = SCALES[members[0].scale]
        if scale.tokenizer.image_size != size:
            scale = replace(scale, tokenizer=replace(scale.tokenizer, image_size=size))
        left_out = any(r.dataset.left_out for r in members)
        splits = read_splits(data_source(scale, Options(data=data, output=output, skip_corrupt=left_out)))
        if found := [r for r in members if r.dataset.sha256 == splits.sha256]:
            return splits, found
    measured = ", ".join(dict.fromkeys(f"{_shown(r.dataset)}" for r in members))
    raise InputError(
        f"--data {data}: not the images that {members[0].table} was measured on in {output} ({measured}); choose their "
        f"--data, or {run_first}"
    )


def _shown(dataset: Dataset) -> str:
    return f"{dataset.name}, {dataset.image_size} px, sha256 {dataset.sha256[:8]}"


def _extractor_hashes(record: Record) -> set[str]:
    return {c.sha256 for c in record.checkpoints if c.role == "extractor"}


def _checkpoint(members: list[Record], output: Path, run_first: str) -> Checkpoint:
    """The extractor that rows were measured with, if its file still is that one."""
    found = [c for r in members for c in r.checkpoints if c.role == "extractor"]
    for checkpoint in found:
        path = output / checkpoint.path
        if path.is_file() and file_sha256(path) == checkpoint.sha256:
            return checkpoint
    path = output / found[0].path if found else output
    what = "is not the one that the rows were measured with" if path.is_file() else "is missing"
    raise InputError(f"{path}: the proxy extractor of {members[0].table} {what}; {run_first}")
