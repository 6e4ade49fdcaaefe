"""Charts: what they show, as which bytes, and what is left out of them."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from make_records import REPORTED_CSV, make_metric, make_record
from reference_curves import STEPS, curve, identity
from suite_records import full_record, record

from leaderboard import curves_view, drawing
from leaderboard.charts import INK, Chart, Range, data, distinct, labels, make_chart
from leaderboard.curves_view import training_charts
from leaderboard.drawing import Gallery, svg, vega_script
from leaderboard.measured_charts import codebook_charts
from leaderboard.record import Checkpoint, Record
from leaderboard.reference_files import Curves, SeedCurve, thinned
from leaderboard.reported import INCEPTION_SHA256, reported_frame
from leaderboard.reported_chart import reported_charts
from leaderboard.tables import codebook_frame
from leaderboard.view import MeasuredTable, measured_tables

HOSTILE = "</script></svg><script>alert('x')</script> & \"q\" $x_1$ {{ 7 }} datum.value"


def table_of(records: list[Record], output: Path) -> MeasuredTable:
    (table,) = measured_tables(records, output, reported_frame(REPORTED_CSV, all_kinds=True))
    return table


def panels(chart: Chart) -> list[dict[str, Any]]:
    return chart.spec.get("concat", [chart.spec])


def values_of(view: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of all layers."""
    parts = [view, *view.get("layer", [])]
    return [value for part in parts for value in part.get("data", {}).get("values", [])]


def simple(text: str = "row") -> Chart:
    spans = Range(0, 2), Range(0, 2)
    x, y = spans[0].axis("x", text), spans[1].axis("y", text)
    points = [{"x": 1.0, "y": 1.0, "label": text}]
    layer = [{"data": data(points), "mark": "point", "encoding": {"x": x, "y": y}}]
    layer.append(labels(points, x, y, spans, (640, 360), alone=True))
    return make_chart(text, f"of {text}", [{"layer": layer}])


def test_picture_has_title_and_description_and_the_text_colour_of_the_page():
    text = svg(simple(HOSTILE))
    root = ElementTree.fromstring(text)
    title, description, style = root[0], root[1], root[2]
    assert (title.text, description.text) == (HOSTILE, f"of {HOSTILE}")
    assert root.attrib["role"] == "img"
    assert style.text is not None
    assert "prefers-color-scheme:dark" in style.text
    assert "currentColor" in text
    assert INK not in text
    assert "<script" not in text
    assert HOSTILE in {element.text for element in root.iter()}  # unchanged, not evaluated


def test_equal_charts_give_equal_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "first"))
    first = svg(simple())
    monkeypatch.setenv("HOME", str(tmp_path / "second"))
    assert svg(simple()) == first
    assert svg(simple("other")) != first


def test_charts_are_kept_and_drawn_again_if_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(drawing, "MOST_KEPT", 2)
    first = svg(simple())
    (kept,) = (tmp_path / ".cache/imagefolder/charts").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "_asked", None)
        assert svg(simple()) == first
    kept.write_text(kept.read_text().replace("svg", "changed"))
    assert svg(simple()) == first
    os.utime(kept, (0, 0))
    svg(simple("second")), svg(simple("third"))
    left = list((tmp_path / ".cache/imagefolder/charts").iterdir())
    assert len(left) == 2
    assert kept not in left


def test_a_forked_process_draws(tmp_path, monkeypatch):
    """As one of the tests of kills does, or a program that forks after it has made a report."""
    monkeypatch.setenv("HOME", str(tmp_path))
    svg(simple("before the fork"))
    process = multiprocessing.get_context("fork").Process(target=svg, args=(simple("after it"),))
    process.start()
    process.join(60)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0


def test_a_painter_that_has_ended_is_named_and_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    svg(simple("first"))
    painter = drawing._painter(os.getpid())
    painter.kill()
    painter.wait()
    with pytest.raises(OSError, match="process that draws charts has ended"):
        svg(simple("second"))
    assert "<svg" in svg(simple("second"))


def test_gallery_numbers_charts_and_names_their_files():
    gallery, charts = Gallery(), [simple("Same title"), simple("Same title"), simple("../<a>")]
    drawn = [gallery.add(chart) for chart in (*charts, charts[0])]
    assert [entry.number for entry in drawn] == [0, 1, 2, 0]
    assert list(gallery.files) == ["charts/same-title.svg", "charts/same-title-2.svg", "charts/a.svg"]
    assert gallery.files["charts/a.svg"] == drawn[2].svg
    assert "<" not in gallery.specs
    assert json.loads(gallery.specs) == [chart.spec for chart in charts]
    width, height = drawn[0].size
    assert width > 640
    assert height > 360


@pytest.mark.slow
def test_library_is_kept_and_made_again_if_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    script = vega_script()
    assert "vegaEmbed" in script
    assert "</script" not in script
    (kept,) = (tmp_path / ".cache/imagefolder").iterdir()
    kept.write_text(kept.read_text().replace('"text": "', '"text": "changed'))
    assert vega_script() == script


