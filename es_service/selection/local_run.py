"""The local_run: a whole run in one process, its membership and its one table. No Ray, no lock."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from es_service.ledger import Ledger
from es_service.selection.engine import NOTHING, Draw, Engine
from es_service.selection.membership import Membership
from es_service.selection.methods.base import Columns
from es_service.selection.past import BEGINNING
from es_service.selection.reductions import agree
from es_service.selection.repeats import Repeats
from es_service.selection.run import Caller, RunConfig, RunState, Share

__all__ = ["LocalRun"]

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]


class LocalRun(Membership):
    """A membership with the engine that plans its epochs; ranks in the same process share one."""

    def __init__(self, config: RunConfig) -> None:
        self.engine = Engine(config.selection, config.num_samples, grows=config.grows)
        self._ledgers: dict[int, Ledger] = {}  # of the ranks that have closed the open epoch
        super().__init__(
            config, lambda epoch, starts: agree([self.engine.plan(epoch, config.num_epochs, starts, self.past)])[0]
        )

    def end_epoch(self, caller: Caller, epoch: int, num_steps: int, ledger: Ledger) -> bool:
        """Close an epoch for one rank, with its ledger, see `close_epoch`."""
        self._ledgers[caller.rank] = ledger.copy()
        counted = [self._ledgers[rank] for rank in sorted(self._ledgers)]
        finished = self.close_epoch(caller, epoch, num_steps, counted)
        if finished:
            self._ledgers = {}
        return finished

    def step(
        self, caller: Caller, ids_B: I64, seen: Columns, num: int, run_step: int, repeats: Repeats | None = None
    ) -> Draw:
        """Observe and draw, see `Engine.step`; the rank must have its epoch open."""
        recent_R = self._recent(caller, run_step)
        self.engine.make_room(ids_B)
        return self.engine.step(ids_B, seen, num, run_step, recent_R, repeats)

    def draw(self, caller: Caller, ids_B: I64, num: int, run_step: int, repeats: Repeats | None = None) -> Draw:
        """Draw by what is known, see `Engine.draw`; the rank must have its epoch open."""
        recent_R = self._recent(caller, run_step)
        self.engine.make_room(ids_B)
        return self.engine.draw(ids_B, num, run_step, recent_R, repeats)

    def record(self, caller: Caller, ids_B: I64, seen: Columns | None, selected_b: I64, run_step: int) -> None:
        """Observe signals, where given, and count `selected_b` ids; the rank must have its epoch open."""
        self.check_open(caller)
        self.engine.make_room(ids_B)
        self.engine.record(ids_B, seen, selected_b, run_step)

    def _recent(self, caller: Caller, run_step: int) -> F32:
        """Return the weights of this rank's samples before this step, where the method looks at them."""
        num = self.config.selection.method.window - self.config.batch_size
        share = self.share(caller)
        if num <= 0:
            return NOTHING
        return self.engine.recent(share.window(run_step - share.first_step, self.config.batch_size, num))

    def state(self) -> RunState:
        """Return a copy of the run's current state; only between two epochs is that a state to continue from."""
        return RunState(self.engine.copy_records(), self.finished_epochs, self.epoch_starts, self.past)

    def restore(self, state: RunState, *, open_share: Share | None = None) -> None:
        """Go to another state of the same run, see `Membership.go_to`.

        Raises:
            StorageError: the state is not one of a run of this size and method.
        """
        self.engine.check_records(state.records)
        self._ledgers = {}
        self.go_to(state.finished_epochs, state.epoch_starts, state.past, open_share=open_share)
        self.engine.load_records(state.records)

    def reset(self) -> None:
        """Forget every observation and return to epoch 0."""
        self.engine.clear()
        self._ledgers = {}
        self.go_to(0, (0,), BEGINNING)
