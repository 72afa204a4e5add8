"""A filesystem that breaks on purpose: URIs faulty://<folder> name a local folder whose operations can be made to fail.

It stands where users put a filesystem of their own (`storage.files.register_filesystem`): nothing in the package knows
of it. What is to break is said by a file, <folder>/fault.json, which the process that obeys it removes first:

    {"operation": "write" | "move" | "read" | "list" | "delete", "path": regular expression, "when": "before" | "after",
     "count": which of the matching operations from now on, "do": "kill" | "full" | "hold"}

"kill" is SIGKILL of the process that is in the operation; "full" lets it, and all writes after it, fail as a full disk
does for as long as <folder>/full is there; "hold" lets it wait for as long as <folder>/held is there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

from pyarrow import fs

from es_service.storage.files import register_filesystem


class _FaultyHandler(fs.FileSystemHandler):
    def __init__(self) -> None:
        self._local = fs.LocalFileSystem()
        self._counts: dict[str, int] = {}

    def _step(self, operation: str, path: str, when: str) -> None:
        place = _root_of(path)
        if place is None:
            return
        if operation == "write" and when == "before" and _is_full(place, path):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        try:
            text = (place / "fault.json").read_text()
            fault = json.loads(text)
        except (OSError, ValueError):
            return
        if (fault["operation"], fault["when"]) != (operation, when) or not re.search(fault["path"], path):
            return
        self._counts[text] = self._counts.get(text, 0) + 1
        if self._counts[text] < fault["count"]:
            return
        with contextlib.suppress(FileNotFoundError):
            (place / "fault.json").unlink()
        if fault["do"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault["do"] == "hold":
            while (place / "held").exists():
                time.sleep(0.005)  # polling a file
            return
        fill(place)
        raise OSError(errno.ENOSPC, "No space left on device", path)

    def get_type_name(self) -> str:
        return "faulty"

    def normalize_path(self, path: str) -> str:
        return self._local.normalize_path(path)

    def get_file_info(self, paths: list[str]) -> Any:
        return self._local.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        self._step("list", selector.base_dir, "before")
        return self._local.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._local.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._step("delete", path, "before")
        self._local.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._local.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self._step("delete", path, "before")
        self._local.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self._step("move", dest, "before")
        self._local.move(src, dest)
        self._step("move", dest, "after")

    def copy_file(self, src: str, dest: str) -> None:
        self._local.copy_file(src, dest)

    def open_input_stream(self, path: str) -> Any:
        self._step("read", path, "before")
        return self._local.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        self._step("read", path, "before")
        return self._local.open_input_file(path)

    def open_output_stream(self, path: str, metadata: dict[str, str]) -> Any:
        self._step("write", path, "before")
        stream = self._local.open_output_stream(path, metadata=metadata)
        self._step("write", path, "after")  # the file is there, and empty
        return stream

    def open_append_stream(self, path: str, metadata: dict[str, str]) -> Any:
        raise NotImplementedError


def _is_full(place: Path, path: str) -> bool:
    """Whether there is no room for this file: what <folder>/full holds is a regular expression, nothing is any file."""
    try:
        return re.search((place / "full").read_text(), path) is not None
    except FileNotFoundError:
        return False


def fill(folder: Path, path: str = "") -> None:
    """There is no room any more for files whose paths match."""
    beside = folder / "full.new"
    beside.write_text(path)
    beside.rename(folder / "full")


def _root_of(path: str) -> Path | None:
    """The folder that the URI names: the one with a marker in it."""
    for folder in Path(path).parents:
        if (folder / "faulty").exists():
            return folder
    return None


def register() -> None:
    """Let this process know the scheme; Ray calls it in every worker that it starts."""
    register_filesystem("faulty", lambda: fs.PyFileSystem(_FaultyHandler()))


def make_storage(folder: Path) -> str:
    """Return the URI of a new folder whose operations can be made to fail."""
    folder.mkdir(parents=True)
    (folder / "faulty").touch()
    return f"faulty://{folder}"


def break_at(
    folder: Path, operation: str, path: str, when: str = "before", *, count: int = 1, do: str = "kill"
) -> None:
    """Let the `count`-th operation from now on that matches go wrong."""
    if do == "hold":
        (folder / "held").touch()
    fault = {"operation": operation, "path": path, "when": when, "count": count, "do": do}
    beside = folder / "fault.json.new"
    beside.write_text(json.dumps(fault))
    beside.rename(folder / "fault.json")


def is_broken(folder: Path) -> bool:
    """Whether what was asked for has happened."""
    return not (folder / "fault.json").exists()


def let_go(folder: Path) -> None:
    """What was held goes on."""
    (folder / "held").unlink(missing_ok=True)


def mend(folder: Path) -> None:
    """There is room on the disk again."""
    (folder / "full").unlink(missing_ok=True)
