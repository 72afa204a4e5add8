"""Where a rank is in an epoch: the step at hand, and how much of it is done."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from es_service.ledger import Ledger
from es_service.selection.engine import Draw
from es_service.selection.repeats import Repeats

__all__ = ["Cursor"]

I64 = NDArray[np.int64]


@dataclasses.dataclass(slots=True)
class Cursor:
    """A step of an epoch, from its ids to its place in the ledger.

    Attributes:
        ids_B: of the step, or what is handed out of the hidden.
        step: counted from 0; -1 before the first.
        repeats: where its batch holds ids more than once.
        began: when the step began.
        touched: when it was last selected from or observed.
        num_left: ids that were not selected yet.
        is_scored: by a forward pass of its own.
        is_counted: in the ledger.
        unreported: drawn, of which losses are still to come.
        awaited: positions in that draw whose losses are, where its step was scored in part; None: all.
    """

    ids_B: I64
    step: int = -1
    repeats: Repeats | None = None
    began: float = 0.0
    touched: float = 0.0
    num_left: int = 0
    is_scored: bool = False
    is_counted: bool = False
    unreported: Draw | None = None
    awaited: I64 | None = None

    def begin(self, step: int, ids_B: I64, repeats: Repeats | None, now: float) -> None:
        """Go to the next step; what is still to be reported of the one before stays."""
        self.step, self.ids_B, self.repeats, self.num_left = step, ids_B, repeats, ids_B.size
        self.began = self.touched = now
        self.is_scored = self.is_counted = False

    @property
    def is_done(self) -> bool:
        """Whether all ids of the step are selected, and losses observed."""
        return self.step >= 0 and self.num_left <= 0 and self.blind is None

    @property
    def blind(self) -> Draw | None:
        """A draw without any losses, which are still to come."""
        return self.unreported if self.awaited is None else None

    def count(self, ledger: Ledger, batch_size: int, num_to_draw: int) -> None:
        """Count the step in a ledger."""
        num = self.ids_B.size
        is_full_step = num_to_draw == num and not self.is_scored
        seconds, num_tokens = self.touched - self.began, ledger.tokens_of(self.ids_B)
        ledger.count_step(num, batch_size, seconds, is_full_step=is_full_step, num_tokens=num_tokens)
