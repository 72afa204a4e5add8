"""sync: every step waits for the score server, which observes and returns the samples' weights. Simple and exact.

The rank draws by those weights itself, and reports what it drew with its next report, or when the epoch closes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import wire
from es_service.exchange.base import I64
from es_service.exchange.packing import NO_IDS
from es_service.exchange.reliable_channel import Posted
from es_service.exchange.remote import Remote
from es_service.ledger import Ledger
from es_service.selection.engine import Draw
from es_service.selection.methods.base import Columns
from es_service.selection.repeats import Repeats, among_distinct
from es_service.selection.run import Share

__all__ = ["Sync"]


class Sync(Remote):
    """About one empty actor call on the critical path of a step; with shards, as many at the same time."""

    _untold = NO_IDS  # drawn, and not reported yet

    def open_epoch(self, epoch: int, *, streamed: bool = False) -> Share:
        """See `Exchange.open_epoch`."""
        selection = self.config.selection
        if streamed and selection.draws_by_known:
            raise errors.ConfigError(
                f"score_every={selection.score_every} draws by what is known of ids, which 'sync' does not know of a "
                "stream: take exchange='prefetch', or score_every=1"
            )
        self._untold = NO_IDS
        return super().open_epoch(epoch, streamed=streamed)

    def step(self, step: int, ids_B: I64, seen: Columns, num: int, repeats: Repeats | None = None) -> Draw:
        """See `Exchange.step`."""
        weights_B = self._observe(step, ids_B, seen, self._untold)
        draw = self._choose(step, ids_B, weights_B, num, repeats)
        self._untold = ids_B[among_distinct(draw.positions, repeats)]
        return draw

    def record(self, step: int, ids_B: I64, seen: Columns | None, positions_b: I64) -> None:
        """See `Exchange.record`."""
        self._tell(step)
        if seen is None:
            self._untold = ids_B[positions_b]
        else:
            self._observe(step, ids_B, seen, ids_B[positions_b])

    def close_epoch(self, epoch: int, num_steps: int, ledger: Ledger) -> None:
        """See `Exchange.close_epoch`."""
        self._tell(0)
        super().close_epoch(epoch, num_steps, ledger)

    def _observe(self, step: int, ids_B: I64, seen: Columns, selected_b: I64) -> NDArray[np.float32]:
        """Report and return the new weights float32[B]."""
        weights_B = np.empty(ids_B.size, dtype=np.float32)
        for where, answer in self._send(
            "observe", self._packer.reports(self._share.first_step + step, ids_B, seen, selected_b)
        ):
            weights_B[where] = wire.decode_weights(answer)
        self._untold = NO_IDS
        self._lease.remember(step, ids_B, weights_B, seen["loss"])
        return weights_B

    def _tell(self, step: int) -> None:
        """Report what was drawn and has not been reported."""
        if self._untold.size:
            self._send("report", self._packer.reports(self._share.first_step + step, NO_IDS, None, self._untold))
            self._untold = NO_IDS

    def _send(self, method: str, reports: Iterable[tuple[int, I64 | slice, bytes]]) -> list[tuple[I64 | slice, Any]]:
        """Send reports all at once; return (positions, answer) for each.

        A lost answer leaves open whether it was applied, so this rank may not continue; nor where one shard
        took its piece and another did not. A refusal of the one piece there is changed nothing: its number is free.
        """
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        under_way: list[tuple[int, I64 | slice, Posted]] = []
        try:
            for shard, where, message in reports:
                seq = self._packer.seqs[shard]
                under_way.append((shard, where, self._channels[shard].post(seq, seq, method, message)))
            patience = self.calls.patience
            return [(where, self._channels[shard].answer(posted, patience)) for shard, where, posted in under_way]
        except errors.ServerError as error:
            may_come_later = self._on_unavailable == "continue"  # what is kept for the server is sent when it is back
            if not may_come_later or not isinstance(error, errors.ServerUnavailableError):
                self._failure = error
            raise
        except errors.EsServiceError as error:
            if len(under_way) == 1:
                self._packer.seqs[under_way[0][0]] -= 1
            else:
                self._failure = errors.ServerError(f"only some shards took a report of this rank: {error}")
            raise
        except BaseException:  # e.g. Ctrl-C
            self._failure = errors.ServerError(
                f"a call of rank {self.position.rank} was interrupted, so that it is open whether it was applied: "
                "connect again and continue from the last checkpoint"
            )
            raise
