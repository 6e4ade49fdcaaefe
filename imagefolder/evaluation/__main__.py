"""`python -m imagefolder.evaluation SAMPLES --reference REFERENCE`: metrics of images in files."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from imagefolder.distributed import is_main, join_processes
from imagefolder.environment import keep_freed_memory
from imagefolder.errors import InputError, one_line
from imagefolder.evaluation.extractor import inception_extractor, proxy_extractor
from imagefolder.evaluation.protocols import evaluate_files
from imagefolder.evaluation.results import Result
from imagefolder.progress import console, display


def main(samples: Annotated[Path, tyro.conf.Positional], reference: Path, extractor: str = "inception") -> int:
    """FID, sFID, IS, precision and recall of samples in files, as a table and as JSON (last on the output).

    Args:
        samples: folder of PNG files, or npz with arr_0 uint8 (N, H, W, 3).
        reference: what they are compared with: the same, or an npz of statistics (VIRTUAL_imagenet256_labeled.npz).
        extractor: inception (published metrics; needs its weight file), or a proxy extractor's .safetensors.
    """
    keep_freed_memory()
    try:
        join_processes()
        chosen = inception_extractor() if extractor == "inception" else proxy_extractor(Path(extractor))
        result, sha256 = evaluate_files(samples, reference, chosen)
    except (InputError, OSError) as error:
        display.close()
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        display.close()
        print("interrupted", file=sys.stderr)
        return 130
    if not is_main():
        return 0
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
    return 0


def _table(result: Result) -> Table:
    table = Table("metric", "value", "spread", "n", "n real", "reference")
    for m in result.measurements:
        spread = "" if m.spread is None else f"{m.spread:.3g}"
        real = f"{m.n_real:,}" if m.n_real else "-"
        table.add_row(m.protocol.name, f"{m.value:.6g}", spread, f"{m.n_generated:,}", real, m.protocol.reference)
    return table


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m imagefolder.evaluation"))
