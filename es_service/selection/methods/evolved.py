"""Evolved Sampling and its special cases: two exponential averages of every sample's loss.

Reference: Cheng, Li, Bian, *Data-Efficient Training by Evolved Sampling*, arXiv 2509.23461.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, ClassVar, Literal, get_args

from es_service import errors
from es_service.selection.methods.base import F32, Columns, Method
from es_service.selection.settings import as_number, make_plain

__all__ = ["Ema", "Evolved", "Loss", "ema", "evolved", "loss"]

PruneBy = Literal["w", "s"]


def _check_beta(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise errors.ConfigError(f"{name} must lie in [0, 1], got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evolved(Method):
    """Evolved Sampling; make it with `evolved()`."""

    name: ClassVar[str] = "evolved"
    beta1: float
    beta2: float
    prune_by: PruneBy = "w"

    def __post_init__(self) -> None:
        make_plain(self)
        _check_beta("beta1", self.beta1)
        _check_beta("beta2", self.beta2)
        if self.prune_by not in get_args(PruneBy):
            raise errors.ConfigError(f"prune_by must be 'w' or 's', got {self.prune_by!r}")

    @property
    def averages(self) -> tuple[float, float]:
        """Return β1 and β2."""
        return self.beta1, self.beta2

    def initial_score(self, num_samples: int) -> float:
        """Return 1/n."""
        return 1.0 / num_samples

    def update(self, old: Columns, values_B: F32, seen: Columns) -> Columns:  # noqa: ARG002 - the contract's argument
        """Return s = β2·s + (1-β2)·ℓ and w = β1·s + (1-β1)·ℓ; the weight uses the old score."""
        s_B = old["s"]
        w_B = self.beta1 * s_B + (1.0 - self.beta1) * values_B
        return {"s": self.beta2 * s_B + (1.0 - self.beta2) * values_B, "w": w_B}

    def pruning_column(self) -> str:
        """Return "w" or "s", as asked for."""
        return self.prune_by


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Loss(Evolved):
    """Evolved Sampling with β1 = β2 = 0; make it with `loss()`."""

    name: ClassVar[str] = "loss"
    beta1: float = dataclasses.field(default=0.0, init=False)
    beta2: float = dataclasses.field(default=0.0, init=False)

    def settings(self) -> dict[str, Any]:
        """Return the one setting that is free."""
        return {"prune_by": self.prune_by}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ema(Evolved):
    """Evolved Sampling with β1 = β2 = β; make it with `ema()`."""

    name: ClassVar[str] = "ema"
    beta1: float = dataclasses.field(init=False)
    beta2: float = dataclasses.field(init=False)
    beta: float = 0.9

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", as_number("beta", self.beta))
        _check_beta("beta", self.beta)
        object.__setattr__(self, "beta1", self.beta)
        object.__setattr__(self, "beta2", self.beta)
        Evolved.__post_init__(self)

    def settings(self) -> dict[str, Any]:
        """Return the settings that are free."""
        return {"beta": self.beta, "prune_by": self.prune_by}


def evolved(beta1: float = 0.2, beta2: float = 0.9, *, prune_by: PruneBy = "w") -> Evolved:
    """Evolved Sampling (ES); with `Selection(prune_ratio=...)` above 0 it is ESWP.

        w_i(t) = β1·s_i(t-1) + (1-β1)·ℓ_i(θ(t))     weight, p_i ∝ w_i
        s_i(t) = β2·s_i(t-1) + (1-β2)·ℓ_i(θ(t))     score, s_i(0) = 1/n

    so that w(t) = s(t) + (β2-β1)·(ℓ(t) - s(t-1)): the slow average plus a share of the loss difference.

    Args:
        beta1: in [0, 1]; how much of the weight is the old score.
        beta2: in [0, 1]; how slowly the score follows the loss. Defaults are the paper's for ES; ESWP uses 0.8.
        prune_by: column that set-level pruning draws by.

    Raises:
        ConfigError: a setting outside its domain.

    Warns:
        UserWarning: beta1 > beta2, which turns the loss difference against the sample.

    Example:
        >>> evolved(beta1=0.2, beta2=0.8).settings()
        {'beta1': 0.2, 'beta2': 0.8, 'prune_by': 'w'}

    Reference: arXiv 2509.23461, algorithm 1.
    """
    method = Evolved(beta1=beta1, beta2=beta2, prune_by=prune_by)
    if method.beta1 > method.beta2:
        warnings.warn(
            f"beta1={beta1} > beta2={beta2}: a sample then loses weight as its loss rises; use beta1 <= beta2",
            stacklevel=2,
        )
    return method


def loss(*, prune_by: PruneBy = "w") -> Loss:
    """Draw by the current loss alone, p ∝ ℓ: Evolved Sampling with β1 = β2 = 0.

    The importance sampling of Katharopoulos & Fleuret is `Selection(loss(), ratio=1/3, signal="grad_norm",
    draw="replacement", reweight="unbiased")`: b draws with replacement out of 3b, each weighed by Σw/(B·w_i).

    Args:
        prune_by: column that set-level pruning draws by.

    Reference: Katharopoulos & Fleuret, *Not All Samples Are Created Equal*, arXiv 1803.00942.
    """
    return Loss(prune_by=prune_by)


def ema(beta: float = 0.9, *, prune_by: PruneBy = "w") -> Ema:
    """Draw by one exponential average of the loss, w = s = β·s + (1-β)·ℓ: Evolved Sampling with β1 = β2 = β.

    Args:
        beta: in [0, 1]; weight of the past.
        prune_by: column that set-level pruning draws by.

    Reference: Cheng, Li, Bian, arXiv 2509.23461, whose special case it is.
    """
    return Ema(beta=beta, prune_by=prune_by)
