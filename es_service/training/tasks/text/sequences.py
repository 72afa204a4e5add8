"""Texts as sequences of tokens: held one behind the other, handed out padded to the longest of a batch."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from es_service.training.tasks.base import TaskDefaults
from es_service.training.tasks.supervised import Batch

__all__ = ["LENGTHS", "Encoded", "Reader", "Sequences", "TextSet", "with_adamw"]

LENGTHS = "lengths"
"""Name in a batch of int64[B], the tokens of each sample; it stays on the CPU."""


def with_adamw(*, epochs: int, batch_size: int, learning_rate: float) -> TaskDefaults:
    """Return the settings that all models of texts have in common, with these."""
    return TaskDefaults(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=0.01,
        optimizer="adamw",
        schedule="linear",
        warm_up=0.1,
        backward_cost=None,
    )


class Encoded(NamedTuple):
    """A sample as tokens; types say which text of a pair each is of, None where that is one text; was it truncated?"""

    tokens: Sequence[int]
    types: Sequence[int] | None
    is_cut: bool


class Reader(Protocol):
    """What a model makes of texts, and the model.

    Attributes:
        defaults: settings that suit it.
        pad: token that fills up a batch.
        names: what the model takes beside "input_ids": "attention_mask", and "token_type_ids" where samples have types.
        limit: tokens of a sample; what is longer is truncated, the longer text of a pair first.
    """

    defaults: TaskDefaults
    pad: int
    names: tuple[str, ...]
    limit: int

    def encode(self, first: Sequence[str], second: Sequence[str] | None) -> Iterator[Encoded]:
        """Yield each text, or each pair of texts, as at most `limit` tokens."""
        ...

    def build_model(self) -> torch.nn.Module:
        """Return a new model on the CPU, which takes a dict of tensors and gives logits float[B, C]."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sequences:
    """n sequences of tokens, one behind the other: 4 bytes a token, 5 with types.

    Attributes:
        starts: int64[n + 1], where each begins, and the end.
        tokens: int32[starts[n]].
        types: int8[starts[n]], or None where all are 0.
        num_cut: how many were truncated.
    """

    starts: NDArray[np.int64]
    tokens: NDArray[np.int32]
    types: NDArray[np.int8] | None
    num_cut: int

    @classmethod
    def of(cls, encoded: Iterable[Encoded]) -> Sequences:
        """Collect the sequences of samples."""
        starts, tokens, types, num_cut = array("q", [0]), array("i"), array("b"), 0
        for one in encoded:
            tokens.extend(one.tokens)
            types.extend(one.types if one.types is not None else bytes(len(one.tokens)))
            starts.append(len(tokens))
            num_cut += one.is_cut
        types_all = np.array(types, dtype=np.int8)
        return cls(
            starts=np.array(starts, dtype=np.int64),
            tokens=np.array(tokens, dtype=np.int32),
            types=types_all if types_all.any() else None,
            num_cut=num_cut,
        )

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens int64[n] of each."""
        return np.diff(self.starts)


class TextSet:
    """Samples of text with labels.

    Args:
        sequences: n of them.
        labels_n: int64[n].
        reader: that made them.
        order: int64[m], which of them the samples 0 .. m-1 are; None for all, as they are.
    """

    def __init__(
        self,
        sequences: Sequences,
        labels_n: NDArray[np.int64],
        reader: Reader,
        order: NDArray[np.int64] | None = None,
    ) -> None:
        self._sequences, self._pad, self._names = sequences, reader.pad, reader.names
        self._order = np.arange(len(labels_n)) if order is None else order
        self._labels_n = labels_n[self._order]

    @property
    def targets_n(self) -> NDArray[np.int64]:
        """Labels int64[m]."""
        return self._labels_n

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens int64[m] of each sample."""
        return self._sequences.lengths[self._order]

    def __len__(self) -> int:
        return len(self._labels_n)

    def __getitems__(self, ids: Sequence[int]) -> Batch:
        """Return the batch of these ids, padded to the longest; IndexError for one outside [0, m).

        Its inputs are a dict: "input_ids" and what else the model takes, int64[B, T] tensors, and `LENGTHS`.
        """
        ids_B = np.asarray(ids, dtype=np.int64)
        if ids_B.size and ids_B.min() < 0:
            raise IndexError(f"sample id {ids_B.min()} is negative")
        held, rows_B = self._sequences, self._order[ids_B]
        starts_B = held.starts[rows_B]
        lengths_B = held.starts[rows_B + 1] - starts_B
        places = np.arange(lengths_B.max(initial=1))
        is_token = places < lengths_B[:, None]
        used = (starts_B[:, None] + places)[is_token]

        def padded(values: NDArray[Any], fill: int) -> torch.Tensor:
            filled = np.full(is_token.shape, fill, dtype=np.int64)
            filled[is_token] = values[used]
            return torch.from_numpy(filled)

        inputs: dict[str, Any] = {"input_ids": padded(held.tokens, self._pad)}
        if "attention_mask" in self._names:
            inputs["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
        if "token_type_ids" in self._names and held.types is not None:
            inputs["token_type_ids"] = padded(held.types, 0)
        return Batch({**inputs, LENGTHS: lengths_B}, torch.from_numpy(self._labels_n[ids_B]))
