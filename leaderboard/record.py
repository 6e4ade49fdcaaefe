"""The record: one JSON document per result, with the numbers and everything needed to trace them.

Recipes write records and the leaderboard reads them; the two share nothing else. All models are strict and refuse
unknown fields, so that a record of another schema version is an error and never half-read. Texts are one printable
line. Numbers are bounded far beyond anything measurable, so that no arithmetic on them overflows.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from imagefolder.errors import one_line, shortened

SCHEMA_VERSION = 1
SCALES = ("mini", "laptop", "small", "full")
PROXY_EXTRACTOR, PROXY_PREFIX = "proxy-cnn", "proxy-"
UNGUIDED_SUFFIX = " (unguided)"  # after the name of a metric: of samples drawn without guidance
LONGEST_BUDGET = 80  # characters of a budget in a file name
LONGEST = 10_000  # characters of a text; anything longer is neither a name nor a sentence
DEEPEST = 64  # levels of lists and dictionaries in a configuration


def _one_line(value: Any) -> Any:
    return one_line(value) if isinstance(value, str) else value


def _cut(value: Any) -> Any:
    return shortened(value, LONGEST) if isinstance(value, str) else value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # as JSON has it


def _nested(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse nesting that JSON can hold but that exceeds the recursion limit."""
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list | tuple))
        level = [item for items in inner for item in items]
        if not level:
            return value
    raise ValueError(f"nested more than {DEEPEST} deep")


Text = Annotated[str, Field(max_length=LONGEST), BeforeValidator(_one_line)]
# Error messages and command lines may be of any length; they are cut, so that the record can be written
CutText = Annotated[str, BeforeValidator(_cut)]
Budget = Annotated[str, Field(max_length=500, pattern=r"^([a-z_]+=[0-9.e+-]+( [a-z_]+=[0-9.e+-]+)*)?$")]
Settings = Annotated[dict[str, Any], AfterValidator(_nested)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(ge=-1e30, le=1e30)]
Amount = Annotated[float, Field(ge=0, le=1e30)]


_VARIANT = re.compile(r"(?P<metric>.+?) \[(?P<group>[^:\]]+): (?P<how>.+)\]")


