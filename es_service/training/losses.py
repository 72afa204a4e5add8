"""Per-sample losses: one number for each sample of a batch, which selection needs and a mean does not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from es_service import errors

__all__ = ["IGNORE_INDEX", "check_outputs", "check_per_sample", "cross_entropy", "residuals", "squared_error"]

IGNORE_INDEX = -100
"""A label that counts for nothing, as in torch and transformers."""


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Return float32[B], the cross entropy of each sample; of many labels per sample, e.g. tokens, their mean.

    Labels of `IGNORE_INDEX` count for nothing; a sample that has no other has loss 0.

    Args:
        logits: float[B, ..., C], classes last.
        labels: integer[B, ...], each in [0, C) or `IGNORE_INDEX`.
        label_smoothing: share in [0, 1] of the target that is spread evenly over the classes.

    Raises:
        ShapeError: the shapes do not belong together, the logits are not a tensor, or the labels are not integers.
        DataError: a label is none of the C classes; on a GPU torch itself ends the process.
    """
    check_outputs("logits", logits)
    if logits.ndim < 2 or logits.shape[:-1] != labels.shape:
        hint = ""
        if logits.ndim > 2 and logits.shape[:1] + logits.shape[2:] == labels.shape:
            hint = "; these have the classes second: pass logits.movedim(1, -1)"
        raise errors.ShapeError(
            f"logits of shape {tuple(logits.shape)} do not fit labels of shape {tuple(labels.shape)}: "
            f"they must be [B, ..., C] and [B, ...]{hint}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise errors.ShapeError(f"labels must be integers, got {labels.dtype}")
    labels = labels.long()
    try:
        each = F.cross_entropy(
            logits.float().flatten(0, -2),
            labels.flatten(),
            reduction="none",
            ignore_index=IGNORE_INDEX,
            label_smoothing=label_smoothing,
        ).view(labels.shape)
    except IndexError as error:
        raise errors.DataError(_stray_label(labels, logits.shape[-1])) from error
    if labels.ndim == 1:
        return each
    counted = (labels != IGNORE_INDEX).flatten(1).sum(dim=1)
    return each.flatten(1).sum(dim=1) / counted.clamp(min=1)


def _stray_label(labels: torch.Tensor, num_classes: int) -> str:
    is_stray = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= num_classes))
    place = is_stray.nonzero()[0].tolist()
    where = ", ".join(map(str, place))
    return (
        f"label {int(labels[tuple(place)])} at position {where} of the batch is none of the {num_classes} classes that "
        f"the logits have: labels must lie in 0 .. {num_classes - 1}"
    )


def check_outputs(what: str, outputs: Any) -> None:
    """Raise ShapeError unless a model's outputs are one tensor; `what` they are called, e.g. logits."""
    if not isinstance(outputs, torch.Tensor):
        raise errors.ShapeError(
            f"the model returned a {_described(outputs)}, where {what} must be a tensor: let the model return that "
            "alone, or write losses, signals and metric that pick it, as in super().losses(outputs[0], batch)"
        )


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"Tensor{list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {', '.join(f'{key!r}: {_described(one)}' for key, one in value.items())}"
    if isinstance(value, (tuple, list)):
        return f"{type(value).__name__} of {', '.join(map(_described, value))}"
    return type(value).__name__


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


def check_per_sample(losses: Any, length: int | None) -> None:
    """Raise ShapeError unless these are the losses of `length` samples, one each: a tensor float[length].

    Where the length is unknown, None, one dimension is all that is asked for.
    """
    if not isinstance(losses, torch.Tensor):
        raise errors.ShapeError(f"the loss function must return a tensor, got {type(losses).__name__}")
    samples = "the samples of a batch" if length is None else f"{length} samples"
    if losses.ndim == 0:
        raise errors.ShapeError(
            f"the loss function returned one number for {samples}: it must give one loss per sample; "
            "with torch's loss functions pass reduction='none'"
        )
    if losses.ndim != 1 or length not in (None, losses.numel()):
        raise errors.ShapeError(
            f"the loss function returned shape {tuple(losses.shape)} for {samples}: it must be ({length or 'B'},), one "
            "loss per sample; of several per sample, take the mean over all but the first dimension"
        )
