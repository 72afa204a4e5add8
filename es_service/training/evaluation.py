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
from es_service.training.workers.base import Workers

__all__ = ["Evaluation", "evaluate"]

_BATCH = 500


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What a model reaches on the held-out samples.

    Attributes:
        accuracy: mean of the task's metric.
        loss: mean loss.
        accuracy_by_label: mean of the metric over the samples of each label, None for one without; None where the
            task has no labels.
    """

    accuracy: float
    loss: float
    accuracy_by_label: list[float | None] | None

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
) -> Evaluation:
    """Evaluate a bare model in evaluation mode, each rank taking its part of the samples; it is left in training mode.

    Args:
        model: bare; its buffers become those of rank 0 first.
        task: whose held-out samples count.
        workers: this rank's group; all ranks call it.
        to_device: moves a batch to where the model is.
        autocast: context of the forward passes.
    """
    held_out, labels = task.held_out, task.held_out_labels
    mine = np.arange(workers.rank, len(held_out), workers.world_size)
    scores, losses = np.zeros(mine.size), np.zeros(mine.size)
    workers.share_buffers(model)
    model.eval()
    with torch.no_grad():
        for start in range(0, mine.size, _BATCH):
            part = slice(start, start + _BATCH)
            batch = to_device(held_out.__getitems__(mine[part].tolist()))
            with autocast():
                outputs = model(task.inputs(batch))
                scores[part] = task.metric(outputs, batch).double().cpu().numpy()
                losses[part] = task.losses(outputs, batch).double().cpu().numpy()
    model.train()
    sums = [scores.sum(), losses.sum()]
    counts: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    if labels is not None:
        counts = np.bincount(labels)
        sums += np.bincount(labels[mine], weights=scores, minlength=counts.size).tolist()
    totals = np.sum(workers.gather([float(one) for one in sums]), axis=0)
    return Evaluation(
        accuracy=float(totals[0] / len(held_out)),
        loss=float(totals[1] / len(held_out)),
        accuracy_by_label=None
        if labels is None
        else [float(total / count) if count else None for total, count in zip(totals[2:], counts, strict=True)],
    )
