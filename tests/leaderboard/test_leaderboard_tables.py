from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from leaderboard.reported import reported_frame
from leaderboard.store import RecordError
from leaderboard.tables import leaderboard_frame, measured_frame, metric_labels


def with_gfid(make, metric, value, seed=0, row="imagefolder", **changes):
    return make(row, seed, metrics=[metric("proxy-gFID", value, **changes)])


def test_seeds_are_aggregated_to_mean_and_sample_deviation(make, metric):
    frame = measured_frame([with_gfid(make, metric, value, seed) for seed, value in enumerate((2.0, 3.0, 7.0))])
    assert len(frame) == 1
    row = frame.iloc[0]
    assert row["proxy-gFID"] == pytest.approx(4.0)
    assert row["proxy-gFID sd"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))  # ddof=1
    assert (row["n_seeds"], row["seeds"], row["proxy-gFID seeds"]) == (3, "0 1 2", 3)
    assert (row["proxy-gFID n_real"], row["proxy-gFID n_generated"]) == (1437, 1000)
    assert row["generator_train_seconds"] == pytest.approx(34.25)
    assert row["codebook_usage"] == pytest.approx(0.55)


def test_one_seed_has_no_deviation(make, metric):
    row = measured_frame([with_gfid(make, metric, 2.0)]).iloc[0]
    assert row["proxy-gFID"] == 2.0
    assert math.isnan(row["proxy-gFID sd"])


def test_failed_seed_does_not_count_in_the_mean(make, metric, failed):
    partial = failed("imagefolder", 1, "out of memory").model_copy(update={"metrics": [metric("proxy-gFID", 900.0)]})
    row = measured_frame([with_gfid(make, metric, 2.0), partial]).iloc[0]
    assert (row["proxy-gFID"], row["n_seeds"], row["failed"]) == (2.0, 1, "seed 1: out of memory")


@pytest.mark.parametrize(
    ("changes", "suffixes"),
    [
        ({"version": 2}, ["v1", "v2"]),
        ({"extractor_sha256": "ff" * 32}, ["proxy-cnn:ab12cd34", "proxy-cnn:ffffffff"]),
        ({"reference": "digits/test"}, ["digits/train", "digits/test"]),
        ({"evaluator": "torch-fidelity 0.5.0"}, ["torch-fidelity 0.4.0", "torch-fidelity 0.5.0"]),
    ],
)
@pytest.mark.parametrize("same_row", [True, False])
def test_other_protocol_gets_another_column(make, metric, changes, suffixes, same_row):
    other = with_gfid(make, metric, 100.0, seed=1, row="imagefolder" if same_row else "var", **changes)
    frame = measured_frame([with_gfid(make, metric, 2.0), other])
    first, second = (f"proxy-gFID [{suffix}]" for suffix in suffixes)
    assert "proxy-gFID" not in frame
    assert frame[first].dropna().tolist() == [2.0]
    assert frame[second].dropna().tolist() == [100.0]


def test_other_number_of_images_gets_another_column(make, metric):
    few = metric("proxy-gFID", 9.0).model_copy(update={"n_generated": 100})
    frame = measured_frame([with_gfid(make, metric, 2.0), make("var", metrics=[few])])
    assert frame["proxy-gFID [1000 vs 1437 images]"].dropna().tolist() == [2.0]
    assert frame["proxy-gFID [100 vs 1437 images]"].dropna().tolist() == [9.0]


def test_protocols_with_indistinguishable_labels_are_numbered(make, metric):
    hashes = ["ab12cd34" + end * 56 for end in "01"]
    records = [with_gfid(make, metric, 2.0 + seed, seed, extractor_sha256=sha) for seed, sha in enumerate(hashes)]
    assert list(metric_labels(records).values()) == ["proxy-gFID", "proxy-gFID (2)"]
    row = measured_frame(records).iloc[0]
    assert (row["proxy-gFID"], row["proxy-gFID (2)"]) == (2.0, 3.0)


