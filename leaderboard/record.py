"""The record: one JSON document per result, holding a number's value and everything needed to trace it.

A record is what a recipe writes and what the leaderboard reads; the two share nothing else. All models are strict and
refuse unknown fields, so that a record from another schema version is an error and never half-read.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
SPEED_SCHEMA_VERSION = 1
SCALES = ("mini", "small", "full")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Protocol(_Model):
    """What a metric's name stands for. Two values may be compared only if their protocols are equal."""

    name: str = Field(description="e.g. 'proxy-gFID'")
    version: int
    description: str = Field(description="one sentence: which images against which, in which order and format")
    reference: str = Field(description="the real images used, e.g. 'digits/train'")
    evaluator: str = Field(description="program and version that computed it, e.g. 'torch-fidelity 0.4.0'")
    extractor: str | None = Field(description="name of the feature extractor; None for pixel metrics")
    extractor_sha256: str | None
    higher_is_better: bool

    @property
    def key(self) -> str:
        """Identity within which values are comparable, e.g. 'proxy-gFID@1/digits/train/proxy-cnn:ab12cd34'."""
        extractor = f"/{self.extractor}:{self.extractor_sha256[:8]}" if self.extractor and self.extractor_sha256 else ""
        return f"{self.name}@{self.version}/{self.reference}{extractor}"


class Metric(_Model):
    """One measured value."""

    protocol: Protocol
    value: float
    spread: float | None = Field(default=None, description="standard deviation within it (IS: over splits)")
    n_real: int = Field(description="number of real images used")
    n_generated: int = Field(description="number of reconstructed or generated images used")
    floor: float | None = Field(default=None, description="the same metric between two sets of real images")


class CodebookUsage(_Model):
    """Codebook statistics of one branch at one scale, counted over all tokens of the evaluated images."""

    branch: int
    scale: int = Field(description="side of the token map, e.g. 3 for 3x3")
    position: int = Field(description="index of the scale in the list of scales")
    tokens: int = Field(description="how many tokens were counted")
    used: float = Field(description="share of the codebook hit at least once, 0..1")
    perplexity: float = Field(description="exp of the entropy of the hit counts, 1..codebook size")


class Dataset(_Model):
    """The images a result is about."""

    name: str
    sha256: str = Field(description="hash over all file names, labels and pixels or file contents")
    n_train: int
    n_test: int
    classes: int
    image_size: int


class Size(_Model):
    """What the table calls length, steps and parameters."""

    tokens: int = Field(description="discrete tokens per image, all branches together")
    positions: int | None = Field(default=None, description="sequence length of the generator; None without one")
    steps: int | None = Field(default=None, description="forward passes of the generator per sampled image")
    bits: float = Field(description="tokens x log2(codebook size)")
    tokenizer_parameters: int
    generator_parameters: int | None = None


class Checkpoint(_Model):
    """A weight file a number was computed with."""

    role: Literal["tokenizer", "generator", "teacher", "extractor"]
    path: str = Field(description="relative to the output folder")
    sha256: str
    selection: str = Field(description="the rule by which this state was chosen, e.g. 'EMA weights of the last step'")


class Cost(_Model):
    """Time and memory of the run: the only part of a record, with `run`, that differs between equal runs."""

    tokenizer_train_seconds: float | None = Field(default=None, description="None where weights were given")
    generator_train_seconds: float | None = Field(default=None, description="the same, and for a row without generator")
    evaluation_seconds: float
    samples_per_second: float | None = Field(
        default=None, description="sampling end to end: transformer, token draws and decoder"
    )
    sample_batch: int | None = Field(default=None, description="batch size at which samples_per_second was measured")
    tokenizer_shared: bool = Field(description="the tokenizer was trained once for several rows")
    peak_memory_mib: float = Field(description="largest resident set (CPU) or allocated memory (GPU) of any stage")


class Run(_Model):
    """When, where and with what the record was made."""

    started: str = Field(description="ISO 8601, UTC")
    finished: str
    command: str
    git_commit: str | None
    git_dirty: bool | None
    packages: dict[str, str]
    python: str
    platform: str
    cpu: str
    threads: int
    gpu: str | None
    memory_gib: float
    processes: int = Field(default=1, description="that worked together, e.g. one per GPU")
    execution: dict[str, Any] = Field(
        default={}, description="how training was carried out: micro_batch, activation_checkpointing, compile"
    )


