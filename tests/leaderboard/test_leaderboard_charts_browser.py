"""The charts of a page in a browser: drawn where they come into view, under the page's policy, with their tooltips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import speed_files as files
from make_records import REPORTED_CSV
from pages import needs_browser, opened
from playwright.sync_api import Browser, Locator, Page
from suite_records import suite

from leaderboard.report import build_report
from leaderboard.speed import read_benchmarks

HOSTILE = "<img src=x onerror=\"document.title='broken'\">"
pytestmark = [needs_browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("charts")
    records = [r.model_copy(update={"pictures": {}}) for r in suite() if r.table in ("ablation", "token_length")]
    records = [r.model_copy(update={"label": HOSTILE}) if r.row == "released" else r for r in records]
    speed = read_benchmarks(files.write(output / "bench.json", files.stages() + files.folding() + files.growing()))
    build_report(output, records, REPORTED_CSV, speed=speed)
    return output


@pytest.fixture
def page(folder: Path, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    width, dark = getattr(request, "param", (1400, False))
    with opened(browser, folder / "report.html", width, dark) as found:
        yield found


def draw(page: Page, number: int) -> Locator:
    figure = page.locator("figure.chart").nth(number)
    figure.evaluate("figure => { for (let e = figure; e = e.closest('details:not([open])');) e.open = true; }")
    figure.scroll_into_view_if_needed()
    is_drawn = "number => document.querySelectorAll('figure.chart')[number].classList.contains('drawn')"
    page.wait_for_function(is_drawn, arg=number)  # as a function: the page's policy refuses to evaluate a string
    return figure


@pytest.mark.parametrize("page", [(1400, False), (400, True)], indirect=True)
def test_every_chart_is_drawn_within_its_place_in_the_colour_of_the_page(page):
    assert page.locator("figure.chart.drawn").count() == 0  # none is in view yet
    count = page.locator("figure.chart").count()
    assert count > 8
    for number in range(count):
        figure = draw(page, number)
        assert not figure.locator("img").is_visible()
        assert figure.locator("[role=img]").get_attribute("aria-label") == figure.locator("img").get_attribute("alt")
        # Something is on it, and nothing is in the colour that stands for the text's
        seen = figure.locator("canvas").evaluate(
            "c => new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size"
        )
        assert seen > 20


def test_pointer_shows_the_values_of_a_point_as_text(page, folder):
    titles = page.locator("figure.chart figcaption").all_inner_texts()
    figure = draw(page, next(i for i, title in enumerate(titles) if title.startswith("token_length")))
    box = figure.locator("canvas").bounding_box()
    texts = set()
    for x in range(60, 330, 4):
        for y in range(20, 230, 6):
            page.mouse.move(box["x"] + x, box["y"] + y)
            if page.locator("#vg-tooltip-element.visible").count():
                texts.add(page.locator("#vg-tooltip-element").inner_text())
    assert len(texts) == 4  # one for each row
    assert any(HOSTILE[:30] in text for text in texts)
    assert all("seeds" in text and "± " in text for text in texts)
    assert page.title() != "broken"


def test_print_shows_the_pictures(page):
    figure = draw(page, 0)
    page.emulate_media(media="print")
    assert figure.locator("img").is_visible()
    assert not figure.locator("canvas").is_visible()
