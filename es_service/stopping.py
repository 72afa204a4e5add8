"""How a command ends when it is asked to: by Ctrl-C (SIGINT) or SIGTERM, leaving no process behind.

first signal    Stopped is raised where the main thread is, or a block `in_order` is asked to end by itself
second signal   this process and all that it started end at once
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ClassVar

__all__ = ["Stopped", "Stops", "in_order"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE_S = 0.2  # signals this close together are one: `timeout` sends to the process and to its group
_GRACE_S = 3.0


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stops:
    """Handles both signals while it is entered, in the main thread; one that is ignored stays so.

    Attributes:
        asked: the first signal that came, None while none has.
        entered: the one that handles them now.
    """

    entered: ClassVar[Stops | None] = None

    def __init__(self) -> None:
        self.asked: int | None = None
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}
        self._others = _below(os.getpid())

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            Stops.entered = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        Stops.entered = None

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.take(number):
            raise Stopped(number)

    def take(self, number: int) -> bool:
        """Take note of a signal; return whether it is the first. A second one does not return."""
        now = time.monotonic()
        if self.asked is None:
            self.asked, self._asked_at = number, now
            return True
        if now - self._asked_at > _ONE_S:
            _send(signal.SIGKILL, self._ours())
            os._exit(128 + number)
        return False

    def end_children(self) -> None:
        """End what this process started and has not ended: Ray in order, the rest by signals."""
        left = self._ours()
        if (ray := sys.modules.get("ray")) is not None:
            with contextlib.suppress(Exception):  # it was being started, or imported
                ray.shutdown()
        left |= self._ours()
        for number in (signal.SIGTERM, signal.SIGKILL):
            _send(number, left)
            give_up = time.monotonic() + _GRACE_S
            while (left := {one for one in left if _began(one[0]) == one[1]}) and time.monotonic() < give_up:
                time.sleep(0.02)

    def _ours(self) -> set[tuple[int, str]]:
        return _below(os.getpid()) - self._others


@contextlib.contextmanager
def in_order(ask: Callable[[int], None]) -> Iterator[None]:
    """Let the first signal call `ask` with its number, instead of what else it would do; a second one does that.

    Outside the main thread nothing is handled: no signal arrives there.
    """
    asked = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal asked
        first = not asked if Stops.entered is None else Stops.entered.take(number)
        asked = True
        if first:
            ask(number)
        elif Stops.entered is None:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(number: int, processes: set[tuple[int, str]]) -> None:
    for pid, _ in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _below(pid: int) -> set[tuple[int, str]]:
    """Return the processes below one, each with when it began; none where the system has no /proc."""
    parents: dict[int, int] = {}
    began: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if (stat := _stat(int(entry.name))) is not None:
            parents[int(entry.name)], began[int(entry.name)] = int(stat[1]), stat[19]
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {(child, began[child]) for child in below - {pid}}


def _began(pid: int) -> str | None:
    """Return when a process began, None where it has ended."""
    stat = _stat(pid)
    return None if stat is None or stat[0] == "Z" else stat[19]


def _stat(pid: int) -> list[str] | None:
    """Return what the system says of a process, behind its name: its state, its parent, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except OSError:
        return None
