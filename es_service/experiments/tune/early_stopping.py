"""Which trials Ray Tune's schedulers stop early: ASHA, or HyperBand in brackets where BOHB proposes the settings.

Both forget on `Tuner.restore`, so their state is kept with the searcher's (`get_state`, `set_state`). A trial that is a
Ray Train job is first asked to end: `_InOrder` carries a decision out once its workers and score server are gone.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.schedulers.hb_bohb import HyperBandForBOHB

from es_service.experiments.tune.search_spec import SearchSpec
from es_service.experiments.tune.trials import Live

__all__ = ["Asha", "Brackets", "NoStopping", "rungs_of", "scheduler_for"]

_REDUCTION = 3
_CHEAPENING = frozenset(
    {"anneal", "ratio", "prune_ratio", "r", "score_every", "score_share", "interrupt", "least", "progress", "guard"}
)
_MOST_HALVINGS = 3

End = Callable[[str], None]
"""Asks a run's Ray Train job to end."""


def scheduler_for(search: SearchSpec, room: int, end: End | None) -> Any:
    """Return what stops a search's trials early: HyperBand where BOHB proposes them, else ASHA where asked for.

    Args:
        search: what is searched.
        room: trials at a time.
        end: asks a run's Ray Train job to end, where trials are such jobs.
    """
    searched, metric = search.space.domains, search.objective.metric
    if not search.early_stopping or search.epochs < 2:
        return NoStopping()
    if search.algorithm == "bohb":
        return Brackets(search.epochs, metric, searched, room, end)
    return Asha(search.epochs, metric, searched, end)


def _cheapening(searched: Iterable[str]) -> bool:
    """Return whether a setting is searched that makes epochs cheaper: cheap epochs look bad at first."""
    return bool(_CHEAPENING & set(searched))


def rungs_of(epochs: int, searched: Iterable[str]) -> tuple[int, ...]:
    """Return after how many epochs HyperBand compares trials: all of them, a third, a ninth, ..., the fewest first.

    Where a setting is searched that makes epochs cheaper, there is one comparison before the end.

    Example:
        >>> rungs_of(20, ["beta1"]), rungs_of(20, ["ratio"]), rungs_of(2, ["beta1"]), rungs_of(1, ["beta1"])
        ((2, 7, 20), (7, 20), (1, 2), (1,))
    """
    if epochs < 2:
        return (epochs,)
    halvings = 1
    while not _cheapening(searched) and halvings < _MOST_HALVINGS and _REDUCTION ** (halvings + 1) <= epochs:
        halvings += 1
    return tuple(math.floor(epochs / _REDUCTION**k + 0.5) for k in range(halvings, -1, -1))


class _InOrder(TrialScheduler):
    """Carries out a decision to stop or pause a trial; where `end` is given, once the trial has reported its end."""

    _end: End | None
    _decided: dict[str, str]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return what becomes of a trial; a result that comes after a decision is marked as "late"."""
        if "stopped" in result:
            return self._decided.pop(trial.trial_id, TrialScheduler.CONTINUE)
        if trial.trial_id not in self._decided:
            decision = str(super().on_trial_result(tune_controller, trial, result))
            if decision == TrialScheduler.CONTINUE or self._end is None:
                return decision
            self._decided[trial.trial_id] = decision
        else:
            result["late"] = True
        self._end(trial.config["spec"]["run"])  # type: ignore[misc]
        return str(TrialScheduler.CONTINUE)


class NoStopping(Live, FIFOScheduler):
    """Stops nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def get_state(self) -> dict[str, Any]:
        """Return no state: it has none."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Do nothing."""


class Asha(Live, _InOrder, ASHAScheduler):
    """Asynchronous successive halving over epochs.

    A trial may be stopped after a quarter of its epochs, and then after three times as many: where it is below the best
    third of those that came so far. All of them are then at the same place of the learning rate's schedule. Where a
    setting is searched that makes epochs cheaper, it is after half of them.

    Args:
        epochs: of a trial, 2 or more.
        metric: what trials are compared by.
        searched: the settings that are.
        end: see `_InOrder`.

    Reference: Li et al., *A System for Massively Parallel Hyperparameter Tuning*, MLSys 2020.
    """

    def __init__(self, epochs: int, metric: str, searched: Iterable[str], end: End | None = None) -> None:
        super().__init__(
            time_attr="epochs",
            metric=metric,
            mode="max",
            max_t=epochs,
            grace_period=max(1, round(epochs / (2 if _cheapening(searched) else 4))),
            reduction_factor=_REDUCTION,
        )
        self._end, self._decided = end, {}

    def get_state(self) -> dict[str, Any]:
        """Return what each trial reached at each rung."""
        return {name: value for name, value in self.__dict__.items() if name != "_end"}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.__dict__.update(state)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Id:
    """Placeholder of a trial in saved state."""

    trial_id: str


