"""The contract of an exchange.

    open_epoch(e) → share │ (expect(k, …), step or draw, record (k, …))* │ refresh(…)* │ close_epoch(e)     e, k rising

One thread calls it. Given the same calls, every exact exchange returns the same draws and leaves the same table.
Inputs are checked before they get here: ids int64[B] in range and distinct, signals float32[B] finite. Of a batch that
holds ids more than once, which only a stream has, they are the distinct ids, and `repeats` has the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service.ledger import Ledger
from es_service.selection.engine import Draw
from es_service.selection.methods.base import Columns
from es_service.selection.past import BEGINNING, Past
from es_service.selection.queries import Distribution
from es_service.selection.repeats import Repeats
from es_service.selection.run import RunConfig, Share
from es_service.selection.settings import make_plain

__all__ = ["I64", "Exchange", "OnUnavailable", "Position", "SavedState"]

I64 = NDArray[np.int64]

OnUnavailable: TypeAlias = Literal["raise", "wait", "continue"]
"""What to do when the score server has not answered before the deadline."""


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """Which worker this is: its rank, of how many."""

    rank: int
    world_size: int

    def __post_init__(self) -> None:
        make_plain(self)


@dataclasses.dataclass(frozen=True, slots=True)
class SavedState:
    """A run to continue from.

    Attributes:
        finished_epochs: epochs behind it.
        epoch_starts: run step at which each of them, and the next one, begins.
        table: the score table as an Arrow IPC file.
        share: of the open epoch, where the state was taken inside one; else None.
        past: what else is behind the run.
    """

    finished_epochs: int
    epoch_starts: tuple[int, ...]
    table: bytes
    share: Share | None = None
    past: Past = BEGINNING


class Exchange(Protocol):
    """See the module's text. An exchange inherits from it what is the same for most."""

    config: RunConfig
    position: Position

    def next_epoch(self) -> int:
        """Return how many epochs of the run are finished; to be asked before this rank opens one."""
        ...

    def open_epoch(self, epoch: int, *, streamed: bool = False) -> Share:
        """Return this rank's part of the epoch, an empty one where ids come as a stream.

        Raises:
            ConfigError: the selection goes by plans, which a stream has none of.
            EpochOrderError: not the next epoch, or opened before.
            ServerUnavailableError: other ranks did not close the epoch before in time; the message names them.
        """
        ...

    def expect(self, step: int, ids_B: I64) -> None:
        """Take the next step's ids, before their losses are known. Returns at once; by default it does nothing."""
        del step, ids_B

    def step(self, step: int, ids_B: I64, seen: Columns, num: int, repeats: Repeats | None = None) -> Draw:
        """Observe the signals of this epoch's step, draw `num` of what the batch holds, count the drawn."""
        ...

    def draw(self, step: int, ids_B: I64, num: int, repeats: Repeats | None = None) -> Draw:
        """Draw `num` of what the batch holds by what is known of it by now; observe and count nothing."""
        ...

    def record(self, step: int, ids_B: I64, seen: Columns | None, positions_b: I64) -> None:
        """Observe signals, where given, and count `positions_b` of these ids as back-propagated."""
        ...

    def refresh(self, step: int, ids_B: I64, seen: Columns) -> None:
        """Observe samples that the epoch left out."""
        self.record(step, ids_B, seen, ids_B[:0])

    def close_epoch(self, epoch: int, num_steps: int, ledger: Ledger) -> None:
        """Return once all reports of this rank for the epoch are in the table, and its ledger with those of the run.

        Args:
            epoch: the open one.
            num_steps: that this rank made.
            ledger: of this rank, from the run's beginning.

        Raises:
            StorageError: it cannot be written to storage, where there is one. The epoch is over all the same.
        """
        ...

    def table(self) -> pa.Table:
        """Return a copy of the score table, see `selection.table.records_to_arrow`."""
        ...

    def top(self, column: str, num: int, *, lowest: bool) -> pa.Table:
        """Return the rows with the highest values of a column, or the lowest, in order; see `queries.top`."""
        ...

    def distribution(self, column: str, bins: int) -> Distribution:
        """Return how a column's values spread; see `queries.distribution`."""
        ...

    def save(self) -> SavedState:
        """Return the current state of the run."""
        ...

    def load(self, state: SavedState) -> None:
        """Go to a saved state of the same run."""
        ...

    def reset(self) -> None:
        """Forget every observation and return to epoch 0."""
        ...

    def spent(self, epoch: int) -> Ledger | None:
        """Return the ledger of the whole run at the end of an epoch, None where it is not kept."""
        del epoch
        return None

    def log(self, epoch: int, measured: Mapping[str, float]) -> None:
        """Keep with the run what was measured in an epoch, see `storage.progress`; rank 0 calls it."""
        ...

    def publish(self, epoch: int, done: float, ledger: Ledger) -> None:
        """Show watchers of the run how far this rank is; of an epoch that it has closed, the ledger now.

        Rank 0 calls it inside an epoch, every rank behind one. Returns at once, and may be lost.
        """
        ...

    def close(self) -> None:
        """End threads and connections, if any; the table stays with its owner."""
        return
