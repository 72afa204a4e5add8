"""prefetch: the rows of a step are fetched while its forward pass runs, for ids that are not known any earlier.

    expect(ids)   ── a thread asks every shard for their rows ────►
         …forward pass…                                             rows are on their way
    step(losses)  ◄─ rows, moved on by what is still to be reported ─   update, draw, report in the background

Exact unless an id is on its way to two ranks at the same time: the second then draws by what the first has not
reported yet. Shards count these, and the rank warns of the first. Nothing is lost: both observations reach the table.
"""

from __future__ import annotations

import warnings
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import wire
from es_service.exchange.background import Background
from es_service.exchange.base import I64
from es_service.exchange.daemon_executor import Executor
from es_service.exchange.unacked_rows import UnackedRows
from es_service.selection.engine import Draw, known_weights, leased_columns
from es_service.selection.methods.base import Columns
from es_service.selection.repeats import Repeats, among_distinct, num_candidates
from es_service.selection.run import Share, places
from es_service.selection.shards import pieces

__all__ = ["Prefetch"]

_DTYPES = {"visits": np.dtype("<u4")}  # of leased columns; all others are float32
_FLOAT = np.dtype("<f4")


class Prefetch(Background):
    """Waits only where the forward pass is over before its rows are here."""

    _executor: Executor | None = None  # once there are rows to fetch

    def open_epoch(self, epoch: int, *, streamed: bool = False) -> Share:
        """See `Exchange.open_epoch`."""
        names = leased_columns(self.config.selection)
        self._dtypes = {name: _DTYPES.get(name, _FLOAT) for name in names}
        self._held: tuple[I64, dict[str, NDArray[Any]]] | None = None  # rows that the step under way has fetched
        self._fetching: tuple[I64, Future[list[tuple[int, I64 | slice, bytes]]]] | None = None
        self._confirmed = [0] * self._num_shards  # seq that a shard was last known to have
        self._unacked_rows = [UnackedRows() for _ in range(self._num_shards)]
        self.num_overlaps = 0
        return super().open_epoch(epoch, streamed=streamed)

    def _leases(self) -> bool:
        return self.config.selection.method.window > self.config.batch_size  # else rows come with the step

    def expect(self, step: int, ids_B: I64) -> None:
        """See `Exchange.expect`; asks for their rows."""
        self._held = None
        if self._executor is None:
            self._executor = Executor("es-service-prefetch")
        run_step = self._share.first_step + step
        self._fetching = (ids_B, self._executor.send(lambda: self._fetched(run_step, ids_B)))

    def _fetched(self, run_step: int, ids_B: I64) -> list[tuple[int, I64 | slice, bytes]]:
        """Return what every shard answers: (shard, positions in ids_B, packed rows)."""
        asked = [
            (shard, where, self.calls.begin(shard, "fetch", wire.encode_request(self._caller, run_step, ids_B[where])))
            for shard, cut in enumerate(self._packer.pieces(ids_B) if self._dtypes else [])
            for where in cut
        ]
        return [(shard, where, wait()) for shard, where, wait in asked]

    def step(self, step: int, ids_B: I64, seen: Columns, num: int, repeats: Repeats | None = None) -> Draw:
        """See `Exchange.step`."""
        new = self._observe(step, ids_B, seen)
        draw = self._choose(step, ids_B, new["w"], num, repeats)
        self._report(step, ids_B, seen, ids_B[among_distinct(draw.positions, repeats)], new)
        return draw

    def draw(self, step: int, ids_B: I64, num: int, repeats: Repeats | None = None) -> Draw:
        """See `Exchange.draw`."""
        if not self.config.selection.method.needs_losses or num >= num_candidates(ids_B, repeats):
            return self._choose(step, ids_B, np.ones(ids_B.size, dtype=np.float32), num, repeats)
        return self._choose(step, ids_B, known_weights(self._rows(step, ids_B)), num, repeats)

    def record(self, step: int, ids_B: I64, seen: Columns | None, positions_b: I64) -> None:
        """See `Exchange.record`; returns once the observation is in the send_queue."""
        if seen is None:
            self._put(step, ids_B, None, ids_B[positions_b])
            return
        new = self._observe(step, ids_B, seen)
        held = self._held
        self._report(step, ids_B, seen, ids_B[positions_b], new)
        if held is not None:  # a draw from this step may follow
            rows = places(held[0], ids_B)
            for name, values in held[1].items():
                values[rows] = new[name]
            self._held = held

    def _observe(self, step: int, ids_B: I64, seen: Columns) -> dict[str, NDArray[Any]]:
        """Return the columns of these rows as the server will have them after this observation."""
        selection = self.config.selection
        rows = self._rows(step, ids_B)
        new = {**rows, **selection.method.update(rows, seen[selection.signal], seen), "last_loss": seen["loss"]}
        if "visits" in rows:
            new["visits"] = rows["visits"] + np.uint32(1)
        self._lease.remember(step, ids_B, new["w"], seen["loss"])
        return new

    def _rows(self, step: int, ids_B: I64) -> dict[str, NDArray[Any]]:
        """Return the leased columns of these ids with all reports of this rank applied."""
        if self._held is not None and (found := places(self._held[0], ids_B)).min() >= 0:
            return {name: values[found] for name, values in self._held[1].items()}  # e.g. what was drawn of the step
        fetched, rows = self._held = self._over_restarts(lambda: self._received(step, ids_B))
        found = places(fetched, ids_B)  # all of them, but where some were not finite
        return {name: values[found] for name, values in rows.items()}

    def _received(self, step: int, ids_B: I64) -> tuple[I64, dict[str, NDArray[Any]]]:
        """Return ids, of which these are, and their rows, once they are here.

        Raises:
            ServerRestartedError: a shard restarted, and has lost what made its rows.
        """
        if self._fetching is None or places(self._fetching[0], ids_B).min() < 0:
            self.expect(step, ids_B)
        assert self._fetching is not None
        (fetched, answers), self._fetching = self._fetching, None  # on any outcome: a retry asks again
        rows = {name: np.empty(fetched.size, dtype=dtype) for name, dtype in self._dtypes.items()}
        for shard, where, answer in answers.result():
            seq, num_overlaps, columns = wire.decode_rows(answer, fetched[where].size, self._dtypes)
            if seq < self._confirmed[shard]:
                self._confirmed[shard] = 0
                raise errors.ServerRestartedError(f"shard {shard} lacks reports that it had: it restarted")
            self._confirmed[shard] = seq
            self._warn(num_overlaps)
            current = {name: values.copy() for name, values in columns.items()}
            self._unacked_rows[shard].put_on(seq, fetched[where], current)
            for name, values in current.items():
                rows[name][where] = values
        return fetched, rows

    def _report(self, step: int, ids_B: I64, seen: Columns, selected_b: I64, new: dict[str, NDArray[Any]]) -> None:
        """Report, and keep what the rows now are until the server is known to have it."""
        self._put(step, ids_B, seen, selected_b)
        self._held = None
        if not self._dtypes:
            return
        for shard, cut in enumerate(pieces(ids_B, self._num_shards, ids_B.size)):
            for where in cut:
                newer = {name: new[name][where] for name in self._dtypes}
                self._unacked_rows[shard].add(self._packer.seqs[shard], ids_B[where], newer)

    def close(self) -> None:
        """See `Exchange.close`; ends the fetching thread, too."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None
        super().close()

    def _warn(self, num_overlaps: int) -> None:
        if num_overlaps and not self.num_overlaps:
            warnings.warn(
                f"rank {self.position.rank}: {num_overlaps} ids of this step are under way on another rank too, so "
                "their draw misses what that one is about to report; give an id to one rank at a time, or use "
                "exchange='sync'. This warning comes once; the score server's stats count them",
                stacklevel=2,
            )
        self.num_overlaps += num_overlaps
