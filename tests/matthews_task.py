"""A task with all optional members: points in two unequal classes, judged by Matthews correlation; each has tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.supervised import Batch, Classification, TensorSet

NUM, HELD_OUT = 203, 61  # odd: two ranks have unequal shares


class MatthewsTask(Classification):
    """A classification in two classes."""

    metric_name = "matthews"

    @property
    def tokens(self) -> NDArray[np.int64]:
        """As many as the sample's id, and one more."""
        return np.arange(1, len(self.train_set) + 1)

    def statistics(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return in which cell of the confusion matrix each sample is."""
        return nn.functional.one_hot(2 * batch[1] + outputs.argmax(dim=1), 4)

    def metric_of(self, sums_k: NDArray[np.float64], num: int) -> float:
        """Return (TP·TN - FP·FN) / √((TP + FP)(TP + FN)(TN + FP)(TN + FN)), 0 where that is undefined."""
        true_negative, false_positive, false_negative, true_positive = sums_k
        assert true_negative + false_positive + false_negative + true_positive == num
        margins = (true_positive + false_positive) * (true_positive + false_negative)
        margins *= (true_negative + false_positive) * (true_negative + false_negative)
        found = true_positive * true_negative - false_positive * false_negative
        return float(found / math.sqrt(margins)) if margins else 0.0

    def final_metrics(
        self, model: nn.Module, ids: NDArray[np.int64], to_device: Callable[[Any], Any]
    ) -> dict[str, tuple[float, int]]:
        """Return how many are right when the points are mirrored."""
        assert not model.training
        assert not torch.is_grad_enabled()
        x, y = to_device(self.held_out.__getitems__(ids.tolist()))
        return {"mirrored": (float((model(-x).argmax(dim=1) == y).sum()), len(ids))}

    def augment(self, batch: Any, ids_B: NDArray[np.int64], epoch: int, seed: int) -> Batch:
        """Return the batch moved a little, by its samples' ids and the epoch."""
        return Batch(batch[0] + (torch.as_tensor(ids_B).unsqueeze(1) + 1000 * epoch) / 100_000, batch[1])


def points(num: int, seed: int) -> TensorSet:
    """Points of the plane, about a quarter of them in class 1, some of them wrongly."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 2, generator=random)
    return TensorSet(x, (x[:, 0] + 0.5 * torch.randn(num, generator=random) > 0.7).long())


def build_task(data: str | None = None, **defaults: Any) -> MatthewsTask:
    """Return the task; nothing comes from files."""
    del data
    return MatthewsTask(
        name="matthews",
        train_set=points(NUM, 1),
        held_out=points(HELD_OUT, 2),
        model=lambda: nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)),
        defaults=TaskDefaults(**{"epochs": 3, "batch_size": 16, "learning_rate": 0.1, **defaults}),
    )


def build_measured(data: str | None = None) -> MatthewsTask:
    """Return the task with a backward pass whose cost is to be measured."""
    return build_task(data, backward_cost=None)
