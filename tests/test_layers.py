"""Who may import whom: the four packages, the units of imagefolder in their order, and what comes without torch; and
that what they import from elsewhere is required."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("imagefolder", "leaderboard", "slurm", "reproductions")

# Each unit imports only units before it
UNITS = [
    *("errors", "validation", "cli"),
    *("numerics", "distributed", "progress", "files", "tensors", "interruption", "locks", "environment", "fused"),
    *("kinds", "config", "zoo", "checkpoints", "weights", "data", "tokenizer", "generator"),
    *("loading", "flops", "memory", "training", "evaluation", "released", "demo"),
]
SHARED = {"errors", "cli", "files", "locks"}
"""Units of imagefolder that leaderboard and slurm may import."""

LIGHT = [
    "errors",
    "validation",
    "cli",
    "distributed",
    "progress",
    "files",
    "locks",
    "kinds",
    "config",
    "zoo",
    "weights",
]
COMMANDS = [
    *("imagefolder.checkpoints.__main__", "imagefolder.evaluation.__main__", "imagefolder.generator.__main__"),
    *("imagefolder.released", "imagefolder.evaluation.precision", "reproductions.cards"),
    "imagefolder.demo.__main__",
    *("leaderboard.__main__", "leaderboard.speed", "slurm.__main__", "reproductions.__main__"),
    *("reproductions.table2", "reproductions.ablation", "reproductions.branches", "reproductions.folding"),
    "reproductions.guidance",
    *("reproductions.linear_probe", "reproductions.token_length", "reproductions.zoo", "reproductions.evaluators"),
]
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "matplotlib",
    "vl_convert",
    "pandas",
    "pyarrow",
    "scipy",
    "sklearn",
    "submitit",
    "accelerate",
)


def modules(package: str) -> Iterator[tuple[str, ast.Module]]:
    """Dotted names of the modules of a package, and their sources parsed; commands (`__main__`) are left out."""
    for path in sorted((ROOT / package).rglob("*.py")):
        if path.stem != "__main__":
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), ast.parse(path.read_text())


def imported(tree: ast.AST, in_functions: bool = True) -> Iterator[str]:
    """Dotted names that a source imports, other than for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.FunctionDef) and not in_functions:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imported(node, in_functions)


def unit(name: str) -> str:
    """The unit of imagefolder that a dotted name is in."""
    return name.split(".")[1]


def test_every_unit_imports_only_those_before_it() -> None:
    wrong = []
    for name, tree in modules("imagefolder"):
        if name in ("imagefolder", "imagefolder._torchvision"):
            continue
        allowed = UNITS[: UNITS.index(unit(name)) + 1]
        for target in imported(tree):
            if target.split(".")[0] == "imagefolder" and unit(target) not in allowed:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_packages_import_only_those_below_them() -> None:
    wrong = []
    for package in PACKAGES[:3]:
        for name, tree in modules(package):
            for target in imported(tree):
                top = target.split(".")[0]
                shared = top == "imagefolder" and unit(target) in SHARED
                if top in PACKAGES and top != package and not shared:
                    wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_every_package_that_is_imported_is_required() -> None:
    project, owners = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"], packages_distributions()
    extras = [name for extra, names in project["optional-dependencies"].items() if extra != "test" for name in names]
    required = {re.split("[<>=]", requirement)[0] for requirement in [*project["dependencies"], *extras]}
    own = sys.stdlib_module_names | {*PACKAGES, "pydantic_core"}  # pydantic requires one version of its core
    wrong = []
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for top in {target.split(".")[0] for target in imported(ast.parse(path.read_text()))} - own:
            if not {owner.lower().replace("_", "-") for owner in owners.get(top, [top])} & required:
                wrong.append(f"{path.relative_to(ROOT)} imports {top}")
    assert wrong == []


def test_no_circle_of_modules_when_they_are_imported() -> None:
    trees = {name: tree for package in PACKAGES for name, tree in modules(package)}
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        targets = {target if target in trees else target.rpartition(".")[0] for target in imported(tree, False)}
        graph[name] = targets & trees.keys() - {name, *PACKAGES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_nothing_imports_a_command() -> None:
    wrong = [
        f"{name} imports {target}"
        for package in PACKAGES
        for name, tree in modules(package)
        for target in imported(tree)
        if target.split(".")[0] in PACKAGES and "__main__" in target
    ]
    assert wrong == []


def loaded(code: str) -> list[str]:
    """Which of `HEAVY` are imported after the code has run in a process of its own."""
    script = f"import sys; {code}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_package_and_its_light_units_come_without_torch() -> None:
    assert loaded(f"import imagefolder, {', '.join(f'imagefolder.{name}' for name in LIGHT)}") == []


def test_a_tokenizer_is_loaded_without_what_only_trainings_and_reports_need() -> None:
    found = loaded("import imagefolder; imagefolder.load_tokenizer('mini-MSVR3P2-256')")
    assert {"torch", "timm"} <= set(found)
    assert not {"matplotlib", "pandas", "scipy", "sklearn", "submitit", "accelerate"} & set(found)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_parses_its_arguments_before_it_imports(name: str) -> None:
    assert loaded(f"import {name}") == []
