"""Ray Tune's `Tuner` around a search: how it is started, resumed and stopped.

<folder>/<name>/        Ray Tune's folder of the experiment
<folder>/<name>.tar.gz  its state, see `SearchState`
<folder>/stop           there once the search is to stop: trials look for it
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from pyarrow import fs
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from es_service import errors
from es_service.experiments.tune.search_spec import Places
from es_service.experiments.tune.search_state import SearchState
from es_service.experiments.tune.searcher import Generator, Trials
from es_service.experiments.tune.trainable import Job, drop_checkpoints, trainable
from es_service.experiments.tune.trials import RUNNING, Live, Trial
from es_service.stopping import Stopped, in_order
from es_service.storage import files

__all__ = ["Show", "cluster", "end_run", "run_trials"]

Show = Callable[[Trial], None]
_PATIENCE_S = 30.0  # for trials to end in order once the search was asked to stop
_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed reports no metric
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2"),
}


def run_trials(
    trials: Trials, scheduler: Any, *, name: str, folder: Path, job: Job, on_start: Callable[[], None], show: Show
) -> None:
    """Run the remaining trials of a search on the Ray that this process is connected to.

    Args:
        trials: of the search; holds those of earlier commands when `on_start` is called.
        scheduler: of `early_stopping`.
        name: of the experiment in the folder.
        folder: for Ray Tune.
        job: what the trials have in common.
        on_start: called once the state of earlier commands is known.
        show: called with a trial after each of its epochs, and when it has ended.

    Raises:
        ConfigError: a trial asks for more CPUs than there are.
        StorageError: the state of an earlier command cannot be read.
        Stopped: a signal asked to stop. Trials under way are left to be continued.
    """
    places = job.places
    if not places.on_ray_train and places.cpus > cluster("CPU"):
        raise errors.ConfigError(
            f"--cpus-per-trial {places.cpus:g}: this Ray has {cluster('CPU'):g} CPUs, so no trial could ever start"
        )
    files.make_folder(fs.LocalFileSystem(), str(folder))
    with files.storage_errors("use", str(folder)):
        job.stop.unlink(missing_ok=True)
    state = SearchState(folder / f"{name}.tar.gz", folder / name)
    is_restored = state.unpack()
    driver = _Driver(trials, scheduler, state, job, on_start, show, expects_state=is_restored)
    for one in (trials, scheduler, driver):
        one.enter()
    trained = tune.with_resources(trainable(job), _resources(places))
    with in_order(driver.ask_to_stop), _environment():
        # Also where a search is resumed: `restore` reads what this one writes, see `Live`.
        tuner = tune.Tuner(
            trained,
            tune_config=tune.TuneConfig(
                search_alg=Generator(trials),
                scheduler=scheduler,
                num_samples=-1,  # until the searcher ends it
                reuse_actors=not places.on_ray_train,  # importing torch takes longer than many a trial
                trial_dirname_creator=_run_of,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(folder),
                callbacks=[driver],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        if is_restored:
            tuner = tune.Tuner.restore(str(folder / name), trained)
        tuner.fit()
    job.stop.unlink(missing_ok=True)
    driver.drop_checkpoints()
    if driver.signal is not None:
        raise Stopped(driver.signal)


class _Driver(Live, tune.Callback):
    """Shows the trials, keeps the state, and stops Ray Tune in order."""

    def __init__(
        self,
        trials: Trials,
        scheduler: Any,
        state: SearchState,
        job: Job,
        on_start: Callable[[], None],
        show: Show,
        *,
        expects_state: bool,
    ) -> None:
        self._trials, self._scheduler, self._state, self._job = trials, scheduler, state, job
        self._on_start, self._show, self._expects_state = on_start, show, expects_state
        self.signal: int | None = None
        self._give_up: float | None = None
        self._stopped: set[str] = set()  # ids of trials that have ended in order

    def get_state(self) -> dict[str, Any]:
        """Return what the scheduler has to remember: Ray Tune does not ask it."""
        return {"scheduler": self._scheduler.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self._expects_state = False
        self._scheduler.set_state(state["scheduler"])

    def setup(self, *_: Any, **__: Any) -> None:
        """Check that an earlier command's state was found: Ray Tune would start over silently."""
        if self._expects_state:
            raise errors.StorageError(
                f"Ray Tune cannot restore the search from {self._state.path}: it was written by another version of "
                "Ray or of es_service perhaps; name another --out"
            )
        self._on_start()

    def ask_to_stop(self, number: int) -> None:
        """Take the signal that asks for it."""
        self.signal = number
        self._trials.is_stopped = True
        self._give_up = time.monotonic() + _PATIENCE_S
        self._job.stop.touch()

    def on_step_begin(self, iteration: int, trials: list[Any], **_: Any) -> None:  # noqa: ARG002
        """End Ray Tune's loop, its own way, once all trials have ended in order."""
        running = {one.trial_id for one in trials if one.status == TuneTrial.RUNNING}
        if self._give_up is not None and (running <= self._stopped or time.monotonic() > self._give_up):
            self._give_up = None
            signal.raise_signal(signal.SIGUSR1)  # Ray Tune's own Ctrl-C: its state has the trials as running

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:  # noqa: ARG002
        """Keep the state; then drop the checkpoints of trials that have ended in it."""
        if trials and self._state.keep(Path(trials[0].local_experiment_path)):
            self.drop_checkpoints()

    def on_experiment_end(self, trials: list[Any], **_: Any) -> None:
        """Keep the last state."""
        self.on_step_end(0, trials)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any) -> None:  # noqa: ARG002
        """Show an epoch."""
        if "stopped" in result:
            self._stopped.add(trial.trial_id)
        elif (ours := self._trials.trials[trial.config["number"]]).epochs and ours.status == RUNNING:
            self._show(ours)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:  # noqa: ARG002
        """Show that a trial has ended."""
        self._show(self._trials.trials[trial.config["number"]])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:  # noqa: ARG002
        """Show that a trial's process has ended, and why."""
        ours = self._trials.trials[trial.config["number"]]
        with contextlib.suppress(OSError, ValueError):
            _when, *lines = Path(trial.local_path, "error.txt").read_text(errors="replace").strip().splitlines()
            why = next((line for line in lines if not line.startswith("Traceback")), "no message")
            ours.error = f"its process ended: {why.strip()}"
        self._show(ours)

    def drop_checkpoints(self) -> None:
        """Drop the checkpoints of trials that have ended."""
        for trial in self._trials.trials:
            if trial.status != RUNNING:
                drop_checkpoints(Path(self._job.storage), trial.run)


