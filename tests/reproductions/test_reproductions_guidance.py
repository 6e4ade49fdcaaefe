"""The sweep over sampling settings: its rows, the models of Table 2 that it uses, and that it resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imagefolder.config import UNGUIDED
from imagefolder.files import read_json
from leaderboard.record import Record
from leaderboard.store import read_records
from reproductions import guidance, table2
from reproductions.command import run_table
from reproductions.guidance import GUIDANCES, TABLE, best_guidance, rows, variations
from reproductions.options import Options
from reproductions.plan import plan_rows
from reproductions.recipe import Recipe, sampling_of, usual_sampling
from reproductions.scales import SCALES

EVERY_SCALE = pytest.mark.parametrize("scale", ["mini", "laptop", "small", "full"])


@EVERY_SCALE
def test_every_generator_of_table_2_is_swept_and_its_own_settings_are_among_the_rows(scale: str) -> None:
    found = {recipe.row: recipe for recipe in rows(SCALES[scale], 10)}
    assert len({recipe.label for recipe in found.values()}) == len(found) == len(rows(SCALES[scale], 10))
    for generator in table2.rows(SCALES[scale], 10):
        mine = [recipe for recipe in found.values() if recipe.row.startswith(f"{generator.row}-")]
        for recipe in mine:
            same = ("tokenizer", "generator", "loss", "weight_decay")
            assert all(getattr(recipe, name) == getattr(generator, name) for name in same)
        assert sampling_of(found[f"{generator.row}-default"], SCALES[scale]) == sampling_of(generator, SCALES[scale])
        plain = sampling_of(found[f"{generator.row}-unguided"], SCALES[scale])
        assert {name: getattr(plain, name) for name in UNGUIDED} == UNGUIDED
        swept = {sampling_of(recipe, SCALES[scale]).guidance for recipe in mine}
        assert swept == {*GUIDANCES, usual_sampling(generator, SCALES[scale]).guidance}


@EVERY_SCALE
def test_a_variation_changes_one_setting_at_the_guidance_chosen(scale: str) -> None:
    found = variations(SCALES[scale], 10, {"imagefolder": 1.5, "vq": 0.5})
    assert {recipe.row.partition("-")[0] for recipe in found} == {"imagefolder", "vq"}
    generators = {recipe.row: recipe for recipe in table2.rows(SCALES[scale], 10)}
    for recipe in found:
        usual = usual_sampling(generators[recipe.row.partition("-")[0]], SCALES[scale])
        sampling = sampling_of(recipe, SCALES[scale])
        changed = {name for name in UNGUIDED if getattr(sampling, name) != getattr(usual, name)} - {"guidance"}
        assert len(changed) == 1, recipe.row
        assert sampling.guidance == (1.5 if recipe.row.startswith("imagefolder") else 0.5)
    assert len({recipe.row for recipe in found}) == len(found)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two guidances of one generator, and one variation."""

    def first(scale: Any, classes: int) -> list[Recipe]:
        return original(scale, classes)[:1]

    original = table2.rows
    monkeypatch.setattr(table2, "rows", first)
    monkeypatch.setattr(guidance, "GUIDANCES", (0.0, 1.0))
    monkeypatch.setattr(guidance, "TOP_PS", ())
    monkeypatch.setattr(guidance, "TEMPERATURES", (0.9,))


