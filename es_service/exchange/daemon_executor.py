"""Executor: runs tasks on a background thread, one after the other, while the training thread continues."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["Executor"]

T = TypeVar("T")


class Executor:
    """A daemon thread that runs tasks in order.

    Not a ThreadPoolExecutor: Python joins its threads at exit, and this one may be waiting for a server.
    """

    def __init__(self, name: str) -> None:
        self._told: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def send(self, work: Callable[[], T]) -> Future[T]:
        """Queue work; return the future of its result or exception."""
        future: Future[T] = Future()
        self._told.put((future, work))
        return future

    def close(self) -> None:
        """End the thread after the tasks sent so far, without waiting for it."""
        self._told.put(None)

    def _run(self) -> None:
        while (errand := self._told.get()) is not None:
            future, work = errand
            try:
                future.set_result(work())
            except BaseException as error:  # raised by Future.result
                future.set_exception(error)
            del errand, future, work  # else the last result lives until the next errand
