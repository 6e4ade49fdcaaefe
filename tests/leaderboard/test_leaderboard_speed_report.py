from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest
import speed_files as files

from leaderboard.__main__ import main
from leaderboard.drawing import svg
from leaderboard.report import build_report
from leaderboard.speed import read_benchmarks
from leaderboard.speed_view import figure, speed_machines
from leaderboard.store import read_speed, write_record

SENTENCE = "operations needed divided by time and by what the same machine reached in a plain matrix product"
HOSTILE = "<script>alert('x')</script> & \"q\" | `c`"


@pytest.fixture
def speed(tmp_path):
    """Records of two machines, stored in `tmp_path`/speed and read back."""
    cpu = files.write(tmp_path / "cpu.json", files.stages() + files.folding() + files.growing())
    entries = files.stages("cuda", "bfloat16") + files.folding("cuda", 30) + files.growing("cuda")
    gpu = files.write(tmp_path / "gpu.json", entries, gpu=files.GPU)
    for record in read_benchmarks(cpu) + read_benchmarks(gpu):
        write_record(tmp_path / "speed", record)
    return read_speed(tmp_path / "speed")


def speed_of(tmp_path, *entries):
    return read_benchmarks(files.write(tmp_path / "bench.json", list(entries)))


def build(folder, records, csv):
    paths = build_report(folder, records, csv)
    return (folder / "report.html").read_text(), (folder / "report.md").read_text(), [path.name for path in paths]


def test_report_with_both_kinds_of_records(speed, make, tmp_path, reported_csv):
    html, markdown, names = build(tmp_path, [make()], reported_csv)
    assert names == ["report.html", "report.md", "leaderboard.csv", "claims.csv", "speed.csv"]
    assert '<section id="speed">' in html
    assert '<a href="#speed">Speed</a>' in html
    assert '<section id="measured">' in html
    for text in (html, markdown):
        assert SENTENCE in " ".join(text.split())
        assert "0123456789" in text
        assert files.GPU in text
    for record in speed:
        assert f"speed/{record.name}.json" in html
    assert len(set(re.findall(r'\bid="([^"]*)"', html))) == len(re.findall(r'\bid="([^"]*)"', html))


def test_report_without_speed_has_no_such_section(make, tmp_path, reported_csv):
    html, markdown, names = build(tmp_path, [make()], reported_csv)
    assert names == ["report.html", "report.md", "leaderboard.csv", "claims.csv"]
    assert 'id="speed"' not in html
    assert "#speed" not in html.split("<body>")[1]
    assert "## Speed" not in markdown
    assert not (tmp_path / "speed.csv").exists()


def test_command_works_with_speed_records_only(speed, tmp_path, capsys):
    assert main(tmp_path) == 0
    assert [line.rsplit("/")[-1] for line in capsys.readouterr().out.splitlines()] == [
        "report.html",
        "report.md",
        "speed.csv",
    ]
    html, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert f"Speed: {len(speed)} cases on " in html
    targets = re.findall(r'<a href="#([^"]*)"', html)
    assert targets == ["speed", "reported"]
    assert all(f'id="{target}"' in html for target in targets)
    assert "## Measured rows" not in markdown
    assert "## Provenance" not in markdown


def test_damaged_speed_record_is_one_line_and_the_others_are_shown(speed, tmp_path, capsys):
    path = next((tmp_path / "speed").iterdir())
    path.write_text("{")
    assert main(tmp_path) == 0
    err = capsys.readouterr().err
    assert str(path) in err
    assert err.count("\n") == 1
    assert f"Speed: {len(speed) - 1} cases on " in (tmp_path / "report.html").read_text()


