"""How a batch is read: a tree with leaves at its ends, and which of them have a row for each sample.

A batch is a tree of dicts, lists, tuples, NamedTuples and dataclasses with leaves at its ends. A leaf has rows if it is
a tensor or array of at least one dimension, a PackedSequence, a nested tensor, or a list or tuple without any tensor or
array in it (e.g. one string per sample). Each of these must have one row for each of the B samples. A leaf with another
number of rows is refused: rows taken of it by position would be those of other samples. Where a batch holds such
leaves, e.g. one weight per class, `per_sample` names the leaves that do have a row per sample; all others pass through
as they are. So do scalars, strings and None. A leaf's name is its path, keys, fields and indices joined by dots:
"targets.boxes", or "0" for the first of a tuple; naming a node names all below it.

A list or tuple of tensors is read as fields, `[images, labels]`, where all of them have B samples; otherwise, where
there are B of them, as one tensor per sample, as in detection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch.nn.utils import rnn

from es_service import errors

__all__ = [
    "children_of",
    "first_misfit",
    "is_nested",
    "is_sequence",
    "leaves_of",
    "named_nodes",
    "num_rows",
    "path_below",
    "refusal",
]


def is_sequence(node: Any) -> bool:
    """Whether it is a list or a tuple without field names."""
    return isinstance(node, (list, tuple)) and not hasattr(node, "_make")


def children_of(node: Any) -> dict[Any, Any] | None:
    """Return what hangs below a node of the tree by its name, None for a leaf."""
    if isinstance(node, rnn.PackedSequence):
        return None
    if isinstance(node, Mapping):
        return dict(node)
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    if isinstance(node, tuple) and hasattr(node, "_make"):
        return dict(zip(node._fields, node, strict=True))  # type: ignore[attr-defined]
    if is_sequence(node) and any(_holds_array(child) for child in node):
        return dict(enumerate(node))
    return None


def _holds_array(node: Any) -> bool:
    if isinstance(node, (torch.Tensor, np.ndarray, rnn.PackedSequence)):
        return True
    return any(_holds_array(child) for child in (children_of(node) or {}).values())


def path_below(path: str, name: Any) -> str:
    """Return the path of a child."""
    return f"{path}.{name}" if path else str(name)


def leaves_of(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf with its path."""
    children = children_of(node)
    if children is None:
        yield path, node
    else:
        for name, child in children.items():
            yield from leaves_of(child, path_below(path, name))


def named_nodes(batch: Any, per_sample: Sequence[str] | None) -> dict[str, Any]:
    """Return the nodes that hold a row per sample, by their paths; all of the batch where none is named."""
    if per_sample is None:
        return {"": batch}
    return {name: _find(batch, batch, name, "") for name in per_sample}


def _find(batch: Any, node: Any, wanted: str, path: str) -> Any:
    if path == wanted:
        return node
    for name, child in (children_of(node) or {}).items():
        below = path_below(path, name)
        if wanted == below or wanted.startswith(f"{below}."):
            return _find(batch, child, wanted, below)
    known = ", ".join(repr(path) for path, _ in leaves_of(batch))
    raise errors.ShapeError(f"per_sample names {wanted!r}, which the batch does not have; it has {known}")


def num_rows(leaf: Any) -> int | None:
    """Return how many rows a leaf has, None where it has none."""
    if isinstance(leaf, rnn.PackedSequence):
        return int(leaf.batch_sizes[0])
    if isinstance(leaf, torch.Tensor):
        return leaf.size(0) if leaf.ndim else None
    if isinstance(leaf, np.ndarray):
        return leaf.shape[0] if leaf.ndim else None
    return None if isinstance(leaf, (str, bytes)) or not isinstance(leaf, Sized) else len(leaf)


def first_misfit(node: Any, num: int, path: str) -> tuple[str, Any] | None:
    """Return the first leaf that is not one of `num` samples, with its path; None where all are."""
    children = children_of(node)
    if children is None:
        rows = num_rows(node)
        known = isinstance(node, (torch.Tensor, np.ndarray, list, tuple))  # PackedSequence is a tuple
        return None if rows is None or (rows == num and known) else (path, node)
    found = (first_misfit(child, num, path_below(path, name)) for name, child in children.items())
    first = next((one for one in found if one is not None), None)
    return None if first is None or (is_sequence(node) and len(node) == num) else first


def refusal(batch: Any, path: str, leaf: Any, num: int) -> str:
    """Return what is wrong with the leaf that `first_misfit` found, and what to change."""
    what = f"leaf {path!r}" if path else "the batch"
    rows = num_rows(leaf) or 0
    if rows == num:
        return f"{what} is a {type(leaf).__name__}, of which no samples can be taken: make it a tensor, array or list"
    shape = (
        f", shape {tuple(leaf.shape)}" if isinstance(leaf, (torch.Tensor, np.ndarray)) and not is_nested(leaf) else ""
    )
    each = f", {rows // num} for each" if num and rows and rows % num == 0 else ""
    fitting = [repr(name) for name, one in leaves_of(batch) if num_rows(one) == num]
    return (
        f"{what} ({type(leaf).__name__}{shape}) has {rows} rows in a batch of {num} samples{each}: rows taken by "
        "position would be those of other samples. Give it one row per sample, of shape "
        f"({num}, k, ...) where a sample has k of them. If all samples share it, leave it out of the batch, or name "
        "what has a row per sample: "
        f"per_sample=[{', '.join(fitting) or '...'}]"
    )


def is_nested(leaf: Any) -> bool:
    """Whether it is one of torch's nested tensors."""
    return isinstance(leaf, torch.Tensor) and leaf.is_nested
