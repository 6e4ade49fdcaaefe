"""Anchors of the report: the same for the same record, row, table or protocol in every report."""

from __future__ import annotations

import hashlib
import re

from markupsafe import Markup, escape

from leaderboard.record import Record
from leaderboard.tables import MetricKey, TableKey, added_by, config_key, link_of, table_key

_ADDRESS = re.compile(
    r"(?P<url>https?://[^\s<>\"'`\\;,()]+)"
    r"|\barXiv[ :](?P<arxiv>\d{4}\.\d{4,5})\b"
    r"|\b(?P<doi>10\.\d{4,9}/[^\s<>\"'`\\;,()]+)",
    re.IGNORECASE,
)


def record_anchor(record: Record) -> str:
    """E.g. "record-table2-imagefolder-mini-digits-f4eaf250-seed0"."""
    return _anchor("record", record.name)


def row_anchor(record: Record) -> str:
    """Of the row that a record is a seed of."""
    parts = (*table_key(record), config_key(record), added_by(record), link_of(record))
    return f"{_anchor('row', f'{record.table}-{record.place}-{record.row}')}-{_hash(*parts)}"


def table_anchor(key: TableKey) -> str:
    """Of a table at one scale and budget on one data set."""
    return f"{_anchor('table', f'{key[0]}-{key[1]}-{key[3]}')}-{_hash(*key)}"


def protocol_anchor(key: MetricKey) -> str:
    """Of a protocol with its numbers of images."""
    protocol, n_real, n_generated = key
    return f"{_anchor('protocol', protocol.name)}-{_hash(protocol.model_dump_json(), str(n_real), str(n_generated))}"


def linked(text: str) -> Markup:
    """Text as HTML in which arXiv numbers ("arXiv 2410.01756"), DOIs and web addresses are links."""
    parts, end = [], 0
    for found in _ADDRESS.finditer(text):
        address = found["url"] or (
            f"https://arxiv.org/abs/{found['arxiv']}" if found["arxiv"] else f"https://doi.org/{found['doi']}"
        )
        parts += [escape(text[end : found.start()]), anchor_to(address.rstrip("."), found[0])]
        end = found.end()
    return Markup("").join([*parts, escape(text[end:])])


def anchor_to(address: str, text: str) -> Markup:
    """A link to another site."""
    return Markup('<a href="{}" rel="noopener noreferrer nofollow">{}</a>').format(address, text)


def _anchor(kind: str, name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:120]
    return f"{kind}-{plain}" + (f"-{_hash(name)}" if plain != name else "")


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:8]
