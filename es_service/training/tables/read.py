"""Tables from files: Parquet, Arrow (IPC files and streams, Feather), JSON and JSON lines, CSV and TSV."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import functools
import gzip
import io
import itertools
import json
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
_IPC_MAGIC, _END_OF_STREAM = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
_PEEKED_BYTES = 64
_ROWS_AT_ONCE = 10_000
_BLOCK_BYTES = 64 << 20  # of CSV that is parsed at once: a row may not be larger
_DAMAGED = (pa.ArrowException, OSError, EOFError, zlib.error, csv.Error, ValueError, RecursionError)


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
        skipped += num_broken
        if num_broken:
            _log.warning("%d rows of %s are left out: they cannot be read", num_broken, path)
        if table.num_columns:  # JSON without a row has none
            tables.append(table)
            _check_columns(path, table, tables[0])
    if not sum(table.num_rows for table in tables):
        raise errors.DataError(f"no row can be read from {', '.join(map(str, paths[:3]))}{', …' * (len(paths) > 3)}")
    return ReadTable(_concatenated(tables, paths[0].parent), skipped, tuple(broken))


class _BrokenFileError(Exception):
    """A file, or a row of it where rows are not skipped, cannot be read."""


def _read(path: Path, skip_broken: bool) -> tuple[pa.Table, int]:
    """Return a file's table, and how many of its rows were left out."""
    if not path.is_file():  # opening a FIFO would wait for ever
        raise errors.DataError(f"{path}: there is no such file")
    ending = next((one for one in SUFFIXES if path.name.lower().endswith(one)), None)
    if ending is None:
        raise errors.DataError(f"{path} is of no known format: its name must end in {', '.join(SUFFIXES)}")
    if not path.stat().st_size:
        raise _BrokenFileError("the file is empty")
    try:
        return _READERS[ending.removesuffix(".gz")](path, skip_broken)
    except _DAMAGED as error:
        raise _BrokenFileError(f"it cannot be read ({error})") from error


def _parquet(path: Path, _: bool) -> tuple[pa.Table, int]:
    with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
        return file.read(), 0


def _arrow(path: Path, _: bool) -> tuple[pa.Table, int]:
    with pa.memory_map(str(path)) as source:
        is_file = source.read(len(_IPC_MAGIC)) == _IPC_MAGIC
        source.seek(max(0, source.size() - len(_END_OF_STREAM)))
        if not is_file and source.read() != _END_OF_STREAM:  # cut between two batches, Arrow would call it whole
            raise _BrokenFileError("it is truncated: the end of an Arrow stream is missing")
        source.seek(0)
        table = (ipc.open_file(source) if is_file else ipc.open_stream(source)).read_all()
    table.validate(full=True)  # offsets that point outside would end the process later
    return table, 0


def _json(path: Path, skip_broken: bool) -> tuple[pa.Table, int]:
    """Read an array of objects, or an object a line; of lines only so many are held as Python objects at a time."""
    num_broken = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal num_broken
        for where, row, reason in _elements(path):
            if isinstance(row, dict):
                yield row
            elif not skip_broken:
                raise _BrokenFileError(f"{where} is no row ({reason})")
            else:
                num_broken += 1

    every_row = rows()
    tables = []
    while chunk := list(itertools.islice(every_row, _ROWS_AT_ONCE)):
        names = dict.fromkeys(name for row in chunk for name in row)
        tables.append(pa.table({name: _array(path, name, [row.get(name) for row in chunk]) for name in names}))
    return _concatenated(tables, path) if tables else pa.table({}), num_broken


def _elements(path: Path) -> Iterator[tuple[str, Any, str]]:
    """Yield where each element stands, the element, and why it is none."""
    with _open(path) as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        if file.peek(_PEEKED_BYTES).lstrip()[:1] == b"[":
            for number, row in enumerate(json.load(file), 1):
                yield f"element {number}", row, "not an object"
            return
        for number, line in enumerate(file, 1):
            try:
                if line.strip():
                    row = json.loads(line)
                    if b"\\u" in line:
                        json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no character
                    yield f"line {number}", row, "not an object"
            except (ValueError, RecursionError) as error:
                yield f"line {number}", None, str(error)


def _array(path: Path, name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise errors.DataError(f"{path}: the values of {name!r} are not all of one kind: {error}") from None


def _separated(delimiter: str, path: Path, skip_broken: bool) -> tuple[pa.Table, int]:
    with _open(path) as file:
        content = file.read().removeprefix(codecs.BOM_UTF8)
    names = next(csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8"), delimiter=delimiter), [])
    broken: list[Any] = []

    def skip(row: Any) -> str:
        broken.append(row)
        return "skip"

    table = arrow_csv.read_csv(
        pa.BufferReader(content),
        read_options=arrow_csv.ReadOptions(block_size=_BLOCK_BYTES),
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
    ".csv": functools.partial(_separated, ","),
    ".tsv": functools.partial(_separated, "\t"),
}


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb")


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


def _concatenated(tables: list[pa.Table], path: Path) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise errors.DataError(f"{path}: the values of a column are not all of one kind: {error}") from None
