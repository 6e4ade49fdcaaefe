"""Samples on disk: file contents, interrupted exports, changed settings, and the command line."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_generator_model import build

import imagefolder
from imagefolder import files
from imagefolder.checkpoints.native import save_checkpoint
from imagefolder.data.images import samples_to_uint8
from imagefolder.generator import __main__ as command
from imagefolder.generator import export
from imagefolder.generator.export import export_samples
from imagefolder.generator.model import Generator

LABELS = [1, None, 3, 4, 5, 6, 7, 8, 9, 0, 1]
EXPORT = {"batch_size": 4, "seed": 5, "guidance": 1.5, "top_k": 20, "top_p": 0.9, "temperature": 0.9, "joint": True}


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    return build("folded")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".samples.json.lock"}


@pytest.fixture(scope="module")
def finished(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Files of an uninterrupted export of each format."""
    folder = tmp_path_factory.mktemp("finished")
    for name in export.FORMATS:
        export_samples(generator, LABELS, folder / name, name, **EXPORT)
    return {name: content(folder / name) for name in export.FORMATS}


def read_pngs(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


def test_the_files_hold_the_samples_and_what_made_them(generator, tmp_path):
    assert export_samples(generator, LABELS, tmp_path / "a", "png", **EXPORT) == tmp_path / "a"
    assert export_samples(generator, LABELS, tmp_path / "b", "npz", **EXPORT) == tmp_path / "b" / "samples.npz"
    expected = samples_to_uint8(generator.sample(LABELS, **EXPORT).images).permute(0, 2, 3, 1).numpy()
    images = read_pngs(tmp_path / "a")
    assert np.array_equal(images, expected)
    assert len({image.tobytes() for image in images}) == len(LABELS)
    names = [f"{index:06d}.png" for index in range(len(LABELS))]
    assert sorted(content(tmp_path / "a")) == [*names, "labels.npy", "samples.json"]
    assert sorted(content(tmp_path / "b")) == ["labels.npy", "samples.json", "samples.npz"]
    with np.load(tmp_path / "b" / "samples.npz") as stored:
        assert stored.files == ["arr_0", "arr_1"]
        assert stored["arr_0"].dtype == np.uint8
        assert stored["arr_1"].dtype == np.int64
        assert np.array_equal(stored["arr_0"], expected)
        assert stored["arr_1"].tolist() == [1, 10, *LABELS[2:]]
    assert np.load(tmp_path / "a" / "labels.npy").tolist() == [1, 10, *LABELS[2:]]
    settings = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert EXPORT.items() <= (settings | {"batch_size": 4}).items()
    assert (settings["generator"], settings["images"], settings["image_size"]) == ("VAR-mini-MSVR3P2-256", 11, 32)


def interrupt_batch(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    """Ctrl-C in the third batch."""
    sample, calls = Generator.sample, []

    def interrupted(*arguments, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(*arguments, **settings)

    monkeypatch.setattr(Generator, "sample", interrupted)
    return KeyboardInterrupt


def fail_writing(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    """The disk is full from the sixth image on, or at the progress after the second batch."""
    write, calls = files.write_atomically, []

    def full(path, writer):
        calls.append(path.suffix == ".png" or path.name == "progress.json")
        if calls[-1] and sum(calls) >= (6 if path.suffix == ".png" else 2):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, writer)

    monkeypatch.setattr(export, "write_atomically", full)
    monkeypatch.setattr(files, "write_atomically", full)
    return imagefolder.InputError


@pytest.mark.parametrize("stop", [interrupt_batch, fail_writing])
@pytest.mark.parametrize("format", export.FORMATS)
def test_an_interrupted_export_resumes(
    generator: Generator,
    tmp_path: Path,
    finished: dict[str, dict[str, bytes]],
    format: str,
    stop: Callable[[pytest.MonkeyPatch], type[BaseException]],
):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(stop(patch)):
        export_samples(generator, LABELS, tmp_path, format, **EXPORT)
    there = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    assert len(there) == (0 if format == "npz" else 8 if stop is interrupt_batch else 5)
    assert not (tmp_path / "samples.npz").exists()
    made = []
    with pytest.MonkeyPatch.context() as patch:
        sample = Generator.sample
        patch.setattr(
            Generator, "sample", lambda *a, indices, **k: made.extend(indices) or sample(*a, indices=indices, **k)
        )
        export_samples(generator, LABELS, tmp_path, format, **EXPORT)
    # Whole batches, starting with the first unfinished one
    assert made == list(range(8 if stop is interrupt_batch else 4, 11))
    assert content(tmp_path) == finished[format]
    assert there.items() <= {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}.items()


def test_removed_or_damaged_images_are_made_again_and_others_left_alone(generator, tmp_path, finished):
    export_samples(generator, LABELS, tmp_path, "png", **EXPORT)
    (tmp_path / "000002.png").unlink()
    (tmp_path / "000009.png").unlink()
    for name, length in (("000001.png", 0), ("000004.png", 700)):
        os.truncate(tmp_path / name, length)
    changed = bytearray((tmp_path / "000005.png").read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "000005.png").write_bytes(changed)
    Image.new("RGB", (8, 8)).save(tmp_path / "000006.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "000007.png", format="BMP")
    (tmp_path / "000003.png").write_bytes(finished["png"]["000000.png"])  # the content of a sound image is not checked
    export_samples(generator, LABELS, tmp_path, "png", **EXPORT)
    assert content(tmp_path) == finished["png"] | {"000003.png": finished["png"]["000000.png"]}


@pytest.mark.parametrize("format", export.FORMATS)
def test_a_finished_export_makes_nothing(generator, tmp_path, monkeypatch, format):
    path = export_samples(generator, LABELS, tmp_path, format, **EXPORT)
    before = content(tmp_path)
    monkeypatch.setattr(Generator, "sample", None)
    assert export_samples(generator, LABELS, tmp_path, format, **EXPORT) == path
    assert content(tmp_path) == before


def test_a_disk_that_fills_up_while_the_array_is_written(generator, tmp_path):
    """A real write fails (beyond the limit on file size); without the limit the export resumes."""
    labels = [3] * 30
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # 16 images
        with pytest.raises(imagefolder.InputError, match=r"cannot be written \(File too large\).*continues") as caught:
            export_samples(generator, labels, tmp_path, "npz", **EXPORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert files.read_json(tmp_path / "progress.json")["done"] == 16
    path = export_samples(generator, labels, tmp_path, "npz", **EXPORT)
    expected = samples_to_uint8(generator.sample(labels, **EXPORT).images).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load(path)["arr_0"], expected)


def test_an_export_does_not_resume_with_a_shortened_array(generator, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(interrupt_batch(patch)):
        export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)
    os.truncate(tmp_path / "samples.npy.part", 1000)
    with pytest.raises(imagefolder.InputError, match="shorter"):
        export_samples(generator, LABELS, tmp_path, "npz", **EXPORT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 6}, r"seed 5 \(asked for 6\)"),
        ({"guidance": 2.0}, r"guidance 1\.5 \(asked for 2\.0\)"),
        ({"top_k": 21}, "top_k"),
        ({"top_p": 1.0}, "top_p"),
        ({"temperature": [0.9, 0.9, 1.0]}, r"temperature 0\.9 \(asked for \[0\.9, 0\.9, 1\.0\]\)"),
        ({"joint": False}, "joint True"),
        ({"labels": [2, *LABELS[1:]]}, r"settings: labels_sha256 \w+ \(asked for \w+\);"),
        ({"labels": LABELS[1:]}, "images 11 .asked for 10., labels_sha256"),
        ({"format": "npz"}, "format png"),
    ],
)
def test_samples_of_other_settings_are_not_mixed(generator, tmp_path, change, message):
    arguments = {"labels": LABELS, "format": "png", **EXPORT}
    export_samples(generator, output=tmp_path, **arguments)
    before = content(tmp_path)
    with pytest.raises(imagefolder.InputError, match=message):
        export_samples(generator, output=tmp_path, **(arguments | change))
    assert content(tmp_path) == before


@pytest.mark.parametrize("part", ["transformer", "tokenizer"])
def test_samples_of_other_weights_are_not_mixed(tmp_path, part):
    generator = build("folded")
    export_samples(generator, [1], tmp_path, batch_size=1)
    next(getattr(generator, part).parameters()).data.flatten()[0].add_(1e-3)
    name = "generator_sha256" if part == "transformer" else "tokenizer_sha256"
    with pytest.raises(imagefolder.InputError, match=rf"settings: {name} \w+ \(asked for \w+\);"):
        export_samples(generator, [1], tmp_path, batch_size=1)


@pytest.mark.parametrize("name", ["000000.png", "samples.npz"])
def test_images_of_unknown_origin_are_not_taken_for_samples(generator, tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(imagefolder.InputError, match=r"no samples\.json"):
        export_samples(generator, [1], tmp_path)


@pytest.mark.parametrize(
    "change", [{"top_p": 1.5}, {"temperature": 0}, {"labels": [11]}, {"format": "jpg"}, {"batch_size": 0}]
)
def test_wrong_settings_leave_no_trace(generator, tmp_path, change):
    with pytest.raises(imagefolder.InputError):
        export_samples(generator, output=tmp_path / "out", **({"labels": [1]} | change))
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_named(generator, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(imagefolder.InputError, match=r"file/out: cannot be written \(Not a directory\)"):
        export_samples(generator, [1], tmp_path / "file" / "out")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments naming a generator and a tokenizer with weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256")
    generator = imagefolder.load_generator("VAR-mini-MSVR3P2-256", tokenizer=tokenizer)
    save_checkpoint(folder / "generator", generator.transformer, generator.config)
    save_checkpoint(folder / "tokenizer", tokenizer, tokenizer.config)
    weights = ["--generator-weights", str(folder / "generator"), "--tokenizer-weights", str(folder / "tokenizer")]
    return ["--generator", "VAR-mini-MSVR3P2-256", "--tokenizer", "mini-MSVR3P2-256", *weights]


def test_the_command_line_makes_the_samples_of_the_library(tmp_path, checkpoints):
    settings = (
        "--classes 3 7 --per-class 2 --seed 4 --guidance 2 --top-k 50 --top-p 0.9 --temperature 1 0.9 0.8 --joint"
    )
    rest = ["--format", "npz", "--batch-size", "3", "--device", "cpu", "--output", str(tmp_path / "out")]
    arguments = [sys.executable, "-m", "imagefolder.generator", *checkpoints, *settings.split(), *rest]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out" / "samples.npz") in done.stdout
    tokenizer = imagefolder.load_tokenizer("mini-MSVR3P2-256", checkpoints[-1])
    generator = imagefolder.load_generator("VAR-mini-MSVR3P2-256", tokenizer, checkpoints[5])
    out = generator.sample(
        [3, 7, 3, 7], guidance=2.0, top_k=50, top_p=0.9, seed=4, temperature=(1, 0.9, 0.8), joint=True, batch_size=3
    )
    with np.load(tmp_path / "out" / "samples.npz") as stored:
        expected = samples_to_uint8(out.images).permute(0, 2, 3, 1).numpy()
        # Another process may use another number of threads and round differently
        assert np.abs(stored["arr_0"].astype(int) - expected).max() <= 1
        assert stored["arr_1"].tolist() == [3, 7, 3, 7]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["generator", *arguments])
    with pytest.raises(SystemExit) as end:
        command.main()
    return end.value.code


@pytest.mark.parametrize(
    ("arguments", "labels"),
    [
        (["--number", "12"], [*range(10), 0, 1]),
        (["--per-class", "1"], [*range(10)]),
        (["--classes", "7", "3", "--number", "3"], [7, 3, 7]),
        (["--class-free", "--number", "2"], [10, 10]),
    ],
)
def test_classes_are_taken_in_turn(monkeypatch, tmp_path, checkpoints, arguments, labels):
    assert run(monkeypatch, *checkpoints, "--output", str(tmp_path), *arguments) == 0
    assert np.load(tmp_path / "labels.npy").tolist() == labels
    assert len(list(tmp_path.glob("*.png"))) == len(labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --number or --per-class"),
        (["--number", "2", "--per-class", "2"], "either --number or --per-class"),
        (["--number", "0"], "at least 1"),
        (["--class-free", "--per-class", "2"], "--class-free goes with --number"),
        (["--number", "2", "--classes", "12"], "0..10"),
        (["--number", "2", "--device", "tpu"], "tpu"),
        (["--number", "2", "--format", "gif"], "gif"),
        (["--number", "2", "--temperature", "1", "1"], "2 temperatures for the 3 scales"),
        (["--number", "2", "--num-classes", "9"], "num_classes 10 (asked for 9)"),
        (["--number", "2", "--generator", "VAR-mini"], "unknown model 'VAR-mini'"),
    ],
)
def test_errors_of_the_command_line_are_one_line(monkeypatch, capsys, tmp_path, checkpoints, arguments, message):
    assert run(monkeypatch, *checkpoints, "--output", str(tmp_path / "out"), *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


def test_untrained_models_are_refused(monkeypatch, capsys, tmp_path, checkpoints):
    arguments = ["--generator", "VAR-mini-MSVR3P2-256", "--output", str(tmp_path / "out"), "--number", "2"]
    for given, missing in (
        ([], "--generator-weights and --tokenizer-weights missing"),
        (checkpoints[4:6], "--tokenizer-weights missing"),
        (checkpoints[6:], "--generator-weights missing"),
    ):
        assert run(monkeypatch, *arguments, *given) == 2
        assert f"error: {missing}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
