"""What is read from the batches of a stream: their ids, and how many there are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from es_service import errors

__all__ = ["ids_of", "num_batches"]


def ids_of(batch: Any, ids: Callable[[Any], Any] | str) -> Any:
    """Return the ids of a batch, which are under a key of it or what a function makes of it, not checked yet.

    Raises:
        ShapeError: it has no such key.
    """
    if not isinstance(ids, str):
        return ids(batch)
    try:
        return batch[ids]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        has = f"has the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else f"is {type(batch)}"
        raise errors.ShapeError(
            f"a batch of the stream has no {ids!r}, it {has}: say where its ids are, ids='their key' or "
            "ids=lambda batch: batch[0]"
        ) from error


def num_batches(batches: Iterable[Any]) -> int | None:
    """Return how many batches there are, None where that is not known, or only roughly."""
    torch_data = sys.modules.get("torch.utils.data")
    if torch_data is not None and isinstance(getattr(batches, "dataset", None), torch_data.IterableDataset):
        return None  # a guess, as torch itself warns
    try:
        return len(batches)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
