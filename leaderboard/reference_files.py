"""The reference that ships with the project: records and loss curves of intact runs, as text that diffs can be read of.

    reference/TABLE-SCALE-DATA-HASH.jsonl    the records of a table on a data set, all seeds, without pictures
    reference/curves/ROLE-NAME-HASH.jsonl    the loss curves of a model, all seeds, thinned
    reference/proxies.jsonl                  the test accuracies of teachers and proxy extractors
    reference/extractors/PLACE.safetensors   the proxy extractor of a scale and data set; beside it a document (.json)

`python -m leaderboard reference RUNS` makes them from an output folder. Files of .jsonl are lines of JSON, sorted. What
many records share (configuration, protocols, versions) is a line of its own, which they name by its hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from imagefolder.errors import InputError, reason
from imagefolder.files import copy_file, read_text, write_text
from imagefolder.files import read_json as read_sealed
from leaderboard.record import Dataset, Record, place_name
from leaderboard.store import RecordError, first_problem, read_records
from leaderboard.text import without_seed

REFERENCE = Path(__file__).parent / "reference"
PROXIES = "proxies.jsonl"
REMEDY = "restore it from the repository, or make it again: python -m leaderboard reference RUNS"
WINDOWS = 40  # of a thinned curve, at most
DIGITS = 4  # significant ones of a thinned curve

Role = Literal["tokenizer", "generator"]
Points = list[dict[str, float]]


@dataclass(frozen=True)
class SeedCurve:
    """The curve of one seed: `losses` by name, each the means over the model's windows; `folder` of the model."""

    folder: str
    losses: dict[str, list[float]]


@dataclass(frozen=True)
class Curves:
    """The curves of one model in the reference, by seed, over `windows` equal parts of its `steps`.

    `identity` is what decides the model's weights, without seeds.
    """

    identity: dict[str, Any]
    steps: int
    windows: int
    seeds: dict[int, SeedCurve]


# Reading


def reference_records(table: str, scale: str, budget: str, dataset: Dataset) -> list[Record]:
    """The reference's records of a table on a data set; none if it has none. Raises RecordError for a damaged file."""
    path = REFERENCE / f"{_place(table, scale, budget, dataset)}.jsonl"
    return read_packed(path) if path.exists() else []


