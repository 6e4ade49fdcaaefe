"""The stages of a row after its proxies: tokenizer, token cache, generator, evaluation. Each finishes once.

Where several processes work together, all call the same stage. Where several runs need the same result, one builds it
under its lock while the others wait. Each stage checks for itself that what it needs has finished, because another
run may be rebuilding it.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace

from imagefolder.checkpoints.native import read_about
from imagefolder.distributed import barrier, is_main, of_main, world_size
from imagefolder.errors import InputError
from imagefolder.files import file_sha256, read_json, write_json
from imagefolder.generator.sampling import Sampling, arguments_of
from imagefolder.progress import console
from imagefolder.tokenizer.discriminator import dino
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import Teacher, pretrained_vit
from imagefolder.tokenizer.vit import ViT
from imagefolder.training.generator import train_generator
from imagefolder.training.state import remove_state
from imagefolder.training.token_cache import ABOUT, TokenCache, build_token_cache
from imagefolder.training.tokenizer import train_tokenizer
from reproductions.aside import move_aside, remove_aside
from reproductions.beside import watch_of
from reproductions.measuring import measure, preview_of_generator, preview_of_tokenizer, validation
from reproductions.models import Models, load_models, load_tokenizer
from reproductions.proxies import proxy_teacher
from reproductions.recipe import usual_sampling
from reproductions.recording import has_record, record_finished, utc_now
from reproductions.row import Row, TrainedModel
from reproductions.versions import note_code

SETTINGS = "settings.json"


def run_tokenizer(row: Row) -> None:
    """Train the tokenizer of a row."""
    with row.building(row.tokenizer.folder):
        _finish_tokenizer(row)


def run_tokens(row: Row) -> None:
    """Encode the training images once for all generators on a tokenizer."""
    token_cache(row, *_tokenizer(row))


def run_generator(row: Row) -> None:
    """Train the generator of a row on the cached tokens, or on images encoded on the fly."""
    generator = _generator(row)
    with row.building(generator.folder):
        _finish_generator(row, generator, *_tokenizer(row))


def run_evaluation(row: Row) -> None:
    """Evaluate a row and record it, unless another run has done so in the meantime (and this one is not `fresh`)."""
    with row.building(row.record.with_suffix("")):
        models = _models(row)
        if row.given is not None or row.fresh or not of_main(has_record(row)):
            started, clock = utc_now(), time.monotonic()
            results = measure(row, models)
            if is_main():
                record_finished(row, models, results, started, time.monotonic() - clock)
    remove_aside(row)


def _finish_tokenizer(row: Row) -> None:
    """Train the tokenizer unless that is done; its lock is held."""
    trained, recipe = row.tokenizer, row.recipe
    folder = trained.folder
    if of_main(trained.is_trained):
        remove_state(folder)  # left by a run that was killed right after it finished
        return
    if replace(row, processes=world_size()).batch_statistics != row.batch_statistics:
        raise InputError(
            f"{folder.name} was planned for {row.processes} process(es) but has {world_size()}, with which its "
            "discriminator would normalise other images together; start the script again, or submit it again"
        )
    about = {}
    if is_main():
        write_json(folder / SETTINGS, trained.identity)
        note_code(trained)
    if row.needs_teacher and not row.scale.published:
        about["teacher_sha256"] = file_sha256(row.teacher)
    train_tokenizer(
        recipe.tokenizer,
        training=row.training,
        loss=row.loss,
        images=row.splits.train.augmented("tokenizer", row.seed),
        teacher=teacher_of(row),
        folder=folder,
        seed=row.seed,
        title=row.title(f"{folder.name}: training tokenizer"),
        about={**trained.identity, **about},
        pretrained=row.scale.published,
        features=discriminator_features(row),
        execution=row.execution,
        evaluate=validation(row) if row.training.evaluate_every else None,
        watch=watch_of(row, trained),
        preview=preview_of_tokenizer(row),
    )


def _finish_generator(row: Row, trained: TrainedModel, tokenizer: Tokenizer, sha256: str) -> None:
    """Train the generator unless that is done; its lock is held."""
    assert row.recipe.generator is not None
    folder = trained.folder
    if of_main(trained.is_trained and read_about(folder).get("tokenizer_sha256") == sha256):
        remove_state(folder)
        return
    settings = {**trained.identity, "tokenizer_sha256": sha256}
    if is_main():
        noted = _read_settings(trained)
        if trained.is_trained or noted not in (None, settings):  # made with another training of the tokenizer
            move_aside(trained)
        write_json(folder / SETTINGS, settings)
        note_code(trained)
    barrier()
    images, usual = row.splits.train.augmented("generator", row.seed), usual_sampling(row.recipe, row.scale)
    train_generator(
        row.recipe.generator,
        training=row.scale.generator_training,
        tokenizer=tokenizer,
        tokens=token_cache(row, tokenizer, sha256) if row.scale.views else images,
        folder=folder,
        seed=row.seed,
        title=row.title(f"{folder.name}: training generator"),
        about=settings,
        classes=row.splits.classes,
        sampling=Sampling(**arguments_of(usual)),
        execution=row.execution,
        watch=watch_of(row, trained),
        preview=preview_of_generator(row),
    )


def token_cache(row: Row, tokenizer: Tokenizer, sha256: str) -> TokenCache:
    """The tokens that a row's generator trains on; encoded first if they are not on disk.

    Args:
        sha256: of the tokenizer's weights.
    """
    folder = row.tokens
    if is_main() and _is_of_another_tokenizer(row, sha256):
        console.print(f"{folder}: encoded by a tokenizer that no longer exists; encoding the images again")
        (folder / ABOUT).unlink(missing_ok=True)
    barrier()
    return build_token_cache(
        tokenizer,
        tokenizer_sha256=sha256,
        images=row.splits.train.augmented("generator", row.seed),
        views=row.scale.views,
        folder=folder,
        title=row.title(f"{row.tokenizer.folder.name}: encoding training images"),
    )


def _is_of_another_tokenizer(row: Row, sha256: str) -> bool:
    try:
        return read_json(row.tokens / ABOUT).get("tokenizer_sha256") != sha256
    except InputError:  # it is missing, or opening it reports what is wrong
        return False


def _tokenizer(row: Row) -> tuple[Tokenizer, str]:
    """The trained tokenizer and the sha256 of its weights; trained first if it is not."""
    with row.building(row.tokenizer.folder):
        _finish_tokenizer(row)
        return load_tokenizer(row)


def _models(row: Row) -> Models:
    """The models of a row, holding their locks from checking that they are finished until they are loaded."""
    if row.given is not None:
        return load_models(row)
    generator = row.generator
    with nullcontext() if generator is None else row.building(generator.folder), row.building(row.tokenizer.folder):
        _finish_tokenizer(row)
        if generator is not None:
            _finish_generator(row, generator, *load_tokenizer(row))
        return load_models(row)


def _generator(row: Row) -> TrainedModel:
    assert row.generator is not None, "the row has no generator"
    return row.generator


def teacher_of(row: Row) -> Teacher | None:
    """The frozen semantic teacher of a row, or None if its tokenizer is not regularised."""
    if row.recipe.tokenizer.semantic == "none":
        return None
    return Teacher(pretrained_vit(row.recipe.tokenizer)) if row.scale.published else proxy_teacher(row)


def discriminator_features(row: Row) -> ViT | None:
    """The frozen network under a discriminator's heads, or None if it has none."""
    if not row.loss.adversarial or row.loss.discriminator == "patch":
        return None
    return dino() if row.scale.published else proxy_teacher(row).vit


def _read_settings(trained: TrainedModel) -> dict[str, object] | None:
    """What a training was started with; None if there is nothing, or nothing readable."""
    try:
        return read_json(trained.folder / SETTINGS)
    except InputError:
        return None
