"""Irreducible losses: from a model that never saw the sample, at the cost that is told, and back from a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import nn

from es_service import errors
from es_service.training.irreducible import hold_out_losses, read_losses, write_losses
from es_service.training.loop import TrainSettings
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.supervised import Batch, Classification, TensorSet

NUM, EPOCHS, SIZE = 301, 5, 16
NAN, INF = float("nan"), float("inf")
DEFAULTS = TaskDefaults(epochs=EPOCHS, batch_size=SIZE, learning_rate=0.1)
SETTINGS = TrainSettings(learning_rate=0.1, seed=3)


class Watched(TensorSet):
    """Remembers which ids were asked for, in order."""

    def __init__(self, inputs_n: torch.Tensor, targets_n: torch.Tensor) -> None:
        super().__init__(inputs_n, targets_n)
        self.asked: list[list[int]] = []

    def __getitems__(self, ids: Sequence[int]) -> Batch:
        self.asked.append(list(ids))
        return super().__getitems__(ids)


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))


def make() -> tuple[Classification, Watched, torch.Tensor]:
    """Two clouds far apart; every tenth label is wrong."""
    generator = torch.Generator().manual_seed(0)
    right = torch.randint(2, (NUM,), generator=generator)
    x = torch.randn(NUM, 2, generator=generator) + 4 * right[:, None]
    wrong = torch.arange(NUM) % 10 == 0
    train = Watched(x, torch.where(wrong, 1 - right, right))
    held_out = TensorSet(x[:5], right[:5])
    task = Classification(name="clouds", train_set=train, held_out=held_out, model=build, defaults=DEFAULTS)
    return task, train, wrong


def prepare(task: Any, seed: int = 0) -> Any:
    return hold_out_losses(task, SETTINGS, num_epochs=EPOCHS, batch_size=SIZE, selection_seed=seed)


def test_each_sample_gets_its_loss_from_a_model_that_never_saw_it() -> None:
    task, train, _ = make()
    prepared = prepare(task)
    # Each half is trained on for three epochs; then the other one, and only that, is asked for in order.
    sizes = np.cumsum([len(ids) for ids in train.asked])
    half, epochs = NUM // 2, -(-EPOCHS // 2)
    end = int(np.searchsorted(sizes, epochs * half, side="left")) + 1
    trained = {one for ids in train.asked[:end] for one in ids}
    scored = train.asked[end : end + 1][0]
    assert len(trained) == half
    assert sorted({*trained, *scored}) == list(range(NUM))
    assert not trained & set(scored)
    assert prepared.trained == epochs * NUM
    assert prepared.scored == NUM
    assert prepared.losses.dtype == np.float32
    assert np.isfinite(prepared.losses).all()


def test_a_wrong_label_cannot_be_learnt_from_others() -> None:
    task, _, wrong = make()
    losses = prepare(task).losses
    assert np.median(losses[wrong.numpy()]) > 2.0 > 0.2 > np.median(losses[~wrong.numpy()])


def test_the_same_seeds_give_the_same_losses_and_another_other_halves() -> None:
    task, _, _ = make()
    first, again, other = prepare(task).losses, prepare(task).losses, prepare(task, seed=1).losses
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_seconds_are_those_of_steps_and_scoring() -> None:
    """What every other run's seconds leave out, building a model here, these leave out too."""

    class Slow(TensorSet):
        def __getitems__(self, ids: Sequence[int]) -> Batch:
            time.sleep(0.1 * (len(ids) > SIZE))  # only scoring asks for so many
            return super().__getitems__(ids)

    def build_slowly() -> nn.Module:
        time.sleep(0.4)
        return build()

    x, labels = torch.randn(NUM, 2), torch.zeros(NUM, dtype=torch.int64)
    task = Classification(
        name="slow",
        train_set=Slow(x, labels),
        held_out=TensorSet(x[:5], labels[:5]),
        model=build_slowly,
        defaults=DEFAULTS,
    )
    began = time.monotonic()
    prepared = prepare(task)
    assert 2 * 0.1 < prepared.seconds < time.monotonic() - began - 2 * 0.4


def test_losses_come_back_from_their_file(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).exponential(size=9).astype(np.float32)
    write_losses(str(tmp_path / "il.arrow"), losses)
    assert read_losses(str(tmp_path / "il.arrow"), 9).tobytes() == losses.tobytes()


def test_a_table_exported_from_another_run_will_do_in_any_order(tmp_path: Path) -> None:
    ids = np.array([2, 0, 1])
    parquet.write_table(pa.table({"w": [0.0] * 3, "id": ids, "last_loss": ids * 0.5}), tmp_path / "run.parquet")
    assert read_losses(str(tmp_path / "run.parquet"), 3).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"id": [0, 1], "loss": [1.0, 2.0]}, errors.DataError, "irreducible_loss or last_loss"),
        ({"irreducible_loss": [1.0, 2.0, 3.0]}, errors.DataError, "id and"),
        ({"id": [0, 1], "irreducible_loss": [1.0, 2.0]}, errors.DataError, "not 0 .. 2, each once"),
        ({"id": [0, 1, 1], "irreducible_loss": [1.0, 2.0, 3.0]}, errors.DataError, "each once"),
        ({"id": [2, 1, 0], "last_loss": [None, None, 1.0]}, errors.DataError, "parquet: last_loss of id 1 is null"),
        ({"id": [2, 1, 0], "last_loss": [None, 2, 1]}, errors.DataError, "last_loss of id 2 is null"),
        ({"id": [0, 2, 1], "last_loss": [1.0, NAN, 1.0]}, errors.DataError, "last_loss of id 2 is nan"),
        ({"id": [0, 1, 2], "irreducible_loss": [1.0, -INF, INF]}, errors.DataError, "irreducible_loss of id 1 is -inf"),
        ({"id": [0, 1, 2], "last_loss": [1.0, 1e39, 1.0]}, errors.DataError, r"last_loss of id 1 is 1e\+39"),
        ({"id": [0, 1, 2], "last_loss": ["1", "2", "3"]}, errors.DataError, "has a column last_loss of string"),
        ({"id": ["a", None, "b"], "last_loss": [1.0, 2.0, 3.0]}, errors.DataError, "a column id of string"),
    ],
)
def test_a_file_of_something_else_is_refused(
    tmp_path: Path, columns: dict[str, list[Any]], error: type[Exception], message: str
) -> None:
    path = str(tmp_path / "other.parquet")
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(error, match=message):
        read_losses(path, 3)


@pytest.mark.parametrize("name", ["noise.arrow", "noise.parquet", "missing.arrow"])
def test_a_file_that_cannot_be_read_is_a_storage_error(tmp_path: Path, name: str) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"no table of any kind")
    with pytest.raises(errors.StorageError, match=name):
        read_losses(str(tmp_path / name), 3)
