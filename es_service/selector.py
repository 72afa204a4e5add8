"""The Selector: what a training loop holds.

    for epoch in range(num_epochs):
        for ids_B in selector.epoch(epoch):
            losses_B = ...                            # fetch, forward without gradient
            draw = selector.select(ids_B, losses_B)
            ...                                       # train on draw.positions, with loss * draw.scale

Shapes: B ids in a meta-batch, b drawn from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors
from es_service.exchange.base import Exchange, Position
from es_service.exchange.embedded import Embedded
from es_service.ledger import Ledger
from es_service.selection import idle, observations
from es_service.selection.config import Selection
from es_service.selection.engine import Draw
from es_service.selection.methods.base import Columns
from es_service.selection.queries import Distribution
from es_service.selection.run import RunConfig, Share
from es_service.selection.scorekeeper import Scorekeeper
from es_service.selection.settings import as_integer
from es_service.selector_state import state_from_dict, state_to_dict
from es_service.storage import runs

__all__ = ["Selector"]

T = TypeVar("T")
_I64 = NDArray[np.int64]
_NO_SHARE = Share(ids=np.empty(0, dtype=np.int64), first_step=0)


class Selector:
    """Hands out meta-batches and draws mini-batches from them. One thread uses it.

    Args:
        selection: what to select, and how.
        num_samples: n; ids number the samples of the data set from 0. None where they are not known beforehand: the
            table grows with the ids that `stream` brings.
        num_epochs: E, which annealing counts from.
        batch_size: B, the meta-batch of this rank.
        irreducible_losses: float[n], one per sample, for the method `rho`; observations need not bring them then.
        exchange: how to reach the score table; by default it lives in this process. `es.connect` makes the others.
        clock: seconds, for the ledger.

    Raises:
        ConfigError: a count below 1, or a batch_size larger than a rank's share of the plan.
        ShapeError, LossError: irreducible losses that are not one finite number per sample.

    Example:
        >>> import numpy as np, es_service as es
        >>> selection = es.Selection(es.methods.evolved(), ratio=0.25, anneal=(0, 0), seed=7)
        >>> selector = es.Selector(selection, num_samples=1000, num_epochs=1, batch_size=100)
        >>> for ids_B in selector.epoch(0):
        ...     draw = selector.select(ids_B, np.ones(100, dtype=np.float32))
        >>> draw.ids.shape, selector.ledger.trained
        ((25,), 250)
    """

    def __init__(
        self,
        selection: Selection,
        *,
        num_samples: int | None,
        num_epochs: int,
        batch_size: int,
        irreducible_losses: Any = None,
        exchange: Exchange | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not isinstance(selection, Selection):
            raise errors.ConfigError(f"selection must be an es.Selection, got {selection!r}")
        self.config = RunConfig.of(selection, num_samples, num_epochs, batch_size)
        if exchange is None:
            self.config.check_world(1)
            exchange = Embedded(Scorekeeper(self.config), Position(rank=0, world_size=1))
        runs.check_same("of the exchange", exchange.config, self.config)
        idle.warn_if_idle(self.config, exchange.position.world_size)
        self.exchange = exchange
        self.ledger = Ledger(clock=clock)
        self._irreducible: NDArray[np.float32] | None = None
        if irreducible_losses is not None:
            if num_samples is None:
                raise errors.ConfigError(
                    "irreducible_losses need num_samples: in a stream, report them with the losses, as a signal"
                )
            self._irreducible = observations.check_losses(
                irreducible_losses, num_samples, non_negative=False, what="irreducible_losses"
            )
        self._open_epoch: int | None = None
        self._share = _NO_SHARE
        self._planned = self._share.ids
        self._step = 0
        self._resume_step = 0
        self._step_began = 0.0
        self._step_done = False
        self._selecting = range(0)  # steps of the open epoch that do not anneal
        self._streamed = False  # the open epoch's ids come from outside
        self._awaits_hidden = False  # the steps are done, what the epoch hid is still to be seen
        self._scored = False  # in this step, by a forward pass of its own
        self._unreported: Draw | None = None

    # -- what a schedule needs to know ------------------------------------------------------------------------------

    def is_annealing(self, epoch: int) -> bool:
        """Return whether all of this epoch trains on everything."""
        return self.config.is_annealing(epoch)

    def steps(self, epoch: int) -> int:
        """Return how many steps this epoch has on every rank, for a learning-rate schedule.

        Exact for the epoch that is open; for one to come see `RunConfig.num_steps`. Nobody knows it of a stream.

        Raises:
            EpochOrderError: the open epoch is a stream, or the run can only be one.
        """
        if self.config.grows or (epoch == self._open_epoch and self._streamed):
            raise errors.EpochOrderError("nobody knows how many steps a stream has: count them yourself")
        if epoch == self._open_epoch:
            return -(-self._share.ids.size // self.config.batch_size)
        return self.config.num_steps(epoch, self.exchange.position.world_size)

    @property
    def learning_rate_factor(self) -> float:
        """By what the open epoch's learning rate is to be multiplied: 1, but where a method asks for more."""
        return self._share.learning_rate_factor

    def batches(self) -> list[_I64]:
        """Return the open epoch's meta-batches from the current step on, for a loader that fetches ahead."""
        return _cut(self._share.ids, self.config.batch_size)[self._step :]

    # -- the loop ---------------------------------------------------------------------------------------------------

    def epoch(self, epoch: int) -> Iterator[_I64]:
        """Yield this rank's meta-batches, int64[B] (the last may be smaller), and close the epoch behind the last.

        An epoch left early is closed when the next one opens; one with hidden samples by `hidden_batches`.

        Raises:
            ConfigError: an epoch past num_epochs.
            EpochOrderError: not the next epoch of the run.
        """
        epoch = as_integer("epoch", epoch, least=0, end=self.config.num_epochs)
        self._open(epoch, streamed=False)
        self._share.ids.flags.writeable = False  # what is yielded comes back to `select` as it was
        first, self._resume_step = self._resume_step, 0
        for step, ids_B in enumerate(_cut(self._share.ids, self.config.batch_size)[first:], first):
            self._begin_step(step, ids_B)
            yield ids_B
            if self._open_epoch != epoch:
                return  # reset() or load_state_dict() was called inside the loop
            self._count_step(self.ledger)
        self._awaits_hidden = self._share.hidden.size > 0
        if not self._awaits_hidden:
            self._close()

    def stream(self, epoch: int, batches: Iterable[T], ids: Callable[[T], Any] | str = "id") -> Iterator[T]:
        """Yield batches whose ids nobody knows beforehand, each a meta-batch, and close the epoch behind the last.

        For an iterable data set, a Ray Data pipeline, or a sampler of one's own. Every rank makes as many epochs, of
        any number of steps.

        Args:
            epoch: in [0, num_epochs), rising by one.
            batches: of at most any size; the ids of each are distinct.
            ids: where a batch keeps its ids, int64[B]: a key of it, or a function of it.

        Raises:
            ConfigError: an epoch past num_epochs, or a selection that plans which ids an epoch holds.
            IdError, ShapeError: a batch's ids cannot be used.
            EpochOrderError: not the next epoch of the run.
        """
        epoch = as_integer("epoch", epoch, least=0, end=self.config.num_epochs)
        self._open(epoch, streamed=True)
        for step, batch in enumerate(batches):
            found = batch[ids] if isinstance(ids, str) else ids(batch)  # type: ignore[index]
            ids_B = observations.check_ids(found, self.config.end_of_ids).copy()  # the batch is the caller's to change
            self._begin_step(step, ids_B)
            yield batch
            if self._open_epoch != epoch:
                return
            self._count_step(self.ledger)
        self._close()

    def _open(self, epoch: int, *, streamed: bool) -> None:
        if self._open_epoch is not None:
            self._close()
        with self.ledger.timing_overhead():
            self._share = self.exchange.open_epoch(epoch, streamed=streamed)
        self._open_epoch, self._awaits_hidden, self._streamed = epoch, False, streamed
        self._selecting = self.config.selecting(epoch, None if streamed else self.steps(epoch))
        self._step = -1

    def _begin_step(self, step: int, ids_B: _I64) -> None:
        self._step = step
        self._step_began = self.ledger.clock()
        self._step_done = self._scored = False
        self._planned = ids_B
        with self.ledger.timing("exchange"):
            self.exchange.expect(step, ids_B)

    def hidden_batches(self) -> Iterator[_I64]:
        """Yield what the open epoch hid and its method wants to see again, int64[B] at a time, and close the epoch.

        To be asked after the epoch's last step: fetch, forward without gradient, `refresh`. Most methods hide nothing
        (of those here, kakurenbo does). Without it the epoch is closed all the same when the next one opens.
        """
        epoch = self._open_epoch
        if epoch is None:
            return
        began = self.ledger.clock()
        for ids_B in _cut(self._share.hidden, self.config.batch_size):
            self._planned = ids_B
            yield ids_B
            if self._open_epoch != epoch:
                return
        self.ledger.total_s += self.ledger.clock() - began
        self._close()

    def refresh(self, ids_B: Any, observed: Any) -> None:
        """Observe samples that the open epoch left out: nothing is drawn.

        Args:
            ids_B: int64[B], what `hidden_batches` yielded.
            observed: their signals, as in `select`.

        Raises:
            ShapeError, IdError, LossError: the arrays cannot be used; nothing was written.
            EpochOrderError: no epoch is open.
        """
        if self._open_epoch is None:
            raise errors.EpochOrderError(
                "no epoch is open: call refresh inside `for ids_B in selector.hidden_batches()`"
            )
        ids = observations.check_ids(ids_B, self.config.num_samples)
        if ids_B is not self._planned and (foreign := ~np.isin(ids, self._share.hidden)).any():
            position = int(np.argmax(foreign))
            raise errors.IdError(
                f"id {ids[position]} at position {position} is none that epoch {self._open_epoch} hid: refresh what "
                "selector.hidden_batches() yields"
            )
        seen, good = self._checked(ids, observed)
        self.ledger.scored += ids.size
        with self.ledger.timing("exchange"):
            self._report_pending()
            self.exchange.refresh(self.steps(self._open_epoch) - 1, *_only(ids, seen, good))

    def _count_step(self, ledger: Ledger) -> None:
        size = self.config.batch_size
        num_ids = self._planned.size
        seconds = ledger.clock() - self._step_began
        is_full_step = self._num_to_draw(num_ids) == num_ids and not self._scored
        ledger.count_step(num_ids, size, seconds, is_full_step=is_full_step)

    def _close(self) -> None:
        assert self._open_epoch is not None
        with self.ledger.timing_overhead():
            self._report_pending()
            try:
                self.exchange.close_epoch(self._open_epoch, self._step + 1)
            except errors.StorageError:  # finished all the same, but for its snapshot
                self._open_epoch = None
                raise
        if not self._streamed:
            full_share = self.config.num_samples // self.exchange.position.world_size
            self.ledger.count_pruned(full_share - self._share.ids.size, self.config.batch_size)
        self._open_epoch = None

    def _num_to_draw(self, num_ids: int) -> int:
        selection = self.config.selection
        if self._open_epoch is None or self._step not in self._selecting:
            return num_ids
        if selection.interrupt is not None and (self._share.first_step + self._step + 1) % selection.interrupt == 0:
            return num_ids
        return selection.num_selected(num_ids, self._share.ratio)

    @property
    def wants_scores(self) -> bool:
        """Whether this step's draw needs losses: not where everything is taken, or none are needed or re-used."""
        if self._open_epoch is None or self._num_to_draw(self.config.batch_size) == self.config.batch_size:
            return False
        return self.config.selection.is_scoring(self._open_epoch, self.config.num_epochs)

    def select(self, ids_B: Any, losses_B: Any = None) -> Draw:
        """Observe the losses of a meta-batch and draw what to train on.

        Args:
            ids_B: int64[B], normally what `epoch` yielded.
            losses_B: float[B], one loss per id at the current model parameters; numpy or torch, any device. A method
                that observes more takes a mapping of such arrays by name: {"loss": …, "correct": …}, see
                `selection.signals`. May be None where `wants_scores` is False; `observe` then takes the losses that
                training computes anyway.

        Returns:
            b = ⌈ratio·B⌉ of them; all B in an annealing step. draw.scale is 1 unless the method or `reweight` weighs.

        Raises:
            ShapeError, IdError, LossError: the arrays cannot be used; nothing was written.
            EpochOrderError: no epoch is open.
        """
        if self._open_epoch is None:
            raise errors.EpochOrderError("no epoch is open: call select inside `for ids_B in selector.epoch(e)`")
        ids = ids_B if ids_B is self._planned else observations.check_ids(ids_B, self.config.end_of_ids)
        num = self._num_to_draw(ids.size)
        if losses_B is None:
            if num < ids.size and self.config.selection.is_scoring(self._open_epoch, self.config.num_epochs):
                raise errors.ShapeError(
                    f"method {self.config.selection.method.name!r} draws by the losses of this step: "
                    "select(ids_B, losses_B) needs one per id (selector.wants_scores tells when)"
                )
            draw = self._draw_blind(ids, num)
        else:
            draw = self._draw_scored(ids, losses_B, num)
        self.ledger.trained += draw.positions.size
        self._step_done = True
        scale_m = self._share.scale
        if scale_m is None:
            return draw
        rows = self._share.rows(self._step, draw.ids, self.config.batch_size)
        factors_b = scale_m[rows] if isinstance(rows, slice) else np.where(rows < 0, np.float32(1), scale_m[rows])
        return Draw(draw.positions, draw.ids, draw.scale * factors_b)

    def _draw_blind(self, ids_B: _I64, num: int) -> Draw:
        """Draw by what is known; what was drawn is reported together with its losses, or alone if none come."""
        with self.ledger.timing("exchange"):
            self._report_pending()
            draw = self.exchange.draw(self._step, ids_B, num)
        self._unreported = draw
        return draw

    def _draw_scored(self, ids_B: _I64, losses: Any, num: int) -> Draw:
        seen, good = self._checked(ids_B, losses)
        self.ledger.scored += ids_B.size
        self._scored = True
        with self.ledger.timing("exchange"):
            self._report_pending()
            if good is None:
                return self.exchange.step(self._step, ids_B, seen, num)
            ids_good, seen_good = _only(ids_B, seen, good)
            draw = self.exchange.step(self._step, ids_good, seen_good, min(num, good.size))
        return Draw(good[draw.positions], draw.ids, draw.scale)

    def _checked(self, ids_B: _I64, observed: Any) -> tuple[Columns, _I64 | None]:
        """Return the signals, and where some samples are to be skipped the positions of the others."""
        selection, num = self.config.selection, ids_B.size
        needed, non_negative = selection.signals, selection.non_negative
        if self._irreducible is not None and "irreducible_loss" in needed:
            known = {"irreducible_loss": self._irreducible[ids_B]}
            observed = {**known, **(observed if isinstance(observed, Mapping) else {"loss": observed})}
        if selection.on_bad_loss == "raise":
            return observations.check_signals(observed, num, needed, non_negative=non_negative), None
        seen, good = observations.split_signals(observed, num, needed, non_negative=non_negative)
        self.ledger.skipped += num - good.size
        return seen, None if good.size == num else good

    def observe(self, losses_b: Any) -> None:
        """Hand over the losses of the last draw, where it was made without any: training computed them anyway.

        Args:
            losses_b: float[b], in the order of the draw's positions, or signals by name, as in `select`. Ignored where
                the draw was scored.

        Raises:
            ShapeError, LossError: the losses cannot be used; nothing was written.
        """
        draw = self._unreported
        if draw is None:
            return
        seen, good = self._checked(draw.ids, losses_b)
        with self.ledger.timing("exchange"):
            if good is None:
                self._unreported = None
                self.exchange.record(self._step, draw.ids, seen, np.arange(draw.ids.size))
                return
            self._report_pending()  # all were trained on, only the good ones observed
            self.exchange.record(self._step, *_only(draw.ids, seen, good), np.empty(0, dtype=np.int64))

    def _report_pending(self) -> None:
        """Count a blind draw whose losses never came."""
        draw, self._unreported = self._unreported, None
        if draw is not None:
            self.exchange.record(self._step, draw.ids, None, np.arange(draw.ids.size))

    # -- state ------------------------------------------------------------------------------------------------------

    def table(self) -> pa.Table:
        """Return a copy of the score table: id, s, w, last_loss, loss_mean, loss_var, visits, selected, last_step.

        Behind them stand the columns that the method asks for, see `selection.table`.
        """
        return self.exchange.table()

    def top(self, num: int = 10, *, by: str = "w", lowest: bool = False) -> pa.Table:
        """Return the rows with the highest values of a column, or the lowest, in order; ties by lower id.

        Args:
            num: how many; fewer come where fewer have a value.
            by: name of a column; samples that have none, because they were never observed, do not count.
            lowest: the lowest instead.

        Raises:
            ConfigError: no such column, or `num` below 1.
        """
        return self.exchange.top(by, num, lowest=lowest)

    def distribution(self, column: str = "w", *, bins: int = 20) -> Distribution:
        """Return the histogram of a column over all samples: edges float64[bins + 1], counts int64[bins].

        Raises:
            ConfigError: no such column, or `bins` outside [1, 4096].
        """
        return self.exchange.distribution(column, bins)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: numbers, strings, lists and one bytes object with the table.

        In-process at any step; over Ray between two epochs, when every rank has closed the last one.

        Raises:
            EpochOrderError: over Ray, inside an epoch; anywhere, while `hidden_batches` are under way.
        """
        if self._open_epoch is not None and self._awaits_hidden:
            raise errors.EpochOrderError(
                f"what epoch {self._open_epoch} hid is being observed: take the state before the epoch's last step or "
                "after selector.hidden_batches()"
            )
        if self._open_epoch is not None and self._streamed:
            raise errors.EpochOrderError(
                f"epoch {self._open_epoch} is a stream, which nobody can take up in its middle: take the state between "
                "epochs"
            )
        saved = self.exchange.save()
        ledger = self.ledger.copy()
        step = 0
        if saved.share is not None:
            step = self._step
            if self._unreported is not None:  # drawn, but its losses are still to come: this step will be done again
                ledger.trained -= self._unreported.positions.size
            elif self._step_done:
                step += 1
                self._count_step(ledger)
        return state_to_dict(self.config, saved, step, ledger)

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Continue from `state_dict`'s return; every rank calls it. Return the epoch to go on with.

        Raises:
            RunMismatchError: the state is of a run with another config.
            StorageError: it is damaged, or of another version.
        """
        saved, step, ledger = state_from_dict(state, self.config)
        ledger.clock = self.ledger.clock
        self.exchange.load(saved)
        self.ledger, self._resume_step = ledger, step
        self._open_epoch, self._unreported, self._share = None, None, _NO_SHARE
        return saved.finished_epochs

    def reset(self) -> None:
        """Forget every observation and stand before epoch 0; every rank calls it."""
        self.exchange.reset()
        self.ledger = Ledger(clock=self.ledger.clock)
        self._open_epoch, self._unreported, self._share, self._resume_step = None, None, _NO_SHARE, 0

    def publish(self, progress: dict[str, Any]) -> None:
        """Let watchers of the run see how training goes (accuracy, say); plain values only."""
        self.exchange.publish(progress)

    def close(self) -> None:
        """Let go of the exchange's threads; the table stays with its owner."""
        self.exchange.close()


def _cut(ids: _I64, size: int) -> list[_I64]:
    return [ids[start : start + size] for start in range(0, ids.size, size)]


def _only(ids_B: _I64, seen: Columns, good: _I64 | None) -> tuple[_I64, Columns]:
    """Return the ids and signals at the good positions, all of them for None."""
    if good is None:
        return ids_B, seen
    return ids_B[good], {name: values_B[good] for name, values_B in seen.items()}
