"""A Lightning Trainer beside a `SelectiveData`: what it is held against, and what it gets for the time of a fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, XLAStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from es_service import errors
from es_service.selection.run import RunConfig
from es_service.selector import Selector

__all__ = ["Batches", "Watch", "check_epochs", "check_steps", "check_trainer", "updates_of"]


def updates_of(trainer: Trainer, config: RunConfig, world_size: int) -> list[int]:
    """Return how often the optimizer steps in each epoch of a run, as far as that is known before they open."""
    limit = trainer.limit_train_batches
    steps = [config.num_steps(epoch, world_size) for epoch in range(config.num_epochs)]
    limited = [min(num, limit) if isinstance(limit, int) else int(num * limit) for num in steps]
    return [math.ceil(num / trainer.accumulate_grad_batches) for num in limited]


# -- refused before the first step ------------------------------------------------------------------------------------


def check_trainer(trainer: Trainer, *, has_val: bool, is_pruned: bool) -> None:
    """Raise ConfigError where a setting of the trainer, or its module, contradicts selection."""
    strategy, module = trainer.strategy, trainer.lightning_module
    spreads = isinstance(strategy, (DeepSpeedStrategy, XLAStrategy))
    if spreads or not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise errors.ConfigError(
            f"strategy {type(strategy).__name__}: the scoring pass runs the module itself, on each rank by itself, and "
            "a module whose parameters are spread over the ranks cannot run that way; take 'ddp' or a single device"
        )
    if trainer.overfit_batches:
        raise errors.ConfigError(
            f"overfit_batches={trainer.overfit_batches}: epochs are shuffled and would not repeat the same batches; "
            "take limit_train_batches, or a smaller train_set"
        )
    every = trainer.reload_dataloaders_every_n_epochs
    if is_pruned and every > 1:
        raise errors.ConfigError(
            f"reload_dataloaders_every_n_epochs={every}: pruned epochs differ in length, and the trainer has to count "
            "each: leave it out, or set it to 1"
        )
    for name, what_to_do in (("train", "remove it"), ("val", "pass val=module.val_dataloader()")):
        if is_overridden(f"{name}_dataloader", module) and not (name == "val" and has_val):
            raise errors.ConfigError(
                f"{type(module).__name__} has a {name}_dataloader of its own, which Lightning ignores beside a data "
                f"module: {what_to_do}"
            )


def check_epochs(trainer: Trainer, max_epochs: int | None, epochs: int | None) -> int:
    """Return E, or raise ConfigError where there is none or the trainer goes beyond it.

    Args:
        trainer: about to fit.
        max_epochs: as its user set it; Lightning makes 1,000 of None.
        epochs: as given to the data module.
    """
    if trainer.fast_dev_run:
        return 1
    num_epochs = max_epochs if epochs is None else epochs
    if num_epochs in (None, -1):
        raise errors.ConfigError(
            f"max_epochs={num_epochs}: annealing and plans count from the number of epochs, which has to be known: "
            "Trainer(max_epochs=...), or SelectiveData(epochs=...) where max_steps ends the training"
        )
    if trainer.max_epochs > num_epochs or trainer.max_epochs == trainer.max_steps == -1:
        raise _beyond(trainer, num_epochs)
    return num_epochs


def check_steps(trainer: Trainer, updates: list[int], *, are_given: bool) -> None:
    """Raise ConfigError where the trainer goes beyond the plan of a run, or ends before its last epoch.

    Args:
        trainer: about to fit.
        updates: optimizer steps of each epoch of the run.
        are_given: the data module's user chose the number of epochs; a later fit may make the rest.
    """
    max_steps = trainer.max_steps
    if trainer.max_epochs > len(updates):
        raise _beyond(trainer, len(updates))
    if trainer.max_epochs == -1 and max_steps > sum(updates):
        raise errors.ConfigError(
            f"max_steps={max_steps} goes beyond the plan, whose {len(updates)} epochs make {sum(updates)} optimizer "
            "steps: lower it, or raise epochs"
        )
    if max_steps != -1 and not are_given and max_steps <= sum(updates[:-1]):
        raise errors.ConfigError(
            f"max_steps={max_steps} ends before the last of max_epochs={len(updates)} epochs, which make "
            f"{sum(updates)} optimizer steps: annealing would not come; lower max_epochs, or give "
            "SelectiveData(epochs=...) if a later fit makes the rest"
        )


def _beyond(trainer: Trainer, num_epochs: int) -> errors.ConfigError:
    return errors.ConfigError(
        f"the trainer goes to max_epochs={trainer.max_epochs}, and the plan has {num_epochs} epochs: give the trainer "
        "no more, or SelectiveData(epochs=...) as many as all fits together make"
    )


# -- for the time of a fit --------------------------------------------------------------------------------------------


class _Data(Protocol):
    """What a `SelectiveData` has for its trainer."""

    @property
    def selector(self) -> Selector: ...
    @property
    def total_steps(self) -> int: ...
    def finish_epoch(self) -> None: ...


class Batches:
    """The loader as Lightning sees it: the rest of the epoch at hand; resumed with the data module.

    Args:
        num_steps: returns how many batches the epoch has.
        iterate: yields those that are left.
    """

    def __init__(self, num_steps: Callable[[], int], iterate: Callable[[], Iterator[Any]]) -> None:
        self._num_steps, self._iterate = num_steps, iterate

    def __len__(self) -> int:
        return self._num_steps()

    def __iter__(self) -> Iterator[Any]:
        return self._iterate()

    def state_dict(self) -> dict[str, Any]:
        """Return nothing; that there is such a method tells Lightning that the loader can be resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""


