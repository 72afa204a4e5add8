"""Active bias: the recurrences against float64, and who gets little weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service import errors
from es_service.selection import engine, methods
from es_service.selection.config import Selection

unit = st.floats(0, 1)
epsilons = st.floats(0.01, 1)
sequences = st.lists(st.floats(0, 50, width=32), min_size=1, max_size=30)


def observed(method: methods.Method, losses: list[float]) -> dict[str, float]:
    """The row of a sample that had these losses, one after the other."""
    made = engine.Engine(Selection(method, anneal=(0, 0)), 1)
    for step, loss in enumerate(losses):
        made.record(np.array([0]), {"loss": np.array([loss], dtype=np.float32)}, np.array([0]), step)
    records = made.table.copy_records()
    return {name: float(records[name][0]) for name in records.dtype.names or ()}


@given(sequences, unit, epsilons)
def test_closeness_is_that_of_the_moving_average_to_a_half(losses: list[float], beta: float, epsilon: float) -> None:
    mean = math.exp(-losses[0])
    for loss in losses[1:]:
        mean = beta * mean + (1 - beta) * math.exp(-loss)
    row = observed(methods.threshold_closeness(beta, epsilon=epsilon), losses)
    assert row["s"] == pytest.approx(mean, abs=1e-5)
    assert row["w"] == pytest.approx(mean * (1 - mean) + epsilon, abs=1e-5)


@given(sequences, unit, epsilons)
def test_variance_is_the_moving_variance_of_the_probability(losses: list[float], beta: float, epsilon: float) -> None:
    """By its definition: with weights that fall by beta into the past, Σ weight·(p - mean)²."""
    probabilities = np.exp(-np.array(losses, dtype=np.float64))
    weights = np.array([beta ** (len(losses) - 1 - i) * (1 - beta if i else 1.0) for i in range(len(losses))])
    mean = float(np.sum(weights * probabilities))
    variance = float(np.sum(weights * (probabilities - mean) ** 2))
    row = observed(methods.prediction_variance(beta, epsilon=epsilon), losses)
    assert row["s"] == pytest.approx(mean, abs=1e-5)
    assert row["variance"] == pytest.approx(variance, abs=1e-5)
    assert row["w"] == pytest.approx(math.sqrt(row["variance"]) + epsilon, rel=1e-5)


def test_easy_and_hopeless_samples_weigh_least() -> None:
    easy, unsure, hopeless = ([loss] * 5 for loss in (0.01, 0.7, 9.0))
    weights = [observed(methods.threshold_closeness(), losses)["w"] for losses in (easy, unsure, hopeless)]
    assert weights[1] > 4 * max(weights[0], weights[2])
    moving = observed(methods.prediction_variance(), [2.0, 0.2, 2.0, 0.2])["w"]
    assert moving > 4 * max(observed(methods.prediction_variance(), losses)["w"] for losses in (easy, unsure, hopeless))


@pytest.mark.parametrize("make", [methods.threshold_closeness, methods.prediction_variance])
@pytest.mark.parametrize("settings", [{"beta": -0.1}, {"beta": 1.1}, {"epsilon": 0.0}, {"epsilon": 2.0}])
def test_settings_outside_their_domain_are_refused(make: object, settings: dict[str, float]) -> None:
    assert callable(make)
    with pytest.raises(errors.ConfigError, match=f"{next(iter(settings))} must lie"):
        make(**settings)
