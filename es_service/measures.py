"""What a rank measures of its own selection while it trains: sums and references that cost a step next to nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from es_service.selection.engine import Draw

__all__ = ["Mean", "Measures", "effective_ratio"]


@dataclasses.dataclass(slots=True)
class Mean:
    """A running mean, and that of the last step.

    Attributes:
        total: sum of all values.
        num: how many.
        last: mean of those that came last; None where none has.
    """

    total: float = 0.0
    num: int = 0
    last: float | None = None

    def add(self, values_m: NDArray[np.float32]) -> None:
        """Take in the values of a step, float32[m]."""
        if values_m.size:
            total = float(np.add.reduce(values_m))
            self.total, self.num, self.last = self.total + total, self.num + values_m.size, total / values_m.size

    def value(self) -> float | None:
        """Return the mean of all, None where there are none."""
        return self.total / self.num if self.num else None


@dataclasses.dataclass(slots=True)
class Measures:
    """Of an epoch so far.

    Attributes:
        num_seen: samples observed.
        all_losses: of whole meta-batches: of all that were scored; where none were, of draws that no score decides.
        selected_losses: of what was drawn, unweighted.
        draw: the last one, None before the first.
        step: in which it was made.
        num_candidates: from which, B.
        is_scored: by losses of its own step.
    """

    num_seen: int = 0
    all_losses: Mean = dataclasses.field(default_factory=Mean)
    selected_losses: Mean = dataclasses.field(default_factory=Mean)
    draw: Draw | None = None
    step: int = -1
    num_candidates: int = 0
    is_scored: bool = False

    def add_draw(self, draw: Draw, step: int, num_candidates: int, *, is_scored: bool) -> None:
        """Keep what was drawn last."""
        self.draw, self.step, self.num_candidates, self.is_scored = draw, step, num_candidates, is_scored

    def add_scored(self, losses_u: NDArray[np.float32], drawn_v: NDArray[np.int64]) -> None:
        """Count a scored step: the losses of its samples, float32[u], and the positions of the drawn among them."""
        self.num_seen += losses_u.size
        self.all_losses.add(losses_u)
        self.selected_losses.add(losses_u.take(drawn_v))

    def add_observed(self, losses_v: NDArray[np.float32], draw: Draw, *, num_new: int, by_scores: bool) -> None:
        """Count the losses, float32[v], that training brought of a draw, so many of them of samples not seen before.

        A draw by scores does not stand for all.
        """
        self.num_seen += num_new
        self.selected_losses.add(losses_v)
        if draw.weights is None or not by_scores:
            self.all_losses.add(losses_v)


def effective_ratio(weights_m: NDArray[np.floating] | None) -> float | None:
    """Return the effective sample size of weights, as a share of their number m: (Σw)²/(m·Σw²), in [1/m, 1].

    1 where all weigh the same, as with None; None where all are 0. Reference: L. Kish, Survey Sampling, 1965; as a
    measure of importance weights: A. Owen, Monte Carlo theory, methods and examples, section 9.3.
    """
    if weights_m is None:
        return 1.0
    weights = weights_m.astype(np.float64)
    squares = float(weights @ weights)
    return min(1.0, float(weights.sum()) ** 2 / (weights.size * squares)) if squares > 0 else None
