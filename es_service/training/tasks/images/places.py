"""Where the images to train on and those to hold out are, and of which kind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from es_service import errors
from es_service.training.tables.files import DEFAULT_SHARE, SUFFIXES, Parts, find_parts
from es_service.training.tasks.images import cifar, columns, folders, shards
from es_service.training.tasks.images.source import SUFFIXES as IMAGES
from es_service.training.tasks.images.source import Source
from es_service.training.tasks.options import TaskOptions

__all__ = ["find", "read"]

_SHARD = ".tar"


def find(data: str, held_out: str | None) -> Parts:
    """Return the files, or the folders of images, to train on and to hold out.

    Args:
        data: CIFAR's binary files, their folder or archive; a folder of images; tables or shards, and folders of them.
        held_out: the same of the held-out samples, or a share; None for what lies beside `data`, else 0.2.

    Raises:
        DataError: there is no such thing, or the held-out samples are those to train on.
    """
    found = _of_images(data)
    if found is None:
        return find_parts(data, held_out, (*SUFFIXES, _SHARD))
    train, beside = found
    if held_out is None:
        return Parts(train, beside, None if beside else DEFAULT_SHARE)
    if not os.path.exists(held_out):
        try:
            return Parts(train, None, float(held_out))
        except ValueError:
            raise errors.DataError(f"--held-out {held_out}: there is no such file or folder") from None
    other = _of_images(held_out)
    if other is None:
        raise errors.DataError(f"--held-out {held_out} holds no images of the kind that --data {data} does")
    named = other[1] or other[0]
    if set(named) & set(train):
        raise errors.DataError(f"--held-out {held_out}: {named[0]} is also trained on; hold out other images")
    return Parts(train, named, None)


def _of_images(data: str) -> tuple[tuple[Path, ...], tuple[Path, ...] | None] | None:
    path = Path(data).expanduser()
    return cifar.find(path) or folders.find(path)


def read(paths: Sequence[Path], options: TaskOptions) -> Source:
    """Return the images at one of the places that `find` found.

    Raises:
        ConfigError, DataError: as its kind raises them.
    """
    first, skip_broken = paths[0], bool(options.skip_broken)
    if first.is_dir():
        return folders.read(paths)
    if first.name.endswith(_SHARD):
        return shards.read(paths, options.label_column, skip_broken=skip_broken)
    if first.name.lower().endswith(SUFFIXES):
        return columns.read(paths, options.image_column, options.label_column, skip_broken=skip_broken)
    if first.suffix == ".bin":
        return cifar.read(paths)
    if first.name.lower().endswith(IMAGES):
        raise errors.DataError(f"{first} is a single image: give the folder above those of the classes (CLASS/IMAGE)")
    raise errors.DataError(
        f"{first} is of no format that the task 'images' reads: CIFAR's .bin files, {_SHARD}, {', '.join(SUFFIXES)}"
    )