def _run_of(trial: Any) -> str:
    """Return the name of a trial's folder in Ray Tune's: its run's, and its id where it is tried again."""
    run: str = trial.config["spec"]["run"]
    return f"{run}-{trial.trial_id}" if trial.config["retry"] else run


def end_run(storage: Path) -> Callable[[str], None]:
    """Return a function that asks a run's Ray Train job to end."""
    from es_service.training.workers.ray import ask_to_stop

    return lambda run: ask_to_stop(str(storage), run)


def cluster(resource: str) -> float:
    """Return how much of a resource this Ray has."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get(resource, 0.0)


def _resources(places: Places) -> dict[str, float]:
    """Return what a trial's own process holds. With Ray Train the workers hold the CPUs: one more would be idle."""
    if places.on_ray_train:
        return {"CPU": 0, "memory": 1}  # a byte: Ray Tune takes no trial that asks for nothing
    return {"CPU": places.cpus, **({"GPU": 1} if cluster("GPU") else {})}


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set what Ray Tune reads from the environment, and keep its reports and logs to itself."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune")]
    levels, handler = [one.level for one in loggers], signal.getsignal(signal.SIGUSR1)
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
        with contextlib.suppress(ValueError):  # no signals in a thread
            signal.signal(signal.SIGUSR1, handler)
