"""The journal of a shard, as its writer sees it: what the shard received, in order, for a restart to replay.

Records are numbered from 1. They gather in memory, and a thread writes them as one segment every second, sooner where
many have gathered or a caller waits; for the files see segments.py. Once a segment has been tried it stays as it is
until it is written: a try that seemed to fail may have left it there.

Lifecycle     ok ⇄ failing (a segment cannot be written: tried again, everything kept) → gave up (too much is kept)
              → gave up, keeping what comes behind a `mark` → ok again with `skip_to`, once a snapshot holds what was
              never written
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable

import pyarrow as pa

from es_service import errors
from es_service.storage import files
from es_service.storage.segments import JournalFolder, encode_segment

__all__ = ["Journal"]

_EVERY_S, _EVERY_ON_OBJECT_STORES_S = 1.0, 4.0
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Tried:
    """A segment that is being written, or could not be: the number of its first record, how many it has, its bytes."""

    first: int
    num: int
    data: pa.Buffer

    @property
    def last(self) -> int:
        return self.first + self.num - 1


class Journal:
    """The writing end. Any thread may call it; one thread of its own writes.

    Args:
        folder: of this shard's segments.
        last: number of the last record that is there already, 0 for none.
        every_s: seconds after which what has gathered is written; None for one, on an object store four.
        segment_bytes: so much is written at once.
        max_bytes: that may be kept in memory while segments cannot be written.
        allowed: called before each write, and every `every_s`; raises StorageError where this writer may not write.

    Attributes:
        last: number of the newest record.
        durable: number of the newest record that is on storage, with all before it.
        failure: why the last segment could not be written; None while all is well.
    """

    def __init__(
        self,
        folder: JournalFolder,
        last: int,
        *,
        every_s: float | None = None,
        segment_bytes: int = 8 << 20,
        max_bytes: int = 128 << 20,
        allowed: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        usual = _EVERY_ON_OBJECT_STORES_S if files.is_object_store(folder.filesystem) else _EVERY_S
        self._every_s, self._segment_bytes, self._max_bytes = every_s or usual, segment_bytes, max_bytes
        self._allowed = allowed
        self._tried: _Tried | None = None
        self._kinds: list[str] = []
        self._payloads: list[bytes] = []
        self._num_bytes = 0
        self.last = self.durable = last
        self.failure: errors.StorageError | None = None
        self._gave_up = self._hurry = self._closed = False
        self._mark: int | None = None  # once it gave up: records behind this one are kept again
        self._num_tries = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="es-service-journal", daemon=True)
        self._thread.start()

    def append(self, kind: str, payload: bytes) -> int:
        """Add a record; return its number. Never waits; it is durable about a second later."""
        with self._changed:
            self.last += 1
            if not self._gave_up or self._mark is not None:
                self._kinds.append(kind)
                self._payloads.append(payload)
                self._num_bytes += len(payload)
                if self._num_bytes > self._max_bytes:
                    self._give_up()
                elif self._num_bytes >= self._segment_bytes:
                    self._changed.notify_all()
            return self.last

    def flush(self) -> None:
        """Return once every record so far is on storage; StorageError where it cannot be written."""
        with self._changed:
            wanted, tries = self.last, self._num_tries
            while self.durable < wanted:
                if self._gave_up or (self._num_tries > tries and self.failure is not None):
                    assert self.failure is not None
                    raise self.failure.with_traceback(None)
                if self._closed:
                    raise errors.StorageError("the journal was closed before all of it was written")
                self._hurry = True
                self._changed.notify_all()
                self._changed.wait(self._every_s)

    def mark(self) -> int:
        """Return the number of the newest record, up to which a snapshot will hold what the records did.

        A journal that gave up keeps what comes from now on, to write it once `skip_to` confirms the snapshot.
        """
        with self._changed:
            if self._gave_up:
                self._kinds, self._payloads, self._num_bytes, self._mark = [], [], 0, self.last
            return self.last

    def skip_to(self, number: int) -> None:
        """Take all records up to `number` for durable: a snapshot holds what they did."""
        with self._changed:
            num = len(self._kinds) - (self.last - number)  # of those in memory, at the front
            self._forget(num)
            if self._gave_up and number in (self._mark, self.last):
                self._gave_up, self.failure, self._mark = False, None, None
            if not self._gave_up:
                self.durable = max(self.durable, number)
            self._changed.notify_all()

    def close(self) -> None:
        """Write what is left, if that works, and end the thread."""
        with contextlib.suppress(errors.StorageError):
            self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _give_up(self) -> None:
        _log.error(
            "the journal in %s cannot be written (%s) and %d MB of it wait: it is dropped, so that after a crash the "
            "run goes back to its last finished epoch", self._folder.path, self.failure, self._num_bytes >> 20,
        )  # fmt: skip
        self.failure = self.failure or errors.StorageError(f"the journal in {self._folder.path} is not written in time")
        self._kinds, self._payloads, self._num_bytes, self._gave_up, self._mark = [], [], 0, True, None
        self._tried = None
        self._changed.notify_all()

    def _run(self) -> None:
        due = time.monotonic() + self._every_s
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._hurry or self._num_bytes >= self._segment_bytes,
                    max(0.0, due - time.monotonic()),
                )
                if self._closed:
                    return
                self._hurry = False
                tried = self._tried = self._next()
            failure = self._write(tried)
            due = time.monotonic() + self._every_s
            with self._changed:
                self._num_tries += 1
                if failure is None and tried is not None and self._tried is tried:
                    self._tried = None
                    self._forget(tried.last - (self.last - len(self._kinds)))  # less what `skip_to` dropped
                    self.durable = max(self.durable, tried.last)
                if not self._gave_up:
                    self.failure = failure
                self._changed.notify_all()
                if failure is not None and not self._closed:
                    self._changed.wait_for(lambda: self._closed, self._every_s)  # a full disk stays full for a while

    def _forget(self, num: int) -> None:
        """Drop the first records in memory, where there are so many."""
        if num > 0:
            self._num_bytes -= sum(map(len, self._payloads[:num]))
            del self._kinds[:num], self._payloads[:num]

    def _next(self) -> _Tried | None:
        """Return the segment to write: the one that was tried, unless a snapshot holds it, or all that has gathered."""
        if self._tried is not None and self._tried.last > self.durable:
            return self._tried
        num = 0 if self._gave_up else len(self._kinds)  # else there would be a gap before them
        if not num:
            return None
        return _Tried(self.last - num + 1, num, encode_segment(self._kinds[:num], self._payloads[:num]))

    def _write(self, tried: _Tried | None) -> errors.StorageError | None:
        """Write a segment; return what went wrong."""
        try:
            self._allowed()
            if tried is not None:
                self._folder.write(tried.first, tried.data)
        except (errors.StorageError, errors.RunExistsError) as error:
            if self.failure is None:
                _log.warning("%s; what was reported meanwhile is kept in memory and tried again", error)
            return errors.StorageError(str(error))
        return None
