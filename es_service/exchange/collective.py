"""collective: no server; every rank holds a replica of the table, and every k steps the ranks exchange observations.

    step s         k divides s: all-gather ◄──► the other ranks, of what was observed since the last one
                   observe and draw on the own replica
    close_epoch    all-gather of the rest
    open_epoch     all-gather of a digest: the replicas and their plans are the same everywhere, or all ranks stop

Own observations count at once, those of another rank at the next all-gather: at most k - 1 steps late, and with k = 1
every draw knows all earlier steps. At an all-gather each replica goes back to where it stood at the last one and takes
the observations of all ranks in the order of steps, and of ranks within a step. So the replicas are equal, bit for
bit, whatever the ids were.

What waits for what: an all-gather for the slowest rank, nothing else. No rank has more to do than another, but that
rank 0 writes the snapshots and the history. Between two all-gathers a replica keeps what it saw of its own and the rows
as they were before: about 60 bytes for each observation. Rank 0 keeps besides what all ranks observed in the open
epoch, about 20 bytes for each, until it is the epoch's history.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors
from es_service.actors import wire
from es_service.exchange.base import I64, Exchange, Position, SavedState
from es_service.exchange.embedded import Embedded
from es_service.exchange.kept import KeptRun
from es_service.exchange.peers import Peers
from es_service.exchange.rank_group import RankGroup
from es_service.exchange.resume import Resume
from es_service.ledger import Ledger
from es_service.selection.engine import Draw
from es_service.selection.local_run import LocalRun
from es_service.selection.methods.base import Columns
from es_service.selection.queries import Distribution
from es_service.selection.repeats import Repeats, among_distinct
from es_service.selection.run import Caller, RunConfig, Share, places
from es_service.selection.settings import as_integer
from es_service.storage.runs import RunStorage, config_to_dict

__all__ = ["Collective"]

_GENERATION = "0" * 32  # in a report; the process group is the generation


class Collective(Exchange):
    """A rank of a run whose table every rank holds. All ranks make it, with the same arguments; see the module's text.

    Args:
        run: its name.
        config: what the run is.
        peers: the ranks.
        every: k, steps from one all-gather to the next.
        storage: where rank 0 writes a snapshot and the history at each epoch's end; None keeps it all in memory.
        resume: whether the storage may, must or must not hold a finished epoch of the run.
        position: the rank and world size that the caller gave; must equal those of `peers`.

    Raises:
        ConfigError: `every` below 1, or the plan is too small for so many ranks.
        RunMismatchError: a rank came with other settings, which the message names; every rank raises it. Or the run
            is in the storage with others.
        RunNotFoundError, RunExistsError: it is not as `resume` requires; every rank raises it.
        StorageError: rank 0 cannot write the storage; every rank raises it.
        ServerUnavailableError: a rank did not come in time.
    """

    def __init__(
        self,
        run: str,
        config: RunConfig,
        peers: Peers,
        *,
        every: int = 1,
        storage: RunStorage | None = None,
        resume: Resume = "auto",
        position: Position | None = None,
    ) -> None:
        self.config = config
        self.position = peers.position
        self._every = as_integer("every", every, least=1)
        self._group = RankGroup(peers)
        self._storage = storage if self.position.rank == 0 else None
        own = {"run": run, **dataclasses.asdict(position or self.position), "every": self._every}
        self._group.check_settings({**own, **config_to_dict(config)})
        self._keeper = LocalRun(config)
        ranks = range(self.position.world_size)
        self._kept = None if self._storage is None else KeptRun(self._storage, config)
        self._replica = [Embedded(self._keeper, Position(rank, len(ranks))) for rank in ranks]
        self._mine = self._replica[self.position.rank]
        self._stored = self._group.begin(self._storage, config, resume)  # finished epochs, until a load or a reset
        self._share: Share | None = None  # of the open epoch
        self._next = self._every  # step before which the next all-gather comes
        self._reports: list[bytes] = []  # of this rank since the last one, and the rows as they were before them
        self._before: list[tuple[I64, NDArray[np.void]]] = []

    # -- what all ranks do together ---------------------------------------------------------------------------------

    def _exchange(self, doing: str) -> None:
        """Bring every replica to the same state: all that all ranks observed so far."""
        assert self._share is not None, "the Selector opens an epoch before it steps"
        messages = self._group.gather(doing, b"".join(self._reports))
        for ids_B, records_B in reversed(self._before):
            self._keeper.engine.table.scatter(ids_B, records_B)
        self._forget()
        reports = [report for message in messages for report in wire.decode_reports(message)]
        for one in sorted(reports, key=lambda report: report.run_step):  # stable: by rank within a step
            step = one.run_step - self._share.first_step
            ids = one.ids if one.seen is not None else one.selected
            self._replica[one.caller.rank].record(step, ids, one.seen, places(ids, one.selected))
            if self._kept is not None:
                self._kept.add(one.caller, one.run_step, one.ids, one.seen, one.selected)

    def _catch_up(self, step: int) -> None:
        """Make the all-gathers due before this step: the same number on every rank, even where one skips steps."""
        while self._next <= step and self.position.world_size > 1:
            self._exchange(f"start step {self._next} of epoch {self._keeper.finished_epochs}")
            self._next += self._every

    def _forget(self) -> None:
        self._reports, self._before = [], []

    # -- the contract -----------------------------------------------------------------------------------------------

    def next_epoch(self) -> int:
        """See `Exchange.next_epoch`; what the storage holds has to be loaded first."""
        return self._stored or self._mine.next_epoch()

    def open_epoch(self, epoch: int, *, streamed: bool = False) -> Share:
        """See `Exchange.open_epoch`; all ranks make sure that they hold the same table and the same plan.

        Raises:
            ConfigError: ids come as a stream.
            RunMismatchError: they do not; every rank raises it.
        """
        if streamed:
            raise errors.ConfigError(
                "exchange 'collective' counts its all-gathers by the plan, and a stream has none: take 'prefetch' or "
                "'sync'"
            )
        if self._stored:
            raise errors.EpochOrderError(
                f"the storage holds {self._stored} finished epoch(s) of this run: to continue it load its state_dict, "
                "to start over call selector.reset(), on every rank"
            )
        shares = [one.open_epoch(epoch) for one in self._replica]
        digests = self._group.gather(f"open epoch {epoch}", self._digest(shares))
        others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise errors.RunMismatchError(
                f"rank(s) {others} hold another table or plan than rank 0 before epoch {epoch}: did all of them load "
                "the same state, and do all machines run the same numpy on the same kind of processor?"
            )
        self._share, self._next = shares[self.position.rank], self._every
        return self._share

    def _digest(self, shares: list[Share]) -> bytes:
        sha256 = hashlib.sha256(self._keeper.engine.table.copy_records().view(np.uint8).data)
        for share in shares:
            sha256.update(share.ids.tobytes())
            sha256.update(share.hidden.tobytes())
            sha256.update(repr((share.ratio, share.decision)).encode())
        return sha256.digest()

    def step(self, step: int, ids_B: I64, seen: Columns, num: int, repeats: Repeats | None = None) -> Draw:
        """See `Exchange.step`; waits for the other ranks where `every` divides the step."""
        self._catch_up(step)
        self._keep(ids_B)
        draw = self._mine.step(step, ids_B, seen, num, repeats)
        self._tell(step, ids_B, seen, among_distinct(draw.positions, repeats))
        return draw

    def draw(self, step: int, ids_B: I64, num: int, repeats: Repeats | None = None) -> Draw:
        """See `Exchange.draw`."""
        self._catch_up(step)
        return self._mine.draw(step, ids_B, num, repeats)

    def record(self, step: int, ids_B: I64, seen: Columns | None, positions_b: I64) -> None:
        """See `Exchange.record`."""
        self._catch_up(step)
        self._keep(ids_B)
        self._mine.record(step, ids_B, seen, positions_b)
        self._tell(step, ids_B, seen, positions_b)

    def _keep(self, ids_B: I64) -> None:
        """Keep the rows as they are, for the next all-gather to go back to."""
        if self.position.world_size > 1:
            self._before.append((ids_B.copy(), self._keeper.engine.table.gather(ids_B)))

    def _tell(self, step: int, ids_B: I64, seen: Columns | None, positions_b: I64) -> None:
        """Put a report into the next all-gather; a single rank has none, and keeps it for the history."""
        assert self._share is not None
        caller, run_step = Caller(self.position.rank, _GENERATION), self._share.first_step + step
        observed, selected_b = ids_B if seen is not None else ids_B[:0], ids_B[positions_b]
        if self.position.world_size > 1:
            report = wire.Report(caller, 0, run_step, observed, seen, selected_b)
            self._reports.append(wire.encode_report(report))
        elif self._kept is not None:
            self._kept.add(caller, run_step, observed, seen, selected_b)

    def close_epoch(self, epoch: int, num_steps: int, ledger: Ledger) -> None:
        """See `Exchange.close_epoch`; waits for every rank's last step. Rank 0 returns once the snapshot, history and
        ledger are written.
        """
        assert self._share is not None, "the Selector closes what it opened"
        self._catch_up(-(-self._share.ids.size // self.config.batch_size) - 1)
        self._exchange(f"close epoch {epoch}")
        gathered = self._group.gather(f"count epoch {epoch}", json.dumps(ledger.to_dict()).encode())
        ledgers = [Ledger.from_dict(json.loads(one)) for one in gathered]
        self._share = None
        for one, counted in zip(self._replica, ledgers, strict=True):
            one.close_epoch(epoch, num_steps, counted)
        if self._kept is not None:
            self._kept.finish_epoch(self._keeper.state(), ledgers)

    def table(self) -> pa.Table:
        """See `Exchange.table`; inside an epoch it holds of the other ranks what the last all-gather brought."""
        return self._mine.table()

    def top(self, column: str, num: int, *, lowest: bool) -> pa.Table:
        """See `Exchange.top`; of this rank's replica, as `table`."""
        return self._mine.top(column, num, lowest=lowest)

    def distribution(self, column: str, bins: int) -> Distribution:
        """See `Exchange.distribution`; of this rank's replica, as `table`."""
        return self._mine.distribution(column, bins)

    def save(self) -> SavedState:
        """See `Exchange.save`; between two epochs only, where every rank would return the same."""
        if self._share is not None:
            raise errors.EpochOrderError(
                f"epoch {self._keeper.finished_epochs} is open: the replicas are equal between two epochs only, take "
                "the state there"
            )
        return self._mine.save()

    def load(self, state: SavedState) -> None:
        """See `Exchange.load`; that all ranks loaded the same shows when the next epoch opens."""
        if state.share is not None:
            raise errors.ConfigError(
                "this state was saved inside an epoch, by a selector of its own process; several ranks continue from "
                "the end of an epoch"
            )
        self._mine.load(state)
        self._stand_between()

    def reset(self) -> None:
        """See `Exchange.reset`."""
        self._mine.reset()
        self._stand_between()

    def _stand_between(self) -> None:
        self._forget()
        self._share, self._stored = None, 0
        if self._kept is not None:
            self._kept.go_to(self._keeper.state())

    def log(self, epoch: int, measured: Mapping[str, float]) -> None:
        """See `Exchange.log`."""
        if self._kept is not None:
            self._kept.log(epoch, measured)

    def publish(self, epoch: int, done: float, ledger: Ledger) -> None:
        """See `Exchange.publish`: rank 0 writes it beside run.json."""
        if self._kept is not None:
            self._kept.publish(epoch, done, ledger.copy(), self.position.world_size)

    def close(self) -> None:
        """See `Exchange.close`; the table goes with the ranks, its last snapshot stays."""
        if self._kept is not None:
            self._kept.close()
        self._group.close()
