from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from leaderboard.claims import CLAIMS, Claim, Pair
from leaderboard.claims_view import claim_tables, claims_frame
from leaderboard.record import Cost, Dataset, Record
from leaderboard.reported import reported_frame
from leaderboard.store import RecordError
from leaderboard.verdicts import Finding, evaluate_claims, paired_values
from leaderboard.view import measured_tables

IMAGEFOLDER = Claim("key", "ImageFolder beats VAR", "here", (Pair("table2", "imagefolder", "var"),), "gFID", "lower")


@pytest.fixture
def reported(reported_csv: Path):
    return reported_frame(reported_csv, all_kinds=True)


@pytest.fixture
def judged(reported) -> Callable[..., Finding]:
    """Evaluates one claim on records of one scale and data set."""

    def evaluate(records: list[Record], claim: Claim = IMAGEFOLDER) -> Finding:
        (finding,) = evaluate_claims(records, reported, (claim,))
        return finding

    return evaluate


def rows(make, first: list[float], second: list[float], **changes: object) -> list[Record]:
    """Records of imagefolder and var with these proxy-gFIDs, by seed."""
    records = [make("imagefolder", seed, value, **changes) for seed, value in enumerate(first)]
    return records + [make("var", seed, value, **changes) for seed, value in enumerate(second)]


def test_seeds_are_paired(make, judged):
    # Seeds differ far more than rows: only paired do they show that var is worse by one
    finding = judged(rows(make, [2.0, 12.0, 22.1], [3.0, 13.1, 23.0]))
    assert finding.verdict == "holds"
    assert finding.metric == "proxy-gFID"
    assert finding.differences == pytest.approx([-1.0, -1.1, -0.9])
    assert (finding.seeds, finding.paper) == ((0, 1, 2), "number not known")
    assert finding.records == tuple(
        f"table2-{row}-mini-digits-d1d1d1d1-seed{seed}" for seed in range(3) for row in ("imagefolder", "var")
    )


def test_only_seeds_of_both_rows_count(make, judged):
    finding = judged(rows(make, [2.0, 2.1, 2.0, 90.0], [3.0, 3.1, 3.2]))
    assert (finding.verdict, finding.seeds) == ("holds", (0, 1, 2))
    finding = judged(rows(make, [2.0, 2.1, 2.0, 2.0], [3.0, 3.1]))
    assert (finding.verdict, finding.seeds) == ("undecided", (0, 1))
    finding = judged([make("imagefolder", 0), make("var", 1)])
    assert (finding.verdict, finding.reason) == ("not run", "the two rows share no finished seed")


@pytest.mark.parametrize("status", ["failed", "not run"])
def test_records_without_a_result_do_not_count(make, failed, judged, status):
    def broken(seed: int) -> Record:
        # Values in such a record are ignored
        metrics = make("var", seed, 0.1).metrics
        return failed("var", seed, "no memory").model_copy(update={"status": status, "metrics": metrics})

    records = rows(make, [2.0, 2.1, 2.0, 2.1], [3.0, 3.1, 3.2])
    assert judged([*records, broken(3)]).seeds == (0, 1, 2)
    finding = judged([*records[:4], broken(0)])
    assert finding.verdict == "not run"
    assert finding.reason == f"var: {status}, see its row in table2"
    assert (finding.values, finding.records) == ((), ())


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("--data /my/photos --seeds 0", "/my/photos"),
        ("--data='/my photos'", "'/my photos'"),
        ("--seeds 0", "DIR"),
        ("--data '/cut off", "DIR"),
        ("--data", "DIR"),
    ],
)
def test_missing_rows_name_the_data_as_it_was_given(make, judged, given, named):
    record = make("imagefolder")
    run = record.run.model_copy(update={"command": f"python reproductions/table2.py {given}"})
    photos = record.dataset.model_copy(update={"name": "photos"})
    finding = judged([record.model_copy(update={"run": run, "dataset": photos})])
    assert finding.reason.endswith(f"--rows var --data {named}")


def test_missing_rows_and_metrics_are_named(make, metric, judged):
    finding = judged([make("imagefolder")])
    assert (finding.verdict, finding.reason) == ("not run", "no record; python reproductions/table2.py --rows var")
    photos = make("imagefolder").dataset.model_copy(update={"name": "photos"})
    finding = judged([make("imagefolder", scale="small", dataset=photos)])
    assert finding.reason.endswith("--rows var --scale small --data DIR")
    finding = judged([make("imagefolder", scale="laptop", budget="steps=500 samples=100")])
    assert finding.reason.endswith("--rows var --scale laptop --budget steps=500 samples=100")
    finding = judged([make("imagefolder"), make("var", metrics=[metric("PSNR", 20.0)])])
    assert (finding.verdict, finding.reason) == ("not run", "var has no proxy-gFID")


