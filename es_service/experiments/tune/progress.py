"""Progress of a search: a bar on a terminal, a line per trial elsewhere."""

from __future__ import annotations

from typing import Any

from es_service.experiments.progress import Bar, measured
from es_service.experiments.tune.objectives import Objective
from es_service.experiments.tune.trials import FAILED, FINISHED, PRUNED, RUNNING, Trial

__all__ = ["Progress"]


class Progress(Bar):
    """Shows the progress of the trials.

    Args:
        stream: where to.
        quiet: do not print what is prepared.
    """

    def __init__(self, stream: Any, *, quiet: bool = False) -> None:
        super().__init__(stream, "searching", "trial", quiet=quiet)
        self._objective: Objective | None = None
        self._highest: float | None = None
        self._best = ""
        self._begun: set[str] = set()

    def expect(self, total: int, objective: Objective, ended: int = 0) -> None:
        """Take note of how many trials there are, and how many of them ended before this command."""
        self._objective = objective
        self.expect_some(total, ended, "ended before")

    def show(self, trial: Trial) -> None:
        """Take note of an epoch of a trial, or of its end."""
        if trial.status == RUNNING:
            if trial.run not in self._begun:
                self._begun.add(trial.run)
                self.begins(self._what(trial))
            self.beside(f"{trial.run}, epoch {len(trial.epochs)}{self._best}")
            return
        self._remember(trial)
        self.ended(self._words(trial), self._best)

    def _remember(self, trial: Trial) -> None:
        """Keep the best trial in words, for the bar."""
        if trial.status != FINISHED or self._objective is None or "epochs" in trial.settings:
            return  # a full run is none of the search's
        value = self._objective.values(trial.epochs)[0]
        words = f"{value:.4f}" if self._objective.to_target else measured(self._objective.metric, value)
        better = value if self._objective.directions[0] == "max" else -value
        if self._highest is None or better > self._highest:
            self._highest, self._best = better, f", best {words} by {trial.run}"

    def _what(self, trial: Trial) -> str:
        named = ", ".join(f"{name}={value}" for name, value in trial.settings.items())
        return f"{trial.run} ({named}, seed {trial.seed})"

    def _words(self, trial: Trial) -> str:
        what = self._what(trial)
        if trial.status == FAILED:
            return f"{what} failed: {trial.error}"
        last = trial.epochs[-1]
        metric = self._objective.metric if self._objective is not None else "accuracy"
        words = f"{metric.replace('_', ' ')} {measured(metric, last[metric])}, cost {last['cost']:.3f}"
        return f"{what}: {words}" + (f", stopped after epoch {last['epoch'] + 1}" if trial.status == PRUNED else "")
