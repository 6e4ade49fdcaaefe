"""Profiles: what a job of each kind gets on a cluster. YAML files, checked when read.

A user's own file only holds what differs from `profiles/slurm.yaml` (or `profiles/local.yaml`, if it says
`cluster: local`). Values are looked up in the kind first, then at the top level.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from slurm.files import read
from slurm.settings import Settings, short, validated
from slurm.stage import SlurmError
from slurm.states import slurm_answers

ANNOUNCED_EARLY = 60  # seconds, as sbatch's manual says of --signal
PACKAGED = Path(__file__).parent / "profiles"
LARGEST = 100_000
"""bytes of a profile"""
DEEPEST = 6
"""mappings and lists in each other; kinds, a kind, its environment make four"""
MAPPINGS = ("environment", "sbatch")
LISTS = ("setup", "srun")
NOTHING = ("", "null", "~", None)


class Profile(Settings):
    """A profile as read: settings of all jobs, and of each kind of job where they differ."""

    cluster: Literal["slurm", "local", "debug"] = "slurm"
    """slurm: jobs; local: processes on this machine; debug: one stage after the other in this process"""
    kinds: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def settings(self, kind: str, origin: str = "profile") -> Settings:
        """What a job of this kind gets. Raises `SlurmError`, with the origin, for what no job can have."""
        if kind not in self.kinds:
            raise SlurmError(f"the profile has no kind {kind!r}; it has: {', '.join(self.kinds) or 'none'}")
        shared = self.model_dump(exclude={"cluster", "kinds"})
        settings = validated(Settings, _merged(shared, self.kinds[kind]), f"{origin}: kinds.{kind}")
        if settings.signal_delay + ANNOUNCED_EARLY >= settings.time * 60:
            raise SlurmError(
                f"{origin}: kinds.{kind}: signal_delay {settings.signal_delay} s leaves nothing of time "
                f"{settings.time} min, for Slurm may give its signal up to {ANNOUNCED_EARLY} s early"
            )
        return settings


class _Loader(yaml.BaseLoader):
    """Strings, lists and mappings only: else YAML takes 24:00:00 for a number of seconds, and no for False.

    Aliases are refused, with which a short file becomes endless; so are deep nesting and keys given twice.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(problem="aliases are not taken", problem_mark=mark)
        self.depth += 1
        if self.depth > DEEPEST + 1:  # with the value in the innermost
            raise yaml.composer.ComposerError(problem="too much nesting", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise yaml.constructor.ConstructorError(problem="a key is given twice", problem_mark=node.start_mark)
        return mapping


def user_folder() -> Path | None:
    """Where a user's own profiles lie; None for a user without a home."""
    if config := os.environ.get("XDG_CONFIG_HOME"):
        return Path(config) / "imagefolder"
    try:
        return Path.home() / ".config" / "imagefolder"
    except RuntimeError:  # no HOME, and no entry in the list of users
        return None


def load_profile(profile: str | Path | None = None, overrides: Iterable[str] = ()) -> Profile:
    """A profile by name or file, with values overridden.

    Args:
        profile: a file, or the name of one in ~/.config/imagefolder or slurm/profiles. None: the user's `default` if
            there is one, else `slurm` where a Slurm answers, else `local`.
        overrides: KEY=VALUE, for all kinds, or KIND.KEY=VALUE for one; `environment.NAME=VALUE` and
            `sbatch.OPTION=VALUE` reach into a mapping.

    Raises:
        SlurmError: no such profile; a key or value it cannot have.
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
    """A command line in which the values of `[KIND.]environment.NAME=VALUE`, in all its forms, are `***`."""
    return [_redacted(argument) for argument in arguments]


def _redacted(argument: str) -> str:
    option, rest = re.fullmatch(r"(--?[\w-]+=)?(.*)", argument, re.DOTALL).groups(default="")
    key, equals, value = rest.partition("=")
    inside = value[:1] in ("[", "{") and "environment" in value.lower()
    if equals and (inside or "environment" in key.lower().lstrip("-").split(".")):
        return f"{option}{key}=***"
    return argument


def _override(text: str, kinds: Iterable[str]) -> dict[str, Any]:
    """The values that an override stands for, in the shape of a profile."""
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
        raise SlurmError(
            f"{origin}: {short(name)} holds no further keys; those that do are {', '.join([*MAPPINGS, *kinds])}"
        )
    if not inner and name in (*MAPPINGS, *LISTS) and value[:1] in ("[", "{"):
        values = {name: _parsed(value, origin)}
    else:
        values = {name: {".".join(inner): value} if inner else value}
    if kind:
        return {"kinds": {kind: values}}
    # for all kinds, also where a kind has a value of its own
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
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # reading it will say what is wrong
    return True


def _read(path: Path) -> dict[str, Any]:
    """A profile's keys, of which `kinds` is a mapping of mappings."""
    content = read(path, LARGEST)
    if content is None:
        raise SlurmError(f"profile {path} cannot be read: No such file or directory")
    try:
        values = _parsed(content.decode(), f"profile {path}")
    except UnicodeDecodeError:
        raise SlurmError(f"profile {path} is not YAML: it is not UTF-8") from None
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
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:  # the latter for impossible escapes
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        said = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "an impossible value")
        if not said.startswith(("expected", "could not find expected")):
            said = re.split(r"['\"]", said)[0].strip()  # what it quotes may be a secret
        raise SlurmError(f"{origin} is not YAML of a profile: {place}{said}") from None


def _nulls(values: dict[str, Any], nothing: tuple[Any, ...] = NOTHING) -> dict[str, Any]:
    """Without the keys set to nothing, which then have their defaults; but a variable of the job may be empty."""
    kept = {}
    for key, value in values.items():
        if isinstance(value, dict):
            kept[key] = _nulls(value, NOTHING[1:] if key == "environment" else NOTHING)
        elif value not in nothing:
            kept[key] = value
    return kept


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
