"""Rows of others: samples and reconstructions in files, measured by the protocols of a table and recorded beside ours.

Images are compared by their pixels, never by names.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagefolder.config import config_hash
from imagefolder.data.images import DataSplits
from imagefolder.data.order import ordered_batches
from imagefolder.environment import describe, use_threads
from imagefolder.errors import InputError
from imagefolder.evaluation.files import (
    NpzImages,
    PngFolder,
    in_batches,
    open_images,
    pixel_digests,
    pixels_sha256,
    read_labels,
)
from imagefolder.evaluation.protocols import (
    BATCH,
    SAMPLES_SHOWN,
    measure_reconstructions,
    measure_samples,
    with_nearest,
)
from imagefolder.evaluation.results import Result
from imagefolder.files import file_sha256, write_atomically
from imagefolder.progress import Phase, console
from leaderboard.record import Added, Metric, Protocol, Record, Run, web_address
from leaderboard.store import write_record
from leaderboard.tables import MetricKey, metric_key
from reproductions.like import Like
from reproductions.measuring import require_same_images
from reproductions.pictures import measured_sheets, write_pictures
from reproductions.recipe import Measure
from reproductions.recording import class_accuracies, utc_now
from reproductions.row import some_test_images
from reproductions.scales import SCALES
from reproductions.versions import code_hashes

LAST = 2**31  # place of added rows in their table
LONGEST_LABEL = 200
OF_A_ROW = {
    *("row", "label", "note", "order", "reported_system", "seed", "config", "config_sha256", "size", "checkpoints"),
    *("metrics", "codebook_usage", "class_accuracies", "pictures", "picture_sha256", "cost", "added", "run"),
}
"""Fields of a record that are about one row, not its table"""
Files = PngFolder | NpzImages


@dataclass(frozen=True, kw_only=True)
class Addition:
    """Images of others to measure: samples, or reconstructions with their originals, or both."""

    label: str
    samples: Path | None = None
    reconstructions: Path | None = None
    originals: Path | None = None
    author: str = ""
    link: str | None = None
    seed: int = 0
    command: str = ""

    @property
    def row(self) -> str:
        """Name of the row; equal for other seeds of the same model."""
        words = re.sub("[^a-z0-9]+", "-", self.label.lower()).strip("-")[:40]
        return "-".join(filter(None, ("added", words, hashlib.sha256(repr(self._whose).encode()).hexdigest()[:8])))

    @property
    def _whose(self) -> tuple[str, str, str | None]:
        return self.label, self.author, self.link


def add_row(addition: Addition, like: Like) -> Path:
    """Measure images of others and record them; returns the path of the record.

    Raises:
        InputError: images are of another number or size than the table's, samples are not balanced over the classes,
            originals are not its test images, or values would not share the columns of the table.
    """
    if addition.samples is None and addition.reconstructions is None:
        raise InputError("nothing to add: give samples (a folder of PNGs or an npz), --reconstructions, or both")
    if (addition.reconstructions is None) != (addition.originals is None):
        raise InputError("--reconstructions and --originals go together: every reconstruction needs its original")
    if not 0 < len(addition.label.strip()) <= LONGEST_LABEL:
        raise InputError(f"--label is the name of the row in the report: 1 to {LONGEST_LABEL} characters")
    if addition.link is not None:
        try:
            web_address(addition.link)
        except ValueError as error:
            raise InputError(f"--link {error}") from None
    if (threads := SCALES[like.records[0].scale].threads) is not None:
        use_threads(threads)  # as the table's evaluation, since rounding depends on it
    started, hashes, notes = utc_now(), {}, []
    results: dict[Measure, Result] = {}
    if addition.samples is not None:
        results["generation"], hashes["samples_sha256"], note = _measure_samples(addition.samples, like)
        hashes["samples"] = addition.samples.resolve().name
        notes.append(note)
    if addition.reconstructions is not None and addition.originals is not None:
        measured = _measure_reconstructions(addition.reconstructions, addition.originals, like)
        results["reconstruction"], hashes["reconstructions_sha256"] = measured
        hashes["reconstructions"] = addition.reconstructions.resolve().name
        notes.append("reconstructions of the test images")
    require_same_images(like.splits)
    added = Added(author=addition.author, link=addition.link, **hashes)
    record = _record(addition, like, results, added, " and ".join(notes), started)
    path = write_record(like.output / "records", record)
    assert path is not None, "only an unfinished record gives way to a finished one"
    return path


def write_originals(like: Like, folder: Path) -> int:
    """Write the test images that a table reconstructs as PNGs, for others to reconstruct; returns their number."""
    images = some_test_images(like.splits, next(iter(like.numbers("reconstruction")))).test.plain()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is no empty folder; choose another one")
    done = 0
    with Phase("writing test images", len(images)) as phase:
        for batch, _ in ordered_batches(images, BATCH):
            for image in batch.permute(0, 2, 3, 1).numpy():
                save = Image.fromarray(image).save
                write_atomically(folder / f"{done:06d}.png", lambda path, save=save: save(path, format="PNG"))
                done += 1
            phase.update(done)
    return done


def _measure_samples(path: Path, like: Like) -> tuple[Result, str, str]:
    """Metrics and pixels' sha256 of samples, and what is known of them in words."""
    images = open_images(path)
    n = _checked_number(path, images, "generation", like)
    labels = read_labels(path, n)
    if labels is not None:
        _require_balanced(path, labels, like)
    digests: list[bytes] = []
    shown: list[Tensor] = []

    def batches() -> Iterator[Tensor]:
        for batch in in_batches(images, like.batch_size(n)):
            if len(digests) < SAMPLES_SHOWN:
                shown.append(batch[: SAMPLES_SHOWN - len(digests)])
            digests.extend(pixel_digests(batch))
            yield batch

    result = measure_samples(
        batches(),
        like.splits,
        like.extractors,
        number=n,
        size=images.size,
        labels=None if labels is None else torch.from_numpy(labels),
        title=f"{path.name}: samples",
    )
    note = f"{n:,} samples" if labels is not None else f"{n:,} samples without labels, so their balance is not checked"
    picture = torch.cat(shown)
    return with_nearest(replace(result, picture=picture), picture, like.splits), pixels_sha256(digests), note


