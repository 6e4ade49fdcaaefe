"""The images that `reproductions/evaluators.py` measures in many ways: those of a trained row, or files of the user."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from imagefolder.config import config_hash, to_dict
from imagefolder.data.images import samples_to_uint8, to_float, to_uint8
from imagefolder.data.order import ordered_batches
from imagefolder.distributed import world_size
from imagefolder.environment import describe, peak_memory_mib
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.files import PngFolder, in_batches, measure_files
from imagefolder.evaluation.protocols import (
    BATCH,
    evaluate_files,
    labels_of,
    measure_reconstructions,
    measure_samples,
)
from imagefolder.evaluation.real import split_statistics
from imagefolder.evaluation.reference import Reference, published_reference
from imagefolder.evaluation.results import Measurement, Result
from imagefolder.evaluation.statistics import Moments, Statistics, measure
from imagefolder.generator.export import export_samples
from imagefolder.generator.model import Generator
from imagefolder.generator.sampling import arguments_of
from imagefolder.progress import Phase
from leaderboard.record import Added, Cost, Dataset, Metric, Record, Run
from leaderboard.store import write_record
from reproductions.evaluator_variants import CROP, ORIGINALS, Real, Variants, cropped
from reproductions.models import Models
from reproductions.recording import utc_now
from reproductions.row import Row
from reproductions.versions import code_hashes

LAST = 2**31  # place of files in their table
MEASURED = frozenset({"rFID", "gFID", "FID", "IS"})


def evaluate_row(row: Row, models: Models, extractor: Extractor) -> Result:
    """The metrics of a row's reconstructions and samples, and the same images measured in other ways.

    The metrics themselves are those that every table measures, to the last bit.

    Raises:
        InputError: several processes work together, each of which would measure all images.
    """
    if world_size() > 1:
        raise InputError(f"evaluators are compared by one process, not by {world_size()}; evaluate with one")
    with tempfile.TemporaryDirectory() as scratch:
        return _RowImages(row, models, replace(extractor, metrics=MEASURED), Path(scratch)).result()


def evaluate_folders(
    images: Path, reference: Path, training: Path | None, extractor: Extractor
) -> tuple[Result, dict[str, str]]:
    """Image files against reference files in many ways, and the sha256 over the pixels of each folder.

    Args:
        images, reference: folders of PNGs of one size.
        training: a folder of other real images, to show what a wrong reference does.

    Raises:
        InputError: files are not lossless 8-bit images of one size.
    """
    extractor = replace(extractor, metrics=MEASURED)
    result, sha256 = evaluate_files(images, reference, [extractor])
    hashes = {"images": sha256}
    variants, sides = Variants(extractor, images, f"the images of {images.name}", ""), dict[str, Real]()
    for role, folder in {"reference": reference, "training": training}.items():
        if folder is not None:
            found = PngFolder(folder)
            if found.size != variants.images.size:
                raise InputError(f"{images} and {folder} differ in image size; crop both the same way first")
            (statistics,), hashes[role] = measure_files(found, [extractor], f"{folder.name}: features", keep=False)
            name = f"{folder.name}:{hashes[role][:8]}"
            sides[role] = Real(name, f"the images of {folder.name}", statistics.pooled.statistics(), len(found))
    real = sides["reference"]
    if training is not None:
        result.measurements.append(variants.against("reference", f"{training.name} instead", sides["training"]))
    result.measurements += [
        *variants.programs(reference, real.name),
        *variants.filters(reference, real.name),
        variants.against(*_crop("reference images", real, _batches(PngFolder(reference)), extractor)),
        *variants.formats(real),
        *variants.numbers(real),
        *variants.splits(reference),
    ]
    result.notes += variants.notes
    return result, hashes


def record_folders(
    images: Path, reference: Path, training: Path | None, extractor: Extractor, output: Path, command: str
) -> Path:
    """Measure image files as `evaluate_folders` does, and record that; returns the path of the record.

    The record is at scale full if the extractor is the published Inception, else at mini.

    Args:
        output: the output folder.
        command: that was typed.
    """
    started, clock = utc_now(), time.monotonic()
    result, hashes = evaluate_folders(images, reference, training, extractor)
    config = {"measures": ["evaluators"], "pixels_sha256": hashes, "extractor_sha256": extractor.sha256}
    originals, name = PngFolder(reference), images.resolve().name
    n_train = 0 if training is None else len(PngFolder(training))
    record = Record(
        table="evaluators",
        row=f"files-{hashes['images'][:8]}",
        label=name,
        note=f"PNG files against those of {reference.resolve().name}, measured in many ways",
        order=LAST,
        scale="mini" if extractor.reference == "training" else "full",
        seed=0,
        status="finished",
        config=config,
        config_sha256=config_hash(config),
        dataset=Dataset(
            name=reference.resolve().name,
            sha256=hashes["reference"],
            n_train=n_train,
            n_test=len(originals),
            classes=extractor.widths.logits,  # not known; those that the extractor tells apart
            image_size=max(originals.size),
        ),
        metrics=[Metric.of(measurement) for measurement in result.measurements],
        notes=result.notes,
        cost=Cost(
            evaluation_seconds=time.monotonic() - clock, tokenizer_shared=False, peak_memory_mib=peak_memory_mib()
        ),
        added=Added(samples=name, samples_sha256=hashes["images"]),
        run=Run(started=started, finished=utc_now(), command=command, code=code_hashes(), **describe()),
    )
    path = write_record(output / "records", record)
    assert path is not None, "only an unfinished record gives way to a finished one"
    return path


class _RowImages:
    """The images of a row on disk, each set measured once."""

    def __init__(self, row: Row, models: Models, extractor: Extractor, scratch: Path) -> None:
        self.row, self.models, self.extractor, self.scratch = row, models, extractor, scratch
        self.splits = row.evaluated
        self.test = f"{self.splits.name}/test"
        self.originals = scratch / "originals"

    def result(self) -> Result:
        result = self._reconstructions()
        return result if self.models.generator is None else result + self._samples(self.models.generator)

    @cached_property
    def published(self) -> Reference | None:
        """The reference of samples where it is a file."""
        return published_reference(self.extractor) if self.extractor.reference == "published" else None

    @cached_property
    def training(self) -> Real:
        """What samples are compared with."""
        if (file := self.published) is not None:
            return Real(file.name, file.what, file.pooled, file.number)
        splits = self.splits
        (seen,) = split_statistics(splits.train, [self.extractor], "real training images: features")
        return Real(f"{splits.name}/train", "all training images", seen.pooled.statistics(), seen.number)

    @cached_property
    def tests(self) -> Real:
        """What reconstructions are compared with."""
        (seen,) = measure(_batches(PngFolder(self.originals)), [self.extractor], len(self.splits.test), "test images")
        return Real(self.test, ORIGINALS, seen.pooled.statistics(), seen.number)

    def _reconstructions(self) -> Result:
        extractor, folder = self.extractor, self.scratch / "reconstructions"
        truncated = Statistics(extractor, len(self.splits.test))
        result = measure_reconstructions(self._pairs(folder, truncated), self.splits, [extractor])
        variants = Variants(extractor, folder, "reconstructions of test images", "r")
        measurements = [
            *_only(result, variants.metric),
            *variants.programs(self.originals, self.test),
            *variants.filters(self.originals, self.test),
            variants.against("reference", "training images instead of the originals", self.training),
            variants.against(*_crop("originals", self.tests, _batches(PngFolder(self.originals)), extractor)),
            *variants.formats(self.tests),
            variants.against(
                "format", "truncated as samples are, not rounded", self.tests, truncated, "the former 8-bit by 255 x"
            ),
        ]
        return Result(measurements, notes=variants.notes)

    def _pairs(self, folder: Path, truncated: Statistics) -> Iterator[tuple[Tensor, Tensor]]:
        """Originals and reconstructions in batches, which are written to files; adds the latter truncated."""
        tokenizer, images, done = self.models.tokenizer, self.splits.test.plain(), 0
        with Phase(self.row.title("evaluators: reconstructing"), len(images)) as phase:
            for originals, _ in ordered_batches(images, BATCH):
                decoded = tokenizer.decode(tokenizer.encode(to_float(originals), check=False), check=False)
                reconstructions = to_uint8(decoded).cpu()
                truncated.add(samples_to_uint8((decoded + 1) / 2).cpu())
                _write(self.originals, originals, done)
                _write(folder, reconstructions, done)
                done += len(originals)
                phase.update(done)
                yield originals, reconstructions

    def _samples(self, generator: Generator) -> Result:
        row, sampling, number = self.row, self.row.sampling, self.row.scale.samples
        extractor, splits = self.extractor, self.splits
        classes = torch.arange(number) % len(splits.classes)
        # Kept until all is measured, so that an interrupted run draws none again
        weights = [checkpoint.sha256 for checkpoint in self.models.checkpoints]
        decides = {"weights": weights, "sampling": to_dict(sampling), "number": number, "seed": row.seed}
        folder = row.shared / "evaluators" / config_hash(decides)[:8]
        export_samples(
            generator,
            labels_of(classes, splits, generator),
            folder,
            batch_size=sampling.batch_size,
            seed=row.seed,
            **arguments_of(sampling),
        )
        images, batch = PngFolder(folder), sampling.batch_size
        result = measure_samples(
            in_batches(images, batch), splits, [extractor], number=number, size=images.size, labels=classes,
            title=row.title("evaluators: samples"),
        )  # fmt: skip
        variants = Variants(extractor, folder, "class-balanced samples", "g")
        tests = replace(self.tests, what="the test images")
        measurements = [
            *_only(result, variants.metric),
            variants.against("reference", "test images instead of training images", tests),
            *self._other_training(variants),
            *variants.formats(self.training),
            *variants.numbers(self.training),
            *_only(result, f"{extractor.prefix}IS"),
            *variants.splits(self.originals),
        ]
        shutil.rmtree(folder)
        return Result(measurements, notes=variants.notes)

    def _other_training(self, variants: Variants) -> Iterator[Measurement]:
        """Samples against another view of the training images."""
        if (file := self.published) is None:
            batches = (images for images, _ in ordered_batches(self.splits.train.plain(), BATCH))
            yield variants.against(*_crop("training images", self.training, batches, self.extractor))
        elif file.features is not None:
            moments = Moments(file.features.shape[1], torch.device("cpu"))
            moments.add(file.features.cpu())
            number = len(file.features)
            what = f"the {number:,} images of {file.name}"
            real = Real(file.name, what, moments.statistics(), number)
            yield variants.against("reference", f"{what}, not the stored statistics of all", real)
        else:
            variants.notes.append(f"the images of {file.name} not compared: it holds only statistics")


def _crop(what: str, real: Real, batches: Iterator[Tensor], extractor: Extractor) -> tuple[str, str, Real]:
    """Group, variant and real side of a reference whose images, in `batches`, are cropped unlike those measured."""
    (seen,) = measure(map(cropped, batches), [extractor], real.number, "cropped: features")
    other = replace(real, what=f"{real.what}, cropped from {CROP} x the size", statistics=seen.pooled.statistics())
    return "crop", f"{what} cropped from {CROP} x the size", other


def _only(result: Result, name: str) -> list[Measurement]:
    return [measurement for measurement in result.measurements if measurement.protocol.name == name]


def _batches(images: PngFolder) -> Iterator[Tensor]:
    return images.batches(range(len(images)))


def _write(folder: Path, images: Tensor, first: int) -> None:
    """Write uint8 images (B, 3, H, W) as PNGs, numbered from `first`."""
    folder.mkdir(exist_ok=True)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy(), first):
        Image.fromarray(image).save(folder / f"{index:06d}.png")
