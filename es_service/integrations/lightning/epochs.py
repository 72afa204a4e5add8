"""The epochs of a fit: which one is open, its batches, and where the trainer is beside the selector."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from es_service import errors
from es_service.integrations.lightning.trainer import Watch
from es_service.selector import Selector
from es_service.training.loader import SelectiveLoader

__all__ = ["FittedEpochs"]


class FittedEpochs(LightningDataModule):
    """A data module that goes through the epochs of a selector as its trainer does; see `SelectiveData`."""

    trainer: Any
    _loader: SelectiveLoader
    _watch: Watch

    def __init__(self) -> None:
        super().__init__()
        self.scale: torch.Tensor | None = None
        """float32[b]: by what the losses of the batch at hand are multiplied; `mean` does it."""
        self._selector: Selector | None = None
        self._begin()

    def _begin(self) -> None:
        """Stand before the first epoch that the selector has."""
        self._next: int | None = None  # epoch to open, or the open one
        self._finished_steps = 0  # of the epoch before it
        self._steps: Any = None  # of the open epoch, (batch, scale) each; None where none is open
        self._first: Any = None  # of these

    @property
    def selector(self) -> Selector:
        """Of the training that was fitted last: its table, its ledger."""
        if self._selector is None:
            raise errors.ConfigError("there is no selector before trainer.fit(module, data)")
        return self._selector

    @property
    def _world_size(self) -> int:
        return self.selector.exchange.position.world_size

    def _epoch(self) -> int:
        """Return the epoch that is open, or the next one."""
        if self._next is None:
            self._next = self.selector.next_epoch
        return self._next

    def _num_steps(self) -> int:
        """Return how many meta-batches the trainer's epoch has."""
        return self._finished_steps if self._is_over() else self.selector.steps(self._epoch())

    def _is_over(self) -> bool:
        """Return whether the trainer still is in the epoch that was finished last: validation, hooks, checkpoints."""
        return self._trainer_epoch() < self._epoch() or self._epoch() == self.selector.config.num_epochs

    def _trainer_epoch(self) -> int:
        """Return how many epochs the trainer has made; its own `current_epoch` is restored later."""
        return int(self.trainer.fit_loop.epoch_progress.current.processed)

    def _check_epoch(self, trainers: int, *, is_exact: bool = True) -> None:
        """Raise EpochOrderError unless the trainer is at the selector's epoch; or at the end of the one before."""
        if self._epoch() != trainers and (is_exact or self._epoch() != trainers + 1):
            raise errors.EpochOrderError(
                f"the trainer is at epoch {trainers}, the selector at epoch {self._epoch()}: continue both from one "
                "checkpoint that was written with this data module (ckpt_path=...), or begin with a new Trainer and, "
                "where a run is named, under a name that is new"
            )

    def _open(self) -> None:
        """Open the next epoch, unless it is open, and fetch its first batch."""
        if self._steps is None:
            self._steps = self._loader.epoch(self._epoch())
            self._first = next(self._steps)

    def _iterate(self) -> Iterator[Any]:
        self._check_epoch(self.trainer.current_epoch)
        self._open()
        for batch, scale in itertools.chain([self._first], self._steps):
            self.scale, self._watch.is_observed = scale, False
            yield batch

    def finish_epoch(self) -> None:
        """Close the open epoch, behind its last step or where it is cut short; nothing where none is open."""
        if self._steps is None:
            return
        if len(self.selector.batches()) == 1:
            next(self._steps, None)  # behind the last step: Lightning does not ask for what follows
        self._steps.close()
        self._finished_steps = self.selector.steps(self._epoch())
        self._loader.finish_epoch()
        self._steps, self._next = None, self._epoch() + 1
