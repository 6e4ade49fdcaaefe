"""The versions that pyproject.toml allows are those that are tested."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_lowest_versions_allowed_are_those_of_constraints_lowest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = {}
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        match = re.fullmatch(r"([\w-]+)>=([\d.]+)(,<[\d.]+)?", requirement)
        assert match is not None, f"{requirement} names no lowest version"
        allowed[match[1]] = match[2]
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert tested.keys() == allowed.keys()
    for name, version in tested.items():
        assert re.fullmatch(rf"{re.escape(allowed[name])}(\.0)*", version), (name, version, allowed[name])
