"""What every exchange with a score server shares: joining, opening and closing epochs, saving and loading.

With an epoch a rank gets its share and a lease: copies of the columns it needs in order to draw on its own.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import launch, wire
from es_service.actors.calls import DEADLINE_S, call
from es_service.exchange.base import Position, SavedState
from es_service.selection.engine import NOTHING, Draw, choose, known_weights, observed_weights
from es_service.selection.methods.base import Columns
from es_service.selection.scorekeeper import Caller, RunConfig, Share
from es_service.storage import runs

__all__ = ["Remote"]

_NO_IDS = np.empty(0, dtype=np.int64)
_POLL_S = (0.005, 0.1)  # first and longest pause while other ranks close their epoch


class Remote:
    """A rank of a run whose table a score server holds. It pickles to the run's name, not to a connection.

    Args:
        run: name of a run whose server is up.
        config: must be the server's.
        position: this rank.
        attempt: 32 hexadecimal digits, the same on all ranks of one life of the group.
        deadline_s: seconds that any wait may take.

    It joins the run when it first opens an epoch, loads or resets; until then it only looks, and disturbs nobody.

    Raises:
        RunNotFoundError: no such server.
    """

    def __init__(
        self, run: str, config: RunConfig, position: Position, attempt: str, *, deadline_s: float = DEADLINE_S
    ) -> None:
        self.run = run
        self.config = config
        self.position = position
        self._caller = Caller(position.rank, attempt)
        self._deadline_s = deadline_s
        self._share = Share(ids=_NO_IDS, first_step=0)
        self._lease: dict[str, NDArray[Any]] = {}
        self._joined = False
        self._seq = self._num_rewinds = 0
        self._failure: errors.ServerError | None = None
        self._actor = launch.find(run)
        self._methods: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rejoin, (
            type(self),
            self.run,
            self.config,
            self.position,
            self._caller.attempt,
            self._deadline_s,
        )

    def _join(self) -> None:
        """Enter the run, once; from then on an older attempt's ranks are refused."""
        if not self._joined:
            caller = (self.position.rank, self._caller.attempt, self.position.world_size)
            self._seq, self._num_rewinds = self._call("join", *caller, runs.config_to_dict(self.config))
            self._joined = True

    def _send(self, method: str, message: bytes) -> Any:
        """Call the server with the report just encoded.

        An answer that never came leaves open whether it was applied, so this rank may not go on; a refusal changed
        nothing, so its number is free again.
        """
        if self._failure is not None:
            raise self._failure
        try:
            return self._call(method, message)
        except errors.ServerError as error:
            self._failure = error
            raise
        except errors.EsServiceError:
            self._seq -= 1
            raise

    def _call(self, method: str, *args: Any, group: str | None = None) -> Any:
        bound = self._methods.get(method)  # kept: to look one up anew costs Ray 30 µs
        if bound is None:
            bound = getattr(self._actor, method)
            if group is not None:
                bound = bound.options(concurrency_group=group)
            self._methods[method] = bound
        doing = f"{method.replace('_', ' ')} (run {self.run!r}, rank {self.position.rank})"
        return call(bound.remote(*args), self._deadline_s, doing)

    def _encode(
        self,
        step: int,
        ids_B: NDArray[np.int64],
        seen: Columns | None,
        positions: NDArray[np.int64] | None,
        num: int,
    ) -> bytes:
        """Pack the next report of this rank."""
        self._seq += 1
        run_step = self._share.first_step + step
        return wire.encode_report(wire.Report(self._caller, self._seq, run_step, ids_B, seen, positions, num))

    def open_epoch(self, epoch: int) -> Share:
        """See `Exchange.open_epoch`; waits for ranks that are still in the epoch before."""
        self._join()
        give_up = time.monotonic() + self._deadline_s
        pause_s = _POLL_S[0]
        while isinstance(answer := self._call("open_epoch", self.position.rank, self._caller.attempt, epoch), list):
            if time.monotonic() > give_up:
                raise errors.ServerUnavailableError(
                    f"rank {self.position.rank} waited {self._deadline_s:g} s to open epoch {epoch}: rank(s) {answer} "
                    f"have not finished epoch {epoch - 1}; did they leave their loop early, or die?"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S[1])
        self._share, lease = answer
        self._lease = {name: values.copy() for name, values in lease.items()}  # what Ray hands out is read-only
        return self._share

    def draw(self, step: int, ids_B: NDArray[np.int64], num: int) -> Draw:
        """See `Exchange.draw`; on this rank, from its lease."""
        selection = self.config.selection
        weights_B = np.ones(ids_B.size, dtype=np.float32)
        if selection.method.needs_losses and num < ids_B.size:
            rows = self._rows(step, ids_B)
            weights_B = known_weights({name: self._lease[name][rows] for name in ("w", "last_loss")})
        return choose(selection, ids_B, weights_B, num, self._share.first_step + step, self._recent(step))

    def _recent(self, step: int) -> NDArray[np.float32]:
        """Return the weights that this rank's samples before this step had, where the method looks at them."""
        batch_size = self.config.batch_size
        start, num = step * batch_size, self.config.selection.method.window - batch_size
        if num <= 0:
            return NOTHING
        window = slice(max(0, start - num), start)
        return observed_weights({name: self._lease[name][window] for name in ("w", "last_loss")})

    def _observe(self, step: int, ids_B: NDArray[np.int64], seen: Columns) -> NDArray[np.float32]:
        """Move the leased columns as the server will, and return the weights float32[B]."""
        selection, lease = self.config.selection, self._lease
        rows = self._rows(step, ids_B)
        old = {name: lease[name][rows] for name in selection.method.reads}
        new = {**selection.method.update(old, seen[selection.signal], seen), "last_loss": seen["loss"]}
        for name in lease.keys() & new.keys():
            lease[name][rows] = new[name]
        if "visits" in lease:
            lease["visits"][rows] += np.uint32(1)
        return new["w"]

    def _rows(self, step: int, ids_B: NDArray[np.int64]) -> slice | NDArray[np.int64]:
        """Return where the lease holds these ids, see `Share.rows`; IdError where it does not."""
        rows = self._share.rows(step, ids_B, self.config.batch_size)
        if not isinstance(rows, slice) and rows.min() < 0:
            position = int(np.argmin(rows))
            raise errors.IdError(
                f"id {ids_B[position]} at position {position} is not in rank {self.position.rank}'s share: without a "
                "call to the server only ids from selector.epoch(e) can be drawn from; for a sampler of your own use "
                "exchange='sync' and score every step"
            )
        return rows

    def close_epoch(self, epoch: int) -> None:
        """See `Exchange.close_epoch`; the last rank returns once the snapshot is on storage."""
        self._call("close_epoch", self.position.rank, self._caller.attempt, epoch)

    def table(self) -> pa.Table:
        """See `Exchange.table`."""
        return self._call("snapshot", group=launch.READ_GROUP)

    def save(self) -> SavedState:
        """See `Exchange.save`; between epochs only, and while no other rank is ahead."""
        table, finished_epochs, starts = self._call("state")
        return SavedState(finished_epochs, starts, table)

    def load(self, state: SavedState) -> None:
        """See `Exchange.load`; the first rank of an attempt does it, the table travels only where it has to."""
        if state.share is not None:
            raise errors.ConfigError(
                "this state was saved inside an epoch, by a selector of its own process; a score server continues "
                "from the end of an epoch"
            )
        self._join()
        self._num_rewinds += 1
        digest = hashlib.sha256(state.table).hexdigest()
        if not self._rewind(state.finished_epochs, state.epoch_starts, digest, None):
            self._rewind(state.finished_epochs, state.epoch_starts, digest, state.table)

    def reset(self) -> None:
        """See `Exchange.reset`; the first rank of an attempt does it."""
        self._join()
        self._num_rewinds += 1
        self._rewind(0, (0,), "", None)

    def _rewind(self, finished_epochs: int, starts: tuple[int, ...], sha256: str, table: bytes | None) -> bool:
        caller = (self.position.rank, self._caller.attempt, self._num_rewinds)
        return bool(self._call("rewind", *caller, finished_epochs, starts, sha256, table))

    def publish(self, progress: dict[str, Any]) -> None:
        """See `Exchange.publish`; nobody waits for it."""
        self._actor.publish.options(concurrency_group=launch.READ_GROUP).remote(progress)

    def close(self) -> None:
        """See `Exchange.close`."""


def _rejoin(
    kind: type[Remote], run: str, config: RunConfig, position: Position, attempt: str, deadline_s: float
) -> Remote:
    return kind(run, config, position, attempt, deadline_s=deadline_s)
