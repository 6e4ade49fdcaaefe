"""Makes the README's pictures of a report: `python -m tests.leaderboard.screenshots RUNS`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pages import chromium, opened

DOCS = Path(__file__).parents[2] / "docs"
WIDTH, HEIGHT = 1280, 860  # the first screen


def main(runs: Path) -> None:
    """Write docs/report.png and docs/report-dark.png."""
    with chromium() as browser:
        for name, dark in (("report.png", False), ("report-dark.png", True)):
            with opened(browser, runs.resolve() / "report.html", WIDTH, dark) as page:
                page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
                page.screenshot(path=DOCS / name)
                print(DOCS / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
