"""Reading and writing whole files through pyarrow.fs, with this package's errors.

On a local disk, what is written is readable by its owner alone (files 0600, folders 0700), and `fsync` has brought it
to the disk before a call returns. An object store (S3, GCS, Azure) has no rename: there a file is written in one
request, and is there, whole, once that request is acknowledged.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from pyarrow import fs

from es_service import errors

__all__ = [
    "MOST_JSON_BYTES",
    "absolute",
    "is_file",
    "is_object_store",
    "join",
    "list_folder",
    "make_folder",
    "new_file",
    "open_file",
    "open_filesystem",
    "read_bytes",
    "read_json",
    "register_filesystem",
    "storage_errors",
    "sync_folder",
    "write_atomically",
    "write_json",
]

MOST_JSON_BYTES = 32 << 20
_OBJECT_STORES = ("s3", "gcs", "abfs")  # type names of pyarrow.fs
_SECRET = re.compile(r"key|secret|token|password|credential|signature|^sig$", re.IGNORECASE)  # names in a query
_KNOWN_FAILURES = (OSError, pa.ArrowException, UnicodeError)  # the last of names that are not UTF-8
_OF_THE_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_OF_THE_PLACE_REMOTELY = ("AWS Error ACCESS_DENIED",)  # Arrow's words where the storage has no errno
_registered: dict[str, Callable[[], fs.FileSystem]] = {}


@contextlib.contextmanager
def storage_errors(doing: str, path: str) -> Iterator[None]:
    """Turn an error of the filesystem into a StorageError that names the operation, the path, and what to change."""
    try:
        yield
    except FileNotFoundError as error:
        raise errors.StorageError(f"cannot {doing} {path}: no such file or folder") from error
    except _KNOWN_FAILURES as error:
        hint = "; check its permissions and free space, or name another --storage" if _is_place(error) else ""
        if isinstance(error, NotADirectoryError):
            hint = "; a folder is needed there, and it is a file: name another --storage"
        raise errors.StorageError(f"cannot {doing} {path}: {error}{hint}") from error


def _is_place(error: BaseException) -> bool:
    """Return whether the error is of the place: no permission, read-only, no space. Arrow keeps the errno."""
    return getattr(error, "errno", None) in _OF_THE_PLACE or any(word in str(error) for word in _OF_THE_PLACE_REMOTELY)


def register_filesystem(scheme: str, make: Callable[[], fs.FileSystem]) -> None:
    """Let URIs of a scheme, "mine" in mine://folder, name places on a filesystem that pyarrow does not know by itself.

    Every process that is to use it has to register it: with Ray, by a worker_process_setup_hook.

    Args:
        scheme: of the URIs.
        make: the filesystem, for instance a pyarrow.fs.PyFileSystem around an fsspec one.
    """
    _registered[scheme] = make


def is_object_store(filesystem: fs.FileSystem) -> bool:
    """Return whether a file is an object, written whole by one request, and a folder only a part of its name."""
    return filesystem.type_name in _OBJECT_STORES


def open_filesystem(storage: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem and the path on it that a storage folder names: a local path, or a URI such as s3://…

    Raises:
        StorageError: it is neither, or the URI holds a secret. The message does not repeat the URI's query.
    """
    scheme, is_uri, rest = storage.partition("://")
    _check_no_secret(storage)
    try:
        if is_uri and scheme in _registered:
            filesystem, path = _registered[scheme](), rest
        elif is_uri:
            filesystem, path = fs.FileSystem.from_uri(storage)
        else:
            filesystem, path = fs.LocalFileSystem(), absolute(storage)
    except (ValueError, OSError) as error:
        place, _, query = storage.partition("?")
        why = str(error).replace(query, "…") if query else error
        raise errors.StorageError(f"{place!r} is neither a folder nor a URI that pyarrow.fs knows: {why}") from error
    return filesystem, path.rstrip("/")


def _check_no_secret(storage: str) -> None:
    """Raise StorageError where a URI holds a password or a key: run.json and messages name the storage."""
    scheme, is_uri, rest = storage.partition("://")
    if not is_uri:
        return
    place, _, query = rest.partition("?")
    names = [one.partition("=")[0] for one in query.split("&")]
    secret = "a password" if ":" in place.partition("/")[0].rpartition("@")[0] else ""
    secret = next((f"{name!r}" for name in names if _SECRET.search(name)), secret)
    if secret:
        raise errors.StorageError(
            f"the URI {scheme}://… holds {secret}, and a storage place is written into descriptions and messages: "
            "leave it out, and give it by the environment or the credentials file of the provider"
        )


