"""The report as its readers use it: sort, search, choose columns, follow a number, compare, print."""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from make_records import REPORTED_CSV, make_record
from pages import needs_browser, opened
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from suite_records import suite

from leaderboard.links import record_anchor
from leaderboard.record import Record
from leaderboard.report import build_report
from leaderboard.store import write_record

pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return suite()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> Path:
    """The report of all experiments, with pictures."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "pictures").mkdir()
    for i, path in enumerate(sorted({path for record in records for path in record.pictures.values()})):
        Image.new("RGB", (320, 96), (20 * i % 255, 90, 160)).save(folder / path)
    for record in records:
        write_record(folder / "records", record)
    return build_report(folder, records, REPORTED_CSV)[0]


def labels(page: Page, board: str) -> list[str]:
    """Names of the rows in sight."""
    return page.locator(f"table[id^='{board}'] tbody tr:not(.floor) th").all_inner_texts()


TABLE2 = "table-table2-mini"


def test_the_first_screen_answers_for_every_experiment(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        cards = page.locator(".card h2").all_inner_texts()
        assert cards[0] == "Does ImageFolder beat its baselines?"
        assert cards[2] == "Does every step of the method help?"  # after the comparison of systems at both scales
        first = page.locator(".card").first
        assert first.bounding_box()["y"] < 300
        assert re.search(r"(Yes|In part|Not decided|Not as)", first.locator(".answer").inner_text())
        assert "ImageNet" in first.inner_text()
        assert first.locator("img").evaluate("image => image.complete && image.naturalWidth > 0")


def test_six_measured_columns_are_shown_with_reported_ones_beside(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        texts = page.locator(f"table[id^='{TABLE2}'] thead th").all_inner_texts()
        assert [re.sub(r"[\s\u00a0?↓↑]+", " ", text).strip() for text in texts] == [
            "row", "seeds", "proxy-rFID (n 1000)", "reported ImageNet tokenizer rFID", "proxy-gFID (n 1000)",
            "reported ImageNet gFID", "proxy-IS (n 1000)", "reported ImageNet IS", "PSNR (n 1000)", "positions",
            "reported ImageNet length", "generator parameters",
        ]  # fmt: skip
        table = page.locator(f"table[id^='{TABLE2}']").bounding_box()
        assert table["width"] <= 1400


def test_a_head_sorts_and_the_address_keeps_it(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        before = labels(page, TABLE2)
        head = page.locator(f"table[id^='{TABLE2}'] thead th", has_text="proxy-gFID").locator(".sort")
        head.click()
        cells = page.locator(f"table[id^='{TABLE2}'] tbody tr:not(.floor)").evaluate_all(
            "rows => rows.map(row => parseFloat(row.cells[4].textContent))"
        )
        assert cells == sorted(cells)
        assert page.locator(f"table[id^='{TABLE2}'] th[aria-sort='ascending']").count() == 1
        ascending = labels(page, TABLE2)
        page.reload()
        assert labels(page, TABLE2) == ascending
        head.click()
        assert labels(page, TABLE2) == ascending[::-1]
        head.click()
        assert labels(page, TABLE2) == before
        assert "sort" not in page.url


def test_search_and_filters(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        controls = page.locator("#reported .controls")
        assert page.locator("#reported-table tbody tr").count() == 50
        controls.get_by_role("button", name="show all").click()
        total = page.locator("#reported-table tbody tr").count()
        assert total > 150
        controls.get_by_label("search").fill("imagefolder")
        found = page.locator("#reported-table tbody th").all_inner_texts()
        assert 3 < len(found) < total
        assert found[0].startswith("ImageFolder (VAR-d17")
        controls.get_by_label("search").fill("")
        controls.get_by_label("guidance").select_option("without")
        controls.get_by_label("parameters (M) to").fill("400")
        rows = page.locator("#reported-table tbody tr").evaluate_all(
            "rows => rows.map(row => [row.dataset.guidance, parseFloat(row.cells[5].textContent)])"
        )
        assert 3 < len(rows) < total
        assert all(guidance == "without" and size <= 400 for guidance, size in rows)
        page.reload()
        assert page.locator("#reported-table tbody tr").count() == min(50, len(rows))
        claims = page.locator("#claims .controls").first
        claims.get_by_label("verdict").select_option("holds")
        rows = page.locator("#claims table").first.locator("tbody tr")
        verdicts = rows.evaluate_all("rows => rows.map(row => row.dataset.verdict)")
        assert set(verdicts) == {"holds"}


def test_columns_are_chosen(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        board = page.locator(f".scroll:has(table[id^='{TABLE2}'])")
        controls = board.locator("xpath=preceding-sibling::*[1]")
        controls.locator(".chooser summary").click()
        controls.get_by_label("SSIM").check()
        controls.get_by_label("proxy-rFID").uncheck()
        names = " ".join(board.locator("thead th").all_inner_texts())
        assert "SSIM" in names
        assert "proxy-rFID" not in names
        page.reload()
        names = " ".join(board.locator("thead th").all_inner_texts())
        assert "SSIM" in names
        assert "proxy-rFID" not in names


def test_a_number_leads_to_its_origin(browser: Browser, report: Path, records: list[Record]) -> None:
    with opened(browser, report) as page:
        page.locator(f"table[id^='{TABLE2}'] tbody td.number a").first.click()
        panel = page.locator("#panel")
        expect(panel).to_be_visible()
        record = next(r for r in records if (r.table, r.row, r.scale, r.seed) == ("table2", "imagefolder", "mini", 0))
        text = panel.inner_text()
        assert record.run.command in text
        assert record.run.git_commit in text
        assert record.checkpoints[0].sha256 in text
        assert f"records/{record.name}.json" in text
        row = panel.locator("tr.asked")
        value = next(m.value for m in record.metrics if m.protocol.name == "proxy-rFID")
        assert row.locator("th").inner_text() == "proxy-rFID"
        assert f"{value:.6g}" in row.inner_text()
        assert panel.locator("figure img").count() == len(record.pictures)
        assert page.evaluate("document.activeElement.closest('dialog') !== null")  # the keyboard is in it
        page.keyboard.press("Escape")
        expect(panel).to_be_hidden()
        row = page.locator(f"table[id^='{TABLE2}'] thead .why").first
        row.click()
        assert page.locator("#protocols tr.asked").count() == 1


def test_a_claim_leads_to_its_records_and_addresses_open_what_they_name(
    browser: Browser, report: Path, records: list[Record]
) -> None:
    with opened(browser, report) as page:
        link = page.locator("#claims .records a").first
        anchor = link.get_attribute("href").removeprefix("#")
        link.click()
        expect(page.locator(f"#panel details[id='{anchor}']")).to_have_attribute("open", "")
        page.go_back()
        expect(page.locator("#panel")).to_be_hidden()
    record = records[-1]
    with opened(browser, f"{report.as_uri()}#{record_anchor(record)}") as page:
        assert record.config_sha256 in page.locator("#panel").inner_text()


def test_two_rows_compared(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        boxes = page.locator(f"table[id^='{TABLE2}'] input.compare")
        boxes.nth(0).check()
        boxes.nth(2).check()
        page.locator(".tray").get_by_role("button", name="Compare").click()
        panel = page.locator("#panel")
        rows = panel.locator("table").first.locator("tbody tr")
        gfid = next(row for row in rows.all() if row.locator("th").inner_text() == "proxy-gFID")
        a, b, difference = (float(text.split()[0]) for text in gfid.locator("td").all_inner_texts())
        assert difference == pytest.approx(b - a, abs=0.02)
        settings = panel.locator("table").nth(1).inner_text()
        assert '"imagefolder"' in settings
        assert '"var"' in settings
        assert "seed" not in settings.split("\n")[1:]
        url = page.url
    with opened(browser, url) as page:
        expect(page.locator("#panel")).to_contain_text("beside")


def test_tables_as_files(browser: Browser, report: Path, tmp_path: Path) -> None:
    with opened(browser, report) as page:
        controls = page.locator("#reported .controls")
        controls.get_by_label("search").fill("VAR-d16")
        for kind in ("CSV", "JSON"):
            with page.expect_download() as download:
                controls.get_by_role("button", name=kind).click()
            download.value.save_as(tmp_path / kind)
        rows = list(csv.DictReader((tmp_path / "CSV").open(newline="")))
        assert rows == json.loads((tmp_path / "JSON").read_text())
        assert any("3.30" in row.values() for row in rows)
        assert len(rows[0]) > 15  # also columns that are not in sight


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_accessible_at_every_width_in_both_themes(browser: Browser, report: Path, width: int, dark: bool) -> None:
    with opened(browser, report, width, dark) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for state in ("page", "panel"):
            if state == "panel":
                page.locator(f"table[id^='{TABLE2}'] tbody td.number a").first.click()
            found = Axe().run(page).response["violations"]
            serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")]
            assert serious == [], state


def test_every_control_is_reached_by_the_keyboard(browser: Browser, report: Path) -> None:
    with opened(browser, report) as page:
        page.locator(f"table[id^='{TABLE2}'] thead .sort").first.focus()
        page.keyboard.press("Enter")
        assert "sort=row.up" in page.url
        page.locator(f"table[id^='{TABLE2}'] tbody td.number a").first.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#panel")).to_be_visible()


def test_print_is_a_paper_with_an_appendix(browser: Browser, report: Path, tmp_path: Path) -> None:
    with opened(browser, report) as page:
        page.emulate_media(media="print")
        page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
        assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("#appendix section.origin").count() == page.locator("template.origin").count()
        assert page.locator(".controls").first.is_hidden()
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("#appendix section.origin").count() == 0


def test_a_thousand_records(browser: Browser, tmp_path: Path) -> None:
    """200 rows of five seeds: within the time and the number of elements that a reader's machine bears."""
    records = [
        make_record(f"row{row}", seed, 2 + row / 100, label=f"Row {row}", table=f"table{row % 4}", pictures={})
        for row in range(200)
        for seed in range(5)
    ]
    path = build_report(tmp_path, records, REPORTED_CSV)[0]
    with opened(browser, "about:blank") as page:
        start = time.perf_counter()
        page.goto(path.as_uri())
        seconds = time.perf_counter() - start
        elements = page.evaluate("document.querySelectorAll('*').length")
        print(f"{path.stat().st_size / 1e6:.1f} MB, {elements} elements, opened in {seconds:.2f} s")
        assert elements < 15_000
        assert "50 of 50 rows" in page.locator("#measured .controls").first.inner_text()
