"""The notebook docs/tour.ipynb runs from beginning to end, and is stored with its outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(DOCS / "tour.ipynb", as_version=4)


def outputs(notebook: Any) -> list[list[Any]]:
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook: Any) -> list[int]:
    """Number of pictures of every cell of code."""
    return [sum("image/png" in output.get("data", {}) for output in cell) for cell in outputs(notebook)]


def accuracies(notebook: Any) -> list[float]:
    """What the cells print in percent."""
    text = "".join(output.get("text", "") for cell in outputs(notebook) for output in cell)
    return [float(share) for share in re.findall(r"([\d.]+)%", text)]


def test_it_is_stored_with_small_outputs_and_no_paths_of_a_machine(notebook: Any) -> None:
    text = (DOCS / "tour.ipynb").read_text()
    assert len(text) < 500_000
    assert sum(kinds(notebook)) >= 9
    assert not re.search(r"/root|/home|/tmp|site-packages|Warning", text)
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == list(
        range(1, len(outputs(notebook)) + 1)
    )


@pytest.mark.slow
def test_it_runs_and_shows_what_is_stored(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = kinds(notebook), accuracies(notebook)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    resources = {"metadata": {"path": str(DOCS)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    assert kinds(notebook) == stored[0]
    assert accuracies(notebook) == pytest.approx(stored[1], abs=10)
