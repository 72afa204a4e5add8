"""HyperBand for BOHB: trials wait at rungs for others, and the best third of a bracket goes on.

    running ── at a rung ──► waiting ── the bracket is complete ──► ready ──► running …
                                                        └──► dropped

Ray Tune's HyperBandForBOHB decides, about stand-ins: a trial that waits is none of Ray Tune's, and so holds no process,
no CPU and no score server. When it is ready, it begins again as a trial that goes on from its run's last checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ray.tune.experiment import Trial as Theirs
from ray.tune.schedulers import TrialScheduler
from ray.tune.schedulers.hb_bohb import HyperBandForBOHB

from es_service.experiments.tune.early_stopping import DROP, GO_ON, WAIT
from es_service.experiments.tune.rungs import REDUCTION, rungs_of

__all__ = ["HyperBand"]


class _StandIn:
    """A trial as HyperBandForBOHB sees one."""

    is_saving = False

    def __init__(self, number: int) -> None:
        self.trial_id = str(number)
        self.status = Theirs.RUNNING
        self.ready = self.failed = False
        self.rung = 0

    def __str__(self) -> str:
        return self.trial_id


class _Controller:
    """What HyperBandForBOHB asks of Ray Tune's controller and of its searcher, done to stand-ins."""

    def __init__(self, scheduler: HyperBandForBOHB, last: int) -> None:
        self._scheduler, self._last = scheduler, last
        self.search_alg = self.searcher = self
        self.stand_ins: dict[str, Any] = {}

    def get_trials(self) -> list[Any]:
        return list(self.stand_ins.values())

    def stop_trial(self, trial: Any) -> None:
        """Take a trial out of its bracket; one that has come to the end keeps its place, or new ones would take it."""
        trial.status = Theirs.TERMINATED
        if trial.rung < self._last:
            self._scheduler.on_trial_remove(self, trial)  # type: ignore[arg-type]

    def on_pause(self, trial_id: str) -> None:
        self.stand_ins[trial_id].ready = False

    def on_unpause(self, trial_id: str) -> None:
        self.stand_ins[trial_id].ready = True


class HyperBand:
    """Successive halving in brackets, as `Early` describes it.

    Brackets differ in the rung at which their trials are compared first: the one with the most trials and the lowest
    rung is filled first, the last one trains all of its few trials to the end; then comes another such round. The
    rungs are those of `rungs_of`, whole epochs of which the last is the last epoch.

    Args:
        epochs: of a trial, 2 or more.
        metric: what trials are compared by.
        searched: the settings that are.

    Reference: Li et al., *Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization*, JMLR 2018.
    """

    def __init__(self, epochs: int, metric: str, searched: Iterable[str]) -> None:
        self._metric = metric
        self._rungs = {epoch: REDUCTION**k for k, epoch in enumerate(rungs_of(epochs, searched))}
        self._theirs = HyperBandForBOHB(
            time_attr="rung", metric="value", mode="max", max_t=self._rungs[epochs], reduction_factor=REDUCTION
        )
        self._controller: Any = _Controller(self._theirs, self._rungs[epochs])
        self._apart: set[int] = set()
        self._stand_ins: dict[str, Any] = self._controller.stand_ins

    def begin(self, number: int) -> None:
        """See `Early`."""
        if str(number) not in self._stand_ins:
            self._stand_ins[str(number)] = _StandIn(number)
            self._theirs.on_trial_add(self._controller, self._stand_ins[str(number)])

    def epoch(self, number: int, entry: Mapping[str, Any]) -> None:
        """See `Early`."""
        if number in self._apart:
            return
        if self.verdict(number) == WAIT:  # it was let go on without those that never came
            self.settle()
        rung = self._rungs.get(entry["epoch"] + 1)
        if rung is None:
            stand_in = self._stand_ins[str(number)]
            stand_in.status, stand_in.ready = Theirs.RUNNING, False
            return
        self._report(self._stand_ins[str(number)], rung, entry[self._metric])
        self._let_failed_wait()

    def fail(self, number: int) -> None:
        """See `Early`. A trial fills its place with the worst of results: a bracket is not cut down for it."""
        if number in self._apart:
            return
        self._stand_ins[str(number)].failed = True
        self._fall_behind(self._stand_ins[str(number)])
        self._let_failed_wait()

    def retry(self, number: int) -> None:
        """See `Early`. Its bracket has gone on without it: it is trained to its end."""
        self._apart.add(number)

    def verdict(self, number: int) -> str:
        """See `Early`."""
        if number in self._apart:
            return GO_ON
        stand_in = self._stand_ins[str(number)]
        if stand_in.status == Theirs.PAUSED and not stand_in.ready:
            return WAIT
        return DROP if stand_in.status == Theirs.TERMINATED else GO_ON

    def settle(self) -> None:
        """See `Early`."""
        self._theirs.choose_trial_to_run(self._controller)
        while self._let_failed_wait():  # it looked no further than them
            self._theirs.choose_trial_to_run(self._controller)

    def _report(self, stand_in: Any, rung: int, value: float) -> None:
        stand_in.status, stand_in.ready, stand_in.rung = Theirs.RUNNING, False, rung
        result = {"rung": rung, "value": value}
        action = self._theirs.on_trial_result(self._controller, stand_in, result)
        if action == TrialScheduler.PAUSE:
            stand_in.status = Theirs.PAUSED
        elif action == TrialScheduler.STOP:
            self._controller.stop_trial(stand_in)

    def _fall_behind(self, stand_in: Any) -> None:
        """Have a failed trial come to the next rung at which it is compared."""
        stand_in.status = Theirs.RUNNING
        for rung in self._rungs.values():
            if rung > stand_in.rung and stand_in.status == Theirs.RUNNING:
                self._report(stand_in, rung, -math.inf)

    def _let_failed_wait(self) -> bool:
        """Have those among the failed that were to go on, for want of better ones, come to the rung after.

        Returns whether there were any.
        """
        found = False
        while going_on := [one for one in self._controller.get_trials() if one.failed and one.ready]:
            self._fall_behind(going_on[0])
            found = True
        return found
