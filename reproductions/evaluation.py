"""The last stage of a row: what its trained (or given) models are worth, written as a record."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.utils import save_image

from imagefolder.checkpoints.native import WEIGHTS, load_weights
from imagefolder.config import config_hash, to_dict
from imagefolder.distributed import gather_objects, is_main, world_size
from imagefolder.environment import describe, peak_memory_mib, reset_peak_memory
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import Extractor, default_device, inception_extractor, proxy_extractor
from imagefolder.evaluation.perturbation import evaluate_perturbation
from imagefolder.evaluation.probe import evaluate_probe
from imagefolder.evaluation.protocols import evaluate_generation, evaluate_reconstruction, reconstruction_distance
from imagefolder.evaluation.results import Result
from imagefolder.files import file_sha256, find_weights, write_atomically
from imagefolder.generator.model import Generator
from imagefolder.loading import load_into
from imagefolder.progress import console
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training.classifier import read_classifier
from imagefolder.weights import ADM_REFERENCE, ADM_STATISTICS, DINO, INCEPTION, VGG16_FILE, absent_weights
from leaderboard.record import Checkpoint, CodebookUsage, Cost, Metric, Record, Run, Size
from leaderboard.store import write_record
from reproductions.job import Job, with_remedy
from reproductions.recipe import Recipe, loss_of, sampling_of

CAPTIONS = {
    "reconstruction": "reconstructions of test images (original left, reconstruction right)",
    "generation": "samples, classes in turn",
}
PROXY_SELECTION = "weights of the last step, fixed seed"
GIVEN_SELECTION = "given, not selected here"


Models = tuple[Tokenizer, Generator | None, list[Checkpoint], dict[str, dict[str, Any]]]
"""a row's models, the files they come from, and what is stored about their trainings (nothing if given)"""


def evaluate_row(job: Job, recipe: Recipe, order: int, tokenizer_shared: bool, models: Models) -> None:
    """Evaluate the models of a row by what its recipe measures, and write the record.

    Raises:
        InputError: a file is damaged or missing, models do not belong together, or the images are no longer those of
            the record.
    """
    started, clock = _now(), time.monotonic()
    reset_peak_memory()
    tokenizer, generator, checkpoints, about = models
    extractor = _extractor(job)
    results = [_measure(job, recipe, extractor, tokenizer, generator, measure) for measure in recipe.measures]
    _require_same_images(job)
    if not is_main():
        return
    if job.scale.published:  # at the other scales nobody expects what published weights are needed for
        for note in (note for result in results for note in result.notes):
            console.print(f"{recipe.row}: {note}")
    config = job.config(recipe)
    if job.tokenizer_weights is not None:  # how they were trained is not known
        trained = ("tokenizer_training", "generator_training", "loss", "views", "proxy_steps")
        trained += tuple(job.execution_settings(recipe))
        config = {name: value for name, value in config.items() if name not in trained}
        config["weights"] = {checkpoint.role: checkpoint.sha256 for checkpoint in checkpoints}
    generation = next((r for r in results if r.samples_per_second), None)
    peaks = [peak_memory_mib(), *(document["peak_memory_mib"] for document in about.values())]
    pictures = {
        CAPTIONS[measure]: _picture(job, recipe, measure, result.picture)
        for measure, result in zip(recipe.measures, results, strict=True)
        if result.picture is not None
    }
    write_record(
        job.output / "records",
        Record(
            **_identity(job, recipe, order, config),
            status="finished",
            size=_size(recipe, tokenizer, generator),
            checkpoints=checkpoints,
            metrics=[Metric.model_validate(asdict(m)) for result in results for m in result.measurements],
            codebook_usage=[CodebookUsage(**asdict(usage)) for result in results for usage in result.usage],
            pictures=pictures,
            picture_sha256={path: file_sha256(job.output / path) for path in pictures.values()},
            cost=Cost(
                tokenizer_train_seconds=about.get("tokenizer", {}).get("seconds"),
                generator_train_seconds=about.get("generator", {}).get("seconds"),
                evaluation_seconds=time.monotonic() - clock,
                samples_per_second=generation and generation.samples_per_second,
                sample_batch=generation and sampling_of(recipe, job.scale).batch_size,
                tokenizer_shared=tokenizer_shared,
                peak_memory_mib=max(peaks),
            ),
            run=_run(job, started),
        ),
    )


