"""Training curves of the rows of a table: losses of every seed, and the band in which the reference's seeds lie."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from imagefolder.errors import reason
from imagefolder.files import read_text
from leaderboard.bands import Band
from leaderboard.charts import (
    CONTEXT,
    PANEL_HEIGHT,
    Chart,
    Range,
    Values,
    data,
    make_chart,
    tooltip,
    zoom,
)  # fmt: skip
from leaderboard.record import Record
from leaderboard.reference_files import REFERENCE, Curves, Points, Role, read_curves, thinned
from leaderboard.significance import MIN_SEEDS

LOSSES: dict[Role, tuple[str, ...]] = {
    "tokenizer": ("total", "reconstruction", "semantic"),
    "generator": ("cross_entropy",),
}
"""The values of a curve that are drawn, where a training has them"""
CURVE = "curve.jsonl"
NAMED = 3  # files that a remark names


@dataclass
class Training:
    """The curves of one model: seed -> its number of windows and the means over them, by loss."""

    role: Role
    steps: int = 0
    folders: set[str] = field(default_factory=set)
    seeds: dict[int, dict[str, list[float]]] = field(default_factory=dict)


def training_charts(
    title: str, rows: list[str], groups: list[list[Record]], output: Path
) -> tuple[list[Chart], list[str]]:
    """A chart per row with the losses of its models, and remarks on curves that are missing or damaged.

    A model that several rows share is shown with the first of them.

    Args:
        title: of the table.
        rows: labels of the rows.
        groups: their records, one per seed.
        output: folder that the paths of the records are relative to.
    """
    charts, problems, wanted, seen = [], [], 0, set[str]()
    references: list[Curves] | None = None
    for row, group in zip(rows, groups, strict=True):
        views = []
        for role in LOSSES:
            training = Training(role)
            for record in group:
                for folder in _folders(record, role):
                    if folder not in seen:
                        seen.add(folder)
                        wanted += 1
                        if problem := _add(training, record.seed, folder, output):
                            problems.append(f"{folder}/{CURVE}: {problem}")
            if training.seeds:
                references = _references() if references is None else references
                views += _views(training, references, len(views))
        if views:
            text = f"Losses of the models of {row} along their trainings, a line for each seed."
            charts.append(make_chart(f"{title}: training of {row}", text, views, columns=3))
    return charts, _remarks(problems, wanted)


def _folders(record: Record, role: Role) -> list[str]:
    """The folders of the models of a role that were trained for a record, relative to the output folder."""
    paths = [Path(checkpoint.path) for checkpoint in record.checkpoints if checkpoint.role == role]
    return [path.parent.as_posix() for path in paths if not path.is_absolute()]  # absolute ones were given


def _remarks(problems: list[str], wanted: int) -> list[str]:
    if not problems:
        return []
    more = f", and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return [f"Training curves left out, {len(problems)} of {wanted}: {'; '.join(problems[:NAMED])}{more}."]


def _add(training: Training, seed: int, folder: str, output: Path) -> str:
    """Add the curve of a seed, thinned; returns what is wrong with it, if something is."""
    try:
        points = _read(output, folder)
        steps = int(points[-1]["step"])
        if training.steps not in (0, steps):
            return f"it ends at step {steps}, those of other seeds at step {training.steps}"
        _, losses = thinned(points, steps, Path(folder))
    except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        return "missing" if isinstance(error, FileNotFoundError) else f"damaged ({reason(error)})"
    training.steps = steps
    training.folders.add(Path(folder).name)
    training.seeds[seed] = losses
    return ""


def _read(output: Path, folder: str) -> Points:
    """The points of a curve. Raises `OSError` or `ValueError` if it is damaged or outside the output folder."""
    place = (output / folder / CURVE).resolve(strict=True)
    if not place.is_relative_to(output.resolve()):
        raise ValueError("it lies outside the output folder")
    points = []
    for number, line in enumerate(read_text(place).splitlines(), 1):
        point = json.loads(line)
        if not isinstance(point, dict) or not all(isinstance(value, int | float) for value in point.values()):
            raise ValueError(f"line {number} does not hold numbers")
        points.append({key: value for key, value in point.items() if key == "step" or abs(value) <= 1e30})
    if not points or not 1 <= points[-1]["step"] <= 1e12:
        raise ValueError("it has no steps")
    return points


def _references() -> list[Curves]:
    return [read_curves(path) for path in sorted((REFERENCE / "curves").glob("*.jsonl"))]


def _views(training: Training, references: list[Curves], before: int) -> list[Values]:
    """A panel per loss; `before` is the number of panels beside which they stand."""
    curves = next(
        (found for found in references if any(seed.folder in training.folders for seed in found.seeds.values())), None
    )
    band = Band(curves) if curves and len(curves.seeds) >= MIN_SEEDS and curves.steps == training.steps else None
    views = []
    for loss in LOSSES[training.role]:
        points = [point for seed, losses in training.seeds.items() for point in _points(training, seed, losses, loss)]
        if points:
            views.append(_view(training, loss, points, _band(band, loss), before + len(views)))
    return views


def _points(training: Training, seed: int, losses: dict[str, list[float]], loss: str) -> list[Values]:
    means = losses.get(loss, [])
    return [
        {"step": training.steps * (window + 1) / len(means), "loss": mean, "seed": f"seed {seed}"}
        for window, mean in enumerate(means)
    ]


def _band(band: Band | None, loss: str) -> list[Values]:
    """Where another seed of the reference would lie, window by window."""
    if band is None or loss not in band.losses:
        return []
    curves = band.curves
    ends = [band.interval(loss, slice(window, window + 1)) for window in range(curves.windows)]
    return [
        {"step": curves.steps * (window + 1) / curves.windows, "low": low, "high": high}
        for window, (low, high) in enumerate(ends)
    ]


def _view(training: Training, loss: str, points: list[Values], band: list[Values], number: int) -> Values:
    values = [point["loss"] for point in points]
    # Of the band, what is not far from the curves: with few seeds it is wide
    spread = max(values) - min(values)
    ends = [end for at in band for end in (at["low"], at["high"])]
    near = [end for end in ends if min(values) - spread / 4 <= end <= max(values) + spread / 4]
    y_range = Range.around([*values, *near], margin=0.04)
    x = Range(0, training.steps).axis("step", "training step", tickCount=4)
    y = y_range.axis("loss", f"{loss.replace('_', ' ')}, ↓ lower is better", tickCount=5)
    lines = {
        "data": data(points),
        "params": [zoom(f"zoom{number}")],
        "mark": {"type": "line", "strokeWidth": 1.5, "clip": True, "point": False},
        "encoding": {
            "x": x,
            "y": y,
            "color": {"field": "seed", "type": "nominal", "title": None},
            "tooltip": tooltip(seed="seed", step="step", loss=loss.replace("_", " ")),
        },
    }
    layers = [lines]
    if band:
        floor, ceiling = y_range.ends
        clipped = [
            {
                "step": at["step"],
                "low": min(max(at["low"], floor), ceiling),
                "high": max(min(at["high"], ceiling), floor),
            }
            for at in band
        ]
        area = {
            "data": data(clipped),
            "mark": {"type": "area", "color": CONTEXT, "opacity": 0.3, "clip": True},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
        }
        layers = [area, lines]
    heading = f"{training.role}" + (", band: the reference's seeds" if band else "")
    return {"title": heading, "width": 220, "height": PANEL_HEIGHT - 40, "layer": layers}
