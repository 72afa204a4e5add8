"""What all draws share: the result, the check of their input, the target probabilities, a random order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.selection import compiled

__all__ = ["Drawn", "check_weights", "inclusion_targets", "sharpened", "shuffled"]

F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]
I64: TypeAlias = NDArray[np.int64]
_TINY = np.finfo(np.float64).tiny
_MOST = float(np.finfo(np.float64).max)
TINY = 1e-300  # stands in for a weight of 0: races behind every weight a float32 can hold, yet in random order


class Drawn:
    """What a draw took: b' distinct positions. b' = b, but for a draw with replacement, where b' ≤ b.

    Args:
        positions_b: int64[b'] into the B candidates, ascending.
        inclusion: works out `inclusion_b`; None where the draw has no probabilities.
        times: int[b'], how often each position was taken; None: once.
    """

    __slots__ = ("_inclusion", "_times", "positions_b")

    def __init__(self, positions_b: I64, inclusion: Callable[[], F64] | None, times: I64 | None = None) -> None:
        self.positions_b = positions_b
        self._inclusion = inclusion
        self._times = times

    @property
    def inclusion_b(self) -> F64 | None:
        """float64[b'] expected number of times each was taken, worked out when asked for; None for topk.

        Without replacement that is the inclusion probability π.
        """
        return None if self._inclusion is None else self._inclusion()

    @property
    def times_b(self) -> F64:
        """float64[b'] how often each position was taken; they sum to b."""
        return np.ones(self.positions_b.size) if self._times is None else self._times.astype(np.float64)

    def scale(self, num_candidates: int, *, unbiased: bool) -> F32:
        """Return float32[b'], what to multiply the drawn losses by before taking their plain mean.

        Unbiased, (b'/B)·times/π: the mean then estimates the mean over the B without bias. Otherwise b'·times/b: it
        is then the mean over the b draws. Without replacement these are b/(B·π) and 1.

        Args:
            num_candidates: B.
            unbiased: which of the two.

        Raises:
            ConfigError: unbiased, of a draw that has no probabilities.

        Reference: Horvitz & Thompson, JASA 1952; with replacement, Hansen & Hurwitz, Ann. Math. Stat. 1943.
        """
        num = self.positions_b.size
        if self._times is None and not unbiased:
            return np.ones(num, dtype=np.float32)
        times_b = self.times_b
        if not unbiased:
            scale_b = times_b * (num / times_b.sum())
        elif (inclusion_b := self.inclusion_b) is not None:
            scale_b = times_b * (num / (num_candidates * inclusion_b))
        else:
            raise errors.ConfigError("a deterministic draw has no inclusion probabilities: it cannot be unbiased")
        return np.asarray(scale_b, dtype=np.float32)


def check_weights(weights_B: NDArray[np.floating], num: int, *, any_sign: bool = False) -> F64:
    """Return the weights as float64[B].

    Raises:
        ShapeError: not one dimension.
        ConfigError: b outside [1, B].
        InputError: a weight that is not finite, or negative where `any_sign` does not allow it.
    """
    weights = np.ascontiguousarray(weights_B, dtype=np.float64)
    if weights.ndim != 1:
        raise errors.ShapeError(f"weights must have one dimension, got shape {weights.shape}")
    if not 1 <= num <= weights.size:
        raise errors.ConfigError(f"cannot draw {num} of {weights.size}: b must lie in [1, B]")
    least = -_MOST if any_sign else 0.0
    if not compiled.all_within(weights, least, _MOST):
        position = int(np.argmin(np.isfinite(weights) & (weights >= least)))
        raise errors.InputError(
            f"weight {weights[position]} at position {position}: "
            f"weights must be finite{'' if any_sign else ' and at least 0'}"
        )
    return weights


def sharpened(weights_B: NDArray[np.floating], cap: float, power: float) -> NDArray[np.floating]:
    """Return the weights capped at a quantile of theirs, and raised to a power; 1 leaves either out."""
    if cap < 1.0:
        weights_B = np.minimum(weights_B, np.quantile(weights_B, cap))
    if power != 1.0:
        # As shares of the largest: draws do not mind, and no power of them overflows.
        weights_B = np.power(weights_B.astype(np.float64) / max(weights_B.max(), _TINY), power)
    return weights_B


def inclusion_targets(weights_B: NDArray[np.floating], num: int) -> F64:
    """Return float64[B] with sum b: min(1, b·w/Σw), units that reach 1 taken with certainty and the rest rescaled.

    Weights of 0 get 0, unless there are fewer than b positive ones: then they share what is left equally.
    """
    weights = check_weights(weights_B, num)
    positive = weights > 0
    num_positive = int(positive.sum())
    if num_positive <= num:
        rest = (num - num_positive) / max(1, weights.size - num_positive)
        return np.where(positive, 1.0, rest)
    # With weights in descending order, the certain units are a prefix: find its length in one pass.
    order = np.argsort(-weights, kind="stable")
    ranked = weights[order]
    tails = np.cumsum(ranked[::-1])[::-1]  # tails[c] = Σ_{i≥c} w: what is shared once c units are certain
    certain = np.arange(num)
    fits = (num - certain) * ranked[:num] <= tails[:num]
    num_certain = int(np.argmax(fits)) if fits.any() else num
    targets = np.empty_like(ranked)
    targets[:num_certain] = 1.0
    if num_certain < num:
        targets[num_certain:] = (num - num_certain) * ranked[num_certain:] / tails[num_certain]
    else:
        targets[num_certain:] = 0.0
    out = np.empty_like(targets)
    out[order] = np.minimum(targets, 1.0)
    return out


def shuffled(uniforms_B: F64) -> tuple[I64, F64]:
    """Return a random order of the B, int64[B], and float64[B] further numbers in [0, 1) that are independent of it.

    The order comes from the leading 24 bits of each uniform, the numbers from the bits behind them (28 of them where
    the uniforms are those of `keys.uniforms`). Equal leading bits keep their order.
    """
    numbers, leading = np.modf(uniforms_B * 2.0**24)
    packed = (leading.astype(np.int64) << 32) + np.arange(uniforms_B.size)  # distinct, hence one order on any machine
    packed.sort()  # four times as fast as a stable argsort
    return packed & (2**32 - 1), numbers