def test_rows_of_other_budgets_decide_nothing(make, reported):
    findings = evaluate_claims([make("imagefolder"), make("var", budget="steps=500")], reported, (IMAGEFOLDER,))
    assert [(finding.budget, finding.verdict) for finding in findings] == [("", "not run"), ("steps=500", "not run")]


def changed(record: Record, **changes: object) -> Record:
    return record.model_copy(update=changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, metric: {"metrics": [metric("proxy-gFID", 9.0, version=2)]}, "protocols of proxy-gFID"),
        (lambda r, metric: {"metrics": [metric("proxy-gFID", 9.0, reference="digits/test")]}, "digits/test"),
        (lambda r, metric: {"metrics": [metric("proxy-gFID", 9.0, evaluator="torch-fidelity 0.5")]}, "fidelity 0.5"),
        (lambda r, metric: {"metrics": [metric("proxy-gFID", 9.0, extractor_sha256="ff" * 32)]}, "ffffffff"),
        (lambda r, metric: {"metrics": [metric("proxy-gFID", 9.0, description="other")]}, "descriptions of proxy-gFID"),
        (
            lambda r, metric: {"metrics": [metric("proxy-gFID", 9.0).model_copy(update={"n_generated": 50})]},
            "1437 1000; .* 1437 50",
        ),
        (lambda r, metric: {"metrics": [*r.metrics, metric("proxy-gFID", 9.0, version=2)]}, "protocols of proxy-gFID"),
        (lambda r, metric: {"config": r.config | {"generator_training": {"steps": 9}}}, "training budgets: .*9 steps"),
        (lambda r, metric: {"dataset": r.dataset.model_copy(update={"sha256": "ee" * 32})}, "data sets"),
        (lambda r, metric: {"scale": "small"}, "scales: mini; small"),
    ],
)
def test_values_that_are_not_comparable_are_an_error(make, metric, change, message):
    one, other = make("imagefolder"), make("var")
    assert paired_values([(one, other)], "proxy-gFID") == [(2.5, 2.5)]
    with pytest.raises(RecordError, match=message) as caught:
        paired_values([(one, changed(other, **change(other, metric)))], "proxy-gFID")
    assert "\n" not in str(caught.value)


def test_published_metrics_are_preferred_to_proxies_if_both_rows_have_them(make, metric, judged):
    def with_published(record: Record, value: float) -> Record:
        published = metric("gFID", value, extractor="inception-2015-12-05", extractor_sha256="ff" * 32)
        return changed(record, metrics=[*record.metrics, published])

    records = rows(make, [2.0], [3.0])
    assert judged([with_published(records[0], 9.0), records[1]]).metric == "proxy-gFID"
    finding = judged([with_published(records[0], 9.0), with_published(records[1], 8.0)])
    assert (finding.metric, finding.values) == ("gFID", ((9.0, 8.0),))


def test_protocols_are_never_mixed_over_seeds(make, metric, judged):
    records = rows(make, [2.0, 2.1, 2.2], [3.0, 3.1, 3.2])
    for i in (2, 5):  # the third seed of both rows: comparable with each other, but with no other seed
        value = next(m.value for m in records[i].metrics if m.protocol.name == "proxy-gFID")
        records[i] = changed(records[i], metrics=[metric("proxy-gFID", value, version=2)])
    finding = judged(records)
    assert finding.verdict == "not comparable"
    assert "different protocols of proxy-gFID: proxy-gFID@1" in finding.reason
    assert finding.values == ()


def test_configurations_of_a_row_are_never_mixed(make, judged):
    records = rows(make, [2.0, 2.1, 2.2], [3.0, 3.1, 3.2])
    records[1] = changed(records[1], config=records[1].config | {"tokenizer": {"branches": 2, "width": 128}})
    finding = judged(records)
    assert (finding.verdict, finding.values) == ("not comparable", ())
    assert finding.reason.startswith("different configurations of imagefolder: ")


