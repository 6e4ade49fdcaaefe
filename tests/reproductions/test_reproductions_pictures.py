"""The pictures of a row: what they show, and that they change nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imagefolder.data.images import samples_to_uint8, to_float, to_uint8
from imagefolder.evaluation.proxy import proxy_extractor
from imagefolder.evaluation.results import Result
from leaderboard.pictures import pictures_intact
from leaderboard.store import read_record
from reproductions import table2
from reproductions.models import Models, load_models
from reproductions.options import Options
from reproductions.pictures import (
    ERROR_FACTOR,
    GRID_SEED,
    Sheet,
    measured_sheets,
    model_sheets,
    write_pictures,
)
from reproductions.plan import plan_rows
from reproductions.recipe import Measure, Table
from reproductions.row import Row
from reproductions.scales import Scale
from reproductions.stages import run_evaluation

KINDS = ["reconstruction", "generation", "nearest", "scales", "swaps", "classes", "failures"]


def row_in(output: Path) -> Row:
    (plan,) = plan_rows(Table("table2", "Table 2", table2.rows), Options(rows=("imagefolder",), output=output))
    return plan.row


def shown(row: Row) -> dict[Measure, Result]:
    """Results with some images to show: originals for reconstructions, and as samples."""
    images, _ = row.splits.test.plain().__getitems__([(0, i) for i in range(40)])
    return {
        "reconstruction": Result([], picture=torch.stack([images, 255 - images], dim=1).flatten(0, 1)),
        "generation": Result([], picture=images),
    }


@pytest.fixture
def row(imagefolder_row: Path) -> Row:
    return row_in(imagefolder_row)


def sheets_of(row: Row, models: Models, results: dict[Measure, Result]) -> dict[str, Sheet]:
    return {sheet.name: sheet for sheet in model_sheets(row, models, results)}


def pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_a_record_names_its_pictures(imagefolder_row: Path) -> None:
    row = row_in(imagefolder_row)
    record = read_record(row.record)
    assert [path.rsplit("-", 1)[1] for path in record.pictures.values()] == [f"{kind}.png" for kind in KINDS]
    assert record.picture_sha256.keys() == set(record.pictures.values())
    assert pictures_intact(record, imagefolder_row)
    report = (imagefolder_row / "report.html").read_text()
    assert all(caption in report for caption in record.pictures)


def test_reconstructions_lie_between_originals_and_errors(row: Row, tmp_path: Path) -> None:
    results = shown(row)
    sheet, samples = measured_sheets(results, classes=10)
    assert f"error times {ERROR_FACTOR}" in sheet.caption
    assert (sheet.columns, sheet.block, len(sheet.images)) == (10, 3, 60)
    originals, images, errors = sheet.images.unflatten(0, (2, 3, 10)).unbind(1)
    given = results["reconstruction"].picture
    assert given is not None
    assert torch.equal(originals.flatten(0, 1), given[:40:2])
    assert torch.equal(images.flatten(0, 1), given[1:40:2])
    expected = (originals.double() - images.double()).abs() * ERROR_FACTOR
    assert torch.equal(errors, expected.clamp(max=255).to(torch.uint8))
    assert samples.images is results["generation"].picture
    (path,) = write_pictures(tmp_path, "name", [sheet]).values()
    assert path == "pictures/name-reconstruction.png"
    written, side = pixels(tmp_path / path), originals.shape[-1]
    assert torch.equal(written[:, 1 : 1 + side, 1 : 1 + side], originals[0, 0])
    assert torch.equal(written[:, 3 + 2 * side : 3 + 3 * side, 1 : 1 + side], errors[0, 0])
    assert torch.equal(written[:, -1 - side : -1, -1 - side : -1], errors[1, -1])


def test_few_images_fill_whole_rows(row: Row) -> None:
    picture = shown(row)["reconstruction"].picture
    assert picture is not None
    for pairs, columns, tiles in ((13, 10, 30), (4, 4, 12)):
        (sheet,) = measured_sheets({"reconstruction": Result([], picture=picture[: 2 * pairs])}, classes=10)
        assert (sheet.columns, len(sheet.images)) == (columns, tiles)


def test_images_grow_and_exchange_branches_as_the_tokenizer_does_it(row: Row) -> None:
    models, results = load_models(row), shown(row)
    tokenizer, picture = models.tokenizer, results["reconstruction"].picture
    assert picture is not None
    sheets, originals = sheets_of(row, models, results), picture[0::2]
    scales = len(tokenizer.config.scales)
    growing = sheets["scales"].images.unflatten(0, (5, 1 + scales))
    tokens = tokenizer.encode(to_float(originals[:5]))
    assert torch.equal(growing[:, 0], originals[:5])
    assert torch.equal(growing[:, 1], to_uint8(tokenizer.decode_progressively(tokens)[0]))
    assert torch.equal(growing[:, -1], to_uint8(tokenizer.decode(tokens)))
    a, b, of_a, of_b, ab, ba = sheets["swaps"].images.unflatten(0, (5, 6)).unbind(1)
    assert torch.equal(torch.cat([a, b]), originals[:10])
    assert torch.equal(of_a, growing[:, -1])
    others = tokenizer.encode(to_float(originals[5:10]))
    assert torch.equal(of_b, to_uint8(tokenizer.decode(others)))
    assert torch.equal(ab, to_uint8(tokenizer.decode(torch.stack([tokens[:, 0], others[:, 1]], dim=1))))
    assert torch.equal(ba, to_uint8(tokenizer.decode(torch.stack([others[:, 0], tokens[:, 1]], dim=1))))


def test_the_class_grid_has_a_class_per_row_and_a_seed_of_its_own(row: Row) -> None:
    models, results = load_models(row), shown(row)
    grid = sheets_of(row, models, results)["classes"]
    assert (grid.columns, len(grid.images)) == (10, 100)
    assert str(GRID_SEED) in grid.caption
    assert models.generator is not None
    again = models.generator.sample([3], guidance=1.0, top_k=0, top_p=0.95, seed=GRID_SEED, indices=[37])
    assert (samples_to_uint8(again.images)[0].int() - grid.images[37].int()).abs().max() <= 1
    other = sheets_of(replace(row, seed=7), models, results)["classes"]
    assert torch.equal(other.images, grid.images)


def test_failures_are_those_that_the_extractor_is_least_sure_of(row: Row) -> None:
    models, results = load_models(row), shown(row)
    samples = results["generation"].picture
    assert samples is not None
    sheet = sheets_of(row, models, results)["failures"]
    probability = proxy_extractor(row.extractor)(samples).logits.softmax(-1)
    certainty = {i: float(probability[i, i % 10]) for i in range(len(samples))}
    order = sorted(certainty, key=certainty.__getitem__)
    assert torch.equal(sheet.images[:10], samples[order[:10]])
    assert torch.equal(sheet.images[10:], samples[order[::-1][:10]])


def test_models_without_scales_or_branches_and_rows_about_sampling_show_less(row: Row) -> None:
    models, results = load_models(row), shown(row)
    sampled = replace(row, recipe=replace(row.recipe, sampling={"guidance": 0.0}))
    assert list(sheets_of(sampled, models, results)) == ["scales", "swaps"]
    published = replace(row, scale=replace(row.scale, published=True))
    assert list(sheets_of(published, models, results)) == ["scales", "swaps", "classes"]
    config = replace(models.tokenizer.config, scales=(3,), branches=1)
    models.tokenizer.config = config
    assert list(sheets_of(row, models, {"reconstruction": results["reconstruction"]})) == []


def test_pictures_leave_results_models_and_random_streams_alone(row: Row) -> None:
    models, results = load_models(row), shown(row)

    def state() -> list[Any]:
        assert models.generator is not None
        weights = [*models.tokenizer.state_dict().values(), *models.generator.state_dict().values()]
        images = [result.picture for result in results.values()]
        legacy = [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]  # noqa: NPY002
        streams = (torch.get_rng_state().tolist(), random.getstate(), legacy)
        return [streams, *(value.tolist() for value in (*weights, *images) if value is not None)]

    before = state()
    assert list(sheets_of(row, models, results)) == ["scales", "swaps", "classes", "failures"]
    assert state() == before


def test_evaluating_again_makes_the_same_pictures_and_an_earlier_record_stays(
    imagefolder_row: Path, tiny_mini: Scale, executed: list[str], table: Callable[..., int]
) -> None:
    row = row_in(imagefolder_row)
    first = read_record(row.record)
    row.record.unlink()
    run_evaluation(row)
    again = read_record(row.record)
    assert again.model_copy(update={"cost": first.cost, "run": first.run}) == first  # with the pictures' hashes
    caption, path = next(iter(again.pictures.items()))
    earlier = again.model_copy(update={"pictures": {caption: path}, "picture_sha256": {}})
    row.record.write_text(earlier.model_dump_json())  # as a version wrote it that made fewer pictures
    executed.clear()
    assert table(imagefolder_row, "imagefolder") == 0
    assert [name for name in executed if not name.startswith("table2")] == []
    assert read_record(row.record).pictures == {caption: path}
