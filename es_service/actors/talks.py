"""What a shard is agreeing on with the others, see `selection.agreement`: generators that wait for what all said."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from es_service import errors
from es_service.selection.agreement import Agreed

__all__ = ["Talks"]

_MAX_TALKS = 8


class Talks:
    """A few at a time, each named by a token. No locking."""

    def __init__(self) -> None:
        self._under_way: dict[str, Agreed[Any]] = {}

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, token: str, talk: Agreed[Any]) -> None:
        """Take up a talk; the oldest is dropped where there are too many, left behind by whoever asked."""
        self._under_way[token] = talk
        while len(self._under_way) > _MAX_TALKS:
            del self._under_way[next(iter(self._under_way))]

    def forget(self, token: str) -> None:
        """Drop a talk that came to nothing."""
        self._under_way.pop(token, None)

    def answer(self, token: str, answer: NDArray[Any] | None) -> Any:
        """Go on with what all shards said, None to begin; return what to ask them next, or this shard's part of it.

        Raises:
            ServerRestartedError: nothing of this name is under way: the shard restarted in the middle, or so many
                others came between.
        """
        if token not in self._under_way:
            raise errors.ServerRestartedError("unknown reduction token (evicted, or the shard restarted); retry")
        talk = self._under_way[token]
        try:
            return next(talk) if answer is None else talk.send(answer)
        except BaseException as end:
            self._under_way.pop(token, None)
            if isinstance(end, StopIteration):
                return end.value
            raise
