"""What one comparison is, and the runs it asks for."""

from __future__ import annotations

import dataclasses
from typing import Any

from es_service.experiments.begin import check_known, check_run, task_of
from es_service.experiments.compare.candidates import Candidate
from es_service.experiments.experiment_spec import ExperimentSpec, RunSpec

__all__ = ["Comparison", "begin"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(ExperimentSpec):
    """Methods to compare on one task; methods and seeds may be added to one that is continued.

    Args:
        candidates: the methods, full and random among them.
    """

    candidates: tuple[Candidate, ...]

    def spec(self, candidate: Candidate, seed: int) -> RunSpec:
        """Return one run of a method."""
        return self.run(
            candidate.run(seed),
            candidate.label,
            candidate.selection(seed).to_dict(),
            seed,
            epochs=candidate.epochs,
            batch_size=candidate.batch_size,
            learning_rate=candidate.learning_rate,
        )

    def specs(self, candidates: tuple[Candidate, ...]) -> list[RunSpec]:
        """Return the runs of these methods, the first seed of all of them first."""
        return [self.spec(candidate, seed) for seed in self.seeds for candidate in candidates]


def begin(*, candidates: tuple[Candidate, ...], seeds: tuple[int, ...], **asked: Any) -> Comparison:
    """Return the comparison with everything filled in that the task decides, having checked every run of it.

    Args:
        candidates, seeds: what is compared.
        asked: see `check_known`.

    Raises:
        ConfigError: an unknown task, or a run that could not begin.
        DataError: the task's data are missing or damaged.
    """
    built, filled = task_of(check_known(**asked))
    comparison = Comparison(**filled, candidates=candidates, seeds=seeds)
    for candidate in candidates:
        for seed in seeds:
            what = f"method {candidate.label!r}"
            check_run(built, comparison, comparison.spec(candidate, seed), what=what, warn=seed == seeds[0])
    return comparison
