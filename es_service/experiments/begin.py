"""The contact with training: the only module here that knows how a task is built and how a run is described to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from es_service.experiments.compare.candidates import Contender
from es_service.experiments.compare.comparison import Comparison
from es_service.experiments.experiment_spec import RunSpec
from es_service.selection.config import Selection
from es_service.selection.idle import warn_if_idle
from es_service.selection.settings import as_integer
from es_service.storage.files import absolute
from es_service.training.described import TrainJob
from es_service.training.settings import TrainSettings
from es_service.training.tasks import build_task, check_signals, check_task_data, check_task_name
from es_service.training.tasks.derived import Derived

__all__ = ["begin", "check_subject", "train_job"]


def check_subject(
    *,
    task: str,
    data: str | None,
    derived: Mapping[str, Any],
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float | None,
) -> dict[str, Any]:
    """Check what can be known of a subject before its task is built, which takes torch and the data.

    Returns:
        Of `Subject.identity` what is known already: the task, and what was given.

    Raises:
        ConfigError: an unknown task, or a value outside its domain.
        DataError: the task's data are not where they should be.
    """
    check_task_name(task)
    check_task_data(task, data)
    counts = {"epochs": epochs, "batch_size": batch_size}
    for name, value in counts.items():
        if value is not None:
            as_integer(name, value, least=1)
    if learning_rate is not None:
        TrainSettings(learning_rate=learning_rate)
    plain, wanted = Derived().to_dict(), Derived(**derived).to_dict()
    known = {
        "task": task,
        "data": absolute(data) if data is not None and os.path.exists(data) else data,
        "derived": {name: value for name, value in wanted.items() if value != plain[name]},
    }
    return {**known, **{name: value for name, value in {**counts, "learning_rate": learning_rate}.items() if value}}


def begin(
    *,
    task: str,
    data: str | None,
    derived: dict[str, Any],
    contenders: tuple[Contender, ...],
    seeds: tuple[int, ...],
    epochs: int | None,
    batch_size: int | None,
    learning_rate: float | None,
) -> Comparison:
    """Return the comparison with everything filled in that the task decides, having checked every run of it.

    `derived` holds settings of `Derived`; the comparison keeps those that change something.

    Raises:
        ConfigError: an unknown task, or a run that could not begin.
        DataError: the task's data are missing or damaged.
    """
    known = check_subject(
        task=task, data=data, derived=derived, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate
    )
    built = build_task(task, known["data"], Derived(**derived))
    comparison = Comparison(
        task=task,
        data=known["data"],
        derived=known["derived"],
        num_samples=len(built.train_set),
        epochs=built.defaults.epochs if epochs is None else epochs,
        batch_size=built.defaults.batch_size if batch_size is None else batch_size,
        learning_rate=built.defaults.learning_rate if learning_rate is None else learning_rate,
        contenders=contenders,
        seeds=seeds,
    )
    for contender in contenders:
        check_signals(built, contender.selection(0))
    for spec in comparison.specs(contenders):
        TrainSettings(learning_rate=spec.learning_rate, seed=spec.seed)
        comparison.config(spec).check_world(1)
    for contender in contenders:
        warn_if_idle(comparison.config(comparison.spec(contender, seeds[0])), what=f"method {contender.label!r}")
    return comparison


def train_job(spec: RunSpec, storage: str) -> TrainJob:
    """Return the training of one run, in the process that calls `train` with it."""
    return TrainJob(
        run=spec.run,
        storage=storage,
        task=spec.task,
        data=spec.data,
        derived=Derived(**spec.derived),
        method=spec.label,
        selection=Selection.from_dict(spec.selection),
        exchange="embedded",
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        seed=spec.seed,
    )