def _require_same_images(job: Job) -> None:
    """Every process looks at its part; `InputError` in all of them if one finds an image that has changed."""
    problem = None
    try:
        for images in (job.splits.train, job.splits.test):
            images.verify()
    except InputError as error:
        problem = str(error)
    if problems := [found for found in gather_objects(problem) if found]:
        raise InputError(problems[0])


def validation(job: Job) -> Callable[[Tokenizer], float]:
    """What the best tokenizer is chosen by while it trains: rFID on the test images, as published."""
    extractor = _extractor(job)

    def rfid(tokenizer: Tokenizer) -> float:
        return reconstruction_distance(tokenizer, job.evaluated, extractor, job.title("evaluating"))

    return rfid


def missing_weights(job: Job, recipe: Recipe) -> str | None:
    """Published files that a row needs and this machine lacks, in words; None if it can run."""
    if not job.scale.published:
        return None
    loss, needed = loss_of(recipe, job.scale), [INCEPTION]
    if "generation" in recipe.measures and find_weights(ADM_STATISTICS) is None:
        needed.append(ADM_REFERENCE)
    if job.tokenizer_weights is None:
        needed += [VGG16_FILE] * bool(loss.perceptual) + [recipe.tokenizer.backbone]
        needed += [DINO] * (bool(loss.adversarial) and loss.discriminator == "dino")
    absent = absent_weights(needed)
    return f"weights absent: {'; '.join(absent)}" if absent else None


def write_unfinished(job: Job, recipe: Recipe, order: int, status: str, reason: str) -> None:
    """Record that a row failed or was not run, and why; a finished record stays."""
    config = job.config(recipe)
    record = Record(**_identity(job, recipe, order, config), status=status, reason=reason, run=_run(job, _now()))
    if write_record(job.output / "records", record) is None:
        console.print(f"{recipe.row} seed {job.seed}: the record of its earlier, finished run stays")


def _measure(
    job: Job,
    recipe: Recipe,
    extractor: Extractor,
    tokenizer: Tokenizer,
    generator: Generator | None,
    measure: str,
) -> Result:
    """One of a recipe's measures."""
    splits, scale, row = job.evaluated, job.scale, recipe.row
    if measure == "reconstruction":
        return evaluate_reconstruction(tokenizer, splits, extractor, job.title(f"{row}: reconstructing"))
    if measure == "perturbation":
        title = job.title(f"{row}: reconstructing perturbed tokens")
        return Result([evaluate_perturbation(tokenizer, splits, extractor, job.seed, title)])
    if measure == "probe":
        title = job.title(f"{row}: probing")
        return evaluate_probe(tokenizer, splits, job.seed, title, scale.probe_epochs, scale.probe_batch)
    sampling, title = sampling_of(recipe, scale), job.title(f"{row}: sampling")
    return evaluate_generation(generator, splits, sampling, scale.samples, job.seed, extractor, title)


def _extractor(job: Job) -> Extractor:
    """What the metrics of a scale rest on."""
    if job.scale.published:
        return inception_extractor()
    _, about = read_classifier(job.extractor)
    return proxy_extractor(job.extractor, about["floors"])


