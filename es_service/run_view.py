"""Read-only view of a run for one of its ranks: what a schedule needs to know, and the score table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from es_service import errors, metrics
from es_service.epoch import Epoch
from es_service.exchange.base import Exchange
from es_service.ledger import Ledger
from es_service.selection import decisions
from es_service.selection.queries import Distribution
from es_service.selection.run import RunConfig, Share
from es_service.storage.progress import check_measured

__all__ = ["RunView"]


class RunView:
    """See the module's text.

    Args:
        config: of the run.
        exchange: how to reach the score table.
        ledger: of this rank.
    """

    def __init__(self, config: RunConfig, exchange: Exchange, ledger: Ledger) -> None:
        self.config, self.exchange, self.ledger = config, exchange, ledger
        self._has_warned = False
        self._here: Epoch | None = None  # the epoch that was opened last

    @property
    def here(self) -> Epoch | None:
        """The epoch that was opened last, for other parts of this package."""
        return self._here

    def is_annealing(self, epoch: int) -> bool:
        """Return whether all of this epoch trains on everything."""
        return self.config.is_annealing(epoch)

    def steps(self, epoch: int) -> int:
        """Return how many steps this epoch has on every rank, for a learning-rate schedule.

        Exact for the epoch that was opened last; for one to come see `RunConfig.num_steps`. Of a stream it is unknown.

        Raises:
            EpochOrderError: the epoch is a stream, or the run can only be one.
        """
        here = self._here if self._here is not None and self._here.number == epoch else None
        if self.config.grows or (here is not None and here.streamed):
            raise errors.EpochOrderError("steps() is undefined for a stream: its length is not known in advance")
        if here is not None and here.num_steps is not None:
            return here.num_steps
        return self.config.num_steps(epoch, self.exchange.position.world_size)

    @property
    def next_epoch(self) -> int:
        """The epoch that is open, or else the next to be opened; num_epochs where the run is finished.

        Where `es.connect` found an existing run, this is the epoch to continue with.

        Warns:
            UserWarning: it found one that is finished: nothing remains to train.
        """
        if self._here is not None:
            return self._here.number + self._here.is_closed
        found = self.exchange.next_epoch()
        if found >= self.config.num_epochs:
            warnings.warn(
                f"the run is finished: all its {found} epochs are made, and nothing is left to continue. Use "
                "another run name, or call selector.reset() to start over, or load_state_dict to go back",
                stacklevel=2,
            )
        return found

    @property
    def learning_rate_factor(self) -> float:
        """By what the open epoch's learning rate is to be multiplied: 1, but where a method asks for more."""
        return 1.0 if self._here is None else self._here.share.learning_rate_factor

    @property
    def decision(self) -> Mapping[str, Any] | None:
        """What was decided for the epoch that was opened last, and by which figures; None where nothing was.

        docs/explanation/auto.md lists its fields.
        """
        return None if self._here is None else self._here.share.decision

    def _warn_if_stopped(self, share: Share) -> None:
        """Warn once, on rank 0, where the guard has stopped selection."""
        reason = None if share.decision is None else share.decision["reason"]
        if reason not in decisions.STOPPED or self._has_warned or self.exchange.position.rank:
            return
        self._has_warned = True
        warnings.warn(
            f"selection stopped: the epoch {decisions.in_words(share.decision or {})}. The guard looks again after "
            "2, 4, 8 … epochs; guard=False selects all the same. This warning comes once",
            errors.SelectionStoppedWarning,
            stacklevel=4,
        )

    @property
    def wants_scores(self) -> bool:
        """Whether this step's draw needs losses: not where everything is taken, or none are needed or re-used."""
        return self._here is not None and self._here.is_scoring(self.config.batch_size)

    def batches(self) -> list[NDArray[np.int64]]:
        """Return the open epoch's meta-batches from the current step on, for a loader that fetches ahead."""
        return [] if self._here is None else self._here.batches()[self._here.step :]

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

    def metrics(self) -> dict[str, float]:
        """Return what this rank knows of its selection, "selection/…": finite numbers, flat, for any logger.

        `selection/loss_all` is the mean loss over whole meta-batches, which compares with a full run; the training loss
        is of the selected samples, mostly hard ones. docs/reference/metrics.md lists all names; those that are not
        known are left out. May be called in every step: it takes microseconds, and calls no server.
        """
        return metrics.collect(self.config, self.exchange.position, self._here, self.ledger)

    def log(self, **metrics: Any) -> None:
        """Keep with the run what was measured in the epoch that is open, or was closed last; its dashboard shows it.

        Rank 0 calls it; calls of other ranks do nothing. Later values of one epoch replace earlier ones.

        Args:
            metrics: finite numbers, or arrays and tensors with one element. accuracy, balanced_accuracy, loss (on held-
                out samples) and train_loss have their place; any other name can be added.

        Raises:
            ConfigError: a name or a value that cannot be kept.
            EpochOrderError: no epoch was opened yet.
            ServerUnavailableError: the score server did not answer in time.
        """
        if self.exchange.position.rank:
            return
        measured = check_measured(metrics)
        epoch = self.exchange.next_epoch() - 1 if self._here is None else self._here.number
        if epoch < 0:
            raise errors.EpochOrderError("log keeps what an epoch reached, and none was opened yet: call it afterwards")
        self.exchange.log(epoch, measured)

    def close(self) -> None:
        """Let go of the exchange's threads; the table stays with its owner."""
        self.exchange.close()
