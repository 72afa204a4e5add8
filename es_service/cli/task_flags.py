"""Flags of the task, its data, and changes of its train set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["DEFAULT_TASK", "DERIVED", "OPTIONS", "add_task_flags", "derived_settings", "option_settings"]

DEFAULT_TASK = "fashion"
DERIVED: Mapping[str, type] = {"label_noise": float, "long_tail": float, "shots": int, "limit": int}
"""Settings of `training.tasks.derived.Derived` that have a flag, and what they are."""
_LORA_RANK = 8
OPTIONS: Mapping[str, type] = {
    **dict.fromkeys(("model", "held_out", "label_column", "image_column", "augment", "text_column"), str),
    **dict.fromkeys(("prompt_column", "answer_column", "messages_column", "lora_targets", "loss_per", "metric"), str),
    **dict.fromkeys(("image_size", "max_length", "lora"), int),
    **dict.fromkeys(("skip_broken", "download"), bool),
}
"""Settings of `training.tasks.options.TaskOptions`, and what they are."""


def add_task_flags(flag: Callable[..., Any]) -> None:
    """Add the flags to a parser, or a group of one, whose `add_argument` this is."""
    flag(
        "--task",
        help="images, text or sft from your files; fashion, reviews or flights; or your own my_module:build_task "
        "(default: fashion)",
    )
    flag(
        "--data", metavar="PATH", help="file or folder of the task's data (default: the data that comes with a package)"
    )
    flag("--model", metavar="NAME", help="model of a task from files: its name, or a folder in Hugging Face's layout")
    flag("--held-out", metavar="PATH", help="file or folder to evaluate on, or the share of --data to hold out")
    flag("--label-column", metavar="NAME", help="column of the labels")
    flag("--image-column", metavar="NAME", help="column of the images")
    flag("--image-size", type=int, metavar="PX", help="scale images to squares of so many pixels")
    flag("--augment", metavar="WAYS", help="crop,flip, crop, flip or none")
    flag("--text-column", metavar="NAME", help="column of the text; NAME,NAME for pairs")
    flag("--prompt-column", metavar="NAME", help="column of the prompts")
    flag("--answer-column", metavar="NAME", help="column of the answers")
    flag("--messages-column", metavar="NAME", help="column of conversations, instead of prompts and answers")
    flag("--max-length", type=int, metavar="T", help="truncate sequences to so many tokens")
    flag("--lora", type=int, nargs="?", const=_LORA_RANK, metavar="RANK", help="train LoRA adapters (rank default: 8)")
    flag("--lora-targets", metavar="NAME,…", help="modules that get adapters (default: all linear layers)")
    flag("--loss-per", metavar="UNIT", help="sequence: all sequences count alike; token: all tokens do")
    flag("--metric", metavar="NAME", help="the metric that verdicts go by (default: the task's)")
    flag("--skip-broken", action="store_true", default=None, help="leave out and count samples that cannot be read")
    flag("--download", action="store_true", default=None, help="allow --model to be fetched from the Hugging Face hub")
    flag("--label-noise", type=float, metavar="SHARE", help="give this share of the samples a wrong label")
    flag(
        "--long-tail",
        type=float,
        metavar="SHARE",
        help="thin the classes out: the rarest keeps this share of the largest",
    )
    flag("--shots", type=int, metavar="K", help="keep K samples per class")
    flag("--limit", type=int, metavar="N", help="keep N samples")


def derived_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `Derived` that were given."""
    return {name: values[name] for name in DERIVED if values.get(name) is not None}


def option_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `TaskOptions` that were given."""
    return {name: values[name] for name in OPTIONS if values.get(name) is not None}