class Record(_Model):
    """One row of one table at one scale with one seed."""

    schema_version: Literal[1] = SCHEMA_VERSION
    table: str = Field(description="recipe script, e.g. 'table2'")
    row: str = Field(description="row within it, e.g. 'imagefolder'")
    label: str = Field(description="name shown to people")
    note: str = Field(description="one sentence: what the row is and how it differs from its neighbours")
    order: int = Field(default=0, description="place of the row in its table; equal places are ordered by row name")
    reported_system: str | None = Field(default=None, description="its counterpart among the reported systems")
    scale: Literal["mini", "small", "full"]
    seed: int
    status: Literal["finished", "failed", "not run"]
    reason: str | None = Field(default=None, description="why it failed or was not run, e.g. which weights are absent")
    config: dict[str, Any] = Field(description="the complete resolved configuration")
    config_sha256: str
    dataset: Dataset
    size: Size | None = None
    checkpoints: list[Checkpoint] = []
    metrics: list[Metric] = []
    codebook_usage: list[CodebookUsage] = []
    pictures: dict[str, str] = Field(default={}, description="caption -> PNG path relative to the output folder")
    cost: Cost | None = None
    run: Run

    @property
    def machine(self) -> tuple[str, str | None, int, int]:
        """What must be equal for times and memory to be comparable: CPU, GPU, threads and processes."""
        return self.run.cpu, self.run.gpu, self.run.threads, self.run.processes

    @property
    def name(self) -> str:
        """File name stem: one record per row, scale, data set and seed; a repeated run replaces it."""
        data = f"{self.dataset.name}-{self.dataset.sha256[:8]}"
        return f"{self.table}-{self.row}-{self.scale}-{data}-seed{self.seed}"


class SpeedRecord(_Model):
    """How fast one stage of one model ran on one machine: one benchmark of a pytest-benchmark file.

    Times are of one call, which processes `images` images; quartiles are over the rounds.
    """

    model_config = ConfigDict(strict=True)

    schema_version: Literal[1] = SPEED_SCHEMA_VERSION
    benchmark: str = Field(description="pytest's id of the benchmark")
    group: Literal["stages", "folding", "growth"]
    stage: str = Field(min_length=1, description="what ran, e.g. 'encode' or 'sample: draw'")
    model: str = Field(description="name in the zoo; '' where none took part")
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    batch: int = Field(ge=0)
    threads: int = Field(ge=1)
    images: int = Field(ge=0, description="per call")
    tokens: int = Field(ge=0, description="per call, all branches together; 0 if none")
    flops: float = Field(ge=0, description="operations needed per call; 0 if not meaningful")
    peak_flops: float = Field(ge=0, description="FLOP/s of a plain matrix product in the same run and dtype")
    peak_memory_mib: float = Field(ge=0, description="largest resident set (CPU) or allocated memory (GPU)")
    order: Literal["folded", "unfolded", "one branch", "raster", ""]
    positions: int = Field(ge=0, description="sequence length of the generator; 0 if none")
    growth: Literal["batch", "scales", "image size", ""]
    growth_value: float = Field(ge=0)
    median_seconds: float = Field(gt=0)
    q1_seconds: float = Field(gt=0)
    q3_seconds: float = Field(gt=0)
    rounds: int = Field(ge=1)
    run: Run

    @property
    def machine(self) -> tuple[str, str | None, int]:
        """What must be equal for times to be comparable: CPU, GPU and threads."""
        return self.run.cpu, self.run.gpu, self.threads

    @property
    def case(self) -> tuple[str, ...]:
        """What was measured, apart from the machine; for people once the empty parts are gone."""
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
        """File name stem: one record per case and machine; a repeated run replaces it."""
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
        """Needed operations divided by time and by what the machine reached in a plain matrix product."""
        return self.fraction_at(self.median_seconds)

    def fraction_at(self, seconds: float) -> float | None:
        """The fraction of the peak that a call of this length would stand for; None where there is none."""
        return self.flops / seconds / self.peak_flops if self.flops and self.peak_flops else None


def machine_text(machine: tuple[str, str | None, int]) -> str:
    """A `SpeedRecord.machine` for people."""
    cpu, gpu, threads = machine
    return f"{gpu or 'no GPU'}, {cpu}, {threads} thread{'' if threads == 1 else 's'}"
