"""The reports of a rank's step: one per shard, packed, and numbered in the order they will be sent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from es_service.actors import wire
from es_service.exchange.base import I64
from es_service.selection.methods.base import Columns
from es_service.selection.run import Caller
from es_service.selection.shards import pieces

__all__ = ["NO_IDS", "Packer"]

NO_IDS = np.empty(0, dtype=np.int64)
_MAX_PIECES = 32  # of one step at one shard; what is larger than that many quick messages goes in larger ones


class Packer:
    """See the module's text.

    Args:
        caller: the rank.
        num_shards: S.
        num_signals: that an observation has.

    Attributes:
        seqs: of the last report to each shard.
    """

    def __init__(self, caller: Caller, num_shards: int, num_signals: int) -> None:
        self._caller, self._num_shards, self._piece = caller, num_shards, wire.max_ids(num_signals)
        self.seqs = [0] * num_shards

    def reports(
        self, run_step: int, ids_B: I64, seen: Columns | None, selected_b: I64
    ) -> Iterator[tuple[int, I64 | slice, bytes]]:
        """Pack what the rank has seen and trained on: (shard, positions in ids_B, message), a piece of it each."""
        observed = self.pieces(ids_B) if seen is not None else [[]] * self._num_shards
        counted = self.pieces(selected_b)
        for shard in range(self._num_shards):
            for where, chosen in itertools.zip_longest(observed[shard], counted[shard]):
                selected = NO_IDS if chosen is None else selected_b[chosen]
                if where is None or seen is None:
                    yield shard, slice(0), self._packed(shard, run_step, NO_IDS, None, selected)
                    continue
                part = {name: values_B[where] for name, values_B in seen.items()}
                yield shard, where, self._packed(shard, run_step, ids_B[where], part, selected)

    def pieces(self, ids_B: I64) -> list[list[I64 | slice]]:
        """Cut ids as `shards.pieces` does, small enough for a quick message each, but into at most this many."""
        return pieces(ids_B, self._num_shards, max(self._piece, -(-ids_B.size // _MAX_PIECES)))

    def _packed(self, shard: int, run_step: int, ids: I64, seen: Columns | None, selected: I64) -> bytes:
        self.seqs[shard] += 1
        return wire.encode_report(wire.Report(self._caller, self.seqs[shard], run_step, ids, seen, selected))
