"""Losses of scores that are compared: a row's own partner with the other rows', or a better item with worse ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from es_service import errors
from es_service.training.losses.checks import check_outputs
from es_service.training.losses.classification import cross_entropy

__all__ = ["bpr", "in_batch_contrastive", "pairwise_margin"]


def in_batch_contrastive(
    queries: torch.Tensor, keys: torch.Tensor, *, temperature: float = 0.05, symmetric: bool = False
) -> torch.Tensor:
    """Return float32[B], InfoNCE: the cross entropy of finding a row's own key among the keys of the batch, by cosine.

    The other B - 1 rows are the negatives. So a loss depends on which batch its sample is in: with micro-batches the
    negatives are those of the micro-batch, and the loss of a mini-batch of b is lower than that of its meta-batch of B.

    Args:
        queries: float[B, D]; row i belongs to row i of `keys`.
        keys: float[B, D].
        temperature: what the cosines are divided by, above 0.
        symmetric: take the mean with the loss of finding the query for each key, as CLIP does.

    Raises:
        ShapeError: not two tensors of the same shape [B, D].
        ConfigError: the temperature is not above 0.
    """
    check_outputs("queries", queries)
    check_outputs("keys", keys)
    if queries.ndim != 2 or queries.shape != keys.shape:
        raise errors.ShapeError(
            f"queries of shape {tuple(queries.shape)} do not fit keys of shape {tuple(keys.shape)}: both must be [B, D]"
        )
    if not 0 < temperature < math.inf:
        raise errors.ConfigError(f"temperature must be above 0 and finite, got {temperature}")
    cosines = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T / temperature
    own = torch.arange(len(cosines), device=cosines.device)
    losses = cross_entropy(cosines, own)
    return (losses + cross_entropy(cosines.T, own)) / 2 if symmetric else losses


def pairwise_margin(better: torch.Tensor, worse: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Return float32[B], max(0, margin - (better - worse)); of several worse items per row, their mean.

    Args:
        better: float[B], the score of the item that should rank higher.
        worse: float[B], or float[B, K] for K items that should rank lower.
        margin: by how much.

    Raises:
        ShapeError: the shapes do not belong together.
    """
    return F.relu(margin - _lead(better, worse)).mean(dim=1)


def bpr(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """Return float32[B], -log σ(better - worse), Bayesian personalised ranking; otherwise as `pairwise_margin`."""
    return F.softplus(-_lead(better, worse)).mean(dim=1)


def _lead(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """Return float32[B, K], by how much the better item leads each worse one."""
    check_outputs("scores of the better items", better)
    check_outputs("scores of the worse items", worse)
    if better.ndim != 1 or worse.ndim not in (1, 2) or worse.shape[:1] != better.shape:
        raise errors.ShapeError(
            f"scores of shape {tuple(better.shape)} (better) and {tuple(worse.shape)} (worse) do not belong together: "
            "they must be [B] and [B] or [B, K]"
        )
    return better.float().unsqueeze(1) - worse.float().reshape(len(worse), -1)
