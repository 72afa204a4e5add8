"""Ray Tune around a queue of trials: the driver's side.

    Tuner ── next? ──► Source ──► queue          a trial at a time, so that what is asked sees what was told
          ── epoch ──► Conductor ──► queue, ASHA ──► go on, or stop

Ray Tune keeps no state that is needed again: a search that goes on tells queue and ASHA what its journal holds.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import signal
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from es_service import errors
from es_service.evidence.comparison import RunSpec
from es_service.tuning.described import Places
from es_service.tuning.queue import Queue
from es_service.tuning.trainable import ENTRY, drop_checkpoints, trainable
from es_service.tuning.trials import FAILED, FINISHED, PRUNED, RUNNING, Trial

__all__ = ["Tell", "early_stopping", "run_trials"]

Tell = Callable[[Trial], None]
_REDUCTION = 3
_CHEAPENING = {"anneal", "ratio", "prune_ratio", "r", "score_every", "interrupt"}
_PATIENCE_S = 30.0  # for trials to end in order once somebody asked to stop
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nobody reads them
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "3600",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2"),
}


def early_stopping(epochs: int, searched: Iterable[str]) -> Any:
    """Return asynchronous successive halving over epochs; None where there are too few to stop anything early.

    A trial may be stopped after a quarter of its epochs, and then after three times as many: where it is below the best
    third of those that came so far. All of them are then at the same place of the learning rate's schedule. Where a
    setting is searched that makes epochs cheaper, it is after half of them: cheap epochs look bad at first.

    Reference: Li et al., *A System for Massively Parallel Hyperparameter Tuning*, MLSys 2020.
    """
    if epochs < 2:
        return None
    return ASHAScheduler(
        time_attr="done",
        metric="value",
        mode="max",
        max_t=epochs,
        grace_period=max(1, round(epochs / (2 if set(searched) & _CHEAPENING else 4))),
        reduction_factor=_REDUCTION,
    )


class _Source(Searcher):
    """Hands out the queue's trials."""

    def __init__(self, queue: Queue, spec: Callable[[Trial], RunSpec], stop: _Stop) -> None:
        super().__init__()
        self._queue, self._spec, self._stop = queue, spec, stop

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002 - the contract's argument
        trial = None if self._stop.signal is not None else self._queue.next()
        if trial is None:
            return Searcher.FINISHED
        spec = self._spec(trial).to_dict()
        return {"number": trial.number, "spec": spec, "known": len(trial.epochs)}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass  # the conductor tells

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError  # Ray Tune's own state is never restored


