"""The folder of a comparison.

<out>/comparison.json       what is compared; another comparison is refused
<out>/short_full.json       how long each method's short full run is, once that is decided
<out>/runs/<run>/           one run: spec.json, outcome.json when it has ended, log.txt, and what `train` leaves there
<out>/results.json, results.parquet, history.parquet, report.md, report.html, pictures/
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from es_service import errors
from es_service.experiments.compare.outcomes import Outcome
from es_service.experiments.folder import ExperimentFolder
from es_service.storage import sealed
from es_service.training.spec import TrainingSpec

__all__ = ["CompareFolder"]


class CompareFolder(ExperimentFolder):
    """One comparison on disk; see `ExperimentFolder`."""

    kind, command = "comparison", "compare"
    may_change = "methods and seeds may be added to one, for anything else"

    def outcome(self, spec: TrainingSpec) -> Outcome | None:
        """Return what came of a run, None if it has not ended.

        Raises:
            ConfigError: its name had other settings then.
            StorageError: what is written of it is damaged.
        """
        name = f"runs/{spec.run}/outcome.json"
        found = self.read(name, lambda values: Outcome.from_dict(sealed.check(values, f"{self.path}/{name}")))
        if found is not None and found.spec.to_dict() != spec.to_dict():
            raise errors.ConfigError(
                f"run {spec.run} in {self.path} was made with other settings ({found.spec.to_dict()}), by another "
                "version perhaps: name another folder, or remove the run's"
            )
        return found

    def prepare(self, spec: TrainingSpec) -> Path:
        """Return the run's folder, emptied of what an interrupted run left, with its spec.json."""
        place = self.runs / spec.run
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        self.write(f"runs/{spec.run}/spec.json", spec.to_dict())
        return place

    def lengths(self) -> dict[str, dict[str, Any]]:
        """Return {label: {epochs, basis}}: how long the short full run of each method is, as far as decided."""
        found = self.read("short_full.json", lambda values: {
            str(label): {"epochs": int(one["epochs"]), "basis": str(one["basis"])} for label, one in values.items()
        })  # fmt: skip
        return found or {}

    def write_lengths(self, lengths: dict[str, dict[str, Any]]) -> None:
        """Keep them, so that a continued comparison compares with the same runs."""
        self.write("short_full.json", lengths)
