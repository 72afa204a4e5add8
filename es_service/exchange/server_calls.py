"""Calls of a rank to the shards of its run, with its name and its patience. All of them may be made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from es_service.actors import launch
from es_service.actors.calls import Patience, ask_until_answered
from es_service.exchange.base import OnUnavailable
from es_service.exchange.connection import Connection
from es_service.selection.run import Caller

__all__ = ["NewPatience", "ServerCalls"]

NewPatience: TypeAlias = Callable[[], Patience]
"""Makes one for each wait."""


class ServerCalls:
    """See the module's text.

    Args:
        run: its name.
        caller: the rank.
        connection: how the shards are reached.
        deadline_s: seconds that a call may take.
        on_unavailable: past it, "wait" retries on; any other raises.
    """

    def __init__(
        self, run: str, caller: Caller, connection: Connection, deadline_s: float, on_unavailable: OnUnavailable
    ) -> None:
        self.run, self.caller, self.connection = run, caller, connection
        self.deadline_s, self._on_unavailable = deadline_s, on_unavailable

    def patience(self) -> Patience:
        """Return a new one, of a training thread."""
        return Patience(self.deadline_s, for_ever=self._on_unavailable == "wait")

    def call(self, method: str, *args: Any, shard: int = 0, new_patience: NewPatience | None = None) -> Any:
        """Call a shard as this rank, and wait for the answer, over a restart of the shard too."""
        return self.begin(shard, method, self.caller.rank, self.caller.generation, *args, new_patience=new_patience)()

    def read(self, method: str, *args: Any) -> Any:
        """Call the score server for something that any process may read; it waits behind no report."""
        return self.begin(0, method, *args, group=launch.READ_GROUP)()

    def begin(
        self, shard: int, method: str, *args: Any, group: str | None = None, new_patience: NewPatience | None = None
    ) -> Callable[[], Any]:
        """Begin a call; return how to wait for its answer."""
        begun = [self.connection.ask(shard, method, *args, group=group)]

        def ask() -> Any:
            return begun.pop() if begun else self.connection.ask(shard, method, *args, group=group)

        return lambda: ask_until_answered(
            ask,
            (new_patience or self.patience)(),
            self._doing(method),
            self.connection.reconnect,
            self.connection.wait,
        )

    def wait(self, reference: Any, deadline_s: float, method: str) -> Any:
        """Return the answer of a call of this method under way, which is not made again."""
        return self.connection.wait(reference, deadline_s, self._doing(method))

    def _doing(self, method: str) -> str:
        return f"{method.replace('_', ' ')} (run {self.run!r}, rank {self.caller.rank})"
