"""Matthews' correlation and F1: against their formulas by hand, for two classes, many, and undefined cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from es_service import errors
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.class_metrics import METRICS, check_metric, counts
from es_service.training.tasks.supervised import Batch, Classification, TensorSet


def value(name: str, true: list[int], predicted: list[int], num_classes: int, parts: int = 1) -> float:
    """The metric, from logits, over `parts` batches."""
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), num_classes).float()
    batches = zip(logits.chunk(parts), torch.tensor(true).chunk(parts), strict=True)
    sums = np.sum([counts(part, Batch(None, labels)).double().sum(dim=0).numpy() for part, labels in batches], axis=0)
    return METRICS[name](sums, len(true))


def test_matthews_of_two_classes_is_its_formula() -> None:
    true, predicted = [1, 1, 1, 1, 0, 0, 0, 1, 0, 0], [1, 1, 0, 1, 0, 1, 0, 1, 0, 0]
    tp, fn, fp, tn = 4, 1, 1, 4
    by_hand = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    for parts in (1, 3):
        assert value("matthews", true, predicted, 2, parts) == pytest.approx(by_hand, abs=1e-12)
        assert value("f1", true, predicted, 2, parts) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-12)


def test_of_many_classes_matthews_is_the_correlation_of_indicators_and_f1_the_mean() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(4, size=200)
    predicted = np.where(rng.random(200) < 0.6, true, rng.integers(4, size=200))
    x, y = np.eye(5)[true], np.eye(5)[predicted]  # of the fifth class there is none
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    expected = (x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum())
    assert value("matthews", true.tolist(), predicted.tolist(), 5) == pytest.approx(expected, abs=1e-12)
    each = []
    for label in range(4):
        both, either = (
            ((true == label) & (predicted == label)).sum(),
            (true == label).sum() + (predicted == label).sum(),
        )
        each.append(2 * both / either)
    assert value("f1", true.tolist(), predicted.tolist(), 5) == pytest.approx(np.mean(each), abs=1e-12)


def test_where_all_are_of_one_class_they_are_0() -> None:
    assert value("matthews", [0, 1, 1], [1, 1, 1], 2) == 0.0
    assert value("matthews", [1, 1, 1], [0, 1, 1], 2) == 0.0
    assert value("f1", [0, 0, 0], [0, 0, 0], 2) == 0.0


def test_only_known_metrics_are_taken_and_accuracy_needs_no_statistics() -> None:
    assert [check_metric(name) for name in (None, "f1")] == ["accuracy", "f1"]
    with pytest.raises(errors.ConfigError, match="--metric 'mathews': did you mean 'matthews'"):
        check_metric("mathews")
    samples = TensorSet(torch.zeros(2, 1), torch.arange(2))

    def named(**metric: Any) -> Classification:
        what: dict[str, Any] = {"name": "x", "train_set": samples, "held_out": samples, "model": torch.nn.Identity}
        return Classification(**what, defaults=TaskDefaults(epochs=1, batch_size=1, learning_rate=1.0), **metric)

    assert (named().metric_name, named().statistics, named().metric_of) == ("accuracy", None, None)
    assert (named(judged_by="f1").statistics, named(judged_by="f1").metric_of) == (counts, METRICS["f1"])
