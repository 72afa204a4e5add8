"""`train`: one run from its description to its result, in this process or on Ray."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from es_service import errors
from es_service.exchange.base import Position
from es_service.exchange.embedded import Embedded
from es_service.selection import idle
from es_service.selection.local_run import LocalRun
from es_service.selection.run import RunConfig
from es_service.selector import Selector
from es_service.storage import labels
from es_service.storage.files import absolute, join
from es_service.storage.runs import RunStorage
from es_service.training import irreducible, proxies
from es_service.training.loop import fit
from es_service.training.result import measured, trained_on
from es_service.training.spec import TrainingSpec
from es_service.training.tasks import build_task, check_signals
from es_service.training.tasks.base import Task

__all__ = ["note_samples", "train"]


def train(
    spec: TrainingSpec, watch: Callable[[dict[str, Any]], None], say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Train a run and return its result, which also goes to result.json in the run's folder.

    Args:
        spec: what to train.
        watch: called with how far it is: {"progress": {epoch, done, num_epochs, samples, saving, history}, …}.
        say: called with what is done before the first step, each time something begins that may take a while.

    Raises:
        RunExistsError: the name is taken, and `resume` was not asked for.
        RunNotFoundError: nothing of this name to resume.
        EsServiceError: see errors.py.
    """
    begin = time.monotonic()
    storage = RunStorage(spec.storage, spec.run)
    say("Loading data…")
    task = build_task(spec.task, spec.data, spec.derived, spec.options)
    spec = spec.filled(task.defaults)
    config = spec.config(len(task.train_set))
    config.check_world(spec.workers)
    idle.warn_if_idle(config, spec.workers)
    check_signals(task, spec.selection)
    proxy = proxies.proxy_of(spec, task) if spec.scorers else None
    spec.check_place()
    if spec.exchange != "embedded" or spec.scorers:
        say("Starting Ray…")
        _reach_ray(f"exchange {spec.exchange!r}" if spec.exchange != "embedded" else "a scorer")
    storage.begin(config, spec.description(), search=spec.search)  # what cannot be written shows before a worker starts
    note_samples(storage, task)
    spec = dataclasses.replace(spec, proxy_costs=None if proxy is None else proxies.costs(spec, storage, task, proxy))
    if spec.needs_irreducible and spec.irreducible is None:
        say("Training hold-out models for the irreducible losses…")
    prepared = _prepare(spec, storage, config, task, proxy)
    spec = dataclasses.replace(spec, irreducible=prepared["path"])
    say(f"Starting {spec.workers} worker{'s' * (spec.workers > 1)}…" if spec.exchange != "embedded" else "Training…")
    if spec.exchange == "embedded":
        metrics = _fit_here(spec, storage, config, task, watch)
    else:
        from es_service.training.ray_trainer import fit_with_ray

        metrics = fit_with_ray(spec, config, watch)
    result = {
        "run": spec.run,
        "method": spec.method,
        "task": spec.task,
        "exchange": spec.exchange,
        "epochs": config.num_epochs,
        "seed": spec.seed,
        "storage": spec.storage,
        **measured(metrics, time.monotonic() - begin),
        "backward_cost_measured": task.defaults.backward_cost is None,
        **trained_on(task, storage),
        "prepared": {name: prepared[name] for name in ("scored", "trained", "seconds")},
    }
    if spec.scorers:
        result["proxy"] = spec.proxy
    storage.write_result(result)
    return result


def note_samples(storage: RunStorage, task: Task) -> None:
    """Store the task's notes on its samples, for readers of the run that do not have the task."""
    shown = getattr(task, "preview", None)
    first = None if shown is None else shown(0)
    if not isinstance(first, str | bytes | None):
        raise errors.ConfigError(
            f"preview() of the task {task.name!r} must return a PNG file as bytes, or a str, got {type(first).__name__}"
        )
    preview = None if first is None else "text/plain" if isinstance(first, str) else "image/png"
    labels.write_notes(storage, task.labels, task.label_names, preview)


def _prepare(
    spec: TrainingSpec, storage: RunStorage, config: RunConfig, task: Task, proxy: Task | None
) -> dict[str, Any]:
    """Return the file of irreducible losses, None where none are needed, and what it cost to make it.

    With scorers they are those of the proxy, whose losses they are compared with; it counts as many samples as cost the
    task's own model as much. Those worked out here are kept with the run: a resumed one finds them.
    """
    cost = {"path": None, "scored": 0, "trained": 0, "seconds": 0.0}
    if not spec.needs_irreducible:
        return cost
    if spec.irreducible is not None:
        path = absolute(spec.irreducible)
        irreducible.read_losses(path, config.num_samples)  # fails here rather than in a worker
        return {**cost, "path": path}
    path = join(absolute(spec.storage), spec.run, "irreducible.arrow")
    kept = storage.read_note("prepared")
    if kept is None:
        found = irreducible.hold_out_losses(
            proxy or task,
            spec.settings(task.defaults) if proxy is None else proxies.settings_of(spec, proxy),
            num_epochs=config.num_epochs,
            batch_size=config.batch_size * spec.workers,
            selection_seed=config.selection.seed,
        )
        irreducible.write_losses(path, found.losses)
        kept = {"scored": found.scored, "trained": found.trained, "seconds": found.seconds}
        if proxy not in (None, task):
            kept |= {"scored": 0, "trained": proxies.equivalent(spec, found)}
        storage.write_note("prepared", kept)
    return {**kept, "path": path}


def _reach_ray(what: str) -> None:
    try:
        from es_service.actors.cluster import ensure_ray
    except ImportError as error:
        raise errors.ConfigError(
            f"{what} needs Ray: pip install 'es-service[ray]', or take exchange 'embedded' without scorers ({error})"
        ) from error
    ensure_ray()


def _fit_here(
    spec: TrainingSpec, storage: RunStorage, config: RunConfig, task: Task, watch: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    from es_service.training.workers.local import LocalWorkers

    path = spec.irreducible
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.NothingSelectedWarning)  # `train` has warned already
        selector = Selector(
            config.selection,
            num_samples=config.num_samples,
            num_epochs=config.num_epochs,
            batch_size=config.batch_size,
            irreducible_losses=None if path is None else irreducible.read_losses(path, config.num_samples),
            tokens=getattr(task, "tokens", None),
            exchange=Embedded(
                LocalRun(config), Position(0, 1), storage, lambda progress: watch({"progress": progress})
            ),
        )
    with proxies.started(spec, config.num_epochs) as scorer:
        workers, settings = LocalWorkers(Path(storage.path) / "checkpoints"), spec.settings(task.defaults)
        return fit(task, selector, settings, workers, scorer, weights_every=spec.weights_every)
