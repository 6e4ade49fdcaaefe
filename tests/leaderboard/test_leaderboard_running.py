"""What is running, from files as runs leave them, and from damaged ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from imagefolder.files import write_json
from imagefolder.locks import file_lock, is_held
from leaderboard.running import Runs

MODEL = "mini-digits-f4eaf250/seed3/generators/VAR-mini-0123abcd"
NOTE = {
    "path": MODEL, "table": "table2", "row": "var", "label": "VAR", "seed": 3, "scale": "mini", "budget": "steps=40",
    "dataset": "digits", "host": "here", "pid": 12, "started": 1000.0,
}  # fmt: skip


def lock_of(output: Path, path: str) -> Path:
    return output / "locks" / f"{path.replace('/', '-')}.lock"


@contextmanager
def holding(output: Path, path: str, note: dict | None = None) -> Iterator[None]:
    """Hold a lock as a run does, through a descriptor of its own."""
    lock = lock_of(output, path)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(lock):
        if note is not None:
            write_json(lock.with_suffix(".json"), note)
        yield
        lock.with_suffix(".json").unlink(missing_ok=True)


def training(output: Path, *lines: str, when: float = 2000.0, model: str = MODEL) -> None:
    folder = output / model
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "settings.json", {"training": {"steps": 40}})
    (folder / "curve.jsonl").write_text("".join(lines))
    os.utime(folder / "curve.jsonl", (when, when))


def point(step: int, **values: float) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def test_a_training_shows_its_last_point_and_from_the_second_look_its_pace(tmp_path, monkeypatch):
    runs, now = Runs(tmp_path), [2000.0]
    monkeypatch.setattr("leaderboard.running.time.time", lambda: now[0])
    with holding(tmp_path, MODEL, NOTE):
        training(tmp_path, point(10, loss=3.0), point(20, loss=2.0))
        (first,) = runs.now()
        assert (first.running, first.stage, first.step, first.steps) == (True, "training generator", 20, 40)
        assert (first.row, first.seed, first.place) == ("VAR", 3, "mini [steps=40] · digits")
        assert (first.values, first.left) == ((("loss", 2.0),), None)  # it may have resumed at step 19
        assert first.plain()["elapsed"] == 1000
        now[0] = 2010
        training(tmp_path, point(20, loss=2.0), point(30, loss=1.0), '{"step": 40, "lo', when=2008)
        (second,) = runs.now()
        assert (second.step, second.values) == (30, (("loss", 1.0),))
        assert second.left == pytest.approx(0.8 * 10 - 2)
        training(tmp_path, point(10, loss=2.0), when=2009)  # killed, and resumed from an earlier state
        assert runs.now()[0].left is None
    (interrupted,) = runs.now()
    assert (interrupted.running, interrupted.step, interrupted.left) == (False, 10, None)


def test_a_finished_model_is_not_shown_even_while_it_is_loaded(tmp_path):
    training(tmp_path, point(40, loss=1.0))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / MODEL / name).touch()
    with holding(tmp_path, MODEL, NOTE):
        assert Runs(tmp_path).now() == []


def test_of_the_locks_of_a_process_the_latest_tells_what_it_does(tmp_path):
    record = "records/table2-var-mini-digits-f4eaf250-seed3"
    training(tmp_path, point(20, loss=2.0))
    with ExitStack() as stack:
        stack.enter_context(holding(tmp_path, record, NOTE | {"path": record, "started": 900.0}))
        stack.enter_context(holding(tmp_path, MODEL, NOTE))
        assert [each.stage for each in Runs(tmp_path).now()] == ["training generator"]
        stack.enter_context(holding(tmp_path, "records/other", NOTE | {"path": "records/other", "pid": 13}))
        assert [each.stage for each in Runs(tmp_path).now()] == ["training generator", "evaluation"]
    with holding(tmp_path, record):
        evaluation, _ = Runs(tmp_path).now()
        assert (evaluation.stage, evaluation.path, evaluation.row) == ("evaluation", lock_of(tmp_path, record).stem, "")
    with holding(tmp_path, record, NOTE | {"stage": "timing"}):
        assert Runs(tmp_path).now()[0].stage == "timing"


def test_a_token_cache_shows_how_many_images_are_encoded(tmp_path):
    folder = tmp_path / "mini-digits-f4eaf250/seed3/tokenizers/T-0123abcd/tokens/2-views"
    folder.mkdir(parents=True)
    write_json(folder / "unfinished.json", {"shape": [2, 150, 2, 14], "batch_size": 100})
    write_json(folder / "done-0-2.json", {"runs": [{"start": 0, "stop": 1}, {"start": 1, "stop": 2}]})
    write_json(folder / "done-2-3.json", {"runs": []})
    assert Runs(tmp_path).now() == []
    with file_lock(folder / ".lock"):
        (cache,) = Runs(tmp_path).now()
    assert (cache.stage, cache.step, cache.steps, cache.seed) == ("encoding training images", 200, 300, 3)


DAMAGES = [
    b"", b"\0" * 90, b"[]", b"{", b"\xff\xfe", b'{"step": 1e400}', b'{"step": true, "loss": NaN}',
    b'{"training": {"steps": -1}, "shape": [1], "runs": 3, "seed": [], "started": 1e999, "pid": "x", "label": 4}',
    b"[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGES, ids=range(len(DAMAGES)))
def test_damaged_files_are_passed_over(tmp_path, content):
    cache = tmp_path / "mini-digits-f4eaf250/seed3/tokenizers/T-0123abcd/tokens/2-views"
    cache.mkdir(parents=True)
    (tmp_path / MODEL).mkdir(parents=True)
    with holding(tmp_path, MODEL), file_lock(cache / ".lock"):
        lock_of(tmp_path, MODEL).with_suffix(".json").write_bytes(content)
        for path in (tmp_path / MODEL / "settings.json", tmp_path / MODEL / "curve.jsonl"):
            path.write_bytes(content)
        for name in ("unfinished.json", "done-0-2.json"):
            (cache / name).write_bytes(content)
        found = Runs(tmp_path).now()
        json.dumps([each.plain() for each in found], allow_nan=False)
        assert [each.step for each in found] == [None, None]


def test_a_curve_that_holds_no_numbers_of_json_shows_none(tmp_path):
    training(tmp_path, '{"step": 20, "loss": NaN, "huge": 1' + "0" * 400 + ', "text": "x", "fine": 1.5}\n')
    assert Runs(tmp_path).now()[0].values == (("fine", 1.5),)


def test_a_lock_is_held_until_it_is_released(tmp_path):
    assert not is_held(tmp_path / "none.lock")
    lock = file_lock(tmp_path / "one.lock")
    with lock:
        assert is_held(tmp_path / "one.lock")
    assert not is_held(tmp_path / "one.lock")
    lock.acquire(timeout=0)  # looking has left nothing behind
    lock.release()
