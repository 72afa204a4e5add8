"""degraded: training continues while its score server is away (`on_unavailable="continue"`).

Each call has a fallback, and the first use of one is warned of:

    open_epoch   all samples, shuffled and split by rank: what an epoch without pruning would be
    step, draw   with a score server that stopped answering: uniform draws; what was seen is kept and sent later
    record       kept and sent later, dropped where the send_queue is full
    close_epoch  where the server cannot write its storage: it and the rank keep what was reported; selection continues

With `leased` none of it is needed inside an epoch: a rank draws from what it holds. An epoch that opened without the
server stays without it. The next one retries, and reports the missed ones as finished, without their observations:
the server would have planned them otherwise (other ids in other steps at other ranks), and takes a report only for a
step of its plan. How many observations its table lacks is logged when it is back. The selection is then not that of
an undisturbed run.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from es_service import errors
from es_service.exchange.base import I64, Exchange, SavedState
from es_service.exchange.remote import Remote
from es_service.ledger import Ledger
from es_service.selection import plans
from es_service.selection.engine import Draw, choose
from es_service.selection.methods.base import Columns
from es_service.selection.queries import Distribution
from es_service.selection.repeats import Repeats
from es_service.selection.run import Share

__all__ = ["DegradedExchange"]

_log = logging.getLogger(__name__)
_ASK_AGAIN_S = 10.0  # between two tries inside an epoch
_SHORT_S = 0.5  # that such a try may take
_AWAY = (errors.ServerUnavailableError, errors.StorageError)


class DegradedExchange(Exchange):
    """An exchange with a score server that the training does not depend on.

    Args:
        inner: the exchange as it is while the server answers; made with on_unavailable="continue".
    """

    def __init__(self, inner: Remote) -> None:
        self._inner = inner
        self._patient_s = inner.calls.deadline_s
        self._missed: list[int] = []  # epochs that the server knows nothing of
        self._unclosed: tuple[int, int] | None = None  # one that it knows of, but not that it is over, and its steps
        self._ledgers: dict[int, Ledger] = {}  # at the end of those
        self._measured: dict[int, dict[str, float]] = {}  # what it does not know of either
        self._alone = False  # the open epoch is one of them
        self._try_at = 0.0
        self._first_step = self._steps = 0
        self._warned = self._is_unstored = False
        self.num_dropped = 0
        self.config, self.position = inner.config, inner.position

    def _says(self, error: errors.EsServiceError) -> None:
        """Warn of it once, and wait no longer than a moment from now on."""
        self._inner.calls.deadline_s = _SHORT_S
        self._try_at = time.monotonic() + _ASK_AGAIN_S
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the score server of run {self._inner.run!r} is not available ({error}): training continues without "
                "it, with uniform draws where it would be asked, so this run is no longer exactly repeatable. "
                "This warning comes once",
                stacklevel=3,
            )

    def _is_back(self) -> None:
        self._inner.calls.deadline_s, self._try_at = self._patient_s, 0.0

    def _may_ask(self) -> bool:
        return not self._alone and time.monotonic() >= self._try_at

    # -- the contract -------------------------------------------------------------------------------------------------

    def next_epoch(self) -> int:
        """See `Exchange.next_epoch`."""
        return self._inner.next_epoch()

    def open_epoch(self, epoch: int, *, streamed: bool = False) -> Share:
        """See `Exchange.open_epoch`."""
        missed = list(self._missed)
        try:
            self._catch_up(streamed)
            share = self._inner.open_epoch(epoch, streamed=streamed)
            self._is_back()
            self._alone, self._first_step, self._steps = False, share.first_step, self._num_steps(share)
            if missed:
                _log.warning(
                    "the score server of run %r is back: its table lacks %d observations of this rank, which made "
                    "epochs %s without it", self._inner.run, self.num_dropped, missed,
                )  # fmt: skip
        except _AWAY as error:
            self._says(error)
            self._missed.append(epoch)
            self._alone = True
            self._first_step += self._steps
            share = Share(ids=self._everything(epoch, streamed), first_step=self._first_step)
            self._steps = self._num_steps(share)
        return share

    def _catch_up(self, streamed: bool) -> None:
        """Report to the server the epochs that were made without it."""
        while self._unclosed is not None or self._missed:
            if self._unclosed is None:
                share = self._inner.open_epoch(self._missed[0], streamed=streamed)
                self._unclosed = self._missed.pop(0), self._num_steps(share)
            epoch, num_steps = self._unclosed
            self._inner.close_epoch(epoch, num_steps, self._ledgers[epoch])
            self._unclosed = None
            del self._ledgers[epoch]
        self._send_measured()

    def _send_measured(self) -> None:
        while self._measured:
            epoch, measured = next(iter(self._measured.items()))
            self._inner.log(epoch, measured)
            del self._measured[epoch]

    def _num_steps(self, share: Share) -> int:
        return plans.num_steps(share.ids.size, self.config.batch_size)

    def _everything(self, epoch: int, streamed: bool) -> I64:
        if streamed or self.config.grows:
            return np.empty(0, dtype=np.int64)
        config, world_size = self.config, self.position.world_size
        order = plans.shuffle(np.arange(config.num_samples), seed=config.selection.seed, epoch=epoch)
        share = config.rank_share(config.num_samples, world_size)
        parts = plans.split(order, world_size=world_size, num_samples=config.num_samples, epoch=epoch, share=share)
        return parts[self.position.rank]

    def expect(self, step: int, ids_B: I64) -> None:
        """See `Exchange.expect`."""
        if self._may_ask():
            self._inner.expect(step, ids_B)

    def step(self, step: int, ids_B: I64, seen: Columns, num: int, repeats: Repeats | None = None) -> Draw:
        """See `Exchange.step`."""
        if self._may_ask():
            try:
                draw = self._inner.step(step, ids_B, seen, num, repeats)
                self._is_back()
                return draw
            except _AWAY as error:
                self._says(error)
        else:
            self.num_dropped += ids_B.size
        return self._uniform(step, ids_B, num, repeats)

    def draw(self, step: int, ids_B: I64, num: int, repeats: Repeats | None = None) -> Draw:
        """See `Exchange.draw`."""
        if self._may_ask():
            try:
                return self._inner.draw(step, ids_B, num, repeats)
            except _AWAY as error:
                self._says(error)
        return self._uniform(step, ids_B, num, repeats)

    def _uniform(self, step: int, ids_B: I64, num: int, repeats: Repeats | None) -> Draw:
        ones = np.ones(ids_B.size, dtype=np.float32)
        return choose(self.config.selection, ids_B, ones, num, self._first_step + step, repeats=repeats)

    def record(self, step: int, ids_B: I64, seen: Columns | None, positions_b: I64) -> None:
        """See `Exchange.record`."""
        self._told(ids_B.size, lambda: self._inner.record(step, ids_B, seen, positions_b))

    def refresh(self, step: int, ids_B: I64, seen: Columns) -> None:
        """See `Exchange.refresh`."""
        self._told(ids_B.size, lambda: self._inner.refresh(step, ids_B, seen))

    def _told(self, num: int, tell: Any) -> None:
        if self._may_ask():
            try:
                tell()
                return
            except _AWAY as error:
                self._says(error)
        self.num_dropped += num

    def close_epoch(self, epoch: int, num_steps: int, ledger: Ledger) -> None:
        """See `Exchange.close_epoch`."""
        if self._alone:
            self._ledgers[epoch] = ledger.copy()
            return
        deadline_s = self._inner.calls.deadline_s
        if self._is_unstored:  # it was waited for at the epoch's end before
            self._inner.calls.deadline_s = min(deadline_s, _SHORT_S)
        try:
            self._inner.close_epoch(epoch, num_steps, ledger)
            self._is_unstored = False
        except errors.ServerUnavailableError as error:
            self._says(error)
            self._unclosed, self._ledgers[epoch] = (epoch, num_steps), ledger.copy()
        except errors.StorageError as error:
            if not self._is_unstored:
                self._is_unstored = True
                warnings.warn(f"{error}. Training continues (on_unavailable='continue')", stacklevel=3)
        finally:
            if not self._unclosed:
                self._inner.calls.deadline_s = deadline_s

    def table(self) -> pa.Table:
        """See `Exchange.table`."""
        return self._inner.table()

    def top(self, column: str, num: int, *, lowest: bool) -> pa.Table:
        """See `Exchange.top`."""
        return self._inner.top(column, num, lowest=lowest)

    def distribution(self, column: str, bins: int) -> Distribution:
        """See `Exchange.distribution`."""
        return self._inner.distribution(column, bins)

    def save(self) -> SavedState:
        """See `Exchange.save`."""
        return self._inner.save()

    def load(self, state: SavedState) -> None:
        """See `Exchange.load`."""
        self._missed, self._unclosed, self._alone, self._measured = [], None, False, {}
        self._inner.load(state)

    def reset(self) -> None:
        """See `Exchange.reset`."""
        self._missed, self._unclosed, self._alone, self._measured = [], None, False, {}
        self._inner.reset()

    def spent(self, epoch: int) -> Ledger | None:
        """See `Exchange.spent`."""
        try:
            return self._inner.spent(epoch)
        except _AWAY as error:
            self._says(error)
            return None

    def log(self, epoch: int, measured: Mapping[str, float]) -> None:
        """See `Exchange.log`; where the server is away it is sent later."""
        self._measured[epoch] = {**self._measured.get(epoch, {}), **measured}
        if self._may_ask():
            try:
                self._send_measured()
            except _AWAY as error:
                self._says(error)

    def publish(self, epoch: int, done: float, ledger: Ledger) -> None:
        """See `Exchange.publish`."""
        if self._may_ask():
            self._inner.publish(epoch, done, ledger)

    def close(self) -> None:
        """See `Exchange.close`."""
        self._inner.close()
