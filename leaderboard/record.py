"""The record: one JSON document per result, holding a number's value and everything needed to trace it.

A record is what a recipe writes and what the leaderboard reads; the two share nothing else. All models are strict and
refuse unknown fields, so that a record from another schema version is an error and never half-read.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1


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
    positions: int = Field(description="sequence length of the generator")
    steps: int = Field(description="forward passes of the generator per sampled image")
    bits: float = Field(description="tokens x log2(codebook size)")
    tokenizer_parameters: int
    generator_parameters: int


class Checkpoint(_Model):
    """A weight file a number was computed with."""

    role: Literal["tokenizer", "generator", "teacher", "extractor"]
    path: str = Field(description="relative to the output folder")
    sha256: str
    selection: str = Field(description="the rule by which this state was chosen, e.g. 'EMA weights of the last step'")


class Cost(_Model):
    """Time and memory of the run: the only part of a record, with `run`, that differs between equal runs."""

    tokenizer_train_seconds: float
    generator_train_seconds: float
    evaluation_seconds: float
    samples_per_second: float = Field(description="sampling end to end: transformer, token draws and decoder")
    sample_batch: int = Field(description="batch size at which samples_per_second was measured")
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
    status: Literal["finished", "failed"]
    reason: str | None = Field(default=None, description="why it failed")
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
    def name(self) -> str:
        """File name stem: one record per row, scale, data set and seed; a repeated run replaces it."""
        data = f"{self.dataset.name}-{self.dataset.sha256[:8]}"
        return f"{self.table}-{self.row}-{self.scale}-{data}-seed{self.seed}"
