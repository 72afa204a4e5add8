"""A task whose data come slowly, as from a disk far away: its training leaves time to look at it, and to look again."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.supervised import Batch, Classification, TensorSet

BATCH_S = 0.25


class FarAway(TensorSet):
    """Samples each batch of which takes a while."""

    def __getitems__(self, ids: Sequence[int]) -> Batch:
        time.sleep(BATCH_S)
        return super().__getitems__(ids)


def build_task(data: str | None) -> Classification:
    random = np.random.default_rng(0)
    inputs = torch.from_numpy(random.normal(size=(300, 4)).astype(np.float32))
    targets = (inputs[:, 0] + 0.5 * inputs[:, 1] > 0).long()
    return Classification(
        name="slow",
        train_set=FarAway(inputs[:256], targets[:256]),
        held_out=TensorSet(inputs[256:], targets[256:]),
        model=lambda: nn.Linear(4, 2),
        defaults=TaskDefaults(epochs=8, batch_size=64, learning_rate=0.1),
    )
