"""Noise over sets of samples, and the curves of a sweep over sampling settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from make_records import REPORTED_CSV, make_metric, make_record

from leaderboard.drawing import svg
from leaderboard.record import Record
from leaderboard.reported import reported_frame
from leaderboard.view import MeasuredTable, measured_tables

VALUES = {
    "imagefolder-g0": (0.0, 9.0, 7.0),
    "imagefolder-g1": (1.0, 5.0, 8.0),
    "imagefolder-default": (2.0, 6.0, 8.5),
    "imagefolder-g1-temperature0.9": (1.0, 4.5, 8.2),
    "var-g1": (1.0, 12.0, 7.5),
    "var-default": (2.0, 11.0, 8.1),
}
"""Row -> guidance, gFID, IS"""


def sweep(**changes: Any) -> list[Record]:
    records = []
    for order, (row, (guidance, gfid, score)) in enumerate(VALUES.items()):
        generator = {"imagefolder": "ImageFolder", "var": "VAR"}[row.partition("-")[0]]
        words = f"guidance {guidance:g}" + (", temperature 0.9" if "temperature" in row else "")
        for seed in (0, 1):
            metrics = [make_metric("proxy-gFID", gfid + seed / 10), make_metric("proxy-IS", score)]
            config = {"sampling": {"guidance": guidance}, "seed": seed}
            values: dict[str, Any] = {"label": f"{generator} · {words}", "order": order, "metrics": metrics}
            values |= {"table": "guidance", "config": config, "pictures": {}} | changes
            records.append(make_record(row, seed, **values))
    return records


def shown(records: list[Record], output: Path) -> MeasuredTable:
    (table,) = measured_tables(records, output, reported_frame(REPORTED_CSV, all_kinds=True))
    return table


def test_a_sweep_has_one_curve_per_generator_and_marks_default_and_chosen(tmp_path: Path) -> None:
    table = shown(sweep(), tmp_path)
    (chart,) = table.charts
    assert chart.title == "guidance · mini · digits: proxy-gFID against proxy-IS, by guidance"
    for text in (">ImageFolder<", ">VAR<", ">default<", ">chosen: lowest gFID<"):
        assert text in svg(chart)
    (chosen,) = [remark for remark in table.remarks if remark.startswith("Chosen")]
    assert "ImageFolder: guidance 1, temperature 0.9 (4.55, default guidance 2: 6.05)" in chosen
    assert "VAR: guidance 2 (11.05)" in chosen
    assert shown(sweep(), tmp_path).charts == table.charts


def test_a_sweep_has_the_range_of_the_sampling_noise_but_no_sentence_per_row(tmp_path: Path) -> None:
    records = [
        r.model_copy(update={"metrics": [m.model_copy(update={"spread": 0.1 + r.seed / 10}) for m in r.metrics]})
        for r in sweep()
    ]
    remarks = shown(records, tmp_path).remarks
    assert [r for r in remarks if "Sampling noise" in r and "proxy-gFID 0.100–0.200" in r]
    assert not [r for r in remarks if r.startswith("Spread of")]


def test_every_feature_space_has_curves_and_the_first_one_chooses(tmp_path: Path) -> None:
    records = []
    for r in sweep():
        gfid, score = r.metrics
        lite = [make_metric("lite0-gFID", 60 - gfid.value), make_metric("lite0-IS", score.value)]
        alone = make_metric("convnext-gFID", 50.0)  # without an IS of its own
        records.append(r.model_copy(update={"metrics": [gfid, score, *lite, alone]}))
    table = shown(records, tmp_path)
    assert [chart.title.split(": ")[1] for chart in table.charts] == [
        "proxy-gFID against proxy-IS, by guidance",
        "lite0-gFID against lite0-IS, by guidance",
    ]
    (chosen,) = [remark for remark in table.remarks if remark.startswith("Chosen")]
    assert chosen.startswith("Chosen, as the lowest proxy-gFID: ")


def test_given_weights_have_a_curve_of_their_own(tmp_path: Path) -> None:
    given = [
        r.model_copy(update={"row": f"{r.row}-given", "label": f"{r.label} (given weights)"})
        for r in sweep()
        if r.row == "var-default"
    ]
    table = shown(sweep() + given, tmp_path)
    assert ">VAR (given weights)<" in svg(table.charts[0])
    assert "VAR (given weights): guidance 2 (11.05)" in next(r for r in table.remarks if r.startswith("Chosen"))


def test_records_without_settings_or_values_do_not_stop_the_report(tmp_path: Path) -> None:
    assert "NaN" not in svg(shown(sweep(config={}), tmp_path).charts[0])
    assert shown(sweep(metrics=[make_metric("PSNR", 20.0)]), tmp_path).charts == []


@pytest.mark.parametrize(
    ("spreads", "text"), [((0.2, 0.4), "proxy-gFID 0.200–0.400"), ((0.2, 0.2), "proxy-gFID 0.200")]
)
def test_noise_over_sets_of_samples_is_told_below_the_table(
    tmp_path: Path, spreads: tuple[float, float], text: str
) -> None:
    records = []
    for seed, spread in enumerate(spreads):
        metric = make_metric("proxy-gFID", 5.0).model_copy(update={"spread": spread})
        splits = make_metric("proxy-IS", 8.0).model_copy(update={"spread": 0.7})  # over splits: another thing
        config = {"sampling_seeds": 3, "seed": seed}
        records.append(make_record(seed=seed, metrics=[metric, splits], config=config, pictures={}))
    remarks = shown(records, tmp_path).remarks
    (remark,) = [r for r in remarks if "Sampling noise" in r]
    assert f"over 3 sets of samples of one model: {text}. " in remark
    assert [r for r in remarks if r.startswith("Spread of proxy-gFID over seeds")]


def test_there_is_no_noise_of_one_set(tmp_path: Path) -> None:
    assert not [r for r in shown([make_record(pictures={})], tmp_path).remarks if "Sampling noise" in r]
