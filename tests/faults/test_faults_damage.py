"""Every kind of file that a run writes, damaged in every way: the damage is repaired, or refused by name."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab
import pytest

FINISHED = {
    "extractor": "mini-*/proxies/extractor.safetensors",
    "extractor's document": "mini-*/proxies/extractor.json",
    "teacher": "mini-*/proxies/teacher-*.safetensors",
    "teacher's document": "mini-*/proxies/teacher-*.json",
    "tokenizer": "mini-*/seed0/tokenizers/*/model.safetensors",
    "tokenizer's document": "mini-*/seed0/tokenizers/*/config.json",
    "tokenizer's settings": "mini-*/seed0/tokenizers/*/settings.json",
    "tokenizer's code": "mini-*/seed0/tokenizers/*/code.json",
    "tokenizer's curve": "mini-*/seed0/tokenizers/*/curve.jsonl",
    "tokens": "mini-*/seed0/tokenizers/*/tokens/1-views/tokens.npy",
    "tokens' document": "mini-*/seed0/tokenizers/*/tokens/1-views/about.json",
    "generator": "mini-*/seed0/generators/*/model.safetensors",
    "generator's document": "mini-*/seed0/generators/*/config.json",
    "generator's settings": "mini-*/seed0/generators/*/settings.json",
    "generator's code": "mini-*/seed0/generators/*/code.json",
    "generator's curve": "mini-*/seed0/generators/*/curve.jsonl",
    "record": "records/*.json",
    "picture": "pictures/*-generation.png",
    "picture of the nearest": "pictures/*-nearest.png",
    "picture of the models": "pictures/*-scales.png",
    "report": "report.html",
    "report in Markdown": "report.md",
    "table": "leaderboard.csv",
    "claims": "claims.csv",
}
IN_A_TRAINING = {
    "state": "mini-*/seed0/{}/*/state.pt",
    "state before": "mini-*/seed0/{}/*/state.previous.pt",
    "settings": "mini-*/seed0/{}/*/settings.json",
    "code": "mini-*/seed0/{}/*/code.json",
    "curve": "mini-*/seed0/{}/*/curve.jsonl",
}
IN_A_CACHE = {
    "tokens": "mini-*/seed0/tokenizers/*/tokens/1-views/tokens.npy",
    "plan of the tokens": "mini-*/seed0/tokenizers/*/tokens/1-views/unfinished.json",
    "done tokens": "mini-*/seed0/tokenizers/*/tokens/1-views/done-*.json",
}


def truncated(data: bytes, _rng: random.Random) -> bytes:
    return data[: len(data) // 2]


def empty(_data: bytes, _rng: random.Random) -> bytes:
    return b""


def zeroed(data: bytes, _rng: random.Random) -> bytes:
    return bytes(len(data))


def tail_zeroed(data: bytes, _rng: random.Random) -> bytes:
    return data[: len(data) * 3 // 4] + bytes(len(data) - len(data) * 3 // 4)


def flipped(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    damaged[rng.randrange(len(data) // 8, len(data))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def garbage(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(len(data))


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes] | None] = {
    "truncated": truncated,
    "empty": empty,
    "zeroed": zeroed,
    "tail zeroed": tail_zeroed,
    "flipped": flipped,
    "flipped elsewhere": flipped,
    "garbage": garbage,
    "gone": None,
}
DERIVED = {
    *("report", "report in Markdown", "table", "claims", "curve", "tokenizer's curve", "generator's curve"),
    *("code", "tokenizer's code", "generator's code"),
}
TWICE = {"extractor", "tokenizer", "tokens", "generator", "record", "state"}  # bits are flipped in two places
QUICK = {("tokens", "flipped"), ("record", "truncated")}


def damage(path: Path, how: str) -> None:
    act = DAMAGES[how]
    if act is None:
        path.unlink()
    else:
        path.write_bytes(act(path.read_bytes(), random.Random(f"{path.name} {how}")))


def content(output: Path) -> dict[str, Any]:
    """The results of a run: its records, and the bytes of its pictures."""
    pictures = {path.name: path.read_bytes() for path in (output / "pictures").glob("[!.]*")}
    return {"records": lab.results(output), "pictures": pictures}


def judge(run: lab.Run, path: Path, output: Path, wanted: dict[str, Any]) -> str:
    """The outcome of a damage; see `conftest.Tally`."""
    if run.is_traceback or run.code not in (0, 1, 2):
        return "lost"
    if run.code == 0:
        return "recovered" if content(output) == wanted and not lab.leftovers(output) else "lost"
    named = any(str(path.parent) in line or path.parent.name in line for line in run.errors)
    records = lab.results(output)
    finished = [name for name, record in wanted["records"].items() if "imagefolder" in name]
    kept = all(records.get(name) == wanted["records"][name] for name in finished) or path.parent.name == "records"
    return "refused" if named and kept else "lost"


def quick_or_faults(cases: list[tuple[Any, ...]]) -> list[Any]:
    """The cases worth trying; all but a few are marked `faults`."""
    chosen = [
        case
        for case in cases
        if (case[-1] != "flipped elsewhere" or case[-2] in TWICE)
        and (case[-1] in ("truncated", "garbage", "gone") or case[-2] not in DERIVED)
    ]
    return [
        pytest.param(*case, id=" ".join(case), marks=() if case[-2:] in QUICK else pytest.mark.faults)
        for case in chosen
    ]


@pytest.mark.parametrize(("what", "how"), quick_or_faults([(what, how) for what in FINISHED for how in DAMAGES]))
def test_damage_to_a_finished_run(finished: Path, both: Path, tmp_path: Path, what: str, how: str, tally: Any) -> None:
    """Run the row again, and another one that needs its tokenizer, tokens and proxies."""
    output = tmp_path / "runs"
    shutil.copytree(finished, output)
    path = next(output.glob(FINISHED[what]))
    damage(path, how)
    run = lab.run(output, "imagefolder", "unfolded")
    verdict = judge(run, path, output, content(both))
    tally("damaged: finished run").add(verdict)
    assert verdict != "lost", run.text


@pytest.fixture(scope="module")
def interrupted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Output folders of runs interrupted in a training, after two saved states, or while encoding tokens."""
    folders = {}
    for where, hook in {
        "tokenizers": lab.at_step(10, "Tokenizer", lambda _: lab.die()),
        "generators": lab.at_step(10, "Generator", lambda _: lab.die()),
        "tokens": lab.interrupted_encoding,
    }.items():
        folders[where] = tmp_path_factory.mktemp(where) / "runs"
        run = lab.run(folders[where], "imagefolder", hook=hook)
        assert run.code != 0, run.text
    return folders


