"""The statistics of a comparison: pure functions of a few numbers.

Legend: one value a seed; pairs share their seed, hence initial weights, order of the data and random keys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

__all__ = ["CONFIDENCE", "Difference", "Saving", "Spread", "paired_difference", "saving_at_equal", "spread"]

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Mean and sample standard deviation; `std` is None for a single value, which has none."""

    mean: float
    std: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Mean of paired differences with its confidence interval; the bounds are None for fewer than two pairs."""

    mean: float
    low: float | None
    high: float | None
    pairs: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """Share of cost saved at equal accuracy; `kind` is "exact", "at least" or "at most"."""

    value: float
    kind: str

    @property
    def bound(self) -> bool:
        """Whether the value is only a bound: the accuracy lies above or below the whole line."""
        return self.kind != "exact"


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation (n - 1 in the denominator) of at least one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Spread(mean=mean, std=None)
    return Spread(mean=mean, std=math.sqrt(math.fsum((one - mean) ** 2 for one in values) / (len(values) - 1)))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Return ours - theirs over the seeds that both have, with Student's interval; None where they share no seed.

    mean ± t(0.975, k - 1)·std/√k over k pairs.
    """
    values = [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]
    if not values:
        return None
    center = spread(values)
    if center.std is None:
        return Difference(mean=center.mean, low=None, high=None, pairs=1)
    from scipy import stats  # takes a second to import

    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * center.std / math.sqrt(len(values))
    return Difference(mean=center.mean, low=center.mean - half, high=center.mean + half, pairs=len(values))


def saving_at_equal(line: Sequence[tuple[float, float]], cost: float, value: float) -> Saving:
    """Return 1 - cost/c*, c* being the least cost at which full training reaches the value.

    Args:
        line: (cost, mean value) of the short full runs and of full; straight lines join them.
        cost: of the method.
        value: the method's mean.

    Returns:
        Where the method is above the whole line, c* is taken as its most expensive point: it saves at least that much.
        Where it is below, as the cheapest: it saves at most that much.
    """
    points = sorted(line)
    previous: tuple[float, float] | None = None
    for point in points:
        if point[1] >= value:
            if previous is None:
                return Saving(value=1 - cost / point[0], kind="exact" if point[1] == value else "at most")
            share = (value - previous[1]) / (point[1] - previous[1])
            return Saving(value=1 - cost / (previous[0] + share * (point[0] - previous[0])), kind="exact")
        previous = point
    return Saving(value=1 - cost / points[-1][0], kind="at least")
