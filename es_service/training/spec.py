"""One description of a training run, for the command line, comparisons, searches and workers alike.

`to_dict` and `from_dict` take it to other processes; `description` is the part of it that run.json keeps, and that
`--resume` starts from. Nothing here imports torch or Ray.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from es_service import errors
from es_service.selection.config import Selection
from es_service.selection.run import RunConfig
from es_service.selection.settings import as_integer, check_names, make_plain, suggest
from es_service.storage.files import absolute, open_filesystem, storage_errors
from es_service.storage.runs import RunStorage, check_run_name
from es_service.training.settings import OF_THE_TASK, TrainSettings
from es_service.training.tasks import check_task_data, check_task_name
from es_service.training.tasks.derived import Derived
from es_service.training.tasks.options import TaskOptions

if TYPE_CHECKING:
    from es_service.training.tasks.base import TaskDefaults

__all__ = ["EXCHANGES", "SELF", "TrainingSpec"]

EXCHANGES = ("leased", "sync", "prefetch", "collective", "embedded")
SELF = "self"
"""The proxy that is the task's own model, with weights of the training some steps ago."""
_OF_THE_TASK = ("epochs", "batch_size", *OF_THE_TASK)  # where they are not given
_PROXY_AGE = 8
_OPTIMISED = tuple(field.name for field in dataclasses.fields(TrainSettings) if field.name != "momentum")
_MAY_CHANGE = ("exchange", "shards", "every", "workers", "data")
"""What a resumed training may do otherwise: none of it changes what a sample's id means or how it is trained on."""
_NOT_DESCRIBED = ("run", "storage", "resume", "search", "proxy_costs")  # of one start of the run, not of the run


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """A run to train.

    Args:
        run: its name.
        storage: folder that holds the runs.
        task: name of the task, or module:function; `data` is the path of its data, None for what it
            brings along.
        derived: what to make of its train set: wrong labels, a long tail, few samples.
        options: of a task from files: its model, its columns.
        method: short name of the selection, for the result.
        selection: what to select, and how.
        exchange: "leased", "sync", "prefetch", "collective", or "embedded" (one worker in this process, no Ray).
        shards: over how many actors the table is spread.
        every: steps between two all-gathers of "collective".
        workers: ranks.
        epochs, batch_size: None takes the task's own.
        learning_rate, optimizer, weight_decay, warm_up, schedule: see `TrainSettings`; None takes the task's own.
        micro_batch_size, scoring_batch_size, scoring_dtype, gradient_checkpointing, channels_last, compile: see
            `TrainSettings`.
        backward_cost: forward passes that a backward pass counts as; None takes the task's own, or measures it.
        irreducible: file of irreducible losses, for methods that observe them; None works them out first.
        scorers: of each worker: processes that compute losses ahead of it.
        proxy: what they run: "self", one of the task's `proxies`, a model of a task from files, or module:function of a
            task with the same samples.
        proxy_age: steps after which "self" takes the trainer's weights again; None for 8.
        proxy_costs: what `proxies.costs` measured, where it has been.
        seed: of the initial weights; the selection has its own.
        resume: continue a run of this name; otherwise the name must be new.
        search: name of the search that the run is a trial of, else None.
    """

    run: str
    storage: str
    task: str
    method: str
    selection: Selection
    data: str | None = None
    derived: Derived = dataclasses.field(default_factory=Derived)
    options: TaskOptions = dataclasses.field(default_factory=TaskOptions)
    exchange: Literal["leased", "sync", "prefetch", "collective", "embedded"] = "leased"
    shards: int = 1
    every: int = 1
    workers: int = 1
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    optimizer: Literal["sgd", "adamw"] | None = None
    weight_decay: float | None = None
    warm_up: float | None = None
    schedule: Literal["cosine", "linear", "constant"] | None = None
    micro_batch_size: int | None = None
    scoring_batch_size: int | None = None
    scoring_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    backward_cost: float | None = None
    irreducible: str | None = None
    scorers: int = 0
    proxy: str | None = None
    proxy_age: int | None = None
    proxy_costs: Mapping[str, float] | None = None
    seed: int = 0
    resume: bool = False
    search: str | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        check_task_name(self.task)
        self.options.check(self.task)
        check_run_name(self.run)
        if self.exchange not in EXCHANGES:
            raise errors.ConfigError(f"unknown exchange {self.exchange!r}; {suggest(self.exchange, EXCHANGES)}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) is not None:
                as_integer(name, getattr(self, name), least=1)
        given = {name: getattr(self, name) for name in _OPTIMISED if getattr(self, name) is not None}
        TrainSettings(**{"learning_rate": 1.0, **given})
        if self.irreducible is not None and not self.needs_irreducible:
            raise errors.ConfigError(
                f"method {self.method!r} does not look at irreducible losses: leave --irreducible out, or take rho"
            )
        self._check_scorers()
        as_integer("workers", self.workers, least=1)
        as_integer("shards", self.shards, least=1)
        if as_integer("every", self.every, least=1) != 1 and self.exchange != "collective":
            raise errors.ConfigError(
                f"every={self.every} is a setting of exchange 'collective', the exchange is {self.exchange!r}: leave "
                "it out"
            )
        if self.exchange == "embedded" and self.workers != 1:
            raise errors.ConfigError(
                f"exchange 'embedded' keeps the table in one process, so workers={self.workers} cannot share it: "
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

    def _check_scorers(self) -> None:
        if as_integer("scorers", self.scorers, least=0) != 0 and self.proxy is None:
            raise errors.ConfigError(
                f"scorers={self.scorers} need a proxy: --proxy self, the name of a smaller model of the task, or "
                "module:function"
            )
        if self.proxy is not None and not self.scorers:
            raise errors.ConfigError(f"proxy={self.proxy!r} is what scorers run: give --scorers N, at least 1, too")
        if self.proxy_age is not None:
            as_integer("proxy_age", self.proxy_age, least=1)
            if self.proxy != SELF:
                raise errors.ConfigError(
                    f"proxy_age={self.proxy_age} is of the proxy 'self', and the proxy is {self.proxy!r}: leave it out"
                )
        if self.scorers and not self.selection.method.needs_losses:
            raise errors.ConfigError(
                f"method {self.method!r} draws without losses, so scorers={self.scorers} have nothing to do: leave "
                "--scorers and --proxy out"
            )

    @property
    def weights_every(self) -> int | None:
        """Steps after which scorers are handed the trainer's weights again; None where they learn themselves."""
        return (self.proxy_age or _PROXY_AGE) if self.proxy == SELF else None

    @property
    def needs_irreducible(self) -> bool:
        """Whether the method observes irreducible losses."""
        return "irreducible_loss" in self.selection.signals

    @property
    def data_place(self) -> str | None:
        """Where the data are, for whatever folder another process is in."""
        return absolute(self.data) if self.data is not None and os.path.exists(self.data) else self.data

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; paths hold in another folder too."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **values,
            "data": self.data_place,
            "derived": self.derived.to_dict(),
            "options": self.options.to_dict(),
            "selection": self.selection.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSpec:
        """Make a spec from `to_dict`'s values; what is left out is the default.

        Raises:
            ConfigError: a name that is not a field, a field that is missing, or a value outside its domain.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        check_names("a training run", values, known)
        for name, field in known.items():
            needed = field.default is field.default_factory is dataclasses.MISSING
            if needed and name not in values:
                raise errors.ConfigError(f"a training run needs {name!r}, got {', '.join(map(str, values))}")
        given = dict(values)
        if not isinstance(given["selection"], Selection):
            given["selection"] = Selection.from_dict(given["selection"])
        if not isinstance(given.setdefault("derived", Derived()), Derived):
            given["derived"] = Derived.from_dict(given["derived"])
        if not isinstance(given.setdefault("options", TaskOptions()), TaskOptions):
            given["options"] = TaskOptions.from_dict(given["options"])
        return cls(**given)

    def description(self) -> dict[str, Any]:
        """Return how the run is trained, as plain values: what `--resume` starts from."""
        return {name: value for name, value in self.to_dict().items() if name not in _NOT_DESCRIBED}

    def filled(self, defaults: TaskDefaults) -> TrainingSpec:
        """Return it with what the task decides where nothing else was given.

        Raises:
            ConfigError: another optimizer than the task's, without a learning rate.
        """
        defaults.check_optimizer(self.optimizer, self.learning_rate)
        missing: dict[str, Any] = {
            name: getattr(defaults, name) for name in _OF_THE_TASK if getattr(self, name) is None
        }
        selection = self.selection.settled(defaults.epochs if self.epochs is None else self.epochs)
        return dataclasses.replace(self, **missing, selection=selection)

    def config(self, num_samples: int) -> RunConfig:
        """Return the run over so many samples, for a spec that is `filled`."""
        assert self.epochs is not None, "fill it first"
        assert self.batch_size is not None, "fill it first"
        return RunConfig(
            selection=self.selection, num_samples=num_samples, num_epochs=self.epochs, batch_size=self.batch_size
        )

    def settings(self, defaults: TaskDefaults) -> TrainSettings:
        """Return how it optimises."""
        filled = self.filled(defaults)
        return TrainSettings(momentum=defaults.momentum, **{name: getattr(filled, name) for name in _OPTIMISED})

    def check_place(self) -> None:
        """Look whether the run can begin, or be continued, in its storage; nothing is written.

        Raises:
            RunExistsError: the name is taken, and `resume` was not asked for.
            RunNotFoundError: nothing of this name to resume.
            RunMismatchError: it was started with other settings.
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
                f"run {self.run!r} was started with other settings ({'; '.join(differing)}): resume it without naming "
                "these, or take another run name"
            )
