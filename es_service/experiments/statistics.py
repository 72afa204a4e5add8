"""The statistics of a comparison: pure functions of a few numbers.

Legend: one value a seed; pairs share their seed, hence initial weights, order of the data and random keys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

__all__ = [
    *("CONFIDENCE", "POWER", "SIGNIFICANCE", "Difference", "Saving", "Spread"),
    *("detectable", "holm", "paired_difference", "saving_at_equal", "spread"),
]

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
POWER = 0.8


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Mean and sample standard deviation; `std` is None for a single value, which has none."""

    mean: float
    std: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Mean of paired differences with its confidence interval and what a t test says of it.

    Args:
        mean: of the differences.
        low, high: of the interval; None, as are `std` and `p`, for fewer than two pairs or a value that is not finite.
        pairs: how many there are.
        std: sample standard deviation of the differences.
        p: of the paired t test, two-sided. Where all differences are the same, 1 if they are 0, else 0.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    std: float | None
    p: float | None


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

    mean ± t(0.975, k - 1)·std/√k over k pairs, and p of t = mean·√k/std.
    """
    values = [ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))]
    if not values:
        return None
    center = spread(values) if all(map(math.isfinite, values)) else Spread(mean=math.nan, std=None)
    if center.std is None:
        return Difference(mean=center.mean, low=None, high=None, pairs=len(values), std=None, p=None)
    from scipy import stats  # takes a second to import

    error, freedom = center.std / math.sqrt(len(values)), len(values) - 1
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(center.mean) / error, freedom)) if error else float(center.mean == 0)
    low, high = center.mean - half, center.mean + half
    return Difference(mean=center.mean, low=low, high=high, pairs=len(values), std=center.std, p=p)


def holm(ps: Sequence[float]) -> list[float]:
    """Return the p of each of m tests, corrected for all: the largest (m + 1 - rank_j)·p_j where p_j ≤ p_i, at most 1.

    If those below α are rejected, any of the m true null hypotheses is rejected with a probability of at most α.

    Reference: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    corrected, highest = [1.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, (len(ps) - rank) * ps[place])
        corrected[place] = min(1.0, highest)
    return corrected


def detectable(difference: Difference, tests: int) -> float | None:
    """Return the least true difference that a paired t test finds with a probability of `POWER`.

    The test is that of the smallest p among `tests`, the hardest that Holm's correction asks for: two-sided, at
    SIGNIFICANCE / tests. The std of the differences is taken for the true one. With k pairs, t is then distributed as
    a noncentral t with k - 1 degrees of freedom about √k · difference / std.

    Returns:
        None for fewer than two pairs; 0 where all differences are the same.
    """
    if difference.std is None:
        return None
    from scipy import special, stats

    freedom = difference.pairs - 1
    threshold = stats.t.isf(SIGNIFICANCE / tests / 2, freedom)
    center = float(special.nctdtrinc(freedom, 1 - POWER, threshold))  # what the other tail adds is below 1e-3
    return center * difference.std / math.sqrt(difference.pairs)


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
