"""The contact with training: the only module here that knows how a task is built and how a run is described to it."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from es_service import errors
from es_service.evidence.comparison import Comparison, RunSpec
from es_service.evidence.contenders import Contender
from es_service.selection.config import Selection
from es_service.selection.scorekeeper import RunConfig
from es_service.storage.files import absolute
from es_service.training.job import TrainJob
from es_service.training.loop import TrainSettings
from es_service.training.tasks import build_task

__all__ = ["begin", "train_job"]


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

    Raises:
        ConfigError: an unknown task, or a run that could not begin.
        DataError: the task's data are missing or damaged.
    """
    data = absolute(data) if data is not None and os.path.exists(data) else data
    built = build_task(task, data)
    _check_derived(derived)
    comparison = Comparison(
        task=task,
        data=data,
        derived=derived,
        num_samples=len(built.train_set),
        epochs=built.defaults.epochs if epochs is None else epochs,
        batch_size=built.defaults.batch_size if batch_size is None else batch_size,
        learning_rate=built.defaults.learning_rate if learning_rate is None else learning_rate,
        contenders=contenders,
        seeds=seeds,
    )
    for spec in comparison.specs(contenders):
        TrainSettings(learning_rate=spec.learning_rate, seed=spec.seed)
        RunConfig(
            selection=Selection.from_dict(spec.selection),
            num_samples=comparison.num_samples,
            num_epochs=spec.epochs,
            batch_size=spec.batch_size,
        ).check_world(1)
    return comparison


def train_job(spec: RunSpec, storage: str) -> TrainJob:
    """Return the training of one run, in the process that calls `train` with it."""
    extra: dict[str, Any] = {"derived": spec.derived} if spec.derived else {}
    return TrainJob(
        run=spec.run,
        storage=storage,
        task=spec.task,
        data=spec.data,
        method=spec.label,
        selection=Selection.from_dict(spec.selection),
        exchange="embedded",
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        seed=spec.seed,
        **extra,
    )


def _check_derived(derived: dict[str, Any]) -> None:
    if derived and "derived" not in {field.name for field in dataclasses.fields(TrainJob)}:
        raise errors.ConfigError(f"this version trains on no derived task yet; leave out {', '.join(derived)}")
