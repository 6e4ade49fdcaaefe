"""How much the method alone moves the numbers: the same images through every evaluator, reference, crop, filter, file
format, number of images and kind of split.

python reproductions/evaluators.py                                  # the images of table 2's ImageFolder row
python reproductions/evaluators.py files DIR --reference DIR --extractor inception       # your own PNG files

The row's models are those of table 2, trained if they are missing. All values of a metric are about the same images: a
difference is one of method, not of quality. The report shows them in a table of their own.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NoReturn

from tyro.conf import Positional

from imagefolder.cli import COMMAND, subcommands, typed_command
from imagefolder.errors import InputError, one_line
from reproductions import table2
from reproductions.options import run_script
from reproductions.recipe import Recipe, Table
from reproductions.scales import Scale

PROG, FILES = "evaluators.py", "files"


def rows(scale: Scale, classes: int) -> list[Recipe]:
    """Table 2's ImageFolder."""
    row = table2.rows(scale, classes)[0]
    note = "reconstructions of test images and class-balanced samples of table 2's row, measured in many ways"
    return [replace(row, note=note, reported=None, measures=("evaluators",))]


TABLE = Table("evaluators", "Evaluators: the same images, measured in many ways", rows)


def main() -> NoReturn:
    """Entry point."""
    if sys.argv[1:2] == [FILES]:
        subcommands({FILES: files}, prog=PROG)
    run_script(TABLE)


def files(
    images: Annotated[Path, Positional],
    *,
    reference: Path,
    extractor: str,
    training: Path | None = None,
    output: Path = Path("runs"),
) -> None:
    """Measure your own images with every evaluator, and with the mistakes that are easily made.

    Args:
        images: folder of PNG files: samples or reconstructions
        reference: folder of PNG files to compare them with: the originals
        extractor: inception, or a proxy extractor's .safetensors
        training: folder of PNG files of the training images, to show what a wrong reference does
        output: folder for the record and the report
    """
    from imagefolder.evaluation.inception import inception_extractor
    from imagefolder.evaluation.proxy import proxy_extractor
    from imagefolder.progress import console
    from leaderboard.report import build_report
    from leaderboard.reported import REPORTED_CSV
    from leaderboard.store import read_records
    from reproductions.evaluator_rows import record_folders
    from reproductions.plan import require_writable

    for folder in filter(None, (images, reference, training)):
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; give folders of PNG files")
    require_writable(output)
    chosen = inception_extractor() if extractor == "inception" else proxy_extractor(Path(extractor))
    words = typed_command()
    program = words[:2] if words[0] == COMMAND else ["python", f"reproductions/{PROG}"]
    command = one_line(" ".join([*program, FILES, *words[2:]]))
    path = record_folders(images, reference, training, chosen, output, command)
    console.print(f"record: {path}")
    console.print(f"report: {build_report(output, read_records(output / 'records'), REPORTED_CSV)[0]}")


if __name__ == "__main__":
    main()