@pytest.mark.parametrize("name", ["positions", "origin", "records", "gFID (reported)", "source", "codebook_usage"])
def test_metric_named_like_another_column_gets_a_separate_one(make, metric, reported_csv, name):
    record = make(metrics=[metric(name, 1.5), metric("x", 1.0), metric("x sd", 7.0)])
    frame = leaderboard_frame([record], reported_frame(reported_csv))
    assert len(set(frame)) == len(list(frame))
    assert (frame[f"{name} (2)"].iloc[0], frame["x sd (2)"].iloc[0]) == (1.5, 7.0)


def test_record_with_a_metric_twice_is_an_error(make, metric):
    with pytest.raises(ValidationError, match="twice"):
        make(metrics=[metric("proxy-gFID", 1.0), metric("proxy-gFID", 2.0)])
    with pytest.raises(RecordError, match="twice"):
        measured_frame([make(), make()])


def test_other_configuration_or_data_set_is_another_row(make, metric):
    first = with_gfid(make, metric, 2.0, seed=0)
    config = {"tokenizer": {"branches": 2, "width": 128}, "row": "imagefolder", "seed": 1}
    wider = with_gfid(make, metric, 4.0, seed=1).model_copy(update={"config": config})
    images = with_gfid(make, metric, 6.0, seed=2)
    images = images.model_copy(update={"dataset": images.dataset.model_copy(update={"sha256": "ee" * 32})})
    frame = measured_frame([first, wider, images])
    assert frame["proxy-gFID"].tolist() == [2.0, 4.0, 6.0]


def test_reported_rows_of_the_default_kinds(reported_csv):
    everything, default = reported_frame(reported_csv, all_kinds=True), reported_frame(reported_csv)
    assert len(everything) == 217
    left_out = {"VAR-ablation", "tokenizer", "reference", "one-step", "GAN"}
    assert set(everything["kind"]) - set(default["kind"]) == left_out
    assert set(default["family"]) == {"autoregressive", "masked", "diffusion"}
    assert len(default) == len(everything[~everything["kind"].isin(left_out)])


def test_reported_numbers_are_read_as_printed(tmp_path, reported_csv):
    first = reported_frame(reported_csv).iloc[0]
    assert (first["gfid"], first["steps"], first["arxiv"], first["verified"]) == (2.60, 10, "2410.01756", "yes")
    cut = tmp_path / "cut.csv"
    header = "system,kind,year,arxiv,tokenizer_rfid,tokens,codebook,params_m,steps,gfid,is,precision,recall,cfg,source"
    cut.write_text(f"{header},verified\nA system,AR,2024,2410.01750,,256,,,,,,,,,a source,no\n")
    row = reported_frame(cut).iloc[0]  # without the optional columns
    assert row["arxiv"] == "2410.01750"  # not a number: its last zero counts
    assert math.isnan(row["gfid"])
    assert row["codebook"] == ""


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "", "{header}\nA,,AR,2024,,,,,,,,,about 2,,,,,,,source,yes\n"])
def test_unusable_reported_file_is_one_line(tmp_path, reported_csv, content):
    path = tmp_path / "bad.csv"
    path.write_text(content.format(header=reported_csv.read_text().splitlines()[0]))
    with pytest.raises(RecordError, match=r"bad\.csv") as caught:
        reported_frame(path)
    assert "\n" not in str(caught.value)


def test_measured_and_reported_numbers_share_no_column(make, metric, reported_csv):
    # Not even a measured metric with the name of a reported one
    record = make(metrics=[metric("proxy-rFID", 1.75), metric("gFID", 5.5), metric("proxy-gFID", 2.5)])
    frame = leaderboard_frame([record], reported_frame(reported_csv))
    measured, reported = frame[frame["origin"] == "measured"], frame[frame["origin"] == "reported"]
    assert (len(measured), len(reported)) == (1, 191)
    assert measured[["proxy-rFID", "gFID", "proxy-gFID"]].values.tolist() == [[1.75, 5.5, 2.5]]
    assert reported["gFID (reported)"].iloc[0] == 2.60
    identity = {"origin", "label"}
    shared = {c for c in frame if measured[c].notna().any() and reported[c].notna().any()}
    assert shared == identity
