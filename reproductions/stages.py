"""The stages of a row: proxies, tokenizer, generator, evaluation. Each is finished once and found again by name.

Folders below the output folder:

    SCALE-DATASET-HASH/proxies/            semantic teacher and proxy extractor, shared by all rows and seeds
    SCALE-DATASET-HASH/seedN/tokenizers/   one folder per tokenizer, shared by the rows that use it
    SCALE-DATASET-HASH/seedN/generators/   one folder per row
    records/, pictures/                    results
"""

from __future__ import annotations

import datetime
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torchvision.utils import save_image

from imagefolder.checkpoints.native import CONFIG, WEIGHTS, load_weights, read_about
from imagefolder.config import config_hash, to_dict
from imagefolder.data.images import DataSplits
from imagefolder.environment import describe, peak_memory_mib, reset_peak_memory
from imagefolder.errors import InputError
from imagefolder.evaluation.extractor import FEATURES, ProxyNet
from imagefolder.evaluation.protocols import Extractor, evaluate_generation, evaluate_reconstruction, real_floors
from imagefolder.files import file_sha256, write_atomically
from imagefolder.generator.model import Generator
from imagefolder.tokenizer.model import Tokenizer
from imagefolder.tokenizer.semantic import Teacher, blank_teacher, pretrained_vit
from imagefolder.training.classifier import accuracy, finish_classifier, save_classifier, train_classifier
from imagefolder.training.generator import encode_images, train_generator
from imagefolder.training.tokenizer import train_tokenizer
from leaderboard.record import Checkpoint, CodebookUsage, Cost, Dataset, Metric, Record, Run, Size
from leaderboard.store import read_record, write_record
from reproductions.recipe import Recipe, Scale, resolved, sampling_of

SETTINGS = "settings.json"
SELECTION = "EMA weights of the last step"
PROXY_SELECTION = "weights of the last step, fixed seed"
EXTRACTOR_SEED, TEACHER_SEED = 0, 1
PROXY_BATCH = 64


@dataclass(frozen=True)
class Job:
    """Where and on what a row runs. Everything is picklable: stages run in worker processes."""

    table: str
    output: Path
    scale: Scale
    splits: DataSplits
    seed: int
    command: str

    @property
    def shared(self) -> Path:
        return self.output / f"{self.scale.name}-{self.splits.name}-{self.splits.sha256[:8]}"

    @property
    def folder(self) -> Path:
        return self.shared / f"seed{self.seed}"

    def tokenizer(self, recipe: Recipe) -> Path:
        return self.folder / "tokenizers" / recipe.tokenizer.name

    def generator(self, recipe: Recipe) -> Path:
        return self.folder / "generators" / f"{self.table}-{recipe.row}"

    @property
    def extractor(self) -> Path:
        return self.shared / "proxies" / "extractor.safetensors"

    def teacher(self, recipe: Recipe) -> Path:
        return self.shared / "proxies" / f"teacher-{recipe.tokenizer.name}.safetensors"

    def title(self, text: str) -> str:
        return f"seed {self.seed} {text}"


def train_extractor(job: Job) -> None:
    """Train the proxy extractor on the training split and measure it on the real test images."""
    torch.manual_seed(EXTRACTOR_SEED)
    net = ProxyNet(len(job.splits.classes)).to(_device())
    title = "proxy extractor: training"
    train_classifier(
        net.features, net.head, job.splits.train, job.scale.proxy_steps, PROXY_BATCH, EXTRACTOR_SEED, title
    )
    about = {
        "steps": job.scale.proxy_steps,
        "seed": EXTRACTOR_SEED,
        "features": FEATURES,
        "test_accuracy": accuracy(net.features, net.head, job.splits.test),
        "dataset_sha256": job.splits.sha256,
    }
    save_classifier(job.extractor, net)
    finish_classifier(job.extractor, {**about, "floors": real_floors(job.splits, job.extractor)})


def train_teacher(job: Job, recipe: Recipe) -> None:
    """Train the semantic teacher (a classifier of the tokenizer's shape) on the training split."""
    torch.manual_seed(TEACHER_SEED)
    teacher = blank_teacher(recipe.tokenizer).to(_device())
    head = torch.nn.Linear(teacher.vit.embed_dim, len(job.splits.classes)).to(_device())
    title = "semantic teacher: training"
    train_classifier(teacher, head, job.splits.train, job.scale.proxy_steps, PROXY_BATCH, TEACHER_SEED, title)
    about = {
        "steps": job.scale.proxy_steps,
        "seed": TEACHER_SEED,
        "test_accuracy": accuracy(teacher, head, job.splits.test),
        "dataset_sha256": job.splits.sha256,
    }
    save_classifier(job.teacher(recipe), teacher)
    finish_classifier(job.teacher(recipe), about)


