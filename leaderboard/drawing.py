"""Charts drawn: as SVG for Markdown and print, and what a page needs to draw them itself."""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from markupsafe import Markup

from imagefolder.errors import printable
from imagefolder.files import read_json, write_json
from leaderboard.charts import INK, Chart

LIGHT, DARK = "#1b1f24", "#e6e9ec"  # text on a white and on a dark page
FOLDER = "charts"  # beside report.md
LONGEST_NAME = 80
MOST_KEPT = 1000  # charts in the cache, some 20 KB each
_CLIP = re.compile(r'(id="|url\(#)clip(\d+)')


@dataclass(frozen=True)
class Drawn:
    """A chart with its number in the page, its picture, and the path of the picture beside report.md."""

    number: int
    chart: Chart
    svg: str
    path: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        found = re.match(r'<svg[^>]* width="([\d.]+)" height="([\d.]+)"', self.svg)
        assert found is not None
        return round(float(found[1])), round(float(found[2]))

    @property
    def address(self) -> str:
        """The picture as the source of an image element."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


@dataclass
class Gallery:
    """The charts of one report, drawn once each, in the order in which its templates show them."""

    _drawn: dict[int, Drawn] = field(default_factory=dict)

    def add(self, chart: Chart) -> Drawn:
        """The chart, drawn if it is shown for the first time."""
        if id(chart) not in self._drawn:
            taken = {drawn.path for drawn in self._drawn.values()}
            stem = re.sub(r"[^a-z0-9]+", "-", chart.title.lower()).strip("-")[:LONGEST_NAME] or "chart"
            path, count = f"{FOLDER}/{stem}.svg", 1
            while path in taken:
                count += 1
                path = f"{FOLDER}/{stem}-{count}.svg"
            self._drawn[id(chart)] = Drawn(len(self._drawn), chart, svg(chart), path)
        return self._drawn[id(chart)]

    @property
    def specs(self) -> Markup:
        """The specifications by number, as JSON that may stand in a script element."""
        text = json.dumps([drawn.chart.spec for drawn in self._drawn.values()], ensure_ascii=False, allow_nan=False)
        return Markup(printable(text).replace("<", "\\u003c"))

    @property
    def vega_script(self) -> Markup:
        return Markup(vega_script())

    @property
    def files(self) -> dict[str, str]:
        """Path -> content of the pictures."""
        return {drawn.path: drawn.svg for drawn in self._drawn.values()}


def svg(chart: Chart) -> str:
    """The chart as an SVG document with title and description, whose text is light on dark pages."""
    text = _drawn(json.dumps(chart.spec, ensure_ascii=False, allow_nan=False))
    title, description = (html.escape(printable(words)) for words in (chart.title, chart.description))
    style = f"svg{{color:{LIGHT}}}@media (prefers-color-scheme:dark){{svg{{color:{DARK}}}}}"
    head, rest = text.split(">", 1)
    head = f'{head} role="img"><title>{title}</title><desc>{description}</desc><style>{style}</style>'
    return head + printable(rest).replace(INK, "currentColor")


def _drawn(spec: str) -> str:
    folder, name = _cache() / "charts", sha256(f"{version('vl-convert-python')}\n{spec}".encode()).hexdigest()
    text = _kept(folder / f"{name[:32]}.json", lambda: _asked("svg", spec))
    with contextlib.suppress(OSError):  # another report removes the same ones
        for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-MOST_KEPT]:
            path.unlink()
    numbers: dict[str, int] = {}  # the library counts what it has drawn in its process
    return _CLIP.sub(lambda match: f"{match[1]}clip{numbers.setdefault(match[2], len(numbers))}", text)


def _asked(what: str, text: str) -> str:
    """The answer of vl-convert, which runs in a process of its own: one that was forked after its threads had started
    would wait for them forever, and what it keeps in memory is none of a run's. Raises OSError if it has ended."""
    painter = _painter(os.getpid())
    assert painter.stdin is not None
    assert painter.stdout is not None
    try:
        painter.stdin.write(json.dumps([what, text]) + "\n")
        painter.stdin.flush()
        answer = painter.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        _painter.cache_clear()
        raise OSError("the process that draws charts has ended (killed, out of memory?); build the report again")
    is_drawn, result = json.loads(answer)
    if not is_drawn:
        raise ValueError(f"a chart cannot be drawn: {result}")
    return result


@functools.lru_cache(maxsize=1)
def _painter(process: int) -> subprocess.Popen[str]:
    """The process that draws for `process`; it ends with it."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("painter.py"))]
    painter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    atexit.register(_end, painter, process)
    return painter


def _end(painter: subprocess.Popen[str], process: int) -> None:
    if os.getpid() == process:  # not in a copy
        with contextlib.suppress(OSError):
            painter.communicate(timeout=5)


def vega_script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which sets `window.vegaEmbed`."""
    return _kept(_cache() / f"vega-{version('vl-convert-python')}.json", _bundle)


def _bundle() -> str:
    bundle = _asked("script", "window.vegaEmbed = vegaEmbed;")
    # Inside a function, its names are none of the page's; inside a page, neither may end the script element
    bundle = bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return f"(() => {{{bundle}}})();"


def _cache() -> Path:
    """Of this user: what takes seconds to draw or to bundle is kept from one report to the next."""
    return Path.home() / ".cache" / "imagefolder"


def _kept(path: Path, make: Callable[[], str]) -> str:
    """The text kept in a file; made again if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        text = read_json(path)["text"]
        os.utime(path)  # it is in use
        return text
    text = make()
    with contextlib.suppress(OSError):  # a home that cannot be written costs seconds each time
        write_json(path, {"text": text})
    return text
