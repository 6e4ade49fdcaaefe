"""A static site of the results: an overview, a page per experiment, and the data, for any host of files.

index.html, README.md, .nojekyll
EXPERIMENT/report.html, report.md, *.csv, charts/, records/, pictures/
speed/report.html, report.md, speed.csv, speed/
.imagefolder-site.json    the names of all this, so that the next publication replaces it and nothing else
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from imagefolder.errors import InputError
from imagefolder.files import read_json, write_atomically, write_json, write_text
from leaderboard.cards import QUESTIONS, by_question
from leaderboard.evaluators_view import split_evaluators
from leaderboard.pictures import read_picture
from leaderboard.record import Record
from leaderboard.report import TITLE, build_report, summary, templates
from leaderboard.reported import reported_frame
from leaderboard.speed_record import SpeedRecord
from leaderboard.tables import group_rows
from leaderboard.verdicts import VERDICTS, Finding, evaluate_claims

MARKER, BUILDING = ".imagefolder-site.json", ".imagefolder-building"
KEPT = {".git", ".gitattributes", ".gitignore"}  # of an empty repository that the site is published from
SPEED = "speed"


@dataclass(frozen=True)
class Experiment:
    """A page of the site."""

    name: str
    folder: str
    what: tuple[str, ...]
    """a line for every scale and data set"""
    verdicts: str
    """how many claims have which verdict; "" if none is about it"""
    records: tuple[str, ...]
    """names of the files in `records`/"""
    data: str
    """folder of these files inside `folder`"""
    files: tuple[str, ...]
    """names of the other files that people may want: CSV, Markdown"""


def publish_site(
    folder: Path,
    output: Path,
    records: list[Record],
    speed: list[SpeedRecord],
    reported_csv: Path,
    *,
    all_kinds: bool = False,
) -> list[Path]:
    """Write the site into `folder`, in place of the one that is there; the paths of its pages, the overview first.

    Nothing outside `folder` is written. A build that fails leaves the earlier site as it is.

    Args:
        folder: created, empty, an empty repository, or a site that was published before.
        output: folder of the records, with records/, pictures/ and speed/.
        records, speed: what to publish.
        reported_csv, all_kinds: as for `build_report`.

    Raises:
        InputError: `folder` holds something else.
        OSError: it cannot be written.
    """
    before = _published(folder)
    building = folder / BUILDING
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        experiments = _experiments(building, output, records, reported_csv, all_kinds)
        if speed:
            experiments.append(_speed(building, output, speed, reported_csv, all_kinds))
        _overview(building, experiments, summary(records, speed))
        write_text(building / ".nojekyll", "")  # else GitHub leaves files out
        _replace(folder, before, building)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return [folder / "index.html", *(folder / experiment.folder / "report.html" for experiment in experiments)]


def _published(folder: Path) -> list[str]:
    """The names that the last publication wrote into a folder. Raises `InputError` if it is not ours to write."""
    marker = folder / MARKER
    if os.path.lexists(marker):
        names = read_json(marker, f"; empty {folder}, or choose another folder").get("names")
        if isinstance(names, list) and all(isinstance(name, str) and _is_name(name) for name in names):
            return names
        raise InputError(f"{marker}: does not list names of files; empty {folder}, or choose another folder")
    if folder.exists() and (others := sorted({path.name for path in folder.iterdir()} - KEPT - {BUILDING})):
        raise InputError(f"{folder} was not written by --publish and holds {others[0]}; choose an empty or new folder")
    return []


def _is_name(name: str) -> bool:
    return Path(name).name == name and name not in KEPT and name not in ("", ".", "..", MARKER, BUILDING)


def _experiments(
    building: Path, output: Path, records: list[Record], reported_csv: Path, all_kinds: bool
) -> list[Experiment]:
    """Write the pages of all tables. Their claims are corrected for all tests, as in the report of all records."""
    findings = evaluate_claims(split_evaluators(records)[1], reported_frame(reported_csv, all_kinds=True))
    tables: dict[str, list[Record]] = {}
    for record in by_question(records):
        tables.setdefault(record.table, []).append(record)
    found, folders = [], {SPEED}
    for name, members in tables.items():
        places = {(r.scale, r.budget, r.dataset.name, r.dataset.sha256) for r in members}
        own = [f for f in findings if f.pair.table == name]
        own = [f for f in own if (f.scale, f.budget, f.dataset, f.dataset_sha256) in places]
        folder = _folder_name(name, folders)
        folders.add(folder)
        _copy_data(building / folder, output, members)
        paths = build_report(
            output, members, reported_csv, all_kinds=all_kinds, speed=[], findings=own, into=building / folder
        )
        names = tuple(f"{record.name}.json" for record in members)
        title = f"{QUESTIONS[name]} ({name})" if name in QUESTIONS else name
        found.append(Experiment(title, folder, _what(members), _verdicts(own), names, "records", _files(paths)))
    return found


def _speed(building: Path, output: Path, speed: list[SpeedRecord], reported_csv: Path, all_kinds: bool) -> Experiment:
    """Write the page of the benchmarks."""
    paths = build_report(output, [], reported_csv, all_kinds=all_kinds, speed=speed, into=building / SPEED)
    names = tuple(f"{record.name}.json" for record in speed)
    for name in names:
        _copy(output / "speed" / name, building / SPEED / "speed" / name)
    return Experiment("Speed", SPEED, (summary([], speed),), "", names, "speed", _files(paths))


def _files(paths: list[Path]) -> tuple[str, ...]:
    return tuple(path.name for path in paths if path.suffix in (".csv", ".md") and path.parent == paths[0].parent)


def _folder_name(table: str, taken: set[str]) -> str:
    """A name that is safe in addresses and on every file system."""
    name = re.sub("[^0-9A-Za-z_-]+", "-", table).strip("-")[:80] or "experiment"
    candidates = (f"{name}{f'-{number}' if number else ''}" for number in range(len(taken) + 1))
    used = {folder.lower() for folder in taken}
    return next(candidate for candidate in candidates if candidate.lower() not in used)


def _copy_data(folder: Path, output: Path, records: list[Record]) -> None:
    """Copy the files of records, and their pictures as far as these are intact."""
    for record in records:
        _copy(output / "records" / f"{record.name}.json", folder / "records" / f"{record.name}.json")
        for path in record.pictures.values():
            content = read_picture(output, path, record.picture_sha256.get(path))
            if content is not None:
                write_atomically(folder / path, lambda temporary, content=content: temporary.write_bytes(content))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _what(records: list[Record]) -> tuple[str, ...]:
    """A line for every scale and data set: how many rows and runs, of which some failed."""
    places: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        key = record.place, record.dataset.name, record.dataset.sha256
        places.setdefault(key, []).append(record)
    lines = []
    for (place, *_), members in places.items():
        data, rows = members[0].dataset, len(group_rows(members))
        statuses = Counter(record.status for record in members)
        size = f"{data.image_size}×{data.image_size}"
        line = f"{data.name} ({size}, {data.n_train:,} training images), scale {place}: {rows} row{'s' * (rows > 1)}"
        lines.append(line + ", " + ", ".join(f"{n} runs {status}" for status, n in statuses.items()))
    return tuple(lines)


def _verdicts(findings: list[Finding]) -> str:
    counts = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{verdict}: {counts[verdict]}" for verdict in VERDICTS if counts[verdict])


def _overview(folder: Path, experiments: list[Experiment], what: str) -> None:
    """Write index.html, and README.md, which is the card of a Hugging Face Space."""
    view = {"title": TITLE, "what": what, "experiments": experiments}
    write_text(folder / "index.html", templates().get_template("site.html.j2").render(view))
    write_text(folder / "README.md", templates().get_template("site.md.j2").render(view))


def _replace(folder: Path, before: list[str], building: Path) -> None:
    """Move what was built into its place. Until that is complete, the marker names what is new and what was there."""
    names = sorted(path.name for path in building.iterdir())
    if others := sorted(name for name in set(names) - set(before) if os.path.lexists(folder / name)):
        raise InputError(f"{folder / others[0]} is in the way and was not written by --publish; move it away")
    write_json(folder / MARKER, {"names": sorted({*names, *before})})
    for name in before:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for name in names:
        os.replace(building / name, folder / name)
    write_json(folder / MARKER, {"names": names})
