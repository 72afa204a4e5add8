"""Texts as hashed words, and two small models of ours that read them; nothing is downloaded, no vocabulary is built.

The hash is CRC-32, which is the same everywhere. Token 0 is padding.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from es_service.training.tasks.text.sequences import Encoded, with_adamw

__all__ = ["NUM_BUCKETS", "BagOfWords", "Bow", "Tiny", "Transformer", "hashed"]

NUM_BUCKETS = 1 << 14
_WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
_START, _END = 1, 2  # tokens of `tiny`
_MOST_WORDS, _MOST_TOKENS = 512, 128


def hashed(words: Sequence[str], first: int = 1) -> list[int]:
    """Return the token in [first, NUM_BUCKETS) of each word."""
    return [first + zlib.crc32(word.encode()) % (NUM_BUCKETS - first) for word in words]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _shortened(first: list[int], second: list[int], most: int) -> bool:
    """Cut two lists in place to `most` entries together, the longer one first; return whether they were longer."""
    if len(first) + len(second) <= most:
        return False
    kept = min(len(first), max(most - len(second), most - most // 2))
    del first[kept:], second[most - kept :]
    return True


class Bow:
    """The model "bow": a bag of words. Those of the second text of a pair are other words than those of the first.

    Args:
        num_classes: C.
        max_length: words of a sample; None for 512.
    """

    defaults = with_adamw(epochs=8, batch_size=64, learning_rate=3e-3)
    pad = 0
    names: tuple[str, ...] = ()

    def __init__(self, num_classes: int, max_length: int | None) -> None:
        self._num_classes, self.limit = num_classes, max_length or _MOST_WORDS

    def encode(self, first: Sequence[str], second: Sequence[str] | None) -> Iterator[Encoded]:
        """See `Reader`."""
        for row, text in enumerate(first):
            words = hashed(_words(text))
            others = [] if second is None else hashed([f"2 {word}" for word in _words(second[row])])
            is_cut = _shortened(words, others, self.limit)
            yield Encoded(words + others, None, is_cut)

    def build_model(self) -> BagOfWords:
        """See `Reader`."""
        return BagOfWords(self._num_classes)


class Tiny:
    """The model "tiny": a transformer of two layers. A sample is start, words, end, and of a pair words, end again.

    Args:
        num_classes: C.
        max_length: tokens of a sample; None for 128.
    """

    defaults = with_adamw(epochs=10, batch_size=64, learning_rate=1e-3)
    pad = 0
    names: tuple[str, ...] = ("attention_mask", "token_type_ids")

    def __init__(self, num_classes: int, max_length: int | None) -> None:
        self._num_classes, self.limit = num_classes, max_length or _MOST_TOKENS

    def encode(self, first: Sequence[str], second: Sequence[str] | None) -> Iterator[Encoded]:
        """See `Reader`."""
        for row, text in enumerate(first):
            words = hashed(_words(text), _END + 1)
            others = [] if second is None else hashed(_words(second[row]), _END + 1)
            is_cut = _shortened(words, others, self.limit - (2 if second is None else 3))
            tokens, types = [_START, *words, _END], None
            if second is not None:
                types = [0] * len(tokens) + [1] * (len(others) + 1)
                tokens += [*others, _END]
            yield Encoded(tokens, types, is_cut)

    def build_model(self) -> Transformer:
        """See `Reader`."""
        return Transformer(self._num_classes, self.limit)


class BagOfWords(nn.Module):
    """The mean of the embeddings of a text's words, and a hidden layer.

    Takes {"input_ids": int64[B, T]}, or this tensor, 0 where there is no word; gives logits float[B, C].
    """

    _WIDTH = 64
    _GAIN = 10.0  # a mean passes on little of the gradient to each word: this makes up for it

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        width = self._WIDTH
        self.embedding = nn.EmbeddingBag(NUM_BUCKETS, width, mode="mean", padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return logits float[B, C]."""
        words = inputs if isinstance(inputs, torch.Tensor) else inputs["input_ids"]
        logits: torch.Tensor = self.head(self._GAIN * self.embedding(words))
        return logits


class Transformer(nn.Module):
    """Two layers of self-attention over hashed words, and the mean of what comes out.

    Takes {"input_ids", "attention_mask", and for pairs "token_type_ids": int64[B, T]}; gives logits float[B, C].
    """

    _WIDTH, _HEADS, _LAYERS, _DROPOUT = 128, 4, 2, 0.1

    def __init__(self, num_classes: int, max_length: int) -> None:
        super().__init__()
        width = self._WIDTH
        self.words = nn.Embedding(NUM_BUCKETS, width, padding_idx=0)
        self.places = nn.Embedding(max_length, width)
        self.types = nn.Embedding(2, width)
        for table in (self.words, self.places, self.types):
            nn.init.normal_(table.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, self._HEADS, 2 * width, self._DROPOUT, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, self._LAYERS, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return logits float[B, C]."""
        tokens, is_padding = inputs["input_ids"], inputs["attention_mask"] == 0
        states = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        if "token_type_ids" in inputs:
            states = states + self.types(inputs["token_type_ids"])
        states = self.layers(states, src_key_padding_mask=is_padding).masked_fill(is_padding.unsqueeze(2), 0)
        logits: torch.Tensor = self.head(states.sum(dim=1) / (~is_padding).sum(dim=1, keepdim=True))
        return logits
