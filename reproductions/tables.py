"""What a reproduction script shows on the terminal."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from rich.table import Table

from imagefolder.progress import console
from leaderboard.store import read_records
from leaderboard.tables import measured_frame
from reproductions.graph import Plan
from reproductions.recipe import Recipe, training_of

COLUMNS = ("rFID", "PSNR", "gFID", "IS", "class accuracy", "linear probe accuracy (quantized)", "positions")


def print_rows(title: str, rows: list[Recipe]) -> None:
    """The rows a script knows."""
    table = Table(title=title, title_justify="left")
    for column in ("row", "system", "what it is"):
        table.add_column(column)
    for recipe in rows:
        models = [model.name for model in (recipe.tokenizer, recipe.generator) if model is not None]
        table.add_row(recipe.row, recipe.label, f"{recipe.note} ({', '.join(models)})")
    console.print(table)


def print_plan(title: str, plans: list[Plan], output: Path) -> None:
    """What is about to be done, on what."""
    job = plans[0].job
    dataset, scale = job.dataset, job.scale
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    console.print(
        f"{title}, scale {scale.name}, on {device}\n"
        f"data {dataset.name}: {dataset.n_train} training and {dataset.n_test} test images, "
        f"{dataset.classes} classes, {dataset.image_size} px; output {output}"
    )
    if scale.threads is None and not torch.cuda.is_available():
        console.print("no GPU found: a scale meant for one will take very long on this machine")
    for text in dict.fromkeys(filter(None, (_normalising(row) for row in plans))):
        console.print(text)
    table = Table()
    for column in ("row", "seed", "tokenizer", "generator", "evaluation"):
        table.add_column(column)
    for row in plans:
        table.add_row(row.recipe.row, str(row.job.seed), *_states(row))
    console.print(table)


def _normalising(row: Plan) -> str | None:
    """That a row's discriminator sees other images together than in one piece, where it does."""
    if row.tokenizer_done:
        return None
    name = "images_normalised_together"
    whole = replace(row.job, execution=replace(row.job.execution, micro_batch=0))
    now, in_one_piece = (job.execution_settings(row.recipe).get(name) for job in (row.job, whole))
    if now == in_one_piece:
        return None
    return (
        f"micro-batch {row.job.execution.micro_batch}: the discriminator normalises {now:g} images together instead of "
        f"{in_one_piece:g}; this trains different models, which are stored separately"
    )


def _states(row: Plan) -> tuple[str, str, str]:
    scale, recipe = row.job.scale, row.recipe
    given = row.job.tokenizer_weights is not None
    steps = training_of(recipe, scale).steps
    tokenizer = "given" if given else "done" if row.tokenizer_done else f"train {steps} steps"
    if recipe.generator is None:
        return tokenizer, "-", "done" if row.recorded else ", ".join(recipe.measures)
    generator = "given" if given else "done" if row.generator_done else f"train {scale.generator_training.steps} steps"
    return tokenizer, generator, "done" if row.recorded else f"{scale.samples} samples"


def print_results(table: str, scale: str, output: Path) -> None:
    """The main numbers of the table; the report has all of them."""
    records = [r for r in read_records(output / "records") if (r.table, r.scale) == (table, scale)]
    frame = measured_frame(records)
    proxy = [name if name in frame else f"proxy-{name}" for name in COLUMNS]
    columns = [name for name in proxy if name in frame and frame[name].notna().any()]
    shown = Table(box=None, pad_edge=False)
    for column in ("row", "seeds", *columns):
        whole = column.startswith(("row", "proxy"))
        shown.add_column(column, justify="left" if column == "row" else "right", no_wrap=whole)
    for _, row in frame.iterrows():
        values = [f"{row[column]:.4g}" if row[column] == row[column] else "-" for column in columns]
        shown.add_row(row["row"], str(row["n_seeds"]), *values)
    console.print(shown)