class _CountsEachEpoch:
    """Goes before a trainer's class: it counts all epochs, where Lightning takes them to be as long as the first."""

    datamodule: _Data

    @property
    def estimated_stepping_batches(self) -> int:
        """See `SelectiveData.total_steps`."""
        return self.datamodule.total_steps


class Watch(Callback):
    """What a data module has no hooks for.

    Args:
        data: the data module.
    """

    def __init__(self, data: _Data) -> None:
        self._data = data
        self._entered: tuple[Trainer, type, int] | None = None
        self.is_fitting = False
        """Whether configure_optimizers is over: who asks for batches trains on them."""
        self.is_observed = False
        """Whether `training_step` handed over its losses."""

    def enter(self, trainer: Trainer, *, is_pruned: bool) -> None:
        """Bring to the trainer what selection needs there; `leave` takes it back."""
        self.leave()
        kind = type(trainer)
        self._entered = trainer, kind, trainer.reload_dataloaders_every_n_epochs
        trainer.__class__ = type(kind.__name__, (_CountsEachEpoch, kind), {})
        if is_pruned:
            trainer.reload_dataloaders_every_n_epochs = 1
        trainer.callbacks.insert(0, self)  # an epoch is closed before a checkpoint of its end is written

    def leave(self) -> None:
        """Leave the trainer as it was."""
        if self._entered is not None:
            trainer, kind, every = self._entered
            trainer.__class__, trainer.reload_dataloaders_every_n_epochs = kind, every
            trainer.callbacks.remove(self)
        self._entered, self.is_fitting = None, False

    def on_fit_start(self, *_: Any) -> None:
        """From here on batches are for training."""
        self.is_fitting = True

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin the next epoch as any other where a checkpoint was written behind the last batch of one.

        Lightning would, too, if all epochs were as long: else it takes the batches of the old one for some of the new.
        """
        loop, batches = trainer.fit_loop, trainer.fit_loop.epoch_loop
        if loop.restarted_mid_epoch and batches.restarted_on_train_batch_end and trainer.is_last_batch:
            batches.batch_progress.increment_completed()
            batches._batches_that_stepped += 1
            batches.restarting = False
            batches.reset_restart_stage()
            loop.reset_restart_stage()

    def on_before_backward(self, _: Trainer, pl_module: LightningModule, *__: Any) -> None:
        """Raise ConfigError where training_step took a mean of its own."""
        if pl_module.automatic_optimization and not self.is_observed:
            raise errors.ConfigError(
                f"{type(pl_module).__name__}.training_step has to weigh and hand over the losses of its samples: "
                "return self.trainer.datamodule.mean(losses) instead of losses.mean()"
            )

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Close an epoch behind its last batch."""
        if trainer.is_last_batch:
            self._data.finish_epoch()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close an epoch that something else than its last batch ended, and log."""
        self._data.finish_epoch()
        if not trainer.barebones:
            several = trainer.world_size > 1  # sync_dist says no more than that this is meant
            pl_module.log_dict(self._data.selector.metrics(), sync_dist=several, rank_zero_only=several)
