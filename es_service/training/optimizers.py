"""The optimizer of a training, and its learning rate over time."""

from __future__ import annotations

import math

import torch

from es_service.training.settings import TrainSettings

__all__ = ["build_optimizer", "learning_rate_at"]


def build_optimizer(model: torch.nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimizer of a model's trainable parameters; see `TrainSettings`."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.optimizer == "adamw":
        groups = [
            {"params": [one for one in trained if one.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)
    return torch.optim.SGD(
        trained,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


def learning_rate_at(progress: float, highest: float, *, warm_up: float = 0.2, schedule: str = "cosine") -> float:
    """Return the learning rate at a share of the training in [0, 1]: up linearly, then down to 0 or constant.

    Args:
        progress: share of the training that is done.
        highest: the learning rate at the end of the warm-up.
        warm_up: share of the training in which it rises.
        schedule: "cosine" or "linear", down to 0 at the end; "constant" stays.
    """
    if progress < warm_up:
        return highest * (0.04 + 0.96 * progress / warm_up)
    if schedule == "constant":
        return highest
    if schedule == "linear":
        return highest * (1.0 - progress) / (1.0 - warm_up)
    return highest * 0.5 * (1.0 + math.cos(math.pi * (progress - warm_up) / (1.0 - warm_up)))
