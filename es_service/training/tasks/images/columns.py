"""Columns of images: their bytes, as `datasets` writes them to Parquet and Arrow, or the paths of files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from es_service import errors
from es_service.training.tables.columns import check_apart, find_column
from es_service.training.tables.read import read_table
from es_service.training.tasks.images.source import Source, content_of

__all__ = ["read"]

_IMAGES = ("image", "img", "images", "picture", "file_name", "path")
_LABELS = ("label", "labels", "fine_label", "class", "target", "category")


class _Column:
    """Images in a column of binary, of {bytes, path}, or of paths relative to the folder of the table."""

    def __init__(self, values: pa.ChunkedArray, name: str, folder: Path) -> None:
        self._values, self._name, self._folder = values, name, folder

    def __len__(self) -> int:
        return len(self._values)

    def read(self, row: int) -> bytes:
        """Return the content of an image."""
        found = self._values[row].as_py()
        if isinstance(found, dict):
            found = found.get("path") if found.get("bytes") is None else found["bytes"]
        if found is None:
            raise ValueError("there is none")
        return found if isinstance(found, bytes) else content_of(self._folder / found)

    def where(self, row: int) -> str:
        """Return the row, and the name of the column."""
        return f"row {row} (from 0) of column {self._name!r}"


def read(paths: Sequence[Path], image_column: str | None, label_column: str | None, *, skip_broken: bool) -> Source:
    """Return the images in the tables of some files.

    Args:
        paths: of the files.
        image_column: name of the column, None for a usual one.
        label_column: name of the column, None for a usual one.
        skip_broken: leave out rows and files that cannot be read.

    Raises:
        ConfigError: there is no such column.
        DataError: a file cannot be read, or the column holds no images.
    """
    found = read_table(paths, skip_broken=skip_broken)
    table = found.table
    images = find_column(table, image_column, _IMAGES, flag="--image-column")
    labels = find_column(table, label_column, _LABELS, flag="--label-column")
    if not _holds_images(table[images].type):
        raise errors.DataError(
            f"column {images!r} holds {table[images].type}, and images are bytes, {{bytes, path}} or paths of files: "
            f"name another one with --image-column; there are {', '.join(table.column_names)}"
        )
    check_apart([("--image-column", images), ("--label-column", labels)])
    encoded = _Column(table[images], images, paths[0].parent)
    return Source(encoded, table, labels, found.skipped, found.broken_files)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return {"bytes", "path"} & {field.name for field in kind} != set()
    return any(
        check(kind)
        for check in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    )
