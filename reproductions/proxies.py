"""The small networks that replace published ones below scale full: semantic teacher and proxy extractor.

Both are trained once per data set and scale, by whichever row needs them first. The reference ships its extractors:
where it has one, it is used, so that values from any machine can be compared with the reference's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from imagefolder.distributed import barrier, is_main, of_main
from imagefolder.errors import DamagedFile
from imagefolder.evaluation.extractor import default_device
from imagefolder.evaluation.proxy import FEATURES, ProxyNet
from imagefolder.evaluation.real import real_floors
from imagefolder.evaluation.spaces import extractors_for
from imagefolder.files import copy_file
from imagefolder.progress import console
from imagefolder.tokenizer.semantic import Teacher, blank_teacher
from imagefolder.training.classifier import (
    accuracy,
    finish_classifier,
    read_classifier,
    save_classifier,
    train_classifier,
)
from leaderboard.reference_files import reference_extractor
from reproductions.beside import print_accuracy
from reproductions.row import Row

EXTRACTOR_SEED, TEACHER_SEED = 0, 1
BATCH = 64


def make_extractor(row: Row) -> None:
    """Copy the reference's proxy extractor. If it has none of these settings, train one on the training split and
    measure it on the real test images."""
    with row.building(row.extractor):
        if _is_done(row.extractor, row):
            return
        if _is_done(shipped := reference_extractor(row.shared.name), row):
            if is_main():
                for suffix in (".safetensors", ".json"):  # the document last: it says that the weights are complete
                    copy_file(shipped.with_suffix(suffix), row.extractor.with_suffix(suffix))
                console.print("proxy extractor: the reference's, so values can be compared across machines")
            barrier()
            return
        torch.manual_seed(EXTRACTOR_SEED)
        splits = row.splits
        net = ProxyNet(len(splits.classes)).to(default_device())
        about = _train(net.features, net.head, row, EXTRACTOR_SEED, "proxy extractor: training")
        if is_main():
            print_accuracy(row, row.extractor, about["test_accuracy"])
            save_classifier(row.extractor, net)
        barrier()
        floors = real_floors(splits, extractors_for(row.extractor))
        if is_main():
            finish_classifier(row.extractor, {**about, "features": FEATURES, "floors": floors})
        barrier()


def train_teacher(row: Row) -> None:
    """Train the semantic teacher (a classifier of the tokenizer's shape) on the training split."""
    with row.building(row.teacher):
        if _is_done(row.teacher, row):
            return
        torch.manual_seed(TEACHER_SEED)
        teacher = blank_teacher(row.recipe.tokenizer).to(default_device())
        head = nn.Linear(teacher.vit.embed_dim, row.dataset.classes).to(default_device())
        about = _train(teacher, head, row, TEACHER_SEED, "semantic teacher: training")
        if is_main():
            print_accuracy(row, row.teacher, about["test_accuracy"])
            save_classifier(row.teacher, teacher)
            finish_classifier(row.teacher, about)
        barrier()


def proxy_teacher(row: Row) -> Teacher:
    """The trained semantic teacher of a row."""
    teacher = blank_teacher(row.recipe.tokenizer)
    teacher.load_state_dict(read_classifier(row.teacher)[0])
    return teacher


def is_proxy_done(path: Path, row: Row) -> bool:
    """Whether a teacher or extractor has been trained for the scale's number of steps, and is undamaged.

    Raises:
        InputError: it cannot be read at the moment.
    """
    if not (path.exists() and path.with_suffix(".json").exists()):
        return False
    try:
        _, about = read_classifier(path)
    except DamagedFile:
        return False
    return (about.get("steps"), about.get("dataset_sha256")) == (row.scale.proxy_steps, row.dataset.sha256)


def _train(features: nn.Module, head: nn.Linear, row: Row, seed: int, title: str) -> dict[str, Any]:
    """Train a classifier; returns what is stored about it."""
    splits, steps = row.splits, row.scale.proxy_steps
    images = splits.train.augmented("tokenizer", seed)
    train_classifier(features, head, images, steps=steps, batch_size=BATCH, seed=seed, title=title)
    test_accuracy = accuracy(features, head, splits.test)
    return {"steps": steps, "seed": seed, "test_accuracy": test_accuracy, "dataset_sha256": splits.sha256}


def _is_done(proxy: Path, row: Row) -> bool:
    done = of_main(is_proxy_done(proxy, row))
    if not done and proxy.exists() and is_main():
        console.print(f"{proxy}: unfinished, damaged or trained with other settings; training it again")
    return done
