"""How much the numbers for the same images depend on evaluator, reference, crop, filter, file format and IS splits.

python reproductions/evaluators.py                                  # digits, proxy extractor, a minute
python reproductions/evaluators.py --images DIR --reference DIR     # your own PNG files

All rows of a group are about the same images: a difference is one of method, not of quality.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from imagefolder.cli import command_line
from imagefolder.errors import InputError

if TYPE_CHECKING:
    from imagefolder.evaluation.extractor import Extractor
    from reproductions.evaluator_variants import Variant


def main() -> NoReturn:
    """Entry point."""
    command_line(compare, prog="evaluators.py")


def compare(
    *,
    images: Path | None = None,
    reference: Path | None = None,
    training: Path | None = None,
    extractor: str | None = None,
    output: Path = Path("runs"),
) -> None:
    """Measure the same images with every evaluator, and with the mistakes that are easily made.

    Args:
        images: folder of PNG files: samples or reconstructions (default: digits stored at half the resolution)
        reference: folder of PNG files to compare them with: the originals
        training: folder of PNG files of the training images, for the row with the wrong reference
        extractor: inception, or a proxy extractor's .safetensors (default: one of the digits, trained if needed)
        output: folder for evaluators.json and evaluators.md
    """
    if (images is None) != (reference is None):
        raise InputError("--images and --reference go together")
    if images is not None and extractor is None:
        raise InputError("choose with --extractor what to measure your own images with: inception, or a proxy's file")
    from imagefolder.environment import describe
    from imagefolder.evaluation.clean import VERSION
    from imagefolder.files import write_atomically
    from imagefolder.progress import console
    from reproductions.evaluator_variants import Folders, Variants, digit_folders

    chosen = _extractor(extractor, output)
    with tempfile.TemporaryDirectory() as temporary:
        if images is None or reference is None:
            name, folders = "digits/test, half the resolution and back", digit_folders(Path(temporary))
        else:
            name, folders = str(images), Folders(images, reference, training)
        variants = Variants(folders, chosen).all()
    document = {
        "images": name,
        "reference": str(reference or "digits/test"),
        "extractor": chosen.name,
        "extractor_sha256": chosen.sha256,
        "torch_fidelity": chosen.evaluator,
        "clean_fid": VERSION,
        "rows": [asdict(variant) | {"difference": difference(variant, variants)} for variant in variants],
        "run": describe(),
    }
    write_atomically(output / "evaluators.json", lambda path: path.write_text(json.dumps(document, indent=1)))
    write_atomically(output / "evaluators.md", lambda path: path.write_text(markdown(document)))
    print(markdown(document))
    console.print(f"written: {output / 'evaluators.md'}")


def difference(variant: Variant, variants: list[Variant]) -> float | None:
    """Difference from the first value of the same group and metric."""
    first = next(v.value for v in variants if (v.group, v.metric) == (variant.group, variant.metric))
    return None if variant.value is None or first is None else variant.value - first


def markdown(document: dict[str, Any]) -> str:
    """The table, and the versions and files it was made with."""
    lines = [
        "# The same images, several evaluators",
        "",
        f"Images: {document['images']}; reference: {document['reference']}.",
        f"Extractor: {document['extractor']}, sha256 `{document['extractor_sha256']}`; {document['torch_fidelity']}, "
        f"{document['clean_fid']}; commit {document['run']['git_commit']}.",
        "Differences are from the first row of the group, which is what this project does.",
        "",
        "| group | variant | metric | value | difference | n | n real |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row))} |" for row in document["rows"])]) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    value = row["reason"] or f"{row['value']:.6g}"
    change = "" if row["difference"] is None else f"{row['difference']:+.3g}"
    real = f"{row['n_real']:,}" if row["n_real"] else "-"
    return [row["group"], row["variant"], row["metric"], value, change, f"{row['n']:,}", real]


def _extractor(given: str | None, output: Path) -> Extractor:
    from imagefolder.evaluation.inception import inception_extractor
    from imagefolder.evaluation.proxy import proxy_extractor
    from reproductions.evaluator_variants import digit_extractor

    if given == "inception":
        return inception_extractor()
    return digit_extractor(output) if given is None else proxy_extractor(Path(given))


if __name__ == "__main__":
    main()
