"""The two usual kinds of task: classification and regression, of batches that are inputs and targets.

    train, held_out = TensorSet(x, y), TensorSet(more_x, more_y)
    task = Classification(name="mine", train_set=train, held_out=held_out, model=build_net, defaults=TaskDefaults(…))

For data too large for memory write a class with the attributes of `TargetedSamples`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from es_service import errors
from es_service.training import batches, losses, signals
from es_service.training.tasks import class_metrics
from es_service.training.tasks.base import Samples, TaskDefaults

__all__ = ["Batch", "Classification", "Regression", "TargetedSamples", "TensorSet"]


class Batch(NamedTuple):
    """A batch of B samples.

    `inputs` is what the model takes: a tensor with B rows, or dicts, lists and tuples of such. `targets` are the
    labels int64[B] of a classification or the numbers float32[B] of a regression.
    """

    inputs: Any
    targets: torch.Tensor


class TargetedSamples(Samples, Protocol):
    """Samples whose targets are known in advance; their batches are pairs (inputs, targets), `Batch` or any tuple."""

    @property
    def targets_n(self) -> NDArray[Any]:
        """Labels int64[n] or numbers float32[n]."""
        ...


class TensorSet:
    """Samples in memory.

    Args:
        inputs_n: a tensor with a row for each of n samples, or dicts, lists and tuples of such.
        targets_n: labels int64[n], or numbers float32[n].

    Raises:
        ShapeError: there are not as many targets as inputs, or more than one for each.
    """

    def __init__(self, inputs_n: Any, targets_n: torch.Tensor | NDArray[Any]) -> None:
        self._targets_n = torch.as_tensor(targets_n)
        num = batches.batch_length(inputs_n)
        if self._targets_n.shape != (num,):
            raise errors.ShapeError(
                f"targets of shape {tuple(self._targets_n.shape)} for {num} samples: they must be ({num},)"
            )
        self.inputs_n = inputs_n

    @property
    def targets_n(self) -> NDArray[Any]:
        """All targets, in the order of the ids."""
        return self._targets_n.numpy()

    def __len__(self) -> int:
        return len(self._targets_n)

    def __getitems__(self, ids: Sequence[int]) -> Batch:
        """Return the batch of these ids, each in [0, n), in this order; IndexError for one outside."""
        try:
            inputs, targets = batches.take((self.inputs_n, self._targets_n), ids)
        except errors.InputError as error:
            raise IndexError(str(error)) from None
        return Batch(inputs, targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Supervised:
    """What both kinds of task share."""

    name: str
    train_set: TargetedSamples
    held_out: TargetedSamples
    model: Callable[[], torch.nn.Module]
    defaults: TaskDefaults
    preview: Callable[[int], bytes | str] | None = None
    augment: Callable[[Batch, NDArray[np.int64], int, int], Batch] | None = None
    proxies: Mapping[str, Callable[[], torch.nn.Module]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("preview", "augment"):  # where none was given, a method that a subclass has counts
            if getattr(self, name) is None:
                object.__delattr__(self, name)

    def build_model(self) -> torch.nn.Module:
        """Return a new model on the CPU."""
        return self.model()

    def inputs(self, batch: Any) -> Any:
        """Return the first of the pair."""
        return batch[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(_Supervised):
    """Each sample is of one of C classes, and the model gives logits float[B, C].

    Args:
        name: what the task is called in results.
        train_set: what is trained on.
        held_out: what accuracy is measured on.
        model: makes a new model, its weights from torch's global generator.
        defaults: settings for it.
        preview: returns a sample of the train set, by its id, as a PNG file or a text; None where it cannot be shown.
        augment: returns another view of a batch; see `Task`.
        proxies: functions that make smaller models, by name, for scorers to run.
        label_names: what the labels 0 .. C-1 mean, if there is a name for it.
        judged_by: the metric that results are judged by: "accuracy", or one of `class_metrics.METRICS`.

    Raises:
        DataError: the targets of one of the sets are not labels int64[n], or one of them has no name.
    """

    label_names: tuple[str, ...] | None = None
    judged_by: str = "accuracy"

    def __post_init__(self) -> None:
        super().__post_init__()
        for part, samples in (("train_set", self.train_set), ("held_out", self.held_out)):
            check_labels(part, samples.targets_n, len(samples), self.label_names)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels int64[n] of the train set."""
        return self.train_set.targets_n

    @property
    def held_out_labels(self) -> NDArray[np.int64]:
        """Labels int64[m] of the held-out samples."""
        return self.held_out.targets_n

    def losses(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return the cross entropies float32[B] of logits float[B, C]."""
        return losses.cross_entropy(outputs, batch[1])

    def signals(self, outputs: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        """Return correct float32[B] (0 or 1), confidence float32[B] and grad_norm float32[B]."""
        return {
            "correct": self.metric(outputs, batch).float(),
            "confidence": signals.confidence(outputs),
            "grad_norm": signals.cross_entropy_grad_norm(outputs, batch[1]),
        }

    def metric(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return bool[B], whether the largest logit is the label's."""
        losses.check_outputs("logits", outputs)
        is_right: torch.Tensor = outputs.argmax(dim=1) == batch[1]
        return is_right

    @property
    def metric_name(self) -> str:
        """The metric that results are judged by; a subclass with `statistics` of its own names its own."""
        return self.judged_by

    @property
    def statistics(self) -> Callable[[torch.Tensor, Any], torch.Tensor] | None:
        """What the metric follows from, of each sample; None where it is a mean over samples."""
        return class_metrics.counts if self.judged_by in class_metrics.METRICS else None

    @property
    def metric_of(self) -> Callable[[Any, int], float] | None:
        """The metric as a function of the sums of `statistics` and the number of samples."""
        return class_metrics.METRICS.get(self.judged_by)

    def check_logits(self, logits: Any) -> None:
        """Raise DataError where a label of either set is none of the classes that logits float[B, C] have.

        Nothing is checked where a subclass has another loss: its outputs may mean something else. ShapeError where they
        are not a tensor.
        """
        if type(self).losses is not Classification.losses:
            return
        losses.check_outputs("logits", logits)
        if logits.ndim != 2:
            return  # for `losses` to refuse
        num_classes = logits.shape[-1]
        for part, labels_n in (("train_set", self.labels), ("held_out", self.held_out_labels)):
            outside = np.flatnonzero(labels_n >= num_classes)
            if outside.size:
                others = f", as have {outside.size - 1} further samples" if outside.size > 1 else ""
                from_1 = "; labels count from 0, and these begin at 1" if labels_n.min() == 1 else ""
                raise errors.DataError(
                    f"sample {outside[0]} of the {part} has the label {labels_n[outside[0]]}{others}, but the model "
                    f"gives logits for {num_classes} classes, 0 .. {num_classes - 1}{from_1}: correct the labels, or "
                    "let the model's last layer have as many outputs as there are classes"
                )

    def relabel(self, batch: Any, labels_B: torch.Tensor) -> Batch:
        """Return the batch with other labels int64[B]."""
        return Batch(batch[0], labels_B)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(_Supervised):
    """Each sample has a number to predict, and the model gives float[B]; the loss is the squared error.

    Arguments are those of `Classification`, less the names of labels.

    Raises:
        DataError: the targets of one of the sets are not finite float32[n], or those held out are all the same.
    """

    labels = None
    held_out_labels = None
    label_names = None
    metric_name = "r2"

    def __post_init__(self) -> None:
        super().__post_init__()
        for part, samples in (("train_set", self.train_set), ("held_out", self.held_out)):
            targets_n = samples.targets_n
            if targets_n.dtype != np.float32 or targets_n.shape != (len(samples),) or not np.isfinite(targets_n).all():
                raise errors.DataError(
                    f"targets of the {part} must be finite float32[{len(samples)}], one number for each sample, "
                    f"got {targets_n.dtype}{list(targets_n.shape)}"
                )
        if not self._variance() > 0:
            raise errors.DataError("the held-out targets are all the same: R² is undefined")

    def _variance(self) -> float:
        return float(self.held_out.targets_n.var(dtype=np.float64))

    def losses(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return the squared errors float32[B] of predictions float[B]."""
        return losses.squared_error(outputs, batch[1])

    def signals(self, outputs: torch.Tensor, batch: Any) -> dict[str, torch.Tensor]:
        """Return grad_norm float32[B], 2·|prediction - target|."""
        return {"grad_norm": signals.squared_error_grad_norm(outputs, batch[1])}

    def metric(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        """Return float32[B], 1 - squared error / variance of the held-out targets: its mean over these is R²."""
        return 1.0 - self.losses(outputs, batch) / self._variance()


def check_labels(part: str, labels_n: Any, num: int, label_names: tuple[str, ...] | None) -> None:
    """Raise DataError unless these are labels int64[num] of at least 0, and below the number of names."""
    if not isinstance(labels_n, np.ndarray) or labels_n.dtype != np.int64 or labels_n.shape != (num,):
        found = (
            f"{labels_n.dtype}{list(labels_n.shape)}" if isinstance(labels_n, np.ndarray) else type(labels_n).__name__
        )
        raise errors.DataError(f"labels of the {part} must be a numpy array int64[{num}], got {found}")
    end = len(label_names) if label_names is not None else 2**63
    outside = np.flatnonzero((labels_n < 0) | (labels_n >= np.uint64(end)))
    if outside.size:
        known = "" if label_names is None else f": there are only 0 .. {end - 1}"
        raise errors.DataError(f"label {labels_n[outside[0]]} of sample {outside[0]} of the {part} is outside{known}")
