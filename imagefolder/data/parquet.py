"""Images in parquet files, as Hugging Face stores data sets: a column of image files and one of classes.

Pages of a parquet file cannot be read in any order, so the files are unpacked once, each into a tar shard with a
document beside it, and used again as long as nothing changes.
"""

from __future__ import annotations

import atexit
import io
import json
import re
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout

from imagefolder.data.checking import Listing
from imagefolder.data.disk import IMAGE_SUFFIXES, LARGEST_FILE, Walk, say, stamp
from imagefolder.data.imagenet import synsets_of
from imagefolder.data.layout import TESTS, TRAIN, Layout
from imagefolder.data.shards import read_shards
from imagefolder.errors import InputError, reason
from imagefolder.files import read_json, reading, write_atomically, write_json
from imagefolder.locks import file_lock
from imagefolder.progress import Phase

PARQUET = ".parquet"
VERSION = 1  # of what is unpacked
OVERHEAD = 2048  # bytes that a row takes in a tar shard beside its image
BATCH = 16  # rows in memory
REMEDY = "; download it again"

_SPLIT = re.compile(rf"({TRAIN}|{'|'.join(TESTS)})([-_.].*)?", re.IGNORECASE)
_SYNSET = re.compile(r"_(n\d{8})\.\w+$")  # n01440764_10026_n01440764.JPEG, as in ImageNet on Hugging Face


def find_parquet(walk: Walk) -> dict[str, list[Path]]:
    """Parquet files by split: in the data folder, in data/, or in folders named after the splits.

    Empty if the folder has another layout. Files without the name of a split are one data set, which has no test split.

    Raises:
        InputError: some files have the name of a split and others not.
    """
    top = walk.contents("")
    folders = [name for name, _ in top.folders]
    inside = {name: walk.contents(name) for name in folders if _SPLIT.fullmatch(name) or name == "data"}
    if top.named((PARQUET,)) and not any(walk.contents(name).named(IMAGE_SUFFIXES) for name in folders):
        folder, names = "", top.named((PARQUET,))
    elif "data" in inside and (names := inside["data"].named((PARQUET,))):
        folder = "data"
    else:
        found = {name: contents.named((PARQUET,)) for name, contents in inside.items()}
        return {name: [walk.path(name) / file for file in files] for name, files in found.items() if files}
    splits: dict[str, list[Path]] = {}
    for name in names:
        match = _SPLIT.fullmatch(name)
        splits.setdefault(match[1].lower() if match else "", []).append(walk.path(folder) / name)
    if set(splits) == {""}:
        return {TRAIN: splits[""]}
    if odd := splits.get(""):
        raise InputError(f"{odd[0]}: of no split; name it train-... or validation-..., or move it away")
    return splits


def list_parquet(data: Path, splits: dict[str, list[Path]], index: Path | None) -> Listing:
    """The images of parquet files, unpacked into a folder beside the index file, or a temporary one without index.

    Args:
        data: the path of the data.
        splits: its files by split, as `find_parquet` returns them.
        index: the index file of the data.

    Raises:
        InputError: naming the file, and the row where one is to blame; pyarrow or disk space is missing.
    """
    files = {split: [ParquetImages(path) for path in sorted(paths)] for split, paths in splits.items()}
    if TRAIN not in files:
        raise InputError(f"{data}: parquet files of {', '.join(files)}, but none of train")
    test = next((name for name in TESTS if name in files and (name != "test" or _labelled(files[name]))), None)
    left_out = Counter({f"in {split}/": _rows(files[split]) for split in files if split not in (TRAIN, test)})
    used = [files[TRAIN], *([files[test]] if test else [])]
    for split in used:
        if not _rows(split):
            raise InputError(f"{split[0].path}: no rows, nor in other files of this split")
        for file in split:
            if file.label is None:
                raise InputError(file.unlabelled)
    if index is None:
        target = Path(tempfile.mkdtemp(prefix="imagefolder-"))
        atexit.register(shutil.rmtree, target, ignore_errors=True)
    else:
        target = index.with_suffix("")
    with _locked(target, data):
        _unpack_all(data, used, target)
    shards = [[_shard(target, number, file) for file in split if file.number] for number, split in enumerate(used)]
    abouts = [_about(shard) for split in shards for shard in split]
    parts = read_shards(target, [str(shard.relative_to(target)) for split in shards for shard in split], index)
    names = _synset_names(abouts)
    by_file: list[list[str]] = [[names.get(name) or name for name in about["classes"]] for about in abouts]
    classes = sorted({name for found in by_file for name in found})
    position = {name: label for label, name in enumerate(classes)}
    positions = [np.array([position[name] for name in found]) for found in by_file]
    labels = np.concatenate([known[part["cls"]] for known, part in zip(positions, parts, strict=True)])
    rows = np.concatenate(parts)  # names as wide as the widest
    is_test = None
    if test:
        is_test = np.arange(len(rows)) >= sum(map(len, parts[: len(shards[0])]))
        odd = {classes[label] for label in np.setxor1d(labels[is_test], labels[~is_test])}
        Layout((TRAIN, test), True).require_same_classes(data, odd)
    return Listing(target, classes, rows, labels, is_test, left_out)


