"""`train`: one run from its description to its result, in this process or on Ray."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from es_service import errors
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.ledger import SECTIONS, Ledger
from es_service.selection.config import Selection
from es_service.selection.scorekeeper import RunConfig, Scorekeeper
from es_service.selection.settings import as_integer, suggest
from es_service.selector import Selector
from es_service.storage.files import absolute
from es_service.storage.runs import RunStorage
from es_service.training.loop import TrainSettings, fit
from es_service.training.tasks import build_task

__all__ = ["EXCHANGES", "TrainJob", "train"]

EXCHANGES = ("leased", "sync", "embedded")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A run to train.

    Args:
        run: its name.
        storage: folder that holds the runs.
        task: name of the task; `data` is its data folder, None for what it brings along.
        method: short name of the selection, for the result.
        selection: what to select, and how.
        exchange: "leased", "sync" or "embedded" (one worker in this process, no Ray).
        num_workers: ranks.
        epochs, batch_size, learning_rate: None takes the task's own.
        micro_batch_size: most samples of one pass.
        seed: of the initial weights; the selection has its own.
        resume: go on with a run of this name; otherwise the name must be new.
    """

    run: str
    storage: str
    task: str
    method: str
    selection: Selection
    data: str | None = None
    exchange: Literal["leased", "sync", "embedded"] = "leased"
    num_workers: int = 1
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    micro_batch_size: int | None = None
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        if self.exchange not in EXCHANGES:
            raise errors.ConfigError(f"unknown exchange {self.exchange!r}; {suggest(self.exchange, list(EXCHANGES))}")
        as_integer("workers", self.num_workers, least=1)
        as_integer("seed", self.seed, least=0, end=2**63)
        if self.exchange == "embedded" and self.num_workers != 1:
            raise errors.ConfigError(
                f"exchange 'embedded' keeps the table in one process, so workers={self.num_workers} cannot share it: "
                "use 'leased' or 'sync'"
            )
        if self.exchange == "embedded" and "://" in self.storage:
            raise errors.ConfigError(
                f"exchange 'embedded' keeps its checkpoints in a local folder, not at {self.storage}: name a folder"
            )


def train(job: TrainJob, watch: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train a run and return its result, which also goes to result.json in the run's folder.

    Args:
        job: what to train.
        watch: called with how far it is: {"progress": {epoch, done, num_epochs, samples, saving, history}, …}.

    Raises:
        RunExistsError: the name is taken, and `resume` was not asked for.
        RunNotFoundError: nothing of this name to resume.
        EsServiceError: see errors.py.
    """
    begin = time.monotonic()
    storage = RunStorage(job.storage, job.run)
    task = build_task(job.task, job.data)
    defaults = task.defaults
    config = RunConfig(
        selection=job.selection,
        num_samples=len(task.train_set),
        num_epochs=job.epochs if job.epochs is not None else defaults.epochs,
        batch_size=job.batch_size if job.batch_size is not None else defaults.batch_size,
    )
    settings = TrainSettings(
        learning_rate=job.learning_rate if job.learning_rate is not None else defaults.learning_rate,
        momentum=defaults.momentum,
        weight_decay=defaults.weight_decay,
        micro_batch_size=job.micro_batch_size,
        seed=job.seed,
    )
    config.check_world(job.num_workers)
    training = _training(job, config, settings)
    if job.resume:
        _check_resumed(job.run, storage.training() or {}, training)
    elif storage.exists():
        raise errors.RunExistsError(
            f"run {job.run!r} exists in {job.storage}: continue it with --resume, or take another --run name"
        )
    if job.exchange == "embedded":
        storage.begin(config, training)
        metrics = _fit_here(storage, config, settings, task, watch)
    else:
        metrics = _fit_on_ray(job, storage, config, settings, training, watch)
    result = _result(job, config, metrics, time.monotonic() - begin)
    storage.write_result(result)
    return result


def _training(job: TrainJob, config: RunConfig, settings: TrainSettings) -> dict[str, Any]:
    """Return how this run is trained, as plain values: what `--resume` starts from."""
    return {
        "task": job.task,
        "data": job.data,
        "method": job.method,
        "selection": job.selection.to_dict(),
        "epochs": config.num_epochs,
        "batch_size": config.batch_size,
        "learning_rate": settings.learning_rate,
        "micro_batch_size": settings.micro_batch_size,
        "seed": job.seed,
        "exchange": job.exchange,
        "workers": job.num_workers,
    }


_MAY_CHANGE = ("exchange", "workers", "data")
"""What a resumed training may do otherwise: none of it changes what a sample's id means or how it is trained on."""


def _check_resumed(run: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [
        f"{key}: was {before[key]!r}, now {now[key]!r}"
        for key in now
        if key not in _MAY_CHANGE and key in before and before[key] != now[key]
    ]
    if differing:
        raise errors.RunMismatchError(
            f"run {run!r} was begun with other settings ({'; '.join(differing)}): resume it without naming these, or "
            "take another run name"
        )


def _fit_on_ray(
    job: TrainJob,
    storage: RunStorage,
    config: RunConfig,
    settings: TrainSettings,
    training: dict[str, Any],
    watch: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    try:
        from es_service.actors.cluster import ensure_ray
        from es_service.training import ray_train
    except ImportError as error:
        raise errors.ConfigError(
            f"exchange {job.exchange!r} needs Ray: pip install 'es-service[ray]', or take 'embedded' ({error})"
        ) from error
    ensure_ray()
    storage.begin(
        config, training
    )  # here as well as in the server: what cannot be written shows before any worker starts
    ray_job = ray_train.RayJob(
        run=job.run,
        storage=absolute(job.storage),
        config=config,
        settings=settings,
        exchange="sync" if job.exchange == "sync" else "leased",
        num_workers=job.num_workers,
        task=job.task,
        data=absolute(job.data) if job.data is not None and os.path.exists(job.data) else job.data,
    )
    return ray_train.fit_with_ray(ray_job, watch)


def _fit_here(
    storage: RunStorage, config: RunConfig, settings: TrainSettings, task: Any, watch: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    from es_service.training.local import LocalWorkers

    selector = Selector(
        config.selection,
        num_samples=config.num_samples,
        num_epochs=config.num_epochs,
        batch_size=config.batch_size,
        exchange=Embedded(Scorekeeper(config), Position(0, 1), storage, lambda progress: watch({"progress": progress})),
    )
    return fit(task, selector, settings, LocalWorkers(Path(storage.path) / "checkpoints"))


def _result(job: TrainJob, config: RunConfig, metrics: dict[str, Any], wall_s: float) -> dict[str, Any]:
    """Return the run's result as plain values, ready for JSON."""
    ledger = Ledger.from_dict(metrics["ledger"])
    return {
        "run": job.run,
        "method": job.method,
        "task": job.task,
        "exchange": job.exchange,
        "workers": metrics["world_size"],
        "epochs": config.num_epochs,
        "seed": job.seed,
        "accuracy": metrics["accuracy"],
        "samples": {"scored": ledger.scored, "trained": ledger.trained, "full": ledger.full},
        "seconds": {
            "total": ledger.total_s,
            **{section: ledger.seconds[section] for section in SECTIONS},
            "wall": wall_s,
        },
        "saving": ledger.saving(),
        "skipped": ledger.skipped,
        "history": metrics["history"],
        "storage": job.storage,
    }
