"""One row with one seed: what decides its numbers, and where its files are. Every stage gets a row, and only a row.

Folders below the output folder:

    SCALE-DATASET-HASH/proxies/                  semantic teacher and proxy extractor, shared by all rows and seeds
    SCALE-DATASET-HASH/seedN/tokenizers/NAME-HASH/    weights; tokens/ holds the token caches, by views
    SCALE-DATASET-HASH/seedN/generators/NAME-HASH/
    records/, pictures/                          results
    locks/                                       held while one of these is being built; notes say for which row

The hash in a model's folder covers everything that decides its weights: rows of any table that need the same model
share it, and no model is mistaken for another.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from imagefolder.checkpoints.native import CONFIG, WEIGHTS
from imagefolder.config import Execution, LossConfig, SamplingConfig, TrainingConfig, config_hash
from imagefolder.data.images import DataSplits, spread_evenly
from imagefolder.distributed import is_main
from imagefolder.errors import InputError
from imagefolder.files import write_json
from imagefolder.locks import building
from imagefolder.tokenizer.discriminator import images_normalised_together
from leaderboard.record import Dataset, place_name
from reproductions.recipe import Recipe, loss_of, resolved, sampling_of, training_of
from reproductions.scales import Scale
from reproductions.source import Source, read_splits

# Entries of a row's configuration that only decide the generator's weights, or only the evaluation. All other entries,
# including new ones, decide the tokenizer's weights.
GENERATOR_ONLY = {"generator", "generator_training", "views"}
PROXY_FIELDS = {"image_size", "proxy_steps"}  # of a budget: other proxies, so other folders
EVALUATION_ONLY = {"measures", "probe_epochs", "probe_batch", "sampling", "samples", "sampling_seeds", "test_images"}


@dataclass(frozen=True)
class TrainedModel:
    """A model that a row trains, or finds trained by another row: what decides its weights, and where they are."""

    role: Literal["tokenizer", "generator"]
    name: str
    identity: dict[str, Any]
    """everything that decides the weights, as JSON types"""
    parent: Path

    @property
    def folder(self) -> Path:
        return self.parent / f"{self.name}-{config_hash(self.identity)[:8]}"

    @property
    def is_trained(self) -> bool:
        """Whether its training has finished."""
        return (self.folder / CONFIG).exists() and (self.folder / WEIGHTS).exists()


@dataclass(frozen=True)
class Given:
    """Weights to evaluate instead of training."""

    tokenizer: str
    generator: str | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A recipe at a scale, on some data, with a seed. Small and picklable: stages run in other processes and on other
    machines."""

    table: str
    order: int
    """position of the row in its table"""
    recipe: Recipe
    scale: Scale
    source: Source
    dataset: Dataset
    seed: int
    output: Path
    given: Given | None = None
    test_images: int | None = None
    """test images to evaluate, spread evenly over all of them; None: all"""
    tokenizer_shared: bool = False
    """another row of the table uses the same tokenizer"""
    fresh: bool = False
    """redo everything, whatever has finished"""
    command: str = ""
    execution: Execution = field(default_factory=Execution)
    processes: int = 1
    """number of processes that train together"""

    @property
    def name(self) -> str:
        return f"{self.recipe.row} seed {self.seed}"

    @property
    def full_name(self) -> str:
        """Unique among all tables, scales, budgets and data sets."""
        return " ".join(filter(None, (self.table, self.shared.name, self.scale.budget_text, self.name)))

    def title(self, text: str) -> str:
        """A title for the display of progress."""
        return f"seed {self.seed} {text}"

    # Settings from scale and recipe

    @property
    def loss(self) -> LossConfig:
        return loss_of(self.recipe, self.scale)

    @property
    def training(self) -> TrainingConfig:
        """Of the tokenizer; the generator's is the scale's."""
        return training_of(self.recipe, self.scale)

    @property
    def sampling(self) -> SamplingConfig:
        return sampling_of(self.recipe, self.scale)

    @property
    def needs_teacher(self) -> bool:
        """Whether the tokenizer trains against features of a frozen network."""
        loss = self.loss
        return self.recipe.tokenizer.semantic != "none" or (bool(loss.adversarial) and loss.discriminator == "dino")

    # What decides its numbers

    @property
    def config(self) -> dict[str, Any]:
        """Everything that decides the numbers besides data and seed, as JSON types."""
        config = resolved(self.recipe, self.scale) | self.batch_statistics
        if self.test_images is not None and self.test_images < self.dataset.n_test:
            config["test_images"] = self.test_images
        return config

    @property
    def batch_statistics(self) -> dict[str, Any]:
        """The one way in which execution decides a tokenizer's weights; empty without a discriminator."""
        loss, batch = self.loss, self.training.batch_size
        if not loss.adversarial:
            return {}
        together = images_normalised_together(loss, batch, self.processes, self.execution.micro_batch)
        return {"images_normalised_together": together}

    @cached_property
    def tokenizer(self) -> TrainedModel:
        config = self.config
        identity = {name: value for name, value in config.items() if name not in GENERATOR_ONLY | EVALUATION_ONLY}
        identity["training"] = identity.pop("tokenizer_training")
        identity["tokenizer"] = _nameless(identity["tokenizer"])
        if self.training.evaluate_every and "test_images" in config:  # the best weights are chosen on these
            identity["test_images"] = config["test_images"]
        identity |= {"seed": self.seed, "dataset_sha256": self.dataset.sha256}
        return TrainedModel("tokenizer", self.recipe.tokenizer.name, identity, self.folder / "tokenizers")

    @cached_property
    def generator(self) -> TrainedModel | None:
        """None: reconstruction only."""
        if self.recipe.generator is None:
            return None
        config = self.config
        identity = {
            "generator": _nameless(config["generator"]),
            "training": config["generator_training"],
            "views": config["views"],
            "tokenizer_settings": self.tokenizer.identity,
        }
        return TrainedModel("generator", self.recipe.generator.name, identity, self.folder / "generators")

    @property
    def models(self) -> list[TrainedModel]:
        """What the row trains; nothing if weights are given."""
        if self.given is not None:
            return []
        return [model for model in (self.tokenizer, self.generator) if model is not None]

    # Where its files are

    @property
    def shared(self) -> Path:
        decides_proxies = [f"{name}={value}" for name, value in self.scale.budget if name in PROXY_FIELDS]
        scale = place_name(self.scale.name, " ".join(decides_proxies))
        return self.output / f"{scale}-{self.dataset.name}-{self.dataset.sha256[:8]}"

    @property
    def folder(self) -> Path:
        return self.shared / f"seed{self.seed}"

    @property
    def extractor(self) -> Path:
        """Weights of the proxy extractor."""
        return self.shared / "proxies" / "extractor.safetensors"

    @property
    def teacher(self) -> Path:
        """Weights of the semantic teacher, or of the frozen features of the discriminator, at scales with proxies."""
        config = self.recipe.tokenizer
        shape = {name: getattr(config, name) for name in ("image_size", "patch_size", "width", "depth", "heads")}
        return self.shared / "proxies" / f"teacher-{config.backbone}-{config_hash(shape)[:8]}.safetensors"

    @property
    def tokens(self) -> Path:
        """The token cache."""
        return self.tokenizer.folder / "tokens" / f"{self.scale.views}-views"

    @property
    def record(self) -> Path:
        data = f"{self.dataset.name}-{self.dataset.sha256[:8]}"
        scale = place_name(self.scale.name, self.scale.budget_text)
        stem = f"{self.table}-{self.recipe.row}-{scale}-{data}-seed{self.seed}"
        return self.output / "records" / f"{stem}.json"

    @contextmanager
    def building(self, path: Path, stage: str = "") -> Iterator[None]:
        """Lock a file or folder of the output folder while building, replacing or removing it; all processes call this.

        Where several locks are needed: record, then generator, then tokenizer. A note beside the lock says for which
        row it is held, and for which `stage` if the path does not tell; `leaderboard.running` shows it, and nothing
        else depends on it.
        """
        inside = path.relative_to(self.output)
        lock = self.output / "locks" / f"{'-'.join(inside.parts)}.lock"
        with building(lock, str(inside)):
            if is_main():
                with suppress(OSError):
                    write_json(lock.with_suffix(".json"), self._note(inside) | {"stage": stage})
            try:
                yield
            finally:
                if is_main():
                    with suppress(OSError):
                        lock.with_suffix(".json").unlink(missing_ok=True)

    def _note(self, inside: Path) -> dict[str, Any]:
        row = {"table": self.table, "row": self.recipe.row, "label": self.recipe.label, "seed": self.seed}
        place = {"scale": self.scale.name, "budget": self.scale.budget_text, "dataset": self.dataset.name}
        process = {"host": platform.node(), "pid": os.getpid(), "started": time.time()}
        return {"path": str(inside), **row, **place, **process}

    # Its images

    @property
    def splits(self) -> DataSplits:
        """The images; `InputError` if they are no longer those the row was planned with."""
        splits = read_splits(self.source)
        if splits.sha256 != self.dataset.sha256:
            raise InputError(f"{self.source.data}: the images have changed since the run began; start it again")
        return splits

    @property
    def evaluated(self) -> DataSplits:
        """The images, with only those of the test split that are evaluated."""
        return some_test_images(self.splits, self.test_images)


def some_test_images(splits: DataSplits, wanted: int | None) -> DataSplits:
    """The images, with only `wanted` of the test split, spread evenly over all of them; None: all."""
    if wanted is None or wanted >= len(splits.test):
        return splits
    return replace(splits, test=spread_evenly(splits.test, wanted))


def _nameless(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without its name, which has no effect."""
    return {name: value for name, value in config.items() if name != "name"}
