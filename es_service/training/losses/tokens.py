"""Losses of sequences of tokens: one for each sequence, also where several are packed into one row."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F

from es_service import errors
from es_service.training.losses.checks import check_outputs
from es_service.training.losses.classification import IGNORE_INDEX, each_cross_entropy

__all__ = ["num_tokens", "token_cross_entropy"]

Reduction = Literal["mean", "sum", "by_length"]


def token_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    shift: bool = True,
    reduction: Reduction = "mean",
    position_ids: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return float32[B], the cross entropy of each sequence of tokens; float32[N] of the N sequences in packed rows.

    Labels of `IGNORE_INDEX` count for nothing; a sequence that has no other has loss 0. Of large logits float32
    copies are made of 256 MB at a time, and made again in the backward pass, instead of being kept for it.

    Args:
        logits: float[B, T, V], of any floating dtype.
        labels: integer[B, T], each in [0, V) or `IGNORE_INDEX`.
        shift: the logits at a place predict the label of the next one, as in causal models whose labels are their
            inputs. False where labels and logits belong together place by place: masked tokens, labels shifted already.
        reduction: "mean" over a sequence's tokens: all sequences count alike. "sum": long ones count more. "by_length":
            sum·B/(tokens of the batch); the mean of these over the batch is the mean over all its tokens, which is what
            transformers returns. It depends on what else is in the batch.
        position_ids: integer[B, T] of rows into which several sequences are packed one behind the other: each starts at
            0. Losses then come in the order of rows, and of places within a row. Zeros at the end of a row, of which
            none begins a sequence of two tokens or more, are padding.
        label_smoothing: share in [0, 1] of the target that is spread evenly over the V tokens.

    Raises:
        ShapeError: the shapes do not belong together, the logits are not a tensor, or labels are not integers.
        DataError: a label is none of the V tokens, or a packed row does not start at position 0.
        ConfigError: no such reduction.
    """
    if reduction not in get_args(Reduction):
        raise errors.ConfigError(f"unknown reduction {reduction!r}: it is one of {', '.join(get_args(Reduction))}")
    check_outputs("logits", logits)
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise errors.ShapeError(
            f"logits of shape {tuple(logits.shape)} do not fit labels of shape {tuple(labels.shape)}: "
            "they must be [B, T, V] and [B, T]"
        )
    targets = _targets(labels, position_ids, shift=shift)
    each = each_cross_entropy(logits, targets, label_smoothing, labels)
    sums = _by_sequence(each, position_ids).sum(dim=1)
    if reduction == "sum":
        return sums
    nums = _by_sequence(targets != IGNORE_INDEX, position_ids).sum(dim=1)
    if reduction == "by_length":
        return sums * len(nums) / nums.sum().clamp(min=1)
    return sums / nums.clamp(min=1)


def num_tokens(labels: torch.Tensor, *, shift: bool = True, position_ids: torch.Tensor | None = None) -> torch.Tensor:
    """Return int64[B], how many labels of each sequence count; int64[N] of the N sequences in packed rows.

    With the same arguments, `token_cross_entropy`'s "sum" is its "mean" times this.
    """
    return _by_sequence(_targets(labels, position_ids, shift=shift) != IGNORE_INDEX, position_ids).sum(dim=1)


def _targets(labels: torch.Tensor, position_ids: torch.Tensor | None, *, shift: bool) -> torch.Tensor:
    """Return integer[B, T], what the logits at each place are to predict; `IGNORE_INDEX` where nothing."""
    if labels.ndim != 2:
        raise errors.ShapeError(f"labels must be [B, T], got {tuple(labels.shape)}")
    if position_ids is not None:
        if position_ids.shape != labels.shape:
            raise errors.ShapeError(
                f"position_ids of shape {tuple(position_ids.shape)} do not fit labels of shape {tuple(labels.shape)}"
            )
        starts, is_padding = _packing(position_ids)
        # The first token of a sequence has nothing before it that could predict it.
        labels = labels.masked_fill((is_padding | starts) if shift else is_padding, IGNORE_INDEX)
    return F.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:] if shift else labels


def _packing(position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return bool[B, T] twice: where a sequence starts in a packed row, and what is padding behind the last one."""
    zeros = position_ids == 0
    if not zeros[:, :1].all():
        row = int((~zeros[:, 0]).nonzero()[0])
        raise errors.DataError(
            f"row {row} of position_ids starts at {int(position_ids[row, 0])}, not at 0: it holds a part of a sequence "
            "whose start is in another row, so its losses cannot be split by sequence. Pack whole sequences"
        )
    alone = zeros & F.pad(zeros, (0, 1), value=True)[:, 1:]  # a sequence of one token
    is_padding = alone.flip(1).cumprod(dim=1).flip(1).bool()
    return zeros & ~is_padding, is_padding


def _by_sequence(values: torch.Tensor, position_ids: torch.Tensor | None) -> torch.Tensor:
    """Return the values of each sequence in a row of its own, [N, longest], with zeros behind the shorter ones."""
    if position_ids is None:
        return values
    starts, is_padding = _packing(position_ids)
    is_used = ~is_padding
    sequences = starts.flatten().cumsum(dim=0)[is_used.flatten()] - 1
    first = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
    places = (first - first.where(starts, 0).cummax(dim=1).values)[is_used]
    shape = (int(starts.sum()), int(places.max()) + 1 if places.numel() else 0)
    return values.new_zeros(shape).index_put((sequences, places), values[is_used])
