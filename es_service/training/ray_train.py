"""Ray Train around the training loop: the workers' side, and the driver's that starts them and the score server.

driver ── starts ──► score server ◄── reports ── worker 0..W-1 (the loop in `loop.fit`)
   └──── asks every half second how far it is ──► score server

With the exchange "collective" there is no score server: the workers tell each other, and rank 0 writes into the run's
folder how far it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.train import torch as ray_torch

from es_service import errors
from es_service.actors import launch
from es_service.actors.calls import call
from es_service.connect import ExchangeName, connect
from es_service.selection.run import RunConfig
from es_service.storage.runs import RunStorage
from es_service.training.irreducible import read_losses
from es_service.training.loop import fit
from es_service.training.settings import TrainSettings
from es_service.training.tasks import build_task
from es_service.training.tasks.derived import Derived

__all__ = ["RayJob", "RayWorkers", "ask_to_stop", "fit_with_ray"]

_WATCH_EVERY_S = 0.5
_MAX_FAILURES = 3
_STOP = "stop"  # note in the run's folder
_TAKEN_DEADLINE_S = 15.0
_ABORT_DEADLINE_S = 10.0
_WORTH_ANOTHER_TRY = (errors.ServerError, errors.TrainingError, errors.EpochOrderError)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RayJob:
    """A training on Ray.

    Args:
        run: name of the run, and of its folder in the storage.
        storage: folder or URI that every node sees.
        config: of the run.
        settings: of the optimiser.
        exchange: "leased", "sync", "prefetch" or "collective".
        shards: over how many actors the table is spread.
        num_workers: ranks.
        task: name of the task.
        data: the task's data folder, None for what it brings along.
        derived: what to make of its train set.
        irreducible: file of irreducible losses that every node sees, None where the method needs none.
        every: steps between two all-gathers of "collective".
        stoppable: whether its rank 0 looks if somebody asked it to stop.
    """

    run: str
    storage: str
    config: RunConfig
    settings: TrainSettings
    exchange: ExchangeName
    shards: int
    num_workers: int
    task: str
    data: str | None = None
    derived: Derived = dataclasses.field(default_factory=Derived)
    irreducible: str | None = None
    every: int = 1
    stoppable: bool = False


def ask_to_stop(storage: str, run: str, *, asked: bool = True) -> None:
    """Ask a stoppable training to stop, or take that back.

    Its workers, their placement group and its score server then end in order, which they do not where the process that
    started it is killed: Ray Train keeps the placement group until its own watcher sees that, for
    which it needs Ray's dashboard.
    """
    RunStorage(storage, run).write_note(_STOP, {"asked": asked})


class RayWorkers:
    """The group of Ray Train workers; see `Workers`.

    Args:
        run: folder of a run that may be asked to stop, see `ask_to_stop`; None where nobody will ask.
    """

    def __init__(self, run: RunStorage | None = None) -> None:
        self._run = run
        context = train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device = ray_torch.get_device()

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """See `Workers.prepare`."""
        prepared: torch.nn.Module = ray_torch.prepare_model(model)
        return prepared

    def share_buffers(self, model: torch.nn.Module) -> None:
        """See `Workers.share_buffers`."""
        if self.world_size > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def gather(self, value: Any) -> list[Any]:
        """See `Workers.gather`."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def report(self, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        """See `Workers.report`."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if self.rank == 0:
                save(Path(folder))
                checkpoint = train.Checkpoint.from_directory(folder)
            train.report(metrics, checkpoint=checkpoint)

    def raise_if_stopped(self) -> None:
        """See `Workers.raise_if_stopped`; the group then ends, of which this is a failed worker."""
        if self._run is not None and (self._run.read_note(_STOP) or {}).get("asked"):
            raise errors.StoppedError(f"run {self._run.run!r} was asked to stop: --resume goes on with it")

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        """See `Workers.checkpoint`."""
        found = train.get_checkpoint()
        if found is None:
            yield None
            return
        with found.as_directory() as folder:
            yield Path(folder)