INTERRUPTED = [
    *((where, what, how) for where in ("tokenizers", "generators") for what in IN_A_TRAINING for how in DAMAGES),
    *(("tokens", what, how) for what in IN_A_CACHE for how in DAMAGES),
]


@pytest.mark.parametrize(("where", "what", "how"), quick_or_faults(INTERRUPTED))
def test_damage_to_an_interrupted_run(
    finished: Path, interrupted: dict[str, Path], tmp_path: Path, where: str, what: str, how: str, tally: Any
) -> None:
    output = tmp_path / "runs"
    shutil.copytree(interrupted[where], output)
    pattern = IN_A_CACHE[what] if where == "tokens" else IN_A_TRAINING[what].format(where)
    path = next(output.glob(pattern))
    damage(path, how)
    run = lab.run(output, "imagefolder")
    verdict = judge(run, path, output, content(finished))
    tally("damaged: interrupted run").add(verdict)
    assert verdict != "lost", run.text


@pytest.mark.faults
def test_damage_to_all_states_of_a_training_is_refused(
    interrupted: dict[str, Path], tmp_path: Path, tally: Any
) -> None:
    """They may hold days of training, so whether to start over is left to the user."""
    output = tmp_path / "runs"
    shutil.copytree(interrupted["tokenizers"], output)
    for name in ("state.pt", "state.previous.pt"):
        damage(next(output.glob(f"mini-*/seed0/tokenizers/*/{name}")), "flipped")
    run = lab.run(output, "imagefolder")
    assert run.code == 1, run.text
    assert any("state.previous.pt" in line and "delete" in line for line in run.errors), run.errors
    tally("damaged: interrupted run").add("refused")
