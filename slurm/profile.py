"""Profiles: what a job of each kind gets on a cluster. YAML files, checked when read.

A user's own file only holds what differs from `profiles/slurm.yaml` (or `profiles/local.yaml`, if it says
`cluster: local`). Values are looked up in the kind first, then at the top level.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from slurm.stage import SlurmError
from slurm.states import slurm_answers

ANNOUNCED_EARLY = 60  # seconds, as sbatch's manual says of --signal
PACKAGED = Path(__file__).parent / "profiles"
OWN_OPTIONS = ("array", "dependency", "error", "job-name", "kill-on-invalid-dep", "open-mode", "output", "signal")


def _minutes(value: Any) -> Any:
    """Minutes, or Slurm's [DAYS-]HOURS:MINUTES[:SECONDS], as minutes."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", str(value))
    if match is None:
        return value
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + (seconds > 0)


class Settings(BaseModel):
    """What a job gets. None: Slurm's own default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 0
    gres: str | None = None
    """instead of gpus_per_node where a cluster wants a type, e.g. gpu:a100:4"""
    tasks_per_node: PositiveInt | None = None
    """processes per node; None: one per GPU"""
    cpus_per_task: PositiveInt = 1
    memory: str | None = None
    """per node, e.g. 64G"""
    time: Annotated[PositiveInt, BeforeValidator(_minutes)] = 60
    """limit of one life in minutes, or [DAYS-]HH:MM[:SS]; longer work goes on in the next life"""
    signal_delay: PositiveInt = 120
    """seconds before the limit at which a stage is asked to save its state"""
    lives_without_progress: PositiveInt = 3
    """lives in a row that may pass without progress before a job is given up"""
    array_parallelism: PositiveInt | None = None
    """jobs of one array that run at once; on cluster local: all jobs"""
    setup: list[str] = []
    """shell lines before the job's command, e.g. module load cuda"""
    python: str | None = None
    """command that starts Python on the nodes, e.g. apptainer exec --nv image.sif python; None: this one"""
    environment: dict[str, str] = {}
    """variables of the job, e.g. NCCL_SOCKET_IFNAME"""
    sbatch: dict[str, str] = {}
    """further options of sbatch, e.g. reservation: x; the value true makes a bare flag"""
    srun: list[str] = []
    """further arguments of srun, e.g. --cpu-bind=none"""

    @property
    def gpus(self) -> int:
        """GPUs per node, however asked for."""
        match = re.search(r"gpu(?::[^:,]+)?:(\d+)", self.gres or "")
        return int(match[1]) if match else self.gpus_per_node

    @property
    def tasks(self) -> int:
        """Processes per node."""
        return self.tasks_per_node or max(self.gpus, 1)


class Profile(Settings):
    """A profile as read: settings of all jobs, and of each kind of job where they differ."""

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm: jobs; local: processes on this machine; debug: one stage after the other in this process"""
    kinds: dict[str, dict[str, Any]] = {}

    def settings(self, kind: str) -> Settings:
        """What a job of this kind gets."""
        if kind not in self.kinds:
            raise SlurmError(f"the profile has no kind {kind!r}; it has: {', '.join(self.kinds) or 'none'}")
        shared = self.model_dump(exclude={"cluster", "kinds"})
        settings = _validated(Settings, _merged(shared, self.kinds[kind]), f"kinds.{kind}")
        for option in settings.sbatch:
            if option.lstrip("-") in OWN_OPTIONS:
                raise SlurmError(f"kinds.{kind}: sbatch.{option} is set by the launcher and cannot be changed")
        if settings.signal_delay + ANNOUNCED_EARLY >= settings.time * 60:
            raise SlurmError(
                f"kinds.{kind}: signal_delay {settings.signal_delay} s leaves nothing of time {settings.time} min, "
                f"for Slurm may give its signal up to {ANNOUNCED_EARLY} s early"
            )
        return settings


def user_folder() -> Path:
    """Where a user's own profiles lie."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "imagefolder"


def load_profile(profile: str | Path | None = None, overrides: Iterable[str] = ()) -> Profile:
    """A profile by name or file, with values overridden.

    Args:
        profile: a file, or the name of one in ~/.config/imagefolder or slurm/profiles. None: the user's `default` if
            there is one, else `slurm` where a Slurm answers, else `local`.
        overrides: KEY=VALUE, for all kinds, or KIND.KEY=VALUE for one; `environment.NAME=VALUE` and the like reach
            into a mapping.

    Raises:
        SlurmError: no such profile; a key or value it cannot have.
    """
    path = _find(profile)
    values = _read(path)
    if path.parent != PACKAGED:
        base = PACKAGED / ("slurm.yaml" if values.get("cluster", "slurm") == "slurm" else "local.yaml")
        values = _over(_read(base), values)
    return changed(values, overrides, str(path))


def changed(values: dict[str, Any], overrides: Iterable[str], origin: str) -> Profile:
    """The profile of these values, with KEY=VALUE overrides."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SlurmError(f"override {text!r} is not KEY=VALUE")
        parts = key.split(".")
        if parts[0] in values.get("kinds", {}):
            parts.insert(0, "kinds")
        nested: Any = yaml.load(value, yaml.BaseLoader) if value[:1] in "[{" else value
        for part in reversed(parts):
            nested = {part: nested}
        if parts[0] not in ("kinds", "cluster"):  # for all kinds, also where a kind has a value of its own
            nested["kinds"] = {kind: nested.copy() for kind in values.get("kinds", {})}
        values = _over(values, nested)
    profile = _validated(Profile, _nulls(values), origin)
    for kind in profile.kinds:
        profile.settings(kind)
    return profile


def _find(profile: str | Path | None) -> Path:
    if profile is None:
        own = user_folder() / "default.yaml"
        if own.is_file():
            return own
        return PACKAGED / ("slurm.yaml" if shutil.which("sbatch") and slurm_answers() else "local.yaml")
    if Path(profile).suffix in (".yaml", ".yml") or Path(profile).is_file():
        return Path(profile)
    for folder in (user_folder(), PACKAGED):
        if (folder / f"{profile}.yaml").is_file():
            return folder / f"{profile}.yaml"
    known = sorted({path.stem for folder in (user_folder(), PACKAGED) for path in folder.glob("*.yaml")})
    raise SlurmError(f"no profile {profile!r}: neither a file nor one of {', '.join(known)}")


def _read(path: Path) -> dict[str, Any]:
    # BaseLoader leaves every value a string: else YAML takes 24:00:00 for a number of seconds, and no for False
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except OSError as error:
        raise SlurmError(f"profile {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SlurmError(f"profile {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values or {}, dict):
        raise SlurmError(f"profile {path} holds no keys; see {PACKAGED / 'slurm.yaml'}")
    return values or {}


def _nulls(values: dict[str, Any]) -> dict[str, Any]:
    """Without the keys set to nothing, which then have their defaults."""
    kept = {key: _nulls(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value not in ("", "null", "~", None)}


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key, all else replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _over(below[key], value) if both else value
    return merged


def _merged(shared: dict[str, Any], kind: dict[str, Any]) -> dict[str, Any]:
    """Settings of a kind over the shared ones; asking for GPUs one way takes back the other."""
    merged = _over(shared, kind)
    if "gpus_per_node" in kind and "gres" not in kind:
        merged["gres"] = None
    return merged


def _validated(model: type[Any], values: dict[str, Any], origin: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SlurmError(f"{origin}: unknown key {key!r}; known: {', '.join(model.model_fields)}") from None
        raise SlurmError(f"{origin}: {key}: {first['input']!r}: {first['msg']}") from None
