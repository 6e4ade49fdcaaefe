"""What the scripts show on the terminal."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from imagefolder.progress import console
from reproductions.recipe import Recipe

if TYPE_CHECKING:  # listing rows needs neither torch nor pandas
    from reproductions.plan import RowPlan
    from reproductions.row import Row

METRICS = ("rFID", "PSNR", "gFID", "IS", "class accuracy", "linear probe accuracy (quantized)")


def print_rows(title: str, rows: list[Recipe]) -> None:
    """The rows a script has."""
    table = Table(title=title, title_justify="left")
    for column in ("row", "system", "what it is"):
        table.add_column(column)
    for recipe in rows:
        models = [model.name for model in (recipe.tokenizer, recipe.generator) if model is not None]
        table.add_row(recipe.row, recipe.label, f"{recipe.note} ({', '.join(models)})")
    console.print(table)


def print_plan(title: str, plans: list[RowPlan], output: Path) -> None:
    """What is about to be done, on which machine and data."""
    from leaderboard.reference_files import other_data

    row = plans[0].row
    dataset, scale = row.dataset, row.scale
    console.print(
        f"{title}, scale {scale.name}{f' with budget {scale.budget_text}' if scale.budget else ''}, on {machine()}\n"
        f"data {dataset.name}: {dataset.n_train} training and {dataset.n_test} test images, "
        f"{dataset.classes} classes, {dataset.image_size} px; output {output}"
    )
    for text in dict.fromkeys(filter(None, [other_data(scale.name, dataset), *map(_normalising, plans)])):
        console.print(text)
    table = Table()
    for column in ("row", "seed", "tokenizer", "generator", "evaluation"):
        table.add_column(column)
    for plan in plans:
        table.add_row(plan.row.recipe.row, str(plan.row.seed), *_states(plan))
    console.print(table)
    outdated = list(dict.fromkeys(line for plan in plans for line in plan.outdated))
    for line in outdated:
        console.print(line)
    if outdated:
        console.print("--fresh redoes the chosen rows with the current code")


def machine() -> str:
    """What trains: the GPU, or the CPU."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def print_results(row: Row) -> None:
    """The main numbers of a row's table on its data, and whether they are the reference's; the report has all of them.

    Rows evaluated with other numbers of images have columns of their own, and so are printed below the others.
    """
    from leaderboard.references import table_beside
    from leaderboard.store import read_records
    from leaderboard.tables import group_rows, measured_frame, metric_labels

    place = row.table, row.scale.name, row.scale.budget_text, row.dataset.sha256
    records = [
        record
        for record in read_records(row.output / "records")
        if (record.table, record.scale, record.budget, record.dataset.sha256) == place
    ]
    labels = metric_labels(records)
    metrics = [label for name in METRICS for (protocol, *_), label in labels.items() if protocol.metric == name]
    lines = measured_frame(records).to_dict("records")
    known = [frozenset(label for label in metrics if line[label] == line[label]) for line in lines]  # NaN: not measured
    while known:
        most = max(known, key=len)
        columns = [*(label for label in metrics if label in most), "positions"]
        shown = Table(box=None, pad_edge=False)
        for column in ("row", "seeds", *columns):
            shown.add_column(column, justify="left" if column == "row" else "right", no_wrap=" " not in column)
        for line, have in zip(lines, known, strict=True):
            if have <= most:
                values = [f"{line[column]:.4g}" if column in have | {"positions"} else "-" for column in columns]
                shown.add_row(line["row"], str(line["n_seeds"]), *values)
        console.print(shown)
        rest = [(line, have) for line, have in zip(lines, known, strict=True) if not have <= most]
        lines, known = [line for line, _ in rest], [have for _, have in rest]
    if groups := group_rows(records):
        besides, remark = table_beside(groups)
        for group, beside in zip(groups, besides, strict=True):
            if beside is not None:
                console.print(f"{group[0].row}: {beside.line}")
        if remark:
            console.print(remark)


def _normalising(plan: RowPlan) -> str | None:
    """A line if micro-batches change which images a row's discriminator normalises together."""
    if plan.tokenizer_done:
        return None
    row, name = plan.row, "images_normalised_together"
    whole = replace(row, execution=replace(row.execution, micro_batch=0))
    now, in_one_piece = (each.batch_statistics.get(name) for each in (row, whole))
    if now == in_one_piece:
        return None
    return (
        f"micro-batch {row.execution.micro_batch}: the discriminator normalises {now:g} images together instead of "
        f"{in_one_piece:g}; this trains different models, which are stored separately"
    )


def _states(plan: RowPlan) -> tuple[str, str, str]:
    row, scale = plan.row, plan.row.scale
    tokenizer = "done" if plan.tokenizer_done else f"train {row.training.steps} steps"
    generator = "done" if plan.generator_done else f"train {scale.generator_training.steps} steps"
    if row.given is not None:
        tokenizer = generator = "given"
    done = "done" if plan.timed else "done, not timed alone"
    if row.recipe.generator is None:
        return tokenizer, "-", done if plan.recorded else ", ".join(row.recipe.measures)
    return tokenizer, generator, done if plan.recorded else f"{scale.samples} samples"
