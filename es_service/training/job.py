"""`train`: one run from its description to its result, in this process or on Ray."""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from es_service import errors
from es_service.connect import ExchangeName
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection import idle
from es_service.selection.config import Selection
from es_service.selection.run import RunConfig
from es_service.selection.scorekeeper import Scorekeeper
from es_service.selection.settings import as_integer, suggest
from es_service.selector import Selector
from es_service.storage import labels
from es_service.storage.files import absolute
from es_service.storage.runs import RunStorage
from es_service.training import irreducible
from es_service.training.loop import TrainSettings, fit
from es_service.training.result import measured, trained_on
from es_service.training.tasks import build_task, check_signals
from es_service.training.tasks.base import Task
from es_service.training.tasks.derived import Derived

__all__ = ["EXCHANGES", "TrainJob", "note_samples", "train"]

EXCHANGES = ("leased", "sync", "prefetch", "collective", "embedded")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A run to train.

    Args:
        run: its name.
        storage: folder that holds the runs.
        task: name of the task, or module:function of one's own; `data` says where its data are, None for what it
            brings along.
        derived: what to make of its train set: wrong labels, a long tail, few samples.
        method: short name of the selection, for the result.
        selection: what to select, and how.
        exchange: "leased", "sync", "prefetch", "collective", or "embedded" (one worker in this process, no Ray).
        shards: over how many actors the table is spread.
        every: steps between two all-gathers of "collective".
        num_workers: ranks.
        epochs, batch_size, learning_rate: None takes the task's own.
        micro_batch_size: most samples of one pass.
        irreducible: file of irreducible losses, for methods that observe them; None works them out first.
        seed: of the initial weights; the selection has its own.
        resume: go on with a run of this name; otherwise the name must be new.
        search: name of the search that the run is a trial of, None where it is none's.
    """

    run: str
    storage: str
    task: str
    method: str
    selection: Selection
    data: str | None = None
    derived: Derived = dataclasses.field(default_factory=Derived)
    exchange: Literal["leased", "sync", "prefetch", "collective", "embedded"] = "leased"
    shards: int = 1
    every: int = 1
    num_workers: int = 1
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    micro_batch_size: int | None = None
    irreducible: str | None = None
    seed: int = 0
    resume: bool = False
    search: str | None = None

    def __post_init__(self) -> None:
        if self.exchange not in EXCHANGES:
            raise errors.ConfigError(f"unknown exchange {self.exchange!r}; {suggest(self.exchange, list(EXCHANGES))}")
        if self.irreducible is not None and not self._needs_irreducible:
            raise errors.ConfigError(
                f"method {self.method!r} does not look at irreducible losses: leave --irreducible out, or take rho"
            )
        as_integer("workers", self.num_workers, least=1)
        as_integer("shards", self.shards, least=1)
        as_integer("seed", self.seed, least=0, end=2**63)
        if as_integer("every", self.every, least=1) != 1 and self.exchange != "collective":
            raise errors.ConfigError(
                f"every={self.every} is a setting of exchange 'collective', the exchange is {self.exchange!r}: leave "
                "it out"
            )
        if self.exchange == "embedded" and self.num_workers != 1:
            raise errors.ConfigError(
                f"exchange 'embedded' keeps the table in one process, so workers={self.num_workers} cannot share it: "
                "use 'leased', 'sync' or 'collective'"
            )
        if self.exchange in ("embedded", "collective") and self.shards != 1:
            raise errors.ConfigError(
                f"exchange {self.exchange!r} has no score server, and so no shards={self.shards}: use 'leased'"
            )
        if self.exchange == "embedded" and "://" in self.storage:
            raise errors.ConfigError(
                f"exchange 'embedded' keeps its checkpoints in a local folder, not at {self.storage}: name a folder"
            )

    @property
    def _needs_irreducible(self) -> bool:
        return "irreducible_loss" in self.selection.signals


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
    training = _training(job, config, settings)
    if job.resume:
        _check_resumed(job.run, storage.training() or {}, training)
    elif storage.exists():
        raise errors.RunExistsError(
            f"run {job.run!r} exists in {job.storage}: continue it with --resume, or take another --run name"
        )
    if job.exchange != "embedded":
        _reach_ray(job.exchange)
    storage.begin(config, training, search=job.search)  # what cannot be written shows before any worker starts
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


def _training(job: TrainJob, config: RunConfig, settings: TrainSettings) -> dict[str, Any]:
    """Return how this run is trained, as plain values: what `--resume` starts from."""
    return {
        "task": job.task,
        "data": _data(job),
        "derived": job.derived.to_dict(),
        "method": job.method,
        "selection": config.selection.to_dict(),
        "epochs": config.num_epochs,
        "batch_size": config.batch_size,
        "learning_rate": settings.learning_rate,
        "micro_batch_size": settings.micro_batch_size,
        "irreducible": job.irreducible,
        "seed": job.seed,
        "exchange": job.exchange,
        "shards": job.shards,
        "every": job.every,
        "workers": job.num_workers,
    }


_MAY_CHANGE = ("exchange", "shards", "every", "workers", "data")
"""What a resumed training may do otherwise: none of it changes what a sample's id means or how it is trained on."""


def _check_resumed(run: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    if "selection" in before:  # as it was meant when it was written
        before = {**before, "selection": Selection.from_dict(before["selection"]).to_dict()}
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


def _prepare(
    job: TrainJob, storage: RunStorage, config: RunConfig, settings: TrainSettings, task: Task
) -> dict[str, Any]:
    """Return the file of irreducible losses, None where none are needed, and what it cost to make it.

    Those worked out here are kept with the run: a resumed one finds them.
    """
    cost = {"path": None, "scored": 0, "trained": 0, "seconds": 0.0}
    if not job._needs_irreducible:
        return cost
    if job.irreducible is not None:
        path = absolute(job.irreducible)
        irreducible.read_losses(path, config.num_samples)  # fails here rather than in a worker
        return {**cost, "path": path}
    path = f"{absolute(job.storage).rstrip('/')}/{job.run}/irreducible.arrow"
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


def _data(job: TrainJob) -> str | None:
    """Return where the data are, for whatever folder another process is in."""
    return absolute(job.data) if job.data is not None and os.path.exists(job.data) else job.data


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
        data=_data(job),
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
