"""`python -m imagefolder.evaluation SAMPLES --reference REFERENCE`: metrics of images in files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

from tyro.conf import Positional

from imagefolder.cli import command_line

if TYPE_CHECKING:
    from rich.table import Table

    from imagefolder.evaluation.results import Result


def main() -> NoReturn:
    """Entry point."""
    command_line(evaluate, prog="python -m imagefolder.evaluation")


def evaluate(samples: Annotated[Path, Positional], *, reference: Path, extractor: str = "inception") -> None:
    """FID, sFID, IS, precision and recall of sample files, printed as a table and then as JSON.

    Args:
        samples: folder of PNG files, or npz with arr_0 uint8 (N, H, W, 3)
        reference: real images to compare with, in the same formats, or an npz of statistics
            (VIRTUAL_imagenet256_labeled.npz)
        extractor: inception (published metrics; needs its weight file), lite0 (EfficientNet-Lite0; needs the extra
            `lite`), dinov2 (FD-DINOv2; needs its weight file), or a proxy extractor's .safetensors
    """
    from imagefolder.distributed import is_main, join_processes
    from imagefolder.environment import tune_allocator
    from imagefolder.evaluation.protocols import evaluate_files
    from imagefolder.evaluation.spaces import named_extractor
    from imagefolder.progress import console

    tune_allocator()
    join_processes()
    chosen = named_extractor(extractor)
    result, sha256 = evaluate_files(samples, reference, [chosen])
    if not is_main():
        return
    console.print(f"samples {samples}, pixels sha256 {sha256}")
    console.print(f"extractor {chosen.name}, sha256 {chosen.sha256}, {chosen.evaluator}")
    console.print(_table(result))
    for note in result.notes:
        console.print(note)
    document = {
        "samples": str(samples),
        "samples_sha256": sha256,
        "metrics": [asdict(measurement) for measurement in result.measurements],
        "notes": result.notes,
    }
    print(json.dumps(document, indent=1))


def _table(result: Result) -> Table:
    from rich.table import Table

    table = Table("metric", "value", "spread", "n", "n real", "reference")
    for m in result.measurements:
        spread = "" if m.spread is None else f"{m.spread:.3g}"
        real = f"{m.n_real:,}" if m.n_real else "-"
        table.add_row(m.protocol.name, f"{m.value:.6g}", spread, f"{m.n_generated:,}", real, m.protocol.reference)
    return table


if __name__ == "__main__":
    main()