def _measure_reconstructions(path: Path, originals: Path, like: Like) -> tuple[Result, str]:
    """Metrics of reconstructions, and the sha256 of their pixels in the order of the test images."""
    images, sources = open_images(path), open_images(originals)
    n = _checked_number(path, images, "reconstruction", like)
    if _checked_number(originals, sources, "reconstruction", like) != n:
        raise InputError(
            f"{originals}: {len(sources):,} originals of {n:,} reconstructions; every one needs its original"
        )
    splits = some_test_images(like.splits, n)
    places = _places(originals, sources, splits)
    digests: list[bytes] = []

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        with tempfile.TemporaryDirectory() as scratch, Phase(f"{path.name}: reconstructions", n) as phase:
            ordered = _reordered(images, places, Path(scratch))
            for (real, _), batch in zip(ordered_batches(splits.test.plain(), BATCH), ordered, strict=True):
                digests.extend(pixel_digests(batch))
                phase.update(len(digests))
                yield real, batch

    result = measure_reconstructions(pairs(), splits, like.extractors)
    return result, pixels_sha256(digests)


def _checked_number(path: Path, images: Files, measure: Measure, like: Like) -> int:
    """The number of images; `InputError` unless the table measures as many, of this size."""
    numbers = like.numbers(measure)
    if len(images) not in numbers:
        known = " or ".join(f"{number:,}" for number in numbers)
        what = "samples" if measure == "generation" else "test images"
        raise InputError(
            f"{path}: {len(images):,} images, but {like.name} measures {known} {what}; give exactly {known}, since the "
            "values depend on the number"
        )
    if images.size != (side := like.splits.image_size, side):
        height, width = images.size
        raise InputError(f"{path}: images of {width} x {height} pixels, but {like.name} has {side} x {side}")
    return len(images)