def test_data_sets_and_scales_are_judged_separately(make, metric, reported):
    other = Dataset(name="digits", sha256="ee" * 32, n_train=1437, n_test=360, classes=10, image_size=16)
    records = rows(make, [2.0, 2.1, 2.2], [3.0, 3.1, 3.3]) + rows(make, [4.0, 4.1, 4.2], [3.0, 3.1, 3.3], dataset=other)
    published = metric("gFID", 1.0, extractor="inception-2015-12-05", extractor_sha256="ff" * 32)
    records += [*rows(make, [4.0], [3.0], scale="small"), make("imagefolder", scale="full", metrics=[published])]
    findings = evaluate_claims(records, reported, (IMAGEFOLDER,))
    places = [(f.scale, f.dataset_sha256[:2], f.verdict, f.metric) for f in findings]
    assert places == [
        ("mini", "d1", "holds", "proxy-gFID"),
        ("mini", "ee", "does not hold", "proxy-gFID"),
        ("small", "d1", "undecided", "proxy-gFID"),
        ("full", "d1", "not run", "gFID"),
    ]
    titles = [table.title for table in claim_tables(findings)]
    assert titles[:2] == ["mini · digits (images d1d1d1d1)", "mini · digits (images eeeeeeee)"]


def test_sizes_must_be_equal_if_the_claim_requires_it(make, judged):
    claim = Claim("k", "t", "s", IMAGEFOLDER.pairs, "positions", "half", equal="tokens")
    one, two = make("imagefolder"), make("var")
    assert judged([one, two], claim).verdict == "holds"  # 30 and 60 positions, one seed decides
    more = changed(two, size=two.size.model_copy(update={"tokens": 61}))
    finding = judged([one, more], claim)
    assert (finding.verdict, finding.reason) == ("not comparable", "different numbers of tokens: 60; 61")


def with_speed(record: Record, speed: float | None = None, **changes: object) -> Record:
    cost = record.cost.model_dump() | {"samples_per_second": speed or record.cost.samples_per_second} | changes
    return changed(record, cost=Cost(**cost))


SPEED_CLAIM = Claim("k", "t", "s", IMAGEFOLDER.pairs, "samples_per_second", "higher")


@pytest.fixture
def speeds(make) -> list[Record]:
    """var is a little faster in every seed."""
    records = rows(make, [2.0, 2.1, 2.2], [3.0, 3.1, 3.2])
    return [with_speed(r, 100 + r.seed + (20 + r.seed) * (r.row == "var")) for r in records]


def test_times_of_different_machines_are_not_comparable(speeds, judged):
    assert judged(speeds, SPEED_CLAIM).verdict == "does not hold"
    more = changed(speeds[1], run=speeds[1].run.model_copy(update={"processes": 2}))
    assert judged([more, *speeds], SPEED_CLAIM).verdict == "does not hold"  # replaced by the later record
    assert judged([speeds[0], more, *speeds[2:]], SPEED_CLAIM).verdict == "not comparable"
    threads = with_speed(speeds[1], threads=1)
    assert "threads" in judged([speeds[0], threads, *speeds[2:]], SPEED_CLAIM).reason


@pytest.mark.parametrize("alone", [False, None])
def test_speeds_count_only_if_measured_alone(speeds, judged, alone):
    busy = [with_speed(r, alone=alone) if r.row == "var" else r for r in speeds]
    finding = judged(busy, SPEED_CLAIM)
    assert (finding.verdict, finding.values) == ("not comparable", ())
    assert finding.reason.startswith("speed of var not known to be measured alone")
    finding = judged([*speeds[:4], *busy[4:]], SPEED_CLAIM)
    assert (finding.verdict, finding.seeds) == ("undecided", (0,))
    none = [changed(r, cost=None) for r in speeds]
    assert judged(none, SPEED_CLAIM).reason == "imagefolder has no samples_per_second; var has no samples_per_second"


def test_the_first_table_with_both_rows_decides(make, judged):
    claim = Claim("k", "t", "s", (Pair("folding", "folded", "unfolded"), *IMAGEFOLDER.pairs), "gFID", "lower")
    records = rows(make, [2.0, 2.1, 2.2], [3.0, 3.1, 3.2])
    assert judged(records, claim).pair.table == "table2"
    folded = [make(row, 0, gfid, table="folding") for row, gfid in (("folded", 3.0), ("unfolded", 2.0))]
    assert judged([*records, folded[0]], claim).pair.table == "table2"
    assert judged([*records, *folded], claim).pair.table == "folding"
    assert judged([make(table="ablation")], claim).reason.startswith("no record; python reproductions/folding.py")


def test_reported_numbers_agree_with_the_claims(reported, make):
    findings = evaluate_claims([make()], reported)
    numbers = 0
    for finding in findings:
        if finding.claim.reported is None:
            assert finding.paper in ("number not known", "286 positions for 2 × 286 tokens")
            continue
        row, other = map(float, re.match(r"([\d.]+) against ([\d.]+)", finding.paper).groups())
        assert (row < other) == (finding.claim.direction == "lower"), finding
        numbers += 1
    assert numbers == 20
    papers = {finding.claim.key: finding.paper for finding in findings}
    assert papers["table2-var-gFID"] == "2.60 against 3.30 (after the paper)"
    assert papers["ablation-3-rFID"] == "3.24 against 1.71"
    assert papers["ablation-8-gFID"] == "2.60 against 2.94 (after the paper)"
    assert papers["probe-7-quantized"] == "50.2 against 40.5 (after the paper)"


