"""Tables on data sets other than the digits, at scale mini."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builtin_files import TEST, TRAIN, small_fashion

import reproductions.source as source
from imagefolder.data.builtin import BUILTIN
from imagefolder.errors import InputError
from reproductions import table2
from reproductions.options import Options
from reproductions.plan import plan_rows
from reproductions.scales import SCALES, Scale

RunTable = Callable[..., int]
Records = Callable[[Path], dict[str, dict[str, Any]]]


@pytest.fixture(autouse=True)
def miniature(monkeypatch: pytest.MonkeyPatch, shrink: Callable[..., Scale]) -> None:
    monkeypatch.setitem(SCALES, "mini", shrink(SCALES["mini"]))


@pytest.fixture
def fashion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder with the files of a small Fashion-MNIST."""
    folder = tmp_path / "data/FashionMNIST/raw"
    folder.mkdir(parents=True)
    for name, content in small_fashion(monkeypatch).items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("IMAGEFOLDER_DATA", str(tmp_path / "data"))
    return folder


@pytest.mark.usefixtures("fashion")
def test_a_built_in_data_set_from_files_to_records(
    tmp_path: Path, table: RunTable, records: Records, executed: list[str]
) -> None:
    output = tmp_path / "out"
    assert table(output, "imagefolder", "vq", data="fashion") == 0
    found = records(output)
    assert set(found) == {"imagefolder", "vq"}
    for record in found.values():
        assert (record["status"], record["scale"]) == ("finished", "mini"), record["reason"]
        about = {name: record["dataset"][name] for name in ("name", "n_train", "n_test", "classes", "image_size")}
        assert about == {"name": "fashion", "n_train": TRAIN, "n_test": TEST, "classes": 10, "image_size": 32}
        assert {m["protocol"]["reference"] for m in record["metrics"]} == {"fashion/train", "fashion/test"}
    assert len(list(output.glob("mini-fashion-*"))) == 1
    executed.clear()
    assert table(output, "imagefolder", "vq", data="fashion") == 0
    assert executed == []


def test_files_that_change_during_a_run_are_noticed(tmp_path: Path, fashion: Path) -> None:
    (plan,) = plan_rows(table2.TABLE, Options(rows=("vq",), output=tmp_path / "out", data="fashion"))
    (fashion / "t10k-labels-idx1-ubyte").write_bytes(b"")
    source.read_splits.cache_clear()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte"):
        _ = plan.row.splits


def test_a_folder_of_another_number_of_classes(
    tmp_path: Path, classes_at: Callable[..., Path], table: RunTable, records: Records, executed: list[str]
) -> None:
    data = classes_at(tmp_path / "photos", {f"class {i}": 5 for i in range(13)})
    assert table(tmp_path / "out", "imagefolder", data=str(data)) == 0
    (record,) = records(tmp_path / "out").values()
    assert record["status"] == "finished", record["reason"]
    assert (record["scale"], record["dataset"]["classes"], record["dataset"]["image_size"]) == ("mini", 13, 32)


def test_the_help_names_every_built_in_data_set() -> None:
    source_text = Path(table2.__file__).with_name("options.py").read_text()
    assert f"a built-in data set ({', '.join(BUILTIN)})" in " ".join(source_text.split())
