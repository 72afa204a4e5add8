"""The texts and labels of a table: which columns they are in, and which rows can be used."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from es_service import errors
from es_service.training.tables.columns import find_column
from es_service.training.tables.labels import Labels, read_labels

__all__ = ["LABELS", "Texts", "find_texts", "read_texts"]

LABELS = ("label", "labels", "class", "category", "target", "sentiment")
_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("text1", "text2"),
)
_SINGLES = ("sentence", "text", "review", "content", "comment", "document")
_FLAG = "--text-column"
_NUMBER = r"^\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*$"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """The samples of one part.

    Attributes:
        columns: one array of n texts, or two of a pair.
        names: of these columns.
        labels_n: int64[n].
        labels: what they mean.
        num_skipped: rows left out because they have no text.
    """

    columns: tuple[pa.ChunkedArray, ...]
    names: tuple[str, ...]
    labels_n: NDArray[np.int64]
    labels: Labels
    num_skipped: int

    def shown(self, row: int) -> str:
        """Return a sample as people see it."""
        texts = [str(column[row].as_py()) for column in self.columns]
        return texts[0] if len(texts) == 1 else "\n".join(map("{}: {}".format, self.names, texts))


def find_texts(table: pa.Table, asked: str | None) -> tuple[str, ...]:
    """Return the name of the column of texts, or the two of a pair.

    Args:
        table: of the samples.
        asked: "name" or "name,name"; None for usual names.

    Raises:
        ConfigError: there is no such column, or more than two were named.
    """
    if asked is not None:
        names = [name.strip() for name in asked.split(",")]
        if len(names) > 2 or len(set(names)) < len(names):
            raise errors.ConfigError(f"{_FLAG} {asked}: name one column, or the two of a pair")
        return tuple(find_column(table, name, (), flag=_FLAG) for name in names)
    folded = {name.casefold() for name in table.column_names}
    pair = next((pair for pair in _PAIRS if folded.issuperset(pair)), None)
    usual = [_SINGLES] if pair is None else [(name,) for name in pair]
    return tuple(find_column(table, None, names, flag=_FLAG) for names in usual)


def read_texts(
    table: pa.Table, names: tuple[str, ...], label: str, *, like: Labels | None = None, skip_broken: bool = False
) -> Texts:
    """Return the samples of a table.

    Args:
        table: of the samples.
        names: of the columns of texts.
        label: name of the column of labels.
        like: labels of the train set, for those held out; None for the train set.
        skip_broken: leave out rows without a text or a label; else they are an error.

    Raises:
        DataError: a column holds no texts, a row has none, or a label cannot be used.
    """
    columns = [_strings(table, name) for name in names]
    labels = read_labels(table, label, like=like, skip_broken=skip_broken)
    is_good = np.zeros(table.num_rows, dtype=bool)
    is_good[labels.rows_n] = True
    for name, column in zip(names, columns, strict=True):
        has_text = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(column), ""), False).to_numpy()
        if not (skip_broken or has_text.all()):
            row = int(np.argmin(has_text))
            what = "no text (null)" if column[row].as_py() is None else "an empty text"
            raise errors.DataError(
                f"row {row} (from 0) of column {name!r} has {what}, as have {int((~has_text).sum())} of "
                f"{table.num_rows} rows: mend them, or leave them out with --skip-broken"
            )
        is_good &= has_text
    if not is_good.any():
        raise errors.DataError(f"no row has a text in column {' and '.join(map(repr, names))}")
    rows = pa.array(np.flatnonzero(is_good))
    return Texts(
        columns=tuple(column.take(rows) for column in columns),
        names=names,
        labels_n=labels.labels_n[is_good[labels.rows_n]],
        labels=labels,
        num_skipped=labels.rows_n.size - len(rows),
    )


def _strings(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column as strings; DataError where it holds numbers or anything else."""
    column = table[name]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
    if is_text or pa.types.is_null(kind):
        column = column.cast(pa.large_string())
        numbers = pc.all(pc.match_substring_regex(column, _NUMBER)).as_py()  # in CSV all columns are strings
        if not numbers:
            return column
    raise errors.DataError(
        f"column {name!r} holds {'numbers' if is_text else kind}, not texts: name another with {_FLAG}; there are "
        f"{', '.join(table.column_names)}"
    )