def load_models(job: Job, recipe: Recipe) -> Models:
    """The row's models, frozen and on the device; `InputError` for files that are damaged or do not belong together."""
    tokenizer, about, checkpoints = Tokenizer(recipe.tokenizer), {}, []

    def load(role: str, model: nn.Module, folder: Path, given: str | None, config: Any) -> None:
        if given is not None:
            path, selection = load_into(model, given, config), GIVEN_SELECTION
        else:
            with with_remedy(folder):
                about[role] = load_weights(folder, model, config)
            path, selection = folder / WEIGHTS, _selection(about[role])
        checkpoints.append(_checkpoint(job, role, path, selection))

    given = job.tokenizer_weights is not None
    load("tokenizer", tokenizer, job.tokenizer(recipe), job.tokenizer_weights, recipe.tokenizer)
    tokenizer.to(default_device()).eval().requires_grad_(False)
    generator = None
    if recipe.generator is not None:
        generator = Generator(recipe.generator, tokenizer)
        load("generator", generator.transformer, job.generator(recipe), job.generator_weights, recipe.generator)
        generator.to(default_device()).eval()
    if "generator" in about and about["generator"].get("tokenizer_sha256") != about["tokenizer"]["weights_sha256"]:
        raise InputError(
            f"{job.generator(recipe)} was trained on the tokens of another tokenizer than {job.tokenizer(recipe)} is "
            "now; the same command trains it anew"
        )
    if not given and "teacher_sha256" in about["tokenizer"]:
        path = str(job.teacher(recipe).relative_to(job.output))
        sha256 = about["tokenizer"]["teacher_sha256"]  # of then, whatever lies there now
        checkpoints.append(Checkpoint(role="teacher", path=path, sha256=sha256, selection=PROXY_SELECTION))
    if not job.scale.published:
        checkpoints.append(_checkpoint(job, "extractor", job.extractor, PROXY_SELECTION))
    return tokenizer, generator, checkpoints, about


def _selection(about: dict[str, Any]) -> str:
    """The rule by which the stored weights were chosen."""
    kind = "EMA weights" if about["training"]["ema"] else "weights"
    if about["selected_value"] is None:
        return f"{kind} of the last step"
    every = about["training"]["evaluate_every"]
    judged = " by the raw weights" if about["training"]["select_by"] == "raw" else ""
    return (
        f"{kind} of step {about['selected_step']}: lowest rFID of the test images{judged} "
        f"({about['selected_value']:.4g}), measured every {every} steps and at the end"
    )


def _checkpoint(job: Job, role: str, path: Path, selection: str) -> Checkpoint:
    inside = path.is_relative_to(job.output)
    shown = path.relative_to(job.output) if inside else path
    return Checkpoint(role=role, path=str(shown), sha256=file_sha256(path), selection=selection)


def _identity(job: Job, recipe: Recipe, order: int, config: dict[str, Any]) -> dict[str, Any]:
    return {
        "table": job.table,
        "row": recipe.row,
        "order": order,
        "label": recipe.label,
        "note": recipe.note,
        "reported_system": recipe.reported,
        "scale": job.scale.name,
        "seed": job.seed,
        "config": config,
        "config_sha256": config_hash(config),
        "dataset": job.dataset,
    }


def _size(recipe: Recipe, tokenizer: Tokenizer, generator: Generator | None) -> Size:
    config = recipe.tokenizer
    tokens = config.branches * config.length
    size = {
        "tokens": tokens,
        "bits": tokens * math.log2(config.codebook_size),
        "tokenizer_parameters": sum(p.numel() for p in tokenizer.parameters()),
    }
    if generator is not None:
        sequence = generator.transformer.sequence
        size |= {
            "positions": sequence.length,
            "steps": len(sequence.blocks),
            "generator_parameters": sum(p.numel() for p in generator.transformer.parameters()),
        }
    return Size(**size)


def _run(job: Job, started: str) -> Run:
    return Run(
        started=started,
        finished=_now(),
        command=job.command,
        processes=world_size(),
        execution=to_dict(job.execution),
        **describe(),
    )


def _picture(job: Job, recipe: Recipe, name: str, images: torch.Tensor) -> str:
    columns = 10 if name == "reconstruction" else min(job.dataset.classes, 10)
    path = job.output / "pictures" / f"{job.record(recipe).stem}-{name}.png"
    grid = images.float() / 255
    write_atomically(path, lambda temporary: save_image(grid, temporary, nrow=columns, padding=1, format="png"))
    return str(path.relative_to(job.output))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
