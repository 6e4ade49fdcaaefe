"""Measure a row's models: all measures of its recipe, in the feature spaces of its scale."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from imagefolder.data.images import DataSplits
from imagefolder.distributed import gather_objects
from imagefolder.environment import reset_peak_memory
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.perturbation import evaluate_perturbation
from imagefolder.evaluation.preview import preview_reconstructions, preview_samples
from imagefolder.evaluation.probe import evaluate_probe
from imagefolder.evaluation.protocols import evaluate_generation, evaluate_reconstruction, reconstruction_distance
from imagefolder.evaluation.results import Result
from imagefolder.evaluation.spaces import extractors_for, main_extractor
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.training.classifier import read_classifier
from imagefolder.training.curve import Preview
from reproductions.further import further_of
from reproductions.models import Models
from reproductions.recipe import Measure
from reproductions.row import Row

FEW_SHOWN = 20


def measure(row: Row, models: Models) -> dict[Measure, Result]:
    """The results of all measures, in all processes.

    Raises:
        InputError: a file is damaged or missing, or the images are no longer those the row was planned with.
    """
    reset_peak_memory()
    extractors = extractors_of(row.scale.published, row.extractor, row.splits, row.output)
    results: dict[Measure, Result] = {name: _measure(name, row, models, extractors) for name in row.recipe.measures}
    require_same_images(row.splits)
    return results


def validation(row: Row) -> Callable[[nn.Module], float]:
    """The criterion for the best tokenizer during training: rFID on the test images, as published."""
    extractor = main_extractor(None if row.scale.published else row.extractor)

    def rfid(tokenizer: nn.Module) -> float:
        assert isinstance(tokenizer, Tokenizer)
        return reconstruction_distance(tokenizer, row.evaluated, extractor, row.title("evaluating"))

    return rfid


def preview_of_tokenizer(row: Row) -> Preview | None:
    """Metrics of a few reconstructions, for the curve of a row's tokenizer; None if its scale has none."""
    scale, extractor = row.scale, _main_extractor(row)
    if not scale.preview_every:
        return None
    return Preview(scale.preview_every, preview_reconstructions(row.splits, extractor, number=scale.preview_images))


def preview_of_generator(row: Row) -> Preview | None:
    """Metrics of a few samples, for the curve of a row's generator; None if its scale has none."""
    scale, extractor = row.scale, _main_extractor(row)
    if not scale.preview_every:
        return None
    options = {"number": scale.preview_images, "seed": row.seed, "batch_size": row.sampling.batch_size}
    return Preview(scale.preview_every, preview_samples(row.splits, extractor, **options))


def _main_extractor(row: Row) -> Callable[[], Extractor]:
    """Opens the main feature space of a row's scale, once."""
    return functools.cache(lambda: main_extractor(None if row.scale.published else row.extractor))


def _measure(name: Measure, row: Row, models: Models, extractors: list[Extractor]) -> Result:
    splits, scale, seed = row.evaluated, row.scale, row.seed

    def title(doing: str) -> str:
        return row.title(f"{row.recipe.row}: {doing}")

    if name == "reconstruction":
        return evaluate_reconstruction(models.tokenizer, splits, extractors, title("reconstructing"))
    if name == "perturbation":
        doing = title("reconstructing perturbed tokens")
        return evaluate_perturbation(models.tokenizer, splits, extractors, seed=seed, title=doing)
    if name == "probe":
        epochs, batch = scale.probe_epochs, scale.probe_batch
        return evaluate_probe(
            models.tokenizer, splits, seed=seed, title=title("probing"), epochs=epochs, batch_size=batch
        )
    if name == "evaluators":
        from reproductions.evaluator_rows import evaluate_row  # with torch-fidelity's and clean-fid's own programs

        return evaluate_row(row, models, extractors[0])
    assert models.generator is not None, "a row without a generator has no samples to measure"
    result = evaluate_generation(
        models.generator,
        splits,
        extractors,
        sampling=row.sampling,
        samples=scale.samples,
        seed=seed,
        title=title("sampling"),
        unguided=not row.recipe.sampling,
        sampling_seeds=scale.sampling_seeds,
    )
    if row.recipe.sampling and result.picture is not None:  # there are many such rows
        result = replace(result, picture=result.picture[:FEW_SHOWN])
    return result


def extractors_of(published: bool, proxy: Path, splits: DataSplits, output: Path) -> list[Extractor]:
    """The feature spaces that a scale measures in: the published ones, or those of its trained `proxy`; then others
    that this machine has the weights of."""
    further = further_of(published, splits, output)
    if published:
        return [*extractors_for(None), *further]
    _, about = read_classifier(proxy)
    return [*extractors_for(proxy, about["floors"]), *further]


def require_same_images(splits: DataSplits) -> None:
    """Every process checks its part; `InputError` in all of them if one finds an image that has changed."""
    problem = None
    try:
        for images in (splits.train, splits.test):
            images.verify()
    except InputError as error:
        problem = str(error)
    if problems := [found for found in gather_objects(problem) if found]:
        raise InputError(problems[0])
