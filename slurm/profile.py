"""Profiles: the resources of each kind of job on a cluster. YAML files, validated when read.

A user's own file only contains what differs from `profiles/slurm.yaml` (or from `profiles/local.yaml`, with
`cluster: local`). A value in a kind takes precedence over one at the top level.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from slurm.events import Cluster
from slurm.files import read
from slurm.settings import JobSettings, short, validated
from slurm.stage import SlurmError
from slurm.states import slurm_answers

ANNOUNCED_EARLY = 60  # seconds, by which Slurm may send --signal early, according to sbatch's manual
PACKAGED = Path(__file__).parent / "profiles"
LARGEST = 100_000
"""bytes of a profile"""
DEEPEST = 6
"""nesting of mappings and lists; kinds, a kind and its environment make four levels"""
MAPPINGS = ("environment", "sbatch")
LISTS = ("setup", "srun")
NOTHING = ("", "null", "~", None)


class Profile(JobSettings):
    """A profile as read: settings of all jobs, and those of each kind of job that differ."""

    cluster: Cluster = "slurm"
    """slurm: jobs; local: processes on this machine"""
    kinds: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def settings(self, kind: str, origin: str = "profile") -> JobSettings:
        """The settings of this kind of job. Raises `SlurmError`, naming the origin, for impossible ones."""
        if kind not in self.kinds:
            raise SlurmError(f"the profile has no kind {kind!r}; it has: {', '.join(self.kinds) or 'none'}")
        shared = self.model_dump(exclude={"cluster", "kinds"})
        settings = validated(JobSettings, _merged(shared, self.kinds[kind]), f"{origin}: kinds.{kind}")
        if settings.signal_delay + ANNOUNCED_EARLY >= settings.time * 60:
            raise SlurmError(
                f"{origin}: kinds.{kind}: signal_delay {settings.signal_delay} s leaves nothing of time "
                f"{settings.time} min, as Slurm may send its signal up to {ANNOUNCED_EARLY} s early"
            )
        return settings


class _Loader(yaml.BaseLoader):
    """Strings, lists and mappings only: otherwise YAML reads 24:00:00 as a number of seconds, and no as False.

    Refuses aliases, which can expand a short file without end, deep nesting, and duplicate keys.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(problem="aliases are not supported", problem_mark=mark)
        self.depth += 1
        if self.depth > DEEPEST + 1:  # including the innermost value
            raise ComposerError(problem="too much nesting", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise ConstructorError(problem="a key is given twice", problem_mark=node.start_mark)
        return mapping


def user_folder() -> Path | None:
    """The folder of a user's own profiles; None for a user without a home."""
    if config := os.environ.get("XDG_CONFIG_HOME"):
        return Path(config) / "imagefolder"
    try:
        return Path.home() / ".config" / "imagefolder"
    except RuntimeError:  # no HOME, and no entry in the user database
        return None


def load_profile(profile: str | Path | None = None, overrides: Iterable[str] = ()) -> Profile:
    """A profile by name or file, with overrides.

    Args:
        profile: a file, or the name of one in ~/.config/imagefolder or slurm/profiles. None: the user's `default` if
            it exists, else `slurm` where a Slurm answers, else `local`.
        overrides: KEY=VALUE for all kinds, or KIND.KEY=VALUE for one; `environment.NAME=VALUE` and
            `sbatch.OPTION=VALUE` set one entry of a mapping.

    Raises:
        SlurmError: no such profile; an unknown key or invalid value.
    """
    path = _find(profile)
    values = _read(path)
    if path.parent != PACKAGED:
        base = PACKAGED / ("slurm.yaml" if values.get("cluster") in ("slurm", *NOTHING) else "local.yaml")
        values = _over(_read(base), values)
    return changed(values, overrides, str(path))


def changed(values: dict[str, Any], overrides: Iterable[str], origin: str) -> Profile:
    """The profile of these values, with KEY=VALUE overrides. Raises `SlurmError`, as `load_profile`."""
    overrides = list(overrides)
    for text in overrides:
        values = _over(values, _override(text, values.get("kinds", {})))
    origin = f"{origin} with overrides" if overrides else origin
    profile = validated(Profile, _nulls(values), origin)
    for kind in profile.kinds:
        profile.settings(kind, origin)
    return profile


def redacted(arguments: Sequence[str]) -> list[str]:
    """A command line with the values of `[KIND.]environment.NAME=VALUE`, in all its forms, replaced by `***`."""
    return [_redacted(argument) for argument in arguments]


def _redacted(argument: str) -> str:
    option = match[0] if (match := re.match(r"--?[\w-]+=", argument)) else ""
    key, equals, value = argument.removeprefix(option).partition("=")
    inside = value[:1] in ("[", "{") and "environment" in value.lower()
    if equals and (inside or "environment" in key.lower().lstrip("-").split(".")):
        return f"{option}{key}=***"
    return argument


def _override(text: str, kinds: Iterable[str]) -> dict[str, Any]:
    """The values of an override, in the shape of a profile."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        shown = re.sub(r"(environment[\w.]*).+", r"\1***", text, flags=re.DOTALL | re.IGNORECASE)
        raise SlurmError(f"override {short(shown)} is not KEY=VALUE")
    origin = f"override {short(key)}"
    first, *parts = key.split(".")
    if first == "kinds":
        first, *parts = parts or [""]
        if first not in kinds:
            raise SlurmError(f"{origin}: there is no kind {short(first)}; there are: {', '.join(kinds)}")
    if first in kinds and not parts:
        content = _parsed(value, origin)
        if not isinstance(content, dict):
            raise SlurmError(f"{origin}: this is a kind; write {first}.KEY=VALUE")
        return {"kinds": {first: content}}
    kind = first if first in kinds else None
    name, *inner = parts if kind else [first, *parts]
    if inner and name not in MAPPINGS:
        raise SlurmError(f"{origin}: {short(name)} holds no further keys; these do: {', '.join([*MAPPINGS, *kinds])}")
    if not inner and name in (*MAPPINGS, *LISTS) and value[:1] in ("[", "{"):
        values = {name: _parsed(value, origin)}
    else:
        values = {name: {".".join(inner): value} if inner else value}
    if kind:
        return {"kinds": {kind: values}}
    # for all kinds, even those with their own value
    return values if name == "cluster" else values | {"kinds": dict.fromkeys(kinds, values)}


def _find(profile: str | Path | None) -> Path:
    own = user_folder()
    if profile is None:
        if own is not None and _exists(own / "default.yaml"):
            return own / "default.yaml"
        return PACKAGED / ("slurm.yaml" if shutil.which("sbatch") and slurm_answers() else "local.yaml")
    if Path(profile).suffix in (".yaml", ".yml") or os.path.isfile(profile):
        return Path(profile)
    folders = [folder for folder in (own, PACKAGED) if folder is not None]
    found = [path for folder in folders for path in sorted(folder.glob("*.yaml")) if not path.name.startswith(".")]
    named = next((path for path in found if path.stem == str(profile)), None)
    if named is None:
        known = ", ".join(sorted({path.stem for path in found}))
        raise SlurmError(f"no profile {str(profile)!r}: neither a file nor one of {known}")
    return named


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except OSError as error:  # reading reports other problems
        return not isinstance(error, FileNotFoundError | NotADirectoryError)
    return True


def _read(path: Path) -> dict[str, Any]:
    """The keys of a profile, with `kinds` as a mapping of mappings."""
    content = read(path, LARGEST)
    if content is None:
        raise SlurmError(f"profile {path} cannot be read: No such file or directory")
    try:
        values = _parsed(content.decode(), f"profile {path}")
    except UnicodeDecodeError:
        raise SlurmError(f"profile {path} is not YAML: it is not UTF-8 text") from None
    values = {} if values in NOTHING else values
    if not isinstance(values, dict):
        raise SlurmError(f"profile {path} holds no keys; see {PACKAGED / 'slurm.yaml'}")
    kinds = {} if values.get("kinds") in NOTHING else values["kinds"]
    if not isinstance(kinds, dict):
        raise SlurmError(f"profile {path}: kinds: must be a mapping; see {PACKAGED / 'slurm.yaml'}")
    kinds = {kind: {} if keys in NOTHING else keys for kind, keys in kinds.items()}
    for kind, keys in kinds.items():
        if not isinstance(keys, dict):
            raise SlurmError(f"profile {path}: kinds.{kind}: must be a mapping of keys to values")
    return values | {"kinds": kinds}


def _parsed(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:  # the last two for impossible escapes
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "an impossible value")
        if not problem.startswith(("expected", "could not find expected")):
            problem = re.split(r"['\"]", problem)[0].strip()  # what it quotes may be secret
        raise SlurmError(f"{origin} is not YAML of a profile: {place}{problem}") from None


def _nulls(values: dict[str, Any], nothing: tuple[Any, ...] = NOTHING) -> dict[str, Any]:
    """Without the keys set to nothing, which get their defaults; but a variable of the job may be empty."""
    kept = {}
    for key, value in values.items():
        if isinstance(value, dict):
            kept[key] = _nulls(value, NOTHING[1:] if key == "environment" else NOTHING)
        elif value not in nothing:
            kept[key] = value
    return kept


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key, everything else replaced."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _over(below[key], value) if both else value
    return merged


def _merged(shared: dict[str, Any], kind: dict[str, Any]) -> dict[str, Any]:
    """The settings of a kind over the shared ones; gpus_per_node in a kind replaces a shared gres."""
    merged = _over(shared, kind)
    if "gpus_per_node" in kind and "gres" not in kind:
        merged["gres"] = None
    return merged
