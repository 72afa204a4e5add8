"""Standing back: what shows a training must not hold it up."""

from __future__ import annotations

import contextlib
import os

__all__ = ["stand_back"]

_THREADS = "/proc/self/task"


def stand_back(niceness: int) -> None:
    """Let others on this machine go first: no thread of this process, nor what it starts, comes before this niceness.

    There is no way back, which takes a privilege.
    """
    if not hasattr(os, "setpriority"):
        return
    threads = [int(name) for name in os.listdir(_THREADS)] if os.path.isdir(_THREADS) else [0]
    for thread in threads:  # on Linux each has its own
        with contextlib.suppress(OSError):  # it ended meanwhile
            if os.getpriority(os.PRIO_PROCESS, thread) < niceness:
                os.setpriority(os.PRIO_PROCESS, thread, niceness)
