"""Built-in tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from es_service import errors
from es_service.selection.settings import suggest
from es_service.training.tasks import fashion
from es_service.training.tasks.base import Task

__all__ = ["TASKS", "build_task"]

TASKS: Mapping[str, Callable[[str | None], Task]] = MappingProxyType({"fashion": fashion.build})
"""Name -> function that builds the task from its data folder, None for the data the package brings along."""


def build_task(name: str, data: str | None = None) -> Task:
    """Build a built-in task.

    Args:
        name: one of `TASKS`.
        data: folder of its data, None for what the package brings along.

    Raises:
        ConfigError: no such task.
        DataError: the data are missing or damaged.
    """
    try:
        builder = TASKS[name]
    except KeyError:
        raise errors.ConfigError(f"no task {name!r}: {suggest(name, TASKS)}") from None
    return builder(data)
