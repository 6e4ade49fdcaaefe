"""Model cards of measured models: the values of a record as model-index and as `.eval_results`, next to the weights."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from imagefolder.checkpoints.card import model_card
from imagefolder.checkpoints.native import CONFIG, WEIGHTS, read_config
from imagefolder.config import Config, GeneratorConfig, TokenizerConfig
from imagefolder.errors import InputError
from imagefolder.files import file_sha256, write_atomically, write_text
from leaderboard.pictures import read_picture
from leaderboard.record import Checkpoint, Metric, Record, web_address
from leaderboard.store import read_record
from leaderboard.text import markdown_text
from leaderboard.view import dataset_text

README, RESULTS, RECORD = "README.md", ".eval_results/imagefolder.yaml", "record.json"
SOURCE = "ImageFolder reproducibility suite"
IMAGENET = "ILSVRC/imagenet-1k"
HUB_DATASETS = {
    "fashion": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "mnist": "ylecun/mnist",
}
"""Built-in data sets under their names on the hub"""
OF_TOKENIZERS = ("rFID", "pFID", "clean-rFID", "rKID", "PSNR", "SSIM", "LPIPS", "linear probe")
KINDS: dict[str, type[Config]] = {"tokenizer": TokenizerConfig, "generator": GeneratorConfig}
TASKS = {
    "tokenizer": ("image-feature-extraction", "image reconstruction"),
    "generator": ("unconditional-image-generation", "class-conditional image generation"),
}
PICTURES = {"tokenizer": "reconstructions", "generator": "samples"}


def write_cards(path: Path, folders: Sequence[Path] = (), *, license: str = "other", source: str | None) -> list[Path]:
    """Write README.md, .eval_results/, the picture and a copy of the record next to each model of a record.

    Args:
        path: of the record, in the folder records/ of a run.
        folders: native checkpoints with exactly the record's weights; empty: the trained ones in the output folder.
        license: of the weights, by its name on the hub.
        source: web address at which the record can be read.

    Returns:
        The cards.

    Raises:
        InputError: the record has no models or no values, or a folder holds other weights than it measured.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; records are in the folder records/ of a run")
    record, output = read_record(path), path.absolute().parent.parent
    if source is not None:
        try:
            web_address(source)
        except ValueError as error:
            raise InputError(f"--source {error}") from None
    if record.status != "finished" or record.added is not None:
        what = "holds measured images of others, no model" if record.added else f"is {record.status}"
        raise InputError(f"{path}: {what}, so there is nothing to write a card for")
    models = [checkpoint for checkpoint in record.checkpoints if checkpoint.role in KINDS]
    chosen = [_matching(folder, models, path) for folder in folders] if folders else _trained(models, output, path)
    return [
        _write_card(folder, checkpoint, record, path, license=license, source=source) for folder, checkpoint in chosen
    ]


def _trained(models: list[Checkpoint], output: Path, path: Path) -> list[tuple[Path, Checkpoint]]:
    """The folders of the models that were trained in an output folder."""
    found = [(output / model.path).parent for model in models]
    for folder in found:
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"{path}: its model {folder} is not here; name the folders with its models after the record"
            )
    return [_matching(folder, models, path) for folder in found]


def _matching(folder: Path, models: list[Checkpoint], path: Path) -> tuple[Path, Checkpoint]:
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise InputError(f"{folder}: holds no {WEIGHTS}; save the model there first")
    sha256 = file_sha256(weights)
    for model in models:
        if model.sha256 == sha256:
            return folder, model
    raise InputError(f"{weights}: not the weights that {path.name} measured; its numbers are not theirs")


