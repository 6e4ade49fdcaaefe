"""The format of records as a page: every field of every part, from the schema.

`python -m leaderboard.record_docs leaderboard/RECORDS.md` writes it.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic.fields import FieldInfo
from tyro.conf import Positional

from imagefolder.cli import command_line
from imagefolder.files import write_text
from leaderboard.record import (
    SCHEMA_VERSION,
    Added,
    Checkpoint,
    CodebookUsage,
    Cost,
    Dataset,
    Metric,
    Part,
    Protocol,
    Record,
    Run,
    Size,
    Timed,
)
from leaderboard.speed_record import SPEED_SCHEMA_VERSION, SpeedRecord

PARTS: tuple[type[Part], ...] = (
    *(Record, Dataset, Size, Checkpoint, Metric, Protocol, CodebookUsage, Cost, Timed, Added, Run),
    SpeedRecord,
)
ADDED_LATER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("place in the table, and the reported counterpart", ("Record.order", "Record.reported_system")),
    ("rows that were not run, several processes", ("Run.processes", "Run.execution")),
    ("checksums of records (`run.checksum`) and pictures", ("Dataset.left_out", "Record.picture_sha256")),
    ("hashes of the code", ("Run.code", "SpeedRecord.scale")),
    ("budgets, and rows measured from the files of others", ("Record.budget", "Record.added")),
    (
        "intervals, classes, and the timing at the end of a run",
        (
            *("Metric.interval", "Record.notes", "Record.class_accuracies", "Cost.alone", "Cost.other_cores"),
            *("Cost.threads", "Cost.sampling", "Cost.tokenizer_step", "Cost.generator_step"),
            *("SpeedRecord.memory_growth_mib", "SpeedRecord.attempts"),
        ),
    ),
)
"""What version 1 has gained since its first record, oldest first; every field has a default"""

_HEAD = f"""# The format of records

Generated from the schema (`leaderboard/record.py`, `leaderboard/speed_record.py`) by
`python -m leaderboard.record_docs leaderboard/RECORDS.md`, and held to it by a test.

A [record](#record) is one JSON file, `records/NAME.json` in the output folder of a run: one row of one table at one
scale with one seed, with its numbers and all that is needed to trace and repeat them. A [speed record](#speedrecord),
`speed/NAME.json`, is one benchmark on one machine. The name follows from the content; `validate` tells it.

## Reading one

Any JSON parser does; no package of this project is needed.

```python
import json
from pathlib import Path

for path in sorted(Path("runs/records").glob("*.json")):
    record = json.loads(path.read_text())
    for metric in record["metrics"]:  # none if the row failed; "reason" then says why
        protocol = metric["protocol"]
        print(record["row"], record["seed"], protocol["name"], protocol["version"], metric["value"])
```

Values are comparable only if the whole `protocol` and both numbers of images are equal. Within this project,
`leaderboard.store.read_record(path)` gives a `leaderboard.record.Record`, with the checksum verified.

- Files are UTF-8; numbers are finite, so that NaN and Infinity do not occur. Texts are one printable line.
- `null` stands for what is not known or does not apply. A field with a default may be absent.
- Unknown fields are refused: a misspelt field would otherwise be lost without a word.
- `run` also holds `checksum`, the sha256 of the rest of the document. Files without one are accepted.

## Checking one

    python -m leaderboard validate FILE...

says in plain words all that is wrong: fields, impossible values, hashes, missing pictures. The report leaves out what
it cannot use, names every such file with the reason, and is built from the others.

## Versions

`schema_version` is {SCHEMA_VERSION} for records and {SPEED_SCHEMA_VERSION} for speed records, and has been since the
first. It is raised only when a field changes its meaning or goes away. New fields are added with a default, which
stands for "not known" or for what every earlier version did, so that earlier records are read as they are: nothing
needs to be converted, and files are not rewritten. `tests/leaderboard/earlier/` holds records of earlier versions that
must load.

A record with a later `schema_version`, or an intact one with fields that are not known here, was written by a newer
version of this project. It is left out of the report, which says so; after an update it is read. A run that replaces
such a file moves it to `records/earlier/NAME-newer.json`.

What has been added to version 1 since its first record, oldest first:

"""


def render() -> str:
    """The page."""
    history = "".join(f"- {what}: {', '.join(f'`{field}`' for field in fields)}\n" for what, fields in ADDED_LATER)
    return f"{_HEAD}{history}" + "".join(_section(kind) for kind in PARTS)


def _section(kind: type[Part]) -> str:
    types = kind.model_json_schema()["properties"]
    lines = [f"\n## {kind.__name__}\n", inspect.cleandoc(kind.__doc__ or ""), ""]
    lines += ["| field | type | default | what it is |", "|---|---|---|---|"]
    for name, field in kind.model_fields.items():
        cells = (
            f"`{name}`",
            in_words(types[name]),
            _default(field),
            (field.description or "").replace("None", "`null`"),
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    return "**required**" if field.is_required() else f"`{json.dumps(field.default)}`"


def in_words(schema: dict[str, Any]) -> str:
    """The type of a field from its JSON Schema."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "allOf"):
        if several in schema:
            words = [in_words(each) for each in schema[several]]
            return " or ".join(words).replace(" or `null`", ", or `null`")
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    match schema["type"]:
        case "string":
            return "text"
        case "boolean":
            return "`true` or `false`"
        case "null":
            return "`null`"
        case "array" if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {', '.join(map(_plain, schema['prefixItems']))}"
        case "array":
            return f"list of {in_words(schema['items'])}, at most {schema['maxItems']}"
        case "object":
            values = schema.get("additionalProperties")
            return f"object: text to {in_words(values)}" if isinstance(values, dict) else "object, of any JSON values"
        case _:
            return _number(schema)


def _plain(schema: dict[str, Any]) -> str:
    return in_words({"type": schema["type"]})


def _number(schema: dict[str, Any]) -> str:
    """A number; limits that are only there against overflow are left out."""
    words = {"integer": "whole number", "number": "number"}[schema["type"]]
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and low > -1e10:
        words += f" of at least {low:g}"
    return f"{words} and at most {high:g}" if high is not None and high < 1e10 else words


def write(path: Annotated[Path, Positional]) -> None:
    """Write the page.

    Args:
        path: file to write
    """
    write_text(path, render())


def main() -> NoReturn:
    """Entry point."""
    command_line(write, prog="python -m leaderboard.record_docs")


if __name__ == "__main__":
    main()
