"""Annealing: the epochs at both ends of a run that train on everything."""

from __future__ import annotations

import math

from es_service import errors

__all__ = ["check_anneal", "is_annealing"]

_ROUNDING = 1e-9  # 0.1 * 30 is 3.0000000000000004 in floats: a share that means 3 epochs must not give 4


def check_anneal(anneal: tuple[float, float]) -> None:
    """Raise ConfigError unless `anneal` is two shares in [0, 1] that sum to at most 1."""
    if len(anneal) != 2 or not all(0.0 <= share <= 1.0 for share in anneal) or sum(anneal) > 1.0 + _ROUNDING:
        raise errors.ConfigError(
            f"anneal must be two shares of the epochs in [0, 1] with a sum of at most 1, got {anneal}"
        )


def is_annealing(epoch: int, num_epochs: int, anneal: tuple[float, float]) -> bool:
    """Return whether this epoch selects and prunes nothing: one of ⌈first·E⌉ at the start or ⌈last·E⌉ at the end."""
    first, last = (math.ceil(share * num_epochs - _ROUNDING) for share in anneal)
    return epoch < first or epoch >= num_epochs - last