def _require_balanced(path: Path, labels: np.ndarray, like: Like) -> None:
    """`InputError` unless every class has as many samples as any other, give or take one."""
    classes = len(like.splits.classes)
    if len(odd := labels[(labels < 0) | (labels >= classes)]):
        raise InputError(
            f"{path}: label {odd[0]} is no class of {like.splits.name}; labels are 0 to {classes - 1}, in the order of "
            "its class names"
        )
    counts = np.bincount(labels, minlength=classes)
    if counts.max() - counts.min() > 1:
        raise InputError(
            f"{path}: between {counts.min():,} and {counts.max():,} samples of a class, but {like.name} measures "
            f"class-balanced samples; give {len(labels) // classes:,} of each"
        )


def _places(path: Path, images: Files, splits: DataSplits) -> list[int]:
    """Which test image each of some originals is, by pixels. Equal images are taken in order."""
    tests = (digest for batch, _ in ordered_batches(splits.test.plain(), BATCH) for digest in pixel_digests(batch))
    known: dict[bytes, list[int]] = defaultdict(list)
    for place, digest in enumerate(tests):
        known[digest].append(place)
    for places in known.values():
        places.reverse()
    found: list[int] = []
    for batch in images.batches(range(len(images))):
        for digest in pixel_digests(batch):
            if not (places := known.get(digest)):
                raise InputError(
                    f"{path}: image {len(found)} (from 0) is not, pixel by pixel, one of the {len(splits.test):,} test "
                    f"images of {splits.name}, or is given twice; `python -m leaderboard images` writes them as PNGs"
                )
            found.append(places.pop())
    return found


def _reordered(images: Files, places: list[int], scratch: Path) -> Iterator[Tensor]:
    """Images in the order of the test images, through an array on disk if it is not already theirs."""
    if places == list(range(len(places))):
        yield from in_batches(images, BATCH)
        return
    shape = (len(places), 3, *images.size)
    array = np.lib.format.open_memmap(scratch / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    done = 0
    for batch in images.batches(range(len(images))):
        array[places[done : done + len(batch)]] = batch.numpy()
        done += len(batch)
    for start in range(0, len(places), BATCH):
        yield torch.from_numpy(np.array(array[start : start + BATCH]))


def _metrics(results: dict[Measure, Result], like: Like) -> list[Metric]:
    """The values that have a column in the table; `InputError` if one would get another column instead."""
    keys = like.keys
    by_name = {key[0].name: key for key in keys}
    kept = []
    for metric in (Metric.of(m) for result in results.values() for m in result.measurements):
        if metric_key(metric) in keys:
            kept.append(metric)
        elif (theirs := by_name.get(metric.protocol.name)) is not None:
            different = "; ".join(_differences(metric_key(metric), theirs))
            raise InputError(
                f"{metric.protocol.name} would not share its column of {like.name}: {different}; run the table again "
                "with this version of the code and its packages"
            )
        else:
            console.print(f"{metric.protocol.name}: no column in {like.name}, so it is left out")
    return kept


def _differences(mine: MetricKey, theirs: MetricKey) -> Iterator[str]:
    for name in Protocol.model_fields:
        here, there = getattr(mine[0], name), getattr(theirs[0], name)
        if here != there:
            yield f"{name} {here} here, {there} there"
    for name, here, there in zip(("real images", "images"), mine[1:], theirs[1:], strict=True):
        if here != there:
            yield f"{here} {name} here, {there} there"


def _record(
    addition: Addition, like: Like, results: dict[Measure, Result], added: Added, note: str, started: str
) -> Record:
    first = like.records[0]
    shared = {
        name: getattr(first, name) for name in Record.model_fields if name not in OF_A_ROW
    }  # what makes it this table
    record = Record(
        **shared,
        row=addition.row,
        label=addition.label,
        note=f"{note}, measured from files",
        order=LAST,
        seed=addition.seed,
        config={},
        config_sha256=config_hash({}),
        checkpoints=[like.checkpoint] if like.checkpoint else [],
        metrics=_metrics(results, like),
        class_accuracies=class_accuracies(results, like.splits.classes),
        added=added,
        run=Run(started=started, finished=utc_now(), command=addition.command, code=code_hashes(), **describe()),
    )
    pictures = write_pictures(like.output, record.name, measured_sheets(results, first.dataset.classes))
    sha256 = {path: file_sha256(like.output / path) for path in pictures.values()}
    return record.model_copy(update={"pictures": pictures, "picture_sha256": sha256})
