"""Batches of any structure: take some of the samples, cut into micro-batches, move to a device.

For what a batch may be, and what has a row per sample, see `trees`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import rnn

from es_service import errors
from es_service.training import trees

__all__ = [
    "Positions",
    "batch_length",
    "check",
    "even_sizes",
    "in_pieces",
    "mapped",
    "moved",
    "split",
    "take",
    "to_device",
]

Positions: TypeAlias = "NDArray[np.integer[Any]] | torch.Tensor | Sequence[int]"


def batch_length(batch: Any, per_sample: Sequence[str] | None = None) -> int:
    """Return B, the number of samples of a batch.

    Raises:
        ShapeError: nothing in it has rows, or leaves have different numbers of them.
    """
    for part in trees.named_nodes(batch, per_sample).values():
        for _, leaf in trees.leaves_of(part):
            rows = trees.num_rows(leaf)
            if rows is not None:
                check(batch, rows, per_sample)
                return rows
    raise errors.ShapeError(
        f"cannot infer how many samples a batch of type {type(batch).__name__} has: it must hold at least one tensor, "
        "array or list with one entry per sample, in any nesting of dicts, lists, tuples and dataclasses"
    )


def check(batch: Any, num: int, per_sample: Sequence[str] | None = None) -> None:
    """Raise ShapeError unless this is a batch of `num` samples: every leaf has a row for each, or those named do."""
    found = False
    for path, part in trees.named_nodes(batch, per_sample).items():
        if (misfit := trees.first_misfit(part, num, path)) is not None:
            raise errors.ShapeError(trees.refusal(batch, *misfit, num))
        found = found or any(trees.num_rows(leaf) is not None for _, leaf in trees.leaves_of(part, path))
    if not found and num:
        raise errors.ShapeError(
            f"a batch of type {type(batch).__name__} for {num} samples has nothing with a row for each: it must hold "
            "at least one tensor, array or list with one entry per sample"
        )


def take(batch: Any, positions: Positions, num: int | None = None, per_sample: Sequence[str] | None = None) -> Any:
    """Return a batch of the samples at these positions, in their order; it shares no memory with `batch`.

    Args:
        batch: of B samples.
        positions: integer[b], each in [0, B).
        num: B, where it is known; otherwise that of the first leaf.
        per_sample: names of the leaves, or of nodes above them, that have a row per sample; None for all.

    Raises:
        ShapeError: a leaf has no row for each sample, or the positions are not integers in one dimension.
        InputError: a position outside [0, B).
    """
    if num is None:
        num = batch_length(batch, per_sample)
    else:
        check(batch, num, per_sample)
    host = positions.cpu().numpy() if isinstance(positions, torch.Tensor) else np.asarray(positions)
    if host.ndim != 1 or (host.size and host.dtype.kind not in "iu"):
        raise errors.ShapeError(f"positions must be integers of one dimension, got {host.dtype}{list(host.shape)}")
    host = host.astype(np.int64, copy=False)
    outside = np.flatnonzero((host < 0) | (host >= num))
    if outside.size:  # checked here: on a GPU the same mistake would take the whole process down
        raise errors.InputError(
            f"position {host[outside[0]]} (entry {outside[0]}) is outside the batch of {num} samples"
        )
    at: dict[torch.device, torch.Tensor] = {}

    def pick(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and not leaf.is_nested:
            if leaf.device not in at:
                at[leaf.device] = moved(torch.tensor(host), leaf.device)
            return leaf.index_select(0, at[leaf.device])
        return leaf[host] if isinstance(leaf, np.ndarray) else _picked(leaf, host.tolist())

    return _map(batch, pick, num, per_sample)


def split(batch: Any, size: int | Sequence[int], per_sample: Sequence[str] | None = None) -> Iterator[Any]:
    """Yield the batch in pieces; tensors and arrays in them are views.

    Args:
        batch: of B samples; where one piece holds them all it is yielded itself, with B = 0 nothing is.
        size: samples of each piece but the last, at least 1; or the sizes of all pieces, which sum to B.
        per_sample: as in `take`.

    Raises:
        ShapeError: a leaf has no row for each sample.
        ConfigError: `size` below 1.
    """
    if isinstance(size, int):
        if size < 1:
            raise errors.ConfigError(f"a micro-batch must hold at least 1 sample, got {size}")
        num = batch_length(batch, per_sample)
        size = [min(size, num - start) for start in range(0, num, size)]
    if len(size) == 1:
        yield batch
        return
    num, start = sum(size), 0
    check(batch, num, per_sample)
    for one in size:
        yield _map(batch, functools.partial(_piece, start=start, end=start + one), num, per_sample)
        start += one


def even_sizes(length: int, most: int | None) -> list[int]:
    """Return the sizes of pieces of at most `most` samples, as few and as equal as may be; None for one piece.

    Equal, because BatchNorm cannot make do with the single sample that a remainder may be.

    Raises:
        ConfigError: `most` below 1.
    """
    if most is not None and most < 1:
        raise errors.ConfigError(f"a micro-batch must hold at least 1 sample, got {most}")
    if length == 0:
        return []
    return in_pieces(length, 1 if most is None else math.ceil(length / most))


def in_pieces(length: int, num: int) -> list[int]:
    """Return the sizes of `num` pieces, as equal as may be."""
    return [(length + index) // num for index in range(num)]


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Return the batch with every tensor on the device; all other leaves, numpy arrays too, stay what they are.

    Copies to a CUDA device go by way of pinned memory and do not wait; all others do.
    """
    target = torch.device(device)

    def move(leaf: Any) -> Any:
        return moved(leaf, target) if isinstance(leaf, (torch.Tensor, rnn.PackedSequence)) else leaf

    return mapped(batch, move)


