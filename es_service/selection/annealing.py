"""Which epochs and steps select: annealing at both ends of a run, epochs that re-use losses, steps that pause."""

from __future__ import annotations

from typing import Any

from es_service import errors
from es_service.selection.settings import as_number, ceil_share, exact_share

__all__ = ["check_anneal", "is_annealing", "is_scoring", "num_annealing"]


def check_anneal(anneal: Any) -> tuple[float, float]:
    """Return `anneal` as two shares; ConfigError unless they lie in [0, 1] and sum to at most 1."""
    try:
        if isinstance(anneal, (str, bytes)):  # its letters are no shares
            raise TypeError
        first, last = (as_number("anneal", share) for share in anneal)
    except (TypeError, ValueError) as error:
        if isinstance(error, errors.ConfigError):
            raise
        raise errors.ConfigError(
            f"anneal must be two shares of the epochs, (0.05, 0.05) say, got {anneal!r}"
        ) from error
    if not (first >= 0 and last >= 0 and exact_share(first, 1) + exact_share(last, 1) <= 1):
        raise errors.ConfigError(f"anneal must be two shares of the epochs, with a sum of at most 1, got {anneal!r}")
    return first, last


def num_annealing(num_epochs: int, anneal: tuple[float, float]) -> tuple[int, int]:
    """Return how many epochs anneal: ⌈first·E⌉ at the start, ⌈last·E⌉ at the end."""
    first, last = anneal
    return ceil_share(first, num_epochs), ceil_share(last, num_epochs)


def is_annealing(epoch: int, num_epochs: int, anneal: tuple[float, float]) -> bool:
    """Return whether this epoch selects and prunes nothing."""
    first, last = num_annealing(num_epochs, anneal)
    return epoch < first or epoch >= num_epochs - last


def is_scoring(epoch: int, num_epochs: int, anneal: tuple[float, float], score_every: int) -> bool:
    """Return whether this epoch scores its samples: the first that selects, and every `score_every`-th after it."""
    first, _ = num_annealing(num_epochs, anneal)
    return not is_annealing(epoch, num_epochs, anneal) and (epoch - first) % score_every == 0
