"""Lightning: a data module that selects what a Trainer trains on.

    class Classifier(L.LightningModule):
        def losses(self, batch): ...                                  # float[b], one per sample
        def training_step(self, batch, batch_idx):
            return self.trainer.datamodule.mean(self.losses(batch))   # instead of self.losses(batch).mean()

    data = SelectiveData(train_set, Classifier.losses, selection, batch_size=64, val=val_loader)
    trainer.fit(module, data, ckpt_path="last")

A data module, because Lightning asks one for batches and keeps its state in checkpoints; it brings a callback along.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader, IterableDataset

from es_service import errors
from es_service.attach import attach
from es_service.connect import ExchangeName
from es_service.integrations.lightning.epochs import FittedEpochs
from es_service.integrations.lightning.trainer import (
    Batches,
    Watch,
    check_epochs,
    check_steps,
    check_trainer,
    updates_of,
)  # fmt: skip
from es_service.selection.config import Selection
from es_service.selection.methods.base import Method
from es_service.selection.run import RunConfig
from es_service.training import scoring, step
from es_service.training.loader import SelectiveLoader
from es_service.training.observed import Signals

__all__ = ["SelectiveData"]


class SelectiveData(FittedEpochs):
    """Batches for `trainer.fit`: B samples are scored in each step, and the b drawn ones go to `training_step`.

    Batches look as those of a DataLoader do. `training_step` returns `self.trainer.datamodule.mean(losses)`, which
    weighs and observes; a module that optimizes manually calls it before its backward pass. Scoring happens in the
    precision of training, after the module's own hooks for batches.

    A fit of a new Trainer without a checkpoint is a new training with a new score table. A further fit of the same
    Trainer, and one from a checkpoint, continues.

    Args:
        train_set: map-style data set; item i is the sample of id i.
        losses: (module, batch) -> losses float[b], one per sample, or signals by name, "loss" among them. A method of
            the LightningModule: `Classifier.losses`, or `module.losses`.
        selection: what to select, and how.
        batch_size: B, the meta-batch of each rank.
        val: loaders to validate with; Lightning takes none of the module's own where there is a data module.
        test: loaders to test with.
        predict: loaders to predict with.
        epochs: E, which annealing counts from; by default the trainer's `max_epochs`.
        num_workers: processes that fetch ahead, as in `es.SelectiveLoader`.
        collate_fn: list of samples -> batch, likewise.
        per_sample: names of the leaves of a batch that have a row per sample, likewise.
        recollate: whether drawn samples are collated again, likewise.
        micro_batch_size: most samples of one forward pass of scoring.
        run: names the run; several ranks need it.
        exchange: as in `es_service.attach.attach`.
        options: further arguments of `es.connect` or `es.Selector`.

    Raises:
        ConfigError: the data set has no ids to go by, or a setting is out of range. When fitting begins: the trainer's
            limits do not fit the plan, or a setting of it contradicts selection; see docs/how-to/lightning.md.
        RunMismatchError: a checkpoint of a run with other settings, other data or another number of ranks.
        EpochOrderError: a checkpoint from the middle of an epoch of several ranks, or on a score server; or the trainer
            and the run are at different epochs.
    """

    def __init__(
        self,
        train_set: Any,
        losses: Callable[[Any, Any], Signals],
        selection: Selection,
        *,
        batch_size: int,
        val: Any = None,
        test: Any = None,
        predict: Any = None,
        epochs: int | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        per_sample: Sequence[str] | None = None,
        recollate: bool = False,
        micro_batch_size: int | None = None,
        run: str | None = None,
        exchange: ExchangeName | Literal["in-process"] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(train_set, (IterableDataset, DataLoader)) or not hasattr(train_set, "__len__"):
            raise errors.ConfigError(
                f"train_set must be a map-style data set, with a length and samples by number, got a "
                f"{type(train_set).__name__}: of a DataLoader pass its .dataset; samples of an iterable data set have "
                "no numbers, and `selector.stream` in a loop of your own is for them"
            )
        if not callable(losses):
            raise errors.ConfigError(
                f"losses must be a function, (module, batch) -> one loss per sample, got {losses!r}"
            )
        RunConfig.of(selection, len(train_set), 1 if epochs is None else epochs, batch_size)  # raises now, not at fit
        self._train_set, self._selection, self._batch_size, self._epochs = train_set, selection, batch_size, epochs
        is_bound = isinstance(getattr(losses, "__self__", None), LightningModule)
        self._losses = losses.__func__ if is_bound else losses  # type: ignore[attr-defined]
        self._loader_options: dict[str, Any] = {
            "num_workers": num_workers, "collate_fn": collate_fn, "per_sample": per_sample, "recollate": recollate,
        }  # fmt: skip
        self._score_options: dict[str, Any] = {"micro_batch_size": micro_batch_size, "per_sample": per_sample}
        self._run, self._options = run, {"exchange": exchange, **options}
        for name, loaders in (("val", val), ("test", test), ("predict", predict)):
            if loaders is not None:  # Lightning looks whether the method is there
                setattr(self, f"{name}_dataloader", functools.partial(_itself, loaders))
        self._watch = Watch(self)

    # -- what Lightning calls ---------------------------------------------------------------------------------------

    @property
    def trainer(self) -> Any:
        """The trainer that fits."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self._trainer = trainer
        self._max_epochs = None if trainer is None else trainer.max_epochs  # soon Lightning makes 1,000 of None

    def setup(self, stage: str) -> None:
        """Make the selector; the process group of several ranks is there already."""
        if stage != "fit":
            return
        trainer = self.trainer
        num_epochs = check_epochs(trainer, self._max_epochs, self._epochs)
        check_trainer(trainer, has_val=is_overridden("val_dataloader", self), is_pruned=self._is_pruned)
        if self._selector is None or not self._trainer_epoch():
            self._attach(trainer, num_epochs)
        if self._steps is not None:  # an interrupted fit left it: from here only a checkpoint continues
            self.selector.finish_epoch()
            self._steps, self._next = None, self._epoch() + 1
        check_steps(trainer, self._updates(), are_given=self._epochs is not None)
        self._watch.enter(trainer, is_pruned=self._is_pruned)

    def _attach(self, trainer: Trainer, num_epochs: int) -> None:
        """Begin a training: with a new table, or that of the run where it exists."""
        if self._selector is not None:
            self._selector.close()
        selection, run, is_try = self._selection, self._run, bool(trainer.fast_dev_run)
        if is_try:  # a few steps: all of them select, and the run is left alone
            selection = dataclasses.replace(selection, anneal=(0, 0))
            run = None if run is None else f"{run}-fast-dev-run"
        self._selector = attach(
            selection,
            num_samples=len(self._train_set),
            num_epochs=num_epochs,
            batch_size=self._batch_size,
            run=run,
            dataset=self._train_set,
            **self._options,
        )
        if is_try and run is not None:
            self._selector.reset()
        self._loader = SelectiveLoader(
            self._train_set,
            self._selector,
            self._score,
            reuse_losses=selection.on_bad_loss == "raise",
            **self._loader_options,
        )
        self._begin()

    def train_dataloader(self) -> Batches:
        """Return the loader of the epoch at hand."""
        if self._watch.is_fitting:
            self._check_epoch(self._trainer_epoch(), is_exact=self._finished_steps == 0)
            if self._is_pruned and not self._is_over():
                self._open()  # only an open epoch knows its length
        return Batches(self._num_steps, self._iterate)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; between two epochs all of it, and of a single rank at any step."""
        if self._selector is None:
            return {}
        try:
            state = self.selector.state_dict()
        except errors.EpochOrderError:  # inside an epoch of several ranks or a server: the model is still worth saving
            state = None
        return {
            "selector": state,
            "epoch": self._epoch(),
            "finished_steps": self._finished_steps,
            "world_size": self._world_size,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        if self._selector is None or self.trainer.state.fn != "fit":
            return
        if state_dict["world_size"] != self._world_size:
            raise errors.RunMismatchError(
                f"the checkpoint is of {state_dict['world_size']} rank(s), and now there are {self._world_size}: "
                "epochs would have another number of steps than the schedule counts on. Continue with as many"
            )
        if state_dict["selector"] is None:
            raise errors.EpochOrderError(
                f"the checkpoint was written inside epoch {state_dict['epoch']}, where neither several ranks nor a "
                "score server can continue: take one from the end of an epoch, as ModelCheckpoint writes by default"
            )
        self._next, self._steps = self.selector.load_state_dict(state_dict["selector"]), None
        self._finished_steps = state_dict["finished_steps"]

    def teardown(self, **_: Any) -> None:
        """Leave the trainer as it was."""
        self._watch.leave()

    def on_exception(self, *_: Any) -> None:
        """Leave the trainer as it was."""
        self._watch.leave()

    # -- what training_step calls -----------------------------------------------------------------------------------

    def mean(self, losses: Signals) -> torch.Tensor:
        """Return the mean of losses · scale, to call backward on, and observe the losses.

        Args:
            losses: float[b], one for each sample of the batch at hand, or signals by name, "loss" among them.

        Raises:
            ShapeError: it is something else, a mean for example.
        """
        mean = self._loader.mean(losses)
        self._watch.is_observed = True
        if self._selection.on_bad_loss == "skip":  # ranks may have drawn different numbers
            mean = mean * step.rank_factor(self.trainer.strategy.model, self._loader.weight, mean.device)
        return mean

    def observe(self, losses: Signals) -> None:
        """Hand over the losses float[b], or signals, of the batch at hand; `mean` does it."""
        self._loader.observe(losses)
        self._watch.is_observed = True

    @property
    def total_steps(self) -> int:
        """How often the optimizer steps in all epochs, for a learning-rate schedule; fewer where epochs are pruned.

        `trainer.estimated_stepping_batches` is the same number. It is the most there may be for methods that decide by
        the losses how much they prune (infobatch, kakurenbo).
        """
        total, max_steps = sum(self._updates()), self.trainer.max_steps
        return total if max_steps == -1 else min(total, max_steps)

    def _score(self, batch: Any) -> Any:
        """Return the losses of a meta-batch, which is treated as Lightning treats one before training_step."""
        trainer, module = self.trainer, self.trainer.lightning_module
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        return scoring.score(
            module,
            batch,
            self._losses,
            autocast=trainer.precision_plugin.forward_context,
            **self._score_options,
        )

    @property
    def _is_pruned(self) -> bool:
        """Whether epochs may differ in length."""
        selection = self._selection
        return selection.prune_ratio > 0 or type(selection.method).plan is not Method.plan

    def _updates(self) -> list[int]:
        """Return how often the optimizer steps in each epoch."""
        return updates_of(self.trainer, self.selector.config, self._world_size)


def _itself(loaders: Any) -> Any:
    return loaders
