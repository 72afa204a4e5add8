"""Classification and regression of one's own data: what a task gives for a batch, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from es_service import errors
from es_service.training.tasks import base, own
from es_service.training.tasks.supervised import Batch, Classification, Regression, TensorSet

DEFAULTS = base.TaskDefaults(epochs=1, batch_size=4, learning_rate=0.1)


def rows(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def classification() -> Classification:
    return Classification(
        name="c",
        train_set=TensorSet(rows(6), np.array([0, 1, 2, 0, 1, 2])),
        held_out=TensorSet(rows(3, 1), torch.tensor([2, 1, 0])),
        label_names=("a", "b", "c"),
        model=lambda: nn.Linear(3, 3),
        defaults=DEFAULTS,
    )


@pytest.fixture
def regression() -> Regression:
    return Regression(
        name="r",
        train_set=TensorSet(rows(6), torch.arange(6.0)),
        held_out=TensorSet(rows(40, 1), rows(40, 2)[:, 0]),
        model=lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)),
        defaults=DEFAULTS,
    )


def test_both_keep_the_contract(classification: Classification, regression: Regression) -> None:
    tasks: list[base.Task] = [classification, regression]
    for task in tasks:
        assert own.check(task, "mine:build") is task


def test_a_batch_has_the_ids_that_were_asked_for(classification: Classification) -> None:
    batch = classification.train_set.__getitems__([5, 0, 5])
    assert isinstance(batch, Batch)
    assert torch.equal(batch.inputs, rows(6)[[5, 0, 5]])
    assert batch.targets.tolist() == [2, 0, 2]
    for outside in ([6], [0, -1]):
        with pytest.raises(IndexError):
            classification.train_set.__getitems__(outside)


def test_inputs_may_be_a_tree() -> None:
    samples = TensorSet({"x": rows(4), "more": (torch.arange(4), ["a", "b", "c", "d"])}, torch.zeros(4))
    assert len(samples) == 4
    batch = samples.__getitems__([3, 1])
    assert torch.equal(batch.inputs["x"], rows(4)[[3, 1]])
    assert batch.inputs["more"][1] == ["d", "b"]


def test_targets_that_do_not_fit_the_inputs() -> None:
    for targets in (torch.zeros(3), torch.zeros(4, 1)):
        with pytest.raises(errors.ShapeError, match=r"must be \(4,\)"):
            TensorSet(rows(4), targets)


def test_signals_of_a_classification(classification: Classification) -> None:
    batch = classification.held_out.__getitems__([0, 1, 2])
    logits = torch.tensor([[0.0, 0.0, 9.0], [9.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    got = classification.signals(logits, batch)
    assert set(got) == {"correct", "confidence", "grad_norm"}
    assert got["correct"].tolist() == [1.0, 0.0, 1.0]
    assert all(value.dtype == torch.float32 and value.shape == (3,) for value in got.values())
    assert classification.metric(logits, batch).tolist() == [True, False, True]
    assert got["confidence"].tolist() == pytest.approx(logits.softmax(dim=1).amax(dim=1).tolist())
    assert got["grad_norm"][0] < 0.001 < 1.4 < got["grad_norm"][1]


def test_labels_of_a_batch_can_be_changed(classification: Classification) -> None:
    batch = classification.train_set.__getitems__([0, 1])
    other = classification.relabel(batch, torch.tensor([2, 2]))
    assert other.targets.tolist() == [2, 2]
    assert torch.equal(other.inputs, batch.inputs)
    assert batch.targets.tolist() == [0, 1]


def test_the_mean_of_a_regressions_metric_is_r2(regression: Regression) -> None:
    targets = regression.held_out.targets_n
    batch = regression.held_out.__getitems__(range(40))
    predictions = 0.5 * batch.targets + 0.1
    expected = 1 - np.sum((predictions.numpy() - targets) ** 2) / np.sum((targets - targets.mean()) ** 2)
    assert regression.metric(predictions, batch).mean().item() == pytest.approx(expected, rel=1e-5)
    mean = torch.full((40,), float(targets.mean()))
    assert regression.metric(mean, batch).mean().item() == pytest.approx(0, abs=1e-6)
    assert regression.metric(batch.targets, batch).tolist() == [1.0] * 40
    assert set(regression.signals(predictions, batch)) == {"grad_norm"}
    assert regression.labels is regression.held_out_labels is regression.label_names is None


@pytest.mark.parametrize(
    "targets, problem",
    [
        (torch.zeros(3), r"train_set must be a numpy array int64\[3\], got float32\[3\]"),
        (torch.tensor([0, 3, 1]), r"label 3 of sample 1 of the train_set is outside: there are only 0 .. 2"),
        (torch.tensor([0, 1, -1]), "label -1 of sample 2"),
    ],
)
def test_targets_that_are_no_labels(classification: Classification, targets: torch.Tensor, problem: str) -> None:
    with pytest.raises(errors.DataError, match=problem):
        dataclasses.replace(classification, train_set=TensorSet(rows(3), targets))


@pytest.mark.parametrize("targets", [torch.arange(3), torch.zeros(3).double(), torch.tensor([0.0, torch.nan, 1.0])])
def test_targets_that_are_no_numbers(regression: Regression, targets: torch.Tensor) -> None:
    with pytest.raises(errors.DataError, match=r"targets of the train_set must be finite float32\[3\]"):
        dataclasses.replace(regression, train_set=TensorSet(rows(3), targets))


def test_held_out_targets_that_are_all_the_same(regression: Regression) -> None:
    with pytest.raises(errors.DataError, match="all the same"):
        dataclasses.replace(regression, held_out=TensorSet(rows(3), torch.ones(3)))


def test_data_of_a_class_of_ones_own(classification: Classification) -> None:
    class Pairs:
        targets_n = np.array([1, 0])

        def __len__(self) -> int:
            return 2

        def __getitems__(self, ids: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return rows(2)[list(ids)], torch.from_numpy(self.targets_n[list(ids)])

    task = dataclasses.replace(classification, train_set=Pairs())
    assert own.check(task, "mine:build").labels is Pairs.targets_n
