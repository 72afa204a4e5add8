"""The progress of a run that is served: every rank's ledger at its epoch's end, and what the user measured.

A rank's ledger is in the journal with the close that brought it, so that a server that restarts has the ledgers of all
ranks that closed before, and the end of an epoch that was finished last even where the file does not have it yet.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from es_service import errors
from es_service.actors.epoch_state import EpochState
from es_service.actors.served_run import ServedRun
from es_service.ledger import Ledger
from es_service.selection.run import Caller

__all__ = ["RunProgress"]

_log = logging.getLogger(__name__)


class RunProgress:
    """See the module's text.

    Args:
        run: that is served.
        epochs: where its ranks are, as the journal has it.
    """

    def __init__(self, run: ServedRun, epochs: EpochState) -> None:
        self._run, self._epochs, self._kept = run, epochs, run.storage.progress
        if run.failure is None:  # where a process went down, the file may know more than the journal, or less
            membership = epochs.membership
            self._kept.drop_from(membership.finished_epochs + (membership.open_epoch_number is not None))
            self._merge()

    def _merge(self) -> None:
        """Merge the ledgers of the epoch that was finished last, unless a rank has closed the next one already."""
        epoch = self._epochs.membership.finished_epochs - 1
        ledgers = [ledger for number, ledger in self._epochs.ledgers.values() if number == epoch]
        if len(ledgers) == self._epochs.membership.world_size:
            self._kept.finish(epoch, ledgers, self._epochs.membership.past.decision_of(epoch))

    def count(self, rank: int, epoch: int, ledger: Ledger | None) -> None:
        """Take a rank's ledger at an epoch's end; the caller holds the lock, and keeps the epochs in the journal."""
        if ledger is not None:
            self._epochs.ledgers[rank] = epoch, ledger

    def finish_epoch(self) -> None:
        """Write what all ranks counted by the end of the epoch that was finished just now."""
        self._merge()
        self.write()

    def write(self) -> None:
        """Write the file, where this process may; where it cannot, that is logged."""
        try:
            self._run.check_write()
        except errors.StorageError as error:
            _log.warning("the ledger of the run is not on storage: %s", error)
        else:
            self._kept.write()

    def log(self, rank: int, generation: str, epoch: int, measured: Mapping[str, float]) -> None:
        """Keep what was measured in an epoch; EpochOrderError for a rank that is fenced."""
        with self._epochs.lock:
            self._epochs.membership.check(Caller(rank, generation))
            self._kept.log(epoch, measured)
            self.write()

    def publish(self, rank: int, generation: str, epoch: int, done: float, ledger: dict[str, Any]) -> None:
        """See `Exchange.publish` (group `read`)."""
        counted = Ledger.from_dict(ledger)
        with self._epochs.lock:
            membership = self._epochs.membership
            if generation != membership.generation:
                return
            if self._epochs.ledgers.get(rank, (-1, None))[0] == epoch:
                self._epochs.ledgers[rank] = epoch, counted
                self._merge()
            elif rank == 0 and epoch == membership.open_epoch_number:
                self._kept.show(epoch, done, counted, membership.world_size)

    def spent(self, epoch: int) -> dict[str, Any] | None:
        """Return the run's ledger at an epoch's end, None where it is not known (group `read`)."""
        found = self._kept.spent(epoch)
        return None if found is None else found.to_dict()
