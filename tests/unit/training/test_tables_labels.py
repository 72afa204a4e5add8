"""Columns by name, labels as integers from 0, and the share that is held out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from es_service import errors
from es_service.training.tables.columns import find_column
from es_service.training.tables.files import find_parts
from es_service.training.tables.holdout import split
from es_service.training.tables.labels import Labels, read_labels
from es_service.training.tables.read import read_table
from es_service.training.tasks.splits import stratified_split

TABLE = pa.table({"Sentence": ["a"], "Label": [0], "idx": [7]})


def labels_of(values: Any, **settings: Any) -> Labels:
    return read_labels(pa.table({"label": values}), "label", **settings)


def classes_of(names: Sequence[str], values: Sequence[int]) -> pa.Table:
    """A table as `datasets` keeps it."""
    features = datasets.Features({"label": datasets.ClassLabel(names=list(names)), "x": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"label": values, "x": ["a"] * len(values)}, features=features)
    table: pa.Table = made.data.table
    return table


def test_a_column_is_found_by_its_name_or_the_usual_ones() -> None:
    assert find_column(TABLE, "idx", ("label",), flag="--label-column") == "idx"
    assert find_column(TABLE, None, ("labels", "label"), flag="--label-column") == "Label"
    both = pa.table({"LABEL": [0], "Label": [0], "label": [0]})
    assert find_column(both, None, ("label",), flag="--label-column") == "label"
    assert find_column(both, "Label", (), flag="--label-column") == "Label"


def test_a_missing_column_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(errors.ConfigError) as caught:
        find_column(TABLE, "lable", ("label",), flag="--label-column")
    assert str(caught.value) == (
        "--label-column lable: there is no such column; did you mean 'Label'? there are Sentence, Label, idx"
    )
    with pytest.raises(errors.ConfigError, match="--text-column zzz: there is no such column; there are Sentence, "):
        find_column(TABLE, "zzz", (), flag="--text-column")
    with pytest.raises(
        errors.ConfigError,
        match="none of the columns is called text or content: name one with --text-column; there are Sentence, Label",
    ):
        find_column(TABLE, None, ("text", "content"), flag="--text-column")


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 0, 2], pa.int8()),
        pa.array([1, 0, 2], pa.uint64()),
        [1.0, 0.0, 2.0],
        ["1", "0", "2"],
        ["1.0", "0.0", "2"],
        pa.array(["1", "0", "2"], pa.large_string()),
        pa.array(["1", "0", "2"], pa.string_view()),
        pa.array(["1", "0", "2"]).dictionary_encode(),
        pa.chunked_array([[1], [], [0, 2]]),
    ],
)
def test_integers_from_0_stay_as_they_are(values: Any, caplog: pytest.LogCaptureFixture) -> None:
    labels = labels_of(values)
    assert labels.labels_n.tolist() == [1, 0, 2]
    assert labels.labels_n.dtype == labels.rows_n.dtype == np.int64
    assert (labels.names, labels.values, labels.rows_n.tolist()) == (None, (0, 1, 2), [0, 1, 2])
    assert not caplog.records


@pytest.mark.parametrize(
    ("values", "expected", "names"),
    [
        (["pos", "neg", "pos"], [1, 0, 1], ("neg", "pos")),
        ([10, 2, 5], [2, 0, 1], ("2", "5", "10")),
        ([-1, 1, -1], [0, 1, 0], ("-1", "1")),
        ([0, 2, 0], [0, 1, 0], ("0", "2")),
        (["10", "2", "5"], [2, 0, 1], ("2", "5", "10")),
        (["01", "1", "2"], [0, 1, 2], ("01", "1", "2")),
        (["b", "1", "a"], [2, 0, 1], ("1", "a", "b")),
        (pa.array(["b", "a", "b"]).dictionary_encode(), [1, 0, 1], ("a", "b")),
    ],
)
def test_other_labels_are_numbered_in_sorted_order_and_that_is_said(
    values: Any, expected: list[int], names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    labels = labels_of(values)
    assert (labels.labels_n.tolist(), labels.names) == (expected, names)
    assert [str(value) for value in labels.values] == list(names)
    assert [record.getMessage() for record in caplog.records] == [
        f"the labels in column 'label' are numbered from 0 in this order: {', '.join(names)}"
    ]


def test_booleans_are_false_and_true(caplog: pytest.LogCaptureFixture) -> None:
    labels = labels_of([True, True])
    assert (labels.labels_n.tolist(), labels.names, labels.values) == ([1, 1], ("false", "true"), (0, 1))
    assert not caplog.records


@pytest.mark.parametrize("form", ["parquet", "save_to_disk", "memory"])
def test_names_of_datasets(tmp_path: Path, form: str) -> None:
    table = classes_of(["neg", "neutral", "pos"], [2, 0, 2])
    if form != "memory":
        datasets.disable_progress_bars()
        made = datasets.Dataset(table)
        if form == "parquet":
            made.to_parquet(tmp_path / "train.parquet")
        else:
            datasets.DatasetDict({"train": made, "test": made}).save_to_disk(
                tmp_path, num_shards={"train": 2, "test": 1}
            )
        parts = find_parts(str(tmp_path), None)
        assert len(parts.train) == 1 + (form == "save_to_disk")
        table = read_table(parts.train).table
    labels = read_labels(table, "label")
    assert (labels.labels_n.tolist(), labels.names) == ([2, 0, 2], ("neg", "neutral", "pos"))
    assert labels.values == (0, 1, 2)
    assert read_labels(table, "x").names == ("a",)


def test_strings_are_no_classes_of_datasets_even_if_its_metadata_are_there() -> None:
    table = classes_of(["pos", "neg"], [0, 1])
    labels = read_labels(table.set_column(0, "label", pa.array(["pos", "neg"])), "label")
    assert (labels.labels_n.tolist(), labels.names) == ([1, 0], ("neg", "pos"))


UNUSABLE: list[tuple[Any, str, str]] = [
    ([1, None, 0], "None", "1 of 3 rows"),
    ([1.0, float("nan"), 0.0], "nan", "1 of 3 rows"),
    ([1.0, float("inf"), 0.0], "inf", "1 of 3 rows"),
    ([1.0, 0.5, 0.0], "0.5", "1 of 3 rows"),
    ([1.0, 1e300, 0.0], "1e\\+300", "1 of 3 rows"),
    (["1", "1e400", "0"], "inf", "1 of 3 rows"),
    (["1", "NaN", "0"], "nan", "1 of 3 rows"),
    (["1", "0.5", "0"], "0.5", "1 of 3 rows"),
    (["1", None, "0"], "None", "1 of 3 rows"),
    ([True, None, False], "None", "1 of 3 rows"),
]


@pytest.mark.parametrize(("values", "shown", "count"), UNUSABLE)
def test_a_row_without_a_label_is_an_error_or_skipped_and_counted(
    values: Any, shown: str, count: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        errors.DataError, match=rf"row 1 \(from 0\) of column 'label' has {shown} for a .*{count}.*--skip"
    ):
        labels_of(values)
    labels = labels_of(values, skip_broken=True)
    assert (labels.labels_n.tolist(), labels.rows_n.tolist()) == ([1, 0], [0, 2])
    assert caplog.records[0].getMessage().endswith(f"{count} have no label and are left out")


def test_a_class_that_the_names_do_not_have_is_no_label() -> None:
    table = classes_of(["neg", "pos"], [1, -1, 0])  # -1 is what the hub has for a label that is not public
    with pytest.raises(errors.DataError, match=r"row 1 \(from 0\) of column 'label' has -1 for a label"):
        read_labels(table, "label")
    assert read_labels(table, "label", skip_broken=True).rows_n.tolist() == [0, 2]


@pytest.mark.parametrize("values", [pa.array([None, None]), pa.array([None], pa.string()), [float("nan")]])
def test_a_column_without_any_label(values: Any) -> None:
    with pytest.raises(errors.DataError, match="no row of column 'label' has a label"):
        labels_of(values, skip_broken=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([["a"], ["b"]], "column 'label' holds list<item: string>, and labels are integers, strings or booleans"),
        (pa.array([2**63], pa.uint64()), "column 'label' are too large"),
    ],
)
def test_a_column_of_no_labels(values: Any, message: str) -> None:
    with pytest.raises(errors.DataError, match=message):
        labels_of(values)


def part(values: Any) -> pa.Table:
    """A table of labels; of a pair (names, values) as `datasets` keeps it."""
    return classes_of(*values) if isinstance(values, tuple) else pa.table({"label": values})


@pytest.mark.parametrize(
    ("train", "held_out", "expected"),
    [
        ([0, 1, 2], [2, 0], [2, 0]),
        ([0, 1, 2], ["2", "0"], [2, 0]),
        ([0, 1, 2], (["n", "z", "p"], [2, 0]), [2, 0]),
        ([1, 2, 5], [5, 1], [2, 0]),
        (["a", "b", "c"], ["c", "a"], [2, 0]),
        (["a", "b", "c"], (["c", "a"], [0, 1]), [2, 0]),
        ([False, True, True], [True, True], [1, 1]),
        ((["n", "z", "p"], [0, 1]), [2, 0], [2, 0]),
        ((["n", "z", "p"], [0, 1]), ["p", "n"], [2, 0]),
        ((["n", "z", "p"], [0, 1]), (["p", "n", "z"], [0, 1]), [2, 0]),
        ((["3", "2", "1"], [0, 1]), [2, 0], [2, 0]),
    ],
)
def test_held_out_labels_are_numbered_like_those_to_train_on(
    train: Any, held_out: Any, expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    like = read_labels(part(train), "label")
    num_said = len(caplog.records)
    labels = read_labels(part(held_out), "label", like=like)
    assert labels.labels_n.tolist() == expected
    assert (labels.names, labels.values) == (like.names, like.values)
    assert len(caplog.records) == num_said  # once is enough


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        ([0, 1], [0, 2], "the label 2, which no sample to train on has; these have 0, 1"),
        (["a", "b"], ["a", "z"], "the label 'z', which no sample to train on has; these have a, b"),
        (["a", "b"], [0, 1], "the label 0, which no"),
        ([1, 2], [0, 1], "the label 0, which no"),
        ((["n", "p"], [0, 1]), (["n", "z"], [0, 1]), "the label 'z', which no"),
        ((["n", "p"], [0, 1]), [0, 2], "the label 2, which no"),
        (list(range(30)), [40], "these have 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …"),
    ],
)
def test_a_held_out_label_that_is_not_trained_on_is_an_error(train: Any, held_out: Any, message: str) -> None:
    like = read_labels(part(train), "label")
    with pytest.raises(errors.DataError, match=message):
        read_labels(part(held_out), "label", like=like)


def test_of_many_names_the_first_are_said(caplog: pytest.LogCaptureFixture) -> None:
    assert len(labels_of([str(number) + "x" for number in range(100)]).values) == 100
    assert caplog.records[0].getMessage().endswith(", 17x, 18x, …")


def test_a_share_of_each_class_is_held_out_and_always_the_same() -> None:
    labels_n = np.repeat([0, 1, 2], [500, 300, 10])
    train, held_out = split(810, 0.1, labels_n)
    assert np.bincount(labels_n[held_out]).tolist() == [50, 30, 1]
    assert sorted([*train, *held_out]) == list(range(810))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()
    assert held_out.tolist() == split(810, 0.1, labels_n)[1].tolist()
    assert held_out[:4].tolist() == [2, 4, 32, 33]  # so that ids never shift


def test_without_labels_a_share_of_all_is_held_out() -> None:
    train, held_out = split(100, 0.07)
    assert (train.size, held_out.size) == (93, 7)  # as floats, 0.07 of 100 is more than 7


def test_the_split_is_that_of_the_other_tasks() -> None:
    labels_n = np.arange(1000) % 7
    for ours, theirs in zip(split(1000, 0.2, labels_n), stratified_split(labels_n), strict=True):
        assert ours.tolist() == sorted(theirs)


@pytest.mark.parametrize(
    ("n", "share", "labels_n", "message"),
    [
        (8, 0.2, np.arange(8) // 4, "0.2 of 8 samples in 2 classes leaves 8 to train on and 0 held out"),
        (3, 0.2, None, "0.2 of 3 samples leaves 3 to train on and 0 held out: give more samples, another share, or a"),
        (0, 0.5, None, "0.5 of 0 samples leaves 0 to train on and 0 held out"),
    ],
)
def test_a_split_with_an_empty_part_is_an_error(n: int, share: float, labels_n: Any, message: str) -> None:
    with pytest.raises(errors.DataError, match=message):
        split(n, share, labels_n)


def test_tables_need_no_torch() -> None:
    program = "import sys; from es_service.training.tables import holdout, read; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("name", "num_classes"), [("cifar10", 10), ("sst2", 2), ("cola", 2), ("rte", 2)])
def test_real_labels(shared_data: Path, name: str, num_classes: int) -> None:
    parts = find_parts(str(shared_data / f"{name}_train.parquet"), None)
    assert parts.held_out is not None
    labels = read_labels(read_table(parts.train).table, "label")
    held_out = read_labels(read_table(parts.held_out).table, "label", like=labels)
    assert labels.names is None
    assert labels.values == tuple(range(num_classes))
    assert np.unique(held_out.labels_n).size == num_classes


def test_a_real_column_that_is_missing(shared_data: Path) -> None:
    table = read_table([shared_data / "rte_validation.parquet"]).table
    with pytest.raises(errors.ConfigError, match="did you mean 'sentence1'"):
        find_column(table, "sentense1", (), flag="--text-column")
