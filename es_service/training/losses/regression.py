"""Losses of numbers: each sample's error, the mean where it has several numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from es_service import errors
from es_service.training.losses.checks import check_outputs

__all__ = ["absolute_error", "huber", "residuals", "squared_error"]


def residuals(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return float32[B, D], predictions less targets, with the D numbers of a sample side by side.

    Args:
        predictions: float[B, ...].
        targets: float[B, ...], of the same shape: nothing is broadcast.

    Raises:
        ShapeError: the shapes differ, or have no dimension for the samples, or the predictions are not a tensor.
    """
    check_outputs("predictions", predictions)
    if predictions.ndim == 0 or predictions.shape != targets.shape:
        hint = ""
        if predictions.shape == (*targets.shape, 1):
            hint = ": let the model end in .squeeze(-1)"
        raise errors.ShapeError(
            f"predictions of shape {tuple(predictions.shape)} do not fit targets of shape {tuple(targets.shape)}{hint}"
        )
    return (predictions.float() - targets.float()).unsqueeze(-1).flatten(1)


def squared_error(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return float32[B], the squared error of each sample; of several numbers per sample, their mean.

    Args and errors are those of `residuals`.
    """
    return residuals(predictions, targets).square().mean(dim=1)


def absolute_error(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return float32[B], the absolute error of each sample (L1); otherwise as `squared_error`."""
    return residuals(predictions, targets).abs().mean(dim=1)


def huber(predictions: torch.Tensor, targets: torch.Tensor, delta: float = 1.0) -> torch.Tensor:
    """Return float32[B], squared/2 up to an error of `delta`, and linear beyond; otherwise as `squared_error`."""
    error = residuals(predictions, targets)
    return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta).mean(dim=1)
