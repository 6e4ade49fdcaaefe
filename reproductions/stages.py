"""The stages of a row: proxies, tokenizer, token cache, generator, evaluation. Each is finished once and found by name.

Where several processes work together, all call the same stage; proxies are trained by each alike, the first one writes.
Where several runs need the same, one builds it under its lock while the others wait. A stage makes sure of what it
needs itself, as another run may be making it anew.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from imagefolder.checkpoints.native import load_weights, read_about
from imagefolder.distributed import barrier, gather_objects, is_main, world_size
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import FEATURES, ProxyNet, default_device
from imagefolder.evaluation.protocols import real_floors
from imagefolder.files import file_sha256, read_json
from imagefolder.progress import console
from imagefolder.tokenizer.discriminator import dino
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import Teacher, blank_teacher, pretrained_vit
from imagefolder.training.classifier import (
    accuracy,
    finish_classifier,
    read_classifier,
    save_classifier,
    train_classifier,
)
from imagefolder.training.generator import train_generator
from imagefolder.training.state import remove_state
from imagefolder.training.token_cache import ABOUT, TokenCache, build_token_cache
from imagefolder.training.tokenizer import train_tokenizer
from reproductions.aside import move_aside, remove_aside
from reproductions.evaluation import Models, evaluate_row, load_models, validation
from reproductions.job import (
    Job,
    has_record,
    is_proxy_done,
    is_trained,
    needs_teacher,
    read_settings,
    with_remedy,
    write_settings,
)
from reproductions.recipe import Recipe, loss_of, training_of

EXTRACTOR_SEED, TEACHER_SEED = 0, 1
PROXY_BATCH = 64

T = TypeVar("T")


def train_extractor(job: Job) -> None:
    """Train the proxy extractor on the training split and measure it on the real test images."""
    with job.building(job.extractor):
        if not _is_done(job.extractor, job):
            _train_extractor(job)


def _train_extractor(job: Job) -> None:
    torch.manual_seed(EXTRACTOR_SEED)
    splits, steps = job.splits, job.scale.proxy_steps
    net = ProxyNet(len(splits.classes)).to(default_device())
    title = "proxy extractor: training"
    train_classifier(
        net.features,
        net.head,
        splits.train.augmented("tokenizer", EXTRACTOR_SEED),
        steps,
        PROXY_BATCH,
        EXTRACTOR_SEED,
        title,
    )
    about = {
        "steps": steps,
        "seed": EXTRACTOR_SEED,
        "features": FEATURES,
        "test_accuracy": accuracy(net.features, net.head, splits.test),
        "dataset_sha256": splits.sha256,
    }
    if is_main():
        save_classifier(job.extractor, net)
    barrier()
    floors = real_floors(splits, job.extractor)
    if is_main():
        finish_classifier(job.extractor, {**about, "floors": floors})
    barrier()


def train_teacher(job: Job, recipe: Recipe) -> None:
    """Train the semantic teacher (a classifier of the tokenizer's shape) on the training split."""
    with job.building(job.teacher(recipe)):
        if not _is_done(job.teacher(recipe), job):
            _train_teacher(job, recipe)


def _train_teacher(job: Job, recipe: Recipe) -> None:
    torch.manual_seed(TEACHER_SEED)
    splits, steps = job.splits, job.scale.proxy_steps
    teacher = blank_teacher(recipe.tokenizer).to(default_device())
    head = nn.Linear(teacher.vit.embed_dim, len(splits.classes)).to(default_device())
    title = "semantic teacher: training"
    images = splits.train.augmented("tokenizer", TEACHER_SEED)
    train_classifier(teacher, head, images, steps, PROXY_BATCH, TEACHER_SEED, title)
    about = {
        "steps": steps,
        "seed": TEACHER_SEED,
        "test_accuracy": accuracy(teacher, head, splits.test),
        "dataset_sha256": splits.sha256,
    }
    if is_main():
        save_classifier(job.teacher(recipe), teacher)
        finish_classifier(job.teacher(recipe), about)
    barrier()


def run_tokenizer(job: Job, recipe: Recipe) -> None:
    """Train the tokenizer of a row."""
    with job.building(job.tokenizer(recipe)):
        _finish_tokenizer(job, recipe)


def _finish_tokenizer(job: Job, recipe: Recipe) -> None:
    folder = job.tokenizer(recipe)
    if _of_main(is_trained(folder)):
        remove_state(folder)  # left by a run that was killed right after its end
        return
    here = replace(job, processes=world_size()).execution_settings(recipe)
    if here != job.execution_settings(recipe):
        raise InputError(
            f"{folder.name} was planned for {job.processes} process(es) but has {world_size()}, with which its "
            "discriminator would normalise other images together; start the script again, or submit it anew"
        )
    settings, about = job.tokenizer_settings(recipe), {}
    if is_main():
        write_settings(folder, settings)
    if needs_teacher(job, recipe) and not job.scale.published:
        about["teacher_sha256"] = file_sha256(job.teacher(recipe))
    training = training_of(recipe, job.scale)
    train_tokenizer(
        recipe.tokenizer,
        training,
        loss_of(recipe, job.scale),
        job.splits.train.augmented("tokenizer", job.seed),
        _teacher(job, recipe),
        folder,
        job.seed,
        job.title(f"{folder.name}: training tokenizer"),
        {**settings, **about},
        job.scale.published,
        features=_discriminator_features(job, recipe),
        execution=job.execution,
        evaluate=validation(job) if training.evaluate_every else None,
    )


def run_tokens(job: Job, recipe: Recipe) -> None:
    """Encode the training images once for all generators on a tokenizer."""
    _tokens(job, recipe, *load_tokenizer(job, recipe))


def _tokens(job: Job, recipe: Recipe, tokenizer: Tokenizer, sha256: str) -> TokenCache:
    images = job.splits.train.augmented("generator", job.seed)
    title, folder = job.title(f"{job.tokenizer(recipe).name}: encoding training images"), job.tokens(recipe)
    if is_main() and _is_of_another_tokenizer(folder, sha256):
        console.print(f"{folder}: of weights that are no more; encoding the images anew")
        (folder / ABOUT).unlink(missing_ok=True)
    barrier()
    return build_token_cache(tokenizer, sha256, images, job.scale.views, job.tokens(recipe), title)


def _is_of_another_tokenizer(folder: Path, sha256: str) -> bool:
    try:
        return read_json(folder / ABOUT).get("tokenizer_sha256") != sha256
    except InputError:  # there is none, or opening it says what is wrong
        return False


def run_generator(job: Job, recipe: Recipe) -> None:
    """Train the generator of a row on the cached tokens, or on images that are encoded as they come."""
    with job.building(job.generator(recipe)):
        _finish_generator(job, recipe, *load_tokenizer(job, recipe))


def _finish_generator(job: Job, recipe: Recipe, tokenizer: Tokenizer, sha256: str) -> None:
    folder = job.generator(recipe)
    if _of_main(is_trained(folder) and read_about(folder).get("tokenizer_sha256") == sha256):
        remove_state(folder)
        return
    settings = {**job.generator_settings(recipe), "tokenizer_sha256": sha256}
    if is_main():
        noted = read_settings(folder)
        if is_trained(folder) or noted not in (None, settings):  # of another training of the tokenizer
            move_aside(folder)
        write_settings(folder, settings)
    barrier()
    views = job.scale.views
    images = _tokens(job, recipe, tokenizer, sha256) if views else job.splits.train.augmented("generator", job.seed)
    train_generator(
        recipe.generator,
        job.scale.generator_training,
        tokenizer,
        images,
        folder,
        job.seed,
        job.title(f"{folder.name}: training generator"),
        settings,
        execution=job.execution,
    )


def run_evaluation(job: Job, recipe: Recipe, order: int, tokenizer_shared: bool, fresh: bool) -> None:
    """Evaluate a row and record it, unless another run has done so meanwhile (and this one is not to do it `fresh`)."""
    with job.building(job.record(recipe).with_suffix("")):
        models = _models(job, recipe)
        if job.tokenizer_weights is not None or fresh or not _of_main(has_record(job, recipe)):
            evaluate_row(job, recipe, order, tokenizer_shared, models)
    remove_aside(job, recipe)


def _models(job: Job, recipe: Recipe) -> Models:
    """The models of a row, under their locks from the look at them to the end of loading."""
    if job.tokenizer_weights is not None:
        return load_models(job, recipe)
    generator = nullcontext() if recipe.generator is None else job.building(job.generator(recipe))
    with generator, job.building(job.tokenizer(recipe)):
        _finish_tokenizer(job, recipe)
        if recipe.generator is not None:
            _finish_generator(job, recipe, *_load(job, recipe))
        return load_models(job, recipe)


def load_tokenizer(job: Job, recipe: Recipe) -> tuple[Tokenizer, str]:
    """The trained tokenizer of a row, frozen, and the sha256 of its weights; trained first if it is not."""
    with job.building(job.tokenizer(recipe)):
        _finish_tokenizer(job, recipe)
        return _load(job, recipe)


def _load(job: Job, recipe: Recipe) -> tuple[Tokenizer, str]:
    tokenizer = Tokenizer(recipe.tokenizer)
    with with_remedy(job.tokenizer(recipe)):
        about = load_weights(job.tokenizer(recipe), tokenizer, recipe.tokenizer)
    return tokenizer.to(default_device()).eval().requires_grad_(False), about["weights_sha256"]


def _teacher(job: Job, recipe: Recipe) -> Teacher | None:
    """The frozen semantic teacher of a row, or None if its tokenizer is not regularised."""
    if recipe.tokenizer.semantic == "none":
        return None
    return Teacher(pretrained_vit(recipe.tokenizer)) if job.scale.published else _proxy_teacher(job, recipe)


def _discriminator_features(job: Job, recipe: Recipe) -> nn.Module | None:
    """The frozen network under a discriminator's heads, or None where it has none."""
    loss = loss_of(recipe, job.scale)
    if not loss.adversarial or loss.discriminator == "patch":
        return None
    return dino() if job.scale.published else _proxy_teacher(job, recipe).vit


def _proxy_teacher(job: Job, recipe: Recipe) -> Teacher:
    teacher = blank_teacher(recipe.tokenizer)
    teacher.load_state_dict(read_classifier(job.teacher(recipe))[0])
    return teacher


def _is_done(proxy: Path, job: Job) -> bool:
    done = _of_main(is_proxy_done(proxy, job))
    if not done and proxy.exists() and is_main():
        console.print(f"{proxy}: unfinished, damaged or trained otherwise; trained anew")
    return done


def _of_main(value: T) -> T:
    """The main process's value, in all of them: what one sees on a shared disk, another may not see yet."""
    return gather_objects(value)[0]
