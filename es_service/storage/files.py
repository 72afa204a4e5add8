"""Reading and writing whole files through pyarrow.fs, with this package's errors."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from pyarrow import fs

from es_service import errors

__all__ = ["absolute", "open_filesystem", "read_bytes", "read_json", "storage_errors", "write_atomically", "write_json"]


@contextlib.contextmanager
def storage_errors(doing: str, path: str) -> Iterator[None]:
    """Turn an OSError of the filesystem into a StorageError that says what was tried, where, and what to change."""
    try:
        yield
    except FileNotFoundError as error:
        raise errors.StorageError(f"cannot {doing} {path}: no such file or folder") from error
    except OSError as error:
        raise errors.StorageError(
            f"cannot {doing} {path}: {error}; check its permissions and free space, or name another --storage"
        ) from error


def open_filesystem(storage: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem and the path on it that a storage folder names: a local path, or a URI such as s3://…"""
    try:
        if "://" in storage:
            filesystem, path = fs.FileSystem.from_uri(storage)
        else:
            filesystem, path = fs.LocalFileSystem(), absolute(storage)
    except (ValueError, OSError) as error:
        raise errors.StorageError(
            f"{storage!r} is neither a folder nor a URI that pyarrow.fs knows: {error}"
        ) from error
    return filesystem, path.rstrip("/")


def absolute(place: str) -> str:
    """Return a folder's path that means the same in every process of this machine; a URI does already."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def read_bytes(filesystem: fs.FileSystem, path: str) -> bytes:
    """Return a whole file; StorageError where it cannot be read."""
    with storage_errors("read", path), filesystem.open_input_file(path) as file:
        data: bytes = file.read()
        return data


def write_atomically(filesystem: fs.FileSystem, path: str, data: bytes) -> None:
    """Write a whole file beside its place and rename it there: a reader sees the old one or the new one."""
    beside = f"{path}.partial-{os.getpid()}"
    with storage_errors("write", path):
        with filesystem.open_output_stream(beside) as file:
            file.write(data)
        filesystem.move(beside, path)


def read_json(filesystem: fs.FileSystem, path: str) -> dict[str, Any]:
    """Return a file's JSON object; StorageError where it is not one."""
    try:
        value = json.loads(read_bytes(filesystem, path))
    except ValueError as error:
        raise errors.StorageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise errors.StorageError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def write_json(filesystem: fs.FileSystem, path: str, value: dict[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_atomically(filesystem, path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")
