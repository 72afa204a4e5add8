"""embedded: the table lives in this process. No Ray, nothing to wait for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from es_service import errors
from es_service.exchange.base import I64, Exchange, Position, SavedState
from es_service.exchange.kept import KeptRun
from es_service.exchange.resume import Resume, check_begun, check_resume
from es_service.ledger import Ledger
from es_service.selection import queries
from es_service.selection.engine import Draw
from es_service.selection.local_run import LocalRun
from es_service.selection.methods.base import Columns
from es_service.selection.reductions import agree
from es_service.selection.repeats import Repeats, among_distinct
from es_service.selection.run import Caller, RunConfig, RunState, Share
from es_service.selection.table import arrow_to_records, records_to_arrow
from es_service.storage import table_files
from es_service.storage.runs import RunStorage, by_user

__all__ = ["Embedded"]

_GENERATION = "embedded"


class Embedded(Exchange):
    """One process, one table.

    Args:
        keeper: of the run; several ranks in one process (a simulation, a test) share one.
        position: this rank.
        storage: where to keep a run of one rank, as a score server does: at each epoch's end a snapshot, the history
            and the ledger. None keeps it all in memory.
        watch: called with the progress of a run that is kept, see `storage.progress`.

    Raises:
        ConfigError: a storage, and several ranks: each would write a part of the history as if it were the whole.
    """

    def __init__(
        self,
        keeper: LocalRun,
        position: Position,
        storage: RunStorage | None = None,
        watch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.config: RunConfig = keeper.config
        self.position = position
        self._keeper = keeper
        if storage is not None and position.world_size > 1:
            raise errors.ConfigError(f"a storage goes with one rank in this process, not with {position.world_size}")
        self._kept = None if storage is None else KeptRun(storage, keeper.config)
        self._watch = watch
        self._caller = Caller(position.rank, _GENERATION)
        self._share: Share | None = None
        keeper.join(self._caller, position.world_size)

    @classmethod
    def start(cls, config: RunConfig, run: str | None, storage: str | None, resume: Resume) -> Embedded:
        """Return the exchange of a run of one rank; of one with a name, at the end of the last epoch that was kept.

        Raises:
            ConfigError: a storage or `resume` without a name.
            RunNotFoundError, RunExistsError: the run is not as `resume` requires.
            RunMismatchError: it has another config.
            StorageError: the storage cannot be written, or what it holds cannot be read.
        """
        check_resume(resume)
        keeper, position = LocalRun(config), Position(rank=0, world_size=1)
        if run is None and storage is None and resume == "auto":
            return cls(keeper, position)
        kept = RunStorage.named(run, storage)
        finished = kept.snapshots.newest()
        check_begun(resume, bool(finished), kept.run, kept.storage)
        kept.begin(config, by_user(config, "embedded", 1))
        if finished:
            keeper.restore(kept.snapshots.read(finished))
            kept.progress.drop_from(finished)
        return cls(keeper, position, kept)

    def next_epoch(self) -> int:
        """See `Exchange.next_epoch`."""
        return self._keeper.finished_epochs

    def open_epoch(self, epoch: int, *, streamed: bool = False) -> Share:
        """See `Exchange.open_epoch`."""
        share = self._keeper.open_epoch(self._caller, epoch, streamed=streamed)
        if isinstance(share, list):
            raise errors.EpochOrderError(f"ranks {share} have not closed epoch {epoch - 1}")
        self._share = share
        return share

    def _run_step(self, step: int) -> int:
        assert self._share is not None, "the Selector opens an epoch before it steps"
        return self._share.first_step + step

    def step(self, step: int, ids_B: I64, seen: Columns, num: int, repeats: Repeats | None = None) -> Draw:
        """See `Exchange.step`."""
        draw = self._keeper.step(self._caller, ids_B, seen, num, self._run_step(step), repeats)
        if self._kept is not None:
            picked_b = ids_B[among_distinct(draw.positions, repeats)]
            self._kept.add(self._caller, self._run_step(step), ids_B, seen, picked_b)
        return draw

    def draw(self, step: int, ids_B: I64, num: int, repeats: Repeats | None = None) -> Draw:
        """See `Exchange.draw`."""
        return self._keeper.draw(self._caller, ids_B, num, self._run_step(step), repeats)

    def record(self, step: int, ids_B: I64, seen: Columns | None, positions_b: I64) -> None:
        """See `Exchange.record`."""
        self._keeper.record(self._caller, ids_B, seen, ids_B[positions_b], self._run_step(step))
        if self._kept is not None:
            self._kept.add(self._caller, self._run_step(step), ids_B, seen, ids_B[positions_b])

    def close_epoch(self, epoch: int, num_steps: int, ledger: Ledger) -> None:
        """See `Exchange.close_epoch`."""
        finished = self._keeper.end_epoch(self._caller, epoch, num_steps, ledger)
        self._share = None
        if finished and self._kept is not None:
            self._kept.finish_epoch(self._keeper.state(), [ledger.copy()])

    def table(self) -> pa.Table:
        """See `Exchange.table`."""
        return records_to_arrow(self._keeper.engine.copy_records())

    def top(self, column: str, num: int, *, lowest: bool) -> pa.Table:
        """See `Exchange.top`."""
        parts = agree([queries.top(self._keeper.engine, column, num, lowest)])
        return queries.ranked(parts, column, lowest=lowest)

    def distribution(self, column: str, bins: int) -> queries.Distribution:
        """See `Exchange.distribution`."""
        return agree([queries.distribution(self._keeper.engine, column, bins)])[0]

    def save(self) -> SavedState:
        """See `Exchange.save`; works inside an epoch too."""
        state = self._keeper.state()
        table = table_files.encode_table(records_to_arrow(state.records))
        return SavedState(state.finished_epochs, state.epoch_starts, table, self._share, state.past)

    def load(self, state: SavedState) -> None:
        """See `Exchange.load`."""
        table = table_files.decode_table(state.table, "the table in the state")
        records = arrow_to_records(table, table.num_rows if self.config.grows else self.config.num_samples)
        behind = RunState(records, state.finished_epochs, state.epoch_starts, state.past)
        self._keeper.restore(behind, open_share=state.share)
        self._share = state.share
        if self._kept is not None:
            self._kept.go_to(self._keeper.state(), inside=state.share is not None)

    def reset(self) -> None:
        """See `Exchange.reset`."""
        self._keeper.reset()
        self._share = None
        if self._kept is not None:
            self._kept.go_to(self._keeper.state())

    def spent(self, epoch: int) -> Ledger | None:
        """See `Exchange.spent`."""
        return None if self._kept is None else self._kept.progress.spent(epoch)

    def log(self, epoch: int, measured: Mapping[str, float]) -> None:
        """See `Exchange.log`."""
        if self._kept is not None:
            self._kept.log(epoch, measured)
            self._show()

    def publish(self, epoch: int, done: float, ledger: Ledger) -> None:
        """See `Exchange.publish`."""
        if self._kept is not None:
            self._kept.publish(epoch, done, ledger.copy(), self.position.world_size)
            self._show()

    def _show(self) -> None:
        if self._watch is not None and self._kept is not None:
            self._watch(self._kept.progress.to_dict())

    def close(self) -> None:
        """See `Exchange.close`; the table goes with the process, its last snapshot stays."""
        if self._kept is not None:
            self._kept.close()
