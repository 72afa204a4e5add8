"""Who writes a run: one score server at a time.

    <run>/owner.json          who it is; written once, by whoever takes over
    <run>/owner-TOKEN.json    its pulse, written anew every second

Another one that comes takes over where the owner is a process of this machine that has ended, where it is the same
actor started again, or where its pulse stood still for five seconds. An owner that is not in owner.json any more stops
writing. One that slept meanwhile, however far it was, can write nothing but its own pulse: it never takes the run back.
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
        found = self._read(self._path)
        before = self._pulse_of(found)
        if found is not None and not self._is_past(found):
            give_up = time.monotonic() + _STALE_S
            while time.monotonic() < give_up:
                time.sleep(_LOOK_EVERY_S)  # polling: a file says nothing when it changes
                now = self._read(self._path)
                if now is None or self._is_past(now):
                    break
                if now != found or self._pulse_of(now) != before:
                    raise self._other(now)
        self._beat()
        owner = {"actor": self._actor, "token": self._token, "host": self._host, "pid": self._pid}
        files.write_json(self._filesystem, self._path, owner)
        if found is not None:
            self._delete(self._pulse_path(found))

    def renew(self) -> None:
        """Say that the owner is alive, from any thread; RunExistsError where another one has taken over."""
        with self._renewing:
            if self._taken is None:
                found = self._read(self._path)
                if found is None or found.get("token") != self._token:
                    self._taken = self._other(found or {})
                    self._delete(self._pulse_path({"token": self._token}))
            if self._taken is not None:
                raise self._taken
            self._beat()

    def check(self) -> None:
        """Raise RunExistsError where `renew` found another owner."""
        if self._taken is not None:
            raise self._taken

    def release(self) -> None:
        """Own it no longer."""
        with contextlib.suppress(errors.StorageError):
            found = self._read(self._path)
            if found is not None and found.get("token") == self._token:
                self._delete(self._path)
        self._delete(self._pulse_path({"token": self._token}))

    def _other(self, found: dict[str, Any]) -> errors.RunExistsError:
        who = f"process {found.get('pid')} on {found.get('host')}" if found else "one that has ended since"
        return errors.RunExistsError(
            f"another score server ({who}) writes {self._run_path}: stop it, or take another run name or storage"
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

    def _pulse_path(self, owner: dict[str, Any]) -> str:
        token = str(owner.get("token"))
        return f"{self._run_path}/owner-{token if token.isalnum() else 'unknown'}.json"

    def _pulse_of(self, owner: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if owner is None else self._read(self._pulse_path(owner))

    def _beat(self) -> None:
        self._num_renewals += 1
        pulse = {"renewals": self._num_renewals}
        files.write_json(self._filesystem, self._pulse_path({"token": self._token}), pulse)

    def _delete(self, path: str) -> None:
        with contextlib.suppress(OSError):  # it may be gone
            self._filesystem.delete_file(path)

    def _read(self, path: str) -> dict[str, Any] | None:
        with files.storage_errors("look for", path):
            if self._filesystem.get_file_info(path).type != fs.FileType.File:
                return None
        try:
            return files.read_json(self._filesystem, path)
        except errors.StorageError:
            return None  # damaged, or deleted while we looked: nobody's
