"""Published numbers: one CSV file with one row per system, and when a measured value may be compared with one.

The file is read here and nowhere else.
"""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from imagefolder.errors import one_line, reason
from imagefolder.files import read_text
from leaderboard.record import Dataset, Protocol
from leaderboard.store import RecordError

if TYPE_CHECKING:
    import pandas as pd

REPORTED_CSV = Path(__file__).parents[1] / "reproductions/reported/imagenet256.csv"
FAMILIES = {
    "autoregressive": ("VAR", "AR", "AR+Diff", "AR-cont", "AR-flow"),
    "masked": ("MAR", "MIM", "MIM/Diff"),
    "diffusion": ("Diff", "Diff-pixel"),
}
REPORTED_TEXT = ("system", "kind", "arxiv", "tokens", "codebook", "cfg", "source", "verified")
REPORTED_NUMBERS = ("year", "tokenizer_rfid", "params_m", "steps", "gfid", "is", "precision", "recall")
OPTIONAL_TEXT = ("also", "length_as_printed", "status")
OPTIONAL_NUMBERS = ("tokenizer_pfid", "linear_probe_acc")
REPORTED_LABELS = {
    "system": "system",
    "kind": "kind",
    "year": "year",
    "arxiv": "arXiv",
    "tokenizer_rfid": "tokenizer rFID\u00a0↓",
    "tokenizer_pfid": "tokenizer pFID\u00a0↓",
    "tokens": "tokens",
    "codebook": "codebook",
    "params_m": "parameters (M)",
    "steps": "steps",
    "gfid": "gFID\u00a0↓",
    "is": "IS\u00a0↑",
    "precision": "precision\u00a0↑",
    "recall": "recall\u00a0↑",
    "cfg": "guidance",
    "verified": "verified",
    "source": "source",
}
DECIMALS = {
    "tokenizer_rfid": 2,
    "tokenizer_pfid": 2,
    "gfid": 2,
    "is": 1,
    "precision": 2,
    "recall": 2,
    "linear_probe_acc": 1,
}

# Name of a measured metric -> the column that reports it.
COUNTERPARTS = {
    "rFID": "tokenizer_rfid",
    "pFID": "tokenizer_pfid",
    "gFID": "gfid",
    "IS": "is",
    "precision": "precision",
    "recall": "recall",
}
OF_TOKENIZERS = ("rFID", "pFID")  # compared with the validation images themselves
PUBLISHED_N = 50_000
LARGEST_NUMBER = 1e30
# The two files of the network behind the published metrics (TensorFlow Inception 2015-12-05): torch-fidelity's, ADM's.
INCEPTION_SHA256 = {
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "009d6814d1bc560d4e7b236e170e9b2d5ca6f4b57bd8037f6db05776204415c6",
}
ADM_REFERENCE = "VIRTUAL_imagenet256_labeled.npz"
AFTER_THE_PAPER = "after the paper"  # status of numbers that the first version of the paper does not print


def published_column(protocol: Protocol, dataset: Dataset) -> str | None:
    """The reported column that a value of this protocol may be compared with; None if the protocols differ.

    It must have been computed with the published network, on ImageNet's classes at 256 pixels, against the published
    reference: the validation images themselves for rFID and pFID, ADM's batch for metrics of samples (IS has none).
    """
    if protocol.extractor_sha256 not in INCEPTION_SHA256 or (dataset.classes, dataset.image_size) != (1000, 256):
        return None
    if protocol.name != "IS" and (protocol.reference == ADM_REFERENCE) != (protocol.name not in OF_TOKENIZERS):
        return None
    return COUNTERPARTS.get(protocol.name)


def reported_frame(path: Path, all_kinds: bool = False) -> pd.DataFrame:
    """The reported ImageNet rows with their `family`; by default only autoregressive, masked and diffusion systems.

    Cells without a value hold "" in text columns and NaN in numeric ones; the optional columns may be missing from the
    file. `also` is a tuple of the other names of a system; `status` is "paper",
    `AFTER_THE_PAPER` or ""; `linear_probe_acc` is in per cent. Raises OSError or RecordError (one line).
    """
    import pandas as pd

    with _reading(path):
        # Everything as text first: an arXiv number is not a number, its last zero counts.
        frame = _read_table(path)
        for name in (*OPTIONAL_TEXT, *OPTIONAL_NUMBERS):
            if name not in frame:
                frame[name] = ""
        numbers = frame[[*REPORTED_NUMBERS, *OPTIONAL_NUMBERS]].replace("", None).apply(pd.to_numeric).astype(float)
        if (numbers.abs() > LARGEST_NUMBER).to_numpy().any():
            raise ValueError("a number is larger than anything that can be measured")
        frame = pd.concat([frame[[*REPORTED_TEXT, *OPTIONAL_TEXT]], numbers], axis=1)
    frame["also"] = [tuple(filter(None, names.split("; "))) for names in frame["also"]]
    families = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}
    frame["family"] = [families.get(kind, "other") for kind in frame["kind"]]
    return frame if all_kinds else frame.loc[frame["family"] != "other"].reset_index(drop=True)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors in the content of the file into a RecordError."""
    problem = f"{path}: not a table of reported numbers"
    try:
        yield
    except KeyError as error:
        raise RecordError(f"{problem} (missing column: {error})") from error
    except (ValueError, OverflowError, csv.Error) as error:
        raise RecordError(f"{problem} ({reason(error)})") from error


def _read_table(path: Path) -> pd.DataFrame:
    """The cells of a CSV file as text, one line each. Raises OSError, ValueError or csv.Error."""
    import pandas as pd

    # Not with pandas, which pads short rows and takes the first cells of long ones for an index.
    lines = [row for row in csv.reader(io.StringIO(read_text(path)), strict=True) if row]
    header, rows = (lines or [[]])[0], lines[1:]
    if len(set(header)) < len(header):
        raise ValueError("two columns share a name")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells instead of {len(header)}")
    return pd.DataFrame([[one_line(cell) for cell in row] for row in rows], columns=header, dtype=str)


def reported_rows(reported: pd.DataFrame) -> list[dict[str, str]]:
    """The reported rows as text, with the digits they were printed with; "" for missing values."""
    return [{name: _text(value, name) for name, value in row.items()} for row in reported.to_dict("records")]


def reported_text(reported: pd.DataFrame, system: str | None, column: str) -> str:
    """One cell as text, of the first row of a system under any of its names; "" if there is no such row or value."""
    names = zip(reported["system"], reported["also"], reported[column], strict=True)
    return next((_text(value, column) for name, also, value in names if system == name or system in also), "")


def reported_length(reported: pd.DataFrame, system: str | None) -> str:
    """Sequence length of a reported system; the ablation table prints one that its author corrected later."""
    tokens, as_printed = (reported_text(reported, system, column) for column in ("tokens", "length_as_printed"))
    return tokens + (f" (printed: {as_printed})" if as_printed not in ("", tokens) else "")


def _text(value: object, column: str) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else printed(value, column)
    return str(value)


def printed(value: float, column: str) -> str:
    """All digits of a reported value, and at least as many decimals as its column is printed with."""
    fixed = f"{value:.{DECIMALS.get(column, 0)}f}"
    return fixed if float(fixed) == value else repr(value)
