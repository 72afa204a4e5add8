"""The score server of a run: its first shard, and the coordinator of all. A plain class; `launch` makes it an actor.

A run's table may be spread over S shards. Ranks call each shard for its rows (see `score_shard`), and the server alone
to join, to open and close epochs, to save and to go back; it then calls the other shards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from es_service.actors.call_times import merged
from es_service.actors.checkpoints import Checkpoints
from es_service.actors.coordinator import Coordinator
from es_service.actors.delegation import passed_to
from es_service.actors.epoch_state import EpochState
from es_service.actors.run_progress import RunProgress
from es_service.actors.score_shard import ScoreShard
from es_service.actors.served_run import ServedRun
from es_service.actors.shard_group import ShardGroup
from es_service.selection import queries
from es_service.selection.table import records_to_arrow
from es_service.storage import runs

__all__ = ["ScoreServer"]


class ScoreServer:
    """See the module's text.

    Args:
        storage: folder or URI that holds the runs.
        run: name of the run.
        config: `runs.config_to_dict` of the run.
        count: S, how many shards there are.
        ask: how the other shards are called, see `ShardGroup`; a server that is alone needs none.
        actor: names this server over restarts of its process, so that no two of them write a run; None does not look.
        training: how the run is trained, see `RunStorage.begin`.
    """

    def __init__(
        self,
        storage: str,
        run: str,
        config: dict[str, Any],
        count: int = 1,
        ask: Callable[..., Callable[[], Any]] | None = None,
        actor: str | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        self._run = served = ServedRun(storage, run, config)
        served.begin(count, actor, training)
        if served.failure is None:
            epochs = EpochState(served, lambda epoch, starts: self._shards.plan(epoch, starts, epochs.membership.past))
            self.shard = ScoreShard(served, 0, count, [epochs])
            self._shards = ShardGroup(self.shard, ask, count)
            self._leading = Coordinator(served, self._shards, epochs)
        else:
            self.shard = ScoreShard(served, 0, count)

    def _own_shard(self) -> ScoreShard:
        return self.shard

    def _coordinator(self) -> Coordinator:
        self._run.check()
        return self._leading

    def _checkpoints(self) -> Checkpoints:
        return self._coordinator().checkpoints

    def _progress(self) -> RunProgress:
        return self._coordinator().progress

    # -- for ranks: its own rows ---------------------------------------------------------------------------------------

    ping = passed_to(_own_shard, ScoreShard.ping)
    identity = passed_to(_own_shard, ScoreShard.identity)
    enter = passed_to(_own_shard, ScoreShard.enter)
    lease = passed_to(_own_shard, ScoreShard.lease)
    fetch = passed_to(_own_shard, ScoreShard.fetch)
    observe = passed_to(_own_shard, ScoreShard.observe)
    report = passed_to(_own_shard, ScoreShard.report)
    counts = passed_to(_own_shard, ScoreShard.counts)
    pid = passed_to(_own_shard, ScoreShard.pid)

    # -- for ranks: the run --------------------------------------------------------------------------------------------

    join = passed_to(_coordinator, Coordinator.join)
    next_epoch = passed_to(_coordinator, Coordinator.next_epoch)
    whereabouts = passed_to(_coordinator, Coordinator.whereabouts)
    open_epoch = passed_to(_coordinator, Coordinator.open_epoch)
    close_epoch = passed_to(_coordinator, Coordinator.close_epoch)
    settle = passed_to(_coordinator, Coordinator.settle)
    stored_epochs = passed_to(_coordinator, Coordinator.stored_epochs)
    log = passed_to(_progress, RunProgress.log)
    publish = passed_to(_progress, RunProgress.publish)
    spent = passed_to(_progress, RunProgress.spent)
    rewind = passed_to(_checkpoints, Checkpoints.rewind)
    state = passed_to(_checkpoints, Checkpoints.state)

    # -- for readers (group `read`) ------------------------------------------------------------------------------------

    def snapshot(self) -> pa.Table:
        """Return a copy of the table as it is now."""
        self._run.check()
        return records_to_arrow(self._shards.records())

    def top(self, column: str, num: int, lowest: bool) -> pa.Table:
        """Return the rows with the highest values of a column, or the lowest, see `queries.top`."""
        self._run.check()
        return queries.ranked(self._shards.agree("top", column, num, lowest), column, lowest=lowest)

    def distribution(self, column: str, bins: int) -> queries.Distribution:
        """Return how a column's values spread, see `queries.distribution`."""
        self._run.check()
        found: queries.Distribution = self._shards.agree("distribution", column, bins)[0]
        return found

    def stats(self) -> dict[str, Any]:
        """Return the state of the run as plain values."""
        membership = self._coordinator().membership
        shards = self._shards.all("counts")
        calls = merged([shard.pop("calls") for shard in shards])
        snapshot_failure = self._coordinator().snapshots.failure
        failures = [*self._shards.all("storage_failure"), None if snapshot_failure is None else str(snapshot_failure)]
        return {
            "run": self._run.storage.run,
            "storage": self._run.place,
            "config": runs.config_to_dict(self._run.config),
            "finished_epochs": membership.finished_epochs,
            "open_epoch": membership.open_epoch_number,
            "world_size": membership.world_size,
            "generation": membership.generation,
            "shards": len(shards),
            **{name: sum(shard[name] for shard in shards) for name in shards[0]},
            "storage_failure": next(filter(None, failures), None),
            "pid": self.pid(),
            "calls": calls,
            "progress": self._run.storage.progress.to_dict(),
        }

    def finish(self) -> None:
        """See `ScoreShard.finish`; all shards do it, and the run has no owner afterwards."""
        if self._run.failure is None:
            self._leading.snapshots.close()
            self._leading.progress.write()
        self.shard.finish()
        self._run.release()
