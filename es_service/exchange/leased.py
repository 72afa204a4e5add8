"""leased: at an epoch's start a rank gets its ids with their scores and draws on its own; observations flow back later.

Exact because a plan gives an id to one rank per epoch: no other rank changes the scores it holds.
"""

from __future__ import annotations

from es_service import errors
from es_service.exchange.background import Background
from es_service.exchange.base import I64
from es_service.selection.engine import Draw
from es_service.selection.methods.base import Columns
from es_service.selection.repeats import Repeats, among_distinct
from es_service.selection.run import Share

__all__ = ["Leased"]


class Leased(Background):
    """Selection never waits for the network inside an epoch."""

    def open_epoch(self, epoch: int, *, streamed: bool = False) -> Share:
        """See `Exchange.open_epoch`."""
        if streamed:
            raise errors.ConfigError(
                "exchange 'leased' has nothing to lease where ids come as a stream: take 'prefetch' or 'sync'"
            )
        return super().open_epoch(epoch)

    def step(self, step: int, ids_B: I64, seen: Columns, num: int, repeats: Repeats | None = None) -> Draw:
        """See `Exchange.step`; nothing is waited for unless the send_queue is full."""
        draw = self._choose(step, ids_B, self._lease.observe(step, ids_B, seen), num, repeats)
        self._put(step, ids_B, seen, ids_B[among_distinct(draw.positions, repeats)])
        return draw

    def record(self, step: int, ids_B: I64, seen: Columns | None, positions_b: I64) -> None:
        """See `Exchange.record`; returns once the observation is in the send_queue."""
        if seen is not None:
            self._lease.observe(step, ids_B, seen)
        self._put(step, ids_B, seen, ids_B[positions_b])
