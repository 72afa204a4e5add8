"""sync: every step is one call to the score server, which observes and draws. Simple, exact, and always waited for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from es_service.actors import wire
from es_service.exchange.remote import Remote
from es_service.selection.engine import Draw
from es_service.selection.methods.base import Columns

__all__ = ["Sync"]


class Sync(Remote):
    """Report and selection fused in one call; about one empty actor call on the critical path."""

    def step(self, step: int, ids_B: NDArray[np.int64], seen: Columns, num: int) -> Draw:
        """See `Exchange.step`."""
        self._follow(step, ids_B, seen)
        message = self._encode(step, ids_B, seen, None, num)
        return wire.decode_draw(self._send("step", message), ids_B)

    def record(self, step: int, ids_B: NDArray[np.int64], seen: Columns | None, positions_b: NDArray[np.int64]) -> None:
        """See `Exchange.record`."""
        if seen is not None:
            self._follow(step, ids_B, seen)
        self._send("report", self._encode(step, ids_B, seen, positions_b, 0))

    def refresh(self, step: int, ids_B: NDArray[np.int64], seen: Columns) -> None:
        """See `Exchange.refresh`."""
        self._send("report", self._encode(step, ids_B, seen, np.empty(0, dtype=np.int64), 0))

    def _follow(self, step: int, ids_B: NDArray[np.int64], seen: Columns) -> None:
        """Keep the lease up to date where epochs without a scoring pass will draw from it."""
        if self.config.selection.score_every > 1 and self.config.selection.method.needs_losses:
            self._observe(step, ids_B, seen)
