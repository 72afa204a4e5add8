"""Folders of images: one folder for each class, which has its name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from es_service import errors
from es_service.training.tables.files import HELD_OUT_NAMES
from es_service.training.tasks.images.source import SUFFIXES, Files, Source

__all__ = ["find", "read"]

_TRAIN = ("train", "training")
_OTHERS = (".parquet", ".arrow", ".feather", ".tar")


def find(path: Path) -> tuple[tuple[Path, ...], tuple[Path, ...] | None] | None:
    """Return the folder whose folders are classes, and that of the held-out samples, None where there is none.

    None where this is no folder of images: it holds none, or data sets of another kind, and some pictures beside them.

    Raises:
        DataError: the images are in no folder of a class.
    """
    if not path.is_dir() or next(_files(path, _OTHERS), None) is not None:
        return None
    below = _below(path, _TRAIN)
    root = below or path
    if next(_files(root), None) is None:
        return None
    if not any(True for _ in _classes(root)):
        raise errors.DataError(
            f"the images in {root} are in no folder of a class: there must be one for each, {root}/CLASS/IMAGE.png; or "
            "give a table with a column of paths and one of labels"
        )
    is_train = below is not None or path.name.lower() in _TRAIN
    held_out = _below(root.parent, HELD_OUT_NAMES) if is_train else None
    return (root,), None if held_out is None else (held_out,)


def read(folders: Sequence[Path]) -> Source:
    """Return the images below the folders of classes, class by class in the order of the names.

    Raises:
        DataError: there is no image.
    """
    paths, labels = [], []
    for folder in folders:
        for one in _classes(folder):
            found = list(_files(one))
            paths += found
            labels += [one.name] * len(found)
    if not paths:
        raise errors.DataError(f"no images in {folders[0]}/CLASS: files that end in {', '.join(SUFFIXES)}")
    return Source(Files(paths), pa.table({"class": pa.array(labels, pa.string())}), "class")


def _below(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first folder of these names that is there."""
    there = {one.name.lower(): one for one in folder.iterdir() if one.is_dir()}
    return next((there[name] for name in names if name in there), None)


def _classes(root: Path) -> Iterator[Path]:
    """Yield the folders right below that hold images, in the order of their names."""
    for one in sorted(root.iterdir()):
        if one.is_dir() and not one.name.startswith(".") and next(_files(one), None) is not None:
            yield one


def _files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(place, name)
