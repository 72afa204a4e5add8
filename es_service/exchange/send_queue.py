"""The send_queue: messages on their way to the score server, sent by a thread of its own.

Lifecycle     running → failed (a call raised; every later call here raises the same) → closed
Invariant     reports leave in the order they came, each once; what is held never exceeds the limit
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

from es_service import errors
from es_service.actors.calls import Patience

__all__ = ["SendQueue"]

_MAX_BYTES = 64 << 20
_MESSAGE_BYTES = 96 << 10  # above 100 KB Ray sends an argument through its object store, at three times the price
_MOST_MESSAGES = 8  # of one call: what waits by then does not pay for a way of its own
_CLOSE_S = 5.0  # that closing waits for a send under way
_LINGER_S = 0.1  # how long a small message waits for company


class SendQueue:
    """See the module's text.

    Args:
        send: (first seq, last seq, messages, number of reports that wait behind them) -> None; returns once the reports
            have been applied; the reporting thread alone calls it.
        patience: makes one for each wait: how long `put` waits for room and `flush` for the rest.
    """

    def __init__(self, send: Callable[[int, int, list[bytes], int], object], patience: Callable[[], Patience]) -> None:
        self._send = send
        self._patience = patience
        self._waiting: collections.deque[tuple[int, bytes]] = collections.deque()
        self._num_bytes = 0  # waiting and in flight
        self._failure: Exception | None = None
        self._hurry = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="es-service-send_queue", daemon=True)
        self._thread.start()

    def put(self, seq: int, report: bytes) -> None:
        """Queue a report; waits only while the send_queue is full.

        Raises:
            ServerUnavailableError: it stayed full past the deadline.
            EsServiceError: whatever an earlier send raised.
        """
        with self._changed:
            if self._closed:
                raise errors.ServerUnavailableError("this exchange was closed: connect again to continue reporting")
            self._wait(
                lambda: self._num_bytes + len(report) <= _MAX_BYTES or not self._num_bytes,
                "make room in the send queue",
            )
            self._waiting.append((seq, report))
            self._num_bytes += len(report)
            if self._num_bytes >= _MESSAGE_BYTES:
                self._changed.notify_all()

    def flush(self) -> None:
        """Return once every queued report has been applied; errors as in `put`."""
        with self._changed:
            if self._closed and self._num_bytes:
                raise errors.ServerUnavailableError(
                    "this exchange was closed before all was reported: connect again and continue from a checkpoint"
                )
            self._hurry = True
            self._changed.notify_all()
            try:
                self._wait(lambda: self._num_bytes == 0, "flush the send queue")
            finally:
                self._hurry = False

    def close(self) -> None:
        """End the thread after the send it may be in; what still waits is dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_S)

    def _wait(self, ready: Callable[[], bool], doing: str) -> None:
        patience = self._patience()
        while not self._changed.wait_for(lambda: self._failure is not None or ready(), patience.left_s):
            patience.overrun(
                errors.ServerUnavailableError(
                    f"could not {doing} within {patience.deadline_s:g} s: "
                    f"{self._num_bytes:,} bytes still wait for the score server"
                )
            )
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                self._send(*call)
            except Exception as error:  # kept and raised to the training thread, whatever it is
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._num_bytes -= sum(map(len, call[2]))
                self._changed.notify_all()

    def _next(self) -> tuple[int, int, list[bytes], int] | None:
        """Wait briefly for a message's worth of reports, at least one; None once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._hurry or self._num_bytes >= _MESSAGE_BYTES, _LINGER_S)
            while not self._waiting and not self._closed:
                self._changed.wait(_LINGER_S)
            if self._closed:
                return None
            first = self._waiting[0][0]
            messages: list[bytes] = []
            while self._waiting and len(messages) < _MOST_MESSAGES:
                last, message = self._message()
                messages.append(message)
            return first, last, messages, len(self._waiting)

    def _message(self) -> tuple[int, bytes]:
        """Take reports for one message out of those that wait, at least one; return the last one's seq, too."""
        last, report = self._waiting.popleft()
        parts, size = [report], len(report)
        while self._waiting and size + len(self._waiting[0][1]) <= _MESSAGE_BYTES:
            last, report = self._waiting.popleft()
            parts.append(report)
            size += len(report)
        return last, b"".join(parts)
