"""Labels of a run's samples: what comes back, what is refused, and what damage is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from es_service import errors
from es_service.selection import methods
from es_service.selection.config import Selection
from es_service.selection.run import RunConfig
from es_service.storage import labels
from es_service.storage.runs import RunStorage

NUM = 200


@pytest.fixture
def storage(tmp_path: Path) -> RunStorage:
    found = RunStorage(str(tmp_path), "mine")
    found.begin(RunConfig(selection=Selection(methods.evolved()), num_samples=NUM, num_epochs=2, batch_size=10))
    return found


@pytest.mark.parametrize("highest", [0, 1, 255, 256, 65_535])
def test_labels_come_back(storage: RunStorage, highest: int) -> None:
    codes = np.arange(NUM) * 7919 % (highest + 1)
    codes[-1] = highest
    labels.write_notes(storage, codes, None, None)
    assert labels.read_labels(storage).tolist() == codes.tolist()
    assert labels.read_notes(storage).has_labels


@pytest.mark.parametrize(("lowest", "highest"), [(-1, 5), (0, 65_536), (0, 2_000_000_000)])
def test_labels_that_are_no_codes_of_classes_are_refused(storage: RunStorage, lowest: int, highest: int) -> None:
    codes = np.zeros(NUM, dtype=np.int64)
    codes[3], codes[5] = lowest, highest
    with pytest.raises(errors.ConfigError, match="number the classes from 0, below 65,536"):
        labels.write_notes(storage, codes, None, None)
    assert not labels.read_notes(storage).has_labels


def test_a_flipped_bit_in_the_labels_is_noticed(storage: RunStorage) -> None:
    codes = np.arange(NUM) % 11
    labels.write_notes(storage, codes, None, None)
    path = Path(storage.path) / "labels.arrow"
    whole = path.read_bytes()
    num_noticed = 0
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            assert labels.read_labels(storage).tolist() == codes.tolist(), place
        except errors.StorageError:
            num_noticed += 1
    assert num_noticed > NUM


@pytest.mark.parametrize(
    "column", [pa.array([1.0] * NUM), pa.array([1] * NUM), pa.array([None] * NUM, pa.uint8()), pa.array(["a"] * NUM)]
)
def test_a_file_of_something_else_is_no_labels(storage: RunStorage, column: Any) -> None:
    table = pa.table({"label": column})
    with pa.OSFile(f"{storage.path}/labels.arrow", "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(errors.StorageError, match=r"labels\.arrow is damaged"):
        labels.read_labels(storage)


def test_labels_without_a_digest_are_those_of_an_earlier_version(storage: RunStorage) -> None:
    table = pa.table({"label": (np.arange(NUM) % 3).astype(np.uint8)})
    with pa.OSFile(f"{storage.path}/labels.arrow", "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert labels.read_labels(storage).tolist() == [one % 3 for one in range(NUM)]
