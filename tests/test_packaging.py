"""The versions that pyproject.toml allows, those that are tested, and what a wheel holds."""

from __future__ import annotations

import re
import tomllib
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
