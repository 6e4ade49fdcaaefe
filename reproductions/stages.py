"""The training stages of a row: proxies, tokenizer, token cache, generator. Each is finished once and found by name.

Where several processes work together, all call the same stage; proxies are trained by each alike, the first one writes.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import torch
from safetensors.torch import load_file
from torch import nn

from imagefolder.checkpoints.native import load_weights
from imagefolder.data.tokens import build_token_cache, open_token_cache
from imagefolder.distributed import barrier, is_main, world_size
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import FEATURES, ProxyNet, default_device
from imagefolder.evaluation.protocols import real_floors
from imagefolder.files import file_sha256
from imagefolder.tokenizer.discriminator import dino
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import Teacher, blank_teacher, pretrained_vit
from imagefolder.training.classifier import accuracy, finish_classifier, save_classifier, train_classifier
from imagefolder.training.generator import train_generator
from imagefolder.training.tokenizer import train_tokenizer
from reproductions.evaluation import validation
from reproductions.job import Job, is_trained, needs_teacher, read_settings, write_settings
from reproductions.recipe import Recipe, loss_of, training_of

EXTRACTOR_SEED, TEACHER_SEED = 0, 1
PROXY_BATCH = 64


def train_extractor(job: Job) -> None:
    """Train the proxy extractor on the training split and measure it on the real test images."""
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
    folder = job.tokenizer(recipe)
    if is_trained(folder):
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
    tokenizer, sha256 = load_tokenizer(job, recipe)
    images = job.splits.train.augmented("generator", job.seed)
    title = job.title(f"{job.tokenizer(recipe).name}: encoding training images")
    build_token_cache(tokenizer, sha256, images, job.scale.views, job.tokens(recipe), title)


def run_generator(job: Job, recipe: Recipe) -> None:
    """Train the generator of a row on the cached tokens, or on images that are encoded as they come."""
    folder = job.generator(recipe)
    tokenizer, sha256 = load_tokenizer(job, recipe)
    settings = {**job.generator_settings(recipe), "tokenizer_sha256": sha256}
    current = read_settings(folder) == settings
    if current and is_trained(folder):
        return
    barrier()  # all have looked, before what another training of the tokenizer left goes
    if is_main() and not current:
        shutil.rmtree(folder, ignore_errors=True)
        write_settings(folder, settings)
    barrier()
    images = job.splits.train.augmented("generator", job.seed)
    tokens = open_token_cache(job.tokens(recipe), sha256, images, job.scale.views) if job.scale.views else images
    train_generator(
        recipe.generator,
        job.scale.generator_training,
        tokenizer,
        tokens,
        folder,
        job.seed,
        job.title(f"{folder.name}: training generator"),
        settings,
        execution=job.execution,
    )


def load_tokenizer(job: Job, recipe: Recipe) -> tuple[Tokenizer, str]:
    """The trained tokenizer of a row, frozen, and the sha256 of its weights."""
    tokenizer = Tokenizer(recipe.tokenizer)
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
    teacher.load_state_dict(load_file(job.teacher(recipe)))
    return teacher
