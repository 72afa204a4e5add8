"""The training loop: the same on one process and on many, with and without Ray."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from es_service import errors
from es_service.ledger import Ledger
from es_service.selection.settings import as_integer, as_number
from es_service.selector import Selector
from es_service.training import scoring
from es_service.training.loader import SelectiveLoader
from es_service.training.step import autocast_for, train_step
from es_service.training.tasks.base import Task
from es_service.training.workers import Workers

__all__ = ["TrainSettings", "fit"]

_PUBLISH_EVERY_S = 0.5
_EVALUATION_BATCH = 500
_WARM_UP = 0.2  # share of the training in which the learning rate rises


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """How to optimise.

    Args:
        learning_rate: the highest of a one-cycle schedule over the whole training.
        momentum: of SGD, Nesterov's.
        weight_decay: L2.
        micro_batch_size: most samples of one forward or backward pass on a worker; None for no limit.
        seed: of the initial weights.

    Raises:
        ConfigError: a value outside its domain.
    """

    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    micro_batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < as_number("learning_rate", self.learning_rate) < math.inf:
            raise errors.ConfigError(f"learning_rate must be above 0 and finite, got {self.learning_rate}")
        if not 0 <= as_number("momentum", self.momentum) < 1:
            raise errors.ConfigError(f"momentum must lie in [0, 1), got {self.momentum}")
        if not 0 <= as_number("weight_decay", self.weight_decay) < math.inf:
            raise errors.ConfigError(f"weight_decay must be at least 0 and finite, got {self.weight_decay}")
        if self.micro_batch_size is not None:
            as_integer("micro_batch_size", self.micro_batch_size, least=1)
        as_integer("seed", self.seed, least=0, end=2**63)


def learning_rate_at(progress: float, highest: float) -> float:
    """Return the one-cycle learning rate at a share of the training in [0, 1]: up linearly, down as a cosine to 0."""
    if progress < _WARM_UP:
        return highest * (0.04 + 0.96 * progress / _WARM_UP)
    return highest * 0.5 * (1.0 + math.cos(math.pi * (progress - _WARM_UP) / (1.0 - _WARM_UP)))


def fit(task: Task, selector: Selector, settings: TrainSettings, workers: Workers) -> dict[str, Any]:
    """Train a task's model from its last checkpoint, or from the start; every rank calls it.

    The learning rate follows the share of the training done, counted in epochs and in the steps that the selector
    says this epoch has, so that pruned epochs do not leave the schedule unfinished.

    Returns:
        accuracy (held out), epoch, history (per epoch), ledger (of the run, all ranks together), world_size.
    """
    return _Training(task, selector, settings, workers).run()


class _Training:
    """The state of one training; see `fit`."""

    def __init__(self, task: Task, selector: Selector, settings: TrainSettings, workers: Workers) -> None:
        self.task, self.selector, self.settings, self.workers = task, selector, settings, workers
        torch.manual_seed(settings.seed)
        self.model = workers.prepare(task.build_model())
        self.bare = scoring.unwrap(self.model)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.momentum > 0,
        )
        self.loader = SelectiveLoader(
            task.train_set, selector, self._score, reuse_losses=True, collate_fn=_as_is, device=workers.device
        )
        self.history: list[dict[str, Any]] = []
        self._published_at = -math.inf

    def run(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        for epoch in range(self._restore(), self.selector.config.num_epochs):
            self._train_epoch(epoch)
            accuracy = self._accuracy()  # gathers: past it, every rank has closed the epoch
            ledgers = self.workers.gather(self.selector.ledger.to_dict())
            ledger = Ledger.merge([Ledger.from_dict(one) for one in ledgers])
            self.history.append({"epoch": epoch, "accuracy": accuracy, "saving": ledger.saving()})
            metrics = self._metrics(epoch, accuracy, ledger)
            self.workers.report(metrics, self._save)
            self._publish(epoch, 1.0)
        return metrics or self._finished_already()

    def _train_epoch(self, epoch: int) -> None:
        num_epochs = self.selector.config.num_epochs
        torch.manual_seed(_epoch_seed(self.settings.seed, epoch, self.workers.rank))  # of dropout, say
        self.model.train()
        for step, (batch, scale) in enumerate(self.loader.epoch(epoch)):
            done = step / self.selector.steps(epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_at((epoch + done) / num_epochs, self.settings.learning_rate)
            losses = train_step(
                self.model,
                self.optimizer,
                batch,
                scale,
                self._losses,
                micro_batch_size=self.settings.micro_batch_size,
                autocast=self._autocast,
            )
            self.loader.observe(losses)
            if time.monotonic() - self._published_at > _PUBLISH_EVERY_S:
                self._publish(epoch, done)

    def _autocast(self) -> Any:
        return autocast_for(self.workers.device)

    def _losses(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return self.task.losses(model(self.task.inputs(batch)), batch)

    def _score(self, batch: Any) -> np.ndarray[Any, Any]:
        return scoring.score(
            self.model,
            batch,
            inputs=self.task.inputs,
            losses=self.task.losses,
            micro_batch_size=self.settings.micro_batch_size,
            autocast=self._autocast,
        )

    def _accuracy(self) -> float:
        """Return the share of held-out samples that are classified correctly, each rank taking its part of them."""
        workers, held_out = self.workers, self.task.held_out
        mine = range(workers.rank, len(held_out), workers.world_size)
        correct = 0.0
        workers.share_buffers(self.bare)
        self.bare.eval()
        with torch.no_grad():
            for start in range(0, len(mine), _EVALUATION_BATCH):
                batch = self.loader.to_device(held_out.__getitems__(list(mine[start : start + _EVALUATION_BATCH])))
                with self._autocast():
                    outputs = self.bare(self.task.inputs(batch))
                correct += float(self.task.metric(outputs, batch).sum())
        self.bare.train()
        return float(sum(workers.gather(correct)) / len(held_out))

    def _metrics(self, epoch: int, accuracy: float, ledger: Ledger) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "accuracy": accuracy,
            "history": self.history,
            "ledger": ledger.to_dict(),
            "world_size": self.workers.world_size,
        }

    def _publish(self, epoch: int, done: float) -> None:
        """Show watchers how far rank 0 is: the others take the same steps over as many samples."""
        self._published_at = time.monotonic()
        if self.workers.rank == 0:
            ledger, world_size = self.selector.ledger, self.workers.world_size
            counts = {"scored": ledger.scored, "trained": ledger.trained, "full": ledger.full}
            self.selector.publish(
                {
                    "epoch": epoch,
                    "done": done,
                    "num_epochs": self.selector.config.num_epochs,
                    "samples": {name: count * world_size for name, count in counts.items()},
                    "saving": ledger.saving(),
                    "history": self.history,
                }
            )

    def _save(self, folder: Path) -> None:
        state = self.selector.state_dict()
        (folder / "scores.arrow").write_bytes(state.pop("table"))
        torch.save(
            {
                "model": self.bare.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "selector": state,
                "history": self.history,
            },
            folder / "training.pt",
        )

    def _restore(self) -> int:
        """Go to the last checkpoint and return the epoch to go on with."""
        with self.workers.checkpoint() as folder:
            if folder is None:
                self.selector.reset()
                return 0
            saved = torch.load(folder / "training.pt", map_location=self.workers.device, weights_only=True)
            table = (folder / "scores.arrow").read_bytes()
        self.bare.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.history = saved["history"]
        return self.selector.load_state_dict({**saved["selector"], "table": table})

    def _finished_already(self) -> dict[str, Any]:
        ledgers = self.workers.gather(self.selector.ledger.to_dict())
        ledger = Ledger.merge([Ledger.from_dict(one) for one in ledgers])
        return self._metrics(self.history[-1]["epoch"], self.history[-1]["accuracy"], ledger)


def _epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Return a seed that a resumed training finds again, and that no other epoch or rank has."""
    return ((seed * 1_000_003 + epoch) * 1_000_003 + rank) % 2**63


def _as_is(batch: Any) -> Any:
    return batch
