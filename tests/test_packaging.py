"""The versions that pyproject.toml allows, those that are tested, and what a wheel holds."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("imagefolder", "leaderboard", "reproductions", "slurm")


def allowed() -> dict[str, str]:
    """The lowest version of every requirement."""
    project, found = SETTINGS["project"], {}
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        match = re.fullmatch(r"([\w-]+)>=([\d.]+)(,<[\d.]+)?", requirement)
        assert match is not None, f"{requirement} names no lowest version"
        found[match[1]] = match[2]
    return found


def constraints(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def test_the_lowest_versions_allowed_are_those_of_constraints_lowest() -> None:
    lowest, tested = allowed(), constraints("constraints-lowest.txt")
    assert tested.keys() == lowest.keys()
    for name, version in tested.items():
        assert re.fullmatch(rf"{re.escape(lowest[name])}(\.0)*", version), (name, version, lowest[name])


def test_the_environment_of_the_reference_numbers_is_one_that_is_allowed() -> None:
    exact = constraints("constraints.txt")
    for name, version in allowed().items():
        assert numbers(exact[name]) >= numbers(version), name
    assert all(re.fullmatch(r"[a-z0-9-]+", name) and re.fullmatch(r"[\w.]+", exact[name]) for name in exact)


def test_every_file_that_the_packages_read_is_part_of_the_wheel() -> None:
    data = SETTINGS["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        packed = {path for pattern in data[package] for path in (ROOT / package).glob(pattern)}
        ignored = {"__pycache__"}
        files = {path for path in (ROOT / package).rglob("*") if path.is_file() and not ignored & set(path.parts)}
        assert {path for path in files if path.suffix != ".py"} == {path for path in packed if path.is_file()}
        assert ROOT / package / "py.typed" in packed
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)  # others are not found by setuptools


def test_every_package_that_is_imported_is_required() -> None:
    project, owners = SETTINGS["project"], packages_distributions()
    extras = [name for extra, names in project["optional-dependencies"].items() if extra != "test" for name in names]
    required = {re.split("[<>=]", requirement)[0] for requirement in [*project["dependencies"], *extras]}
    # pydantic requires one version of its core; type checkers alone know _typeshed
    own = sys.stdlib_module_names | {*PACKAGES, "pydantic_core", "_typeshed"}
    wrong = []
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - own:
                if not {owner.lower().replace("_", "-") for owner in owners.get(top, [top])} & required:
                    wrong.append(f"{path.relative_to(ROOT)} imports {top}")
    assert wrong == []
