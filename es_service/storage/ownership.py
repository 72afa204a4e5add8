"""Who writes a run: one score server at a time, which says so in <run>/owner.json and renews it every second.

Another one that comes takes over where the owner is a process of this machine that has ended, where it is the same
actor started again, or where nothing was renewed for five seconds. An owner that finds another in its place stops
writing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from typing import Any

from pyarrow import fs

from es_service import errors
from es_service.storage import files

__all__ = ["Ownership"]

_STALE_S = 5.0
_LOOK_EVERY_S = 0.1


class Ownership:
    """The right to write a run, held from `claim` to `release`.

    Args:
        filesystem: that the run is on.
        run_path: folder of the run.
        actor: names whoever owns it over restarts of its process.
    """

    def __init__(self, filesystem: fs.FileSystem, run_path: str, actor: str) -> None:
        self._filesystem, self._path = filesystem, f"{run_path}/owner.json"
        self._run_path, self._token, self._num_renewals = run_path, uuid.uuid4().hex, 0
        self._actor, self._host, self._pid = actor, socket.gethostname(), os.getpid()
        self._taken: errors.RunExistsError | None = None
        self._renewing = threading.Lock()

    def claim(self) -> None:
        """Become the owner; waits for up to five seconds where it has to find out whether there is another.

        Raises:
            RunExistsError: another score server writes this run.
        """
        found = self._read()
        if found is not None and not self._is_past(found):
            give_up = time.monotonic() + _STALE_S
            while time.monotonic() < give_up:
                time.sleep(_LOOK_EVERY_S)  # polling: a file says nothing when it changes
                now = self._read()
                if now is None or self._is_past(now):
                    break
                if now != found:
                    raise self._other(now)
        self._write()

    def renew(self) -> None:
        """Say that the owner is alive, from any thread; RunExistsError where another one has taken over."""
        with self._renewing:
            if self._taken is None:
                found = self._read()
                if found is not None and found.get("token") != self._token:
                    self._taken = self._other(found)
            if self._taken is not None:
                raise self._taken
            self._write()

    def check(self) -> None:
        """Raise RunExistsError where `renew` found another owner."""
        if self._taken is not None:
            raise self._taken

    def release(self) -> None:
        """Own it no longer."""
        with contextlib.suppress(errors.StorageError, OSError):
            found = self._read()
            if found is not None and found.get("token") == self._token:
                self._filesystem.delete_file(self._path)

    def _other(self, found: dict[str, Any]) -> errors.RunExistsError:
        return errors.RunExistsError(
            f"another score server (process {found.get('pid')} on {found.get('host')}) writes {self._run_path}: stop "
            "it, or take another run name or storage"
        )

    def _is_past(self, found: dict[str, Any]) -> bool:
        """Return whether an owner is known to have ended."""
        if found.get("actor") == self._actor or found.get("token") == self._token:
            return True
        if found.get("host") != self._host or not isinstance(found.get("pid"), int):
            return False
        try:
            os.kill(found["pid"], 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def _read(self) -> dict[str, Any] | None:
        with files.storage_errors("look for", self._path):
            if self._filesystem.get_file_info(self._path).type != fs.FileType.File:
                return None
        try:
            return files.read_json(self._filesystem, self._path)
        except errors.StorageError:
            return None  # damaged, or deleted while we looked: nobody's

    def _write(self) -> None:
        self._num_renewals += 1
        owner = {"actor": self._actor, "token": self._token, "host": self._host, "pid": self._pid}
        files.write_json(self._filesystem, self._path, {**owner, "renewals": self._num_renewals})
