"""`train`: one run from its description to its result, in this process or on Ray."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from es_service import errors
from es_service.connect import ExchangeName
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection import idle
from es_service.selection.run import RunConfig
from es_service.selection.scorekeeper import Scorekeeper
from es_service.selector import Selector
from es_service.storage import labels
from es_service.storage.files import absolute, join
from es_service.storage.runs import RunStorage
from es_service.training import irreducible
from es_service.training.described import EXCHANGES, TrainJob
from es_service.training.loop import fit
from es_service.training.result import measured, trained_on
from es_service.training.settings import TrainSettings
from es_service.training.tasks import build_task, check_signals
from es_service.training.tasks.base import Task

__all__ = ["EXCHANGES", "TrainJob", "note_samples", "train"]


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
    task = build_task(job.task, job.data, job.derived)
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
    idle.warn_if_idle(config, job.num_workers)
    check_signals(task, job.selection)
    job = dataclasses.replace(
        job,
        selection=config.selection,
        epochs=config.num_epochs,
        batch_size=config.batch_size,
        learning_rate=settings.learning_rate,
    )
    job.check_place()
    if job.exchange != "embedded":
        _reach_ray(job.exchange)
    storage.begin(config, job.description(), search=job.search)  # what cannot be written shows before any worker starts
    note_samples(storage, task)
    prepared = _prepare(job, storage, config, settings, task)
    if job.exchange == "embedded":
        metrics = _fit_here(storage, config, settings, task, prepared, watch)
    else:
        metrics = _fit_on_ray(job, job.exchange, config, settings, prepared, watch)
    result = {
        "run": job.run,
        "method": job.method,
        "task": job.task,
        "exchange": job.exchange,
        "epochs": config.num_epochs,
        "seed": job.seed,
        "storage": job.storage,
        **measured(metrics, time.monotonic() - begin),
        **trained_on(task, storage),
        "prepared": {name: prepared[name] for name in ("scored", "trained", "seconds")},
    }
    storage.write_result(result)
    return result


def note_samples(storage: RunStorage, task: Task) -> None:
    """Write down what the task says of its samples, for those who look at the run without the task."""
    shown = getattr(task, "preview", None)
    first = None if shown is None else shown(0)
    if not isinstance(first, str | bytes | None):
        raise errors.ConfigError(
            f"preview() of the task {task.name!r} must return a PNG file as bytes, or a str, got {type(first).__name__}"
        )
    preview = None if first is None else "text/plain" if isinstance(first, str) else "image/png"
    labels.write_notes(storage, task.labels, task.label_names, preview)


def _prepare(
    job: TrainJob, storage: RunStorage, config: RunConfig, settings: TrainSettings, task: Task
) -> dict[str, Any]:
    """Return the file of irreducible losses, None where none are needed, and what it cost to make it.

    Those worked out here are kept with the run: a resumed one finds them.
    """
    cost = {"path": None, "scored": 0, "trained": 0, "seconds": 0.0}
    if not job.needs_irreducible:
        return cost
    if job.irreducible is not None:
        path = absolute(job.irreducible)
        irreducible.read_losses(path, config.num_samples)  # fails here rather than in a worker
        return {**cost, "path": path}
    path = join(absolute(job.storage), job.run, "irreducible.arrow")
    kept = storage.read_note("prepared")
    if kept is None:
        found = irreducible.hold_out_losses(
            task,
            settings,
            num_epochs=config.num_epochs,
            batch_size=config.batch_size * job.num_workers,
            selection_seed=config.selection.seed,
        )
        irreducible.write_losses(path, found.losses)
        kept = {"scored": found.scored, "trained": found.trained, "seconds": found.seconds}
        storage.write_note("prepared", kept)
    return {**kept, "path": path}


def _reach_ray(exchange: str) -> None:
    try:
        from es_service.actors.cluster import ensure_ray
    except ImportError as error:
        raise errors.ConfigError(
            f"exchange {exchange!r} needs Ray: pip install 'es-service[ray]', or take 'embedded' ({error})"
        ) from error
    ensure_ray()


def _fit_on_ray(
    job: TrainJob,
    exchange: ExchangeName,
    config: RunConfig,
    settings: TrainSettings,
    prepared: dict[str, Any],
    watch: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    from es_service.training import ray_train

    ray_job = ray_train.RayJob(
        run=job.run,
        storage=absolute(job.storage),
        config=config,
        settings=settings,
        exchange=exchange,
        shards=job.shards,
        every=job.every,
        num_workers=job.num_workers,
        task=job.task,
        data=job.data_place,
        derived=job.derived,
        irreducible=prepared["path"],
        stoppable=job.search is not None,
    )
    return ray_train.fit_with_ray(ray_job, watch)


def _fit_here(
    storage: RunStorage,
    config: RunConfig,
    settings: TrainSettings,
    task: Task,
    prepared: dict[str, Any],
    watch: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    from es_service.training.local import LocalWorkers

    path = prepared["path"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.NothingSelectedWarning)  # `train` has warned already
        selector = Selector(
            config.selection,
            num_samples=config.num_samples,
            num_epochs=config.num_epochs,
            batch_size=config.batch_size,
            irreducible_losses=None if path is None else irreducible.read_losses(path, config.num_samples),
            exchange=Embedded(
                Scorekeeper(config), Position(0, 1), storage, lambda progress: watch({"progress": progress})
            ),
        )
    return fit(task, selector, settings, LocalWorkers(Path(storage.path) / "checkpoints"))
