"""Tasks by name: those that are built in, and a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from es_service import errors
from es_service.selection.config import Selection
from es_service.selection.settings import suggest
from es_service.training.tasks import fashion, flights, own, reviews
from es_service.training.tasks.base import Task
from es_service.training.tasks.derived import Derived, derive

__all__ = ["TASKS", "build_task", "check_signals"]

TASKS: Mapping[str, Callable[[str | None], Task]] = MappingProxyType(
    {"fashion": fashion.build, "flights": flights.build, "reviews": reviews.build}
)
"""Name -> function that builds the task from where its data are, None for the place where they are by themselves."""


def build_task(name: str, data: str | None = None, derived: Derived | None = None) -> Task:
    """Build a task.

    Args:
        name: one of `TASKS`, or `module:function` of the user's own.
        data: where its data are, None for what comes with this package or with an installed one.
        derived: what to make of its train set, None for nothing.

    Raises:
        ConfigError: no such task, one that does not keep the contract, or one that `derived` does not fit.
        DataError: the data are missing or damaged.
        ShapeError: a task of the user's own gives no loss for each sample.
    """
    if ":" in name:
        task = own.load(name, data)
    elif name in TASKS:
        task = TASKS[name](data)
    else:
        raise errors.ConfigError(f"no task {name!r}: {suggest(name, TASKS)} (one of your own is module:function)")
    return task if derived is None else derive(task, derived)


def check_signals(task: Task, selection: Selection) -> None:
    """Raise ConfigError where a selection goes by a signal that the task does not have; asks it about one sample."""
    needed = [name for name in selection.signals if name not in ("loss", "irreducible_loss")]
    if not needed:
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        batch = task.train_set.__getitems__([0])
        given = task.signals(task.build_model().eval()(task.inputs(batch)), batch)
    for name in needed:
        if name not in given:
            raise errors.ConfigError(
                f"method {selection.method.name!r} with signal={selection.signal!r} goes by {name!r} of each sample, "
                f"which the task {task.name!r} does not have; it has {', '.join(['loss', *given])}: take another method"
            )
