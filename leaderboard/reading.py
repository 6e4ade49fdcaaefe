"""The page docs/reading-the-numbers.md in the report: its text, and which of its sections explains a column."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

PAGE = Path(__file__).parent / "templates" / "reading.md"
"""The page; docs/reading-the-numbers.md is a copy, for those who read the repository."""
PREFIX = "reading-"
"""Of the sections' ids in the report."""

SECTIONS = (
    (r"\(unguided\)", "with-and-without-guidance"),
    (r"^lite0-", "what-lite0-is-and-when-to-trust-it"),
    (r"^reported ", "reported-numbers"),
    (r"probe", "what-does-the-linear-probe-read"),
    (r"KID\b", "why-does-fid-depend-on-the-number-of-images"),
    (r"[rp]FID\b", "what-is-rfid-measured-against"),
    (r"gFID\b|sFID", "why-can-gfid-be-lower-than-rfid"),
    (r"\bIS\b|precision|recall|class accuracy|mode coverage|neighbour", "is-precision-recall-and-what-fid-hides"),
    (r"^(positions|tokens|steps)\b", "why-265-286-and-572"),
    (r"samples/s|training s|peak memory|memory MiB|step", "how-speed-and-memory-are-measured"),
    (r"^difference", "reported-numbers"),
    (r"^(verdict|p\b)", "what-do-the-verdicts-mean"),
)
"""The first pattern found in a column's head decides its section."""


def section_of(head: str) -> str:
    """The section of the page that explains a column, as an anchor in the report; "" if there is none."""
    found = next((section for pattern, section in SECTIONS if re.search(pattern, head)), None)
    return f"{PREFIX}{found}" if found else ""


@cache
def page_html() -> str:
    """The page as HTML: headings one level down, with ids that `section_of` gives; links out of it are text."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(PAGE.read_text(encoding="utf-8"))
    for heading, text in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", PREFIX + slug(text.content))
        if heading.type in ("heading_open", "heading_close"):
            heading.tag = f"h{int(heading.tag[1]) + 1}"
    for token in tokens:
        token.children = [child for child in token.children or [] if not child.type.startswith("link_")] or None
    page = markdown.renderer.render(tokens, markdown.options, {})
    # Wide tables scroll, also by the keyboard
    region = '<div class="scroll" tabindex="0" role="region" aria-label="Table of this section">'
    return page.replace("<table>", f"{region}<table>").replace("</table>", "</table></div>")


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
