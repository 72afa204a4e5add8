"""Ray Train around the training loop: the driver's side, which starts the workers and the score server.

driver ── starts ──► score server ◄── reports ── worker 0..W-1 (`workers.ray`, with the loop in `loop.fit`)
   └──── asks every half second how far it is ──► score server

With the exchange "collective" there is no score server: the workers exchange observations among themselves, and rank 0
writes its progress into the run's folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray import train
from ray.train import torch as ray_torch

from es_service import errors
from es_service.actors import launch
from es_service.actors.calls import call
from es_service.selection.run import RunConfig
from es_service.storage.files import absolute
from es_service.storage.runs import RunStorage
from es_service.training.spec import TrainingSpec
from es_service.training.workers.ray import work

__all__ = ["fit_with_ray"]

_WATCH_EVERY_S = 0.5
_MAX_FAILURES = 3
_TAKEN_DEADLINE_S = 15.0
_ABORT_DEADLINE_S = 10.0
_WORTH_ANOTHER_TRY = (errors.ServerError, errors.TrainingError, errors.EpochOrderError)


def fit_with_ray(spec: TrainingSpec, config: RunConfig, watch: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train on Ray and return what `loop.fit` returns.

    Args:
        spec: what to train, filled, on the cluster that `ensure_ray` connected to.
        config: of its run.
        watch: called about twice a second with the score server's `stats`, or with {"progress": …} where there is none.

    Raises:
        RunExistsError: a score server of this name is up already.
        EsServiceError: as raised in a worker, or by the score server.
        TrainingError: whatever else ended the workers, more often than they are started again.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how long an epoch's report blocks
    spec = dataclasses.replace(spec, storage=absolute(spec.storage))
    if spec.exchange == "collective":
        storage = RunStorage(spec.storage, spec.run)
        with _watching(lambda: {"progress": storage.read_note("progress")}, watch):
            return _fit(spec)
    _wait_until_free(spec.run)
    server = launch.start(spec.run, config, spec.storage, shards=spec.shards, detached=False)[0]
    ask = server.stats.options(concurrency_group=launch.READ_GROUP)
    try:
        with _watching(lambda: call(ask.remote(), 5.0, "ask how far the training is"), watch):
            return _fit(spec)
    finally:
        with contextlib.suppress(errors.RunNotFoundError):
            launch.stop(spec.run)


def _wait_until_free(run: str) -> None:
    """Return once no score server has this run's name: that of a job just killed takes a moment to go.

    Raises:
        RunExistsError: it stays; another process is training this run.
    """
    give_up = time.monotonic() + _TAKEN_DEADLINE_S
    while time.monotonic() < give_up:
        try:
            launch.find(run)
        except errors.RunNotFoundError:
            return
        time.sleep(_WATCH_EVERY_S)  # polling: Ray does not notify when a name gets free
    raise errors.RunExistsError(
        f"a score server for run {run!r} is up on this Ray: another training of that name is under way, or es.connect "
        f"started it (es_service.actors.launch.stop({run!r}) ends it); or take another run name"
    )


def _fit(spec: TrainingSpec) -> dict[str, Any]:
    """Train, starting the group again from its last checkpoint where workers died; a failure of ours is final.

    Ray Train's own retries would repeat a diverged loss or a full disk as often as a dead machine.
    """
    attempts_left = _MAX_FAILURES
    while True:
        trainer = _trainer(spec)
        try:
            return dict(trainer.fit().metrics or {})
        except KeyboardInterrupt:
            trainer.abort()
            raise
        except train.TrainingFailedError as error:
            cause = _cause(error)
            if not attempts_left or not isinstance(cause, _WORTH_ANOTHER_TRY):
                raise cause from error
            attempts_left -= 1


def _cause(error: train.TrainingFailedError) -> errors.EsServiceError:
    """Return the error that ended a worker: as it is if from this package, else wrapped."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        while failure is not None:
            cause = getattr(failure, "cause", None)
            for one in (failure, cause):
                if isinstance(one, errors.EsServiceError):
                    return one
            failure = cause or failure.__cause__
    first = next((line for line in reversed(str(failures[0]).strip().splitlines()) if line.strip()), repr(failures[0]))
    return errors.TrainingError(f"the workers ended before the training did: {first.strip()}")


class _Trainer(ray_torch.TorchTrainer):
    """A trainer that leaves signals to this program, and can end its workers on request."""

    _controller: Any = None

    def _create_default_callbacks(self) -> list[Any]:
        """Leave out the callback that starts a process for Ray Data's datasets: none is given to these workers."""
        made: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [one for one in made if type(one).__name__ != "DatasetsCallback"]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Keep what Ray's handler of SIGINT would end: that handler exits with status 1 without a message."""
        self._controller = controller

    def abort(self) -> None:
        """End the workers and give back what they hold; those of a cluster outlive their driver for a while."""
        if self._controller is not None:
            with contextlib.suppress(ray.exceptions.RayError):  # it ends without an answer
                ray.get(self._controller.abort.remote(), timeout=_ABORT_DEADLINE_S)


def _trainer(spec: TrainingSpec) -> _Trainer:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    use_gpu = resources.get("GPU", 0) >= spec.workers
    storage = RunStorage(spec.storage, spec.run)
    cpus_each = min(1.0, resources.get("CPU", 1.0) / spec.workers)
    return _Trainer(
        work,
        train_loop_config=spec.to_dict(),
        scaling_config=train.ScalingConfig(
            num_workers=spec.workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus_each, "GPU": int(use_gpu)}
        ),
        run_config=train.RunConfig(
            name="train",
            storage_path=storage.path,
            storage_filesystem=storage.filesystem,
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
        ),
    )


@contextlib.contextmanager
def _watching(stats: Callable[[], dict[str, Any]], watch: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Hand the run's stats to `watch`, from a background thread, for as long as the block lasts."""
    stop = threading.Event()

    def look() -> None:
        with contextlib.suppress(errors.EsServiceError):  # a server may be restarting; the next round shows
            watch(stats())

    def run() -> None:
        while not stop.wait(_WATCH_EVERY_S):
            look()

    thread = threading.Thread(target=run, name="es-service-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()  # at what came in since
