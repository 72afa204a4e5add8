"""Previews of samples: the picture or the text that a task makes of one, or that the run of a user's own loop kept.

The task is built at the first preview of its runs, which loads torch; runs without previews cost nothing. A user's
task is code: it is imported only with `--own-tasks`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import anyio

from es_service import errors
from es_service.api.guard.problems import Problem
from es_service.storage.previews import MOST_CHARACTERS, PNG, Index
from es_service.storage.runs import RunStorage

__all__ = ["Previews", "Shown"]

_MOST_TASKS, _MOST_INDICES = 3, 16
_THREADS = 4
_MOST_BYTES = 4 << 20

Shown = tuple[str, bytes]
"""Media type and content."""


class Previews:
    """Shows samples of runs.

    Its `threads` are how many do so at a time: the first preview loads torch and data, and other routes have threads
    of their own that must not all wait for that.

    Args:
        own_tasks: import the module that a run's own task names.
    """

    def __init__(self, *, own_tasks: bool) -> None:
        self._own_tasks = own_tasks
        self.threads = anyio.CapacityLimiter(_THREADS)
        self._lock = threading.Lock()  # held while a task is built, which may take long: nothing else is taken under it
        self._tasks: OrderedDict[str, Any] = OrderedDict()
        self._indices: OrderedDict[str, Index] = OrderedDict()  # of the previews that runs kept

    def kept(self, storage: RunStorage, sample_id: int) -> Shown:
        """Return a sample's preview from the run's folder.

        Raises:
            Problem: the run kept none of it.
            StorageError: its file is damaged.
        """
        index = storage.previews.index(self._indices.get(storage.path))
        self._indices[storage.path] = index
        while len(self._indices) > _MOST_INDICES:
            self._indices.popitem(last=False)
        found = storage.previews.find(sample_id, index)
        if found is None:
            raise Problem(
                "no-preview",
                f"run {storage.run!r} has no preview of sample {sample_id}: it keeps {sum(map(len, index.values())):,}",
                "give es.Selector or es.connect a preview=, see docs/how-to/training.md",
            )
        is_picture = found.startswith(PNG)
        return _checked(f"run {storage.run!r}", found if is_picture else found.decode(errors="replace"))

    def show(self, run: str, training: dict[str, Any], sample_id: int) -> Shown:
        """Return a sample as its task shows it.

        Args:
            run: that it belongs to, for messages.
            training: of the run, as run.json has it.
            sample_id: one of the run's.

        Raises:
            Problem: the task cannot be built here, or shows nothing.
            DataError: its data are not here.
        """
        name = training.get("task")
        if not isinstance(name, str):
            raise Problem("no-preview", f"run {run!r} did not record which task it trains", None)
        if ":" in name and not self._own_tasks:
            raise Problem(
                "no-preview",
                f"run {run!r} trains a task of the user's own, {name}, and this service does not import users' code",
                "start it with --own-tasks if that module can be imported and you trust it",
            )
        shown = self._task(name, training)
        preview = getattr(shown, "preview", None)
        if not callable(preview):
            raise Problem("no-preview", f"the task {name!r} has no preview(sample_id)", "see docs/how-to/own_task.md")
        return _checked(f"the task {name!r}", preview(sample_id))

    def _task(self, name: str, training: dict[str, Any]) -> Any:
        key = repr((name, training.get("data"), training.get("derived"), training.get("options")))
        with self._lock:
            if key in self._tasks:
                self._tasks.move_to_end(key)
                return self._tasks[key]
            try:
                from es_service.training.tasks import build_task, quietly
                from es_service.training.tasks.derived import Derived
                from es_service.training.tasks.options import TaskOptions
            except ImportError as error:
                raise Problem(
                    "no-preview", f"showing samples needs torch here: {error}", "pip install 'es-service[torch]'"
                ) from error
            try:
                with quietly():
                    task = build_task(
                        name,
                        training.get("data"),
                        Derived(**(training.get("derived") or {})),
                        TaskOptions(**(training.get("options") or {})),
                    )
            except (TypeError, errors.ConfigError) as error:
                raise Problem("no-preview", f"the task {name!r} cannot be built here: {error}", None) from error
            self._tasks[key] = task
            while len(self._tasks) > _MOST_TASKS:
                self._tasks.popitem(last=False)
            return task


def _checked(whose: str, shown: Any) -> Shown:
    """Return what a task showed, once it was found to be a picture or a text of a size that a page can take."""
    if isinstance(shown, str):
        return "text/plain; charset=utf-8", shown[:MOST_CHARACTERS].encode()
    if isinstance(shown, bytes) and shown.startswith(PNG) and len(shown) <= _MOST_BYTES:
        return "image/png", shown
    what = f"{len(shown):,} bytes" if isinstance(shown, bytes) else type(shown).__name__
    raise Problem("no-preview", f"preview() of {whose} gave {what}", "let it return a PNG of at most 4 MiB, or a str")
