"""Options of the tasks from files: which model, which columns, how a sample becomes an input. Nothing imports torch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from es_service import errors
from es_service.selection.settings import as_integer, check_names, make_plain, suggest
from es_service.storage.files import absolute

__all__ = ["MODELS", "TAKEN_BY", "TaskOptions"]

MODELS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"images": ("resnet18", "resnet50", "vit_tiny"), "text": ("bow", "tiny"), "sft": ()}
)
"""Names that `model` may have for each task; anything else is a folder."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TaskOptions:
    """Options of a task from files; None takes what the task takes by itself.

    Args:
        model: one of `MODELS`, or a folder that holds a model in Hugging Face's layout. Paths are made absolute.
        held_out: file or folder of the held-out samples, or the share in (0, 1) of the samples to hold out.
        label_column: column of the labels.
        image_column: column of the images.
        image_size: pixels of the square that images are scaled to, at most 4096.
        augment: "crop,flip", "crop", "flip" or "none".
        text_column: column of the text; two, separated by a comma, for pairs.
        prompt_column: column of the prompts.
        answer_column: column of the answers.
        messages_column: column of whole conversations, lists of {role, content}.
        max_length: tokens of a sequence; what is longer is truncated, and counted.
        lora: rank of the LoRA adapters that are trained instead of the model's own weights.
        lora_targets: comma-separated names of the modules that get adapters.
        loss_per: "sequence" weights every sequence alike, "token" every token.
        metric: name of the metric that verdicts go by.
        skip_broken: leave out samples that cannot be read, and count them, instead of raising.
        download: allow a model that is not a folder to be fetched from the Hugging Face hub.

    Raises:
        ConfigError: a value outside its domain.
    """

    model: str | None = None
    held_out: str | None = None
    label_column: str | None = None
    image_column: str | None = None
    image_size: int | None = None
    augment: Literal["crop,flip", "crop", "flip", "none"] | None = None
    text_column: str | None = None
    prompt_column: str | None = None
    answer_column: str | None = None
    messages_column: str | None = None
    max_length: int | None = None
    lora: int | None = None
    lora_targets: str | None = None
    loss_per: Literal["sequence", "token"] | None = None
    metric: str | None = None
    skip_broken: bool | None = None
    download: bool | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        named = [name for names in MODELS.values() for name in names]
        for name in ("model", "held_out"):
            value = getattr(self, name)
            if value is not None and value not in named and os.path.exists(value):
                object.__setattr__(self, name, absolute(value))
        for name, least, end in (("image_size", 8, 4097), ("max_length", 2, None), ("lora", 1, None)):
            if getattr(self, name) is not None:
                as_integer(name, getattr(self, name), least=least, end=end)
        for name, values in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in values:
                raise errors.ConfigError(f"{_flag(name)} {value!r}: {suggest(value, values)}")
        share = self.held_out_share
        if share is not None and not 0 < share < 1:
            raise errors.ConfigError(
                f"--held-out {self.held_out} is neither a file nor a share of the samples between 0 and 1"
            )

    @property
    def held_out_share(self) -> float | None:
        """The share of the samples to hold out; None where a file is named, or nothing."""
        try:
            return None if self.held_out is None else float(self.held_out)
        except ValueError:
            return None

    def to_dict(self) -> dict[str, Any]:
        """Return what was given as plain values: `TaskOptions.from_dict(it)` is equal."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskOptions:
        """Make it from `to_dict`'s values; ConfigError where one is not an option."""
        check_names("a task", values, [field.name for field in dataclasses.fields(cls)])
        return cls(**values)

    def check(self, task: str) -> None:
        """Raise ConfigError where an option is given that this task does not take."""
        taken = TAKEN_BY.get(task, frozenset())
        for name in self.to_dict():
            if name not in taken:
                by = [one for one, names in TAKEN_BY.items() if name in names]
                raise errors.ConfigError(
                    f"the task {task!r} takes no {_flag(name)}: {', '.join(by)} {'do' if len(by) > 1 else 'does'}"
                )


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "augment": ("crop,flip", "crop", "flip", "none"),
    "loss_per": ("sequence", "token"),
}
_ALL = frozenset({"model", "held_out", "metric", "skip_broken", "download"})
TAKEN_BY: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "images": _ALL | {"label_column", "image_column", "image_size", "augment"},
        "text": _ALL | {"label_column", "text_column", "max_length"},
        "sft": _ALL
        | {"prompt_column", "answer_column", "messages_column", "max_length", "lora", "lora_targets", "loss_per"},
    }
)
"""Options of each task that has any."""


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
