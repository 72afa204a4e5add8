"""Tables from files: Parquet, Arrow (IPC files and streams, Feather), JSON and JSON lines, CSV and TSV."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import gzip
import io
import json
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import ipc
from pyarrow import parquet as pq

from es_service import errors
from es_service.training.tables.files import SUFFIXES
from es_service.training.tables.labels import class_names

__all__ = ["ReadTable", "read_table"]

_log = logging.getLogger(__name__)
_IPC_MAGIC = b"ARROW1"
_DAMAGED = (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeError, RecursionError)


@dataclasses.dataclass(frozen=True, slots=True)
class ReadTable:
    """What was read.

    Args:
        table: its rows, in the order of the files; memory-mapped where the format allows it.
        skipped: rows left out because they cannot be read.
        broken_files: files left out, as a whole, because they cannot be read; how many rows they had is not known.
    """

    table: pa.Table
    skipped: int
    broken_files: tuple[Path, ...]


def read_table(paths: Sequence[Path], *, skip_broken: bool = False) -> ReadTable:
    """Return the rows of some files, which must have the same columns, as one table.

    The name of a file says its format (`files.SUFFIXES`). Columns of CSV and TSV are strings, an empty cell is null; a
    key that is not in a JSON object is null too.

    Args:
        paths: of the files.
        skip_broken: leave out rows, and files, that cannot be read, and count them; else they are an error.

    Raises:
        DataError: a file is not there, damaged, empty, or of an unknown format; the columns of two files differ; or
            there is no row.
    """
    tables: list[pa.Table] = []
    broken: list[Path] = []
    skipped = 0
    for path in paths:
        try:
            table, num_broken = _read(path, skip_broken)
        except _BrokenFileError as error:
            if not skip_broken:
                raise errors.DataError(f"{path}: {error}; mend it, or leave it out with --skip-broken") from None
            _log.warning("%s is left out: %s", path, error)
            broken.append(path)
            continue
        tables.append(table)
        skipped += num_broken
        _check_columns(path, table, tables[0])
    if not tables:
        raise errors.DataError(f"no file can be read, of {len(paths)}: {', '.join(map(str, broken[:3]))}")
    if skipped:
        _log.warning("%d rows of %s are left out: they cannot be read", skipped, paths[0].parent)
    table = _concatenated([one.select(tables[0].column_names) for one in tables], paths[0].parent)
    if not table.num_rows:
        raise errors.DataError(f"{', '.join(map(str, paths[:3]))}: there is no row in it")
    return ReadTable(table, skipped, tuple(broken))


class _BrokenFileError(Exception):
    """A file, or a row of it where rows are not skipped, cannot be read."""


def _read(path: Path, skip_broken: bool) -> tuple[pa.Table, int]:
    """Return a file's table, and how many of its rows were left out."""
    if not path.is_file():  # opening a FIFO would wait for ever
        raise errors.DataError(f"{path}: there is no such file")
    name = path.name.lower()
    read = next((read for ending, read in _READERS.items() if name.endswith((ending, f"{ending}.gz"))), None)
    if read is None or (name.endswith(".gz") and not name.endswith(SUFFIXES)):
        raise errors.DataError(f"{path} is of no known format: its name must end in {', '.join(SUFFIXES)}")
    if not path.stat().st_size:
        raise _BrokenFileError("the file is empty")
    try:
        return read(path, skip_broken)
    except _DAMAGED as error:
        raise _BrokenFileError(f"it is damaged, or not what its name says ({error})") from error


def _parquet(path: Path, _: bool) -> tuple[pa.Table, int]:
    with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
        return file.read(), 0


def _arrow(path: Path, _: bool) -> tuple[pa.Table, int]:
    with pa.memory_map(str(path)) as source:
        is_file = source.read(len(_IPC_MAGIC)) == _IPC_MAGIC
        source.seek(0)
        table = (ipc.open_file(source) if is_file else ipc.open_stream(source)).read_all()
    table.validate(full=True)  # offsets that point outside would end the process later
    return table, 0


def _json(path: Path, skip_broken: bool) -> tuple[pa.Table, int]:
    content = _content(path).removeprefix(codecs.BOM_UTF8)
    is_array = content.lstrip()[:1] == b"["
    texts = json.loads(content) if is_array else content.split(b"\n")
    rows, num_broken = [], 0
    for number, text in enumerate(texts):
        if not is_array and not text.strip():
            continue
        try:
            row = text if is_array else json.loads(text)
            reason = "" if isinstance(row, dict) else "not an object"
        except (ValueError, RecursionError) as error:
            reason = str(error)
        if not reason:
            rows.append(row)
        elif skip_broken:
            num_broken += 1
        else:
            raise _BrokenFileError(f"{'row' if is_array else 'line'} {number + (not is_array)} is no row: {reason}")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: _array(path, name, [row.get(name) for row in rows]) for name in names}), num_broken


def _array(path: Path, name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise errors.DataError(f"{path}: the values of {name!r} are not all of one kind: {error}") from None


def _comma_separated(path: Path, skip_broken: bool) -> tuple[pa.Table, int]:
    return _separated(path, skip_broken, ",")


def _tab_separated(path: Path, skip_broken: bool) -> tuple[pa.Table, int]:
    return _separated(path, skip_broken, "\t")


def _separated(path: Path, skip_broken: bool, delimiter: str) -> tuple[pa.Table, int]:
    content = _content(path).removeprefix(codecs.BOM_UTF8)
    names = next(csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8"), delimiter=delimiter), [])
    broken: list[Any] = []

    def skip(row: Any) -> str:
        broken.append(row)
        return "skip" if skip_broken else "error"

    table = arrow_csv.read_csv(
        pa.BufferReader(content),
        parse_options=arrow_csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip if skip_broken else None
        ),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    return table, len(broken)


_READERS: dict[str, Callable[[Path, bool], tuple[pa.Table, int]]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".jsonl": _json,
    ".json": _json,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
}


def _content(path: Path) -> bytes:
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as file:
            return file.read()
    return path.read_bytes()


def _check_columns(path: Path, table: pa.Table, first: pa.Table) -> None:
    """Raise DataError unless a file has the columns of the first, each once, with labels of the same meaning."""
    names = table.column_names
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise errors.DataError(f"{path} has several columns {twice[0]!r}: a name may be there once")
    for name in sorted({*names} ^ {*first.column_names}):
        other = "which the files before it have not" if name in names else "which is in the files before it"
        raise errors.DataError(
            f"{path} has {'a' if name in names else 'no'} column {name!r}, {other}: all files of a part need the same"
        )
    for name in names:
        if class_names(table.schema.metadata, name) != class_names(first.schema.metadata, name):
            raise errors.DataError(
                f"{path}: the labels in column {name!r} do not mean what they do in the files before"
            )


def _concatenated(tables: list[pa.Table], folder: Path) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise errors.DataError(f"a column is not of one type in all files of {folder}: {error}") from None
