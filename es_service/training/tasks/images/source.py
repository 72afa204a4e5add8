"""What every place of images gives: the images, encoded or as bytes of one size, and a table with their labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from es_service.training.tasks.images.decoding import Encoded

__all__ = ["SUFFIXES", "Files", "Source", "content_of"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of files with an image."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """The images of one part of the data.

    Args:
        images: n of them.
        table: n rows, with the labels.
        column: of the table, that has the labels.
        skipped: rows that are not in the table, because they cannot be read.
        broken_files: the same of whole files.
    """

    images: Encoded
    table: pa.Table
    column: str
    skipped: int = 0
    broken_files: tuple[Path, ...] = ()


class Files:
    """Images that are files of their own."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, row: int) -> bytes:
        """Return the content of the file."""
        return content_of(self._paths[row])

    def where(self, row: int) -> str:
        """Return the path of the file."""
        return str(self._paths[row])


def content_of(path: Path) -> bytes:
    """Return the content of a file; ValueError where it is none: opening a FIFO would wait for ever."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    return path.read_bytes()
