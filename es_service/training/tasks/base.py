"""The contract of a task: all that training needs of a problem, and nothing about how it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from es_service import errors
from es_service.selection.settings import as_integer, make_plain
from es_service.training.settings import OF_THE_TASK, TrainSettings

__all__ = ["Samples", "Task", "TaskDefaults"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TaskDefaults:
    """Settings that a task was tuned with, for a meta-batch of 2 workers; a caller may override each.

    Args:
        epochs: passes over the train set.
        batch_size: B, the meta-batch of one worker.
        learning_rate: the highest of the schedule.
        momentum: of SGD.
        weight_decay: see `training.settings.TrainSettings`, as for those below.
        optimizer: one of `OPTIMIZERS`.
        schedule: one of `SCHEDULES`.
        warm_up: share of the training in which the learning rate rises.
        backward_cost: forward passes that a backward pass counts as, in the cost of a run; None measures it.

    Raises:
        ConfigError: a value outside its domain.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    schedule: str = "cosine"
    warm_up: float = 0.2
    backward_cost: float | None = 2.0

    def __post_init__(self) -> None:
        make_plain(self)
        as_integer("epochs", self.epochs, least=1)
        as_integer("batch_size", self.batch_size, least=1)
        TrainSettings(momentum=self.momentum, **{name: getattr(self, name) for name in OF_THE_TASK})
        if self.backward_cost is not None and not self.backward_cost > 0:
            raise errors.ConfigError(f"backward_cost must be above 0, got {self.backward_cost}")

    def check_optimizer(self, optimizer: str | None, learning_rate: float | None) -> None:
        """Raise ConfigError where another optimizer than the task's is asked for without a learning rate for it."""
        if optimizer not in (None, self.optimizer) and learning_rate is None:
            raise errors.ConfigError(
                f"the task's learning rate {self.learning_rate} is one for {self.optimizer}: with --optimizer "
                f"{optimizer} give --learning-rate too"
            )


class Samples(Protocol):
    """A map-style data set that hands out whole batches, as torch's DataLoader asks for them.

    The sample of an id is always the same, bit for bit. With a DataLoader, `collate_fn` has nothing left to do.
    """

    def __len__(self) -> int:
        """Return n: ids are 0 .. n-1."""
        ...

    def __getitems__(self, ids: Sequence[int]) -> Any:
        """Return the collated batch of these ids, in this order, on the CPU; IndexError for an id outside [0, n)."""
        ...


class Task(Protocol):
    """A problem to train on.

    A batch is whatever `train_set` returns and `training.batches` can take apart; only the task looks inside.
    `tasks.supervised` has all of this for the usual classification and regression.

    A task may also offer `preview(sample_id) -> bytes | str`, a sample of the train set as people see it: a PNG file or
    a text. The dashboard shows it; `png.encode_png` makes a PNG of an array.

    A task may also offer:

    - `augment(batch, ids_B, epoch, seed) -> batch`: another view of the samples int64[B] of a batch of the train set,
      on whatever device it is. The loader calls it once for a batch, so that what is scored is what is trained on. What
      it draws follows from the sample's id, the epoch and the seed of the training alone.
    - `left_out`: `tables.left_out.LeftOut`, what of the files is not trained on; it goes into the result.
    - `load(ids_m)`: reads these samples of the train set, int64[m], ahead; `build_task` calls it once, with those that
      are left after limits and the like. It raises what is wrong with them; no others are asked for after it.
    - `weights(batch) -> float32[B]`, a numpy array: what each sample counts for beside the others of its mini-batch.
      The step then minimises sum(weights·scale·losses) / sum(weights) over the mini-batches of all ranks. Scores stay
      the losses.
    - `tokens`: int64[n], the tokens of each sample of the train set; the ledger then counts them too.
    - `metric_name`: what the metric is called that the task is judged by, the mean of `metric` unless there are
      `statistics`; "accuracy" where there is none. Higher is better.
    - `statistics(outputs, batch) -> float[B, K]` and `metric_of(sums_K, num) -> float`, for a metric that is no mean
      over samples: the sums over the held-out samples, from which the metric follows.
    - `final_metrics(model, ids, to_device) -> dict[str, (sum, count)]`: metrics that are too dear for every epoch, as
      sums over these held-out samples; asked for once, at the end of training, each rank for its share of them.

    - `proxies: Mapping[str, Callable[[], torch.nn.Module]]`: functions that make smaller models of the same inputs and
      outputs, by name, for scorers to run: `es-service train --scorers 1 --proxy NAME`.

    A task with labels may also offer `relabel(batch, labels_B) -> batch`, the same batch with other labels int64[B]:
    then `tasks.derived` can add label noise to it. The tasks made there also have `corrupted`, bool[n] or None: whether
    each label was changed.
    """

    @property
    def name(self) -> str:
        """What the task is called in results."""
        ...

    @property
    def train_set(self) -> Samples:
        """What is trained on; its positions are the sample ids."""
        ...

    @property
    def held_out(self) -> Samples:
        """What the metric is measured on."""
        ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Labels int64[n] of the train set, or None where a sample has no single label, as in regression."""
        ...

    @property
    def held_out_labels(self) -> NDArray[np.int64] | None:
        """Labels int64[m] of `held_out`, or None where `labels` is."""
        ...

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """What the labels 0, 1, … mean, or None."""
        ...

    @property
    def defaults(self) -> TaskDefaults:
        """Settings the task was tuned with."""
        ...

    def build_model(self) -> torch.nn.Module:
        """Return a new model on the CPU; its weights come from torch's global generator, which the caller seeds."""
        ...

    def inputs(self, batch: Any) -> Any:
        """Return what goes into the model: outputs = model(task.inputs(batch))."""
        ...

    def losses(self, outputs: Any, batch: Any) -> torch.Tensor:
        """Return float[B], one differentiable loss per sample."""
        ...

    def signals(self, outputs: Any, batch: Any) -> dict[str, torch.Tensor]:
        """Return further signals of each sample that a selection method may ask for, each float[B]; no gradient needed.

        Any of "correct" (1 for a right prediction, 0 for a wrong one), "confidence" (the largest softmax probability
        over the classes) and "grad_norm" (an upper bound of the norm of the gradient of its loss).
        """
        ...

    def metric(self, outputs: Any, batch: Any) -> torch.Tensor:
        """Return float[B] or bool[B]; the mean over `held_out` is what results call accuracy.

        Of a classification that is whether each prediction is right; of a regression 1 - squared error / variance of
        the held-out targets, so that the mean is R².
        """
        ...
