"""What every unit test shares: Ray may not start, hypothesis repeats itself, and a few helpers as fixtures."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from es_service.selection import methods
from es_service.selection.config import Selection
from es_service.selection.run import RunConfig

hypothesis.settings.register_profile("unit", deadline=None, derandomize=True, max_examples=50, database=None)
hypothesis.settings.load_profile("unit")

Law: TypeAlias = dict[tuple[int, ...], float]
FitTest: TypeAlias = Callable[[Mapping[tuple[int, ...], int], Law], float]


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError("a unit test started Ray: move it to tests/integration")


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ray.init raise; where Ray is absent there is nothing to forbid."""
    if importlib.util.find_spec("ray") is not None:
        monkeypatch.setattr("ray.init", _refuse)


def _race_law(weights: Sequence[float], num: int) -> Law:
    """Enumerate successive draws with p ∝ w: the probability of every subset of `num`."""
    law: Law = {}
    for order in itertools.permutations(range(len(weights)), num):
        probability, left = 1.0, float(sum(weights))
        for unit in order:
            probability *= weights[unit] / left
            left -= weights[unit]
        subset = tuple(sorted(order))
        law[subset] = law.get(subset, 0.0) + probability
    return law


@pytest.fixture(scope="session")
def race_law() -> Callable[[Sequence[float], int], Law]:
    """The exact law of an exponential race, by enumeration."""
    return _race_law


def _p_value(counts: Mapping[tuple[int, ...], int], law: Law) -> float:
    """Chi-square p-value of observed subsets under a law; cells expected less than 5 times are merged."""
    assert set(counts) <= {subset for subset, probability in law.items() if probability > 0}, "an impossible subset"
    total = sum(counts.values())
    observed, expected = [], []
    rest_observed, rest_expected = 0.0, 0.0
    for subset, probability in law.items():
        if probability * total < 5:
            rest_observed += counts.get(subset, 0)
            rest_expected += probability * total
        else:
            observed.append(float(counts.get(subset, 0)))
            expected.append(probability * total)
    if rest_expected > 0:
        observed.append(rest_observed)
        expected.append(rest_expected)
    scaled = np.asarray(expected) * (sum(observed) / sum(expected))
    return float(stats.chisquare(observed, scaled).pvalue)


@pytest.fixture(scope="session")
def p_value() -> FitTest:
    """Goodness of fit of counted subsets."""
    return _p_value


@pytest.fixture
def make_config() -> Callable[..., RunConfig]:
    """A RunConfig of 24 samples, 4 epochs, batches of 6; keywords of Selection and RunConfig override."""

    def make(method: methods.Method | None = None, **changes: Any) -> RunConfig:
        sizes = {"num_samples": 24, "num_epochs": 4, "batch_size": 6}
        sizes.update({key: changes.pop(key) for key in list(changes) if key in sizes})
        settings = {"ratio": 0.5, "anneal": (0.0, 0.0), "seed": 11, **changes}
        return RunConfig(selection=Selection(method or methods.evolved(), **settings), **sizes)

    return make


@pytest.fixture(scope="session")
def losses_of() -> Callable[[NDArray[np.int64], int], NDArray[np.float32]]:
    """Losses that depend on the id and the step alone, so that two runs can be fed alike."""

    def losses(ids_B: NDArray[np.int64], step: int) -> NDArray[np.float32]:
        return (1.0 + (ids_B * 37 % 101) / 25.0 + (step * 13 % 7) / 10.0).astype(np.float32)

    return losses
