"""Evaluation: the figures are those worked out by hand, whatever the number of ranks; the model trains on behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from es_service.training.evaluation import Evaluation, evaluate
from es_service.training.tasks.base import Task, TaskDefaults
from es_service.training.tasks.supervised import Classification, Regression, TensorSet

DEFAULTS = TaskDefaults(epochs=1, batch_size=4, learning_rate=0.1)
NUM = 1203  # more than two batches of the evaluation, and odd


class InTurn:
    """Ranks that are asked one after the other: `gather` answers with what all said in the round before."""

    def __init__(self, rank: int, world_size: int, said: list[list[Any]]) -> None:
        self.rank, self.world_size, self.device, self._said = rank, world_size, torch.device("cpu"), said

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def share_buffers(self, model: nn.Module) -> None:
        pass

    def gather(self, value: Any) -> list[Any]:
        self._said[-1].append(value)
        return self._said[-2] if len(self._said) > 1 else [value] * self.world_size

    def report(self, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        raise AssertionError("an evaluation reports nothing")

    def checkpoint(self) -> AbstractContextManager[Path | None]:
        return contextlib.nullcontext(None)


def classification() -> Classification:
    torch.manual_seed(0)
    x = torch.randn(NUM, 3)
    y = (x[:, 0] > 0.6).long() + 2 * (x[:, 1] > 1).long()  # labels 0 .. 3, unbalanced
    part = TensorSet(x, y)
    return Classification(name="points", train_set=part, held_out=part, model=build, defaults=DEFAULTS)


def build() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 5))


def evaluated(task: Task, model: nn.Module, world_size: int = 1) -> list[Evaluation]:
    said: list[list[Any]] = []
    for _ in range(2):
        said.append([])
        results = [
            evaluate(model, task, InTurn(rank, world_size, said), lambda batch: batch, contextlib.nullcontext)
            for rank in range(world_size)
        ]
    return results


def test_the_figures_are_those_of_one_pass_in_evaluation_mode() -> None:
    task, model = classification(), build()
    [reached] = evaluated(task, model)
    assert model.training
    with torch.no_grad():
        outputs = model.eval()(task.held_out.inputs_n)  # type: ignore[attr-defined]
    labels = torch.from_numpy(task.held_out_labels)
    right = (outputs.argmax(dim=1) == labels).double()
    assert reached.accuracy == pytest.approx(float(right.mean()), abs=1e-12)
    assert reached.loss == pytest.approx(float(F.cross_entropy(outputs, labels)), rel=1e-5)
    by_label = [float(right[labels == label].mean()) for label in range(4)]
    assert reached.accuracy_by_label == pytest.approx(by_label, abs=1e-12)
    assert reached.balanced_accuracy == pytest.approx(np.mean(by_label))
    assert abs(np.mean(by_label) - float(right.mean())) > 0.01  # they say different things here


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_every_rank_gets_the_figures_of_all(world_size: int) -> None:
    task, model = classification(), build()
    [alone] = evaluated(task, model)
    for reached in evaluated(task, model, world_size):
        assert reached.accuracy == pytest.approx(alone.accuracy, abs=1e-12)
        assert reached.loss == pytest.approx(alone.loss, rel=1e-9)
        assert reached.accuracy_by_label == pytest.approx(alone.accuracy_by_label)


def test_a_label_without_samples_does_not_count() -> None:
    x = torch.randn(4, 3)
    part = TensorSet(x, torch.tensor([0, 0, 2, 2]))
    task = Classification(name="gap", train_set=part, held_out=part, model=build, defaults=DEFAULTS)
    [reached] = evaluated(task, build())
    assert reached.accuracy_by_label is not None
    assert reached.accuracy_by_label[1] is None
    assert reached.balanced_accuracy == pytest.approx(
        (reached.accuracy_by_label[0] + reached.accuracy_by_label[2]) / 2  # type: ignore[operator]
    )


def test_a_regression_has_no_labels_and_its_accuracy_is_r_squared() -> None:
    torch.manual_seed(2)
    x, y = torch.randn(50, 3), torch.randn(50)
    task = Regression(name="line", train_set=TensorSet(x, y), held_out=TensorSet(x, y), model=Slope, defaults=DEFAULTS)
    model = Slope()
    [reached] = evaluated(task, model)
    errors = (model(x) - y).detach().double().numpy()
    assert reached.accuracy == pytest.approx(1 - np.mean(errors**2) / np.var(y.numpy(), dtype=np.float64), rel=1e-5)
    assert reached.accuracy_by_label is reached.balanced_accuracy is None


class Slope(nn.Module):
    """A line through nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.2, 0.1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight
