"""Per-sample signals beside the loss that a selection method may ask for; none of them needs a gradient."""

from __future__ import annotations

import torch

from es_service import errors
from es_service.training import losses

__all__ = ["confidence", "cross_entropy_grad_norm", "squared_error_grad_norm"]


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """Return float32[B], the largest probability that a softmax over the classes gives.

    Args:
        logits: float[B, C].

    Raises:
        ShapeError: the logits have another shape.
    """
    losses.check_outputs("logits", logits)
    if logits.ndim != 2:
        raise errors.ShapeError(f"logits must be [B, C], got {tuple(logits.shape)}")
    return logits.detach().float().softmax(dim=1).amax(dim=1)


def cross_entropy_grad_norm(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return float32[B], the norm of the gradient of each sample's cross entropy with respect to its logits.

    It is ‖softmax(z) - onehot(y)‖₂, and times a constant it bounds the norm of the gradient with respect to all
    weights. With p_j the probabilities of the other classes it is √(Σp_j² + (Σp_j)²), computed like that since
    1 - p_y would round to 0 for a sample that is all but certain. A label of `IGNORE_INDEX` gives 0.

    Args:
        logits: float[B, C].
        labels: integer[B], each in [0, C) or `IGNORE_INDEX`.

    Raises:
        ShapeError: the shapes do not belong together.

    Reference: Katharopoulos & Fleuret, *Not All Samples Are Created Equal*, arXiv 1803.00942.
    """
    losses.check_outputs("logits", logits)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise errors.ShapeError(
            f"logits of shape {tuple(logits.shape)} do not fit labels of shape {tuple(labels.shape)}: "
            "they must be [B, C] and [B]"
        )
    labels = labels.long()
    counts = labels != losses.IGNORE_INDEX
    others = logits.detach().float().softmax(dim=1).scatter(1, labels.where(counts, 0).unsqueeze(1), 0.0)
    return (others.square().sum(dim=1) + others.sum(dim=1).square()).sqrt() * counts


def squared_error_grad_norm(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return float32[B], the norm of the gradient of `losses.squared_error` with respect to each prediction.

    That is 2·|prediction - target|; with D numbers per sample 2/D·‖prediction - target‖₂.

    Args and errors are those of `losses.residuals`.
    """
    residuals = losses.residuals(predictions, targets).detach()
    norms: torch.Tensor = torch.linalg.vector_norm(residuals, dim=1)
    return norms * (2.0 / max(residuals.shape[1], 1))