def test_claims_refer_to_existing_rows():
    from reproductions import ablation, branches, folding, linear_probe, table2, token_length
    from reproductions.scales import SCALES

    scripts = {
        "ablation": ablation, "branches": branches, "folding": folding, "linear_probe": linear_probe,
        "table2": table2, "token_length": token_length,
    }  # fmt: skip
    for scale in SCALES.values():
        known = {name: {recipe.row for recipe in script.rows(scale, 10)} for name, script in scripts.items()}
        for claim in CLAIMS:
            for pair in claim.pairs:
                assert {pair.row, pair.other} <= known[pair.table], (scale.name, claim.key)
    assert len({claim.key for claim in CLAIMS}) == len(CLAIMS)


def test_table_has_every_number(make, reported):
    frame = claims_frame(evaluate_claims(rows(make, [2.0, 2.2, 2.1], [3.0, 3.1, 3.5]), reported))
    assert len(frame) == len(CLAIMS)
    row = frame.set_index("claim").loc["table2-var-gFID"]
    assert (row["row_mean"], row["other_mean"]) == pytest.approx((2.1, 3.2))
    assert row["difference"] == pytest.approx(-1.1)
    assert row["difference_sd"] == pytest.approx(math.sqrt((0.1**2 + 0.2**2 + 0.3**2) / 2))  # of -1.0, -0.9, -1.4
    low, high = row["difference_low"], row["difference_high"]
    assert (low + high) / 2 == pytest.approx(-1.1)
    assert high - low == pytest.approx(2 * 4.302653 * row["difference_sd"] / math.sqrt(3))
    assert row["p_corrected"] == 2 * row["p"] < 0.05  # rFID is tested as well
    assert (row["seeds"], row["verdict"], row["n_real"], row["n_generated"]) == ("0 1 2", "holds", "1437", "1000")
    assert row["protocol"] == "proxy-gFID@1/digits/train/proxy-cnn:ab12cd34"
    assert row["records"].split()[1] == "table2-var-mini-digits-d1d1d1d1-seed0"
    missing = frame.set_index("claim").loc["branches-gFID"]
    assert (missing["verdict"], missing["records"]) == ("not run", "")
    assert math.isnan(missing["difference"])


def test_report_shows_interval_and_p(make, reported):
    findings = evaluate_claims(rows(make, [2.0, 2.2, 2.1], [3.0, 3.1, 3.5]), reported)
    (table,) = claim_tables(findings)
    assert table.counts.endswith("; p corrected for 2 tests")  # rFID as well
    row = next(row for row in table.rows if row.finding.claim.key == "table2-var-gFID")
    assert (row.difference, row.spread, row.interval) == ("-1.10", "± 0.26", "-1.76 to -0.44")
    assert row.p == "0.019, corrected 0.037"


def test_table_tells_training_from_sampling(make, metric, reported, tmp_path):
    def sampled(row: str, seed: int, value: float, spread: float | None) -> Record:
        return make(row, seed, metrics=[metric("proxy-gFID", value).model_copy(update={"spread": spread})])

    records = [sampled("imagefolder", seed, value, 0.1) for seed, value in enumerate((2.0, 2.4, 2.9))]
    records += [sampled("var", seed, 3 + seed / 100, 0.1) for seed in range(2)] + [sampled("vq", 0, 4.0, 0.1)]
    (table,) = measured_tables(records, tmp_path, reported)
    (remark,) = [remark for remark in table.remarks if remark.startswith("Spread of proxy-gFID over seeds")]
    assert "ImageFolder (folded): training 0.440, sampling 0.100 (3 seeds); VAR (not folded): training not" in remark
    assert "vq" not in remark
    (table,) = measured_tables([sampled("var", seed, 3.0 + seed, None) for seed in range(3)], tmp_path, reported)
    assert not [remark for remark in table.remarks if remark.startswith("Spread of")]


def test_interval_over_images_is_shown_for_one_seed_only(make, metric, reported, tmp_path):
    records = [
        make("var", seed, metrics=[metric("proxy-gFID", 3.0 + seed).model_copy(update={"interval": (2.871, 3.129)})])
        for seed in range(2)
    ]
    spreads = [measured_tables(some, tmp_path, reported)[0].rows[0].cells[0].spread for some in (records[:1], records)]
    assert spreads == ["[2.87, 3.13] over images", "± 0.71"]