def test_a_section_per_machine_with_its_tables_and_charts(speed):
    cpu, gpu = speed_machines(speed)
    assert (cpu.title, gpu.title) == (f"no GPU, {files.CPU}, 2 threads", f"{files.GPU}, {files.CPU}, 2 threads")
    assert ("plain matrix product", "cpu float32 100 GFLOP/s") in cpu.facts
    assert len(cpu.records) + len(gpu.records) == len(speed)
    assert [table.title for table in cpu.tables] == ["Stages", "Folded and unfolded prediction", "Growth"]
    assert [len(table.rows) for table in cpu.tables] == [26, 8, 28]
    assert [chart.title for chart in cpu.charts] == [
        "Fraction of matmul peak",
        "Latency of one image (mini, sample, cpu, float32)",
        "Throughput (mini, sample, cpu, float32)",
        "Growth with batch: sample",
        "Growth with image size: encode",
        "Growth with scales: sample",
    ]


def test_figures_of_a_row(tmp_path):
    entry = files.benchmark("encode", 0.4, batch=4, flops=1e10, tokens=2288, peak_memory_mib=1812.5)
    (machine,) = speed_machines(speed_of(tmp_path, entry))
    (table,) = machine.tables
    ((*cells,),) = table.rows
    row = {label: cell for (label, _), cell in zip(table.columns, cells, strict=True)}
    assert (row["ms per image"].text, row["ms per image"].spread) == ("100", "(98.0–102)")
    texts = [row[name].text for name in ("images/s", "tokens/s", "GFLOP/s", "fraction of matmul peak", "batch")]
    assert texts == ["10.0", "5,720", "25.0", "25.0%", "4"]
    assert row["commit"].text == "0123456789"
    assert "order" not in row


def test_row_without_operations_has_no_fraction_and_no_bar(tmp_path):
    (machine,) = speed_machines(speed_of(tmp_path, files.benchmark("load images", flops=0.0, model="", tokens=0)))
    assert machine.charts == []
    assert machine.tables[0].rows[0][8].text == ""


def svg_texts(chart):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg(chart))


def test_bars_of_the_stages_are_labelled_by_their_differences(tmp_path):
    entries = [files.benchmark("encode", batch=batch, dtype=d) for batch in (1, 8) for d in ("float32", "bfloat16")]
    (machine,) = speed_machines(speed_of(tmp_path, *entries))
    texts = svg_texts(machine.charts[0])
    assert [t for t in texts if "batch" in t] == [f"{d}, batch {b}" for b in (1, 8) for d in ("float32", "bfloat16")]


def test_orders_are_compared_at_one_scale(tmp_path):
    large = [
        files.benchmark(
            "sample", 2.0, group="folding", order=order, model=f"VAR-d17-MSVR10P2-4096{end}", scale="full", batch=batch
        )
        for order, end in (("folded", ""), ("unfolded", "-unfolded"))
        for batch in (1, 8)
    ]
    (machine,) = speed_machines(speed_of(tmp_path, *files.folding(), *large))
    by_title = {chart.title: svg_texts(chart) for chart in machine.charts}
    mini = by_title["Throughput (mini, sample, cpu, float32)"]
    assert [text for text in mini if "positions" in text] == [
        "folded, 14 positions, 28 tokens",
        "unfolded, 28 positions, 28 tokens",
        "one branch, 14 positions, 14 tokens",
        "raster, 16 positions, 16 tokens",
    ]
    assert "images/s, batch 64, → higher is better" in mini
    assert "174" in mini  # folded: 64 images in 0.02 s x 64 ** 0.7
    assert "20.0" in by_title["Latency of one image (mini, sample, cpu, float32)"]
    released = by_title["Throughput (full, sample, cpu, float32)"]
    assert "images/s, batch 8, → higher is better" in released
    assert not [text for text in released if "raster" in text]


def test_rows_with_different_largest_batches_are_labelled(tmp_path):
    entries = [entry for entry in files.folding() if entry["extra_info"]["order"] != "raster"]
    raster = [entry for entry in files.folding() if entry["extra_info"]["order"] == "raster"]
    (machine,) = speed_machines(speed_of(tmp_path, *entries, raster[0]))
    texts = svg_texts(machine.charts[1])
    assert "images/s, each at its largest batch, → higher is better" in texts
    assert "raster, 16 positions, 16 tokens, batch 1" in texts
    assert "folded, 14 positions, 28 tokens, batch 64" in texts


