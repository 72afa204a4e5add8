"""The training loop: the same on one process and on many, with and without Ray."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from es_service import errors
from es_service.ledger import Ledger
from es_service.selector import Selector
from es_service.storage.progress import SHOWN
from es_service.training import batches, scoring
from es_service.training.checkpoints import read_checkpoint, write_checkpoint
from es_service.training.cost import backward_cost, on_task
from es_service.training.evaluation import evaluate, final_metrics
from es_service.training.loader import SelectiveLoader
from es_service.training.memory import peak_memory, reset_peak
from es_service.training.observed import losses_in
from es_service.training.optimizers import build_optimizer, learning_rate_at
from es_service.training.passes import ScoringPasses, arrange, compile_errors, forward_signals
from es_service.training.settings import TrainSettings
from es_service.training.step import autocast_for, train_step
from es_service.training.tasks import check_signals
from es_service.training.tasks.base import Task
from es_service.training.tasks.metrics import metric_name
from es_service.training.workers.base import Workers

if TYPE_CHECKING:
    from es_service.scorer import Scorer

__all__ = ["TrainSettings", "fit", "fit_model"]
_LOOK_EVERY_S = 0.5


def fit(
    task: Task,
    selector: Selector,
    settings: TrainSettings,
    workers: Workers,
    scorer: Scorer | None = None,
    *,
    weights_every: int | None = None,
) -> dict[str, Any]:
    """Train a task's model from its last checkpoint, or from the start; every rank calls it.

    The learning rate follows the share of the training done, counted in epochs and in the steps that the selector
    expects in this epoch, so that pruned epochs do not leave the schedule unfinished.

    Args:
        task, selector, settings, workers: what to train, and how.
        scorer: of this worker, for losses of its steps to come.
        weights_every: steps after which it is handed the model's weights again; None never does.

    Returns:
        accuracy, balanced_accuracy, accuracy_by_label, held_out_loss and metrics (see `Evaluation`; with the final ones
        after the last epoch), metric (the name of the one that counts), epoch, history (per epoch), ledger (of the
        run, all ranks together), world_size, memory (see `peak_memory`; of the rank with the most), lost_scorers (how
        many of all ranks' scorers were lost).

    Raises:
        ConfigError: the selection goes by a signal that the task does not have, a metric's name cannot be used, or a
            setting asks for what the model or this machine does not offer.
    """
    return _fitted(_Training(task, selector, settings, workers, scorer, weights_every))


def fit_model(
    task: Task, selector: Selector, settings: TrainSettings, workers: Workers
) -> tuple[dict[str, Any], torch.nn.Module]:
    """Train as `fit` does; return the model too, bare."""
    training = _Training(task, selector, settings, workers)
    return _fitted(training), training.bare


def _fitted(training: _Training) -> dict[str, Any]:
    reset_peak(training.workers.device)
    with compile_errors(training.settings):
        return training.run()


class _Training:
    """The state of one training; see `fit`."""

    def __init__(
        self,
        task: Task,
        selector: Selector,
        settings: TrainSettings,
        workers: Workers,
        scorer: Scorer | None = None,
        weights_every: int | None = None,
    ) -> None:
        self.task, self.selector, self.settings, self.workers = task, selector, settings, workers
        self.scorer, self._weights_every = scorer, weights_every
        torch.manual_seed(settings.seed)
        model = task.build_model()
        arrange(model, settings)
        self.model = workers.prepare(model)
        self.bare = scoring.unwrap(self.model)
        self.optimizer = build_optimizer(self.model, settings)
        self._signals = forward_signals(task, selector.config.selection)
        augment = getattr(task, "augment", None)
        self._score = ScoringPasses(self.model, self._signals, settings, workers.device)
        self.loader = SelectiveLoader(
            task.train_set,
            selector,
            self._score,
            # A bad loss has to be known before it is trained on: then every step is scored first.
            reuse_losses=selector.config.selection.on_bad_loss == "raise",
            collate_fn=_as_is,
            device=workers.device,
            augment=None if augment is None else lambda *of: augment(*of, settings.seed),
            scorer=scorer,
        )
        self._scorer_states: list[Any] = []  # of each rank, for the checkpoint
        self.history: list[dict[str, Any]] = []
        self._looked_at = -math.inf
        check_signals(task, selector.config.selection)
        self._metric = metric_name(task)

    def run(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        for epoch in range(self._restore(), self.selector.config.num_epochs):
            train_loss = self._train_epoch(epoch)
            asked = (self.bare, self.task, self.workers, self.loader.to_device, self._autocast)
            reached = evaluate(*asked, self._score.batch_size)
            is_last = epoch + 1 == self.selector.config.num_epochs
            ledger = self._merged_ledger()  # gathers: past it, every rank has closed the epoch
            self.history.append(
                {
                    "epoch": epoch,
                    "accuracy": reached.accuracy,
                    "balanced_accuracy": reached.balanced_accuracy,
                    "accuracy_by_label": reached.accuracy_by_label,
                    "held_out_loss": reached.loss,
                    "metrics": {**reached.metrics, **(final_metrics(*asked) if is_last else {})},
                    "train_loss": train_loss,
                    "scored": ledger.scored,
                    "trained": ledger.trained,
                    "seconds": ledger.total_s,
                    "saving": ledger.saving(),
                    "decision": self.selector.decision,
                }
            )
            metrics = self._metrics(ledger)
            self._scorer_states = [] if self.scorer is None else self.workers.gather(self.scorer.state())
            self.workers.report(metrics, self._save)
            self._log()
        return metrics or self._metrics(self._merged_ledger())  # resumed behind its end

    def _begin(self) -> None:
        """Begin from nothing, with what a backward pass counts as: where it is measured, rank 0 does that for all."""
        self.selector.reset()
        cost = self.settings.backward_cost
        if cost is None:
            own = None
            if self.workers.rank == 0:
                size = self.selector.config.batch_size
                own = on_task(backward_cost, self.task, self.bare, self._score, self.settings, size)
            cost = self.workers.gather(own)[0]
        self.selector.ledger.backward_cost = cost

    def _merged_ledger(self) -> Ledger:
        ledgers = self.workers.gather(self.selector.ledger.to_dict())
        return Ledger.merge([Ledger.from_dict(one) for one in ledgers])

    def _train_epoch(self, epoch: int) -> float:
        """Train for an epoch and return the mean loss of what it trained on, over all ranks."""
        num_epochs = self.selector.config.num_epochs
        torch.manual_seed(_epoch_seed(self.settings.seed, epoch, self.workers.rank))  # e.g. of dropout
        self.model.train()
        if self._weights_every is not None:
            self._hand_weights()
        total, num = torch.zeros((), device=self.workers.device), 0
        for step, (batch, scale) in enumerate(self.loader.epoch(epoch)):
            if self._weights_every is not None and step and step % self._weights_every == 0:
                self._hand_weights()
            done = step / self.selector.steps(epoch)
            rate = self.selector.learning_rate_factor * learning_rate_at(
                (epoch + done) / num_epochs,
                self.settings.learning_rate,
                warm_up=self.settings.warm_up,
                schedule=self.settings.schedule,
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            scale, weight = self._weighed(batch, scale)
            signals = train_step(
                self.model,
                self.optimizer,
                batch,
                scale,
                self._signals,
                weight=weight,
                micro_batch_size=self.settings.micro_batch_size,
                autocast=self._autocast,
            )
            self.loader.observe(signals)
            total += losses_in(signals).sum()
            num += scale.numel()
            if self.workers.rank == 0 and time.monotonic() - self._looked_at > _LOOK_EVERY_S:
                self._looked_at = time.monotonic()
                self.workers.raise_if_stopped()
        totals, nums = zip(*self.workers.gather((float(total), num)), strict=True)
        return float(sum(totals) / sum(nums))

    def _hand_weights(self) -> None:
        """Hand the scorers the weights as they are."""
        assert self.scorer is not None, "it is for one"
        self.scorer.load({name: value.cpu() for name, value in self._state(is_trained=True).items()})

    def _weighed(self, batch: Any, scale: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return the scale of each sample of a mini-batch times its share of the task's weights, and what this rank's
        mean counts for.
        """
        weigh = getattr(self.task, "weights", None)
        if weigh is None:
            return scale, self.loader.weight
        weights_b = weigh(batch)
        mean = float(weights_b.mean())
        return scale * batches.moved(torch.from_numpy(weights_b / mean), scale.device), self.loader.weight * mean

    def _autocast(self) -> Any:
        return autocast_for(self.workers.device)

    def _metrics(self, ledger: Ledger) -> dict[str, Any]:
        last = self.history[-1]
        reached = ("epoch", "accuracy", "balanced_accuracy", "accuracy_by_label", "held_out_loss", "metrics")
        return {
            **{name: last[name] for name in reached},
            "metric": self._metric,
            "history": self.history,
            "ledger": ledger.to_dict(),
            "world_size": self.workers.world_size,
            "lost_scorers": sum(self.workers.gather(0 if self.scorer is None else self.scorer.num_lost)),
            "memory": max(self.workers.gather(peak_memory(self.workers.device)), key=lambda one: one["peak_bytes"]),
        }

    def _log(self) -> None:
        """Show watchers what the last epoch reached."""
        last = self.history[-1]
        shown = {**last["metrics"], **{name: last[name] for name in SHOWN}}
        self.selector.log(**{name: one for name, one in shown.items() if one is not None and math.isfinite(one)})

    def _save(self, folder: Path) -> None:
        write_checkpoint(
            folder,
            self.selector.state_dict(),
            {
                "model": self._state(is_trained=True),
                "optimizer": self.optimizer.state_dict(),
                "history": self.history,
                "scorers": self._scorer_states,
            },
        )

    def _state(self, *, is_trained: bool) -> dict[str, Any]:
        """Return what training changes of the model's state, or the frozen parameters, which the task makes again."""
        named = self.bare.named_parameters(remove_duplicate=False)
        frozen = {name for name, parameter in named if not parameter.requires_grad}
        return {name: value for name, value in self.bare.state_dict().items() if (name not in frozen) == is_trained}

    def _restore(self) -> int:
        """Go to the last checkpoint and return the epoch to continue with."""
        names = ("model", "optimizer", "history", *(() if self.scorer is None else ("scorers",)))
        with self.workers.checkpoint() as folder:
            if folder is None:
                self._begin()
                return 0
            state, saved = read_checkpoint(folder, names, self.workers.device)
        try:
            self.bare.load_state_dict({**self._state(is_trained=False), **saved["model"]})
            self.optimizer.load_state_dict(saved["optimizer"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise errors.RunMismatchError(
                f"the checkpoint is of another model or optimiser than this task has: {error}"
            ) from error
        self.history = saved["history"]
        if self.scorer is not None and saved["scorers"]:
            self.scorer.restore(saved["scorers"][self.workers.rank % len(saved["scorers"])])
        epoch = self.selector.load_state_dict(state)
        if self.history:  # its process may have ended before this
            self._log()
        return epoch


def _epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Return a seed that a resumed training finds again, and that no other epoch or rank has."""
    return ((seed * 1_000_003 + epoch) * 1_000_003 + rank) % 2**63


def _as_is(batch: Any) -> Any:
    return batch
