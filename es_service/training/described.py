"""What one training is, as plain values, and whether it can begin. Nothing here imports torch or Ray."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Literal

from es_service import errors
from es_service.selection.config import Selection
from es_service.selection.settings import as_integer, make_plain, suggest
from es_service.storage.files import absolute, open_filesystem, storage_errors
from es_service.storage.runs import RunStorage, check_run_name
from es_service.training.settings import TrainSettings
from es_service.training.tasks import check_task_data, check_task_name
from es_service.training.tasks.derived import Derived

__all__ = ["EXCHANGES", "TrainJob"]

EXCHANGES = ("leased", "sync", "prefetch", "collective", "embedded")
_OF_THE_TASK = ("epochs", "batch_size", "learning_rate")  # where they are not given
_MAY_CHANGE = ("exchange", "shards", "every", "workers", "data")
"""What a resumed training may do otherwise: none of it changes what a sample's id means or how it is trained on."""


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
        make_plain(self)
        check_task_name(self.task)
        check_run_name(self.run)
        if self.exchange not in EXCHANGES:
            raise errors.ConfigError(f"unknown exchange {self.exchange!r}; {suggest(self.exchange, list(EXCHANGES))}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) is not None:
                as_integer(name, getattr(self, name), least=1)
        TrainSettings(
            learning_rate=1.0 if self.learning_rate is None else self.learning_rate,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
        )
        if self.irreducible is not None and not self.needs_irreducible:
            raise errors.ConfigError(
                f"method {self.method!r} does not look at irreducible losses: leave --irreducible out, or take rho"
            )
        as_integer("workers", self.num_workers, least=1)
        as_integer("shards", self.shards, least=1)
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
    def needs_irreducible(self) -> bool:
        """Whether the method observes irreducible losses."""
        return "irreducible_loss" in self.selection.signals

    @property
    def data_place(self) -> str | None:
        """Where the data are, for whatever folder another process is in."""
        return absolute(self.data) if self.data is not None and os.path.exists(self.data) else self.data

    def description(self) -> dict[str, Any]:
        """Return how the run is trained, as plain values: what `--resume` starts from."""
        return {
            "task": self.task,
            "data": self.data_place,
            "derived": self.derived.to_dict(),
            "method": self.method,
            "selection": self.selection.to_dict(),
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "micro_batch_size": self.micro_batch_size,
            "irreducible": self.irreducible,
            "seed": self.seed,
            "exchange": self.exchange,
            "shards": self.shards,
            "every": self.every,
            "workers": self.num_workers,
        }

    def check_place(self) -> None:
        """Look whether the run can begin, or be continued, in its storage; nothing is written.

        Raises:
            RunExistsError: the name is taken, and `resume` was not asked for.
            RunNotFoundError: nothing of this name to resume.
            RunMismatchError: it was begun with other settings.
            DataError: a built-in task has no data where they should be.
            StorageError: the storage, or the file of irreducible losses, cannot be read.
        """
        storage = RunStorage(self.storage, self.run)
        if self.resume:
            self._check_begun(storage.training() or {})
        elif storage.exists():
            raise errors.RunExistsError(
                f"run {self.run!r} exists in {self.storage}: continue it with --resume, or take another --run name"
            )
        check_task_data(self.task, self.data)
        if self.irreducible is not None:
            filesystem, path = open_filesystem(self.irreducible)
            with storage_errors("read", path), filesystem.open_input_file(path):
                pass

    def _check_begun(self, before: dict[str, Any]) -> None:
        now, epochs = self.description(), self.epochs or before.get("epochs")
        if isinstance(epochs, int):
            now["selection"] = self.selection.settled(epochs).to_dict()
        if "selection" in before:  # as it was meant when it was written
            before = {**before, "selection": Selection.from_dict(before["selection"]).to_dict()}
        differing = [
            f"{key}: was {before[key]!r}, now {now[key]!r}"
            for key in now
            if key not in _MAY_CHANGE
            and key in before
            and before[key] != now[key]
            and not (key in _OF_THE_TASK and now[key] is None)
        ]
        if differing:
            raise errors.RunMismatchError(
                f"run {self.run!r} was begun with other settings ({'; '.join(differing)}): resume it without naming "
                "these, or take another run name"
            )
