"""Which trials are worth going on with: what early stopping has to say, and ASHA's say."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Protocol

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from es_service.experiments.tune.rungs import REDUCTION

__all__ = ["DROP", "GO_ON", "WAIT", "Asha", "Early", "Never"]

GO_ON, WAIT, DROP = "go on", "wait", "drop"


class Early(Protocol):
    """Hears of all trials in the order of the journal, and so says the same whenever that is read again."""

    def begin(self, number: int) -> None:
        """Take note of a trial that begins; once is as good as twice."""
        ...

    def epoch(self, number: int, entry: Mapping[str, Any]) -> None:
        """Take what a trial has reached, see `trainable.ENTRY`."""
        ...

    def fail(self, number: int) -> None:
        """Take note of a trial that failed."""
        ...

    def retry(self, number: int) -> None:
        """Take note of a failed trial that begins anew."""
        ...

    def verdict(self, number: int) -> str:
        """Return what is to become of a trial that has not ended: GO_ON, WAIT for others, or DROP."""
        ...

    def settle(self) -> None:
        """Decide about those that wait: nothing is under way, and nothing new will come."""
        ...


class Never:
    """Stops nothing."""

    def begin(self, number: int) -> None:
        """See `Early`."""

    def epoch(self, number: int, entry: Mapping[str, Any]) -> None:
        """See `Early`."""

    def fail(self, number: int) -> None:
        """See `Early`."""

    def retry(self, number: int) -> None:
        """See `Early`."""

    def verdict(self, number: int) -> str:  # noqa: ARG002 - the contract's argument
        """See `Early`."""
        return GO_ON

    def settle(self) -> None:
        """See `Early`."""


class Asha(Never):
    """Asynchronous successive halving over epochs, Ray Tune's.

    A trial may be stopped after a quarter of its epochs, and then after three times as many: where it is below the best
    third of those that came so far. All of them are then at the same place of the learning rate's schedule. Where a
    setting is searched that makes epochs cheaper, it is after half of them.

    Args:
        epochs: of a trial, 2 or more.
        metric: what trials are compared by.
        cheaply: whether such a setting is searched.

    Reference: Li et al., *A System for Massively Parallel Hyperparameter Tuning*, MLSys 2020.
    """

    def __init__(self, epochs: int, metric: str, *, cheaply: bool) -> None:
        self._epochs, self._metric = epochs, metric
        self._behind: set[int] = set()
        self._theirs: Any = ASHAScheduler(
            time_attr="done",
            metric="value",
            mode="max",
            max_t=epochs,
            grace_period=max(1, round(epochs / (2 if cheaply else 4))),
            reduction_factor=REDUCTION,
        )

    def begin(self, number: int) -> None:
        """See `Early`."""
        self._theirs.on_trial_add(None, _named(number))

    def epoch(self, number: int, entry: Mapping[str, Any]) -> None:
        """See `Early`; asking is what makes ASHA remember a trial."""
        if entry["epoch"] + 1 < self._epochs:
            result = {"done": entry["epoch"] + 1, "value": entry[self._metric]}
            if self._theirs.on_trial_result(None, _named(number), result) == TrialScheduler.STOP:
                self._behind.add(number)

    def verdict(self, number: int) -> str:
        """See `Early`."""
        return DROP if number in self._behind else GO_ON


def _named(number: int) -> Any:
    """Return what ASHA needs to know of a trial."""
    return types.SimpleNamespace(trial_id=str(number))
