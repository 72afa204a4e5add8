"""Which reports a shard takes: of the current attempt, of steps of the open epoch, each once and in order.

Lifecycle     started (takes none) → begin(attempt) → (open_steps(the epoch's) → reports → open_steps(none))* → begin(…)
"""

from __future__ import annotations

from collections.abc import Callable

from es_service import errors
from es_service.actors.wire import Report
from es_service.selection.roster import superseded

__all__ = ["Intake"]


class Intake:
    """See the module's text. No locking.

    Args:
        restarted: makes the error for whoever comes before an attempt has begun.
    """

    def __init__(self, restarted: Callable[[], errors.ServerRestartedError]) -> None:
        self._restarted = restarted
        self._attempt: str | None = None
        self._steps = range(0)
        self._last: dict[int, tuple[int, bytes]] = {}  # by rank: seq and answer of its last report

    def begin(self, attempt: str) -> None:
        """Take reports of this attempt from now on, and of no earlier one."""
        self._attempt, self._steps = attempt, range(0)
        self._last.clear()

    def open_steps(self, steps: range) -> None:
        """Take reports of these run steps."""
        self._steps = steps

    def check_begun(self) -> None:
        """Raise ServerRestartedError where no attempt has begun since this process did."""
        if self._attempt is None:
            raise self._restarted()

    def check(self, rank: int, attempt: str) -> None:
        """Raise EpochOrderError unless this is the current attempt."""
        self.check_begun()
        if attempt != self._attempt:
            raise superseded(rank)

    def enter(self, rank: int, attempt: str) -> int:
        """Return the seq of this rank's last report, 0 before the first."""
        self.check(rank, attempt)
        return self._last.setdefault(rank, (0, b""))[0]

    def seq(self, rank: int) -> int:
        """Return the seq of this rank's last report, 0 where it never came."""
        return self._last.get(rank, (0, b""))[0]

    def last(self, report: Report) -> tuple[int, bytes]:
        """Return seq and answer of the last report of this one's rank; EpochOrderError where it has not joined."""
        rank = report.caller.rank
        self.check(rank, report.caller.attempt)
        if rank not in self._last:
            raise errors.EpochOrderError(f"rank {rank} reports without having joined")
        return self._last[rank]

    def check_follows(self, report: Report, last: int) -> None:
        """Raise EpochOrderError unless this report may be taken behind the one with seq `last`."""
        rank = report.caller.rank
        if report.run_step not in self._steps:
            raise errors.EpochOrderError(
                f"rank {rank} reports step {report.run_step}, which is not of an open epoch: iterate "
                "selector.epoch(e), which opens and closes it"
            )
        if report.seq != last + 1:
            raise errors.EpochOrderError(f"rank {rank} sent report {report.seq} after {last}: reports go up by one")

    def applied(self, report: Report, answer: bytes) -> None:
        """Keep the answer of a report, for when it is sent again."""
        self._last[report.caller.rank] = (report.seq, answer)
