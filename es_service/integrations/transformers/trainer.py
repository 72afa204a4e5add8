"""What selection changes in a transformers Trainer: its data loader, loss, epochs, checkpoints and log."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from es_service import errors
from es_service.integrations.transformers.batches import Batches, CountingCollate, Drawn
from es_service.integrations.transformers.losses import LogitLosses, UsersLosses
from es_service.selection.run import RunConfig
from es_service.selector import Selector
from es_service.training import checkpoints, scoring, step
from es_service.training.fetching import settings_of_workers
from es_service.training.loader import SelectiveLoader
from es_service.training.losses import check_per_sample
from es_service.training.observed import Signals, losses_in

__all__ = ["Selective", "Settings", "adopt", "num_updates", "planned"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How a trainer selects.

    Attributes:
        losses: per sample.
        weighs: the loss to train on is mean(losses·scale), not the trainer's own.
        reuses_losses: steps that draw without losses take those that training computes.
        micro_batch_size: of scoring.
        run: its name, None where it has none.
        planned: `planned(args)` when the number of epochs was decided.
    """

    losses: UsersLosses | LogitLosses
    weighs: bool
    reuses_losses: bool
    micro_batch_size: int | None
    run: str | None
    planned: dict[str, Any]


def planned(args: Any) -> dict[str, Any]:
    """Return the arguments that a run is planned by."""
    names = ("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
    return {name: getattr(args, name) for name in names}


def num_updates(config: RunConfig, epoch: int, args: Any) -> int:
    """Return how many optimizer steps an epoch is planned to have."""
    return -(-config.num_steps(epoch, args.world_size) // int(args.gradient_accumulation_steps))


def adopt(trainer: Any) -> None:
    """Make a trainer, which has its `selector` and `selection_settings`, a Selective one of its class."""
    cls = type(trainer)
    trainer.__class__ = type(cls.__name__, (Selective, cls), {"__module__": cls.__module__})
    trainer._pace = _Pace(trainer)
    trainer.callback_handler.callbacks.insert(0, trainer._pace)  # before those that log, evaluate and save
    if trainer.selection_settings.weighs:
        trainer.loss_is_scaled_for_ga = False


class Selective(transformers.Trainer):
    """A Trainer that selects; `adopt` puts it in front of a trainer's class."""

    selector: Selector
    selection_settings: Settings
    _batches: Batches
    _pace: _Pace
    _drawn: Drawn | None = None

    # -- data and loss -----------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """Return the loader of drawn mini-batches; collator, columns and workers are those of the trainer's own."""
        whole = super().get_train_dataloader()
        workers = {**settings_of_workers(whole), "generator": None}  # theirs would draw on torch's random numbers
        loader = SelectiveLoader(
            whole.dataset,
            self.selector,
            self._score,
            reuse_losses=self.selection_settings.reuses_losses,
            collate_fn=CountingCollate(whole.collate_fn),
            device=self.args.device,
            num_workers=whole.num_workers,
            recollate=True,
            **workers,
        )
        self._batches = Batches(loader, self.selector, whole.dataset)
        return self._batches

    def _score(self, collated: tuple[Any, list[int] | None]) -> Any:
        batch, counts = collated
        settings = self.selection_settings
        part_of, counts = (None, counts) if settings.micro_batch_size is None else (batch, None)  # None: not to be cut
        return scoring.score(
            self.model_wrapped,
            part_of,
            lambda model, part: _checked(settings.losses(model, batch if part is None else part, counts), counts),
            micro_batch_size=settings.micro_batch_size,
        )

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Make the step of the oldest batch that was handed out."""
        self._drawn = self._batches.drawn.popleft()
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._drawn = None

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the trainer's own loss; in training mean(losses·scale), where losses are scaled or given."""
        drawn, settings = self._drawn, self.selection_settings
        if drawn is None or (not settings.weighs and (drawn.is_scored or not settings.reuses_losses)):
            return super().compute_loss(model, inputs, *args, **kwargs)
        if not settings.weighs:
            batch = dict(inputs)
            loss, outputs = super().compute_loss(model, inputs, *args, **{**kwargs, "return_outputs": True})
            with torch.no_grad():
                signals = settings.losses.of(outputs, batch, drawn.counts)  # type: ignore[union-attr]
            self._batches.observe(signals)
            return loss
        signals = settings.losses(model, inputs, drawn.counts)
        losses = losses_in(signals)
        check_per_sample(losses, drawn.scale.numel())
        self._batches.observe(signals)
        factor = step.rank_factor(model, drawn.weight, drawn.scale.device)
        return (losses.float() * drawn.scale).mean() * factor

    # -- epochs ------------------------------------------------------------------------------------------------------

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """Plan the updates of the whole training, with the lengths that its epochs will have."""
        now, then = planned(args), self.selection_settings.planned
        if now != then:
            raise errors.ConfigError(
                f"the run was planned for {then}, and the trainer now has {now}: set its arguments before select()"
            )
        config = self.selector.config
        updates = [num_updates(config, epoch, args) for epoch in range(config.num_epochs)]
        max_steps = args.max_steps
        if max_steps <= 0:
            share_of_last = args.num_train_epochs - (config.num_epochs - 1)
            max_steps = sum(updates[:-1]) + math.ceil(share_of_last * updates[-1])
        _, _, *sizes, _, _ = super().set_initial_training_values(args, dataloader)
        return config.num_epochs, updates[0], *sizes, len(dataloader), max_steps

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, resume: str | None, trial: Any
    ) -> tuple[int, int]:
        super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, resume, trial)
        if resume is not None and self.state.global_step:
            return self.selector.load_state_dict(_read(Path(resume), self.args)), 0
        if self.selection_settings.run is not None and (begun := self.selector.next_epoch):
            raise errors.RunExistsError(
                f"run {self.selection_settings.run!r} has {begun} finished epochs, and the model starts from scratch: "
                "pass resume_from_checkpoint, take another run name, or call trainer.selector.reset() on every rank"
            )
        self.selector.reset()
        return 0, 0

    def _run_epoch(self, **kwargs: Any) -> None:
        """Run what is left of an epoch, as one that begins here."""
        epoch, resume = kwargs["epoch"], kwargs["resume_from_checkpoint"]
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if resume is not None and epoch == kwargs["epochs_trained"]:
            self._load_rng_state(resume)
        self._batches.open(epoch)
        self._pace.begin(epoch)
        num_left = self._batches.num_steps - self._batches.first_step
        left = {
            "train_dataloader": self._batches,
            "steps_in_epoch": num_left,
            "num_update_steps_per_epoch": math.ceil(num_left / self.args.gradient_accumulation_steps),
            "resume_from_checkpoint": None,
            "steps_trained_in_current_epoch": 0,
        }
        super()._run_epoch(**{**kwargs, **left})

    # -- checkpoints and log -----------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.args.save_only_model:
            self.accelerator.wait_for_everyone()  # a state needs all ranks at the end of the epoch
            state = self.selector.state_dict()
            self.accelerator.wait_for_everyone()
            checkpoint = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder = checkpoint / _folder(self.args)
            folder.mkdir(parents=True, exist_ok=True)
            checkpoints.write_checkpoint(folder, state, {})
        super()._save_checkpoint(model, trial)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, and beside a training loss what is known of the selection."""
        if "loss" in logs:
            logs = {**logs, **self.selector.metrics()}
        super().log(logs, *args, **kwargs)


class _Pace(transformers.TrainerCallback):
    """Keeps the schedule, the epoch's fraction and its end where epochs are pruned, resumed or cut short."""

    def __init__(self, trainer: Selective) -> None:
        self._trainer = trainer

    def begin(self, epoch: int) -> None:
        """Go to an epoch that was just opened."""
        trainer, batches = self._trainer, self._trainer._batches
        self._epoch, self._begin = epoch, trainer.state.global_step
        size, config = trainer.args.gradient_accumulation_steps, trainer.selector.config
        updates = [num_updates(config, one, trainer.args) for one in range(config.num_epochs)]
        self._before, self._planned, after = sum(updates[:epoch]), updates[epoch], sum(updates[epoch + 1 :])
        self._made, self._num = batches.first_step // size, math.ceil(batches.num_steps / size)
        to_come = math.ceil((batches.num_steps - batches.first_step) / size) + after
        trainer.state.max_steps = min(trainer.state.max_steps, self._begin + to_come)
        factor, schedule = trainer.selector.learning_rate_factor, trainer.lr_scheduler
        if isinstance(schedule, LambdaLR):
            for index, group in enumerate(trainer.optimizer.param_groups):
                base, base_then = group["initial_lr"] * factor, schedule.base_lrs[index]
                if base != base_then:
                    group["lr"] *= base / base_then
                    schedule.base_lrs[index] = base

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the hook's
        """Note how far the epoch is; the schedule makes the steps that a shorter epoch leaves out."""
        batches, schedule = self._trainer._batches, self._trainer.lr_scheduler
        made = self._made + state.global_step - self._begin
        num_steps = min(batches.num_steps, made * args.gradient_accumulation_steps)
        state.epoch = self._epoch + num_steps / batches.num_steps
        while isinstance(schedule, LambdaLR) and schedule.last_epoch < self._before + self._planned * made // self._num:
            schedule.step()
        if num_steps == batches.num_steps:
            batches.finish_steps()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the hook's
        """Close an epoch that was cut short."""
        self._trainer._batches.close()


def _checked(signals: Signals, counts: list[int] | None) -> Signals:
    if counts is not None:
        for values in signals.values() if isinstance(signals, dict) else (signals,):
            check_per_sample(values, len(counts))
    return signals


def _folder(args: Any) -> str:
    return f"selection-{args.process_index}-of-{args.world_size}"


def _read(checkpoint: Path, args: Any) -> dict[str, Any]:
    """Return the selector's state in a Trainer's checkpoint."""
    folder = checkpoint / _folder(args)
    if not folder.is_dir():
        others = sorted(path.name for path in checkpoint.glob("selection-0-of-*"))
        if not others:
            raise errors.StorageError(
                f"{checkpoint} has no state of a selection: it was written without one, or with save_only_model=True, "
                "so that training can only start over with its weights"
            )
        raise errors.RunMismatchError(
            f"{checkpoint} was written by {others[0].rpartition('-')[2]} rank(s), and this run has {args.world_size}: "
            "resume with as many"
        )
    return checkpoints.read_checkpoint(folder, (), torch.device("cpu"))[0]
