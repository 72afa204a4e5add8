"""Which epochs and steps select: annealing at both ends of a training run, and epochs that re-use losses."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from fractions import Fraction
from typing import Any, Literal

from es_service import errors
from es_service.selection.settings import as_number, exact_share

__all__ = ["AnnealBy", "Annealing", "check_anneal", "settled"]

AnnealBy = Literal["auto", "epochs", "steps"]
_WHOLE_EPOCHS_FROM = 4
"""Training runs of at least this many epochs anneal whole ones: the default shares leave half of 4 epochs to select."""
_END_OF_STEPS = sys.maxsize


def check_anneal(anneal: Any) -> tuple[float, float]:
    """Return `anneal` as two shares; ConfigError unless they lie in [0, 1] and sum to at most 1."""
    try:
        if isinstance(anneal, (str, bytes)):  # its letters are not shares
            raise TypeError
        first, last = (as_number("anneal", share) for share in anneal)
    except (TypeError, ValueError) as error:
        if isinstance(error, errors.ConfigError):
            raise
        raise errors.ConfigError(
            f"anneal must be two shares of the epochs, e.g. (0.05, 0.05), got {anneal!r}"
        ) from error
    if not (first >= 0 and last >= 0 and exact_share(first, 1) + exact_share(last, 1) <= 1):
        raise errors.ConfigError(f"anneal must be two shares of the epochs, with a sum of at most 1, got {anneal!r}")
    return first, last


def settled(anneal_by: AnnealBy, num_epochs: int) -> Literal["epochs", "steps"]:
    """Return what a run of E epochs anneals by: "auto" takes whole epochs from 4 epochs on, else steps."""
    if anneal_by != "auto":
        return anneal_by
    return "epochs" if num_epochs >= _WHOLE_EPOCHS_FROM else "steps"


@dataclasses.dataclass(frozen=True, slots=True)
class Annealing:
    """Which part of a run of E epochs trains on everything.

    Attributes:
        num_epochs: E.
        first: epochs at the start, in [0, E]; a whole number where whole epochs anneal.
        last: epochs at the end, likewise.
    """

    num_epochs: int
    first: Fraction
    last: Fraction

    @classmethod
    @functools.lru_cache(maxsize=64)  # steps ask for it
    def of(cls, anneal: tuple[float, float], num_epochs: int, anneal_by: AnnealBy) -> Annealing:
        """Return the annealing of two shares: ⌈share·E⌉ epochs each by "epochs", exactly share·E by "steps"."""
        first, last = (exact_share(share, num_epochs) for share in anneal)
        if settled(anneal_by, num_epochs) == "epochs":
            first, last = Fraction(math.ceil(first)), Fraction(math.ceil(last))
        return cls(num_epochs, first, last)

    @property
    def first_epoch(self) -> int:
        """The first epoch that does not anneal as a whole; E where all do."""
        return min(math.floor(self.first), self.num_epochs)

    @property
    def end_epoch(self) -> int:
        """Behind the last epoch that does not anneal as a whole."""
        return self.num_epochs - math.floor(self.last)

    def is_whole(self, epoch: int) -> bool:
        """Return whether all of this epoch anneals: it is planned in full, too."""
        return epoch < self.first_epoch or epoch >= self.end_epoch

    def selecting(self, epoch: int, num_steps: int | None) -> range:
        """Return the steps of an epoch that do not anneal.

        A step anneals where it begins before the first part is over, or ends after the last part has started: an epoch
        of K steps that holds a share x of a part anneals ⌈x·K⌉ of them.

        Args:
            epoch: counted from 0.
            num_steps: K of this epoch; None where unknown, as for a stream: then all select, or none.
        """
        if self.is_whole(epoch):
            return range(0)
        if num_steps is None:
            return range(_END_OF_STEPS)
        before = math.ceil(_within(self.first - epoch) * num_steps)
        behind = math.ceil(_within(self.last - (self.num_epochs - 1 - epoch)) * num_steps)
        return range(before, max(before, num_steps - behind))

    def is_scoring(self, epoch: int, score_every: int) -> bool:
        """Return whether this epoch scores its samples: the first that selects, and every `score_every`-th after it."""
        return not self.is_whole(epoch) and self.since_scoring(epoch, score_every) == 0

    def since_scoring(self, epoch: int, score_every: int) -> int:
        """Return how many epochs before this one, which selects, samples were scored last; 0 where it scores."""
        return (epoch - self.first_epoch) % score_every


def _within(share: Fraction) -> Fraction:
    return min(max(share, Fraction(0)), Fraction(1))
