"""Which reports a shard takes: of the current generation, of steps of the open epoch, each once and in order.

Lifecycle     started (takes none) → begin(generation) → (open_steps(an epoch's) → reports → open_steps(none))* → begin

`to_dict` is written to the journal whenever it changes otherwise than by a report, for a shard that restarts.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

from es_service import errors
from es_service.actors.wire import Report
from es_service.selection.membership import fenced

__all__ = ["ReportLedger"]


@dataclasses.dataclass(slots=True)
class _Rank:
    """What has been taken from a rank.

    Attributes:
        seq: of its last report.
        durable: seq of the last one that is on storage.
        run_step: of the last one.
        answers: of the reports of that step, by seq.
        pending: (number in the journal, seq) of those that are not known to be on storage.
    """

    seq: int = 0
    durable: int = 0
    run_step: int = -1
    answers: dict[int, bytes] = dataclasses.field(default_factory=dict)
    pending: collections.deque[tuple[int, int]] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=1 << 16)
    )


class ReportLedger:
    """See the module's text. No locking.

    Args:
        restarted: makes the error for calls before the first generation.
    """

    def __init__(self, restarted: Callable[[], errors.ServerRestartedError]) -> None:
        self._restarted = restarted
        self._generation: str | None = None
        self._steps = range(0)
        self._ranks: dict[int, _Rank] = {}

    def to_dict(self) -> dict[str, Any]:
        """Return its state as plain values."""
        return {
            "attempt": self._generation,
            "steps": [self._steps.start, self._steps.stop],
            "seqs": {str(rank): one.seq for rank, one in self._ranks.items()},
        }

    def take_up(self, values: dict[str, Any]) -> None:
        """Restore what `to_dict` returned; StorageError where the values are not of it."""
        try:
            steps = range(*(int(step) for step in values["steps"]))
            ranks = {int(rank): _Rank(int(seq), int(seq)) for rank, seq in values["seqs"].items()}
            generation = values["attempt"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise errors.StorageError(f"the journal's state of the reports cannot be read: {error!r}") from error
        kept = {rank: one for rank, one in self._ranks.items() if rank in ranks and one.seq == ranks[rank].seq}
        self._generation, self._steps, self._ranks = generation, steps, {**ranks, **kept}

    def begin(self, generation: str | None) -> None:
        """Take reports of this generation only from now on; none at all for None."""
        self._generation, self._steps = generation, range(0)
        self._ranks.clear()

    def open_steps(self, steps: range) -> None:
        """Take reports of these run steps."""
        self._steps = steps

    def check_open(self, run_step: int) -> None:
        """Raise ServerRestartedError where the epoch of a step that a rank is in is not open here."""
        if run_step not in self._steps:
            raise errors.ServerRestartedError(
                f"the epoch of run step {run_step} is not open here: this process restarted, and what had opened it "
                "could not be written; connect again and continue from the last checkpoint, if it is not sent again"
            )

    def check_begun(self) -> None:
        """Raise ServerRestartedError where no generation has started in this process."""
        if self._generation is None:
            raise self._restarted()

    def check(self, rank: int, generation: str) -> None:
        """Raise EpochOrderError unless this is the current generation."""
        self.check_begun()
        if generation != self._generation:
            raise fenced(rank)

    def enter(self, rank: int, generation: str) -> int:
        """Return the seq of this rank's last report, 0 before the first."""
        self.check(rank, generation)
        return self._ranks.setdefault(rank, _Rank()).seq

    def has(self, rank: int) -> bool:
        """Return whether this rank has entered."""
        return rank in self._ranks

    def seq(self, rank: int) -> int:
        """Return the seq of this rank's last report, 0 where it never came."""
        return self._ranks[rank].seq if rank in self._ranks else 0

    def last(self, report: Report) -> int:
        """Return the seq of the last report of this one's rank; EpochOrderError where it has not joined."""
        rank = report.caller.rank
        self.check(rank, report.caller.generation)
        if rank not in self._ranks:
            raise errors.EpochOrderError(f"rank {rank} reports without having joined")
        return self._ranks[rank].seq

    def answer(self, report: Report) -> bytes:
        """Return the answer that a report got which was taken before."""
        rank, answers = report.caller.rank, self._ranks[report.caller.rank].answers
        if report.seq not in answers:
            raise errors.EpochOrderError(
                f"rank {rank} repeats report {report.seq}, which it cannot be waiting for: a later step came since"
            )
        return answers[report.seq]

    def check_follows(self, report: Report, last: int) -> None:
        """Raise unless this report may be taken behind the one with seq `last`.

        Raises:
            EpochOrderError: it is of no step of the open epoch.
            ServerRestartedError: one before it is missing, which only a crash can have lost: it has to be sent again.
        """
        rank = report.caller.rank
        if report.run_step not in self._steps:
            raise errors.EpochOrderError(
                f"rank {rank} reports step {report.run_step}, which is not of an open epoch: iterate "
                "selector.epoch(e), which opens and closes it"
            )
        if report.seq <= last:
            raise errors.EpochOrderError(f"rank {rank} sent report {report.seq} after {last}: reports go up by one")
        self.check_has(rank, report.seq - 1, last)

    def check_has(self, rank: int, seq: int, last: int | None = None) -> None:
        """Raise ServerRestartedError unless this rank's reports are here up to `seq`, or up to `last` where given."""
        last = self.seq(rank) if last is None else last
        if seq > last:
            raise errors.ServerRestartedError(
                f"rank {rank} has sent {seq} reports, of which {last} are here: the others went down with a process; "
                "connect again and continue from the last checkpoint, if they are not sent again"
            )

    def applied(self, report: Report, answer: bytes, number: int) -> None:
        """Keep the answer of a report for when it is sent again, and its number in the journal."""
        rank = self._ranks[report.caller.rank]
        if report.run_step != rank.run_step:
            rank.answers.clear()
        rank.seq, rank.run_step = report.seq, report.run_step
        rank.answers[report.seq] = answer
        rank.pending.append((number, report.seq))

    def durable(self, rank: int, number: int) -> int:
        """Return the seq up to which this rank's reports are on storage, if the journal is up to `number`."""
        one = self._ranks[rank]
        while one.pending and one.pending[0][0] <= number:
            one.durable = one.pending.popleft()[1]
        return one.durable