class _Conductor(FIFOScheduler):
    """Tells the queue what trials report, and stops those that are done or fall behind."""

    def __init__(
        self,
        queue: Queue,
        spec: Callable[[Trial], RunSpec],
        asha: Any,
        epochs: int,
        metric: str,
        tell: Tell,
        storage: Path,
        places: Places,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._queue, self._asha, self._epochs, self._compared, self._tell = queue, asha, epochs, metric, tell
        self._spec, self._storage, self._places = spec, str(storage), places
        self._behind: set[int] = set()
        self._live: dict[int, bool] = {}  # trials that Ray Tune knows and that have not ended -> was it asked to stop?
        self._ended: list[Trial] = []

    def tidy_up(self) -> None:
        for trial in [one for one in self._ended if one.number not in self._live]:
            drop_checkpoints(self._storage, trial.run)
            self._ended.remove(trial)

    def go_through_journal(self) -> None:
        self._queue.restore(self._replay)
        for trial in self._queue.trials:  # what was decided and not written down before the end of the last session
            decided = FINISHED if len(trial.epochs) == self._spec(trial).epochs else PRUNED
            if trial.status == RUNNING and (decided == FINISHED or trial.number in self._behind):
                self._queue.end(trial.number, decided)
                self._ended.append(trial)

    def _replay(self, kind: str, trial: Trial, event: Mapping[str, Any]) -> None:
        if kind == "begun":
            self._expect(trial)
        elif kind == "epoch" and self._is_behind(trial, event):
            self._behind.add(trial.number)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002
        ours = self._queue.trials[trial.config["number"]]
        self._live[ours.number] = False
        if not ours.epochs:
            self._expect(ours)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        number = result["number"]
        ours = self._queue.trials[number]
        if ours.status != RUNNING or "stopped" in result:
            return self._when_ended(number, result)
        if "failed" in result:
            return self._end(ours, FAILED, result["failed"])
        entry = {name: result[name] for name in ENTRY}
        self._queue.epoch(number, entry)
        if result["last"]:
            return self._end(ours, FINISHED)
        if self._is_behind(ours, entry):
            decision = self._end(ours, PRUNED)
            return self._ask_to_stop(ours) if self._places.on_ray_train else decision
        return str(TrialScheduler.CONTINUE)

    def _when_ended(self, number: int, result: dict[str, Any]) -> str:
        """Return what to do with a trial that has ended for us, and reports once more.

        One in its own process has nothing left to do: Ray Tune repeats the last report when it returns. One that trains
        with Ray Train is let come to its end, which it reports.
        """
        if (
            self._places.on_ray_train
            and not any(name in result for name in ("stopped", "failed"))
            and (not result.get("last") and not result.get("done"))
        ):
            return str(TrialScheduler.CONTINUE)
        self._live.pop(number, None)
        return str(TrialScheduler.STOP)

    def _ask_to_stop(self, trial: Trial) -> str:
        """Have a trial's Ray Train job end in order, and go on hearing of it until it has."""
        from es_service.training.ray_train import ask_to_stop

        self._live[trial.number] = True
        ask_to_stop(self._storage, trial.run)
        return str(TrialScheduler.CONTINUE)

    def ask_all_to_stop(self) -> bool:
        """Ask all Ray Train jobs to end; return whether none is left."""
        for number, asked in list(self._live.items()) if self._places.on_ray_train else []:
            trial = self._queue.trials[number]
            if not (Path(self._storage) / trial.run / "run.json").exists():
                continue  # it has not begun; Ray Tune ends its process
            if not asked:
                self._ask_to_stop(trial)
        begun = [self._queue.trials[number].run for number in self._live]
        return not self._places.on_ray_train or not any(
            (Path(self._storage) / run / "run.json").exists() for run in begun
        )

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002
        ours = self._queue.trials[trial.config["number"]]
        self._live.pop(ours.number, None)
        error = trial.get_error()
        lines = [line for line in str(error or "").strip().splitlines() if line.strip()]
        self._end(ours, FAILED, f"its process ended: {lines[0] if lines else 'no message'}")

    def _end(self, trial: Trial, status: str, error: str | None = None) -> str:
        if trial.status == RUNNING:
            self._queue.end(trial.number, status, error)
            self._live.pop(trial.number, None)
            self.tidy_up()  # of those before: this one's process may be at its last checkpoint still
            self._ended.append(trial)
            self._tell(trial)
        return str(TrialScheduler.STOP)

    def _expect(self, trial: Trial) -> None:
        if self._asha is not None:
            self._asha.on_trial_add(None, _named(trial))

    def _is_behind(self, trial: Trial, entry: Mapping[str, Any]) -> bool:
        """Return whether ASHA would stop it after this epoch; asking is what makes ASHA remember it."""
        if self._asha is None or entry["epoch"] + 1 >= self._epochs:
            return False
        result = {"done": entry["epoch"] + 1, "value": entry[self._compared]}
        return bool(self._asha.on_trial_result(None, _named(trial), result) == TrialScheduler.STOP)


class _Stop(Stopper):
    """Ends all trials once somebody asked for it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.in_order: Callable[[], bool] = lambda: True
        self._give_up: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - the contract's arguments
        return False

    def stop_all(self) -> bool:
        if self.signal is None:
            return False
        if self._give_up is None:
            self._give_up = time.monotonic() + _PATIENCE_S
        return self.in_order() or time.monotonic() > self._give_up


def run_trials(
    queue: Queue,
    *,
    spec: Callable[[Trial], RunSpec],
    num_trials: int,
    storage: Path,
    search: str,
    whole: int,
    places: Places,
    epochs: int,
    early: Any,
    metric: str,
    restored: Callable[[], None],
    tell: Tell,
) -> None:
    """Run what is left of a queue's trials on the Ray that this process is connected to; an ended search does nothing.

    Args:
        queue: of the trials; its journal is gone through first.
        spec: the run of a trial.
        num_trials: how many the queue has in all.
        storage: folder of the runs.
        search: name of the search, for the runs to say.
        whole: forward-equivalents of a full training.
        places: where trials run.
        epochs: of a trial.
        early: what stops those that fall behind, see `early_stopping`; None for nothing.
        metric: what they are compared by then.
        restored: called once what was done before is known.
        tell: called with each trial that ended.

    Raises:
        ConfigError: a trial asks for more CPUs than there are.
        KeyboardInterrupt, SystemExit: somebody asked to stop. Trials under way are left to be gone on with.
    """
    conductor = _Conductor(queue, spec, early, epochs, metric, tell, storage, places)
    conductor.go_through_journal()
    restored()
    left = num_trials - sum(one.status != RUNNING for one in queue.trials)
    if left == 0:
        return
    if not places.on_ray_train and places.cpus > _cluster("CPU"):
        raise errors.ConfigError(
            f"--cpus-per-trial {places.cpus:g}: this Ray has {_cluster('CPU'):g} CPUs, so no trial could ever start"
        )
    scratch = storage.parent / "tune"
    stop = _Stop()
    stop.in_order = conductor.ask_all_to_stop
    train = functools.partial(trainable, storage=str(storage), search=search, whole=whole, places=places)
    tuner = tune.Tuner(
        tune.with_resources(_named_function(train), _resources(places)),
        tune_config=tune.TuneConfig(
            search_alg=_Source(queue, spec, stop),
            scheduler=conductor,
            num_samples=left,
            max_concurrent_trials=places.room(_cluster("CPU")),
            reuse_actors=not places.on_ray_train,  # a new process takes longer to import torch than many a trial trains
        ),
        run_config=tune.RunConfig(name=search, storage_path=str(scratch), stop=stop, verbose=0),
    )
    try:
        with _stoppable(stop), _quiet():
            tuner.fit()
    finally:
        conductor.tidy_up()
        shutil.rmtree(scratch, ignore_errors=True)
    if stop.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if stop.signal is not None:
        raise SystemExit(128 + stop.signal)


def _named(trial: Trial) -> Any:
    """Return what ASHA needs to know of a trial."""
    return types.SimpleNamespace(trial_id=str(trial.number))


def _named_function(train: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Return a plain function, which Ray Tune can name and give resources."""

    def trial(config: dict[str, Any]) -> None:
        train(config)

    return trial


def _cluster(resource: str) -> float:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get(resource, 0.0)


def _resources(places: Places) -> dict[str, float]:
    """Return what a trial's own process holds. With Ray Train the workers hold the CPUs: one more would be idle."""
    if places.on_ray_train:
        return {"CPU": 0, "memory": 1}  # a byte: Ray Tune takes no trial that asks for nothing
    return {"CPU": places.cpus, **({"GPU": 1} if _cluster("GPU") else {})}


@contextlib.contextmanager
def _stoppable(stop: _Stop) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the trials in order; a second one ends this process at once."""

    def asked(number: int, _: Any) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Tune's own reports, files and logs to itself."""
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update(_QUIET)
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
