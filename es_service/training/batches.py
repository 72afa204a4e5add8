"""Batches of any make: take some of the samples, cut into micro-batches, move to a device.

A batch is a tree of dicts, lists, tuples, NamedTuples and dataclasses with leaves at its ends. A leaf has a length if
it is a tensor or array of at least one dimension, or a list or tuple without any tensor or array in it (one string per
sample, say). B is the length of the first such leaf. Leaves of length B are indexed; all else (scalars, strings, None,
a tensor of another length) passes through as it is. So does the make of the tree: a NamedTuple stays one.

A list or tuple of tensors is read as fields, `[images, labels]`, unless they do not all have B samples and there are B
of them: then it is one tensor per sample, as in detection. That needs an earlier leaf that says what B is.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from es_service import errors

__all__ = ["Positions", "batch_length", "even_sizes", "split", "take", "to_device"]

Positions: TypeAlias = "NDArray[np.integer[Any]] | torch.Tensor | Sequence[int]"


def batch_length(batch: Any) -> int:
    """Return B, the number of samples of a batch.

    Raises:
        ShapeError: nothing in it has a length.
    """
    for leaf in _leaves(batch):
        length = _length(leaf)
        if length is not None:
            return length
    raise errors.ShapeError(
        f"cannot tell how many samples a batch of type {type(batch).__name__} has: it must hold at least one tensor, "
        "array or list with one entry per sample, in any nesting of dicts, lists, tuples and dataclasses"
    )


def take(batch: Any, positions: Positions) -> Any:
    """Return a batch of the samples at these positions, in their order; it shares no memory with `batch`.

    Args:
        batch: of B samples.
        positions: integer[b], each in [0, B).

    Raises:
        ShapeError: the batch has no length, or the positions have more than one dimension or are no integers.
        InputError: a position outside [0, B).
    """
    length = batch_length(batch)
    host = positions.cpu().numpy() if isinstance(positions, torch.Tensor) else np.asarray(positions)
    if host.ndim != 1 or (host.size and host.dtype.kind not in "iu"):
        raise errors.ShapeError(f"positions must be integers of one dimension, got {host.dtype}{list(host.shape)}")
    host = host.astype(np.int64, copy=False)
    outside = np.flatnonzero((host < 0) | (host >= length))
    if outside.size:  # checked here: on a GPU the same mistake would take the whole process down
        raise errors.InputError(
            f"position {host[outside[0]]} (entry {outside[0]}) is outside the batch of {length} samples"
        )
    moved: dict[torch.device, torch.Tensor] = {}

    def pick(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            if leaf.device not in moved:
                moved[leaf.device] = torch.tensor(host, device=leaf.device)
            return leaf.index_select(0, moved[leaf.device])
        if isinstance(leaf, np.ndarray):
            return leaf[host]
        return _like(leaf, [leaf[position] for position in host.tolist()])

    return _map(batch, pick, length)


def split(batch: Any, size: int | Sequence[int]) -> Iterator[Any]:
    """Yield the batch in pieces; tensors and arrays in them are views.

    Args:
        batch: of B samples; where one piece holds them all it is yielded itself, with B = 0 nothing is.
        size: samples of each piece but the last, at least 1; or the sizes of all pieces, which sum to B.

    Raises:
        ShapeError: the batch has no length.
        ConfigError: `size` below 1.
    """
    length = batch_length(batch)
    if isinstance(size, int):
        if size < 1:
            raise errors.ConfigError(f"a micro-batch must hold at least 1 sample, got {size}")
        size = [min(size, length - start) for start in range(0, length, size)]
    if len(size) == 1:
        yield batch
        return
    start = 0
    for one in size:
        yield _map(batch, operator.itemgetter(slice(start, start + one)), length)
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
    num = 1 if most is None else math.ceil(length / most)
    return [(length + index) // num for index in range(num)]


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Return the batch with every tensor on the device; all other leaves, numpy arrays too, stay what they are.

    Copies from pinned memory to a CUDA device do not wait; all others do.
    """
    target = torch.device(device)

    def move(leaf: Any) -> Any:
        return leaf.to(target, non_blocking=target.type == "cuda") if isinstance(leaf, torch.Tensor) else leaf

    return _map(batch, move, None)


def _is_sequence(node: Any) -> bool:
    return isinstance(node, (list, tuple)) and not _is_namedtuple(node)


def _is_namedtuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_make")


def _is_dataclass(node: Any) -> bool:
    return dataclasses.is_dataclass(node) and not isinstance(node, type)


def _children(node: Any) -> list[Any] | None:
    """Return what hangs below a node of the tree, None for a leaf."""
    if isinstance(node, Mapping):
        return list(node.values())
    if _is_dataclass(node):
        return [getattr(node, field.name) for field in dataclasses.fields(node)]
    if _is_namedtuple(node) or (_is_sequence(node) and any(_holds_array(child) for child in node)):
        return list(node)
    return None


def _holds_array(node: Any) -> bool:
    if isinstance(node, (torch.Tensor, np.ndarray)):
        return True
    return any(_holds_array(child) for child in _children(node) or ())


def _leaves(node: Any) -> Iterator[Any]:
    children = _children(node)
    if children is None:
        yield node
    else:
        for child in children:
            yield from _leaves(child)


def _length(leaf: Any) -> int | None:
    if isinstance(leaf, (torch.Tensor, np.ndarray)):
        return leaf.shape[0] if leaf.ndim else None
    return len(leaf) if _is_sequence(leaf) else None


def _map(node: Any, function: Callable[[Any], Any], length: int | None) -> Any:
    """Rebuild a tree with `function` applied to the leaves of this length; to all leaves where length is None."""
    children = _children(node)
    is_samples = length is not None and _is_sequence(node) and len(node) == length
    if is_samples and children is not None and all(_length(leaf) == length for leaf in _leaves(node)):
        is_samples = False  # B fields of B samples each
    if is_samples or children is None:
        return function(node) if is_samples or length is None or _length(node) == length else node
    mapped = [_map(child, function, length) for child in children]
    if isinstance(node, Mapping):
        items = dict(zip(node, mapped, strict=True))
        if type(node) is dict or not isinstance(node, MutableMapping):
            return items
        same = copy.copy(node)  # keeps what a subclass carries besides its items
        for key, value in items.items():  # some, like transformers' ModelOutput, have no update()
            same[key] = value
        return same
    if _is_dataclass(node):
        same = copy.copy(node)
        for field, value in zip(dataclasses.fields(node), mapped, strict=True):
            object.__setattr__(same, field.name, value)
        return same
    return node._make(mapped) if _is_namedtuple(node) else _like(node, mapped)


def _like(node: Any, items: list[Any]) -> Any:
    return tuple(items) if isinstance(node, tuple) else items
