"""CPU priority: the dashboard must not slow training down."""

from __future__ import annotations

import contextlib
import os

__all__ = ["stand_back"]

_THREADS = "/proc/self/task"


def stand_back(niceness: int) -> None:
    """Raise the niceness of all threads of this process, and of what it starts, to at least this.

    It cannot be undone without privileges.
    """
    if not hasattr(os, "setpriority"):
        return
    threads = [int(name) for name in os.listdir(_THREADS)] if os.path.isdir(_THREADS) else [0]
    for thread in threads:  # on Linux each has its own
        with contextlib.suppress(OSError):  # it ended meanwhile
            if os.getpriority(os.PRIO_PROCESS, thread) < niceness:
                os.setpriority(os.PRIO_PROCESS, thread, niceness)
