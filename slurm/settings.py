"""What a job gets, checked so that no value of a profile adds a line or a command to a batch file."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from slurm.stage import UNPRINTABLE, SlurmError

LONGEST = 100_000
"""characters of a value; Linux takes no variable of more than 131,072"""
MOST_GPUS = 1_000
# what the launcher sets itself, and what would keep it from learning the number of a job, or from finding it again
OWN_OPTIONS = ("array", "dependency", "error", "job-name", "kill-on-invalid-dep", "open-mode", "output", "signal")
OWN_OPTIONS += ("clusters", "help", "parsable", "quiet", "test-only", "usage", "version", "wait", "wrap")
OWN_SRUN = ("output", "error")


def _line(value: str) -> str:
    if UNPRINTABLE.search(value):
        raise ValueError("must be one line, without control characters")
    if len(value) > LONGEST:
        raise ValueError(f"must have {LONGEST:,} characters at most")
    return value


def _shell(value: str) -> str:
    _line(value.replace("\t", " "))
    return value


def _word(value: str) -> str:
    if re.search(r"\s|['\"\\]", _line(value)):
        raise ValueError("must be one word, without quotes and backslashes")
    return value


def _option_value(value: str) -> str:
    if "\\" in _line(value):
        raise ValueError("must have no backslash, which Slurm would drop")
    return value


def _option(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", name):
        raise ValueError("names of sbatch options are letters, digits and dashes, without the dashes in front")
    return name


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("names of variables are letters, digits and _, with no digit in front")
    return name


def _memory(value: str) -> str:
    if not re.fullmatch(r"[0-9]{1,15}([KMGT]B?)?", value, re.IGNORECASE):
        raise ValueError("must be a number of megabytes, or one with K, M, G or T")
    return value


def _gres(value: str) -> str:
    if (_gpus_in(_word(value)) or 0) > MOST_GPUS:
        raise ValueError(f"must ask for {MOST_GPUS:,} GPUs at most")
    return value


def _srun(value: str) -> str:
    if not re.match(r"--?[A-Za-z]", _line(value)):
        raise ValueError("must be one option, like --cpu-bind=none: srun takes anything else for the command to run")
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
    """Whether an option is one of the launcher's own, or the beginning of one, which Slurm takes for it."""
    return any(name.startswith(option) for name in own)


Line = Annotated[str, AfterValidator(_line)]
Shell = Annotated[str, AfterValidator(_shell)]
Word = Annotated[str, AfterValidator(_word)]


class Settings(BaseModel):
    """What a job gets. None: Slurm's own default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    nodes: Annotated[int, Field(gt=0, le=100_000)] = 1
    gpus_per_node: Annotated[int, Field(ge=0, le=MOST_GPUS)] = 0
    gres: Annotated[str, AfterValidator(_gres)] | None = None
    """instead of gpus_per_node where a cluster wants a type, e.g. gpu:a100:4"""
    tasks_per_node: Annotated[int, Field(gt=0, le=10_000)] | None = None
    """processes per node; None: one per GPU"""
    cpus_per_task: Annotated[int, Field(gt=0, le=10_000)] = 1
    memory: Annotated[str, AfterValidator(_memory)] | None = None
    """per node, e.g. 64G"""
    time: Annotated[int, Field(gt=0, le=3650 * 1440), BeforeValidator(_minutes)] = 60
    """limit of one life in minutes, or [DAYS-]HH:MM[:SS]; longer work goes on in the next life"""
    signal_delay: Annotated[int, Field(gt=0, le=65_535)] = 120
    """seconds before the limit at which a stage is asked to save its state; more than 65,535 are none to Slurm"""
    lives_without_progress: Annotated[int, Field(gt=0, le=1_000_000)] = 3
    """lives in a row that may pass without progress before a job is given up"""
    array_parallelism: Annotated[int, Field(gt=0, le=1_000_000)] | None = None
    """jobs of one array that run at once; on cluster local: all jobs"""
    setup: list[Shell] = []
    """shell lines before the job's command, e.g. module load cuda"""
    python: Shell | None = None
    """command that starts Python on the nodes, e.g. apptainer exec --nv image.sif python; None: this one"""
    environment: dict[Annotated[str, AfterValidator(_variable)], Line] = {}
    """variables of the job, e.g. NCCL_SOCKET_IFNAME; their values are secrets and never shown"""
    sbatch: dict[Annotated[str, AfterValidator(_option)], Annotated[str, AfterValidator(_option_value)]] = {}
    """further options of sbatch, e.g. reservation: x; the value true makes a bare flag"""
    srun: list[Annotated[str, AfterValidator(_srun)]] = []
    """further arguments of srun, e.g. --cpu-bind=none"""

    @model_validator(mode="after")
    def _leaves_what_the_launcher_sets(self) -> Settings:
        for option in self.sbatch:
            if _taken(option, OWN_OPTIONS):
                raise ValueError(f"sbatch.{option} is set by the launcher and cannot be changed")
        return self

    @property
    def gpus(self) -> int:
        """GPUs per node, however asked for."""
        named = _gpus_in(self.gres or "")
        return self.gpus_per_node if named is None else named

    @property
    def tasks(self) -> int:
        """Processes per node."""
        return self.tasks_per_node or max(self.gpus, 1)


def validated(model: type[Any], values: dict[str, Any], origin: str) -> Any:
    """A model of these values. Raises `SlurmError` naming origin, key and value of the first that is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = [str(part) for part in first["loc"] if part != "[key]"]
        # a variable's name may hold its value too, where somebody has written = for :
        key = ".".join(f"{name}=***" if equals else name for name, equals, _ in (part.partition("=") for part in place))
        if first["type"] == "extra_forbidden":
            raise SlurmError(f"{origin}: unknown key {key!r}; known: {', '.join(model.model_fields)}") from None
        said = [origin, key, _shown(first["input"], place), first["msg"].removeprefix("Value error, ")]
        raise SlurmError(": ".join(part for part in said if part)) from None


def _shown(value: Any, place: list[str]) -> str:
    """A value for a message. What may be a variable of the job, or hold one, is a secret."""
    if isinstance(value, dict | list):
        return "" if not place else f"a {'mapping' if isinstance(value, dict) else 'list'}"
    if not place or "environment" in place or "environment" in str(value):
        return ""
    return short(value)


def short(value: Any) -> str:
    """A value as Python writes it, in 120 characters at most."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:119]}…"
