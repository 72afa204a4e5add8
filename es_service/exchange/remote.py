"""What every exchange with a score server shares: joining, opening and closing epochs, saving and loading.

With an epoch a rank gets its share and a lease: copies of the columns it needs in order to draw on its own.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import launch, wire
from es_service.actors.calls import DEADLINE_S
from es_service.exchange.base import I64, Exchange, OnUnavailable, Position, SavedState
from es_service.exchange.connection import Connection
from es_service.exchange.epochs import Epochs
from es_service.exchange.lease import Lease
from es_service.exchange.packing import NO_IDS, Packer
from es_service.exchange.reliable_channel import Channel
from es_service.exchange.server_calls import ServerCalls
from es_service.ledger import Ledger
from es_service.selection.engine import Draw, choose, leased_columns
from es_service.selection.past import BEGINNING, Past
from es_service.selection.queries import Distribution
from es_service.selection.repeats import Repeats, num_candidates
from es_service.selection.run import Caller, RunConfig, Share
from es_service.selection.shards import pieces
from es_service.storage import runs

__all__ = ["Remote"]

T = TypeVar("T")


class Remote(Exchange):
    """A rank of a run whose table score servers hold. It pickles to the run's name, not to a connection.

    Args:
        run: name of a run whose server is up.
        config: must be the server's.
        position: this rank.
        generation: 32 hexadecimal digits, the same on all ranks of one life of the group.
        deadline_s: seconds that any wait may take.
        on_unavailable: past it, "raise" or "wait" on.
        connection: how its shards are called; looked up where none is given.

    It joins the run when it first opens an epoch, loads or resets; until then it only reads.

    Raises:
        RunNotFoundError: no such server.
    """

    def __init__(
        self,
        run: str,
        config: RunConfig,
        position: Position,
        generation: str,
        *,
        deadline_s: float = DEADLINE_S,
        on_unavailable: OnUnavailable = "raise",
        connection: Connection | None = None,
    ) -> None:
        self.run, self.config, self.position = run, config, position
        self._caller = Caller(position.rank, generation)
        self._patient_s, self._on_unavailable = deadline_s, on_unavailable
        self._share = Share(ids=NO_IDS, first_step=0)
        self._lease = Lease(config.selection, config.batch_size, self._share, {})
        self._joined = False
        self._num_rewinds = 0
        self._failure: errors.ServerError | None = None
        self.connection = Connection(run) if connection is None else connection
        self.calls = ServerCalls(run, self._caller, self.connection, deadline_s, on_unavailable)
        self._num_shards = len(self.connection.shards)
        self._epochs = Epochs(self.calls, self._num_shards)
        self._channels = self._new_channels()
        self._packer = Packer(self._caller, self._num_shards, len(config.selection.signals))

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.run, self.config, self.position, self._caller.generation)
        return functools.partial(type(self), deadline_s=self._patient_s, on_unavailable=self._on_unavailable), arguments

    def _join(self, opens: int | None = None) -> None:
        """Enter the run, once, to open this epoch or to load; from then on an older generation's ranks are refused."""
        if not self._joined:
            described = runs.config_to_dict(self.config)
            self._num_rewinds = self.calls.call("join", self.position.world_size, described, opens)
            self._enter()
            self._joined = True

    def _enter(self) -> None:
        """Ask every shard for the seq of the last report that it has of this rank."""
        self._packer.seqs = [self.calls.call("enter", shard=shard) for shard in range(self._num_shards)]
        self._channels = self._new_channels()

    def _new_channels(self) -> list[Channel]:
        """Return one for each shard, with nothing under way."""
        return [Channel(self.calls, shard, self._epochs) for shard in range(self._num_shards)]

    # -- the contract -------------------------------------------------------------------------------------------------

    def next_epoch(self) -> int:
        """See `Exchange.next_epoch`."""
        return int(self.calls.read("next_epoch", self._caller.generation))

    def open_epoch(self, epoch: int, *, streamed: bool = False) -> Share:
        """See `Exchange.open_epoch`; waits for ranks that are still in the epoch before."""
        self._join(epoch)
        share = self._share = self._over_restarts(lambda: self._epochs.open(epoch, streamed=streamed))
        self._lease = self._over_restarts(lambda: self._leased(share))
        return share

    def _over_restarts(self, act: Callable[[], T]) -> T:
        """Do something idempotent; where the server lost reports of this rank, resend them and retry."""
        patience = self.calls.patience()
        while True:
            try:
                return act()
            except (errors.EpochOrderError, errors.ServerRestartedError) as error:
                if isinstance(error, errors.EpochOrderError) and not self._epochs.is_behind():
                    raise
                patience.pause(error)
                self._send_again(error)

    def _send_again(self, cause: errors.EsServiceError) -> None:
        """Bring back to the shards what they lost of this rank's reports and epochs."""
        for channel in self._channels:
            channel.send_again(cause, self.calls.patience)

    def _leases(self) -> bool:
        """Return whether this rank draws by columns that come with the epoch."""
        return True

    def _leased(self, share: Share) -> Lease:
        """Return the lease of a share, its columns gathered from all shards."""
        columns: dict[str, NDArray[Any]] = {}
        if self._leases() and leased_columns(self.config.selection) and share.ids.size:
            caller, num = (self._caller.rank, self._caller.generation), share.ids.size
            asked = [
                (where, self.calls.begin(shard, "lease", *caller, share.ids[where], share.first_step))
                for shard, cut in enumerate(pieces(share.ids, self._num_shards, num))
                for where in cut
            ]
            for where, wait in asked:
                for name, values in wait().items():
                    columns.setdefault(name, np.empty(num, dtype=values.dtype))[where] = values
        return Lease(self.config.selection, self.config.batch_size, share, columns)

    def draw(self, step: int, ids_B: I64, num: int, repeats: Repeats | None = None) -> Draw:
        """See `Exchange.draw`; on this rank, from its lease."""
        if self.config.selection.method.needs_losses and num < num_candidates(ids_B, repeats):
            return self._choose(step, ids_B, self._lease.known(step, ids_B), num, repeats)
        return self._choose(step, ids_B, np.ones(ids_B.size, dtype=np.float32), num, repeats)

    def _choose(
        self,
        step: int,
        ids_B: I64,
        weights_B: NDArray[np.float32],
        num: int,
        repeats: Repeats | None = None,
    ) -> Draw:
        run_step = self._share.first_step + step
        return choose(self.config.selection, ids_B, weights_B, num, run_step, self._lease.recent(step), repeats)

    def close_epoch(self, epoch: int, num_steps: int, ledger: Ledger) -> None:
        """See `Exchange.close_epoch`; returns once this rank's reports of it are on storage.

        The last rank returns once every shard has a copy of its rows to write, too.

        Raises:
            StorageError: it could not be written within the deadline, or a snapshot could not. The epoch is over all
                the same; what is not on storage is kept, here and at the server.
            ServerRestartedError: the server went down with reports that are not kept here any more.
        """
        self._epochs.ends(epoch, num_steps, self._packer.seqs, ledger)
        failure = self._over_restarts(lambda: self._closed(epoch))
        self._epochs.stored()
        if failure is not None and self._on_unavailable == "raise":
            raise failure

    def _closed(self, epoch: int) -> errors.StorageError | None:
        """Return once the epoch is closed and that is on storage; why a snapshot before it is not, where one is not."""
        failure, patience = None, self.calls.patience()
        while True:
            try:
                try:
                    self._epochs.close()
                except errors.StorageError as error:
                    if epoch == self.config.num_epochs - 1 or self._epochs.is_behind():
                        raise
                    failure = error
                for shard in range(self._num_shards):
                    self._settle(shard)
                return failure
            except errors.StorageError as error:
                patience.pause(self._not_stored(epoch, error))

    def _settle(self, shard: int) -> None:
        """Drop what this rank keeps for a shard: all of it is on storage."""
        closed = () if shard else (self._epochs.num_closed,)  # the score server alone knows of epochs
        answer = self.calls.call("settle", self._packer.seqs[shard], *closed, shard=shard)
        self._channels[shard].received(wire.decode_acknowledgement(answer)[0])

    def _not_stored(self, epoch: int, error: errors.StorageError) -> errors.StorageError:
        return errors.StorageError(
            f"epoch {epoch} of run {self.run!r} is over, but not on storage: {error}. The score server and this rank "
            f"keep what was reported (waited {self.calls.deadline_s:g} s). Make the storage writable; "
            "on_unavailable='wait' waits for it, 'continue' trains on meanwhile"
        )

    def table(self) -> pa.Table:
        """See `Exchange.table`."""
        return self.calls.read("snapshot")

    def top(self, column: str, num: int, *, lowest: bool) -> pa.Table:
        """See `Exchange.top`; every shard sends only its share of the rows."""
        return self.calls.read("top", column, num, lowest)

    def distribution(self, column: str, bins: int) -> Distribution:
        """See `Exchange.distribution`."""
        found: Distribution = self.calls.read("distribution", column, bins)
        return found

    def save(self) -> SavedState:
        """See `Exchange.save`; between epochs, once all ranks have closed the last one; some may be ahead by then."""
        if self._epochs.is_open:
            raise errors.EpochOrderError(
                f"epoch {self._epochs.num_closed} is open: take the state between two epochs, "
                "when this rank has closed the last one"
            )
        closed = self._epochs.num_closed
        table, finished_epochs, starts, past = self._epochs.wait_for_ranks(
            lambda: self.calls.read("state", closed),
            f"for the state of the end of epoch {(closed or 1) - 1}",
            "have not closed it",
        )
        return SavedState(finished_epochs, starts, table, past=past)

    def load(self, state: SavedState) -> None:
        """See `Exchange.load`; the first rank of a generation does it, the table travels only where it has to."""
        if state.share is not None:
            raise errors.ConfigError(
                "this state was saved inside an epoch, by a selector of its own process; a score server continues "
                "from the end of an epoch"
            )
        self._join()
        digest = hashlib.sha256(state.table).hexdigest()
        place = state.finished_epochs, state.epoch_starts, digest
        if not self._rewind(*place, None, state.past):
            self._rewind(*place, state.table, state.past)

    def reset(self) -> None:
        """See `Exchange.reset`; the first rank of a generation does it."""
        self._join()
        self._rewind(0, (0,), "", None, BEGINNING)

    def _rewind(
        self, finished_epochs: int, starts: tuple[int, ...], sha256: str, table: bytes | None, past: Past
    ) -> bool:
        if not self.calls.call("rewind", self._num_rewinds + 1, finished_epochs, starts, sha256, table, past):
            return False
        self._num_rewinds += 1
        self._epochs.stand_at(finished_epochs)
        self._enter()
        return True

    def spent(self, epoch: int) -> Ledger | None:
        """See `Exchange.spent`."""
        found = self.calls.read("spent", epoch)
        return None if found is None else Ledger.from_dict(found)

    def log(self, epoch: int, measured: Mapping[str, float]) -> None:
        """See `Exchange.log`; returns once the score server has written it, or has logged why it could not."""
        self._join()
        self.calls.call("log", epoch, dict(measured))

    def publish(self, epoch: int, done: float, ledger: Ledger) -> None:
        """See `Exchange.publish`; does not wait."""
        shown = (self._caller.rank, self._caller.generation, epoch, done, ledger.to_dict())
        with contextlib.suppress(errors.ServerUnavailableError):
            self.connection.ask(0, "publish", *shown, group=launch.READ_GROUP)
