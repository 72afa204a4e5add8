"""The samples of a finished epoch as a table: the stored columns, and those that are worked out of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from es_service.api.table.filters import select
from es_service.api.table.view import Labels, TableView, present
from es_service.storage import labels
from es_service.storage.runs import RunStorage

__all__ = ["samples_of"]


def samples_of(storage: RunStorage, conditions: Sequence[str] = (), *further: str) -> pa.Table:
    """Return the newest snapshot's table with each sample's suspicion, and its label's name where it has one.

    Args:
        storage: of the run.
        conditions: that samples must meet, as the HTTP API takes them in `where`.
        further: columns to add that a sample has over HTTP; others are passed over.

    Raises:
        RunNotFoundError, StorageError: there is no table, or it cannot be read.
        ConfigError: a condition that is none.
    """
    table = storage.table()
    notes = labels.read_notes(storage)
    known = Labels(labels.read_labels(storage), notes.label_names) if notes.has_labels else None
    view = TableView([table], version="", source="storage", epoch=0, as_of=0.0, labels=known)
    for name in dict.fromkeys(("suspicion", "label", *further)):
        if name in view.columns and name not in table.column_names:
            table = table.append_column(name, _array(view, name))
    mask = select(view, conditions)
    return table if mask is None else table.filter(pa.array(mask))


def _array(view: TableView, name: str) -> pa.Array:
    values = view.column(name)
    if name == "label":
        assert view.labels is not None
        codes, places = np.unique(values, return_inverse=True)
        return pa.array([view.labels.name(int(code)) for code in codes], pa.string()).take(pa.array(places))
    there = present(name, values)
    return pa.array(values, mask=None if there is None else ~there)