def load_teacher(job: Job, recipe: Recipe) -> Teacher | None:
    """The frozen teacher of a row, or None if its tokenizer is not regularised."""
    if recipe.tokenizer.semantic == "none":
        return None
    if job.scale.pretrained:
        return Teacher(pretrained_vit(recipe.tokenizer))
    teacher = blank_teacher(recipe.tokenizer)
    teacher.load_state_dict(load_file(job.teacher(recipe)))
    return teacher


def run_tokenizer(job: Job, recipe: Recipe) -> None:
    """Train the tokenizer of a row."""
    folder = job.tokenizer(recipe)
    teacher = load_teacher(job, recipe)
    about = tokenizer_settings(job, recipe)
    _write_settings(folder, about)
    if teacher is not None and not job.scale.pretrained:
        about["teacher_sha256"] = file_sha256(job.teacher(recipe))
    train_tokenizer(
        recipe.tokenizer,
        job.scale.tokenizer_training,
        job.scale.loss,
        job.splits.train,
        teacher,
        folder,
        job.seed,
        job.title(f"{recipe.tokenizer.name}: training tokenizer"),
        about,
        job.scale.pretrained,
    )


def run_generator(job: Job, recipe: Recipe, order: int, tokenizer_shared: bool) -> None:
    """Train the generator of a row (unless done), evaluate both models, and write the record."""
    started = _now()
    device = _device()
    tokenizer = Tokenizer(recipe.tokenizer)
    tokenizer_about = load_weights(job.tokenizer(recipe), tokenizer, recipe.tokenizer)
    tokenizer.to(device).eval()
    folder, name = job.generator(recipe), recipe.row
    settings, tokenizer_sha256 = generator_settings(job, recipe), tokenizer_about["weights_sha256"]
    if not is_done(folder, settings) or read_about(folder).get("tokenizer_sha256") != tokenizer_sha256:
        _write_settings(folder, settings)
        tokens = encode_images(tokenizer, job.splits.train, 100, job.title(f"{name}: encoding training images"))
        title = job.title(f"{name}: training generator")
        about = {**settings, "tokenizer_sha256": tokenizer_sha256}
        train_generator(
            recipe.generator, job.scale.generator_training, tokenizer, tokens, folder, job.seed, title, about
        )
    generator = Generator(recipe.generator, tokenizer)
    generator_about = load_weights(folder, generator.transformer, recipe.generator)
    generator.to(device).eval()

    clock = time.monotonic()
    reset_peak_memory()
    extractor = _load_extractor(job)
    title = job.title(f"{name}: reconstructing")
    reconstruction = evaluate_reconstruction(tokenizer, job.splits, extractor, title)
    sampling = sampling_of(recipe, job.scale)
    title = job.title(f"{name}: sampling")
    generation = evaluate_generation(generator, job.splits, sampling, job.scale.samples, job.seed, extractor, title)
    evaluation_seconds = time.monotonic() - clock

    stem = record_name(job, recipe)
    pictures = {
        "reconstructions of test images (original left, reconstruction right)": _picture(
            job.output, f"{stem}-reconstructions.png", reconstruction.picture
        ),
        "samples, classes in turn": _picture(
            job.output, f"{stem}-samples.png", generation.picture, min(len(job.splits.classes), 10)
        ),
    }
    peaks = (tokenizer_about["peak_memory_mib"], generator_about["peak_memory_mib"], peak_memory_mib())
    write_record(
        job.output / "records",
        Record(
            **_identity(job, recipe, order),
            status="finished",
            size=_size(recipe, tokenizer, generator),
            checkpoints=_checkpoints(job, recipe, tokenizer_about, generator_about),
            metrics=[Metric.model_validate(asdict(m)) for m in reconstruction.measurements + generation.measurements],
            codebook_usage=[CodebookUsage(**asdict(usage)) for usage in reconstruction.usage],
            pictures=pictures,
            cost=Cost(
                tokenizer_train_seconds=tokenizer_about["seconds"],
                generator_train_seconds=generator_about["seconds"],
                evaluation_seconds=evaluation_seconds,
                samples_per_second=generation.samples_per_second,
                sample_batch=sampling.batch_size,
                tokenizer_shared=tokenizer_shared,
                peak_memory_mib=max(peaks),
            ),
            run=Run(started=started, finished=_now(), command=job.command, **describe()),
        ),
    )


def write_failure(job: Job, recipe: Recipe, order: int, reason: str) -> None:
    """Record that a row failed, and why."""
    run = Run(started=_now(), finished=_now(), command=job.command, **describe())
    record = Record(**_identity(job, recipe, order), status="failed", reason=reason, run=run)
    write_record(job.output / "records", record)


