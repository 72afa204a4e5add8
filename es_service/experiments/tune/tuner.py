"""Ray Tune around a queue of trials: the driver's side.

Ray Tune keeps no state that is needed again: a search that goes on tells queue and early stopping what its journal
holds.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune

from es_service import errors
from es_service.experiments.experiment_spec import RunSpec
from es_service.experiments.tune.conductor import Conductor, Source, Stop, Tell
from es_service.experiments.tune.early_stopping import Asha, Early, Never
from es_service.experiments.tune.halving import HyperBand
from es_service.experiments.tune.queue import Queue
from es_service.experiments.tune.rungs import cheapening
from es_service.experiments.tune.search_spec import Places, Search
from es_service.experiments.tune.trainable import trainable
from es_service.experiments.tune.trials import RUNNING, Trial
from es_service.stopping import Stopped, in_order

__all__ = ["early_stopping", "run_trials"]


_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # nobody reads them
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "3600",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": os.environ.get("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2"),
}


def early_stopping(search: Search) -> Early:
    """Return what stops a search's trials early: HyperBand where BOHB proposes them, else ASHA where asked for."""
    if not search.early_stopping or search.epochs < 2:
        return Never()
    searched, metric = search.space.domains, search.objective.metric
    if search.algorithm == "bohb":
        return HyperBand(search.epochs, metric, searched)
    return Asha(search.epochs, metric, cheaply=cheapening(searched))


def run_trials(
    queue: Queue,
    *,
    spec: Callable[[Trial], RunSpec],
    num_trials: int,
    storage: Path,
    search: str,
    whole: int,
    places: Places,
    early: Early,
    retry_failed: bool,
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
        early: what stops those that fall behind, see `early_stopping`.
        retry_failed: whether trials that failed before are trained once more.
        restored: called once what was done before is known.
        tell: called with a trial after each of its epochs, and when it has ended.

    Raises:
        ConfigError: a trial asks for more CPUs than there are.
        Stopped: a signal asked to stop. Trials under way are left to be continued.
    """
    conductor = Conductor(queue, spec, early, tell, storage, places)
    conductor.go_through_journal()
    if retry_failed:
        conductor.retry_failed()
    restored()
    left = num_trials - sum(one.status != RUNNING for one in queue.trials)
    if left == 0:
        return
    if not places.on_ray_train and places.cpus > _cluster("CPU"):
        raise errors.ConfigError(
            f"--cpus-per-trial {places.cpus:g}: this Ray has {_cluster('CPU'):g} CPUs, so no trial could ever start"
        )
    scratch = storage.parent / "tune"
    stop = Stop()
    stop.in_order = conductor.ask_all_to_stop
    train = functools.partial(trainable, storage=str(storage), search=search, whole=whole, places=places)
    tuner = tune.Tuner(
        tune.with_resources(_named_function(train), _resources(places)),
        tune_config=tune.TuneConfig(
            search_alg=Source(conductor, spec, stop),
            scheduler=conductor,
            num_samples=-1,  # until the source says so: who waits for others is begun more than once
            max_concurrent_trials=places.room(_cluster("CPU")),
            reuse_actors=not places.on_ray_train,  # a new process takes longer to import torch than many a trial trains
        ),
        run_config=tune.RunConfig(name=search, storage_path=str(scratch), stop=stop, verbose=0),
    )
    try:
        with in_order(stop.ask), _quiet():
            tuner.fit()
    finally:
        conductor.tidy_up()
        shutil.rmtree(scratch, ignore_errors=True)
    if stop.signal is not None:
        raise Stopped(stop.signal)


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
