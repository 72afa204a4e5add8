"""Models of transformers that classify texts: from a folder, with their tokenizers, their inputs and their limits."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from es_service import errors
from es_service.training.tasks.folders import ModelFolder
from es_service.training.tasks.text.sequences import Encoded, with_adamw

__all__ = ["Encoder"]

_HEAD = "ForSequenceClassification"
_DEFAULT_LENGTH = 512  # where the model could take more: memory grows with it
_NAMED = 3


class Encoder:
    """The model in a folder, with a head for the classes.

    A folder that has a head already keeps it. Another one, e.g. of an encoder, gets a new head; one with config.json
    and a tokenizer alone starts from scratch.

    Args:
        folder: of the model.
        num_classes: C.
        max_length: tokens of a sample; None for the model's limit, at most 512.

    Raises:
        ConfigError: the head has fewer classes, or `max_length` is beyond the model's limit.
        DataError: the folder has no model for this, no tokenizer, or damaged files.
    """

    def __init__(self, folder: ModelFolder, num_classes: int, max_length: int | None) -> None:
        self._folder = folder
        self._models = folder.library.AutoModelForSequenceClassification
        self._config = folder.load("config.json", folder.library.AutoConfig.from_pretrained)
        if folder.has_weights and any(one.endswith(_HEAD) for one in self._config.architectures or ()):
            self._check_head(num_classes)
        else:
            self._config.num_labels = num_classes
        self._tokenizer = folder.tokenizer()
        self.pad = self._padding()
        self._config.pad_token_id = self.pad
        with torch.device("meta"):
            outline = self._from_scratch()
        self.names = self._names(outline)
        self.limit = self._limit(outline, max_length)
        self._num_words = getattr(outline.get_input_embeddings(), "num_embeddings", None)
        epochs, learning_rate = (3, 5e-5) if folder.has_weights else (10, 5e-4)
        self.defaults = with_adamw(epochs=epochs, batch_size=32, learning_rate=learning_rate)
        if folder.has_weights:
            self._check_weights()

    def encode(self, first: Sequence[str], second: Sequence[str] | None) -> Iterator[Encoded]:
        """See `Reader`; DataError where the model has no embedding for a token."""
        whole = self._tokens(first, second)
        long = [row for row, tokens in enumerate(whole["input_ids"]) if len(tokens) > self.limit]
        cut = {}
        if long:
            of_long = [None if texts is None else [texts[row] for row in long] for texts in (first, second)]
            shortened = self._tokens(*of_long, truncation=True, max_length=self.limit)
            cut = {row: _row(shortened, index) for index, row in enumerate(long)}
        for row in range(len(first)):
            tokens, types = cut.get(row) or _row(whole, row)
            if self._num_words is not None and max(tokens, default=0) >= self._num_words:
                raise errors.DataError(
                    f"--model {self._folder.name}: its tokenizer makes the token {max(tokens)} of {first[row][:60]!r}, "
                    f"but its model has {self._num_words} embeddings: model and tokenizer do not belong together"
                )
            yield Encoded(tokens, types, row in cut)

    def build_model(self) -> nn.Module:
        """See `Reader`."""
        return _Logits(self._pretrained()[0] if self._folder.has_weights else self._from_scratch())

    def _tokens(self, first: Any, second: Any, **settings: Any) -> Mapping[str, list[list[int]]]:
        found: Mapping[str, list[list[int]]] = self._tokenizer(
            list(first), second and list(second), return_token_type_ids=True, verbose=False, **settings
        )
        return found

    def _from_scratch(self) -> Any:
        def make(_: str, **__: Any) -> Any:
            return self._models.from_config(copy.deepcopy(self._config), dtype=torch.float32)

        return self._folder.load("a model for it", make)

    def _pretrained(self) -> tuple[Any, Mapping[str, Any]]:
        """Return the model, and which of its weights the folder lacks or has in other sizes."""
        found: tuple[Any, Mapping[str, Any]] = self._folder.load(
            "its weights",
            self._models.from_pretrained,
            config=copy.deepcopy(self._config),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        return found

    def _check_head(self, num_classes: int) -> None:
        if num_classes > self._config.num_labels:
            raise errors.ConfigError(
                f"--model {self._folder.name} has a head of {self._config.num_labels} classes, and the data have "
                f"{num_classes}: take the folder of the encoder that it was made of, or other data"
            )

    def _check_weights(self) -> None:
        with torch.random.fork_rng(devices=[]):
            model, report = self._pretrained()
        body = f"{model.base_model_prefix}."  # without the head
        for name, found, needed in sorted(one for one in report["mismatched_keys"] if one[0].startswith(body)):
            raise errors.DataError(
                f"--model {self._folder.name}: {name} has the shape {list(found)}, and by config.json {list(needed)}"
            )
        missing = sorted(name for name in report["missing_keys"] if name.startswith(body))
        num = sum(name.startswith(body) for name in model.state_dict())
        if 2 * len(missing) > num:
            raise errors.DataError(
                f"--model {self._folder.name} lacks {len(missing)} of the {num} weights of a {type(model).__name__}, "
                f"which config.json says it is: {missing[0]}, …"
            )
        if missing:
            warnings.warn(
                f"--model {self._folder.name} lacks {len(missing)} weights, which start at random: "
                f"{', '.join(missing[:_NAMED])}{', …' if len(missing) > _NAMED else ''}",
                errors.DataWarning,
                stacklevel=2,
            )

    def _padding(self) -> int:
        for found in (self._config.pad_token_id, self._tokenizer.pad_token_id, self._tokenizer.eos_token_id):
            if found is not None:
                return int(found)
        return 0

    def _names(self, outline: nn.Module) -> tuple[str, ...]:
        are_usual = "token_type_ids" in self._tokenizer.model_input_names
        has_types = getattr(self._config, "type_vocab_size", 2 if are_usual else 0) > 1
        names = ("attention_mask", "token_type_ids") if has_types else ("attention_mask",)
        taken = inspect.signature(outline.forward).parameters
        return tuple(name for name in names if name in taken)

    def _limit(self, outline: nn.Module, max_length: int | None) -> int:
        limits = [int(self._tokenizer.model_max_length)]
        places = getattr(self._config, "max_position_embeddings", None)
        if isinstance(places, int) and places > 0:
            tables = [
                one for one in outline.modules() if isinstance(one, nn.Embedding) and one.num_embeddings == places
            ]
            first = max((one.padding_idx + 1 for one in tables if one.padding_idx is not None), default=0)
            limits.append(places - first)  # of RoBERTa the first places are not used
        if max_length is not None and max_length > min(limits):
            raise errors.ConfigError(
                f"--max-length {max_length}: --model {self._folder.name} takes at most {min(limits)} tokens"
            )
        return max_length or min(*limits, _DEFAULT_LENGTH)


class _Logits(nn.Module):
    """A model of transformers as one that takes a dict and gives logits float[B, C]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self.net(**inputs).logits
        return logits


def _row(encoded: Mapping[str, list[list[int]]], row: int) -> tuple[list[int], list[int]]:
    return encoded["input_ids"][row], encoded["token_type_ids"][row]