def moved(values: Any, device: torch.device) -> Any:
    """Return a tensor, or PackedSequence, on the device; see `to_device`."""
    if device.type != "cuda":
        return values.to(device)
    is_dense = isinstance(values, torch.Tensor) and values.layout == torch.strided and not values.is_nested
    if is_dense and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def mapped(batch: Any, function: Callable[[Any], Any]) -> Any:
    """Return the batch with a function applied to every leaf."""
    return _map(batch, function, None, None)


def _picked(leaf: Any, positions: Sequence[int]) -> Any:
    """Return some of the samples of a leaf that cannot be indexed by many positions at once."""
    if isinstance(leaf, rnn.PackedSequence):
        sequences = rnn.unpack_sequence(leaf)
        return rnn.pack_sequence([sequences[position] for position in positions], enforce_sorted=False)
    if trees.is_nested(leaf):
        rows = leaf.unbind()
        return torch.nested.as_nested_tensor([rows[position] for position in positions], layout=leaf.layout)
    return _like(leaf, [leaf[position] for position in positions])


def _piece(leaf: Any, start: int, end: int) -> Any:
    if isinstance(leaf, rnn.PackedSequence) or trees.is_nested(leaf):
        return _picked(leaf, range(start, end))
    return leaf[start:end]


def _map(
    node: Any, function: Callable[[Any], Any], num: int | None, per_sample: Sequence[str] | None, path: str = ""
) -> Any:
    """Rebuild a tree with `function` applied to the leaves with `num` rows that are named; to all where num is None."""
    if per_sample is not None and path in per_sample:
        per_sample = None  # all below it
    children = trees.children_of(node)
    if num is None:
        is_leaf, is_meant = children is None, True
    else:
        is_leaf = children is None or _is_sample_each(node, num)
        is_meant = per_sample is None and trees.num_rows(node) is not None
    if children is None or (is_leaf and is_meant):
        return function(node) if is_meant else node
    items = {
        name: _map(child, function, num, per_sample, trees.path_below(path, name)) for name, child in children.items()
    }
    if isinstance(node, Mapping):
        return items if type(node) is dict else _like_mapping(node, items, function, num)
    if isinstance(node, tuple) and hasattr(node, "_make"):
        return node._make(items.values())
    if trees.is_sequence(node):
        return _like(node, list(items.values()))
    same = copy.copy(node)
    for name, value in items.items():
        object.__setattr__(same, name, value)
    return same


def _is_sample_each(node: Any, num: int) -> bool:
    """Whether a list of tensors is one of samples, not of fields."""
    if not trees.is_sequence(node) or len(node) != num:
        return False
    return any(trees.first_misfit(child, num, "") is not None for child in node)


def _like_mapping(
    node: Mapping[Any, Any], items: dict[Any, Any], function: Callable[[Any], Any], num: int | None
) -> Mapping[Any, Any]:
    """Return a mapping of the same make; what it carries beside its items, one per sample, is treated as these are."""
    if not isinstance(node, MutableMapping):
        return items
    same = copy.copy(node)
    for key, value in items.items():  # some, like transformers' ModelOutput, have no update()
        same[key] = value
    for name, value in list(getattr(same, "__dict__", {}).items()):
        if name not in items and isinstance(value, list) and len(value) == num:
            setattr(same, name, function(value))  # of transformers' BatchEncoding, the encoding of each text
    return same


def _like(node: Any, items: list[Any]) -> Any:
    return tuple(items) if isinstance(node, tuple) else items
