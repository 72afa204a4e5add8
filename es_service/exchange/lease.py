"""A lease: the columns of its share that a rank needs in order to draw on its own, for the length of an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.exchange.base import I64
from es_service.selection.config import Selection
from es_service.selection.engine import NOTHING, known_weights, observed_weights
from es_service.selection.methods.base import Columns
from es_service.selection.run import Share

__all__ = ["Lease"]

F32 = NDArray[np.float32]


class Lease:
    """Moves as the table does, by the same arithmetic, as long as no other rank observes its ids.

    Args:
        selection: of the run.
        batch_size: B.
        share: the rank's part of the epoch, m ids.
        columns: `engine.leased_columns` of these ids, [m] each.
    """

    def __init__(self, selection: Selection, batch_size: int, share: Share, columns: dict[str, NDArray[Any]]) -> None:
        self._selection = selection
        self._batch_size = batch_size
        self._share = share
        self._columns = columns

    def observe(self, step: int, ids_B: I64, seen: Columns) -> F32:
        """Update the columns as the server will, and return the new weights float32[B]; IdError for foreign ids."""
        selection, columns = self._selection, self._columns
        rows = self._rows(step, ids_B)
        old = {name: columns[name][rows] for name in selection.method.reads}
        new = {**selection.method.update(old, seen[selection.signal], seen), "last_loss": seen["loss"]}
        for name in columns.keys() & new.keys():
            columns[name][rows] = new[name]
        if "visits" in columns:
            columns["visits"][rows] += np.uint32(1)
        return new["w"]

    def remember(self, step: int, ids_B: I64, weights_B: F32, losses_B: F32) -> None:
        """Keep what the server made of an observation, where later draws look at it; foreign ids are not kept."""
        for name, values_B in (("w", weights_B), ("last_loss", losses_B)):
            if name in self._columns:
                rows = self._share.rows(step, ids_B, self._batch_size)
                own = slice(None) if isinstance(rows, slice) else rows >= 0
                self._columns[name][rows if isinstance(rows, slice) else rows[own]] = values_B[own]

    def known(self, step: int, ids_B: I64) -> F32:
        """Return the weights float32[B] to draw by where nothing new was observed; IdError for foreign ids."""
        rows = self._rows(step, ids_B)
        return known_weights({name: self._columns[name][rows] for name in ("w", "last_loss")})

    def recent(self, step: int) -> F32:
        """Return the weights that this rank's samples before this step had, where the method looks at them."""
        start, num = step * self._batch_size, self._selection.method.window - self._batch_size
        if num <= 0:
            return NOTHING
        window = slice(max(0, start - num), start)
        return observed_weights({name: self._columns[name][window] for name in ("w", "last_loss")})

    def _rows(self, step: int, ids_B: I64) -> slice | I64:
        rows = self._share.rows(step, ids_B, self._batch_size)
        if not isinstance(rows, slice) and rows.min() < 0:
            position = int(np.argmin(rows))
            raise errors.IdError(
                f"id {ids_B[position]} at position {position} is not in this rank's share: without a call to the "
                "server only ids from selector.epoch(e) can be drawn from; for a sampler of your own use "
                "exchange='prefetch', or 'sync' and score every step"
            )
        return rows