class ParquetImages:
    """A parquet file with a column of images and, unless `label` is None, one of classes.

    Raises:
        InputError: pyarrow is missing, or the file is not readable or has no images.
    """

    label: str | None
    names: list[str] | None
    """of the classes, by number"""
    unlabelled = ""
    """why there is no column of classes"""

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise InputError(f"{path}: parquet files are read by pyarrow: pip install pyarrow") from None
        self.path, self.types = path, pa.types
        with reading(path, "a parquet file", REMEDY):
            if not path.is_file():
                raise InputError(f"{path}: no such file, or not a regular one")
            self.stamp = stamp(path.stat())
            self._open = lambda: pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
            with self._open() as file:
                schema, metadata = file.schema_arrow, file.metadata
                self.number = metadata.num_rows
                groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
                self.unpacked_size = sum(group.total_byte_size for group in groups) + OVERHEAD * self.number
            about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            features = about.get("info", {}).get("features", {})
            self.image = self._column(schema.names, features, "image", "Image")
            self._require_bytes(schema.field(self.image).type)
            try:
                self.label = self._column(schema.names, features, "label", "ClassLabel")
                self._require_classes(schema.field(self.label).type)
            except InputError as error:
                self.label, self.unlabelled = None, str(error)
            names = features.get(self.label, {}).get("names")
            self.names = names and (synsets_of(names) or names)

    def _column(self, columns: list[str], features: dict[str, Any], name: str, kind: str) -> str:
        """The column of this name, or else the only one that Hugging Face's `datasets` has declared to be of `kind`."""
        if name in columns:
            return name
        declared = [column for column in columns if features.get(column, {}).get("_type") == kind]
        if len(declared) != 1:
            raise InputError(f"{self.path}: no column {name} among {', '.join(columns)}; rename the one meant")
        return declared[0]

    def _require_bytes(self, image: Any) -> None:
        types = self.types
        content = image.field("bytes").type if types.is_struct(image) and image.get_field_index("bytes") >= 0 else image
        if not (types.is_binary(content) or types.is_large_binary(content)):
            raise InputError(f"{self.path}: column {self.image} is {image}; expected image files as bytes")

    def _require_classes(self, label: Any) -> None:
        types = self.types
        text = label.value_type if types.is_dictionary(label) else label
        if not (types.is_integer(text) or types.is_string(text) or types.is_large_string(text)):
            raise InputError(f"{self.path}: column {self.label} is {label}; expected integers or text")

    def columns(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """The values of some columns, row by row."""
        with reading(self.path, "a parquet file", REMEDY), self._open() as file:
            for batch in file.iter_batches(BATCH, columns=list(names)):
                yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)

    def rows(self) -> Iterator[tuple[bytes, str | None, str]]:
        """Content of the image file, its name if known, and class name of every row."""
        assert self.label is not None
        for row, (image, label) in enumerate(self.columns(self.image, self.label)):
            origin = f"{self.path}: row {row}"
            content, name = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
            if content is None:
                raise InputError(f"{origin} holds no image{f', only the path {name}' if name else ''}")
            if len(content) > LARGEST_FILE:
                raise InputError(f"{origin}: {len(content):,} bytes are more than the {LARGEST_FILE:,} for an image")
            if not _is_label(label):
                raise InputError(f"{origin} has no class (label {label!r})")
            if isinstance(label, int) and self.names and label >= len(self.names):
                raise InputError(f"{origin} is of class {label}, but the file names {len(self.names)} classes")
            yield content, name, self.names[label] if isinstance(label, int) and self.names else str(label)


