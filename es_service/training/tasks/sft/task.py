"""Supervised fine-tuning as a task: what is learnt of a sequence is its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from es_service.training.tables.left_out import LeftOut
from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.sft.encoding import Part
from es_service.training.tasks.sft.generation import final_answer, generate
from es_service.training.tasks.sft.model import Answers

__all__ = ["FineTuning"]


class FineTuning:
    """Fine-tuning of a causal language model; see `Task` for the meaning of each part.

    A sample's loss is the mean cross entropy of its answer's tokens, and so is its score: a sum would make of every
    long answer a hard one. What a sample counts for in a step are its answer's tokens where `per_token` is set.

    Args:
        train, held_out: the samples.
        tokenizer: of transformers.
        ends: tokens that end an answer.
        build_model: returns a new `AnswerModel`.
        defaults: settings of the training.
        per_token: whether each token counts alike in a step, instead of each sequence.
        negative_loss: whether the metric is that, instead of the token accuracy.
        left_out: what of the files is not trained on.
    """

    name = "sft"
    labels = None
    held_out_labels = None
    label_names = None

    def __init__(
        self,
        *,
        train: Part,
        held_out: Part,
        tokenizer: Any,
        ends: tuple[int, ...],
        build_model: Callable[[], torch.nn.Module],
        defaults: TaskDefaults,
        per_token: bool,
        negative_loss: bool,
        left_out: LeftOut,
    ) -> None:
        self.left_out = left_out
        self.train_set, self.held_out = train.sequences, held_out.sequences
        self.build_model, self.defaults = build_model, defaults
        self._tokenizer, self._ends, self._expected = tokenizer, ends, held_out.answers
        self.tokens: NDArray[np.int64] = self.train_set.lengths_n[:, 0]
        self.weights: Callable[[Any], NDArray[np.float32]] | None = _num_answer_tokens if per_token else None
        self.metric_name = "negative_loss" if negative_loss else "token_accuracy"
        self.statistics = _negative_losses if negative_loss else None
        self.metric_of: Callable[[Any, int], float] | None = _mean if negative_loss else None

    def preview(self, sample_id: int) -> str:
        """Return the text of a sample of the train set."""
        return str(self._tokenizer.decode(self.train_set.tokens_of(sample_id).tolist()))

    def inputs(self, batch: Any) -> Any:
        """Return the batch."""
        return batch

    def losses(self, outputs: Answers, batch: Any) -> torch.Tensor:  # noqa: ARG002 - as in `Task`
        """Return float32[B], the mean cross entropy of each answer's tokens."""
        return outputs.losses

    def signals(self, outputs: Answers, batch: Any) -> dict[str, torch.Tensor]:  # noqa: ARG002
        """Return float32[B] each: whether at least half of the answer's tokens are predicted right, the geometric mean
        of their probabilities, and a bound of the gradient with respect to the logits.
        """
        return {
            "correct": (outputs.accuracies >= 0.5).float(),
            "confidence": torch.exp(-outputs.losses.detach()),
            "grad_norm": outputs.grad_norms,
        }

    def metric(self, outputs: Answers, batch: Any) -> torch.Tensor:  # noqa: ARG002
        """Return float32[B], the share of each answer's tokens that are predicted right from what is before them."""
        return outputs.accuracies

    def final_metrics(
        self, model: torch.nn.Module, ids: Any, to_device: Callable[[Any], Any]
    ) -> Mapping[str, tuple[float, int]]:
        """Return exact_match: how many answers to the prompts of these held-out samples are right, and of how many.

        A sample that was cut before its last answer is left out. An answer may have as many tokens as the longest of
        all held-out samples.
        """
        lengths_n, prompts_n = self.held_out.lengths_n[:, 0], self.held_out.prompt_lengths_n
        asked = [int(one) for one in ids if prompts_n[one] < lengths_n[one]]
        made = generate(
            model.language_model,
            [self.held_out.tokens_of(one)[: prompts_n[one]] for one in asked],
            most=int((lengths_n - prompts_n).max()),
            ends=self._ends,
            to_device=to_device,
        )
        texts = self._tokenizer.batch_decode([one.tolist() for one in made], skip_special_tokens=True)
        pairs = zip(texts, (self._expected[one] for one in asked), strict=True)
        num_right = sum(final_answer(text) == final_answer(expected) for text, expected in pairs)
        return {"exact_match": (float(num_right), len(asked))}


def _num_answer_tokens(batch: Any) -> NDArray[np.float32]:
    """Return float32[B], how many tokens each answer of a batch has."""
    nums: NDArray[np.float32] = batch["lengths"][:, 1].astype(np.float32)
    return nums


def _negative_losses(outputs: Answers, batch: Any) -> torch.Tensor:  # noqa: ARG001
    return -outputs.losses.unsqueeze(1)


def _mean(sums: NDArray[np.float64], num: int) -> float:
    return float(sums[0]) / num
