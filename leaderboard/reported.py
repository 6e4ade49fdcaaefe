"""Numbers reported by others: read from CSV, printed as they were, and when a measured value may stand beside one."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from leaderboard.files import read_text
from leaderboard.record import Dataset, Protocol
from leaderboard.store import RecordError
from leaderboard.text import one_line, reason

FAMILIES = {
    "autoregressive": ("VAR", "AR", "AR+Diff", "AR-cont", "AR-flow"),
    "masked": ("MAR", "MIM", "MIM/Diff"),
    "diffusion": ("Diff", "Diff-pixel"),
}
REPORTED_TEXT = ("system", "kind", "arxiv", "tokens", "codebook", "cfg", "source", "verified")
REPORTED_NUMBERS = ("year", "tokenizer_rfid", "params_m", "steps", "gfid", "is", "precision", "recall")
REPORTED = {
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
OF_TOKENIZERS = ("rFID", "pFID")  # these compare with the validation images themselves
PUBLISHED_N = 50_000
LARGEST_NUMBER = 1e30
# The two files that hold the published metrics' network (TensorFlow Inception 2015-12-05): torch-fidelity's, ADM's.
INCEPTION_SHA256 = {
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "009d6814d1bc560d4e7b236e170e9b2d5ca6f4b57bd8037f6db05776204415c6",
}
ADM_REFERENCE = "VIRTUAL_imagenet256_labeled"
ABLATION_SYSTEM = r"^ImageFolder ablation A(\d+)\b"


def published_column(protocol: Protocol, dataset: Dataset) -> str | None:
    """The reported column a value of this protocol may be compared with; None where the protocols differ.

    That takes the network of the published metrics, ImageNet's classes at 256 pixels, and the published reference: the
    validation images themselves for rFID and pFID, ADM's batch for the metrics of samples (IS has none).
    """
    column = COUNTERPARTS.get(protocol.name)
    if protocol.extractor_sha256 not in INCEPTION_SHA256 or (dataset.classes, dataset.image_size) != (1000, 256):
        return None
    if protocol.name != "IS" and (ADM_REFERENCE in protocol.reference) != (protocol.name not in OF_TOKENIZERS):
        return None
    return column


def reported_frame(path: Path, all_kinds: bool = False) -> pd.DataFrame:
    """The reported ImageNet rows with their `family`; by default the autoregressive, masked and diffusion systems only.

    Text columns hold "" where nothing was found, numeric columns NaN. Rows of ImageFolder's ablation also have what
    `ablation.csv` beside the file `path` says of them: `linear_probe_acc` (per cent), `length_as_printed` and `status`
    ("paper" or "after the paper"). `tokenizer_pfid` is that of `pfid.csv` beside it. Raises OSError or RecordError (one
    line).
    """
    with _reading(path, "not a table of reported numbers"):
        # As text first: an arXiv number is no number, its last zero counts.
        frame = _read_table(path)
        frame = pd.concat([frame[list(REPORTED_TEXT)], _numbers(frame, REPORTED_NUMBERS)], axis=1)
    frame["tokenizer_pfid"] = _pfid(frame["system"], path.with_name("pfid.csv"))
    frame = pd.concat([frame, _ablation(frame["system"], path.with_name("ablation.csv"))], axis=1)
    families = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}
    frame["family"] = frame["kind"].map(families).astype(object).fillna("other")
    return frame if all_kinds else frame[frame["family"] != "other"].reset_index(drop=True)


@contextlib.contextmanager
def _reading(path: Path, problem: str) -> Iterator[None]:
    """Turn what goes wrong over the content of a file into a RecordError."""
    try:
        yield
    except KeyError as error:
        raise RecordError(f"{path}: {problem} (it lacks the column {error})") from error
    except (ValueError, OverflowError, csv.Error) as error:
        raise RecordError(f"{path}: {problem} ({reason(error)})") from error


def _read_table(path: Path) -> pd.DataFrame:
    """The cells of a CSV file as text, each in one line. Raises OSError, ValueError or csv.Error."""
    # Not by pandas, which fills short rows up and takes the first cells of long ones for an index.
    lines = [row for row in csv.reader(io.StringIO(read_text(path)), strict=True) if row]
    header, rows = (lines or [[]])[0], lines[1:]
    if len(set(header)) < len(header):
        raise ValueError("two columns share a name")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells instead of {len(header)}")
    return pd.DataFrame([[one_line(cell) for cell in row] for row in rows], columns=header, dtype=str)


def _numbers(frame: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    """Columns of numbers, NaN where nothing stands. Raises KeyError, ValueError or OverflowError."""
    numbers = frame[list(columns)].apply(lambda column: pd.to_numeric(column.replace("", None))).astype(float)
    if bool((numbers.abs() > LARGEST_NUMBER).any(axis=None)):
        raise ValueError("a number is larger than anything measured")
    return numbers


def _pfid(systems: pd.Series, path: Path) -> pd.Series:
    """pFID of every system's tokenizer, in the order of `systems`; NaN where none is reported."""
    if not path.exists():
        return pd.Series(math.nan, systems.index)
    with _reading(path, "not a table of reported pFIDs"):
        known = _numbers(_read_table(path).set_index("system"), ("pfid",))["pfid"]
        return known.reindex(systems).set_axis(systems.index)


def _ablation(systems: pd.Series, path: Path) -> pd.DataFrame:
    """What the ablation table says of every system, in the order of `systems`; nothing where there is no such table."""
    columns = ["length_as_printed", "status", "linear_probe_acc"]
    if not path.exists():
        return pd.DataFrame({"length_as_printed": "", "status": "", "linear_probe_acc": math.nan}, index=systems.index)
    with _reading(path, "not the table of the ablation"):
        steps = _read_table(path).set_index("row")
        steps["linear_probe_acc"] = _numbers(steps, ("linear_probe_acc",))
        steps = steps[columns].reindex(systems.str.extract(ABLATION_SYSTEM)[0])
        return steps.set_axis(systems.index).fillna({"length_as_printed": "", "status": ""})


def reported_rows(reported: pd.DataFrame) -> list[dict[str, str]]:
    """The reported rows as text, with the digits they were printed with; "" where nothing was found."""
    rows = reported.astype(object).to_dict("records")
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):
                row[name] = printed(value, name) if not math.isnan(value) else ""
    return rows


def printed(value: float, column: str) -> str:
    """All digits of a reported value, and at least as many after the point as its column is printed with."""
    fixed = f"{value:.{DECIMALS.get(column, 0)}f}"
    return fixed if float(fixed) == value else repr(value)


def reported_text(reported: pd.DataFrame, system: str | None, column: str) -> str:
    """One reported number as text; "" where the system or the number is not known."""
    found = reported[reported["system"] == system]
    value = math.nan if found.empty else found.iloc[0][column]
    return "" if math.isnan(value) else printed(value, column)


def reported_length(reported: pd.DataFrame, system: str | None) -> str:
    """Sequence length of a reported system; the ablation prints one that its author corrected later."""
    found = reported[reported["system"] == system]
    if found.empty:
        return ""
    tokens, as_printed = found.iloc[0]["tokens"], found.iloc[0]["length_as_printed"]
    return tokens + (f" (printed: {as_printed})" if as_printed not in ("", tokens) else "")
