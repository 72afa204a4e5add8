"""leased: at an epoch's start a rank gets its ids with their scores and draws on its own; observations flow back later.

    training thread    step: update s, draw          ──► backlog ──► reporting thread, one call at a time ──► server
                       close_epoch: waits until the backlog is empty

Exact because a plan gives an id to one rank per epoch: nobody else changes the scores it holds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.exchange.backlog import Backlog
from es_service.exchange.base import SavedState
from es_service.exchange.remote import Remote
from es_service.selection.engine import Draw, choose

__all__ = ["Leased"]


class Leased(Remote):
    """Selection never waits for the network inside an epoch."""

    _backlog: Backlog | None = None

    def open_epoch(self, epoch: int) -> NDArray[np.int64]:
        """See `Exchange.open_epoch`."""
        self._ids, scores = self._open(epoch)
        self._scores = scores.copy()  # what Ray hands out is read-only
        self._sorted: NDArray[np.int64] | None = None
        return self._ids

    def step(self, step: int, ids_B: NDArray[np.int64], losses_B: NDArray[np.float32], num: int) -> Draw:
        """See `Exchange.step`; nothing is waited for unless the backlog is full."""
        weights_B = self._observe(step, ids_B, losses_B)
        draw = choose(self.config.selection, ids_B, weights_B, num, self.first_step + step)
        self._put(step, ids_B, losses_B, draw.positions)
        return draw

    def record(
        self,
        step: int,
        ids_B: NDArray[np.int64],
        losses_B: NDArray[np.float32] | None,
        positions_b: NDArray[np.int64],
    ) -> None:
        """See `Exchange.record`; returns once the observation is in the backlog."""
        if losses_B is not None:
            self._observe(step, ids_B, losses_B)
        self._put(step, ids_B, losses_B, positions_b)

    def _observe(self, step: int, ids_B: NDArray[np.int64], losses_B: NDArray[np.float32]) -> NDArray[np.float32]:
        """Move the leased scores as the server will, and return the weights float32[B]."""
        rows = self._rows(step, ids_B)
        self._scores[rows], weights_B = self.config.selection.method.update(self._scores[rows], losses_B)
        return weights_B

    def _rows(self, step: int, ids_B: NDArray[np.int64]) -> slice | NDArray[np.int64]:
        """Return where the lease holds these ids: a slice where they are the plan's next, looked up otherwise."""
        start = step * self.config.batch_size
        planned = slice(start, start + ids_B.size)
        if np.array_equal(self._ids[planned], ids_B):
            return planned
        if self._sorted is None:
            self._sorted = np.argsort(self._ids, kind="stable")
        places = np.searchsorted(self._ids, ids_B, sorter=self._sorted)
        rows = self._sorted[np.minimum(places, self._ids.size - 1)]
        foreign = self._ids[rows] != ids_B
        if foreign.any():
            position = int(np.argmax(foreign))
            raise errors.IdError(
                f"id {ids_B[position]} at position {position} is not in rank {self.position.rank}'s share: "
                "the leased exchange serves ids from selector.epoch(e); for a sampler of your own use exchange='sync'"
            )
        return rows

    def _put(
        self,
        step: int,
        ids_B: NDArray[np.int64],
        losses_B: NDArray[np.float32] | None,
        positions_b: NDArray[np.int64],
    ) -> None:
        if self._backlog is None:
            self._backlog = Backlog(lambda message: self._call("report", message), self._deadline_s)
        self._backlog.put(self._encode(step, ids_B, losses_B, positions_b, 0))

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
