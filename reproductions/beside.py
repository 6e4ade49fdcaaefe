"""What the trainings of a run say beside those of the reference that ships with the project."""

from __future__ import annotations

from pathlib import Path

from imagefolder.distributed import is_main
from imagefolder.progress import console
from imagefolder.training.curve import Watch
from leaderboard.bands import BandWatch, find_band
from leaderboard.reference_files import proxy_accuracy
from leaderboard.store import RecordError
from reproductions.row import Row, TrainedModel

ACCURACY_BAND = 0.05  # another machine's arithmetic moves a proxy's accuracy by under 0.01; wrong labels, by far more


def watch_of(row: Row, trained: TrainedModel) -> Watch | None:
    """What follows a model's training along the reference's band and prints where its losses lie; None without one."""
    title = row.title(trained.folder.name)
    try:
        band = find_band(
            trained.role,
            trained.identity,
            table=row.table,
            row=row.recipe.row,
            scale=row.scale.name,
            dataset=row.dataset,
        )
    except RecordError as error:  # the training does not depend on it
        if is_main():
            console.print(f"{title}: not compared with the reference: {error}")
        return None
    if band is None:
        return None
    watch = BandWatch(band)

    def follow(step: int, values: dict[str, float]) -> None:
        if line := watch.add(step, values):
            console.print(f"{title}: {line}")

    return follow


def print_accuracy(row: Row, proxy: Path, accuracy: float) -> None:
    """Print whether a proxy classifies test images as well as the reference's; nothing if the reference has none.

    The teacher and the extractor are the first to be trained, and the first to show wrong labels.
    """
    try:
        reference = proxy_accuracy(row.shared.name, proxy.stem)
    except RecordError as error:
        console.print(f"{proxy.stem}: not compared with the reference: {error}")
        return
    if reference is None:
        return
    found = f"{proxy.stem}: test accuracy {accuracy:.3f}"
    if abs(accuracy - reference) <= ACCURACY_BAND:
        console.print(f"{found}, as in the reference ({reference:.3f})")
    else:
        console.print(f"{found}, FAR FROM the reference's {reference:.3f}; are images or labels wrong?")
