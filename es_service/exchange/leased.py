"""leased: at an epoch's start a rank gets its ids with their scores and draws on its own; observations flow back later.

    training thread    step: update s, draw          ──► backlog ──► reporting thread, one call at a time ──► server
                       close_epoch: waits until the backlog is empty

Exact because a plan gives an id to one rank per epoch: nobody else changes the scores it holds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from es_service.exchange.backlog import Backlog
from es_service.exchange.base import SavedState
from es_service.exchange.remote import Remote
from es_service.selection.engine import Draw, choose
from es_service.selection.methods.base import Columns

__all__ = ["Leased"]


class Leased(Remote):
    """Selection never waits for the network inside an epoch."""

    _backlog: Backlog | None = None

    def step(self, step: int, ids_B: NDArray[np.int64], seen: Columns, num: int) -> Draw:
        """See `Exchange.step`; nothing is waited for unless the backlog is full."""
        weights_B = self._observe(step, ids_B, seen)
        run_step = self._share.first_step + step
        draw = choose(self.config.selection, ids_B, weights_B, num, run_step, self._recent(step))
        self._put(step, ids_B, seen, draw.positions)
        return draw

    def record(self, step: int, ids_B: NDArray[np.int64], seen: Columns | None, positions_b: NDArray[np.int64]) -> None:
        """See `Exchange.record`; returns once the observation is in the backlog."""
        if seen is not None:
            self._observe(step, ids_B, seen)
        self._put(step, ids_B, seen, positions_b)

    def refresh(self, step: int, ids_B: NDArray[np.int64], seen: Columns) -> None:
        """See `Exchange.refresh`; as `record`, of samples that no lease holds."""
        self._put(step, ids_B, seen, np.empty(0, dtype=np.int64))

    def _put(self, step: int, ids_B: NDArray[np.int64], seen: Columns | None, positions_b: NDArray[np.int64]) -> None:
        if self._backlog is None:
            self._backlog = Backlog(lambda message: self._call("report", message), self._deadline_s)
        self._backlog.put(self._encode(step, ids_B, seen, positions_b, 0))

    def close_epoch(self, epoch: int) -> None:
        """See `Exchange.close_epoch`; waits until the backlog is empty."""
        if self._backlog is not None:
            self._backlog.flush()
        super().close_epoch(epoch)

    def load(self, state: SavedState) -> None:
        """See `Exchange.load`."""
        if self._backlog is not None:
            self._backlog.flush()
        super().load(state)

    def reset(self) -> None:
        """See `Exchange.reset`."""
        if self._backlog is not None:
            self._backlog.flush()
        super().reset()

    def close(self) -> None:
        """See `Exchange.close`; ends the reporting thread, dropping what an unfinished epoch still had to say."""
        if self._backlog is not None:
            self._backlog.close()
            self._backlog = None
