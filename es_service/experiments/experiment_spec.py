"""What many runs have in common: the task, and how they are trained where a run does not say otherwise."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from es_service import errors
from es_service.selection.config import Selection
from es_service.selection.run import RunConfig
from es_service.selection.settings import as_integer, make_plain

__all__ = ["ExperimentSpec", "RunSpec"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run, as plain values: everything that decides its result.

    Args:
        run: its name, and that of its folder.
        label: of its method.
        task, data, derived: what is trained on.
        selection: `Selection.to_dict()`.
        epochs, batch_size, learning_rate: how it is trained.
        seed: of the initial weights; the selection has the same.
    """

    run: str
    label: str
    task: str
    data: str | None
    derived: dict[str, Any]
    selection: dict[str, Any]
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values as JSON gives them back."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunSpec:
        """Make a spec from `to_dict`'s values; those of an earlier version read as they were meant."""
        return cls(**{**values, "selection": Selection.from_dict(values["selection"]).to_dict()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentSpec:
    """A task with its usual training.

    Args:
        task, data, derived: what is trained on; `derived` holds what differs from `Derived()`.
        num_samples: n of the train set.
        epochs, batch_size, learning_rate: of every run that does not say otherwise.
        seeds: every method or setting is run with each of them.

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

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("num_samples", "epochs", "batch_size"):
            as_integer(name, getattr(self, name), least=1)
        if not self.seeds:
            raise errors.ConfigError("there is no seed to train with: give --seeds of at least 1")

    def identity(self) -> dict[str, Any]:
        """Return what cannot change when its runs are continued, as JSON gives it back."""
        names = ("task", "data", "derived", "num_samples", "epochs", "batch_size", "learning_rate")
        values: dict[str, Any] = json.loads(json.dumps({name: getattr(self, name) for name in names}))
        return values

    def run(
        self,
        run: str,
        label: str,
        selection: dict[str, Any],
        seed: int,
        *,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
    ) -> RunSpec:
        """Return one run of it; None stands for what is usual."""
        epochs = self.epochs if epochs is None else epochs
        return RunSpec(
            run=run,
            label=label,
            task=self.task,
            data=self.data,
            derived=self.derived,
            selection=Selection.from_dict(selection).settled(epochs).to_dict(),
            epochs=epochs,
            batch_size=self.batch_size if batch_size is None else batch_size,
            learning_rate=self.learning_rate if learning_rate is None else learning_rate,
            seed=seed,
        )

    def config(self, spec: RunSpec) -> RunConfig:
        """Return what one of its runs is; ConfigError where it could not begin."""
        return RunConfig(
            selection=Selection.from_dict(spec.selection),
            num_samples=self.num_samples,
            num_epochs=spec.epochs,
            batch_size=spec.batch_size,
        )