@pytest.mark.parametrize(("values", "is_logarithmic"), [((1, 30), True), ((1, 3), False), ((-1, 30), False)])
def test_range_has_a_margin_and_becomes_logarithmic(values, is_logarithmic):
    span = Range.around(values)
    assert span.is_logarithmic is is_logarithmic
    assert span.low < values[0] < values[1] < span.high
    assert math.isclose(span.share(span.low), 0, abs_tol=1e-12)
    assert math.isclose(span.share(span.high), 1)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e30, 1e-30])
def test_range_of_one_value_is_not_empty(value):
    span = Range.around([value])
    assert span.low < value < span.high
    assert 0 < span.share(value) < 1


def test_names_that_would_read_the_same_are_numbered():
    assert distinct(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]
    first, second = distinct(["x" * 300, "x" * 301])
    assert first != second
    assert len(second) < 50


def test_labels_of_points_cover_each_other_nowhere_and_stay_inside():
    points = [{"x": 1.0 + i / 1000, "y": 1.0, "label": f"name number {i}"} for i in range(40)]
    spans = Range(0, 2), Range(0, 2)
    layer = labels(points, spans[0].axis("x", ""), spans[1].axis("y", ""), spans, (640, 360), alone=True)
    placed = layer["data"]["values"]
    assert 6 <= len(placed) < 40
    boxes = []
    for value in placed:
        x, y = 320 * value["x"] + value["dx"], 360 - 180 * value["y"] + value["dy"]
        width = 6.2 * len(value["label"])
        left = x if value["align"] == "left" else x - width
        assert 0 <= left <= left + width <= 640
        boxes.append((left, y, left + width, y + 13.9))
    for i, a in enumerate(boxes):
        assert not [b for b in boxes[:i] if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]]


def test_error_bars_are_over_seeds_and_the_tooltip_says_of_how_many(tmp_path):
    records = [make_record(seed=seed, gfid=2.0 + seed, pictures={}) for seed in range(3)]
    records.append(make_record("var", 0, 5.0, pictures={}))
    (chart,) = table_of(records, tmp_path).charts
    values = {value["row"]: value for value in values_of(panels(chart)[0]) if "seeds" in value}
    several, one = values["ImageFolder (folded)"], values["VAR (not folded)"]
    assert (several["value"], several["low"], several["high"]) == (3.0, 2.0, 4.0)
    assert several["spread"] == "± 1.00 (standard deviation over 3 seeds)"
    assert (several["seeds"], several["n"]) == ("0 1 2", "1,000 against 1,437")
    assert (one["low"], one["high"], one["spread"]) == (5.0, 5.0, "one seed")


def ablation(seeds: int = 2, **changes: Any) -> list[Record]:
    return [
        record("ablation", f"step{i}", seed).model_copy(update={"pictures": {}, **changes})
        for i in range(1, 9)
        for seed in range(seeds)
    ]


def test_steps_of_the_ablation_stand_beside_the_papers_on_other_axes(tmp_path):
    chart = table_of(ablation(), tmp_path).charts[0]
    views = panels(chart)
    assert [view["title"] for view in views] == ["measured here", "reported by the paper: ImageNet 256×256"] * 2
    for view in views:
        assert len({value["of"] for value in values_of(view)}) == 1
    paper = [value["value"] for value in values_of(views[3])]
    assert paper[:2] == [7.52, 6.03]
    assert "proxy-rFID" in views[0]["layer"][1]["encoding"]["y"]["axis"]["title"]


def test_steps_share_a_panel_with_the_papers_if_the_protocol_is_the_published_one(tmp_path):
    sha256 = next(iter(INCEPTION_SHA256))
    found = []
    for i, entry in enumerate(ablation(1)):
        metric = make_metric("rFID", 3.0 - i / 10, reference="imagenet/val", extractor_sha256=sha256)
        found.append(entry.model_copy(update={"metrics": [metric], "dataset": full_record().dataset}))
    (chart,) = table_of(found, tmp_path).charts
    (view,) = panels(chart)
    assert {value["of"] for value in values_of(view)} == {"measured here", "paper"}


def test_codebooks_that_rows_share_are_drawn_once():
    shared, other = make_record(), make_record("var")
    other = other.model_copy(update={"codebook_usage": other.codebook_usage[:3]})
    usages = [codebook_frame([entry]) for entry in (shared, shared, other)]
    (chart,) = codebook_charts("t", ["a", "b", "c"], usages)
    views = panels(chart)
    assert [view["title"]["text"] for view in views] == ["a and 1 more", "c"]
    first = values_of(views[0])
    assert (len(first), first[0]["percent"], first[0]["perplexity"]) == (8, "20%", "21.00")
    assert codebook_charts("t", ["a"], [usages[0].iloc[:0]]) == []


@pytest.fixture(scope="module")
def reported() -> pd.DataFrame:
    return reported_frame(REPORTED_CSV, all_kinds=True)


