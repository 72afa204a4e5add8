"""sync: every step is one call to the score server, which observes and draws. Simple, exact, and always waited for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from es_service.actors import wire
from es_service.exchange.remote import Remote
from es_service.selection.engine import Draw

__all__ = ["Sync"]


class Sync(Remote):
    """Report and selection fused in one call; about one empty actor call on the critical path."""

    def step(self, step: int, ids_B: NDArray[np.int64], losses_B: NDArray[np.float32], num: int) -> Draw:
        """See `Exchange.step`."""
        message = self._encode(step, ids_B, losses_B, None, num)
        return wire.decode_draw(self._send("step", message), ids_B)

    def record(
        self,
        step: int,
        ids_B: NDArray[np.int64],
        losses_B: NDArray[np.float32] | None,
        positions_b: NDArray[np.int64],
    ) -> None:
        """See `Exchange.record`."""
        self._send("report", self._encode(step, ids_B, losses_B, positions_b, 0))
