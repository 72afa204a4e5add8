"""What a model and a loss function may return where selection needs one number for each sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from es_service import errors

__all__ = ["check_outputs", "check_per_sample"]


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
