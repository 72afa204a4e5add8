"""How runs are started: all that is checked before."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from es_service import errors
from es_service.experiments.experiment_spec import ExperimentSpec
from es_service.selection.idle import warn_if_idle
from es_service.selection.settings import as_integer
from es_service.storage.files import absolute
from es_service.training.settings import TrainSettings
from es_service.training.spec import TrainingSpec
from es_service.training.tasks import build_task, check_signals, check_task_data, check_task_name
from es_service.training.tasks.derived import Derived
from es_service.training.tasks.options import TaskOptions

if TYPE_CHECKING:
    from es_service.training.tasks.base import Task

__all__ = ["USUAL", "check_extra", "check_known", "check_run", "costed", "task_of"]

Spec = TypeVar("Spec", bound=ExperimentSpec)

USUAL = ("epochs", "batch_size", "learning_rate")
"""The task's defaults."""


def check_extra(extra: str, doing: str, *modules: str) -> None:
    """Raise ConfigError where a module that belongs to an extra is not installed."""
    try:
        for name in modules:
            importlib.import_module(name)
    except ImportError as error:
        names = ", ".join({"ray.tune": "Ray Tune"}.get(one, one) for one in modules)
        raise errors.ConfigError(f"{doing} needs {names}: pip install 'es-service[{extra}]' ({error})") from error


def check_known(
    task: str,
    data: str | None = None,
    derived: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Check what can be known of an experiment before its task is built, which takes torch and the data.

    Returns:
        Of `ExperimentSpec.identity` what is known already: the task, and what was given.

    Raises:
        ConfigError: an unknown task, or a value outside its domain.
        DataError: the task's data are not where they should be.
    """
    check_task_name(task)
    given_options = TaskOptions(**(options or {}))
    given_options.check(task)
    check_task_data(task, data)
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value is not None:
            as_integer(name, value, least=1)
    TrainSettings(learning_rate=1.0 if learning_rate is None else learning_rate, **(training or {}))
    plain, wanted = Derived().to_dict(), Derived(**(derived or {})).to_dict()
    known = {
        "task": task,
        "data": absolute(data) if data is not None and os.path.exists(data) else data,
        "derived": {name: value for name, value in wanted.items() if value != plain[name]},
        "options": given_options.to_dict(),
        "training": dict(training or {}),
    }
    given = zip(USUAL, (epochs, batch_size, learning_rate), strict=True)
    return {**known, **{name: value for name, value in given if value is not None}}


def task_of(known: Mapping[str, Any]) -> tuple[Task, dict[str, Any]]:
    """Return the task that `check_known` checked, and the task's fields of an `ExperimentSpec`.

    Raises:
        DataError: the task's data are missing or damaged.
        ConfigError: another optimizer than the task's, without a learning rate.
    """
    built = build_task(known["task"], known["data"], Derived(**known["derived"]), TaskOptions(**known["options"]))
    built.defaults.check_optimizer(known["training"].get("optimizer"), known.get("learning_rate"))
    usual = {name: getattr(built.defaults, name) for name in USUAL}
    return built, {**usual, **known, "num_samples": len(built.train_set)}


def check_run(
    built: Task, spec: ExperimentSpec, run: TrainingSpec, *, what: str | None = None, warn: bool = True
) -> None:
    """Raise ConfigError where a run could not begin; warn, naming `what`, where it would never select."""
    check_signals(built, run.selection)
    config = run.config(spec.num_samples)
    config.check_world(run.workers)
    if warn:
        warn_if_idle(config, run.workers, what=what)


def costed(built: Task, spec: Spec, run: TrainingSpec, kept: float | None) -> Spec:
    """Return a spec that says what a backward pass counts as in all of its runs.

    It is the task's own figure; where that is to be measured, what was `kept` of an earlier measurement, else what is
    measured now with the settings of one of the runs.
    """
    cost = built.defaults.backward_cost or kept
    if cost is None:
        from es_service.training.cost import backward_cost, measured

        assert run.batch_size is not None, "an experiment fills it in"
        cost = measured(backward_cost, built, run.settings(built.defaults), run.batch_size)
    return dataclasses.replace(spec, backward_cost=cost)
