"""Losses of classes: one label per sample, one per place of a sample, or several that do not exclude each other."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from es_service import errors
from es_service.training.losses.checks import check_outputs

__all__ = ["IGNORE_INDEX", "binary_cross_entropy", "cross_entropy", "each_cross_entropy"]

IGNORE_INDEX = -100
"""A label that counts for nothing, as in torch and transformers."""

_MOST = 1 << 26  # logits that are taken in float32 at once: 256 MB


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
    each = each_cross_entropy(logits, labels, label_smoothing)
    if labels.ndim == 1:
        return each
    counted = (labels != IGNORE_INDEX).flatten(1).sum(dim=1)
    return each.flatten(1).sum(dim=1) / counted.clamp(min=1)


def each_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """Return float32[...], the cross entropy at each place; 0 where the target is `IGNORE_INDEX`.

    Of many logits float32 copies are made piece by piece, and in the backward pass again, instead of being kept.

    Args:
        logits: float[..., C].
        targets: integer[...].
        label_smoothing: as in `cross_entropy`.
        labels: as the user passed them, to name one that is no class; None where these are the targets.

    Raises:
        ShapeError, DataError: as `cross_entropy`.
    """
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise errors.ShapeError(f"labels must be integers, got {targets.dtype}")
    piece = functools.partial(_in_single, label_smoothing=label_smoothing)
    many, classes = logits.flatten(0, -2), targets.long().flatten()
    size = max(1, _MOST // max(1, logits.shape[-1]))
    try:
        if len(many) <= size:
            return piece(many, classes).view(targets.shape)
        if torch.is_grad_enabled():
            piece = functools.partial(checkpoint, piece, use_reentrant=False, preserve_rng_state=False)
        pieces = zip(torch.split(many, size), torch.split(classes, size), strict=True)
        return torch.cat([piece(*one) for one in pieces]).view(targets.shape)
    except IndexError as error:
        raise errors.DataError(_stray_label(targets if labels is None else labels, logits.shape[-1])) from error


def _in_single(logits: torch.Tensor, classes: torch.Tensor, label_smoothing: float) -> torch.Tensor:
    return F.cross_entropy(
        logits.float(), classes, reduction="none", ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing
    )


def _stray_label(labels: torch.Tensor, num_classes: int) -> str:
    is_stray = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= num_classes))
    place = is_stray.nonzero()[0].tolist()
    where = ", ".join(map(str, place))
    return (
        f"label {int(labels[tuple(place)])} at position {where} of the batch is none of the {num_classes} classes that "
        f"the logits have: labels must lie in 0 .. {num_classes - 1}"
    )


def binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, pos_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Return float32[B], the mean over its labels of each sample's binary cross entropy: classes that do not exclude
    each other.

    Args:
        logits: float[B, L], or float[B] of one label.
        targets: of the same shape, floats, integers or bools from 0 to 1. `IGNORE_INDEX` counts for nothing; a sample
            that has no other has loss 0.
        pos_weight: float[L], what a label that is 1 counts for beside one that is 0.

    Raises:
        ShapeError: the shapes do not belong together, or the logits are not a tensor.
        DataError: a target is outside [0, 1].
    """
    check_outputs("logits", logits)
    if logits.ndim not in (1, 2) or logits.shape != targets.shape:
        raise errors.ShapeError(
            f"logits of shape {tuple(logits.shape)} do not fit targets of shape {tuple(targets.shape)}: "
            "both must be [B, L], or [B]"
        )
    if pos_weight is not None and pos_weight.shape != logits.shape[1:]:
        raise errors.ShapeError(
            f"pos_weight of shape {tuple(pos_weight.shape)} does not fit logits of shape {tuple(logits.shape)}: "
            "it must be [L]"
        )
    counts, wanted = targets != IGNORE_INDEX, targets.float()
    if (is_stray := counts & ~((wanted >= 0) & (wanted <= 1))).any():
        place = is_stray.nonzero()[0].tolist()
        raise errors.DataError(
            f"target {targets[tuple(place)].item()} at position {', '.join(map(str, place))} of the batch is outside "
            f"[0, 1]: targets say how true each label is, or are {IGNORE_INDEX} where that is not known"
        )
    each = F.binary_cross_entropy_with_logits(
        logits.float(), wanted.where(counts, 0), reduction="none", pos_weight=pos_weight
    )
    rows = each.where(counts, 0).view(len(each), -1)
    return rows.sum(dim=1) / counts.view(len(each), -1).sum(dim=1).clamp(min=1)
