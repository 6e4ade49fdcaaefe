"""Which version of the code made a model or a record, and whether that code has changed since.

The code itself is compared, part by part, without comments, docstrings and formatting. `code.json`, next to a model's
weights, has an entry for every version that trained it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import imagefolder
from imagefolder.environment import git_state
from imagefolder.errors import InputError
from imagefolder.files import read_json, write_json
from reproductions.row import TrainedModel

CODE = "code.json"
ROOT = Path(imagefolder.__file__).parent
PARTS: dict[str, tuple[str, ...]] = {
    "numerics": ("numerics.py", "distributed.py", "fused.py"),
    "data": ("data",),
    "tokenizer": ("tokenizer", "kinds.py"),
    "generator": ("generator",),
    "training": ("training",),
    "evaluation": ("evaluation",),
}
"""Files and folders of the package by part"""

_TOKENIZER = ("numerics", "data", "tokenizer", "training")
DECIDES: dict[Literal["tokenizer", "generator", "record"], tuple[str, ...]] = {
    "tokenizer": _TOKENIZER,
    "generator": (*_TOKENIZER, "generator"),
    "record": ("numerics", "data", "tokenizer", "generator", "evaluation"),
}
"""Parts that decide each result"""


@dataclass(frozen=True)
class Change:
    """A finished result was made by another version of the code; `commit` None: it is not known which."""

    commit: str | None
    parts: tuple[str, ...]

    def __str__(self) -> str:
        if not self.parts:
            return "made by an unknown version of the code"
        made = f"made at commit {self.commit[:7]}" if self.commit else "made outside a git repository"
        return f"{made}; the code of {', '.join(f'{part}/' for part in self.parts)} has changed since"


@functools.cache
def code_hashes() -> dict[str, str]:
    """sha256 of the current code by part."""
    return {part: _hash(path for name in names for path in _files(ROOT / name)) for part, names in PARTS.items()}


def note_code(model: TrainedModel) -> None:
    """Note that the current code trains a model. Call before training it."""
    entry = {"commit": git_state()[0], "code": code_hashes()}
    versions = _versions(model)
    if versions is None or entry not in versions:
        write_json(model.folder / CODE, {"versions": [*(versions or []), entry]})


def changed_code(model: TrainedModel) -> Change | None:
    """How the code that decides a finished model differs from the code that made it; None: not at all."""
    versions = _versions(model)
    if versions is None:
        return Change(None, ())
    changes = (change_since(entry["commit"], entry["code"], model.role) for entry in versions)
    return next((change for change in changes if change is not None), None)


def change_since(
    commit: str | None, code: dict[str, str] | None, result: Literal["tokenizer", "generator", "record"]
) -> Change | None:
    """How the code that decides a result differs from `code`, hashes by part (None: not known)."""
    if code is None:
        return Change(commit, ())
    now = code_hashes()
    parts = tuple(part for part in DECIDES[result] if code.get(part) != now[part])
    return Change(commit, parts) if parts else None


def _versions(model: TrainedModel) -> list[dict[str, Any]] | None:
    """The versions that trained a model; None: none is noted, or the note is unreadable."""
    try:
        versions: list[dict[str, Any]] = read_json(model.folder / CODE)["versions"]
        well_formed = all(isinstance(entry["code"], dict) and "commit" in entry for entry in versions)
    except (InputError, TypeError, KeyError):
        return None
    return versions if versions and well_formed else None


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _hash(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                node.body = [child for child in node.body if not _is_text(child)] or [ast.Pass()]
        digest.update(f"{path.relative_to(ROOT)}\0{ast.unparse(tree)}\0".encode())
    return digest.hexdigest()


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a docstring, including those of fields."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
