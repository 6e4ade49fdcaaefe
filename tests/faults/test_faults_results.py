"""Finished results survive failures, quick tries, typos, and the retraining of their models."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import lab


def test_failed_and_not_run_do_not_replace_finished(finished: Path, tmp_path: Path, tally: Any) -> None:
    output = tmp_path / "runs"
    shutil.copytree(finished, output)
    before = lab.results(output)

    def no_weights() -> None:
        lab.command.missing_weights = lambda row: "weights absent: inception.pth"

    def broken() -> None:
        import reproductions.measuring

        def fail(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        reproductions.measuring._measure = fail

    for hook, options in ((no_weights, {}), (no_weights, {"fresh": True}), (broken, {"num_samples": 20})):
        run = lab.run(output, "imagefolder", hook=hook, **options)
        assert not run.is_traceback, run.text
        assert "earlier, finished run is kept" in run.text
        assert lab.results(output) == before
        tally("finished results").add("right")
    assert lab.run(output, "imagefolder").code == 0
    assert lab.results(output) == before


def test_quick_try_keeps_the_full_result(finished: Path, tmp_path: Path, tally: Any) -> None:
    output = tmp_path / "runs"
    shutil.copytree(finished, output)
    before = lab.results(output)
    assert lab.run(output, "imagefolder", num_samples=20).code == 0
    (name,) = before
    assert lab.results(output)[name]["config"]["samples"] == 20
    (kept,) = (output / "records" / "earlier").glob("*.json")
    assert json.loads(kept.read_text())["config"]["samples"] == before[name]["config"]["samples"]
    tally("finished results").add("right")


def test_typo_in_a_submission_destroys_nothing(finished: Path, tmp_path: Path, tally: Any) -> None:
    output = tmp_path / "runs"
    shutil.copytree(finished, output)
    weights = next(output.glob("mini-*/seed0/tokenizers/*/model.safetensors"))
    for options in ({"profile": "no-such-profile"}, {"set": ("partitoin=gpu",)}, {"profile": "slurm"}):
        hook = (lambda: os.environ.update(PATH="/nowhere")) if options.get("profile") == "slurm" else None
        run = lab.run(output, "imagefolder", submit=True, fresh=True, hook=hook, **options)
        assert run.code == 2, run.text
        assert weights.exists()
        assert lab.results(output) == lab.results(finished)
        tally("finished results").add("right")


def test_fresh_leaves_given_weights_and_trained_models_alone(finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs"
    shutil.copytree(finished, output)
    folder = next(output.glob("mini-*/seed0/tokenizers/*"))
    run = lab.run(output, "imagefolder", fresh=True, tokenizer_weights=str(folder))
    assert run.code == 0, run.text
    assert (folder / "model.safetensors").exists()


def test_files_have_the_usual_permissions(finished: Path) -> None:
    mask = os.umask(0o022)
    os.umask(mask)
    odd = [
        path
        for path in finished.rglob("*")
        if path.is_file() and path.suffix != ".lock" and stat.S_IMODE(path.stat().st_mode) != 0o666 & ~mask
    ]
    assert odd == []


def test_generator_of_another_tokenizer_is_trained_again(finished: Path, tmp_path: Path) -> None:
    """For example, somebody replaced the tokenizer by hand, and its generator no longer fits."""
    output = tmp_path / "runs"
    shutil.copytree(finished, output)
    shutil.rmtree(output / "records")
    path = next(output.glob("mini-*/seed0/generators/*/config.json"))
    about = json.loads(path.read_text())
    del about["checksum"]
    path.write_text(json.dumps(about | {"tokenizer_sha256": "0" * 64}))
    run = lab.run(output, "imagefolder")
    assert run.code == 0, run.text
    assert "training generator" in run.text
    assert lab.results(output) == lab.results(finished)


def test_what_was_set_aside_stays_until_something_new_is_recorded(finished: Path, tmp_path: Path, tally: Any) -> None:
    """No matter how often a run with --fresh is killed and repeated."""
    output = tmp_path / "runs"
    shutil.copytree(finished, output)
    folder = next(output.glob("mini-*/seed0/tokenizers/[!.]*"))
    weights = folder.with_name(f"{folder.name}.earlier") / "model.safetensors"
    before = (folder / "model.safetensors").stat().st_ino
    for task in ("Tokenizer", "Generator", "Generator"):  # the last one starts with a new, finished tokenizer
        hook = lab.at_step(3, task, lambda _: lab.die())
        assert lab.run(output, "imagefolder", fresh=True, hook=hook).code == -9
        assert weights.stat().st_ino == before
        assert lab.results(output) == lab.results(finished)
    run = lab.run(output, "imagefolder")
    assert run.code == 0, run.text
    assert lab.results(output) == lab.results(finished)
    assert lab.leftovers(output) == []
    tally("finished results").add("recovered", 3)


def test_fewer_test_images_are_another_configuration(finished: Path, tmp_path: Path) -> None:
    """Even if nothing is generated, so that the number of samples does not show it."""
    output = tmp_path / "runs"
    shutil.copytree(finished, output)
    folder = next(output.glob("mini-*/seed0/tokenizers/[!.]*"))
    for options in ({}, {"num_samples": 20}):
        run = lab.run(output, "imagefolder", tokenizer_weights=str(folder), **options)
        assert run.code == 0, run.text
    (kept,) = (output / "records" / "earlier").glob("*-given-*.json")
    (now,) = (record for name, record in lab.results(output).items() if "-given-" in name)
    assert "test_images" not in json.loads(kept.read_text())["config"]
    assert now["config"]["test_images"] == 20
