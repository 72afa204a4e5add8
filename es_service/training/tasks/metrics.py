"""What a task calls its metrics: names that results, tables and dashboards can hold beside their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from es_service import errors

if TYPE_CHECKING:
    from es_service.training.tasks.base import Task

__all__ = ["ACCURACY", "check_final_names", "check_statistics", "metric_name"]

ACCURACY = "accuracy"
_MOST_CHARACTERS = 40
_TAKEN = frozenset(
    {
        "above_full", "accuracy_by_label", "balanced_accuracy", "batch_size", "by_metric", "config",
        "corrupted_share", "cost", "data_s", "date", "decision", "difference_to_full", "difference_to_short_full",
        "done", "epoch", "epochs", "error", "errors", "exchange_s", "failed", "full", "held_out_loss", "hostname",
        "label", "label_names", "label_shares", "last", "learning_rate", "loss", "machine", "method", "metric",
        "metrics", "node_ip", "number", "pid", "prepare_s", "reached", "rest_s", "run", "samples",
        "saving_at_equal_accuracy", "score_s", "scored", "scorer_passes", "scorers", "seconds", "seed", "seeds",
        "setting", "settings", "status", "stopped", "timestamp", "total_s", "train_loss", "train_s", "trained",
        "trained_by_label", "training_iteration", "trial_id", "value", "verdict", "waited_share", "wall_s",
    }
)  # fmt: skip  # columns, and keys of results, of compare and tune


def metric_name(task: Task) -> str:
    """Return what the metric is called that a task is judged by.

    Raises:
        ConfigError: the name cannot be used, or a metric that is worked out from `statistics` has none of its own.
    """
    name, has_statistics = getattr(task, "metric_name", None), getattr(task, "statistics", None) is not None
    if has_statistics != (getattr(task, "metric_of", None) is not None):
        raise errors.ConfigError(f"task {task.name!r}: statistics and metric_of belong together, and one is missing")
    if name is None:
        name = ACCURACY
    _check(task, name)
    if has_statistics and name == ACCURACY:
        raise errors.ConfigError(
            f"task {task.name!r} has statistics, and so a metric beside the accuracy, which is the mean of `metric`: "
            "give it a metric_name of its own"
        )
    return str(name)


def check_final_names(task: Task, names: Iterable[str]) -> None:
    """Raise ConfigError where one of the task's final metrics has a name that cannot be used."""
    for name in names:
        _check(task, name)
        if name in (ACCURACY, metric_name(task)):
            raise errors.ConfigError(
                f"task {task.name!r}: a final metric cannot be called {name!r}, every epoch has it"
            )


def check_statistics(statistics: Any, num: int) -> None:
    """Raise ShapeError unless these are a tensor [num, K]."""
    shape = getattr(statistics, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != num:
        found = type(statistics).__name__ if shape is None else list(shape)
        raise errors.ShapeError(f"statistics must return a tensor [{num}, K], one row for each sample, got {found}")


def _check(task: Task, name: object) -> None:
    if not isinstance(name, str) or not name.isidentifier() or len(name) > _MOST_CHARACTERS or name in _TAKEN:
        raise errors.ConfigError(
            f"task {task.name!r}: {name!r} cannot be the name of a metric: take letters, digits and _, at most "
            f"{_MOST_CHARACTERS}, and no name that results have already, such as cost or held_out_loss"
        )
