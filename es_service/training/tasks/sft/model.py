"""A causal language model that gives the losses of answers, without ever holding the logits of all tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from es_service.training import batches
from es_service.training.losses.classification import IGNORE_INDEX, each_cross_entropy

__all__ = ["AnswerModel", "Answers"]

_MOST_TOKENS = 1 << 15  # of a pass without gradient
_MOST_LOGITS = 1 << 28
_SQRT_2 = math.sqrt(2)


class Answers(NamedTuple):
    """How well a model predicts the answers of B sequences.

    Args:
        losses: float32[B], the mean cross entropy of an answer's tokens.
        accuracies: float32[B], the share of an answer's tokens that are the most likely ones.
        grad_norms: float32[B], the mean of √2·(1 - p) over an answer's tokens, p being the probability of the token: no
            gradient of its cross entropy with respect to the logits, softmax(z) - onehot(y), is longer than that.
    """

    losses: torch.Tensor
    accuracies: torch.Tensor
    grad_norms: torch.Tensor


class AnswerModel(torch.nn.Module):
    """Takes batches of `Sequences` and returns `Answers`.

    The head is applied where an answer's token is predicted, and nowhere else: the logits are [B, A, V] instead of
    [B, T, V], with A the tokens of the longest answer. Padding behind the longest sequence of a batch is cut off; what
    is left of it needs no mask, for in a causal model no token sees what is behind it. Without gradient a batch goes
    through in passes of at most 2^15 tokens and 2^28 logits, sequences of similar length together; so a meta-batch is
    scored, and held-out samples are evaluated, in memory that does not grow with their number.

    Args:
        language_model: of transformers, with a head that it applies to the hidden states of all tokens.
    """

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.language_model = language_model
        self._places: torch.Tensor | None = None
        head = language_model.get_output_embeddings()
        self._vocabulary = int(head.weight.shape[0])
        head.register_forward_pre_hook(self._at_places)

    def forward(self, batch: dict[str, Any]) -> Answers:
        """Return how well the answers of a batch are predicted; see `Sequences` for what it holds."""
        if torch.is_grad_enabled():
            return self._answers(batch, batch["lengths"])
        order = np.argsort(-batch["lengths"][:, 0], kind="stable")
        parts = [
            self._answers(batches.take(batch, positions), batch["lengths"][positions])
            for positions in self._passes(order, batch["lengths"])
        ]
        back = batches.moved(torch.from_numpy(np.argsort(order, kind="stable")), batch["tokens"].device)
        return Answers(*(torch.cat(of_parts)[back] for of_parts in zip(*parts, strict=True)))

    def gradient_checkpointing_enable(self) -> None:
        """Keep less for the backward pass, and compute it again there."""
        model = self.language_model
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)  # its new name
        enable({"use_reentrant": False})

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile the language model in place; what cuts batches around it stays as it is."""
        self.language_model.compile(*args, **options)

    def _passes(self, order: NDArray[np.int64], lengths_B: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yield the positions that go through together; the sequences of `order` get shorter and shorter."""
        start = 0
        while start < len(order):
            longest, most = int(lengths_B[order[start], 0]), int(lengths_B[order[start:], 1].max())
            num = max(1, min(_MOST_TOKENS // longest, _MOST_LOGITS // (most * self._vocabulary)))
            yield order[start : start + num]
            start += num

    def _answers(self, batch: dict[str, Any], lengths_B: NDArray[np.int64]) -> Answers:
        longest, most = lengths_B.max(axis=0).tolist()
        targets = batch["targets"][:, :most]
        self._places = batch["places"][:, :most]
        try:
            logits = self.language_model(input_ids=batch["tokens"][:, :longest], use_cache=False).logits
        finally:
            self._places = None
        each = each_cross_entropy(logits, targets, 0.0)
        nums = (targets != IGNORE_INDEX).sum(dim=1)
        with torch.no_grad():
            accuracies = (logits.argmax(dim=-1) == targets).sum(dim=1) / nums
            grad_norms = -_SQRT_2 * torch.expm1(-each).sum(dim=1) / nums
        return Answers(each.sum(dim=1) / nums, accuracies, grad_norms)

    def _at_places(self, _: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Keep, of the hidden states float[B, T, H] that go into the head, those at the places."""
        if self._places is None:
            return None
        hidden, *others = args
        return (hidden.gather(1, self._places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])), *others)
