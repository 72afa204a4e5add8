"""Tasks by name: those that are built in, and a user's own. Torch is imported once a task is built."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from es_service import errors, plugins
from es_service.selection.settings import suggest
from es_service.training.tasks.derived import Derived, DerivedTask, derive
from es_service.training.tasks.options import TAKEN_BY, TaskOptions

if TYPE_CHECKING:
    from es_service.selection.config import Selection
    from es_service.training.tasks.base import Task

__all__ = ["TASKS", "build_task", "check_signals", "check_task_data", "check_task_name", "quietly"]


def _build(name: str, data: str | None, options: TaskOptions) -> Task:
    module: Any = importlib.import_module(f"{__name__}.{name}")
    task: Task = module.build(data, options) if name in TAKEN_BY else module.build(data)
    return task


TASKS: Mapping[str, Callable[[str | None, TaskOptions], Task]] = MappingProxyType(
    {name: functools.partial(_build, name) for name in ("fashion", "flights", "reviews", *TAKEN_BY)}
)
"""Name -> function that builds the task from where its data are, None for the place where they are by themselves."""


def check_task_name(name: str) -> None:
    """Raise ConfigError where no task has this name; a module of the user's own is looked for, but not imported."""
    if ":" in name:
        plugins.check_importable(f"task {name!r}", name)
    elif name not in TASKS:
        raise errors.ConfigError(f"no task {name!r}: {suggest(name, TASKS)} (your own task is module:function)")


def check_task_data(name: str, data: str | None) -> None:
    """Raise DataError where the data of a built-in task are to be at a place that is not there."""
    if name in TAKEN_BY and data is None:
        raise errors.DataError(f"the task {name!r} needs --data, the files to train on; see docs/how-to/file_tasks.md")
    if name in TASKS and data is not None and not os.path.exists(data):
        raise errors.DataError(
            f"--data {data}: there is no such file or folder; see docs/how-to/own_task.md for what the task {name!r} "
            "reads, and where to get it"
        )


def build_task(
    name: str, data: str | None = None, derived: Derived | None = None, options: TaskOptions | None = None
) -> Task:
    """Build a task.

    Args:
        name: one of `TASKS`, or `module:function` of the user's own.
        data: where its data are, None for what comes with this package or with an installed one.
        derived: what to make of its train set, None for nothing.
        options: of a task from files; None for none.

    Raises:
        ConfigError: no such task, one that does not keep the contract, or one that `derived` or the options do not fit.
        DataError: the data are missing or damaged.
        ShapeError: a task of the user's own gives no loss for each sample.
    """
    check_task_name(name)
    options = options or TaskOptions()
    options.check(name)
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise errors.ConfigError(f"a task needs torch: pip install 'es-service[all]' ({error})") from error
    if name in TASKS:
        task = TASKS[name](data, options)
    else:
        from es_service.training.tasks import own

        task = own.load(name, data)
    made = task if derived is None else derive(task, derived)
    load = getattr(task, "load", None)
    if load is not None:
        load(made.source_ids if isinstance(made, DerivedTask) else np.arange(len(task.train_set)))
    return made


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Build a task again without a word about its data: who started the run has read it."""
    logger = logging.getLogger("es_service.training")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.DataWarning)
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def check_signals(task: Task, selection: Selection) -> None:
    """Raise ConfigError where a selection goes by a signal that the task does not have; asks it about one sample."""
    needed = [name for name in selection.signals if name not in ("loss", "irreducible_loss")]
    if not needed:
        return
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        batch = task.train_set.__getitems__([0])
        given = task.signals(task.build_model().eval()(task.inputs(batch)), batch)
    for name in needed:
        if name not in given:
            raise errors.ConfigError(
                f"method {selection.method.name!r} with signal={selection.signal!r} goes by {name!r} of each sample, "
                f"which the task {task.name!r} does not have; it has {', '.join(['loss', *given])}: take another method"
            )
