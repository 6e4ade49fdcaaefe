"""`python -m leaderboard`: build the report from the stored records; add rows of others, and check records."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

from tyro.conf import Positional

from imagefolder.cli import COMMAND, VERBATIM, Bare, command_line, subcommands, typed_command
from imagefolder.errors import InputError, one_line
from leaderboard.reported import REPORTED_CSV
from leaderboard.store import RecordError, read_records, read_speed

PORT = 8000


def main(
    output: Path = Path("runs"),
    reported: Path = REPORTED_CSV,
    all_kinds: bool = False,
    compare: tuple[Path, ...] = (),
    watch: bool = False,
    serve: Annotated[int | None, Bare(PORT)] = None,
    publish: Path | None = None,
) -> int:
    """Build report.html, report.md, leaderboard.csv, claims.csv and speed.csv from the stored records.

    Unusable records are named and left out. The exit code is 2 if no record is usable. Further commands, each with its
    own --help: add (measure samples of another model like a table, and put the row beside ours), images (write the
    images that a table reconstructs), validate (say what is wrong with a record), card (write the model cards of a
    record).

    Args:
        output: folder with records/, pictures/ and speed/; the report is written there.
        reported: CSV file of published numbers.
        all_kinds: also list reported GANs, one-step systems, tokenizers, ablations and references.
        compare: build no report, but print what changed between two folders (A B): output folders, records, or
            leaderboard/reference.
        watch: stay, and build the report again whenever a record changes, until Ctrl-C.
        serve: the same, and show the report on this machine alone, at http://127.0.0.1:8000 or the port given, or the
            next free one; the page refreshes itself and says what is running.
        publish: build no report, but write a static site into this folder, for GitHub Pages or a Hugging Face Space:
            an overview, a page per experiment, their data. A site that is there is replaced.
    """
    if (compare != ()) + watch + (serve is not None) + (publish is not None) > 1:
        raise InputError("give only one of --compare, --watch, --serve and --publish")
    if compare:
        return _compare(compare)
    if watch or serve is not None:
        _keep_building(output, reported, all_kinds, serve)
        return 0
    records = read_records(output / "records")
    speed = read_speed(output / "speed")
    if not records and not speed:
        for line in (left_out := (*records.left_out, *speed.left_out)):
            print(f"error: {line}", file=sys.stderr)
        if left_out:
            return 2
        places = f"{output / 'records'} or {output / 'speed'}"
        raise RecordError(f"no records in {places}: run `python reproductions/table2.py` first")

    if publish is not None:
        from leaderboard.site import publish_site

        for path in publish_site(publish, output, records, speed, reported, all_kinds=all_kinds):
            print(one_line(path))
        return 0
    from leaderboard.report import build_report

    for path in build_report(output, records, reported, all_kinds=all_kinds, speed=speed):
        print(one_line(path))
    return 0


def _keep_building(output: Path, reported: Path, all_kinds: bool, port: int | None) -> None:
    """Build the report after every change, and serve it if there is a port, until Ctrl-C."""
    from threading import Event

    from leaderboard.serve import serve
    from leaderboard.watch import watch

    build = _builder(output, reported, all_kinds)
    if port is not None:
        serve(output, port, build, Event())
    else:
        watch(output, build, Event())


def _builder(output: Path, reported: Path, all_kinds: bool) -> Callable[[], None]:
    """What builds the report from the records that there are; it names files that are left out once each."""
    named: set[str] = set()

    def name_once(line: str) -> None:
        if line not in named:
            named.add(line)
            print(one_line(line), file=sys.stderr, flush=True)

    def build() -> None:
        from leaderboard.report import build_report

        records, speed = read_records(output / "records"), read_speed(output / "speed")
        if not records and not speed:
            for line in (*records.left_out, *speed.left_out):
                name_once(line)
            raise RecordError("no records yet")
        build_report(output, records, reported, all_kinds=all_kinds, speed=speed, report=name_once)

    return build


def _compare(folders: tuple[Path, ...]) -> int:
    from leaderboard.compare import compare_folders

    if len(folders) != 2:
        raise InputError(f"--compare needs two folders, A and B, but got {len(folders)}")
    for line in compare_folders(*folders):
        print(line)
    return 0


def add(
    samples: Annotated[Path | None, Positional] = None,
    *,
    like: str,
    label: str,
    reconstructions: Path | None = None,
    originals: Path | None = None,
    author: str = "",
    link: str | None = None,
    seed: int = 0,
    scale: str | None = None,
    budget: Annotated[tuple[str, ...], VERBATIM] = (),
    data: str = "digits",
    output: Path = Path("runs"),
) -> None:
    """Measure samples of another model by the protocols of a table, and put the row beside ours in the report.

    The table must have been run in the output folder: its records say which images and which extractor to compare with.

    Args:
        samples: folder of PNG files, or npz with arr_0 uint8 (N, H, W, 3) and, for class accuracy, labels in arr_1;
            as many as the table measures
        like: table whose protocols to use, e.g. table2
        label: name of the row
        reconstructions: reconstructions of the table's test images, in the same formats
        originals: the test images that they reconstruct, in the same order (see the command `images`)
        author: who made them
        link: web address of the model
        seed: of the samples, if there are several sets; the report shows their spread
        scale: of the table (default: the only one it was run at)
        budget: of the table, FIELD=VALUE as for its script
        data: built-in data set or path that the table was run on
        output: folder with the records of the table
    """
    from imagefolder.environment import tune_allocator
    from reproductions.foreign import Addition, add_row
    from reproductions.like import table_like

    tune_allocator()
    addition = Addition(
        label=label,
        samples=samples,
        reconstructions=reconstructions,
        originals=originals,
        author=author,
        link=link,
        seed=seed,
        command=_typed("add"),
    )
    path = add_row(addition, table_like(like, scale=scale, budget=budget, data=data, output=output))

    from leaderboard.report import build_report
    from leaderboard.store import read_record

    for metric in read_record(path).metrics:
        print(f"{metric.protocol.name:28} {metric.value:<12.6g} {metric.protocol.key}")
    print(one_line(f"record: {path}"))
    print(one_line(f"report: {build_report(output, read_records(output / 'records'), REPORTED_CSV)[0]}"))


def images(
    folder: Annotated[Path, Positional],
    *,
    like: str,
    scale: str | None = None,
    budget: Annotated[tuple[str, ...], VERBATIM] = (),
    data: str = "digits",
    output: Path = Path("runs"),
) -> None:
    """Write the test images that a table reconstructs as PNG files, cropped and resized, for another tokenizer.

    Args:
        folder: where to write them; created, or empty
        like: table, e.g. table2
        scale: of the table (default: the only one it was run at)
        budget: of the table, FIELD=VALUE as for its script
        data: built-in data set or path that the table was run on
        output: folder with the records of the table
    """
    from reproductions.foreign import write_originals
    from reproductions.like import table_like

    number = write_originals(table_like(like, scale=scale, budget=budget, data=data, output=output), folder)
    print(one_line(f"{number:,} images: {folder}"))


def validate(files: Annotated[tuple[Path, ...], Positional], *, output: Path | None = None) -> int:
    """Say in plain words all that is wrong with records that somebody sends. Exit code: 0 nothing, 1 something.

    Args:
        files: JSON files
        output: folder that the paths of pictures begin in (default: beside the folder records/ that a file is in;
            pictures of files elsewhere are not checked)
    """
    from leaderboard.validate import examine

    if not files:
        raise InputError("no files; name the records to check")
    missing = [path for path in files if not path.exists()]
    if missing:
        raise InputError(f"{missing[0]}: no such file")
    wrong = 0
    for path in files:
        found = examine(path, output)
        wrong += bool(found.problems)
        many = f"{len(found.problems)} problem{'s' * (len(found.problems) > 1)}"
        print(one_line(f"{path}: {many if found.problems else f'valid: {found.summary}'}"))
        for line in (*found.problems, *found.notes):
            print(f"  {one_line(line)}")
    return 1 if wrong else 0


def card(
    record: Annotated[Path, Positional],
    folders: Annotated[tuple[Path, ...], Positional] = (),
    *,
    license: str = "other",
    source: str | None = None,
) -> None:
    """Write Hugging Face model cards of a record: README.md with model-index, and .eval_results/, next to its models.

    Args:
        record: JSON file in the folder records/ of a run
        folders: folders with the record's model.safetensors, e.g. of save_pretrained (default: the trained ones)
        license: of the weights, by its Hugging Face name, e.g. apache-2.0
        source: web address at which the record can be read
    """
    from reproductions.model_card import write_cards

    for path in write_cards(record, folders, license=license, source=source):
        print(one_line(path))


def reference(runs: Annotated[Path | None, Positional] = None, *, check: bool = False) -> None:
    """For maintainers: make the reference that ships with the project from an output folder, or say what is stale.

    Args:
        runs: output folder; its tables, data sets and models replace those of the reference
        check: print which files of the reference were made by other code or by earlier protocols
    """
    from leaderboard.reference_files import make_reference
    from leaderboard.references import stale_references
    from reproductions.versions import code_hashes

    if (runs is None) != check:
        raise InputError("name an output folder to make the reference from, or give --check")
    if runs is not None:
        for path in make_reference(runs):
            print(one_line(path))
        return
    for line in stale_references(code_hashes()) or ["the reference is of this code"]:
        print(one_line(line))


COMMANDS = {"add": add, "images": images, "validate": validate, "card": card, "reference": reference}


def _typed(name: str) -> str:
    """The command line of this process, with the name of the subcommand, which parsing has taken out."""
    words = typed_command()
    program = words[:2] if words[0] == COMMAND else ["python", "-m", "leaderboard"]
    return one_line(shlex.join([*program, name, *words[2:]]))


def command() -> NoReturn:
    """`main`, or the command that the first argument names."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        subcommands(COMMANDS, prog="python -m leaderboard")
    command_line(main, prog="python -m leaderboard")


if __name__ == "__main__":
    command()