def _is_label(label: int | str | None) -> bool:
    """Whether a label says something: unlabelled rows have -1."""
    return bool(label.strip()) if isinstance(label, str) else label is not None and label >= 0


def _rows(files: list[ParquetImages]) -> int:
    return sum(file.number for file in files)


def _labelled(files: list[ParquetImages]) -> bool:
    return any(_is_label(label) for file in files if file.label for (label,) in file.columns(file.label))


def _shard(target: Path, number: int, file: ParquetImages) -> Path:
    """The tar shard into which a file of split `number` is unpacked."""
    return target / (TRAIN, TESTS[0])[number] / f"{file.path.name}.tar"


def _about(shard: Path) -> dict[str, Any]:
    return read_json(shard.with_suffix(".json"), f"; delete {shard.parent.parent}")


@contextmanager
def _locked(target: Path, data: Path) -> Iterator[None]:
    """Be the only process that unpacks into `target`."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        lock = file_lock(target / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{data}: another process is unpacking it; waiting until it has finished")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise InputError(
            f"{target}: cannot be written and locked ({reason(error)}); choose another folder with --output"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _unpack_all(data: Path, splits: list[list[ParquetImages]], target: Path) -> None:
    """Unpack what is not unpacked yet, and remove what no longer belongs there."""
    used = [(number, file) for number, split in enumerate(splits) for file in split if file.number]
    wanted = {_shard(target, number, file): file for number, file in used}
    for path in target.glob("*/*.tar"):
        if path not in wanted:
            path.unlink()
    todo = {shard: file for shard, file in wanted.items() if not _is_unpacked(shard, file)}
    if not todo:
        return
    needed, free = sum(file.unpacked_size for file in todo.values()), shutil.disk_usage(target).free
    if needed > free:
        raise InputError(
            f"{data}: unpacking its parquet files takes {needed:,} bytes, but {target} has {free:,} free; choose "
            "a larger disk with --output"
        )
    say(f"{data}: unpacking {needed:,} bytes of parquet files into {target}")
    with Phase(f"{data.resolve().name}: unpacking rows", _rows(list(todo.values()))) as phase:
        for shard, file in todo.items():
            _unpack(file, shard, phase)


def _is_unpacked(shard: Path, file: ParquetImages) -> bool:
    """Whether a shard is there, and neither it nor its file has changed since it was written."""
    try:
        about = _about(shard)
        return about["version"] == VERSION and (about["file"], about["shard"]) == (
            list(file.stamp),
            list(stamp(shard.stat())),
        )
    except (InputError, OSError, KeyError):
        return False


def _unpack(file: ParquetImages, shard: Path, phase: Phase) -> None:
    classes: dict[str, int] = {}
    synsets: list[str | None] = []
    start = phase.done

    def write(temporary: Path) -> None:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, (content, name, class_name) in enumerate(file.rows()):
                label = classes.setdefault(class_name, len(classes))
                match = _SYNSET.search(name or "")
                synset = match[1] if match else None
                synsets.extend([synset] if label == len(synsets) else [])
                synsets[label] = synset if synset == synsets[label] else None
                suffix = ".png" if content.startswith(b"\x89PNG") else ".jpg"  # images are known by their content
                for end, data in ((suffix, content), (".cls", b"%d" % label)):
                    info = tarfile.TarInfo(f"row{row}{end}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                phase.update(start + row + 1)

    write_atomically(shard, write)
    about = {"version": VERSION, "file": file.stamp, "shard": stamp(shard.stat())}
    write_json(shard.with_suffix(".json"), {**about, "classes": list(classes), "synsets": synsets})


def _synset_names(abouts: list[dict[str, Any]]) -> dict[str, str]:
    """The synset of every class if the names of its images tell them all, each another one; else nothing."""
    found = {pair for about in abouts for pair in zip(about["classes"], about["synsets"], strict=True)}
    names, synsets = zip(*found, strict=True)
    if None in synsets or len(set(names)) < len(found) or len(set(synsets)) < len(found):
        return {}
    return dict(found)
