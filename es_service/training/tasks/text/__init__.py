"""Texts from the user's files, single or in pairs, and their classes: `build` makes a task of them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.training.tables.columns import check_apart, find_column
from es_service.training.tables.files import find_parts
from es_service.training.tables.holdout import split
from es_service.training.tables.left_out import LeftOut
from es_service.training.tables.read import ReadTable, read_table
from es_service.training.tasks.class_metrics import check_metric
from es_service.training.tasks.folders import ModelFolder
from es_service.training.tasks.options import MODELS, TaskOptions
from es_service.training.tasks.supervised import Classification
from es_service.training.tasks.text.columns import LABELS, Texts, find_texts, read_texts
from es_service.training.tasks.text.encoders import Encoder
from es_service.training.tasks.text.sequences import LENGTHS, Encoded, Reader, Sequences, TextSet
from es_service.training.tasks.text.words import Bow, Tiny

__all__ = ["TextClassification", "build"]

_OURS: Mapping[str, Callable[[int, int | None], Reader]] = {"bow": Bow, "tiny": Tiny}
_LEAST_LENGTH = 4  # start, a word of each text, end
_AT_ONCE = 1000  # texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextClassification(Classification):
    """Classification of texts; see `build`."""

    train_set: TextSet
    left_out: LeftOut | None = None

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Tokens int64[n] of each sample of the train set."""
        return self.train_set.lengths

    def inputs(self, batch: Any) -> dict[str, Any]:
        """Return a dict of int64[B, T], T being the longest of these samples: of a larger batch they may be some."""
        inputs = dict(batch[0])
        longest = int(inputs.pop(LENGTHS).max(initial=1))
        return {name: values[:, :longest] for name, values in inputs.items()}


def build(data: str, options: TaskOptions) -> TextClassification:
    """Build the task; all texts are read and made tokens here, 4 bytes each, 5 in pairs.

    Warns, with a `DataWarning`, of samples that were truncated or left out.

    Args:
        data: file or folder of the samples.
        options: `model` is "bow", "tiny" (None) or a folder.

    Raises:
        ConfigError: an option does not fit the data or the model, or transformers is missing.
        DataError: files, texts, labels or the model's folder cannot be used.
    """
    metric = check_metric(options.metric)
    if options.max_length is not None and options.max_length < _LEAST_LENGTH:
        raise errors.ConfigError(f"--max-length {options.max_length}: it must be at least {_LEAST_LENGTH}")
    model, known = options.model or "tiny", MODELS["text"]
    folder = None if model in known else ModelFolder(model, download=bool(options.download), models=known)
    (train, held_out), tables = _samples(data, options)
    num_classes = len(train.labels.values)
    if num_classes < 2:
        raise errors.DataError(f"all samples have the label {train.labels.values[0]!r}: at least 2 classes are needed")
    if folder is not None:
        reader: Reader = Encoder(folder, num_classes, options.max_length)
    else:
        reader = _OURS[model](num_classes, options.max_length)
    encoded = [_encoded(texts, reader) for texts in (train, held_out)]
    num, num_cut = (sum(counts) for counts in zip(*((one.lengths.size, one.num_cut) for one in encoded), strict=True))
    _warn(train.num_skipped + held_out.num_skipped, num_cut, num, reader.limit)
    by_length = np.argsort(encoded[1].lengths, kind="stable")  # evaluated with little padding
    return TextClassification(
        name="text",
        train_set=TextSet(encoded[0], train.labels_n, reader),
        held_out=TextSet(encoded[1], held_out.labels_n, reader, by_length),
        label_names=train.labels.names,
        model=reader.build_model,
        defaults=reader.defaults,
        preview=train.shown,
        judged_by=metric,
        left_out=LeftOut.of(tables, num, truncated=num_cut),
    )


def _samples(data: str, options: TaskOptions) -> tuple[tuple[Texts, Texts], list[ReadTable]]:
    """Return the samples to train on and those held out, and the tables that they come from."""
    parts, skip = find_parts(data, options.held_out), bool(options.skip_broken)
    tables = [read_table(parts.train, skip_broken=skip)]
    table = tables[0].table
    names = find_texts(table, options.text_column)
    label = find_column(table, options.label_column, LABELS, flag="--label-column")
    train = read_texts(table, names, label, skip_broken=skip)
    check_apart([*(("--text-column", name) for name in names), ("--label-column", label)])
    if parts.held_out is None:
        rows = split(len(train.labels_n), parts.share or 0.0, train.labels_n)
        chosen = [
            dataclasses.replace(
                train,
                columns=tuple(column.take(rows_m) for column in train.columns),
                labels_n=train.labels_n[rows_m],
                num_skipped=train.num_skipped if is_first else 0,
            )
            for is_first, rows_m in zip((True, False), rows, strict=True)
        ]
        return (chosen[0], chosen[1]), tables
    tables.append(read_table(parts.held_out, skip_broken=skip))
    other = tables[1].table
    for name in (*names, label):
        find_column(other, name, (), flag=f"--held-out {parts.held_out[0]}, column")
    return (train, read_texts(other, names, label, like=train.labels, skip_broken=skip)), tables


def _encoded(texts: Texts, reader: Reader) -> Sequences:
    def samples() -> Iterator[Encoded]:
        for start in range(0, len(texts.labels_n), _AT_ONCE):
            first, *second = [column.slice(start, _AT_ONCE).to_pylist() for column in texts.columns]
            yield from reader.encode(first, second[0] if second else None)

    found = Sequences.of(samples())
    empty = np.flatnonzero(found.lengths == 0)
    if empty.size:
        raise errors.DataError(
            f"the model's tokenizer makes no token of {empty.size} texts, the first being "
            f"{texts.shown(int(empty[0]))[:60]!r}: remove them, or take another model"
        )
    return found


def _warn(num_skipped: int, num_cut: int, num: int, limit: int) -> None:
    for count, message in (
        (num_skipped, f"{num_skipped:,} rows were left out, which have no text"),
        (num_cut, f"{num_cut:,} of {num:,} samples were truncated to {limit} tokens (--max-length)"),
    ):
        if count:
            warnings.warn(message, errors.DataWarning, stacklevel=2)
