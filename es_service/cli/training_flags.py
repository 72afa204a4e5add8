"""Flags of the optimizer and of the passes of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["TRAINING", "add_training_flags", "training_settings"]

TRAINING: Mapping[str, type] = {
    **dict.fromkeys(("optimizer", "schedule", "scoring_dtype"), str),
    **dict.fromkeys(("weight_decay", "warm_up"), float),
    **dict.fromkeys(("micro_batch_size", "scoring_batch_size"), int),
    **dict.fromkeys(("gradient_checkpointing", "channels_last", "compile"), bool),
}
"""Settings of `training.settings.TrainSettings` that have a flag here, and what they are."""


def add_training_flags(flag: Callable[..., Any]) -> None:
    """Add the flags to a parser whose `add_argument` this is."""
    flag("--learning-rate", type=float, metavar="LR", help="peak of the learning-rate schedule (default: the task's)")
    flag("--optimizer", metavar="NAME", help="sgd or adamw (default: the task's; another one needs --learning-rate)")
    flag("--weight-decay", type=float, metavar="WD", help="of the optimizer (default: the task's)")
    flag("--warm-up", type=float, metavar="SHARE", help="share of training with a rising rate (default: the task's)")
    flag("--schedule", metavar="NAME", help="cosine, linear or constant after the warm-up (default: the task's)")
    flag("--micro-batch-size", type=int, metavar="M", help="maximum number of samples in one forward or backward pass")
    flag(
        "--scoring-batch-size",
        type=int,
        metavar="M",
        help="maximum number of samples in one scoring pass (default: the meta-batch; halved if memory runs out)",
    )
    flag("--scoring-dtype", metavar="TYPE", help="float32 or bfloat16 for scoring (default: auto, that of training)")
    for name, help_text in (
        ("--gradient-checkpointing", "save memory: compute activations again in the backward pass"),
        ("--channels-last", "keep convolutions in channels last"),
        ("--compile", "compile the model with torch.compile"),
    ):
        flag(name, action="store_true", default=None, help=help_text)


def training_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given."""
    return {name: values[name] for name in TRAINING if values.get(name) is not None}
