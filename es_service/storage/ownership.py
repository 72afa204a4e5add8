"""Who writes a run: one score server at a time.

    <run>/owners/run/<stamp>.json     a claim, see terms.py: who it is, and which snapshots it found
    <run>/owners/run/<stamp>.pulse    the owner's heartbeat, rewritten every second or few
    <run>/owners/<i>-of-<S>/          claims to the journals of the shards, one by one

Another one that comes takes over where the owner has released the run, is a process of this machine that has ended, is
the same actor started again, or where its heartbeat stood still for five seconds (20 on an object store). Else it is
refused. One that was taken over from writes no more; what it was about to write is left out by its stamp.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import Any

from pyarrow import fs

from es_service import errors
from es_service.storage import files
from es_service.storage.segments import JournalFolder
from es_service.storage.snapshots import Snapshots
from es_service.storage.terms import NOBODY, Term, list_claims

__all__ = ["Ownership", "claim_journal", "claim_unwatched"]

_STALE_S, _STALE_ON_OBJECT_STORES_S = 5.0, 20.0
_LOOK_EVERY_S = 0.1


def _folder(run_path: str) -> str:
    return f"{run_path}/owners/run"


def _process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def claim_journal(filesystem: fs.FileSystem, run_path: str, name: str) -> Term:
    """Claim the journal of a shard: a process of it that ran before, wherever it is, writes it no more."""
    segments = JournalFolder(filesystem, f"{run_path}/journal/{name}").segments()
    above = max((one.stamp for one in segments), default=NOBODY)
    term = Term(filesystem, f"{run_path}/owners/{name}", _process(), above)
    term.forget_lower()
    return term


def claim_unwatched(filesystem: fs.FileSystem, run_path: str) -> Term:
    """Claim a run for a writer without a heartbeat, whom any other may take over from at once."""
    values = {**_process(), "released": True}
    term = Term(filesystem, _folder(run_path), values, Snapshots(filesystem, run_path).highest_stamp())
    _accept(filesystem, run_path, term, values)
    return term


def _accept(filesystem: fs.FileSystem, run_path: str, term: Term, values: dict[str, Any]) -> dict[str, Any]:
    """Note which snapshots there are: of other writers these count, and none that one of them puts there later."""
    values = {**values, "snapshots": Snapshots(filesystem, run_path).names()}
    term.write(values)
    term.check()
    term.forget_lower()
    return values


class Ownership:
    """The right to write a run, held from `claim` to `release`.

    Args:
        filesystem: that the run is on.
        run_path: folder of the run.
        actor: names the owner across restarts of its process.
    """

    def __init__(self, filesystem: fs.FileSystem, run_path: str, actor: str) -> None:
        self._filesystem, self._run_path, self._folder = filesystem, run_path, _folder(run_path)
        self._values: dict[str, Any] = {"actor": actor, **_process()}
        self._term: Term | None = None
        self._num_renewals = 0
        self._taken: errors.RunExistsError | None = None
        self._renewing = threading.Lock()

    @property
    def stamp(self) -> str:
        """What all that this owner writes has in its name."""
        assert self._term is not None, "claimed before it is used"
        return self._term.stamp

    def claim(self) -> None:
        """Become the owner; waits, at most as long as a heartbeat may stand still, where there seems to be another.

        Raises:
            RunExistsError: another score server writes this run.
        """
        stamp, found = self._owner()
        before = self._heartbeat(stamp)
        if not self._is_past(found):
            remote = files.is_object_store(self._filesystem)
            give_up = time.monotonic() + (_STALE_ON_OBJECT_STORES_S if remote else _STALE_S)
            while time.monotonic() < give_up:
                time.sleep(_LOOK_EVERY_S * (10 if remote else 1))  # polling: files do not notify of changes
                now = self._owner()
                if self._is_past(now[1]):
                    break
                if now[0] != stamp or self._heartbeat(stamp) != before:
                    raise self._other(now[1])
        try:
            above = Snapshots(self._filesystem, self._run_path).highest_stamp()
            self._term = Term(self._filesystem, self._folder, self._values, above)
            self._values = _accept(self._filesystem, self._run_path, self._term, self._values)
        except errors.RunExistsError as error:
            raise self._other(self._owner()[1]) from error
        self._beat()
        self._delete(f"{stamp}.pulse")
        with contextlib.suppress(OSError):  # of the format before: it has no term, and is ended by this
            self._filesystem.delete_file(f"{self._run_path}/owner.json")

    def renew(self) -> None:
        """Write the owner's heartbeat, from any thread; RunExistsError where another one has taken over."""
        with self._renewing:
            self._look()
            self._beat()

    def confirm(self) -> None:
        """Confirm a write that was made; RunExistsError where another one has taken over."""
        with self._renewing:
            self._look()

    def check(self) -> None:
        """Raise RunExistsError where `renew` or `confirm` found another owner."""
        if self._taken is not None:
            raise self._taken.with_traceback(None)

    def release(self) -> None:
        """Own it no longer."""
        assert self._term is not None, "claimed before it is released"
        with contextlib.suppress(errors.EsServiceError):
            self._term.write({**self._values, "released": True})
        self._delete(f"{self.stamp}.pulse")

    def _look(self) -> None:
        assert self._term is not None, "claimed before it is used"
        if self._taken is None:
            try:
                self._term.check()
            except errors.RunExistsError:
                self._taken = self._other(self._owner()[1])
                self._delete(f"{self.stamp}.pulse")
        self.check()

    def _other(self, found: dict[str, Any]) -> errors.RunExistsError:
        ended = not found or "released" in found
        who = "one that has ended since" if ended else f"process {found.get('pid')} on {found.get('host')}"
        return errors.RunExistsError(
            f"another score server ({who}) writes {self._run_path}: stop it, or take another run name or storage"
        )

    def _is_past(self, found: dict[str, Any]) -> bool:
        """Return whether an owner is known to have ended; a missing one, or one whose file is damaged, has."""
        if not found or found.get("released") or found.get("actor") == self._values["actor"]:
            return True
        if found.get("host") != self._values["host"] or not isinstance(found.get("pid"), int):
            return False
        try:
            os.kill(found["pid"], 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            return False
        return False

    def _owner(self) -> tuple[str, dict[str, Any]]:
        """Return the stamp and the values of the highest claim; of none at all "" and nothing."""
        claims = list_claims(self._filesystem, self._folder)
        return (claims[-1], self._read(f"{claims[-1]}.json")) if claims else ("", {})

    def _heartbeat(self, stamp: str) -> dict[str, Any]:
        return self._read(f"{stamp}.pulse")

    def _beat(self) -> None:
        self._num_renewals += 1
        files.write_json(self._filesystem, f"{self._folder}/{self.stamp}.pulse", {"renewals": self._num_renewals})

    def _delete(self, name: str) -> None:
        with contextlib.suppress(OSError):  # it may be gone
            self._filesystem.delete_file(f"{self._folder}/{name}")

    def _read(self, name: str) -> dict[str, Any]:
        path = f"{self._folder}/{name}"
        if not files.is_file(self._filesystem, path):
            return {}
        try:
            return files.read_json(self._filesystem, path)
        except errors.StorageError:
            return {}  # damaged, or deleted while we looked: no owner
