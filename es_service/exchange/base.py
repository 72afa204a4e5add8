"""The contract of an exchange.

    open_epoch(e) → ids │ step(k, …)* and record(k, …)* │ close_epoch(e)      e rising by one, k rising from 0

One thread calls it. Given the same calls, every exact exchange returns the same draws and leaves the same table.
Inputs are checked before they get here: ids int64[B] in range and distinct, losses float32[B] finite.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service.selection.engine import Draw
from es_service.selection.scorekeeper import RunConfig

__all__ = ["Exchange", "Position", "SavedState"]

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """Which worker this is: its rank, of how many."""

    rank: int
    world_size: int


@dataclasses.dataclass(frozen=True, slots=True)
class SavedState:
    """A run to continue from.

    Attributes:
        finished_epochs: epochs behind it.
        epoch_starts: run step at which each of them, and the next one, begins.
        table: the score table as an Arrow IPC file.
        share: int64[m] ids of the open epoch, where the state was taken inside one; else None.
    """

    finished_epochs: int
    epoch_starts: tuple[int, ...]
    table: bytes
    share: I64 | None = None


class Exchange(Protocol):
    """See the module's text."""

    config: RunConfig
    position: Position
    first_step: int
    """Run step of the open epoch's first step."""

    def open_epoch(self, epoch: int) -> I64:
        """Return this rank's ids of the epoch, int64[m], in their order.

        Raises:
            EpochOrderError: not the next epoch, or opened before.
            ServerUnavailableError: other ranks did not close the epoch before in time; the message names them.
        """
        ...

    def step(self, step: int, ids_B: I64, losses_B: F32, num: int) -> Draw:
        """Observe the losses of this epoch's step, draw `num` of the B, count the drawn."""
        ...

    def record(self, step: int, ids_B: I64, losses_B: F32 | None, positions_b: I64) -> None:
        """Observe losses, where given, and count `positions_b` of these ids as back-propagated."""
        ...

    def close_epoch(self, epoch: int) -> None:
        """Return once everything this rank said of the epoch is in the table."""
        ...

    def table(self) -> pa.Table:
        """Return a copy of the score table, with the columns of `selection.table.SCHEMA`."""
        ...

    def save(self) -> SavedState:
        """Return the run as it stands."""
        ...

    def load(self, state: SavedState) -> None:
        """Go to a saved state of the same run."""
        ...

    def reset(self) -> None:
        """Forget every observation and stand before epoch 0."""
        ...

    def publish(self, progress: dict[str, Any]) -> None:
        """Let others see how the training goes; plain values only. Returns at once, and may be lost."""
        ...

    def close(self) -> None:
        """Let go of threads and connections; the table stays with its owner."""
        ...
