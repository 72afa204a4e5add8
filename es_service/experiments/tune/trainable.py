"""A trial, in the process that Ray Tune gives it: one real training, which reports each epoch.

Ray Tune ── settings ──► run_trial ── es_service.training.job.train ──► a run's folder
    ▲                        │
    └──── an epoch each ─────┘      the last one only once the training has written its result
"""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from es_service import errors
from es_service.experiments.begin import train_job
from es_service.experiments.experiment_spec import RunSpec
from es_service.experiments.tune.search_spec import Places
from es_service.storage.runs import RunStorage

__all__ = ["ENTRY", "Assignment", "drop_checkpoints", "run_trial", "trainable"]

ENTRY = (
    *("epoch", "accuracy", "balanced_accuracy", "held_out_loss", "train_loss"),
    *("scored", "trained", "cost", "seconds"),
)
"""What is told of an epoch: the last four as of its end, preparing included; cost in full trainings."""
_LOG = logging.getLogger(__name__)


class Report(Protocol):
    """Takes what a trial has to say; may not return where the trial is to end."""

    def __call__(self, metrics: dict[str, Any]) -> None:
        """Report."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What one trial trains, as plain values.

    Args:
        number: of the trial.
        spec: `RunSpec.to_dict()`.
        known: epochs that have been told before.
    """

    number: int
    spec: dict[str, Any]
    known: int = 0


def trainable(config: dict[str, Any], *, storage: str, search: str, whole: int, places: Places) -> None:
    """Run a trial of Ray Tune; what went wrong is a report too, so that its message stays whole.

    Args:
        config: an `Assignment`, as a dictionary.
        storage: folder of the search's runs.
        search: its name.
        whole: forward-equivalents of a full training.
        places: where it trains.
    """
    from ray import tune

    assignment = Assignment(**config)

    def report(metrics: dict[str, Any]) -> None:
        tune.report({"number": assignment.number, **metrics})

    try:
        run_trial(assignment, report, storage=storage, search=search, whole=whole, places=places)
    except errors.StoppedError:
        report({"stopped": True})
    except Exception as error:  # a user's own task may raise anything, and the search goes on
        _LOG.exception("trial %d failed", assignment.number)
        own = isinstance(error, errors.EsServiceError)
        report({"failed": str(error) if own else f"{type(error).__name__}: {error}"})


def run_trial(assignment: Assignment, report: Report, *, storage: str, search: str, whole: int, places: Places) -> None:
    """Train a run, or go on with it where it was begun, and report its epochs; arguments as in `trainable`."""
    import torch

    from es_service.training.job import train

    spec = RunSpec.from_dict(assignment.spec)
    kept = RunStorage(storage, spec.run)
    if not places.on_ray_train:
        torch.set_num_threads(max(1, math.floor(places.cpus)))
    exchange: Any = places.exchange  # checked where the job is made
    job = dataclasses.replace(
        train_job(spec, storage),
        exchange=exchange,
        num_workers=places.workers,
        resume=kept.exists(),
        search=search,
    )
    if places.on_ray_train and kept.exists():
        from es_service.training.ray_train import ask_to_stop

        ask_to_stop(storage, spec.run, asked=False)  # an earlier command was
    told = _Told(assignment, report, lambda: kept.read_note("prepared") or {}, whole)
    result = train(job, lambda stats: told.up_to(stats, last=spec.epochs - 1))
    told.history(result["history"], last=spec.epochs)


class _Told:
    """Which epochs of a run have been reported."""

    def __init__(
        self, assignment: Assignment, report: Report, prepared: Callable[[], Mapping[str, Any]], whole: int
    ) -> None:
        self._report, self._prepared, self._whole = report, prepared, whole
        self._next, self._epochs = assignment.known, assignment.spec["epochs"]

    def up_to(self, stats: Mapping[str, Any], last: int) -> None:
        """Report what a watcher of the training sees, but for its last epoch: that waits for the result."""
        if stats["progress"]:
            self.history(stats["progress"]["history"], last)

    def history(self, history: list[dict[str, Any]], last: int) -> None:
        """Report the epochs below `last` that are new."""
        for entry in history[self._next : last]:
            self._next += 1
            self._report({**self._entry(entry), "last": entry["epoch"] == self._epochs - 1})

    def _entry(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        prepared = self._prepared()
        scored, trained = (entry[name] + prepared.get(name, 0) for name in ("scored", "trained"))
        return {
            **{name: entry[name] for name in ENTRY[:5]},
            "scored": scored,
            "trained": trained,
            "cost": (scored + 3 * trained) / self._whole,
            "seconds": entry["seconds"] + prepared.get("seconds", 0.0),
        }


def drop_checkpoints(storage: str, run: str) -> None:
    """Remove the checkpoints of a run that has ended: its table and its result stay."""
    for name in ("checkpoints", "train"):
        shutil.rmtree(Path(storage) / run / name, ignore_errors=True)