def test_growth_has_a_line_per_model_and_order(speed):
    charts = {chart.title: svg_texts(chart) for chart in speed_machines(speed)[0].charts}
    batch = charts["Growth with batch: sample"]
    assert [text for text in batch if "folded" in text] == ["folded", "unfolded"]
    assert {"1", "2", "64", "128"} <= set(batch)
    # Values span more than a factor of 20: a logarithmic axis with several ticks and without formulas
    assert {"32", "64", "96", "128", "40", "100", "200", "400"} <= set(charts["Growth with image size: encode"])
    assert not [text for texts in charts.values() for text in texts if "$" in text]


def test_text_is_escaped(tmp_path, reported_csv):
    entries = [
        files.benchmark(HOSTILE, model=HOSTILE),
        files.benchmark(HOSTILE, group="folding", order="folded", model=HOSTILE),
        *(files.benchmark(HOSTILE, group="growth", growth="scales", growth_value=v, model=HOSTILE) for v in (1.0, 2.0)),
    ]
    speed = speed_of(tmp_path, *entries)
    build_report(tmp_path, [], reported_csv, speed=speed)
    html, markdown = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    assert "<script>alert" not in html + markdown
    assert html.count("<script>") == 2
    assert "&lt;script&gt;alert" in html
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    assert len(tables) == 4  # stages, folding, growth, reported
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    for record in speed:
        assert re.fullmatch(r"[A-Za-z0-9.-]+", record.name)


class Containers(HTMLParser):
    """Collects the tables and charts of the speed section and whether they can scroll."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[tuple[str, str]] = []
        self.seen: list[tuple[str, bool]] = []

    def handle_starttag(self, tag, attributes):
        classes = dict(attributes).get("class") or ""
        if tag in ("table", "img"):
            self.seen.append((tag, any(t == "div" and "scroll" in c.split() for t, c in self.stack)))
        if tag in ("div", "table", "figure", "details"):
            self.stack.append((tag, classes))

    def handle_endtag(self, tag):
        if tag in ("div", "table", "figure", "details"):
            assert self.stack.pop()[0] == tag


def test_everything_wide_scrolls_separately(speed, tmp_path, reported_csv):
    html, _, _ = build(tmp_path, [], reported_csv)
    section = re.search(r'<section id="speed">.*?</section>', html, re.DOTALL).group()
    parser = Containers()
    parser.feed(section)
    assert parser.stack == []
    assert [tag for tag, _ in parser.seen].count("table") == 2 * (3 + 1)
    assert [tag for tag, _ in parser.seen].count("img") == 2 * 6
    assert all(scrolls for _, scrolls in parser.seen)


def test_equal_records_give_equal_bytes(speed, make, tmp_path, reported_csv):
    write_record(tmp_path / "records", make())
    first = [path.read_bytes() for path in build_report(tmp_path, [make()], reported_csv)]
    subprocess.run([sys.executable, "-m", "leaderboard", "--output", str(tmp_path)], check=True, capture_output=True)
    names = ("report.html", "report.md", "leaderboard.csv", "claims.csv", "speed.csv")
    assert [(tmp_path / name).read_bytes() for name in names] == first


def test_flat_table(speed, tmp_path, reported_csv):
    build(tmp_path, [], reported_csv)
    frame = pd.read_csv(tmp_path / "speed.csv", keep_default_na=False)
    assert len(frame) == len(speed)
    row = frame[(frame["stage"] == "encode") & (frame["batch"] == 8) & (frame["device"] == "cpu")].iloc[0]
    assert float(row["fraction_of_peak"]) == pytest.approx(0.5)
    assert float(row["images_per_second"]) == pytest.approx(8 / float(row["median_seconds"]))
    assert (row["cpu"], row["gpu"], row["commit"]) == (files.CPU, "", "0123456789abcdef" * 2)
    assert set(frame[frame["stage"] == "sample: draw"]["fraction_of_peak"]) == {""}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0"),
        (0.0004567, "0.000457"),
        (0.25, "0.250"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (5e5, "500,000"),
    ],
)
def test_three_digits_are_shown(value, text):
    assert figure(value) == text
