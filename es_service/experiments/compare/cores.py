"""Whether this process had its cores to itself."""

from __future__ import annotations

from pathlib import Path

__all__ = ["MOST_WAITED", "seconds_waited"]

MOST_WAITED = 0.05
"""A run that was ready but had no core for more than this share of its time shared its cores."""


def seconds_waited() -> float | None:
    """Return for how long the thread of this process that waited most was ready to run while others had the core.

    None where the system does not tell.

    Reference: run-queue wait in /proc/<pid>/task/<tid>/schedstat, see the kernel's Documentation/scheduler/sched-stats.
    """
    waited = []
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            waited.append(int(task.read_text().split()[1]) / 1e9)
        except (OSError, IndexError, ValueError):  # the thread ended meanwhile, or the system keeps no such figures
            continue
    return max(waited, default=None)
