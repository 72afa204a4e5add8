"""Sequences of tokens in memory, and batches of them, padded at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from es_service.training.losses import IGNORE_INDEX

__all__ = ["Encoded", "Sequences"]


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence.

    Args:
        tokens: int32[T].
        is_answer: bool[T], which of them the model is to learn; never the first.
        prompt_length: tokens before the last answer.
    """

    tokens: NDArray[np.int32]
    is_answer: NDArray[np.bool_]
    prompt_length: int


class Sequences:
    """Sequences as samples; their positions are the ids.

    A batch is a dictionary of `tokens` int64[B, T], filled up with 0 behind each sequence; `places` int64[B, A], where
    the answers' tokens are predicted, which is one place before each; `targets` int64[B, A], these tokens, filled up
    with `IGNORE_INDEX`; and `lengths`, a numpy array int64[B, 2] of the tokens and the answer tokens of each sequence,
    which stays on the CPU, so that cutting padding off does not wait for the GPU.

    Args:
        sequences: at least one, each with an answer token at least.
    """

    def __init__(self, sequences: Sequence[Encoded]) -> None:
        self._tokens = np.concatenate([one.tokens for one in sequences])
        self._is_answer = np.concatenate([one.is_answer for one in sequences])
        self.prompt_lengths_n = np.array([one.prompt_length for one in sequences], dtype=np.int64)
        answers = [np.count_nonzero(one.is_answer) for one in sequences]
        self.lengths_n = np.array([[one.tokens.size for one in sequences], answers], dtype=np.int64).T.copy()
        self._starts = np.concatenate([[0], np.cumsum(self.lengths_n[:, 0])])

    def __len__(self) -> int:
        return len(self.lengths_n)

    @property
    def highest_token(self) -> int:
        """The highest of all tokens."""
        return int(self._tokens.max())

    def tokens_of(self, sample_id: int) -> NDArray[np.int64]:
        """Return int64[T], the tokens of one sequence."""
        return self._tokens[self._part(sample_id)].astype(np.int64)

    def __getitems__(self, ids: Sequence[int]) -> dict[str, Any]:
        """Return the batch of these ids, each in [0, n); IndexError for one outside."""
        ids_B = np.asarray(ids, dtype=np.int64)
        if ids_B.size and ids_B.min() < 0:
            raise IndexError(f"sample id {ids_B.min()} is negative")
        lengths_B = self.lengths_n[ids_B]
        longest, most_answers = lengths_B.max(axis=0, initial=1).tolist()
        tokens = np.zeros((ids_B.size, longest), dtype=np.int64)
        places = np.zeros((ids_B.size, most_answers), dtype=np.int64)
        targets = np.full((ids_B.size, most_answers), IGNORE_INDEX, dtype=np.int64)
        for row, sample_id in enumerate(ids_B.tolist()):
            part = self._part(sample_id)
            own, answers = self._tokens[part], np.flatnonzero(self._is_answer[part])
            tokens[row, : own.size] = own
            places[row, : answers.size] = answers - 1
            targets[row, : answers.size] = own[answers]
        whole = {"tokens": tokens, "places": places, "targets": targets}
        return {**{name: torch.from_numpy(one) for name, one in whole.items()}, "lengths": lengths_B}

    def _part(self, sample_id: int) -> slice:
        return slice(int(self._starts[sample_id]), int(self._starts[sample_id + 1]))
