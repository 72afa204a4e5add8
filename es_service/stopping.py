"""How a command ends when it is asked to: by Ctrl-C (SIGINT) or SIGTERM, leaving no process behind.

first signal    Stopped is raised where the main thread is, or a block `in_order` is asked to end by itself
second signal   this process and all that it started end at once
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ClassVar

__all__ = ["Stopped", "Stops", "in_order", "rely_on_children"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_EVERY_S = 0.005  # Ray ends its driver by itself, with status 1, soon after it is gone
_ONE_S = 0.2  # signals this close together are one: `timeout` sends to the process and to its group
_GRACE_S = 3.0


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Stops:
    """Handles both signals while it is entered, in the main thread; one that is ignored stays so.

    A background thread receives each signal as it comes: the main thread may be busy in a library for a while.

    Attributes:
        asked: the first signal that came, None while none has.
        relied: processes without which nothing ends in order: where one of them is gone, a first signal ends at once.
        entered: the one that handles them now.
    """

    entered: ClassVar[Stops | None] = None

    def __init__(self) -> None:
        self.asked: int | None = None
        self.relied: set[tuple[int, str]] = set()
        self._raised = False
        self._handlers: dict[int, Any] = {}
        self._ends: tuple[int, int] | None = None
        self._wakeup = -1
        self._others = _below(os.getpid())

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            hear, tell = os.pipe()
            os.set_blocking(tell, False)
            threading.Thread(target=self._listen, args=(hear,), name="es-service-stops", daemon=True).start()
            self._ends, self._wakeup = (hear, tell), signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers[number] = signal.signal(number, self._handle)
            Stops.entered = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._ends is not None and self.asked is None:  # else this process is about to end, or to be ended
            self.put_back()
            os.close(self._ends[1])  # the thread closes the other end

    def put_back(self) -> None:
        """Let signals do again what they did before."""
        Stops.entered = None
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.asked = self.asked or number
        if not self._raised:
            self._raised = True
            raise Stopped(number)

    def _listen(self, hear: int) -> None:
        asked_at: float | None = None
        while True:
            if not select.select([hear], [], [], None if asked_at is None else _LOOK_EVERY_S)[0]:
                if any(_began(pid) != began for pid, began in self.relied):
                    self._end_at_once()
                continue
            if not (byte := os.read(hear, 1)):
                break
            now = time.monotonic()
            if byte[0] not in _SIGNALS:
                continue
            if asked_at is None:
                self.asked, asked_at = self.asked or byte[0], now
            elif now - asked_at > _ONE_S:
                self._end_at_once()
        os.close(hear)

    def _end_at_once(self) -> None:
        _send(signal.SIGKILL, self._ours())
        os._exit(128 + (self.asked or 0))

    def end_children(self) -> None:
        """End what this process started and has not ended: Ray in order, the rest by signals."""
        self.relied = set()
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


def rely_on_children() -> None:
    """Take note that what runs below this process now has to be there for an end in order.

    A SIGTERM that goes to the whole group (of `timeout`, of systemd) ends Ray's processes too, and asking it would then
    wait for a minute.
    """
    if Stops.entered is not None:
        Stops.entered.relied = _below(os.getpid(), children=True) - Stops.entered._others


@contextlib.contextmanager
def in_order(ask: Callable[[int], None]) -> Iterator[None]:
    """Let the first signal call `ask` with its number, instead of what else it would do; a second one does that.

    Outside the main thread nothing is handled: no signal arrives there.
    """
    asked = False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = True
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


def _in_forked_child() -> None:
    if Stops.entered is not None:
        Stops.entered.put_back()


os.register_at_fork(after_in_child=_in_forked_child)


def _send(number: int, processes: set[tuple[int, str]]) -> None:
    for pid, _ in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _below(pid: int, *, children: bool = False) -> set[tuple[int, str]]:
    """Return the processes below one, or its children, each with when it began; none where there is no /proc."""
    parents: dict[int, int] = {}
    began: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if (stat := _stat(int(entry.name))) is not None:
            parents[int(entry.name)], began[int(entry.name)] = int(stat[1]), stat[19]
    below = {pid}
    if children:
        return {(child, began[child]) for child, parent in parents.items() if parent == pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {(child, began[child]) for child in below - {pid}}


def _began(pid: int) -> str | None:
    """Return when a process began, None where it has ended."""
    stat = _stat(pid)
    return None if stat is None or stat[0] == "Z" else stat[19]


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat behind the process's name: its state, its parent, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except OSError:
        return None