def _write_card(
    folder: Path, checkpoint: Checkpoint, record: Record, path: Path, *, license: str, source: str | None
) -> Path:
    role, config = checkpoint.role, read_config(folder, KINDS[checkpoint.role])
    metrics = [m for m in record.metrics if m.protocol.metric.startswith(OF_TOKENIZERS) == (role == "tokenizer")]
    picture = _copy_picture(folder, role, record, path.absolute().parent.parent)
    card = model_card(
        config,
        license=license,
        results=_results(metrics, record, checkpoint, picture),
        evaluated=[_evaluated(metric, record, role, source) for metric in metrics],
    )
    entries = eval_result_entries_to_yaml([_entry(metric, record, source) for metric in metrics])
    write_text(folder / RESULTS, yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))
    shutil.copyfile(path, folder / RECORD)
    return write_text(folder / README, str(card))


def _copy_picture(folder: Path, role: str, record: Record, output: Path) -> str | None:
    """Copy the role's picture into the folder; returns its name, or None if there is no intact one."""
    for caption, place in record.pictures.items():
        content = read_picture(output, place, record.picture_sha256.get(place))
        if caption.startswith(PICTURES[role]) and content is not None:
            name = f"{PICTURES[role]}.png"
            write_atomically(folder / name, lambda temporary, content=content: temporary.write_bytes(content))
            return name
    return None


def _results(metrics: list[Metric], record: Record, checkpoint: Checkpoint, picture: str | None) -> str:
    """The values as Markdown, with everything needed to compare them."""
    lines = [
        f"Measured on {markdown_text(dataset_text(record.dataset))} (row `{record.row}` of `{record.table}` at scale "
        f"{record.scale}, seed {record.seed}; {markdown_text(checkpoint.selection)}). [{RECORD}]({RECORD}) has the "
        "configuration, the machine and the version of the code.",
        "",
        "| metric | value | images | protocol |",
        "|---|---:|---:|---|",
    ]
    for metric in metrics:
        spread = "" if metric.spread is None else f" ± {metric.spread:.3g}"
        name, key = markdown_text(metric.protocol.name), markdown_text(metric.protocol.key)
        lines.append(f"| {name} | {metric.value:.6g}{spread} | {metric.n_generated:,} | {key} |")
    if any(metric.protocol.is_proxy for metric in metrics):
        lines += [
            "",
            "Metrics named *proxy* are computed on the features of a small classifier of the data. They are comparable "
            "only if the hash of the classifier is equal, and never with Inception metrics.",
        ]
    if picture is not None:
        lines += ["", f"![{PICTURES[checkpoint.role]}]({picture})"]
    return "\n".join(lines)


def _evaluated(metric: Metric, record: Record, role: str, source: str | None) -> EvalResult:
    """A value for the card's model-index."""
    task, task_name = TASKS[role]
    protocol, dataset = metric.protocol, record.dataset
    return EvalResult(
        task_type=task,
        task_name=task_name,
        dataset_type=_hub_dataset(record),
        dataset_name=dataset.name,
        dataset_args={"sha256": dataset.sha256, "image_size": dataset.image_size},
        metric_type=_slug(protocol.name),
        metric_name=protocol.name,
        metric_value=metric.value,
        metric_args={
            "protocol": protocol.key,
            "description": protocol.description,
            "evaluator": protocol.evaluator,
            "extractor_sha256": protocol.extractor_sha256,
            "n_real": metric.n_real,
            "n_generated": metric.n_generated,
        },
        verified=False,
        source_name=SOURCE if source else None,
        source_url=source,
    )


def _entry(metric: Metric, record: Record, source: str | None) -> EvalResultEntry:
    """A value for `.eval_results`."""
    return EvalResultEntry(
        dataset_id=_hub_dataset(record),
        task_id=_slug(metric.protocol.name),
        value=metric.value,
        date=record.run.finished,
        source_url=source,
        source_name=SOURCE if source else None,
        notes=f"{metric.protocol.key}, {metric.n_generated} images",
    )


def _hub_dataset(record: Record) -> str:
    return IMAGENET if record.scale == "full" else HUB_DATASETS.get(record.dataset.name, _slug(record.dataset.name))


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "data"
