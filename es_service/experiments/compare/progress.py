"""Progress of a comparison: a bar on a terminal, a line per finished run elsewhere."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from es_service import errors
from es_service.experiments.compare.comparison import SHORT_FULL
from es_service.experiments.compare.outcomes import Outcome
from es_service.experiments.progress import Bar, measured
from es_service.storage.runs import RunStorage
from es_service.training.spec import TrainingSpec

__all__ = ["Progress", "seconds_left"]

_EVERY_S = 1.0


def seconds_left(waiting: Sequence[TrainingSpec], finished: Sequence[Outcome], jobs: int) -> float | None:
    """Return about how long the waiting runs will take, None while nothing is known.

    A run takes as long as the finished ones of its method on average; where there is none yet, as long as an epoch of
    all finished runs did, times its epochs.
    """
    known = [one for one in finished if one.wall_s > 0]
    if not known:
        return None
    by_label: dict[str, list[float]] = defaultdict(list)
    for one in known:
        by_label[one.spec.method].append(one.wall_s)
    per_epoch = sum(one.wall_s for one in known) / sum(one.spec.epochs or 0 for one in known)
    expected = (
        sum(times) / len(times) if (times := by_label.get(spec.method)) else per_epoch * (spec.epochs or 0)
        for spec in waiting
    )
    return sum(expected) / jobs


class Progress(Bar):
    """Shows the progress of the runs.

    Args:
        stream: where to.
        jobs: runs at a time.
        quiet: do not print what is prepared.
        clock: seconds.
    """

    def __init__(
        self, stream: Any, jobs: int, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream, "comparing", "run", quiet=quiet)
        self._jobs = jobs
        self._specs: list[TrainingSpec] = []
        self._finished: dict[str, Outcome] = {}
        self._begun: set[str] = set()
        self._last: list[str] = []
        self._clock, self._watched = clock, -math.inf

    def expect(self, specs: Sequence[TrainingSpec], kept: Sequence[Outcome] = ()) -> None:
        """Take note of runs to come, and of those among them that an earlier command finished."""
        self._specs += specs
        self._finished.update((one.spec.run, one) for one in kept)
        self.expect_some(len(specs), len(kept), "finished before")

    def watch(self, at_work: Sequence[TrainingSpec], storage: str) -> None:
        """Show which runs are at work: on a terminal how far they are, too, once a second."""
        for spec in at_work:
            if spec.run not in self._begun:
                self._begun.add(spec.run)
                self.begins(f"{spec.method} seed {spec.seed}")
        if self.has_bar and self._clock() - self._watched >= _EVERY_S:
            self._watched = self._clock()
            self.beside("; ".join([*(_how_far(one, storage) for one in at_work), *self._last]))

    def show(self, outcome: Outcome) -> None:
        """Take note of a run that ended."""
        self._finished[outcome.spec.run] = outcome
        waiting = [spec for spec in self._specs if spec.run not in self._finished]
        left = seconds_left(waiting, list(self._finished.values()), self._jobs)
        ahead = f", about {_duration(left)} left" if waiting and left is not None else ""
        if ahead and not any(spec.method.startswith(SHORT_FULL) for spec in self._specs):
            ahead += " before the short full runs"  # how many and how long they are depends on all methods
        self._last = [f"{_ended(outcome)}{ahead}"]
        self.ended(self._last[0])


def _how_far(spec: TrainingSpec, storage: str) -> str:
    what = f"{spec.method} seed {spec.seed}"
    try:
        progress = RunStorage(storage, spec.run).read_note("progress") or {}
        return f"{what}: {progress['epoch'] + progress['done']:.1f}/{progress['num_epochs']} epochs"
    except (errors.EsServiceError, KeyError, TypeError):  # it has not written any yet
        return f"{what}: starting"


def _ended(outcome: Outcome) -> str:
    what = f"{outcome.spec.method} seed {outcome.spec.seed}"
    if outcome.measured is None:
        return f"{what} failed: {outcome.error}"
    metric = outcome.measured.metric
    return (
        f"{what}: {metric.replace('_', ' ')} {measured(metric, outcome.measured.metrics[metric])}, "
        f"took {_duration(outcome.wall_s)}"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