def test_proxy_values_are_never_among_reported_ones(reported):
    charts = reported_charts(reported, [record("table2", row, 0) for row in ("imagefolder", "var")])
    assert [chart.title.split(" against ")[1] for chart in charts] == ["sequence length", "parameters"]
    for chart in charts:
        points = [value for value in values_of(chart.spec) if "what" in value]
        assert {value["what"] for value in points} == {"reported", "reported, reproduced by a row here"}
        named = {value["system"] for value in points if value["what"] != "reported"}
        assert named == {"ImageFolder (VAR-d17, MSVR10P2-4096)", "VAR-d16 (paper)"}
        assert {value["family"] for value in points} == {"autoregressive", "masked", "diffusion"}


def test_values_of_the_published_protocol_are_drawn_on_top_with_their_number_of_images(reported):
    chart = reported_charts(reported, [full_record()])[0]
    points = chart.spec["layer"][2]["data"]["values"]
    assert (points[-1]["system"], points[-1]["gfid"]) == ("ImageFolder (n 10,000)", 4.31)
    assert "of 50,000 published" in points[-1]["n"]
    assert points[-1]["tokens"] == 14  # positions, as the reported lengths


def test_pareto_front_is_of_reported_systems_with_numbers(reported):
    chart = reported_charts(reported, [full_record()])[0]
    front = chart.spec["layer"][0]["data"]["values"]
    lengths, values = zip(*((value["tokens"], value["gfid"]) for value in front), strict=True)
    assert list(lengths) == sorted(set(lengths))
    assert list(values) == sorted(values, reverse=True)
    known = reported[reported["tokens"].str.fullmatch(r"\d+") & reported["family"].ne("other")]
    best = known["gfid"].min()
    assert values[-1] == best
    assert reported_charts(reported.iloc[:1], []) == []


def trained(seed: int, folder: str) -> Record:
    checkpoint = Checkpoint(role="tokenizer", path=f"{folder}/model.safetensors", sha256="77" * 32, selection="last")
    return make_record(seed=seed, checkpoints=[checkpoint], pictures={})


def write_curve(output: Path, folder: str, seed: int, text: str = "") -> None:
    (output / folder).mkdir(parents=True)
    (output / folder / "curve.jsonl").write_text(text or "".join(f"{json.dumps(point)}\n" for point in curve(seed)))


def test_curves_of_all_seeds_are_thinned_and_lie_along_the_references_band(tmp_path, monkeypatch):
    kept = {seed: SeedCurve(f"m-{seed}", thinned(curve(seed), STEPS, Path())[1]) for seed in range(5)}
    monkeypatch.setattr(curves_view, "_references", lambda: [Curves(identity(), STEPS, 20, kept)])
    for seed in (3, 4):
        write_curve(tmp_path, f"models/m-{seed}", seed)
    group = [trained(seed, f"models/m-{seed}") for seed in (3, 4)]
    (chart,), remarks = training_charts("t", ["a", "b"], [group, group], tmp_path)  # b shares the model of a
    assert remarks == []
    band, lines = panels(chart)[0]["layer"]
    points = lines["data"]["values"]
    assert {point["seed"] for point in points} == {"seed 3", "seed 4"}
    assert max(point["step"] for point in points) == STEPS
    assert len(points) <= 2 * 60
    inside = [
        low["low"] <= at["loss"] <= low["high"] for at, low in zip(points, band["data"]["values"] * 2, strict=True)
    ]
    assert sum(inside) >= 0.9 * len(inside)
    assert [view["layer"][-1]["encoding"]["y"]["axis"]["title"].split(",")[0] for view in panels(chart)] == [
        "reconstruction", "semantic"
    ]  # fmt: skip


DAMAGED = ["{", "[]\n", '{"step": "1"}\n', '{"loss": 1}\n', '{"step": 0, "loss": 1}\n', "\n", '{"step": 1e400}\n', "\0"]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_curve_is_named_and_costs_nothing_else(tmp_path, text):
    write_curve(tmp_path, "m-0", 0)
    write_curve(tmp_path, "m-1", 1, text)
    group = [trained(seed, f"m-{seed}") for seed in range(3)]
    (chart,), (remark,) = training_charts("t", ["a"], [group], tmp_path)
    assert {value["seed"] for value in values_of(panels(chart)[0]) if "seed" in value} == {"seed 0"}
    assert re.match(
        r"Training curves left out, 2 of 3: m-1/curve.jsonl: damaged \(.*\); m-2/curve.jsonl: missing", remark
    )


@pytest.mark.parametrize("folder", ["../outside", "link", "\0", "\ud800", "p" * 9000, ".."])
def test_no_curve_outside_the_output_folder_is_read(tmp_path, folder):
    write_curve(tmp_path, "outside", 0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/link").symlink_to(tmp_path / "outside")
    charts, remarks = training_charts("t", ["a"], [[trained(0, folder)]], tmp_path / "out")
    assert charts == []
    assert len(remarks) == 1


def test_weights_that_were_given_have_no_curve(tmp_path):
    assert training_charts("t", ["a"], [[trained(0, "/elsewhere")]], tmp_path) == ([], [])