def _worker(config: dict[str, RayJob]) -> None:
    """Run the loop on one worker."""
    job = config["job"]
    selector = connect(
        job.run,
        job.config.selection,
        num_samples=job.config.num_samples,
        num_epochs=job.config.num_epochs,
        batch_size=job.config.batch_size,
        irreducible_losses=None if job.irreducible is None else read_losses(job.irreducible, job.config.num_samples),
        exchange=job.exchange,
        every=job.every,
        storage=job.storage,
    )
    try:
        run = RunStorage(job.storage, job.run) if job.stoppable else None
        fit(build_task(job.task, job.data, job.derived), selector, job.settings, RayWorkers(run))
    finally:
        selector.close()


def fit_with_ray(job: RayJob, watch: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train on Ray and return what `loop.fit` returns.

    Args:
        job: what to train, on the cluster that `ensure_ray` connected to.
        watch: called about twice a second with the score server's `stats`, or with {"progress": …} where there is none.

    Raises:
        RunExistsError: a score server of this name is up already.
        EsServiceError: as raised in a worker, or by the score server.
        TrainingError: whatever else ended the workers, more often than they are started again.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how long an epoch's report blocks
    if job.exchange == "collective":
        storage = RunStorage(job.storage, job.run)
        with _watching(lambda: {"progress": storage.read_note("progress")}, watch):
            return _fit(job)
    _wait_until_free(job.run)
    server = launch.start(job.run, job.config, job.storage, shards=job.shards, detached=False)[0]
    ask = server.stats.options(concurrency_group=launch.READ_GROUP)
    try:
        with _watching(lambda: call(ask.remote(), 5.0, "ask how far the training is"), watch):
            return _fit(job)
    finally:
        with contextlib.suppress(errors.RunNotFoundError):
            launch.stop(job.run)


def _wait_until_free(run: str) -> None:
    """Return once no score server has this run's name: that of a job just killed takes a moment to go.

    Raises:
        RunExistsError: it stays; somebody is training this run.
    """
    give_up = time.monotonic() + _TAKEN_DEADLINE_S
    while time.monotonic() < give_up:
        try:
            launch.find(run)
        except errors.RunNotFoundError:
            return
        time.sleep(_WATCH_EVERY_S)  # polling: Ray says nothing when a name gets free
    raise errors.RunExistsError(
        f"a score server for run {run!r} is up on this Ray: another training of that name is under way, or es.connect "
        f"started it (es_service.actors.launch.stop({run!r}) ends it); or take another run name"
    )


def _fit(job: RayJob) -> dict[str, Any]:
    """Train, starting the group again from its last checkpoint where workers died; a failure of ours is final.

    Ray Train's own retries would repeat a diverged loss or a full disk as often as a dead machine.
    """
    attempts_left = _MAX_FAILURES
    while True:
        trainer = _trainer(job)
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
    """Return our own error that ended a worker, a foreign one wrapped otherwise."""
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
    """A trainer that leaves signals to this program, and can be told to end its workers."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        """Keep what Ray's handler of SIGINT would end: that handler exits with status 1 and says nothing."""
        self._controller = controller

    def abort(self) -> None:
        """End the workers and give back what they hold; those of a cluster outlive their driver for a while."""
        if self._controller is not None:
            with contextlib.suppress(ray.exceptions.RayError):  # it ends without an answer
                ray.get(self._controller.abort.remote(), timeout=_ABORT_DEADLINE_S)


def _trainer(job: RayJob) -> _Trainer:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    use_gpu = resources.get("GPU", 0) >= job.num_workers
    storage = RunStorage(job.storage, job.run)
    cpus_each = min(1.0, resources.get("CPU", 1.0) / job.num_workers)
    return _Trainer(
        _worker,
        train_loop_config={"job": job},
        scaling_config=train.ScalingConfig(
            num_workers=job.num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus_each, "GPU": int(use_gpu)}
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
    """Hand the run's stats to `watch`, from a thread of its own, for as long as the block lasts."""
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
