"""What one comparison is, and the runs it asks for."""

from __future__ import annotations

import dataclasses

from es_service.experiments.compare.candidates import Contender
from es_service.experiments.experiment_spec import RunSpec, Subject

__all__ = ["Comparison"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Subject):
    """Methods to compare on one task; methods and seeds may be added to one that is continued.

    Args:
        contenders: the methods, full and random among them.
    """

    contenders: tuple[Contender, ...]

    def spec(self, contender: Contender, seed: int) -> RunSpec:
        """Return one run of a method."""
        return self.run(
            contender.run(seed),
            contender.label,
            contender.selection(seed).to_dict(),
            seed,
            epochs=contender.epochs,
            batch_size=contender.batch_size,
            learning_rate=contender.learning_rate,
        )

    def specs(self, contenders: tuple[Contender, ...]) -> list[RunSpec]:
        """Return the runs of these methods, the first seed of all of them first."""
        return [self.spec(contender, seed) for seed in self.seeds for contender in contenders]
