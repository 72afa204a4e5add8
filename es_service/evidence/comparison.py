"""What one comparison is, and the runs it asks for."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from es_service import errors
from es_service.evidence.contenders import Contender
from es_service.selection.settings import as_integer

__all__ = ["Comparison", "RunSpec"]


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
        """Make a spec from `to_dict`'s values."""
        return cls(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods to compare on one task.

    Args:
        task, data, derived: what is trained on; `derived` holds what differs from `Derived()`.
        num_samples: n of the train set.
        epochs, batch_size, learning_rate: of every run whose method does not say otherwise.
        contenders: the methods, full and random among them.
        seeds: every method is run with each of them.

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
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("num_samples", "epochs", "batch_size"):
            as_integer(name, getattr(self, name), least=1)
        if not self.seeds:
            raise errors.ConfigError(
                "there is no seed to run with: give --seeds of at least 1, 3 or more for a verdict"
            )

    def identity(self) -> dict[str, Any]:
        """Return what cannot change when a comparison is continued: all but the methods and the seeds."""
        names = ("task", "data", "derived", "num_samples", "epochs", "batch_size", "learning_rate")
        values: dict[str, Any] = json.loads(json.dumps({name: getattr(self, name) for name in names}))
        return values

    def spec(self, contender: Contender, seed: int) -> RunSpec:
        """Return one run of a method."""
        return RunSpec(
            run=contender.run(seed),
            label=contender.label,
            task=self.task,
            data=self.data,
            derived=self.derived,
            selection=contender.selection(seed).to_dict(),
            epochs=self.epochs if contender.epochs is None else contender.epochs,
            batch_size=self.batch_size if contender.batch_size is None else contender.batch_size,
            learning_rate=self.learning_rate if contender.learning_rate is None else contender.learning_rate,
            seed=seed,
        )

    def specs(self, contenders: tuple[Contender, ...]) -> list[RunSpec]:
        """Return the runs of these methods, the first seed of all of them first."""
        return [self.spec(contender, seed) for seed in self.seeds for contender in contenders]