def read_packed(path: Path) -> list[Record]:
    """The records in a file of the reference, in its order. Raises RecordError, naming file and line."""
    shared: dict[str, Any] = {}
    records = []
    for number, line in enumerate(_read_lines(path), 1):
        try:
            if "shared" in line:
                shared[line["shared"]] = line["value"]
            else:
                records.append(Record.model_validate(_unpacked(line, shared), strict=True))
        except ValidationError as error:
            raise RecordError(f"{path}: line {number}: {first_problem(error)}; {REMEDY}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"{path}: line {number}: {reason(error)} is missing or wrong; {REMEDY}") from error
    return records


def read_curves(path: Path) -> Curves:
    """The curves in a file of the reference. Raises RecordError, naming it, if it is not what was written."""
    head, *lines = _read_lines(path) or [{}]
    try:
        curves = Curves(
            identity=head["identity"],
            steps=int(head["steps"]),
            windows=int(head["windows"]),
            seeds={int(line["seed"]): SeedCurve(line["folder"], line["losses"]) for line in lines},
        )
        lengths = {len(means) for seed in curves.seeds.values() for means in seed.losses.values()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"{path}: {reason(error)} is missing or wrong; {REMEDY}") from error
    if not 1 <= curves.windows <= curves.steps or lengths != {curves.windows}:
        raise RecordError(f"{path}: its curves have other lengths than {curves.windows}; {REMEDY}")
    return curves


def curves_of(role: Role, identity: dict[str, Any]) -> Curves | None:
    """The reference's curves of the model that an identity decides, whatever its seed."""
    found = sorted((REFERENCE / "curves").glob(f"{role}-*-{_hash(without_seed(identity))}.jsonl"))
    return read_curves(found[0]) if found else None


def curves_in(role: Role, folders: set[str]) -> Curves | None:
    """The reference's curves of the model whose seeds were trained in folders of these names."""
    for path in sorted((REFERENCE / "curves").glob(f"{role}-*.jsonl")):
        curves = read_curves(path)
        if any(seed.folder in folders for seed in curves.seeds.values()):
            return curves
    return None


def proxy_accuracy(place: str, proxy: str) -> float | None:
    """The test accuracy (0..1) that a teacher or extractor has in the reference, by its place and file name."""
    lines = _read_lines(path) if (path := REFERENCE / PROXIES).exists() else []
    found = (line.get("test_accuracy") for line in lines if (line.get("place"), line.get("proxy")) == (place, proxy))
    return next(found, None)


def reference_extractor(place: str) -> Path:
    """Where the reference has the weights of a place's proxy extractor, if it has them; a document lies beside them."""
    return REFERENCE / "extractors" / f"{place}.safetensors"


def extractor_hash(place: str) -> str:
    """sha256 of the proxy extractor that the reference ships for a place; "" if it ships none."""
    about = reference_extractor(place).with_suffix(".json")
    return read_sealed(about, f"; {REMEDY}")["sha256"] if about.exists() else ""


def other_data(scale: str, dataset: Dataset) -> str:
    """A sentence if the reference's data set of this name at a scale holds other images or labels; "" if not."""
    places = [path.stem.rpartition("-") for path in record_files()]
    found = [content for place, _, content in places if place.endswith(f"-{scale}-{dataset.name}")]
    if not found or dataset.sha256[:8] in found:
        return ""
    return (
        f"{dataset.name} holds other images or labels here (hash {dataset.sha256[:8]}) than in the reference "
        f"({found[0]}), so nothing is compared with it"
    )


# Making


def make_reference(runs: Path) -> list[Path]:
    """Make the reference's files from the finished records of an output folder and the curves of their models.

    Files of tables, data sets and models that the folder does not hold stay; curves that no record of the reference
    was made with are removed. Returns the paths written.

    Raises:
        RecordError: no records, or one that cannot be used.
        InputError: a model's curve or settings are missing or damaged.
    """
    found = read_records(runs / "records")
    if found.left_out:
        raise RecordError(found.left_out[0])
    records = [r for r in found if r.status == "finished" and r.added is None]
    if not records:
        raise RecordError(f"no finished records in {runs / 'records'}")
    places: dict[str, list[Record]] = {}
    for record in records:
        places.setdefault(_place(record.table, record.scale, record.budget, record.dataset), []).append(record)
    written = [_write_lines(REFERENCE / f"{place}.jsonl", packed(members)) for place, members in places.items()]
    models: dict[Path, dict[int, tuple[dict[str, Any], SeedCurve]]] = {}
    for folder, (role, seed) in _model_folders(records, runs).items():
        settings, points = _read_training(folder)
        identity = without_seed(settings)
        steps = identity["training"]["steps"]
        windows, losses = thinned(points, steps, folder)
        head = {"role": role, "name": folder.name.rpartition("-")[0], "steps": steps, "windows": windows}
        path = REFERENCE / "curves" / f"{role}-{head['name']}-{_hash(identity)}.jsonl"
        models.setdefault(path, {})[seed] = {**head, "identity": identity}, SeedCurve(folder.name, losses)
    for path, seeds in models.items():
        head = next(iter(seeds.values()))[0]
        lines = [{"seed": seed, **vars(curve)} for seed, (_, curve) in sorted(seeds.items())]
        written.append(_write_lines(path, [head, *lines]))
    written += _write_proxies(records, runs)
    _remove_unused_curves()
    return written


def packed(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Lines of records without pictures: first what they share, by hash, then each of them."""
    shared: dict[str, Any] = {}

    def share(value: Any) -> str:
        name = _hash(value)
        shared[name] = value
        return name

    lines = []
    for record in sorted(records, key=lambda r: (r.order, r.row, r.seed)):
        bare = record.model_copy(update={"pictures": {}, "picture_sha256": {}})
        line = json.loads(json.dumps(bare.model_dump(exclude_defaults=True), allow_nan=False))
        line = {"schema_version": record.schema_version, **line}
        for part, name in _shared_parts(line):
            if isinstance(part.get(name), dict):
                part[name] = share(part[name])
        lines.append(line)
    return [*({"shared": name, "value": shared[name]} for name in sorted(shared)), *lines]


def thinned(points: Points, steps: int, source: Path) -> tuple[int, dict[str, list[float]]]:
    """A curve's means over equal windows: their number, and the means of every value that all of them have.

    There are at most `WINDOWS`, and as many as hold a point each. Raises RecordError, naming `source`, for a curve that
    does not reach its last step.
    """
    points = [point for point in points if "step" in point]
    at = sorted({int(point["step"]) for point in points})
    if not at or at[-1] != steps:
        raise RecordError(f"{source}: its curve ends at step {at[-1] if at else 0} of {steps}; train it again")
    gap = max(step - before for before, step in zip([0, *at], at, strict=False))
    windows = max(1, min(WINDOWS, steps // gap))
    values: dict[str, list[list[float]]] = {}
    for point in points:
        for name, value in point.items():
            if name != "step":
                parts = values.setdefault(name, [[] for _ in range(windows)])
                parts[window_of(int(point["step"]), steps, windows)].append(value)
    means = {
        name: [float(f"{sum(part) / len(part):.{DIGITS}g}") for part in parts]
        for name, parts in values.items()
        if all(parts)
    }
    return windows, means


def window_of(step: int, steps: int, windows: int) -> int:
    """The window, counted from 0, that a step from 1 to `steps` is in."""
    return -(-step * windows // steps) - 1


def _model_folders(records: list[Record], runs: Path) -> dict[Path, tuple[Role, int]]:
    """The folders of the models that were trained for these records."""
    return {
        (runs / checkpoint.path).parent: (checkpoint.role, record.seed)
        for record in records
        for checkpoint in record.checkpoints
        if checkpoint.role in ("tokenizer", "generator") and not Path(checkpoint.path).is_absolute()
    }


def _read_training(folder: Path) -> tuple[dict[str, Any], Points]:
    """What a model was trained with, and its curve."""
    settings, curve = read_sealed(folder / "settings.json"), folder / "curve.jsonl"
    settings.pop("tokenizer_sha256", None)  # of the seed's tokenizer; the other settings say which one that is
    return settings, _read_lines(curve)


def _write_proxies(records: list[Record], runs: Path) -> list[Path]:
    path, written = REFERENCE / PROXIES, list[Path]()
    found = {(line["place"], line["proxy"]): line for line in (_read_lines(path) if path.exists() else [])}
    for weights in {
        runs / checkpoint.path
        for record in records
        for checkpoint in record.checkpoints
        if checkpoint.role in ("extractor", "teacher")
    }:
        place, proxy = weights.parent.parent.name, weights.stem
        about = read_sealed(weights.with_suffix(".json"))
        if proxy == "extractor":
            shipped = reference_extractor(place)
            for suffix in (".safetensors", ".json"):
                written.append(copy_file(weights.with_suffix(suffix), shipped.with_suffix(suffix)))
        found[place, proxy] = {"place": place, "proxy": proxy} | {
            name: about[name] for name in ("steps", "test_accuracy", "sha256")
        }
    return [*written, _write_lines(path, [found[key] for key in sorted(found)])]


def _remove_unused_curves() -> None:
    used = {
        Path(checkpoint.path).parent.name
        for path in record_files()
        for record in read_packed(path)
        for checkpoint in record.checkpoints
    }
    for path in (REFERENCE / "curves").glob("*.jsonl"):
        if not any(seed.folder in used for seed in read_curves(path).seeds.values()):
            path.unlink()


def record_files(folder: Path | None = None) -> list[Path]:
    """The files of records in the reference, or in a copy of it."""
    return sorted(path for path in (folder or REFERENCE).glob("*.jsonl") if path.name != PROXIES)


def _place(table: str, scale: str, budget: str, dataset: Dataset) -> str:
    return f"{table}-{place_name(scale, budget)}-{dataset.name}-{dataset.sha256[:8]}"


def _shared_parts(line: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where a record has what it shares with others: a dictionary and the name of an entry."""
    run = line["run"]
    metrics = [(metric, "protocol") for metric in line.get("metrics", [])]
    return [(line, "config"), (line, "dataset"), (run, "packages"), (run, "code"), *metrics]


def _unpacked(line: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    for part, name in _shared_parts(line):
        if isinstance(part.get(name), str):
            part[name] = shared[part[name]]
    return line


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines. Raises InputError if it is missing, RecordError if it is damaged."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    lines: list[dict[str, Any]] = []
    try:
        for text in read_text(path).splitlines():
            lines.append(json.loads(text))
        if not all(isinstance(line, dict) for line in lines):
            raise ValueError("it does not hold objects")
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: line {len(lines) + 1}: not readable as JSON ({reason(error)}); {REMEDY}") from error
    return lines


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> Path:
    texts = (json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for line in lines)
    return write_text(path, "".join(f"{text}\n" for text in texts))
