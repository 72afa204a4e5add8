"""Evaluation: how well a model does on held-out samples, all ranks together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from es_service.training.tasks.base import Task
from es_service.training.tasks.metrics import check_final_names, check_statistics, metric_name
from es_service.training.workers.base import Workers

__all__ = ["Evaluation", "evaluate", "final_metrics"]

_BATCH = 500


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a model reaches on the held-out samples.

    Attributes:
        accuracy: mean of the task's metric.
        loss: mean loss.
        accuracy_by_label: mean of the metric over the samples of each label, None for one without; None where the
            task has no labels.
        metrics: the metric that the task is judged by, by its name; the accuracy where it names none.
    """

    accuracy: float
    loss: float
    accuracy_by_label: list[float | None] | None
    metrics: dict[str, float]

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the labels' accuracies, each counting alike; None where the task has no labels."""
        if self.accuracy_by_label is None:
            return None
        return float(np.mean([one for one in self.accuracy_by_label if one is not None]))


def evaluate(
    model: torch.nn.Module,
    task: Task,
    workers: Workers,
    to_device: Callable[[Any], Any],
    autocast: Callable[[], AbstractContextManager[Any]],
    batch_size: int | None = None,
) -> Evaluation:
    """Evaluate a bare model in evaluation mode, each rank taking its part of the samples; it is left in training mode.

    Args:
        model: bare; its buffers become those of rank 0 first.
        task: whose held-out samples count.
        workers: this rank's group; all ranks call it.
        to_device: moves a batch to where the model is.
        autocast: context of the forward passes.
        batch_size: most samples of a pass; 500 where there is no lower limit.

    Raises:
        ShapeError: the task's statistics are not one row for each sample.
    """
    held_out, labels = task.held_out, task.held_out_labels
    mine = np.arange(workers.rank, len(held_out), workers.world_size)
    scores, losses = np.zeros(mine.size), np.zeros(mine.size)
    statistics, sums_k = getattr(task, "statistics", None), np.zeros(0)
    workers.share_buffers(model)
    model.eval()
    with torch.no_grad():
        size = min(_BATCH, batch_size or _BATCH)
        for start in range(0, mine.size, size):
            part = slice(start, start + size)
            batch = to_device(held_out.__getitems__(mine[part].tolist()))
            with autocast():
                outputs = model(task.inputs(batch))
                scores[part] = task.metric(outputs, batch).double().cpu().numpy()
                losses[part] = task.losses(outputs, batch).double().cpu().numpy()
                if statistics is not None:
                    sums_k = _added(sums_k, statistics(outputs, batch), mine[part].size)
    model.train()
    sums = [scores.sum(), losses.sum()]
    counts: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    if labels is not None:
        counts = np.bincount(labels)
        sums += np.bincount(labels[mine], weights=scores, minlength=counts.size).tolist()
    gathered = workers.gather(([float(one) for one in sums], sums_k.tolist()))
    totals = np.sum([one for one, _ in gathered], axis=0)
    value = accuracy = float(totals[0] / len(held_out))
    if statistics is not None:  # a rank without held-out samples has no sums
        totals_k = np.sum([one for _, one in gathered if one], axis=0)
        value = float(task.metric_of(totals_k, len(held_out)))  # type: ignore[attr-defined]
    return Evaluation(
        accuracy=accuracy,
        loss=float(totals[1] / len(held_out)),
        accuracy_by_label=None
        if labels is None
        else [float(total / count) if count else None for total, count in zip(totals[2:], counts, strict=True)],
        metrics={metric_name(task): value},
    )


def _added(sums_k: NDArray[np.float64], statistics: Any, num: int) -> NDArray[np.float64]:
    """Return the sums with the statistics float[B, K] of num further samples in them."""
    check_statistics(statistics, num)
    added: NDArray[np.float64] = statistics.double().sum(dim=0).cpu().numpy()
    return sums_k + added if sums_k.size else added


def final_metrics(
    model: torch.nn.Module,
    task: Task,
    workers: Workers,
    to_device: Callable[[Any], Any],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> dict[str, float]:
    """Return the metrics that a task has of a trained model, by name; {} where it has none. Arguments as in `evaluate`.

    Each rank takes its part of the held-out samples. A metric that counted none of them is left out.

    Raises:
        ConfigError: a name cannot be used.
    """
    measure = getattr(task, "final_metrics", None)
    if measure is None:
        return {}
    mine = np.arange(workers.rank, len(task.held_out), workers.world_size)
    workers.share_buffers(model)
    model.eval()
    with torch.no_grad(), autocast():
        own = {str(name): (float(total), float(num)) for name, (total, num) in measure(model, mine, to_device).items()}
    model.train()
    totals: dict[str, NDArray[np.float64]] = {}
    for one in workers.gather(own):
        for name, pair in one.items():
            totals[name] = totals.get(name, np.zeros(2)) + pair
    check_final_names(task, totals)
    return {name: float(total / num) for name, (total, num) in totals.items() if num}
