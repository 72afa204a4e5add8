"""What `leased` and `prefetch` share: reports are sent in the background, and an epoch's end waits for them.

training thread ── _put ──► send_queue of each shard ──► its reporting thread, one call at a time ──► shard

Only the reporting thread notices that a shard restarted; it sends what the shard lost again.
"""

from __future__ import annotations

import functools

from es_service import errors
from es_service.actors.calls import Patience
from es_service.exchange.base import I64, SavedState
from es_service.exchange.packing import NO_IDS
from es_service.exchange.remote import Remote
from es_service.exchange.send_queue import SendQueue
from es_service.ledger import Ledger
from es_service.selection.methods.base import Columns

__all__ = ["Background"]


class Background(Remote):
    """A rank that reports without waiting."""

    _send_queues: list[SendQueue] | None = None  # one for each shard, once there is something to report

    def refresh(self, step: int, ids_B: I64, seen: Columns) -> None:
        """See `Exchange.refresh`; returns once the observation is in the send_queue."""
        self._put(step, ids_B, seen, NO_IDS)

    def _put(self, step: int, ids_B: I64, seen: Columns | None, selected_b: I64) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._send_queues is None:
            self._send_queues = [
                SendQueue(functools.partial(self._deliver, shard), self.calls.patience)
                for shard in range(self._num_shards)
            ]
        for shard, _, message in self._packer.reports(self._share.first_step + step, ids_B, seen, selected_b):
            try:
                self._send_queues[shard].put(self._packer.seqs[shard], message)
            except errors.ServerUnavailableError:
                self._packer.seqs[shard] -= 1  # it was not taken
                raise
            except errors.ServerError as error:  # a report is lost, and those behind it would be refused
                self._failure = error
                raise

    def _deliver(self, shard: int, first: int, last: int, messages: list[bytes], num_behind: int) -> None:
        channel = self._channels[shard]
        posted = channel.post(first, last, "report", *messages, num_behind=num_behind)
        channel.answer(posted, self._report_patience)

    def _report_patience(self) -> Patience:
        """Return that of the reporting thread: it retries for as long as training continues without the server."""
        return Patience(self._patient_s, for_ever=self._on_unavailable != "raise")

    def close_epoch(self, epoch: int, num_steps: int, ledger: Ledger) -> None:
        """See `Exchange.close_epoch`; waits until the send_queue is empty."""
        for send_queue in self._send_queues or ():
            send_queue.flush()
        super().close_epoch(epoch, num_steps, ledger)

    def _send_again(self, cause: errors.EsServiceError) -> None:
        for send_queue in self._send_queues or ():
            send_queue.flush()  # what is on its way already; then the reporting threads do nothing
        super()._send_again(cause)

    def load(self, state: SavedState) -> None:
        """See `Exchange.load`; unsent reports are dropped: the table is replaced."""
        self._drop()
        super().load(state)

    def reset(self) -> None:
        """See `Exchange.reset`; as `load`."""
        self._drop()
        super().reset()

    def _drop(self) -> None:
        self.close()
        self._send_queues = None

    def close(self) -> None:
        """See `Exchange.close`; ends the reporting threads, dropping the unsent reports of an unfinished epoch."""
        for send_queue in self._send_queues or ():
            send_queue.close()
