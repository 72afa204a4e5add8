"""The shards of a run as a rank calls them: by cached handles, looked up again where an actor has ended."""

from __future__ import annotations

from typing import Any

import ray
from ray import exceptions

from es_service import errors
from es_service.actors import launch
from es_service.actors.calls import call

__all__ = ["Connection"]

_LOOK_UP_S = 5.0  # for a server, found under the name of one that ended, to return how many shards it has


class Connection:
    """Handles on the shards of a run, the score server first.

    Args:
        run: name of a run whose server is up.

    Raises:
        RunNotFoundError: no such server.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self.shards = launch.find_shards(run)
        self._methods: dict[tuple[int, str], Any] = {}

    def ask(self, shard: int, method: str, *args: Any, group: str | None = None, **named: Any) -> ray.ObjectRef[Any]:
        """Begin a call of a shard; ServerUnavailableError where too many of this process wait there."""
        bound = self._methods.get((shard, method))  # cached: a look-up costs Ray 30 µs
        if bound is None:
            bound = getattr(self.shards[shard], method)
            if group is not None:
                bound = bound.options(concurrency_group=group)
            self._methods[shard, method] = bound
        try:
            reference: ray.ObjectRef[Any] = bound.remote(*args, **named)
        except exceptions.PendingCallsLimitExceeded as error:
            raise errors.ServerUnavailableError(
                f"too many calls of this process wait for shard {shard} of run {self._run!r}: it does not keep up; use "
                "more shards, or larger batches"
            ) from error
        return reference

    def wait(self, reference: ray.ObjectRef[Any], deadline_s: float, doing: str) -> Any:
        """Return the answer of a call, see `calls.call`."""
        return call(reference, deadline_s, doing)

    def reconnect(self) -> bool:
        """Look the shards up by their names and call those from now on; return whether all of them are there.

        Raises:
            ServerRestartedError: the server that is there now has another number of shards.
        """
        try:
            found = launch.find_shards(self._run, _LOOK_UP_S)
        except (errors.RunNotFoundError, errors.ServerUnavailableError):
            return False
        if len(found) != len(self.shards):
            raise errors.ServerRestartedError(
                f"the score server of run {self._run!r} was restarted with {len(found)} shard(s) in place of "
                f"{len(self.shards)}: connect again and continue from the last checkpoint"
            )
        if found != self.shards:
            self.shards = found
            self._methods.clear()
        return True
