"""Losses per sample from what a transformers model returns, also where a row holds several samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from es_service import errors
from es_service.training import losses, signals
from es_service.training.losses import IGNORE_INDEX
from es_service.training.observed import Signals

__all__ = ["LogitLosses", "UsersLosses"]


class UsersLosses:
    """The user's function (model, batch) -> losses[b], or signals by name."""

    def __init__(self, function: Callable[[Any, Any], Signals]) -> None:
        self._function = function

    def __call__(self, model: Any, batch: Any, counts: Sequence[int] | None) -> Signals:  # noqa: ARG002 - as below
        """Return the losses of a batch, float[b], or signals by name."""
        return self._function(model, batch)


class LogitLosses:
    """Losses per sample from a model's logits and the batch's labels.

    Labels of one integer per sample: cross entropy, and the signals that classifiers have. Of many: the mean over those
    that are not -100; of causal models the label behind each token. Of floats: by `problem_type`, binary cross entropy
    or squared error, their mean.

    Args:
        is_causal: the logits at a token are of the next one's label.
        is_multi_label: floats are probabilities.
        label_smoothing: share of the target that is spread over the classes.
        needs_labels: the model makes its decoder's inputs from the labels.
        names: signals that the selection goes by.
    """

    def __init__(
        self,
        *,
        is_causal: bool,
        is_multi_label: bool,
        label_smoothing: float,
        needs_labels: bool,
        names: Sequence[str],
    ) -> None:
        self._is_causal, self._is_multi_label = is_causal, is_multi_label
        self._label_smoothing, self._needs_labels, self._names = label_smoothing, needs_labels, names

    def __call__(self, model: Any, batch: Any, counts: Sequence[int] | None) -> Signals:
        """Return the losses of a batch, float[b]; see `of`."""
        return self.of(
            model(**{name: one for name, one in batch.items() if name != "labels" or self._needs_labels}), batch, counts
        )

    def of(self, outputs: Any, batch: Any, counts: Sequence[int] | None) -> Signals:
        """Return float[b], the loss of each sample, or signals by name.

        Args:
            outputs: of the model.
            batch: that went into it, with labels.
            counts: how many examples each sample holds; None where that is unknown.

        Raises:
            ConfigError: there are no logits or no labels.
            ShapeError: they do not belong together, or several samples share a row and nothing tells where each ends.
        """
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
        labels = batch.get("labels")
        if not isinstance(logits, torch.Tensor) or labels is None:
            raise errors.ConfigError(
                f"the model returns {', '.join(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__} "
                f"for a batch of {', '.join(batch)}, and losses per sample need logits and labels: pass losses=, a "
                "function (model, batch) -> losses[b]"
            )
        if labels.is_floating_point():
            return self._of_floats(logits, labels)
        if self._is_causal:
            return self._of_tokens(logits, labels, batch, counts)
        each = losses.cross_entropy(logits, labels, self._label_smoothing)
        if not self._names or labels.ndim > 1:
            return each
        known = {
            "correct": lambda: (logits.argmax(dim=1) == labels).float(),
            "confidence": lambda: signals.confidence(logits),
            "grad_norm": lambda: signals.cross_entropy_grad_norm(logits, labels),
        }
        return {"loss": each, **{name: known[name]() for name in self._names if name in known}}

    def _of_floats(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.ndim == labels.ndim + 1 and logits.shape[-1] == 1:
            logits = logits.squeeze(-1)
        return (losses.binary_cross_entropy if self._is_multi_label else losses.squared_error)(logits, labels)

    def _of_tokens(
        self, logits: torch.Tensor, labels: torch.Tensor, batch: Any, counts: Sequence[int] | None
    ) -> torch.Tensor:
        if "shift_labels" in batch:
            labels = batch["shift_labels"]
        else:
            logits, labels = logits[:, :-1], labels[:, 1:]
        if counts is None or (len(counts) == labels.shape[0] and max(counts) == 1):
            return losses.cross_entropy(logits, labels, self._label_smoothing)
        positions = batch.get("position_ids")
        if labels.shape[0] != 1 or positions is None or "shift_labels" in batch:
            raise errors.ShapeError(
                f"{sum(counts)} examples of {len(counts)} samples share {labels.shape[0]} row(s), and no position_ids "
                "tell where each ends: return position_ids from the collator (padding_free=True in TRL), or do not pack"
            )
        # Each token in a row of its own, for the loss of each; then their means over examples, and over samples.
        each = losses.cross_entropy(logits[0], labels[0], self._label_smoothing)
        begins = positions[0, 1:] <= positions[0, :-1]
        return _means(_example_means(each, labels[0] != IGNORE_INDEX, begins.cumsum(0), sum(counts)), counts)


def _example_means(each: torch.Tensor, is_counted: torch.Tensor, example: torch.Tensor, num: int) -> torch.Tensor:
    """Return float[num], the mean loss of each example's tokens; 0 of one without any that counts.

    Behind the examples only padding may come, each token of which starts an example of its own.
    """
    found = int(example[-1]) + 1
    if found < num or bool((is_counted & (example >= num)).any()):
        raise errors.ShapeError(
            f"position_ids restart for {found} examples, and the samples hold {num}: a collator must keep all of them, "
            "and each must have a token"
        )
    sums = each.new_zeros(found).index_add(0, example, each)
    counted = each.new_zeros(found).index_add(0, example, is_counted.to(each.dtype))
    return (sums / counted.clamp(min=1))[:num]


def _means(examples: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return float[b], the mean of each sample's examples."""
    if max(counts) == 1:
        return examples
    return torch.stack([part.mean() for part in examples.split(list(counts))])
