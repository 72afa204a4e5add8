"""The draws of an epoch's steps, and the observations that they go by or that come after them.

scored   losses of all ids ──► draw
partly   losses of some ids ─► draw ── losses of what was drawn of the others ──► observe
blind    draw ── losses of what was drawn ──► observe
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service.cursor import Cursor
from es_service.exchange.base import Exchange
from es_service.ledger import Ledger
from es_service.measures import Measures
from es_service.selection import observations
from es_service.selection.engine import Draw
from es_service.selection.methods.base import Columns
from es_service.selection.repeats import Repeats, among_distinct

__all__ = ["StepDraws"]

I64 = NDArray[np.int64]


class StepDraws:
    """See the module's text.

    Args:
        exchange: with which the epoch was opened.
        ledger: to count in.
        irreducible: float32[n], irreducible losses, where observations need not bring them.
        cursor: at the step at hand.
        measures: of the epoch.
        streamed: ids come from outside.
    """

    def __init__(
        self,
        exchange: Exchange,
        ledger: Ledger,
        irreducible: NDArray[np.float32] | None,
        cursor: Cursor,
        measures: Measures,
        *,
        streamed: bool,
    ) -> None:
        self._exchange, self._ledger, self._irreducible, self._streamed = exchange, ledger, irreducible, streamed
        self._cursor, self._measures = cursor, measures

    def _distinct(self, ids_B: I64, seen: Columns) -> tuple[I64, Columns, Repeats | None]:
        """Return the distinct ids of a batch, the mean signals of each, and how they repeat in it, where they do."""
        is_own = not self._streamed or ids_B is self._cursor.ids_B
        repeats = self._cursor.repeats if is_own else Repeats.of(ids_B)
        if repeats is None:
            return ids_B, seen, None
        return repeats.ids_u, {name: repeats.means(values_B) for name, values_B in seen.items()}, repeats

    def signals(self, ids_B: I64, observed: Any) -> tuple[I64, Columns, I64 | None]:
        """Return ids and signals; where samples are to be skipped those of the others, and the others' positions."""
        selection, num = self._exchange.config.selection, ids_B.size
        needed, non_negative = selection.signals, selection.non_negative
        if self._irreducible is not None and "irreducible_loss" in needed:
            known = {"irreducible_loss": self._irreducible[ids_B]}
            observed = {**known, **(observed if isinstance(observed, Mapping) else {"loss": observed})}
        if selection.on_bad_loss == "raise":
            return ids_B, observations.check_signals(observed, num, needed, non_negative=non_negative), None
        seen, good = observations.split_signals(observed, num, needed, non_negative=non_negative)
        self._ledger.skipped += num - good.size
        if good.size == num:
            return ids_B, seen, None
        return ids_B[good], {name: values_B[good] for name, values_B in seen.items()}, good

    def scored(self, ids_B: I64, losses: Any, num: int, *, by_scorer: bool = False) -> Draw:
        """Observe the losses of all ids, and draw by the new weights."""
        ids, seen, good = self.signals(ids_B, losses)
        if not by_scorer:
            self._ledger.count_scored(ids_B)
        self._cursor.is_scored = True
        with self._ledger.timing("exchange"):
            self.report_pending()
            distinct, seen, repeats = self._distinct(ids, seen)
            draw = self._exchange.step(self._cursor.step, distinct, seen, min(num, ids.size), repeats)
        self._measures.add_scored(seen["loss"], among_distinct(draw.positions, repeats))
        return draw if good is None else dataclasses.replace(draw, positions=good[draw.positions])

    def partly(self, ids_B: I64, scored_k: I64, losses: Any, num: int) -> Draw:
        """Observe the losses at these positions, and draw by the new weights there and the known ones elsewhere."""
        cursor, step = self._cursor, self._cursor.step
        ids_k, seen, _ = self.signals(ids_B[scored_k], losses)
        self._ledger.count_scored(ids_k)
        cursor.is_scored = True
        with self._ledger.timing("exchange"):
            self.report_pending()
            self._exchange.record(step, ids_k, seen, scored_k[:0])
            draw = self._exchange.draw(step, ids_B, num)
            is_seen_b = np.isin(draw.positions, scored_k)
            if is_seen_b.any():
                self._exchange.record(step, draw.ids[is_seen_b], None, np.arange(np.count_nonzero(is_seen_b)))
        self._measures.num_seen += ids_k.size
        if is_seen_b.all():
            self._measures.selected_losses.add(seen["loss"][np.searchsorted(scored_k, draw.positions)])
        else:
            cursor.unreported, cursor.awaited = draw, np.flatnonzero(~is_seen_b)
        return draw

    def blind(self, ids_B: I64, num: int) -> Draw:
        """Draw by what is known; it is reported together with its losses, or alone if none come."""
        with self._ledger.timing("exchange"):
            self.report_pending()
            distinct, _, repeats = self._distinct(ids_B, {})
            draw = self._cursor.unreported = self._exchange.draw(self._cursor.step, distinct, num, repeats)
        return draw

    def observe(self, losses: Any) -> bool:
        """Take the losses of the last draw, None where there will be none; return whether it waited for any."""
        draw, awaited = self._cursor.unreported, self._cursor.awaited
        if draw is None:
            return False
        if losses is None:
            with self._ledger.timing("exchange"):
                self.report_pending()
            return True
        ids, seen, good = self.signals(draw.ids, losses)
        with self._ledger.timing("exchange"):
            if good is not None:
                self.report_pending()  # all were trained on, only the good ones observed
            self._cursor.unreported = self._cursor.awaited = None
            ids, seen, _ = self._distinct(ids, seen)
            new = slice(None) if awaited is None else awaited
            new_ids, new_seen = ids[new], {name: values[new] for name, values in seen.items()}
            self._exchange.record(self._cursor.step, new_ids, new_seen, np.arange(new_ids.size if good is None else 0))
        by_scores = self._exchange.config.selection.method.needs_losses
        self._measures.add_observed(seen["loss"], draw, num_new=new_ids.size, by_scores=by_scores)
        return True

    def report_pending(self) -> None:
        """Count what was drawn and waits for losses that never came."""
        draw, awaited = self._cursor.unreported, self._cursor.awaited
        self._cursor.unreported = self._cursor.awaited = None
        if draw is not None:
            ids = self._distinct(draw.ids if awaited is None else draw.ids[awaited], {})[0]
            self._exchange.record(self._cursor.step, ids, None, np.arange(ids.size))
