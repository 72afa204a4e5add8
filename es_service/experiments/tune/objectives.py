"""Objectives of a search: one number of a trial, or two, from its epochs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from es_service import errors
from es_service.selection.settings import make_plain, suggest
from es_service.training.tasks.metrics import ACCURACY

__all__ = ["BALANCED", "OBJECTIVES", "OF_THE_TASK", "Epochs", "Objective"]

OF_THE_TASK, BALANCED = "metric", "balanced_accuracy"
OBJECTIVES = (OF_THE_TASK, ACCURACY, BALANCED, "cost", "time", "front")
Epochs: TypeAlias = Sequence[Mapping[str, Any]]
"""A run's epochs in order: each with epoch, accuracy, balanced_accuracy, the task's metric by its name, cost and
seconds, as of its end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a search is for.

        metric                        the highest of the task's metric after the last epoch
        accuracy, balanced_accuracy   the same of these
        cost, time                    the least cost, or seconds in steps, until `target` is reached
        front                         the highest value and the least cost: none is better in both

    Args:
        name: one of OBJECTIVES.
        target: value of the metric to reach, of "cost" and "time"; an accuracy lies in (0, 1).
        metric: what is looked at: "accuracy", "balanced_accuracy", or what the task calls its own; "metric"
            until the task is built.

    Raises:
        ConfigError: an unknown name, or a target missing, out of range, or for an objective that has none.
    """

    name: str
    target: float | None = None
    metric: str = ACCURACY

    def __post_init__(self) -> None:
        make_plain(self)
        if self.name not in OBJECTIVES:
            raise errors.ConfigError(f"unknown objective {self.name!r}; {suggest(self.name, OBJECTIVES)}")
        if self.name in (ACCURACY, BALANCED):
            object.__setattr__(self, "metric", self.name)
        if not self.to_target:
            if self.target is not None:
                raise errors.ConfigError(
                    f"objective {self.name!r} has no target: leave {self.target} out, or take 'cost' or 'time'"
                )
            return
        if self.target is None:
            raise errors.ConfigError(
                f"objective {self.name!r} is what it takes to reach an accuracy: give it, e.g. --target 0.85"
            )
        if not math.isfinite(self.target):
            raise errors.ConfigError(f"target must be finite, got {self.target}")
        if self.metric in (ACCURACY, BALANCED) and not 0 < self.target < 1:
            raise errors.ConfigError(f"target is an accuracy, in (0, 1), got {self.target}")

    def of(self, metric: str) -> Objective:
        """Return it for a task whose metric has this name."""
        if self.metric != OF_THE_TASK:
            return self
        name = ACCURACY if self.name == OF_THE_TASK and metric == ACCURACY else self.name
        return dataclasses.replace(self, name=name, metric=metric)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that trials report."""
        return tuple(dict.fromkeys((ACCURACY, BALANCED, self.metric)))

    @property
    def to_target(self) -> bool:
        """Whether it is about reaching an accuracy."""
        return self.name in ("cost", "time")

    @property
    def weighs_cost(self) -> bool:
        """Whether a cheaper trial of the same accuracy is better."""
        return self.name in ("cost", "time", "front")

    @property
    def directions(self) -> tuple[str, ...]:
        """What is better, "max" or "min", of each number in `values`."""
        return {"front": ("max", "min"), "cost": ("min",), "time": ("min",)}.get(self.name, ("max",))

    def values(self, epochs: Epochs) -> tuple[float, ...]:
        """Return what counts of a trial that has come so far.

        A trial that has not reached the target counts as more than twice what it has spent, the more the farther away
        it is: so that a search knows which way to go.
        """
        last = epochs[-1]
        if self.name == "front":
            return (float(last[self.metric]), float(last["cost"]))
        if not self.to_target:
            return (float(last[self.metric]),)
        spent = "cost" if self.name == "cost" else "seconds"
        reached = self.reached(epochs)
        if reached is not None:
            return (float(reached[spent]),)
        nearest = max(one[self.metric] for one in epochs)
        return (float(last[spent]) * (2 + float(self.target or 0) - float(nearest)),)

    def reached(self, epochs: Epochs) -> Mapping[str, Any] | None:
        """Return the first epoch with the target reached, None where none has."""
        if self.target is None:
            return None
        return next((one for one in epochs if one[self.metric] >= self.target), None)

    def describe(self) -> str:
        """Return it in words."""
        metric = self.metric.replace("_", " ")
        if self.name == "front":
            return f"{metric} against cost"
        if self.to_target:
            return f"{'cost' if self.name == 'cost' else 'seconds'} until {metric} {self.target}"
        return metric
