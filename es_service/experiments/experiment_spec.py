"""What many runs have in common: the task, and their default training settings."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from es_service import errors
from es_service.selection.config import Selection
from es_service.selection.settings import as_integer, make_plain
from es_service.training.spec import TrainingSpec
from es_service.training.tasks.derived import Derived
from es_service.training.tasks.options import TaskOptions

__all__ = ["ExperimentSpec"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentSpec:
    """A task with its usual training.

    Args:
        task, data, derived, options: what is trained on; `derived` holds what differs from `Derived()`, `options` what
            was given of `TaskOptions`.
        num_samples: n of the train set.
        epochs, batch_size, learning_rate: of every run without its own.
        seeds: every method or setting is run with each of them.
        training: further settings of a `TrainingSpec` that were given, of every run: the optimizer, the passes.
        backward_cost: forward passes that a backward pass counts as, in all runs.

    Raises:
        ConfigError: no seed, or a count below 1.
    """

    task: str
    data: str | None
    derived: dict[str, Any]
    num_samples: int
    epochs: int
    batch_size: int
    learning_rate: float
    seeds: tuple[int, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    backward_cost: float = 2.0

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("num_samples", "epochs", "batch_size"):
            as_integer(name, getattr(self, name), least=1)
        if not self.seeds:
            raise errors.ConfigError("no seed to train with: --seeds must be at least 1")

    def identity(self) -> dict[str, Any]:
        """Return what cannot change when its runs are continued, as JSON gives it back."""
        of_the_task = ("task", "data", "derived", "options", "num_samples")
        names = (*of_the_task, "epochs", "batch_size", "learning_rate", "training", "backward_cost")
        values: dict[str, Any] = json.loads(json.dumps({name: getattr(self, name) for name in names}))
        return values

    @property
    def whole(self) -> float:
        """Passes of full training: a forward pass 1, a backward pass `backward_cost`."""
        return (1 + self.backward_cost) * self.num_samples * self.epochs

    def run(
        self,
        run: str,
        method: str,
        selection: Selection,
        seed: int,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        **more: Any,
    ) -> TrainingSpec:
        """Return one run of it; None takes the default, `more` for further fields of a `TrainingSpec`.

        Its storage is a name that stays true where the folder is moved; who trains it puts the real one in its place.
        """
        epochs = self.epochs if epochs is None else epochs
        return TrainingSpec(
            run=run,
            storage="runs",
            method=method,
            task=self.task,
            data=self.data,
            derived=Derived(**self.derived),
            options=TaskOptions(**self.options),
            selection=selection.settled(epochs),
            epochs=epochs,
            batch_size=self.batch_size if batch_size is None else batch_size,
            learning_rate=self.learning_rate if learning_rate is None else learning_rate,
            backward_cost=self.backward_cost,
            seed=seed,
            **self.training,
            **{"exchange": "embedded", **more},
        )
