"""Plans: identities of models, the order of stages, and which version of the code made finished results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import reproductions.versions as versions
from imagefolder.errors import InputError
from imagefolder.files import read_json
from reproductions import ablation, folding, linear_probe, table2, token_length, zoo
from reproductions.executor import Task, consequences
from reproductions.graph import graph
from reproductions.options import Options
from reproductions.plan import RowPlan, plan_rows
from reproductions.recipe import Table
from reproductions.row import EVALUATION_ONLY, GENERATOR_ONLY
from reproductions.versions import CODE, code_hashes

RunTable = Callable[..., int]
pytestmark = pytest.mark.usefixtures("tiny_mini")


def planned(table: Table, output: Path, **options: object) -> list[RowPlan]:
    return plan_rows(table, Options(output=output, **options))


def test_every_setting_is_part_of_an_identity_or_of_a_later_stage(tmp_path: Path) -> None:
    """New entries of a row's configuration decide its tokenizer, unless they are listed for a later stage."""
    for plan in planned(table2.TABLE, tmp_path) + planned(linear_probe.TABLE, tmp_path):
        row = plan.row
        later = set(row.config) & (GENERATOR_ONLY | EVALUATION_ONLY)
        decides = set(row.tokenizer.identity) - {"seed", "dataset_sha256"}
        assert decides - {"training"} == set(row.config) - later - {"tokenizer_training"}
        if row.generator is not None:
            assert row.generator.identity["tokenizer_settings"] == row.tokenizer.identity
            assert {"generator", "training", "views"} <= row.generator.identity.keys()


def test_data_seed_and_micro_batch_make_other_models(tmp_path: Path) -> None:
    (plan,) = planned(Table("ablation", "Ablation", ablation.rows), tmp_path, rows=("step7",))
    row = replace(plan.row, scale=replace(plan.row.scale, loss=replace(plan.row.scale.loss, adversarial=0.1)))
    patch = replace(row, recipe=replace(row.recipe, loss={"discriminator": "patch"}))
    others = [
        replace(patch, seed=1),
        replace(patch, dataset=replace_sha(patch)),
        replace(patch, execution=replace(patch.execution, micro_batch=4)),
        replace(patch, scale=replace(patch.scale, proxy_steps=6)),
    ]
    folders = {each.tokenizer.folder for each in (patch, *others)}
    assert len(folders) == 5
    same = replace(patch, fresh=True, command="other", output=patch.output, table="other", order=7)
    assert same.tokenizer.folder == patch.tokenizer.folder


def replace_sha(row):
    return row.dataset.model_copy(update={"sha256": "0" * 64})


def test_names_do_not_decide_identity(tmp_path: Path) -> None:
    (plan,) = planned(table2.TABLE, tmp_path, rows=("imagefolder",))
    renamed = replace(plan.row.recipe, tokenizer=replace(plan.row.recipe.tokenizer, name="other"))
    assert replace(plan.row, recipe=renamed).tokenizer.identity == plan.row.tokenizer.identity


@pytest.mark.parametrize(
    ("table", "shared"),
    [
        (table2.TABLE, {"imagefolder", "unfolded"}),
        (folding.TABLE, {"folded", "unfolded"}),
        (token_length.TABLE, set()),
        (ablation.TABLE, set()),
        (zoo.TABLE, set()),
    ],
    ids=lambda value: value.name if isinstance(value, Table) else "",
)
def test_a_tokenizer_is_shared_if_its_training_is_the_same(tmp_path: Path, table: Table, shared: set[str]) -> None:
    """The tokenizers of steps 4 to 6 of the ablation share a name, but not their training."""
    plans = planned(table, tmp_path)
    assert {plan.row.recipe.row for plan in plans if plan.row.tokenizer_shared} == shared
    folders = [plan.row.tokenizer.folder for plan in plans]
    assert len(set(folders)) == len(folders) - max(len(shared) - 1, 0)


