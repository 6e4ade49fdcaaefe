"""Whether a training's losses lie where those of the reference's seeds do, told while it runs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leaderboard.record import Dataset
from leaderboard.reference_files import Curves, Role, curves_in, curves_of, reference_records, window_of
from leaderboard.significance import MIN_SEEDS, PREDICTED, prediction_interval
from leaderboard.text import differences_text

PARTS = 8  # of a training, after each of which its losses are compared
FIRST_SECONDS = 40.0  # after which they are compared at the latest


@dataclass(frozen=True)
class Band:
    """The curves of the reference that a training is compared with, and how its settings differ from theirs."""

    curves: Curves
    other_settings: str = ""

    @property
    def losses(self) -> list[str]:
        """The values that all seeds have."""
        first, *others = (seed.losses for seed in self.curves.seeds.values())
        return [name for name in first if all(name in other for other in others)]

    def interval(self, name: str, windows: slice) -> tuple[float, float]:
        """Where the mean of a loss over some windows lies for another seed; all losses do with a probability of
        `PREDICTED` together. Losses that are always positive differ by factors, so their logarithms are compared."""
        level = 1 - (1 - PREDICTED) / len(self.losses)
        means = [statistics.fmean(seed.losses[name][windows]) for seed in self.curves.seeds.values()]
        if min(means) > 0:
            low, high = prediction_interval([math.log(mean) for mean in means], level=level)
            return math.exp(max(low, -700)), math.exp(min(high, 700))
        return prediction_interval(means, level=level)


def find_band(
    role: Role, identity: dict[str, Any], *, table: str, row: str, scale: str, dataset: Dataset
) -> Band | None:
    """The band of a training: of the model with the same identity but for the seed, else of the same row and number of
    steps with other settings. None if the reference has neither, or fewer than `MIN_SEEDS` seeds.

    Args:
        identity: what decides the model's weights (`TrainedModel.identity`).
        table, row, scale, dataset: of the row that trains it.

    Raises RecordError for a damaged file.
    """
    curves = curves_of(role, identity)
    if curves is None:
        folders = {
            Path(checkpoint.path).parent.name
            for record in reference_records(table, scale, "", dataset)
            for checkpoint in record.checkpoints
            if (record.row, checkpoint.role) == (row, role)
        }
        curves = curves_in(role, folders) if folders else None
    if curves is None or len(curves.seeds) < MIN_SEEDS or curves.steps != identity["training"]["steps"]:
        return None
    return Band(curves, differences_text(curves.identity, identity))


@dataclass
class BandWatch:
    """Follows a training along its band. `add` gets every point of its curve in turn, and returns what there is to say.

    Losses are compared after each of `PARTS` parts of the training, averaged over it. The first comparison is told, and
    later ones if two in a row are no longer as told. A training that was resumed is compared from there on.
    """

    band: Band
    clock: Callable[[], float] = time.monotonic
    _started: float | None = None
    _from: int = 0
    """first window of the part that is being followed"""
    _found: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    """loss -> window -> values"""
    _told: bool | None = None
    """whether the training was inside when it was last told"""
    _changed: int | None = None
    """the step at which it began to be otherwise"""

    def add(self, step: int, values: dict[str, float]) -> str | None:
        """Take the losses after a step; a line, if there is something to say."""
        curves = self.band.curves
        window = window_of(step, curves.steps, curves.windows)
        if self._started is None:
            self._started = self.clock()
            self._from = window and window + 1  # of a window that a resumed training begins within, points are missing
        for name in self.band.losses:
            if name in values:
                self._found.setdefault(name, {}).setdefault(window, []).append(values[name])
        complete = window + 1 if step == curves.steps else window
        late = self._told is None and self.clock() - self._started > FIRST_SECONDS
        if complete - self._from < (1 if late else max(1, curves.windows // PARTS)):
            return None
        windows = slice(self._from, complete)
        self._from = complete
        return self._tell(windows)

    def _tell(self, windows: slice) -> str | None:
        first, last = self._step(windows.start), self._step(windows.stop)
        within, without = self._compared(windows)
        inside = not without
        if self._told is None or inside == self._told:
            new, self._changed = self._told is None, None
            self._told = inside
            if not new:
                return None
            where = f"until step {last}, "
        elif self._changed is None:
            self._changed = first
            return None
        else:
            where, self._changed, self._told = f"since step {self._changed}, ", None, inside
        seeds = f"of {len(self.band.curves.seeds)} seeds"
        other = f"; other settings than the reference: {self.band.other_settings}" if self.band.other_settings else ""
        if inside:
            return f"{where}losses in the reference's band {seeds}: {', '.join(within)}{other}"
        same = other or "; settings and data are the reference's, so something else is not"
        return f"{where}OUTSIDE the reference's band {seeds}: {', '.join(without)}{same}"

    def _compared(self, windows: slice) -> tuple[list[str], list[str]]:
        """The losses inside and outside the band, each in words."""
        within, without = [], []
        for name in self.band.losses:
            values = [
                statistics.fmean(found)
                for window in range(windows.start, windows.stop)
                if (found := self._found.get(name, {}).get(window))
            ]
            if values:
                mean, (low, high) = statistics.fmean(values), self.band.interval(name, windows)
                rounded = any(math.isclose(mean, end, rel_tol=1e-3) for end in (low, high))  # the stored losses are
                inside = low <= mean <= high or rounded
                (within if inside else without).append(f"{name} {mean:.3g} ({low:.3g} to {high:.3g})")
        return within, without

    def _step(self, window: int) -> int:
        """The last step before a window."""
        return window * self.band.curves.steps // self.band.curves.windows
