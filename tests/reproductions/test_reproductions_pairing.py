"""What trained generators store of their tokenizer, classes and sampling, and that given weights belong together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import imagefolder
from imagefolder.checkpoints.native import read_about
from imagefolder.generator.sampling import Sampling
from imagefolder.loading import load_tokenizer
from reproductions.scales import Scale


def folder_of(output: Path, role: str) -> Path:
    return next(path.parent for path in output.glob(f"mini-*/seed0/{role}s/*/config.json"))


def test_a_trained_generator_is_sampled_as_its_row_is(imagefolder_row: Path, tiny_mini: Scale) -> None:
    folder, tokenizer = folder_of(imagefolder_row, "generator"), folder_of(imagefolder_row, "tokenizer")
    generator = imagefolder.load(folder, tokenizer)
    assert isinstance(generator, imagefolder.Generator)
    assert generator.classes == tuple("0123456789")
    row = tiny_mini.sampling
    assert generator.sampling == Sampling(guidance=row.guidance, top_k=row.top_k, top_p=row.top_p)
    assert read_about(folder)["tokenizer_sha256"] == read_about(tokenizer)["weights_sha256"]
    assert read_about(folder)["tokenizer_name"] == generator.tokenizer.config.name


def test_given_weights_of_another_tokenizer_are_refused(
    imagefolder_row: Path,
    table: Callable[..., int],
    records: Callable[[Path], dict[str, dict[str, Any]]],
    tmp_path: Path,
) -> None:
    config = read_about(folder_of(imagefolder_row, "tokenizer"))["config"]
    overrides = {name: value for name, value in config.items() if name != "name"}
    with pytest.warns(UserWarning, match="random weights"):
        load_tokenizer(config["name"], **overrides).save_pretrained(tmp_path / "other")
    given = {"tokenizer_weights": str(tmp_path / "other"), "generator_weights": folder_of(imagefolder_row, "generator")}
    assert table(imagefolder_row, "imagefolder", **{name: str(path) for name, path in given.items()}) == 1
    reason = records(imagefolder_row)["imagefolder-given"]["reason"]
    assert f"trained on the tokens of {config['name']} with weights" in reason
