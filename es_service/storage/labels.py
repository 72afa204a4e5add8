"""What a run's samples are, for display: their labels, and how one can be shown.

    <storage>/<run>/labels.arrow   column `label`, the code of each sample in order of its id
    <storage>/<run>/samples.json   label_names; preview: the media type of a sample's picture or text, null for none

Written when training begins, where they are known; a run does not depend on them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors
from es_service.storage import arrow_files, files
from es_service.storage.plain import plain
from es_service.storage.runs import RunStorage

__all__ = ["PREVIEW_TYPES", "SampleNotes", "check_codes", "read_labels", "read_notes", "write_notes"]

PREVIEW_TYPES = ("image/png", "text/plain")
_FILE = "labels.arrow"
_DIGEST = b"sha256"  # of the codes, in the file's metadata
_FEW_LABELS, _MOST_SAMPLES = 1 << 16, 1 << 28
_HEAD_BYTES = 1 << 16  # of the file, beside the codes


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
    """Write what is known of a run's samples beside run.json; labels take as few bytes each as they need.

    Raises:
        ConfigError: labels that are not codes of classes, see `check_codes`.
        StorageError: it cannot be written.
    """
    if labels_n is not None:
        codes = labels_n.astype(np.min_scalar_type(check_codes(labels_n)))
        table = pa.table({"label": codes}).replace_schema_metadata({_DIGEST: _digest(codes)})
        files.write_atomically(storage.filesystem, f"{storage.path}/{_FILE}", arrow_files.encode(table))
    names = None if label_names is None else list(label_names)
    storage.write_note("samples", {"label_names": names, "has_labels": labels_n is not None, "preview": preview})


def check_codes(labels_n: NDArray[np.int64]) -> int:
    """Return the highest label, or raise ConfigError: they are not codes of classes, numbered from 0."""
    lowest, highest = int(labels_n.min(initial=0)), int(labels_n.max(initial=0))
    if lowest < 0 or highest >= _most_labels(labels_n.size):
        raise errors.ConfigError(
            f"the labels of the samples reach from {lowest:,} to {highest:,}: number the classes from 0, below "
            f"{_most_labels(labels_n.size):,}"
        )
    return highest


def read_notes(storage: RunStorage) -> SampleNotes:
    """Return what is known of a run's samples: nothing where it was not written."""
    found: dict[str, Any] = plain(storage.read_note("samples") or {})
    names, preview = found.get("label_names"), found.get("preview")
    return SampleNotes(
        tuple(map(str, names)) if isinstance(names, list) else None,
        bool(found.get("has_labels")),
        preview if preview in PREVIEW_TYPES else None,
    )


def read_labels(storage: RunStorage) -> NDArray[Any]:
    """Return the labels uint[n] of a run; StorageError where the file is missing or damaged."""
    path, num_samples = f"{storage.path}/{_FILE}", min(storage.config().end_of_ids, _MOST_SAMPLES)

    def check(schema: pa.Schema) -> None:
        if schema.names != ["label"] or not pa.types.is_unsigned_integer(schema.field("label").type):
            raise errors.StorageError(f"{path} is damaged: labels are unsigned integers, these are {schema.types}")

    data = files.read_bytes(storage.filesystem, path, _HEAD_BYTES + 8 * num_samples)
    table = arrow_files.read_table(data, path, check, most_rows=num_samples)
    column = table.column("label")
    if column.null_count:
        raise errors.StorageError(f"{path} is damaged: it has no label for some samples")
    codes: NDArray[Any] = column.to_numpy()
    if codes.size and int(codes.max()) >= _most_labels(codes.size):
        raise errors.StorageError(
            f"{path} is damaged: it has the label {int(codes.max()):,} for {codes.size:,} samples"
        )
    noted = (table.schema.metadata or {}).get(_DIGEST)
    if noted is not None and noted.decode(errors="replace") != _digest(codes):  # an older file has none
        raise errors.StorageError(f"{path} is damaged: its sha256 is not the one noted in it")
    return codes


def _most_labels(num_samples: int) -> int:
    """Return the end of the codes: figures by label take memory for each."""
    return max(_FEW_LABELS, 2 * num_samples)


def _digest(codes_n: NDArray[Any]) -> str:
    return hashlib.sha256(codes_n.tobytes()).hexdigest()
