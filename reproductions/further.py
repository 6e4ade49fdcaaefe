"""Feature spaces that a table measures beside its main ones, with what they need of the data: measured once and kept.

The files are OUTPUT/references/DATA-HASH/EXTRACTOR-HASH.safetensors and .json: statistics of the training images, and
the values of real test images against them. All rows, seeds, scripts and scales with the same images share them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from imagefolder.data.images import DataSplits
from imagefolder.distributed import barrier, is_main, of_main
from imagefolder.errors import DamagedFile
from imagefolder.evaluation.extractor import Extractor
from imagefolder.evaluation.real import floors_against, training_reference
from imagefolder.evaluation.reference import read_reference, write_reference
from imagefolder.evaluation.spaces import further_extractors
from imagefolder.locks import building
from imagefolder.progress import console


def further_of(published: bool, splits: DataSplits, output: Path) -> list[Extractor]:
    """The further spaces that this machine has the weights of, each with its reference and floors of the data.

    Raises:
        InputError: weights are damaged, or a file cannot be read at the moment.
    """
    return [_with_reference(extractor, splits, output) for extractor in further_extractors(published)]


def _with_reference(extractor: Extractor, splits: DataSplits, output: Path) -> Extractor:
    name = f"{extractor.name}-{(extractor.sha256 or '')[:8]}.safetensors"
    inside = Path("references") / f"{splits.name}-{splits.sha256[:8]}" / name
    path = output / inside
    with building(output / "locks" / f"{'-'.join(inside.parts)}.lock", str(inside)):
        if not of_main(_is_done(path)):
            reference = training_reference(splits, extractor)
            floors = floors_against([reference], splits, [extractor])
            if is_main():
                write_reference(path, reference, {"floors": floors})
            barrier()
        return replace(extractor, kept=path, floors=read_reference(path)[1]["floors"])


def _is_done(path: Path) -> bool:
    if not (path.exists() and path.with_suffix(".json").exists()):
        return False
    try:
        return isinstance(read_reference(path)[1].get("floors"), dict)
    except DamagedFile as error:
        if is_main():
            console.print(f"{error}; measuring the training images again")
        return False