class Part(BaseModel):
    """A part of a record: strict, immutable, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, source: object) -> Self:
        """Built from the attributes of `source` that are named like the fields, e.g. `Metric.of(measurement)`."""
        return cls.model_validate(source, from_attributes=True)


class Protocol(Part):
    """How a metric was computed. Two values may be compared only if their protocols are equal."""

    name: Text = Field(description="the metric, after 'proxy-' if the proxy extractor computed it, e.g. 'proxy-gFID'")
    version: Count = Field(description="of the protocol, raised whenever what the metric computes changes")
    description: Text = Field(description="one sentence: which images against which, in which order and format")
    reference: Text = Field(description="the real images used, e.g. 'digits/train'")
    evaluator: Text = Field(description="program and version that computed it, e.g. 'torch-fidelity 0.4.0'")
    extractor: Text | None = Field(description="name of the feature extractor; None for pixel metrics")
    extractor_sha256: Text | None = Field(description="hash of its weights; None without an extractor, or if not known")
    higher_is_better: bool = Field(description="false for distances")

    @property
    def is_proxy(self) -> bool:
        """Whether a small classifier of the data set takes the place of the published network."""
        return self.extractor == PROXY_EXTRACTOR

    @property
    def metric(self) -> str:
        """The published metric that the value is, or is the proxy of, e.g. 'gFID'."""
        return self.name.removeprefix(PROXY_PREFIX) if self.is_proxy else self.name

    @property
    def variant(self) -> tuple[str, str] | None:
        """For a metric that is deliberately not measured as everywhere in the suite, in what and how: ("format", "JPEG,
        quality 95") for 'proxy-gFID [format: JPEG, quality 95]'; otherwise None."""
        found = _VARIANT.fullmatch(self.name)
        return (found["group"], found["how"]) if found else None

    @property
    def usual_name(self) -> str:
        """The name without its variant."""
        found = _VARIANT.fullmatch(self.name)
        return found["metric"] if found else self.name

    @property
    def usual_metric(self) -> str:
        """`metric` without its variant."""
        return self.usual_name.removeprefix(PROXY_PREFIX) if self.is_proxy else self.usual_name

    @property
    def key(self) -> str:
        """The protocol in short, e.g. 'proxy-gFID@1/digits/train/proxy-cnn:ab12cd34'."""
        extractor = f"/{self.extractor}:{self.extractor_sha256[:8]}" if self.extractor and self.extractor_sha256 else ""
        return f"{self.name}@{self.version}/{self.reference}{extractor}"


class Metric(Part):
    """One measured value."""

    protocol: Protocol = Field(description="what was measured, and how")
    value: Number = Field(description="not rounded")
    spread: Amount | None = Field(
        default=None,
        description="standard deviation within one evaluation: over splits (IS), subsets (KID), sets of samples (gFID)",
    )
    n_real: Count = Field(description="number of real images used")
    n_generated: Count = Field(description="number of reconstructed or generated images used")
    floor: Number | None = Field(default=None, description="the same metric between two sets of real images")
    interval: Annotated[tuple[Number, Number] | None, BeforeValidator(_as_tuple)] = Field(
        default=None, description="95% bootstrap interval over images, of this seed alone; None: not computed"
    )


class CodebookUsage(Part):
    """Codebook statistics of one branch at one scale, counted over all tokens of the evaluated images."""

    branch: Count = Field(description="from 0; the last one is the semantic branch, if any is")
    scale: Count = Field(description="side of the token map, e.g. 3 for 3x3")
    position: Count = Field(description="index of the scale in the list of scales")
    tokens: Count = Field(description="how many tokens were counted")
    used: Amount = Field(le=1, description="share of the codebook hit at least once, 0..1")
    perplexity: Amount = Field(description="exp of the entropy of the hit counts, 1..codebook size")


class Dataset(Part):
    """The images that a model was trained and evaluated on."""

    name: Text = Field(description="of a built-in data set, or of the folder or file with the images")
    sha256: Text = Field(description="hash over all file names, labels and pixels or file contents")
    n_train: Count = Field(description="number of training images")
    n_test: Count = Field(description="number of test images")
    classes: Count = Field(description="number of classes")
    image_size: Count = Field(description="side of the square images in pixels")
    left_out: dict[Text, Count] = Field(default={}, description="reason -> number of files of the data folder left out")


class Size(Part):
    """Sequence length, sampling steps and parameters."""

    tokens: Count = Field(description="discrete tokens per image, all branches together")
    positions: Count | None = Field(default=None, description="sequence length of the generator; None without one")
    steps: Count | None = Field(default=None, description="forward passes of the generator per sampled image")
    bits: Amount = Field(description="tokens x log2(codebook size)")
    tokenizer_parameters: Count = Field(description="of encoder, quantizer and decoder")
    generator_parameters: Count | None = Field(default=None, description="of the transformer; None without one")


class Checkpoint(Part):
    """A weight file that the numbers were computed with."""

    role: Literal["tokenizer", "generator", "teacher", "extractor"] = Field(description="what the weights are for")
    path: Text = Field(description="relative to the output folder")
    sha256: Text = Field(description="hash of the file")
    selection: Text = Field(description="how this state was chosen, e.g. 'EMA weights of the last step'")


class Timed(Part):
    """A piece of a row's work, timed round by round when all else was done: quartiles over the rounds."""

    q1: Amount = Field(description="lower quartile")
    median: Amount = Field(description="over the rounds")
    q3: Amount = Field(description="upper quartile")
    rounds: Count = Field(ge=1, description="how often it was timed")
    memory_mib: Amount = Field(description="growth of resident (CPU) or allocated (GPU) memory, with models and data")


class Cost(Part):
    """Time and memory of the run. Repeating a run changes only this and `run`.

    The trainings are those of the row, beside which other rows may have trained. Everything about `sampling` and steps
    comes from the timing at the end; `samples_per_second` is its median, too, once it is done.
    """

    tokenizer_train_seconds: Amount | None = Field(default=None, description="None if weights were given")
    generator_train_seconds: Amount | None = Field(default=None, description="None without a generator, too")
    evaluation_seconds: Amount = Field(description="of all measurements of the row")
    samples_per_second: Amount | None = Field(
        default=None, description="end to end: transformer, drawing tokens, and decoder"
    )
    sample_batch: Count | None = Field(default=None, description="batch size at which samples_per_second was measured")
    tokenizer_shared: bool = Field(description="trained once and used by several rows")
    peak_memory_mib: Amount = Field(description="largest resident set (CPU) or allocated memory (GPU) of any stage")
    alone: bool | None = Field(
        default=None, description="the machine did nothing else during the timing; None: not timed, or not known"
    )
    other_cores: Amount | None = Field(default=None, description="cores that other processes kept busy meanwhile")
    threads: Count | None = Field(default=None, description="CPU threads of the timing; None: not timed")
    sampling: Timed | None = Field(default=None, description="samples per second at `sample_batch`")
    tokenizer_step: Timed | None = Field(default=None, description="seconds per training step")
    generator_step: Timed | None = Field(default=None, description="seconds per training step")

    @property
    def timed(self) -> dict[str, Timed]:
        """The pieces that were timed, by field."""
        pieces = {name: getattr(self, name) for name in ("sampling", "tokenizer_step", "generator_step")}
        return {name: piece for name, piece in pieces.items() if piece is not None}

    @property
    def tokenizer_step_seconds(self) -> float | None:
        return self.tokenizer_step and self.tokenizer_step.median

    @property
    def generator_step_seconds(self) -> float | None:
        return self.generator_step and self.generator_step.median

    @property
    def memory_mib(self) -> float | None:
        """What the piece that needs most memory takes; None if nothing was timed."""
        return max((piece.memory_mib for piece in self.timed.values()), default=None)


class Run(Part):
    """When, where and with which software the record was made."""

    started: Text = Field(description="ISO 8601, UTC")
    finished: Text = Field(description="ISO 8601, UTC")
    command: CutText = Field(description="the command line that repeats the run")
    git_commit: Text | None = Field(description="of the code; None outside a git repository")
    git_dirty: bool | None = Field(description="the code had changes that were not committed; None: not known")
    packages: dict[Text, Text] = Field(description="package -> version")
    python: Text = Field(description="version of Python")
    platform: Text = Field(description="operating system and architecture")
    cpu: Text = Field(description="name of the processor")
    threads: Count = Field(description="CPU threads that torch used")
    gpu: Text | None = Field(description="name of the GPU; None without one")
    memory_gib: Amount = Field(description="of the machine")
    processes: Count = Field(default=1, description="e.g. one per GPU")
    execution: Settings = Field(
        default={}, description="how training was executed: micro_batch, activation_checkpointing, compile"
    )
    code: dict[Text, Text] | None = Field(
        default=None, description="part of the code -> its sha256, e.g. 'tokenizer'; None in earlier records"
    )


def web_address(value: str) -> str:
    """The value, if it is a plain web address that may become a link; otherwise ValueError."""
    if not re.fullmatch(r"https?://[^\s<>\"'`\\]+", value):
        raise ValueError(f"{shortened(value)} is not a web address (https://...)")
    return value


class Added(Part):
    """Where the images of a row come from that was not made here, but measured from files."""

    author: Text = Field(default="", description="who made them; '' if not said")
    link: Annotated[Text, AfterValidator(web_address)] | None = Field(
        default=None, description="web address of the model"
    )
    samples: Text | None = Field(default=None, description="name of the folder or npz; None without samples")
    samples_sha256: Text | None = Field(default=None, description="over the pixels, whatever the file format")
    reconstructions: Text | None = Field(
        default=None, description="name of the folder or npz; None without reconstructions"
    )
    reconstructions_sha256: Text | None = Field(default=None, description="in the order of the test images")


def _each_metric_once(metrics: list[Metric]) -> list[Metric]:
    """Refuse a metric given twice: its seed would count twice."""
    numbers = Counter((m.protocol, m.n_real, m.n_generated) for m in metrics)
    if twice := [key[0].key for key, number in numbers.items() if number > 1]:
        raise ValueError(f"{twice[0]} is given twice")
    return metrics


def _each_place_once(usages: list[CodebookUsage]) -> list[CodebookUsage]:
    numbers = Counter((usage.branch, usage.position, usage.scale) for usage in usages)
    if twice := [place for place, number in numbers.items() if number > 1]:
        raise ValueError(f"branch {twice[0][0]} at position {twice[0][1]} is given twice")
    return usages


class Record(Part):
    """One row of one table at one scale with one seed."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="version of this format")
    table: Text = Field(description="recipe script, e.g. 'table2'")
    row: Text = Field(description="row of the table, e.g. 'imagefolder'")
    label: Text = Field(description="name shown in the report")
    note: Text = Field(description="one sentence: what the row is and how it differs from the other rows")
    order: int = Field(default=0, ge=0, lt=2**63, description="place in the table; ties are sorted by row name")
    reported_system: Text | None = Field(default=None, description="the published system that the row reproduces")
    scale: Literal["mini", "laptop", "small", "full"] = Field(description="sizes of models and trainings")
    budget: Budget = Field(
        default="", description="what differs from the scale's budget, e.g. 'steps=500 batch_size=16'; '' if nothing"
    )
    seed: int = Field(ge=-(2**64), le=2**64, description="of training and sampling")
    status: Literal["finished", "failed", "not run"] = Field(description="only finished rows have metrics")
    reason: CutText | None = Field(default=None, description="why the run failed or did not start")
    config: Settings = Field(description="the complete resolved configuration")
    config_sha256: Text = Field(description="hash of `config` as JSON with sorted keys, without spaces")
    dataset: Dataset = Field(description="the images")
    size: Size | None = Field(default=None, description="None if the row was not evaluated, or was added from files")
    checkpoints: list[Checkpoint] = Field(default=[], max_length=100, description="weights behind the numbers")
    metrics: Annotated[list[Metric], AfterValidator(_each_metric_once)] = Field(
        default=[], max_length=200, description="each protocol once"
    )
    codebook_usage: Annotated[list[CodebookUsage], AfterValidator(_each_place_once)] = Field(
        default=[], max_length=500, description="each branch and scale once"
    )
    class_accuracies: dict[Text, Annotated[Amount, Field(le=1)]] = Field(
        default={}, max_length=1000, description="class -> share of its samples that the extractor assigns to it"
    )
    notes: list[Text] = Field(default=[], max_length=100, description="what was not measured, and why")
    pictures: dict[Text, Text] = Field(
        default={}, max_length=100, description="caption -> PNG path relative to the output folder"
    )
    picture_sha256: dict[Text, Text] = Field(default={}, description="PNG path -> hash of the file, if known")
    cost: Cost | None = Field(default=None, description="None if the row was not evaluated, or was added from files")
    added: Added | None = Field(default=None, description="None for rows that were made here")
    run: Run = Field(description="how, when and where the row was made")

    @property
    def machine(self) -> tuple[str, str | None, int, int]:
        """CPU, GPU, threads and processes. Times and memory are comparable only if these are equal."""
        return self.run.cpu, self.run.gpu, self.run.threads, self.run.processes

    @property
    def name(self) -> str:
        """File name stem: one record per row, scale, budget, data set and seed. Repeating a run replaces it."""
        data = f"{self.dataset.name}-{self.dataset.sha256[:8]}"
        return f"{self.table}-{self.row}-{place_name(self.scale, self.budget)}-{data}-seed{self.seed}"

    @property
    def place(self) -> str:
        """Scale and budget in words: "mini", "mini [steps=500]"."""
        return f"{self.scale} [{self.budget}]" if self.budget else self.scale


def place_name(scale: str, budget: str) -> str:
    """Scale and budget as part of a file name: "mini", "mini-steps=500", or with a hash of a long budget."""
    name = budget.replace(" ", "-")
    if len(name) > LONGEST_BUDGET:
        name = f"budget-{hashlib.sha256(budget.encode()).hexdigest()[:12]}"
    return "-".join(filter(None, (scale, name)))
