"""The backlog: messages on their way to the score server, sent by a thread of its own.

Lifecycle     running → failed (a call raised; every later call here raises the same) → closed
Invariant     messages leave in the order they came, each once; what is held never exceeds the limit
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

from es_service import errors

__all__ = ["Backlog"]

_MAX_BYTES = 64 << 20
_MESSAGE_BYTES = 96 << 10  # above 100 KB Ray sends an argument through its object store, at three times the price
_LINGER_S = 0.1  # how long a small message waits for company


class Backlog:
    """See the module's text.

    Args:
        send: delivers one message and returns once it has been applied; called by the reporting thread only.
        deadline_s: seconds that `put` waits for room and `flush` for the rest, before they give up.
    """

    def __init__(self, send: Callable[[bytes], object], deadline_s: float) -> None:
        self._send = send
        self._deadline_s = deadline_s
        self._waiting: collections.deque[bytes] = collections.deque()
        self._num_bytes = 0  # waiting and in flight
        self._failure: Exception | None = None
        self._hurry = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="es-service-backlog", daemon=True)
        self._thread.start()

    def put(self, report: bytes) -> None:
        """Hand over a report; waits only while the backlog is full.

        Raises:
            ServerUnavailableError: it stayed full past the deadline.
            EsServiceError: whatever an earlier send raised.
        """
        with self._changed:
            if self._closed:
                raise errors.ServerUnavailableError("this exchange was closed: connect again to go on reporting")
            self._wait(
                lambda: self._num_bytes + len(report) <= _MAX_BYTES or not self._num_bytes, "make room in the backlog"
            )
            self._waiting.append(report)
            self._num_bytes += len(report)
            if self._num_bytes >= _MESSAGE_BYTES:
                self._changed.notify_all()

    def flush(self) -> None:
        """Return once everything handed over has been applied; errors as in `put`."""
        with self._changed:
            if self._closed and self._num_bytes:
                raise errors.ServerUnavailableError(
                    "this exchange was closed before all was reported: connect again and continue from a checkpoint"
                )
            self._hurry = True
            self._changed.notify_all()
            try:
                self._wait(lambda: self._num_bytes == 0, "flush the backlog")
            finally:
                self._hurry = False

    def close(self) -> None:
        """End the thread after the send it may be in; what still waits is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(self._deadline_s)

    def _wait(self, ready: Callable[[], bool], doing: str) -> None:
        done = self._changed.wait_for(lambda: self._failure is not None or ready(), self._deadline_s)
        if self._failure is not None:
            raise self._failure
        if not done:
            raise errors.ServerUnavailableError(
                f"could not {doing} within {self._deadline_s:g} s: "
                f"{self._num_bytes:,} bytes still wait for the score server"
            )

    def _run(self) -> None:
        while (message := self._next()) is not None:
            try:
                self._send(message)
            except Exception as error:  # kept and raised to the training thread, whatever it is
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._num_bytes -= len(message)
                self._changed.notify_all()

    def _next(self) -> bytes | None:
        """Wait for a message's worth of reports, or a moment longer than one; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._hurry or self._num_bytes >= _MESSAGE_BYTES, _LINGER_S)
            while not self._waiting and not self._closed:
                self._changed.wait(_LINGER_S)
            if self._closed:
                return None
            parts = [self._waiting.popleft()]
            size = len(parts[0])
            while self._waiting and size + len(self._waiting[0]) <= _MESSAGE_BYTES:
                parts.append(self._waiting.popleft())
                size += len(parts[-1])
            return b"".join(parts)
