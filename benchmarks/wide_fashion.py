"""Fashion-MNIST with a ResNet of 20 million parameters: a task for GPUs, where the backward pass is what counts.

    es-service compare --task benchmarks.wide_fashion:build_task --data debian --out DIR --batch-size 512 --epochs 8

Images are those of the task `fashion`, the model is its ResNet eight times as wide, in bfloat16 where the GPU has it.
"""

from __future__ import annotations

import dataclasses
import functools

from es_service.training.tasks import fashion
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.resnet import SmallResNet
from es_service.training.tasks.supervised import Classification

__all__ = ["build_task"]

_WIDTHS = (256, 512, 1024)


def build_task(data: str | None = None) -> Classification:
    """Build the task; `data` is that of `fashion`."""
    return dataclasses.replace(
        fashion.build(data),
        name="wide_fashion",
        model=functools.partial(SmallResNet, widths=_WIDTHS),
        defaults=TaskDefaults(epochs=8, batch_size=512, learning_rate=0.1),
    )
