"""Reductions in progress on a shard, see `selection.reductions`: generators that wait for the merged answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from es_service import errors
from es_service.actors.served_run import ServedRun
from es_service.actors.shard_state import ShardState
from es_service.selection import queries
from es_service.selection.past import Past
from es_service.selection.plans import Plan
from es_service.selection.reductions import Agreed

__all__ = ["Pending"]

_MAX_PENDING = 8


class Pending:
    """A few at a time, each named by a token."""

    def __init__(self, run: ServedRun, state: ShardState) -> None:
        self._run, self._state = run, state
        self._under_way: dict[str, Agreed[Any]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def reduction(self, token: str, about: str, *args: Any) -> Any:
        """Start a reduction with the other shards; return its first question, or this shard's part of the result.

        The oldest reduction is dropped where there are too many: its caller is gone.

        Args:
            token: names this reduction.
            about: "plan", "top" or "distribution".
            args: of the generator of that name.
        """
        self._run.check()
        generators: dict[str, Callable[..., Agreed[Any]]] = {
            "plan": self._plan,
            "top": functools.partial(queries.top, self._state.engine),
            "distribution": functools.partial(queries.distribution, self._state.engine),
        }
        with self._state.lock:
            self._under_way[token] = generators[about](*args)
            while len(self._under_way) > _MAX_PENDING:
                del self._under_way[next(iter(self._under_way))]
        return self.answer(token, None)

    def _plan(self, epoch: int, epoch_starts: tuple[int, ...], past: Past) -> Agreed[Plan]:
        self._state.check_begun()
        return self._state.engine.plan(epoch, self._run.config.num_epochs, epoch_starts, past)

    def forget(self, token: str) -> None:
        """Drop a reduction that was aborted."""
        with self._state.lock:
            self._under_way.pop(token, None)

    def answer(self, token: str, answer: NDArray[Any] | None) -> Any:
        """Continue with the merged answer of all shards, None to begin; return as `reduction` does.

        Raises:
            ServerRestartedError: nothing of this name is under way: the shard restarted in the middle, or so many
                others came between.
        """
        self._run.check()
        with self._state.lock:
            if token not in self._under_way:
                raise errors.ServerRestartedError("unknown reduction token (evicted, or the shard restarted); retry")
            reduction = self._under_way[token]
            try:
                return next(reduction) if answer is None else reduction.send(answer)
            except BaseException as end:
                self._under_way.pop(token, None)
                if isinstance(end, StopIteration):
                    return end.value
                raise