def absolute(place: str) -> str:
    """Return a folder's path that means the same in every process of this machine; a URI does already."""
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def join(place: str, *names: str) -> str:
    """Return the place of something below a storage folder; the query of a URI stays at its end."""
    path, mark, query = place.partition("?") if "://" in place else (place, "", "")
    return "/".join([path.rstrip("/"), *names]) + mark + query


@contextlib.contextmanager
def open_file(filesystem: fs.FileSystem, path: str) -> Iterator[Any]:
    """Open a file to read from; StorageError where it cannot be read or is not a regular file."""
    with storage_errors("read", path):
        if isinstance(filesystem, fs.LocalFileSystem):
            kind = filesystem.get_file_info(path).type
            if kind not in (fs.FileType.File, fs.FileType.NotFound):  # opening a FIFO would wait for ever
                raise errors.StorageError(f"cannot read {path}: it is a folder or a special file, not a regular file")
        with filesystem.open_input_file(path) as file:
            yield file


def read_bytes(filesystem: fs.FileSystem, path: str, most_bytes: int) -> bytes:
    """Return a whole file; StorageError where it cannot be read, see `open_file`, or is longer than it can be."""
    with open_file(filesystem, path) as file:
        size = file.size()
        if size > most_bytes:
            raise errors.StorageError(f"{path} has {size:,} bytes, where at most {most_bytes:,} are expected")
        data: bytes = file.read(size)
        return data


def make_folder(filesystem: fs.FileSystem, path: str) -> None:
    """Make a folder, and those above it, unless it is there.

    On a local disk it is for its owner alone, and on the disk when this returns. On an object store there is nothing to
    make: a folder is there with its first file.
    """
    with storage_errors("make the folder", path):
        if isinstance(filesystem, fs.LocalFileSystem):
            missing = []
            while not os.path.isdir(path):
                missing.append(path)
                path = os.path.dirname(path)
            for folder in reversed(missing):
                with contextlib.suppress(FileExistsError):  # another process made it meanwhile
                    os.mkdir(folder, mode=0o700)
                sync_folder(filesystem, os.path.dirname(folder))
        elif not is_object_store(filesystem):
            filesystem.create_dir(path, recursive=True)


@contextlib.contextmanager
def new_file(filesystem: fs.FileSystem, path: str) -> Iterator[Any]:
    """Open a file that is not there yet to write bytes to; see the module's text for what is true when the block ends.

    On a local disk a link or a file that is in the way is an error: nothing else is ever written through it.
    """
    with storage_errors("write", path):
        if isinstance(filesystem, fs.LocalFileSystem):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        else:
            with filesystem.open_output_stream(path) as stream:
                yield stream


def write_atomically(filesystem: fs.FileSystem, path: str, data: bytes | memoryview) -> None:
    """Write a whole file: a reader sees the old one or the new one.

    Where there is a rename it is written under a name beside, which cannot be guessed, and renamed.
    """
    if is_object_store(filesystem):
        with new_file(filesystem, path) as file:
            file.write(data)
        return
    beside = f"{path}.partial-{secrets.token_hex(8)}"
    try:
        with new_file(filesystem, beside) as file:
            file.write(data)
        with storage_errors("write", path):
            filesystem.move(beside, path)
            sync_folder(filesystem, os.path.dirname(path))
    except BaseException:
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


def is_file(filesystem: fs.FileSystem, path: str) -> bool:
    """Return whether there is a file."""
    with storage_errors("look into", path):
        return bool(filesystem.get_file_info(path).type == fs.FileType.File)


def list_folder(filesystem: fs.FileSystem, path: str, *, recursive: bool = False) -> list[fs.FileInfo]:
    """Return what is in a folder, nothing where there is none."""
    with storage_errors("list", path):
        found: list[fs.FileInfo] = filesystem.get_file_info(
            fs.FileSelector(path, recursive=recursive, allow_not_found=True)
        )
    return found


def read_json(filesystem: fs.FileSystem, path: str) -> dict[str, Any]:
    """Return a file's JSON object; StorageError where it is not one."""
    try:
        value = json.loads(read_bytes(filesystem, path, MOST_JSON_BYTES))
    except (ValueError, RecursionError) as error:  # the latter where lists or objects are nested very deep
        raise errors.StorageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise errors.StorageError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def write_json(filesystem: fs.FileSystem, path: str, value: dict[str, Any], *, indent: int | None = 2) -> None:
    """Write a JSON object atomically, fast where nothing is indented; StorageError if `read_json` would not read it."""
    data = json.dumps(value, indent=indent, sort_keys=True).encode() + b"\n"
    if len(data) > MOST_JSON_BYTES:
        raise errors.StorageError(
            f"{path} would have {len(data):,} bytes, more than the {MOST_JSON_BYTES:,} it may have"
        )
    write_atomically(filesystem, path, data)
