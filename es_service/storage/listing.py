"""The runs in a storage folder, each read by itself, so that one that cannot be read hides no other.

A folder is a run's if it holds a run.json; files and other folders are passed over. On a local disk a link may lead to
another place of the same storage, but not out of it: the storage is what readers were given.
"""

from __future__ import annotations

import dataclasses
import os
import re
import stat
from collections.abc import Iterator

from pyarrow import fs

from es_service import errors
from es_service.storage import files
from es_service.storage.plain import printable

__all__ = ["Found", "check_contents", "check_run_name", "find_runs", "list_runs"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ABOUT = "run.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A run's folder.

    Attributes:
        name: of the run; what cannot be shown of it is escaped.
        begun_ns: when its run.json was written, nanoseconds since 1970; 0 where that is not known.
        problem: why it cannot be read, None where nothing speaks against it so far.
    """

    name: str
    begun_ns: int = 0
    problem: str | None = None


def check_run_name(run: str) -> str:
    """Return the name, or raise RunNameError: it becomes a folder and an actor's name."""
    if not isinstance(run, str) or not _NAME.fullmatch(run):
        raise errors.RunNameError(
            f"run name {run!r} cannot be used: take 1 to 100 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit (no slash)"
        )
    return run


def list_runs(storage: str) -> list[str]:
    """Return the names of the runs in a storage folder, oldest first; StorageError where there is no such folder."""
    return [one.name for one in find_runs(storage) if one.problem is None]


def find_runs(storage: str) -> list[Found]:
    """Return the runs in a storage folder, oldest first, those that cannot be read among them.

    Raises:
        StorageError: there is no such folder, or it cannot be listed.
    """
    filesystem, root = files.open_filesystem(storage)
    with files.storage_errors("list", root):
        found = list(_local(root) if isinstance(filesystem, fs.LocalFileSystem) else _remote(filesystem, root))
    return sorted(found, key=lambda one: (one.begun_ns, one.name))


def _local(root: str) -> Iterator[Found]:
    real_root = os.path.realpath(root)
    with os.scandir(root) as entries:
        for entry in entries:
            shown = printable(entry.name)
            try:
                if not entry.is_dir():
                    continue
                about = os.stat(f"{entry.path}/{_ABOUT}")
                if entry.is_symlink():
                    _check_link(entry.path, real_root)
                if not stat.S_ISREG(about.st_mode):
                    raise errors.StorageError(f"its {_ABOUT} is not a file")
                yield Found(check_run_name(entry.name), about.st_mtime_ns)
            except (FileNotFoundError, NotADirectoryError):  # no run's, or deleted a moment ago
                continue
            except (OSError, errors.EsServiceError) as error:
                yield Found(shown, problem=printable(str(error)))


def _remote(filesystem: fs.FileSystem, root: str) -> Iterator[Found]:
    folders = [one for one in filesystem.get_file_info(fs.FileSelector(root)) if one.type == fs.FileType.Directory]
    abouts = filesystem.get_file_info([f"{one.path}/{_ABOUT}" for one in folders]) if folders else []
    for folder, about in zip(folders, abouts, strict=True):
        if about.type != fs.FileType.File:
            continue
        try:
            yield Found(check_run_name(folder.base_name), about.mtime_ns or 0)
        except errors.RunNameError as error:
            yield Found(printable(folder.base_name), problem=str(error))


def check_contents(filesystem: fs.FileSystem, root: str, run_path: str) -> None:
    """Raise StorageError where something in a run's folder leads out of the storage, or is neither file nor folder.

    Opening a FIFO waits for its other end, for ever perhaps. What cannot be looked into cannot be read either, and is
    passed over.
    """
    if not isinstance(filesystem, fs.LocalFileSystem):
        return
    real_root = os.path.realpath(root)
    if os.path.islink(run_path):
        _check_link(run_path, real_root)
    folders, seen = [run_path], set()
    while folders:
        folder = os.path.realpath(folders.pop())
        if folder in seen:
            continue
        seen.add(folder)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        _check_link(entry.path, real_root)
                    if entry.is_dir():
                        folders.append(entry.path)
                    elif not entry.is_file() and os.path.exists(entry.path):
                        raise errors.StorageError(f"{printable(entry.path)} is neither a file nor a folder")
        except OSError:
            continue


def _check_link(path: str, real_root: str) -> None:
    real = os.path.realpath(path)
    if os.path.commonpath([real, real_root]) != real_root:
        raise errors.StorageError(f"{printable(path)} is a link that leads out of the storage: such are not followed")
