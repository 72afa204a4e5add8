"""The samples of a finished epoch as a table: the stored columns, and those that are worked out of them."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from es_service.api.table import exports
from es_service.api.table.filters import select
from es_service.api.table.view import Labels, TableView
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
            table = table.append_column(name, exports.array(view, name, 0, view.num_rows))
    mask = select(view, conditions)
    return table if mask is None else table.filter(pa.array(mask))
