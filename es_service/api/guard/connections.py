"""Connections of uvicorn that cannot be held open by sending or reading slowly.

uvicorn sets no timeout for sending a request's head or for reading an answer. Here head and body must each be complete
within a time limit, and an answer must keep moving. At the limit of open connections, a new one replaces the one that
has waited longest for its request.
"""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from es_service.api.settings import Limits

__all__ = ["server_options"]

_MOST_CONNECTIONS = 4096
_MOST_NEW = 512  # accepted in one go
_ANSWER_S = 60.0  # for 64 KiB of an answer


def server_options(limits: Limits) -> dict[str, Any]:
    """Return what uvicorn.Config needs to bound connections: half as many as this process may have files open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, files // 2)
    waiting: OrderedDict[_Connection, None] = OrderedDict()

    def connection(**uvicorns: Any) -> _Connection:
        return _Connection(limits.request_s, most, waiting, **uvicorns)

    return {
        "http": connection,
        "ws": "none",  # a WebSocket is asked for by a request, which the guard refuses as any other
        "backlog": min(_MOST_NEW, most // 4),  # accepted at once, three times over until the first of them are closed
        "timeout_keep_alive": 30,
    }


class _Connection(H11Protocol):
    """See the module's text.

    Args:
        request_s: seconds for a head; a body has twice as many, so that the guard, which gives it as many, answers.
        most: connections open at a time.
        waiting: those without a whole request, of all of this server; those that wait longest come first.
        uvicorns: what uvicorn makes a protocol of.
    """

    def __init__(self, request_s: float, most: int, waiting: OrderedDict[_Connection, None], **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._request_s, self._most, self._waiting = request_s, most, waiting
        self._part: Any = None  # of a request, which is waited for
        self._part_deadline: asyncio.TimerHandle | None = None
        self._answer_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most and self._waiting:
            self._waiting.popitem(last=False)[0].transport.abort()
        self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # which begins the next request where it came with this one
        if self.transport.is_closing():
            self._limit_answer()
        elif self.conn.their_state is h11.IDLE:
            self._waiting[self] = None
        else:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_for(None)
        self.resume_writing()
        super().connection_lost(exc)
        self._waiting.pop(self, None)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._limit_answer()  # the connection is closed once all is sent, which a client may never take

    def pause_writing(self) -> None:
        super().pause_writing()
        self._limit_answer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._answer_deadline is not None:
            self._answer_deadline.cancel()
            self._answer_deadline = None

    def _limit_answer(self) -> None:
        if self._answer_deadline is None:
            self._answer_deadline = self.loop.call_later(_ANSWER_S, self.transport.abort)

    def _expect(self) -> None:
        state = self.conn.their_state
        self._wait_for(state if state in (h11.IDLE, h11.SEND_BODY, h11.ERROR) else None)

    def _wait_for(self, part: Any) -> None:
        """Set the deadline for a part of a request; one that is waited for already keeps its own."""
        if part is self._part:
            return
        self._part = part
        if self._part_deadline is not None:
            self._part_deadline.cancel()
            self._part_deadline = None
        self._waiting.pop(self, None)
        if part is not None:
            seconds = self._request_s * (2 if part is h11.SEND_BODY else 1)
            self._part_deadline = self.loop.call_later(seconds, self.transport.abort)
            self._waiting[self] = None

    def _should_upgrade(self) -> bool:
        return False
