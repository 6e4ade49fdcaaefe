"""Values of EfficientNet-Lite0 in the report: none is the best one with few images."""

from __future__ import annotations

from pathlib import Path

import pytest
from make_records import make_metric

from leaderboard.reported import reported_frame
from leaderboard.view import measured_tables


def lite(value: float, n_real: int, n_generated: int, name: str = "lite0-gFID"):
    metric = make_metric("gFID", value)
    protocol = metric.protocol.model_copy(update={"name": name, "extractor": "efficientnet-lite0-96px"})
    update = {"protocol": protocol, "n_real": n_real, "n_generated": n_generated, "floor": 12.5}
    return metric.model_copy(update=update)


@pytest.mark.parametrize(
    ("n_real", "n_generated", "name", "bold"),
    [
        (60_000, 5_000, "lite0-gFID", True),
        (60_000, 4_999, "lite0-gFID", False),
        (1_347, 5_000, "lite0-gFID", False),
        (0, 5_000, "lite0-IS", True),
        (0, 1_000, "lite0-IS", False),
        (60_000, 1_000, "other-gFID", True),
    ],
)
def test_the_best_value_is_marked_from_5000_images_on(
    make, tmp_path: Path, reported_csv: Path, n_real: int, n_generated: int, name: str, bold: bool
) -> None:
    records = [
        make(row).model_copy(update={"metrics": [lite(value, n_real, n_generated, name)]})
        for row, value in (("imagefolder", 30.0), ("var", 40.0))
    ]
    (table,) = measured_tables(records, tmp_path, reported_frame(reported_csv))
    (column,) = [i for i, head in enumerate(table.columns) if head.label.startswith(name)]
    assert [row.cells[column].best for row in table.rows] == [bold, False]
    assert table.columns[column].floor == "12.50"
