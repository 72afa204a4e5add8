"""The shards of a run as the score server calls them: the first is itself, the others are actors."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.actors.score_shard import ScoreShard
from es_service.selection.past import Past
from es_service.selection.plans import Plan, joined
from es_service.selection.reductions import Join, Sum, merge

__all__ = ["ShardGroup"]


class ShardGroup:
    """Calls every shard at once and waits for all; answers come in the order of the shards.

    Args:
        own: the first shard, in this process.
        ask: (index, method, arguments) -> a function that waits for the answer; how the other
            shards are called; None where there are none.
        count: S.
    """

    def __init__(self, own: ScoreShard, ask: Callable[..., Callable[[], Any]] | None, count: int) -> None:
        self.count = count
        self.own = own
        self._ask = ask

    def all(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every shard with the same arguments."""
        return self.each(method, [args] * self.count)

    def each(self, method: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of every shard with separate arguments."""
        ask = self._ask
        waiting = [ask(index, method, *args[index]) for index in range(1, self.count)] if ask is not None else []
        own = getattr(self.own, method)(*args[0])
        return [own, *(wait() for wait in waiting)]

    def agree(self, about: str, *args: Any) -> list[Any]:
        """Run a reduction over all shards, see `ScoreShard.reduction`; return each one's part of the result."""
        token = uuid.uuid4().hex
        try:
            said = self.all("reduction", token, about, *args)
            while isinstance(said[0], Sum | Join):
                said = self.all("answer", token, merge(said))
        except errors.EsServiceError:
            with contextlib.suppress(errors.EsServiceError):  # the one that failed may be away
                self.all("forget", token)
            raise
        return said

    def plan(self, epoch: int, epoch_starts: Sequence[int], past: Past) -> Plan:
        """Return the plan that all shards agree on; each is asked only for what it has of it."""
        return joined(self.agree("plan", epoch, tuple(epoch_starts), past))

    def num_samples(self) -> int:
        """Return n: where the table grows, one more than the highest id that any shard has met."""
        return int(max(self.all("num_samples")))

    def records(self) -> NDArray[np.void]:
        """Return a copy of the whole table, records[n]: each shard's rows as they are when it is asked."""
        parts = self.all("copy_records", self.num_samples())
        if len(parts) == 1:
            only: NDArray[np.void] = parts[0]
            return only
        whole = np.empty(sum(part.size for part in parts), dtype=parts[0].dtype)
        for index, part in enumerate(parts):
            whole[index :: self.count] = part
        return whole

    def load(self, records: NDArray[np.void]) -> None:
        """Give every shard its rows of a whole table."""
        self.each("load_records", [(np.ascontiguousarray(records[i :: self.count]),) for i in range(self.count)])
