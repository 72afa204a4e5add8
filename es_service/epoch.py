"""An epoch as one rank goes through it: its steps, what they observe and draw, and its end.

begin_step → select (→ observe) → end_step, over and over; → (hidden → refresh)* → finish

A step is done once all its ids are selected. The epoch closes by itself when that is true of the last step, all of it
is reported, and nothing was hidden: loops that count steps never ask for what follows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from es_service import errors
from es_service.cursor import Cursor
from es_service.exchange.base import Exchange
from es_service.ledger import Ledger
from es_service.measures import Measures
from es_service.selection import observations
from es_service.selection.engine import Draw
from es_service.selection.repeats import Repeats
from es_service.selection.run import RunConfig, Share
from es_service.selection.staleness import check_scored
from es_service.step_draws import StepDraws

__all__ = ["Epoch"]

_SHOW_EVERY_S = 0.5
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]


class Epoch:
    """An opened epoch of one rank; it stays readable once it is closed.

    Args:
        exchange: with which it was opened.
        ledger: to count in.
        irreducible: float32[n], irreducible losses, where observations need not bring them.
        number: of the epoch.
        share: the rank's part of it.
        streamed: ids come from outside.
        num_steps: how many steps a stream has, None where that shows at its end only.
        closed: called when it is.
    """

    def __init__(
        self,
        exchange: Exchange,
        ledger: Ledger,
        irreducible: F32 | None,
        number: int,
        share: Share,
        *,
        streamed: bool,
        num_steps: int | None = None,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self.config: RunConfig = exchange.config
        self._exchange, self._ledger = exchange, ledger
        self.number, self.share, self.streamed, self.measures = number, share, streamed, Measures()
        self.num_steps = num_steps if streamed else len(self.batches())
        self._selecting = self.config.selecting(number, None if streamed else self.num_steps)  # steps; others anneal
        self.is_closed, self._closed = False, closed
        self.awaits_hidden = False  # the steps are done, what the epoch hid is still to be seen
        self._cursor = Cursor(share.ids[:0])
        self._draws = StepDraws(exchange, ledger, irreducible, self._cursor, self.measures, streamed=streamed)
        self._held: errors.EsServiceError | None = None  # of closing behind the last step
        self._is_pruned = False  # the ledger has counted what was left out
        self._shown_at = -math.inf

    # -- what there is to do -----------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """The step at hand; -1 before the first."""
        return self._cursor.step

    def batches(self) -> list[I64]:
        """Return the planned meta-batches, int64[B] each."""
        ids, size = self.share.ids, self.config.batch_size
        return [ids[start : start + size] for start in range(0, ids.size, size)]

    def num_to_draw(self, num_ids: int, step: int | None = None) -> int:
        """Return b for so many ids of a step, by default of the one at hand."""
        selection, step = self.config.selection, self._cursor.step if step is None else step
        if step not in self._selecting:
            return num_ids
        run_step = self.share.first_step + step
        if selection.interrupt is not None and (run_step + 1) % selection.interrupt == 0:
            return num_ids
        return self.config.num_selected(num_ids, self.share.ratio)

    def is_scoring(self, num_ids: int, step: int | None = None) -> bool:
        """Return whether a draw from so many ids of a step, by default of the one at hand, needs their losses."""
        if self.is_closed or self.num_to_draw(num_ids, step) == num_ids:
            return False
        return self.config.selection.is_scoring(self.number, self.config.num_epochs)

    def to_score(self, ids_B: I64) -> I64:
        """Return the positions of what a scoring pass has to go over; see `Selector.to_score`."""
        if not self.is_scoring(ids_B.size):
            return np.arange(0)
        return self.share.to_score(self.step, ids_B, self.config.batch_size, self.config.selection.score_share)

    def position(self, ledger: Ledger) -> int:
        """Return the step to continue with after a restart, and bring a copy of the ledger to where it begins."""
        if (blind := self._cursor.blind) is not None:  # its losses are still to come: this step will be done again
            ledger.count_trained(blind.ids, -1)
        if not self._cursor.is_done:
            return max(0, self._cursor.step)
        if not self._cursor.is_counted:
            self._count_step(ledger)
        return self._cursor.step + 1

    # -- steps -------------------------------------------------------------------------------------------------------

    def begin_step(self, step: int, ids_B: I64) -> None:
        """Go to the next step, of these ids."""
        repeats = Repeats.of(ids_B) if self.streamed else None
        self._cursor.begin(step, ids_B, repeats, self._ledger.clock())
        with self._ledger.timing("exchange"):
            self._exchange.expect(step, ids_B if repeats is None else repeats.ids_u)

    def end_step(self) -> bool:
        """Count the step, whose training is over; return whether the epoch continues."""
        self.raise_held()
        since, self._cursor.touched = self._cursor.touched, self._ledger.clock()
        is_due = self._cursor.touched - self._shown_at >= _SHOW_EVERY_S and self._exchange.position.rank == 0
        if self._cursor.is_counted:  # when the epoch was closed
            self._ledger.prolong_step(self._cursor.touched - since)
        else:
            self._count_step(self._ledger)
            self._cursor.is_counted = True
        if is_due or self.is_closed:
            self._shown_at = self._cursor.touched
            done = 1.0 if self.is_closed else (self.step + 1) / self.num_steps if self.num_steps else 0.0
            self._exchange.publish(self.number, done, self._ledger)
        return not self.is_closed

    def _count_step(self, ledger: Ledger) -> None:
        self._cursor.count(ledger, self.config.batch_size, self.num_to_draw(self._cursor.ids_B.size))

    def checked(self, ids_B: Any) -> I64:
        """Return ids that a caller brought, checked unless they are those of the step; those of a stream may repeat."""
        own_B, end = self._cursor.ids_B, self.config.end_of_ids
        return own_B if ids_B is own_B else observations.check_ids(ids_B, end, distinct=not self.streamed)

    def select(self, ids_B: I64, losses: Any, scored: Any = None, *, by_scorer: bool = False) -> Draw:
        """Observe the losses, where given, and draw; see `Selector.select`."""
        num = self.num_to_draw(ids_B.size)
        if scored is not None:
            needs_all = np.size(scored) and (self.streamed or self.config.selection.on_bad_loss == "skip")
            needed = np.arange(ids_B.size) if needs_all else self.to_score(ids_B)
            scored = check_scored(scored, ids_B.size, needed, has_losses=losses is not None)
            losses = losses if scored.size else None
        if losses is None:
            if self.is_scoring(ids_B.size):
                raise errors.ShapeError(
                    f"method {self.config.selection.method.name!r} draws by the losses of this step: "
                    "select(ids_B, losses_B) needs one per id (whenever selector.wants_scores is true)"
                )
            draw = self._draws.blind(ids_B, num)
        elif scored is None or scored.size == ids_B.size:
            draw = self._draws.scored(ids_B, losses, num, by_scorer=by_scorer)
        else:
            draw = self._draws.partly(ids_B, scored, losses, num)
        self._ledger.count_trained(draw.ids)
        factors_b = self.share.factors(self._cursor.step, draw.ids, self.config.batch_size)
        if factors_b is not None:
            draw = dataclasses.replace(draw, scale=draw.scale * factors_b)
        self.measures.add_draw(draw, self._cursor.step, ids_B.size, is_scored=self._cursor.is_scored)
        self._cursor.num_left -= ids_B.size
        self._advance()
        return draw

    def observe(self, losses_b: Any) -> None:
        """Take losses of the last draw; see `Selector.observe`."""
        if self._draws.observe(losses_b):
            self._advance()

    def settle_part(self) -> None:
        """Wait no longer for losses of a partly scored draw: its step will not be done again."""
        if self._cursor.awaited is not None:
            self.observe(None)

    # -- its end -----------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Close the epoch if that was the end of its last step.

        An error of that is raised by the next call: what was drawn is to be trained on first.
        """
        self._cursor.touched = self._ledger.clock()
        is_over = self._cursor.step + 1 == self.num_steps and self._cursor.is_done and self._cursor.unreported is None
        if is_over and not self.share.hidden.size:
            try:
                self.finish()
            except errors.EsServiceError as error:
                self._held = error

    def raise_held(self) -> None:
        """Raise what went wrong when the epoch was closed behind its last step."""
        held, self._held = self._held, None
        if held is not None:
            raise held

    def hidden(self) -> Iterator[I64]:
        """Yield what the epoch hid; see `Selector.hidden_batches`."""
        self._settle_step()
        began = self._ledger.clock()
        self.awaits_hidden = True
        hidden = self.share.hidden
        for ids_B in np.array_split(hidden, -(-hidden.size // self.config.batch_size)) if hidden.size else ():
            self._cursor.ids_B = ids_B
            yield ids_B
        self._ledger.total_s += self._ledger.clock() - began

    def refresh(self, ids_B: Any, observed: Any) -> None:
        """Observe samples that the epoch hid; see `Selector.refresh`."""
        ids = observations.check_ids(ids_B, self.config.num_samples)
        if ids_B is not self._cursor.ids_B and (foreign := ~np.isin(ids, self.share.hidden)).any():
            position = int(np.argmax(foreign))
            raise errors.IdError(
                f"id {ids[position]} at position {position} is none that epoch {self.number} hid: refresh what "
                "selector.hidden_batches() yields"
            )
        good_ids, seen, _ = self._draws.signals(ids, observed)
        self._ledger.count_scored(ids)
        with self._ledger.timing("exchange"):
            self._draws.report_pending()
            self._exchange.refresh(len(self.batches()) - 1, good_ids, seen)
        self.measures.num_seen += good_ids.size

    def _settle_step(self) -> None:
        """Report the rest of the last step, and count it if it was made."""
        with self._ledger.timing_overhead():
            self._draws.report_pending()
        if self._cursor.is_done and not self._cursor.is_counted:
            self._count_step(self._ledger)
        self._cursor.is_counted = True

    def finish(self) -> None:
        """Close the epoch, unless it is closed; see `Selector.finish_epoch`."""
        if self.is_closed:
            return
        self._settle_step()
        if not self.streamed and not self._is_pruned:
            full_share = self.config.rank_share(self.config.num_samples, self._exchange.position.world_size)
            self._ledger.count_pruned(full_share, self.share.ids, self.config.batch_size)
            self._ledger.most_seen = max(self._ledger.most_seen, self.measures.num_seen)
            self._is_pruned = True
        try:
            with self._ledger.timing_overhead():
                self._exchange.close_epoch(self.number, self._cursor.step + 1, self._ledger)
        except errors.StorageError:  # finished all the same, but for its snapshot
            self.is_closed = True
            raise
        self.is_closed = True
        self._closed()
        self._cursor.touched = self._ledger.clock()
