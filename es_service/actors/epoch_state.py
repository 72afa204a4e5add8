"""Where a run is, as the score server's journal keeps it: its membership, and what each rank has asked of it last.

A call that changes the membership may be made again with the same `turn`, any text of the caller's: it is done once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from es_service import errors
from es_service.actors import shard_journal
from es_service.actors.plan_codec import decode_plan, encode_plan
from es_service.actors.served_run import ServedRun
from es_service.ledger import Ledger
from es_service.selection.membership import Membership
from es_service.selection.plans import Plan
from es_service.selection.run import Caller
from es_service.storage.segments import Record

__all__ = ["EpochState"]


class EpochState:
    """See the module's text. Callers hold `lock`."""

    kinds = ("plan", "roster")

    def __init__(self, run: ServedRun, plan: Callable[[int, Sequence[int]], Plan]) -> None:
        self._run = run
        self.lock = threading.Lock()
        self.membership = Membership(run.config, plan)
        self.turns: dict[int, str] = {}  # the last change that each rank asked for
        self.num_rewinds = 0  # done in this generation
        self.rewinds: dict[int, int] = {}  # of those, how many each rank has asked for
        self.outdated: set[int] = set()  # ranks that another one rewound the run under
        self.ledgers: dict[int, tuple[int, Ledger]] = {}  # of each rank, when it closed its last epoch, and that epoch
        self._plan_read: Plan | None = None  # of the journal, for the membership that comes next

    def begin(self) -> None:
        """Forget what ranks asked for: a new generation begins."""
        self.rewinds.clear()
        self.outdated.clear()
        self.turns.clear()
        self.ledgers.clear()
        self.num_rewinds = 0

    def ledgers_of(self, epoch: int) -> list[Ledger]:
        """Return the ledgers of the ranks that closed this epoch last, by rank."""
        return [self.ledgers[rank][1] for rank in sorted(self.ledgers) if self.ledgers[rank][0] == epoch]

    def is_repeated(self, caller: Caller, turn: str) -> bool:
        """Return whether the rank makes a call again that was done."""
        self.membership.check(caller)
        return bool(turn) and self.turns.get(caller.rank) == turn

    def records(self, plan: Plan | None = None) -> list[tuple[str, bytes]]:
        """Return what the journal is to keep, the plan of an epoch that was opened just now before it."""
        planned = [] if plan is None else [("plan", encode_plan(plan))]
        return [*planned, ("roster", shard_journal.to_json(self._values()))]

    def _values(self) -> dict[str, Any]:
        return {
            **self.membership.to_dict(),
            "num_rewinds": self.num_rewinds,
            "rewinds": {str(rank): num for rank, num in self.rewinds.items()},
            "turns": {str(rank): turn for rank, turn in self.turns.items()},
            "outdated": sorted(self.outdated),
            "ledgers": {str(rank): [epoch, one.to_dict()] for rank, (epoch, one) in self.ledgers.items()},
        }

    def note(self) -> dict[str, Any]:
        """See `Journaled.note`."""
        return {"roster": self._values()}

    def load(self, finished_epochs: int, note: dict[str, Any]) -> None:
        """See `Journaled.load`."""
        if "roster" in note:
            self._take_up(note["roster"], None)
        else:
            snapshots = self._run.storage.snapshots
            self.membership.go_to(*snapshots.position(finished_epochs), snapshots.past(finished_epochs))

    def replay(self, record: Record) -> None:
        """See `Journaled.replay`."""
        if record.kind == "plan":
            self._plan_read = decode_plan(record.payload)
        else:
            self._take_up(shard_journal.from_json(record.payload), self._plan_read)

    def _take_up(self, values: dict[str, Any], plan: Plan | None) -> None:
        self.membership.take_up(values, plan)
        try:
            self.num_rewinds = int(values["num_rewinds"])
            self.rewinds = {int(rank): int(num) for rank, num in values["rewinds"].items()}
            self.turns = {int(rank): str(turn) for rank, turn in values["turns"].items()}
            self.outdated = {int(rank) for rank in values.get("outdated", ())}  # of older journals: not recorded
            self.ledgers = {
                int(rank): (int(epoch), Ledger.from_dict(one))
                for rank, (epoch, one) in values.get("ledgers", {}).items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise errors.StorageError(f"the membership in the journal is damaged: {error!r}") from error
