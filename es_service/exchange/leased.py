"""leased: at an epoch's start a rank gets its ids with their scores and draws on its own; observations flow back later.

    training thread    step: update s, draw          ──► backlog ──► reporting thread, one call at a time ──► server
                       close_epoch: waits until the backlog is empty

Exact because a plan gives an id to one rank per epoch: nobody else changes the scores it holds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from es_service.exchange.backlog import Backlog
from es_service.exchange.base import SavedState
from es_service.exchange.remote import NO_IDS, Remote
from es_service.selection.engine import Draw
from es_service.selection.methods.base import Columns

__all__ = ["Leased"]


class Leased(Remote):
    """Selection never waits for the network inside an epoch."""

    _backlogs: list[Backlog] | None = None  # one for each shard, once there is something to report

    def step(self, step: int, ids_B: NDArray[np.int64], seen: Columns, num: int) -> Draw:
        """See `Exchange.step`; nothing is waited for unless the backlog is full."""
        draw = self._choose(step, ids_B, self._lease.observe(step, ids_B, seen), num)
        self._put(step, ids_B, seen, draw.ids)
        return draw

    def record(self, step: int, ids_B: NDArray[np.int64], seen: Columns | None, positions_b: NDArray[np.int64]) -> None:
        """See `Exchange.record`; returns once the observation is in the backlog."""
        if seen is not None:
            self._lease.observe(step, ids_B, seen)
        self._put(step, ids_B, seen, ids_B[positions_b])

    def refresh(self, step: int, ids_B: NDArray[np.int64], seen: Columns) -> None:
        """See `Exchange.refresh`; as `record`, of samples that no lease holds."""
        self._put(step, ids_B, seen, NO_IDS)

    def _put(self, step: int, ids_B: NDArray[np.int64], seen: Columns | None, selected_b: NDArray[np.int64]) -> None:
        if self._backlogs is None:
            shards = range(len(self._shards))
            self._backlogs = [Backlog(self._sender(shard), self._deadline_s) for shard in shards]
        for shard, _, message in self._reports(step, ids_B, seen, selected_b):
            self._backlogs[shard].put(message)

    def _sender(self, shard: int) -> Callable[[bytes], object]:
        return lambda message: self._call("report", message, shard=shard)

    def _flush(self) -> None:
        for backlog in self._backlogs or ():
            backlog.flush()

    def close_epoch(self, epoch: int) -> None:
        """See `Exchange.close_epoch`; waits until the backlog is empty."""
        self._flush()
        super().close_epoch(epoch)

    def load(self, state: SavedState) -> None:
        """See `Exchange.load`."""
        self._flush()
        super().load(state)

    def reset(self) -> None:
        """See `Exchange.reset`."""
        self._flush()
        super().reset()

    def close(self) -> None:
        """See `Exchange.close`; ends the reporting threads, dropping what an unfinished epoch still had to say."""
        for backlog in self._backlogs or ():
            backlog.close()
        self._backlogs = None
