"""What a run's samples are, for people who look at it: their labels, and how one can be shown.

    <storage>/<run>/labels.arrow   column `label`, the code of each sample in order of its id
    <storage>/<run>/samples.json   label_names; preview: the media type of a sample's picture or text, null for none

Written when a training begins that knows; nothing a run needs depends on them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from es_service import errors
from es_service.storage import files
from es_service.storage.plain import plain
from es_service.storage.runs import RunStorage

__all__ = ["PREVIEW_TYPES", "SampleNotes", "read_labels", "read_notes", "write_notes"]

PREVIEW_TYPES = ("image/png", "text/plain")
_FILE = "labels.arrow"


@dataclasses.dataclass(frozen=True, slots=True)
class SampleNotes:
    """What is known of a run's samples.

    Attributes:
        label_names: what the labels 0, 1, … mean, None for nothing or no labels.
        has_labels: whether there is a file of labels.
        preview: media type of a sample's preview, one of `PREVIEW_TYPES`, None where it cannot be shown.
    """

    label_names: tuple[str, ...] | None = None
    has_labels: bool = False
    preview: str | None = None


def write_notes(
    storage: RunStorage,
    labels_n: NDArray[np.int64] | None,
    label_names: tuple[str, ...] | None,
    preview: str | None,
) -> None:
    """Write what is known of a run's samples beside run.json; labels take as few bytes each as they need."""
    if labels_n is not None:
        codes = labels_n.astype(np.min_scalar_type(int(labels_n.max(initial=0))))
        table = pa.table({"label": codes})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        files.write_atomically(storage.filesystem, f"{storage.path}/{_FILE}", sink.getvalue().to_pybytes())
    names = None if label_names is None else list(label_names)
    storage.write_note("samples", {"label_names": names, "has_labels": labels_n is not None, "preview": preview})


def read_notes(storage: RunStorage) -> SampleNotes:
    """Return what is known of a run's samples: nothing where nobody wrote it."""
    found: dict[str, Any] = plain(storage.read_note("samples") or {})
    names, preview = found.get("label_names"), found.get("preview")
    return SampleNotes(
        tuple(map(str, names)) if isinstance(names, list) else None,
        bool(found.get("has_labels")),
        preview if preview in PREVIEW_TYPES else None,
    )


def read_labels(storage: RunStorage) -> NDArray[Any]:
    """Return the labels uint[n] of a run; StorageError where the file is missing or damaged."""
    path = f"{storage.path}/{_FILE}"
    is_local = isinstance(storage.filesystem, fs.LocalFileSystem)
    with files.storage_errors("read", path):
        source = pa.memory_map(path) if is_local else pa.BufferReader(files.read_bytes(storage.filesystem, path))
    try:
        with pa.ipc.open_file(source) as reader:
            column = reader.read_all().column("label")
    except (pa.ArrowException, KeyError, OSError) as error:
        raise errors.StorageError(f"{path} is damaged: {error}") from error
    if not pa.types.is_unsigned_integer(column.type) or column.null_count:
        raise errors.StorageError(f"{path} is damaged: labels are unsigned integers, these are {column.type}")
    codes: NDArray[Any] = column.to_numpy()
    return codes
