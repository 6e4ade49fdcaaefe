"""The resources of a job, validated so that no value of a profile adds a line or a command to a batch file."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from imagefolder.errors import printable, shortened
from slurm.stage import SlurmError

LONGEST = 100_000
"""characters of a value; a variable has at most 131,072 on Linux"""
MOST_GPUS = 1_000
# what the launcher sets itself, and what would keep it from learning the id of a job
OWN_OPTIONS = ("array", "dependency", "error", "job-name", "kill-on-invalid-dep", "open-mode", "output", "signal")
OWN_OPTIONS += ("clusters", "help", "parsable", "quiet", "test-only", "usage", "version", "wait", "wrap")
OWN_SRUN = ("output", "error")


def _line(value: str) -> str:
    if "\n" in value or printable(value) != value:
        raise ValueError("must be one line, without control characters")
    if len(value) > LONGEST:
        raise ValueError(f"must have at most {LONGEST:,} characters")
    return value


def _shell(value: str) -> str:
    _line(value.replace("\t", " "))
    return value


def _word(value: str) -> str:
    if re.search(r"\s|['\"\\]", _line(value)):
        raise ValueError("must be one word, without quotes or backslashes")
    return value


def _option_value(value: str) -> str:
    if "\\" in _line(value):
        raise ValueError("must not contain a backslash, which Slurm would drop")
    return value


def _option(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", name):
        raise ValueError("names of sbatch options consist of letters, digits and dashes, without leading dashes")
    return name


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("names of variables consist of letters, digits and _, and do not start with a digit")
    return name


def _memory(value: str) -> str:
    if not re.fullmatch(r"[0-9]{1,15}([KMGT]B?)?", value, re.IGNORECASE):
        raise ValueError("must be a number of megabytes, or a number followed by K, M, G or T")
    return value


def _gres(value: str) -> str:
    if (_gpus_in(_word(value)) or 0) > MOST_GPUS:
        raise ValueError(f"must request at most {MOST_GPUS:,} GPUs")
    return value


def _srun(value: str) -> str:
    if not re.match(r"--?[A-Za-z]", _line(value)):
        raise ValueError("must be one option, like --cpu-bind=none: srun would run anything else as the command")
    if value.startswith(("-o", "-e")) or (value.startswith("--") and _taken(value[2:].partition("=")[0], OWN_SRUN)):
        raise ValueError("is set by the launcher and cannot be changed")
    return value


def _minutes(value: Any) -> Any:
    """Minutes, or Slurm's [DAYS-]HOURS:MINUTES[:SECONDS], as minutes."""
    match = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9}):(\d\d)(?::(\d\d))?", str(value))
    if match is None:
        return value
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + (seconds > 0)


def _gpus_in(gres: str) -> int | None:
    match = re.search(r"gpu(?::[^:,]+)?:(\d{1,9})", gres)
    return int(match[1]) if match else None


def _taken(option: str, own: tuple[str, ...]) -> bool:
    """Whether an option is one of the launcher's own, or an abbreviation of one."""
    return any(name.startswith(option) for name in own)


Line = Annotated[str, AfterValidator(_line)]
Shell = Annotated[str, AfterValidator(_shell)]
Word = Annotated[str, AfterValidator(_word)]
Model = TypeVar("Model", bound=BaseModel)


class JobSettings(BaseModel):
    """Resources and options of a job. None: Slurm's default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    nodes: Annotated[int, Field(gt=0, le=100_000)] = 1
    gpus_per_node: Annotated[int, Field(ge=0, le=MOST_GPUS)] = 0
    gres: Annotated[str, AfterValidator(_gres)] | None = None
    """instead of gpus_per_node where a cluster requires a GPU type, e.g. gpu:a100:4"""
    tasks_per_node: Annotated[int, Field(gt=0, le=10_000)] | None = None
    """processes per node; None: one per GPU"""
    cpus_per_task: Annotated[int, Field(gt=0, le=10_000)] = 1
    memory: Annotated[str, AfterValidator(_memory)] | None = None
    """per node, e.g. 64G"""
    time: Annotated[int, Field(gt=0, le=3650 * 1440), BeforeValidator(_minutes)] = 60
    """limit of one attempt in minutes, or [DAYS-]HH:MM[:SS]; longer work resumes in the next attempt"""
    signal_delay: Annotated[int, Field(gt=0, le=65_535)] = 120
    """seconds before the limit at which a stage is asked to save its state; Slurm ignores more than 65,535"""
    restarts_without_progress: Annotated[int, Field(gt=0, le=1_000_000)] = 3
    """restarts in a row without progress after which a job is given up"""
    array_parallelism: Annotated[int, Field(gt=0, le=1_000_000)] | None = None
    """jobs of an array that run at the same time; on cluster local: of all jobs"""
    setup: list[Shell] = []
    """shell lines before the job's command, e.g. module load cuda"""
    python: Shell | None = None
    """command that starts Python on the nodes, e.g. apptainer exec --nv image.sif python; None: this one"""
    environment: dict[Annotated[str, AfterValidator(_variable)], Line] = {}
    """environment variables of the job, e.g. NCCL_SOCKET_IFNAME; their values are secret and never shown"""
    sbatch: dict[Annotated[str, AfterValidator(_option)], Annotated[str, AfterValidator(_option_value)]] = {}
    """more options of sbatch, e.g. reservation: x; the value true makes a bare flag"""
    srun: list[Annotated[str, AfterValidator(_srun)]] = []
    """more arguments of srun, e.g. --cpu-bind=none"""

    @model_validator(mode="after")
    def _keeps_the_options_of_the_launcher(self) -> JobSettings:
        for option in self.sbatch:
            if _taken(option, OWN_OPTIONS):
                raise ValueError(f"sbatch.{option} is set by the launcher and cannot be changed")
        return self

    @property
    def gpus(self) -> int:
        """GPUs per node, however they were requested."""
        named = _gpus_in(self.gres or "")
        return self.gpus_per_node if named is None else named

    @property
    def tasks(self) -> int:
        """Processes per node."""
        return self.tasks_per_node or max(self.gpus, 1)


def validated(model: type[Model], values: dict[str, Any], origin: str) -> Model:
    """A model of these values. Raises `SlurmError` with the origin, key and value of the first wrong one."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = [str(part) for part in first["loc"] if part != "[key]"]
        # a variable's name may contain its value, if somebody has written = instead of :
        key = ".".join(f"{name}=***" if equals else name for name, equals, _ in (part.partition("=") for part in place))
        if first["type"] == "extra_forbidden":
            raise SlurmError(f"{origin}: unknown key {key!r}; known: {', '.join(model.model_fields)}") from None
        parts = [origin, key, _shown(first["input"], place), first["msg"].removeprefix("Value error, ")]
        raise SlurmError(": ".join(part for part in parts if part)) from None


def _shown(value: Any, place: list[str]) -> str:
    """A value for a message. What may be a variable of the job, or contain one, is secret."""
    if isinstance(value, dict | list):
        return "" if not place else f"a {'mapping' if isinstance(value, dict) else 'list'}"
    if not place or "environment" in place or "environment" in str(value):
        return ""
    return short(value)


def short(value: Any) -> str:
    """The repr of a value, in at most 120 characters."""
    return shortened(repr(value), 120)
