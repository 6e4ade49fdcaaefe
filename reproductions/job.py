"""One row's work with one seed: on which images, where its files lie, and when they are of these very settings.

Folders below the output folder:

    SCALE-DATASET-HASH/proxies/                  semantic teacher and proxy extractor, shared by all rows and seeds
    SCALE-DATASET-HASH/seedN/tokenizers/NAME-HASH/    weights; tokens/ holds the token caches, by views
    SCALE-DATASET-HASH/seedN/generators/NAME-HASH/
    records/, pictures/                          results
    locks/                                       who builds which of these at the moment

The hash of a model's folder is that of everything that decides its weights, so that rows of all tables which need the
same model share it, and no model is ever taken for another.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imagefolder.checkpoints.native import CONFIG, WEIGHTS, read_about
from imagefolder.config import Execution, config_hash, to_dict
from imagefolder.data.digits import digits
from imagefolder.data.folder import read_data
from imagefolder.data.images import DataSplits, SomeImages
from imagefolder.errors import DamagedFile, InputError
from imagefolder.files import read_json, write_json
from imagefolder.locks import building
from imagefolder.tokenizer.discriminator import images_normalised_together
from imagefolder.training.classifier import read_classifier
from leaderboard.pictures import pictures_intact
from leaderboard.record import Dataset, Record
from leaderboard.store import RecordError, read_record
from reproductions.recipe import Recipe, Scale, loss_of, resolved, training_of

SETTINGS = "settings.json"
REPORTED_CSV = Path(__file__).parent / "reported" / "imagenet256.csv"


@dataclass(frozen=True)
class Source:
    """Where images come from: read anew in every process, as a data set may be large and its description is small.

    `path` None: the embedded digits.
    """

    path: Path | None
    image_size: int
    skip_corrupt: bool = False
    index: Path | None = None


@functools.lru_cache(maxsize=1)
def read_splits(source: Source) -> DataSplits:
    """The images of a source, read once per process."""
    if source.path is None:
        return digits(source.image_size)
    return read_data(source.path, source.image_size, source.skip_corrupt, source.index)


@dataclass(frozen=True)
class Job:
    """A row's surroundings. Small and picklable: stages run in worker processes and on other machines."""

    table: str
    output: Path
    scale: Scale
    source: Source
    dataset: Dataset
    seed: int
    command: str
    execution: Execution = field(default_factory=Execution)
    tokenizer_weights: str | None = None
    """weights to evaluate instead of trained ones"""
    generator_weights: str | None = None
    test_images: int | None = None
    """test images to evaluate, spread evenly over all of them; None: all"""
    processes: int = 1
    """number of processes that train together"""

    @property
    def splits(self) -> DataSplits:
        """The images; `InputError` if they are no longer those the row was planned with."""
        splits = read_splits(self.source)
        if splits.sha256 != self.dataset.sha256:
            raise InputError(f"{self.source.path}: the images have changed since the run began; start it anew")
        return splits

    @property
    def evaluated(self) -> DataSplits:
        """The images, of the test split those to evaluate."""
        splits, number = self.splits, len(self.splits.test)
        if self.test_images is None or self.test_images >= number:
            return splits
        places = [i * number // self.test_images for i in range(self.test_images)]
        return replace(splits, test=SomeImages(splits.test, places))

    @property
    def shared(self) -> Path:
        return self.output / f"{self.scale.name}-{self.dataset.name}-{self.dataset.sha256[:8]}"

    @property
    def folder(self) -> Path:
        return self.shared / f"seed{self.seed}"

    @property
    def extractor(self) -> Path:
        return self.shared / "proxies" / "extractor.safetensors"

    def teacher(self, recipe: Recipe) -> Path:
        """The semantic teacher of a row, or the frozen features of its discriminator, at scales with proxies."""
        config = recipe.tokenizer
        return self.shared / "proxies" / f"teacher-{config.backbone}-{config_hash(_shape(config))[:8]}.safetensors"

    def tokenizer(self, recipe: Recipe) -> Path:
        settings = self.tokenizer_settings(recipe)
        return self.folder / "tokenizers" / f"{recipe.tokenizer.name}-{config_hash(settings)[:8]}"

    def tokens(self, recipe: Recipe) -> Path:
        return self.tokenizer(recipe) / "tokens" / f"{self.scale.views}-views"

    def generator(self, recipe: Recipe) -> Path:
        settings = self.generator_settings(recipe)
        return self.folder / "generators" / f"{recipe.generator.name}-{config_hash(settings)[:8]}"

    def record(self, recipe: Recipe) -> Path:
        data = f"{self.dataset.name}-{self.dataset.sha256[:8]}"
        stem = f"{self.table}-{recipe.row}-{self.scale.name}-{data}-seed{self.seed}"
        return self.output / "records" / f"{stem}.json"

    def building(self, path: Path) -> AbstractContextManager[None]:
        """Be the only run that builds, replaces or removes a file or folder of the output folder; all processes call.

        Where several are needed, in the order generator, tokenizer.
        """
        inside = path.relative_to(self.output)
        return building(self.output / "locks" / f"{'-'.join(inside.parts)}.lock", str(inside))

    def title(self, text: str) -> str:
        return f"seed {self.seed} {text}"

    def tokenizer_settings(self, recipe: Recipe) -> dict[str, Any]:
        """What decides a tokenizer's weights, as JSON types."""
        return {
            "tokenizer": _nameless(recipe.tokenizer),
            "training": to_dict(training_of(recipe, self.scale)),
            "loss": to_dict(loss_of(recipe, self.scale)),
            **self.execution_settings(recipe),
            **(self._some_test_images() if training_of(recipe, self.scale).evaluate_every else {}),
            "seed": self.seed,
            "dataset_sha256": self.dataset.sha256,
            "published": self.scale.published,
            "proxy_steps": self.scale.proxy_steps,
        }

    def execution_settings(self, recipe: Recipe) -> dict[str, Any]:
        """What of the way a tokenizer's training is carried out decides its weights; nothing without discriminator."""
        loss, batch = loss_of(recipe, self.scale), training_of(recipe, self.scale).batch_size
        if not loss.adversarial:
            return {}
        together = images_normalised_together(loss, batch, self.processes, self.execution.micro_batch)
        return {"images_normalised_together": together}

    def config(self, recipe: Recipe) -> dict[str, Any]:
        """Everything that decides a row's numbers besides data and seed, as JSON types."""
        return resolved(recipe, self.scale) | self.execution_settings(recipe) | self._some_test_images()

    def _some_test_images(self) -> dict[str, Any]:
        """How many of the test images are evaluated; nothing if all."""
        few = self.test_images is not None and self.test_images < self.dataset.n_test
        return {"test_images": self.test_images} if few else {}

    def generator_settings(self, recipe: Recipe) -> dict[str, Any]:
        """What decides a generator's weights, as JSON types."""
        return {
            "generator": _nameless(recipe.generator),
            "training": to_dict(self.scale.generator_training),
            "views": self.scale.views,
            "tokenizer_settings": self.tokenizer_settings(recipe),
        }


def needs_teacher(job: Job, recipe: Recipe) -> bool:
    """Whether a row trains against features of a frozen network."""
    loss = loss_of(recipe, job.scale)
    return recipe.tokenizer.semantic != "none" or (bool(loss.adversarial) and loss.discriminator == "dino")


def is_trained(folder: Path) -> bool:
    """Whether a model's training is finished."""
    return (folder / CONFIG).exists() and (folder / WEIGHTS).exists()


@contextmanager
def with_remedy(folder: Path) -> Iterator[None]:
    """Have what is said of a damaged model say what to do."""
    try:
        yield
    except DamagedFile as error:
        raise DamagedFile(f"{error}; delete {folder}, and the same command trains it anew") from None


def is_proxy_done(path: Path, job: Job) -> bool:
    """Whether a teacher or extractor is trained, with this scale's number of steps, and undamaged.

    Raises:
        InputError: it cannot be read at the moment.
    """
    if not (path.exists() and path.with_suffix(".json").exists()):
        return False
    try:
        _, about = read_classifier(path)
    except DamagedFile:
        return False
    return (about.get("steps"), about.get("dataset_sha256")) == (job.scale.proxy_steps, job.dataset.sha256)


def has_record(job: Job, recipe: Recipe) -> bool:
    """Whether there is the row's finished record of these very settings and models, undamaged, with its pictures."""
    path = job.record(recipe)
    try:
        record = read_record(path)
        same = record.config_sha256 == config_hash(job.config(recipe)) and record.dataset.sha256 == job.dataset.sha256
        finished = record.status == "finished" and same and _is_of_these_models(record, job, recipe)
    except (RecordError, InputError):  # of the models' documents; loading them says which
        return False
    return finished and pictures_intact(record, job.output)


def _is_of_these_models(record: Record, job: Job, recipe: Recipe) -> bool:
    folders = {"tokenizer": job.tokenizer(recipe)}
    if recipe.generator is not None:
        folders["generator"] = job.generator(recipe)
    recorded = {checkpoint.role: checkpoint.sha256 for checkpoint in record.checkpoints}
    return all(recorded.get(role) == read_about(folder).get("weights_sha256") for role, folder in folders.items())


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note beside a model what it is trained with."""
    write_json(folder / SETTINGS, settings)


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What `write_settings` noted; None if there is nothing, or nothing readable."""
    try:
        return read_json(folder / SETTINGS)
    except InputError:
        return None


def _nameless(config: Any) -> dict[str, Any]:
    """A configuration without its name, which decides nothing."""
    values = to_dict(config)
    del values["name"]
    return values


def _shape(config: Any) -> dict[str, Any]:
    """What a teacher takes over from a tokenizer: the vision transformer's shape."""
    return {name: getattr(config, name) for name in ("image_size", "patch_size", "width", "depth", "heads")}
