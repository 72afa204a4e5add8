"""Collating drawn samples again: padded to the longest of b instead of B, and otherwise what was scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.utils import rnn

from es_service.training import trees

__all__ = ["first_difference"]


def first_difference(rows: Any, again: Any) -> str | None:
    """Return the path of the first leaf that is not the same but for padding; None where all are.

    Padding is what the rows have at the end, or at the beginning, of a dimension, and the batch collated again has not.
    Leaves without rows, e.g. the greatest length as a number, may differ.

    Args:
        rows: taken of a greater batch.
        again: the same samples, collated by themselves.
    """
    leaves, others = dict(trees.leaves_of(rows)), dict(trees.leaves_of(again))
    for path in leaves.keys() | others.keys():
        leaf, other = leaves.get(path), others.get(path)
        if (trees.num_rows(leaf) is not None or trees.num_rows(other) is not None) and not _is_same(leaf, other):
            return path
    return None


def _is_same(leaf: Any, other: Any) -> bool:
    if type(leaf) is not type(other):
        return False
    if isinstance(leaf, rnn.PackedSequence):
        return torch.equal(leaf.data, other.data)
    if trees.is_nested(leaf):
        pairs = zip(leaf.unbind(), other.unbind(), strict=False)
        return len(leaf) == len(other) and all(torch.equal(*pair) for pair in pairs)
    if not isinstance(leaf, (torch.Tensor, np.ndarray)):
        return bool(leaf == other)
    if leaf.dtype != other.dtype or leaf.ndim != other.ndim or len(leaf) != len(other):
        return False
    return any(part.shape == other.shape and bool((part == other).all()) for part in _ends(leaf, other.shape))


def _ends(leaf: Any, shape: tuple[int, ...]) -> Iterator[Any]:
    """Yield the first entries of each dimension, so many, and the last."""
    yield leaf[tuple(slice(num) for num in shape)]
    yield leaf[tuple(slice(max(0, size - num), None) for size, num in zip(leaf.shape, shape, strict=True))]