def tokenizer_settings(job: Job, recipe: Recipe) -> dict[str, Any]:
    """What a trained tokenizer must agree with to be used again."""
    return {
        "tokenizer": to_dict(recipe.tokenizer),
        "training": to_dict(job.scale.tokenizer_training),
        "loss": to_dict(job.scale.loss),
        "seed": job.seed,
        "dataset_sha256": job.splits.sha256,
        "pretrained": job.scale.pretrained,
        "proxy_steps": job.scale.proxy_steps,
        "selection": SELECTION,
    }


def generator_settings(job: Job, recipe: Recipe) -> dict[str, Any]:
    """What a trained generator must agree with to be used again."""
    return {
        "generator": to_dict(recipe.generator),
        "training": to_dict(job.scale.generator_training),
        "tokenizer_settings": tokenizer_settings(job, recipe),
        "selection": SELECTION,
    }


def is_done(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a stage is finished; `InputError` if it was run, or begun, with other settings."""
    path = folder / SETTINGS
    if not path.exists():
        return False
    stored = json.loads(path.read_text())
    different = [name for name in settings | stored if stored.get(name) != settings.get(name)]
    if different:
        raise InputError(
            f"{folder}: checkpoint of another configuration (differs in {', '.join(different)}); "
            "use --fresh to redo it or another --output"
        )
    return (folder / CONFIG).exists() and (folder / WEIGHTS).exists()


def is_proxy_done(path: Path, job: Job) -> bool:
    """Whether a teacher or extractor is trained, with this scale's number of steps."""
    about = path.with_suffix(".json")
    return path.exists() and about.exists() and json.loads(about.read_text())["steps"] == job.scale.proxy_steps


def has_record(job: Job, recipe: Recipe) -> bool:
    """Whether the row's finished record of these very settings exists."""
    path = job.output / "records" / f"{record_name(job, recipe)}.json"
    if not path.exists():
        return False
    record = read_record(path)
    same = record.config_sha256 == config_hash(resolved(recipe, job.scale))
    return record.status == "finished" and same and record.dataset.sha256 == job.splits.sha256


def record_name(job: Job, recipe: Recipe) -> str:
    """File name stem of a row's record."""
    data = f"{job.splits.name}-{job.splits.sha256[:8]}"
    return f"{job.table}-{recipe.row}-{job.scale.name}-{data}-seed{job.seed}"


def _identity(job: Job, recipe: Recipe, order: int) -> dict[str, Any]:
    config = resolved(recipe, job.scale)
    splits = job.splits
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
        "dataset": Dataset(
            name=splits.name,
            sha256=splits.sha256,
            n_train=len(splits.train),
            n_test=len(splits.test),
            classes=len(splits.classes),
            image_size=splits.image_size,
        ),
    }


def _size(recipe: Recipe, tokenizer: Tokenizer, generator: Generator) -> Size:
    config, sequence = recipe.tokenizer, generator.transformer.sequence
    tokens = config.branches * config.length
    return Size(
        tokens=tokens,
        positions=sequence.length,
        steps=len(sequence.blocks),
        bits=tokens * float(torch.log2(torch.tensor(config.codebook_size))),
        tokenizer_parameters=sum(p.numel() for p in tokenizer.parameters()),
        generator_parameters=sum(p.numel() for p in generator.transformer.parameters()),
    )


def _checkpoints(job: Job, recipe: Recipe, tokenizer: dict[str, Any], generator: dict[str, Any]) -> list[Checkpoint]:
    found = [
        ("tokenizer", job.tokenizer(recipe) / WEIGHTS, tokenizer["weights_sha256"], SELECTION),
        ("generator", job.generator(recipe) / WEIGHTS, generator["weights_sha256"], SELECTION),
        ("extractor", job.extractor, file_sha256(job.extractor), PROXY_SELECTION),
    ]
    if "teacher_sha256" in tokenizer:
        found.append(("teacher", job.teacher(recipe), tokenizer["teacher_sha256"], PROXY_SELECTION))
    return [
        Checkpoint(role=role, path=str(path.relative_to(job.output)), sha256=sha256, selection=selection)
        for role, path, sha256, selection in found
    ]


def _load_extractor(job: Job) -> Extractor:
    about = json.loads(job.extractor.with_suffix(".json").read_text())
    return Extractor(job.extractor, about["sha256"], about["floors"])


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note what a stage is trained with before it begins, so that it is never continued with anything else."""
    text = json.dumps(settings, indent=1)
    write_atomically(folder / SETTINGS, lambda temporary: temporary.write_text(text))


def _picture(output: Path, name: str, images: torch.Tensor, columns: int = 10) -> str:
    path = output / "pictures" / name
    grid = images.float() / 255
    write_atomically(path, lambda temporary: save_image(grid, temporary, nrow=columns, padding=1, format="png"))
    return str(path.relative_to(output))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
