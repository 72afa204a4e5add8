"""Small files that a user names on the command line: settings, a search space, a token.

A FIFO or a terminal is read too, but with a timeout.
"""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Callable

__all__ = ["read_given"]

_PATIENCE_S = 5.0
_PIECE = 1 << 16


def read_given(
    path: str,
    most_bytes: int,
    *,
    check: Callable[[os.stat_result], None] = lambda _: None,
    patience_s: float = _PATIENCE_S,
) -> bytes:
    """Return all that is in a file.

    Args:
        path: of the file.
        most_bytes: that it may hold.
        check: called with the `stat` of the open file, before it is read.
        patience_s: seconds to wait for the next bytes of a file that is not regular.

    Raises:
        OSError: it cannot be read, holds more, or nothing comes in time (TimeoutError).
    """
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        found = os.fstat(file)
        check(found)
        data = bytearray()
        while piece := _next(file, patience_s, waits=not stat.S_ISREG(found.st_mode)):
            data += piece
            if len(data) > most_bytes:
                raise OSError(f"it holds more than {most_bytes:,} bytes")
        return bytes(data)
    finally:
        os.close(file)


def _next(file: int, patience_s: float, *, waits: bool) -> bytes:
    """Return what comes next, nothing at the end."""
    give_up = time.monotonic() + patience_s
    while True:
        if waits:
            poll = select.poll()
            poll.register(file, select.POLLIN)
            if not poll.poll(1000 * max(0.0, give_up - time.monotonic())):
                raise TimeoutError(f"nothing was written to it within {patience_s:g} s")
        try:
            return os.read(file, _PIECE)
        except BlockingIOError:
            continue
