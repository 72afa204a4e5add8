"""Reading and writing whole files through pyarrow.fs, with this package's errors.

What is written on a local disk is readable by its owner alone (files 0600, folders 0700), and on the disk before it is
said to be there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from pyarrow import fs

from es_service import errors

__all__ = [
    "absolute",
    "make_folder",
    "new_file",
    "open_filesystem",
    "read_bytes",
    "read_json",
    "register_filesystem",
    "storage_errors",
    "sync_folder",
    "write_atomically",
    "write_file",
    "write_json",
]

_KNOWN_FAILURES = (OSError, pa.ArrowException, UnicodeError)  # the last of names that are not UTF-8
_OF_THE_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_OF_THE_PLACE_REMOTELY = ("AWS Error ACCESS_DENIED",)  # what Arrow says where the storage has no errno
_registered: dict[str, Callable[[], fs.FileSystem]] = {}


@contextlib.contextmanager
def storage_errors(doing: str, path: str) -> Iterator[None]:
    """Turn an error of the filesystem into a StorageError that says what was tried, where, and what to change."""
    try:
        yield
    except FileNotFoundError as error:
        raise errors.StorageError(f"cannot {doing} {path}: no such file or folder") from error
    except _KNOWN_FAILURES as error:
        hint = "; check its permissions and free space, or name another --storage" if _is_place(error) else ""
        raise errors.StorageError(f"cannot {doing} {path}: {error}{hint}") from error


def _is_place(error: BaseException) -> bool:
    """Return whether a place refuses what is done there: no permission, read-only, no space. Arrow keeps the errno."""
    return getattr(error, "errno", None) in _OF_THE_PLACE or any(word in str(error) for word in _OF_THE_PLACE_REMOTELY)


def register_filesystem(scheme: str, make: Callable[[], fs.FileSystem]) -> None:
    """Let URIs of a scheme, "mine" in mine://folder, name places on a filesystem that pyarrow does not know by itself.

    Every process that is to use it has to register it: with Ray, by a worker_process_setup_hook.

    Args:
        scheme: of the URIs.
        make: the filesystem, for instance a pyarrow.fs.PyFileSystem around an fsspec one.
    """
    _registered[scheme] = make


def open_filesystem(storage: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem and the path on it that a storage folder names: a local path, or a URI such as s3://…"""
    scheme, _, rest = storage.partition("://")
    if rest and urllib.parse.urlsplit(storage).password is not None:
        raise errors.StorageError(
            f"the URI {scheme}://… holds a password, and a storage place is written into descriptions and messages: "
            "leave it out, and give it by the environment or the credentials file of the provider"
        )
    try:
        if rest and scheme in _registered:
            filesystem, path = _registered[scheme](), rest
        elif "://" in storage:
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


def make_folder(filesystem: fs.FileSystem, path: str) -> None:
    """Make a folder, and those above it, unless it is there; on a local disk for its owner alone."""
    with storage_errors("make the folder", path):
        if isinstance(filesystem, fs.LocalFileSystem):
            missing = []
            while not os.path.isdir(path):
                missing.append(path)
                path = os.path.dirname(path)
            for folder in reversed(missing):
                with contextlib.suppress(FileExistsError):  # another process made it meanwhile
                    os.mkdir(folder, mode=0o700)
        else:
            filesystem.create_dir(path, recursive=True)


@contextlib.contextmanager
def new_file(filesystem: fs.FileSystem, path: str) -> Iterator[Any]:
    """Open a new file to write bytes to; on a local disk it is there, for its owner alone, when the block ends."""
    with storage_errors("write", path):
        if isinstance(filesystem, fs.LocalFileSystem):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        else:
            with filesystem.open_output_stream(path) as stream:
                yield stream


def write_file(filesystem: fs.FileSystem, path: str, data: bytes | memoryview) -> None:
    """Write a whole file where it stands, see `new_file`."""
    with new_file(filesystem, path) as file:
        file.write(data)


def write_atomically(filesystem: fs.FileSystem, path: str, data: bytes | memoryview) -> None:
    """Write a whole file beside its place and rename it there: a reader sees the old one or the new one."""
    beside = f"{path}.partial-{os.getpid()}"
    try:
        write_file(filesystem, beside, data)
        with storage_errors("write", path):
            filesystem.move(beside, path)
            sync_folder(filesystem, os.path.dirname(path))
    except errors.StorageError:
        with contextlib.suppress(OSError):
            filesystem.delete_file(beside)
        raise


def sync_folder(filesystem: fs.FileSystem, path: str) -> None:
    """Bring a local folder's entries, what was just renamed into it, to the disk."""
    if isinstance(filesystem, fs.LocalFileSystem):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_json(filesystem: fs.FileSystem, path: str) -> dict[str, Any]:
    """Return a file's JSON object; StorageError where it is not one."""
    try:
        value = json.loads(read_bytes(filesystem, path))
    except (ValueError, RecursionError) as error:  # the latter where lists or objects are nested very deep
        raise errors.StorageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise errors.StorageError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def write_json(filesystem: fs.FileSystem, path: str, value: dict[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_atomically(filesystem, path, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")
