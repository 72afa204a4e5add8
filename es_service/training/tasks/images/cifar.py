"""CIFAR-10 and CIFAR-100 in their binary version: records of a label, or two, and 3 × 32 × 32 bytes.

Reference: Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from es_service import errors
from es_service.training.tasks.images.decoding import Raw
from es_service.training.tasks.images.source import Source

__all__ = ["find", "read"]

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_FOLDERS = ("cifar-10-batches-bin", "cifar-100-binary")
_TRAIN = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "train.bin")
_TEST = ("test_batch.bin", "test.bin")
_FOR_PYTHON = ("data_batch_1", "test_batch", "meta", "batches.meta")
_KINDS = {1: (10, "batches.meta.txt"), 2: (100, "fine_label_names.txt")}
"""By how many labels a record has, of which the last counts: the number of classes, and the file of their names."""
_DAMAGED = (EOFError, OSError, zlib.error, tarfile.TarError)
_Found: TypeAlias = tuple[tuple[Path, ...], tuple[Path, ...] | None] | None


def find(path: Path) -> _Found:
    """Return the files to train on and those held out, None where there are none.

    None where this is no CIFAR. Files in an archive have paths below it.

    Raises:
        DataError: it is the version for Python, or a damaged archive.
    """
    if path.is_dir():
        below = next((path / name for name in _FOLDERS if (path / name).is_dir()), path)
        return _split(below.iterdir(), path)
    if path.name.endswith((".tar.gz", ".tgz")):
        try:
            with tarfile.open(path) as archive:
                found = _split([path / member.name for member in archive if member.isfile()], path)
        except _DAMAGED as error:
            raise errors.DataError(f"{path} is damaged, or no archive: {error}") from error
        if found is None:
            raise errors.DataError(
                f"{path} holds no CIFAR; shards of webdataset are read as they are, .tar: unpack them (gunzip)"
            )
        return found
    if path.is_file() and (path.suffix == ".bin" or path.name in _FOR_PYTHON):
        beside = _split(path.parent.iterdir() if path.suffix == ".bin" else [path], path)
        return (path,), beside[1] if beside and path.name not in _TEST else None
    return None


def _split(files: Iterable[Path], path: Path) -> _Found:
    by_name = {one.name: one for one in files}
    train, test = (tuple(by_name[name] for name in names if name in by_name) for names in (_TRAIN, _TEST))
    if not train and not test:
        if any(name in by_name for name in _FOR_PYTHON):
            raise errors.DataError(
                f"{path} is CIFAR's version for Python: pickles, which can run code when they are read. Take the "
                "binary version instead, cifar-10-binary.tar.gz or cifar-100-binary.tar.gz"
            )
        return None
    return train or test, test if train and test else None


def read(paths: Sequence[Path]) -> Source:
    """Return the images of some files; labels of CIFAR-100 are the fine ones.

    Raises:
        DataError: a file cannot be read, or is of another format.
    """
    folder, images, labels = paths[0].parent, [], []
    try:
        contents = _contents(folder, {*paths, *(folder / name for _, name in _KINDS.values())})
    except _DAMAGED as error:
        raise errors.DataError(f"cannot read {paths[0]}: {error}") from error
    for path in paths:
        content = np.frombuffer(contents[path], dtype=np.uint8)
        num_labels = next((num for num in _KINDS if content.size % (num + _PIXELS) == 0), 0)
        if not num_labels or not content.size:
            raise errors.DataError(
                f"{path} has {content.size:,} bytes, which is no whole number of records of CIFAR-10 (3,073 bytes) or "
                "CIFAR-100 (3,074): fetch it again"
            )
        records = content.reshape(-1, num_labels + _PIXELS)
        num_classes, names_file = _KINDS[num_labels]
        if (largest := records[:, num_labels - 1].max()) >= num_classes:
            raise errors.DataError(f"{path} has a label {largest}, and there are only 0 .. {num_classes - 1}")
        images.append(records[:, num_labels:].reshape(-1, *_SHAPE).transpose(0, 2, 3, 1))
        labels.append(records[:, num_labels - 1].astype(np.int64))
    table = pa.table({"label": np.concatenate(labels)})
    names = contents.get(folder / names_file, b"").decode(errors="replace").split()
    if len(names) == num_classes:
        feature = {"_type": "ClassLabel", "names": names}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {"label": feature}}})})
    return Source(Raw(np.concatenate(images)), table, "label")


def _contents(folder: Path, wanted: Collection[Path]) -> dict[Path, bytes]:
    """Return the contents of those files that are there, in a folder or an archive."""
    archive = next((one for one in (folder, *folder.parents) if one.is_file()), None)
    if archive is None:
        return {path: path.read_bytes() for path in wanted if path.is_file()}
    contents = {}
    with tarfile.open(archive) as packed:
        for member in packed:
            file = packed.extractfile(member) if archive / member.name in wanted else None
            if file is not None:
                contents[archive / member.name] = file.read()
    return contents
