"""The models of a row, loaded: trained ones from their folders, given ones from wherever they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from imagefolder.checkpoints.native import WEIGHTS, load_weights
from imagefolder.errors import DamagedFile, InputError
from imagefolder.evaluation.extractor import default_device
from imagefolder.files import file_sha256
from imagefolder.generator.model import Generator
from imagefolder.loading import adopt_about, load_into
from imagefolder.tokenizer.model import Tokenizer
from leaderboard.record import Checkpoint
from reproductions.row import Row, TrainedModel

Role = Literal["tokenizer", "generator", "extractor"]

PROXY_SELECTION = "weights of the last step, fixed seed"
GIVEN_SELECTION = "given, not selected here"


@dataclass(frozen=True)
class Models:
    """Frozen, on the device and in evaluation mode.

    `checkpoints` are the files they come from, `about` the documents stored by their trainings, by role (empty for
    given weights).
    """

    tokenizer: Tokenizer
    generator: Generator | None
    checkpoints: list[Checkpoint]
    about: dict[str, dict[str, Any]]


def load_models(row: Row) -> Models:
    """The row's models; `InputError` for files that are damaged or do not belong together."""
    recipe, about, checkpoints = row.recipe, {}, []

    def load(model: nn.Module, config: Any, trained: TrainedModel, given: str | None) -> Path:
        if given is not None:
            path, selection = load_into(model, given, config), GIVEN_SELECTION
        else:
            about[trained.role] = load_trained(model, config, trained)
            path, selection = trained.folder / WEIGHTS, _selection(about[trained.role])
        checkpoints.append(_checkpoint(row, trained.role, path, selection))
        return path

    tokenizer = Tokenizer(recipe.tokenizer)
    load(tokenizer, recipe.tokenizer, row.tokenizer, row.given and row.given.tokenizer)
    tokenizer.to(default_device()).eval().requires_grad_(False)
    generator = None
    if recipe.generator is not None and row.generator is not None:
        generator = Generator(recipe.generator, tokenizer)
        given = row.given and row.given.generator
        path = load(generator.transformer, recipe.generator, row.generator, given)
        if given is not None:
            adopt_about(generator, path)
        generator.to(default_device()).eval()
        if row.given is None and about["generator"].get("tokenizer_sha256") != about["tokenizer"]["weights_sha256"]:
            raise InputError(
                f"{row.generator.folder} was trained on the tokens of a tokenizer that {row.tokenizer.folder} no "
                "longer holds; run the same command again to retrain it"
            )
    if row.given is None and "teacher_sha256" in about["tokenizer"]:
        path = str(row.teacher.relative_to(row.output))
        sha256 = about["tokenizer"]["teacher_sha256"]  # when it was used; the file may have changed since
        checkpoints.append(Checkpoint(role="teacher", path=path, sha256=sha256, selection=PROXY_SELECTION))
    if not row.scale.published:
        checkpoints.append(_checkpoint(row, "extractor", row.extractor, PROXY_SELECTION))
    return Models(tokenizer, generator, checkpoints, about)


def load_tokenizer(row: Row) -> tuple[Tokenizer, str]:
    """The row's trained tokenizer, frozen, and the sha256 of its weights."""
    tokenizer = Tokenizer(row.recipe.tokenizer)
    about = load_trained(tokenizer, row.recipe.tokenizer, row.tokenizer)
    return tokenizer.to(default_device()).eval().requires_grad_(False), about["weights_sha256"]


def load_trained(model: nn.Module, config: Any, trained: TrainedModel) -> dict[str, Any]:
    """Load the weights of a finished training; returns the document stored with them."""
    with _with_remedy(trained.folder):
        return load_weights(trained.folder, model, config)


@contextmanager
def _with_remedy(folder: Path) -> Iterator[None]:
    """Add what to do to the message about a damaged model."""
    try:
        yield
    except DamagedFile as error:
        raise DamagedFile(f"{error}; delete {folder}, and run the same command again to retrain it") from None


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


def _checkpoint(row: Row, role: Role, path: Path, selection: str) -> Checkpoint:
    shown = path.relative_to(row.output) if path.is_relative_to(row.output) else path
    return Checkpoint(role=role, path=str(shown), sha256=file_sha256(path), selection=selection)
