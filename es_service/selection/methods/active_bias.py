"""Active bias: prefer what the model is unsure of, which neither easy nor mislabelled samples are.

Reference: Chang, Learned-Miller, McCallum, *Active Bias: Training More Accurate Neural Networks by Emphasizing High
Variance Samples*, arXiv 1704.07433. Their averages are over all of a sample's history, these are exponential.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from es_service import errors
from es_service.selection.methods.base import F32, Columns, Method
from es_service.selection.settings import make_plain

__all__ = ["PredictionVariance", "ThresholdCloseness", "prediction_variance", "threshold_closeness"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _ActiveBias(Method):
    """Goes by p = exp(-loss): the probability of the label, where the loss is a cross-entropy."""

    beta: float = 0.5
    epsilon: float = 0.05

    def __post_init__(self) -> None:
        make_plain(self)
        if not 0.0 <= self.beta <= 1.0:
            raise errors.ConfigError(f"beta must lie in [0, 1], got {self.beta}: it is the weight of the past")
        if not 0.0 < self.epsilon <= 1.0:
            raise errors.ConfigError(
                f"epsilon must lie in (0, 1], got {self.epsilon}: what every sample weighs at least"
            )

    def initial_score(self, num_samples: int) -> float:  # noqa: ARG002 - the contract's argument
        """Return 1/2, where a weight is greatest."""
        return 0.5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdCloseness(_ActiveBias):
    """How close p is to 1/2; make it with `threshold_closeness()`."""

    name: ClassVar[str] = "threshold_closeness"
    reads: ClassVar[tuple[str, ...]] = ("s", "visits")

    def update(self, old: Columns, values_B: F32, seen: Columns) -> Columns:  # noqa: ARG002 - the contract's argument
        """Return s = β·s + (1-β)·exp(-ℓ), w = s·(1-s) + ε; first s = exp(-ℓ)."""
        beta, p_B = np.float32(self.beta), np.exp(-np.abs(values_B))
        mean_B = np.where(old["visits"] == 0, p_B, beta * old["s"] + (1 - beta) * p_B)
        return {"s": mean_B, "w": mean_B * (1 - mean_B) + np.float32(self.epsilon)}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PredictionVariance(_ActiveBias):
    """How much p varies from one observation to the next; make it with `prediction_variance()`."""

    name: ClassVar[str] = "prediction_variance"
    reads: ClassVar[tuple[str, ...]] = ("s", "variance", "visits")
    columns: ClassVar[tuple[str, ...]] = ("variance",)

    def update(self, old: Columns, values_B: F32, seen: Columns) -> Columns:  # noqa: ARG002 - the contract's argument
        """Return s = β·s + (1-β)·p, v = β·(v + (1-β)·(p-s)²), w = √v + ε; first s = p, v = 0."""
        beta, p_B, first = np.float32(self.beta), np.exp(-np.abs(values_B)), old["visits"] == 0
        surprise_B = p_B - old["s"]
        mean_B = np.where(first, p_B, old["s"] + (1 - beta) * surprise_B)
        moved_B = beta * (old["variance"] + (1 - beta) * surprise_B * surprise_B)
        variance_B = np.where(first, np.float32(0), moved_B)
        return {"s": mean_B, "variance": variance_B, "w": np.sqrt(variance_B) + np.float32(self.epsilon)}


def threshold_closeness(beta: float = 0.5, *, epsilon: float = 0.05) -> ThresholdCloseness:
    """Prefer samples whose probability p = exp(-loss) is near 1/2, on average.

        m ← β·m + (1-β)·p          w = m·(1-m) + ε

    The first observation sets m. Samples that are easy (p near 1) or hopeless (p near 0, e.g. a wrong label) weigh ε.

    Args:
        beta: in [0, 1]; weight of the past.
        epsilon: in (0, 1]; what every sample weighs at least.

    Reference: Chang et al., arXiv 1704.07433 (SGD-TC).
    """
    return ThresholdCloseness(beta=beta, epsilon=epsilon)


def prediction_variance(beta: float = 0.5, *, epsilon: float = 0.05) -> PredictionVariance:
    """Prefer samples whose probability p = exp(-loss) goes up and down.

        m ← m + (1-β)·(p - m)          v ← β·(v + (1-β)·(p - m)²)          w = √v + ε

    with the old m in the second. The first observation sets m, with v = 0. What is always right or always wrong
    weighs ε.

    Args:
        beta: in [0, 1]; weight of the past.
        epsilon: in (0, 1]; what every sample weighs at least.

    Reference: Chang et al., arXiv 1704.07433 (SGD-SPV).
    """
    return PredictionVariance(beta=beta, epsilon=epsilon)