def test_stages_are_ordered_depth_first(tmp_path: Path) -> None:
    """The first row's result comes before the next row's training, the first seed's table before the second seed's."""
    tasks = graph(planned(table2.TABLE, tmp_path, seeds=(3, 4)))
    listed: set[str] = set()
    for task in tasks:
        assert listed.issuperset(task.after)
        listed.add(task.name)
    names = [task.name for task in tasks]
    ends = [names.index(name) for name in names if name.startswith("table2")]
    assert len(ends) == 8
    assert all(name.endswith("seed 3") or "seed" not in name for name in names[: ends[3] + 1])
    assert names[ends[0] + 1].startswith("generator")  # the unfolded row's, on the same tokens
    assert names[ends[1] + 1].startswith("tokenizer")
    assert len(names) == len(set(names))


def test_a_failure_stops_what_needs_it_and_nothing_else() -> None:
    tasks = [
        Task("a", print, ()),
        Task("b", print, (), ("a",)),
        Task("c", print, (), ("b", "a")),
        Task("d", print, ()),
    ]
    assert consequences(tasks, {"a": "no disk"}) == {
        "a": "no disk",
        "b": "a failed: no disk",
        "c": "b failed: a failed: no disk",
    }


def test_results_are_flagged_unless_the_current_code_made_them(
    tmp_path: Path,
    table: RunTable,
    executed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Finished results stay as they are, but the plan shows what has changed since, and --fresh redoes them."""

    def outdated() -> tuple[str, ...]:
        (plan,) = planned(table2.TABLE, tmp_path, rows=("vq",))
        assert plan.recorded
        return plan.outdated

    assert table(tmp_path, "vq") == 0
    assert outdated() == ()
    for part, results in (
        ("tokenizer", ["tokenizer", "generator", "record"]),
        ("generator", ["generator", "record"]),
        ("evaluation", ["record"]),
    ):
        changed = code_hashes() | {part: "0" * 64}
        with monkeypatch.context() as patch:
            patch.setattr(versions, "code_hashes", lambda changed=changed: changed)
            lines = outdated()
            assert [line.split()[0] for line in lines] == results
            assert all(f"the code of {part}/ has changed since" in line for line in lines)

    executed.clear()
    capsys.readouterr()
    changed = code_hashes() | {"tokenizer": "0" * 64}
    monkeypatch.setattr(versions, "code_hashes", lambda: changed)
    monkeypatch.setattr("reproductions.recording.code_hashes", lambda: changed)
    assert table(tmp_path, "vq") == 0
    assert executed == []
    shown = " ".join(capsys.readouterr().out.split())
    assert "the code of tokenizer/ has changed since" in shown
    assert "--fresh redoes" in shown
    assert table(tmp_path, "vq", fresh=True) == 0
    assert [name.split()[0] for name in executed] == ["tokenizer", "tokens", "generator", "table2"]
    assert outdated() == ()

    (plan,) = planned(table2.TABLE, tmp_path, rows=("vq",))
    entry = read_json(plan.row.tokenizer.folder / CODE)["versions"][-1]
    assert entry["code"] == changed
    (plan.row.tokenizer.folder / CODE).unlink()
    (line,) = outdated()
    assert line.startswith("tokenizer")
    assert "unknown version" in line


def test_comments_and_docstrings_do_not_count_as_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    path = tmp_path / "module.py"

    def sha256(text: str) -> str:
        path.write_text(text)
        return versions._hash([path])

    plain = sha256("def f(x):\n    return x + 1\n")
    assert sha256('"""Doc."""\n\ndef f(x):  # a comment\n    """Doc."""\n    return (x + 1)\n') == plain
    assert sha256("def f(x):\n    return x + 2\n") != plain


def test_missing_weights_are_refused_before_anything_is_trained(
    tmp_path: Path, table: RunTable, executed: list[str]
) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pt: no such file"):
        table(tmp_path, "vq", tokenizer_weights=str(tmp_path / "nowhere.pt"))
    assert executed == []
