"""Labels as a column of a table has them, as integers that count from 0."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from es_service import errors

__all__ = ["Labels", "class_names", "read_labels"]

_log = logging.getLogger(__name__)
_MOST_NAMED = 10
_BOOLS = ("false", "true")


@dataclasses.dataclass(frozen=True, slots=True)
class Labels:
    """Labels of the samples of one part.

    Args:
        labels_n: int64[n], from 0.
        names: what 0, 1, … mean; None where the column has just these integers.
        values: what stands in the column for 0, 1, …
        rows_n: int64[n], the row of each label in its table: all rows, but for what was skipped.
    """

    labels_n: NDArray[np.int64]
    names: tuple[str, ...] | None
    values: tuple[int | str, ...]
    rows_n: NDArray[np.int64]


def read_labels(table: pa.Table, column: str, *, like: Labels | None = None, skip_broken: bool = False) -> Labels:
    """Return the labels in a column.

    A column of `datasets.ClassLabel` has the names that its metadata give it; one of booleans has false and true.
    Others are numbered in sorted order, unless they are the integers 0, 1, … already; the mapping is logged.

    Args:
        table: of the samples.
        column: name of the column.
        like: the labels of the train set, whose mapping the held-out samples get as well; None for the train set.
        skip_broken: leave out rows without a label, `rows_n` has the others; else they are an error.

    Raises:
        DataError: a row has no label (null, an empty string, NaN, a number that is no integer, a class that the
            metadata do not name), no row has one, a held-out sample has one that is not in `like`, or the column's type
            is none of labels.
    """
    values = _plain(table[column].combine_chunks(), column)
    names = class_names(table.schema.metadata, column)
    if pa.types.is_boolean(values.type):
        names, values = _BOOLS, values.cast(pa.int64())
    elif pa.types.is_string(values.type):
        names = None  # `datasets` keeps numbers: another program wrote this
    is_good = _usable(values, None if names is None else len(names))
    rows_n = np.flatnonzero(is_good)
    if rows_n.size < is_good.size:
        row = int(np.argmin(is_good))
        problem = (
            f"row {row} (from 0) of column {column!r} has {values[row].as_py()!r} for a label, which should be an "
            f"integer, a string or a boolean; {is_good.size - rows_n.size} of {is_good.size} rows have no label"
        )
        if not skip_broken:
            raise errors.DataError(f"{problem}: mend them, or leave them out with --skip-broken")
        _log.warning("%s and are left out", problem)
    if not rows_n.size:
        raise errors.DataError(f"no row of column {column!r} has a label")
    values = values.take(pa.array(rows_n))
    if pa.types.is_floating(values.type):
        values = values.cast(pa.int64())
    encoded = pc.dictionary_encode(values)
    classes, codes_n = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
    if like is not None:
        names, kept, of_class = like.names, like.values, _known(classes, names, like)
    elif names is not None:
        kept, of_class = tuple(range(len(names))), classes
    else:
        kept = tuple(sorted(classes))
        order = {value: number for number, value in enumerate(kept)}
        of_class = [order[value] for value in classes]
        if of_class != classes:
            names = tuple(map(str, kept))
            _log.warning("the labels in column %r are numbered from 0 in this order: %s", column, _listed(names))
    return Labels(np.array(of_class, dtype=np.int64)[codes_n], names, kept, rows_n)


def class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """Return what a column's labels mean, from what `datasets` keeps in a schema's metadata; None where it does not."""
    try:
        feature: Any = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]
        return tuple(feature["names"]) if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None


def _plain(values: pa.Array, column: str) -> pa.Array:
    """Return them as int64, float64, bool, or strings; where all strings are numbers, as in text files, as numbers."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _plain(values.cast(kind.value_type), column)
    if pa.types.is_null(kind) or pa.types.is_integer(kind):
        return _cast(values, pa.int64(), column)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _cast(values, pa.float64(), column)
    if str(kind) in ("string", "large_string", "string_view"):
        values = values.cast(pa.string())
        for number in (pa.int64(), pa.float64()):
            try:
                numbers = values.cast(number)
            except pa.ArrowInvalid:
                continue
            if pc.count_distinct(numbers) == pc.count_distinct(values):  # "1" and "01" are two
                return numbers
        return values
    if pa.types.is_boolean(kind):
        return values
    raise errors.DataError(f"column {column!r} holds {kind}, and labels are integers, strings or booleans")


def _cast(values: pa.Array, kind: pa.DataType, column: str) -> pa.Array:
    try:
        return values.cast(kind)
    except pa.ArrowInvalid as error:
        raise errors.DataError(f"the labels in column {column!r} are too large: {error}") from None


def _usable(values: pa.Array, num_classes: int | None) -> NDArray[np.bool_]:
    """Return bool[n]: whether a row has a label."""
    is_good: NDArray[np.bool_] = values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(values.type):
        numbers_n = values.to_numpy(zero_copy_only=False)
        with np.errstate(invalid="ignore"):
            is_good = is_good & np.isfinite(numbers_n) & (numbers_n == np.rint(numbers_n)) & (abs(numbers_n) < 2**53)
    if pa.types.is_string(values.type):  # quotes with nothing in them, in CSV
        has_text = pc.not_equal(pc.utf8_trim_whitespace(values), "")
        is_good = is_good & pc.fill_null(has_text, False).to_numpy(zero_copy_only=False)
    if num_classes is not None:
        numbers_n = values.fill_null(0).to_numpy(zero_copy_only=False)
        is_good = is_good & (numbers_n >= 0) & (numbers_n < num_classes)
    return is_good


def _known(classes: list[Any], names: tuple[str, ...] | None, like: Labels) -> list[int]:
    """Return what the labels of held-out samples are in the train set: by their names, else by their values."""
    by_name = {name: number for number, name in enumerate(like.names or ())}
    by_value = {value: number for number, value in enumerate(like.values)}
    found = []
    for value in classes:
        name = names[value] if names is not None else value
        number = by_name.get(name)
        if number is None and (names is None or not by_name):
            number = by_value.get(value)
        if number is None:
            raise errors.DataError(
                f"the held-out samples have the label {name!r}, which no sample to train on has; these have "
                f"{_listed(like.names or like.values)}"
            )
        found.append(number)
    return found


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values[:_MOST_NAMED])) + (", …" if len(values) > _MOST_NAMED else "")
