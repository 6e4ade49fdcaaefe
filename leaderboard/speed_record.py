"""The record of speed: one JSON document per benchmark and machine, kept like records of results."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from leaderboard.record import Amount, Count, Part, Run, Text

SPEED_SCHEMA_VERSION = 1
STEADY = 0.25  # of the median, between the quartiles of a benchmark that counts as steady

Seconds = Annotated[float, Field(ge=1e-12, le=1e30)]  # a measured duration, never zero


class SpeedRecord(Part):
    """The speed of one stage of one model on one machine: one benchmark of a pytest-benchmark file.

    Times are per call, which processes `images` images; quartiles are over the rounds.
    """

    model_config = ConfigDict(strict=True)

    schema_version: Literal[1] = Field(default=SPEED_SCHEMA_VERSION, description="version of this format")
    benchmark: Text = Field(description="pytest's id of the benchmark")
    group: Literal["stages", "folding", "growth"] = Field(description="what the benchmark is about")
    stage: Text = Field(min_length=1, description="what ran, e.g. 'encode' or 'sample: draw'")
    model: Text = Field(description="name in the zoo; '' without a model")
    scale: Literal["mini", "laptop", "small", "full", ""] = Field(
        default="", description="size of the model, 'full' as released; '' without a model, or in earlier records"
    )
    device: Literal["cpu", "cuda"] = Field(description="where it ran")
    dtype: Literal["float32", "bfloat16"] = Field(description="precision of the computation")
    batch: Count = Field(description="batch size")
    threads: Count = Field(ge=1, description="CPU threads")
    images: Count = Field(description="per call")
    tokens: Count = Field(description="per call, all branches together; 0 if none")
    flops: Amount = Field(description="operations needed per call; 0 if not meaningful")
    peak_flops: Amount = Field(description="FLOP/s of a plain matrix product in the same run and dtype")
    peak_memory_mib: Amount = Field(description="largest resident set (CPU) or allocated memory (GPU)")
    memory_growth_mib: Amount | None = Field(
        default=None, description="of which the case added this, beyond its model; None in earlier records"
    )
    order: Literal["folded", "unfolded", "one branch", "raster", ""] = Field(
        description="of the generator's tokens; '' without one"
    )
    positions: Count = Field(description="sequence length of the generator; 0 if none")
    growth: Literal["batch", "scales", "image size", ""] = Field(description="what grows; '' outside the group growth")
    growth_value: Amount = Field(description="how large that is; 0 outside the group growth")
    median_seconds: Seconds = Field(description="per call, over the rounds")
    q1_seconds: Seconds = Field(description="lower quartile")
    q3_seconds: Seconds = Field(description="upper quartile")
    rounds: Count = Field(ge=1, description="how often it was timed")
    attempts: Count = Field(default=1, ge=1, description="how often the rounds were repeated to be steady")
    run: Run = Field(description="how, when and where it was timed")

    @property
    def is_steady(self) -> bool:
        """Whether the quartiles lie close enough together that another measurement would give about the same."""
        return self.q3_seconds - self.q1_seconds <= STEADY * self.median_seconds

    @property
    def machine(self) -> tuple[str, str | None, int]:
        """CPU, GPU and threads. Times are comparable only if these are equal."""
        return self.run.cpu, self.run.gpu, self.threads

    @property
    def case(self) -> tuple[str, ...]:
        """What was measured, apart from the machine. Parts may be empty."""
        growth = f"growth with {self.growth or 'nothing'} {self.growth_value:g}"
        return (
            self.stage,
            self.model,
            self.device,
            self.dtype,
            f"batch {self.batch}",
            f"{self.images} images" if self.images != self.batch else "",
            self.order,
            {"stages": "", "folding": "folding", "growth": growth}[self.group],
        )

    @property
    def label(self) -> str:
        """The case in one line."""
        return ", ".join(part for part in self.case if part)

    @property
    def name(self) -> str:
        """File name stem: one record per case and machine. Repeating a benchmark replaces it."""
        machine = hashlib.sha256(repr(self.machine).encode()).hexdigest()[:8]
        parts = [re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in self.case]
        return "-".join(part for part in (*parts, machine) if part)

    @property
    def seconds_per_image(self) -> float | None:
        return self.median_seconds / self.images if self.images else None

    @property
    def images_per_second(self) -> float | None:
        return self.images / self.median_seconds if self.images else None

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.median_seconds if self.tokens else None

    @property
    def gflops(self) -> float | None:
        """Billions of needed operations per second."""
        return self.flops / self.median_seconds / 1e9 if self.flops else None

    @property
    def fraction_of_peak(self) -> float | None:
        """Operations needed, divided by time and by the machine's rate in a plain matrix product."""
        return self.fraction_at(self.median_seconds)

    def fraction_at(self, seconds: float) -> float | None:
        """The fraction of the peak if a call took this long; None without a number of operations."""
        return self.flops / seconds / self.peak_flops if min(self.flops, self.peak_flops) >= 1 else None


def machine_text(machine: tuple[str, str | None, int]) -> str:
    """A `SpeedRecord.machine` in words."""
    cpu, gpu, threads = machine
    return f"{gpu or 'no GPU'}, {cpu}, {threads} thread{'' if threads == 1 else 's'}"
