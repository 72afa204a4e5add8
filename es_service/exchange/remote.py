"""What every exchange with a score server shares: joining, opening and closing epochs, saving and loading.

With an epoch a rank gets its share and a lease: copies of the columns it needs in order to draw on its own.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray import exceptions

from es_service import errors
from es_service.actors import launch, wire
from es_service.actors.calls import DEADLINE_S, Patience, call, call_patiently
from es_service.exchange.base import OnUnavailable, Position, SavedState
from es_service.exchange.delivery import Delivery, Line, Posted
from es_service.exchange.lease import Lease
from es_service.selection.engine import Draw, choose, leased_columns
from es_service.selection.methods.base import Columns
from es_service.selection.queries import Distribution
from es_service.selection.repeats import Repeats, num_candidates
from es_service.selection.run import Caller, RunConfig, Share
from es_service.selection.shards import pieces
from es_service.storage import runs

__all__ = ["NO_IDS", "Remote"]

NO_IDS = np.empty(0, dtype=np.int64)
_MAX_PIECES = 32  # of one step at one shard; what is larger than that many quick messages goes in larger ones
_POLL_S = (0.005, 0.1)  # first and longest pause while other ranks close their epoch


class Remote:
    """A rank of a run whose table score servers hold. It pickles to the run's name, not to a connection.

    Args:
        run: name of a run whose server is up.
        config: must be the server's.
        position: this rank.
        attempt: 32 hexadecimal digits, the same on all ranks of one life of the group.
        deadline_s: seconds that any wait may take.
        on_unavailable: past it, "raise" or "wait" on.

    It joins the run when it first opens an epoch, loads or resets; until then it only looks, and disturbs nobody.

    Raises:
        RunNotFoundError: no such server.
    """

    def __init__(
        self,
        run: str,
        config: RunConfig,
        position: Position,
        attempt: str,
        *,
        deadline_s: float = DEADLINE_S,
        on_unavailable: OnUnavailable = "raise",
    ) -> None:
        self.run = run
        self.config = config
        self.position = position
        self._caller = Caller(position.rank, attempt)
        self.deadline_s = deadline_s
        self._on_unavailable: OnUnavailable = on_unavailable
        self._turns: dict[tuple[str, int], str] = {}
        self._share = Share(ids=NO_IDS, first_step=0)
        self._lease = Lease(config.selection, config.batch_size, self._share, {})
        self._joined = False
        self._num_rewinds = 0
        self._failure: errors.ServerError | None = None
        self._shards = launch.find_shards(run)
        self._seqs = [0] * len(self._shards)
        self._deliveries = [Delivery(self._line(shard)) for shard in range(len(self._shards))]
        self._piece = wire.max_ids(len(config.selection.signals))
        self._methods: dict[tuple[int, str], Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rejoin, (
            type(self),
            self.run,
            self.config,
            self.position,
            self._caller.attempt,
            self.deadline_s,
            self._on_unavailable,
        )

    # -- calls --------------------------------------------------------------------------------------------------------

    def _ask(self, shard: int, method: str, *args: Any, group: str | None = None, **named: Any) -> ray.ObjectRef[Any]:
        """Begin a call of a shard; the first is the score server."""
        bound = self._methods.get((shard, method))  # kept: to look one up anew costs Ray 30 µs
        if bound is None:
            bound = getattr(self._shards[shard], method)
            if group is not None:
                bound = bound.options(concurrency_group=group)
            self._methods[shard, method] = bound
        try:
            reference: ray.ObjectRef[Any] = bound.remote(*args, **named)
        except exceptions.PendingCallsLimitExceeded as error:
            raise errors.ServerUnavailableError(
                f"too many calls of this process wait for shard {shard} of run {self.run!r}: it does not keep up; use "
                "more shards, or larger batches"
            ) from error
        return reference

    def _wait(self, reference: ray.ObjectRef[Any], method: str, deadline_s: float | None = None) -> Any:
        return call(reference, self.deadline_s if deadline_s is None else deadline_s, self._doing(method))

    def _doing(self, method: str) -> str:
        return f"{method.replace('_', ' ')} (run {self.run!r}, rank {self.position.rank})"

    def _call(self, method: str, *args: Any, shard: int = 0, group: str | None = None) -> Any:
        """Call a shard and wait for its answer, over a restart of it too: what is called may be called again."""
        return call_patiently(
            lambda: self._ask(shard, method, *args, group=group),
            self.deadline_s,
            self._doing(method),
            for_ever=self._waits_on,
        )

    def _asked(self, shard: int, method: str, *args: Any) -> Callable[[], Any]:
        """Begin a call that may be made again; return how to wait for its answer, as `_call` does."""
        begun = [self._ask(shard, method, *args)]

        def again() -> ray.ObjectRef[Any]:
            return begun.pop() if begun else self._ask(shard, method, *args)

        return lambda: call_patiently(again, self.deadline_s, self._doing(method), for_ever=self._waits_on)

    @property
    def _waits_on(self) -> bool:
        return self._on_unavailable == "wait"

    def _line(self, shard: int) -> Line:
        """Return how this rank's reports get to a shard."""
        return Line(
            ask=functools.partial(self._ask, shard),
            wait=lambda reference, deadline_s, method: self._wait(reference, method, deadline_s),
            enter=lambda: self._call("enter", self.position.rank, self._caller.attempt, shard=shard),
            patience=self._patience,
            name=f"shard {shard} of run {self.run!r}",
        )

    def _patience(self) -> Patience:
        return Patience(self.deadline_s, for_ever=self._waits_on)

    def _once(self, method: str, epoch: int, *args: Any) -> Any:
        """Let the score server change the roster: once, however often it has to be asked until it answers."""
        turn = self._turns.setdefault((method, epoch), uuid.uuid4().hex)
        answer = self._call(method, self.position.rank, self._caller.attempt, epoch, *args, turn)
        if not isinstance(answer, list):  # else it is not done yet
            del self._turns[method, epoch]
        return answer

    def _join(self) -> None:
        """Enter the run, once; from then on an older attempt's ranks are refused."""
        if not self._joined:
            rank, attempt = self.position.rank, self._caller.attempt
            described = runs.config_to_dict(self.config)
            self._num_rewinds = self._call("join", rank, attempt, self.position.world_size, described)
            self._enter()
            self._joined = True

    def _enter(self) -> None:
        """Hear from every shard which of this rank's reports was its last."""
        caller = (self.position.rank, self._caller.attempt)
        self._seqs = [self._call("enter", *caller, shard=shard) for shard in range(len(self._shards))]
        self._deliveries = [Delivery(self._line(shard)) for shard in range(len(self._shards))]

    # -- reports ------------------------------------------------------------------------------------------------------

    def _reports(
        self, step: int, ids_B: NDArray[np.int64], seen: Columns | None, selected_b: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64] | slice, bytes]]:
        """Pack what this rank has seen and trained on: (shard, positions in ids_B, message), a piece of it each."""
        num_shards, run_step = len(self._shards), self._share.first_step + step
        observed = self._pieces(ids_B) if seen is not None else [[]] * num_shards
        counted = self._pieces(selected_b)
        for shard in range(num_shards):
            for where, chosen in itertools.zip_longest(observed[shard], counted[shard]):
                selected = NO_IDS if chosen is None else selected_b[chosen]
                if where is None or seen is None:
                    yield shard, slice(0), self._packed(shard, run_step, NO_IDS, None, selected)
                    continue
                part = {name: values_B[where] for name, values_B in seen.items()}
                yield shard, where, self._packed(shard, run_step, ids_B[where], part, selected)

    def _pieces(self, ids_B: NDArray[np.int64]) -> list[list[NDArray[np.int64] | slice]]:
        """Cut ids as `shards.pieces` does, small enough for a quick message each, but into no more than so many."""
        return pieces(ids_B, len(self._shards), max(self._piece, -(-ids_B.size // _MAX_PIECES)))

    def _packed(
        self, shard: int, run_step: int, ids: NDArray[np.int64], seen: Columns | None, selected: NDArray[np.int64]
    ) -> bytes:
        self._seqs[shard] += 1
        return wire.encode_report(wire.Report(self._caller, self._seqs[shard], run_step, ids, seen, selected))

    def _send(
        self, method: str, reports: Iterable[tuple[int, NDArray[np.int64] | slice, bytes]]
    ) -> list[tuple[NDArray[np.int64] | slice, Any]]:
        """Send reports all at once; return (positions, answer) for each.

        An answer that never came leaves open whether it was applied, so this rank may not go on; nor where one shard
        took its piece and another did not. A refusal of the one piece there is changed nothing: its number is free.
        """
        if self._failure is not None:
            raise self._failure
        under_way: list[tuple[int, NDArray[np.int64] | slice, Posted]] = []
        try:
            for shard, where, message in reports:
                seq = self._seqs[shard]
                under_way.append((shard, where, self._deliveries[shard].post(seq, seq, method, message)))
            return [(where, self._deliveries[shard].answer(posted)) for shard, where, posted in under_way]
        except errors.ServerError as error:
            if not self._goes_on or not isinstance(error, errors.ServerUnavailableError):
                self._failure = error
            raise
        except errors.EsServiceError as error:
            if len(under_way) == 1:
                self._seqs[under_way[0][0]] -= 1
            else:
                self._failure = errors.ServerError(f"only some shards took a report of this rank: {error}")
            raise
        except BaseException:  # Ctrl-C, say
            self._failure = errors.ServerError(
                f"a call of rank {self.position.rank} was interrupted, so that it is open whether it was applied: "
                "connect again and continue from the last checkpoint"
            )
            raise

    @property
    def _goes_on(self) -> bool:
        """Whether the caller trains on without the server: what is kept for it is sent when it is back."""
        return self._on_unavailable == "continue"

    # -- the contract -------------------------------------------------------------------------------------------------

    def next_epoch(self) -> int:
        """See `Exchange.next_epoch`."""
        return int(self._call("stats", group=launch.READ_GROUP)["finished_epochs"])

    def open_epoch(self, epoch: int, *, streamed: bool = False) -> Share:
        """See `Exchange.open_epoch`; waits for ranks that are still in the epoch before."""
        self._join()
        give_up = time.monotonic() + self.deadline_s
        pause_s = _POLL_S[0]
        while isinstance(answer := self._once("open_epoch", epoch, streamed), list):
            if time.monotonic() > give_up:
                raise errors.ServerUnavailableError(
                    f"rank {self.position.rank} waited {self.deadline_s:g} s to open epoch {epoch}: rank(s) {answer} "
                    f"have not finished epoch {epoch - 1}; did they leave their loop early, or die?"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S[1])
        self._share = answer
        self._lease = self._leased(answer)
        return self._share

    def _leases(self) -> bool:
        """Return whether this rank draws by columns that come with the epoch."""
        return True

    def _leased(self, share: Share) -> Lease:
        """Return the lease of a share, its columns gathered from all shards."""
        columns: dict[str, NDArray[Any]] = {}
        if self._leases() and leased_columns(self.config.selection) and share.ids.size:
            caller, num = (self.position.rank, self._caller.attempt), share.ids.size
            asked = [
                (where, self._asked(shard, "lease", *caller, share.ids[where]))
                for shard, cut in enumerate(pieces(share.ids, len(self._shards), num))
                for where in cut
            ]
            for where, wait in asked:
                for name, values in wait().items():
                    columns.setdefault(name, np.empty(num, dtype=values.dtype))[where] = values
        return Lease(self.config.selection, self.config.batch_size, share, columns)

    def expect(self, step: int, ids_B: NDArray[np.int64]) -> None:
        """See `Exchange.expect`; there is nothing to prepare."""

    def step(
        self, step: int, ids_B: NDArray[np.int64], seen: Columns, num: int, repeats: Repeats | None = None
    ) -> Draw:
        """See `Exchange.step`."""
        raise NotImplementedError  # abstract: every exchange says its own

    def record(self, step: int, ids_B: NDArray[np.int64], seen: Columns | None, positions_b: NDArray[np.int64]) -> None:
        """See `Exchange.record`."""
        raise NotImplementedError  # abstract

    def refresh(self, step: int, ids_B: NDArray[np.int64], seen: Columns) -> None:
        """See `Exchange.refresh`."""
        raise NotImplementedError  # abstract

    def draw(self, step: int, ids_B: NDArray[np.int64], num: int, repeats: Repeats | None = None) -> Draw:
        """See `Exchange.draw`; on this rank, from its lease."""
        if self.config.selection.method.needs_losses and num < num_candidates(ids_B, repeats):
            return self._choose(step, ids_B, self._lease.known(step, ids_B), num, repeats)
        return self._choose(step, ids_B, np.ones(ids_B.size, dtype=np.float32), num, repeats)

    def _choose(
        self,
        step: int,
        ids_B: NDArray[np.int64],
        weights_B: NDArray[np.float32],
        num: int,
        repeats: Repeats | None = None,
    ) -> Draw:
        run_step = self._share.first_step + step
        return choose(self.config.selection, ids_B, weights_B, num, run_step, self._lease.recent(step), repeats)

    def close_epoch(self, epoch: int, num_steps: int) -> None:
        """See `Exchange.close_epoch`; the last rank returns once every shard has a copy of its rows to write."""
        for shard in range(len(self._shards)):
            self._settle(shard)
        self._once("close_epoch", epoch, num_steps)

    def _settle(self, shard: int) -> None:
        """See to it that a shard has all of this rank's reports on storage: it may have lost some that it took."""
        caller = (self.position.rank, self._caller.attempt)
        patience = Remote._patience(self)
        while True:
            try:
                answer = self._call("settle", *caller, self._seqs[shard], shard=shard)
                self._deliveries[shard].received(wire.decode_receipt(answer)[0])
                return
            except errors.ServerRestartedError as error:
                patience.pause(error)
                self._deliveries[shard].send_again(error)

    def table(self) -> pa.Table:
        """See `Exchange.table`."""
        return self._call("snapshot", group=launch.READ_GROUP)

    def top(self, column: str, num: int, *, lowest: bool) -> pa.Table:
        """See `Exchange.top`; every shard sends its share of the rows alone."""
        return self._call("top", column, num, lowest, group=launch.READ_GROUP)

    def distribution(self, column: str, bins: int) -> Distribution:
        """See `Exchange.distribution`."""
        found: Distribution = self._call("distribution", column, bins, group=launch.READ_GROUP)
        return found

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
        digest = hashlib.sha256(state.table).hexdigest()
        if not self._rewind(state.finished_epochs, state.epoch_starts, digest, None):
            self._rewind(state.finished_epochs, state.epoch_starts, digest, state.table)

    def reset(self) -> None:
        """See `Exchange.reset`; the first rank of an attempt does it."""
        self._join()
        self._rewind(0, (0,), "", None)

    def _rewind(self, finished_epochs: int, starts: tuple[int, ...], sha256: str, table: bytes | None) -> bool:
        caller = (self.position.rank, self._caller.attempt, self._num_rewinds + 1)
        if not self._call("rewind", *caller, finished_epochs, starts, sha256, table):
            return False
        self._num_rewinds += 1
        self._enter()
        return True

    def publish(self, progress: dict[str, Any]) -> None:
        """See `Exchange.publish`; nobody waits for it."""
        with contextlib.suppress(errors.ServerUnavailableError):
            self._ask(0, "publish", progress, group=launch.READ_GROUP)

    def close(self) -> None:
        """See `Exchange.close`."""


def _rejoin(
    kind: type[Remote],
    run: str,
    config: RunConfig,
    position: Position,
    attempt: str,
    deadline_s: float,
    on_unavailable: OnUnavailable,
) -> Remote:
    return kind(run, config, position, attempt, deadline_s=deadline_s, on_unavailable=on_unavailable)