@pytest.mark.usefixtures("short")
def test_the_script_uses_the_models_of_table_2_and_resumes_by_setting(
    imagefolder_row: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(*arguments: str) -> set[str]:
        executed.clear()
        monkeypatch.setattr("sys.argv", ["guidance.py", "--output", str(imagefolder_row), *arguments])
        with pytest.raises(SystemExit) as exited:
            guidance.main()
        assert not exited.value.code
        assert all(name.startswith("guidance ") for name in executed)
        return {name.split()[-3] for name in executed}

    before = {path: path.stat().st_mtime_ns for path in imagefolder_row.rglob("model.safetensors")}
    assert ran("--rows", "imagefolder-g0") == {"imagefolder-g0"}  # and no variations
    grid = ("imagefolder-default", "imagefolder-unguided")
    found = ran()
    assert found.issuperset(grid)
    best = best_guidance([r for r in read_records(imagefolder_row / "records") if r.table == "guidance"])
    varied = {f"imagefolder-g{best['imagefolder']:g}-{setting}" for setting in ("top_k64", "temperature0.9")}
    assert found == {*grid, *varied}
    sampling = {r.row: r.config["sampling"] for r in read_records(imagefolder_row / "records") if r.table == "guidance"}
    assert sampling.keys() == {"imagefolder-g0", *found}
    assert sampling[min(varied)]["temperature"] == 0.9
    assert {path: path.stat().st_mtime_ns for path in imagefolder_row.rglob("model.safetensors")} == before
    assert "by guidance</figcaption>" in (imagefolder_row / "report.html").read_text()

    assert ran() == set()
    lost = next(r for r in read_records(imagefolder_row / "records") if r.row == min(varied))
    (imagefolder_row / "records" / f"{lost.name}.json").unlink()
    assert ran() == {min(varied)}


@pytest.mark.usefixtures("short")
def test_a_row_of_the_sweep_measures_its_own_setting_as_table_2_does(imagefolder_row: Path) -> None:
    assert run_table(TABLE, Options(output=imagefolder_row, rows=("imagefolder-default", "imagefolder-unguided"))) == 0
    values = {
        record.row: {m.protocol.name: m for m in record.metrics} for record in read_records(imagefolder_row / "records")
    }
    of_table, default, plain = (values[row] for row in ("imagefolder", "imagefolder-default", "imagefolder-unguided"))
    assert default["proxy-gFID"] == of_table["proxy-gFID"]
    assert plain["proxy-gFID"].value == of_table["proxy-gFID (unguided)"].value
    assert plain["proxy-gFID"].spread == of_table["proxy-gFID (unguided)"].spread
    assert not [name for name in default if "unguided" in name]
    assert of_table["proxy-gFID"].spread is not None


@pytest.mark.usefixtures("short", "executed", "tiny_mini")
def test_models_that_the_sweep_trains_are_those_of_table_2(tmp_path: Path) -> None:
    """Their own settings are the scale's, whichever row trained them."""
    (mine,) = plan_rows(TABLE, Options(output=tmp_path, rows=("imagefolder-g0",)))
    (theirs,) = plan_rows(table2.TABLE, Options(output=tmp_path, rows=("imagefolder",)))
    assert [m.folder for m in mine.row.models] == [m.folder for m in theirs.row.models]
    assert mine.row.sampling.guidance == 0
    assert run_table(TABLE, Options(output=tmp_path, rows=("imagefolder-g0",))) == 0
    assert theirs.row.generator is not None
    stored = read_json(theirs.row.generator.folder / "config.json")["sampling"]
    own = theirs.row.sampling
    assert stored == {"guidance": own.guidance, "top_k": own.top_k, "top_p": own.top_p, "temperature": 1.0}


def test_the_best_guidance_is_that_of_the_mean_over_seeds_that_all_have_measured(imagefolder_row: Path) -> None:
    base = read_records(imagefolder_row / "records")[0]
    measured = next(m for m in base.metrics if m.protocol.metric == "gFID")

    def record(row: str, strength: float, value: float) -> Record:
        metrics = [measured.model_copy(update={"value": value})]
        return base.model_copy(update={"row": row, "metrics": metrics, "config": {"sampling": {"guidance": strength}}})

    values = [("vq-g0", 0.0, (5.0, 9.0)), ("vq-g1", 1.0, (6.0, 6.0)), ("vq-default", 2.0, (1.0,))]
    records = [record(row, strength, value) for row, strength, found in values for value in found]
    others = [record("vq-unguided", 0.0, 0.1), record("vq-g1-top_p0", 1.0, 0.1)]  # are no guidances
    assert best_guidance([*records, *others]) == {"vq": 1.0}
    assert best_guidance([]) == {}
