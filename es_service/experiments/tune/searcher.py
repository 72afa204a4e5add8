"""Which trial Ray Tune begins next, and what its searchers learn: every setting is trained with every seed.

TuneController ── next? ──────► Trials ── settings? ──────────► OptunaSearch | TuneBOHB | Listed
               ── epochs, ends ► Trials ── means over seeds ──►

What it remembers is part of Ray Tune's state of the experiment, and so are the trials as the report sees them.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.search import Searcher
from ray.tune.search.search_generator import SearchGenerator

from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.space import Space
from es_service.experiments.tune.suggestions import without_warnings
from es_service.experiments.tune.trials import ENTRY, FAILED, FINISHED, PRUNED, RUNNING, Live, Trial
from es_service.training.spec import TrainingSpec

__all__ = ["Generator", "Trials"]

_STATE = ("trials", "_settings", "_waiting", "_numbers", "_running", "_closed", "_reported", "_random", "_to_retry")


class Generator(SearchGenerator):
    """Ray Tune's, but that a restored search is open again: more samples may have been asked for."""

    def set_state(self, state: dict[str, Any]) -> None:
        """See Ray Tune."""
        super().set_state({**state, "finished": False})


class Trials(Live, Searcher):
    """The trials of a search, for Ray Tune to ask for and to report on.

    A searcher of Ray Tune's proposes the settings. It gets the objective's mean over the seeds once all of them have
    finished, "pruned" where one was stopped early, and an error where one failed.

    Args:
        searcher: where settings come from; trial "k" of it is the k-th setting.
        space: of a searcher that works with `Domain.place`s; None where they are the settings themselves.
        samples: how many settings there are to try.
        seeds: every setting is trained with each of them.
        seed_major: all settings with the first seed before any with the second; they are known beforehand then.
        objective: what counts.
        spec: the run of a trial.
        storage: folder of the runs.
        room: trials at a time.
        run_name: of a trial's run, by its number.
        rungs: after how many epochs the searcher gets a trial's value on its way; None for after every one.
        seed: of numpy's global state while the searcher draws from it; it is put back each time.
        retry_failed: have trials that failed in an earlier command be trained again, from their beginnings.
    """

    def __init__(
        self,
        searcher: Searcher,
        space: Space | None,
        *,
        samples: int,
        seeds: Sequence[int],
        seed_major: bool,
        objective: Objective,
        spec: Callable[[Trial], TrainingSpec],
        storage: Path,
        room: int,
        run_name: Callable[[int], str] = "trial-{:04d}".format,
        rungs: Sequence[int] | None = None,
        seed: int = 0,
        retry_failed: bool = False,
    ) -> None:
        super().__init__()
        self.searcher, self._space = searcher, space
        self._samples, self._seeds, self._objective, self._spec = samples, seeds, objective, spec
        self._storage, self._room, self._run_name, self._rungs = storage, room, run_name, rungs
        self._retry_failed = retry_failed
        self.is_stopped = False
        self.trials: list[Trial] = []
        self._settings: list[dict[str, Any]] = []
        self._waiting: list[tuple[int, int]] = []  # (setting, seed) to begin before further settings
        self._numbers: dict[str, int] = {}  # of the trials that Ray Tune knows, by its ids
        self._running: set[str] = set()  # their ids, but for those that wait at a rung
        self._closed: set[int] = set()  # settings whose end the searcher has received
        self._reported: dict[int, int] = {}  # setting -> epochs that it has received
        self._random = np.random.RandomState(seed).get_state()
        self._to_retry: list[int] = []
        if seed_major:
            self._settings = [self._propose(k) for k in range(samples)]
            self._waiting = [(k, one) for one in seeds for k in range(samples)]

    def get_state(self) -> dict[str, Any]:
        """Return the state to save; Ray Tune asks the searcher for its own."""
        return {name: getattr(self, name) for name in _STATE}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.__dict__.update(state)
        if self._retry_failed:
            self._to_retry = [one.number for one in self.trials if one.status == FAILED]

    @property
    def num_to_retry(self) -> int:
        """How many trials that failed before are still to be trained again."""
        return len(self._to_retry)

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial: its number, its run, and whether it is tried again. None while there is no room."""
        if not self.is_stopped and len(self._running) >= self._room:
            return None
        trial = None if self.is_stopped else self._next()
        if trial is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = trial.number
        self._running.add(trial_id)
        with without_warnings():  # of settings that a sensitivity study wants to see
            spec = self._spec(trial).to_dict()
        return {"number": trial.number, "retry": trial.retries > 0, "spec": spec}

    def _next(self) -> Trial | None:
        if self._to_retry:
            trial = self.trials[self._to_retry.pop(0)]
            shutil.rmtree(self._storage / trial.run, ignore_errors=True)
            trial.begin_again()
            return trial
        if not self._waiting:
            if len(self._settings) >= self._samples:
                return None
            self._waiting = [(len(self._settings), seed) for seed in self._seeds]
            self._settings.append(self._propose(len(self._settings)))
        setting, seed = self._waiting.pop(0)
        number, settings = len(self.trials), self._settings[setting]
        trial = Trial(number=number, setting=setting, settings=settings, seed=seed, run=self._run_name(number))
        self.trials.append(trial)
        return trial

    def _propose(self, setting: int) -> dict[str, Any]:
        with self._own_numbers():
            asked = self.searcher.suggest(str(setting)) or {}
        if self._space is None:
            return asked
        domains = self._space.domains.items()
        return {name: domain.value(asked[name]) if name in asked else domain.at(0.0) for name, domain in domains}

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Take an epoch of a trial; one that is known, or comes after it was decided to stop it, changes nothing."""
        trial = self.trials[self._numbers[trial_id]]
        if result.get("epoch") != len(trial.epochs) or "late" in result:
            return
        trial.epochs.append({name: result[name] for name in (*ENTRY, self._objective.metric)})
        epochs = len(trial.epochs)
        learns = not trial.retries and epochs > self._reported.get(trial.setting, 0)
        if learns and (self._rungs is None or epochs in self._rungs):
            self._reported[trial.setting] = epochs
            value = self._objective.values(trial.epochs)[0]
            learned = {"value": value, "training_iteration": epochs, "hyperband_info": {"budget": epochs}}
            with self._own_numbers():
                self.searcher.on_trial_result(str(trial.setting), learned)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Take the end of a trial: without a result it was stopped while it waited."""
        result = result or {}
        self._running.discard(trial_id)
        trial = self.trials[self._numbers[trial_id]]
        self.on_trial_result(trial_id, result)
        if error or "failed" in result:
            trial.status, trial.error = FAILED, str(result.get("failed", "its process ended"))
        else:
            is_whole = result.get("last") and result["epoch"] == len(trial.epochs) - 1
            trial.status = FINISHED if is_whole else PRUNED
        own = [one for one in self.trials if one.setting == trial.setting]
        if len(own) == len(self._seeds) and all(one.status != RUNNING for one in own):
            with self._own_numbers():
                self._close(trial.setting, own)

    def _close(self, setting: int, own: Sequence[Trial]) -> None:
        """Let the searcher learn what came of a setting."""
        whole = all(one.status == FINISHED for one in own)
        values = np.array([self._objective.values(one.epochs) for one in own]).mean(axis=0).tolist() if whole else []
        if setting not in self._closed:
            self._closed.add(setting)
            result = dict(zip(("value", "cost"), values, strict=False)) or None
            self.searcher.on_trial_complete(str(setting), result, error=any(one.status == FAILED for one in own))
        elif len(values) == 1 and self._space is not None:  # it failed before, and is never forgotten by the searcher
            places = {name: self._space.domains[name].place(one) for name, one in own[0].settings.items()}
            with contextlib.suppress(NotImplementedError):  # BOHB has none
                self.searcher.add_evaluated_point(places, values[0])

    def on_pause(self, trial_id: str) -> None:
        """Take note of a trial that waits at a rung: it takes no room."""
        self._running.discard(trial_id)

    def on_unpause(self, trial_id: str) -> None:
        """Take note of one that continues."""
        self._running.add(trial_id)

    @contextlib.contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """Let hpbandster draw the numbers of this search, and nothing else: it draws from numpy's global state."""
        before = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._random)  # noqa: NPY002
        try:
            with without_warnings():
                yield
        finally:
            self._random = np.random.get_state()  # noqa: NPY002
            np.random.set_state(before)  # noqa: NPY002