class Brackets(Live, _InOrder, HyperBandForBOHB):
    """HyperBand for BOHB: trials wait at rungs for the others of their bracket, and the best third continues.

    Ray Tune's own would stop a trial of 4 epochs after 3: its rungs are powers of 3. Here trials report as `rung` the
    power that stands for the last of `rungs_of` they have passed. Besides, Ray Tune's own

    - would put new trials into a bracket whose last trials have ended, so that nothing is compared any more,
    - would run the trials that may continue all at once, however many are allowed at a time,
    - and could not be restored: trials that wait would run, and brackets would wait for trials that have ended.

    Args:
        epochs: of a trial, 2 or more.
        metric: what trials are compared by.
        searched: the settings that are.
        room: trials at a time.
        end: see `_InOrder`.

    Reference: Li et al., *Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization*, JMLR 2018.
    """

    def __init__(self, epochs: int, metric: str, searched: Iterable[str], room: int, end: End | None = None) -> None:
        self._rungs = rungs_of(epochs, searched)
        most = _REDUCTION ** (len(self._rungs) - 1)
        super().__init__(time_attr="rung", metric=metric, mode="max", max_t=most, reduction_factor=_REDUCTION)
        self._room, self._end, self._decided = room, end, {}
        self._saved: dict[str, Any] | None = None
        self._restored: dict[str, Any] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Give a new trial its bracket; find a restored one's. A failed one that is tried again is in none."""
        if self._saved is not None and trial.trial_id in self._saved["statuses"]:
            self._restored[trial.trial_id] = trial
            status = self._saved["statuses"][trial.trial_id]
            if status in (Trial.PAUSED, Trial.TERMINATED):  # Ray Tune does not note the end of a trial that waits
                trial.set_status(status)
        elif not trial.config["retry"]:
            self._load()
            bracket: Any = self._state["bracket"]
            if bracket is not None and (_is_closed(bracket) or len(bracket._all_trials) >= bracket._n0):
                self._state["bracket"] = None
            super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See `_InOrder`."""
        if trial not in self._trial_info:
            return str(TrialScheduler.CONTINUE)
        passed = sum(result["epochs"] >= one for one in self._rungs) if "epochs" in result else 0
        result["rung"] = _REDUCTION ** (passed - 1) if passed else 0
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take a trial out of its bracket; the place of one that failed is free."""
        self._remove(tune_controller, trial, failed="failed" in result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """See `on_trial_complete`."""
        self._remove(tune_controller, trial, failed=True)

    def _remove(self, tune_controller: Any, trial: Any, *, failed: bool) -> None:
        if trial not in self._trial_info:
            return
        if not failed:
            super().on_trial_remove(tune_controller, trial)
            return
        bracket: Any = self._trial_info[trial][0]
        bracket._all_trials.remove(trial)
        bracket.cleanup_trial(trial)
        if _is_closed(bracket) and not bracket.finished():
            self._process_bracket(tune_controller, bracket)

    def choose_trial_to_run(self, tune_controller: Any, allow_recurse: bool = True) -> Any:
        """Return a trial that may continue, None while as many run as there is room for."""
        self._load()
        trials = tune_controller.get_trials()
        if sum(one.status == Trial.RUNNING for one in trials) >= self._room:
            return None
        alone = (one for one in trials if one.status == Trial.PENDING and one not in self._trial_info)
        return next(alone, None) or super().choose_trial_to_run(tune_controller, allow_recurse)

    def get_state(self) -> dict[str, Any]:
        """Return the brackets."""
        self._load()
        ids: dict[int, Any] = {id(one): _Id(one.trial_id) for one in self._trial_info}
        brackets = copy.deepcopy([self._trial_info, self._hyperbands, self._state, self._decided], ids)
        return {"statuses": {one.trial_id: one.status for one in self._trial_info}, "brackets": brackets}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take it back; the trials that it is about are added next."""
        self._saved = state

    def _load(self) -> None:
        if self._saved is not None:
            brackets, self._saved = self._saved["brackets"], None
            trials: dict[int, Any] = {id(one): self._restored[one.trial_id] for one in brackets[0]}
            self._trial_info, self._hyperbands, self._state, self._decided = copy.deepcopy(brackets, trials)


def _is_closed(bracket: Any) -> bool:
    """Return whether trials of a bracket have been compared: it takes no new ones."""
    return bool(bracket._n < bracket._n0)
